// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest memory beside a naive walker that knows each paging mode on its own.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::vec::Vec;

use guest_abi::num::to_usize;
use guest_abi::{DomId, Gfn};
use proptest::prelude::{Just, Strategy, any, prop_oneof};

use super::*;
use crate::addr::Order;
use crate::frame::{Fill, FrameTable, FrameType, Limits};
use crate::p2m::{Backing, FlushSite, Flusher, Format, P2m, P2mKind, TlbState};
use crate::testing::test_table;

const A: DomId = DomId::new(1);
const B: DomId = DomId::new(2);
/// Guest frames that hold tables and data: 0 to 7, and one above 4 GiB.
const RAM: u64 = 8;
const HIGH: u64 = 0x12_3400;

const PG: u64 = 1 << 31;
const WP: u64 = 1 << 16;
const PSE: u64 = 1 << 4;
const PAE: u64 = 1 << 5;
const LMA: u64 = 1 << 10;
const NXE: u64 = 1 << 11;

struct Guest {
    frames: &'static FrameTable,
    p2m: P2m,
}

impl Guest {
    /// A guest whose frames lie in machine memory in another order.
    fn new() -> Self {
        let frames = test_table(64);
        frames.add_free(Mfn::new(1)..Mfn::new(64)).unwrap();
        frames.open_account(A, Limits::NONE).unwrap();
        frames.open_account(B, Limits::NONE).unwrap();
        let mut p2m = P2m::new(frames, A, Format::Npt, Order::GIB_1).unwrap();
        for gfn in (0..RAM).rev().chain([HIGH]) {
            p2m.populate(Gfn::new(gfn), Order::PAGE, Backing::Free(Fill::Zeroed)).unwrap();
        }
        Self { frames, p2m }
    }

    fn space(&self, cr0: u64, cr3: u64, cr4: u64, efer: u64) -> GuestSpace {
        GuestSpace::new(self.p2m.view(), Paging { cr0, cr3, cr4, efer })
    }

    fn long(&self) -> GuestSpace {
        self.space(PG | WP, 0, PAE, LMA | NXE)
    }

    fn put(&self, gpa: u64, value: u64) {
        self.word(gpa).store(value, Relaxed);
    }

    fn get(&self, gpa: u64) -> u64 {
        self.word(gpa).load(Relaxed)
    }

    fn word(&self, gpa: u64) -> &'static AtomicU64 {
        let leaf = self.p2m.lookup(Gfn::new(gpa >> 12)).unwrap();
        self.frames.mem().word(leaf.mfn, to_usize(gpa / 8 % 512))
    }

    /// Maps linear page `n` of the first 2 MiB to guest frame `gfn`, long mode, root in frame 0.
    fn map_long(&self, n: u64, gfn: u64, flags: u64) {
        self.put(0, 0x1007);
        self.put(0x1000, 0x2007);
        self.put(0x2000, 0x3007);
        self.put(0x3000 + n * 8, gfn << 12 | flags);
    }

    fn foreign(&self) -> Mfn {
        self.frames.alloc(Order::PAGE, B, FrameType::Ram, Fill::Zeroed).unwrap()
    }
}

/// The guest's RAM as a plain map of words, and walks over it in the words of the manuals.
struct Naive {
    words: BTreeMap<u64, u64>,
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
}

impl Naive {
    fn of(guest: &Guest, (cr0, cr3, cr4, efer): (u64, u64, u64, u64)) -> Self {
        Self { words: Self::snapshot(guest), cr0, cr3, cr4, efer }
    }

    fn snapshot(guest: &Guest) -> BTreeMap<u64, u64> {
        let frames = (0..RAM).chain([HIGH]).map(|gfn| (gfn, guest.p2m.lookup(Gfn::new(gfn)).unwrap().mfn));
        let words = frames.flat_map(|(gfn, mfn)| {
            let words = (0_u64..).zip(guest.frames.mem().frame(mfn));
            words.map(move |(n, word)| ((gfn << 12) + n * 8, word.load(core::sync::atomic::Ordering::Relaxed)))
        });
        words.collect()
    }

