// SPDX-License-Identifier: MIT OR Apache-2.0
//! memory_op as a guest calls it, with every frame accounted for.

use guest_abi::hypercall::HYPERVISOR_MEMORY_OP;
use guest_abi::{DomId, Gfn, PAGE_SIZE, Wire};

use super::*;
use crate::addr::{Mfn, Order};
use crate::frame::{FrameType, Limits, Usage};
use crate::p2m::{FlushSite, P2mKind};
use crate::testing::{DOM0, GUEST, Guest, HOLE, Host, arg, failed};

const SELF: u16 = DomId::SELF.raw();
/// Guest frames of RAM that the fixture itself does not use.
const FREE: core::ops::Range<u64> = 40..120;
/// Where lists go; one page.
const LIST: u64 = 20;

fn op<T: Wire>(guest: &Guest, operation: u32, argument: T) -> i64 {
    guest.result(HYPERVISOR_MEMORY_OP, operation, argument)
}

/// Puts a list of frames into the guest and describes it.
fn list(guest: &Guest, gfns: impl IntoIterator<Item = u64>) -> abi::MemoryReservation {
    let mut nr_extents = 0;
    for gfn in gfns {
        guest.put((LIST << 12) + nr_extents * 8, &gfn);
        nr_extents += 1;
    }
    abi::MemoryReservation { extent_start: LIST << 12, nr_extents, domid: SELF, ..Default::default() }
}

fn give_back(guest: &Guest, gfns: impl IntoIterator<Item = u64>) -> i64 {
    op(guest, abi::XENMEM_DECREASE_RESERVATION, list(guest, gfns))
}

fn populate(guest: &Guest, gfns: impl IntoIterator<Item = u64>) -> i64 {
    op(guest, abi::XENMEM_POPULATE_PHYSMAP, list(guest, gfns))
}

fn place(space: u32, idx: u64, gpfn: u64) -> abi::AddToPhysmap {
    abi::AddToPhysmap { domid: SELF, size: 0, space, idx, gpfn }
}

fn share(guest: &Guest, gpfn: u64) -> i64 {
    op(guest, abi::XENMEM_ADD_TO_PHYSMAP, place(abi::XENMAPSPACE_SHARED_INFO, 0, gpfn))
}

fn remove(guest: &Guest, gpfn: u64) -> i64 {
    op(guest, abi::XENMEM_REMOVE_FROM_PHYSMAP, abi::RemoveFromPhysmap { domid: SELF, gpfn })
}

/// What a domain has changed by, in frames of RAM, frames of overhead, and free frames.
fn change(host: Host, guest: &Guest, before: (Usage, u64)) -> (i64, i64, i64) {
    let now = host.account(guest.id());
    let difference = |now: u64, before: u64| now.cast_signed() - before.cast_signed();
    (difference(now.0.ram, before.0.ram), difference(now.0.overhead, before.0.overhead), difference(now.1, before.1))
}

// --- Giving back and taking.

#[test]
fn a_long_list_is_given_back_and_taken_in_batches() {
    let (host, guest) = Host::with_guest();
    let before = host.account(guest.id());
    let argument = list(&guest, FREE);
    guest.put(arg(0), &argument);
    guest.load_call(HYPERVISOR_MEMORY_OP, [u64::from(abi::XENMEM_DECREASE_RESERVATION), arg(0), 0]);
    let mut done = 0;
    for held in [96, 64] {
        assert_eq!(guest.hypercall_once(), None);
        done += 32;
        assert_eq!(guest.regs().rax, u64::from(HYPERVISOR_MEMORY_OP));
        assert_eq!(guest.regs().rdi, u64::from(abi::XENMEM_DECREASE_RESERVATION) | done << 6);
        assert_eq!(host.account(guest.id()).0.ram, held);
    }
    assert_eq!(guest.hypercall_once(), Some(80));
    assert_eq!(change(host, &guest, before), (-80, 0, 80));
    assert!(FREE.clone().all(|gfn| guest.leaf(gfn).is_none()));
    assert_eq!(populate(&guest, FREE), 80);
    assert_eq!(change(host, &guest, before), (0, 0, 0));
    assert!(FREE.clone().all(|gfn| guest.get::<u64>(gfn << 12) == 0));
}

#[test]
fn frames_leave_a_domain_that_has_run_only_after_one_flush_a_batch() {
    let (_, guest) = Host::with_guest();
    guest.run(0);
    assert_eq!(give_back(&guest, FREE), 80);
    assert_eq!(guest.domain.tlb.flushes(FlushSite::Balloon), 3);
}

#[test]
fn contents_do_not_come_back() {
    let (_, guest) = Host::with_guest();
    guest.put(50 << 12, &0xdead_u64);
    assert_eq!((give_back(&guest, [50]), populate(&guest, [50])), (1, 1));
    assert_eq!(guest.get::<u64>(50 << 12), 0);
}

