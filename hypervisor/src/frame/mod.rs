// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames of machine memory: who owns each, what it is used for, who still refers to it.
//!
//! Every frame has one record ([`FrameRecord`]). Its owner is the domain that is charged for it.
//! Others may hold counted references ([`FrameRef`]): a mapping of a granted page, a foreign
//! mapping, a pin of the hypervisor itself. A frame goes back to the allocator only when its owner
//! has given it up *and* the last reference is gone, whichever comes last; until then its contents
//! stay intact and nobody new can refer to it. That is what makes sharing safe against a granter
//! that dies in the middle.
//!
//! The owner's own p2m mapping is not counted: it *is* the ownership, and
//! [`FrameTable::give_up`] ends it after the flush ([`crate::p2m::flush`]).
//!
//! Frames of dom0's identity map never go to anybody else: given up they are
//! [`FrameType::Reserved`], and only [`FrameTable::take_back`] brings them back.
//!
//! Start reading at [`FrameTable::alloc`]; the transitions of one record are in `counts`, the
//! free lists in `alloc`, the domains' accounts in `charge`, idle-time cleaning in `scrub`.

mod alloc;
mod charge;
mod counts;
mod scrub;
mod types;

use core::fmt;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};

use guest_abi::DomId;

pub use charge::MAX_ACCOUNTS;
pub use counts::FrameRecord;
pub use scrub::SCRUB_BATCH;
pub use types::{Fill, FrameError, FrameInfo, FrameType, FreeFrames, Limits, Usage};

use crate::addr::{Mfn, Order};
use crate::lock::{Lock, Rank};
use crate::mem::PhysMem;
use alloc::Buddy;
pub(crate) use alloc::aligned_blocks;
use charge::Accounts;
use counts::State;

/// All frames of the machine.
pub struct FrameTable {
    records: &'static [FrameRecord],
    mem: PhysMem,
    inner: Lock<Inner>,
    /// Frames of a watched account have come back.
    has_news: AtomicBool,
}

struct Inner {
    buddy: Buddy,
    accounts: Accounts,
}

impl FrameTable {
    /// Wraps records that all say [`FrameType::NotRam`]; `records[n]` is for frame `n` of `mem`.
    /// Nothing can be allocated before [`FrameTable::add_free`].
    ///
    /// # Panics
    /// If there are more frames than a list link can name (16 TiB), or records without memory.
    #[must_use]
    pub const fn new(records: &'static [FrameRecord], mem: PhysMem) -> Self {
        assert!(records.len() < u32::MAX as usize && records.len() as u64 <= mem.nr_frames());
        let inner = Inner { buddy: Buddy::new(), accounts: Accounts::new() };
        Self { records, mem, inner: Lock::new(Rank::Allocator, inner), has_news: AtomicBool::new(false) }
    }

    /// The memory that the table is about.
    #[inline]
    #[must_use]
    pub const fn mem(&self) -> PhysMem {
        self.mem
    }

    /// The number of frames that have a record.
    #[must_use]
    pub const fn nr_frames(&self) -> u64 {
        self.records.len() as u64
    }

    // --- Boot: what each piece of RAM is for.

    /// Hands a range of RAM to the allocator, as dirty.
    ///
    /// # Errors
    /// [`FrameError::WrongType`] or [`FrameError::NoSuchFrame`] if part of it already has a use
    /// or has no record; then nothing has changed.
    pub fn add_free(&self, range: Range<Mfn>) -> Result<(), FrameError> {
        let records = self.unused(&range)?;
        records.iter().for_each(|record| record.set_state(State::free(false)));
        let mut inner = self.inner.lock();
        for (first, order) in aligned_blocks(range.start, records.len() as u64) {
            inner.buddy.insert(self.records, first, order);
        }
        Ok(())
    }

    /// Marks a range of RAM as the hypervisor's own, for ever.
    ///
    /// # Errors
    /// As [`FrameTable::add_free`].
    pub fn add_hypervisor(&self, range: Range<Mfn>) -> Result<(), FrameError> {
        let state = State::in_use(FrameType::Hypervisor, DomId::XEN);
        self.unused(&range)?.iter().for_each(|record| record.set_state(state));
        Ok(())
    }

    /// Makes a range of RAM part of `owner`'s identity map: RAM that it owns, charged to it, which
    /// never serves anybody else. The contents stay.
    ///
    /// # Errors
    /// As [`FrameTable::add_free`], and [`FrameError::OverLimit`], [`FrameError::NoAccount`].
    pub fn reserve_for_dom0(&self, range: Range<Mfn>, owner: DomId) -> Result<(), FrameError> {
        let records = self.unused(&range)?;
        self.inner.lock().accounts.charge(owner, FrameType::Ram, records.len() as u64)?;
        let state = State::in_use(FrameType::Ram, owner).identity();
        records.iter().for_each(|record| record.set_state(state));
        Ok(())
    }