    fn load(&self, at: u64, size: u64) -> Option<u64> {
        let word = *self.words.get(&(at & !7))?;
        Some(if size == 8 { word } else { word >> (8 * (at & 4)) & 0xffff_ffff })
    }

    fn or(&mut self, at: u64, value: u64) {
        *self.words.get_mut(&(at & !7)).unwrap() |= value << (8 * (at & 4));
    }

    /// Where the byte is, in guest physical memory.
    fn walk(&mut self, linear: u64, write: bool) -> Option<u64> {
        if self.cr0 & PG == 0 {
            return Some(linear & 0xffff_ffff);
        }
        let mut used = Vec::new();
        let address = if self.efer & LMA != 0 {
            self.long(linear, &mut used)
        } else if self.cr4 & PAE != 0 {
            self.pae(linear & 0xffff_ffff, &mut used)
        } else {
            self.two_level(linear & 0xffff_ffff, &mut used)
        }?;
        let writable = used.iter().all(|(_, entry, size)| *size == 0 || entry & 2 != 0);
        if write && self.cr0 & WP != 0 && !writable {
            return None;
        }
        let last = used.len() - 1;
        for (n, (at, _, size)) in used.into_iter().enumerate() {
            if size != 0 {
                self.or(at, if write && n == last { 0x60 } else { 0x20 });
            }
        }
        Some(address)
    }

    fn nx_ok(&self, entry: u64) -> bool {
        entry >> 63 == 0 || self.efer & NXE != 0
    }

    fn long(&self, linear: u64, used: &mut Vec<(u64, u64, u64)>) -> Option<u64> {
        if linear >> 47 != 0 && linear >> 47 != 0x1_ffff {
            return None;
        }
        let field = |n: u32| linear >> (12 + 9 * n) & 511;
        let frame = |entry: u64| entry & 0x000f_ffff_ffff_f000;
        let mut table = frame(self.cr3);
        for level in [3, 2, 1, 0] {
            let at = table + field(level) * 8;
            let entry = self.load(at, 8)?;
            used.push((at, entry, 8));
            if entry & 1 == 0 || !self.nx_ok(entry) {
                return None;
            }
            let large = entry & 0x80 != 0;
            match level {
                3 if large => return None,
                2 if large && entry >> 13 & 0x1_ffff != 0 => return None,
                2 if large => return Some(frame(entry) >> 30 << 30 | linear & 0x3fff_ffff),
                1 if large && entry >> 13 & 0xff != 0 => return None,
                1 if large => return Some(frame(entry) >> 21 << 21 | linear & 0x1f_ffff),
                0 => return Some(frame(entry) | linear & 0xfff),
                _ => table = frame(entry),
            }
        }
        None
    }

    fn pae(&self, linear: u64, used: &mut Vec<(u64, u64, u64)>) -> Option<u64> {
        let pdpte = self.load((self.cr3 & 0xffff_ffe0) + (linear >> 30) * 8, 8)?;
        if pdpte & 1 == 0 || pdpte & 0xfff0_0000_0000_01e6 != 0 {
            return None;
        }
        let at = (pdpte & 0x000f_ffff_ffff_f000) + (linear >> 21 & 511) * 8;
        let pde = self.load(at, 8)?;
        used.push((at, pde, 8));
        if pde & 1 == 0 || !self.nx_ok(pde) || pde << 1 >> 53 != 0 {
            return None;
        }
        if pde & 0x80 != 0 {
            return (pde & 0x1f_e000 == 0).then_some(pde & 0x000f_ffff_ffe0_0000 | linear & 0x1f_ffff);
        }
        let at = (pde & 0x000f_ffff_ffff_f000) + (linear >> 12 & 511) * 8;
        let pte = self.load(at, 8)?;
        used.push((at, pte, 8));
        let ok = pte & 1 != 0 && self.nx_ok(pte) && pte << 1 >> 53 == 0;
        ok.then_some(pte & 0x000f_ffff_ffff_f000 | linear & 0xfff)
    }

