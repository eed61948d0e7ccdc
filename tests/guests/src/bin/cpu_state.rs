// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves that what the hypervisor keeps of the CPU for a guest is what the guest put there: control
//! registers read back as written, debug and vector registers outlive exits, and an instruction
//! that the hypervisor carries out single-steps like any other.
//!
//! A pass cannot tell whether another domain finds anything of it; nor that caches are off with
//! CR0.CD, which only has to read back.
//!
//! Checks: Intel SDM vol. 3A, "Control Registers" and "Debug Exceptions and Conditions".
//! Expects: status 0.
#![no_std]
#![no_main]

use core::arch::asm;

use test_guests::shared::Shared;
use test_guests::traps::{self, catch};
use test_guests::{check, check_eq, cpu, guest, hypercall, skip};

guest!(main);

const CR0_NE: u64 = 1 << 5;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
const CR4_DE: u64 = 1 << 3;
const CR4_MCE: u64 = 1 << 6;
const CR4_PGE: u64 = 1 << 7;
const DB: u64 = 1;
const DR6_BS: u64 = 1 << 14;

static WATCHED: Shared<u64> = Shared::new(0);

fn main() {
    cr0();
    cr4();
    cr8();
    single_step();
    breakpoints();
    vector_registers();
}

/// An exit whose handling changes nothing.
fn exit() {
    let _ = cpu::cpuid(0, 0);
    check("hypercalls work", hypercall::present());
}

fn set_cr0(value: u64) -> Option<traps::Fault> {
    // SAFETY: PE and PG stay; the others concern caches and FPU errors.
    catch(|| unsafe { asm!("mov cr0, {}", in(reg) value, options(nostack)) })
}

fn cr0() {
    let before = cpu::cr0();
    for (name, value) in [
        ("CR0.NE can be set", before | CR0_NE),
        ("CR0.NE can be cleared", before & !CR0_NE),
        ("CR0.CD can be set", before | CR0_CD),
        ("CR0.CD and NW can be set", before | CR0_CD | CR0_NW),
    ] {
        check_eq(name, set_cr0(value).map(|fault| fault.vector), None);
        check_eq("and reads back", cpu::cr0(), value);
    }
    if hypercall::is_amd() {
        skip("CR0.NW without CD raises #GP(0)", "the CPU checks it, and not every emulator does");
    } else {
        let fault = set_cr0(before & !CR0_CD | CR0_NW);
        check_eq("CR0.NW without CD raises #GP(0)", fault.map(|f| (f.vector, f.error)), Some((traps::GP, 0)));
    }
    check("CR0 is put back", set_cr0(before).is_none() && cpu::cr0() == before);
}

fn cr4() {
    let before = cpu::cr4();
    for bit in [CR4_DE, CR4_PGE] {
        let value = before ^ bit;
        // SAFETY: neither changes what the guest can reach.
        check("a bit of CR4 can be changed", unsafe { cpu::set_cr4(value) }.is_ok());
        check_eq("and reads back", cpu::cr4(), value);
    }
    // SAFETY: refused, as CPUID hides machine checks; else without effect on what the guest does.
    let fault = unsafe { cpu::set_cr4(before | CR4_MCE) }.err();
    check_eq("CR4.MCE is refused", fault.map(|f| (f.vector, f.error)), Some((traps::GP, 0)));
    // SAFETY: what was there.
    check("CR4 is put back", unsafe { cpu::set_cr4(before) }.is_ok());
}

fn cr8() {
    for priority in [0xf_u64, 3, 0] {
        let read: u64;
        // SAFETY: interrupts are off; the last round puts the reset value back.
        unsafe { asm!("mov cr8, {}", "mov {}, cr8", in(reg) priority, out(reg) read, options(nostack)) };
        check_eq("CR8 reads back", read, priority);
    }
}

fn set_dr6(value: u64) {
    // SAFETY: DR6 only reports.
    unsafe { asm!("mov dr6, {}", in(reg) value, options(nostack)) };
}

