// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest frames and the bytes in them, with the last p2m entries at hand.
//!
//! Tables and buffers of one call mostly lie in one or two large p2m leaves, so two are
//! remembered and a guest frame costs a subtraction and a comparison. Another domain's page that is mapped as
//! a reference is never remembered: such mappings come and go all the time. Small aligned pieces, which
//! most arguments are, move as words; the rest goes through the machine's bulk copy.

use core::cell::Cell;
use core::sync::atomic::Ordering;

use guest_abi::Gfn;
use guest_abi::num::to_usize;

use super::{Access, Fault};
use crate::addr::Mfn;
use crate::mem::PhysMem;
use crate::p2m::{P2mKind, P2mView};

/// The guest's physical memory.
pub(super) struct Memory {
    pub(super) view: P2mView,
    pub(super) mem: PhysMem,
    blocks: [Block; 2],
    victim: Cell<bool>,
    /// The last look went to a reference, which is for this once: its range stays empty.
    passing: Block,
    /// Whether there was one since [`Memory::begin_walk`].
    has_passed: Cell<bool>,
}

/// A p2m leaf as a range of guest frames.
struct Block {
    first: Cell<u64>,
    frames: Cell<u64>,
    mfn: Cell<u64>,
    kind: Cell<P2mKind>,
}

impl Block {
    const fn new() -> Self {
        Self { first: Cell::new(0), frames: Cell::new(0), mfn: Cell::new(0), kind: Cell::new(P2mKind::Mmio) }
    }

    #[inline(always)]
    fn step(&self, gfn: Gfn) -> Option<u64> {
        let step = gfn.raw().wrapping_sub(self.first.get());
        (step < self.frames.get()).then_some(step)
    }
}

impl Memory {
    pub(super) const fn new(view: P2mView) -> Self {
        let blocks = [const { Block::new() }; 2];
        let (victim, has_passed) = (Cell::new(false), Cell::new(false));
        Self { view, mem: view.frames().mem(), blocks, victim, passing: Block::new(), has_passed }
    }

    /// From here on it counts whether a reference was looked at.
    pub(super) fn begin_walk(&self) {
        self.has_passed.set(false);
    }

    /// Whether what was found since [`Memory::begin_walk`] is the domain's own, and may be remembered.
    pub(super) fn is_own(&self) -> bool {
        !self.has_passed.get()
    }

    /// Forgets what the p2m said.
    pub(super) fn forget(&self) {
        self.blocks.iter().for_each(|block| block.frames.set(0));
    }

    /// What is behind a guest frame.
    #[inline(always)]
    pub(super) fn frame(&self, gfn: Gfn) -> Result<(Mfn, P2mKind), Fault> {
        let mut block = &self.blocks[0];
        let step = match block.step(gfn) {
            Some(step) => step,
            None => {
                block = &self.blocks[1];
                match block.step(gfn) {
                    Some(step) => step,
                    None => {
                        block = self.look_up(gfn)?;
                        gfn.raw() - block.first.get()
                    }
                }
            }
        };
        Ok((Mfn::new(block.mfn.get() + step), block.kind.get()))
    }

    /// Asks the p2m, and remembers the leaf that covers the frame if it is the domain's own.
    #[inline(never)]
    fn look_up(&self, gfn: Gfn) -> Result<&Block, Fault> {
        let leaf = self.view.lookup(gfn).ok_or(Fault::Hole)?;
        let within = leaf.order.frames() - 1;
        let block = if leaf.kind.holds_reference() {
            self.has_passed.set(true);
            &self.passing
        } else {
            let victim = self.victim.get();
            self.victim.set(!victim);
            let block = &self.blocks[usize::from(victim)];
            block.frames.set(within + 1);
            block
        };
        block.first.set(gfn.raw() & !within);
        block.mfn.set(leaf.mfn.raw() & !within);
        block.kind.set(leaf.kind);
        Ok(block)
    }

    /// Copies out of a frame; the range lies inside it.
    #[inline(always)]
    pub(super) fn copy_out(&self, mfn: Mfn, offset: usize, dst: &mut [u8]) {
        if is_words(offset, dst.len()) {
            let words = self.mem.words(mfn, offset / 8, dst.len() / 8);
            for (bytes, word) in dst.as_chunks_mut().0.iter_mut().zip(words) {
                *bytes = word.load(Ordering::Acquire).to_le_bytes();
            }
        } else if let Ok(bytes) = <&mut [u8; 4]>::try_from(&mut *dst)
            && offset.is_multiple_of(4)
        {
            *bytes = self.mem.load_u32(mfn, offset).to_le_bytes();
        } else {
            self.mem.read(mfn, offset, dst);
        }
    }

    /// Copies into a frame; the range lies inside it.
    #[inline(always)]
    pub(super) fn copy_in(&self, mfn: Mfn, offset: usize, src: &[u8]) {
        if is_words(offset, src.len()) {
            let words = self.mem.words(mfn, offset / 8, src.len() / 8);
            for (bytes, word) in src.as_chunks().0.iter().zip(words) {
                word.store(u64::from_le_bytes(*bytes), Ordering::Release);
            }
        } else if let Ok(bytes) = <[u8; 4]>::try_from(src)
            && offset.is_multiple_of(4)
        {
            self.mem.store_u32(mfn, offset, u32::from_le_bytes(bytes));
        } else {
            self.mem.write(mfn, offset, src);
        }
    }

    /// One word of memory by its number, counted from address 0.
    #[inline]
    pub(super) fn word(&self, number: u64) -> u64 {
        self.mem.word(Mfn::new(number >> 9), to_usize(number & 0x1ff)).load(Ordering::Acquire)
    }
}

/// Whether to move a range as single words.
#[inline]
const fn is_words(offset: usize, len: usize) -> bool {
    const SMALL: usize = 64;
    len <= SMALL && (offset | len) & 7 == 0
}

/// Whether a mapping of this kind allows the access.
#[inline]
pub(super) fn check(kind: P2mKind, access: Access) -> Result<(), Fault> {
    let is_allowed = match access {
        Access::Read => kind.is_readable_buffer(),
        Access::Write => kind.is_writable_buffer(),
    };
    if is_allowed { Ok(()) } else { Err(Fault::Refused) }
}
