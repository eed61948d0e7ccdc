// SPDX-License-Identifier: MIT OR Apache-2.0
//! Mapping granted pages, and unmapping them.
//!
//! Mapping is: check everything, pin the entry, take the frame, change the p2m, count. Each step
//! that can fail comes before the first that cannot be undone.
//!
//! Unmapping is in three parts. First, under the mapper's lock, each handle is checked and made
//! dead and its page leaves the p2m. Then, without any lock, one flush makes the pages unreachable
//! on every CPU. Then, under both locks, the granter's counts go down, its entries lose their
//! marks, and the handles become free. A granter that sees the mark vanish can be sure that nobody
//! writes to its page any more.

use arrayvec::ArrayVec;
use guest_abi::grant_table::{self as abi, MapGrantRef, UnmapGrantRef};
use guest_abi::{DomId, Gfn, Gpa, GrantRef};

use super::table::{GrantTable, Inner, Locked, lock_both};
use super::track::Mapping;
use super::{Access, BATCH, Memory, Parties, Party, Refusal, with_party};
use crate::p2m::UnmappedBatch;
use crate::progress::Progress;

/// The mapper's table and the granter's, locked; they may be one.
struct Pair<'a> {
    mine: Locked<'a>,
    theirs: Option<Locked<'a>>,
}

impl<'a> Pair<'a> {
    fn lock(mine: &'a GrantTable, theirs: &'a GrantTable) -> Self {
        let (mine, theirs) = lock_both(mine, theirs);
        Self { mine, theirs }
    }

    fn granter(&mut self) -> &mut Inner {
        self.theirs.as_mut().unwrap_or(&mut self.mine)
    }
}

/// Maps at most [`BATCH`] grants; every element gets a status, and a handle if it was mapped.
///
/// # Panics
/// If there are more elements: the caller cuts the guest's array.
pub fn map<P: Parties>(me: Party<'_, P::Memory>, ops: &mut [MapGrantRef], parties: &P) {
    assert!(ops.len() <= BATCH);
    for group in ops.chunk_by_mut(|a, b| a.dom == b.dom) {
        let granter = DomId::new(group[0].dom);
        let found = with_party(me, granter, parties, |peer| map_group(me, peer, group));
        if found.is_none() {
            group.iter_mut().for_each(|op| op.refuse(Refusal::BadDomain));
        }
    }
}

fn map_group<M: Memory>(me: Party<'_, M>, peer: Party<'_, M>, group: &mut [MapGrantRef]) {
    let mut pair = Pair::lock(me.table, peer.table);
    for op in group {
        match map_one(&mut pair, me, peer, op) {
            Ok(handle) => {
                op.status = abi::GNTST_OKAY;
                op.handle = handle;
                op.dev_bus_addr = 0;
            }
            Err(refusal) => op.refuse(refusal),
        }
    }
}

fn map_one<M: Memory>(
    pair: &mut Pair<'_>,
    me: Party<'_, M>,
    peer: Party<'_, M>,
    op: &MapGrantRef,
) -> Result<u32, Refusal> {
    let access = requested_access(op.flags)?;
    let gfn = page_of(op.host_addr)?;
    let reference = GrantRef::new(op.reference);
    if pair.mine.is_dying {
        return Err(Refusal::General);
    }
    if !pair.granter().can_count(reference, access) {
        return Err(if pair.granter().is_dying { Refusal::BadDomain } else { pair.missing(reference) });
    }
    pair.mine.tracks.ensure_room()?;
    let granted = pair.granter().pin(reference, me.table.domain(), access)?;
    let mapped = peer.memory.pin(granted).and_then(|frame| {
        let mfn = frame.mfn();
        me.memory.map_grant(gfn, frame, access).map(|()| mfn)
    });
    match mapped {
        Ok(mfn) => {
            pair.granter().count(reference, me.table.domain(), access);
            let (granter, incarnation) = (peer.table.domain(), peer.table.incarnation());
            Ok(pair.mine.tracks.insert(Mapping { granter, incarnation, reference, gfn, mfn, access }))
        }
        Err(refusal) => {
            pair.granter().settle(reference);
            Err(refusal)
        }
    }
}

impl Pair<'_> {
    /// Why an entry cannot be counted: it does not exist, or it has too many users.
    fn missing(&mut self, reference: GrantRef) -> Refusal {
        if self.granter().exists(reference) { Refusal::NoSpace } else { Refusal::BadRef }
    }
}

