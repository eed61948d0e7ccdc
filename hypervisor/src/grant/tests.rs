// SPDX-License-Identifier: MIT OR Apache-2.0
//! Grants of three domains beside a naive model, and each rule on its own.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use guest_abi::grant_table::{
    CopyPtr, GetVersion, GrantCopy, MapGrantRef, QuerySize, SetVersion, SetupTable, UnmapGrantRef,
};
use guest_abi::num::{low_u32, to_usize};
use guest_abi::{Errno, Gfn, GrantRef, Wire};
use proptest::prelude::{Just, ProptestConfig, Strategy, prop_oneof, proptest};

use super::ops::{Buffers, Request, Rights, Step};
use super::*;
use crate::addr::{Mfn, Order, PAGE_SIZE};
use crate::frame::{Fill, FrameTable, FrameType, Limits as FrameLimits, Usage};
use crate::lock::{self, Lock, Rank};
use crate::p2m::{Backing, FlushSite, Flusher, Format, Leaf, P2m, P2mKind, P2mView, TlbState, UnmappedBatch};
use crate::progress::Progress;
use crate::testing::test_table;
use crate::testing::without_flush;

const RAM: u64 = 4;
const HOLES: std::ops::Range<u64> = 8..12;
const REFS: u32 = 6;
/// Pages of a p2m that maps low guest frames only.
const TABLES: u64 = 4;
pub(super) const READING: u64 = abi::GTF_READING as u64;
pub(super) const WRITING: u64 = abi::GTF_WRITING as u64;
pub(super) const READONLY: u64 = abi::GTF_READONLY as u64;
pub(super) const PERMIT: u64 = abi::GTF_PERMIT_ACCESS as u64;

type Hook = Box<dyn Fn()>;

/// A CPU whose TLB is empty.
pub(super) struct NoTlb;

impl Flusher for NoTlb {
    fn flush(&self, tlb: &TlbState, generation: u64) {
        for pcpu in 0..crate::pcpu::MAX_PCPUS {
            tlb.flushed(pcpu, generation);
        }
    }
}

/// A domain's memory, and a look at what happens in it.
pub(super) struct TestMemory {
    pub(super) p2m: Lock<P2m>,
    view: P2mView,
    pub(super) tlb: Arc<TlbState>,
    pub(super) at_flush: RefCell<Option<Hook>>,
    pub(super) at_pin: RefCell<Option<Hook>>,
}

impl TestMemory {
    fn new(domain: DomId, frames: &'static FrameTable) -> Self {
        let mut p2m = P2m::new(frames, domain, Format::Ept, Order::MIB_2).unwrap();
        for gfn in 0..RAM {
            p2m.populate(Gfn::new(gfn), Order::PAGE, Backing::Free(Fill::Zeroed)).unwrap();
        }
        let (view, tlb) = (p2m.view(), p2m.tlb().clone());
        let p2m = Lock::for_domain(Rank::P2m, domain, p2m);
        Self { p2m, view, tlb, at_flush: RefCell::default(), at_pin: RefCell::default() }
    }

    pub(super) fn leaf(&self, gfn: u64) -> Option<Leaf> {
        self.view.lookup(Gfn::new(gfn))
    }

    pub(super) fn mfn(&self, gfn: u64) -> Mfn {
        self.leaf(gfn).unwrap().mfn
    }

    fn nr_mapped(&self) -> usize {
        (0..HOLES.end).filter(|gfn| self.leaf(*gfn).is_some()).count()
    }

    pub(super) fn give_up(&self, gfn: u64) {
        let token = self.p2m.lock().depopulate(Gfn::new(gfn), Order::PAGE).unwrap();
        token.release(&self.tlb.flush(&NoTlb, FlushSite::Balloon));
    }
}

impl Memory for TestMemory {
    fn p2m(&self) -> &Lock<P2m> {
        &self.p2m
    }

    fn p2m_view(&self) -> P2mView {
        if let Some(hook) = &*self.at_pin.borrow() {
            hook();
        }
        self.view
    }
}

pub(super) struct Dom {
    pub(super) table: GrantTable,
    pub(super) p2m: TestMemory,
}

pub(super) struct World {
    pub(super) frames: &'static FrameTable,
    pub(super) doms: Vec<Dom>,
    hidden: Cell<Option<DomId>>,
}

impl Parties for World {
    type Memory = TestMemory;

    fn with<R>(&self, domain: DomId, act: impl FnOnce(Party<'_, TestMemory>) -> R) -> Option<R> {
        if self.hidden.get() == Some(domain) {
            return None;
        }
        self.doms.get(domain.index()).map(|dom| act(dom.party()))
    }

    fn flush(&self, memory: &TestMemory, removed: &mut UnmappedBatch) {
        assert!(lock::holds_none(), "a flush waits for other CPUs");
        if let Some(hook) = &*memory.at_flush.borrow() {
            hook();
        }
        removed.flush_in_place(&memory.tlb, &NoTlb, FlushSite::GrantUnmap);
    }
}

impl Dom {
    fn new(domain: DomId, frames: &'static FrameTable) -> Self {
        frames.open_account(domain, FrameLimits::NONE).unwrap();
        let p2m = TestMemory::new(domain, frames);
        let table = GrantTable::new(domain, frames, Limits { frames: 2, mappings: 64 });
        table.frame(0).unwrap();
        Self { table, p2m }
    }

    pub(super) fn party(&self) -> Party<'_, TestMemory> {
        Party { table: &self.table, memory: &self.p2m }
    }

    /// What the hypervisor does with a dying domain.
    fn destroy(&self, world: &World) {
        while map::unmap_all(self.party(), world) == Progress::Again {}
        let mut from = Some(Gfn::new(0));
        while let Some(at) = from {
            let mut batch = UnmappedBatch::new();
            let next = self.p2m.p2m.lock().drain(at, &mut batch);
            batch.flush(&self.p2m.tlb, &NoTlb, FlushSite::Teardown);
            from = next;
        }
        self.table.release_frames();
    }
}

impl Dom {
    fn free(self) {
        self.p2m.p2m.into_inner().free(&NoTlb);
    }
}

impl World {
    pub(super) fn new(nr: u16) -> Self {
        let frames = test_table(96);
        frames.add_free(Mfn::new(0)..Mfn::new(96)).unwrap();
        let doms = (0..nr).map(|d| Dom::new(DomId::new(d), frames)).collect();
        Self { frames, doms, hidden: Cell::new(None) }
    }

