// SPDX-License-Identifier: MIT OR Apache-2.0
//! The p2m: what each guest frame of a domain is, as the CPU and the hypervisor see it.
//!
//! One [`P2m`] is one domain's nested page table, EPT or NPT. There is no second copy of what it
//! says: the kind of every mapping is in the entry itself, and the entry of a granted or foreign
//! page *is* the reference to its frame. The tables' own pages come from the frame table and are
//! charged to the domain.
//!
//! Changes go through [`P2m`], which its domain keeps under a lock of rank
//! [`crate::lock::Rank::P2m`]. Lookups go through [`P2mView`], a copyable handle that needs no
//! lock: an entry is one word, and a table page lives as long as the p2m. Whoever looks up holds
//! a reference to the domain, and uses the answer before its pCPU next honours a flush
//! ([`flush::TlbState::flushed`]); a frame found by a lookup cannot change hands before that.
//!
//! Removing an entry never frees anything: it returns an [`Unmapped`] token. See [`flush`].
//!
//! The format is chosen once, when the p2m is made; each operation is one `match` away from
//! code compiled for that format alone.

mod entry;
mod ept;
pub mod flush;
mod npt;
mod populate;
mod walk;

use core::ops::Range;
use core::sync::atomic::Ordering;

use alloc::sync::Arc;
use guest_abi::{DomId, Errno, Gfn};

pub use entry::{Entry, P2mKind, PteFormat};
pub use flush::{FlushProof, FlushSite, Flusher, TlbState, Unmapped, UnmappedBatch};
pub use populate::Backing;

use crate::addr::{Mfn, Order};
use crate::frame::{Fill, FrameError, FrameRef, FrameTable, FrameType, aligned_blocks};
use ept::Ept;
use npt::Npt;
use walk::{Descend, GFN_END, ROOT_LEVEL};

/// Which CPU walks the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// VT-x.
    Ept,
    /// AMD-V.
    Npt,
    /// Nobody: tests that the walker depends on no format.
    #[cfg(test)]
    Toy,
}

/// Runs an expression with `$f` naming the format's type.
macro_rules! in_format {
    ($format:expr, $f:ident => $body:expr) => {
        match $format {
            Format::Ept => {
                type $f = Ept;
                $body
            }
            Format::Npt => {
                type $f = Npt;
                $body
            }
            #[cfg(test)]
            Format::Toy => {
                type $f = tests::Toy;
                $body
            }
        }
    };
}

/// What is mapped at one guest frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The machine frame behind the guest frame that was looked up (not of the whole leaf).
    pub mfn: Mfn,
    /// What it is mapped for.
    pub kind: P2mKind,
    /// How much the entry maps: [`Order::PAGE`], [`Order::MIB_2`] or [`Order::GIB_1`], aligned.
    pub order: Order,
}

/// Why a p2m operation failed; nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum P2mError {
    /// The guest frame lies beyond what four levels translate.
    OutOfRange(Gfn),
    /// The block is not aligned to its size.
    Misaligned(Gfn),
    /// Something is mapped there.
    Occupied(Gfn),
    /// Nothing is mapped there.
    NotMapped(Gfn),
    /// The block is not mapped by one leaf of its size or larger.
    Mixed(Gfn),
    /// The mapping's kind does not allow the operation.
    WrongKind(Gfn, P2mKind),
    /// Memory that the hypervisor manages was named as a device's.
    IsRam(Mfn),
    /// The domain is being destroyed.
    Closed,
    /// Memory is lacking, or the frame is not what was said.
    Frame(FrameError),
}

impl From<FrameError> for P2mError {
    fn from(error: FrameError) -> Self {
        Self::Frame(error)
    }
}

impl From<P2mError> for Errno {
    fn from(error: P2mError) -> Self {
        match error {
            P2mError::Occupied(_) => Self::EEXIST,
            P2mError::NotMapped(_) => Self::ENOENT,
            P2mError::IsRam(_) => Self::EPERM,
            P2mError::Closed => Self::ESRCH,
            P2mError::Frame(error) => error.into(),
            P2mError::OutOfRange(_) | P2mError::Misaligned(_) | P2mError::Mixed(_) | P2mError::WrongKind(..) => {
                Self::EINVAL
            }
        }
    }
}

