// SPDX-License-Identifier: MIT OR Apache-2.0
//! One domain's grant table: the shared entries, and who uses them.
//!
//! Entries live in frames of the hypervisor's that the guest maps by XENMEM_add_to_physmap; they
//! are allocated when first asked for, up to a limit, and charged to the domain. An entry is one
//! word: flags, domid, frame. The granter owns it except for the two bits *reading* and *writing*,
//! which tell it that it must not take the page back yet. They are set in the same
//! compare-and-swap that reads the entry, and cleared when nobody uses the entry any more.
//!
//! A granter can set or clear those bits itself, and can rewrite the entry while it is in use.
//! That harms only the granter: the counts here and the frame references decide, not the bits.
//!
//! *Incarnation.* A mapping can outlive its granter, and the granter's id may then belong to
//! another domain. Every table has a number of its own, which mappings remember, so the end of an
//! old mapping is never counted against a stranger's entry.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use guest_abi::grant_table as abi;
use guest_abi::isthmus::GrantStats;
use guest_abi::num::{high_u32, low_u16};
use guest_abi::{DomId, Errno, Gfn, GrantRef};

use super::track::{Mapping, Tracks};
use super::uses::Uses;
use super::{Access, Refusal};
use crate::addr::{Mfn, Order};
use crate::frame::{Fill, FrameError, FrameTable, FrameType};
use crate::lock::{Lock, LockGuard, Rank};
use crate::mem::{PhysMem, WORDS_PER_FRAME};

/// Entries in a frame.
pub(super) const ENTRIES: usize = WORDS_PER_FRAME;
/// How often an entry that changes under the hypervisor's eyes is read again.
const PIN_ATTEMPTS: usize = 8;

const READING: u64 = abi::GTF_READING as u64;
const WRITING: u64 = abi::GTF_WRITING as u64;

/// How large a domain's grant table may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Frames of entries, 512 in each.
    pub frames: u32,
    /// Grants of others that the domain may have mapped at one time; rounded down to 64.
    pub mappings: u32,
}

impl Default for Limits {
    /// What a guest gets that nobody configured: 64 frames and 16,384 mappings.
    fn default() -> Self {
        Self { frames: 64, mappings: 16_384 }
    }
}

/// Why the table did not grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrowError {
    /// The frame lies beyond the limit.
    OverLimit(u32),
    /// The domain is being destroyed.
    Dying,
    /// Memory ran out.
    NoMemory,
    /// The domain may not hold more frames, or there are none.
    Frame(FrameError),
}

impl From<GrowError> for Errno {
    fn from(error: GrowError) -> Self {
        match error {
            GrowError::OverLimit(_) => Self::EINVAL,
            GrowError::Dying => Self::ESRCH,
            GrowError::NoMemory => Self::ENOMEM,
            GrowError::Frame(error) => error.into(),
        }
    }
}

/// How often an entry is mapped.
#[derive(Clone, Copy, Default)]
struct Users {
    readers: u16,
    writers: u16,
}

impl Users {
    fn of(&mut self, access: Access) -> &mut u16 {
        match access {
            Access::Read => &mut self.readers,
            Access::Write => &mut self.writers,
        }
    }
}

/// The grant table of one domain and the list of what it has mapped of others'.
pub struct GrantTable {
    domain: DomId,
    incarnation: u32,
    frames: &'static FrameTable,
    limits: Limits,
    inner: Lock<Inner>,
}

/// What the grant-table lock protects.
pub(super) struct Inner {
    mem: PhysMem,
    frames: Vec<Mfn>,
    #[expect(clippy::vec_box, reason = "2 KiB each, which a growing vector must not move")]
    users: Vec<Box<[Users; ENTRIES]>>,
    pub(super) tracks: Tracks,
    pub(super) is_dying: bool,
    pub(super) uses: Uses,
}

pub(super) type Locked<'a> = LockGuard<'a, Inner>;

