// SPDX-License-Identifier: MIT OR Apache-2.0
//! The p2m beside a naive model, in all formats; and beside a simulated TLB.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::vec::Vec;

use proptest::prelude::{Just, Strategy, any, prop_oneof};

use super::*;
use crate::frame::Limits;
use crate::testing::test_table;

/// A format like no CPU's: bit 0 table, bit 1 leaf.
pub(super) struct Toy;

impl PteFormat for Toy {
    const PRESENT: u64 = 3;
    const LARGE: u64 = 2;

    fn table(mfn: Mfn) -> u64 {
        mfn.base().raw() | 1
    }

    fn leaf(mfn: Mfn, kind: P2mKind, _: u8) -> u64 {
        mfn.base().raw() | kind.to_bits() | 2
    }
}

const A: DomId = DomId::new(1);
const B: DomId = DomId::new(2);
const FRAMES: usize = 4096;
const FORMATS: [Format; 3] = [Format::Ept, Format::Npt, Format::Toy];

fn frames() -> &'static FrameTable {
    let frames = test_table(FRAMES);
    frames.add_free(Mfn::new(1)..Mfn::new(FRAMES as u64)).unwrap();
    frames.open_account(A, Limits::NONE).unwrap();
    frames.open_account(B, Limits::NONE).unwrap();
    frames
}

fn p2m(frames: &'static FrameTable, format: Format) -> P2m {
    P2m::new(frames, A, format, Order::GIB_1).unwrap()
}

/// A machine that caches translations as a CPU may: filled by accesses, emptied by flushes only.
#[derive(Default)]
struct SimTlb {
    cached: RefCell<BTreeMap<(usize, u64), Leaf>>,
    /// Claims to flush and does not.
    lies: bool,
}

impl SimTlb {
    fn access(&self, p2m: &P2m, pcpu: usize, gfn: Gfn) -> Option<Leaf> {
        p2m.tlb().begin(pcpu);
        p2m.tlb().enter(pcpu);
        let key = (pcpu, gfn.raw());
        if let Some(leaf) = self.cached.borrow().get(&key) {
            return Some(*leaf);
        }
        let leaf = p2m.lookup(gfn)?;
        self.cached.borrow_mut().insert(key, leaf);
        Some(leaf)
    }

    /// Every frame that domain A can still reach is A's or kept by a reference.
    fn check(&self, frames: &FrameTable) {
        for leaf in self.cached.borrow().values().filter(|leaf| !leaf.kind.is_mmio()) {
            let info = frames.info(leaf.mfn);
            let is_used = info.is_owned || info.count > 0;
            let is_own = info.owner == A || leaf.kind != P2mKind::Ram;
            assert!(is_used && is_own, "stale translation to {leaf:?}, which is {info:?}");
        }
    }
}