/// The right to look things up in a p2m, without a lock.
#[derive(Clone, Copy)]
pub struct P2mView {
    frames: &'static FrameTable,
    root: Mfn,
    owner: DomId,
    format: Format,
}

impl P2mView {
    /// Finds what is mapped at a guest frame. At most four loads.
    #[inline]
    #[must_use]
    pub fn lookup(&self, gfn: Gfn) -> Option<Leaf> {
        in_format!(self.format, F => walk::lookup::<F>(self.frames.mem(), self.root, gfn))
    }

    /// Finds the domain's own RAM at a guest frame. It stays the domain's as long as the pCPU that asks runs it and
    /// honours no flush.
    #[inline(never)]
    #[must_use]
    pub fn ram(&self, gfn: Gfn) -> Option<Mfn> {
        in_format!(self.format, F => walk::ram::<F>(self.frames.mem(), self.root, gfn))
    }

    /// Takes a counted reference to the domain's own RAM at a guest frame: to what stays in use, and to memory of a domain
    /// that may run on another CPU meanwhile. `None` if there is anything else.
    ///
    /// # Errors
    /// Those of [`FrameTable::get`], which has the last word: the entry may have been removed since.
    #[inline]
    #[must_use]
    pub fn pin(&self, gfn: Gfn) -> Option<Result<FrameRef, FrameError>> {
        self.ram(gfn).map(|mfn| self.frames.get(mfn, self.owner))
    }

    /// Finds the first mapping that covers a frame at or above `from`: its first guest frame, and
    /// the leaf with its first machine frame.
    #[must_use]
    pub fn next_leaf(&self, from: Gfn) -> Option<(Gfn, Leaf)> {
        in_format!(self.format, F => walk::next_leaf::<F>(self.frames.mem(), self.root, from))
    }

    /// The domain whose p2m it is.
    #[must_use]
    pub const fn owner(&self) -> DomId {
        self.owner
    }

    /// The frames that it maps.
    #[must_use]
    pub const fn frames(&self) -> &'static FrameTable {
        self.frames
    }
}

/// One domain's p2m.
pub struct P2m {
    view: P2mView,
    largest: Order,
    tlb: Arc<TlbState>,
    /// Nothing can be mapped any more.
    is_closed: bool,
}

impl P2m {
    /// Makes an empty p2m for a domain that has an account.
    ///
    /// `largest` is the largest leaf that the CPU supports: [`Order::MIB_2`] or [`Order::GIB_1`].
    ///
    /// # Errors
    /// [`P2mError::Frame`] if memory is lacking.
    pub fn new(frames: &'static FrameTable, owner: DomId, format: Format, largest: Order) -> Result<Self, P2mError> {
        let root = frames.alloc(Order::PAGE, owner, FrameType::Table, Fill::Zeroed)?;
        let view = P2mView { frames, root, owner, format };
        Ok(Self { view, largest, tlb: Arc::new(TlbState::new(root)), is_closed: false })
    }

    /// A handle for lookups.
    #[inline]
    #[must_use]
    pub const fn view(&self) -> P2mView {
        self.view
    }

    /// What the CPUs' TLBs may know of this p2m: root and generation.
    #[must_use]
    pub const fn tlb(&self) -> &Arc<TlbState> {
        &self.tlb
    }

    /// As [`P2mView::lookup`].
    #[inline]
    #[must_use]
    pub fn lookup(&self, gfn: Gfn) -> Option<Leaf> {
        self.view.lookup(gfn)
    }

    /// Maps a block where nothing is mapped, with the largest leaves that it can hold. For kinds
    /// that hold no reference: RAM of the domain, the hypervisor's shared pages, device memory.
    ///
    /// # Errors
    /// [`P2mError::Occupied`] if anything is mapped in the block, also an emptied table where
    /// large leaves would go; [`P2mError::IsRam`] if device memory is not; alignment, range and
    /// memory. Nothing is mapped then.
    pub fn map(&mut self, gfn: Gfn, mfn: Mfn, order: Order, kind: P2mKind) -> Result<(), P2mError> {
        if kind.holds_reference() {
            return Err(P2mError::WrongKind(gfn, kind));
        }
        if kind.is_mmio() && !self.view.frames.is_not_ram(mfn, order.frames()) {
            return Err(P2mError::IsRam(mfn));
        }
        debug_assert!(
            kind != P2mKind::Ram || self.owns(mfn) && self.owns(mfn.offset(order.frames() - 1)),
            "RAM is mapped into a domain that does not own it"
        );
        self.enter(gfn, mfn, order, kind)
    }

