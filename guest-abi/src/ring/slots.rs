// SPDX-License-Identifier: MIT OR Apache-2.0
//! The slot ring: requests one way, responses the other, in the same slots.
//!
//! Four words at the start of the memory, then the slots from byte 64 on, as many as fit, rounded down to a power of
//! two. All indices run freely over 32 bits; a slot is an index modulo the number of slots. A response takes the slot
//! of a request that was taken out before, not necessarily its own.
//!
//! The two halves differ only in which words are theirs and in how much room they have, so there is one type,
//! [`Half`], and a [`Role`] with the difference. Indices that this side has are its own fields; see the module above
//! for why.
//!
//! *Orders.* Publishing is: write the slots, then the index with release. Taking is: read the index with acquire, then
//! the slots. Hence whoever sees an index sees the slots before it, and whoever sees a response's index knows that the
//! request in that slot has been read. The full fences in [`Half::publish`] and [`Half::arm`] make the two of them a
//! store-then-load on each side: at least one side sees the other's store, so either the producer sends an event or
//! the consumer sees the entry.
//!
//! Source: `xen/include/public/io/ring.h` at 4.17.

use core::marker::PhantomData;
use core::sync::atomic::Ordering;

use super::{Lie, Notify, RingError, SharedMemory, TooSmall};
use crate::wire::Wire;

/// Bytes before the first slot.
pub const HEADER: usize = 64;
/// The largest slot that there is: a block request.
pub const MAX_ENTRY: usize = 112;
const WORD: usize = size_of::<u32>();

/// The word with the index of requests; the front writes it.
pub const REQ_PROD: usize = 0;
/// The word with the index at which the back wants an event.
pub const REQ_EVENT: usize = 1;
/// The word with the index of responses; the back writes it.
pub const RSP_PROD: usize = 2;
/// The word with the index at which the front wants an event.
pub const RSP_EVENT: usize = 3;

/// What a ring carries. Both are whole words, of at most [`MAX_ENTRY`] bytes.
pub trait Protocol {
    /// From the front to the back.
    type Request: Wire;
    /// From the back to the front.
    type Response: Wire;
}

/// A protocol's slot.
struct Slot<P>(PhantomData<P>);

impl<P: Protocol> Slot<P> {
    /// Words of it: the larger of request and response.
    const WORDS: usize = {
        let (request, response) = (P::Request::SIZE, P::Response::SIZE);
        assert!(request % WORD == 0 && response % WORD == 0, "what a slot holds is whole words");
        let bytes = if request > response { request } else { response };
        assert!(bytes > 0 && bytes <= MAX_ENTRY, "a slot holds something, and not too much");
        bytes / WORD
    };
}

/// Slots of `entry` bytes in a ring of `bytes` bytes; `None` if there is no room for one.
#[must_use]
pub const fn entries_in(bytes: usize, entry: usize) -> Option<u32> {
    if bytes < HEADER + entry {
        return None;
    }
    let fit = (bytes - HEADER) / entry;
    // More than 2^31 slots would need 8 GiB.
    if fit > 1 << 31 { None } else { Some(1 << fit.ilog2()) }
}

/// Which half of a ring.
pub trait Role: sealed::Sealed {
    /// What this half writes.
    type Out<P: Protocol>: Wire;
    /// What it reads.
    type In<P: Protocol>: Wire;
    #[doc(hidden)]
    const OUT_PROD: usize;
    #[doc(hidden)]
    const OUT_EVENT: usize;
    #[doc(hidden)]
    const IN_PROD: usize;
    #[doc(hidden)]
    const IN_EVENT: usize;
    /// Slots that may be written.
    #[doc(hidden)]
    fn space(at: &Indices) -> u32;
    /// How far ahead of what was taken the peer's index can be.
    #[doc(hidden)]
    fn bound(at: &Indices) -> u32;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::FrontRole {}
    impl Sealed for super::BackRole {}
}

/// Where a half stands.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Indices {
    slots: u32,
    /// Written up to here.
    produced: u32,
    /// The peer was told up to here.
    published: u32,
    /// Taken out up to here.
    consumed: u32,
    /// The peer's index as last read and checked.
    seen: u32,
}

#[cfg(test)]
impl Indices {
    /// As if so many entries had gone through.
    pub(super) const fn moved_to(self, index: u32) -> Self {
        Self { produced: index, published: index, consumed: index, seen: index, ..self }
    }
}

/// The half that makes requests.
#[derive(Debug)]
pub enum FrontRole {}

/// The half that answers.
#[derive(Debug)]
pub enum BackRole {}

impl Role for FrontRole {
    type Out<P: Protocol> = P::Request;
    type In<P: Protocol> = P::Response;
    const OUT_PROD: usize = REQ_PROD;
    const OUT_EVENT: usize = REQ_EVENT;
    const IN_PROD: usize = RSP_PROD;
    const IN_EVENT: usize = RSP_EVENT;