#[test]
fn a_bad_entry_ends_a_list_where_it_is() {
    let (host, guest) = Host::with_guest();
    let before = host.account(guest.id());
    let bad = [41, 42, 42, 43];
    assert_eq!(give_back(&guest, bad), 2, "twice the same");
    for never in [5000, 1 << 36, u64::MAX, 1 << 52] {
        assert_eq!(give_back(&guest, [44, never, 45]), 1);
        assert_eq!(populate(&guest, [44, 45]), 1, "45 is still there");
    }
    assert_eq!(populate(&guest, [41, 41, 42]), 1, "occupied");
    assert_eq!(populate(&guest, [u64::MAX]), 0);
    assert_eq!(change(host, &guest, before), (-1, 0, 1));
    assert_eq!(give_back(&guest, (60..100).chain([42])), 40, "a bad one in the second batch");
}

#[test]
fn a_list_that_the_guest_changes_meanwhile_is_read_once_an_entry() {
    let (host, guest) = Host::with_guest();
    let before = host.account(guest.id());
    let argument = list(&guest, 40..104);
    guest.put(arg(0), &argument);
    guest.load_call(HYPERVISOR_MEMORY_OP, [u64::from(abi::XENMEM_DECREASE_RESERVATION), arg(0), 0]);
    assert_eq!(guest.hypercall_once(), None);
    // What is done is not looked at again; what is not done yet is taken as it is then.
    for n in 0..32 {
        guest.put((LIST << 12) + n * 8, &u64::MAX);
    }
    guest.put((LIST << 12) + 33 * 8, &u64::MAX);
    assert_eq!(guest.hypercall_once(), Some(33));
    assert_eq!(change(host, &guest, before), (-33, 0, 33));
}

#[test]
fn a_structure_that_the_guest_changes_meanwhile_is_checked_again() {
    let (host, guest) = Host::with_guest();
    let before = host.account(guest.id());
    let argument = list(&guest, 40..104);
    guest.put(arg(0), &argument);
    guest.load_call(HYPERVISOR_MEMORY_OP, [u64::from(abi::XENMEM_DECREASE_RESERVATION), arg(0), 0]);
    assert_eq!(guest.hypercall_once(), None);
    guest.put(arg(0), &abi::MemoryReservation { nr_extents: 31, ..argument });
    assert_eq!(guest.hypercall_once(), Some(failed(Errno::EINVAL)));
    assert_eq!(change(host, &guest, before), (-32, 0, 32));
}

#[test]
fn giving_back_the_page_with_the_list_harms_nobody_else() {
    let (host, guest) = Host::with_guest();
    let before = host.account(guest.id());
    assert_eq!(give_back(&guest, [50, LIST, 51]), 2, "the third cannot be read any more");
    assert_eq!(change(host, &guest, before), (-2, 0, 2));
    assert_eq!(guest.leaf(LIST), None);
    let argument =
        abi::MemoryReservation { extent_start: LIST << 12, nr_extents: 1, domid: SELF, ..Default::default() };
    assert_eq!(op(&guest, abi::XENMEM_POPULATE_PHYSMAP, argument), 0, "the list cannot be read");
}

#[test]
fn lists_of_odd_lengths_and_sizes_are_refused() {
    let (host, guest) = Host::with_guest();
    let before = host.account(guest.id());
    let good = list(&guest, [50]);
    for operation in [abi::XENMEM_DECREASE_RESERVATION, abi::XENMEM_POPULATE_PHYSMAP] {
        assert_eq!(op(&guest, operation, abi::MemoryReservation { nr_extents: 0, ..good }), 0);
        for nr_extents in [1 << 26, u64::MAX] {
            let argument = abi::MemoryReservation { nr_extents, ..good };
            assert_eq!(op(&guest, operation, argument), failed(Errno::EINVAL));
        }
        for extent_order in [1, 8, 10, 18, 19, 63, 64, 256, u32::MAX] {
            let argument = abi::MemoryReservation { extent_order, ..good };
            assert_eq!(op(&guest, operation, argument), failed(Errno::EINVAL), "order {extent_order}");
        }
        assert_eq!(op(&guest, operation | 2 << 6, good), failed(Errno::EINVAL), "more done than there are");
        assert_eq!(op(&guest, operation | 1 << 6, good), 1, "all done before");
        let wrapping = abi::MemoryReservation { extent_start: u64::MAX - 3, ..good };
        assert_eq!(op(&guest, operation, wrapping), 0);
        let hole = abi::MemoryReservation { extent_start: HOLE, ..good };
        assert_eq!(op(&guest, operation, hole), 0);
    }
    assert_eq!(change(host, &guest, before), (0, 0, 0));
}

