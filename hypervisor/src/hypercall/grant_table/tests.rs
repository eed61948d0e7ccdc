// SPDX-License-Identifier: MIT OR Apache-2.0
//! Grants as hypercalls of two domains. What the operations mean is tested beside [`crate::grant`].

use guest_abi::Gfn;
use guest_abi::grant_table as abi;
use guest_abi::hypercall::{HYPERVISOR_GRANT_TABLE_OP, HYPERVISOR_MEMORY_OP};
use guest_abi::memory::{MemoryReservation, XENMEM_DECREASE_RESERVATION};

use super::*;
use crate::p2m::P2mKind;
use crate::testing::{GUEST, Guest, HOLE, Host, arg, failed};

/// Where the mapper puts the granted page: guest frame and linear page.
const AT: u64 = 300;
const PAGE: u64 = 100;

/// Two domains; the first grants its frame 50 to the second by reference 8.
fn pair() -> (Host, Guest, Guest) {
    let host = Host::new();
    let (granter, mapper) = (Guest::new(host, 1, GUEST, 1), Guest::new(host, 2, GUEST, 1));
    let table = granter.domain.grant_frame(0).unwrap();
    let entry = u64::from(abi::GTF_PERMIT_ACCESS) | 2 << 16 | 50 << 32;
    host.hv.mem.word(table, 8).store(entry, core::sync::atomic::Ordering::SeqCst);
    // Marked dirty, so that a walk for reading is remembered for writing.
    mapper.set_page(PAGE, AT << 12 | 0b110_0011);
    (host, granter, mapper)
}

fn map(mapper: &Guest) -> u32 {
    let op = abi::MapGrantRef {
        host_addr: AT << 12,
        flags: abi::GNTMAP_HOST_MAP,
        reference: 8,
        dom: 1,
        ..Default::default()
    };
    mapper.put(arg(0), &op);
    let args = [u64::from(abi::GNTTABOP_MAP_GRANT_REF), arg(0), 1];
    assert_eq!(mapper.call(HYPERVISOR_GRANT_TABLE_OP, args), 0);
    let op: abi::MapGrantRef = mapper.get(arg(0));
    assert_eq!(op.status, abi::GNTST_OKAY);
    op.handle
}

fn unmap(mapper: &Guest, handle: u32, at: u64) -> i64 {
    let op = abi::UnmapGrantRef { host_addr: AT << 12, handle, status: 77, ..Default::default() };
    // By the linear address, which may be one in the granted page itself.
    let gpa = if at >> 12 == PAGE { (AT << 12) + at % 4096 } else { at };
    mapper.put(gpa, &op);
    mapper.call(HYPERVISOR_GRANT_TABLE_OP, [u64::from(abi::GNTTABOP_UNMAP_GRANT_REF), at, 1])
}

#[test]
fn a_page_is_mapped_and_unmapped() {
    let (host, granter, mapper) = pair();
    let frame = granter.leaf(50).unwrap().mfn;
    let handle = map(&mapper);
    let leaf = mapper.leaf(AT).unwrap();
    assert_eq!((leaf.mfn, leaf.kind, host.hv.frames.info(frame).count), (frame, P2mKind::GrantRw, 1));
    assert_eq!(unmap(&mapper, handle, arg(0)), 0);
    assert_eq!(mapper.get::<abi::UnmapGrantRef>(arg(0)).status, abi::GNTST_OKAY);
    assert_eq!((mapper.leaf(AT), host.hv.frames.info(frame).count), (None, 0));
    host.check_books();
}

#[test]
fn a_status_is_not_written_to_a_page_that_was_just_unmapped() {
    let (host, granter, mapper) = pair();
    let frame = granter.leaf(50).unwrap().mfn;
    let handle = map(&mapper);
    // The granter has given the page up, so unmapping it makes it free for anybody.
    granter.put(arg(1), &50_u64);
    let list = MemoryReservation { extent_start: arg(1), nr_extents: 1, domid: 1, ..Default::default() };
    assert_eq!(granter.result(HYPERVISOR_MEMORY_OP, XENMEM_DECREASE_RESERVATION, list), 1);
    mapper.run(0);
    assert_eq!(unmap(&mapper, handle, PAGE << 12), failed(Errno::EFAULT));
    assert_eq!(mapper.leaf(AT), None);
    let status = host.hv.mem.load_u32(frame, 20);
    assert_eq!(status, 77, "the frame was written after it had been given back");
    assert_eq!(mapper.domain.p2m_view.lookup(Gfn::new(AT)), None);
    host.check_books();
}

