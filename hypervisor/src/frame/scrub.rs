// SPDX-License-Identifier: MIT OR Apache-2.0
//! Cleaning free memory while there is nothing better to do.
//!
//! A frame that a domain gave back still holds that domain's data. The idle loop cleans free
//! frames in small batches, so that most allocations find clean ones and need not wait; whatever
//! has not been cleaned by then is cleaned at allocation.

use super::FrameTable;
use super::alloc::Cursor;
use super::counts::State;

/// Frames that one call of [`FrameTable::scrub`] cleans at most: about 10 µs on real hardware.
pub const SCRUB_BATCH: u64 = 32;

/// Records that one call looks at at most; most of a merged block may be clean already.
const LOOK_BATCH: u64 = 1024;

impl FrameTable {
    /// Cleans up to [`SCRUB_BATCH`] free frames. Returns whether more are waiting.
    pub fn scrub(&self) -> bool {
        let mut inner = self.inner.lock();
        let cursor = match inner.buddy.cursor {
            Some(cursor) => cursor,
            None => match inner.buddy.first_dirty() {
                Some((first, order)) => Cursor { first, order, next: 0 },
                None => return false,
            },
        };
        let (mut next, mut cleaned) = (cursor.next, 0);
        let stop = (next + LOOK_BATCH).min(cursor.order.frames());
        while next < stop && cleaned < SCRUB_BATCH {
            let mfn = cursor.first.offset(next);
            let record = &self.records[mfn.index()];
            let state = record.state();
            if !state.is_clean() {
                self.mem.zero(mfn);
                record.set_state(match state.head_order() {
                    Some(order) => State::free(true).head(order, state.is_in_clean_list()),
                    None => State::free(true),
                });
                cleaned += 1;
            }
            next += 1;
        }
        if next == cursor.order.frames() {
            inner.buddy.now_clean(self.records, cursor.first, cursor.order);
        } else {
            inner.buddy.cursor = Some(Cursor { next, ..cursor });
        }
        inner.buddy.cursor.is_some() || inner.buddy.first_dirty().is_some()
    }
}
