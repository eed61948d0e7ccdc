// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which physical CPU this code runs on.
//!
//! The number is an index below [`MAX_PCPUS`], given out by the boot code, not an APIC id. The
//! machine says how to find it ([`set_current`]); until it does, everything runs on pCPU 0.

use spin::Once;

use crate::backend::Machine;
use crate::counters;

/// The most physical CPUs that the hypervisor drives; sets of them fit one word.
pub const MAX_PCPUS: usize = 64;

static CURRENT: Once<fn() -> usize> = Once::new();

/// Tells how the running pCPU learns its own number. The first call counts.
pub fn set_current(provider: fn() -> usize) {
    CURRENT.call_once(|| provider);
}

/// The number of the pCPU that runs this, below [`MAX_PCPUS`].
#[inline]
#[must_use]
pub fn current() -> usize {
    #[cfg(test)]
    return crate::testing::pretended();
    #[cfg(not(test))]
    CURRENT.get().map_or(0, |provider| provider() % MAX_PCPUS)
}

/// Makes another pCPU exit or wakes it ([`Machine::kick`]), and counts that.
pub fn kick(machine: &dyn Machine, pcpu: usize) {
    counters::of_pcpu(current()).kicks.add(1);
    machine.kick(pcpu);
}