#[test]
fn a_domain_takes_no_more_than_it_may() {
    let (host, guest) = Host::with_guest();
    let (usage, _) = host.hv.frames.account(guest.id()).unwrap();
    assert_eq!(usage.ram, 128);
    assert_eq!(populate(&guest, 1000..1200), 128);
    assert_eq!(host.hv.frames.account(guest.id()).unwrap().0.ram, 256);
    assert_eq!(populate(&guest, [1200]), 0);
}

#[test]
fn dom0_gets_the_very_frame_back_that_it_gave() {
    let (host, dom0) = Host::with_dom0();
    let before = host.account(dom0.id());
    dom0.put(50 << 12, &0xdead_u64);
    assert_eq!(give_back(&dom0, [50, 51]), 2);
    assert_eq!(change(host, &dom0, before), (-2, 0, 0), "nobody else gets them");
    let info = host.hv.frames.info(Mfn::new(50));
    assert_eq!((info.kind, info.owner), (FrameType::Reserved, DomId::DOM0));
    assert_eq!(populate(&dom0, [52]), 0, "occupied");
    assert_eq!(populate(&dom0, [50]), 1);
    let leaf = dom0.leaf(50).unwrap();
    assert_eq!((leaf.mfn, leaf.kind), (Mfn::new(50), P2mKind::Ram));
    assert_eq!(dom0.get::<u64>(50 << 12), 0);
    // Where it never had RAM there is none for it: free frames, others' frames, no frames.
    for never in [200, 900, 1023, 1024, 1 << 40, u64::MAX] {
        assert_eq!(populate(&dom0, [never]), 0, "{never:#x}");
    }
    assert_eq!(change(host, &dom0, before).0, -1);
    assert_eq!(populate(&dom0, [51]), 1);
    assert_eq!(change(host, &dom0, before).0, 0);
}

#[test]
fn dom0_never_gets_a_frame_of_a_guest() {
    let host = Host::new();
    let dom0 = Guest::new(host, 0, DOM0, 1);
    let guest = Guest::new(host, 1, GUEST, 1);
    let theirs = guest.leaf(50).unwrap().mfn;
    assert_eq!(populate(&dom0, [theirs.raw()]), 0);
    assert_eq!(host.hv.frames.info(theirs).owner, guest.id());
}

#[test]
fn large_extents_come_and_go_one_at_a_time() {
    let host = Host::large();
    let guest = Guest::new(host, 1, GUEST, 1);
    host.hv.frames.open_account(guest.id(), Limits::NONE).unwrap();
    let before = host.account(guest.id());
    let large = abi::MemoryReservation { extent_order: 9, ..list(&guest, [512]) };
    let misaligned = abi::MemoryReservation { extent_order: 9, ..list(&guest, [513]) };
    assert_eq!(op(&guest, abi::XENMEM_POPULATE_PHYSMAP, misaligned), 0);
    let _ = list(&guest, [512]);
    assert_eq!(op(&guest, abi::XENMEM_POPULATE_PHYSMAP, large), 1);
    assert_eq!(change(host, &guest, before), (512, 0, -512));
    assert_eq!(guest.leaf(700).unwrap().order, Order::MIB_2);
    assert_eq!(op(&guest, abi::XENMEM_POPULATE_PHYSMAP, large), 0);
    assert_eq!(op(&guest, abi::XENMEM_DECREASE_RESERVATION, large), 1);
    assert_eq!(change(host, &guest, before), (0, 0, 0));

    assert_eq!(op(&guest, abi::XENMEM_POPULATE_PHYSMAP, large), 1);
    assert_eq!(give_back(&guest, [700]), 1, "one page of it, which splits the leaf");
    let _ = list(&guest, [512]);
    assert_eq!(op(&guest, abi::XENMEM_DECREASE_RESERVATION, large), 0);
    assert_eq!(change(host, &guest, before), (511, 1, -512));
    // A batch of them would be 64 MiB to zero before anybody else gets the CPU.
    let _ = list(&guest, [512, 1024]);
    guest.put(arg(0), &abi::MemoryReservation { nr_extents: 2, ..large });
    guest.load_call(HYPERVISOR_MEMORY_OP, [u64::from(abi::XENMEM_POPULATE_PHYSMAP), arg(0), 0]);
    assert_eq!(guest.hypercall_once(), Some(0));
    let _ = list(&guest, [1024, 1536]);
    guest.load_call(HYPERVISOR_MEMORY_OP, [u64::from(abi::XENMEM_POPULATE_PHYSMAP), arg(0), 0]);
    assert_eq!(guest.hypercall_once(), None, "the first is taken alone");
    assert_eq!(guest.hypercall_once(), Some(2));
    assert_eq!(change(host, &guest, before), (511 + 1024, 1, -512 - 1024));
}

