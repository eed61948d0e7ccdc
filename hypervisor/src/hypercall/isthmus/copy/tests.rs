// SPDX-License-Identifier: MIT OR Apache-2.0
//! Filling another domain's memory.

use guest_abi::hypercall::HYPERVISOR_ISTHMUS;

use super::*;
use crate::testing::{DOM0, GUEST, Guest, HOLE, Host, arg, failed};

/// Where the caller has its bytes: 20 pages.
const BUFFER: u64 = 30 << 12;

fn pair() -> (Host, Guest, Guest) {
    let host = Host::new();
    (host, Guest::new(host, 0, DOM0, 1), Guest::new(host, 1, GUEST, 1))
}

fn request(gpa: u64, len: u64) -> abi::DomainCopy {
    abi::DomainCopy {
        interface_version: abi::INTERFACE_VERSION,
        domid: 1,
        kind: abi::COPY_IN,
        gpa,
        len,
        buffer: BUFFER,
        done: 0,
    }
}

fn copy(caller: &Guest, argument: abi::DomainCopy) -> (i64, abi::DomainCopy) {
    caller.call_with(HYPERVISOR_ISTHMUS, abi::ISTHMUS_DOMAIN_COPY, argument)
}

fn pattern(len: usize) -> std::vec::Vec<u8> {
    (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect()
}

#[test]
fn any_range_arrives_to_the_byte_and_nothing_beside_it() {
    let (_, dom0, guest) = pair();
    let bytes = pattern(20 << 12);
    for (gpa, len, skip) in [(0x2_8000, 0x1_3000, 0), (0x2_8fff, 0x1_2002, 7), (0x3_0123, 1, 4095), (0x3_0000, 0, 0)] {
        guest.put_bytes(gpa - 8, &std::vec![0xee; to_usize(len) + 16]);
        dom0.put_bytes(BUFFER, &bytes);
        let (result, done) = copy(&dom0, abi::DomainCopy { buffer: BUFFER + skip, ..request(gpa, len) });
        assert_eq!((result, done.done), (0, len));
        let got = guest.get_bytes(gpa - 8, to_usize(len) + 16);
        assert_eq!(got[8..to_usize(len) + 8], bytes[to_usize(skip)..to_usize(skip + len)]);
        assert!(got[..8].iter().chain(&got[to_usize(len) + 8..]).all(|byte| *byte == 0xee));
    }
}

#[test]
fn zeroes_need_no_buffer() {
    let (_, dom0, guest) = pair();
    guest.put_bytes(0x2_8000, &std::vec![0xee; 0x5000]);
    let argument = abi::DomainCopy { kind: abi::COPY_ZERO, buffer: u64::MAX, ..request(0x2_8010, 0x3fe0) };
    assert_eq!(copy(&dom0, argument).0, 0);
    let got = guest.get_bytes(0x2_8000, 0x5000);
    assert!(got[0x10..0x3ff0].iter().all(|byte| *byte == 0));
    assert!(got[..0x10].iter().chain(&got[0x3ff0..]).all(|byte| *byte == 0xee));
}

#[test]
fn a_long_range_lets_others_run_and_says_how_far_it_came() {
    let (_, dom0, _guest) = pair();
    dom0.put(arg(0), &abi::DomainCopy { kind: abi::COPY_ZERO, ..request(0x2_0000, 80 << 12) });
    dom0.load_call(HYPERVISOR_ISTHMUS, [u64::from(abi::ISTHMUS_DOMAIN_COPY), arg(0), 0]);
    assert_eq!(dom0.hypercall_once(), None);
    assert_eq!(dom0.get::<abi::DomainCopy>(arg(0)).done, 64 << 12);
    assert_eq!(dom0.hypercall_once(), Some(0));
    assert_eq!(dom0.get::<abi::DomainCopy>(arg(0)).done, 80 << 12);
}

#[test]
fn an_error_names_its_place_and_the_call_goes_on_from_there() {
    let (_, dom0, guest) = pair();
    dom0.put_bytes(BUFFER, &pattern(0x4000));
    // The caller's third page is not there.
    let page = (BUFFER >> 12) + 2;
    dom0.set_page(page, 0);
    let (result, mut argument) = copy(&dom0, request(0x2_8000, 0x4000));
    assert_eq!((result, argument.done), (failed(Errno::EFAULT), 0x2000));
    dom0.set_page(page, page << 12 | 3);
    assert_eq!(copy(&dom0, argument).0, 0);
    assert_eq!(guest.get_bytes(0x2_8000, 0x4000), pattern(0x4000));
    // The domain's memory ends.
    let end = 128 << 12;
    (_, argument) = copy(&dom0, request(end - 0x1800, 0x4000));
    assert_eq!(argument.done, 0x1800);
    assert_eq!(copy(&dom0, argument).0, failed(Errno::ENOENT));
}

#[test]
fn a_page_that_was_given_up_after_it_was_found_is_not_written() {
    let (host, dom0, guest) = pair();
    // What a lookup sees on one CPU while another one has just given the page up.
    let page = guest.leaf(60).unwrap().mfn;
    host.hv.frames.give_up(page, crate::addr::Order::PAGE, guest.id()).unwrap();
    host.hv.mem.store_u32(page, 0, 0x1111);
    dom0.put(BUFFER, &0x2222_u64);
    assert!(copy(&dom0, request(60 << 12, 8)).0 < 0);
    assert_eq!(host.hv.mem.load_u32(page, 0), 0x1111);
}

#[test]
fn what_makes_no_sense_or_is_not_the_callers_to_do_is_refused() {
    let (_, dom0, guest) = pair();
    assert_eq!(copy(&guest, abi::DomainCopy { domid: 0, ..request(0, 8) }).0, failed(Errno::EPERM));
    assert_eq!(copy(&guest, request(0, 8)).0, failed(Errno::EPERM));
    let bad = [
        (abi::DomainCopy { interface_version: 0, ..request(0, 8) }, Errno::EACCES),
        (abi::DomainCopy { domid: 9, ..request(0, 8) }, Errno::ESRCH),
        (abi::DomainCopy { domid: 0, ..request(0, 8) }, Errno::EINVAL),
        (abi::DomainCopy { kind: 2, ..request(0, 8) }, Errno::EINVAL),
        (abi::DomainCopy { done: 9, ..request(0, 8) }, Errno::EINVAL),
        (request(u64::MAX, 2), Errno::EINVAL),
        (request(8, u64::MAX), Errno::EINVAL),
        (abi::DomainCopy { buffer: u64::MAX, ..request(0, 8) }, Errno::EINVAL),
        (abi::DomainCopy { buffer: HOLE, ..request(0, 8) }, Errno::EFAULT),
        (request(1 << 40, 8), Errno::ENOENT),
    ];
    for (argument, error) in bad {
        assert_eq!(copy(&dom0, argument).0, failed(error), "{argument:?}");
    }
    // The hypervisor's page is not the domain's RAM.
    let mut p2m = guest.domain.p2m.lock();
    p2m.map(guest_abi::Gfn::new(500), guest.domain.shared_info, crate::addr::Order::PAGE, crate::p2m::P2mKind::Shared)
        .unwrap();
    drop(p2m);
    assert_eq!(copy(&dom0, request(500 << 12, 8)).0, failed(Errno::EPERM));
    guest.domain.life.begin_dying();
    assert_eq!(copy(&dom0, request(0, 8)).0, failed(Errno::ESRCH));
}
