// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves that HLT with interrupts off on a domain's only vCPU powers the domain off.
//!
//! It is how a PVH kernel without ACPI powers off: there is no hypercall in that path. A pass cannot
//! tell what happens while another vCPU is up.
//!
//! Checks: xen/arch/x86/hvm/hvm.c's rule as `docs` of the interface state it: all vCPUs down is
//! `SHUTDOWN_poweroff`.
//! Expects: status 0.
#![no_std]
#![no_main]

use test_guests::{cpu, guest, report, say};

guest!(main);

fn main() {
    say!("PASS the guest reached its last HLT");
    report::done();
    cpu::halt_off();
    report::fatal(format_args!("HLT with interrupts off returned"));
}
