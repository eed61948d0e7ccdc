// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every way in which a granter's doings can fall between the steps of one operation.
//!
//! Locks order everything but what a granter writes to its entries and what it does to its memory. So an operation is a
//! row of steps with gaps: after an entry was read, before a page is looked up, before a flush. One or two deeds
//! of a granter are put into all gaps in all orders, and after each run no page may have been read or written that
//! was not granted at some time of it, and nothing may be left of it: no mark, no reference, no handle.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use guest_abi::grant_table as abi;
use guest_abi::num::low_u8;
use guest_abi::{DomId, Gfn};

use super::tests::{
    FROM, NoTlb, OKAY, PERMIT, READING, READONLY, RO, RW, TO, TestMemory, WRITING, World, gref, own, piece,
};
use crate::addr::Order;
use crate::frame::Fill;
use crate::p2m::{Backing, FlushSite, P2mKind};

/// Pages of the granter: two that it grants, one that it grants to somebody else, one for reading.
const A: u64 = 0;
const B: u64 = 1;
const SECRET: u64 = 2;
const FOR_READING: u64 = 3;
const HOLE: u64 = 8;

type Deed = Box<dyn FnMut()>;

std::thread_local! {
    /// Called in each gap.
    static GAP: RefCell<Option<Deed>> = const { RefCell::new(None) };
}

/// A gap in an operation.
pub(super) fn step() {
    // What a deed does has gaps of its own, which do not count.
    let Some(mut deed) = GAP.with(|gap| gap.borrow_mut().take()) else { return };
    deed();
    GAP.with(|gap| *gap.borrow_mut() = Some(deed));
}

/// What a granter does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    /// Grants page B instead.
    GrantB,
    /// Grants the secret, to another domain.
    GrantSecret,
    /// Grants a page for reading only.
    GrantForReading,
    /// Ends the grant.
    End,
    /// Clears the marks, which are not its own.
    ClearMarks,
    /// Gives page A back, whose frame is then free to be somebody else's.
    GiveUpA,
}

const ACTS: [Act; 6] = [Act::GrantB, Act::GrantSecret, Act::GrantForReading, Act::End, Act::ClearMarks, Act::GiveUpA];

/// What is done with the grant.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Map(u32),
    CopyFrom,
    CopyTo,
    /// Two elements, so that the page is held between them.
    CopyTwice,
}

/// So many gaps are tried; no operation here has more.
const GAPS: usize = 8;

/// The entry is the granter's own memory: writing it takes no lock.
fn act(world: &World, entry: &AtomicU64, act: Act) {
    let grant = |gfn: u64, peer: u64, flags: u64| entry.store(gfn << 32 | peer << 16 | flags, Ordering::SeqCst);
    match act {
        Act::GrantB => grant(B, 0, PERMIT),
        Act::GrantSecret => grant(SECRET, 7, PERMIT),
        Act::GrantForReading => grant(FOR_READING, 0, PERMIT | READONLY),
        Act::End => grant(0, 0, 0),
        Act::ClearMarks => {
            entry.fetch_and(!(READING | WRITING), Ordering::SeqCst);
        }
        Act::GiveUpA if world.doms[1].p2m.leaf(A).is_some() => give_up(&world.doms[1].p2m),
        Act::GiveUpA => {}
    }
}

/// Gives page A back, on another CPU: this one has locks.
fn give_up(memory: &TestMemory) {
    let (p2m, tlb) = (&memory.p2m, memory.tlb.clone());
    let work = move || {
        let token = p2m.lock().depopulate(Gfn::new(A), Order::PAGE).unwrap();
        token.release(&tlb.flush(&NoTlb, FlushSite::Balloon));
    };
    std::thread::scope(|scope| scope.spawn(work).join().unwrap());
}

/// Puts the world as it was: page contents are their numbers.
fn reset(world: &World) {
    let p2m = &world.doms[1].p2m;
    if p2m.leaf(A).is_none() {
        p2m.p2m.lock().populate(Gfn::new(A), Order::PAGE, Backing::Free(Fill::Zeroed)).unwrap();
    }
    for gfn in 0..4 {
        world.fill(1, gfn, &[0xa0 + low_u8(gfn); 64]);
    }
    world.fill(0, 0, &[0; 64]);
    world.grant(1, 0, 0, A, PERMIT);
}

/// Runs one operation and checks what it did. Returns how many gaps there were.
fn run(world: &'static World, operation: Operation, script: &[(usize, Act)]) -> usize {
    reset(world);
    let left: Rc<RefCell<VecDeque<(usize, Act)>>> = Rc::new(RefCell::new(script.iter().copied().collect()));
    let gaps = Rc::new(RefCell::new(0));
    let (todo, count) = (left, gaps.clone());
    let entry = world.entry(1, 0);
    GAP.with(|gap| {
        *gap.borrow_mut() = Some(Box::new(move || {
            let now = *count.borrow();
            *count.borrow_mut() += 1;
            loop {
                let next = todo.borrow().front().copied().filter(|(at, _)| *at == now);
                let Some((_, deed)) = next else { break };
                todo.borrow_mut().pop_front();
                act(world, entry, deed);
            }
        }));
    });
    let done = |wanted| script.iter().any(|(_, act)| *act == wanted);
    match operation {
        Operation::Map(flags) => check_map(world, flags, &done),
        Operation::CopyFrom | Operation::CopyTwice => {
            let one = piece(gref(1, 0, 0), own(0, 0), 8, FROM);
            let two = piece(gref(1, 0, 0), own(0, 8), 8, FROM);
            if matches!(operation, Operation::CopyTwice) {
                let mut list = [one, two];
                world.copy_list(0, &mut list);
                assert!(list.iter().all(|op| may_be(op.status)), "{list:?}");
            } else {
                assert!(may_be(world.copy(0, one)));
            }
            let got = world.bytes(0, 0);
            let allowed = |byte: u8| {
                matches!(byte, 0 | 0xa0)
                    || byte == 0xa1 && done(Act::GrantB)
                    || byte == 0xa3 && done(Act::GrantForReading)
            };
            assert!(got[..16].iter().all(|byte| allowed(*byte)), "read {:x?}", &got[..16]);
        }
        Operation::CopyTo => assert!(may_be(world.copy(0, piece(own(0, 0), gref(1, 0, 0), 8, TO)))),
    }
    GAP.with(|gap| *gap.borrow_mut() = None);
    check_nothing_is_left(world, operation, &done);
    *gaps.borrow()
}

