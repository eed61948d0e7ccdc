// SPDX-License-Identifier: MIT OR Apache-2.0
//! Copying between pages of two domains, without mapping them.
//!
//! Each side is a page of the caller or a grant of anybody. Both pages are held by references for
//! the time of the copy, so neither can become somebody else's memory in the middle; what their
//! owners write meanwhile is their own affair.
//!
//! The granters' locks are held while the bytes move: a batch is bounded, and it saves counting.
//! A page that the next element names again stays held between the two. A call with a single element
//! and a single grant, which is what most are, needs none of that and goes straight through.

use guest_abi::grant_table::{self as abi, CopyPtr, GrantCopy};
use guest_abi::num::low_u32;
use guest_abi::{DomId, Gfn, GrantRef, PAGE_SIZE};

use super::table::{GrantTable, Inner, Locked, lock_both};
use super::{Access, BATCH, Memory, Parties, Party, Refusal, with_party};
use crate::addr::Mfn;
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
    if let [op] = ops
        && let Some(granted) = single_grant(op)
    {
        op.status = copy_single(me, op, granted, parties).map_or_else(Refusal::status, |()| abi::GNTST_OKAY);
        return;
    }
    for group in ops.chunk_by_mut(|a, b| granters(a) == granters(b)) {
        let (from, to) = granters(&group[0]);
        let done = with_party(me, from.unwrap_or(DomId::SELF), parties, |source| {
            with_party(me, to.unwrap_or(DomId::SELF), parties, |dest| {
                let tables = Tables::lock((from, source.table), (to, dest.table));
                Copier { me, owners: [source, dest], tables, held: [None, None] }.copy_all(group);
            })
        });
        if done.flatten().is_none() {
            group.iter_mut().for_each(|op| op.status = Refusal::BadDomain.status());
        }
    }
}

/// The side that is granted, if it is one.
const fn single_grant(op: &GrantCopy) -> Option<Side> {
    match op.flags {
        abi::GNTCOPY_SOURCE_GREF => Some(Side::Source),
        abi::GNTCOPY_DEST_GREF => Some(Side::Dest),
        _ => None,
    }
}

/// One copy between a grant and an own page. As in a list, the source is looked at first.
#[inline]
fn copy_single<P: Parties>(
    me: Party<'_, P::Memory>,
    op: &GrantCopy,
    granted: Side,
    parties: &P,
) -> Result<(), Refusal> {
    let (theirs, own) = match granted {
        Side::Source => (&op.source, &op.dest),
        Side::Dest => (&op.dest, &op.source),
    };
    let reference = GrantRef::new(low_u32(theirs.frame));
    with_party(me, DomId::new(theirs.domid), parties, |peer| {
        let Range { from, to, len } = Range::of(op)?;
        let own_page = || me.owns(own).and_then(|()| me.memory.pin(Gfn::new(own.frame)));
        let source = if granted == Side::Dest { Some(own_page()?) } else { None };
        let mut table = peer.table.lock();
        let gfn = table.pin(reference, me.table.domain(), granted.access())?;
        let copied = peer.memory.pin(gfn).and_then(|page| {
            match source {
                Some(source) => me.table.mem().copy((page.mfn(), to), (source.mfn(), from), len),
                None => me.table.mem().copy((own_page()?.mfn(), to), (page.mfn(), from), len),
            }
            table.count_copy(len);
            Ok(())
        });
        table.settle(reference);
        copied
    })
    .unwrap_or(Err(Refusal::BadDomain))
}

/// Bytes of two pages.
struct Range {
    from: usize,
    to: usize,
    len: usize,
}

impl Range {
    /// Checks that a copy stays in its pages.
    #[inline]
    fn of(op: &GrantCopy) -> Result<Self, Refusal> {
        let range = Self { from: op.source.offset.into(), to: op.dest.offset.into(), len: op.len.into() };
        if range.from + range.len > PAGE_SIZE || range.to + range.len > PAGE_SIZE {
            return Err(Refusal::BadCopy);
        }
        Ok(range)
    }
}

impl<M> Party<'_, M> {
    /// Checks that a side which is no grant names the caller.
    fn owns(&self, side: &CopyPtr) -> Result<(), Refusal> {
        let domain = DomId::new(side.domid);
        if domain == DomId::SELF || domain == self.table.domain() { Ok(()) } else { Err(Refusal::Denied) }
    }
}

