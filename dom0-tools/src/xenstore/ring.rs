// SPDX-License-Identifier: MIT OR Apache-2.0
//! The page that carries a domain's messages, from the daemon's side.
//!
//! The peer may write any byte of it at any time. What is ours in it, the counters of requests taken and
//! answers given, is written there and never read back (but once after a restart); what is the peer's is
//! read once for each use and believed only within bounds.

use std::sync::atomic::{Ordering, fence};

use guest_abi::io::xs_wire::{
    RING_CONNECTED, RING_CONNECTION, RING_ERROR, RING_FEATURE_ERROR, RING_FEATURE_RECONNECTION, RING_RECONNECT,
    RING_REQ, RING_REQ_CONS, RING_REQ_PROD, RING_RSP, RING_RSP_CONS, RING_RSP_PROD, RING_SERVER_FEATURES, RING_SIZE,
};
use guest_abi::num::{low_u32, to_usize};

use crate::sys::Mapping;

/// The peer's counter cannot be true.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("its ring's counters are {prod:#x} and {cons:#x}, more than {RING_SIZE} apart")]
pub struct WildCounters {
    prod: u32,
    cons: u32,
}

/// The page.
#[derive(Clone, Copy, Debug)]
pub struct Ring<'a>(pub &'a Mapping);

fn distance(prod: u32, cons: u32) -> Result<usize, WildCounters> {
    let distance = to_usize(u64::from(prod.wrapping_sub(cons)));
    if distance <= RING_SIZE { Ok(distance) } else { Err(WildCounters { prod, cons }) }
}

fn index(counter: u32) -> usize {
    to_usize(u64::from(counter)) % RING_SIZE
}

impl Ring<'_> {
    fn load(&self, offset: usize) -> u32 {
        self.0.atomic_u32(offset).load(Ordering::Acquire)
    }

    fn store(&self, offset: usize, value: u32) {
        // Whoever sees the counter sees the bytes that it counts.
        self.0.atomic_u32(offset).store(value, Ordering::Release);
        // And what is read next is read after the peer can see it: of two that look at each other's
        // counter and then sleep, one must see the other's.
        fence(Ordering::SeqCst);
    }

    /// The counters of requests taken and answers given, as the page has them.
    #[must_use]
    pub fn counters(&self) -> (u32, u32) {
        (self.load(RING_REQ_CONS), self.load(RING_RSP_PROD))
    }

    /// Copies at most `want` bytes of requests that follow the first `taken`.
    ///
    /// # Errors
    /// The peer's counter is wild.
    pub fn pull(&self, taken: u32, want: usize) -> Result<Vec<u8>, WildCounters> {
        let there = distance(self.load(RING_REQ_PROD), taken)?;
        let mut bytes = vec![0; there.min(want)];
        let (first, second) = bytes.split_at_mut(there.min(want).min(RING_SIZE - index(taken)));
        self.0.read(RING_REQ + index(taken), first);
        self.0.read(RING_REQ, second);
        Ok(bytes)
    }

    /// Tells the peer that so many bytes of requests have been taken in all.
    pub fn publish_taken(&self, taken: u32) {
        self.store(RING_REQ_CONS, taken);
    }

    /// Puts bytes of answers behind the first `said`, as many as there is room for, and says how many.
    ///
    /// # Errors
    /// The peer's counter is wild.
    pub fn push(&self, said: u32, bytes: &[u8]) -> Result<usize, WildCounters> {
        let room = RING_SIZE - distance(said, self.load(RING_RSP_CONS))?;
        let bytes = &bytes[..bytes.len().min(room)];
        let (first, second) = bytes.split_at(bytes.len().min(RING_SIZE - index(said)));
        self.0.write(RING_RSP + index(said), first);
        self.0.write(RING_RSP, second);
        Ok(bytes.len())
    }

    /// Tells the peer that so many bytes of answers have been given in all.
    pub fn publish_said(&self, said: u32) {
        self.store(RING_RSP_PROD, said);
    }

    /// Tells the peer what this daemon can do.
    pub fn offer(&self) {
        self.store(RING_SERVER_FEATURES, RING_FEATURE_RECONNECTION | RING_FEATURE_ERROR);
    }

    /// Tells the peer why it is not served any more, or that it is.
    pub fn set_error(&self, error: u32) {
        self.store(RING_ERROR, error);
    }

    /// Whether the peer asks for a fresh connection.
    #[must_use]
    pub fn wants_reconnection(&self) -> bool {
        self.load(RING_CONNECTION) == RING_RECONNECT
    }

    /// Begins anew, with all counters at zero, and tells the peer so.
    pub fn reset(&self) {
        for offset in [RING_REQ_CONS, RING_REQ_PROD, RING_RSP_CONS, RING_RSP_PROD] {
            self.store(offset, 0);
        }
        self.set_error(guest_abi::io::xs_wire::RING_ERROR_NONE);
        self.store(RING_CONNECTION, RING_CONNECTED);
    }
}