    fn two_level(&self, linear: u64, used: &mut Vec<(u64, u64, u64)>) -> Option<u64> {
        let at = (self.cr3 & 0xffff_f000) + (linear >> 22) * 4;
        let pde = self.load(at, 4)?;
        used.push((at, pde, 4));
        if pde & 1 == 0 {
            return None;
        }
        if pde & 0x80 != 0 && self.cr4 & PSE != 0 {
            let high = (pde >> 13 & 0xff) << 32;
            return (pde & 1 << 21 == 0).then_some(high | pde & 0xffc0_0000 | linear & 0x3f_ffff);
        }
        let at = (pde & 0xffff_f000) + (linear >> 12 & 1023) * 4;
        let pte = self.load(at, 4)?;
        used.push((at, pte, 4));
        (pte & 1 != 0).then_some(pte & 0xffff_f000 | linear & 0xfff)
    }
}

#[derive(Clone, Copy, Debug)]
struct Edit {
    gfn: u64,
    index: u64,
    entry: u64,
}

const INDICES: [u64; 6] = [0, 1, 2, 255, 256, 511];

/// An entry that mostly points to RAM with sensible bits, and sometimes has any bit flipped.
fn entry() -> impl Strategy<Value = u64> {
    let target = prop_oneof![12 => 0..RAM, 1 => Just(HIGH), 1 => Just(RAM), 2 => Just(0_u64)];
    let flags = prop_oneof![8 => Just(0x07_u64), 2 => Just(0x27), 2 => Just(0x67), 2 => Just(0x05), 2 => Just(0x87), 1 => any::<u64>().prop_map(|f| f & 0xfff)];
    let noise = prop_oneof![6 => Just(0_u64), 1 => (0_u32..64).prop_map(|bit| 1 << bit), 1 => Just(1 << 63)];
    (target, flags, noise).prop_map(|(gfn, flags, noise)| (gfn << 12 | flags) ^ noise)
}

fn edit() -> impl Strategy<Value = Edit> {
    (0..RAM, 0..INDICES.len(), entry()).prop_map(|(gfn, index, entry)| Edit { gfn, index: INDICES[index], entry })
}

fn linear() -> impl Strategy<Value = u64> {
    let index = || (0..INDICES.len()).prop_map(|n| INDICES[n]);
    let extend = prop_oneof![9 => Just(true), 1 => Just(false)];
    (index(), index(), index(), index(), 0_u64..4096, extend).prop_map(|(a, b, c, d, offset, extend)| {
        let low = a << 39 | b << 30 | c << 21 | d << 12 | offset;
        if extend { (low << 16).cast_signed().wrapping_shr(16).cast_unsigned() } else { low }
    })
}

