// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which vCPU runs next.
//!
//! Round robin among those that can run, with a slice of [`SLICE_NS`]; a vCPU that was just woken
//! is taken before those that used up their slice, so that an event costs its receiver no slice of
//! somebody else. Two vCPUs that wake each other all the time, or one that sleeps for no time, could
//! keep the others out that way, so after a slice of it whoever is next in turn runs. Weights, caps
//! and several pCPUs come with the scheduler proper; what is here keeps every domain running and
//! idles when none can.

use core::ops::Deref;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::addr::Ticks;
use crate::domain::Domain;
use crate::vcpu::{RunState, Vcpu};

/// How long a vCPU runs while others wait.
pub const SLICE_NS: u64 = 10_000_000;

/// What interrupt handlers and wake-ups tell the vCPU loop.
#[derive(Default)]
pub struct Attention {
    /// Somebody became runnable: the vCPU loop goes back to the scheduler.
    pub resched: AtomicBool,
}

impl Attention {
    /// Makes the running vCPU give the scheduler a chance at its next exit.
    pub fn request(&self) {
        self.resched.store(true, Ordering::Release);
    }

    /// Takes the request.
    pub fn take(&self) -> bool {
        self.resched.load(Ordering::Relaxed) && self.resched.swap(false, Ordering::Acquire)
    }
}

/// What the scheduler found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Run this vCPU: the place of its domain among those given, and its number.
    Run {
        /// Index into the domains.
        domain: usize,
        /// Index into the domain's vCPUs.
        vcpu: usize,
        /// Another one is waiting, so the slice ends.
        contended: bool,
    },
    /// Nobody can run before this deadline.
    Idle {
        /// The earliest timer of a sleeping vCPU; all ones for none.
        until: Ticks,
    },
}

/// Whose turn it is.
pub struct Turns {
    /// Who last ran in turn.
    last: (usize, usize),
    /// Since when woken vCPUs have run before those whose turn it is.
    woken_since: Option<Ticks>,
    slice: Ticks,
}

impl Turns {
    /// The first vCPU is next. `slice` is [`SLICE_NS`] in ticks.
    #[must_use]
    pub const fn new(slice: Ticks) -> Self {
        Self { last: (usize::MAX, 0), woken_since: None, slice }
    }

    /// Chooses the next vCPU, in the order domain by domain.
    pub fn choose<D: Deref<Target = Domain>>(&mut self, domains: impl Iterator<Item = (usize, D)>, now: Ticks) -> Next {
        let mut first_woken = None;
        let mut first_after = None;
        let mut first_before = None;
        let mut runnable = 0;
        let mut until = Ticks::new(u64::MAX);
        for (d, domain) in domains {
            if !domain.is_running() {
                continue;
            }
            for (v, vcpu) in domain.vcpus.iter().enumerate() {
                let Some(was_asleep) = readiness(vcpu, now, &mut until) else { continue };
                runnable += 1;
                let slot = if was_asleep {
                    &mut first_woken
                } else if (d, v) > self.last {
                    &mut first_after
                } else {
                    &mut first_before
                };
                slot.get_or_insert((d, v));
            }
        }
        match self.between(first_woken, first_after.or(first_before), now) {
            Some((domain, vcpu)) => Next::Run { domain, vcpu, contended: runnable > 1 },
            None => Next::Idle { until },
        }
    }

    /// Decides between one that was woken and one whose turn it is.
    fn between(
        &mut self,
        woken: Option<(usize, usize)>,
        in_turn: Option<(usize, usize)>,
        now: Ticks,
    ) -> Option<(usize, usize)> {
        let since = self.woken_since.unwrap_or(now);
        if woken.is_some() && in_turn.is_some() && now.raw().saturating_sub(since.raw()) < self.slice.raw() {
            self.woken_since = Some(since);
            return woken;
        }
        self.woken_since = None;
        if let Some(turn) = in_turn {
            self.last = turn;
        }
        in_turn.or(woken)
    }
}

/// Whether a vCPU can run, and whether it slept until now. One that sleeps lowers `until` to its
/// timer.
fn readiness(vcpu: &Vcpu, now: Ticks, until: &mut Ticks) -> Option<bool> {
    match vcpu.run_state() {
        RunState::Runnable => Some(false),
        RunState::Down => vcpu.has_attention().then_some(true),
        RunState::Blocked => {
            let timer = vcpu.sleep_deadline();
            if vcpu.has_attention() || timer <= now {
                Some(true)
            } else {
                *until = (*until).min(timer);
                None
            }
        }
    }
}
