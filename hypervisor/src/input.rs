// SPDX-License-Identifier: MIT OR Apache-2.0
//! What was typed on the console and not yet read by dom0.

use alloc::collections::VecDeque;

use spin::Mutex;

const CAPACITY: usize = 4096;

/// A bounded queue of bytes; what finds no room is dropped.
pub struct InputRing(Mutex<VecDeque<u8>>);

impl Default for InputRing {
    /// An empty queue.
    fn default() -> Self {
        Self(Mutex::new(VecDeque::with_capacity(CAPACITY)))
    }
}

impl InputRing {
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

    /// Puts bytes back that were taken and could not be delivered, to be taken first the next time.
    /// What has arrived since may have used up their room; then the last of it is dropped.
    pub fn put_back(&self, taken: &[u8]) {
        let mut bytes = self.0.lock();
        bytes.truncate(CAPACITY - taken.len().min(CAPACITY));
        for byte in taken.iter().rev() {
            bytes.push_front(*byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(ring: &InputRing, len: usize) -> std::vec::Vec<u8> {
        let mut buffer = std::vec![0; len];
        let len = ring.take(&mut buffer);
        buffer.truncate(len);
        buffer
    }

    #[test]
    fn bytes_come_in_order_and_what_finds_no_room_is_dropped() {
        let ring = InputRing::default();
        assert!(taken(&ring, 4).is_empty());
        (0..5000_u32).for_each(|i| ring.push(i.to_le_bytes()[0]));
        assert_eq!(taken(&ring, 3), [0, 1, 2]);
        assert_eq!(taken(&ring, 5000).len(), CAPACITY - 3);
    }

    #[test]
    fn what_is_put_back_comes_first_and_the_queue_stays_bounded() {
        let ring = InputRing::default();
        b"abc".iter().for_each(|byte| ring.push(*byte));
        assert_eq!(taken(&ring, 2), b"ab");
        ring.put_back(b"ab");
        assert_eq!(taken(&ring, 9), b"abc");
        (0..CAPACITY).for_each(|_| ring.push(b'x'));
        ring.put_back(b"ab");
        assert_eq!(taken(&ring, 3), b"abx");
        assert_eq!(taken(&ring, 5000).len(), CAPACITY - 3);
    }
}