fn registers() -> impl Strategy<Value = (u64, u64, u64, u64)> {
    let cr0 = prop_oneof![8 => Just(PG | WP), 4 => Just(PG), 1 => Just(0_u64)];
    let cr3 = prop_oneof![(0..RAM).prop_map(|gfn| gfn << 12), (0..RAM).prop_map(|gfn| gfn << 12 | 0x18)];
    let mode = prop_oneof![
        4 => Just((PAE, LMA | NXE)),
        2 => Just((PAE, LMA)),
        2 => Just((PAE, NXE)),
        1 => Just((PAE, 0)),
        2 => Just((PSE, 0)),
        1 => Just((0, 0)),
    ];
    (cr0, cr3, mode).prop_map(|(cr0, cr3, (cr4, efer))| (cr0, cr3, cr4, efer))
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(96))]
    #[test]
    fn walks_agree_with_the_manuals(
        edits in proptest::collection::vec(edit(), 40..120),
        registers in registers(),
        top_noise in proptest::collection::vec(prop_oneof![5 => Just(0_u64), 1 => (0_u32..64).prop_map(|bit| 1 << bit)], 4),
        pool in proptest::collection::vec(linear(), 12),
        accesses in proptest::collection::vec((0_usize..12, any::<bool>(), edit(), 0_u8..4), 1..60),
    ) {
        let guest = Guest::new();
        // Each RAM frame leads with a good entry, so that deep walks are common.
        for gfn in 0..RAM {
            for index in INDICES {
                guest.put((gfn << 12) + index * 8, ((gfn * 5 + index) % RAM) << 12 | 7);
            }
        }
        for Edit { gfn, index, entry } in edits {
            guest.put((gfn << 12) + index * 8, entry);
        }
        // The four entries on top of PAE tables have no rights, so a good one looks different.
        if registers.2 == PAE && registers.3 & LMA == 0 {
            for (index, noise) in (0..4).zip(top_noise) {
                let at = (registers.1 & 0xffff_ffe0) + index * 8;
                guest.put(at, (index + 2) << 12 | 1 ^ noise);
            }
        }
        let mut naive = Naive::of(&guest, registers);
        let (cr0, cr3, cr4, efer) = registers;
        let paging = Paging { cr0, cr3, cr4, efer };
        let mut space = guest.space(cr0, cr3, cr4, efer);
        for (pick, write, edit, is_edited) in accesses {
            let linear = pool[pick];
            if is_edited == 0 {
                guest.put((edit.gfn << 12) + edit.index * 8, edit.entry);
                naive.words.insert((edit.gfn << 12) + edit.index * 8, edit.entry);
            }
            // Each access is a call of its own, which must not believe what the last one saw.
            space.renew(paging, guest.p2m.tlb().own_generation());
            // What stays in memory for a failed access is the CPU's business; both sides restart.
            let before = naive.words.clone();
            let wanted = naive.walk(linear, write).filter(|gpa| naive.words.contains_key(&(gpa & !7)));
            if write {
                let byte = naive.load(wanted.unwrap_or(0) & !7, 8).unwrap() >> (8 * (wanted.unwrap_or(0) & 7));
                let byte = guest_abi::num::low_u8(byte);
                let found = space.write_bytes(Gva::new(linear), &[byte]);
                assert_eq!(found.is_ok(), wanted.is_some(), "{linear:#x} {registers:x?}: {found:?}");
            } else {
                let found = space.read::<u8>(Gva::new(linear));
                let byte = wanted.and_then(|gpa| naive.load(gpa & !7, 8).map(|word| word >> (8 * (gpa & 7))));
                // The walk itself may change the byte (a table that maps itself), so compare the place.
                assert_eq!(found.is_ok(), byte.is_some(), "{linear:#x} {registers:x?}: {found:?}");
                if let Some(gpa) = wanted {
                    let place = space.translate(Gva::new(linear), Access::Read).ok();
                    assert_eq!(place, guest.p2m.lookup(Gfn::new(gpa >> 12)).map(|leaf| leaf.mfn));
                }
            }
            if wanted.is_some() {
                assert_eq!(Naive::snapshot(&guest), naive.words, "accessed and dirty bits");
            } else {
                let now = Naive::snapshot(&guest);
                now.iter().filter(|(at, word)| before[at] != **word).for_each(|(at, _)| guest.put(*at, before[at]));
                naive.words = before;
            }
        }
    }
}

#[test]
fn values_cross_pages_that_lie_apart() {
    let guest = Guest::new();
    guest.map_long(5, 7, 3);
    guest.map_long(6, 4, 3);
    let space = guest.long();
    let at = Gva::new(0x5ffd);
    space.write(at, &0x1122_3344_5566_7788_u64).unwrap();
    assert_eq!(guest.get(0x7ff8) >> 40, 0x66_7788);
    assert_eq!(guest.get(0x4000) & 0xff_ffff_ffff, 0x11_2233_4455);
    assert_eq!(space.read::<u64>(at), Ok(0x1122_3344_5566_7788));
    assert_eq!(space.write::<u64>(Gva::new(0x6ffd), &0), Err(Fault::NotPresent));
}

