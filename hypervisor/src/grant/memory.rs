// SPDX-License-Identifier: MIT OR Apache-2.0
//! A domain's guest-physical memory, as far as grants concern it.
//!
//! Lookups take no lock: what they find is confirmed by the frame table, which knows the owner. A
//! mapping is one entry, changed under the p2m's lock; its reference lives in the entry and comes
//! back through the flush.

use guest_abi::Gfn;

use super::{Access, BATCH, Refusal};
use crate::addr::Mfn;
use crate::frame::FrameRef;
use crate::lock::Lock;
use crate::p2m::{P2m, P2mError, P2mKind, P2mView, UnmappedBatch};

const _: () = assert!(BATCH <= UnmappedBatch::CAPACITY, "one batch of unmaps is one batch of tokens");

/// Somebody who has a p2m. What grants do with it follows from the two accessors.
pub trait Memory {
    /// The p2m, to change it.
    fn p2m(&self) -> &Lock<P2m>;
    /// The same p2m, to look things up.
    fn p2m_view(&self) -> P2mView;

    /// Takes a reference to the domain's own RAM at `gfn`. RAM can be written, so that is all
    /// there is to check for any access.
    ///
    /// # Errors
    /// [`Refusal::BadPage`] if there is anything else.
    #[inline]
    fn pin(&self, gfn: Gfn) -> Result<FrameRef, Refusal> {
        self.p2m_view().pin(gfn).and_then(Result::ok).ok_or(Refusal::BadPage)
    }

    /// Maps another domain's frame at a hole; the reference goes into the p2m.
    ///
    /// # Errors
    /// [`Refusal::BadAddress`] if `gfn` is no hole that the p2m can fill; [`Refusal::NoSpace`] if
    /// there is no memory for its tables.
    fn map_grant(&self, gfn: Gfn, frame: FrameRef, access: Access) -> Result<(), Refusal> {
        let kind = match access {
            Access::Read => P2mKind::GrantRo,
            Access::Write => P2mKind::GrantRw,
        };
        self.p2m().lock().map_ref(gfn, frame, kind).map_err(|error| match error {
            P2mError::Frame(_) => Refusal::NoSpace,
            _ => Refusal::BadAddress,
        })
    }

    /// Makes the place of a granted frame a hole again. Does nothing if that frame is not mapped
    /// there (any more).
    fn unmap_grant(&self, gfn: Gfn, mfn: Mfn, removed: &mut UnmappedBatch) {
        let Ok(token) = self.p2m().lock().unmap_ref(gfn, mfn) else { return };
        if removed.push(token).is_err() {
            unreachable!("a batch has room for all that it unmaps");
        }
    }
}
