// SPDX-License-Identifier: MIT OR Apache-2.0
//! Physical memory as the logic sees it: words that anybody may change at any time.
//!
//! All of RAM is permanently mapped, so reaching a frame is an index and a bound check. Every
//! access is atomic, because guests and devices write the same memory while the hypervisor
//! reads it; a plain load would be a data race. On the bare metal the slice is the direct map;
//! in host tests it is a leaked vector, and everything above runs unchanged.
//!
//! What a caller may touch is the frame table's business, not this module's: an [`Mfn`] that
//! reaches here comes from the frame table or from a p2m entry of a RAM type.

use core::sync::atomic::{AtomicU64, Ordering};

use guest_abi::num::low_u32;

use crate::addr::{Mfn, PAGE_SIZE};

/// Words in a frame.
pub const WORDS_PER_FRAME: usize = PAGE_SIZE / 8;

/// One frame of memory.
pub type FrameWords = [AtomicU64; WORDS_PER_FRAME];

/// Moves many bytes at once; the machine does it with string instructions.
///
/// Offsets and lengths are in bytes and lie inside the given frame: [`PhysMem`] has checked.
pub trait Bulk: Sync {
    /// Reads `dst.len()` bytes from byte `offset` of a frame.
    fn read(&self, src: &FrameWords, offset: usize, dst: &mut [u8]);
    /// Writes `src` to byte `offset` of a frame.
    fn write(&self, dst: &FrameWords, offset: usize, src: &[u8]);
    /// Copies `len` bytes between two frames, which may be one frame with overlapping ranges.
    fn copy(&self, dst: &FrameWords, dst_offset: usize, src: &FrameWords, src_offset: usize, len: usize);
    /// Fills a frame with zeroes.
    fn zero(&self, dst: &FrameWords);
}

/// All physical memory from address 0 to the end of RAM.
#[derive(Clone, Copy)]
pub struct PhysMem {
    words: &'static [AtomicU64],
    bulk: &'static dyn Bulk,
}

impl PhysMem {
    /// Wraps the direct map. `words[0]` is physical address 0.
    #[must_use]
    pub const fn new(words: &'static [AtomicU64], bulk: &'static dyn Bulk) -> Self {
        Self { words, bulk }
    }

    /// The number of frames that the map covers, holes included.
    #[must_use]
    pub const fn nr_frames(&self) -> u64 {
        (self.words.len() / WORDS_PER_FRAME) as u64
    }

