// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves that exceptions reach a guest with the vector, error code and address that it is due.
//!
//! A pass cannot tell anything about exceptions that the hypervisor injects itself; guests for MSRs
//! and hypercalls show those.
//!
//! Checks: Intel SDM vol. 3A, "Exception and Interrupt Reference".
//! Expects: status 0.
#![no_std]
#![no_main]

use core::arch::asm;

use test_guests::paging::{self, PRESENT, WINDOW, WRITABLE};
use test_guests::shared::Shared;
use test_guests::traps::{self, Fault, catch};
use test_guests::{check, check_eq, cpu, guest, skip};

static PAGE: Shared<[u8; 4096]> = Shared::new([0xc3; 4096]);
const NON_CANONICAL: u64 = 0x8000_0000_0000;

guest!(main);

fn main() {
    instructions();
    protection();
    page_faults();
    nested();
    double_fault();
}

fn vector_and_error(fault: Option<Fault>) -> Option<(u64, u64)> {
    fault.map(|f| (f.vector, f.error))
}

fn instructions() {
    // SAFETY: in all of these, the instruction faults and the closure is abandoned.
    let ud = catch(|| unsafe { asm!("ud2") });
    check_eq("ud2 raises #UD", vector_and_error(ud), Some((traps::UD, 0)));
    // SAFETY: as above.
    let de =
        catch(|| unsafe { asm!("xor edx, edx", "xor ecx, ecx", "div ecx", out("eax") _, out("ecx") _, out("edx") _) });
    check_eq("a division by 0 raises #DE", vector_and_error(de), Some((traps::DE, 0)));
    // SAFETY: as above.
    let bp = catch(|| unsafe { asm!("int3") });
    check_eq("int3 raises #BP", vector_and_error(bp), Some((traps::BP, 0)));
    // SAFETY: the byte before RIP is code.
    let before = bp.map(|f| unsafe { ((f.rip - 1) as *const u8).read() });
    check_eq("#BP points behind int3", before, Some(0xcc));
    // SAFETY: as above; the flag is cleared when the trap is taken.
    let db = catch(|| unsafe { asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq", "nop", "nop") });
    check_eq("single stepping raises #DB", vector_and_error(db), Some((1, 0)));
    // SAFETY: TS only makes the FPU fault; the second block clears it again.
    let nm = catch(|| unsafe { asm!("mov rax, cr0", "or rax, 8", "mov cr0, rax", "fnop", out("rax") _) });
    check_eq("the FPU with CR0.TS raises #NM", vector_and_error(nm), Some((7, 0)));
    // SAFETY: as above.
    unsafe { asm!("clts") };
    // SAFETY: as above, for all four: no guest has the instruction.
    let vmrun = catch(|| unsafe { asm!(".byte 0x0f, 0x01, 0xd8", in("rax") 0_u64) });
    check_eq("VMRUN raises #UD", vector_and_error(vmrun), Some((traps::UD, 0)));
    // SAFETY: as above.
    let invlpga = catch(|| unsafe { asm!(".byte 0x0f, 0x01, 0xdf", in("rax") 0_u64, in("ecx") 0) });
    check_eq("INVLPGA raises #UD", vector_and_error(invlpga), Some((traps::UD, 0)));
    // SAFETY: as above.
    let vmxoff = catch(|| unsafe { asm!(".byte 0x0f, 0x01, 0xc4") });
    check_eq("VMXOFF raises #UD", vector_and_error(vmxoff), Some((traps::UD, 0)));
    // SAFETY: as above.
    let monitor = catch(|| unsafe { asm!("monitor", in("rax") 0x10_0000_u64, in("ecx") 0, in("edx") 0) });
    check_eq("MONITOR raises #UD", vector_and_error(monitor), Some((traps::UD, 0)));
}

fn protection() {
    check_eq(
        "a non-canonical load raises #GP(0)",
        vector_and_error(cpu::read(NON_CANONICAL).err()),
        Some((traps::GP, 0)),
    );
    // SAFETY: the selector is beyond the GDT, so that the load faults.
    let gp = catch(|| unsafe { asm!("mov ds, {0:e}", in(reg) 0x1230) });
    check_eq("a selector beyond the GDT raises #GP(selector)", vector_and_error(gp), Some((traps::GP, 0x1230)));
    // SAFETY: the access through RBP faults; RBP is restored by the recovery.
    let ss = catch(|| unsafe { asm!("mov rbp, {a}", "mov rax, [rbp]", a = in(reg) NON_CANONICAL, out("rax") _) });
    // QEMU 7.2 without KVM raises #GP here.
    let either = matches!(vector_and_error(ss), Some((traps::SS | traps::GP, 0)));
    check("a non-canonical stack access raises #SS(0)", either);
    // SAFETY: the vector's gate has DPL 0 and CPL is 0: INT n is legal, to a handler that counts.
    unsafe { asm!("int 0x80") };
    check_eq("INT n reaches its handler", traps::count(0x80), 1);
}

fn page_faults() {
    let va = WINDOW + 0x1000;
    let pa = PAGE.address();
    // SAFETY: a write that is not refused goes to a page kept for it.
    let write = || vector_and_error(unsafe { cpu::write(va, 1) }.err());
    let _ = paging::entry(va, 1);
    let read = cpu::read(va + 0x10).err();
    check_eq("reading a page that is not present raises #PF(0)", vector_and_error(read), Some((traps::PF, 0)));
    check_eq("CR2 is the address", read.map(|f| f.cr2), Some(va + 0x10));
    check_eq("writing it raises #PF(W)", write(), Some((traps::PF, 2)));
    paging::map(va, pa, PRESENT);
    check_eq("a read-only page can be read", cpu::read(va), Ok(u64::from_le_bytes([0xc3; 8])));
    check_eq("writing it raises #PF(P, W)", write(), Some((traps::PF, 3)));
    paging::map(va, pa, PRESENT | WRITABLE | 1 << 63);
    check_eq("writing a no-execute page works", write(), None);
    // SAFETY: the page is not executable, so that the call faults before it runs anything.
    let fetch = catch(|| unsafe { asm!("call {}", in(reg) va + 8) });
    check_eq("executing it raises #PF(P, I)", vector_and_error(fetch), Some((traps::PF, 0x11)));
    paging::map(va, pa, PRESENT | WRITABLE | 1 << 51);
    // QEMU 7.2 without KVM leaves P clear.
    let reserved = vector_and_error(cpu::read(va).err()).map(|(vector, error)| (vector, error | 1));
    if cpu::cpuid(0x8000_0008, 0).eax & 0xff < 52 {
        check_eq("a reserved bit in an entry raises #PF(P, RSVD)", reserved, Some((traps::PF, 9)));
    } else {
        skip("a reserved bit in an entry raises #PF(P, RSVD)", "the processor has no reserved address bits");
    }
    paging::map(va, pa, PRESENT | WRITABLE);
    check("the page works again", cpu::read(va).is_ok());
}

fn nested() {
    let mut inner = None;
    let outer = catch(|| {
        inner = vector_and_error(cpu::read(NON_CANONICAL).err());
        // SAFETY: the instruction faults.
        unsafe { asm!("ud2") }
    });
    check_eq("a fault inside a recovered block", inner, Some((traps::GP, 0)));
    check_eq("the outer block still recovers", vector_and_error(outer), Some((traps::UD, 0)));
}

fn double_fault() {
    // #GP without a present gate raises #NP while #GP is delivered: two contributory exceptions.
    traps::set_gate_present(traps::GP, false);
    let df = cpu::read(NON_CANONICAL).err();
    traps::set_gate_present(traps::GP, true);
    check_eq("a fault while #GP is delivered raises #DF(0)", vector_and_error(df), Some((traps::DF, 0)));
    check_eq("#GP works again", vector_and_error(cpu::read(NON_CANONICAL).err()), Some((traps::GP, 0)));
}
