// SPDX-License-Identifier: MIT OR Apache-2.0
//! The frame table beside a naive model.

use std::collections::BTreeMap;
use std::vec::Vec;

use proptest::prelude::{Just, Strategy, any, prop_oneof};

use super::*;
use crate::testing::test_table;

const A: DomId = DomId::new(1);
const B: DomId = DomId::new(2);
const FRAMES: usize = 1024;
const JUNK: u64 = 0x6a75_6e6b;

fn order(raw: u8) -> Order {
    Order::new(raw).unwrap()
}

fn dirty_all(table: &FrameTable) {
    (0..table.nr_frames()).for_each(|n| dirty(table, Mfn::new(n)));
}

fn dirty(table: &FrameTable, mfn: Mfn) {
    table.mem().word(mfn, 17).store(JUNK, core::sync::atomic::Ordering::Relaxed);
}

fn is_zero(table: &FrameTable, mfn: Mfn) -> bool {
    table.mem().frame(mfn).iter().all(|word| word.load(core::sync::atomic::Ordering::Relaxed) == 0)
}

fn table_with_free(range: Range<u64>) -> &'static FrameTable {
    let table = test_table(FRAMES);
    dirty_all(table);
    table.add_free(Mfn::new(range.start)..Mfn::new(range.end)).unwrap();
    table.open_account(A, Limits::NONE).unwrap();
    table.open_account(B, Limits { ram: 300, overhead: 20 }).unwrap();
    table
}

fn blocks(table: &FrameTable) -> BTreeMap<u64, (u8, bool)> {
    table.inner.lock().buddy.blocks(table.records)
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Alloc { order: u8, owner: DomId, kind: FrameType, fill: Fill },
    GiveUp { pick: usize, whole: bool },
    Get { pick: usize },
    Put { pick: usize },
    Scrub,
}

fn step() -> impl Strategy<Value = Step> {
    let owner = prop_oneof![Just(A), Just(B)];
    let kind = prop_oneof![4 => Just(FrameType::Ram), 1 => Just(FrameType::Table)];
    let fill = prop_oneof![Just(Fill::Zeroed), Just(Fill::Overwritten)];
    prop_oneof![
        3 => (0_u8..8, owner, kind, fill).prop_map(|(order, owner, kind, fill)| Step::Alloc { order, owner, kind, fill }),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(pick, whole)| Step::GiveUp { pick, whole }),
        2 => any::<usize>().prop_map(|pick| Step::Get { pick }),
        2 => any::<usize>().prop_map(|pick| Step::Put { pick }),
        1 => Just(Step::Scrub),
    ]
}

/// What the table should say, one frame at a time.
#[derive(Default)]
struct Model {
    /// Frame → owner, kind, owned.
    used: BTreeMap<u64, (DomId, FrameType, bool)>,
    /// Blocks as allocated and not given up: (first, order, owner).
    blocks: Vec<(Mfn, Order, DomId)>,
    refs: Vec<FrameRef>,
}

impl Model {
    fn count(&self, mfn: u64) -> usize {
        self.refs.iter().filter(|r| r.mfn().raw() == mfn).count()
    }

    fn usage(&self, owner: DomId, ram: bool) -> u64 {
        self.used.values().filter(|u| u.0 == owner && (u.1 == FrameType::Ram) == ram).count() as u64
    }

    fn settle(&mut self) {
        let refs = &self.refs;
        self.used.retain(|&mfn, used| used.2 || refs.iter().any(|r| r.mfn().raw() == mfn));
    }

