// SPDX-License-Identifier: MIT OR Apache-2.0
//! The one walker over nested page tables, generic over their format.
//!
//! Readers need no lock: an entry is one word, a table page stays in place until its whole p2m is
//! freed, and splitting a leaf fills the new table before it is linked. Writers hold the p2m's lock.

use core::sync::atomic::{AtomicU64, Ordering};

use guest_abi::Gfn;
use guest_abi::num::to_usize;

use super::entry::{Entry, P2mKind, PteFormat, level_order};
use super::{Leaf, P2mError};
use crate::addr::{Mfn, Order};
use crate::mem::{PhysMem, WORDS_PER_FRAME};

/// The level of the root table.
pub(super) const ROOT_LEVEL: u8 = 3;
/// Guest frame numbers end here: four levels translate 48 bits of address.
pub(super) const GFN_END: u64 = 1 << 36;

const fn index(gfn: Gfn, level: u8) -> usize {
    to_usize(gfn.raw() >> (9 * level)) % WORDS_PER_FRAME
}

/// Finds what is mapped at `gfn`.
#[inline]
pub(super) fn lookup<F: PteFormat>(mem: PhysMem, root: Mfn, gfn: Gfn) -> Option<Leaf> {
    find::<F, _>(mem, root, gfn, |mfn, kind, order| Some(Leaf { mfn, kind, order }))
}

/// Finds the domain's own RAM at `gfn`.
#[inline]
pub(super) fn ram<F: PteFormat>(mem: PhysMem, root: Mfn, gfn: Gfn) -> Option<Mfn> {
    find::<F, _>(mem, root, gfn, |mfn, kind, _| (kind == P2mKind::Ram).then_some(mfn))
}

/// Walks down to what is mapped at `gfn`.
#[inline(always)]
fn find<F: PteFormat, R>(
    mem: PhysMem,
    root: Mfn,
    gfn: Gfn,
    at_leaf: impl Fn(Mfn, P2mKind, Order) -> Option<R>,
) -> Option<R> {
    if gfn.raw() >= GFN_END {
        return None;
    }
    let mut table = root;
    for level in [3, 2, 1, 0] {
        let raw = mem.word(table, index(gfn, level)).load(Ordering::Acquire);
        match F::decode(raw, level) {
            Entry::Hole => return None,
            Entry::Table(next) => table = next,
            Entry::Leaf { mfn, kind } => {
                let order = level_order(level);
                return at_leaf(mfn.offset(gfn.raw() & (order.frames() - 1)), kind, order);
            }
        }
    }
    None
}

/// Finds the entry of a single page, if the tables go down to single pages there.
#[inline]
pub(super) fn page_entry<F: PteFormat>(mem: PhysMem, root: Mfn, gfn: Gfn) -> Option<&'static AtomicU64> {
    if gfn.raw() >= GFN_END {
        return None;
    }
    let mut table = root;
    for level in [3, 2, 1] {
        let raw = mem.word(table, index(gfn, level)).load(Ordering::Acquire);
        match F::decode(raw, level) {
            Entry::Table(next) => table = next,
            Entry::Hole | Entry::Leaf { .. } => return None,
        }
    }
    Some(mem.word(table, index(gfn, 0)))
}

/// Finds the first leaf that covers a frame at or above `from`, and its first frame.
pub(super) fn next_leaf<F: PteFormat>(mem: PhysMem, root: Mfn, from: Gfn) -> Option<(Gfn, Leaf)> {
    let mut at = from.raw();
    'from_root: while at < GFN_END {
        let mut table = root;
        for level in [3, 2, 1, 0] {
            let span = 1_u64 << (9 * level);
            // Skip what is empty in this table; past its end start again from the root.
            let table_end = (at >> (9 * (level + 1)) << (9 * (level + 1))) + (span << 9);
            let entry = loop {
                let raw = mem.word(table, index(Gfn::new(at), level)).load(Ordering::Acquire);
                match F::decode(raw, level) {
                    Entry::Hole => at = (at / span + 1) * span,
                    other => break other,
                }
                if at >= table_end {
                    continue 'from_root;
                }
            };
            match entry {
                Entry::Table(next) => table = next,
                Entry::Leaf { mfn, kind } => {
                    return Some((Gfn::new(at / span * span), Leaf { mfn, kind, order: level_order(level) }));
                }
                Entry::Hole => {}
            }
        }
    }
    None
}

/// Some entries of one table, side by side.
pub(super) struct Slots {
    pub(super) words: &'static [AtomicU64],
    pub(super) level: u8,
}

impl Slots {
    /// What the entries say.
    pub(super) fn entries<F: PteFormat>(&self) -> impl Iterator<Item = Entry> {
        let level = self.level;
        self.words.iter().map(move |word| F::decode(word.load(Ordering::Relaxed), level))
    }
}

/// What a walk that changes the tables does on its way down.
pub(super) trait Descend {
    /// Answers with a new table to link where nothing is mapped.
    fn at_hole(&mut self) -> Result<Mfn, P2mError>;
    /// Answers with an empty table to fill where a larger leaf is mapped.
    fn at_leaf(&mut self) -> Result<Mfn, P2mError>;
}

/// Walks to the entries at `level` that cover the block at `gfn`, which is aligned to its order
/// and covers no more than one table.
pub(super) fn slots<F: PteFormat>(
    mem: PhysMem,
    root: Mfn,
    (gfn, order): (Gfn, Order),
    level: u8,
    on_the_way: &mut impl Descend,
) -> Result<Slots, P2mError> {
    let mut table = root;
    for at in (level + 1..=ROOT_LEVEL).rev() {
        let word = mem.word(table, index(gfn, at));
        table = match F::decode(word.load(Ordering::Relaxed), at) {
            Entry::Table(next) => next,
            Entry::Hole => {
                let new = on_the_way.at_hole()?;
                word.store(F::table(new), Ordering::Release);
                new
            }
            Entry::Leaf { mfn, kind } => {
                let new = on_the_way.at_leaf()?;
                let below = at - 1;
                for (step, entry) in (0..).zip(mem.frame(new)) {
                    let part = mfn.offset(step << (9 * below));
                    entry.store(F::leaf(part, kind, below), Ordering::Relaxed);
                }
                // The pieces translate exactly as the whole did, so no flush is needed here.
                word.store(F::table(new), Ordering::Release);
                new
            }
        };
    }
    let first = index(gfn, level);
    let count = to_usize(order.frames() >> (9 * level)).max(1);
    let words = mem.frame(table).get(first..first + count).ok_or(P2mError::Misaligned(gfn))?;
    Ok(Slots { words, level })
}

/// Calls `visit` with every table below and including `table`, lower ones first.
pub(super) fn tables<F: PteFormat>(mem: PhysMem, table: Mfn, level: u8, visit: &mut impl FnMut(Mfn)) {
    if level > 0 {
        for word in mem.frame(table) {
            if let Entry::Table(next) = F::decode(word.load(Ordering::Relaxed), level) {
                tables::<F>(mem, next, level - 1, visit);
            }
        }
    }
    visit(table);
}