#[test]
fn a_page_that_something_refers_to_stays_charged_when_it_is_given_back() {
    let (host, guest) = Host::with_guest();
    let before = host.account(guest.id());
    let mfn = guest.leaf(50).unwrap().mfn;
    let reference = host.hv.frames.get(mfn, guest.id()).unwrap();
    assert_eq!(give_back(&guest, [50]), 1);
    assert_eq!(change(host, &guest, before), (0, 0, 0));
    assert_eq!(host.hv.frames.info(mfn).owner, guest.id());
    drop(reference);
    assert_eq!(change(host, &guest, before), (-1, 0, 1));
}

#[test]
fn what_is_not_the_domains_own_ram_cannot_be_given_back() {
    let host = Host::new();
    let guest = Guest::new(host, 1, GUEST, 1);
    let other = Guest::new(host, 2, GUEST, 1);
    let theirs = host.hv.frames.get(other.leaf(50).unwrap().mfn, other.id()).unwrap();
    guest.domain.p2m.lock().map_ref(Gfn::new(300), theirs, P2mKind::GrantRw).unwrap();
    assert_eq!(share(&guest, 301), 0);
    let before = host.account(guest.id());
    assert_eq!(give_back(&guest, [300]), 0);
    assert_eq!(give_back(&guest, [301]), 0);
    assert_eq!(populate(&guest, [300]), 0);
    assert_eq!(share(&guest, 300), failed(Errno::EBUSY));
    assert_eq!(remove(&guest, 300), failed(Errno::EPERM));
    assert_eq!(change(host, &guest, before), (0, 0, 0));
    assert_eq!(host.hv.frames.info(other.leaf(50).unwrap().mfn).count, 1);
}

// --- Placing and removing.

#[test]
fn the_shared_page_can_be_placed_again_and_again() {
    let (host, guest) = Host::with_guest();
    let shared = guest.domain.shared_info;
    assert_eq!(share(&guest, 300), 0);
    let before = host.account(guest.id());
    assert_eq!(share(&guest, 300), 0, "over itself");
    assert_eq!(share(&guest, 301), 0);
    assert_eq!(change(host, &guest, before), (0, 0, 0));
    assert_eq!(guest.leaf(300), guest.leaf(301));
    assert_eq!(guest.leaf(300).unwrap().mfn, shared);
    assert_eq!(share(&guest, 60), 0, "over RAM, which goes back");
    assert_eq!(change(host, &guest, before), (-1, 0, 1));
    for gfn in [300, 301, 60] {
        assert_eq!(remove(&guest, gfn), 0);
        assert_eq!(remove(&guest, gfn), failed(Errno::ENOENT));
    }
    assert_eq!(change(host, &guest, before), (-1, 0, 1));
    assert_eq!(host.hv.frames.info(shared).kind, FrameType::Shared);
    assert_eq!(populate(&guest, [60]), 1);
}

#[test]
fn dom0s_page_behind_the_shared_page_stays_its_own() {
    let (host, dom0) = Host::with_dom0();
    assert_eq!(share(&dom0, 60), 0);
    assert_eq!(host.hv.frames.info(Mfn::new(60)).kind, FrameType::Reserved);
    assert_eq!(populate(&dom0, [60]), 0);
    assert_eq!(remove(&dom0, 60), 0);
    assert_eq!(populate(&dom0, [60]), 1);
    assert_eq!(dom0.leaf(60).unwrap().mfn, Mfn::new(60));
}

#[test]
fn grant_frames_are_placed_by_index_and_made_once() {
    let (host, guest) = Host::with_guest();
    let before = host.account(guest.id());
    let place = |idx, gfn| op(&guest, abi::XENMEM_ADD_TO_PHYSMAP, place(abi::XENMAPSPACE_GRANT_TABLE, idx, gfn));
    assert_eq!(place(0, 60), 0);
    let first = guest.leaf(60).unwrap();
    assert_eq!((first.kind, host.hv.frames.info(first.mfn).kind), (P2mKind::Shared, FrameType::GrantFrame));
    assert_eq!(place(0, 61), 0);
    assert_eq!(guest.leaf(61).unwrap().mfn, first.mfn);
    let (ram, overhead, free) = change(host, &guest, before);
    assert_eq!((ram, ram + overhead + free), (-2, 0));
    for idx in [1 << 20, u64::from(u32::MAX), 1 << 32, u64::MAX, abi::XENMAPIDX_GRANT_TABLE_STATUS] {
        assert_eq!(place(idx, 62), failed(Errno::EINVAL), "index {idx:#x}");
    }
    assert_eq!(guest.leaf(62).unwrap().kind, P2mKind::Ram);
}

