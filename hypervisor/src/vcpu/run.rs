// SPDX-License-Identifier: MIT OR Apache-2.0
//! The vCPU loop: one exit, one handler, one entry.
//!
//! [`schedule`] runs on each pCPU: it asks the scheduler for a vCPU, and [`run_vcpu`] runs that until
//! it sleeps, its slice ends or somebody else should run. Between an exit and the next entry with
//! nothing to deliver there are the counters, the handler, and a few comparisons.

use core::sync::atomic::Ordering;

use super::exits::{self, Outcome};
use super::regs::CpuState;
use super::{NEVER, RunState, Vcpu, VcpuState};
use crate::addr::Ticks;
use crate::backend::{HostInterrupt, Injection, RunTimes};
use crate::counters;
use crate::domain::Domain;
use crate::emul::pvclock::Runstate;
use crate::exit::Exit;
use crate::hypervisor::Hypervisor;
use crate::pcpu;
use crate::sched::Asked;
use crate::sched::queue::{Next, Stop};

const RFLAGS_IF: u64 = 1 << 9;
/// VIRQ_TIMER. Source: `xen.h`.
const VIRQ_TIMER: u32 = 0;

/// Runs vCPUs on this pCPU for ever.
pub fn schedule(hv: &'static Hypervisor) -> ! {
    let here = pcpu::current();
    counters::of_pcpu(here).works_from(hv.machine.tsc());
    let mut next = hv.sched.switch(here, hv.machine.tsc(), None);
    loop {
        next = step(hv, here, next);
    }
}

/// Runs one vCPU for as long as the scheduler lets it, or idles once; returns what comes next.
fn step(hv: &'static Hypervisor, here: usize, next: Next) -> Next {
    hv.after_slice();
    match next {
        Next::Run { who, until, ready_since, .. } => {
            // A domain that is gone takes its seats with it.
            let Some(domain) = hv.domains.by_index(who.domain) else { return sleep_on(hv, here) };
            let Some(vcpu) = domain.vcpus.get(who.vcpu) else { return sleep_on(hv, here) };
            // A vCPU that was on its way here when its domain was paused stands still from the pause on.
            let outcome = match domain.is_running() {
                true => run_vcpu(hv, &domain, vcpu, until, ready_since),
                false => Outcome::Leave,
            };
            hv.sched.switch(here, hv.machine.tsc(), Some(&|| stop(&domain, vcpu, outcome)))
        }
        Next::Idle { until } => {
            hv.idle(here, until);
            hv.sched.switch(here, hv.machine.tsc(), None)
        }
    }
}

fn sleep_on(hv: &'static Hypervisor, here: usize) -> Next {
    hv.sched.switch(here, hv.machine.tsc(), Some(&|| Stop::Asleep { until: NEVER }))
}

/// How a vCPU that is not on its pCPU any more goes on. Asked under the queue's lock, after
/// [`Vcpu::set_on`].
fn stop(domain: &Domain, vcpu: &Vcpu, outcome: Outcome) -> Stop {
    match vcpu.run_state() {
        _ if !domain.is_running() => Stop::Asleep { until: NEVER },
        RunState::Runnable if outcome == Outcome::Yield => Stop::Yields,
        RunState::Runnable => Stop::Ready,
        _ if vcpu.has_attention() => Stop::Ready,
        RunState::Blocked => Stop::Asleep { until: vcpu.sleep_deadline() },
        RunState::Down => Stop::Asleep { until: NEVER },
    }
}

/// Runs one vCPU until it cannot or should not go on. It has waited for a pCPU since `ready_since`.
pub(crate) fn run_vcpu(
    hv: &'static Hypervisor,
    domain: &Domain,
    vcpu: &Vcpu,
    until: Ticks,
    ready_since: Ticks,
) -> Outcome {
    let here = pcpu::current();
    let mut guard = vcpu.state();
    vcpu.set_on(Some(here));
    let state = &mut *guard;
    vcpu.set_run_state(wake_up(domain, vcpu, state));
    let mut outcome = Outcome::Leave;
    if vcpu.run_state() == RunState::Runnable {
        if domain.tlb.begin(here) {
            hv.machine.forget_domain();
        }
        state.hw.load();
        state.account(hv, domain, vcpu, &[(Runstate::Runnable, ready_since), (Runstate::Running, hv.machine.tsc())]);
        outcome = enter_until(hv, domain, vcpu, state, here, until);
        state.account(hv, domain, vcpu, &[(after(vcpu.run_state(), domain), hv.machine.tsc())]);
        state.hw.save();
        domain.tlb.end(here);
    }
    drop(guard);
    vcpu.set_on(None);
    outcome
}

