// SPDX-License-Identifier: MIT OR Apache-2.0
//! The flush discipline: nothing that a TLB may still reach changes hands.
//!
//! Taking something out of a p2m gives an [`Unmapped`] token, which stands for the frame: for the
//! ownership of RAM, for the reference of a grant or foreign mapping. It can only be turned into
//! that frame again with a [`FlushProof`] of the same p2m and a generation that is not older; and
//! a proof comes only from [`TlbState::flush`], which has the machine flush every pCPU that ran
//! the domain. The caller drops the p2m's lock first, flushes once for many tokens
//! ([`UnmappedBatch`]), and then releases them. Dropping a token is a bug that a debug build
//! reports; a release build then keeps the frame for ever rather than free it too early.
//!
//! *Who has to do something.* A pCPU drops what is stale before it enters the guest again; the
//! backend compares generations there. So only pCPUs that run a vCPU of the domain at this moment are
//! waited for: each is made to exit, and has honoured the flush when it comes to its next entry.
//! That is also when a frame that a hypercall on that pCPU found by a lookup is no longer used. A pCPU
//! that waits here honours what others ask of it meanwhile ([`TlbState::serve`]), since its own call
//! believes no lookup from before a removal; so two that wait for each other both go on. Whoever waits
//! for a lock serves nobody: holders do not wait, so it goes on soon.
//!
//! Emulators hide missing flushes: QEMU drops all translations at every exit. So each p2m has a
//! generation, raised by every removal, and each pCPU's entry in [`TlbState`] is the generation
//! whose removals it has honoured. Debug builds assert for each proof that all pCPUs that ever ran
//! the domain are there; the tests of [`crate::p2m`] run a simulated TLB, and take each
//! [`FlushSite`] away in turn to see the failure.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

use arrayvec::{ArrayVec, CapacityError};
use guest_abi::DomId;
use spin::mutex::SpinMutex;

use super::{Leaf, P2mKind};
use crate::addr::Mfn;
use crate::backend::Machine;
use crate::frame::{FrameRef, FrameTable};
use crate::pcpu::{self, MAX_PCPUS};

/// Where flushes are asked for: each place that releases unmapped frames has its name here, for
/// the counters and for the test that takes it away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FlushSite {
    /// A domain gives RAM back.
    Balloon,
    /// A guest frame is given another meaning: `shared_info`, grant frames.
    Remap,
    /// A grant is unmapped.
    GrantUnmap,
    /// A foreign mapping is removed.
    ForeignUnmap,
    /// A domain is destroyed.
    Teardown,
}

impl FlushSite {
    /// How many there are.
    pub const COUNT: usize = 5;
}

/// What pCPUs may remember of one p2m. It is shared between the p2m, which is locked, and the
/// vCPU loop, which is not.
pub struct TlbState {
    root: Mfn,
    /// Nobody else's.
    serial: u64,
    generation: AtomicU64,
    /// Removals of anything but references.
    own_generation: AtomicU64,
    /// The pCPUs that ever ran the domain.
    ran: AtomicU64,
    /// Those that run a vCPU of it now.
    running: AtomicU64,
    /// For each of them, the generation whose removals it has honoured.
    seen: [AtomicU64; MAX_PCPUS],
    flushes: [AtomicU64; FlushSite::COUNT],
}

impl TlbState {
    /// The generation starts with a number of its own, so that a root frame that is used again never
    /// comes back with a generation that some pCPU remembers of it.
    pub(super) fn new(root: Mfn) -> Self {
        /// A domain would have to live through this many removals to meet the next one's numbers.
        const REMOVALS: u64 = 1 << 40;
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let serial = NEXT.fetch_add(REMOVALS, Ordering::Relaxed);
        Self {
            root,
            serial,
            generation: AtomicU64::new(serial),
            own_generation: AtomicU64::new(1),
            ran: AtomicU64::new(0),
            running: AtomicU64::new(0),
            seen: [const { AtomicU64::new(0) }; MAX_PCPUS],
            flushes: [const { AtomicU64::new(0) }; FlushSite::COUNT],
        }
    }

    /// The root of the p2m.
    #[must_use]
    pub const fn root(&self) -> Mfn {
        self.root
    }

    /// How many removals there have been.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// How many removals there have been of what is the domain's own, not another's that it had mapped as a reference.
    /// Hypercalls remember by it where the caller's buffers lie: a backend unmaps grants all day.
    #[must_use]
    pub fn own_generation(&self) -> u64 {
        self.own_generation.load(Ordering::SeqCst)
    }

