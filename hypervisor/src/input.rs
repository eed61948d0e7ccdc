// SPDX-License-Identifier: MIT OR Apache-2.0
//! What was typed on the console and not yet read by dom0.

use alloc::collections::VecDeque;

use spin::Mutex;

const CAPACITY: usize = 4096;

/// A bounded queue of bytes; what finds no room is dropped.
pub struct InputRing(Mutex<VecDeque<u8>>);

impl InputRing {
    /// An empty queue.
    #[must_use]
    pub fn new() -> Self {
        Self(Mutex::new(VecDeque::with_capacity(CAPACITY)))
    }

    /// Adds a byte if there is room.
    pub fn push(&self, byte: u8) {
        let mut bytes = self.0.lock();
        if bytes.len() < CAPACITY {
            bytes.push_back(byte);
        }
    }

    /// Takes up to `buffer.len()` bytes; returns how many.
    pub fn take(&self, buffer: &mut [u8]) -> usize {
        let mut bytes = self.0.lock();
        let len = buffer.len().min(bytes.len());
        for (slot, byte) in buffer.iter_mut().zip(bytes.drain(..len)) {
            *slot = byte;
        }
        len
    }
}

impl Default for InputRing {
    fn default() -> Self {
        Self::new()
    }
}