    pub(super) fn entry(&self, d: usize, reference: u32) -> &'static AtomicU64 {
        let frame = self.doms[d].table.frame(reference / 512).unwrap();
        self.frames.mem().word(frame, reference as usize % 512)
    }

    pub(super) fn grant(&self, d: usize, reference: u32, peer: u16, gfn: u64, flags: u64) {
        self.entry(d, reference).store(gfn << 32 | u64::from(peer) << 16 | flags, Ordering::SeqCst);
    }

    pub(super) fn marks(&self, d: usize, reference: u32) -> u64 {
        self.entry(d, reference).load(Ordering::SeqCst) & (READING | WRITING)
    }

    pub(super) fn map(&self, d: usize, granter: u16, reference: u32, gfn: u64, flags: u32) -> (i16, u32) {
        let mut op = [MapGrantRef { host_addr: gfn << 12, flags, reference, dom: granter, ..MapGrantRef::default() }];
        map::map(self.doms[d].party(), &mut op, self);
        (op[0].status, op[0].handle)
    }

    pub(super) fn unmap(&self, d: usize, handle: u32, gfn: u64) -> i16 {
        let mut op = [UnmapGrantRef { host_addr: gfn << 12, handle, ..UnmapGrantRef::default() }];
        map::unmap(self.doms[d].party(), &mut op, self);
        op[0].status
    }

    pub(super) fn copy(&self, d: usize, op: GrantCopy) -> i16 {
        let mut op = [op];
        self.copy_list(d, &mut op);
        op[0].status
    }

    pub(super) fn copy_list(&self, d: usize, ops: &mut [GrantCopy]) {
        copy::copy(self.doms[d].party(), &mut Bytes(Vec::new(), &self.doms[d].p2m), ops, self);
    }

    pub(super) fn bytes(&self, d: usize, gfn: u64) -> Vec<u8> {
        let mut bytes = vec![0; PAGE_SIZE];
        self.frames.mem().read(self.doms[d].p2m.mfn(gfn), 0, &mut bytes);
        bytes
    }

    pub(super) fn fill(&self, d: usize, gfn: u64, bytes: &[u8]) {
        self.frames.mem().write(self.doms[d].p2m.mfn(gfn), 0, bytes);
    }

    pub(super) fn references(&self, d: usize, gfn: u64) -> u32 {
        self.frames.info(self.doms[d].p2m.mfn(gfn)).count
    }
}

pub(super) const RW: u32 = abi::GNTMAP_HOST_MAP;
pub(super) const RO: u32 = abi::GNTMAP_HOST_MAP | abi::GNTMAP_READONLY;
pub(super) const OKAY: i16 = abi::GNTST_OKAY;

pub(super) fn gref(domid: u16, reference: u32, offset: u16) -> CopyPtr {
    CopyPtr { frame: u64::from(reference), domid, offset }
}

pub(super) fn own(gfn: u64, offset: u16) -> CopyPtr {
    CopyPtr { frame: gfn, domid: DomId::SELF.raw(), offset }
}

pub(super) const FROM: u16 = abi::GNTCOPY_SOURCE_GREF;
pub(super) const TO: u16 = abi::GNTCOPY_DEST_GREF;

pub(super) fn piece(source: CopyPtr, dest: CopyPtr, len: u16, flags: u16) -> GrantCopy {
    GrantCopy { source, dest, len, flags, status: 99 }
}

#[test]
fn a_mapping_holds_the_page_and_marks_the_entry() {
    let world = World::new(2);
    world.grant(1, 3, 0, 2, PERMIT);
    let (status, handle) = world.map(0, 1, 3, 8, RW);
    assert_eq!(status, OKAY);
    assert_eq!(world.doms[0].p2m.mfn(8), world.doms[1].p2m.mfn(2));
    assert_eq!(world.marks(1, 3), READING | WRITING);
    assert_eq!(world.references(1, 2), 1);
    assert_eq!(world.doms[0].table.nr_mapped(), 1);
    assert_eq!(world.unmap(0, handle, 8), OKAY);
    assert_eq!(world.marks(1, 3), 0);
    assert_eq!(world.references(1, 2), 0);
    assert_eq!(world.doms[0].p2m.leaf(8), None);
    assert_eq!(world.unmap(0, handle, 8), abi::GNTST_BAD_HANDLE, "once");
}

#[test]
fn marks_go_with_the_last_reader_and_the_last_writer() {
    let world = World::new(2);
    world.grant(1, 0, 0, 0, PERMIT);
    let (_, writer) = world.map(0, 1, 0, 8, RW);
    let (_, reader) = world.map(0, 1, 0, 9, RO);
    let (_, reader2) = world.map(0, 1, 0, 10, RO);
    assert_eq!(world.unmap(0, writer, 8), OKAY);
    assert_eq!(world.marks(1, 0), READING);
    assert_eq!(world.unmap(0, reader, 9), OKAY);
    assert_eq!(world.marks(1, 0), READING);
    assert_eq!(world.unmap(0, reader2, 10), OKAY);
    assert_eq!(world.marks(1, 0), 0);
}

#[test]
fn marks_stay_until_the_flush_is_done() {
    let world = World::new(2);
    world.grant(1, 0, 0, 0, PERMIT);
    let (_, handle) = world.map(0, 1, 0, 8, RW);
    let word = world.entry(1, 0);
    let (frames, mfn) = (world.frames, world.doms[1].p2m.mfn(0));
    *world.doms[0].p2m.at_flush.borrow_mut() = Some(Box::new(move || {
        assert_eq!(word.load(Ordering::SeqCst) & (READING | WRITING), READING | WRITING);
        assert_eq!(frames.info(mfn).count, 1);
    }));
    assert_eq!(world.unmap(0, handle, 8), OKAY);
    assert_eq!(world.marks(1, 0), 0);
}

#[test]
#[should_panic = "honoured"]
fn an_unmap_without_its_flush_is_caught() {
    let world = World::new(2);
    world.grant(1, 0, 0, 0, PERMIT);
    let (_, handle) = world.map(0, 1, 0, 8, RW);
    let _ = world.doms[0].p2m.tlb.begin(0);
    world.doms[0].p2m.tlb.enter(0);
    without_flush(FlushSite::GrantUnmap, || world.unmap(0, handle, 8));
}

#[test]
fn what_took_the_place_of_a_mapping_stays() {
    let world = World::new(2);
    world.grant(1, 0, 0, 0, PERMIT);
    let (_, handle) = world.map(0, 1, 0, 8, RW);
    let memory = &world.doms[0].p2m;
    let token = memory.p2m.lock().unmap(Gfn::new(8), Order::PAGE).unwrap();
    token.release(&memory.tlb.flush(&NoTlb, FlushSite::Remap));
    let mfn = memory.p2m.lock().populate(Gfn::new(8), Order::PAGE, Backing::Free(Fill::Zeroed)).unwrap();
    assert_eq!(world.unmap(0, handle, 8), OKAY);
    assert_eq!(memory.mfn(8), mfn);
    assert_eq!(world.marks(1, 0), 0);

    world.grant(1, 1, 0, 1, PERMIT);
    let (_, old) = world.map(0, 1, 0, 9, RW);
    let token = memory.p2m.lock().unmap(Gfn::new(9), Order::PAGE).unwrap();
    token.release(&memory.tlb.flush(&NoTlb, FlushSite::Remap));
    assert_eq!(world.map(0, 1, 1, 9, RW).0, OKAY);
    assert_eq!(world.unmap(0, old, 9), OKAY);
    assert_eq!(memory.mfn(9), world.doms[1].p2m.mfn(1), "another mapping");
    assert!(memory.p2m.lock().unmap_ref(Gfn::new(0), memory.mfn(0)).is_err(), "RAM is no reference");
}