impl GrantTable {
    /// Makes a domain's empty table.
    #[must_use]
    pub fn new(domain: DomId, frames: &'static FrameTable, limits: Limits) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let inner = Inner {
            mem: frames.mem(),
            frames: Vec::new(),
            users: Vec::new(),
            tracks: Tracks::new(limits.mappings),
            is_dying: false,
            uses: Uses::new(),
        };
        Self {
            domain,
            incarnation: NEXT.fetch_add(1, Ordering::Relaxed),
            frames,
            limits,
            inner: Lock::for_domain(Rank::GrantTable, domain, inner),
        }
    }

    /// The domain whose table it is.
    #[must_use]
    pub const fn domain(&self) -> DomId {
        self.domain
    }

    pub(super) const fn incarnation(&self) -> u32 {
        self.incarnation
    }

    /// Frames of entries at present, and the most that there may be.
    #[must_use]
    pub fn size(&self) -> (u32, u32) {
        let frames = self.inner.lock().frames.len();
        (u32::try_from(frames).unwrap_or(u32::MAX), self.limits.frames)
    }

    /// Grants of other domains that this one has mapped.
    #[must_use]
    pub fn nr_mapped(&self) -> u32 {
        self.inner.lock().tracks.nr_mapped()
    }

    /// What the user at a place has done with its pages.
    #[must_use]
    pub fn stats(&self, at: u16) -> GrantStats {
        let inner = self.inner.lock();
        let table_frames = u32::try_from(inner.frames.len()).unwrap_or(u32::MAX);
        let mapped_by_it = inner.tracks.nr_mapped();
        GrantStats { domid: self.domain.raw(), table_frames, mapped_by_it, ..inner.uses.stats(at) }
    }

    /// The first mapping at handle `from` or behind it, with its handle; for listing them all.
    #[must_use]
    pub fn next_mapping(&self, from: u32) -> Option<(u32, Mapping)> {
        self.inner.lock().tracks.next_mapped(from)
    }

    /// The frame that holds entries `512 * index` and up; the table grows until there is one.
    ///
    /// # Errors
    /// See [`GrowError`].
    pub fn frame(&self, index: u32) -> Result<Mfn, GrowError> {
        if index >= self.limits.frames {
            return Err(GrowError::OverLimit(index));
        }
        let at = GrantRef::new(index).index();
        let mut inner = self.inner.lock();
        if inner.is_dying {
            return Err(GrowError::Dying);
        }
        while inner.frames.len() <= at {
            self.grow(&mut inner)?;
        }
        inner.frames.get(at).copied().ok_or(GrowError::OverLimit(index))
    }

    fn grow(&self, inner: &mut Inner) -> Result<(), GrowError> {
        inner.frames.try_reserve(1).map_err(|_| GrowError::NoMemory)?;
        inner.users.try_reserve(1).map_err(|_| GrowError::NoMemory)?;
        let mut users = Vec::new();
        users.try_reserve_exact(ENTRIES).map_err(|_| GrowError::NoMemory)?;
        users.resize(ENTRIES, Users::default());
        let users = users.into_boxed_slice().try_into().map_err(|_| GrowError::NoMemory)?;
        let frame = self.frames.alloc(Order::PAGE, self.domain, FrameType::GrantFrame, Fill::Zeroed);
        inner.frames.push(frame.map_err(GrowError::Frame)?);
        inner.users.push(users);
        Ok(())
    }

    /// Gives the frames of entries back. For a domain that is dying and whose p2m is gone and
    /// flushed; others may still have its grants mapped.
    pub fn release_frames(&self) {
        let frames = {
            let mut inner = self.inner.lock();
            inner.is_dying = true;
            inner.users = Vec::new();
            core::mem::take(&mut inner.frames)
        };
        for mfn in frames {
            if let Err(error) = self.frames.give_up(mfn, Order::PAGE, self.domain) {
                panic!("{}'s grant frame is not its own: {error:?}", self.domain);
            }
        }
    }

    pub(super) const fn mem(&self) -> PhysMem {
        self.frames.mem()
    }

    pub(super) fn lock(&self) -> Locked<'_> {
        self.inner.lock()
    }
}