#[test]
fn a_changed_table_is_seen_by_the_next_call() {
    let guest = Guest::new();
    guest.put(0x4000, 1);
    guest.put(0x5000, 2);
    guest.map_long(9, 4, 3);
    assert_eq!(guest.long().read::<u64>(Gva::new(0x9000)), Ok(1));
    guest.map_long(9, 5, 3);
    assert_eq!(guest.long().read::<u64>(Gva::new(0x9000)), Ok(2));
}

#[test]
fn a_renewed_space_believes_only_what_is_still_there() {
    let mut guest = Guest::new();
    (4..7).for_each(|gfn| guest.put(gfn << 12, gfn));
    guest.map_long(9, 4, 3);
    let mut space = guest.long();
    let paging = space.paging;
    let at = Gva::new(0x9000);
    space.renew(paging, guest.p2m.tlb().own_generation());
    assert_eq!(space.read::<u64>(at), Ok(4));
    // Each level of the guest's tables, changed and changed back.
    for (entry, other) in [(0_u64, 0_u64), (0x1000, 0), (0x2000, 0), (0x3048, 0x5003)] {
        let before = guest.get(entry);
        guest.put(entry, other);
        space.renew(paging, guest.p2m.tlb().own_generation());
        assert_eq!(space.read::<u64>(at).ok(), (other != 0).then_some(5), "{entry:#x}");
        guest.put(entry, before);
        space.renew(paging, guest.p2m.tlb().own_generation());
        assert_eq!(space.read::<u64>(at), Ok(4));
    }
    // Another root.
    guest.put(0x7000, 0);
    space.renew(Paging { cr3: 0x7000, ..paging }, guest.p2m.tlb().own_generation());
    assert_eq!(space.read::<u64>(at), Err(Fault::NotPresent));
    space.renew(paging, guest.p2m.tlb().own_generation());
    assert_eq!(space.read::<u64>(at), Ok(4));
    // Another frame behind the same guest frame, with paging and without.
    let mut flat = guest.space(0, 0, 0, 0);
    flat.renew(flat.paging, guest.p2m.tlb().own_generation());
    assert_eq!(flat.read::<u64>(Gva::new(0x4000)), Ok(4));
    let frame = guest.p2m.lookup(Gfn::new(6)).unwrap().mfn;
    let tokens = [4, 6].map(|gfn| guest.p2m.depopulate(Gfn::new(gfn), Order::PAGE).unwrap());
    let proof = guest.p2m.tlb().flush(&Nobody, FlushSite::Remap);
    let taken = tokens.map(|token| token.recover(&proof).mfn);
    assert_eq!(taken[1], frame);
    guest.p2m.map(Gfn::new(4), frame, Order::PAGE, P2mKind::Ram).unwrap();
    space.renew(paging, guest.p2m.tlb().own_generation());
    assert_eq!(space.read::<u64>(at), Ok(6));
    flat.renew(flat.paging, guest.p2m.tlb().own_generation());
    assert_eq!(flat.read::<u64>(Gva::new(0x4000)), Ok(6));
}

#[test]
fn another_domains_page_is_never_remembered() {
    let mut guest = Guest::new();
    let (buffer, table) = (guest.foreign(), guest.foreign());
    guest.frames.mem().word(buffer, 0).store(1, core::sync::atomic::Ordering::Relaxed);
    // Linear page 9 lies in a granted page; linear page 512 has its table in one.
    guest.map_long(9, 20, 3);
    guest.put(0x2008, 21 << 12 | 7);
    guest.frames.mem().word(table, 0).store(4 << 12 | 3, core::sync::atomic::Ordering::Relaxed);
    guest.put(0x4000, 2);
    let (in_page, by_table) = (Gva::new(0x9000), Gva::new(512 << 12));
    for (gfn, mfn) in [(20, buffer), (21, table)] {
        let frame = guest.frames.get(mfn, B).unwrap();
        guest.p2m.map_ref(Gfn::new(gfn), frame, P2mKind::GrantRw).unwrap();
    }
    let space = guest.long();
    assert_eq!((space.read::<u64>(in_page), space.read::<u64>(by_table)), (Ok(1), Ok(2)));
    // The grants end in the middle of the call; nothing tells the space.
    for (gfn, mfn) in [(20, buffer), (21, table)] {
        let before = guest.p2m.tlb().own_generation();
        let token = guest.p2m.unmap_ref(Gfn::new(gfn), mfn).unwrap();
        token.release(&guest.p2m.tlb().flush(&Nobody, FlushSite::GrantUnmap));
        assert_eq!(guest.p2m.tlb().own_generation(), before);
    }
    assert_eq!((space.read::<u64>(in_page), space.read::<u64>(by_table)), (Err(Fault::Hole), Err(Fault::Hole)));
}

