// SPDX-License-Identifier: MIT OR Apache-2.0
//! A domain's life: built, running, paused, shut down, dying.
//!
//! Everything about it is one word ([`Life`]), changed in this file alone. Pausing is the control
//! domain's, counted, and independent of shutting down, which is the guest's own: a domain that has
//! shut down can be paused, and stays shut down when it is unpaused. Dying ends both.
//!
//! The scheduler runs a domain's vCPUs while [`Life::is_running`], and asks each time; so a change
//! here takes effect at a running vCPU's next exit, and whoever needs to know that none is left
//! running waits for their locks ([`crate::vcpu::Vcpu::try_state`]).

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Why a domain stopped by itself. Source: `xen/include/public/sched.h`, `SHUTDOWN_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ShutdownReason {
    /// It is done.
    Poweroff = 0,
    /// It wants to be started again.
    Reboot = 1,
    /// It wants to be saved.
    Suspend = 2,
    /// It found itself broken, or broke.
    Crash = 3,
    /// Its watchdog ran out.
    Watchdog = 4,
    /// It wants its hypervisor state reset and goes on.
    SoftReset = 5,
}

impl ShutdownReason {
    /// The reason with this number, if there is one.
    #[must_use]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            0 => Self::Poweroff,
            1 => Self::Reboot,
            2 => Self::Suspend,
            3 => Self::Crash,
            4 => Self::Watchdog,
            5 => Self::SoftReset,
            _ => return None,
        })
    }
}

/// Pauses that are not taken back yet.
const PAUSES: u32 = 0xffff;
/// The number of the [`ShutdownReason`]; all ones for none.
const REASON_SHIFT: u32 = 16;
const REASON: u32 = 0xff << REASON_SHIFT;
/// It ran at some time.
const STARTED: u32 = 1 << 24;
const DYING: u32 = 1 << 25;
/// It has given back all that only it uses.
const RELEASED: u32 = 1 << 26;

/// The state, and the ways to change it.
pub struct Life(AtomicU32);

impl Default for Life {
    /// A domain that is being built: paused once.
    fn default() -> Self {
        Self(AtomicU32::new(REASON | 1))
    }
}

impl Life {
    /// Whether the domain's vCPUs may run.
    #[inline]
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.0.load(Ordering::Acquire) == REASON | STARTED
    }

    /// Why it stopped by itself, if it did, also while it is dying.
    #[must_use]
    pub fn shutdown_reason(&self) -> Option<ShutdownReason> {
        reason(self.0.load(Ordering::Acquire))
    }

    /// Whether the control domain has it stopped, whatever else it is.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.0.load(Ordering::Acquire) & PAUSES != 0
    }

    /// Whether it is being taken apart.
    #[must_use]
    pub fn is_dying(&self) -> bool {
        self.0.load(Ordering::Acquire) & DYING != 0
    }

    /// Stops it once more. `false` if it cannot be counted.
    pub fn pause(&self) -> bool {
        self.change(|word| (word & PAUSES != PAUSES).then_some(word.wrapping_add(1)))
    }

    /// Takes one pause back. `false` if there is none.
    pub fn unpause(&self) -> bool {
        self.change(|word| match word & PAUSES {
            0 => None,
            1 => Some((word - 1) | STARTED),
            _ => Some(word - 1),
        })
    }

    /// Stops it for a reason of its own; `true` for the first one, which is the one that counts.
    pub fn shut_down(&self, why: ShutdownReason) -> bool {
        self.change(|word| reason(word).is_none().then_some(word & !REASON | (why as u32) << REASON_SHIFT))
    }

    /// Begins to take it apart; `true` the first time.
    pub fn begin_dying(&self) -> bool {
        self.change(|word| (word & DYING == 0).then_some(word | DYING))
    }

    /// Whether nothing is left of it but what others use.
    #[must_use]
    pub fn is_released(&self) -> bool {
        self.0.load(Ordering::Acquire) & RELEASED != 0
    }

    /// All that only it uses has been given back.
    pub(super) fn set_released(&self) {
        self.0.fetch_or(RELEASED, Ordering::AcqRel);
    }

    fn change(&self, step: impl FnMut(u32) -> Option<u32>) -> bool {
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, step).is_ok()
    }
}

const fn reason(word: u32) -> Option<ShutdownReason> {
    ShutdownReason::from_raw((word & REASON) >> REASON_SHIFT)
}

/// Whether something happened in some domain's life that those who control domains are told of.
#[derive(Default)]
pub struct News {
    is_told: AtomicBool,
    is_held: AtomicBool,
}

impl News {
    /// A domain has shut down, or is dying.
    pub(crate) fn spread(&self) {
        self.is_told.store(true, Ordering::Release);
    }

    /// Takes the news, if there is any.
    pub(crate) fn take(&self) -> bool {
        self.is_told.load(Ordering::Relaxed) && self.is_told.swap(false, Ordering::Acquire)
    }

    /// A domain could not end because somebody looks at it, which is no news.
    pub(crate) fn hold(&self) {
        self.is_held.store(true, Ordering::Release);
    }

    /// Whether one could not end since the last call.
    pub(crate) fn take_held(&self) -> bool {
        self.is_held.load(Ordering::Relaxed) && self.is_held.swap(false, Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_is_built_runs_pauses_and_goes_on() {
        let life = Life::default();
        assert!(life.is_paused() && !life.is_running());
        assert!(life.unpause());
        assert!(life.is_running());
        assert!(!life.unpause(), "it is not paused");
        assert!(life.pause() && life.pause());
        assert!(life.is_paused() && !life.is_running());
        assert!(life.unpause());
        assert!(!life.is_running(), "paused twice");
        assert!(life.unpause() && life.is_running());
    }

    #[test]
    fn a_domain_that_shut_down_stays_so_and_its_first_reason_counts() {
        let life = Life::default();
        assert!(life.unpause() && life.shut_down(ShutdownReason::Reboot));
        assert!(!life.shut_down(ShutdownReason::Crash));
        assert_eq!(life.shutdown_reason(), Some(ShutdownReason::Reboot));
        assert!(life.pause() && life.unpause() && !life.is_running());
        assert!(life.begin_dying() && !life.begin_dying());
        assert_eq!((life.is_dying(), life.shutdown_reason()), (true, Some(ShutdownReason::Reboot)));
    }

    #[test]
    fn what_dies_does_not_run_again() {
        let life = Life::default();
        assert!(life.begin_dying() && life.unpause());
        assert!(!life.is_running() && life.is_dying());
    }

    #[test]
    fn pauses_do_not_spill_into_the_reason() {
        let life = Life::default();
        for _ in 1..PAUSES {
            assert!(life.pause());
        }
        assert!(!life.pause());
        assert_eq!(life.shutdown_reason(), None);
    }
}
