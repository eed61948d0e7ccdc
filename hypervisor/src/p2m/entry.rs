// SPDX-License-Identifier: MIT OR Apache-2.0
//! One p2m entry, decoded: what the walker and everything above it work with.
//!
//! The bits of an entry are known to `ept.rs` and `npt.rs` alone. Both keep the kind of a leaf in
//! bits 54:52, which VT-x ignores and AMD-V leaves to software.

use crate::addr::{Mfn, Order};

/// What a guest frame is mapped for. It decides the CPU's rights, who holds the frame, and what
/// else may be done with it (DESIGN D7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum P2mKind {
    /// Memory that the domain owns. The mapping is the ownership and holds no reference.
    Ram = 0,
    /// A page that another domain granted, writable; holds a reference.
    GrantRw = 1,
    /// A page that another domain granted read-only; holds a reference.
    GrantRo = 2,
    /// Another domain's page mapped by right, writable; holds a reference.
    ForeignRw = 3,
    /// Another domain's page mapped by right, read-only; holds a reference.
    ForeignRo = 4,
    /// A page that the hypervisor owns and shares with the domain: `shared_info`, grant frames.
    Shared = 5,
    /// Device registers of a domain that owns devices; uncached.
    Mmio = 6,
}

impl P2mKind {
    const SHIFT: u32 = 52;

    pub(super) const fn to_bits(self) -> u64 {
        (self as u64) << Self::SHIFT
    }

    pub(super) const fn from_bits(raw: u64) -> Self {
        match raw >> Self::SHIFT & 7 {
            0 => Self::Ram,
            1 => Self::GrantRw,
            2 => Self::GrantRo,
            3 => Self::ForeignRw,
            4 => Self::ForeignRo,
            5 => Self::Shared,
            _ => Self::Mmio,
        }
    }

    /// Whether the guest's CPU may write through the mapping.
    #[inline]
    #[must_use]
    pub const fn is_writable(self) -> bool {
        !matches!(self, Self::GrantRo | Self::ForeignRo)
    }

    /// Whether the guest's CPU may fetch instructions through the mapping: own memory only.
    #[inline]
    #[must_use]
    pub const fn is_executable(self) -> bool {
        matches!(self, Self::Ram)
    }

    /// Whether the mapping is a device's: mapped uncached, never touched by the hypervisor.
    #[inline]
    #[must_use]
    pub const fn is_mmio(self) -> bool {
        matches!(self, Self::Mmio)
    }

    /// Whether the entry holds a counted reference to its frame.
    #[inline]
    #[must_use]
    pub const fn holds_reference(self) -> bool {
        matches!(self, Self::GrantRw | Self::GrantRo | Self::ForeignRw | Self::ForeignRo)
    }

    /// Whether the hypervisor may read the page as a hypercall's buffer.
    #[inline]
    #[must_use]
    pub const fn is_readable_buffer(self) -> bool {
        !self.is_mmio()
    }

    /// Whether the hypervisor may write the page as a hypercall's buffer. Its own pages are
    /// left out: a guest must not make it overwrite what it keeps there.
    #[inline]
    #[must_use]
    pub const fn is_writable_buffer(self) -> bool {
        matches!(self, Self::Ram | Self::GrantRw | Self::ForeignRw)
    }
}

/// What one entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing is mapped.
    Hole,
    /// The entries of the next lower level are in this frame.
    Table(Mfn),
    /// Memory is mapped, as much of it as the level covers.
    Leaf {
        /// The first frame.
        mfn: Mfn,
        /// What for.
        kind: P2mKind,
    },
}

/// The layout of the entries of one kind of nested page table.
///
/// Levels count from 0 (4 KiB leaves) to 3 (the root, whose entries are never leaves).
pub trait PteFormat {
    /// Of these bits an entry that is no hole has one.
    const PRESENT: u64;
    /// The bit that tells a leaf above level 0 from a table.
    const LARGE: u64;

    /// Reads an entry of a table at `level`. An entry at level 0 is never a table.
    #[inline]
    fn decode(raw: u64, level: u8) -> Entry {
        if raw & Self::PRESENT == 0 {
            Entry::Hole
        } else if level == 0 || raw & Self::LARGE != 0 {
            Entry::Leaf { mfn: block_of(raw, level), kind: P2mKind::from_bits(raw) }
        } else {
            Entry::Table(frame_of(raw))
        }
    }
    /// Makes an entry that points to a table.
    fn table(mfn: Mfn) -> u64;
    /// Makes an entry at `level` that maps memory.
    fn leaf(mfn: Mfn, kind: P2mKind, level: u8) -> u64;
}

/// The frames that one entry of a table at `level` covers.
#[inline]
#[must_use]
pub(super) const fn level_order(level: u8) -> Order {
    match level {
        0 => Order::PAGE,
        1 => Order::MIB_2,
        _ => Order::GIB_1,
    }
}

/// Bits 51:12 of an entry, as a frame number.
#[inline]
pub(super) const fn frame_of(raw: u64) -> Mfn {
    Mfn::new(raw >> 12 & 0xff_ffff_ffff)
}

/// The frame that a large leaf starts at; its low bits hold attributes (NPT: PAT in bit 12).
#[inline]
pub(super) const fn block_of(raw: u64, level: u8) -> Mfn {
    Mfn::new(frame_of(raw).raw() & !(level_order(level).frames() - 1))
}
