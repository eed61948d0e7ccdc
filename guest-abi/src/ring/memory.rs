// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory that another domain writes at the same time.
//!
//! It is a number of 32-bit words, each read and written as a whole by an atomic access: all that the interface puts
//! into rings is a multiple of four bytes, and an atomic access of one size is the only way to touch memory that
//! changes under one's hands that Rust defines. Whatever the peer writes, a load gives some value of 32 bits.
//!
//! [`SharedMemory`] is a trait so that the same ring code runs on a mapped page ([`Shared`]), on plain atomics in
//! tests, under loom, and on pages that somebody's kernel does not map side by side.

use core::sync::atomic::{AtomicU32, Ordering, fence};

/// Words that a peer can write at any time.
///
/// Clones of a handle are the same memory.
pub trait SharedMemory {
    /// How many words there are.
    fn words(&self) -> usize;

    /// Reads a word.
    ///
    /// # Panics
    /// If `word` is not below [`SharedMemory::words`]: the caller's own bug, since no index comes from the peer.
    fn load(&self, word: usize, order: Ordering) -> u32;

    /// Writes a word.
    ///
    /// # Panics
    /// As [`SharedMemory::load`].
    fn store(&self, word: usize, value: u32, order: Ordering);

    /// Orders all accesses before it before all accesses after it, stores before loads included.
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

impl SharedMemory for &[AtomicU32] {
    #[inline]
    fn words(&self) -> usize {
        self.len()
    }

    #[inline]
    fn load(&self, word: usize, order: Ordering) -> u32 {
        self[word].load(order)
    }

    #[inline]
    fn store(&self, word: usize, value: u32, order: Ordering) {
        self[word].store(value, order);
    }
}

/// Mapped pages that are shared with another domain.
#[derive(Clone, Copy, Debug)]
pub struct Shared<'a>(&'a [AtomicU32]);

impl<'a> Shared<'a> {
    /// Uses words that live in Rust's own memory, for example a static page that is granted to the peer.
    #[must_use]
    pub const fn new(words: &'a [AtomicU32]) -> Self {
        Self(words)
    }

    /// Uses `bytes` bytes from `start` on.
    ///
    /// # Safety
    /// For the whole of `'a` the memory must stay mapped, readable and writable, and nothing in this program may
    /// access it but by atomic accesses of 32 bits, which is what every handle made here does. `start` must be aligned
    /// to four bytes; what remains of `bytes` behind the last whole word is not used. The peer may write it in any
    /// manner: to this program it is a device.
    #[must_use]
    #[expect(unsafe_code, reason = "the one place where mapped memory becomes a value")]
    pub const unsafe fn from_raw(start: *mut u8, bytes: usize) -> Self {
        let words = bytes / size_of::<AtomicU32>();
        // SAFETY: the caller keeps the memory mapped for 'a and aligned; AtomicU32 has the layout of u32, for which
        // any bits are a value, and allows for changes at any time through a shared reference.
        Self(unsafe { core::slice::from_raw_parts(start.cast::<AtomicU32>(), words) })
    }
}

impl SharedMemory for Shared<'_> {
    #[inline]
    fn words(&self) -> usize {
        self.0.len()
    }

    #[inline]
    fn load(&self, word: usize, order: Ordering) -> u32 {
        self.0[word].load(order)
    }

    #[inline]
    fn store(&self, word: usize, value: u32, order: Ordering) {
        self.0[word].store(value, order);
    }
}
