// SPDX-License-Identifier: MIT OR Apache-2.0
//! Instructions as functions: what the `x86_64` crate does not wrap, or wraps as safe or as more than is wanted.

use core::arch::{asm, x86_64::__cpuid_count};

use hypervisor::addr::{Hpa, Ticks};
use hypervisor::backend::CpuidResult;
pub(crate) use hypervisor::msr;
use x86_64::registers::model_specific::Msr;
use x86_64::structures::port::{PortRead, PortWrite};

/// Reads a model-specific register.
///
/// # Safety
/// The CPU has this register; reading another one raises #GP, which is fatal here.
#[inline]
pub(crate) unsafe fn rdmsr(number: u32) -> u64 {
    // SAFETY: the caller vouches for the register.
    unsafe { Msr::new(number).read() }
}

/// Writes a model-specific register.
///
/// # Safety
/// The CPU has this register, accepts the value, and the value breaks nothing that Rust code
/// relies on (such as GS base, which finds the per-CPU area).
#[inline]
pub(crate) unsafe fn wrmsr(number: u32, value: u64) {
    // SAFETY: the caller vouches for register and value.
    unsafe { Msr::new(number).write(value) }
}

/// Executes CPUID.
#[inline]
pub(crate) fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    let raw = __cpuid_count(leaf, subleaf);
    CpuidResult { eax: raw.eax, ebx: raw.ebx, ecx: raw.ecx, edx: raw.edx }
}

/// Reads the time-stamp counter. Not ordered against other instructions.
#[inline]
pub(crate) fn rdtsc() -> Ticks {
    let (low, high): (u64, u64);
    // SAFETY: RDTSC reads a counter and is allowed in ring 0 whatever CR4.TSD says. It clears the
    // upper halves of both registers.
    unsafe {
        asm!("rdtsc", out("rax") low, out("rdx") high, options(nomem, nostack, preserves_flags));
    }
    Ticks::new(high << 32 | low)
}

/// Reads the time-stamp counter after every load before it.
pub(crate) fn rdtsc_ordered() -> Ticks {
    // SAFETY: waits for earlier instructions; every x86-64 CPU has it.
    unsafe { asm!("lfence", options(nostack, preserves_flags)) };
    rdtsc()
}

/// Reads a byte from a port.
///
/// # Safety
/// Reading the port has no effect that breaks memory safety.
#[inline]
pub(crate) unsafe fn inb(port: u16) -> u8 {
    // SAFETY: the caller vouches for the port.
    unsafe { u8::read_from_port(port) }
}

/// Writes a byte to a port.
///
/// # Safety
/// Writing the port has no effect that breaks memory safety (no DMA is started by it).
#[inline]
pub(crate) unsafe fn outb(port: u16, value: u8) {
    // SAFETY: the caller vouches for the port.
    unsafe { u8::write_to_port(port, value) }
}

/// Stops until an interrupt has been taken, then returns with interrupts off.
///
/// STI keeps interrupts off for one more instruction, so none is lost before HLT; the handler
/// returns with interrupts off (see `traps.rs`).
#[inline]
pub(crate) fn wait_for_interrupt() {
    // SAFETY: the IDT is loaded before anything idles, and its handlers preserve all registers.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) }
}

/// Lets one pending interrupt in, if there is one, then returns with interrupts off.
#[inline]
pub(crate) fn take_pending_interrupt() {
    // SAFETY: as for `wait_for_interrupt`.
    unsafe { asm!("sti", "nop", "cli", options(nostack)) }
}

/// Stops for good.
pub(crate) fn halt() -> ! {
    loop {
        // SAFETY: stops the CPU; an NMI that wakes it finds the loop.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}

/// Reads a control register by name.
macro_rules! read_cr {
    ($name:ident, $reg:literal) => {
        /// Reads the control register of that name.
        #[inline]
        pub(crate) fn $name() -> u64 {
            let value: u64;
            // SAFETY: reading a control register in ring 0 has no side effect.
            unsafe {
                asm!(concat!("mov {}, ", $reg), out(reg) value, options(nomem, nostack, preserves_flags));
            }
            value
        }
    };
}
read_cr!(cr0, "cr0");
read_cr!(cr2, "cr2");
read_cr!(cr3, "cr3");
read_cr!(cr4, "cr4");

/// Writes CR2, which only guests use: the hypervisor takes no page faults that it survives.
#[inline]
pub(crate) fn set_cr2(value: u64) {
    // SAFETY: CR2 affects nothing but what a page-fault handler reads.
    unsafe { asm!("mov cr2, {}", in(reg) value, options(nomem, nostack, preserves_flags)) }
}

/// Reads DR6.
#[inline]
pub(crate) fn dr6() -> u64 {
    let value: u64;
    // SAFETY: reading it has no side effect; DR7.GD is clear in the hypervisor.
    unsafe { asm!("mov {}, dr6", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes the low half of DR6, which only guests use; the high half is always 0.
#[inline]
pub(crate) fn set_dr6(value: u64) {
    // SAFETY: DR6 affects nothing but what a debug handler reads.
    unsafe { asm!("mov dr6, {}", in(reg) value & 0xffff_ffff, options(nomem, nostack, preserves_flags)) };
}

/// Writes CR4.
///
/// # Safety
/// The CPU supports every bit set, and paging stays as the page tables expect it.
pub(crate) unsafe fn set_cr4(value: u64) {
    // SAFETY: the caller vouches for the bits.
    unsafe { asm!("mov cr4, {}", in(reg) value, options(nostack, preserves_flags)) }
}

/// Writes CR0.
///
/// # Safety
/// PE, PG and WP stay set.
pub(crate) unsafe fn set_cr0(value: u64) {
    // SAFETY: the caller keeps paging on.
    unsafe { asm!("mov cr0, {}", in(reg) value, options(nostack, preserves_flags)) }
}

/// Loads CR3.
///
/// # Safety
/// The tables map the code, data and stack in use as before.
pub(crate) unsafe fn set_cr3(root: Hpa) {
    // SAFETY: the caller vouches for the tables.
    unsafe { asm!("mov cr3, {}", in(reg) root.raw(), options(nostack, preserves_flags)) }
}

/// Whether the TSC runs at one rate in all states. Source: AMD APM vol. 3, CPUID 8000_0007h.
pub(crate) fn has_invariant_tsc() -> bool {
    cpuid(0x8000_0000, 0).eax >= 0x8000_0007 && cpuid(0x8000_0007, 0).edx & 1 << 8 != 0
}

/// Whether page tables, the CPU's own and nested ones, may have 1 GiB leaves.
pub(crate) fn has_gib_pages() -> bool {
    cpuid(0x8000_0001, 0).edx & 1 << 26 != 0
}

/// The width of a physical address in bits.
pub(crate) fn phys_bits() -> u8 {
    if cpuid(0x8000_0000, 0).eax < 0x8000_0008 {
        return 36;
    }
    guest_abi::num::low_u8(u64::from(cpuid(0x8000_0008, 0).eax))
}
