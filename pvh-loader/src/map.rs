// SPDX-License-Identifier: MIT OR Apache-2.0
//! A domain's memory map: which pieces of its address space are RAM, and what the others are.

use alloc::vec::Vec;
use core::fmt;

use guest_abi::pvh::{MEMMAP_ACPI, MEMMAP_NVS, MEMMAP_RAM, MEMMAP_RESERVED, MEMMAP_UNUSABLE, MemmapEntry};

use crate::span::Span;

/// Linux copies the map into a table of 128 without a check, and adds an entry of its own.
pub const MAX_ENTRIES: usize = 127;

/// What a piece of the address space is for. Ordered: the later one holds where two overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Memory for the operating system.
    Ram,
    /// The firmware's, or a device's.
    Reserved,
    /// ACPI tables.
    Acpi,
    /// Memory that ACPI keeps over sleep.
    Nvs,
    /// Broken memory.
    Unusable,
}

impl Kind {
    /// From the number; what is not known is nobody's to use.
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        match number {
            MEMMAP_RAM => Self::Ram,
            MEMMAP_ACPI => Self::Acpi,
            MEMMAP_NVS => Self::Nvs,
            MEMMAP_UNUSABLE => Self::Unusable,
            _ => Self::Reserved,
        }
    }

    /// The number, the same in e820 and in a PVH memory map.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Ram => MEMMAP_RAM,
            Self::Reserved => MEMMAP_RESERVED,
            Self::Acpi => MEMMAP_ACPI,
            Self::Nvs => MEMMAP_NVS,
            Self::Unusable => MEMMAP_UNUSABLE,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ram => "RAM",
            Self::Reserved => "reserved",
            Self::Acpi => "ACPI data",
            Self::Nvs => "ACPI NVS",
            Self::Unusable => "unusable",
        })
    }
}

/// A piece of an address space and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The addresses, whole pages.
    pub span: Span,
    /// What they are.
    pub kind: Kind,
}

/// Entries in the form of the PVH boot protocol.
#[must_use]
pub fn memmap(entries: &[Entry]) -> Vec<MemmapEntry> {
    let convert = |entry: &Entry| MemmapEntry {
        addr: entry.span.start(),
        size: entry.span.len(),
        kind: entry.kind.number(),
        reserved: 0,
    };
    entries.iter().map(convert).collect()
}