    fn unused(&self, range: &Range<Mfn>) -> Result<&'static [FrameRecord], FrameError> {
        let records = self.records.get(range.start.index()..range.end.index());
        let records = records.ok_or(FrameError::NoSuchFrame(range.end))?;
        for (step, record) in (0..).zip(records) {
            match record.state().kind() {
                FrameType::NotRam => {}
                other => return Err(FrameError::WrongType(range.start.offset(step), other)),
            }
        }
        Ok(records)
    }

    // --- Accounts.

    /// Lets a domain hold frames, up to `limits`; or changes the limits of one that does.
    ///
    /// # Errors
    /// [`FrameError::NoAccount`] if there are [`MAX_ACCOUNTS`] already.
    pub fn open_account(&self, owner: DomId, limits: Limits) -> Result<(), FrameError> {
        self.inner.lock().accounts.open(owner, limits)
    }

    /// Ends a domain's account.
    ///
    /// # Errors
    /// [`FrameError::AccountInUse`] while frames are charged to it, also those that it has given
    /// up but others still map; [`FrameError::NoAccount`].
    pub fn close_account(&self, owner: DomId) -> Result<(), FrameError> {
        self.inner.lock().accounts.close(owner)
    }

    /// From now on, frames that come back from a domain are news ([`FrameTable::take_watched`]).
    pub(crate) fn watch_account(&self, owner: DomId) {
        self.inner.lock().accounts.watch(owner);
    }

    /// Whether frames of a watched account have come back since the last call.
    pub(crate) fn take_watched(&self) -> bool {
        self.has_news.load(Ordering::Relaxed) && self.has_news.swap(false, Ordering::Acquire)
    }

    /// What a domain holds and what it may hold, or `None` if it has no account.
    #[must_use]
    pub fn account(&self, owner: DomId) -> Option<(Usage, Limits)> {
        self.inner.lock().accounts.usage(owner)
    }

    /// What is in the allocator.
    #[must_use]
    pub fn free_frames(&self) -> FreeFrames {
        self.inner.lock().buddy.free()
    }

    // --- Owning.

    /// Allocates a block of frames that `owner` owns and is charged for. Each frame of it can be
    /// given up alone.
    ///
    /// # Errors
    /// [`FrameError::NoMemory`], [`FrameError::OverLimit`], [`FrameError::NoAccount`].
    pub fn alloc(&self, order: Order, owner: DomId, kind: FrameType, fill: Fill) -> Result<Mfn, FrameError> {
        if crate::room::is_refused() {
            return Err(FrameError::NoMemory);
        }
        let first = {
            let mut inner = self.inner.lock();
            inner.accounts.charge(owner, kind, order.frames())?;
            match inner.buddy.take(self.records, order, fill == Fill::Zeroed) {
                Some(first) => first,
                None => {
                    inner.accounts.uncharge(owner, kind, order.frames());
                    return Err(FrameError::NoMemory);
                }
            }
        };
        // The block is in no list and its records say `Free`, so nobody else looks at it.
        let used = State::in_use(kind, owner);
        for (step, record) in (0..order.frames()).zip(&self.records[first.index()..]) {
            let state = record.state();
            debug_assert!(state.is_free(), "the allocator held a frame in use");
            if fill == Fill::Zeroed && !state.is_clean() {
                self.mem.zero(first.offset(step));
            }
            record.set_state(used);
        }
        Ok(first)
    }

    /// Ends the ownership of a block, whole or part of what was allocated. Each frame is free as
    /// soon as nobody refers to it. No translation of it may be left in a TLB that the owner's
    /// p2m filled: [`crate::p2m::flush`].
    ///
    /// # Errors
    /// [`FrameError::NotOwner`] and others if `owner` does not own all of it; then nothing has
    /// changed.
    pub fn give_up(&self, first: Mfn, order: Order, owner: DomId) -> Result<(), FrameError> {
        let last = first.offset(order.frames());
        let records = self.records.get(first.index()..last.index()).ok_or(FrameError::NoSuchFrame(last))?;
        for (step, record) in (0..).zip(records) {
            record.state().check_owner(first.offset(step), owner)?;
        }
        // Frames whose use ends here are collected into runs, so that a block comes back whole.
        let mut run: Option<(Mfn, u64, State)> = None;
        for (step, record) in (0..).zip(records) {
            let mfn = first.offset(step);
            let ended = record.disown(mfn, owner)?;
            run = match (run, ended) {
                (Some((start, count, state)), Some(now)) if state == now => Some((start, count + 1, state)),
                (before, ended) => {
                    if let Some((start, count, state)) = before {
                        self.end_use(start, count, state);
                    }
                    ended.map(|state| (mfn, 1, state))
                }
            };
        }
        if let Some((start, count, state)) = run {
            self.end_use(start, count, state);
        }
        Ok(())
    }

    /// Makes reserved frames of `owner`'s identity map its RAM again, charged and zeroed.
    ///
    /// # Errors
    /// [`FrameError::WrongType`] if a frame is not reserved (which is also the answer while others
    /// still refer to it), [`FrameError::NotOwner`], [`FrameError::OverLimit`].
    pub fn take_back(&self, mfn: Mfn, owner: DomId) -> Result<(), FrameError> {
        let record = self.record(mfn)?;
        self.inner.lock().accounts.charge(owner, FrameType::Ram, 1)?;
        record.take_back(mfn, owner).inspect_err(|_| {
            self.inner.lock().accounts.uncharge(owner, FrameType::Ram, 1);
        })?;
        self.mem.zero(mfn);
        Ok(())
    }

    /// The use of these frames has ended and they are the caller's alone; all had this state.
    fn end_use(&self, first: Mfn, count: u64, state: State) {
        let next = if state.is_identity() { State::reserved(state.owner()) } else { State::free(false) };
        self.records[first.index()..].iter().zip(0..count).for_each(|(record, _)| record.set_state(next));
        let mut inner = self.inner.lock();
        if inner.accounts.uncharge(state.owner(), state.kind(), count) {
            self.has_news.store(true, Ordering::Release);
        }
        if next.is_free() {
            for (block, order) in aligned_blocks(first, count) {
                inner.buddy.insert(self.records, block, order);
            }
        }
    }

    // --- Referring.

    /// Takes a counted reference to a domain's RAM.
    ///
    /// # Errors
    /// [`FrameError::NotOwner`] if `owner` does not own the frame or has given it up,
    /// [`FrameError::WrongType`] if it is not RAM, [`FrameError::NoSuchFrame`],
    /// [`FrameError::TooManyReferences`].
    #[inline]
    pub fn get(&'static self, mfn: Mfn, owner: DomId) -> Result<FrameRef, FrameError> {
        self.get_kind(mfn, owner, FrameType::Ram)
    }

    /// Takes a counted reference to a frame that `owner` holds for a given purpose.
    ///
    /// # Errors
    /// As [`FrameTable::get`].
    #[inline]
    pub fn get_kind(&'static self, mfn: Mfn, owner: DomId, kind: FrameType) -> Result<FrameRef, FrameError> {
        self.record(mfn)?.get(mfn, owner, kind)?;
        Ok(FrameRef { table: self, mfn })
    }

    /// What the record of a frame says at this moment. A frame without a record is
    /// [`FrameType::NotRam`].
    #[must_use]
    pub fn info(&self, mfn: Mfn) -> FrameInfo {
        self.records.get(mfn.index()).map_or(State::not_ram(), FrameRecord::state).info()
    }

    /// Whether no frame of the range is memory that the hypervisor manages, so that a domain that
    /// owns devices may be given it as a device's.
    #[must_use]
    pub fn is_not_ram(&self, first: Mfn, count: u64) -> bool {
        let start = first.index().min(self.records.len());
        let end = first.raw().checked_add(count).map_or(usize::MAX, |end| Mfn::new(end).index());
        let end = end.min(self.records.len());
        self.records[start..end].iter().all(|record| record.state().kind() == FrameType::NotRam)
    }

    fn record(&self, mfn: Mfn) -> Result<&'static FrameRecord, FrameError> {
        self.records.get(mfn.index()).ok_or(FrameError::NoSuchFrame(mfn))
    }

    fn put(&self, mfn: Mfn) {
        if let Some(state) = self.records[mfn.index()].put() {
            self.end_use(mfn, 1, state);
        }
    }
}

/// A counted reference to a frame: as long as it exists the frame keeps its owner and contents.
/// Dropping it may return the frame to the allocator (and takes the allocator's lock then).
#[must_use]
pub struct FrameRef {
    table: &'static FrameTable,
    mfn: Mfn,
}

impl FrameRef {
    /// The frame.
    #[inline]
    #[must_use]
    pub const fn mfn(&self) -> Mfn {
        self.mfn
    }

    /// Hands the reference to a p2m entry.
    pub(crate) fn into_entry(self) -> Mfn {
        let mfn = self.mfn;
        core::mem::forget(self);
        mfn
    }

    /// Takes the reference that a p2m entry held, which has just been removed and flushed.
    pub(crate) const fn from_entry(table: &'static FrameTable, mfn: Mfn) -> Self {
        Self { table, mfn }
    }
}

impl Drop for FrameRef {
    #[inline]
    fn drop(&mut self) {
        self.table.put(self.mfn);
    }
}

impl fmt::Debug for FrameRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ref:{:?}", self.mfn)
    }
}

#[cfg(test)]
mod tests;
