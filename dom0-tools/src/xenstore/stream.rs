// SPDX-License-Identifier: MIT OR Apache-2.0
//! A client's two byte streams, apart from what carries them.
//!
//! In: bytes of a message that is not whole yet. Out: whole messages that the client has not yet taken,
//! the first perhaps in part. Both are counted as the ring counts, modulo 2^32, so that the counters in a
//! ring's page can be compared with them: after a restart the page's own counter says how much of the
//! output has been delivered ([`Stream::resume`]).

use std::collections::VecDeque;

use guest_abi::num::{low_u32, to_usize};

/// From so many waiting messages on, an event that waits already is not queued again.
const CROWDED: usize = 32;

/// The state of one connection's streams.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stream {
    /// Bytes taken from the client, in all.
    taken: u32,
    partial: Vec<u8>,
    /// Bytes delivered to the client, in all.
    said: u32,
    queue: VecDeque<Vec<u8>>,
    /// Bytes of the first message in the queue that are delivered.
    offset: usize,
    pending: usize,
}

/// The counter in the page cannot be one that this program has put there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the ring says that {claimed} bytes were delivered, of {pending}")]
pub struct NotOurs {
    claimed: u32,
    pending: usize,
}

impl Stream {
    /// Streams whose counters stand at these numbers.
    #[must_use]
    pub fn new(taken: u32, said: u32) -> Self {
        Self { taken, said, ..Self::default() }
    }

    /// The counter of bytes taken.
    #[must_use]
    pub fn taken(&self) -> u32 {
        self.taken
    }

    /// The counter of bytes delivered.
    #[must_use]
    pub fn said(&self) -> u32 {
        self.said
    }

    /// The message that is not whole yet.
    #[must_use]
    pub fn partial(&self) -> &[u8] {
        &self.partial
    }

    /// Bytes that wait to be delivered.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// Bytes have been taken that do not make the message whole.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.taken = self.taken.wrapping_add(low_u32(bytes.len() as u64));
        self.partial.extend_from_slice(bytes);
    }

    /// The last `count` bytes of a message have been taken.
    pub fn finish(&mut self, count: u32) {
        self.taken = self.taken.wrapping_add(count);
        self.partial.clear();
    }

    /// Whether an event need not be queued: the same one waits, and the queue is long.
    #[must_use]
    pub fn is_redundant(&self, event: &[u8]) -> bool {
        self.queue.len() >= CROWDED && self.queue.iter().skip(1).any(|waiting| waiting == event)
    }

    /// Queues bytes.
    pub fn say(&mut self, bytes: Vec<u8>) {
        self.pending += bytes.len();
        self.queue.push_back(bytes);
    }

    /// The next bytes to deliver, in one piece of at most the first message.
    #[must_use]
    pub fn next(&self) -> &[u8] {
        self.queue.front().map_or(&[], |first| &first[self.offset..])
    }

    /// All that waits.
    #[must_use]
    pub fn rest(&self) -> Vec<u8> {
        let all = self.queue.iter().flatten();
        all.skip(self.offset).copied().collect()
    }

    /// So many bytes have been delivered.
    ///
    /// # Panics
    /// If they are more than wait.
    pub fn delivered(&mut self, mut count: usize) {
        assert!(count <= self.pending, "{count} of {} bytes", self.pending);
        self.said = self.said.wrapping_add(low_u32(count as u64));
        self.pending -= count;
        while count > 0 {
            let left = self.next().len();
            if count < left {
                self.offset += count;
                return;
            }
            count -= left;
            self.offset = 0;
            self.queue.pop_front();
        }
    }

    /// The ring says that its counter of bytes delivered stands at `said`.
    ///
    /// # Errors
    /// More than there was to deliver: somebody else has written the counter.
    pub fn resume(&mut self, said: u32) -> Result<(), NotOurs> {
        let claimed = said.wrapping_sub(self.said);
        let count = to_usize(u64::from(claimed));
        if count > self.pending {
            return Err(NotOurs { claimed, pending: self.pending });
        }
        self.delivered(count);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_delivered_is_counted_across_messages_and_the_wrap() {
        let mut stream = Stream::new(0, u32::MAX - 2);
        stream.say(b"abcd".to_vec());
        stream.say(b"efg".to_vec());
        assert_eq!((stream.next(), stream.pending()), (&b"abcd"[..], 7));
        stream.delivered(5);
        assert_eq!((stream.next(), stream.said(), stream.rest()), (&b"fg"[..], 2, b"fg".to_vec()));
        assert_eq!(stream.resume(3), Ok(()));
        assert_eq!(stream.rest(), b"g");
        assert_eq!(stream.resume(5), Err(NotOurs { claimed: 2, pending: 1 }));
        assert!(stream.resume(2).is_err(), "a counter that went back");
    }

    #[test]
    fn an_event_is_redundant_only_in_a_long_queue_that_holds_it_whole() {
        let mut stream = Stream::default();
        stream.say(b"x".to_vec());
        for _ in 1..CROWDED - 1 {
            stream.say(b"y".to_vec());
        }
        assert!(!stream.is_redundant(b"y"));
        stream.say(b"z".to_vec());
        assert!(stream.is_redundant(b"y"));
        assert!(!stream.is_redundant(b"x"), "the first may be under way");
    }
}
