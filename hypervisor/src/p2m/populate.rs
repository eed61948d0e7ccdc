// SPDX-License-Identifier: MIT OR Apache-2.0
//! Giving a domain memory, and taking it back: RAM and its mapping as one step.
//!
//! A domain is filled in the largest blocks that are free, 2 MiB in the ordinary case. Nothing
//! here runs longer than one batch: callers continue where the last call ended.

use guest_abi::Gfn;

use super::{P2m, P2mError, P2mKind, Unmapped, UnmappedBatch};
use crate::addr::{Mfn, Order};
use crate::frame::{Fill, FrameError, FrameType};

/// Where the RAM for a guest frame comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Any free frame, with these contents.
    Free(Fill),
    /// The machine frame of the same number, which the domain has given up before; zeroed.
    Identity,
}

/// Mappings that one call of [`P2m::drain`] removes at most.
const DRAIN_BATCH: usize = UnmappedBatch::CAPACITY;
/// Frames after which it removes no further mapping: each is looked at when it is given back.
const DRAIN_FRAMES: u64 = 2048;

impl P2m {
    /// Backs a block of holes with RAM that the domain then owns, and maps it.
    ///
    /// # Errors
    /// [`P2mError::Occupied`], alignment and range; [`P2mError::Frame`] if memory is lacking, the
    /// domain's limit is reached, or an identity frame is not reserved for it. Nothing has changed
    /// then.
    pub fn populate(&mut self, gfn: Gfn, order: Order, backing: Backing) -> Result<Mfn, P2mError> {
        let frames = self.view.frames;
        let (first, order) = match backing {
            Backing::Free(fill) => (frames.alloc(order, self.view.owner, FrameType::Ram, fill)?, order),
            Backing::Identity if order == Order::PAGE => {
                let mfn = Mfn::new(gfn.raw());
                frames.take_back(mfn, self.view.owner)?;
                (mfn, order)
            }
            Backing::Identity => return Err(P2mError::Misaligned(gfn)),
        };
        self.map(gfn, first, order, P2mKind::Ram).inspect_err(|_| {
            // It was never mapped, so there is nothing to flush.
            let returned = frames.give_up(first, order, self.view.owner);
            debug_assert!(returned.is_ok(), "a frame just allocated is not the domain's");
        })?;
        Ok(first)
    }

    /// Backs guest frames from `gfn` on, as many of `count` as one large block gives: the largest
    /// that is aligned, fits, is free and can be mapped. Returns how many frames that were; the
    /// caller continues behind them.
    ///
    /// # Errors
    /// As [`P2m::populate`] for a single frame.
    pub fn populate_some(&mut self, gfn: Gfn, count: u64, fill: Fill) -> Result<u64, P2mError> {
        for order in [Order::GIB_1, Order::MIB_2] {
            if order.is_aligned(gfn.raw()) && order.frames() <= count && order <= self.largest {
                match self.populate(gfn, order, Backing::Free(fill)) {
                    Ok(_) => return Ok(order.frames()),
                    // A smaller block may be there, or fit between what is mapped.
                    Err(P2mError::Occupied(_) | P2mError::Frame(FrameError::NoMemory)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        if count == 0 {
            return Ok(0);
        }
        self.populate(gfn, Order::PAGE, Backing::Free(fill))?;
        Ok(1)
    }

    /// Takes a frame of RAM out of the domain's map; releasing the token gives it up.
    ///
    /// # Errors
    /// [`P2mError::WrongKind`] if it is not the domain's own RAM; as [`P2m::unmap`].
    pub fn depopulate(&mut self, gfn: Gfn, order: Order) -> Result<Unmapped, P2mError> {
        match self.lookup(gfn) {
            None => Err(P2mError::NotMapped(gfn)),
            Some(leaf) if leaf.kind != P2mKind::Ram => Err(P2mError::WrongKind(gfn, leaf.kind)),
            Some(_) => self.unmap(gfn, order),
        }
    }

    /// Removes mappings of a domain that is being destroyed, from `from` on and as many as fit in an empty
    /// batch. The caller flushes the batch after it has dropped the lock, and continues at the
    /// returned frame until that is `None`.
    pub fn drain(&mut self, from: Gfn, batch: &mut UnmappedBatch) -> Option<Gfn> {
        let (mut at, mut frames) = (from, 0);
        for _ in 0..DRAIN_BATCH {
            if frames >= DRAIN_FRAMES {
                break;
            }
            let (gfn, leaf) = self.view.next_leaf(at)?;
            // A whole leaf is never split, so removing it cannot fail for lack of memory.
            let Ok(token) = self.unmap(gfn, leaf.order) else { unreachable!("{gfn:?} was just found mapped") };
            if let Err(token) = batch.push(token) {
                drop(token);
            }
            frames += leaf.order.frames();
            at = gfn.checked_add(leaf.order.frames())?;
        }
        Some(at)
    }
}