/// A refusal that such a granter can bring about.
fn may_be(status: i16) -> bool {
    [OKAY, abi::GNTST_BAD_GNTREF, abi::GNTST_PERMISSION_DENIED, abi::GNTST_BAD_PAGE, abi::GNTST_GENERAL_ERROR]
        .contains(&status)
}

fn check_map(world: &World, flags: u32, done: &dyn Fn(Act) -> bool) {
    let pages: Vec<_> = (0..4).map(|gfn| world.doms[1].p2m.mfn(gfn)).collect();
    let (status, handle) = world.map(0, 1, 0, HOLE, flags);
    assert!(may_be(status), "{status}");
    if status != OKAY {
        assert_eq!(world.doms[0].p2m.leaf(HOLE), None);
        return;
    }
    let leaf = world.doms[0].p2m.leaf(HOLE).unwrap();
    let granted = leaf.mfn == pages[0]
        || leaf.mfn == pages[1] && done(Act::GrantB)
        || leaf.mfn == pages[3] && done(Act::GrantForReading) && flags == RO;
    assert!(granted, "a page is mapped that was not granted like this");
    assert_eq!(leaf.kind, if flags == RO { P2mKind::GrantRo } else { P2mKind::GrantRw });
    // Whatever the granter did: the frame is not free, and nobody else's.
    assert_eq!(world.frames.info(leaf.mfn).count, 1);
    assert_eq!(world.frames.info(leaf.mfn).owner, DomId::new(1));
    assert_eq!(world.unmap(0, handle, HOLE), OKAY);
}

fn check_nothing_is_left(world: &World, operation: Operation, done: &dyn Fn(Act) -> bool) {
    assert_eq!(world.marks(1, 0), 0, "a mark is left");
    assert_eq!(world.doms[0].table.nr_mapped(), 0);
    assert_eq!(world.doms[0].p2m.leaf(HOLE), None);
    for gfn in [A, B, SECRET, FOR_READING] {
        if world.doms[1].p2m.leaf(gfn).is_none() {
            continue;
        }
        assert_eq!(world.references(1, gfn), 0);
        let written = world.bytes(1, gfn)[0] == 0;
        let may_be_written = matches!(operation, Operation::CopyTo) && (gfn == A || gfn == B && done(Act::GrantB));
        assert!(!written || may_be_written, "page {gfn} was written");
    }
    assert_eq!(world.references(0, 0), 0);
}

#[test]
fn no_interleaving_reaches_a_page_that_is_not_granted() {
    let world: &'static World = Box::leak(Box::new(World::new(2)));
    for dom in &world.doms {
        *dom.p2m.at_pin.borrow_mut() = Some(Box::new(step));
        *dom.p2m.at_flush.borrow_mut() = Some(Box::new(step));
    }
    let free = world.frames.free_frames().total;
    let (mut runs, mut most) = (0, 0);
    for operation in
        [Operation::Map(RW), Operation::Map(RO), Operation::CopyFrom, Operation::CopyTo, Operation::CopyTwice]
    {
        for first in ACTS {
            for at in 0..GAPS {
                most = most.max(run(world, operation, &[(at, first)]));
                runs += 1;
                for second in ACTS {
                    for later in at..GAPS {
                        most = most.max(run(world, operation, &[(at, first), (later, second)]));
                        runs += 1;
                    }
                }
            }
        }
    }
    assert!((3..GAPS).contains(&most), "{most} gaps: some were not tried");
    assert!(runs > 5000);
    reset(world);
    assert_eq!(world.frames.free_frames().total, free, "a frame got lost");
}

#[test]
fn an_entry_that_never_stands_still_is_given_up() {
    let world: &'static World = Box::leak(Box::new(World::new(2)));
    world.grant(1, 0, 0, A, PERMIT);
    let (looks, entry) = (Rc::new(RefCell::new(0)), world.entry(1, 0));
    let count = looks.clone();
    GAP.with(|gap| {
        *gap.borrow_mut() = Some(Box::new(move || {
            *count.borrow_mut() += 1;
            // A bit that software may use as it likes.
            entry.fetch_xor(1 << 14, Ordering::SeqCst);
        }));
    });
    assert_eq!(world.copy(0, piece(gref(1, 0, 0), own(0, 0), 8, FROM)), abi::GNTST_GENERAL_ERROR);
    assert_eq!((*looks.borrow(), world.marks(1, 0)), (8, 0));
}