#[test]
fn a_page_is_walked_once_for_each_call() {
    let guest = Guest::new();
    guest.map_long(9, 4, 3);
    let space = guest.long();
    space.read::<u64>(Gva::new(0x9000)).unwrap();
    guest.map_long(9, 5, 3);
    guest.put(0x4008, 7);
    assert_eq!(space.read::<u64>(Gva::new(0x9008)), Ok(7));
    // A write needs the dirty bit, so it walks again, and sees what is there by then.
    space.write(Gva::new(0x9010), &8_u64).unwrap();
    assert_eq!(guest.get(0x5010), 8);
    assert_eq!(guest.get(0x3048) & 0x60, 0x60);
}

#[test]
fn write_protection_follows_cr0() {
    let guest = Guest::new();
    guest.map_long(9, 4, 1);
    assert_eq!(guest.long().write(Gva::new(0x9000), &1_u8), Err(Fault::Protection));
    assert_eq!(guest.get(0x3048) & 0x40, 0);
    guest.space(PG, 0, PAE, LMA).write(Gva::new(0x9000), &1_u8).unwrap();
    assert_eq!(guest.get(0x4000), 1);
}

#[test]
fn a_read_does_not_give_the_right_to_write() {
    let guest = Guest::new();
    guest.map_long(9, 4, 1);
    let space = guest.long();
    space.read::<u8>(Gva::new(0x9000)).unwrap();
    assert_eq!(space.write(Gva::new(0x9000), &1_u8), Err(Fault::Protection));
    // Also where only an upper level forbids it and the dirty bit is set already.
    guest.map_long(9, 4, 0x63);
    guest.put(0x1000, 0x2005);
    let space = guest.long();
    space.read::<u8>(Gva::new(0x9000)).unwrap();
    assert_eq!(space.write(Gva::new(0x9000), &1_u8), Err(Fault::Protection));
}

#[test]
fn a_reserved_bit_in_a_large_page_is_a_fault_in_each_mode() {
    let guest = Guest::new();
    let (legacy, pae) = ((PG | WP, 0, PSE, 0), (PG | WP, 0x1000, PAE, NXE));
    guest.put(0x1000, 1);
    for (registers, entry, wanted) in [
        (legacy, 0x87, Ok(0x87)),
        (legacy, 0x87 | 1 << 21, Err(Fault::Reserved)),
        (pae, 0x87, Ok(0x87)),
        (pae, 0x87 | 1 << 13, Err(Fault::Reserved)),
        (pae, 0x87 | 1 << 52, Err(Fault::Reserved)),
        (pae, 0x87 | 1 << 62, Err(Fault::Reserved)),
    ] {
        guest.put(0, entry);
        let (cr0, cr3, cr4, efer) = registers;
        let found = guest.space(cr0, cr3, cr4, efer).read::<u64>(Gva::new(0));
        assert_eq!(found.map(|entry| entry & !0x20), wanted, "{entry:#x}");
    }
}

