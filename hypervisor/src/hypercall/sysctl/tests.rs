// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine as a control domain sees it.

use std::vec::Vec;

use guest_abi::hypercall::HYPERVISOR_SYSCTL;

use super::*;
use crate::testing::{DOM0, GUEST, Guest, HOLE, Host, arg, failed};

const OP: u64 = 60 << 12;
const BUFFER: u64 = 61 << 12;

fn sysctl<T: Wire>(guest: &Guest, cmd: u32, argument: &T) -> (i64, T) {
    guest.put(OP, &abi::SysctlHeader { cmd, interface_version: abi::XEN_SYSCTL_INTERFACE_VERSION });
    guest.put(OP + abi::SYSCTL_ARG as u64, argument);
    (guest.call(HYPERVISOR_SYSCTL, [OP, 0, 0]), guest.get(OP + abi::SYSCTL_ARG as u64))
}

#[test]
fn domains_are_listed_from_a_number_on_as_many_as_there_is_room_for() {
    let host = Host::new();
    let dom0 = Guest::new(host, 0, DOM0, 1);
    let _guests: Vec<Guest> = [1, 5].map(|id| Guest::new(host, id, GUEST, 1)).into();
    let list = |first_domain, max_domains| {
        let wanted = abi::GetDomainInfoList { first_domain, max_domains, buffer: BUFFER, num_domains: 99 };
        let (result, list) = sysctl(&dom0, abi::XEN_SYSCTL_GETDOMAININFOLIST, &wanted);
        assert_eq!(result, 0);
        let size = GetDomainInfo::SIZE as u64;
        let number = |i| dom0.get::<GetDomainInfo>(BUFFER + i * size).domain;
        (0..u64::from(list.num_domains)).map(number).collect::<Vec<u16>>()
    };
    assert_eq!(list(0, 10), [0, 1, 5]);
    assert_eq!(list(2, u32::MAX), [5]);
    assert_eq!(list(0, 2), [0, 1]);
    assert_eq!(list(6, 10), []);
    assert_eq!(list(0, 0), []);
    let wanted = abi::GetDomainInfoList { first_domain: 0, max_domains: 1, buffer: HOLE, num_domains: 0 };
    assert_eq!(sysctl(&dom0, abi::XEN_SYSCTL_GETDOMAININFOLIST, &wanted).0, failed(Errno::EFAULT));
}

#[test]
fn the_machine_is_described() {
    let (host, dom0) = Host::with_dom0();
    let (result, info) = sysctl(&dom0, abi::XEN_SYSCTL_PHYSINFO, &abi::PhysInfo::default());
    let free = host.hv.frames.free_frames();
    assert_eq!((result, info.free_pages, info.scrub_pages), (0, free.total, free.total - free.clean));
    assert_eq!((info.nr_cpus, info.nr_nodes, info.max_mfn), (1, 1, host.hv.frames.nr_frames() - 1));
    assert_eq!(sysctl(&dom0, abi::XEN_SYSCTL_SCHED_ID, &abi::SchedId::default()).1.sched_id, 5);
    for cmd in [0, 2, 5, 7, 8, 18, 19, 29, u32::MAX] {
        assert_eq!(sysctl(&dom0, cmd, &0_u64).0, failed(Errno::ENOSYS));
    }
}

#[test]
fn the_log_is_read_and_read_on() {
    let (_, dom0) = Host::with_dom0();
    let read = |incremental, index, buffer, count| {
        let wanted = abi::ReadConsole { incremental, index, buffer, count, ..Default::default() };
        sysctl(&dom0, abi::XEN_SYSCTL_READCONSOLE, &wanted)
    };
    // Other tests write to the same log meanwhile.
    let (result, all) = read(0, 0, BUFFER, 0);
    assert_eq!((result, all.count), (0, 0));
    LOG.push(b"<the needle>");
    let mut at = all.index;
    let mut text = Vec::new();
    loop {
        let (result, part) = read(1, at, BUFFER, 700);
        assert_eq!(result, 0);
        text.extend(dom0.get_bytes(BUFFER, part.count as usize));
        at = part.index;
        if part.count < 700 {
            break;
        }
    }
    assert!(text.windows(12).any(|part| part == b"<the needle>"));
    assert_eq!(read(0, 0, HOLE, 100).0, failed(Errno::EFAULT));
    assert_eq!(read(0, 0, arg(0), 0).0, 0);
}