    fn space(at: &Indices) -> u32 {
        at.slots - at.produced.wrapping_sub(at.consumed)
    }

    /// A response answers a request that the peer was told of.
    fn bound(at: &Indices) -> u32 {
        at.published.wrapping_sub(at.consumed)
    }
}

impl Role for BackRole {
    type Out<P: Protocol> = P::Response;
    type In<P: Protocol> = P::Request;
    const OUT_PROD: usize = RSP_PROD;
    const OUT_EVENT: usize = RSP_EVENT;
    const IN_PROD: usize = REQ_PROD;
    const IN_EVENT: usize = REQ_EVENT;

    /// A response goes where a request has been taken out.
    fn space(at: &Indices) -> u32 {
        at.consumed.wrapping_sub(at.produced)
    }

    /// A request goes where nothing is that the front has not been told of.
    fn bound(at: &Indices) -> u32 {
        at.slots - at.consumed.wrapping_sub(at.published)
    }
}

/// One half of a ring; see [`Front`] and [`Back`].
#[derive(Debug)]
pub struct Half<P, R, M> {
    memory: M,
    pub(super) at: Indices,
    broken: Option<Lie>,
    of: PhantomData<fn() -> (P, R)>,
}

/// The half that makes requests and takes responses: a device's driver.
///
/// ```
/// use core::sync::atomic::AtomicU32;
/// use guest_abi::ring::{Back, Front, Notify, Protocol, Shared};
///
/// struct Doubler;
/// impl Protocol for Doubler {
///     type Request = u32;
///     type Response = u32;
/// }
///
/// let page = [const { AtomicU32::new(0) }; 1024];
/// let mut front = Front::<Doubler, _>::new(Shared::new(&page)).unwrap();
/// let mut back = Back::<Doubler, _>::attach(Shared::new(&page)).unwrap();
///
/// front.push(&21).unwrap();
/// assert_eq!(front.publish(), Notify::Peer);
/// let request = back.pop().unwrap().unwrap();
/// back.push(&(request * 2)).unwrap();
/// assert_eq!(back.publish(), Notify::Peer);
/// assert_eq!(front.pop(), Ok(Some(42)));
/// ```
pub type Front<P, M> = Half<P, FrontRole, M>;

/// The half that takes requests and makes responses: a device.
pub type Back<P, M> = Half<P, BackRole, M>;

impl<P: Protocol, M: SharedMemory> Half<P, FrontRole, M> {
    /// Makes an empty ring, of all of the memory. What was in it before is cleared, so the peer is shown nothing.
    ///
    /// # Errors
    /// [`TooSmall`].
    pub fn new(memory: M) -> Result<Self, TooSmall> {
        let half = Self::at(memory, 0)?;
        for word in 0..half.memory.words() {
            half.memory.store(word, 0, Ordering::Relaxed);
        }
        half.memory.store(REQ_EVENT, 1, Ordering::Relaxed);
        // The peer learns of the page through a hypercall; whoever hears of it sees it initialized.
        half.memory.store(RSP_EVENT, 1, Ordering::Release);
        Ok(half)
    }
}

impl<P: Protocol, M: SharedMemory> Half<P, BackRole, M> {
    /// Joins a ring that a front has made, where its responses end: at the start of a new one.
    ///
    /// A backend that was restarted takes requests up again that its predecessor had taken and not answered.
    ///
    /// # Errors
    /// [`RingError::Full`] if the memory is too small for a ring; [`RingError::Lie`] if there are more requests than
    /// slots.
    pub fn attach(memory: M) -> Result<Self, RingError> {
        let start = if memory.words() > RSP_PROD { memory.load(RSP_PROD, Ordering::Relaxed) } else { 0 };
        let mut half = Self::at(memory, start).map_err(|TooSmall| RingError::Full)?;
        half.look()?;
        Ok(half)
    }
}

impl<P: Protocol, R: Role, M: SharedMemory> Half<P, R, M> {
    fn at(memory: M, start: u32) -> Result<Self, TooSmall> {
        let slots = entries_in(memory.words() * WORD, Slot::<P>::WORDS * WORD).ok_or(TooSmall)?;
        let at = Indices { slots, produced: start, published: start, consumed: start, seen: start };
        Ok(Self { memory, at, broken: None, of: PhantomData })
    }

