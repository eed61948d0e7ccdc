// SPDX-License-Identifier: MIT OR Apache-2.0
//! Copying between pages of two domains, without mapping them.
//!
//! Each side is a page of the caller or a grant of anybody. Both pages are held by references for
//! the time of the copy, so neither can become somebody else's memory in the middle; what their
//! owners write meanwhile is their own affair.
//!
//! The granters' locks are held while the bytes move: a batch is bounded, and it saves counting.

use guest_abi::grant_table::{self as abi, CopyPtr, GrantCopy};
use guest_abi::num::low_u32;
use guest_abi::{DomId, Gfn, GrantRef, PAGE_SIZE};

use super::table::{GrantTable, Inner, Locked, lock_both};
use super::{Access, BATCH, Memory, Parties, Party, Refusal, with_party};
use crate::frame::FrameRef;

/// Who grants the two sides of a copy; `None` is the caller's own page.
type Granters = (Option<DomId>, Option<DomId>);

fn granters(op: &GrantCopy) -> Granters {
    let of = |side: &CopyPtr, flag: u16| (op.flags & flag != 0).then(|| DomId::new(side.domid));
    (of(&op.source, abi::GNTCOPY_SOURCE_GREF), of(&op.dest, abi::GNTCOPY_DEST_GREF))
}

/// Copies at most [`BATCH`] pieces in the order given; every element gets a status.
///
/// # Panics
/// If there are more elements: the caller cuts the guest's array.
pub fn copy<P: Parties>(me: Party<'_, P::Memory>, ops: &mut [GrantCopy], parties: &P) {
    assert!(ops.len() <= BATCH);
    for group in ops.chunk_by_mut(|a, b| granters(a) == granters(b)) {
        let (from, to) = granters(&group[0]);
        let done = with_party(me, from.unwrap_or(DomId::SELF), parties, |source| {
            with_party(me, to.unwrap_or(DomId::SELF), parties, |dest| {
                let mut sides = Sides::lock((from, source), (to, dest));
                for op in &mut *group {
                    op.status = match copy_one(&mut sides, me, (source, dest), op) {
                        Ok(()) => abi::GNTST_OKAY,
                        Err(refusal) => refusal.status(),
                    };
                }
            })
        });
        if done.flatten().is_none() {
            group.iter_mut().for_each(|op| op.status = Refusal::BadDomain.status());
        }
    }
}

/// The granters' tables, locked; without a table a side is the caller's own page.
enum Sides<'a> {
    Own,
    Source(Locked<'a>),
    Dest(Locked<'a>),
    Same(Locked<'a>),
    Both(Locked<'a>, Locked<'a>),
}

impl<'a> Sides<'a> {
    fn lock<M>(from: (Option<DomId>, Party<'a, M>), to: (Option<DomId>, Party<'a, M>)) -> Self {
        let (source, dest): (&GrantTable, &GrantTable) = (from.1.table, to.1.table);
        match (from.0, to.0) {
            (None, None) => Self::Own,
            (Some(_), None) => Self::Source(source.lock()),
            (None, Some(_)) => Self::Dest(dest.lock()),
            (Some(_), Some(_)) => match lock_both(source, dest) {
                (one, None) => Self::Same(one),
                (source, Some(dest)) => Self::Both(source, dest),
            },
        }
    }

    fn source(&mut self) -> Option<&mut Inner> {
        match self {
            Self::Source(table) | Self::Same(table) | Self::Both(table, _) => Some(table),
            Self::Own | Self::Dest(_) => None,
        }
    }

    fn dest(&mut self) -> Option<&mut Inner> {
        match self {
            Self::Dest(table) | Self::Same(table) | Self::Both(_, table) => Some(table),
            Self::Own | Self::Source(_) => None,
        }
    }
}

fn copy_one<M: Memory>(
    sides: &mut Sides<'_>,
    me: Party<'_, M>,
    (source, dest): (Party<'_, M>, Party<'_, M>),
    op: &GrantCopy,
) -> Result<(), Refusal> {
    if op.flags & !(abi::GNTCOPY_SOURCE_GREF | abi::GNTCOPY_DEST_GREF) != 0 {
        return Err(Refusal::General);
    }
    let len = usize::from(op.len);
    let (from, to) = (usize::from(op.source.offset), usize::from(op.dest.offset));
    if from + len > PAGE_SIZE || to + len > PAGE_SIZE {
        return Err(Refusal::BadCopy);
    }
    let read = take(sides.source(), me, source, &op.source, Access::Read)?;
    let copied = take(sides.dest(), me, dest, &op.dest, Access::Write).map(|write| {
        me.table.mem().copy((write.mfn(), to), (read.mfn(), from), len);
        drop(write);
        leave(sides.dest(), &op.dest);
    });
    drop(read);
    leave(sides.source(), &op.source);
    copied
}

/// Takes hold of one side: an entry of `table` with its page, or the caller's own page.
fn take<M: Memory>(
    table: Option<&mut Inner>,
    me: Party<'_, M>,
    owner: Party<'_, M>,
    side: &CopyPtr,
    access: Access,
) -> Result<FrameRef, Refusal> {
    let Some(table) = table else {
        let domain = DomId::new(side.domid);
        if domain != DomId::SELF && domain != me.table.domain() {
            return Err(Refusal::Denied);
        }
        return me.memory.pin(Gfn::new(side.frame));
    };
    let reference = GrantRef::new(low_u32(side.frame));
    let gfn = table.pin(reference, me.table.domain(), access)?;
    owner.memory.pin(gfn).inspect_err(|_| table.settle(reference))
}

/// Ends the use of an entry.
fn leave(table: Option<&mut Inner>, side: &CopyPtr) {
    if let Some(table) = table {
        table.settle(GrantRef::new(low_u32(side.frame)));
    }
}
