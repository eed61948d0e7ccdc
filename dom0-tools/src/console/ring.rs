// SPDX-License-Identifier: MIT OR Apache-2.0
//! The console ring from the backend's side.
//!
//! The page belongs to the guest, which may write anything anywhere at any time. So the two counters that are ours are
//! kept here and only published in the page; the two of the guest are read once for each step, and a difference
//! that the ring cannot hold ends the connection. Bytes are copied out before they are looked at.

use std::fmt;
use std::sync::atomic::Ordering;

use guest_abi::console::{
    CONSOLE_IN, CONSOLE_IN_CONS, CONSOLE_IN_PROD, CONSOLE_IN_SIZE, CONSOLE_OUT, CONSOLE_OUT_CONS, CONSOLE_OUT_PROD,
    CONSOLE_OUT_SIZE,
};
use guest_abi::num::{low_u32, to_usize};

use crate::sys::Mapping;

/// The guest's counters cannot be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingError {
    direction: &'static str,
    produced: u32,
    consumed: u32,
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { direction, produced, consumed } = self;
        write!(f, "its {direction} ring holds from byte {consumed:#x} to {produced:#x}, more than there is room for")
    }
}

/// A console ring that is being served.
#[derive(Debug)]
pub struct ConsoleRing {
    page: Mapping,
    /// Bytes of the guest that were taken.
    taken: u32,
    /// Bytes that were given to the guest.
    given: u32,
}

impl ConsoleRing {
    /// Serves a page, from where the last backend stopped.
    #[must_use]
    pub fn new(page: Mapping) -> Self {
        // Acquire has nobody to pair with here: whoever wrote these before us is gone.
        let taken = page.atomic_u32(CONSOLE_OUT_CONS).load(Ordering::Relaxed);
        let given = page.atomic_u32(CONSOLE_IN_PROD).load(Ordering::Relaxed);
        Self { page, taken, given }
    }

    /// Appends what the guest has written to `bytes`, and says how much that was.
    ///
    /// # Errors
    /// The guest's counter cannot be true.
    pub fn take(&mut self, bytes: &mut Vec<u8>) -> Result<usize, RingError> {
        // Acquire: the bytes that the counter covers are read after it.
        let produced = self.page.atomic_u32(CONSOLE_OUT_PROD).load(Ordering::Acquire);
        let count = produced.wrapping_sub(self.taken);
        if count > low_u32(CONSOLE_OUT_SIZE as u64) {
            return Err(RingError { direction: "output", produced, consumed: self.taken });
        }
        let count = to_usize(count.into());
        let start = bytes.len();
        bytes.resize(start + count, 0);
        let at = to_usize(self.taken.into()) % CONSOLE_OUT_SIZE;
        let first = count.min(CONSOLE_OUT_SIZE - at);
        self.page.read(CONSOLE_OUT + at, &mut bytes[start..start + first]);
        self.page.read(CONSOLE_OUT, &mut bytes[start + first..]);
        self.taken = produced;
        // Release: the guest may write over the bytes only after they were read.
        self.page.atomic_u32(CONSOLE_OUT_CONS).store(self.taken, Ordering::Release);
        Ok(count)
    }

