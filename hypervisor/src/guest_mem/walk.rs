// SPDX-License-Identifier: MIT OR Apache-2.0
//! The walk of a guest's own page tables, as the CPU would do it for ring 0.
//!
//! Each entry is read once; rights, reserved bits and the next table come from that one value.
//! The accessed bit is set in every entry used and the dirty bit in the last one of a write, by
//! compare-and-swap on the value that was read: if the guest changed it meanwhile, the walk starts
//! again, a bounded number of times. The words that were read are left in a
//! [`Trail`], so that a later call can compare instead of walking.
//!
//! Reads need no right beyond presence: ring 0 may read every page, user pages as with EFLAGS.AC
//! set. Protection keys are not looked at; no guest is offered them.
//!
//! Source: Intel SDM vol. 3A, chapter Paging: 32-Bit Paging, PAE Paging, 4-Level Paging, Access
//! Rights, Accessed and Dirty Flags; AMD APM vol. 2, chapter Page Translation and Protection.

use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_abi::num::to_usize;
use guest_abi::{Gfn, PAGE_SHIFT};

use super::frames::{Memory, check};
use super::{Access, Fault};
use crate::addr::Gva;
use crate::p2m::P2mKind;
use crate::policy::control::{cr0, cr4, efer};
use crate::policy::msr::is_canonical;
use crate::vcpu::regs::Paging;

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
/// Bits 51:12. Those above the guest's physical width find a hole in the p2m.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// How often a walk starts again because an entry changed under it.
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

/// The words that a walk read, so that a later call can see whether they still say the same.
pub(super) struct Trail {
    len: Cell<usize>,
    /// The number of the word in memory, and what it said (its accessed and dirty bits included).
    steps: [Cell<(u64, u64)>; 4],
}

impl Trail {
    pub(super) const fn new() -> Self {
        Self { len: Cell::new(0), steps: [const { Cell::new((0, 0)) }; 4] }
    }

    #[inline(always)]
    fn set(&self, step: usize, number: u64, word: u64) {
        if let Some(slot) = self.steps.get(step) {
            slot.set((number, word));
        }
    }

    /// Whether a walk would read the same again. The frames of the tables are those of the walk:
    /// the p2m's generation says so.
    #[inline]
    pub(super) fn is_unchanged(&self, memory: &Memory) -> bool {
        for step in self.steps.iter().take(self.len.get()) {
            let (number, word) = step.get();
            if memory.word(number) != word {
                return false;
            }
        }
        true
    }
}

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
        let mode = if cr0 & cr0::PG == 0 {
            Mode::Off
        } else if efer & efer::LMA != 0 {
            if cr4 & cr4::LA57 == 0 { Mode::Long } else { Mode::Unsupported }
        } else if cr4 & cr4::PAE != 0 {
            Mode::Pae
        } else {
            Mode::Legacy { has_large: cr4 & cr4::PSE != 0 }
        };
        let reserved = if efer & efer::NXE == 0 { NO_EXECUTE } else { 0 };
        Self { mode, cr3, is_protected: cr0 & cr0::WP != 0, reserved }
    }

    /// Translates a linear address.
    #[inline]
    pub(super) fn walk(&self, memory: &Memory, gva: Gva, access: Access, trail: &Trail) -> Result<Found, Fault> {
        match self.attempt(memory, gva, access, trail) {
            Err(Fault::Contended) => self.try_again(memory, gva, access, trail),
            other => other,
        }
    }

    #[cold]
    fn try_again(&self, memory: &Memory, gva: Gva, access: Access, trail: &Trail) -> Result<Found, Fault> {
        for _ in 0..ATTEMPTS {
            match self.attempt(memory, gva, access, trail) {
                Err(Fault::Contended) => {}
                other => return other,
            }
        }
        Err(Fault::Contended)
    }

    #[inline(never)]
    fn attempt(&self, memory: &Memory, gva: Gva, access: Access, trail: &Trail) -> Result<Found, Fault> {
        let linear = gva.raw();
        let at = |linear, table| At { memory, trail, linear, access, table, is_writable: true, step: 0 };
        let low = linear & bits(31, 0);
        match self.mode {
            Mode::Long => {
                if !is_canonical(linear) {
                    return Err(Fault::NotCanonical);
                }
                self.long(at(linear, self.cr3 & ADDRESS))
            }
            Mode::Pae => self.pae(at(low, self.cr3 & bits(31, 5))),
            Mode::Legacy { has_large: true } => self.levels::<4>(&LEGACY_PSE, at(low, self.cr3 & bits(31, 12))),
            Mode::Legacy { has_large: false } => self.levels::<4>(&LEGACY, at(low, self.cr3 & bits(31, 12))),
            Mode::Off => {
                trail.len.set(0);
                Ok(Found { gfn: Gfn::new(low >> PAGE_SHIFT), is_writable: true })
            }
            Mode::Unsupported => Err(Fault::Mode),
        }
    }

    // The common mode is unrolled by hand, which makes shifts and masks of each level constants.
    fn long(&self, mut at: At) -> Result<Found, Fault> {
        if let Some(found) = self.descend::<8>(&LONG[0], &mut at)? {
            return Ok(found);
        }
        if let Some(found) = self.descend::<8>(&LONG[1], &mut at)? {
            return Ok(found);
        }
        if let Some(found) = self.descend::<8>(&LONG[2], &mut at)? {
            return Ok(found);
        }
        self.descend::<8>(&LONG[3], &mut at)?.ok_or(Fault::NotPresent)
    }

    fn pae(&self, mut at: At) -> Result<Found, Fault> {
        // A page-directory-pointer entry has neither rights nor an accessed bit.
        let address = at.table + (at.linear >> 30) * 8;
        let slot = at.slot::<8>(address)?;
        let entry = slot.entry::<8>();
        if entry & PRESENT == 0 {
            return Err(Fault::NotPresent);
        }
        if entry & PDPTE_RESERVED != 0 {
            return Err(Fault::Reserved);
        }
        at.advance::<8>(&slot, 0)?;
        at.table = entry & ADDRESS;
        self.levels::<8>(&PAE, at)
    }

    #[inline(never)]
    fn levels<const ENTRY_BYTES: u64>(&self, levels: &[Level; 2], mut at: At) -> Result<Found, Fault> {
        for level in levels {
            if let Some(found) = self.descend::<ENTRY_BYTES>(level, &mut at)? {
                return Ok(found);
            }
        }
        Err(Fault::NotPresent)
    }

    /// Uses the entry of one level: either the walk ends there, or `at` is one table further.
    #[inline(always)]
    fn descend<const ENTRY_BYTES: u64>(&self, level: &Level, at: &mut At) -> Result<Option<Found>, Fault> {
        let address = at.table + (at.linear >> level.shift & level.index) * ENTRY_BYTES;
        let slot = at.slot::<ENTRY_BYTES>(address)?;
        let entry = slot.entry::<ENTRY_BYTES>();
        self.check(level, entry)?;
        let mut wanted = ACCESSED;
        if at.access == Access::Write {
            if self.is_protected && entry & WRITE == 0 {
                return Err(Fault::Protection);
            }
            if level.is_last(entry) {
                wanted |= DIRTY;
            }
        }
        let entry = at.advance::<ENTRY_BYTES>(&slot, wanted)?;
        at.is_writable &= entry & WRITE != 0;
        if level.is_last(entry) {
            let page = level.page::<ENTRY_BYTES>(entry, at.linear);
            let is_writable = (at.is_writable || !self.is_protected) && entry & DIRTY != 0;
            at.trail.len.set(at.step);
            return Ok(Some(Found { gfn: Gfn::new(page >> PAGE_SHIFT), is_writable }));
        }
        at.table = entry & ADDRESS;
        Ok(None)
    }

    #[inline(always)]
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
    #[inline(always)]
    const fn is_last(&self, entry: u64) -> bool {
        self.shift == PAGE_SHIFT || self.reserved_large.is_some() && entry & LARGE != 0
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

/// A walk on its way.
struct At<'a> {
    memory: &'a Memory,
    trail: &'a Trail,
    linear: u64,
    access: Access,
    /// The guest physical address of the next table.
    table: u64,
    /// Every entry so far gives the write right.
    is_writable: bool,
    /// Entries used so far.
    step: usize,
}