#[test]
fn a_dying_domain_unmaps_in_batches() {
    let world = World::new(2);
    world.grant(1, 0, 0, 0, PERMIT);
    for gfn in 8..48 {
        assert_eq!(world.map(0, 1, 0, gfn, RW).0, OKAY);
    }
    let party = world.doms[0].party();
    assert_eq!(map::unmap_all(party, &world), Progress::Again);
    assert_eq!((world.references(1, 0), world.marks(1, 0)), (8, READING | WRITING));
    assert_eq!(map::unmap_all(party, &world), Progress::Done);
    assert_eq!((world.references(1, 0), world.marks(1, 0)), (0, 0));
}

#[test]
fn only_what_was_granted_can_be_mapped() {
    let world = World::new(3);
    world.grant(1, 0, 0, 0, PERMIT);
    assert_eq!(world.map(2, 1, 0, 8, RW).0, abi::GNTST_BAD_GNTREF, "granted to another domain");
    assert_eq!(world.marks(1, 0), 0);
    assert_eq!(world.map(0, 1, 1, 8, RW).0, abi::GNTST_BAD_GNTREF, "an empty entry");
    assert_eq!(world.map(0, 1, 512, 8, RW).0, abi::GNTST_BAD_GNTREF, "beyond the table's present end");
    assert_eq!(world.map(0, 1, u32::MAX, 8, RW).0, abi::GNTST_BAD_GNTREF);
    assert_eq!(world.map(0, 7, 0, 8, RW).0, abi::GNTST_BAD_DOMAIN);
    assert_eq!(world.map(0, DomId::IO.raw(), 0, 8, RW).0, abi::GNTST_BAD_DOMAIN);
    for flags in [u64::from(abi::GTF_ACCEPT_TRANSFER), u64::from(abi::GTF_TRANSITIVE), PERMIT | 1 << 8] {
        world.grant(1, 2, 0, 0, flags);
        assert_eq!(world.map(0, 1, 2, 8, RW).0, abi::GNTST_BAD_GNTREF);
    }
    world.grant(1, 3, 0, 0, PERMIT | READONLY);
    assert_eq!(world.map(0, 1, 3, 8, RW), (abi::GNTST_PERMISSION_DENIED, abi::INVALID_HANDLE));
    assert_eq!(world.marks(1, 3), 0);
    assert_eq!(world.map(0, 1, 3, 8, RO).0, OKAY);
}

#[test]
fn only_ram_of_the_granter_can_be_granted() {
    let world = World::new(3);
    world.grant(2, 0, 1, 0, PERMIT);
    let (_, _) = world.map(1, 2, 0, 8, RW);
    // Domain 1 grants on what it has only mapped itself, and what it does not have.
    for gfn in [8, 99, 0xffff_ffff] {
        world.grant(1, 0, 0, gfn, PERMIT);
        assert_eq!(world.map(0, 1, 0, 8, RW).0, abi::GNTST_BAD_PAGE);
        assert_eq!(world.marks(1, 0), 0, "a failed mapping leaves no mark");
    }
    // Nor its own RAM by another name.
    world.grant(1, 1, 1, 0, PERMIT);
    assert_eq!(world.map(1, 1, 1, 9, RW).0, OKAY);
    world.grant(1, 0, 0, 9, PERMIT);
    assert_eq!(world.map(0, 1, 0, 8, RW).0, abi::GNTST_BAD_PAGE);
    assert_eq!(world.doms[0].table.nr_mapped(), 0);
}

#[test]
fn a_grant_is_mapped_at_a_hole_and_for_the_cpu_only() {
    let world = World::new(2);
    world.grant(1, 0, 0, 0, PERMIT);
    assert_eq!(world.map(0, 1, 0, 1, RW).0, abi::GNTST_BAD_VIRT_ADDR, "RAM is there");
    assert_eq!(world.map(0, 1, 0, u64::MAX >> 12, RW).0, abi::GNTST_BAD_VIRT_ADDR);
    let mut op = [MapGrantRef { host_addr: 0x8008, flags: RW, dom: 1, ..MapGrantRef::default() }];
    map::map(world.doms[0].party(), &mut op, &world);
    assert_eq!(op[0].status, abi::GNTST_BAD_VIRT_ADDR);
    for flags in [0, abi::GNTMAP_READONLY, abi::GNTMAP_DEVICE_MAP | RW, abi::GNTMAP_CONTAINS_PTE | RW, 32 | RW] {
        assert_eq!(world.map(0, 1, 0, 8, flags).0, abi::GNTST_GENERAL_ERROR);
    }
    assert_eq!((world.marks(1, 0), world.references(1, 0)), (0, 0));
    assert_eq!(world.map(0, 1, 0, 8, RW).0, OKAY);
    assert_eq!(world.map(0, 1, 0, 8, RW).0, abi::GNTST_BAD_VIRT_ADDR, "a mapping is there");
    assert_eq!((world.marks(1, 0), world.references(1, 0)), (READING | WRITING, 1));
}

#[test]
fn an_unmap_names_handle_and_place() {
    let world = World::new(2);
    world.grant(1, 0, 0, 0, PERMIT);
    let (_, handle) = world.map(0, 1, 0, 8, RW);
    assert_eq!(world.unmap(0, handle, 9), abi::GNTST_BAD_VIRT_ADDR);
    assert_eq!(world.unmap(0, handle + 1, 8), abi::GNTST_BAD_HANDLE);
    assert_eq!(world.unmap(0, u32::MAX, 8), abi::GNTST_BAD_HANDLE);
    assert_eq!(world.unmap(1, handle, 8), abi::GNTST_BAD_HANDLE, "another domain's handle");
    let mut op = [UnmapGrantRef { host_addr: 8 << 12, dev_bus_addr: 1, handle, status: 0 }];
    map::unmap(world.doms[0].party(), &mut op, &world);
    assert_eq!(op[0].status, abi::GNTST_BAD_DEV_ADDR);
    let mut twice = [UnmapGrantRef { host_addr: 8 << 12, handle, ..UnmapGrantRef::default() }; 2];
    map::unmap(world.doms[0].party(), &mut twice, &world);
    assert_eq!((twice[0].status, twice[1].status), (OKAY, abi::GNTST_BAD_HANDLE));
    assert_eq!(world.marks(1, 0), 0);
}

#[test]
fn a_batch_costs_one_flush() {
    let world = World::new(3);
    let mut ops = [MapGrantRef::default(); 4];
    for (i, op) in (0..).zip(&mut ops) {
        let granter = 1 + u16::try_from(i / 2).unwrap();
        world.grant(usize::from(granter), i, 0, u64::from(i % 2), PERMIT);
        *op = MapGrantRef {
            host_addr: (8 + u64::from(i)) << 12,
            flags: RW,
            reference: i,
            dom: granter,
            ..MapGrantRef::default()
        };
    }
    map::map(world.doms[0].party(), &mut ops, &world);
    assert!(ops.iter().all(|op| op.status == OKAY));
    let mut ops =
        ops.map(|op| UnmapGrantRef { host_addr: op.host_addr, handle: op.handle, ..UnmapGrantRef::default() });
    map::unmap(world.doms[0].party(), &mut ops, &world);
    assert!(ops.iter().all(|op| op.status == OKAY));
    assert_eq!(world.doms[0].p2m.tlb.flushes(FlushSite::GrantUnmap), 1);
    for i in 0..4 {
        assert_eq!(world.marks(1 + i / 2, u32::try_from(i).unwrap()), 0);
    }
}