    /// Flushes asked for at one site so far.
    #[must_use]
    pub fn flushes(&self, site: FlushSite) -> u64 {
        self.flushes[site as usize].load(Ordering::Relaxed)
    }

    /// A vCPU of the domain is scheduled in on this pCPU. Returns whether the pCPU ran another domain
    /// last.
    pub fn begin(self: &Arc<Self>, pcpu: usize) -> bool {
        *SCHEDULED_IN[pcpu % MAX_PCPUS].lock() = Some(self.clone());
        let bit = 1_u64 << (pcpu % MAX_PCPUS);
        // Before the generation is read: a flush that does not see the bit comes before the first
        // entry, and that entry then sees its generation.
        self.running.fetch_or(bit, Ordering::SeqCst);
        self.ran.fetch_or(bit, Ordering::SeqCst);
        LAST_RAN[pcpu % MAX_PCPUS].swap(self.serial, Ordering::Relaxed) != self.serial
    }

    /// It is scheduled out.
    pub fn end(&self, pcpu: usize) {
        self.running.fetch_and(!(1 << (pcpu % MAX_PCPUS)), Ordering::SeqCst);
        *SCHEDULED_IN[pcpu % MAX_PCPUS].lock() = None;
    }

    /// Called on each entry to the guest, between [`TlbState::begin`] and [`TlbState::end`]. Returns the
    /// generation for [`crate::backend::VcpuHw::set_p2m`], which flushes if this pCPU has last flushed
    /// for an older one.
    #[inline]
    pub fn enter(&self, pcpu: usize) -> u64 {
        let generation = self.generation.load(Ordering::SeqCst);
        self.seen[pcpu % MAX_PCPUS].store(generation, Ordering::Release);
        generation
    }

    /// Honours every flush of the domain that this pCPU has scheduled in. The caller uses no lookup from
    /// before.
    fn serve(pcpu: usize) {
        if let Some(tlb) = &*SCHEDULED_IN[pcpu].lock() {
            tlb.flushed(pcpu, tlb.generation());
        }
    }

    /// Called by a [`Flusher`]: this pCPU has dropped every translation of the p2m that is older
    /// than `generation`, or will before it uses one.
    pub fn flushed(&self, pcpu: usize, generation: u64) {
        self.seen[pcpu % MAX_PCPUS].fetch_max(generation, Ordering::AcqRel);
    }

    /// The pCPUs that may hold translations older than `generation`: a bit for each.
    #[must_use]
    pub fn stale(&self, generation: u64) -> u64 {
        let mut left = self.ran.load(Ordering::SeqCst);
        let mut stale = 0;
        while left != 0 {
            let pcpu = left.trailing_zeros() as usize;
            if self.seen[pcpu].load(Ordering::Acquire) < generation {
                stale |= 1 << pcpu;
            }
            left &= left - 1;
        }
        stale
    }

    /// Makes every removal so far effective on every pCPU, and proves it. The caller holds no
    /// lock: it may have to wait for other pCPUs.
    pub fn flush<F: Flusher + ?Sized>(&self, flusher: &F, site: FlushSite) -> FlushProof {
        debug_assert!(crate::lock::holds_none(), "a flush may wait for other pCPUs");
        self.flushes[site as usize].fetch_add(1, Ordering::Relaxed);
        let generation = self.generation();
        let is_needed = self.stale(generation) != 0;
        #[cfg(test)]
        let is_needed = is_needed && !crate::testing::is_sabotaged(site);
        if is_needed {
            flusher.flush(self, generation);
        }
        debug_assert!(self.stale(generation) == 0, "a pCPU has not honoured the flush");
        FlushProof { root: self.root, generation }
    }

    pub(super) fn removed(&self) -> u64 {
        self.own_generation.fetch_add(1, Ordering::SeqCst);
        self.removed_reference()
    }

    /// What was removed is a mapping of another domain's frame.
    pub(super) fn removed_reference(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::SeqCst) + 1
    }
}

/// Who can drop translations from the CPUs' TLBs.
pub trait Flusher {
    /// Returns when no pCPU can use a translation of this p2m that is older than `generation`,
    /// after calling [`TlbState::flushed`] for each pCPU in [`TlbState::stale`].
    fn flush(&self, tlb: &TlbState, generation: u64);
}

/// The p2m of the vCPU that each pCPU has scheduled in. Only that pCPU takes the lock.
static SCHEDULED_IN: [SpinMutex<Option<Arc<TlbState>>>; MAX_PCPUS] = [const { SpinMutex::new(None) }; MAX_PCPUS];