/// The granters' tables, locked; without a table a side is the caller's own page.
enum Tables<'a> {
    None,
    Source(Locked<'a>),
    Dest(Locked<'a>),
    Same(Locked<'a>),
    Both(Locked<'a>, Locked<'a>),
}

/// A side of a copy, as an index.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Dest,
}

impl Side {
    const fn other(self) -> Self {
        match self {
            Self::Source => Self::Dest,
            Self::Dest => Self::Source,
        }
    }

    /// What is done with the side.
    const fn access(self) -> Access {
        match self {
            Self::Source => Access::Read,
            Self::Dest => Access::Write,
        }
    }
}

impl<'a> Tables<'a> {
    fn lock(from: (Option<DomId>, &'a GrantTable), to: (Option<DomId>, &'a GrantTable)) -> Self {
        match (from.0, to.0) {
            (None, None) => Self::None,
            (Some(_), None) => Self::Source(from.1.lock()),
            (None, Some(_)) => Self::Dest(to.1.lock()),
            (Some(_), Some(_)) => match lock_both(from.1, to.1) {
                (one, None) => Self::Same(one),
                (source, Some(dest)) => Self::Both(source, dest),
            },
        }
    }

    fn get(&mut self, side: Side) -> Option<&mut Inner> {
        match (self, side) {
            (Self::Source(table) | Self::Same(table) | Self::Both(table, _), Side::Source)
            | (Self::Dest(table) | Self::Same(table) | Self::Both(_, table), Side::Dest) => Some(table),
            _ => None,
        }
    }
}

/// A page that is held for the next element too: lists often name one page many times.
struct Held {
    /// The grant reference, or the caller's own guest frame.
    key: u64,
    page: FrameRef,
}

/// A run of copies whose sides have the same granters.
struct Copier<'a, 'm, M> {
    me: Party<'m, M>,
    owners: [Party<'m, M>; 2],
    tables: Tables<'a>,
    held: [Option<Held>; 2],
}

impl<M: Memory> Copier<'_, '_, M> {
    fn copy_all(mut self, ops: &mut [GrantCopy]) {
        for op in ops {
            op.status = match self.copy_one(op) {
                Ok(()) => abi::GNTST_OKAY,
                Err(refusal) => refusal.status(),
            };
        }
        self.leave(Side::Source);
        self.leave(Side::Dest);
    }

    #[inline]
    fn copy_one(&mut self, op: &GrantCopy) -> Result<(), Refusal> {
        if op.flags & !(abi::GNTCOPY_SOURCE_GREF | abi::GNTCOPY_DEST_GREF) != 0 {
            return Err(Refusal::General);
        }
        let Range { from, to, len } = Range::of(op)?;
        let read = self.hold(Side::Source, &op.source)?;
        let write = self.hold(Side::Dest, &op.dest)?;
        self.me.table.mem().copy((write, to), (read, from), len);
        for side in [Side::Source, Side::Dest] {
            self.tables.get(side).into_iter().for_each(|table| table.count_copy(len));
        }
        Ok(())
    }

    /// Takes hold of the page that one side names, unless it is held already.
    #[inline]
    fn hold(&mut self, side: Side, named: &CopyPtr) -> Result<Mfn, Refusal> {
        let is_granted = self.tables.get(side).is_some();
        if !is_granted {
            self.me.owns(named)?;
        }
        let key = if is_granted { u64::from(low_u32(named.frame)) } else { named.frame };
        if let Some(held) = &self.held[side as usize]
            && held.key == key
        {
            return Ok(held.page.mfn());
        }
        self.leave(side);
        let page = self.take(side, key)?;
        let mfn = page.mfn();
        self.held[side as usize] = Some(Held { key, page });
        Ok(mfn)
    }

    fn take(&mut self, side: Side, key: u64) -> Result<FrameRef, Refusal> {
        let Some(table) = self.tables.get(side) else { return self.me.memory.pin(Gfn::new(key)) };
        let gfn = table.pin(GrantRef::new(low_u32(key)), self.me.table.domain(), side.access())?;
        self.owners[side as usize].memory.pin(gfn).inspect_err(|_| self.settle(side, key))
    }

    /// Lets go of the page that one side holds.
    fn leave(&mut self, side: Side) {
        if let Some(Held { key, page }) = self.held[side as usize].take() {
            drop(page);
            self.settle(side, key);
        }
    }

    /// Clears an entry's marks, unless the other side still needs them; it clears them then.
    fn settle(&mut self, side: Side, key: u64) {
        let is_needed = matches!(self.tables, Tables::Same(_))
            && self.held[side.other() as usize].as_ref().is_some_and(|other| other.key == key);
        if let Some(table) = self.tables.get(side)
            && !is_needed
        {
            table.settle(GrantRef::new(low_u32(key)));
        }
    }
}