#[test]
fn handles_are_limited_and_used_again() {
    let world = World::new(2);
    world.grant(1, 0, 0, 0, PERMIT);
    let mut tracks = track::Tracks::new(130);
    let mapping = |world: &World| {
        let (_, handle) = world.map(0, 1, 0, 8, RW);
        let found = world.doms[0].table.next_mapping(0).unwrap();
        assert_eq!(found.0, handle);
        world.unmap(0, handle, 8);
        found.1
    };
    let mapping = mapping(&world);
    let handles: Vec<u32> = (0..128)
        .map(|_| {
            tracks.ensure_room().unwrap();
            tracks.insert(mapping)
        })
        .collect();
    assert_eq!(tracks.ensure_room(), Err(Refusal::NoSpace), "a chunk more would be over the limit");
    tracks.close(handles[70], mapping);
    assert_eq!(tracks.ensure_room(), Err(Refusal::NoSpace), "not free before it is released");
    assert_eq!(tracks.release(handles[70]), Some(mapping));
    assert_eq!(tracks.release(handles[70]), None);
    tracks.ensure_room().unwrap();
    assert_eq!(tracks.insert(mapping), handles[70]);
    assert_eq!(tracks.ensure_room(), Err(Refusal::NoSpace));
    assert_eq!(tracks.nr_mapped(), 128);
}

#[test]
fn a_mapping_beyond_the_last_handle_is_refused() {
    let world = World::new(2);
    world.grant(1, 0, 0, 0, PERMIT);
    assert!((0..64).all(|n| world.map(0, 1, 0, HOLES.start + n, RW).0 == OKAY));
    assert_eq!(world.map(0, 1, 0, HOLES.start + 64, RW).0, abi::GNTST_NO_DEVICE_SPACE);
    assert_eq!((world.references(1, 0), world.doms[0].table.nr_mapped()), (64, 64));
}

#[test]
fn a_count_that_is_full_refuses_the_next_mapping() {
    let world = World::new(2);
    world.grant(1, 0, 0, 0, PERMIT);
    for _ in 0..u16::MAX {
        world.doms[1].table.lock().count(GrantRef::new(0), DomId::new(0), Access::Read);
    }
    assert_eq!(world.map(0, 1, 0, 8, RO).0, abi::GNTST_NO_DEVICE_SPACE);
    assert_eq!(world.map(0, 1, 0, 8, RW).0, OKAY);
}

#[test]
fn uses_are_counted_by_who_and_how() {
    let world = World::new(3);
    world.grant(1, 0, 0, 0, PERMIT);
    world.grant(1, 1, 2, 1, PERMIT);
    let (_, read) = world.map(0, 1, 0, 8, RO);
    assert_eq!((world.map(0, 1, 0, 9, RW).0, world.unmap(0, read, 8)), (OKAY, OKAY));
    assert_eq!(world.map(0, 1, 1, 10, RW).0, abi::GNTST_BAD_GNTREF);
    assert_eq!(world.copy(2, piece(gref(1, 1, 0), own(0, 0), 100, FROM)), OKAY);
    let bad = piece(gref(1, 0, 0), own(0, 0), 100, FROM);
    let mut list = [piece(gref(1, 1, 0), own(0, 0), 7, FROM), bad, piece(gref(1, 1, 7), own(0, 0), 8, FROM)];
    world.copy_list(2, &mut list);
    let table = &world.doms[1].table;
    let of = |at| {
        let stats = table.stats(at);
        let maps = [stats.read_maps, stats.read_unmaps, stats.write_maps, stats.write_unmaps];
        (stats.nr_users, stats.user, maps, stats.copies, stats.copied_bytes)
    };
    assert_eq!(of(0), (2, 0, [1, 1, 1, 0], 0, 0));
    assert_eq!(of(1), (2, 2, [0; 4], 3, 115));
    assert_eq!(of(2), (2, 0, [0; 4], 0, 0));
    for other in 3..12 {
        table.lock().uses.of(DomId::new(other)).unmap(Access::Write);
    }
    assert_eq!(of(6), (8, 7, [0, 0, 0, 1], 0, 0));
    assert_eq!(of(7), (8, DomId::INVALID.raw(), [0, 0, 0, 4], 0, 0));
}

#[test]
fn the_page_outlives_its_granter() {
    let world = World::new(2);
    world.fill(1, 0, b"still here");
    world.grant(1, 0, 0, 0, PERMIT);
    let (_, handle) = world.map(0, 1, 0, 8, RW);
    world.doms[1].destroy(&world);
    assert_eq!(&world.bytes(0, 8)[..10], b"still here");
    assert_eq!(world.frames.account(DomId::new(1)).unwrap().0, Usage { ram: 1, overhead: TABLES });
    assert_eq!(world.map(0, 1, 0, 9, RW).0, abi::GNTST_BAD_DOMAIN);
    assert_eq!(world.copy(0, piece(gref(1, 0, 0), own(0, 0), 1, FROM)), abi::GNTST_BAD_DOMAIN);
    world.hidden.set(Some(DomId::new(1)));
    assert_eq!(world.unmap(0, handle, 8), OKAY);
    assert_eq!(world.frames.account(DomId::new(1)).unwrap().0, Usage { ram: 0, overhead: TABLES });
    assert_eq!(world.doms[0].table.nr_mapped(), 0, "the handle is free");
    assert_eq!(world.map(0, 1, 0, 9, RW).0, abi::GNTST_BAD_DOMAIN, "not found at all");
    let mut list = [piece(gref(1, 0, 0), own(0, 0), 1, FROM); 2];
    world.copy_list(0, &mut list);
    assert!(list.iter().all(|op| op.status == abi::GNTST_BAD_DOMAIN));
}

#[test]
fn an_old_mapping_does_not_count_against_the_next_domain_of_that_id() {
    let mut world = World::new(2);
    world.grant(1, 0, 0, 0, PERMIT);
    let (_, old) = world.map(0, 1, 0, 8, RW);
    world.doms[1].destroy(&world);
    let next = Dom::new(DomId::new(1), world.frames);
    std::mem::replace(&mut world.doms[1], next).free();
    world.grant(1, 0, 0, 0, PERMIT);
    let (status, new) = world.map(0, 1, 0, 9, RW);
    assert_eq!(status, OKAY);
    assert_eq!(world.unmap(0, old, 8), OKAY);
    assert_eq!(world.marks(1, 0), READING | WRITING);
    assert_eq!(world.unmap(0, new, 9), OKAY);
    assert_eq!(world.marks(1, 0), 0);
}

