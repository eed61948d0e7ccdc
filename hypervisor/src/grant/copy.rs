// SPDX-License-Identifier: MIT OR Apache-2.0
//! Copying between pages of two domains, without mapping them.
//!
//! Each side is a page of the caller or a grant of anybody. A granted page is held by a reference for the time of the
//! copy, and a page of the caller cannot leave it before its hypercall is over ([`Buffers::own_ram`]), so neither can
//! become somebody else's memory in the middle; what their owners write meanwhile is their own affair.
//!
//! The granters' locks are held while the bytes move: a batch is bounded, and it saves counting.
//! A grant that the next element names again stays held between the two. A call with a single element
//! and a single grant, which is what most are, needs none of that and goes straight through.

use arrayvec::ArrayVec;
use guest_abi::grant_table::{self as abi, CopyPtr, GrantCopy};
use guest_abi::num::low_u32;
use guest_abi::{DomId, Gfn, GrantRef, PAGE_SIZE};

use super::ops::Buffers;
use super::table::{Locked, lock_both};
use super::{Access, BATCH, Memory, Parties, Party, Refusal, with_party};
use crate::addr::Mfn;
use crate::frame::FrameRef;

/// Who grants the two sides of a copy; `None` is the caller's own page.
type Granters = [Option<DomId>; 2];

fn granters(op: &GrantCopy) -> Granters {
    let of = |side: &CopyPtr, flag: u16| (op.flags & flag != 0).then(|| DomId::new(side.domid));
    [of(&op.source, abi::GNTCOPY_SOURCE_GREF), of(&op.dest, abi::GNTCOPY_DEST_GREF)]
}

/// Copies at most [`BATCH`] pieces in the order given; every element gets a status.
///
/// # Panics
/// If there are more elements: the caller cuts the guest's array.
#[inline]
pub fn copy<P: Parties>(me: Party<'_, P::Memory>, buffers: &mut impl Buffers, ops: &mut [GrantCopy], parties: &P) {
    if let [op] = ops
        && let Some(granted) = single_grant(op)
    {
        op.status = status(copy_single(me, buffers, op, granted, parties));
    } else {
        copy_list(me, buffers, ops, parties);
    }
}

#[inline(never)]
fn copy_list<P: Parties>(me: Party<'_, P::Memory>, buffers: &mut impl Buffers, ops: &mut [GrantCopy], parties: &P) {
    assert!(ops.len() <= BATCH);
    for group in ops.chunk_by_mut(|a, b| granters(a) == granters(b)) {
        let [from, to] = granters(&group[0]);
        let done = with_party(me, from.unwrap_or(DomId::SELF), parties, |source| {
            with_party(me, to.unwrap_or(DomId::SELF), parties, |dest| {
                let mut copier = Copier::new(me, [from.map(|_| source), to.map(|_| dest)]);
                for op in &mut *group {
                    op.status = status(copier.copy_one(buffers, op));
                }
                copier.end();
            })
        });
        if done.flatten().is_none() {
            group.iter_mut().for_each(|op| op.status = Refusal::BadDomain.status());
        }
    }
}

fn status(result: Result<(), Refusal>) -> i16 {
    result.map_or_else(Refusal::status, |()| abi::GNTST_OKAY)
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
    buffers: &mut impl Buffers,
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
        let source = if granted == Side::Dest { Some(own_page(me, buffers, own)?) } else { None };
        let mut table = peer.table.lock();
        let gfn = table.pin(reference, me.table.domain(), granted.access())?;
        let copied = peer.memory.pin(gfn).and_then(|page| {
            match source {
                Some(source) => me.table.mem().copy((page.mfn(), to), (source, from), len),
                None => me.table.mem().copy((own_page(me, buffers, own)?, to), (page.mfn(), from), len),
            }
            table.uses.of(me.table.domain()).copy(1, len as u64);
            Ok(())
        });
        table.settle(reference);
        copied
    })
    .unwrap_or(Err(Refusal::BadDomain))
}

/// The page of a side that is no grant, which must name the caller.
#[inline]
fn own_page<M>(me: Party<'_, M>, buffers: &mut impl Buffers, side: &CopyPtr) -> Result<Mfn, Refusal> {
    let domain = DomId::new(side.domid);
    if domain != DomId::SELF && domain != me.table.domain() {
        return Err(Refusal::Denied);
    }
    buffers.own_ram(Gfn::new(side.frame)).ok_or(Refusal::BadPage)
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

/// A side of a copy, as an index.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Dest,
}

