// SPDX-License-Identifier: MIT OR Apache-2.0
//! The virtual local APIC's timer.
//!
//! Its counter runs at [`BUS_NS`] per count before the divider, 100 MHz, on every machine. Inside
//! there is only a deadline on the host's counter: the vCPU loop hands the nearest one to the CPU
//! and asks here what has expired. The current count is computed when it is read.
//!
//! A period shorter than [`MIN_PERIOD_NS`] is stretched, since a guest could otherwise ask for an
//! interrupt at every instruction. Periods that passed while the vCPU did not run are merged into
//! one interrupt, as on a CPU that had interrupts off.
//!
//! Source: Intel SDM vol. 3A, APIC Timer.

use guest_abi::num::low_u32;

use super::lapic::AccessFault;
use crate::addr::{Nanos, Ticks};
use crate::time::TscScale;
use crate::vcpu::NEVER;

/// Nanoseconds a count with divider 1.
pub const BUS_NS: u64 = 10;
/// The shortest period.
pub const MIN_PERIOD_NS: u64 = 50_000;

/// What the timer needs to know of time at one moment.
#[derive(Clone, Copy, Debug)]
pub struct TimerClock {
    /// The host's counter.
    pub now: Ticks,
    /// What the guest's counter is ahead of the host's, wrapping.
    pub tsc_offset: u64,
    /// The counter's scale.
    pub scale: TscScale,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
}

/// The timer's registers and its deadline.
pub(super) struct Timer {
    mode: Mode,
    initial: u32,
    divide: u32,
    /// [`NEVER`] if it is not running.
    deadline: Ticks,
    period: Ticks,
    tsc_deadline: u64,
}

impl Timer {
    pub(super) const fn new() -> Self {
        Self { mode: Mode::OneShot, initial: 0, divide: 0, deadline: NEVER, period: Ticks::new(0), tsc_deadline: 0 }
    }

    pub(super) const fn initial(&self) -> u32 {
        self.initial
    }

    pub(super) const fn divide(&self) -> u32 {
        self.divide
    }

    pub(super) const fn tsc_deadline(&self) -> u64 {
        self.tsc_deadline
    }

    #[inline]
    pub(super) const fn deadline(&self) -> Ticks {
        self.deadline
    }

    /// Sets the mode from the LVT's two bits. Going to or from TSC-deadline mode disarms.
    pub(super) fn set_mode(&mut self, bits: u32) -> Result<(), AccessFault> {
        let mode = match bits {
            0 => Mode::OneShot,
            1 => Mode::Periodic,
            2 => Mode::TscDeadline,
            _ => return Err(AccessFault),
        };
        if (mode == Mode::TscDeadline) != (self.mode == Mode::TscDeadline) {
            self.disarm();
        }
        self.mode = mode;
        Ok(())
    }

    /// Writes the initial count, which starts the counter; 0 stops it.
    pub(super) fn set_initial(&mut self, count: u32, clock: &TimerClock) {
        if self.mode == Mode::TscDeadline {
            return;
        }
        self.initial = count;
        self.start(u64::from(count), clock);
    }

    /// Writes the divider; a running count goes on from where it is, at the new rate.
    pub(super) fn set_divide(&mut self, value: u32, clock: &TimerClock) {
        let left = self.current(clock);
        self.divide = value;
        if self.deadline != NEVER && self.mode != Mode::TscDeadline {
            self.start(u64::from(left.max(1)), clock);
        }
    }

    /// Counts that are left.
    pub(super) fn current(&self, clock: &TimerClock) -> u32 {
        match self.deadline {
            NEVER => 0,
            deadline if self.mode != Mode::TscDeadline => {
                let left = Ticks::new(deadline.raw().saturating_sub(clock.now.raw()));
                let counts = clock.scale.nanos(left).raw() / self.ns_per_count();
                low_u32(counts.min(u64::from(self.initial)))
            }
            _ => 0,
        }
    }

    pub(super) fn set_tsc_deadline(&mut self, guest_tsc: u64, clock: &TimerClock) {
        if self.mode != Mode::TscDeadline {
            return;
        }
        self.tsc_deadline = guest_tsc;
        if guest_tsc == 0 {
            self.deadline = NEVER;
            return;
        }
        let guest_now = clock.now.raw().wrapping_add(clock.tsc_offset);
        let left = guest_tsc.saturating_sub(guest_now);
        self.deadline = Ticks::new(clock.now.raw().saturating_add(left));
    }

    /// Whether the deadline has passed; moves on to the next one.
    pub(super) fn expire(&mut self, now: Ticks) -> bool {
        let deadline = self.deadline;
        if deadline > now {
            return false;
        }
        self.tsc_deadline = 0;
        self.deadline = match self.mode {
            Mode::Periodic if self.period.raw() != 0 => {
                let late = (now.raw() - deadline.raw()) % self.period.raw();
                Ticks::new((now.raw() - late).saturating_add(self.period.raw()))
            }
            _ => NEVER,
        };
        true
    }

    fn disarm(&mut self) {
        self.deadline = NEVER;
        self.tsc_deadline = 0;
        self.initial = 0;
    }

    /// Starts with `count` to go; a period is always that of the whole initial count.
    fn start(&mut self, count: u64, clock: &TimerClock) {
        let counts = |count: u64| count.saturating_mul(self.ns_per_count());
        let period = counts(u64::from(self.initial)).max(MIN_PERIOD_NS);
        let left = match self.mode {
            Mode::Periodic => counts(count).max(MIN_PERIOD_NS),
            _ => counts(count),
        };
        let left = clock.scale.ticks(Nanos::new(left));
        self.period = clock.scale.ticks(Nanos::new(period));
        self.deadline = if count == 0 { NEVER } else { Ticks::new(clock.now.raw().saturating_add(left.raw())) };
    }

    /// The divider is 2 to the power of bits 3, 1 and 0, plus one; all set means 1.
    const fn ns_per_count(&self) -> u64 {
        let code = self.divide & 3 | (self.divide & 8) >> 1;
        BUS_NS << ((code + 1) & 7)
    }
}
