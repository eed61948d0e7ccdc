// SPDX-License-Identifier: MIT OR Apache-2.0
//! What each vCPU has cost: exits and hypercalls by reason, and ticks spent on each.
//!
//! Always on: an exit adds one to a counter and a difference of two TSC readings to another. The
//! ticks are those from exit to entry, so under an emulator that counts one tick an instruction
//! they are the hypervisor's instructions. Only the pCPU that runs the vCPU writes, so plain
//! relaxed stores are enough; anybody may read.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::addr::Ticks;
use crate::exit::Exit;
use crate::pcpu::MAX_PCPUS;

/// Reasons that are told apart, in the order in which they are reported.
pub const NR_REASONS: usize = 16;
/// The place of hypercalls among them.
pub const HYPERCALL: usize = 0;
/// Hypercall numbers that are told apart; higher ones share the last counter.
pub const NR_HYPERCALLS: usize = 64;

/// What the reasons are called.
pub use guest_abi::isthmus::REASON_NAMES;

const _: () = assert!(REASON_NAMES.len() == NR_REASONS);

/// The place of an exit among the reasons.
#[must_use]
pub const fn reason(exit: &Exit) -> usize {
    match exit {
        Exit::Hypercall | Exit::NarrowHypercall | Exit::UserHypercall => HYPERCALL,
        Exit::Cpuid => 1,
        Exit::Rdmsr => 2,
        Exit::Wrmsr => 3,
        Exit::Halt => 4,
        Exit::Xsetbv => 5,
        Exit::Io(_) => 6,
        Exit::P2mFault(_) => 7,
        Exit::ControlWrite { .. } | Exit::Cr8Read { .. } => 8,
        Exit::Exception { .. } => 9,
        Exit::Forbidden(_) => 10,
        Exit::ExternalInterrupt { .. } | Exit::HostNmi => 11,
        Exit::InterruptWindow => 12,
        Exit::Deadline | Exit::PauseLoop => 13,
        Exit::CacheFlush => 14,
        Exit::TripleFault | Exit::EntryFailed { .. } | Exit::Unexpected { .. } => 15,
    }
}

/// A number that one pCPU writes and anybody reads.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds; only the counter's own pCPU calls this.
    #[inline]
    pub fn add(&self, amount: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The number now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One vCPU's counters.
pub struct Counters {
    /// Exits by reason.
    pub exits: [Counter; NR_REASONS],
    /// Ticks from exit to entry, by reason.
    pub ticks: [Counter; NR_REASONS],
    /// Hypercalls by number.
    pub hypercalls: [Counter; NR_HYPERCALLS],
    /// Ticks of all runs that have ended, in the guest and in the hypervisor.
    ran: Counter,
    /// When the run that goes on began, in host ticks; 0 between two runs.
    runs_since: Counter,
}

impl Counters {
    /// All zero.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            exits: [const { Counter::new() }; NR_REASONS],
            ticks: [const { Counter::new() }; NR_REASONS],
            hypercalls: [const { Counter::new() }; NR_HYPERCALLS],
            ran: Counter::new(),
            runs_since: Counter::new(),
        }
    }

    /// A run begins.
    pub fn begin_run(&self, now: Ticks) {
        self.runs_since.set(now.raw());
    }

    /// The run that began at `since` ends.
    pub fn end_run(&self, since: Ticks, now: Ticks) {
        self.runs_since.set(0);
        self.ran.add(now.raw().saturating_sub(since.raw()));
    }

    /// Ticks that the vCPU has had a pCPU for.
    #[must_use]
    pub fn ran(&self, now: Ticks) -> Ticks {
        let running = match self.runs_since.get() {
            0 => 0,
            since => now.raw().saturating_sub(since),
        };
        Ticks::new(self.ran.get().saturating_add(running))
    }

    /// Counts a hypercall by its number.
    #[inline]
    pub fn count_hypercall(&self, number: u32) {
        self.hypercalls.get(number as usize).unwrap_or(&self.hypercalls[NR_HYPERCALLS - 1]).add(1);
    }

    /// Exits of all reasons, and the ticks spent on them.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        let sum = |counters: &[Counter]| counters.iter().map(Counter::get).sum();
        (sum(&self.exits), sum(&self.ticks))
    }
}

/// What one pCPU has done between the runs of vCPUs; only that pCPU writes.
pub struct PcpuCounters {
    /// Runs begun.
    pub runs: Counter,
    /// How often it halted.
    pub halts: Counter,
    /// Interrupts sent to other pCPUs.
    pub kicks: Counter,
    /// Ticks that passed neither in a run nor halted.
    pub ticks: Counter,
    works_since: Counter,
}

static PCPUS: [PcpuCounters; MAX_PCPUS] = [const {
    PcpuCounters {
        runs: Counter::new(),
        halts: Counter::new(),
        kicks: Counter::new(),
        ticks: Counter::new(),
        works_since: Counter::new(),
    }
}; MAX_PCPUS];

/// The counters of a pCPU.
#[must_use]
pub fn of_pcpu(pcpu: usize) -> &'static PcpuCounters {
    &PCPUS[pcpu % MAX_PCPUS]
}

impl PcpuCounters {
    /// A run or a halt has ended.
    pub fn works_from(&self, now: Ticks) {
        self.works_since.set(now.raw());
    }

    /// A run or a halt begins.
    pub fn works_until(&self, now: Ticks) {
        self.ticks.add(now.raw().saturating_sub(self.works_since.get()));
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_counts_while_it_goes_on_and_once() {
        let counters = Counters::new();
        counters.begin_run(Ticks::new(100));
        assert_eq!(counters.ran(Ticks::new(130)), Ticks::new(30));
        counters.end_run(Ticks::new(100), Ticks::new(150));
        assert_eq!(counters.ran(Ticks::new(1000)), Ticks::new(50));
        counters.begin_run(Ticks::new(1000));
        assert_eq!(counters.ran(Ticks::new(1007)), Ticks::new(57));
    }
}
