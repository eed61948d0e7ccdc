// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves that page tables outside a guest's RAM end the guest that uses them, and nothing else.
//!
//! The CPU walks there by itself and finds no memory. There is nothing that the guest could be told:
//! SVM does not say which linear address was being translated. A pass cannot tell what a walk of
//! the hypervisor's own (for a hypercall's argument) does; `guestmem_hostile` shows that.
//!
//! Checks: AMD APM vol. 2, §15.25 Nested Paging; Intel SDM vol. 3C, EPT violations.
//! Expects: status 3.
#![no_std]
#![no_main]

use core::sync::atomic::Ordering::SeqCst;

use test_guests::paging::{self, PRESENT, WINDOW, WRITABLE};
use test_guests::{boot, check, cpu, guest, report};

guest!(main);

const VA: u64 = WINDOW + 0x7654_3000;

fn main() {
    let hole = (1..4095).map(|mib| mib << 20).find(|a| *a >= boot::ram_end() + (1 << 20) && !boot::is_ram(*a));
    let Some(hole) = hole else { report::fatal(format_args!("no hole below 4 GiB")) };
    check("there is a hole", true);
    paging::entry(VA, 2).store(hole | PRESENT | WRITABLE, SeqCst);
    cpu::invlpg(VA);
    report::done();
    let result = cpu::read(VA);
    report::fail("the guest ends", format_args!("the walk gave {result:x?}"));
}