#[test]
fn the_kind_of_a_mapping_decides_what_a_buffer_may_do() {
    let mut guest = Guest::new();
    let foreign = guest.foreign();
    let shared = guest.frames.alloc(Order::PAGE, A, FrameType::Shared, Fill::Zeroed).unwrap();
    for (gfn, kind) in
        [(20, P2mKind::GrantRw), (21, P2mKind::GrantRo), (22, P2mKind::ForeignRw), (23, P2mKind::ForeignRo)]
    {
        guest.p2m.map_ref(Gfn::new(gfn), guest.frames.get(foreign, B).unwrap(), kind).unwrap();
    }
    guest.p2m.map(Gfn::new(24), shared, Order::PAGE, P2mKind::Shared).unwrap();
    guest.p2m.map(Gfn::new(25), Mfn::new(1000), Order::PAGE, P2mKind::Mmio).unwrap();
    for (gfn, may_read, may_write) in [
        (20, true, true),
        (21, true, false),
        (22, true, true),
        (23, true, false),
        (24, true, false),
        (25, false, false),
        (26, false, false),
    ] {
        guest.map_long(9, gfn, 3);
        assert_eq!(guest.long().read::<u8>(Gva::new(0x9000)).is_ok(), may_read, "{gfn}");
        assert_eq!(guest.long().write(Gva::new(0x9000), &0_u8).is_ok(), may_write, "{gfn}");
        assert!(guest.p2m.view().pin(Gfn::new(gfn)).is_none());
    }
    // A page that was only read is not written through what the walk remembered.
    guest.map_long(9, 21, 0x63);
    let space = guest.long();
    space.read::<u8>(Gva::new(0x9000)).unwrap();
    assert_eq!(space.write(Gva::new(0x9000), &0_u8), Err(Fault::Refused));
}

#[test]
fn tables_in_read_only_pages_are_walked_but_not_marked() {
    let mut guest = Guest::new();
    let foreign = guest.foreign();
    guest.p2m.map_ref(Gfn::new(20), guest.frames.get(foreign, B).unwrap(), P2mKind::GrantRo).unwrap();
    guest.map_long(9, 4, 3);
    guest.put(0x2000, 0x1_4007);
    guest.frames.mem().write(foreign, 9 * 8, &0x4003_u64.to_le_bytes());
    assert!(matches!(guest.long().read::<u8>(Gva::new(0x9000)), Err(Fault::Refused)));
    guest.frames.mem().write(foreign, 9 * 8, &0x4023_u64.to_le_bytes());
    guest.long().read::<u8>(Gva::new(0x9000)).unwrap();
}

#[test]
fn five_levels_are_refused() {
    let guest = Guest::new();
    guest.map_long(9, 4, 3);
    assert_eq!(guest.space(PG | WP, 0, PAE | 1 << 12, LMA).read::<u8>(Gva::new(0x9000)), Err(Fault::Mode));
}

#[test]
fn instructions_are_read_up_to_the_first_fault() {
    let guest = Guest::new();
    guest.map_long(9, 4, 1 << 63 | 1);
    guest.put(0x4ff8, 0x0807_0605_0403_0201);
    let mut bytes = [0; MAX_INSTRUCTION];
    assert_eq!(guest.long().read_instruction(Gva::new(0x9ffa), &mut bytes), 6);
    assert_eq!(bytes[..6], [3, 4, 5, 6, 7, 8]);
    assert_eq!(guest.long().read_instruction(Gva::new(0x9ff0), &mut bytes), 15);
    assert_eq!(guest.long().read_instruction(Gva::new(0xa000), &mut bytes), 0);
}

struct Nobody;

impl Flusher for Nobody {
    fn flush(&self, _: &TlbState, _: u64) {}
}

#[test]
fn a_pinned_frame_stays_when_the_guest_gives_it_up() {
    let mut guest = Guest::new();
    let gfn = Gfn::new(4);
    guest.put(0x4000, 77);
    let pin = guest.p2m.view().pin(gfn).unwrap().unwrap();
    let mfn = pin.mfn();
    let token = guest.p2m.depopulate(gfn, Order::PAGE).unwrap();
    token.release(&guest.p2m.tlb().flush(&Nobody, FlushSite::Balloon));
    assert!(guest.p2m.view().pin(gfn).is_none());
    assert_eq!(guest.frames.mem().word(mfn, 0).load(core::sync::atomic::Ordering::Relaxed), 77);
    assert!(!guest.frames.info(mfn).is_owned);
    drop(pin);
    assert_eq!(guest.frames.info(mfn).kind, FrameType::Free);
}
