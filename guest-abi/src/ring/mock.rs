// SPDX-License-Identifier: MIT OR Apache-2.0
//! A peer that lies, for testing whoever uses rings.
//!
//! [`Hostile`] has the same memory as a half of a ring and does to it what a hostile domain can: put any value in any
//! word, its own or not, at any time. [`Attacks`] makes up an endless sequence of such deeds from a seed, mostly near
//! values that could pass for true.

use core::sync::atomic::{AtomicU32, Ordering};

use super::SharedMemory;
use crate::num::low_u32;

/// A page of its own, for tests without mapped memory.
#[derive(Debug)]
pub struct Page([AtomicU32; 1024]);

impl Default for Page {
    fn default() -> Self {
        Self([const { AtomicU32::new(0) }; 1024])
    }
}

impl Page {
    /// Its words.
    #[must_use]
    pub const fn words(&self) -> &[AtomicU32] {
        &self.0
    }
}

/// What a hostile peer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// Claims that entries were produced that were not, or fewer than before: adds to its index.
    Claim(u32),
    /// Sets its index to a value.
    Index(u32),
    /// Asks for events at an index.
    Event(u32),
    /// Writes over the victim's own index.
    Forge(u32),
    /// Writes over a word anywhere, slots above all.
    Write {
        /// Which word, modulo the memory's size.
        word: u32,
        /// What it holds afterwards.
        value: u32,
    },
}

/// A peer that lies.
#[derive(Debug)]
pub struct Hostile<M> {
    memory: M,
    index: usize,
    event: usize,
    victim: usize,
}

impl<M: SharedMemory> Hostile<M> {
    /// Pretends to be the front of a slot ring.
    pub const fn front(memory: M) -> Self {
        Self { memory, index: 0, event: 3, victim: 2 }
    }

    /// Pretends to be the back of a slot ring.
    pub const fn back(memory: M) -> Self {
        Self { memory, index: 2, event: 1, victim: 0 }
    }

    /// Pretends to be an end of a byte ring, by the byte offsets of its own index and of the victim's.
    pub const fn bytes(memory: M, own: usize, victims: usize) -> Self {
        Self { memory, index: own / 4, event: own / 4, victim: victims / 4 }
    }

    /// Does something.
    pub fn attack(&self, attack: Attack) {
        let set = |word, value| self.memory.store(word, value, Ordering::Release);
        match attack {
            Attack::Claim(more) => set(self.index, self.memory.load(self.index, Ordering::Relaxed).wrapping_add(more)),
            Attack::Index(value) => set(self.index, value),
            Attack::Event(value) => set(self.event, value),
            Attack::Forge(value) => set(self.victim, value),
            Attack::Write { word, value } => set(word as usize % self.memory.words(), value),
        }
    }
}

/// Made-up attacks, always the same for a seed.
#[derive(Clone, Debug)]
pub struct Attacks {
    state: u64,
}

impl Attacks {
    /// Begins a sequence.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { state: seed ^ 0x9e37_79b9_7f4a_7c15 }
    }

    /// A number as good as random (splitmix64).
    pub const fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

impl Iterator for Attacks {
    type Item = Attack;

    fn next(&mut self) -> Option<Attack> {
        let (choice, value, word) = (self.number() % 8, low_u32(self.number()), low_u32(self.number()));
        Some(match choice {
            // What a real peer does too: entries that are there.
            0..=2 => Attack::Claim(value % 4),
            3 => Attack::Claim(value % 64),
            4 => Attack::Index(value),
            5 => Attack::Event(value),
            6 => Attack::Forge(value),
            _ => Attack::Write { word, value },
        })
    }
}