    fn apply(&mut self, table: &'static FrameTable, step: Step) {
        match step {
            Step::Alloc { order: raw, owner, kind, fill } => self.alloc(table, order(raw), owner, kind, fill),
            Step::GiveUp { pick, whole } if !self.blocks.is_empty() => {
                let (first, mut size, owner) = self.blocks.swap_remove(pick % self.blocks.len());
                while !whole && size > Order::PAGE {
                    size = order(size.raw() - 1);
                    self.blocks.push((first.offset(size.frames()), size, owner));
                }
                let other = if owner == A { B } else { A };
                assert_eq!(table.give_up(first, size, other), Err(FrameError::NotOwner(first)));
                table.give_up(first, size, owner).unwrap();
                assert!(table.give_up(first, size, owner).is_err());
                (0..size.frames()).for_each(|n| self.used.get_mut(&(first.raw() + n)).unwrap().2 = false);
            }
            Step::Get { pick } if !self.used.is_empty() => {
                let (&mfn, &(owner, kind, owned)) = self.used.iter().nth(pick % self.used.len()).unwrap();
                let mfn = Mfn::new(mfn);
                assert!(table.get_kind(mfn, if owner == A { B } else { A }, kind).is_err());
                assert_eq!(table.get(mfn, owner).is_ok(), owned && kind == FrameType::Ram);
                if let Ok(reference) = table.get_kind(mfn, owner, kind) {
                    assert!(owned);
                    self.refs.push(reference);
                } else {
                    assert!(!owned);
                }
            }
            Step::Put { pick } if !self.refs.is_empty() => {
                drop(self.refs.swap_remove(pick % self.refs.len()));
            }
            Step::Scrub => drop(table.scrub()),
            _ => {}
        }
        self.settle();
    }

    fn alloc(&mut self, table: &'static FrameTable, size: Order, owner: DomId, kind: FrameType, fill: Fill) {
        let usage = self.usage(owner, kind == FrameType::Ram) + size.frames();
        let limit = if owner == A { u64::MAX } else { [20, 300][usize::from(kind == FrameType::Ram)] };
        let largest = blocks(table).values().map(|b| b.0).max();
        match table.alloc(size, owner, kind, fill) {
            Ok(first) => {
                assert!(usage <= limit && size.is_aligned(first.raw()));
                for n in 0..size.frames() {
                    let mfn = first.offset(n);
                    let before = self.used.insert(mfn.raw(), (owner, kind, true));
                    assert_eq!(before, None, "{mfn:?} has two owners");
                    assert!(fill == Fill::Overwritten || is_zero(table, mfn));
                    dirty(table, mfn);
                }
                self.blocks.push((first, size, owner));
            }
            Err(FrameError::OverLimit(who)) => assert!(who == owner && usage > limit),
            Err(error) => {
                assert_eq!(error, FrameError::NoMemory);
                assert!(largest.is_none_or(|largest| largest < size.raw()));
            }
        }
    }

