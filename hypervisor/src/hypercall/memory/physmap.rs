// SPDX-License-Identifier: MIT OR Apache-2.0
//! Placing pages in an address space that come from elsewhere: the hypervisor's, another domain's.
//!
//! A page of another domain is mapped by right ([`foreign`], [`acquire`]). Its frame is held by a counted
//! reference in the p2m entry, so it keeps its owner and contents until the last such mapping is gone,
//! whatever the owner does meanwhile; only RAM that the owner has at that moment, and frames of its grant
//! table, can be mapped so.

use guest_abi::memory as abi;
use guest_abi::{DomId, Errno, Gfn};

use super::super::{Call, DONE, HypercallResult};
use super::{again_from, nr_done};
use crate::addr::{Mfn, Order};
use crate::domain::Domain;
use crate::frame::{FrameRef, FrameType};
use crate::p2m::{FlushSite, P2m, P2mError, P2mKind, Unmapped, UnmappedBatch};

/// Entries done before the hypercall is taken up again.
const BATCH: u64 = UnmappedBatch::CAPACITY as u64;

/// add_to_physmap: one of the hypervisor's pages, into the address space of the caller or of a domain
/// that it builds.
pub(super) fn add(call: &mut Call<'_>) -> HypercallResult {
    let argument: abi::AddToPhysmap = call.read(call.arg1())?;
    let subject = call.subject(argument.domid)?;
    let mfn = own_page(&subject, argument.space, argument.idx)?;
    let (gfn, mut replaced) = (Gfn::new(argument.gpfn), Replaced::default());
    let placed = {
        let mut p2m = subject.p2m.lock();
        make_place(&mut p2m, gfn, &mut replaced)
            .and_then(|()| Ok(p2m.map(gfn, mfn, Order::PAGE, P2mKind::Shared)?))
            .inspect_err(|error| log::debug!("{}: cannot share a page at {gfn:?}: {error:?}", subject.id))
    };
    replaced.flush(call, &subject, FlushSite::Remap);
    placed.and(DONE)
}

fn own_page(domain: &Domain, space: u32, index: u64) -> Result<Mfn, Errno> {
    match space {
        abi::XENMAPSPACE_SHARED_INFO if index == 0 => Ok(domain.shared_info),
        abi::XENMAPSPACE_SHARED_INFO => Err(Errno::EINVAL),
        abi::XENMAPSPACE_GRANT_TABLE => domain.grant_frame(index),
        _ => Err(Errno::ENOSYS),
    }
}

/// What a call has taken out of an address space and has still to flush. Usually nothing, so the batch is
/// made when it is needed.
#[derive(Default)]
struct Replaced(Option<UnmappedBatch>);

impl Replaced {
    fn push(&mut self, token: Unmapped) {
        let pushed = self.0.get_or_insert_default().push(token);
        debug_assert!(pushed.is_ok(), "a batch is as long as the list");
    }

    fn flush(self, call: &Call<'_>, domain: &Domain, site: FlushSite) {
        if let Some(batch) = self.0 {
            batch.flush(&domain.tlb, call.hv.machine, site);
        }
    }
}

/// Makes place at a guest frame: the domain's own RAM there goes back to where it came from, once what was
/// replaced is flushed. What cannot make place is EBUSY.
fn make_place(p2m: &mut P2m, gfn: Gfn, replaced: &mut Replaced) -> Result<(), Errno> {
    match p2m.lookup(gfn).map(|leaf| leaf.kind) {
        None => Ok(()),
        Some(P2mKind::Ram | P2mKind::Shared | P2mKind::ForeignRw | P2mKind::ForeignRo) => {
            replaced.push(p2m.unmap(gfn, Order::PAGE)?);
            Ok(())
        }
        Some(P2mKind::GrantRw | P2mKind::GrantRo | P2mKind::Mmio) => Err(Errno::EBUSY),
    }
}