#[test]
fn what_cannot_be_placed_changes_nothing() {
    let (host, guest) = Host::with_guest();
    let before = host.account(guest.id());
    let add = |argument| op(&guest, abi::XENMEM_ADD_TO_PHYSMAP, argument);
    assert_eq!(add(place(abi::XENMAPSPACE_SHARED_INFO, 1, 60)), failed(Errno::EINVAL));
    let spaces = [
        abi::XENMAPSPACE_GMFN,
        abi::XENMAPSPACE_GMFN_RANGE,
        abi::XENMAPSPACE_GMFN_FOREIGN,
        abi::XENMAPSPACE_DEV_MMIO,
        6,
        u32::MAX,
    ];
    for space in spaces {
        assert_eq!(add(place(space, 0, 60)), failed(Errno::ENOSYS));
    }
    for gfn in [1 << 36, u64::MAX] {
        assert_eq!(share(&guest, gfn), failed(Errno::EINVAL));
        assert_eq!(remove(&guest, gfn), failed(Errno::ENOENT));
    }
    assert_eq!(change(host, &guest, before), (0, 0, 0));
    assert_eq!(guest.leaf(60).unwrap().kind, P2mKind::Ram);
}

// --- Asking.

#[test]
fn a_domain_can_ask_what_it_has_and_may_have() {
    let (_, guest) = Host::with_guest();
    let me = abi::MemoryDomain { domid: SELF };
    assert_eq!(op(&guest, abi::XENMEM_CURRENT_RESERVATION, me), 128);
    assert_eq!(op(&guest, abi::XENMEM_MAXIMUM_RESERVATION, me), 256);
    assert_eq!(op(&guest, abi::XENMEM_MAXIMUM_GPFN, me), 127);
    assert_eq!(op(&guest, abi::XENMEM_CURRENT_RESERVATION, abi::MemoryDomain { domid: 1 }), 128, "by its number");
}

#[test]
fn the_memory_map_is_copied_out_if_there_is_room() {
    let (_, guest) = Host::with_guest();
    let ask = |nr_entries, buffer| {
        guest.call_with(HYPERVISOR_MEMORY_OP, abi::XENMEM_MEMORY_MAP, abi::MemoryMap { nr_entries, buffer })
    };
    assert_eq!(ask(0, arg(1)).0, failed(Errno::EINVAL));
    assert_eq!(ask(u32::MAX, HOLE).0, failed(Errno::EFAULT));
    let (result, map) = ask(u32::MAX, arg(1));
    assert_eq!((result, map.nr_entries), (0, 1));
    let entry: abi::E820Entry = guest.get(arg(1));
    assert_eq!((entry.addr, entry.size, entry.kind), (0, 128 * PAGE_SIZE as u64, 1));
}

// --- Refusing.

#[test]
fn another_domain_is_the_business_of_who_controls_it() {
    let host = Host::new();
    let dom0 = Guest::new(host, 0, DOM0, 1);
    let guest = Guest::new(host, 1, GUEST, 1);
    let ask = |guest: &Guest, domid| {
        let reservation = abi::MemoryReservation { domid, ..list(guest, [50]) };
        let place = abi::AddToPhysmap { domid, ..place(abi::XENMAPSPACE_SHARED_INFO, 0, 50) };
        [
            op(guest, abi::XENMEM_DECREASE_RESERVATION, reservation),
            op(guest, abi::XENMEM_POPULATE_PHYSMAP, reservation),
            op(guest, abi::XENMEM_ADD_TO_PHYSMAP, place),
            op(guest, abi::XENMEM_REMOVE_FROM_PHYSMAP, abi::RemoveFromPhysmap { domid, gpfn: 50 }),
            op(guest, abi::XENMEM_CURRENT_RESERVATION, abi::MemoryDomain { domid }),
            op(guest, abi::XENMEM_MAXIMUM_RESERVATION, abi::MemoryDomain { domid }),
            op(guest, abi::XENMEM_MAXIMUM_GPFN, abi::MemoryDomain { domid }),
        ]
    };
    let before = (host.account(guest.id()), host.account(dom0.id()));
    for id in [0, 2, 500, DomId::IO.raw(), DomId::INVALID.raw(), u16::MAX] {
        assert_eq!(ask(&guest, id), [failed(Errno::EPERM); 7], "domain {id}");
    }
    for id in [2, 63, 64, 500, DomId::XEN.raw(), u16::MAX] {
        assert_eq!(ask(&dom0, id), [failed(Errno::ESRCH); 7], "domain {id}");
    }
    assert_eq!((host.account(guest.id()), host.account(dom0.id())), before);
    assert_eq!(ask(&dom0, 1), [1, 1, 0, 0, 127, 256, 127]);
    assert_eq!(host.account(dom0.id()).0, before.1.0);
    host.check_books();
}