    /// Gives the guest as many of the bytes as there is room for, and says how many.
    ///
    /// # Errors
    /// The guest's counter cannot be true.
    pub fn give(&mut self, bytes: &[u8]) -> Result<usize, RingError> {
        // Acquire: what is free may be written only after the guest has read it.
        let consumed = self.page.atomic_u32(CONSOLE_IN_CONS).load(Ordering::Acquire);
        let used = self.given.wrapping_sub(consumed);
        if used > low_u32(CONSOLE_IN_SIZE as u64) {
            return Err(RingError { direction: "input", produced: self.given, consumed });
        }
        let count = bytes.len().min(CONSOLE_IN_SIZE - to_usize(used.into()));
        let at = to_usize(self.given.into()) % CONSOLE_IN_SIZE;
        let first = count.min(CONSOLE_IN_SIZE - at);
        self.page.write(CONSOLE_IN + at, &bytes[..first]);
        self.page.write(CONSOLE_IN, &bytes[first..count]);
        self.given = self.given.wrapping_add(low_u32(count as u64));
        // Release: the guest sees the counter after the bytes.
        self.page.atomic_u32(CONSOLE_IN_PROD).store(self.given, Ordering::Release);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The ring, and the guest's view of the same page.
    fn ring() -> (ConsoleRing, Mapping) {
        let (ours, theirs) = Mapping::shared_pair(4096).unwrap();
        (ConsoleRing::new(ours), theirs)
    }

    fn counter(page: &Mapping, at: usize) -> u32 {
        page.atomic_u32(at).load(Ordering::SeqCst)
    }

    fn guest_writes(page: &Mapping, bytes: &[u8]) -> usize {
        let (prod, cons) = (counter(page, CONSOLE_OUT_PROD), counter(page, CONSOLE_OUT_CONS));
        let room = CONSOLE_OUT_SIZE - prod.wrapping_sub(cons) as usize;
        for (i, byte) in bytes.iter().take(room).enumerate() {
            page.write(CONSOLE_OUT + (prod as usize + i) % CONSOLE_OUT_SIZE, &[*byte]);
        }
        let count = bytes.len().min(room);
        page.atomic_u32(CONSOLE_OUT_PROD).store(prod.wrapping_add(low_u32(count as u64)), Ordering::SeqCst);
        count
    }

    fn guest_reads(page: &Mapping, limit: usize) -> Vec<u8> {
        let (prod, cons) = (counter(page, CONSOLE_IN_PROD), counter(page, CONSOLE_IN_CONS));
        let count = limit.min(prod.wrapping_sub(cons) as usize);
        let byte = |i: usize| {
            let mut byte = [0];
            page.read(CONSOLE_IN + (cons as usize + i) % CONSOLE_IN_SIZE, &mut byte);
            byte[0]
        };
        let bytes = (0..count).map(byte).collect();
        page.atomic_u32(CONSOLE_IN_CONS).store(cons.wrapping_add(low_u32(count as u64)), Ordering::SeqCst);
        bytes
    }

    #[test]
    fn another_backend_goes_on_where_the_last_one_stopped() {
        let (mut first, guest) = ring();
        guest_writes(&guest, b"before");
        let mut got = Vec::new();
        first.take(&mut got).unwrap();
        first.give(b"typed").unwrap();
        guest_writes(&guest, b"after");
        let mut second = ConsoleRing::new(first.page);
        second.give(b" more").unwrap();
        second.take(&mut got).unwrap();
        assert_eq!((got.as_slice(), guest_reads(&guest, 99).as_slice()), (&b"beforeafter"[..], &b"typed more"[..]));
    }

    #[test]
    fn counters_that_cannot_be_true_end_the_connection() {
        let (mut ring, guest) = ring();
        guest.atomic_u32(CONSOLE_OUT_PROD).store(2049, Ordering::SeqCst);
        assert!(ring.take(&mut Vec::new()).unwrap_err().to_string().contains("output"));
        guest.atomic_u32(CONSOLE_OUT_PROD).store(2048, Ordering::SeqCst);
        assert_eq!(ring.take(&mut Vec::new()), Ok(2048));
        guest.atomic_u32(CONSOLE_OUT_PROD).store(2047, Ordering::SeqCst);
        assert!(ring.take(&mut Vec::new()).is_err(), "a counter that goes back");
        guest.atomic_u32(CONSOLE_IN_CONS).store(1, Ordering::SeqCst);
        assert!(ring.give(b"x").unwrap_err().to_string().contains("input"));
    }

    proptest! {
        #[test]
        fn bytes_arrive_once_and_in_order_whoever_writes_over_the_rest_of_the_page(
            start: u32, steps in proptest::collection::vec((0..4_u8, 0..1500_usize), 1..60)
        ) {
            let (ring, guest) = ring();
            for at in [CONSOLE_OUT_PROD, CONSOLE_OUT_CONS, CONSOLE_IN_PROD, CONSOLE_IN_CONS] {
                guest.atomic_u32(at).store(start, Ordering::SeqCst);
            }
            let mut ring = ConsoleRing::new(ring.page);
            let (mut out, mut sent_out, mut next_out) = (Vec::new(), Vec::<u8>::new(), 0_u8);
            let (mut inn, mut sent_in, mut next_in) = (Vec::new(), Vec::<u8>::new(), 0_u8);
            for (kind, length) in steps {
                match kind {
                    0 => {
                        let bytes: Vec<u8> = (0..length).map(|i| next_out.wrapping_add(low_u32(i as u64).to_le_bytes()[0])).collect();
                        let count = guest_writes(&guest, &bytes);
                        sent_out.extend(&bytes[..count]);
                        next_out = next_out.wrapping_add(low_u32(count as u64).to_le_bytes()[0]);
                    }
                    1 => drop(ring.take(&mut out).unwrap()),
                    2 => {
                        let bytes: Vec<u8> = (0..length).map(|i| next_in.wrapping_add(low_u32(i as u64).to_le_bytes()[0])).collect();
                        let count = ring.give(&bytes).unwrap();
                        sent_in.extend(&bytes[..count]);
                        next_in = next_in.wrapping_add(low_u32(count as u64).to_le_bytes()[0]);
                        // The guest cannot move our own counters.
                        guest.atomic_u32(CONSOLE_IN_PROD).store(counter(&guest, CONSOLE_IN_PROD), Ordering::SeqCst);
                    }
                    _ => inn.extend(guest_reads(&guest, length)),
                }
            }
            ring.take(&mut out).unwrap();
            inn.extend(guest_reads(&guest, CONSOLE_IN_SIZE));
            prop_assert!(out == sent_out && inn == sent_in);
        }

        #[test]
        fn a_guest_that_writes_garbage_gets_no_more_than_a_ring_at_once(words in proptest::collection::vec((0..4_usize, any::<u32>()), 1..50)) {
            let (mut ring, guest) = ring();
            for (which, value) in words {
                let at = [CONSOLE_OUT_PROD, CONSOLE_OUT_CONS, CONSOLE_IN_PROD, CONSOLE_IN_CONS][which];
                guest.atomic_u32(at).store(value, Ordering::SeqCst);
                let mut bytes = Vec::new();
                if let Ok(count) = ring.take(&mut bytes) {
                    prop_assert!(count <= CONSOLE_OUT_SIZE && bytes.len() == count);
                }
                if let Ok(count) = ring.give(&[7; 3000]) {
                    prop_assert!(count <= CONSOLE_IN_SIZE);
                }
            }
        }
    }
}