/// What a vCPU does when it has stopped running.
fn after(state: RunState, domain: &Domain) -> Runstate {
    match state {
        _ if !domain.is_running() => Runstate::Offline,
        RunState::Runnable => Runstate::Runnable,
        RunState::Blocked => Runstate::Blocked,
        RunState::Down => Runstate::Offline,
    }
}

/// Enters the guest again and again, until the vCPU sleeps, the scheduler is to be asked, or `until`.
///
/// A function of its own, and what it seldom needs is kept out of it: so its few values stay in
/// registers.
#[inline(never)]
fn enter_until(
    hv: &'static Hypervisor,
    domain: &Domain,
    vcpu: &Vcpu,
    state: &mut VcpuState,
    here: usize,
    mut until: Ticks,
) -> Outcome {
    if state.handoff.is_away() {
        come_back(domain, vcpu, state);
    }
    vcpu.request_attention();
    let (tlb, request) = (&*domain.tlb, hv.sched.request_of(here));
    let first = hv.machine.tsc();
    vcpu.counters.begin_run(first);
    let pcpu = counters::of_pcpu(here);
    pcpu.runs.add(1);
    pcpu.works_until(first);
    let mut begin = first;
    let mut times = RunTimes { entered: begin, exited: begin };
    let mut reason = counters::NR_REASONS - 1;
    // When it first woke somebody up who waits for this pCPU, and how many hypercalls it had made by then.
    let mut woke = None;
    let outcome = loop {
        // What falls due between the last exit and this entry ends the run that follows at once.
        let mut due = state.timer_due();
        if begin >= due {
            expire(domain, vcpu, state, begin);
            due = state.timer_due();
        }
        if vcpu.take_attention() {
            if !attend(domain, vcpu, state) {
                break Outcome::Leave;
            }
            // Attention asked for while delivering: whatever waits behind this entry is due at once.
            due = if vcpu.has_attention() { begin } else { state.timer_due() };
        }
        let generation = tlb.enter(here);
        if generation != state.p2m_generation {
            state.p2m_generation = generation;
            state.hw.set_p2m(tlb.root(), generation);
        }
        let exit = state.hw.run(&mut state.regs, due.min(until), &mut times);
        vcpu.counters.ticks[reason].add(times.entered.raw().wrapping_sub(begin.raw()));
        begin = times.exited;
        reason = counters::reason(&exit);
        vcpu.counters.exits[reason].add(1);
        let outcome = exits::handle(hv, domain, vcpu, state, exit);
        if outcome != Outcome::Resume {
            break outcome;
        }
        match request.take() {
            Asked::Nothing => {}
            asked @ (Asked::Waits | Asked::Soon) if exit == Exit::Hypercall => {
                if domain.vcpus.len() == 1 && state.handoff.leaves() {
                    break Outcome::Yield;
                }
                woke.get_or_insert((begin, hypercalls(vcpu)));
                if asked == Asked::Soon {
                    until = until.min(hv.sched.grace(begin));
                }
            }
            Asked::Waits => {}
            Asked::Soon | Asked::Now => break Outcome::Leave,
        }
        // Whatever the exit was: the timer's interrupt may be lost, see `has_deliverable`.
        if begin >= until {
            break Outcome::Leave;
        }
    };
    if let Some(woke) = woke {
        watch(hv, vcpu, state, woke, (reason, begin));
    }
    let last = hv.machine.tsc();
    vcpu.counters.ticks[reason].add(last.raw().wrapping_sub(begin.raw()));
    vcpu.counters.end_run(first, last);
    counters::of_pcpu(here).works_from(last);
    outcome
}

/// A vCPU that had left with an event has its pCPU again. It mostly sent that event with interrupts off; an upcall that
/// answers is queued all the same, if the CPU can deliver it later without an exit.
#[inline(never)]
fn come_back(domain: &Domain, vcpu: &Vcpu, state: &mut VcpuState) {
    let vector = upcall(domain, vcpu);
    state.handoff.returns(vector.is_some());
    if let Some(vector) = vector
        && state.hw.can_queue_interrupt()
    {
        vcpu.upcall_due.store(false, Ordering::Relaxed);
        state.hw.inject(Injection::Interrupt { vector });
    }
}

/// Looks how a run went on whose vCPU woke somebody up, after so many hypercalls. Its last exit is given too.
#[inline(never)]
fn watch(
    hv: &Hypervisor,
    vcpu: &Vcpu,
    state: &mut VcpuState,
    (woke, calls): (Ticks, u64),
    (reason, now): (usize, Ticks),
) {
    let sleeps = vcpu.run_state() == RunState::Blocked;
    let to_sleep = u64::from(sleeps && reason == counters::HYPERCALL);
    let goes_on = calls + to_sleep != hypercalls(vcpu) || !hv.sched.is_at_once(woke, now);
    // One who was stopped by others has shown nothing.
    if goes_on || sleeps {
        state.handoff.watched(!goes_on);
    }
}