    /// Maps a page of another domain where nothing is mapped. The entry takes the reference
    /// over; it comes back through [`Unmapped::release`].
    ///
    /// # Errors
    /// As [`P2m::map`]; the reference is put then.
    pub fn map_ref(&mut self, gfn: Gfn, reference: FrameRef, kind: P2mKind) -> Result<(), P2mError> {
        if !kind.holds_reference() {
            return Err(P2mError::WrongKind(gfn, kind));
        }
        if self.is_closed {
            return Err(P2mError::Closed);
        }
        let (mem, root) = (self.view.frames.mem(), self.view.root);
        // Where single pages are mapped already, which is the rule, one walk does it all.
        in_format!(self.view.format, F => {
            if let Some(word) = walk::page_entry::<F>(mem, root, gfn) {
                if <F as PteFormat>::decode(word.load(Ordering::Relaxed), 0) != Entry::Hole {
                    return Err(P2mError::Occupied(gfn));
                }
                word.store(<F as PteFormat>::leaf(reference.into_entry(), kind, 0), Ordering::Release);
                return Ok(());
            }
        });
        self.enter(gfn, reference.mfn(), Order::PAGE, kind)?;
        reference.into_entry();
        Ok(())
    }

    /// Removes the mapping of a page that [`P2m::map_ref`] has mapped.
    ///
    /// # Errors
    /// [`P2mError::NotMapped`] if anything else than a reference to that frame is mapped there.
    pub fn unmap_ref(&mut self, gfn: Gfn, mfn: Mfn) -> Result<Unmapped, P2mError> {
        let P2mView { frames, root, owner, format } = self.view;
        in_format!(format, F => {
            let word = walk::page_entry::<F>(frames.mem(), root, gfn).ok_or(P2mError::NotMapped(gfn))?;
            match <F as PteFormat>::decode(word.load(Ordering::Relaxed), 0) {
                Entry::Leaf { mfn: mapped, kind } if mapped == mfn && kind.holds_reference() => {
                    word.store(0, Ordering::Release);
                    let leaf = Leaf { mfn, kind, order: Order::PAGE };
                    Ok(Unmapped::new(frames, owner, root, self.tlb.removed_reference(), leaf))
                }
                _ => Err(P2mError::NotMapped(gfn)),
            }
        })
    }

    /// Maps a whole range of machine frames at the same guest frames, in the largest leaves.
    ///
    /// # Errors
    /// As [`P2m::map`]; what lies before the failing block stays mapped.
    pub fn map_range_identity(&mut self, range: Range<Mfn>, kind: P2mKind) -> Result<(), P2mError> {
        let count = range.end.raw().saturating_sub(range.start.raw());
        for (first, order) in aligned_blocks(range.start, count) {
            self.map(Gfn::new(first.raw()), first, order, kind)?;
        }
        Ok(())
    }

    /// Removes the mapping of a block of [`Order::PAGE`], [`Order::MIB_2`] or [`Order::GIB_1`]
    /// which is one leaf or part of a larger one; that is split first.
    ///
    /// # Errors
    /// [`P2mError::NotMapped`], [`P2mError::Mixed`], alignment, range, and memory for the split.
    pub fn unmap(&mut self, gfn: Gfn, order: Order) -> Result<Unmapped, P2mError> {
        check_block(gfn, order)?;
        let level = order.raw() / 9;
        if !order.raw().is_multiple_of(9) {
            return Err(P2mError::Mixed(gfn));
        }
        let mut on_the_way = ToUnmap { gfn, tables: Tables(self.view) };
        in_format!(self.view.format, F => {
            let mem = self.view.frames.mem();
            let slots = walk::slots::<F>(mem, self.view.root, (gfn, order), level, &mut on_the_way)?;
            match slots.entries::<F>().next() {
                Some(Entry::Leaf { mfn, kind }) => {
                    slots.words[0].store(0, Ordering::Release);
                    let leaf = Leaf { mfn, kind, order };
                    Ok(Unmapped::new(self.view.frames, self.view.owner, self.view.root, self.tlb.removed(), leaf))
                }
                Some(Entry::Table(_)) => Err(P2mError::Mixed(gfn)),
                Some(Entry::Hole) | None => Err(P2mError::NotMapped(gfn)),
            }
        })
    }