/// The peer's side, for tests: what a kernel does.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a>(pub &'a Mapping);

impl Peer<'_> {
    /// Puts bytes of requests into the ring, as many as there is room for.
    #[must_use]
    pub fn write(&self, bytes: &[u8]) -> usize {
        let (prod, cons) = (Ring(self.0).load(RING_REQ_PROD), Ring(self.0).load(RING_REQ_CONS));
        let count = bytes.len().min(RING_SIZE - distance(prod, cons).unwrap_or(RING_SIZE));
        for (i, byte) in bytes[..count].iter().enumerate() {
            self.0.write(RING_REQ + index(prod.wrapping_add(low_u32(i as u64))), &[*byte]);
        }
        Ring(self.0).store(RING_REQ_PROD, prod.wrapping_add(low_u32(count as u64)));
        count
    }

    /// Takes what the daemon has put into the ring.
    #[must_use]
    pub fn read(&self) -> Vec<u8> {
        let (prod, cons) = (Ring(self.0).load(RING_RSP_PROD), Ring(self.0).load(RING_RSP_CONS));
        let count = distance(prod, cons).unwrap_or(0);
        let mut bytes = vec![0; count];
        for (i, byte) in bytes.iter_mut().enumerate() {
            self.0.read(RING_RSP + index(cons.wrapping_add(low_u32(i as u64))), std::slice::from_mut(byte));
        }
        Ring(self.0).store(RING_RSP_CONS, prod);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Mapping {
        let file = std::fs::OpenOptions::new().read(true).write(true).open("/dev/zero").unwrap();
        Mapping::of_shared_file(&file, 4096).unwrap()
    }

    #[test]
    fn bytes_go_both_ways_across_the_wrap() {
        let page = page();
        let (ring, peer) = (Ring(&page), Peer(&page));
        let (mut taken, mut said) = (0_u32, 0_u32);
        let message: Vec<u8> = (0..700_u16).map(|i| i.to_le_bytes()[0]).collect();
        for round in 0..10 {
            assert_eq!(peer.write(&message), 700, "round {round}");
            assert_eq!(peer.write(&message), 324, "the rest does not fit");
            assert_eq!(ring.pull(taken, 700).unwrap(), message);
            taken = taken.wrapping_add(1024);
            ring.publish_taken(taken);
            assert_eq!(ring.pull(taken, 700).unwrap(), b"");
            assert_eq!(ring.push(said, &message).unwrap(), 700);
            assert_eq!(peer.read(), b"", "not seen before it is published");
            said = said.wrapping_add(700);
            ring.publish_said(said);
            assert_eq!(ring.push(said, &message).unwrap(), 324);
            assert_eq!(peer.read(), message);
        }
    }

    #[test]
    fn wild_counters_are_errors() {
        let page = page();
        page.atomic_u32(RING_REQ_PROD).store(1025, Ordering::Relaxed);
        assert!(Ring(&page).pull(0, 16).is_err());
        assert_eq!(Ring(&page).pull(1, 16).unwrap().len(), 16);
        page.atomic_u32(RING_RSP_CONS).store(1, Ordering::Relaxed);
        assert!(Ring(&page).push(0, b"x").is_err(), "more consumed than produced");
    }
}