    /// The words of one frame.
    ///
    /// # Panics
    /// If the frame lies beyond the end of RAM: an [`Mfn`] that nobody vouched for got here.
    #[inline]
    #[must_use]
    pub fn frame(&self, mfn: Mfn) -> &'static FrameWords {
        match self.words(mfn, 0, WORDS_PER_FRAME).first_chunk() {
            Some(frame) => frame,
            None => unreachable!("a frame has that many words"),
        }
    }

    /// One word of a frame; `index` counts words and is taken modulo the frame.
    #[inline]
    #[must_use]
    pub fn word(&self, mfn: Mfn, index: usize) -> &'static AtomicU64 {
        &self.words[mfn.index() * WORDS_PER_FRAME + index % WORDS_PER_FRAME]
    }

    /// Some words of a frame that lie side by side, from number `first` on.
    ///
    /// # Panics
    /// If the range leaves the frame.
    #[inline(always)]
    #[must_use]
    pub fn words(&self, mfn: Mfn, first: usize, len: usize) -> &'static [AtomicU64] {
        assert!(first <= WORDS_PER_FRAME && len <= WORDS_PER_FRAME - first);
        let first = mfn.index() * WORDS_PER_FRAME + first;
        &self.words[first..first + len]
    }

    /// Copies `dst.len()` bytes out of a frame, starting at byte `offset`.
    ///
    /// # Panics
    /// If the range leaves the frame: the caller splits at page boundaries.
    #[inline]
    pub fn read(&self, mfn: Mfn, offset: usize, dst: &mut [u8]) {
        assert!(in_frame(offset, dst.len()));
        self.bulk.read(self.frame(mfn), offset, dst);
    }

    /// Copies `src` into a frame, starting at byte `offset`.
    ///
    /// # Panics
    /// If the range leaves the frame: the caller splits at page boundaries.
    #[inline]
    pub fn write(&self, mfn: Mfn, offset: usize, src: &[u8]) {
        assert!(in_frame(offset, src.len()));
        self.bulk.write(self.frame(mfn), offset, src);
    }

    /// Copies `len` bytes from frame to frame.
    ///
    /// # Panics
    /// If either range leaves its frame: the caller splits at page boundaries.
    #[inline]
    pub fn copy(&self, dst: (Mfn, usize), src: (Mfn, usize), len: usize) {
        assert!(in_frame(dst.1, len) && in_frame(src.1, len));
        self.bulk.copy(self.frame(dst.0), dst.1, self.frame(src.0), src.1, len);
    }

    /// Fills a frame with zeroes.
    #[inline]
    pub fn zero(&self, mfn: Mfn) {
        self.bulk.zero(self.frame(mfn));
    }

    /// Reads an aligned 32-bit value at byte `offset` of a frame.
    #[inline]
    #[must_use]
    pub fn load_u32(&self, mfn: Mfn, offset: usize) -> u32 {
        let (index, shift) = u32_place(offset);
        low_u32(self.word(mfn, index).load(Ordering::Acquire) >> shift)
    }

    /// Writes an aligned 32-bit value at byte `offset`, leaving the other half of its word alone
    /// even while a guest writes it.
    #[inline]
    pub fn store_u32(&self, mfn: Mfn, offset: usize, value: u32) {
        let (index, shift) = u32_place(offset);
        let keep = !(u64::from(u32::MAX) << shift);
        let value = u64::from(value) << shift;
        // A guest that writes the other half in a loop can make this retry, so the number of
        // attempts is bounded; after that the store wins by overwriting the guest's half with
        // what was last seen there, which harms only that guest.
        const ATTEMPTS: usize = 64;
        let word = self.word(mfn, index);
        let mut seen = word.load(Ordering::Relaxed);
        for _ in 0..ATTEMPTS {
            match word.compare_exchange_weak(seen, seen & keep | value, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
        word.store(seen & keep | value, Ordering::Release);
    }
}

const fn in_frame(offset: usize, len: usize) -> bool {
    offset <= PAGE_SIZE && len <= PAGE_SIZE - offset
}

const fn u32_place(offset: usize) -> (usize, u32) {
    (offset / 8, if offset % 8 < 4 { 0 } else { 32 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::test_memory;

    #[test]
    fn bytes_land_where_they_were_written() {
        let mem = test_memory(2);
        mem.write(Mfn::new(1), 4091, b"abcde");
        let mut out = [0; 6];
        mem.read(Mfn::new(1), 4090, &mut out);
        assert_eq!(&out, b"\0abcde");
        assert_eq!(mem.load_u32(Mfn::new(1), 4092), u32::from_le_bytes(*b"bcde"));
        mem.store_u32(Mfn::new(1), 4088, 0x0102_0304);
        assert_eq!(mem.load_u32(Mfn::new(1), 4092), u32::from_le_bytes(*b"bcde"));
    }

    #[test]
    fn overlapping_copies_keep_the_source() {
        let mem = test_memory(1);
        mem.write(Mfn::new(0), 0, b"123456789");
        mem.copy((Mfn::new(0), 2), (Mfn::new(0), 0), 7);
        let mut out = [0; 9];
        mem.read(Mfn::new(0), 0, &mut out);
        assert_eq!(&out, b"121234567");
    }

    #[test]
    #[should_panic = "in_frame"]
    fn a_range_that_leaves_the_frame_is_refused() {
        test_memory(2).write(Mfn::new(0), 4090, b"abcdefgh");
    }
}