#[test]
fn unknown_operations_and_bad_pointers_are_refused_whatever_the_bits_above() {
    let (host, guest) = Host::with_guest();
    let before = host.account(guest.id());
    let known = [
        abi::XENMEM_DECREASE_RESERVATION,
        abi::XENMEM_CURRENT_RESERVATION,
        abi::XENMEM_MAXIMUM_RESERVATION,
        abi::XENMEM_POPULATE_PHYSMAP,
        abi::XENMEM_ADD_TO_PHYSMAP,
        abi::XENMEM_MEMORY_MAP,
        abi::XENMEM_MAXIMUM_GPFN,
        abi::XENMEM_REMOVE_FROM_PHYSMAP,
        abi::XENMEM_ADD_TO_PHYSMAP_BATCH,
        abi::XENMEM_ACQUIRE_RESOURCE,
        abi::XENMEM_SET_MEMORY_MAP,
    ];
    for operation in 0..64 {
        let expected = if known.contains(&operation) { Errno::EFAULT } else { Errno::ENOSYS };
        for above in [0, 1 << 6, 0x3ff_ffff << 6] {
            for address in [HOLE, 0xffff_8000_0000_0000, 1 << 63, u64::MAX, (128 << 12) - 1] {
                let result = guest.call(HYPERVISOR_MEMORY_OP, [u64::from(operation | above), address, 0]);
                assert_eq!(result, failed(expected), "{operation} at {address:#x}");
            }
        }
    }
    assert_eq!(change(host, &guest, before), (0, 0, 0));
}

// --- Pages of another domain.

/// dom0, which maps, and a guest with RAM.
fn pair() -> (Host, Guest, Guest) {
    let host = Host::new();
    (host, Guest::new(host, 0, DOM0, 1), Guest::new(host, 1, GUEST, 1))
}

/// Guest frames where dom0 has nothing.
const SCRATCH: u64 = 0x1000;

/// Maps pages of domain 1 into dom0 from [`SCRATCH`] on; the result and each page's.
fn map(dom0: &Guest, gfns: &[u64]) -> (i64, Vec<i32>) {
    let count = gfns.len() as u64;
    for (i, gfn) in (0..).zip(gfns) {
        dom0.put((LIST << 12) + i * 8, gfn);
        dom0.put(((LIST + 1) << 12) + i * 8, &(SCRATCH + i));
        dom0.put(((LIST + 2) << 12) + i * 4, &i32::MAX);
    }
    let argument = abi::AddToPhysmapBatch {
        domid: SELF,
        space: u16::try_from(abi::XENMAPSPACE_GMFN_FOREIGN).unwrap(),
        size: u16::try_from(count).unwrap(),
        foreign_domid: 1,
        idxs: LIST << 12,
        gpfns: (LIST + 1) << 12,
        errs: (LIST + 2) << 12,
    };
    let result = op(dom0, abi::XENMEM_ADD_TO_PHYSMAP_BATCH, argument);
    (result, (0..count).map(|i| dom0.get(((LIST + 2) << 12) + i * 4)).collect())
}

#[test]
fn pages_of_a_controlled_domain_are_mapped_and_exactly_those_that_cannot_be_are_named() {
    let (host, dom0, guest) = pair();
    let before = (host.account(dom0.id()).0.ram, host.account(guest.id()));
    guest.put(50 << 12, &0x1122_3344_5566_7788_u64);
    assert_eq!(share(&guest, 60), 0);
    let gfns: Vec<u64> = (40..60).chain([60, 5000, u64::MAX]).chain(61..90).collect();
    let (result, errors) = map(&dom0, &gfns);
    assert_eq!(result, 0);
    for (gfn, error) in gfns.iter().zip(&errors) {
        let expected = match gfn {
            60 => -(Errno::EPERM as i32),
            5000 | &u64::MAX => -(Errno::EINVAL as i32),
            _ => 0,
        };
        assert_eq!(*error, expected, "{gfn}");
    }
    assert_eq!(dom0.get::<u64>((SCRATCH + 10) << 12), 0x1122_3344_5566_7788);
    assert_eq!(dom0.leaf(SCRATCH + 10).unwrap().kind, P2mKind::ForeignRw);
    dom0.put((SCRATCH + 10) << 12, &7_u64);
    assert_eq!(guest.get::<u64>(50 << 12), 7);
    assert_eq!(dom0.leaf(SCRATCH + 20), None);
    for i in 0..gfns.len() as u64 {
        let expected = if (20..23).contains(&i) { failed(Errno::ENOENT) } else { 0 };
        assert_eq!(remove(&dom0, SCRATCH + i), expected);
    }
    assert_eq!(remove(&guest, 60), 0);
    assert_eq!(populate(&guest, [60]), 1);
    assert_eq!((host.account(dom0.id()).0.ram, host.account(guest.id()).0), (before.0, before.1.0));
    host.check_books();
}

