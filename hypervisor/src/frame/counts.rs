// SPDX-License-Identifier: MIT OR Apache-2.0
//! One frame's record, and the only transitions of its owner, type and reference count.
//!
//! All three share one word, so each change is one compare-and-swap and is seen whole. A frame
//! ends its use in the one step that leaves it neither owned nor referenced: exactly one caller
//! of [`FrameRecord::disown`] or [`FrameRecord::put`] is told so, and then has the frame to
//! itself. Nobody can take a new reference to a frame whose owner has given it up.

use core::sync::atomic::{AtomicU64, Ordering};

use guest_abi::DomId;
use guest_abi::num::{high_u32, low_u8, low_u16, low_u32};

use super::types::{FrameError, FrameInfo, FrameType};
use crate::addr::{Mfn, Order};

/// What the hypervisor knows about one frame. Cleared memory is a valid record that says
/// [`FrameType::NotRam`].
#[derive(Default)]
#[repr(C)]
pub struct FrameRecord {
    state: AtomicU64,
    /// The neighbours in a list of free blocks (low half: next, high half: previous); only the
    /// first record of a free block uses it.
    links: AtomicU64,
}

// DESIGN D7: the records of a whole machine must stay a small part of its memory.
const _: () = assert!(size_of::<FrameRecord>() == 16);

/// References beyond this are refused, so that the count never carries into the owner.
const COUNT_MAX: u32 = u32::MAX >> 1;

/// The state word: count 31:0, owner 47:32, type 50:48, then flags, order 61:56.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct State(u64);

impl State {
    const OWNER_SHIFT: u32 = 32;
    const TYPE_SHIFT: u32 = 48;
    const ORDER_SHIFT: u32 = 56;
    /// The owner has not given the frame up.
    const OWNED: u64 = 1 << 51;
    /// Belongs to the identity map of its owner for ever.
    const IDENTITY: u64 = 1 << 52;
    /// A free frame that is zero.
    const CLEAN: u64 = 1 << 53;
    /// The first frame of a free block; the order is valid.
    const HEAD: u64 = 1 << 54;
    /// With `HEAD`: the block is in a list of clean blocks.
    const CLEAN_LIST: u64 = 1 << 55;

    pub(super) const fn in_use(kind: FrameType, owner: DomId) -> Self {
        Self(Self::OWNED | (kind as u64) << Self::TYPE_SHIFT | (owner.raw() as u64) << Self::OWNER_SHIFT)
    }

    pub(super) const fn identity(self) -> Self {
        Self(self.0 | Self::IDENTITY)
    }

    pub(super) const fn reserved(owner: DomId) -> Self {
        Self(Self::in_use(FrameType::Reserved, owner).0 & !Self::OWNED | Self::IDENTITY)
    }

    pub(super) const fn free(is_clean: bool) -> Self {
        Self((FrameType::Free as u64) << Self::TYPE_SHIFT | if is_clean { Self::CLEAN } else { 0 })
    }

    pub(super) const fn not_ram() -> Self {
        Self(0)
    }

    pub(super) const fn head(self, order: Order, in_clean_list: bool) -> Self {
        let list = if in_clean_list { Self::CLEAN_LIST } else { 0 };
        Self(self.not_head().0 | Self::HEAD | list | (order.raw() as u64) << Self::ORDER_SHIFT)
    }

    pub(super) const fn not_head(self) -> Self {
        Self(self.0 & !(Self::HEAD | Self::CLEAN_LIST | 0x3f << Self::ORDER_SHIFT))
    }

    pub(super) const fn kind(self) -> FrameType {
        FrameType::from_raw(self.0 >> Self::TYPE_SHIFT)
    }

    pub(super) const fn owner(self) -> DomId {
        DomId::new(low_u16(self.0 >> Self::OWNER_SHIFT))
    }

    pub(super) const fn count(self) -> u32 {
        low_u32(self.0)
    }

    pub(super) const fn is_owned(self) -> bool {
        self.0 & Self::OWNED != 0
    }

    pub(super) const fn is_identity(self) -> bool {
        self.0 & Self::IDENTITY != 0
    }

    pub(super) const fn is_clean(self) -> bool {
        self.0 & Self::CLEAN != 0
    }

    pub(super) const fn is_in_clean_list(self) -> bool {
        self.0 & Self::CLEAN_LIST != 0
    }

    /// The order of the free block that starts here, if one does.
    pub(super) const fn head_order(self) -> Option<Order> {
        if self.0 & Self::HEAD == 0 { None } else { Order::new(low_u8(self.0 >> Self::ORDER_SHIFT) & 0x3f) }
    }

    const fn is_last(self) -> bool {
        self.count() == 0 && !self.is_owned()
    }

    pub(super) const fn info(self) -> FrameInfo {
        FrameInfo { owner: self.owner(), kind: self.kind(), count: self.count(), is_owned: self.is_owned() }
    }
}

impl FrameRecord {
    #[inline]
    pub(super) fn state(&self) -> State {
        State(self.state.load(Ordering::Acquire))
    }