#[test]
fn a_copy_reaches_no_page_that_the_caller_has_given_up_or_mapped() {
    let (host, granter, mapper) = pair();
    granter.put(50 << 12, &0x1111_u64);
    let own = |gfn: u64| abi::CopyPtr { frame: gfn, domid: guest_abi::DomId::SELF.raw(), offset: 0 };
    let granted = abi::CopyPtr { frame: 8, domid: 1, offset: 0 };
    let copy = |(source, dest, flags), count: u64| {
        for n in 0..count {
            mapper.put(arg(0) + n * 40, &abi::GrantCopy { source, dest, len: 8, flags, status: 77 });
        }
        assert_eq!(mapper.call(HYPERVISOR_GRANT_TABLE_OP, [u64::from(abi::GNTTABOP_COPY), arg(0), count]), 0);
        let op: abi::GrantCopy = mapper.get(arg(0) + (count - 1) * 40);
        op.status
    };
    let both_ways = [(granted, own(60), abi::GNTCOPY_SOURCE_GREF), (own(60), granted, abi::GNTCOPY_DEST_GREF)];
    for (way, count) in [(both_ways[0], 1), (both_ways[1], 1), (both_ways[0], 2), (both_ways[1], 2)] {
        assert_eq!(copy(way, count), abi::GNTST_OKAY);
    }
    assert_eq!(mapper.get::<u64>(60 << 12), 0x1111);
    let frame = mapper.leaf(60).unwrap().mfn;
    mapper.put(arg(1), &60_u64);
    let list = MemoryReservation { extent_start: arg(1), nr_extents: 1, domid: 2, ..Default::default() };
    assert_eq!(mapper.result(HYPERVISOR_MEMORY_OP, XENMEM_DECREASE_RESERVATION, list), 1);
    granter.put(50 << 12, &0x2222_u64);
    for (way, count) in [(both_ways[0], 1), (both_ways[1], 1), (both_ways[0], 2), (both_ways[1], 2)] {
        assert_eq!(copy(way, count), abi::GNTST_BAD_PAGE);
    }
    assert_eq!(host.hv.mem.load_u32(frame, 0), 0x1111, "a frame was written that is nobody's");
    assert_eq!(granter.get::<u64>(50 << 12), 0x2222);
    let handle = map(&mapper);
    assert_eq!(copy((granted, own(AT), abi::GNTCOPY_SOURCE_GREF), 1), abi::GNTST_BAD_PAGE);
    assert_eq!(unmap(&mapper, handle, arg(0)), 0);
    host.check_books();
}

#[test]
fn a_list_goes_on_where_it_stopped() {
    let (host, _, mapper) = pair();
    let count = 100;
    for n in 0..count {
        let op = abi::MapGrantRef { host_addr: HOLE, reference: 9, dom: 1, ..Default::default() };
        mapper.put((20 << 12) + n * 32, &op);
    }
    mapper.load_call(HYPERVISOR_GRANT_TABLE_OP, [u64::from(abi::GNTTABOP_MAP_GRANT_REF), 20 << 12, count]);
    let mut left = count;
    while mapper.hypercall_once().is_none() {
        let regs = mapper.regs();
        assert!(regs.rdx < left && regs.rsi == (20 << 12) + (count - regs.rdx) * 32);
        left = regs.rdx;
    }
    assert_eq!(mapper.regs().rax, 0);
    assert!((0..count).all(|n| mapper.get::<abi::MapGrantRef>((20 << 12) + n * 32).status < 0));
    host.check_books();
}

#[test]
fn only_a_control_domain_is_told_of_others_tables() {
    let (host, granter, mapper) = pair();
    let control = Guest::new(host, 3, Privileges::CONTROL, 1);
    let ask = |guest: &Guest| {
        guest.put(arg(0), &abi::QuerySize { dom: 1, ..Default::default() });
        let args = [u64::from(abi::GNTTABOP_QUERY_SIZE), arg(0), 1];
        assert_eq!(guest.call(HYPERVISOR_GRANT_TABLE_OP, args), 0);
        let answer: abi::QuerySize = guest.get(arg(0));
        (answer.status, answer.nr_frames)
    };
    assert_eq!(ask(&granter), (abi::GNTST_OKAY, 1));
    assert_eq!(ask(&mapper), (abi::GNTST_PERMISSION_DENIED, 0));
    assert_eq!(ask(&control), (abi::GNTST_OKAY, 1));
}

#[test]
fn bad_lists_are_refused() {
    let (_, _, mapper) = pair();
    let call =
        |operation: u32, address, count| mapper.call(HYPERVISOR_GRANT_TABLE_OP, [u64::from(operation), address, count]);
    for operation in [abi::GNTTABOP_MAP_GRANT_REF, abi::GNTTABOP_UNMAP_GRANT_REF, abi::GNTTABOP_COPY] {
        assert_eq!(call(operation, HOLE, 0), 0);
        assert_eq!(call(operation, HOLE, 1), failed(Errno::EFAULT));
        assert_eq!(call(operation, arg(0), 1 << 31), failed(Errno::EINVAL));
    }
    for operation in [abi::GNTTABOP_DUMP_TABLE, abi::GNTTABOP_TRANSFER, 13, u32::MAX] {
        assert_eq!(call(operation, arg(0), 1), failed(Errno::ENOSYS));
    }
}