#[test]
fn a_dying_domain_maps_nothing() {
    let world = World::new(2);
    world.grant(1, 0, 0, 0, PERMIT);
    assert_eq!(map::unmap_all(world.doms[0].party(), &world), Progress::Done);
    assert_eq!(world.map(0, 1, 0, 8, RW).0, abi::GNTST_GENERAL_ERROR);
    assert_eq!(world.doms[0].table.frame(1), Err(table::GrowError::Dying));
}

#[test]
fn the_table_grows_on_demand_up_to_its_limit() {
    let world = World::new(1);
    let table = GrantTable::new(DomId::new(0), world.frames, Limits { frames: 3, mappings: 64 });
    assert_eq!(table.size(), (0, 3));
    let last = table.frame(2).unwrap();
    assert_eq!(table.size(), (3, 3));
    assert_eq!(table.frame(2), Ok(last));
    assert_eq!(world.frames.info(last).kind, FrameType::GrantFrame);
    assert_eq!(table.frame(3), Err(table::GrowError::OverLimit(3)));
    table.release_frames();
    assert_eq!(world.frames.info(last).kind, FrameType::Free);
}

#[test]
fn growth_is_charged() {
    let world = World::new(1);
    world.frames.open_account(DomId::new(5), FrameLimits { ram: 0, overhead: 2 }).unwrap();
    let table = GrantTable::new(DomId::new(5), world.frames, Limits { frames: 64, mappings: 64 });
    assert!(matches!(table.frame(2), Err(table::GrowError::Frame(_))));
    assert_eq!(table.size().0, 2);
    table.release_frames();
}

#[test]
fn bytes_go_where_the_copy_says() {
    let world = World::new(3);
    world.fill(1, 2, b"abcdefgh");
    world.grant(1, 0, 0, 2, PERMIT | READONLY);
    world.grant(2, 5, 0, 1, PERMIT);
    assert_eq!(world.copy(0, piece(gref(1, 0, 2), own(0, 10), 3, FROM)), OKAY);
    assert_eq!(&world.bytes(0, 0)[9..14], b"\0cde\0");
    assert_eq!(world.copy(0, piece(own(0, 10), gref(2, 5, 4093), 3, TO)), OKAY);
    assert_eq!(&world.bytes(2, 1)[4093..], b"cde");
    assert_eq!(world.copy(0, piece(gref(1, 0, 0), gref(2, 5, 0), 8, FROM | TO)), OKAY);
    assert_eq!(&world.bytes(2, 1)[..9], b"abcdefgh\0");
    assert_eq!(world.copy(0, piece(own(0, 10), own(0, 11), 3, 0)), OKAY);
    assert_eq!(&world.bytes(0, 0)[9..15], b"\0ccde\0", "overlapping");
    for (d, reference) in [(1, 0), (2, 5)] {
        assert_eq!(world.marks(d, reference), 0);
    }
    assert_eq!((world.references(1, 2), world.references(2, 1), world.references(0, 0)), (0, 0, 0));
}

#[test]
fn a_copy_stays_in_its_pages_and_in_its_rights() {
    let world = World::new(3);
    world.grant(1, 0, 0, 2, PERMIT | READONLY);
    world.grant(1, 1, 2, 2, PERMIT);
    let cases = [
        (piece(gref(1, 0, 4000), own(0, 0), 97, FROM), abi::GNTST_BAD_COPY_ARG),
        (piece(gref(1, 0, 0), own(0, 4000), 97, FROM), abi::GNTST_BAD_COPY_ARG),
        (piece(gref(1, 0, u16::MAX), own(0, 0), u16::MAX, FROM), abi::GNTST_BAD_COPY_ARG),
        (piece(gref(1, 0, 4000), own(0, 4000), 96, FROM), OKAY),
        (piece(own(0, 0), gref(1, 0, 0), 1, TO), abi::GNTST_PERMISSION_DENIED),
        (piece(gref(1, 1, 0), own(0, 0), 1, FROM), abi::GNTST_BAD_GNTREF),
        (piece(gref(1, 9, 0), own(0, 0), 1, FROM), abi::GNTST_BAD_GNTREF),
        (piece(gref(9, 0, 0), own(0, 0), 1, FROM), abi::GNTST_BAD_DOMAIN),
        (piece(own(0, 0), gref(9, 0, 0), 1, TO), abi::GNTST_BAD_DOMAIN),
        (piece(own(77, 0), own(0, 0), 1, 0), abi::GNTST_BAD_PAGE),
        (piece(gref(1, 0, 0), own(77, 0), 1, FROM), abi::GNTST_BAD_PAGE),
        (piece(CopyPtr { domid: 1, ..own(2, 0) }, own(0, 0), 1, 0), abi::GNTST_PERMISSION_DENIED),
        (piece(own(0, 0), CopyPtr { domid: 1, ..own(2, 0) }, 1, 0), abi::GNTST_PERMISSION_DENIED),
        (piece(gref(1, 0, 0), own(0, 0), 1, FROM | 4), abi::GNTST_GENERAL_ERROR),
    ];
    for (op, status) in cases {
        assert_eq!(world.copy(0, op), status, "{op:?}");
        assert_eq!((world.marks(1, 0), world.marks(1, 1)), (0, 0), "{op:?}");
    }
    assert_eq!((world.references(1, 2), world.references(0, 0)), (0, 0));
}

#[test]
fn a_copy_leaves_the_marks_of_mappings() {
    let world = World::new(2);
    world.grant(1, 0, 0, 0, PERMIT);
    let (_, reader) = world.map(0, 1, 0, 8, RO);
    assert_eq!(world.copy(0, piece(own(0, 0), gref(1, 0, 0), 8, TO)), OKAY);
    assert_eq!(world.marks(1, 0), READING);
    world.unmap(0, reader, 8);
    assert_eq!(world.marks(1, 0), 0);
}

#[test]
fn an_entry_that_both_sides_hold_is_marked_until_the_end() {
    let world = World::new(2);
    world.grant(1, 0, 0, 0, PERMIT);
    world.grant(1, 1, 0, 1, PERMIT);
    let word = world.entry(1, 0);
    let both = piece(gref(1, 0, 0), gref(1, 0, 64), 8, FROM | TO);
    let source_stays = piece(gref(1, 0, 0), gref(1, 1, 0), 8, FROM | TO);
    // The second element looks up page 1 while the source still holds entry 0.
    let pins = Cell::new(0);
    *world.doms[1].p2m.at_pin.borrow_mut() = Some(Box::new(move || {
        pins.set(pins.get() + 1);
        assert_eq!(word.load(Ordering::SeqCst) & READING, READING, "pin {}", pins.get());
    }));
    let mut list = [both, source_stays];
    world.copy_list(0, &mut list);
    assert_eq!((list[0].status, list[1].status), (OKAY, OKAY));
    assert_eq!((world.marks(1, 0), world.marks(1, 1)), (0, 0));
    assert_eq!((world.references(1, 0), world.references(1, 1)), (0, 0));
}