    /// Nothing is mapped from now on: what is removed stays removed.
    pub(crate) const fn close(&mut self) {
        self.is_closed = true;
    }

    /// Frees all tables but the root, so that lookups find nothing. Everything mapped has been removed
    /// ([`P2m::drain`]), and nobody is in the middle of a lookup.
    pub(crate) fn trim<F: Flusher + ?Sized>(&mut self, flusher: &F) {
        let _proof = self.tlb.flush(flusher, FlushSite::Teardown);
        let P2mView { frames, root, format, .. } = self.view;
        debug_assert!(self.view.next_leaf(Gfn::new(0)).is_none(), "a p2m is freed with mappings in it");
        in_format!(format, F => walk::tables::<F>(frames.mem(), root, ROOT_LEVEL, &mut |table| {
            if table != root {
                self.give_up_table(table);
            }
        }));
        frames.mem().zero(root);
    }

    /// Frees the tables themselves. The domain's vCPUs are gone, and so is everything mapped
    /// ([`P2m::drain`]).
    ///
    /// # Panics
    /// If the proof is another p2m's.
    pub fn free<F: Flusher + ?Sized>(mut self, flusher: &F) {
        self.trim(flusher);
        self.give_up_table(self.view.root);
    }

    fn give_up_table(&self, table: Mfn) {
        let freed = self.view.frames.give_up(table, Order::PAGE, self.view.owner);
        debug_assert!(freed.is_ok(), "a table page is not the domain's");
    }

    fn enter(&mut self, gfn: Gfn, mfn: Mfn, order: Order, kind: P2mKind) -> Result<(), P2mError> {
        check_block(gfn, order)?;
        if self.is_closed {
            return Err(P2mError::Closed);
        }
        if !order.is_aligned(mfn.raw()) {
            return Err(P2mError::Misaligned(gfn));
        }
        let level = order.min(self.largest).raw() / 9;
        let mut on_the_way = ToMap { gfn, tables: Tables(self.view) };
        in_format!(self.view.format, F => {
            let mem = self.view.frames.mem();
            let slots = walk::slots::<F>(mem, self.view.root, (gfn, order), level, &mut on_the_way)?;
            if !slots.entries::<F>().all(|entry| entry == Entry::Hole) {
                return Err(P2mError::Occupied(gfn));
            }
            for (step, word) in (0..).zip(slots.words) {
                let part = mfn.offset(step << (9 * level));
                word.store(<F as PteFormat>::leaf(part, kind, level), Ordering::Release);
            }
            Ok(())
        })
    }

    fn owns(&self, mfn: Mfn) -> bool {
        let info = self.view.frames.info(mfn);
        info.owner == self.view.owner && info.kind == FrameType::Ram && info.is_owned
    }
}

fn check_block(gfn: Gfn, order: Order) -> Result<(), P2mError> {
    if gfn.raw() >= GFN_END {
        return Err(P2mError::OutOfRange(gfn));
    }
    if !order.is_aligned(gfn.raw()) {
        return Err(P2mError::Misaligned(gfn));
    }
    Ok(())
}

/// Table pages, charged to the domain.
struct Tables(P2mView);

impl Tables {
    fn fresh(&self, fill: Fill) -> Result<Mfn, P2mError> {
        Ok(self.0.frames.alloc(Order::PAGE, self.0.owner, FrameType::Table, fill)?)
    }
}

struct ToMap {
    gfn: Gfn,
    tables: Tables,
}

impl Descend for ToMap {
    fn at_hole(&mut self) -> Result<Mfn, P2mError> {
        self.tables.fresh(Fill::Zeroed)
    }

    fn at_leaf(&mut self) -> Result<Mfn, P2mError> {
        Err(P2mError::Occupied(self.gfn))
    }
}

struct ToUnmap {
    gfn: Gfn,
    tables: Tables,
}

impl Descend for ToUnmap {
    fn at_hole(&mut self) -> Result<Mfn, P2mError> {
        Err(P2mError::NotMapped(self.gfn))
    }

    fn at_leaf(&mut self) -> Result<Mfn, P2mError> {
        self.tables.fresh(Fill::Overwritten)
    }
}

#[cfg(test)]
mod tests;
