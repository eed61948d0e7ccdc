// SPDX-License-Identifier: MIT OR Apache-2.0
//! What tests above the CPU seam stand on: a machine made of variables, and guests made of scripts.
//!
//! [`Host`] is a whole [`Hypervisor`] over test memory. A [`Guest`] is a domain of it with RAM, long-mode
//! page tables and one script a vCPU, which says what the "CPU" does between two exits. A script
//! that has ended exits with [`crate::exit::Exit::PauseLoop`], which makes the vCPU loop return, so the
//! loop itself runs as it is.
//!
//! The fake CPU keeps the rules that a real one would punish: an interrupt is never injected with
//! IF clear or in a shadow, an interrupt that was queued is never overwritten, and the window that
//! was asked for opens when it should. Time stands still unless a test moves it.

mod faults;
mod guest;
mod machine;
mod memory;

pub(crate) use faults::{is_refused, is_sabotaged, pretend, pretended, refusing, without_flush};
pub(crate) use guest::{Guest, HOLE, arg, failed};
pub(crate) use machine::{End, FakeMachine, ending};
pub(crate) use memory::{test_memory, test_table};

use core::sync::atomic::{AtomicBool, AtomicU64};
use std::boxed::Box;
use std::collections::BTreeMap;

use guest_abi::DomId;

use crate::addr::{Mfn, Order, Ticks};
use crate::boot::cmdline::OnPanic;
use crate::debug::DebugConsole;
use spin::{Mutex, Once};

use crate::domain::{DomainTable, News, Privileges};
use crate::facts::HostFacts;
use crate::frame::{FrameTable, FrameType, FreeFrames, Usage};
use crate::hypervisor::Hypervisor;
use crate::input::InputRing;
use crate::p2m::Format;
use crate::sched::{SLICE_NS, Scheduler};
use crate::time::{SystemClock, TscScale};

/// One tick is one nanosecond.
const KHZ: u32 = 1_000_000;
/// The TSC when the hypervisor's clock started.
pub(crate) const START: u64 = 1000;

/// dom0's and a guest's privileges.
pub(crate) const DOM0: Privileges = Privileges::all();
/// See [`DOM0`].
pub(crate) const GUEST: Privileges = Privileges::empty();

/// A hypervisor on a fake machine.
#[derive(Clone, Copy)]
pub(crate) struct Host {
    pub(crate) hv: &'static Hypervisor,
    pub(crate) machine: &'static FakeMachine,
}

impl Host {
    /// pCPUs that the scheduler serves; a test that is one of several says so by [`crate::testing::pretend`].
    pub(crate) const NR_PCPUS: usize = 1;

    /// A host with 4 MiB of memory, of which the first 128 frames can be dom0's identity map. They are
    /// never given back, so a test makes few of them.
    pub(crate) fn new() -> Self {
        Self::with(1024, 128, OnPanic::Exit)
    }

    /// A host with 10 MiB, four times 2 MiB of them free.
    pub(crate) fn large() -> Self {
        Self::with(2560, 512, OnPanic::Exit)
    }

    fn with(nr_frames: usize, first_free: u64, on_panic: OnPanic) -> Self {
        let machine: &'static FakeMachine = Box::leak(Box::new(FakeMachine::new(START)));
        let frames: &'static FrameTable = test_table(nr_frames);
        frames.add_free(Mfn::new(first_free)..Mfn::new(nr_frames as u64)).unwrap();
        let hv = Hypervisor {
            machine,
            mem: frames.mem(),
            frames,
            domains: DomainTable::default(),
            clock: SystemClock::new(TscScale::from_khz(KHZ).unwrap(), Ticks::new(START)),
            wallclock_ns: AtomicU64::new(0),
            is_tsc_stable: true,
            sched: Box::leak(Box::new(Scheduler::new(machine, Self::NR_PCPUS, Ticks::new(SLICE_NS)))),
            apic_ids: (0..).take(Self::NR_PCPUS).collect(),
            is_cleaning: AtomicBool::new(false),
            news: Box::leak(Box::new(News::default())),
            guest_io_map: Once::new(),
            making: Mutex::new(()),
            input: InputRing::default(),
            on_panic,
            format: Format::Npt,
            largest_leaf: Order::GIB_1,
            phys_bits: 40,
            keeps_com1: true,
            debug: DebugConsole::new(true),
            facts: HostFacts::default(),
        };
        Self { hv: Box::leak(Box::new(hv)), machine }
    }

    /// Puts every vCPU to sleep as far as the scheduler knows.
    pub(crate) fn let_pcpu_0_idle(&self) {
        let asleep = || crate::sched::queue::Stop::Asleep { until: crate::vcpu::NEVER };
        let idles = (0..100).any(|_| {
            let next = self.hv.sched.switch(0, self.hv.machine.tsc(), Some(&asleep));
            matches!(next, crate::sched::queue::Next::Idle { .. })
        });
        assert!(idles);
    }

    /// A host with one domain that has no privileges and one vCPU.
    pub(crate) fn with_guest() -> (Self, Guest) {
        let host = Self::new();
        (host, Guest::new(host, 1, GUEST, 1))
    }

    /// A host with dom0 alone, and this word for what follows when it crashes.
    pub(crate) fn with_dom0_and(on_panic: OnPanic) -> (Self, Guest) {
        let host = Self::with(1024, 128, on_panic);
        (host, Guest::new(host, 0, DOM0, 1))
    }

    /// A host with dom0 alone.
    pub(crate) fn with_dom0() -> (Self, Guest) {
        let host = Self::new();
        (host, Guest::new(host, 0, DOM0, 1))
    }

    /// What a domain holds, and what is free: nothing may leak or appear.
    pub(crate) fn account(&self, domain: DomId) -> (Usage, u64) {
        let FreeFrames { total, .. } = self.hv.frames.free_frames();
        (self.hv.frames.account(domain).unwrap().0, total)
    }

    /// Holds the frame records against the accounts and the allocator: each frame is counted once.
    pub(crate) fn check_books(&self) {
        let frames = self.hv.frames;
        let mut held: BTreeMap<u16, Usage> = BTreeMap::new();
        let mut free = 0;
        for mfn in (0..frames.nr_frames()).map(Mfn::new) {
            let info = frames.info(mfn);
            let usage = held.entry(info.owner.raw());
            match info.kind {
                FrameType::Ram => usage.or_default().ram += 1,
                FrameType::Table | FrameType::Shared | FrameType::GrantFrame => usage.or_default().overhead += 1,
                FrameType::Free => free += 1,
                FrameType::NotRam | FrameType::Hypervisor | FrameType::Reserved => {}
            }
        }
        assert_eq!(frames.free_frames().total, free);
        for (_, domain) in self.hv.domains.iter() {
            let usage = held.remove(&domain.id.raw()).unwrap_or_default();
            assert_eq!(frames.account(domain.id).unwrap().0, usage, "{}", domain.id);
        }
        assert!(held.is_empty(), "frames of nobody: {held:?}");
    }

    /// Moves time on.
    pub(crate) fn advance(&self, ticks: u64) {
        self.machine.advance(ticks);
    }

    /// What was written to the console, as text.
    pub(crate) fn console(&self) -> std::string::String {
        self.machine.console()
    }
}