#[test]
fn an_entry_rewritten_during_a_copy_does_not_redirect_it() {
    let world = World::new(2);
    world.fill(1, 0, b"granted");
    world.fill(1, 1, b"secret!");
    world.grant(1, 0, 0, 0, PERMIT);
    let word = world.entry(1, 0);
    // While the page is being looked up the granter points the entry elsewhere.
    *world.doms[1].p2m.at_pin.borrow_mut() = Some(Box::new(move || {
        assert_eq!(word.load(Ordering::SeqCst) & READING, READING, "marked while in use");
        word.store(1 << 32 | PERMIT | READING, Ordering::SeqCst);
    }));
    assert_eq!(world.copy(0, piece(gref(1, 0, 0), own(0, 0), 7, FROM)), OKAY);
    assert_eq!(&world.bytes(0, 0)[..7], b"granted");
    assert_eq!(world.marks(1, 0), 0);
}

/// Does something at the end, also at that of a test that fails: a thread that it waits for has to be told.
struct AtEnd<F: FnMut()>(F);

impl<F: FnMut()> Drop for AtEnd<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[test]
fn a_granter_that_flips_its_entry_gets_old_or_new_and_no_leak() {
    let world = World::new(2);
    world.fill(1, 0, &[1; 64]);
    world.fill(1, 1, &[2; 64]);
    world.fill(1, 2, &[3; 64]);
    let word = world.entry(1, 0);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // To this domain page 0 or 1; page 2 only ever to another one.
            let granted = |gfn: u64, peer: u64| gfn << 32 | peer << 16 | PERMIT;
            while !done.load(Ordering::Relaxed) {
                for value in [granted(0, 0), granted(2, 7), granted(1, 0), 0] {
                    word.store(value, Ordering::SeqCst);
                }
            }
        });
        let _end = AtEnd(|| done.store(true, Ordering::Relaxed));
        for _ in 0..20_000 {
            let status = world.copy(0, piece(gref(1, 0, 0), own(0, 0), 64, FROM));
            assert!([OKAY, abi::GNTST_BAD_GNTREF, abi::GNTST_GENERAL_ERROR].contains(&status));
            assert_ne!(world.bytes(0, 0)[0], 3, "a page granted to somebody else");
        }
    });
    assert!((0..3).all(|gfn| world.references(1, gfn) == 0));
}

/// A domain's memory, whose virtual addresses end somewhere.
struct Bytes<'a>(Vec<u8>, &'a TestMemory);

impl<'a> Bytes<'a> {
    fn of<T: Wire>(memory: &'a TestMemory, elements: &[T]) -> Self {
        let mut bytes = vec![0; T::SIZE * elements.len()];
        bytes.chunks_mut(T::SIZE).zip(elements).for_each(|(bytes, element)| element.to_bytes(bytes));
        Self(bytes, memory)
    }

    fn all<T: Wire>(&self) -> Vec<T> {
        self.0.chunks(T::SIZE).map(T::from_bytes).collect()
    }
}

impl Buffers for Bytes<'_> {
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        let at = to_usize(address);
        bytes.copy_from_slice(self.0.get(at..at + bytes.len()).ok_or(Errno::EFAULT)?);
        Ok(())
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        let at = to_usize(address);
        self.0.get_mut(at..at + bytes.len()).ok_or(Errno::EFAULT)?.copy_from_slice(bytes);
        Ok(())
    }

    fn own_ram(&mut self, gfn: Gfn) -> Option<Mfn> {
        self.1.p2m_view().ram(gfn)
    }
}

fn request(operation: u32, count: u32) -> Request {
    Request { operation, address: 0, count }
}

fn ask<T: Wire>(world: &World, operation: u32, rights: Rights, element: T) -> (Result<Step, Errno>, T) {
    let mut bytes = Bytes::of(&world.doms[0].p2m, &[element]);
    let result = ops::handle(request(operation, 1), rights, &mut bytes, world.doms[0].party(), world);
    (result, bytes.all()[0])
}

#[test]
fn a_long_list_continues_where_it_stopped() {
    const LEN: u32 = 32 * 4 + 5;
    let world = World::new(2);
    world.grant(1, 0, 0, 0, PERMIT);
    let source = |i: u32| gref(1, if i == 130 { 9 } else { 0 }, 0);
    let list: Vec<GrantCopy> = (0..LEN).map(|i| piece(source(i), own(0, 0), 4, FROM)).collect();
    let mut bytes = Bytes::of(&world.doms[0].p2m, &list);
    let mut call = |request| ops::handle(request, Rights::Own, &mut bytes, world.doms[0].party(), &world);
    let rest = Request { operation: abi::GNTTABOP_COPY, address: 128 * 40, count: 5 };
    assert_eq!(call(request(abi::GNTTABOP_COPY, LEN)), Ok(Step::Again(rest)));
    assert_eq!(call(rest), Ok(Step::Done));
    let statuses: Vec<i16> = bytes.all::<GrantCopy>().iter().map(|op| op.status).collect();
    assert!((0..LEN).zip(statuses).all(|(i, s)| s == if i == 130 { abi::GNTST_BAD_GNTREF } else { OKAY }));
}

#[test]
fn a_list_of_maps_and_unmaps_goes_through_guest_memory() {
    let world = World::new(2);
    world.grant(1, 0, 0, 0, PERMIT);
    let map = |gfn: u64| MapGrantRef { host_addr: gfn << 12, flags: RW, dom: 1, ..MapGrantRef::default() };
    let mut bytes = Bytes::of(&world.doms[0].p2m, &[map(8), map(1), map(9)]);
    let party = world.doms[0].party();
    let done = ops::handle(request(abi::GNTTABOP_MAP_GRANT_REF, 3), Rights::Own, &mut bytes, party, &world);
    assert_eq!(done, Ok(Step::Done));
    let maps = bytes.all::<MapGrantRef>();
    assert_eq!(maps.iter().map(|op| op.status).collect::<Vec<_>>(), [OKAY, abi::GNTST_BAD_VIRT_ADDR, OKAY]);
    let unmap = |op: &MapGrantRef| UnmapGrantRef { host_addr: op.host_addr, handle: op.handle, ..Default::default() };
    let mut bytes = Bytes::of(&world.doms[0].p2m, &maps.iter().map(unmap).collect::<Vec<_>>());
    let done = ops::handle(request(abi::GNTTABOP_UNMAP_GRANT_REF, 3), Rights::Own, &mut bytes, party, &world);
    assert_eq!(done, Ok(Step::Done));
    let statuses: Vec<i16> = bytes.all::<UnmapGrantRef>().iter().map(|op| op.status).collect();
    assert_eq!(statuses, [OKAY, abi::GNTST_BAD_HANDLE, OKAY]);
    assert_eq!((world.marks(1, 0), world.references(1, 0)), (0, 0));
}

