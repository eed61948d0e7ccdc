// SPDX-License-Identifier: MIT OR Apache-2.0
//! EPT entries: nested paging on VT-x.
//!
//! Memory types: RAM of every kind is write-back and device memory uncached, with "ignore PAT"
//! clear, so that the guest's own PAT still narrows it (a frame buffer becomes write-combining).
//! Accessed and dirty are preset, so that the CPU never writes to the tables.
//!
//! Source: Intel SDM vol. 3C, The Extended Page Table Mechanism (EPT), formats of EPT entries.

use super::entry::{P2mKind, PteFormat};
use crate::addr::Mfn;

/// The format of EPT.
pub(super) struct Ept;

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
const MEMORY_TYPE_UC: u64 = 0 << 3;
const MEMORY_TYPE_WB: u64 = 6 << 3;
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;

impl PteFormat for Ept {
    const PRESENT: u64 = READ | WRITE | EXECUTE;
    const LARGE: u64 = 1 << 7;

    fn table(mfn: Mfn) -> u64 {
        mfn.base().raw() | READ | WRITE | EXECUTE | ACCESSED
    }

    fn leaf(mfn: Mfn, kind: P2mKind, level: u8) -> u64 {
        let mut raw = mfn.base().raw() | kind.to_bits() | READ | ACCESSED | DIRTY;
        raw |= if kind.is_mmio() { MEMORY_TYPE_UC } else { MEMORY_TYPE_WB };
        if kind.is_writable() {
            raw |= WRITE;
        }
        if kind.is_executable() {
            raw |= EXECUTE;
        }
        if level > 0 {
            raw |= Self::LARGE;
        }
        raw
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_the_bits_of_the_manual() {
        assert_eq!(Ept::table(Mfn::new(0x12)), 0x1_2107);
        assert_eq!(Ept::leaf(Mfn::new(0x200), P2mKind::Ram, 1), 0x20_03b7);
        assert_eq!(Ept::leaf(Mfn::new(0x3), P2mKind::Ram, 0), 0x3337);
        assert_eq!(Ept::leaf(Mfn::new(0xfee00), P2mKind::Mmio, 0), 6 << 52 | 0xfee0_0303);
        assert_eq!(Ept::leaf(Mfn::new(0x5), P2mKind::GrantRo, 0), 2 << 52 | 0x5331);
        assert_eq!(Ept::leaf(Mfn::new(0x5), P2mKind::ForeignRw, 0), 3 << 52 | 0x5333);
    }
}