#[test]
fn a_mapped_frame_keeps_its_contents_when_its_owner_gives_it_up() {
    let (host, dom0, guest) = pair();
    guest.put(50 << 12, &42_u64);
    let mfn = guest.leaf(50).unwrap().mfn;
    assert_eq!(map(&dom0, &[50]), (0, std::vec![0]));
    assert_eq!(give_back(&guest, [50]), 1);
    assert_eq!((dom0.get::<u64>(SCRATCH << 12), host.hv.frames.info(mfn).owner), (42, guest.id()));
    assert_eq!(map(&dom0, &[50]).1, [-(Errno::EINVAL as i32)], "it is no longer the guest's");
    // What was there has made place although nothing came: as with any mapping over another.
    assert_eq!(host.hv.frames.info(mfn).kind, FrameType::Ram);
    assert_eq!(remove(&dom0, SCRATCH), 0);
    assert_eq!(host.hv.frames.info(mfn).kind, FrameType::Free);
    host.check_books();
}

#[test]
fn a_mapping_over_another_releases_it_and_one_over_a_grant_is_refused() {
    let (host, dom0, guest) = pair();
    let first = guest.leaf(50).unwrap().mfn;
    assert_eq!(map(&dom0, &[50]).0, 0);
    assert_eq!(host.hv.frames.info(first).count, 1);
    assert_eq!(map(&dom0, &[51]), (0, std::vec![0]));
    assert_eq!(host.hv.frames.info(first).count, 0);
    assert_eq!(remove(&dom0, SCRATCH), 0);
    let theirs = host.hv.frames.get(first, guest.id()).unwrap();
    dom0.domain.p2m.lock().map_ref(Gfn::new(SCRATCH), theirs, P2mKind::GrantRw).unwrap();
    assert_eq!(map(&dom0, &[51]), (0, std::vec![-(Errno::EBUSY as i32)]));
}

#[test]
fn foreign_pages_are_for_who_controls_their_owner() {
    let (_, dom0, guest) = pair();
    let request = |domid, foreign_domid, space: u32| abi::AddToPhysmapBatch {
        domid,
        space: u16::try_from(space).unwrap(),
        size: 1,
        foreign_domid,
        idxs: arg(1),
        gpfns: arg(2),
        errs: arg(3),
    };
    let foreign = abi::XENMAPSPACE_GMFN_FOREIGN;
    let ask = |guest: &Guest, argument| op(guest, abi::XENMEM_ADD_TO_PHYSMAP_BATCH, argument);
    for id in [0, 1, 5, SELF] {
        assert_eq!(ask(&guest, request(SELF, id, foreign)), failed(Errno::EPERM), "{id}");
    }
    assert_eq!(ask(&dom0, request(1, 1, foreign)), failed(Errno::EPERM), "into another's address space");
    assert_eq!(ask(&dom0, request(SELF, 0, foreign)), failed(Errno::EINVAL));
    assert_eq!(ask(&dom0, request(SELF, 5, foreign)), failed(Errno::ESRCH));
    assert_eq!(ask(&dom0, request(SELF, DomId::IO.raw(), foreign)), failed(Errno::ESRCH));
    for space in [0, 1, 2, 3, 5, 77] {
        assert_eq!(ask(&dom0, request(SELF, 1, space)), failed(Errno::ENOSYS));
    }
    for hole in 0..3 {
        let mut argument = request(SELF, 1, foreign);
        *[&mut argument.idxs, &mut argument.gpfns, &mut argument.errs][hole] = HOLE;
        dom0.put(arg(1), &50_u64);
        dom0.put(arg(2), &SCRATCH);
        assert_eq!(ask(&dom0, argument), failed(Errno::EFAULT));
    }
}

