// SPDX-License-Identifier: MIT OR Apache-2.0
//! A second vCPU: from the start-up IPI to 64-bit Rust, beside the first.
//!
//! It has its own stack, shares page tables, GDT and IDT, and has no task register: neither NMI nor
//! double fault may reach it. [`crate::traps::catch`] and [`crate::report`] are the first vCPU's alone.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use guest_abi::cpuid::LEAF_HVM;
use guest_abi::num::{high_u32, low_u32};

use crate::{apic, cpu, traps};

global_asm!(include_str!("smp.S"), options(att_syntax));

unsafe extern "C" {
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
}

/// What the second vCPU runs.
pub type Main = fn() -> !;

static MAIN: AtomicUsize = AtomicUsize::new(0);

/// Interrupt command: INIT, asserted, to all others.
pub const INIT_OTHERS: u64 = 3 << 18 | 1 << 14 | 5 << 8;
/// Interrupt command: start-up IPI to all others, without its page.
pub const STARTUP_OTHERS: u64 = 3 << 18 | 1 << 14 | 6 << 8;

/// Puts the start-up code into page number `page` and names what it goes on to.
///
/// # Safety
/// The page, which must be below 1 MiB, must be free RAM.
pub unsafe fn prepare(page: u8, main: Main) {
    MAIN.store(main as usize, SeqCst);
    let start = &raw const ap_trampoline;
    let length = (&raw const ap_trampoline_end).addr() - start.addr();
    // SAFETY: the caller's promise for the destination; the source is the code between two labels.
    unsafe { start.copy_to_nonoverlapping((usize::from(page) << 12) as *mut u8, length) };
}

#[unsafe(no_mangle)]
extern "C" fn ap_boot() -> ! {
    traps::load_idt();
    // SAFETY: `prepare` stored a function of this type; without it the trampoline is nowhere.
    let main: Main = unsafe { core::mem::transmute(MAIN.load(SeqCst)) };
    main()
}

/// The number of the vCPU that asks, by CPUID.
#[must_use]
pub fn own_vcpu() -> u32 {
    cpu::cpuid(LEAF_HVM, 0).ebx
}

/// Writes a register of the local APIC without [`crate::traps::catch`]: a fault ends the guest.
pub fn apic_write(register: u32, value: u64) {
    // SAFETY: the APIC can only interrupt, and every vector has a gate.
    unsafe {
        asm!("wrmsr", in("ecx") register, in("eax") low_u32(value), in("edx") high_u32(value), options(nostack));
    }
}

/// Ends the interrupt that is in service.
pub fn end_of_interrupt() {
    apic_write(apic::EOI, 0);
}