/// Translated domains map for the CPU and nothing else. Bits 31:16 are the guest's own.
fn requested_access(flags: u32) -> Result<Access, Refusal> {
    const OWN: u32 = 0xffff_0000;
    match flags & !OWN {
        abi::GNTMAP_HOST_MAP => Ok(Access::Write),
        both if both == abi::GNTMAP_HOST_MAP | abi::GNTMAP_READONLY => Ok(Access::Read),
        _ => Err(Refusal::General),
    }
}

fn page_of(host_addr: u64) -> Result<Gfn, Refusal> {
    let gpa = Gpa::new(host_addr);
    if gpa.page_offset() == 0 { Ok(gpa.gfn()) } else { Err(Refusal::BadAddress) }
}

trait Refuse {
    fn refuse(&mut self, refusal: Refusal);
}

impl Refuse for MapGrantRef {
    fn refuse(&mut self, refusal: Refusal) {
        self.status = refusal.status();
        self.handle = abi::INVALID_HANDLE;
    }
}

/// The handles of mappings that have left the p2m, with their granters.
type Closed = ArrayVec<(u32, DomId), BATCH>;

/// Unmaps at most [`BATCH`] grants with one flush; every element gets a status.
///
/// # Panics
/// If there are more elements: the caller cuts the guest's array.
pub fn unmap<P: Parties>(me: Party<'_, P::Memory>, ops: &mut [UnmapGrantRef], parties: &P) {
    assert!(ops.len() <= BATCH);
    let mut closed = Closed::new();
    let mut removed = UnmappedBatch::new();
    {
        let mut mine = me.table.lock();
        for op in ops {
            op.status = match checked_mapping(&mut mine, op) {
                Ok(mapping) => {
                    me.memory.unmap_grant(mapping.gfn, mapping.mfn, &mut removed);
                    mine.tracks.close(op.handle, mapping);
                    closed.push((op.handle, mapping.granter));
                    abi::GNTST_OKAY
                }
                Err(refusal) => refusal.status(),
            };
        }
    }
    parties.flush(me.memory, &mut removed);
    settle_closed(me, &closed, parties);
}

fn checked_mapping(mine: &mut Inner, op: &UnmapGrantRef) -> Result<Mapping, Refusal> {
    let mapping = mine.tracks.get(op.handle)?;
    if op.dev_bus_addr != 0 {
        return Err(Refusal::BadBusAddress);
    }
    if page_of(op.host_addr)? != mapping.gfn {
        return Err(Refusal::BadAddress);
    }
    Ok(mapping)
}

/// Takes back, at the granters, what mappings held that no CPU can reach any more.
fn settle_closed<P: Parties>(me: Party<'_, P::Memory>, closed: &Closed, parties: &P) {
    for group in closed.chunk_by(|a, b| a.1 == b.1) {
        let settled = with_party(me, group[0].1, parties, |peer| {
            let mut pair = Pair::lock(me.table, peer.table);
            for (handle, _) in group {
                if let Some(mapping) = pair.mine.tracks.release(*handle)
                    && mapping.incarnation == peer.table.incarnation()
                {
                    pair.granter().uncount(mapping.reference, me.table.domain(), mapping.access);
                }
            }
        });
        if settled.is_none() {
            let mut mine = me.table.lock();
            for (handle, _) in group {
                // Its granter is gone, and with it what would have to be told.
                let _ = mine.tracks.release(*handle);
            }
        }
    }
}

/// Ends the granting and mapping of a domain that dies, and unmaps what it has mapped, a batch in each call. What others
/// have mapped of it stays.
pub fn unmap_all<P: Parties>(me: Party<'_, P::Memory>, parties: &P) -> Progress {
    let mut closed = Closed::new();
    let mut removed = UnmappedBatch::new();
    let progress = {
        let mut mine = me.table.lock();
        mine.is_dying = true;
        let mut from = 0;
        loop {
            let Some((handle, mapping)) = mine.tracks.next_mapped(from) else { break Progress::Done };
            if closed.is_full() {
                break Progress::Again;
            }
            me.memory.unmap_grant(mapping.gfn, mapping.mfn, &mut removed);
            mine.tracks.close(handle, mapping);
            closed.push((handle, mapping.granter));
            from = handle + 1;
        }
    };
    parties.flush(me.memory, &mut removed);
    settle_closed(me, &closed, parties);
    progress
}
