// SPDX-License-Identifier: MIT OR Apache-2.0
//! The walk of a guest's own page tables, as the CPU would do it for ring 0.
//!
//! Each entry is read once; rights, reserved bits and the next table come from that one value.
//! The accessed bit is set in every entry used and the dirty bit in the last one of a write, by
//! compare-and-swap on the value that was read: if the guest changed it meanwhile, the new value
//! is looked at from the start, a bounded number of times.
//!
//! Reads need no right beyond presence: ring 0 may read every page, user pages as with EFLAGS.AC
//! set. Protection keys are not looked at; no guest is offered them.
//!
//! Source: Intel SDM vol. 3A, chapter Paging: 32-Bit Paging, PAE Paging, 4-Level Paging, Access
//! Rights, Accessed and Dirty Flags; AMD APM vol. 2, chapter Page Translation and Protection.

use core::sync::atomic::Ordering;

use guest_abi::{Gfn, PAGE_SHIFT};

use super::{Access, Fault, Memory, page_offset, word_place};
use crate::addr::Gva;
use crate::vcpu::regs::Paging;

const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
/// Bits 51:12. Those above the guest's physical width find a hole in the p2m.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// How often an entry that changes under the walk is looked at again.
const ATTEMPTS: usize = 8;

/// What the guest's control registers say about its tables.
pub(super) struct Tables {
    mode: Mode,
    cr3: u64,
    /// Writes need the write right (CR0.WP).
    is_protected: bool,
    /// Reserved in every entry: the no-execute bit without EFER.NXE.
    reserved: u64,
}

#[derive(Clone, Copy)]
enum Mode {
    Off,
    Legacy { has_large: bool },
    Pae,
    Long,
    Unsupported,
}

/// One level of tables.
struct Level {
    /// The lowest bit of the linear address that selects an entry.
    shift: u32,
    /// Selects the index after shifting.
    index: u64,
    /// Reserved in an entry that points to a table.
    reserved: u64,
    /// Reserved in an entry that maps a large page; `None` where bit 7 says nothing of the kind.
    reserved_large: Option<u64>,
}

const fn bits(high: u32, low: u32) -> u64 {
    (u64::MAX >> (63 - high)) & (u64::MAX << low)
}

const LONG: [Level; 4] = [
    Level { shift: 39, index: 0x1ff, reserved: LARGE, reserved_large: None },
    Level { shift: 30, index: 0x1ff, reserved: 0, reserved_large: Some(bits(29, 13)) },
    Level { shift: 21, index: 0x1ff, reserved: 0, reserved_large: Some(bits(20, 13)) },
    Level { shift: 12, index: 0x1ff, reserved: 0, reserved_large: None },
];
const PAE: [Level; 2] = [
    Level { shift: 21, index: 0x1ff, reserved: bits(62, 52), reserved_large: Some(bits(62, 52) | bits(20, 13)) },
    Level { shift: 12, index: 0x1ff, reserved: bits(62, 52), reserved_large: None },
];
/// A page-directory-pointer entry: present, two cache bits, bits for software.
const PDPTE_RESERVED: u64 = bits(63, 52) | bits(8, 5) | bits(2, 1);
const LEGACY_PSE: [Level; 2] = [
    Level { shift: 22, index: 0x3ff, reserved: 0, reserved_large: Some(1 << 21) },
    Level { shift: 12, index: 0x3ff, reserved: 0, reserved_large: None },
];
const LEGACY: [Level; 2] = [
    Level { shift: 22, index: 0x3ff, reserved: 0, reserved_large: None },
    Level { shift: 12, index: 0x3ff, reserved: 0, reserved_large: None },
];

/// Where a walk ended.
pub(super) struct Found {
    pub(super) gfn: Gfn,
    /// Writes are allowed, and the dirty bit is set.
    pub(super) is_writable: bool,
}

impl Tables {
    #[inline]
    pub(super) const fn new(paging: Paging) -> Self {
        let Paging { cr0, cr3, cr4, efer } = paging;
        let mode = if cr0 & CR0_PG == 0 {
            Mode::Off
        } else if efer & EFER_LMA != 0 {
            if cr4 & CR4_LA57 == 0 { Mode::Long } else { Mode::Unsupported }
        } else if cr4 & CR4_PAE != 0 {
            Mode::Pae
        } else {
            Mode::Legacy { has_large: cr4 & CR4_PSE != 0 }
        };
        let reserved = if efer & EFER_NXE == 0 { NO_EXECUTE } else { 0 };
        Self { mode, cr3, is_protected: cr0 & CR0_WP != 0, reserved }
    }