impl Side {
    /// What is done with the side.
    const fn access(self) -> Access {
        match self {
            Self::Source => Access::Read,
            Self::Dest => Access::Write,
        }
    }
}

/// Who grants the pages of one side.
struct Granter<'a, M> {
    party: Party<'a, M>,
    /// The place of its table.
    table: usize,
    /// The page that is held for the next element too: lists often name one page many times.
    held: Option<(GrantRef, FrameRef)>,
}

/// A run of copies whose sides have the same granters.
struct Copier<'a, M> {
    me: Party<'a, M>,
    /// Nobody for the caller's own pages.
    granters: [Option<Granter<'a, M>>; 2],
    /// The granters' tables, locked.
    tables: ArrayVec<Locked<'a>, 2>,
    copies: u64,
    copied_bytes: u64,
}

impl<'a, M: Memory> Copier<'a, M> {
    fn new(me: Party<'a, M>, [source, dest]: [Option<Party<'a, M>>; 2]) -> Self {
        let mut tables = ArrayVec::new();
        if let (Some(source), Some(dest)) = (source, dest) {
            let (first, second) = lock_both(source.table, dest.table);
            tables.push(first);
            tables.extend(second);
        } else {
            tables.extend(source.or(dest).map(|one| one.table.lock()));
        }
        let granter = |party: Option<Party<'a, M>>, table| party.map(|party| Granter { party, table, held: None });
        let granters = [granter(source, 0), granter(dest, tables.len().saturating_sub(1))];
        Self { me, granters, tables, copies: 0, copied_bytes: 0 }
    }

    #[inline]
    fn copy_one(&mut self, buffers: &mut impl Buffers, op: &GrantCopy) -> Result<(), Refusal> {
        if op.flags & !(abi::GNTCOPY_SOURCE_GREF | abi::GNTCOPY_DEST_GREF) != 0 {
            return Err(Refusal::General);
        }
        let Range { from, to, len } = Range::of(op)?;
        let read = self.page(buffers, Side::Source, &op.source)?;
        let write = self.page(buffers, Side::Dest, &op.dest)?;
        self.me.table.mem().copy((write, to), (read, from), len);
        self.copies += 1;
        self.copied_bytes += len as u64;
        Ok(())
    }

    /// Lets go of both pages, and counts.
    fn end(&mut self) {
        self.leave(Side::Source);
        self.leave(Side::Dest);
        for granter in self.granters.iter().flatten() {
            self.tables[granter.table].uses.of(self.me.table.domain()).copy(self.copies, self.copied_bytes);
        }
    }

    /// The page that one side names, taken hold of if it is a grant.
    #[inline(always)]
    fn page(&mut self, buffers: &mut impl Buffers, side: Side, named: &CopyPtr) -> Result<Mfn, Refusal> {
        let Some(granter) = &self.granters[side as usize] else { return own_page(self.me, buffers, named) };
        let reference = GrantRef::new(low_u32(named.frame));
        match &granter.held {
            Some((held, page)) if *held == reference => Ok(page.mfn()),
            _ => self.take(side, reference),
        }
    }

    /// Takes hold of another page.
    #[inline(never)]
    fn take(&mut self, side: Side, reference: GrantRef) -> Result<Mfn, Refusal> {
        self.leave(side);
        let Some(granter) = &mut self.granters[side as usize] else { return Err(Refusal::General) };
        let gfn = self.tables[granter.table].pin(reference, self.me.table.domain(), side.access())?;
        match granter.party.memory.pin(gfn) {
            Ok(page) => Ok(granter.held.insert((reference, page)).1.mfn()),
            Err(refusal) => {
                self.settle(side, reference);
                Err(refusal)
            }
        }
    }

    /// Lets go of the page that one side holds.
    fn leave(&mut self, side: Side) {
        if let Some((reference, page)) = self.granters[side as usize].as_mut().and_then(|granter| granter.held.take()) {
            drop(page);
            self.settle(side, reference);
        }
    }

    /// Clears an entry's marks, unless the other side still needs them; it clears them then.
    fn settle(&mut self, side: Side, reference: GrantRef) {
        let Some(granter) = &self.granters[side as usize] else { return };
        let is_held = |other: &Granter<'_, M>| {
            other.table == granter.table && other.held.as_ref().is_some_and(|(held, _)| *held == reference)
        };
        if !self.granters.iter().flatten().any(is_held) {
            self.tables[granter.table].settle(reference);
        }
    }
}
