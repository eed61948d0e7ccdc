// SPDX-License-Identifier: MIT OR Apache-2.0
//! The byte ring: a stream one way.
//!
//! Two indices that run freely over 32 bits and a power of two of bytes; where they lie in the page is the protocol's
//! matter ([`ByteLayout`]). The producer owns the bytes that are free and the consumer those that are not, so only
//! the producer ever writes data: putting bytes next to others in a word disturbs nobody.
//!
//! *Sleeping.* There is no word in which an end asks for an event, so an end that has moved its index sends one. Some
//! economize: Linux' xenbus sends one only if the other end seemed to have nothing left to do. That is why each end
//! here publishes its index, then has a full fence, then reads the other's index again before it sleeps: sleep only
//! after a [`ByteConsumer::read`] that gave 0, or a [`ByteProducer::write`] that took less than all *again*.
//!
//! Source: `xen/include/public/io/console.h` and `xs_wire.h` at 4.17.

use core::sync::atomic::Ordering;

use super::{Lie, SharedMemory};

const WORD: usize = size_of::<u32>();

/// Where a byte ring lies in its memory: byte offsets, all multiples of four.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteLayout {
    data: usize,
    size: u32,
    cons: usize,
    prod: usize,
}

impl ByteLayout {
    /// Describes a ring of `size` bytes at `data`, with its indices at `cons` and `prod`.
    ///
    /// # Panics
    /// If `size` is not a power of two from 4 on, or an offset not a multiple of four: checked at compile time where
    /// layouts are constants.
    #[must_use]
    pub const fn new(data: usize, size: u32, cons: usize, prod: usize) -> Self {
        assert!(size.is_power_of_two() && size as usize >= WORD, "an index modulo the size must be a position");
        assert!(
            data.is_multiple_of(WORD) && cons.is_multiple_of(WORD) && prod.is_multiple_of(WORD),
            "memory is accessed by words"
        );
        Self { data, size, cons, prod }
    }

    /// Bytes that the ring holds.
    #[must_use]
    pub const fn size(&self) -> u32 {
        self.size
    }

    /// Whether the memory is large enough for it.
    fn fits(&self, memory: &impl SharedMemory) -> bool {
        let words = memory.words();
        (self.data + self.size as usize).div_ceil(WORD) <= words && self.cons / WORD < words && self.prod / WORD < words
    }

    /// The word that holds the byte with an index, and its place in it.
    const fn place(&self, index: u32) -> (usize, usize) {
        let at = self.data + (index & (self.size - 1)) as usize;
        (at / WORD, at % WORD)
    }
}

/// The end that writes.
#[derive(Debug)]
pub struct ByteProducer<M> {
    memory: M,
    layout: ByteLayout,
    produced: u32,
    broken: Option<Lie>,
}

/// The end that reads.
#[derive(Debug)]
pub struct ByteConsumer<M> {
    memory: M,
    layout: ByteLayout,
    consumed: u32,
    broken: Option<Lie>,
}

impl<M: SharedMemory> ByteProducer<M> {
    /// Goes on where the page says that the producer is: at 0 in a new one.
    ///
    /// # Panics
    /// If the memory is too small for the layout: the caller's own bug.
    pub fn attach(memory: M, layout: ByteLayout) -> Self {
        assert!(layout.fits(&memory), "the ring does not fit its memory");
        let produced = memory.load(layout.prod / WORD, Ordering::Relaxed);
        Self { memory, layout, produced, broken: None }
    }

    /// How many bytes the next [`ByteProducer::write`] can take.
    ///
    /// # Errors
    /// [`Lie`] if the consumer claims to have read what was never written.
    pub fn space(&mut self) -> Result<u32, Lie> {
        if let Some(lie) = self.broken {
            return Err(lie);
        }
        // Acquire: the consumer has read the bytes that it says it has before they are written over.
        let consumed = self.memory.load(self.layout.cons / WORD, Ordering::Acquire);
        let full = Lie { claimed: consumed, from: self.produced, bound: self.layout.size };
        let unread = self.produced.wrapping_sub(consumed);
        if unread > self.layout.size {
            self.broken = Some(full);
            return Err(full);
        }
        Ok(self.layout.size - unread)
    }

    /// Writes as much of `bytes` as there is room for and tells how much. The peer is to be sent an event unless that
    /// is 0.
    ///
    /// # Errors
    /// [`Lie`] as [`ByteProducer::space`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, Lie> {
        let len = bytes.len().min(self.space()? as usize);
        let (mut rest, mut index) = (&bytes[..len], self.produced);
        while !rest.is_empty() {
            let (word, at) = self.layout.place(index);
            let (now, later) = rest.split_at(rest.len().min(WORD - at));
            let mut raw =
                if now.len() == WORD { [0; WORD] } else { self.memory.load(word, Ordering::Relaxed).to_le_bytes() };
            raw[at..at + now.len()].copy_from_slice(now);
            self.memory.store(word, u32::from_le_bytes(raw), Ordering::Relaxed);
            rest = later;
            index = index.wrapping_add(small(now.len()));
        }
        if len != 0 {
            self.produced = index;
            // Release: the bytes are written before the index that says so.
            self.memory.store(self.layout.prod / WORD, index, Ordering::Release);
        }
        // The index is out before the consumer's is read again, by a caller that wants to sleep.
        self.memory.fence();
        Ok(len)
    }
}

impl<M: SharedMemory> ByteConsumer<M> {
    /// Goes on where the page says that the consumer is: at 0 in a new one.
    ///
    /// # Panics
    /// If the memory is too small for the layout: the caller's own bug.
    pub fn attach(memory: M, layout: ByteLayout) -> Self {
        assert!(layout.fits(&memory), "the ring does not fit its memory");
        let consumed = memory.load(layout.cons / WORD, Ordering::Relaxed);
        Self { memory, layout, consumed, broken: None }
    }

    /// How many bytes there are to read.
    ///
    /// # Errors
    /// [`Lie`] if there are more than the ring holds.
    pub fn available(&mut self) -> Result<u32, Lie> {
        if let Some(lie) = self.broken {
            return Err(lie);
        }
        // Acquire: the bytes that the producer wrote before this index are seen.
        let produced = self.memory.load(self.layout.prod / WORD, Ordering::Acquire);
        Lie::check(produced, self.consumed, self.layout.size).inspect_err(|lie| self.broken = Some(*lie))
    }

    /// Reads what there is, as far as `bytes` has room, and tells how much. The peer is to be sent an event unless
    /// that is 0: it may wait for room.
    ///
    /// # Errors
    /// [`Lie`] as [`ByteConsumer::available`].
    pub fn read(&mut self, bytes: &mut [u8]) -> Result<usize, Lie> {
        let len = bytes.len().min(self.available()? as usize);
        let (mut rest, mut index) = (&mut bytes[..len], self.consumed);
        while !rest.is_empty() {
            let (word, at) = self.layout.place(index);
            let count = rest.len().min(WORD - at);
            let (now, later) = rest.split_at_mut(count);
            let raw = self.memory.load(word, Ordering::Relaxed).to_le_bytes();
            now.copy_from_slice(&raw[at..at + count]);
            rest = later;
            index = index.wrapping_add(small(count));
        }
        if len != 0 {
            self.consumed = index;
            // Release: the bytes are read before the producer may write over them.
            self.memory.store(self.layout.cons / WORD, index, Ordering::Release);
        }
        // The index is out before the producer's is read again, by a caller that wants to sleep.
        self.memory.fence();
        Ok(len)
    }
}

/// A length of at most a word.
const fn small(len: usize) -> u32 {
    crate::num::low_u32(len as u64)
}