/// The serial number of the p2m that each pCPU ran last.
static LAST_RAN: [AtomicU64; MAX_PCPUS] = [const { AtomicU64::new(0) }; MAX_PCPUS];

impl Flusher for dyn Machine + '_ {
    fn flush(&self, tlb: &TlbState, generation: u64) {
        let here = pcpu::current();
        let mut kicked = 0_u64;
        let mut since = self.tsc();
        loop {
            let mut left = tlb.stale(generation);
            if left == 0 {
                return;
            }
            while left != 0 {
                let pcpu = left.trailing_zeros() as usize;
                let bit = 1_u64 << pcpu;
                left &= left - 1;
                if pcpu == here || tlb.running.load(Ordering::SeqCst) & bit == 0 {
                    tlb.flushed(pcpu, generation);
                } else if kicked & bit == 0 {
                    kicked |= bit;
                    pcpu::kick(self, pcpu);
                } else {
                    self.insist(pcpu, &mut since);
                }
            }
            TlbState::serve(here);
            core::hint::spin_loop();
        }
    }
}

/// Evidence that no pCPU uses translations of one p2m that were removed up to one generation.
#[must_use]
#[derive(Debug)]
pub struct FlushProof {
    root: Mfn,
    generation: u64,
}

/// Something that was taken out of a p2m and may still be in a TLB.
#[must_use = "the frame is lost unless the token is released after a flush"]
pub struct Unmapped {
    frames: &'static FrameTable,
    owner: DomId,
    root: Mfn,
    generation: u64,
    pub(super) leaf: Leaf,
}

impl Unmapped {
    pub(super) const fn new(frames: &'static FrameTable, owner: DomId, root: Mfn, generation: u64, leaf: Leaf) -> Self {
        Self { frames, owner, root, generation, leaf }
    }

    /// Ends the mapping: RAM is given up by its owner, a reference is put.
    ///
    /// # Panics
    /// If the proof is another p2m's or older than the removal.
    pub fn release(self, proof: &FlushProof) {
        let (frames, owner) = (self.frames, self.owner);
        let leaf = self.recover(proof);
        match leaf.kind {
            P2mKind::Ram => {
                let given_up = frames.give_up(leaf.mfn, leaf.order, owner);
                assert!(given_up.is_ok(), "{owner} had {:?} mapped without owning it", leaf.mfn);
            }
            kind if kind.holds_reference() => drop(FrameRef::from_entry(frames, leaf.mfn)),
            _ => {}
        }
    }

    /// Ends the mapping and leaves ownership or reference to the caller, who maps the frame
    /// elsewhere or gives it up himself.
    ///
    /// # Panics
    /// As [`Unmapped::release`].
    pub fn recover(self, proof: &FlushProof) -> Leaf {
        assert!(
            self.root == proof.root && self.generation <= proof.generation,
            "a frame was about to change hands before its flush"
        );
        let leaf = self.leaf;
        core::mem::forget(self);
        leaf
    }
}

impl Drop for Unmapped {
    fn drop(&mut self) {
        #[cfg(test)]
        if std::thread::panicking() {
            return;
        }
        debug_assert!(false, "{:?} was unmapped and never released", self.leaf.mfn);
    }
}

/// Tokens of one p2m that one flush serves.
#[derive(Default)]
#[must_use]
pub struct UnmappedBatch(ArrayVec<Unmapped, { Self::CAPACITY }>);

impl UnmappedBatch {
    /// Tokens that fit.
    pub const CAPACITY: usize = 32;

    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is nothing to flush.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a token.
    ///
    /// # Errors
    /// Gives the token back if the batch is full.
    pub fn push(&mut self, token: Unmapped) -> Result<(), Unmapped> {
        self.0.try_push(token).map_err(CapacityError::element)
    }

    /// Flushes once and releases all tokens. The caller holds no lock.
    pub fn flush<F: Flusher + ?Sized>(mut self, tlb: &TlbState, flusher: &F, site: FlushSite) {
        self.flush_in_place(tlb, flusher, site);
    }

    /// As [`UnmappedBatch::flush`], where moving all tokens would cost more than the flush. The batch is empty then.
    pub fn flush_in_place<F: Flusher + ?Sized>(&mut self, tlb: &TlbState, flusher: &F, site: FlushSite) {
        if self.is_empty() {
            return;
        }
        let proof = tlb.flush(flusher, site);
        self.0.drain(..).for_each(|token| token.release(&proof));
    }
}
