// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames that a domain gives back, and frames that fill its holes; its own, or by right another's.
//!
//! Long lists are worked off in batches of [`BATCH`]; the number of entries done is kept in the upper
//! bits of the operation, as the ABI provides, and the hypercall runs again.

use guest_abi::memory as abi;
use guest_abi::{Errno, Gfn};

use super::super::{Call, HypercallResult, Reply};
use super::{EXTENT_SHIFT, again_from, nr_done};
use crate::addr::Order;
use crate::domain::Domain;
use crate::frame::Fill;
use crate::p2m::{Backing, FlushSite, UnmappedBatch};

/// Entries done before the hypercall is taken up again.
const BATCH: u64 = UnmappedBatch::CAPACITY as u64;

/// What is done for one entry; `false` ends the list there.
pub(super) type Step = fn(&Domain, Gfn, Order, &mut UnmappedBatch) -> bool;

/// Works a list of extents off, a batch at a time.
pub(super) fn work_off(call: &mut Call<'_>, step: Step) -> HypercallResult {
    let argument: abi::MemoryReservation = call.read(call.arg1())?;
    let subject = call.subject(argument.domid)?;
    if subject.life.is_dying() {
        return Err(Errno::ESRCH);
    }
    let order = u8::try_from(argument.extent_order).ok().and_then(Order::new).ok_or(Errno::EINVAL)?;
    // Larger extents must be leaves of the p2m; Linux asks for single pages.
    if order != Order::PAGE && order != Order::MIB_2 {
        return Err(Errno::EINVAL);
    }
    let done = nr_done(call);
    if done > argument.nr_extents || argument.nr_extents >= 1 << (32 - EXTENT_SHIFT) {
        return Err(Errno::EINVAL);
    }
    // A large extent is a batch of its own: zeroing it takes as long as many single ones.
    let batch_len = if order == Order::PAGE { BATCH } else { 1 };
    let end = argument.nr_extents.min(done + batch_len);
    let mut batch = UnmappedBatch::new();
    let mut at = done;
    while at < end {
        let Ok(gfn) = call.read::<u64>(argument.extent_start.wrapping_add(at * 8)) else { break };
        if !step(&subject, Gfn::new(gfn), order, &mut batch) {
            break;
        }
        at += 1;
    }
    batch.flush(&subject.tlb, call.hv.machine, FlushSite::Balloon);
    if at < end || at == argument.nr_extents {
        return Ok(Reply::Value(at));
    }
    Ok(again_from(call, at))
}

/// Gives an extent back.
pub(super) fn give_back(domain: &Domain, gfn: Gfn, order: Order, batch: &mut UnmappedBatch) -> bool {
    match domain.p2m.lock().depopulate(gfn, order) {
        Ok(token) => {
            let pushed = batch.push(token);
            debug_assert!(pushed.is_ok(), "a batch is as long as the list");
            pushed.is_ok()
        }
        Err(error) => {
            log::debug!("{}: cannot give back {gfn:?}: {error:?}", domain.id);
            false
        }
    }
}

/// Fills a hole.
pub(super) fn populate(domain: &Domain, gfn: Gfn, order: Order, _: &mut UnmappedBatch) -> bool {
    let backing = if domain.is_identity() { Backing::Identity } else { Backing::Free(Fill::Zeroed) };
    match domain.p2m.lock().populate(gfn, order, backing) {
        Ok(_) => true,
        Err(error) => {
            log::debug!("{}: cannot populate {gfn:?}: {error:?}", domain.id);
            false
        }
    }
}
