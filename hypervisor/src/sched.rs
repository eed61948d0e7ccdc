// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which vCPU runs next.
//!
//! Round robin among those that can run, with a slice of [`SLICE_NS`]; a vCPU that was just woken
//! is taken before those that used up their slice, so that an event costs its receiver no slice of
//! somebody else. Weights, caps and several pCPUs come with the scheduler proper; what is here
//! keeps every domain running and idles when none can.

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

/// Chooses the next vCPU after `last`, in the order domain by domain.
pub fn choose<'a>(
    domains: impl Iterator<Item = (usize, &'a Domain)> + Clone,
    last: (usize, usize),
    now: Ticks,
) -> Next {
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
            } else if (d, v) > last {
                &mut first_after
            } else {
                &mut first_before
            };
            slot.get_or_insert((d, v));
        }
    }
    match first_woken.or(first_after).or(first_before) {
        Some((domain, vcpu)) => Next::Run { domain, vcpu, contended: runnable > 1 },
        None => Next::Idle { until },
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
