// SPDX-License-Identifier: MIT OR Apache-2.0
//! A domain's p2m as grants use it.
//!
//! Lookups take no lock: what they find is confirmed by the frame table, which knows the owner. A
//! mapping is one entry, changed under the p2m's lock; its reference lives in the entry and comes
//! back through the flush.

use guest_abi::Gfn;

use super::{Access, BATCH, Memory, Refusal};
use crate::addr::{Mfn, Order};
use crate::frame::FrameRef;
use crate::lock::Lock;
use crate::p2m::{FlushSite, Flusher, P2m, P2mError, P2mKind, P2mView, TlbState, UnmappedBatch};

const _: () = assert!(BATCH <= UnmappedBatch::CAPACITY, "one batch of unmaps is one batch of tokens");

/// One domain's memory, and who flushes TLBs for it.
pub struct P2mMemory<'a, F: ?Sized> {
    p2m: &'a Lock<P2m>,
    view: P2mView,
    tlb: &'a TlbState,
    flusher: &'a F,
}

impl<'a, F: Flusher + ?Sized> P2mMemory<'a, F> {
    /// Combines what a domain has: its locked p2m, the view and the TLB state of the same p2m,
    /// and the machine.
    #[must_use]
    pub const fn new(p2m: &'a Lock<P2m>, view: P2mView, tlb: &'a TlbState, flusher: &'a F) -> Self {
        Self { p2m, view, tlb, flusher }
    }
}

impl<F: Flusher + ?Sized> Memory for P2mMemory<'_, F> {
    type Removed = UnmappedBatch;

    #[inline]
    fn pin(&self, gfn: Gfn, _: Access) -> Result<FrameRef, Refusal> {
        // RAM is writable, whatever the access. The frame table has the last word: the entry may
        // have been removed since it was read.
        match self.view.lookup(gfn) {
            Some(leaf) if leaf.kind == P2mKind::Ram => {
                self.view.frames().get(leaf.mfn, self.view.owner()).map_err(|_| Refusal::BadPage)
            }
            _ => Err(Refusal::BadPage),
        }
    }

    fn map_grant(&self, gfn: Gfn, frame: FrameRef, access: Access) -> Result<(), Refusal> {
        let kind = match access {
            Access::Read => P2mKind::GrantRo,
            Access::Write => P2mKind::GrantRw,
        };
        self.p2m.lock().map_ref(gfn, frame, kind).map_err(|error| match error {
            P2mError::Frame(_) => Refusal::NoSpace,
            _ => Refusal::BadAddress,
        })
    }

    fn unmap_grant(&self, gfn: Gfn, mfn: Mfn, removed: &mut UnmappedBatch) {
        let mut p2m = self.p2m.lock();
        match p2m.lookup(gfn) {
            Some(leaf) if leaf.mfn == mfn && matches!(leaf.kind, P2mKind::GrantRw | P2mKind::GrantRo) => {}
            _ => return,
        }
        // A grant is a leaf of one page, so nothing has to be split and nothing can fail.
        let Ok(token) = p2m.unmap(gfn, Order::PAGE) else { unreachable!("{gfn:?} was just found mapped") };
        if removed.push(token).is_err() {
            unreachable!("a batch has room for all that it unmaps");
        }
    }

    fn flush(&self, removed: UnmappedBatch) {
        removed.flush(self.tlb, self.flusher, FlushSite::GrantUnmap);
    }
}
