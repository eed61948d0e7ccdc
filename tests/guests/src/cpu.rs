// SPDX-License-Identifier: MIT OR Apache-2.0
//! Instructions by name. What may fault is used inside [`crate::traps::catch`].

use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, _rdtsc, CpuidResult};

use guest_abi::num::{high_u32, low_u32};

use crate::traps::{Fault, catch};

/// CPUID.
#[must_use]
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    __cpuid_count(leaf, subleaf)
}

/// Time stamp counter, in ticks.
#[must_use]
pub fn tsc() -> u64 {
    // SAFETY: reading the counter changes nothing; CR4.TSD is clear.
    unsafe { _rdtsc() }
}

/// RDMSR, or its fault.
pub fn rdmsr(msr: u32) -> Result<u64, Fault> {
    let mut value = 0;
    let fault = catch(|| {
        let (low, high): (u32, u32);
        // SAFETY: reading has no effect that Rust sees; a fault abandons the closure.
        unsafe { asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nostack)) };
        value = u64::from(high) << 32 | u64::from(low);
    });
    fault.map_or(Ok(value), Err)
}

/// WRMSR, or its fault.
///
/// # Safety
/// The value must be one that the guest can go on with if the write is accepted.
pub unsafe fn wrmsr(msr: u32, value: u64) -> Result<(), Fault> {
    let fault = catch(|| {
        // SAFETY: the caller's promise.
        unsafe { asm!("wrmsr", in("ecx") msr, in("eax") low_u32(value), in("edx") high_u32(value), options(nostack)) };
    });
    fault.map_or(Ok(()), Err)
}

/// Reads a byte from any linear address, or the fault.
pub fn read(address: u64) -> Result<u64, Fault> {
    let mut value = 0;
    let fault = catch(|| {
        // SAFETY: a load changes nothing; one that cannot be done faults and abandons the closure.
        unsafe { asm!("mov {v}, [{a}]", v = out(reg) value, a = in(reg) address, options(nostack, readonly)) };
    });
    fault.map_or(Ok(value), Err)
}

/// Stores eight bytes at any linear address, or the fault.
///
/// # Safety
/// Nothing that is in use may be there.
pub unsafe fn write(address: u64, value: u64) -> Result<(), Fault> {
    let fault = catch(|| {
        // SAFETY: the caller's promise.
        unsafe { asm!("mov [{a}], {v}", v = in(reg) value, a = in(reg) address, options(nostack)) };
    });
    fault.map_or(Ok(()), Err)
}

/// OUT of a byte.
pub fn outb(port: u16, value: u8) {
    // SAFETY: no device of a micro-guest can change memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, nomem)) };
}

/// IN of a byte.
#[must_use]
pub fn inb(port: u16) -> u8 {
    let value;
    // SAFETY: no device of a micro-guest can change memory.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack, nomem)) };
    value
}

/// Allows interrupts.
pub fn enable_interrupts() {
    // SAFETY: every vector has a gate.
    unsafe { asm!("sti", options(nostack)) };
}

/// Forbids interrupts.
pub fn disable_interrupts() {
    // SAFETY: it only delays them.
    unsafe { asm!("cli", options(nostack)) };
}

/// Waits for an interrupt with interrupts enabled, and disables them again.
pub fn wait() {
    // SAFETY: every vector has a gate; STI holds interrupts off until HLT.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

/// HLT with interrupts off: nothing but an NMI ends it.
pub fn halt_off() {
    // SAFETY: stopping changes nothing.
    unsafe { asm!("cli", "hlt", options(nostack)) };
}

/// CR0.
#[must_use]
pub fn cr0() -> u64 {
    let value;
    // SAFETY: a plain read.
    unsafe { asm!("mov {}, cr0", out(reg) value, options(nostack, nomem)) };
    value
}

/// CR2.
#[must_use]
pub fn cr2() -> u64 {
    let value;
    // SAFETY: a plain read.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nostack, nomem)) };
    value
}

/// CR3.
#[must_use]
pub fn cr3() -> u64 {
    let value;
    // SAFETY: a plain read.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nostack, nomem)) };
    value
}

/// Loads CR3.
///
/// # Safety
/// The tables there must map what is in use as it is mapped.
pub unsafe fn set_cr3(value: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("mov cr3, {}", in(reg) value, options(nostack)) };
}

/// CR4.
#[must_use]
pub fn cr4() -> u64 {
    let value;
    // SAFETY: a plain read.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nostack, nomem)) };
    value
}

/// Loads CR4, or the fault.
///
/// # Safety
/// The guest must be able to go on with it if it is accepted.
pub unsafe fn set_cr4(value: u64) -> Result<(), Fault> {
    let fault = catch(|| {
        // SAFETY: the caller's promise.
        unsafe { asm!("mov cr4, {}", in(reg) value, options(nostack)) };
    });
    fault.map_or(Ok(()), Err)
}

/// INVLPG.
pub fn invlpg(address: u64) {
    // SAFETY: forgetting a translation changes nothing that the tables do not say.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack)) };
}
