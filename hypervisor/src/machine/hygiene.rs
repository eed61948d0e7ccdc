// SPDX-License-Identifier: MIT OR Apache-2.0
//! Carrying out what [`hypervisor::policy::hygiene`] says at a change of domain.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use hypervisor::policy::hygiene::{Cpu, Hygiene};

use super::{cpu, percpu};

const MSR_ARCH_CAPABILITIES: u32 = 0x10a;
const MSR_PRED_CMD: u32 = 0x49;
const MSR_FLUSH_CMD: u32 = 0x10b;

static WANTED: AtomicU64 = AtomicU64::new(0);

/// Finds out what the boot CPU needs; the others are of the same kind.
pub(crate) fn init() {
    // SAFETY: read only where CPUID says that it exists.
    let found = Cpu::ask(cpu::cpuid, || unsafe { cpu::rdmsr(MSR_ARCH_CAPABILITIES) }).hygiene();
    WANTED.store(found.bits(), Ordering::Relaxed);
    log::info!("at a change of domain: {found:?}");
}

/// What is done, as bits of the features.
pub(crate) fn features() -> u64 {
    WANTED.load(Ordering::Relaxed)
}

/// Makes this CPU forget the domain that it ran.
pub(crate) fn forget_domain() {
    let wanted = Hygiene::from_bits_truncate(WANTED.load(Ordering::Relaxed));
    if wanted.contains(Hygiene::BRANCHES) {
        // SAFETY: the CPU has the command; forgetting branches changes no result.
        unsafe { cpu::wrmsr(MSR_PRED_CMD, 1) };
    }
    if wanted.contains(Hygiene::BUFFERS) {
        let selector = percpu::SELECTOR_DATA;
        // SAFETY: VERW with a valid selector changes the zero flag, and overwrites the buffers.
        unsafe { asm!("verw word ptr [{}]", in(reg) &raw const selector, options(readonly, nostack)) };
    }
    if wanted.contains(Hygiene::L1D) {
        // SAFETY: the CPU has the command; an empty cache changes no result.
        unsafe { cpu::wrmsr(MSR_FLUSH_CMD, 1) };
    }
}