impl Flusher for SimTlb {
    fn flush(&self, tlb: &TlbState, generation: u64) {
        let mut stale = tlb.stale(generation);
        while stale != 0 {
            let pcpu = stale.trailing_zeros() as usize;
            stale &= stale - 1;
            if !self.lies {
                self.cached.borrow_mut().retain(|key, _| key.0 != pcpu);
            }
            tlb.flushed(pcpu, generation);
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Populate { gfn: u64, order: u8 },
    MapMmio { gfn: u64, order: u8 },
    MapRef { gfn: u64, kind: P2mKind },
    Unmap { gfn: u64, order: u8 },
    Depopulate { gfn: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let gfn = || prop_oneof![0_u64..2048, (1_u64 << 18)..(1 << 18) + 1024, (1_u64 << 36) - 600..(1 << 36) + 9];
    let order = prop_oneof![4 => Just(0_u8), 3 => Just(9), 1 => 1_u8..11, 1 => Just(18)];
    let order = (order, any::<bool>());
    let kind = prop_oneof![
        Just(P2mKind::GrantRw),
        Just(P2mKind::GrantRo),
        Just(P2mKind::ForeignRw),
        Just(P2mKind::ForeignRo),
        Just(P2mKind::Ram)
    ];
    // Mostly aligned, sometimes not.
    let at = move |gfn: u64, (order, align): (u8, bool)| (if align { gfn >> order << order } else { gfn }, order);
    prop_oneof![
        3 => (gfn(), order.clone()).prop_map(move |(g, o)| { let (gfn, order) = at(g, o); Step::Populate { gfn, order } }),
        2 => (gfn(), order.clone()).prop_map(move |(g, o)| { let (gfn, order) = at(g, o); Step::MapMmio { gfn, order } }),
        2 => (gfn(), kind).prop_map(|(gfn, kind)| Step::MapRef { gfn, kind }),
        4 => (gfn(), order).prop_map(move |(g, o)| { let (gfn, order) = at(g, o); Step::Unmap { gfn, order } }),
        1 => gfn().prop_map(|gfn| Step::Depopulate { gfn }),
    ]
}

struct World {
    frames: &'static FrameTable,
    p2m: P2m,
    tlb: SimTlb,
    model: BTreeMap<u64, (u64, P2mKind)>,
    /// B's pages, which A maps.
    shared: Mfn,
    interesting: Vec<u64>,
}

impl World {
    fn new(format: Format) -> Self {
        let frames = frames();
        let shared = frames.alloc(Order::PAGE, B, FrameType::Ram, Fill::Zeroed).unwrap();
        let interesting = std::vec![0, 511, 512, 1 << 18, (1 << 36) - 1, 1 << 36, u64::MAX];
        Self { frames, p2m: p2m(frames, format), tlb: SimTlb::default(), model: BTreeMap::new(), shared, interesting }
    }

    fn is_free(&self, gfn: u64, count: u64) -> bool {
        gfn + count <= 1 << 36 && self.model.range(gfn..gfn + count).next().is_none()
    }

    fn insert(&mut self, gfn: u64, mfn: Mfn, count: u64, kind: P2mKind) {
        (0..count).for_each(|n| assert_eq!(self.model.insert(gfn + n, (mfn.raw() + n, kind)), None));
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Populate { gfn, order } => {
                let order = Order::new(order).unwrap();
                let result = self.p2m.populate(Gfn::new(gfn), order, Backing::Free(Fill::Zeroed));
                if let Ok(mfn) = result {
                    assert!(self.is_free(gfn, order.frames()) && order.is_aligned(gfn));
                    self.insert(gfn, mfn, order.frames(), P2mKind::Ram);
                }
                self.interesting.extend([gfn, gfn + order.frames() - 1, gfn + order.frames()]);
            }
            Step::MapMmio { gfn, order } => {
                let order = Order::new(order).unwrap();
                let mfn = Mfn::new((1 << 20) + gfn);
                let result = self.p2m.map(Gfn::new(gfn), mfn, order, P2mKind::Mmio);
                if result.is_ok() {
                    assert!(self.is_free(gfn, order.frames()) && order.is_aligned(gfn));
                    self.insert(gfn, mfn, order.frames(), P2mKind::Mmio);
                } else if order.raw() == 0 {
                    assert!(!self.is_free(gfn, 1), "{result:?}");
                }
                self.interesting.extend([gfn, gfn + order.frames() - 1, gfn + order.frames()]);
            }
            Step::MapRef { gfn, kind } => {
                let reference = self.frames.get(self.shared, B).unwrap();
                if self.p2m.map_ref(Gfn::new(gfn), reference, kind).is_ok() {
                    assert!(self.is_free(gfn, 1) && kind.holds_reference());
                    self.insert(gfn, self.shared, 1, kind);
                }
                self.interesting.push(gfn);
            }
            Step::Unmap { gfn, order } => {
                let order = Order::new(order).unwrap();
                if let Ok(token) = self.p2m.unmap(Gfn::new(gfn), order) {
                    self.removed(gfn, order, token, FlushSite::Remap);
                } else if order.raw() == 0 {
                    assert!(!self.model.contains_key(&gfn));
                }
            }
            Step::Depopulate { gfn } => {
                let is_ram = self.model.get(&gfn).is_some_and(|(_, kind)| *kind == P2mKind::Ram);
                let result = self.p2m.depopulate(Gfn::new(gfn), Order::PAGE);
                assert_eq!(result.is_ok(), is_ram);
                if let Ok(token) = result {
                    self.removed(gfn, Order::PAGE, token, FlushSite::Balloon);
                }
            }
        }
    }

    fn removed(&mut self, gfn: u64, order: Order, token: Unmapped, site: FlushSite) {
        let leaf = token.leaf;
        for n in 0..order.frames() {
            assert_eq!(self.model.remove(&(gfn + n)), Some((leaf.mfn.raw() + n, leaf.kind)));
        }
        // Until it is released the frame stays what it was, even if a TLB still reaches it.
        self.tlb.check(self.frames);
        let proof = self.p2m.tlb().flush(&self.tlb, site);
        token.release(&proof);
    }

    fn check(&self, pcpu: usize) {
        for &gfn in &self.interesting {
            let found = self.p2m.lookup(Gfn::new(gfn));
            let wanted = self.model.get(&gfn).copied();
            assert_eq!(found.map(|leaf| (leaf.mfn.raw(), leaf.kind)), wanted, "at {gfn:#x}");
            let seen = self.tlb.access(&self.p2m, pcpu, Gfn::new(gfn));
            assert_eq!(seen.map(|leaf| leaf.mfn), found.map(|leaf| leaf.mfn), "the TLB is stale");
            let next = self.p2m.view().next_leaf(Gfn::new(gfn));
            let wanted = self.model.range(gfn..).next().map(|(gfn, _)| *gfn);
            assert_eq!(next.map(|(first, _)| first.raw().max(gfn)), wanted, "after {gfn:#x}");
        }
        let references = self.model.values().filter(|(_, kind)| kind.holds_reference()).count();
        assert_eq!(self.frames.info(self.shared).count as usize, references);
        let ram = self.model.values().filter(|(_, kind)| *kind == P2mKind::Ram).count();
        assert_eq!(self.frames.account(A).unwrap().0.ram, ram as u64);
        self.tlb.check(self.frames);
    }

    fn destroy(mut self) {
        let mut at = Some(Gfn::new(0));
        while let Some(from) = at {
            let mut batch = UnmappedBatch::new();
            let next = self.p2m.drain(from, &mut batch);
            batch.flush(self.p2m.tlb(), &self.tlb, FlushSite::Teardown);
            at = next;
        }
        self.p2m.free(&self.tlb);
        assert_eq!(self.frames.info(self.shared).count, 0);
        self.frames.close_account(A).unwrap();
        assert_eq!(self.frames.free_frames().total, FRAMES as u64 - 2);
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(12))]
    #[test]
    fn every_format_agrees_with_the_model(steps in proptest::collection::vec(step(), 1..40)) {
        for format in FORMATS {
            let mut world = World::new(format);
            for (n, step) in steps.iter().enumerate() {
                world.apply(*step);
                world.check(n % 3);
            }
            world.destroy();
        }
    }
}

#[test]
fn a_gibibyte_of_devices_is_one_entry_until_it_is_split() {
    let frames = frames();
    let mut p2m = p2m(frames, Format::Ept);
    let tlb = SimTlb::default();
    let gib = 1 << 18;
    p2m.map_range_identity(Mfn::new(gib - 512)..Mfn::new(2 * gib + 3), P2mKind::Mmio).unwrap();
    let order_at = |p2m: &P2m, gfn| p2m.lookup(Gfn::new(gfn)).map(|leaf| leaf.order);
    assert_eq!(order_at(&p2m, gib - 1), Some(Order::MIB_2));
    assert_eq!(order_at(&p2m, gib), Some(Order::GIB_1));
    assert_eq!(order_at(&p2m, 2 * gib + 2), Some(Order::PAGE));
    assert_eq!(order_at(&p2m, 2 * gib + 3), None);
    let token = p2m.unmap(Gfn::new(gib + 1000), Order::PAGE).unwrap();
    token.release(&p2m.tlb().flush(&tlb, FlushSite::Remap));
    assert_eq!(order_at(&p2m, gib), Some(Order::MIB_2));
    assert_eq!(order_at(&p2m, gib + 1001), Some(Order::PAGE));
    assert_eq!(p2m.lookup(Gfn::new(gib + 1001)).map(|leaf| leaf.mfn), Some(Mfn::new(gib + 1001)));
    assert_eq!(order_at(&p2m, gib + 1000), None);
}

#[test]
fn a_cpu_without_large_leaves_gets_smaller_ones() {
    let frames = frames();
    let mut p2m = P2m::new(frames, A, Format::Npt, Order::MIB_2).unwrap();
    p2m.map(Gfn::new(1 << 18), Mfn::new(1 << 18), Order::GIB_1, P2mKind::Mmio).unwrap();
    let leaf = p2m.lookup(Gfn::new((1 << 18) + 700)).unwrap();
    assert_eq!((leaf.mfn, leaf.order), (Mfn::new((1 << 18) + 700), Order::MIB_2));
}

#[test]
fn ram_is_never_mapped_as_a_device() {
    let frames = frames();
    let mut p2m = p2m(frames, Format::Ept);
    let last = FRAMES as u64 - 1;
    assert_eq!(p2m.map(Gfn::new(9), Mfn::new(last), Order::PAGE, P2mKind::Mmio), Err(P2mError::IsRam(Mfn::new(last))));
    assert_eq!(p2m.map(Gfn::new(0), Mfn::new(0), Order::GIB_1, P2mKind::Mmio), Err(P2mError::IsRam(Mfn::new(0))));
    p2m.map(Gfn::new(9), Mfn::new(last + 1), Order::PAGE, P2mKind::Mmio).unwrap();
}

#[test]
fn a_domain_pays_for_its_tables_and_a_failed_map_changes_nothing() {
    let frames = frames();
    frames.open_account(A, Limits { ram: 600, overhead: 3 }).unwrap();
    let mut p2m = p2m(frames, Format::Npt);
    // Root and two tables serve a 2 MiB leaf; a page needs a third.
    p2m.populate(Gfn::new(0), Order::MIB_2, Backing::Free(Fill::Zeroed)).unwrap();
    let error = p2m.populate(Gfn::new(512), Order::PAGE, Backing::Free(Fill::Zeroed)).unwrap_err();
    assert_eq!(error, P2mError::Frame(FrameError::OverLimit(A)));
    assert!(matches!(p2m.unmap(Gfn::new(1), Order::PAGE), Err(P2mError::Frame(_))));
    assert_eq!(frames.account(A).unwrap().0.ram, 512);
    assert_eq!(p2m.lookup(Gfn::new(1)).unwrap().order, Order::MIB_2);
}

#[test]
fn populating_falls_back_to_pages_where_tables_are_in_the_way() {
    let frames = frames();
    let mut p2m = p2m(frames, Format::Ept);
    let tlb = SimTlb::default();
    p2m.populate(Gfn::new(700), Order::PAGE, Backing::Free(Fill::Zeroed)).unwrap();
    let token = p2m.depopulate(Gfn::new(700), Order::PAGE).unwrap();
    token.release(&p2m.tlb().flush(&tlb, FlushSite::Balloon));
    let mut at = 0;
    while at < 1536 {
        at += p2m.populate_some(Gfn::new(at), 1536 - at, Fill::Zeroed).unwrap();
    }
    let orders: Vec<_> = [0, 512, 700, 1024].map(|gfn| p2m.lookup(Gfn::new(gfn)).unwrap().order.raw()).into();
    assert_eq!(orders, [9, 0, 0, 9]);
}

#[test]
fn identity_frames_come_back_only_where_they_were() {
    let frames = test_table(1024);
    frames.open_account(A, Limits { ram: 8, overhead: 9 }).unwrap();
    frames.add_free(Mfn::new(512)..Mfn::new(1024)).unwrap();
    frames.reserve_for_dom0(Mfn::new(16)..Mfn::new(24), A).unwrap();
    let mut p2m = p2m(frames, Format::Ept);
    p2m.map_range_identity(Mfn::new(16)..Mfn::new(24), P2mKind::Ram).unwrap();
    let token = p2m.depopulate(Gfn::new(17), Order::PAGE).unwrap();
    token.release(&p2m.tlb().flush(&SimTlb::default(), FlushSite::Balloon));
    assert!(p2m.populate(Gfn::new(18), Order::PAGE, Backing::Identity).is_err());
    assert!(p2m.populate(Gfn::new(24), Order::PAGE, Backing::Identity).is_err());
    assert_eq!(p2m.populate(Gfn::new(17), Order::PAGE, Backing::Identity), Ok(Mfn::new(17)));
    assert_eq!(frames.account(A).unwrap().0.ram, 8);
}

const SITES: [FlushSite; FlushSite::COUNT] =
    [FlushSite::Balloon, FlushSite::Remap, FlushSite::GrantUnmap, FlushSite::ForeignUnmap, FlushSite::Teardown];

/// What is unmapped at each site that this crate's p2m knows, in short.
fn use_site(world: &mut World, site: FlushSite) {
    let gfn = Gfn::new(77);
    let token = match site {
        FlushSite::Balloon | FlushSite::Remap | FlushSite::Teardown => {
            world.p2m.populate(gfn, Order::PAGE, Backing::Free(Fill::Zeroed)).unwrap();
            world.tlb.access(&world.p2m, 1, gfn);
            if site == FlushSite::Teardown {
                let mut batch = UnmappedBatch::new();
                let _ = world.p2m.drain(Gfn::new(0), &mut batch);
                batch.flush(world.p2m.tlb(), &world.tlb, site);
                return;
            }
            world.p2m.unmap(gfn, Order::PAGE).unwrap()
        }
        FlushSite::GrantUnmap | FlushSite::ForeignUnmap => {
            let reference = world.frames.get(world.shared, B).unwrap();
            let kind = if site == FlushSite::ForeignUnmap { P2mKind::ForeignRw } else { P2mKind::GrantRw };
            world.p2m.map_ref(gfn, reference, kind).unwrap();
            world.tlb.access(&world.p2m, 1, gfn);
            let token = world.p2m.unmap(gfn, Order::PAGE).unwrap();
            // The granter gives its page up: the mapping's reference is the last.
            world.frames.give_up(world.shared, Order::PAGE, B).unwrap();
            token
        }
    };
    let proof = world.p2m.tlb().flush(&world.tlb, site);
    token.release(&proof);
}

#[test]
fn each_flush_is_needed_says_the_generation() {
    for site in SITES {
        let mut world = World::new(Format::Ept);
        use_site(&mut world, site);
        world.tlb.check(world.frames);
        assert_eq!(world.p2m.tlb().flushes(site), 1);
        let missing = std::panic::catch_unwind(|| {
            let mut world = World::new(Format::Ept);
            crate::testing::without_flush(site, || use_site(&mut world, site));
        });
        assert!(missing.is_err(), "{site:?} can be left out unnoticed");
    }
}

#[test]
fn each_flush_is_needed_says_the_simulated_tlb() {
    for site in SITES {
        let mut world = World::new(Format::Npt);
        world.tlb.lies = true;
        use_site(&mut world, site);
        let stale = std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| world.tlb.check(world.frames)));
        assert!(stale.is_err(), "{site:?} leaves nothing stale behind");
    }
}

