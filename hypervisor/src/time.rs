// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ticks and nanoseconds.
//!
//! The hypervisor reads time the way its guests do: nanoseconds are ticks times a 32-bit fraction
//! after a shift, the formula of the PV clock. A deadline that a guest computes from its clock and
//! one that the hypervisor computes are therefore the same number, to the nanosecond, however long
//! the machine has been up. Division happens only in the other direction, when a deadline is set.
//!
//! Source of the formula: `xen/include/public/xen.h` at 4.17, `vcpu_time_info`.

use guest_abi::num::low_u32;

use crate::addr::{Nanos, Ticks};

/// How fast a time-stamp counter runs, ready for conversion both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TscScale {
    khz: u32,
    mul: u32,
    shift: i8,
}

impl TscScale {
    /// The scale of a counter with this frequency, or `None` for 0 kHz.
    #[must_use]
    pub const fn from_khz(khz: u32) -> Option<Self> {
        if khz == 0 {
            return None;
        }
        // Nanoseconds per tick are 10^6 / khz; `mul` is that, times 2^32, brought into [2^31, 2^32).
        let mut numerator: u64 = 1_000_000 << 32;
        let mut shift: i8 = 0;
        while numerator / khz as u64 >= 1 << 32 {
            numerator /= 2;
            shift += 1;
        }
        while numerator / (khz as u64) < 1 << 31 {
            numerator *= 2;
            shift -= 1;
        }
        Some(Self { khz, mul: low_u32(numerator / khz as u64), shift })
    }

    /// The frequency in kHz.
    #[must_use]
    pub const fn khz(self) -> u32 {
        self.khz
    }

    /// `tsc_to_system_mul` of the PV clock.
    #[must_use]
    pub const fn mul(self) -> u32 {
        self.mul
    }

    /// `tsc_shift` of the PV clock.
    #[must_use]
    pub const fn shift(self) -> i8 {
        self.shift
    }

    /// How long `ticks` last, rounded down; saturates after five centuries.
    #[must_use]
    pub fn nanos(self, ticks: Ticks) -> Nanos {
        let wide = u128::from(ticks.raw());
        let shifted = if self.shift >= 0 { wide << self.shift } else { wide >> -self.shift };
        Nanos::new(saturate((shifted * u128::from(self.mul)) >> 32))
    }

    /// The fewest ticks that last at least `nanos`; saturates.
    #[must_use]
    pub fn ticks(self, nanos: Nanos) -> Ticks {
        let shifted = (u128::from(nanos.raw()) << 32).div_ceil(u128::from(self.mul));
        let ticks = if self.shift >= 0 { shifted.div_ceil(1 << self.shift) } else { shifted << -self.shift };
        Ticks::new(saturate(ticks))
    }
}

fn saturate(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// System time: nanoseconds since the hypervisor's clock started, read from the host's counter.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    scale: TscScale,
    start: Ticks,
}

impl SystemClock {
    /// A clock that shows 0 at `start`.
    #[must_use]
    pub const fn new(scale: TscScale, start: Ticks) -> Self {
        Self { scale, start }
    }

    /// The counter's scale.
    #[must_use]
    pub const fn scale(&self) -> TscScale {
        self.scale
    }

    /// The host's counter at system time 0.
    #[must_use]
    pub const fn start(&self) -> Ticks {
        self.start
    }

    /// System time when the host's counter shows `tsc`; 0 before the start.
    #[must_use]
    pub fn at(&self, tsc: Ticks) -> Nanos {
        self.scale.nanos(Ticks::new(tsc.raw().saturating_sub(self.start.raw())))
    }

    /// The first value of the host's counter at which system time is at least `time`; saturates.
    #[must_use]
    pub fn when(&self, time: Nanos) -> Ticks {
        Ticks::new(self.start.raw().saturating_add(self.scale.ticks(time).raw()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_second_of_ticks_is_a_second() {
        for khz in [1, 33, 1_000, 4_000, 32_768, 999_999, 1_000_000, 1_000_001, 2_400_000, 5_123_456, u32::MAX] {
            let scale = TscScale::from_khz(khz).unwrap();
            let ns = scale.nanos(Ticks::new(u64::from(khz) * 1000)).raw();
            assert!(ns.abs_diff(1_000_000_000) <= 1, "{khz} kHz: {ns} ns");
            assert!(scale.mul() >= 1 << 31);
        }
        assert_eq!(TscScale::from_khz(0), None);
    }

    #[test]
    fn linux_computes_the_frequency_that_was_given() {
        for khz in [4_000_u32, 50_000, 1_000_000, 2_394_454, 4_000_000] {
            let scale = TscScale::from_khz(khz).unwrap();
            let wide = (1_000_000_u64 << 32) / u64::from(scale.mul());
            let seen = if scale.shift() < 0 { wide << -scale.shift() } else { wide >> scale.shift() };
            assert!(seen.abs_diff(u64::from(khz)) <= u64::from(khz) / 1_000_000 + 4, "{khz}: {seen}");
        }
    }

    proptest! {
        #[test]
        fn a_deadline_is_the_first_tick_that_is_not_early(khz in 1_u32.., ns in 0_u64..1 << 62, start: u32) {
            let clock = SystemClock::new(TscScale::from_khz(khz).unwrap(), Ticks::new(u64::from(start)));
            let tsc = clock.when(Nanos::new(ns));
            if tsc.raw() != u64::MAX {
                prop_assert!(clock.at(tsc).raw() >= ns);
                prop_assert!(ns == 0 || clock.at(Ticks::new(tsc.raw() - 1)).raw() < ns);
            }
        }

        #[test]
        fn nothing_overflows(khz in 1_u32.., value: u64, start: u64) {
            let clock = SystemClock::new(TscScale::from_khz(khz).unwrap(), Ticks::new(start));
            let _ = (clock.at(Ticks::new(value)), clock.when(Nanos::new(value)));
        }
    }
}
