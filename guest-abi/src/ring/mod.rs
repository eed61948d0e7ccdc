// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rings: how two domains that do not trust each other pass requests and bytes through a shared page.
//!
//! There are two kinds, and each is written once. A **slot ring** ([`Front`], [`Back`]) carries requests one way and
//! responses the other in the same slots; block and network devices use it. A **byte ring** ([`ByteProducer`],
//! [`ByteConsumer`]) carries a stream one way; console and xenstore are two of them in a page.
//!
//! What holds for both:
//!
//! - The peer can write every byte of the page at any time. So this side keeps its own indices in memory of its own and
//!   only ever *tells* them to the peer; it never reads back what it wrote.
//! - Of the peer's words exactly one is believed, after a check: how far it has got. What cannot be is a [`Lie`], and
//!   with it the connection ends: every later call gives the same error. There is no resynchronizing with a liar.
//! - An entry is copied out once and parsed from the copy. No reference into shared memory ever exists, so nothing can
//!   change between a check and the use of what was checked.
//! - Nothing waits, loops without bound, allocates or panics, whatever the page holds.
//!
//! Signalling is the caller's: [`Front::publish`] says whether the peer wants an event, and [`Front::arm`] is asked
//! before sleeping. Why no wake-up gets lost is argued in `docs/src/design/rings.md` and checked over all
//! interleavings in `tests/loom.rs`.
//!
//! What lies in the slots of a device is in [`crate::io`].
//!
//! Source: `xen/include/public/io/ring.h` at 4.17.

mod bytes;
mod memory;
#[cfg(any(test, feature = "mock"))]
pub mod mock;
mod slots;
#[cfg(test)]
mod tests;

use core::fmt;

pub use bytes::{ByteConsumer, ByteLayout, ByteProducer};
pub use memory::{Shared, SharedMemory};
pub use slots::{
    Back, BackRole, Front, FrontRole, HEADER, Half, MAX_ENTRY, Protocol, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD,
    Role, entries_in,
};

/// The peer's index is none that it can have reached: the peer is broken or hostile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lie {
    /// What the peer's index says.
    pub claimed: u32,
    /// Where this side stands.
    pub from: u32,
    /// How far from there the peer's index can be at most.
    pub bound: u32,
}

impl fmt::Display for Lie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { claimed, from, bound } = self;
        write!(f, "the peer's index is {claimed:#x}, which is not within {bound} of {from:#x}")
    }
}

impl core::error::Error for Lie {}

impl Lie {
    /// How far `claimed` is ahead of `from`, if it can be.
    pub(crate) const fn check(claimed: u32, from: u32, bound: u32) -> Result<u32, Self> {
        let ahead = claimed.wrapping_sub(from);
        if ahead <= bound { Ok(ahead) } else { Err(Self { claimed, from, bound }) }
    }
}

/// Why a ring did not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingError {
    /// There is no slot to write to: on a front too many requests are unanswered, on a back every request that was
    /// taken has its response.
    Full,
    /// The peer lied; the connection is over.
    Lie(Lie),
}

impl From<Lie> for RingError {
    fn from(lie: Lie) -> Self {
        Self::Lie(lie)
    }
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the ring has no free slot"),
            Self::Lie(lie) => lie.fmt(f),
        }
    }
}

impl core::error::Error for RingError {}

/// The memory is too small for a ring, or not a whole number of words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooSmall;

impl fmt::Display for TooSmall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the memory has no room for one entry")
    }
}

impl core::error::Error for TooSmall {}

/// Whether the peer asked to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a peer that sleeps and is not told sleeps for ever"]
pub enum Notify {
    /// Send an event over the channel.
    Peer,
    /// The peer is awake, or wants to hear of more first.
    Nobody,
}

impl Notify {
    /// Whether an event is to be sent.
    #[must_use]
    pub const fn is_needed(self) -> bool {
        matches!(self, Self::Peer)
    }
}