    /// Sets the whole state. Only for whoever has the frame to himself: the allocator for a free
    /// one, the caller who was told that its use has ended.
    #[inline]
    pub(super) fn set_state(&self, state: State) {
        self.state.store(state.0, Ordering::Release);
    }

    /// Takes a reference to a frame that `owner` holds for the purpose `kind`.
    #[inline]
    pub(super) fn get(&self, mfn: Mfn, owner: DomId, kind: FrameType) -> Result<(), FrameError> {
        self.change(|seen| {
            if seen.kind() != kind {
                return Err(FrameError::WrongType(mfn, seen.kind()));
            }
            if !seen.is_owned() || seen.owner() != owner {
                return Err(FrameError::NotOwner(mfn));
            }
            seen.one_more(mfn)
        })
        .map(drop)
    }

    /// Drops a reference. Returns the last state if that ended the frame's use.
    ///
    /// # Panics
    /// If there is no reference: somebody has dropped one twice.
    #[inline]
    pub(super) fn put(&self) -> Option<State> {
        let before = State(self.state.fetch_sub(1, Ordering::AcqRel));
        assert!(before.count() != 0, "a reference to a frame was dropped twice");
        let after = State(before.0 - 1);
        after.is_last().then_some(after)
    }

    /// Takes the owner's claim away. Returns the last state if that ended the frame's use.
    pub(super) fn disown(&self, mfn: Mfn, owner: DomId) -> Result<Option<State>, FrameError> {
        let after = self.change(|seen| {
            seen.check_owner(mfn, owner)?;
            Ok(State(seen.0 & !State::OWNED))
        })?;
        Ok(after.is_last().then_some(after))
    }

    /// Turns a reserved frame back into RAM of its owner.
    pub(super) fn take_back(&self, mfn: Mfn, owner: DomId) -> Result<(), FrameError> {
        self.change(|seen| match seen.kind() {
            FrameType::Reserved if seen.owner() == owner => Ok(State::in_use(FrameType::Ram, owner).identity()),
            FrameType::Reserved => Err(FrameError::NotOwner(mfn)),
            other => Err(FrameError::WrongType(mfn, other)),
        })
        .map(drop)
    }

    /// Applies a checked change in one step and returns the new state. Other pCPUs only change
    /// the count meanwhile, so the loop ends as soon as they pause for a few cycles.
    #[inline]
    fn change(&self, step: impl Fn(State) -> Result<State, FrameError>) -> Result<State, FrameError> {
        let mut seen = self.state.load(Ordering::Acquire);
        loop {
            let next = step(State(seen))?;
            match self.state.compare_exchange_weak(seen, next.0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(next),
                Err(now) => seen = now,
            }
        }
    }

    pub(super) fn links(&self) -> (u32, u32) {
        let links = self.links.load(Ordering::Relaxed);
        (high_u32(links), low_u32(links))
    }

    pub(super) fn set_links(&self, previous: u32, next: u32) {
        self.links.store(u64::from(previous) << 32 | u64::from(next), Ordering::Relaxed);
    }
}

impl State {
    fn one_more(self, mfn: Mfn) -> Result<Self, FrameError> {
        if self.count() >= COUNT_MAX { Err(FrameError::TooManyReferences(mfn)) } else { Ok(Self(self.0 + 1)) }
    }

    pub(super) fn check_owner(self, mfn: Mfn, owner: DomId) -> Result<(), FrameError> {
        match self.kind() {
            FrameType::NotRam => Err(FrameError::NoSuchFrame(mfn)),
            FrameType::Free | FrameType::Reserved => Err(FrameError::WrongType(mfn, self.kind())),
            _ if !self.is_owned() || self.owner() != owner => Err(FrameError::NotOwner(mfn)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: DomId = DomId::new(1);
    const MFN: Mfn = Mfn::new(7);

    #[test]
    fn the_count_never_reaches_the_owner() {
        let record = FrameRecord::default();
        record.set_state(State(State::in_use(FrameType::Ram, A).0 + u64::from(COUNT_MAX)));
        assert_eq!(record.get(MFN, A, FrameType::Ram), Err(FrameError::TooManyReferences(MFN)));
        assert_eq!(record.state().owner(), A);
    }

    #[test]
    fn exactly_one_of_many_droppers_ends_the_use() {
        for _ in 0..50 {
            let record = FrameRecord::default();
            record.set_state(State::in_use(FrameType::Ram, A));
            for _ in 0..3 {
                record.get(MFN, A, FrameType::Ram).unwrap();
            }
            let ends: usize = std::thread::scope(|scope| {
                let putters: Vec<_> = (0..3).map(|_| scope.spawn(|| usize::from(record.put().is_some()))).collect();
                let owner = usize::from(record.disown(MFN, A).unwrap().is_some());
                owner + putters.into_iter().map(|t| t.join().unwrap()).sum::<usize>()
            });
            assert_eq!(ends, 1);
        }
    }

    #[test]
    #[should_panic = "dropped twice"]
    fn a_second_put_is_caught() {
        let record = FrameRecord::default();
        record.set_state(State::in_use(FrameType::Ram, A));
        record.put();
    }
}
