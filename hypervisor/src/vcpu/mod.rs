// SPDX-License-Identifier: MIT OR Apache-2.0
//! Virtual CPUs.
//!
//! A [`Vcpu`] has two halves. What others touch (a peer's event, an interrupt, a start-up IPI) is
//! atomics: they set a flag, then [`Vcpu::request_attention`]. The rest is [`VcpuState`], which the
//! pCPU that runs the vCPU holds locked for as long as it runs it; nobody else waits for that lock
//! unless the vCPU is known not to run.
//!
//! The one rule of delivery: whoever makes something deliverable sets the attention flag
//! *afterwards*; the vCPU loop clears the flag *before* it looks. So nothing is overlooked, and an
//! entry with nothing new costs one load.

pub mod exits;
pub mod regs;
pub mod run;

use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};

use guest_abi::VcpuId;
use regs::GuestRegs;
use spin::Mutex;

use crate::addr::{Nanos, Ticks};
use crate::backend::VcpuHw;
use crate::counters::Counters;
use crate::domain::Domain;
use crate::emul::lapic::{Lapic, LapicShared};
use crate::emul::pvclock::{Runstate, RunstateArea, RunstateClock};
use crate::guest_mem::GuestSpace;
use crate::hypervisor::Hypervisor;
use crate::p2m::P2mView;
use crate::policy::msr::MsrState;
use crate::sched::handoff::Handoff;

/// Whether a vCPU can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RunState {
    /// It was never started, or halted with interrupts off: only INIT and a start-up IPI help.
    Down = 0,
    /// It waits for an interrupt, an event or its timer.
    Blocked = 1,
    /// It can run.
    Runnable = 2,
}

/// No deadline.
pub const NEVER: Ticks = Ticks::new(u64::MAX);

/// A virtual CPU.
pub struct Vcpu {
    /// Its number, which the kernel knows as the ACPI processor UID.
    pub id: VcpuId,
    /// Its local APIC id.
    pub apic_id: u32,
    /// What other vCPUs may do to its local APIC.
    pub lapic: LapicShared,
    /// What it has cost.
    pub counters: Counters,
    /// An event-channel upcall is due.
    pub upcall_due: AtomicBool,
    /// Where it has spent its time.
    pub runstate: Mutex<RunstateClock>,
    attention: AtomicBool,
    /// The pCPU that runs it, plus 1; 0 for none.
    on: AtomicUsize,
    run_state: AtomicU8,
    sleep_deadline: AtomicU64,
    state: Mutex<VcpuState>,
}

/// What only the pCPU that runs the vCPU touches.
pub struct VcpuState {
    /// The general-purpose registers.
    pub regs: GuestRegs,
    /// Everything else that the CPU holds.
    pub hw: Box<dyn VcpuHw>,
    /// The private half of the local APIC.
    pub lapic: Lapic,
    /// MSRs that are kept in software.
    pub msrs: MsrState,
    /// When VIRQ_TIMER is due, in host ticks.
    pub timer: Ticks,
    /// When a SCHEDOP_poll times out.
    pub poll_timeout: Ticks,
    /// The vCPU waits in SCHEDOP_poll.
    pub is_polling: bool,
    /// Where the guest wants its run state written, if it does.
    pub runstate_area: Option<RunstateArea>,
    /// INIT has arrived and a start-up IPI has not.
    pub awaits_sipi: bool,
    /// What it does after it has woken another domain's vCPU up.
    pub handoff: Handoff,
    /// The guest's virtual addresses, with what was walked before.
    space: GuestSpace,
    /// An interrupt window has been asked for.
    pub window_requested: bool,
    /// The p2m generation that `hw` was last told.
    pub p2m_generation: u64,
}

impl Vcpu {
    /// A vCPU that is down.
    #[must_use]
    pub fn new(id: VcpuId, apic_id: u32, hw: Box<dyn VcpuHw>, memory: P2mView) -> Self {
        Self {
            id,
            apic_id,
            lapic: LapicShared::default(),
            counters: Counters::new(),
            upcall_due: AtomicBool::new(false),
            runstate: Mutex::new(RunstateClock::new(Nanos::new(0))),
            attention: AtomicBool::new(false),
            on: AtomicUsize::new(0),
            run_state: AtomicU8::new(RunState::Down as u8),
            sleep_deadline: AtomicU64::new(NEVER.raw()),
            state: Mutex::new(VcpuState {
                regs: GuestRegs::default(),
                hw,
                lapic: Lapic::new(apic_id),
                msrs: MsrState::new(id.raw() == 0),
                timer: NEVER,
                poll_timeout: NEVER,
                is_polling: false,
                runstate_area: None,
                awaits_sipi: true,
                handoff: Handoff::default(),
                space: GuestSpace::new(memory, regs::Paging::default()),
                window_requested: false,
                p2m_generation: 0,
            }),
        }
    }

