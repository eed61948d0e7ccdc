// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves that an event whose delivery needs memory that a guest does not have ends the guest, and that
//! the instruction at RIP, which has nothing to do with it, is not carried out instead.
//!
//! The stack lies in a hole (page tables that lead there are fine, memory is not) when an interrupt
//! arrives in front of a load. That load can be decoded, so taking the CPU's write to the stack for the
//! load's access would complete the load and go on behind it. A pass cannot tell what faults of the
//! guest's own page tables do during delivery; those are the CPU's business.
//!
//! Checks: Intel SDM vol. 3C, "Information for VM Exits During Event Delivery"; AMD APM vol. 2, §15.7.2,
//! EXITINTINFO.
//! Expects: status 3.
#![no_std]
#![no_main]

use core::arch::asm;
use core::sync::atomic::Ordering::SeqCst;

use test_guests::paging::{self, PRESENT, WINDOW, WRITABLE};
use test_guests::shared::Shared;
use test_guests::{apic, boot, check, cpu, guest, report};

guest!(main);

const VA: u64 = WINDOW + 0x7654_3000;
const VECTOR: u8 = 0x50;

static MARK: Shared<u64> = Shared::new(0x1234);

fn main() {
    let hole = (1..4095).map(|mib| mib << 20).find(|a| *a >= boot::ram_end() + (1 << 20) && !boot::is_ram(*a));
    let Some(hole) = hole else { report::fatal(format_args!("no hole below 4 GiB")) };
    check("there is a hole", true);
    paging::entry(VA, 1).store(hole | PRESENT | WRITABLE, SeqCst);
    cpu::invlpg(VA);
    let ready = apic::enter_x2apic().and_then(|()| apic::enable());
    let ready = ready.and_then(|()| apic::write(apic::SELF_IPI, u64::from(VECTOR)));
    check("an interrupt waits", ready.is_ok() && apic::is_set(apic::IRR, VECTOR));
    report::done();
    let loaded: u64;
    // SAFETY: the stack is back before anything else uses it; the load is from a static.
    unsafe {
        asm!(
            "mov {saved}, rsp",
            "mov rsp, {hole}",
            // Interrupts stay off for one instruction more.
            "sti",
            "nop",
            "mov {loaded}, [{from}]",
            "mov rsp, {saved}",
            "cli",
            saved = out(reg) _,
            hole = in(reg) VA + 0x800,
            from = in(reg) MARK.get(),
            loaded = out(reg) loaded,
        );
    }
    report::fail("the guest ends", format_args!("it went on, with {loaded:#x} loaded"));
}
