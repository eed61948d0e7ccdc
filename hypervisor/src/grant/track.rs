// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which grants a domain has mapped: a table of handles with a free list.
//!
//! A handle is an index. The table grows by chunks, up to a limit, and its free list runs through
//! the free slots themselves, so making and ending a mapping costs a few loads and no heap work.

use alloc::boxed::Box;
use alloc::vec::Vec;

use guest_abi::{DomId, Gfn, GrantRef};

use super::{Access, Refusal};
use crate::addr::Mfn;

/// Slots in a chunk.
const CHUNK: usize = 64;
/// The end of the free list.
const NONE: u32 = u32::MAX;

/// One grant that a domain has mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Whose page it is.
    pub granter: DomId,
    /// Which life of that domain id: see [`super::table::GrantTable`].
    pub(super) incarnation: u32,
    /// The granter's entry.
    pub reference: GrantRef,
    /// Where it is mapped.
    pub gfn: Gfn,
    /// The frame.
    pub mfn: Mfn,
    /// How it is mapped.
    pub access: Access,
}

#[derive(Clone, Copy)]
enum Slot {
    Free {
        next: u32,
    },
    Mapped(Mapping),
    /// Removed from the p2m, not flushed: the handle is dead and not free yet.
    Closing(Mapping),
}

/// The mappings that one domain has made.
pub(super) struct Tracks {
    #[expect(clippy::vec_box, reason = "2 KiB each, which a growing vector must not move")]
    chunks: Vec<Box<[Slot; CHUNK]>>,
    free: u32,
    limit: u32,
    nr_mapped: u32,
}

impl Tracks {
    pub(super) const fn new(limit: u32) -> Self {
        Self { chunks: Vec::new(), free: NONE, limit, nr_mapped: 0 }
    }

    pub(super) const fn nr_mapped(&self) -> u32 {
        self.nr_mapped
    }

    fn slot(&mut self, handle: u32) -> Option<&mut Slot> {
        let at = GrantRef::new(handle).index();
        Some(&mut self.chunks.get_mut(at / CHUNK)?[at % CHUNK])
    }

    /// Makes sure that the next [`Tracks::insert`] finds room.
    pub(super) fn ensure_room(&mut self) -> Result<(), Refusal> {
        if self.free != NONE {
            return Ok(());
        }
        let first = self.chunks.len() * CHUNK;
        let (first, end) = match (u32::try_from(first), u32::try_from(first + CHUNK)) {
            (Ok(first), Ok(end)) if end <= self.limit => (first, end),
            _ => return Err(Refusal::NoSpace),
        };
        self.chunks.try_reserve(1).map_err(|_| Refusal::NoSpace)?;
        let mut slots = Vec::new();
        slots.try_reserve_exact(CHUNK).map_err(|_| Refusal::NoSpace)?;
        slots.extend((first..end).map(|at| Slot::Free { next: if at + 1 == end { NONE } else { at + 1 } }));
        self.chunks.push(slots.into_boxed_slice().try_into().map_err(|_| Refusal::NoSpace)?);
        self.free = first;
        Ok(())
    }

    /// Writes a mapping down and returns its handle.
    ///
    /// # Panics
    /// If [`Tracks::ensure_room`] was not asked before.
    pub(super) fn insert(&mut self, mapping: Mapping) -> u32 {
        let handle = self.free;
        let Some(slot) = self.slot(handle) else { panic!("a mapping was made without room for its handle") };
        let Slot::Free { next } = *slot else { panic!("the list of free handles holds one in use") };
        *slot = Slot::Mapped(mapping);
        self.free = next;
        self.nr_mapped += 1;
        handle
    }

    /// The mapping of a handle.
    pub(super) fn get(&mut self, handle: u32) -> Result<Mapping, Refusal> {
        match self.slot(handle) {
            Some(Slot::Mapped(mapping)) => Ok(*mapping),
            _ => Err(Refusal::BadHandle),
        }
    }

    /// Makes a handle that [`Tracks::get`] found dead, but keeps it from being given out again.
    pub(super) fn close(&mut self, handle: u32, mapping: Mapping) {
        if let Some(slot) = self.slot(handle) {
            *slot = Slot::Closing(mapping);
        }
    }

    /// Ends a handle that was closed, and returns what it named.
    pub(super) fn release(&mut self, handle: u32) -> Option<Mapping> {
        let next = self.free;
        let slot = self.slot(handle)?;
        let Slot::Closing(mapping) = *slot else { return None };
        *slot = Slot::Free { next };
        self.free = handle;
        self.nr_mapped -= 1;
        Some(mapping)
    }

    /// The first mapping at handle `from` or behind it.
    pub(super) fn next_mapped(&mut self, from: u32) -> Option<(u32, Mapping)> {
        let end = u32::try_from(self.chunks.len() * CHUNK).unwrap_or(u32::MAX);
        (from..end).find_map(|handle| Some((handle, self.get(handle).ok()?)))
    }
}
