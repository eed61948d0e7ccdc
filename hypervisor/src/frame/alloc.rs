// SPDX-License-Identifier: MIT OR Apache-2.0
//! The buddy allocator: free blocks of 1 to 2^18 frames, in lists linked through the records.
//!
//! A free block is as large as its free neighbourhood allows: two buddies never stay apart, so
//! that 1 GiB stays whole as long as possible. Each order has two lists, of blocks known to be
//! zero and of others; a merge of the two kinds is of the other kind, and the mark on each single
//! frame says what is left to clean in it. A request takes the smallest block that serves it, and
//! among blocks of that size one of the kind that it prefers.
//!
//! The lists hold no memory of their own. Only the first record of a free block says so (`head`)
//! and holds links; the other records of the block say `Free` and are not looked at.

use super::counts::{FrameRecord, State};
use super::types::FreeFrames;
use crate::addr::{Mfn, Order};
use guest_abi::num::{low_u32, to_usize};

const NR_ORDERS: usize = Order::GIB_1.raw() as usize + 1;
const END: u32 = u32::MAX;

/// The free lists. Everything here runs under the allocator's lock.
pub(super) struct Buddy {
    /// First block of each list, `[clean][order]`.
    heads: [[u32; NR_ORDERS]; 2],
    /// Which lists are not empty: a bit for each order.
    occupied: [u32; 2],
    /// Frames in each kind of list.
    frames: [u64; 2],
    /// How far the scrubber has come in the block it works on.
    pub(super) cursor: Option<Cursor>,
}

/// A free block that is being cleaned: everything in front of `next` is zero.
#[derive(Clone, Copy)]
pub(super) struct Cursor {
    pub(super) first: Mfn,
    pub(super) order: Order,
    pub(super) next: u64,
}

impl Buddy {
    pub(super) const fn new() -> Self {
        Self { heads: [[END; NR_ORDERS]; 2], occupied: [0; 2], frames: [0; 2], cursor: None }
    }

    pub(super) const fn free(&self) -> FreeFrames {
        FreeFrames { total: self.frames[0] + self.frames[1], clean: self.frames[1] }
    }

    /// Gives back a dirty block whose records the caller has to himself, joining it with its
    /// buddies.
    pub(super) fn insert(&mut self, records: &[FrameRecord], first: Mfn, order: Order) {
        let (mut first, mut order) = (first.raw(), order);
        while let Some(larger) = Order::new(order.raw() + 1) {
            let buddy = first ^ order.frames();
            let Some(record) = records.get(to_usize(buddy)) else { break };
            let state = record.state();
            if state.head_order() != Some(order) {
                break;
            }
            self.unlink(records, Mfn::new(buddy), order, state.is_in_clean_list());
            first &= !order.frames();
            order = larger;
        }
        self.link(records, Mfn::new(first), order, false);
    }

    /// Takes a block of exactly this order out of the lists, splitting a larger one if need be.
    /// Its records say `Free`, and each whether its frame is clean.
    pub(super) fn take(&mut self, records: &[FrameRecord], order: Order, prefer_clean: bool) -> Option<Mfn> {
        let suitable = (self.occupied[0] | self.occupied[1]) >> order.raw() << order.raw();
        let mut have = Order::new(u8::try_from(suitable.trailing_zeros()).ok()?)?;
        let preferred = usize::from(prefer_clean);
        let list = if self.occupied[preferred] >> have.raw() & 1 == 1 { preferred } else { 1 - preferred };
        let is_clean = list == 1;
        let first = Mfn::new(u64::from(self.heads[list][usize::from(have.raw())]));
        self.unlink(records, first, have, is_clean);
        while have > order {
            have = Order::new(have.raw() - 1)?;
            self.link(records, first.offset(have.frames()), have, is_clean);
        }
        Some(first)
    }

    /// A block that is not known to be clean, if there is one.
    pub(super) fn first_dirty(&self) -> Option<(Mfn, Order)> {
        let order = Order::new(u8::try_from(self.occupied[0].trailing_zeros()).ok()?)?;
        Some((Mfn::new(u64::from(self.heads[0][usize::from(order.raw())])), order))
    }

    /// Moves a block whose frames have all been cleaned to the clean lists.
    pub(super) fn now_clean(&mut self, records: &[FrameRecord], first: Mfn, order: Order) {
        self.unlink(records, first, order, false);
        self.link(records, first, order, true);
    }

    fn link(&mut self, records: &[FrameRecord], first: Mfn, order: Order, is_clean: bool) {
        let (list, row) = (usize::from(is_clean), usize::from(order.raw()));
        let record = &records[first.index()];
        let index = low_u32(first.raw());
        let next = self.heads[list][row];
        record.set_state(record.state().head(order, is_clean));
        record.set_links(END, next);
        if next != END {
            let neighbour = &records[next as usize];
            neighbour.set_links(index, neighbour.links().1);
        }
        self.heads[list][row] = index;
        self.occupied[list] |= 1 << row;
        self.frames[list] += order.frames();
    }

    fn unlink(&mut self, records: &[FrameRecord], first: Mfn, order: Order, is_clean: bool) {
        let (list, row) = (usize::from(is_clean), usize::from(order.raw()));
        let record = &records[first.index()];
        let (previous, next) = record.links();
        if next != END {
            let neighbour = &records[next as usize];
            neighbour.set_links(previous, neighbour.links().1);
        }
        if previous == END {
            self.heads[list][row] = next;
            if next == END {
                self.occupied[list] &= !(1 << row);
            }
        } else {
            let neighbour = &records[previous as usize];
            neighbour.set_links(neighbour.links().0, next);
        }
        record.set_state(record.state().not_head());
        self.frames[list] -= order.frames();
        // A block that leaves its list may come back under the same head with other contents.
        if self.cursor.is_some_and(|cursor| cursor.first == first) {
            self.cursor = None;
        }
    }
}

/// Cuts `[first, first + count)` into the largest aligned blocks, in rising order of address.
pub(crate) fn aligned_blocks(first: Mfn, count: u64) -> impl Iterator<Item = (Mfn, Order)> {
    let (mut at, mut left) = (first.raw(), count);
    core::iter::from_fn(move || {
        let by_size = left.checked_ilog2()?;
        let by_place = at.trailing_zeros();
        let order = by_size.min(by_place).min(u32::from(Order::GIB_1.raw()));
        let order = Order::new(u8::try_from(order).ok()?)?;
        let block = Mfn::new(at);
        at += order.frames();
        left -= order.frames();
        Some((block, order))
    })
}

impl State {
    /// Whether the frame is in the allocator's hands, in a list or about to be.
    pub(super) const fn is_free(self) -> bool {
        matches!(self.kind(), super::types::FrameType::Free)
    }
}

#[cfg(test)]
mod check;