/// How many hypercalls a vCPU has made.
fn hypercalls(vcpu: &Vcpu) -> u64 {
    vcpu.counters.exits[counters::HYPERCALL].get()
}

/// Ends a sleep: what the scheduler saw is made true.
fn wake_up(domain: &Domain, vcpu: &Vcpu, state: &mut VcpuState) -> RunState {
    if state.is_polling {
        domain.events.end_poll(vcpu.id);
        state.is_polling = false;
        state.poll_timeout = NEVER;
    }
    match vcpu.run_state() {
        // Only a start-up IPI starts a vCPU that is down.
        RunState::Down => {
            vcpu.take_attention();
            start_up(domain, vcpu, state)
        }
        _ => RunState::Runnable,
    }
}

/// INIT and start-up IPIs, for a vCPU that is down.
fn start_up(domain: &Domain, vcpu: &Vcpu, state: &mut VcpuState) -> RunState {
    let signals = vcpu.lapic.take_signals();
    if signals.init {
        state.lapic.reset(&vcpu.lapic);
        state.awaits_sipi = true;
    }
    match signals.sipi {
        Some(page) if state.awaits_sipi => {
            state.awaits_sipi = false;
            state.regs = super::regs::GuestRegs::default();
            state.hw.set_state(&CpuState::startup_ipi(page));
            log::debug!("{} {} starts at {:#x}", domain.id, vcpu.id, u32::from(page) << 12);
            RunState::Runnable
        }
        _ => RunState::Down,
    }
}

/// Fires the timers whose time has come.
#[inline(never)]
fn expire(domain: &Domain, vcpu: &Vcpu, state: &mut VcpuState, now: Ticks) {
    if state.timer <= now {
        state.timer = NEVER;
        domain.events.raise_virq(VIRQ_TIMER, vcpu.id, domain);
    }
    if state.lapic.next_deadline() <= now && state.lapic.expire(&vcpu.lapic, now) {
        vcpu.request_attention();
    }
}

/// Looks at everything that others may have done to the vCPU, and delivers one event. `false` if
/// the vCPU is not to run on.
#[inline(never)]
fn attend(domain: &Domain, vcpu: &Vcpu, state: &mut VcpuState) -> bool {
    if !domain.is_running() {
        return false;
    }
    if vcpu.lapic.has_signals() {
        let signals = vcpu.lapic.take_signals();
        if signals.init {
            state.lapic.reset(&vcpu.lapic);
            state.awaits_sipi = true;
            vcpu.set_run_state(RunState::Down);
            match signals.sipi {
                Some(page) => {
                    vcpu.lapic.post_sipi(page);
                    vcpu.request_attention();
                }
                None => domain.vcpu_went_down(),
            }
            return false;
        }
        if signals.nmi {
            if state.hw.can_inject() {
                state.hw.inject(Injection::Nmi);
            } else {
                // After what the CPU was delivering; the loop makes the next run a short one.
                vcpu.lapic.post_nmi();
            }
            vcpu.request_attention();
            return true;
        }
    }
    deliver_interrupt(domain, vcpu, state);
    true
}

/// Queues the most urgent interrupt if the guest can take it now, and asks for a window if
/// another one, or this one, has to wait. The event-channel upcall bypasses the local APIC.
fn deliver_interrupt(domain: &Domain, vcpu: &Vcpu, state: &mut VcpuState) {
    let callback = upcall(domain, vcpu);
    let mut waiting = callback.or_else(|| state.lapic.highest_deliverable(&vcpu.lapic));
    if let Some(vector) = waiting
        && state.hw.can_inject_interrupt()
    {
        if callback.is_some() {
            vcpu.upcall_due.store(false, Ordering::Relaxed);
        } else {
            state.lapic.accept(vector, &vcpu.lapic);
        }
        state.hw.inject(Injection::Interrupt { vector });
        waiting = upcall(domain, vcpu).or_else(|| state.lapic.highest_deliverable(&vcpu.lapic));
    }
    if waiting.is_some() != state.window_requested {
        state.window_requested = waiting.is_some();
        state.hw.request_window(waiting.is_some());
    }
}