/// An entry as it was read.
struct Slot {
    place: &'static AtomicU64,
    /// The number of its word in memory.
    number: u64,
    /// Where in the word the entry starts.
    shift: u64,
    seen: u64,
    kind: P2mKind,
}

impl Slot {
    #[inline(always)]
    const fn entry<const BYTES: u64>(&self) -> u64 {
        if BYTES == 4 { self.seen >> self.shift & bits(31, 0) } else { self.seen }
    }
}

impl At<'_> {
    /// Reads an entry, once.
    #[inline(always)]
    fn slot<const BYTES: u64>(&self, address: u64) -> Result<Slot, Fault> {
        let (mfn, kind) = self.memory.frame(Gfn::new(address >> PAGE_SHIFT))?;
        check(kind, Access::Read)?;
        let index = address >> 3 & 0x1ff;
        let place = self.memory.mem.word(mfn, to_usize(index));
        let shift = if BYTES == 4 { 8 * (address & 4) } else { 0 };
        Ok(Slot { place, number: mfn.raw() << 9 | index, shift, seen: place.load(Ordering::Acquire), kind })
    }

    /// Goes on through an entry that has been checked, with these bits set in it.
    #[inline(always)]
    fn advance<const BYTES: u64>(&mut self, slot: &Slot, wanted: u64) -> Result<u64, Fault> {
        let mut word = slot.seen;
        if slot.entry::<BYTES>() & wanted != wanted {
            check(slot.kind, Access::Write)?;
            word = mark(slot.place, word, wanted << slot.shift)?;
        }
        self.trail.set(self.step, slot.number, word);
        self.step += 1;
        Ok(slot.entry::<BYTES>() | wanted)
    }
}

/// Sets bits in a word that said `seen`, and returns what it says then.
#[cold]
#[inline(never)]
fn mark(word: &AtomicU64, seen: u64, bits: u64) -> Result<u64, Fault> {
    let marked = seen | bits;
    match word.compare_exchange(seen, marked, Ordering::AcqRel, Ordering::Relaxed) {
        Ok(_) => Ok(marked),
        Err(_) => Err(Fault::Contended),
    }
}
