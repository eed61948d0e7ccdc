// SPDX-License-Identifier: MIT OR Apache-2.0
//! Machine frames, host addresses, and ticks: the hypervisor's side of the address types.

use core::fmt;

use guest_abi::num::to_usize;

pub use guest_abi::frame::{Gfn, Gpa, PAGE_SHIFT, PAGE_SIZE};

/// Declares numbers that mean something: a value is made by `new`, read by `raw`, and printed in hex behind its kind.
macro_rules! numbers {
    ($($(#[$meta:meta])* $name:ident = $prefix:literal;)*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Says that a number means this.
            #[must_use]
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The number itself.
            #[must_use]
            pub const fn raw(self) -> u64 {
                self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, ":{:#x}"), self.0)
            }
        }
    )*};
}

numbers! {
    /// A machine frame number: a host physical address divided by the page size.
    ///
    /// One that came from the frame table or a p2m lookup names memory the hypervisor may touch; one
    /// that a toolstack named is untrusted until the frame table has confirmed it.
    Mfn = "mfn";
    /// A host physical address, in bytes.
    Hpa = "hpa";
    /// A guest virtual (linear) address. Any value is legal, none is trusted.
    Gva = "gva";
    /// A point on the host's time-stamp counter, or a distance between two, in ticks.
    #[derive(Default)]
    Ticks = "ticks";
    /// Nanoseconds since the hypervisor's clock started, or a distance between two points.
    #[derive(Default)]
    Nanos = "ns";
}

impl Mfn {
    /// The number as an index into the frame table.
    #[must_use]
    pub const fn index(self) -> usize {
        to_usize(self.0)
    }

    /// The host physical address of the frame's first byte.
    #[must_use]
    pub const fn base(self) -> Hpa {
        Hpa(self.0 << PAGE_SHIFT)
    }

    /// The frame `count` further on. Machine frames stay far below 2^52, so this cannot wrap.
    #[must_use]
    pub const fn offset(self, count: u64) -> Self {
        Self(self.0 + count)
    }
}

impl Hpa {
    /// The frame that holds this byte.
    #[must_use]
    pub const fn mfn(self) -> Mfn {
        Mfn(self.0 >> PAGE_SHIFT)
    }

    /// The byte's offset in its page.
    #[must_use]
    pub const fn page_offset(self) -> usize {
        to_usize(self.0 & (PAGE_SIZE as u64 - 1))
    }
}

impl Gva {
    /// The address `bytes` further on, wrapping as the CPU does.
    #[must_use]
    pub const fn wrapping_add(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }

    /// The byte's offset in its page.
    #[must_use]
    pub const fn page_offset(self) -> usize {
        to_usize(self.0 & (PAGE_SIZE as u64 - 1))
    }
}

/// log2 of a number of frames that lie together and are aligned to their own size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Order(u8);

impl Order {
    /// One 4 KiB frame.
    pub const PAGE: Self = Self(0);
    /// 2 MiB: what one second-level p2m entry maps.
    pub const MIB_2: Self = Self(9);
    /// 1 GiB: what one third-level p2m entry maps.
    pub const GIB_1: Self = Self(18);

    /// An order from 0 to 18 (1 GiB), or `None`.
    #[must_use]
    pub const fn new(raw: u8) -> Option<Self> {
        if raw <= Self::GIB_1.0 { Some(Self(raw)) } else { None }
    }

    /// The logarithm itself.
    #[must_use]
    pub const fn raw(self) -> u8 {
        self.0
    }

    /// Frames in a block of this order.
    #[must_use]
    pub const fn frames(self) -> u64 {
        1 << self.0
    }

    /// Whether a block of this order may start at frame `raw`.
    #[must_use]
    pub const fn is_aligned(self, raw: u64) -> bool {
        raw & (self.frames() - 1) == 0
    }
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "order:{}", self.0)
    }
}