fn dr6() -> u64 {
    let value: u64;
    // SAFETY: DR7.GD is clear.
    unsafe { asm!("mov {}, dr6", out(reg) value, options(nostack)) };
    value
}

fn single_step() {
    set_dr6(0xffff_0ff0);
    let behind_cpuid: u64;
    let step = {
        let mut behind = 0_u64;
        let fault = catch(|| {
            // SAFETY: the trap behind CPUID ends the closure and clears TF. CPUID writes the listed registers.
            unsafe {
                asm!(
                    "push rbx",
                    "lea {behind}, [rip + 2f]",
                    "mov [{place}], {behind}",
                    "pushfq", "or qword ptr [rsp], 0x100",
                    "xor eax, eax",
                    "popfq",
                    "cpuid",
                    "2: nop", "nop", "nop",
                    "pop rbx",
                    behind = out(reg) _, place = in(reg) &raw mut behind,
                    out("rax") _, out("rcx") _, out("rdx") _,
                );
            }
        });
        behind_cpuid = behind;
        fault
    };
    check_eq("a step over CPUID raises #DB", step.map(|f| f.vector), Some(DB));
    check_eq("directly behind it", step.map(|f| f.rip), Some(behind_cpuid));
    check_eq("DR6 says single step", dr6() & 0xe00f, DR6_BS);
    set_dr6(0xffff_0ff0);
    exit();
    check_eq("DR6 outlives exits", dr6(), 0xffff_0ff0);
}

fn breakpoints() {
    let address = WATCHED.address();
    // SAFETY: the breakpoint's address is the guest's own word; DR7 is cleared again below.
    unsafe {
        asm!(
            "mov dr0, {a}", "mov dr3, {b}", "mov dr7, {c}",
            a = in(reg) address, b = in(reg) 0x1234_5678_u64, c = in(reg) 0x1_0401_u64 | 3 << 18, options(nostack)
        );
    }
    exit();
    let (dr0, dr3, dr7): (u64, u64, u64);
    // SAFETY: DR7.GD is clear.
    unsafe {
        asm!("mov {}, dr0", "mov {}, dr3", "mov {}, dr7", out(reg) dr0, out(reg) dr3, out(reg) dr7, options(nostack))
    };
    check_eq("debug registers outlive exits", (dr0, dr3, dr7), (address, 0x1234_5678, 0x0d_0401));
    // SAFETY: the guest's own word.
    let hit = catch(|| unsafe { WATCHED.get().write_volatile(1) });
    check_eq("a write breakpoint raises #DB", hit.map(|f| f.vector), Some(DB));
    check_eq("DR6 says which", dr6() & 0xe00f, 1);
    // SAFETY: turns breakpoints off.
    unsafe { asm!("mov dr7, {}", in(reg) 0x400_u64, options(nostack)) };
    set_dr6(0xffff_0ff0);
}

fn vector_registers() {
    const OSFXSR: u64 = 1 << 9;
    let before = cpu::cr4();
    // SAFETY: every x86-64 CPU has SSE; nothing else here uses it.
    check("SSE can be turned on", unsafe { cpu::set_cr4(before | OSFXSR) }.is_ok());
    // SAFETY: as above. EM and TS are clear after the reset.
    unsafe {
        asm!("movq xmm0, {}", "movq xmm15, {}", in(reg) 0x0123_4567_89ab_cdef_u64, in(reg) !0_u64, options(nostack))
    };
    exit();
    let (first, last): (u64, u64);
    // SAFETY: as above.
    unsafe { asm!("movq {}, xmm0", "movq {}, xmm15", out(reg) first, out(reg) last, options(nostack)) };
    check_eq("vector registers outlive exits", (first, last), (0x0123_4567_89ab_cdef, !0));
    // SAFETY: what was there.
    check("CR4 is put back", unsafe { cpu::set_cr4(before) }.is_ok());
}