#[test]
fn only_the_first_version_is_offered() {
    let world = World::new(2);
    let set = |version| ask(&world, abi::GNTTABOP_SET_VERSION, Rights::Own, SetVersion { version });
    assert_eq!(set(1), (Ok(Step::Done), SetVersion { version: 1 }));
    assert_eq!(set(2), (Err(Errno::ENOSYS), SetVersion { version: 1 }));
    assert_eq!(set(3), (Err(Errno::EINVAL), SetVersion { version: 1 }));
    let get = |dom, rights| ask(&world, abi::GNTTABOP_GET_VERSION, rights, GetVersion { dom, ..Default::default() });
    assert_eq!(get(DomId::SELF.raw(), Rights::Own).1.version, 1);
    assert_eq!(get(1, Rights::Own).0, Err(Errno::EPERM));
    assert_eq!(get(1, Rights::All).0, Ok(Step::Done));
    assert_eq!(get(9, Rights::All).0, Err(Errno::ESRCH));
}

#[test]
fn the_size_of_a_table_is_told_to_who_may_ask() {
    let world = World::new(2);
    let query = |dom, rights| ask(&world, abi::GNTTABOP_QUERY_SIZE, rights, QuerySize { dom, ..Default::default() });
    let (result, size) = query(DomId::SELF.raw(), Rights::Own);
    assert_eq!((result, size.status, size.nr_frames, size.max_nr_frames), (Ok(Step::Done), OKAY, 1, 2));
    assert_eq!(query(1, Rights::Own).1.status, abi::GNTST_PERMISSION_DENIED);
    assert_eq!(query(1, Rights::All).1.status, OKAY);
    assert_eq!(query(9, Rights::All).1.status, abi::GNTST_BAD_DOMAIN);
}

#[test]
fn what_is_not_offered_says_so() {
    let world = World::new(1);
    let call = |operation, count| {
        let mut bytes = Bytes(vec![0; 64], &world.doms[0].p2m);
        ops::handle(request(operation, count), Rights::All, &mut bytes, world.doms[0].party(), &world)
    };
    for operation in [
        abi::GNTTABOP_DUMP_TABLE,
        abi::GNTTABOP_TRANSFER,
        abi::GNTTABOP_UNMAP_AND_REPLACE,
        abi::GNTTABOP_GET_STATUS_FRAMES,
        abi::GNTTABOP_SWAP_GRANT_REF,
        abi::GNTTABOP_CACHE_FLUSH,
        99,
    ] {
        assert_eq!(call(operation, 1), Err(Errno::ENOSYS));
    }
    assert_eq!(call(abi::GNTTABOP_COPY, 0), Ok(Step::Done));
    assert_eq!(call(abi::GNTTABOP_COPY, 2), Err(Errno::EFAULT));
    assert_eq!(call(abi::GNTTABOP_COPY, 1 << 31), Err(Errno::EINVAL));
    assert_eq!(call(abi::GNTTABOP_QUERY_SIZE, 2), Err(Errno::EINVAL));
    let (result, table) = ask(&world, abi::GNTTABOP_SETUP_TABLE, Rights::Own, SetupTable::default());
    assert_eq!((result, table.status), (Ok(Step::Done), abi::GNTST_GENERAL_ERROR));
}

#[derive(Clone, Debug)]
enum Op {
    Write { d: usize, reference: u32, peer: u16, gfn: u64, flags: u64 },
    Map { d: usize, granter: u16, reference: u32, gfn: u64, flags: u32 },
    Unmap { d: usize, nth: usize, gfn_off: u64 },
    Copy { d: usize, list: Vec<GrantCopy> },
    GiveUp { d: usize, gfn: u64 },
    Reborn { d: usize },
}

fn random_op() -> impl Strategy<Value = Op> {
    let d = || 0..3usize;
    let peer = || 0..3u16;
    let flags = prop_oneof![
        6 => Just(PERMIT),
        2 => Just(PERMIT | READONLY),
        1 => Just(0),
        1 => Just(PERMIT | READING | WRITING)
    ];
    let at = || prop_oneof![3 => 0..64u16, 1 => 4080..4100u16];
    let side = || (0..3u16, 0..RAM + 2);
    prop_oneof![
        6 => (d(), 0..REFS, peer(), 0..RAM + 1, flags)
            .prop_map(|(d, reference, peer, gfn, flags)| Op::Write { d, reference, peer, gfn, flags }),
        8 => (d(), peer(), 0..REFS, RAM - 1..HOLES.end, prop_oneof![Just(RW), Just(RO)])
            .prop_map(|(d, granter, reference, gfn, flags)| Op::Map { d, granter, reference, gfn, flags }),
        6 => (d(), 0..4usize, prop_oneof![5 => Just(0u64), 1 => Just(1)])
            .prop_map(|(d, nth, gfn_off)| Op::Unmap { d, nth, gfn_off }),
        8 => (d(), proptest::collection::vec((side(), side(), 0..4u16, (at(), at(), at())), 1..6)).prop_map(|(d, list)| {
            let side = |(domid, frame), offset| CopyPtr { frame, domid, offset };
            let op = |(source, dest, flags, at): (_, _, _, (u16, u16, u16))| {
                piece(side(source, at.0), side(dest, at.1), at.2, flags)
            };
            Op::Copy { d, list: list.into_iter().map(op).collect() }
        }),
        1 => (d(), 0..RAM).prop_map(|(d, gfn)| Op::GiveUp { d, gfn }),
        1 => d().prop_map(|d| Op::Reborn { d }),
    ]
}

/// One mapping as the model knows it.
struct Mapped {
    granter: usize,
    life: u32,
    reference: u32,
    gfn: u64,
    page: usize,
    access: Access,
}

#[derive(Default)]
struct ModelDomain {
    life: u32,
    entries: [u64; REFS as usize],
    ram: BTreeMap<u64, usize>,
    mapped: BTreeMap<u32, Mapped>,
}

/// The rules, written down without regard to speed, locks or races.
struct Model {
    domains: Vec<ModelDomain>,
    pages: Vec<Vec<u8>>,
}

impl Model {
    fn new() -> Self {
        let mut model = Self { domains: (0..3).map(|_| ModelDomain::default()).collect(), pages: Vec::new() };
        (0..3).for_each(|d| model.give_ram(d));
        model
    }

    fn give_ram(&mut self, d: usize) {
        for gfn in 0..RAM {
            self.domains[d].ram.insert(gfn, self.pages.len());
            self.pages.push(vec![0; PAGE_SIZE]);
        }
    }

    fn settle(&mut self, granter: usize, reference: u32) {
        let life = self.domains[granter].life;
        let users = |access| {
            let all = self.domains.iter().flat_map(|d| d.mapped.values());
            all.filter(|m| (m.granter, m.life, m.reference, m.access) == (granter, life, reference, access)).count()
        };
        let (readers, writers) = (users(Access::Read), users(Access::Write));
        let entry = &mut self.domains[granter].entries[reference as usize];
        if writers == 0 {
            *entry &= !WRITING;
            if readers == 0 {
                *entry &= !READING;
            }
        }
    }