    fn check(&self, table: &FrameTable, free: &Range<u64>) {
        for owner in [A, B] {
            let usage = Usage { ram: self.usage(owner, true), overhead: self.usage(owner, false) };
            assert_eq!(table.account(owner).unwrap().0, usage);
        }
        let total = free.end - free.start - self.used.len() as u64;
        assert_eq!(table.free_frames().total, total);
        let mut seen = 0;
        for (&first, &(size, clean)) in &blocks(table) {
            seen += order(size).frames();
            for n in first..first + order(size).frames() {
                assert!(free.contains(&n) && !self.used.contains_key(&n));
                let state = table.records[Mfn::new(n).index()].state();
                assert!(state.is_free() && (!clean || state.is_clean()));
                assert!(!state.is_clean() || is_zero(table, Mfn::new(n)));
            }
            // Buddies never stay apart.
            let buddy = blocks(table).get(&(first ^ order(size).frames())).copied();
            assert!(size == 18 || buddy.is_none_or(|(other, _)| other != size));
        }
        assert_eq!(seen, total);
        for (&mfn, &(owner, kind, is_owned)) in &self.used {
            let count = u32::try_from(self.count(mfn)).unwrap();
            assert_eq!(table.info(Mfn::new(mfn)), FrameInfo { owner, kind, count, is_owned });
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]
    #[test]
    fn the_table_agrees_with_the_model(steps in proptest::collection::vec(step(), 1..80)) {
        let free = 5..1000;
        let table = table_with_free(free.clone());
        let fresh: Vec<_> = blocks(table).into_iter().map(|(first, (size, _))| (first, size)).collect();
        let mut model = Model::default();
        for step in steps {
            model.apply(table, step);
            model.check(table, &free);
        }
        model.refs.clear();
        for (first, size, owner) in model.blocks.drain(..) {
            table.give_up(first, size, owner).unwrap();
        }
        model.used.clear();
        while table.scrub() {}
        model.check(table, &free);
        let after: Vec<_> = blocks(table).into_iter().map(|(first, (size, _))| (first, size)).collect();
        assert_eq!(after, fresh, "coalescing restores what was there at the start");
        let all = table.free_frames();
        assert_eq!(all.total, all.clean);
        table.close_account(A).unwrap();
    }
}

#[test]
fn a_gibibyte_stays_whole() {
    // The records only: memory that is never zeroed needs none in the test.
    let records: Vec<FrameRecord> = (0..(3 << 18)).map(|_| FrameRecord::default()).collect();
    let records = Vec::leak(records);
    records.iter().for_each(|record| record.set_state(State::free(false)));
    let mut buddy = Buddy::new();
    for (first, order) in aligned_blocks(Mfn::new(100), (3 << 18) - 100) {
        buddy.insert(records, first, order);
    }
    for _ in 0..1000 {
        buddy.take(records, Order::PAGE, true).unwrap();
    }
    assert!(buddy.take(records, Order::GIB_1, true).is_some());
    assert!(buddy.take(records, Order::GIB_1, true).is_some());
    assert_eq!(buddy.take(records, Order::GIB_1, true), None);
}

#[test]
fn a_frame_that_others_map_outlives_its_owner() {
    let table = table_with_free(0..64);
    let mfn = table.alloc(Order::PAGE, A, FrameType::Ram, Fill::Zeroed).unwrap();
    dirty(table, mfn);
    let mapping = table.get(mfn, A).unwrap();
    table.give_up(mfn, Order::PAGE, A).unwrap();
    assert!(table.get(mfn, A).is_err());
    assert!(matches!(table.close_account(A), Err(FrameError::AccountInUse(..))));
    while let Ok(other) = table.alloc(Order::PAGE, B, FrameType::Ram, Fill::Zeroed) {
        assert_ne!(other, mfn);
    }
    assert!(!is_zero(table, mfn));
    drop(mapping);
    table.close_account(A).unwrap();
    assert_eq!(table.alloc(Order::PAGE, B, FrameType::Ram, Fill::Zeroed), Ok(mfn));
    assert!(is_zero(table, mfn));
}

#[test]
fn frames_of_the_identity_map_serve_only_their_owner() {
    let table = test_table(64);
    table.open_account(DomId::DOM0, Limits { ram: 8, overhead: 0 }).unwrap();
    table.reserve_for_dom0(Mfn::new(8)..Mfn::new(16), DomId::DOM0).unwrap();
    let mfn = Mfn::new(9);
    dirty(table, mfn);
    let pin = table.get(mfn, DomId::DOM0).unwrap();
    table.give_up(mfn, Order::PAGE, DomId::DOM0).unwrap();
    assert!(table.take_back(mfn, DomId::DOM0).is_err());
    drop(pin);
    assert_eq!(table.info(mfn).kind, FrameType::Reserved);
    assert_eq!(table.free_frames().total, 0);
    assert_eq!(table.account(DomId::DOM0).unwrap().0.ram, 7);
    table.open_account(A, Limits::NONE).unwrap();
    assert_eq!(table.take_back(mfn, A), Err(FrameError::NotOwner(mfn)));
    assert_eq!(table.account(A).unwrap().0.ram, 0);
    table.take_back(mfn, DomId::DOM0).unwrap();
    assert!(is_zero(table, mfn));
    assert_eq!(table.account(DomId::DOM0).unwrap().0.ram, 8);
}

#[test]
fn ranges_in_use_are_refused_whole() {
    let table = test_table(64);
    table.add_hypervisor(Mfn::new(4)..Mfn::new(6)).unwrap();
    assert!(table.add_free(Mfn::new(0)..Mfn::new(5)).is_err());
    assert!(table.add_free(Mfn::new(60)..Mfn::new(65)).is_err());
    assert_eq!(table.free_frames().total, 0);
    assert!(table.is_not_ram(Mfn::new(0), 4) && table.is_not_ram(Mfn::new(6), u64::MAX));
    assert!(!table.is_not_ram(Mfn::new(0), 5) && !table.is_not_ram(Mfn::new(5), 1));
    assert_eq!(table.info(Mfn::new(u64::MAX)).kind, FrameType::NotRam);
    assert!(table.get(Mfn::new(4), DomId::XEN).is_err());
}