/// Takes the locks of both tables in the order of their ids, or the only one there is.
pub(super) fn lock_both<'a>(mine: &'a GrantTable, theirs: &'a GrantTable) -> (Locked<'a>, Option<Locked<'a>>) {
    if core::ptr::eq(mine, theirs) {
        return (mine.lock(), None);
    }
    if mine.domain < theirs.domain {
        let first = mine.lock();
        (first, Some(theirs.lock()))
    } else {
        let first = theirs.lock();
        (mine.lock(), Some(first))
    }
}

impl Inner {
    /// The entry's shared word.
    fn entry(&self, reference: GrantRef) -> Option<&'static AtomicU64> {
        let mfn = *self.frames.get(reference.index() / ENTRIES)?;
        Some(self.mem.word(mfn, reference.index() % ENTRIES))
    }

    fn users(&mut self, reference: GrantRef) -> Option<&mut Users> {
        let users = self.users.get_mut(reference.index() / ENTRIES)?;
        Some(&mut users[reference.index() % ENTRIES])
    }

    /// Reads an entry for `peer` and marks it as in use, in one step. Returns the granted frame.
    /// To be followed by [`Inner::settle`], at once or, for a mapping, after its end.
    pub(super) fn pin(&self, reference: GrantRef, peer: DomId, access: Access) -> Result<Gfn, Refusal> {
        if self.is_dying {
            return Err(Refusal::BadDomain);
        }
        let word = self.entry(reference).ok_or(Refusal::BadRef)?;
        // Acquire: what the granter wrote into the page before it wrote the entry is seen.
        let mut seen = word.load(Ordering::Acquire);
        for _ in 0..PIN_ATTEMPTS {
            #[cfg(test)]
            super::interleavings::step();
            let flags = low_u16(seen);
            if flags & abi::GTF_TYPE_MASK != abi::GTF_PERMIT_ACCESS
                || flags & abi::GTF_SUB_PAGE != 0
                || low_u16(seen >> 16) != peer.raw()
            {
                return Err(Refusal::BadRef);
            }
            let marks = match access {
                Access::Read => READING,
                Access::Write if flags & abi::GTF_READONLY != 0 => return Err(Refusal::Denied),
                Access::Write => READING | WRITING,
            };
            match word.compare_exchange(seen, seen | marks, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(Gfn::new(u64::from(high_u32(seen)))),
                Err(now) => seen = now,
            }
        }
        Err(Refusal::General)
    }

    /// Clears the marks that no mapping needs.
    pub(super) fn settle(&mut self, reference: GrantRef) {
        let Some(users) = self.users(reference) else { return };
        let stale = match (users.readers, users.writers) {
            (0, 0) => READING | WRITING,
            (_, 0) => WRITING,
            _ => return,
        };
        if let Some(word) = self.entry(reference) {
            // Release: our last access to the page comes before the granter learns of the end.
            word.fetch_and(!stale, Ordering::Release);
        }
    }

    /// Counts a mapping; the caller has asked [`Inner::can_count`].
    pub(super) fn count(&mut self, reference: GrantRef, user: DomId, access: Access) {
        if let Some(users) = self.users(reference) {
            *users.of(access) += 1;
            self.uses.of(user).map(access);
        }
    }

    /// Whether the table is large enough for an entry.
    pub(super) fn exists(&self, reference: GrantRef) -> bool {
        self.entry(reference).is_some()
    }

    /// Whether one more mapping of an entry can be counted.
    pub(super) fn can_count(&mut self, reference: GrantRef, access: Access) -> bool {
        self.users(reference).is_some_and(|users| *users.of(access) < u16::MAX)
    }

    /// Ends a mapping that was counted.
    pub(super) fn uncount(&mut self, reference: GrantRef, user: DomId, access: Access) {
        // The counts are gone once the granter's frames are released.
        if let Some(users) = self.users(reference) {
            *users.of(access) -= 1;
            self.uses.of(user).unmap(access);
            self.settle(reference);
        }
    }
}