    fn pin(&mut self, granter: usize, reference: u32, peer: usize, access: Access) -> Result<usize, Refusal> {
        let entry = self.domains[granter].entries.get_mut(reference as usize).ok_or(Refusal::BadRef)?;
        if *entry & 3 != PERMIT || *entry >> 16 & 0xffff != peer as u64 {
            return Err(Refusal::BadRef);
        }
        if access == Access::Write && *entry & READONLY != 0 {
            return Err(Refusal::Denied);
        }
        *entry |= if access == Access::Write { READING | WRITING } else { READING };
        let gfn = *entry >> 32;
        let page = self.domains[granter].ram.get(&gfn).copied().ok_or(Refusal::BadPage);
        if page.is_err() {
            self.settle(granter, reference);
        }
        page
    }

    fn map(&mut self, d: usize, granter: usize, reference: u32, gfn: u64, flags: u32) -> Result<Mapped, Refusal> {
        let access = if flags == RW { Access::Write } else { Access::Read };
        let page = self.pin(granter, reference, d, access)?;
        if self.domains[d].ram.contains_key(&gfn) || self.domains[d].mapped.values().any(|m| m.gfn == gfn) {
            self.settle(granter, reference);
            return Err(Refusal::BadAddress);
        }
        Ok(Mapped { granter, life: self.domains[granter].life, reference, gfn, page, access })
    }

    fn unmap(&mut self, d: usize, handle: u32) {
        let gone = self.domains[d].mapped.remove(&handle).unwrap();
        if self.domains[gone.granter].life == gone.life {
            self.settle(gone.granter, gone.reference);
        }
    }

    fn side(&mut self, d: usize, side: (u16, u64), by_grant: bool, access: Access) -> Result<usize, Refusal> {
        if by_grant {
            self.pin(usize::from(side.0), u32::try_from(side.1).unwrap(), d, access)
        } else if usize::from(side.0) != d {
            Err(Refusal::Denied)
        } else {
            self.domains[d].ram.get(&side.1).copied().ok_or(Refusal::BadPage)
        }
    }

    fn copy(&mut self, d: usize, op: &GrantCopy) -> Result<(), Refusal> {
        let (from, to, len) = (usize::from(op.source.offset), usize::from(op.dest.offset), usize::from(op.len));
        if from + len > PAGE_SIZE || to + len > PAGE_SIZE {
            return Err(Refusal::BadCopy);
        }
        let (source, dest) = ((op.source.domid, op.source.frame), (op.dest.domid, op.dest.frame));
        let read = self.side(d, source, op.flags & FROM != 0, Access::Read)?;
        let write = self.side(d, dest, op.flags & TO != 0, Access::Write);
        if let Ok(write) = write {
            let bytes = self.pages[read][from..from + len].to_vec();
            self.pages[write][to..to + len].copy_from_slice(&bytes);
            if op.flags & TO != 0 {
                self.settle(usize::from(dest.0), u32::try_from(dest.1).unwrap());
            }
        }
        if op.flags & FROM != 0 {
            self.settle(usize::from(source.0), u32::try_from(source.1).unwrap());
        }
        write.map(drop)
    }
}

fn apply(world: &mut World, model: &mut Model, op: &Op) {
    let status = |result: Result<(), Refusal>| result.map_or_else(Refusal::status, |()| OKAY);
    match *op {
        Op::Write { d, reference, peer, gfn, flags } => {
            world.grant(d, reference, peer, gfn, flags);
            model.domains[d].entries[reference as usize] = gfn << 32 | u64::from(peer) << 16 | flags;
        }
        Op::Map { d, granter, reference, gfn, flags } => {
            let (got, handle) = world.map(d, granter, reference, gfn, flags);
            match model.map(d, usize::from(granter), reference, gfn, flags) {
                Ok(mapped) => {
                    assert_eq!(got, OKAY);
                    assert!(model.domains[d].mapped.insert(handle, mapped).is_none(), "a handle in use");
                }
                Err(refusal) => assert_eq!((got, handle), (refusal.status(), abi::INVALID_HANDLE)),
            }
        }
        Op::Unmap { d, nth, gfn_off } => match model.domains[d].mapped.iter().nth(nth) {
            Some((&handle, mapped)) if gfn_off != 0 => {
                assert_eq!(world.unmap(d, handle, mapped.gfn + gfn_off), abi::GNTST_BAD_VIRT_ADDR);
            }
            Some((&handle, mapped)) => {
                assert_eq!(world.unmap(d, handle, mapped.gfn), OKAY);
                model.unmap(d, handle);
            }
            None => assert_eq!(world.unmap(d, 60 + low_u32(gfn_off), 8), abi::GNTST_BAD_HANDLE),
        },
        Op::Copy { d, ref list } => {
            let mut done = list.clone();
            world.copy_list(d, &mut done);
            for (op, done) in list.iter().zip(done) {
                assert_eq!(done.status, status(model.copy(d, op)));
            }
        }
        Op::GiveUp { d, gfn } => {
            if model.domains[d].ram.remove(&gfn).is_some() {
                world.doms[d].p2m.give_up(gfn);
            }
        }
        Op::Reborn { d } => {
            world.doms[d].destroy(world);
            let next = Dom::new(DomId::new(u16::try_from(d).unwrap()), world.frames);
            std::mem::replace(&mut world.doms[d], next).free();
            let handles: Vec<u32> = model.domains[d].mapped.keys().copied().collect();
            handles.iter().for_each(|handle| model.unmap(d, *handle));
            let life = model.domains[d].life + 1;
            model.domains[d] = ModelDomain { life, ..ModelDomain::default() };
            model.give_ram(d);
        }
    }
}

fn compare(world: &World, model: &Model) {
    let users = |page: usize| model.domains.iter().flat_map(|d| d.mapped.values()).filter(|m| m.page == page).count();
    let check = |d: usize, gfn: u64, page: usize| {
        assert_eq!(world.references(d, gfn) as usize, users(page));
        assert_eq!(world.bytes(d, gfn), model.pages[page]);
    };
    for (d, expected) in model.domains.iter().enumerate() {
        for (reference, entry) in (0..).zip(expected.entries) {
            assert_eq!(world.entry(d, reference).load(Ordering::SeqCst), entry, "{d} {reference}");
        }
        expected.ram.iter().for_each(|(gfn, page)| check(d, *gfn, *page));
        for mapped in expected.mapped.values() {
            check(d, mapped.gfn, mapped.page);
            let kind = if mapped.access == Access::Read { P2mKind::GrantRo } else { P2mKind::GrantRw };
            assert_eq!(world.doms[d].p2m.leaf(mapped.gfn).unwrap().kind, kind);
        }
        assert_eq!(world.doms[d].table.nr_mapped() as usize, expected.mapped.len());
        assert_eq!(world.doms[d].p2m.nr_mapped(), expected.ram.len() + expected.mapped.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn any_history_is_what_the_model_says(history in proptest::collection::vec(random_op(), 1..80)) {
        let mut world = World::new(3);
        let mut model = Model::new();
        for op in &history {
            apply(&mut world, &mut model, op);
            compare(&world, &model);
        }
        for dom in &world.doms {
            dom.destroy(&world);
        }
        world.doms.into_iter().for_each(Dom::free);
        for d in 0..3 {
            assert_eq!(world.frames.account(DomId::new(d)).unwrap().0, Usage::default());
        }
        assert_eq!(world.frames.free_frames().total, 96);
    }
}
