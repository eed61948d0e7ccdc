// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest frame numbers and guest physical addresses.
//!
//! Any value is legal in either type and none is trusted: both are what a guest says.

use core::fmt;

use crate::num::to_usize;

/// log2 of the page size.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;

/// A guest frame number: a guest physical address divided by the page size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Gfn(u64);

impl Gfn {
    /// Names a guest frame. Any number is legal.
    #[must_use]
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The number itself.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The frame `count` frames further on, or `None` past the end of the number space.
    #[must_use]
    pub const fn checked_add(self, count: u64) -> Option<Self> {
        match self.0.checked_add(count) {
            Some(raw) => Some(Self(raw)),
            None => None,
        }
    }

    /// The address of the frame's first byte, or `None` if it does not fit 64 bits.
    #[must_use]
    pub const fn base(self) -> Option<Gpa> {
        if self.0 >> (64 - PAGE_SHIFT) == 0 { Some(Gpa(self.0 << PAGE_SHIFT)) } else { None }
    }
}

impl fmt::Debug for Gfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gfn:{:#x}", self.0)
    }
}

/// A guest physical address, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Gpa(u64);

impl Gpa {
    /// Names a guest physical address. Any number is legal.
    #[must_use]
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The address as a number of bytes.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The frame that holds this byte.
    #[must_use]
    pub const fn gfn(self) -> Gfn {
        Gfn(self.0 >> PAGE_SHIFT)
    }

    /// The byte's offset in its page, below [`PAGE_SIZE`].
    #[must_use]
    pub const fn page_offset(self) -> usize {
        to_usize(self.0 & (PAGE_SIZE as u64 - 1))
    }

    /// The address `bytes` further on, or `None` past the end of the address space.
    #[must_use]
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(raw) => Some(Self(raw)),
            None => None,
        }
    }
}

impl fmt::Debug for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gpa:{:#x}", self.0)
    }
}