/// Maps a frame of another domain; `take` takes the reference that the mapping holds.
fn map_frame(
    mapper: &Domain,
    gfn: Gfn,
    replaced: &mut Replaced,
    take: impl Fn() -> Result<FrameRef, Errno>,
) -> Result<(), Errno> {
    let mut p2m = mapper.p2m.lock();
    // Nearly always there is a hole, and then this is the only walk.
    match p2m.map_ref(gfn, take()?, P2mKind::ForeignRw) {
        Err(P2mError::Occupied(_)) => {
            make_place(&mut p2m, gfn, replaced)?;
            Ok(p2m.map_ref(gfn, take()?, P2mKind::ForeignRw)?)
        }
        mapped => Ok(mapped?),
    }
}

/// remove_from_physmap.
pub(super) fn remove(call: &mut Call<'_>) -> HypercallResult {
    let argument: abi::RemoveFromPhysmap = call.read(call.arg1())?;
    let subject = call.subject(argument.domid)?;
    let gfn = Gfn::new(argument.gpfn);
    let token = {
        let mut p2m = subject.p2m.lock();
        let leaf = p2m.lookup(gfn).ok_or(Errno::ENOENT)?;
        match leaf.kind {
            // Grants are ended by their own operation, which knows the handle.
            P2mKind::GrantRw | P2mKind::GrantRo | P2mKind::Mmio => return Err(Errno::EPERM),
            P2mKind::ForeignRw | P2mKind::ForeignRo => p2m.unmap_ref(gfn, leaf.mfn)?,
            P2mKind::Ram | P2mKind::Shared => p2m.unmap(gfn, Order::PAGE)?,
        }
    };
    let proof = subject.tlb.flush(call.hv.machine, FlushSite::ForeignUnmap);
    token.release(&proof);
    DONE
}

/// add_to_physmap_batch: pages of another domain into the caller's address space, with an error for each.
pub(super) fn foreign(call: &mut Call<'_>) -> HypercallResult {
    let argument: abi::AddToPhysmapBatch = call.read(call.arg1())?;
    if u32::from(argument.space) != abi::XENMAPSPACE_GMFN_FOREIGN {
        return Err(Errno::ENOSYS);
    }
    if call.resolve(argument.domid) != call.domain.id {
        return Err(Errno::EPERM);
    }
    let owner = call.other(DomId::new(argument.foreign_domid))?;
    if owner.id == call.domain.id {
        return Err(Errno::EINVAL);
    }
    if owner.life.is_dying() {
        return Err(Errno::ESRCH);
    }
    let (done, size) = (nr_done(call), u64::from(argument.size));
    let end = size.min(done.saturating_add(BATCH));
    let (mapper, mut replaced) = (call.domain, Replaced::default());
    let mut failed = None;
    for at in done..end {
        if let Err(fault) = foreign_entry(call, &argument, &owner, at, &mut replaced) {
            failed = Some(fault);
            break;
        }
    }
    replaced.flush(call, mapper, FlushSite::ForeignUnmap);
    match failed {
        Some(fault) => Err(fault),
        None if end < size => Ok(again_from(call, end)),
        None => DONE,
    }
}

/// Maps one page and writes how that went into the caller's list.
///
/// # Errors
/// If the caller's lists cannot be reached.
fn foreign_entry(
    call: &mut Call<'_>,
    argument: &abi::AddToPhysmapBatch,
    owner: &Domain,
    at: u64,
    replaced: &mut Replaced,
) -> Result<(), Errno> {
    let from: u64 = call.read(argument.idxs.wrapping_add(at * 8))?;
    let to: u64 = call.read(argument.gpfns.wrapping_add(at * 8))?;
    let status = match map_foreign(call.domain, Gfn::new(to), owner, Gfn::new(from), replaced) {
        Ok(()) => 0,
        Err(error) => -(error as i32),
    };
    call.write(argument.errs.wrapping_add(at * 4), &status)
}

