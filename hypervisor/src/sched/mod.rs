// SPDX-License-Identifier: MIT OR Apache-2.0
//! The scheduler: [`RunQueue`] decides, and this tells the pCPUs and keeps the vCPUs' side in step.
//!
//! A vCPU is in the queue from its making to its end, in a *seat*; [`Seats`] are a domain's, and go
//! with it. A pCPU that has stopped running a vCPU says so and learns what comes next in one step
//! ([`Scheduler::switch`]). Whoever has made something deliverable sets the vCPU's attention flag and
//! then either makes its pCPU exit or wakes it here; see [`crate::vcpu::Vcpu::is_on`] for why nothing
//! falls between.
//!
//! A pCPU that has to ask the queue again finds its [`Request`] set at its next exit; one
//! that runs a guest or idles elsewhere is kicked for that, once.
//!
//! *Grace.* A vCPU that wakes another domain's up, by sending it an event, goes on for a moment ([`GRACE`]) even if
//! the other is to go first: most often it sleeps at once, and if not it has more for the other. A block front with 32
//! requests is so served in one turn, not in 32. Interrupts and timers give no grace, nor does a domain to itself,
//! whose vCPUs may spin until the other has answered. One that is known to sleep at once leaves at once: see [`handoff`].

pub mod handoff;
pub mod queue;
#[cfg(test)]
mod simulation;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU8, Ordering};

use guest_abi::{DomId, VcpuId};
use queue::{Next, RunQueue, SeatId, Stop, Who};

use crate::addr::Ticks;
use crate::backend::Machine;
use crate::domain::DomainTable;
use crate::lock::{Lock, Rank};
use crate::pcpu::{self, MAX_PCPUS};

/// How long a vCPU runs while others wait.
pub const SLICE_NS: u64 = 10_000_000;

/// A slice divided by this is how long a vCPU goes on that has woken up another domain's.
pub const GRACE: u64 = 20;

/// The grace divided by this, 6.7 us, is how soon one sleeps after an event who has nothing more to do: Linux takes
/// 4,500 to 6,000 instructions for it, and as many for each request more that it has.
const AT_ONCE: u64 = 75;

/// The queue and the pCPUs that it serves.
pub struct Scheduler {
    queue: Lock<RunQueue>,
    requests: [Request; MAX_PCPUS],
    machine: &'static dyn Machine,
    nr_pcpus: usize,
    grace: u64,
}

/// Whether a pCPU is to ask the queue, a bit for each reason.
pub struct Request(AtomicU8);

/// What a pCPU was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Nothing.
    Nothing,
    /// Nothing; somebody has been woken up who has to wait for this pCPU.
    Waits,
    /// To ask the queue after the grace of who has woken somebody up by a hypercall.
    Soon,
    /// To ask the queue.
    Now,
}

impl Request {
    const WAITS: u8 = 1;
    const SOON: u8 = 2;
    const NOW: u8 = 4;

    /// What was asked; takes it.
    #[inline]
    pub fn take(&self) -> Asked {
        if self.0.load(Ordering::Relaxed) == 0 {
            return Asked::Nothing;
        }
        match self.0.swap(0, Ordering::SeqCst) {
            0 => Asked::Nothing,
            Self::WAITS => Asked::Waits,
            bits if bits & Self::NOW == 0 => Asked::Soon,
            _ => Asked::Now,
        }
    }

    /// Whether anything was asked.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst) != 0
    }
}

impl Scheduler {
    /// A scheduler for pCPUs 0 to `nr_pcpus` - 1. `slice` is [`SLICE_NS`] in ticks.
    #[must_use]
    pub fn new(machine: &'static dyn Machine, nr_pcpus: usize, slice: Ticks) -> Self {
        let queue = RunQueue::new(nr_pcpus, DomainTable::CAPACITY, slice);
        Self {
            queue: Lock::new(Rank::Scheduler, queue),
            requests: [const { Request(AtomicU8::new(0)) }; MAX_PCPUS],
            machine,
            nr_pcpus,
            grace: slice.raw() / GRACE,
        }
    }

    /// How many pCPUs run vCPUs.
    #[must_use]
    pub const fn nr_pcpus(&self) -> usize {
        self.nr_pcpus
    }

    /// Makes the pCPUs in the set ask what to run: this one at its next exit, others by a kick.
    fn poke(&self, pcpus: u64) {
        let mut left = pcpus;
        while left != 0 {
            let pcpu = left.trailing_zeros() as usize;
            left &= left - 1;
            self.request(pcpu);
        }
    }

    /// Makes one pCPU ask what to run, and look at what else there is to do between two vCPUs.
    pub fn request(&self, pcpu: usize) {
        let before = self.request_of(pcpu).0.fetch_or(Request::NOW, Ordering::SeqCst);
        if before & Request::NOW == 0 && pcpu != pcpu::current() {
            pcpu::kick(self.machine, pcpu);
        }
    }

    /// Until when a vCPU goes on that has woken up another domain's.
    #[must_use]
    pub fn grace(&self, now: Ticks) -> Ticks {
        Ticks::new(now.raw() + self.grace)
    }