/// The vector of an upcall that is due. One is no longer due once the guest has seen the events by
/// itself and cleared `evtchn_upcall_pending`, as it may with interrupts off.
fn upcall(domain: &Domain, vcpu: &Vcpu) -> Option<u8> {
    let vector = domain.callback_vector()?;
    if !vcpu.upcall_due.load(Ordering::Acquire) {
        return None;
    }
    if domain.events.upcall_pending(vcpu.id) {
        return Some(vector);
    }
    // A sender sets the guest's byte first and then the flag, so the byte is read again after the
    // flag is down: a send in between is seen here or sets the flag anew.
    vcpu.upcall_due.swap(false, Ordering::SeqCst);
    if domain.events.upcall_pending(vcpu.id) {
        vcpu.upcall_due.store(true, Ordering::Release);
        return Some(vector);
    }
    None
}

impl VcpuState {
    /// The earliest of the vCPU's timers.
    #[inline]
    #[must_use]
    pub fn due(&self) -> Ticks {
        self.timer_due().min(self.poll_timeout)
    }

    /// The same for a vCPU that runs, and so does not poll.
    #[inline]
    fn timer_due(&self) -> Ticks {
        self.timer.min(self.lapic.next_deadline())
    }

    /// Whether something could be delivered to the guest at once, were it to run. With interrupts
    /// off that is only what does not ask for them: a vCPU that polls so does not spin on an upcall
    /// that it cannot take. What is queued already may still be there: QEMU without KVM now and then forgets a virtual
    /// interrupt until the next entry, or one of the machine's for good, when both are set at the same moment.
    pub(crate) fn has_deliverable(&self, domain: &Domain, vcpu: &Vcpu) -> bool {
        let takes_interrupts = self.hw.rflags() & RFLAGS_IF != 0;
        vcpu.has_attention()
            || vcpu.lapic.has_signals()
            || takes_interrupts
                && (self.hw.has_queued_event()
                    || upcall(domain, vcpu).is_some()
                    || self.lapic.highest_deliverable(&vcpu.lapic).is_some())
    }

    /// Ends the instruction that exited: RIP moves behind it and the interrupt shadow ends.
    #[inline]
    pub(crate) fn finish_instruction(&mut self, next_rip: u64) {
        self.hw.finish_instruction(next_rip);
    }

    /// HLT: sleeps until something can be delivered, or goes down for good with interrupts off.
    pub(crate) fn halt(&mut self, domain: &Domain, vcpu: &Vcpu) -> Outcome {
        if self.hw.rflags() & RFLAGS_IF == 0 && !vcpu.lapic.has_signals() {
            vcpu.set_run_state(RunState::Down);
            domain.vcpu_went_down();
            return Outcome::Leave;
        }
        if self.has_deliverable(domain, vcpu) {
            return Outcome::Resume;
        }
        self.sleep(vcpu);
        Outcome::Leave
    }

    /// Blocks the vCPU until its timer or somebody's request for attention.
    pub(crate) fn sleep(&mut self, vcpu: &Vcpu) {
        vcpu.set_sleep_deadline(self.due());
        vcpu.set_run_state(RunState::Blocked);
    }
}

impl Hypervisor {
    /// Acts on an interrupt of the host.
    pub(crate) fn host_interrupt(&self, interrupt: HostInterrupt) {
        match interrupt {
            HostInterrupt::Timer | HostInterrupt::Kick | HostInterrupt::Spurious => {}
            HostInterrupt::Console => self.console_input(),
            HostInterrupt::Device { vector } => self.device_interrupt(vector),
        }
    }

    /// Waits until something happens, or `until`. Free frames are cleaned meanwhile, a batch at a time
    /// with interrupts let in between, by one pCPU of those that idle.
    fn idle(&self, here: usize, until: Ticks) {
        let cleans = !self.is_cleaning.swap(true, Ordering::Acquire);
        let mut has_more = cleans;
        while !self.sched.request_of(here).is_set() && self.machine.tsc() < until {
            has_more = has_more && self.frames.scrub();
            if !has_more {
                break;
            }
            if self.take_interrupts() {
                break;
            }
        }
        if cleans {
            self.is_cleaning.store(false, Ordering::Release);
        }
        if !has_more && !self.sched.request_of(here).is_set() {
            let counters = counters::of_pcpu(here);
            counters.halts.add(1);
            counters.works_until(self.machine.tsc());
            self.machine.idle(until);
            counters.works_from(self.machine.tsc());
            self.take_interrupts();
        }
    }

    /// Acts on the interrupts that wait; `false` if there are none.
    fn take_interrupts(&self) -> bool {
        let mut any = false;
        while let Some(interrupt) = self.machine.take_interrupt(None) {
            self.host_interrupt(interrupt);
            any = true;
        }
        any
    }
}

#[cfg(test)]
mod tests;
