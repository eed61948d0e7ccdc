// SPDX-License-Identifier: MIT OR Apache-2.0
//! NPT entries: nested paging on AMD-V.
//!
//! The layout is that of the host's own long-mode tables. Every guest access counts as a user
//! access there, so all entries have the user bit. Device memory is uncached by PCD and PWT (entry
//! 3 of the host's PAT, which the boot code leaves at its reset value); RAM is write-back, which
//! lets the guest's PAT decide. Accessed and dirty are preset, so that the CPU never writes to
//! the tables.
//!
//! Source: AMD APM vol. 2, 15.25 Nested Paging; 5.3 Long-Mode Page Translation.

use super::entry::{P2mKind, PteFormat};
use crate::addr::Mfn;

/// The format of NPT.
pub(super) struct Npt;

const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const WRITE_THROUGH: u64 = 1 << 3;
const CACHE_DISABLE: u64 = 1 << 4;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const NO_EXECUTE: u64 = 1 << 63;

impl PteFormat for Npt {
    const PRESENT: u64 = 1 << 0;
    const LARGE: u64 = 1 << 7;

    fn table(mfn: Mfn) -> u64 {
        mfn.base().raw() | Self::PRESENT | WRITE | USER | ACCESSED
    }

    fn leaf(mfn: Mfn, kind: P2mKind, level: u8) -> u64 {
        let mut raw = mfn.base().raw() | kind.to_bits() | Self::PRESENT | USER | ACCESSED | DIRTY;
        if kind.is_mmio() {
            raw |= WRITE_THROUGH | CACHE_DISABLE;
        }
        if kind.is_writable() {
            raw |= WRITE;
        }
        if !kind.is_executable() {
            raw |= NO_EXECUTE;
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
        assert_eq!(Npt::table(Mfn::new(0x12)), 0x1_2027);
        assert_eq!(Npt::leaf(Mfn::new(0x200), P2mKind::Ram, 1), 0x20_00e7);
        assert_eq!(Npt::leaf(Mfn::new(0x3), P2mKind::Ram, 0), 0x3067);
        assert_eq!(Npt::leaf(Mfn::new(0xfee00), P2mKind::Mmio, 0), 1 << 63 | 6 << 52 | 0xfee0_007f);
        assert_eq!(Npt::leaf(Mfn::new(0x5), P2mKind::GrantRo, 0), 1 << 63 | 2 << 52 | 0x5065);
        assert_eq!(Npt::leaf(Mfn::new(0x5), P2mKind::ForeignRw, 0), 1 << 63 | 3 << 52 | 0x5067);
    }
}