#[test]
#[should_panic = "before its flush"]
fn an_older_proof_is_refused() {
    let mut world = World::new(Format::Ept);
    let gfn = Gfn::new(3);
    world.p2m.populate(gfn, Order::PAGE, Backing::Free(Fill::Zeroed)).unwrap();
    let early = world.p2m.tlb().flush(&world.tlb, FlushSite::Balloon);
    world.p2m.depopulate(gfn, Order::PAGE).unwrap().release(&early);
}

#[test]
#[should_panic = "before its flush"]
fn another_p2ms_proof_is_refused() {
    let mut world = World::new(Format::Ept);
    let mut other = p2m(world.frames, Format::Ept);
    let gfn = Gfn::new(3);
    let first = other.tlb().generation();
    assert!(first > world.p2m.tlb().generation(), "it is not refused by its generation");
    for n in 0..2 {
        other.map(gfn, Mfn::new(1 << 20), Order::PAGE, P2mKind::Mmio).unwrap();
        let token = other.unmap(gfn, Order::PAGE).unwrap();
        token.release(&other.tlb().flush(&world.tlb, FlushSite::Remap));
        assert_eq!(other.tlb().generation(), first + 1 + n);
    }
    world.p2m.populate(gfn, Order::PAGE, Backing::Free(Fill::Zeroed)).unwrap();
    let token = world.p2m.depopulate(gfn, Order::PAGE).unwrap();
    token.release(&other.tlb().flush(&world.tlb, FlushSite::Balloon));
}