    /// Translates a linear address.
    pub(super) fn walk(&self, memory: &Memory, gva: Gva, access: Access) -> Result<Found, Fault> {
        let linear = gva.raw();
        let low = linear & bits(31, 0);
        match self.mode {
            Mode::Long => {
                if linear.cast_signed() << 16 >> 16 != linear.cast_signed() {
                    return Err(Fault::NotCanonical);
                }
                self.levels::<8>(&LONG, memory, self.cr3 & ADDRESS, linear, access)
            }
            Mode::Pae => {
                let entry = pdpte(memory, (self.cr3 & bits(31, 5)) + (low >> 30) * 8)?;
                self.levels::<8>(&PAE, memory, entry & ADDRESS, low, access)
            }
            Mode::Legacy { has_large } => {
                let levels = if has_large { &LEGACY_PSE } else { &LEGACY };
                self.levels::<4>(levels, memory, self.cr3 & bits(31, 12), low, access)
            }
            Mode::Off => Ok(Found { gfn: Gfn::new(low >> PAGE_SHIFT), is_writable: true }),
            Mode::Unsupported => Err(Fault::Mode),
        }
    }

    #[inline]
    fn levels<const ENTRY_BYTES: u64>(
        &self,
        levels: &[Level],
        memory: &Memory,
        root: u64,
        linear: u64,
        access: Access,
    ) -> Result<Found, Fault> {
        let mut table = root;
        let mut is_writable = true;
        for level in levels {
            let address = table + (linear >> level.shift & level.index) * ENTRY_BYTES;
            let is_last = |entry: u64| level.shift == PAGE_SHIFT || level.is_large(entry);
            let entry = use_entry::<ENTRY_BYTES>(memory, address, |entry| {
                self.check(level, entry)?;
                if access == Access::Write && self.is_protected && entry & WRITE == 0 {
                    return Err(Fault::Protection);
                }
                Ok(if access == Access::Write && is_last(entry) { ACCESSED | DIRTY } else { ACCESSED })
            })?;
            is_writable &= entry & WRITE != 0;
            if is_last(entry) {
                let page = level.page::<ENTRY_BYTES>(entry, linear);
                let is_writable = (is_writable || !self.is_protected) && entry & DIRTY != 0;
                return Ok(Found { gfn: Gfn::new(page >> PAGE_SHIFT), is_writable });
            }
            table = entry & ADDRESS;
        }
        Err(Fault::NotPresent)
    }

    #[inline]
    fn check(&self, level: &Level, entry: u64) -> Result<(), Fault> {
        if entry & PRESENT == 0 {
            return Err(Fault::NotPresent);
        }
        let reserved = match level.reserved_large {
            Some(reserved) if entry & LARGE != 0 => reserved,
            _ => level.reserved,
        };
        if entry & (reserved | self.reserved) == 0 { Ok(()) } else { Err(Fault::Reserved) }
    }
}

impl Level {
    #[inline]
    const fn is_large(&self, entry: u64) -> bool {
        self.reserved_large.is_some() && entry & LARGE != 0
    }

    /// The address that the last entry of a walk gives, with the linear address's offset in it.
    #[inline]
    const fn page<const ENTRY_BYTES: u64>(&self, entry: u64, linear: u64) -> u64 {
        let offset = (1 << self.shift) - 1;
        let base = entry & ADDRESS & !offset;
        // A 4 MiB page has address bits 39:32 in bits 20:13.
        let high = if ENTRY_BYTES == 4 && self.shift == 22 { (entry >> 13 & 0xff) << 32 } else { 0 };
        high | base | linear & offset
    }
}

/// Reads an entry once and sets the bits that `check` asks for.
#[inline]
fn use_entry<const ENTRY_BYTES: u64>(
    memory: &Memory,
    address: u64,
    check: impl Fn(u64) -> Result<u64, Fault>,
) -> Result<u64, Fault> {
    let gfn = Gfn::new(address >> PAGE_SHIFT);
    let leaf = memory.frame(gfn)?;
    super::check(gfn, leaf.kind, Access::Read)?;
    let (index, shift) = word_place(page_offset(address));
    let (shift, mask) = if ENTRY_BYTES == 4 { (shift, bits(31, 0)) } else { (0, u64::MAX) };
    let word = memory.mem.word(leaf.mfn, index);
    let mut seen = word.load(Ordering::Acquire);
    for _ in 0..ATTEMPTS {
        let entry = seen >> shift & mask;
        let wanted = check(entry)?;
        if entry & wanted == wanted {
            return Ok(entry);
        }
        super::check(gfn, leaf.kind, Access::Write)?;
        match word.compare_exchange(seen, seen | wanted << shift, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return Ok(entry | wanted),
            Err(now) => seen = now,
        }
    }
    Err(Fault::Contended)
}

/// Reads a page-directory-pointer entry, which has neither rights nor an accessed bit.
fn pdpte(memory: &Memory, address: u64) -> Result<u64, Fault> {
    use_entry::<8>(memory, address, |entry| match entry {
        entry if entry & PRESENT == 0 => Err(Fault::NotPresent),
        entry if entry & PDPTE_RESERVED != 0 => Err(Fault::Reserved),
        _ => Ok(0),
    })
}
