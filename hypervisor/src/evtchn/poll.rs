// SPDX-License-Identifier: MIT OR Apache-2.0
//! Waiting for events without taking them: SCHEDOP_poll.
//!
//! A vCPU announces what it waits for *before* it looks at the pending bits; a sender sets the
//! pending bit *before* it looks for announcements. Whichever comes second sees the other, so no
//! event falls between. A masked port wakes its poller like any other: that is what polling is
//! for.

use core::sync::atomic::Ordering;

use guest_abi::{EvtchnPort, VcpuId};

use super::{Error, EventChannels, Wake};

/// The vCPU does not poll.
const NOTHING: u32 = 0;
/// The vCPU polls several ports, and any event ends it.
const ANYTHING: u32 = u32::MAX;

/// What beginning to poll found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poll {
    /// An event waits already; the vCPU does not poll.
    Ready,
    /// The vCPU polls. The caller blocks it unless [`Wake::poll_wake`] was called meanwhile, and
    /// calls [`EventChannels::end_poll`] when it runs again for whatever reason.
    Wait,
}

impl EventChannels {
    /// Begins to wait for an event on any of `ports`; with no ports only a time-out or an
    /// interrupt ends it.
    ///
    /// # Errors
    /// [`Error::NoVcpu`]; [`Error::BadPort`] for a number that the domain cannot have.
    pub fn begin_poll(&self, vcpu: VcpuId, ports: &[EvtchnPort]) -> Result<Poll, Error> {
        let events = self.vcpu(vcpu)?;
        for port in ports {
            self.status(*port)?;
        }
        let polled = match ports {
            [] => return Ok(Poll::Wait),
            [only] => only.raw(),
            _ => ANYTHING,
        };
        if events.polled.swap(polled, Ordering::SeqCst) == NOTHING {
            self.nr_polling.fetch_add(1, Ordering::SeqCst);
        }
        if ports.iter().any(|port| self.is_pending(*port)) {
            self.end_poll(vcpu);
            return Ok(Poll::Ready);
        }
        Ok(Poll::Wait)
    }

    /// Ends a vCPU's poll, if it polls.
    pub fn end_poll(&self, vcpu: VcpuId) {
        if let Some(events) = self.vcpus.get(vcpu.index())
            && events.polled.swap(NOTHING, Ordering::SeqCst) != NOTHING
        {
            self.nr_polling.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Wakes whoever polls a port that went from not pending to pending.
    #[inline]
    pub(super) fn wake_pollers(&self, port: EvtchnPort, wake: &dyn Wake) {
        if self.nr_polling.load(Ordering::SeqCst) != 0 {
            self.find_pollers(port, wake);
        }
    }

    #[cold]
    fn find_pollers(&self, port: EvtchnPort, wake: &dyn Wake) {
        for (raw, events) in (0..).zip(&self.vcpus) {
            let polled = events.polled.load(Ordering::SeqCst);
            if polled == ANYTHING || polled == port.raw() {
                let vcpu = VcpuId::new(raw);
                self.end_poll(vcpu);
                wake.poll_wake(vcpu);
            }
        }
    }
}