#[test]
#[should_panic = "never released"]
fn a_dropped_token_is_caught() {
    let mut world = World::new(Format::Ept);
    world.p2m.populate(Gfn::new(3), Order::PAGE, Backing::Free(Fill::Zeroed)).unwrap();
    drop(world.p2m.unmap(Gfn::new(3), Order::PAGE));
}

#[test]
#[should_panic = "may wait for other pCPUs"]
fn a_flush_under_a_lock_is_caught() {
    let world = World::new(Format::Ept);
    let lock = crate::lock::Lock::for_domain(crate::lock::Rank::P2m, A, ());
    let _guard = lock.lock();
    let _ = world.p2m.tlb().flush(&world.tlb, FlushSite::Balloon);
}

/// Two pCPUs, each running its own domain, remove from the other's p2m again and again. Each has to wait
/// for the other, which waits too.
#[test]
fn pcpus_that_flush_each_other_both_go_on() {
    let host = crate::testing::Host::new();
    let frames = test_table(64);
    frames.add_free(Mfn::new(1)..Mfn::new(64)).unwrap();
    frames.open_account(A, Limits { ram: 0, overhead: 64 }).unwrap();
    let p2ms = [p2m(frames, Format::Ept), p2m(frames, Format::Ept)].map(std::sync::Mutex::new);
    let tlbs = [0, 1].map(|i: usize| p2ms[i].lock().unwrap().tlb().clone());
    let done = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for here in 0..2 {
            let (p2ms, tlbs, done) = (&p2ms, &tlbs, &done);
            scope.spawn(move || {
                crate::testing::pretend(here + 1);
                let (own, other) = (&tlbs[here], &p2ms[1 - here]);
                for round in 0..500 {
                    own.begin(here + 1);
                    for _ in 0..round % 4 {
                        own.enter(here + 1);
                    }
                    let token = {
                        let mut p2m = other.lock().unwrap();
                        p2m.map(Gfn::new(3), Mfn::new(1 << 20), Order::PAGE, P2mKind::Mmio).unwrap();
                        p2m.unmap(Gfn::new(3), Order::PAGE).unwrap()
                    };
                    token.release(&tlbs[1 - here].flush(host.hv.machine, FlushSite::Remap));
                    own.end(here + 1);
                }
                done.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            });
        }
    });
    assert_eq!(done.into_inner(), 2);
    let kicks = host.machine.kicks.lock().unwrap();
    assert!(kicks.iter().all(|pcpu| matches!(pcpu, 1 | 2)), "only pCPUs that ran the domain");
}

