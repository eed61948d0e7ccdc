// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory made of variables, and a frame table over it.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::frame::{FrameRecord, FrameTable};
use crate::mem::{Bulk, FrameWords, PhysMem, WORDS_PER_FRAME};

/// Moves bytes word by word.
struct PlainBulk;

impl PlainBulk {
    fn byte(frame: &FrameWords, at: usize) -> u8 {
        frame[at / 8].load(Ordering::Relaxed).to_le_bytes()[at % 8]
    }

    fn set_byte(frame: &FrameWords, at: usize, value: u8) {
        let shift = (at % 8) * 8;
        let mask = 0xff << shift;
        let value = u64::from(value) << shift;
        let _ = frame[at / 8].fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| Some(word & !mask | value));
    }
}

impl Bulk for PlainBulk {
    fn read(&self, src: &FrameWords, offset: usize, dst: &mut [u8]) {
        for (i, byte) in dst.iter_mut().enumerate() {
            *byte = Self::byte(src, offset + i);
        }
    }

    fn write(&self, dst: &FrameWords, offset: usize, src: &[u8]) {
        for (i, byte) in src.iter().enumerate() {
            Self::set_byte(dst, offset + i, *byte);
        }
    }

    fn copy(&self, dst: &FrameWords, dst_offset: usize, src: &FrameWords, src_offset: usize, len: usize) {
        let forward = dst_offset <= src_offset;
        for i in 0..len {
            let i = if forward { i } else { len - 1 - i };
            Self::set_byte(dst, dst_offset + i, Self::byte(src, src_offset + i));
        }
    }

    fn zero(&self, dst: &FrameWords) {
        for word in dst {
            word.store(0, Ordering::Relaxed);
        }
    }
}

/// Memory for host tests: `nr_frames` zeroed frames that live until the test process ends.
pub(crate) fn test_memory(nr_frames: usize) -> PhysMem {
    let words: alloc::vec::Vec<AtomicU64> = (0..nr_frames * WORDS_PER_FRAME).map(|_| AtomicU64::new(0)).collect();
    PhysMem::new(alloc::vec::Vec::leak(words), &PlainBulk)
}

pub(crate) fn test_table(nr_frames: usize) -> &'static FrameTable {
    let records: std::vec::Vec<FrameRecord> = (0..nr_frames).map(|_| FrameRecord::default()).collect();
    let table = FrameTable::new(std::vec::Vec::leak(records), test_memory(nr_frames));
    std::boxed::Box::leak(std::boxed::Box::new(table))
}