fn map_foreign(mapper: &Domain, to: Gfn, owner: &Domain, from: Gfn, replaced: &mut Replaced) -> Result<(), Errno> {
    // A hole is EINVAL: Linux takes ENOENT for a page that is paged out and tries for ever.
    let leaf = owner.p2m_view.lookup(from).ok_or(Errno::EINVAL)?;
    if leaf.kind != P2mKind::Ram {
        return Err(Errno::EPERM);
    }
    // The frame table has the last word: the entry may have been removed since.
    map_frame(mapper, to, replaced, || Ok(owner.p2m_view.frames().get(leaf.mfn, owner.id)?))
}

/// acquire_resource: frames of a domain's grant table into the caller's address space, all or none.
pub(super) fn acquire(call: &mut Call<'_>) -> HypercallResult {
    let mut argument: abi::AcquireResource = call.read(call.arg1())?;
    let owner = call.other(DomId::new(argument.domid))?;
    if argument.kind != abi::XENMEM_RESOURCE_GRANT_TABLE {
        return Err(Errno::EOPNOTSUPP);
    }
    if argument.id != abi::XENMEM_RESOURCE_GRANT_TABLE_ID_SHARED || argument.pad != 0 {
        return Err(Errno::EINVAL);
    }
    let (_, limit) = owner.grants.size();
    if argument.frame_list == 0 {
        if argument.nr_frames != 0 {
            return Err(Errno::EINVAL);
        }
        argument.nr_frames = limit;
        call.write(call.arg1(), &argument)?;
        return DONE;
    }
    let count = u64::from(argument.nr_frames);
    if argument.frame.checked_add(count).is_none_or(|end| end > u64::from(limit)) {
        return Err(Errno::EINVAL);
    }
    // A grant table has few frames, so this is a bounded piece of work: two batches at most.
    let (mut mapped, mut result) = (0, Ok(()));
    while mapped < count && result.is_ok() {
        let mut replaced = Replaced::default();
        let end = count.min(mapped + BATCH);
        while mapped < end && result.is_ok() {
            result = acquire_one(call, &argument, &owner, mapped, &mut replaced);
            mapped += u64::from(result.is_ok());
        }
        replaced.flush(call, call.domain, FlushSite::ForeignUnmap);
    }
    if result.is_err() {
        take_back(call, &argument, mapped);
    }
    result.and(DONE)
}

fn acquire_one(
    call: &mut Call<'_>,
    argument: &abi::AcquireResource,
    owner: &Domain,
    at: u64,
    replaced: &mut Replaced,
) -> Result<(), Errno> {
    let gfn: u64 = call.read(argument.frame_list.wrapping_add(at * 8))?;
    let mfn = owner.grant_frame(argument.frame + at)?;
    let take = || Ok(owner.p2m_view.frames().get_kind(mfn, owner.id, FrameType::GrantFrame)?);
    map_frame(call.domain, Gfn::new(gfn), replaced, take)
}

/// Undoes the first `count` entries of an acquisition that failed behind them.
fn take_back(call: &mut Call<'_>, argument: &abi::AcquireResource, count: u64) {
    let mut at = 0;
    while at < count {
        let mut taken = Replaced::default();
        let end = count.min(at + BATCH);
        while at < end {
            let gfn = call.read::<u64>(argument.frame_list.wrapping_add(at * 8));
            at += 1;
            // A list that the caller changes meanwhile leaves mappings to the caller, who can remove them.
            let Ok(gfn) = gfn.map(Gfn::new) else { continue };
            let mut p2m = call.domain.p2m.lock();
            if p2m.lookup(gfn).is_some_and(|leaf| leaf.kind == P2mKind::ForeignRw)
                && let Ok(token) = p2m.unmap(gfn, Order::PAGE)
            {
                taken.push(token);
            }
        }
        taken.flush(call, call.domain, FlushSite::ForeignUnmap);
    }
}