#[test]
fn a_flush_waits_only_for_pcpus_that_run_the_domain_now() {
    let host = crate::testing::Host::new();
    let mut world = World::new(Format::Ept);
    let tlb = world.p2m.tlb().clone();
    tlb.begin(5);
    tlb.enter(5);
    tlb.end(5);
    world.p2m.map(Gfn::new(3), Mfn::new(1 << 20), Order::PAGE, P2mKind::Mmio).unwrap();
    let token = world.p2m.unmap(Gfn::new(3), Order::PAGE).unwrap();
    assert_eq!(tlb.stale(tlb.generation()), 1 << 5);
    token.release(&tlb.flush(host.hv.machine, FlushSite::Remap));
    assert!(host.machine.kicks.lock().unwrap().is_empty());
}

/// A pCPU whose guest no kick makes exit.
#[test]
fn who_waits_for_a_flush_insists() {
    let host = crate::testing::Host::new();
    let mut world = World::new(Format::Ept);
    let tlb = world.p2m.tlb().clone();
    tlb.begin(5);
    tlb.enter(5);
    world.p2m.map(Gfn::new(3), Mfn::new(1 << 20), Order::PAGE, P2mKind::Mmio).unwrap();
    let token = world.p2m.unmap(Gfn::new(3), Order::PAGE).unwrap();
    let insisted = || host.machine.insisted.lock().unwrap().first().copied();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while insisted().is_none() {
                std::thread::yield_now();
            }
            tlb.enter(5);
        });
        token.release(&tlb.flush(host.hv.machine, FlushSite::Remap));
    });
    assert_eq!((insisted(), &**host.machine.kicks.lock().unwrap()), (Some(5), &[5][..]));
}