    /// Whether one who sleeps now and sent an event then sleeps at once.
    #[must_use]
    pub fn is_at_once(&self, then: Ticks, now: Ticks) -> bool {
        now.raw().saturating_sub(then.raw()) < self.grace / AT_ONCE
    }

    /// What others ask of this pCPU.
    #[must_use]
    pub fn request_of(&self, pcpu: usize) -> &Request {
        &self.requests[pcpu % MAX_PCPUS]
    }

    /// This pCPU has stopped running a vCPU, if `stopped` says how, and learns what comes next.
    /// `stopped` is asked under the queue's lock: what it then sees is what decides.
    pub(crate) fn switch(&self, pcpu: usize, now: Ticks, stopped: Option<&dyn Fn() -> Stop>) -> Next {
        self.request_of(pcpu).take();
        let mut queue = self.queue.lock();
        if let Some(how) = stopped {
            queue.stop(pcpu, now, how());
        }
        let (next, others) = queue.next(pcpu, now);
        drop(queue);
        self.poke(others);
        next
    }

    /// Gives the vCPUs of a domain their places. The first is at home on pCPU 0 and so on. `None` when
    /// memory ran out.
    pub(crate) fn seat(&'static self, domain: DomId, nr_vcpus: u32) -> Option<Seats> {
        let mut ids = Vec::new();
        ids.try_reserve_exact(VcpuId::new(nr_vcpus).index()).ok()?;
        let mut seats = Seats { sched: self, domain: domain.index(), ids: Box::default() };
        for vcpu in (0..nr_vcpus).map(|raw| VcpuId::new(raw).index()) {
            match self.queue.lock().add(Who { domain: seats.domain, vcpu }, vcpu) {
                Some(id) => ids.push(id),
                None => break,
            }
        }
        let is_complete = ids.len() == VcpuId::new(nr_vcpus).index();
        seats.ids = ids.into_boxed_slice();
        is_complete.then_some(seats)
    }
}

/// The places of one domain's vCPUs. They are given up when this is dropped.
pub struct Seats {
    sched: &'static Scheduler,
    domain: usize,
    ids: Box<[SeatId]>,
}

impl Seats {
    /// A vCPU has something to do: it gets a pCPU as soon as its turn allows, if it waits for nothing
    /// else. No effect on one that is awake.
    pub fn wake(&self, vcpu: VcpuId) {
        let Some(id) = self.ids.get(vcpu.index()) else { return };
        let here = pcpu::current();
        let mut queue = self.sched.queue.lock();
        let now = self.sched.machine.tsc();
        let mut pokes = queue.wake(*id, now);
        if queue.running(here).is_some_and(|who| who.domain != self.domain) {
            let asked = match pokes {
                0 if queue.waits_for(*id, here, now) => Request::WAITS,
                _ if pokes & 1 << here != 0 => Request::SOON,
                _ => 0,
            };
            pokes &= !(1 << here);
            self.sched.request_of(here).0.fetch_or(asked, Ordering::SeqCst);
        }
        drop(queue);
        self.sched.poke(pokes);
    }

    /// Makes a vCPU's pCPU exit from its guest.
    pub(crate) fn kick(&self, pcpu: usize) {
        if pcpu != pcpu::current() {
            pcpu::kick(self.sched.machine, pcpu);
        }
    }

    /// The scheduler.
    #[must_use]
    pub const fn scheduler(&self) -> &'static Scheduler {
        self.sched
    }

    /// Sets the weight of the domain's vCPUs ([`queue::DEFAULT_WEIGHT`] is everybody's) and its cap in
    /// per cent of one pCPU, 0 for none.
    pub fn set_share(&self, weight: u32, cap: u32) {
        let pokes = self.sched.queue.lock().set_share(self.domain, weight, cap);
        self.sched.poke(pokes);
    }

    /// The weight and the cap.
    #[must_use]
    pub fn share(&self) -> (u32, u32) {
        self.sched.queue.lock().share(self.domain)
    }

    /// Sets the pCPUs that a vCPU may run on, a bit for each. `false`, and no change, if it has no such
    /// vCPU or none of the pCPUs is there.
    pub fn set_affinity(&self, vcpu: VcpuId, pcpus: u64) -> bool {
        let present = u64::MAX >> (MAX_PCPUS - self.sched.nr_pcpus);
        let Some(id) = self.ids.get(vcpu.index()).filter(|_| pcpus & present != 0) else { return false };
        let pokes = self.sched.queue.lock().set_affinity(*id, pcpus, self.sched.machine.tsc());
        self.sched.poke(pokes);
        true
    }

    /// The pCPUs that a vCPU may run on, and the one where it runs or last ran.
    #[must_use]
    pub fn affinity(&self, vcpu: VcpuId) -> Option<(u64, usize)> {
        let id = self.ids.get(vcpu.index())?;
        let queue = self.sched.queue.lock();
        Some((queue.affinity(*id), queue.last_pcpu(*id)))
    }
}

impl Drop for Seats {
    fn drop(&mut self) {
        let mut queue = self.sched.queue.lock();
        self.ids.iter().for_each(|id| queue.remove(*id));
    }
}
