// SPDX-License-Identifier: MIT OR Apache-2.0
//! The end of a domain, in steps that are each bounded.
//!
//! First everything that it does to others ends and everything that only it uses is given back
//! ([`step`], until it is done): its vCPUs stop, ports close, grants that it mapped are unmapped, and its
//! own memory leaves its p2m and, flushed, goes to the dirty list, save what others still map. Nothing
//! can be mapped into it or granted by it from then on. It stays in the table, as dying.
//!
//! The rest can only go when nobody is in the middle of looking at the domain, and its number only when no
//! frame of it is left: [`finish`] takes it out of the table, if nobody refers to it, gives back the
//! hypervisor's own pages about it, and closes its account. Where others still map frames of it, it goes
//! back into the table, and [`reap`] tries again when the last of them has been given back.
//!
//! No step allocates.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use guest_abi::event_channel::VIRQ_DOM_EXC;
use guest_abi::{DomId, Gfn};

use super::Domain;
use crate::frame::Usage;
use crate::grant;
use crate::hypervisor::Hypervisor;
use crate::p2m::{FlushSite, UnmappedBatch};
use crate::progress::Progress;
use crate::vcpu::Vcpu;

/// What the account of a domain shows that has nothing but the root of its p2m.
const LAST: Usage = Usage { ram: 0, overhead: 1 };

/// Takes a domain apart a bit more. The caller is none of its vCPUs.
pub(crate) fn step(hv: &Hypervisor, domain: &Domain) -> Progress {
    if domain.life.begin_dying() {
        domain.kick_all();
        log::info!("{} is being destroyed", domain.label());
    }
    if !domain.is_quiet(hv.machine) || domain.events.destroy(&hv.domains) == Progress::Again {
        return Progress::Again;
    }
    if grant::map::unmap_all(domain.as_party(), hv) == Progress::Again || drain(hv, domain) == Progress::Again {
        return Progress::Again;
    }
    domain.grants.release_frames();
    domain.console.lock().flush(domain.id);
    hv.frames.watch_account(domain.id);
    domain.life.set_released();
    Progress::Done
}

/// Removes what is left in the p2m.
fn drain(hv: &Hypervisor, domain: &Domain) -> Progress {
    let from = Gfn::new(domain.drained_to.load(Ordering::Relaxed));
    let mut batch = UnmappedBatch::new();
    let next = {
        let mut p2m = domain.p2m.lock();
        p2m.close();
        p2m.drain(from, &mut batch)
    };
    batch.flush_in_place(&domain.tlb, hv.machine, FlushSite::Teardown);
    match next {
        Some(gfn) => {
            domain.drained_to.store(gfn.raw(), Ordering::Relaxed);
            Progress::Again
        }
        None => {
            domain.drained_to.store(u64::MAX, Ordering::Relaxed);
            Progress::Done
        }
    }
}

/// Ends a domain for good if nobody refers to it and no frame of it is in use. `true` if it is gone.
pub(crate) fn finish(hv: &Hypervisor, id: DomId) -> bool {
    let Some((mut domain, vacancy)) = hv.domains.take(id) else {
        // Somebody is just looking at it: after the next slice.
        if hv.domains.get(id).is_some() {
            hv.news.hold();
        }
        return false;
    };
    let Some(alone) = Arc::get_mut(&mut domain) else { unreachable!("the table had the last reference") };
    alone.pins.get_mut().clear();
    alone.vcpus.iter_mut().for_each(Vcpu::forget_areas);
    alone.estate.settle_pages(hv, id);
    alone.p2m.get_mut().trim(hv.machine);
    if hv.frames.account(id).is_none_or(|(usage, _)| usage != LAST) {
        vacancy.fill(domain);
        return false;
    }
    let Some(domain) = Arc::into_inner(domain) else { unreachable!("the table had the last reference") };
    domain.p2m.into_inner().free(hv.machine);
    if let Err(error) = hv.frames.close_account(id) {
        unreachable!("{id} had nothing left: {error:?}");
    }
    drop(vacancy);
    true
}

/// Tells who controls domains that one has shut down or died, and ends those that could not be ended
/// before. Called where no lock and no domain is held.
pub(crate) fn reap(hv: &Hypervisor) {
    let (mut is_new, was_held) = (hv.news.take(), hv.news.take_held());
    if !hv.frames.take_watched() && !is_new && !was_held {
        return;
    }
    for (_, domain) in hv.domains.iter() {
        if domain.life.is_released() {
            let id = domain.id;
            drop(domain);
            is_new |= finish(hv, id);
        }
    }
    if is_new {
        hv.raise_in_control(VIRQ_DOM_EXC);
    }
}