    /// The private half; held by the pCPU that runs the vCPU.
    pub fn state(&self) -> spin::MutexGuard<'_, VcpuState> {
        self.state.lock()
    }

    /// Lets go of what the guest has registered: its domain has ended.
    pub(crate) fn forget_areas(&mut self) {
        self.state.get_mut().runstate_area = None;
    }

    /// The private half, if the vCPU does not run at the moment.
    pub fn try_state(&self) -> Option<spin::MutexGuard<'_, VcpuState>> {
        self.state.try_lock()
    }

    /// Makes the vCPU look at its flags before it next enters the guest. Only its own pCPU does; others
    /// call [`crate::domain::Domain::kick`].
    #[inline]
    pub fn request_attention(&self) {
        self.attention.store(true, Ordering::Release);
    }

    /// The same from anywhere. `false` if it was to look already, so whoever asked first has told it.
    #[inline]
    pub fn attract(&self) -> bool {
        // SeqCst: comes before the look at `is_on`.
        !self.attention.swap(true, Ordering::SeqCst)
    }

    /// The pCPU that runs the vCPU, if one does.
    ///
    /// Whoever wants something of the vCPU asks for attention and *then* looks here: the pCPU found is
    /// made to exit, or, if there is none, the vCPU is woken. A pCPU that stops running it says so here
    /// and *then* looks for requests, under the run queue's lock. Whichever comes second sees the
    /// other, and so no request is overlooked.
    #[inline]
    #[must_use]
    pub fn is_on(&self) -> Option<usize> {
        self.on.load(Ordering::SeqCst).checked_sub(1)
    }

    /// Says which pCPU runs the vCPU; only that pCPU does.
    pub(crate) fn set_on(&self, pcpu: Option<usize>) {
        self.on.store(pcpu.map_or(0, |pcpu| pcpu + 1), Ordering::SeqCst);
    }

    /// Takes the request.
    #[inline]
    pub fn take_attention(&self) -> bool {
        self.attention.load(Ordering::Relaxed) && self.attention.swap(false, Ordering::Acquire)
    }

    /// Whether somebody asked for attention.
    #[must_use]
    pub fn has_attention(&self) -> bool {
        self.attention.load(Ordering::SeqCst)
    }

    /// Whether the vCPU can run.
    #[must_use]
    pub fn run_state(&self) -> RunState {
        match self.run_state.load(Ordering::Acquire) {
            0 => RunState::Down,
            1 => RunState::Blocked,
            _ => RunState::Runnable,
        }
    }

    /// Puts the vCPU to sleep, or down, or wakes it. Only its own pCPU does.
    pub fn set_run_state(&self, state: RunState) {
        self.run_state.store(state as u8, Ordering::Release);
    }

    /// When a sleeping vCPU wakes by itself.
    #[must_use]
    pub fn sleep_deadline(&self) -> Ticks {
        Ticks::new(self.sleep_deadline.load(Ordering::Relaxed))
    }

    /// Sets when a sleeping vCPU wakes by itself.
    pub fn set_sleep_deadline(&self, deadline: Ticks) {
        self.sleep_deadline.store(deadline.raw(), Ordering::Relaxed);
    }
}

impl VcpuState {
    /// The guest's virtual addresses as they are now. Walks of earlier calls are remembered and
    /// compared with the tables before they are used again.
    pub(crate) fn renew_space(&mut self, p2m_generation: u64) -> &GuestSpace {
        self.space.renew(self.hw.paging(), p2m_generation);
        &self.space
    }

    /// Notes which states the vCPU has entered and when, and tells the guest of the last.
    pub(crate) fn account(&self, hv: &Hypervisor, domain: &Domain, vcpu: &Vcpu, entered: &[(Runstate, Ticks)]) {
        let mut clock = vcpu.runstate.lock();
        for (state, when) in entered {
            clock.enter(*state, hv.clock.at(*when));
        }
        if let Some(area) = &self.runstate_area {
            area.write(&hv.mem, &clock, domain.marks_runstate_updates.load(Ordering::Relaxed));
        }
    }

    /// The same without looking at the tables again: for the rest of one hypercall or exit.
    pub(crate) const fn space(&self) -> &GuestSpace {
        &self.space
    }
}