#[test]
fn grant_frames_are_acquired_all_or_none_and_outlive_the_table() {
    let (host, dom0, guest) = pair();
    let acquire = |kind, id, nr_frames, frame, frame_list| {
        let argument = abi::AcquireResource { domid: 1, kind, id, nr_frames, pad: 0, frame, frame_list };
        dom0.call_with(HYPERVISOR_MEMORY_OP, abi::XENMEM_ACQUIRE_RESOURCE, argument)
    };
    let table = abi::XENMEM_RESOURCE_GRANT_TABLE;
    assert_eq!(acquire(table, 0, 0, 0, 0).1.nr_frames, 64);
    for i in 0..64 {
        dom0.put((LIST << 12) + i * 8, &(SCRATCH + i));
    }
    let before = host.account(dom0.id()).0.ram;
    assert_eq!(acquire(table, 0, 40, 2, LIST << 12).0, 0);
    let mfn = guest.domain.grant_frame(2).unwrap();
    assert_eq!(dom0.leaf(SCRATCH).map(|leaf| (leaf.mfn, leaf.kind)), Some((mfn, P2mKind::ForeignRw)));
    for i in 0..40 {
        assert_eq!(remove(&dom0, SCRATCH + i), 0);
    }
    // A list that ends in a place that cannot be had.
    dom0.put((LIST << 12) + 35 * 8, &u64::MAX);
    assert_eq!(acquire(table, 0, 40, 2, LIST << 12).0, failed(Errno::EINVAL));
    assert!((0..40).all(|i| dom0.leaf(SCRATCH + i).is_none()));
    for (kind, id, frames, first, error) in [
        (0, 0, 1, 0, Errno::EOPNOTSUPP),
        (2, 0, 1, 0, Errno::EOPNOTSUPP),
        (table, 1, 1, 0, Errno::EINVAL),
        (table, 0, 1, 64, Errno::EINVAL),
        (table, 0, 65, 0, Errno::EINVAL),
        (table, 0, 2, u64::MAX, Errno::EINVAL),
    ] {
        assert_eq!(acquire(kind, id, frames, first, LIST << 12).0, failed(error));
    }
    assert_eq!(acquire(table, 0, 1, 0, 0).0, failed(Errno::EINVAL));
    assert_eq!(acquire(table, 0, 1, 0, HOLE).0, failed(Errno::EFAULT));
    assert_eq!(host.account(dom0.id()).0.ram, before);
    host.check_books();
}

#[test]
fn each_flush_of_a_foreign_page_is_needed() {
    for site in [FlushSite::ForeignUnmap, FlushSite::Remap] {
        let (_, dom0, _guest) = pair();
        assert_eq!(map(&dom0, &[50]).0, 0);
        assert_eq!(share(&dom0, SCRATCH + 1), 0);
        // dom0's CPU has seen the mappings.
        dom0.run(0);
        let unflushed = crate::testing::without_flush(site, || {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| match site {
                FlushSite::Remap => share(&dom0, SCRATCH + 1),
                _ => remove(&dom0, SCRATCH),
            }))
        });
        assert!(unflushed.is_err(), "{site:?}: a frame was released while a TLB may have it");
    }
}

#[test]
fn a_toolstack_gives_a_domain_its_memory_map() {
    let (host, dom0, guest) = pair();
    let set = |domid, entries: &[(u64, u64, u32)], nr_entries| {
        for (i, (addr, size, kind)) in (0..).zip(entries) {
            let mut bytes = [0; abi::E820_ENTRY_SIZE];
            abi::E820Entry { addr: *addr, size: *size, kind: *kind }.to_bytes(&mut bytes);
            dom0.put_bytes((LIST << 12) + i * abi::E820_ENTRY_SIZE as u64, &bytes);
        }
        let map = abi::MemoryMap { nr_entries, buffer: LIST << 12 };
        op(&dom0, abi::XENMEM_SET_MEMORY_MAP, abi::ForeignMemoryMap { domid, map })
    };
    assert_eq!(set(1, &[(0, 0x10_0000, 1), (0xfc00_0000, 0x1000, 3)], 2), 0);
    let (result, map) =
        guest.call_with(HYPERVISOR_MEMORY_OP, abi::XENMEM_MEMORY_MAP, abi::MemoryMap { nr_entries: 9, buffer: arg(1) });
    assert_eq!((result, map.nr_entries), (0, 2));
    let entry: abi::E820Entry = guest.get(arg(1) + 20);
    assert_eq!((entry.addr, entry.size, entry.kind), (0xfc00_0000, 0x1000, 3));
    assert_eq!(op(&guest, abi::XENMEM_MAXIMUM_GPFN, abi::MemoryDomain { domid: SELF }), 0xf_c000);
    assert_eq!(set(1, &[(u64::MAX, 2, 1)], 1), failed(Errno::EINVAL));
    assert_eq!(set(1, &[], 128), failed(Errno::EINVAL));
    assert_eq!(set(1, &[], u32::MAX), failed(Errno::EINVAL));
    assert_eq!(set(SELF, &[], 0), failed(Errno::EINVAL), "dom0's is the machine's");
    assert_eq!(set(7, &[], 0), failed(Errno::ESRCH));
    let own = abi::ForeignMemoryMap { domid: SELF, map: abi::MemoryMap { nr_entries: 0, buffer: 0 } };
    assert_eq!(op(&guest, abi::XENMEM_SET_MEMORY_MAP, own), failed(Errno::EPERM));
    assert_eq!(guest.domain.e820.lock().len(), 2);
    host.check_books();
}