    /// How many slots the ring has.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        self.at.slots
    }

    /// How often [`Half::push`] will find room.
    #[must_use]
    pub fn space(&self) -> u32 {
        R::space(&self.at)
    }

    /// What has been pushed and not published.
    #[must_use]
    pub const fn unpublished(&self) -> u32 {
        self.at.produced.wrapping_sub(self.at.published)
    }

    /// The index of the entry that the next [`Half::pop`] gives, running freely.
    ///
    /// Network protocols tell by it which buffer a response is about.
    #[must_use]
    pub const fn next_in(&self) -> u32 {
        self.at.consumed
    }

    /// The index of the entry that the next [`Half::push`] writes, running freely.
    #[must_use]
    pub const fn next_out(&self) -> u32 {
        self.at.produced
    }

    /// Writes an entry, which the peer does not know of until [`Half::publish`].
    ///
    /// # Errors
    /// [`RingError::Full`]; [`RingError::Lie`] if the peer has lied before.
    pub fn push(&mut self, entry: &R::Out<P>) -> Result<(), RingError> {
        if let Some(lie) = self.broken {
            return Err(lie.into());
        }
        if self.space() == 0 {
            return Err(RingError::Full);
        }
        let mut bytes = [0; MAX_ENTRY];
        entry.to_bytes(&mut bytes);
        let first = self.first_word(self.at.produced);
        for (word, raw) in bytes[..<R::Out<P> as Wire>::SIZE].as_chunks::<WORD>().0.iter().enumerate() {
            self.memory.store(first + word, u32::from_le_bytes(*raw), Ordering::Relaxed);
        }
        self.at.produced = self.at.produced.wrapping_add(1);
        Ok(())
    }

    /// Tells the peer of all that was pushed.
    pub fn publish(&mut self) -> Notify {
        let (old, new) = (self.at.published, self.at.produced);
        if old == new || self.broken.is_some() {
            return Notify::Nobody;
        }
        // Release: the slots are written before the index that says so.
        self.memory.store(R::OUT_PROD, new, Ordering::Release);
        self.at.published = new;
        // The index is out before the peer's wish is read; the peer's half of this is in `arm`.
        self.memory.fence();
        let event = self.memory.load(R::OUT_EVENT, Ordering::Relaxed);
        // The peer wants to hear when the index passes `event`. It may write nonsense there, to its own loss.
        if new.wrapping_sub(event) < new.wrapping_sub(old) { Notify::Peer } else { Notify::Nobody }
    }

    /// Takes an entry out, if there is one.
    ///
    /// # Errors
    /// [`Lie`].
    pub fn pop(&mut self) -> Result<Option<R::In<P>>, Lie> {
        // What was seen before the lie is not given out any more either.
        if (self.at.seen == self.at.consumed || self.broken.is_some()) && !self.look()? {
            return Ok(None);
        }
        let mut bytes = [0; MAX_ENTRY];
        let first = self.first_word(self.at.consumed);
        for (word, raw) in bytes[..<R::In<P> as Wire>::SIZE].as_chunks_mut::<WORD>().0.iter_mut().enumerate() {
            *raw = self.memory.load(first + word, Ordering::Relaxed).to_le_bytes();
        }
        self.at.consumed = self.at.consumed.wrapping_add(1);
        Ok(Some(<R::In<P> as Wire>::from_bytes(&bytes)))
    }

    /// Asks for an event with the next entry, and returns whether there is one already. To be called before sleeping;
    /// sleep only if the answer is `false`.
    ///
    /// # Errors
    /// [`Lie`].
    pub fn arm(&mut self) -> Result<bool, Lie> {
        self.arm_after(1)
    }

    /// As [`Half::arm`], but asks for an event only when there are `entries` of them. A front that has many requests
    /// out and works on responses in bulk saves events by it.
    ///
    /// # Errors
    /// [`Lie`].
    pub fn arm_after(&mut self, entries: u32) -> Result<bool, Lie> {
        self.memory.store(R::IN_EVENT, self.at.consumed.wrapping_add(entries.max(1)), Ordering::Relaxed);
        // The wish is out before the index is read; the peer's half of this is in `publish`.
        self.memory.fence();
        self.look()
    }

    /// Reads the peer's index and checks it; whether there is an entry.
    fn look(&mut self) -> Result<bool, Lie> {
        if let Some(lie) = self.broken {
            return Err(lie);
        }
        // Acquire: what the peer wrote to the slots before it wrote this is seen.
        let claimed = self.memory.load(R::IN_PROD, Ordering::Acquire);
        // It does not go back either: what was seen stays in the ring until it is taken out.
        let seen = self.at.seen.wrapping_sub(self.at.consumed);
        let lie = Lie { claimed, from: self.at.consumed, bound: R::bound(&self.at) };
        match Lie::check(claimed, lie.from, lie.bound) {
            Ok(ahead) if ahead >= seen => {
                self.at.seen = claimed;
                Ok(ahead != 0)
            }
            _ => {
                self.broken = Some(lie);
                Err(lie)
            }
        }
    }

    /// The first word of an entry's slot.
    fn first_word(&self, index: u32) -> usize {
        let slot = index & (self.at.slots - 1);
        HEADER / WORD + slot as usize * Slot::<P>::WORDS
    }
}
