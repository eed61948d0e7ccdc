// SPDX-License-Identifier: MIT OR Apache-2.0
//! Domains made from boot modules.

use guest_abi::event_channel::{EVTCHNOP_SEND, Send};
use guest_abi::hypercall::{HYPERVISOR_EVENT_CHANNEL_OP, HYPERVISOR_MEMORY_OP};
use guest_abi::memory::{MemoryReservation, XENMEM_DECREASE_RESERVATION};
use guest_abi::pvh::{ELFNOTE_PHYS32_ENTRY, START_MAGIC};

use core::sync::atomic::Ordering;
use std::string::String;

use super::*;
use crate::domain::create::fill_io_map;
use crate::frame::{FrameType, Limits};
use crate::testing::{Guest, Host, arg, failed};

const MIB: u64 = 1 << 20;
const ENTRY: u64 = MIB + 0x40;

fn kernel() -> Vec<u8> {
    pvh_loader::sample::image(&[(MIB, 0x3000, b"text")], &[(b"Xen\0", ELFNOTE_PHYS32_ENTRY, &ENTRY.to_le_bytes())])
}

fn spec(mem: u64, vcpus: u32) -> GuestSpec<'static> {
    GuestSpec { name: "tiny", mem, vcpus, control: false, cmdline: "" }
}

fn build(host: Host, spec: &GuestSpec<'_>, kernel: &[u8]) -> Result<Arc<Domain>, BuildError> {
    guest(host.hv, DomId::new(1), spec, Images { kernel, initrd: Some(b"initrd"), cmdline: "quiet" })
}

/// A guest from a module, as the fixture drives it.
fn built() -> (Host, Guest) {
    let host = Host::large();
    let domain = build(host, &spec(2 * MIB, 2), &kernel()).unwrap();
    start(host.hv, domain.clone());
    (host, Guest::of(host, domain))
}

#[test]
fn a_guest_enters_its_kernel_with_its_memory_around_it() {
    let (host, guest) = built();
    assert_eq!(guest.cpu(0).state, CpuState::pvh_entry(u32::try_from(ENTRY).unwrap()));
    assert_eq!(guest.get_bytes(MIB, 5), b"text\0");
    assert_eq!(guest.get::<u32>(guest.regs().rbx), START_MAGIC);
    assert_eq!(guest.vcpu(0).run_state(), RunState::Runnable);
    assert_eq!(guest.vcpu(1).run_state(), RunState::Down);
    let special = 1 + GUEST_TABLES.len() / PAGE_SIZE as u64;
    let (usage, limits) = host.hv.frames.account(guest.id()).unwrap();
    assert_eq!((usage.ram, limits.ram), (512 + special, 512 + special));
    assert_eq!(guest.cpu(0).tsc_offset, host.hv.machine.tsc().raw().wrapping_neg(), "its TSC starts at 0");
}

#[test]
fn what_it_puts_into_its_console_ring_is_logged() {
    let (host, guest) = built();
    let ring = GUEST_CONSOLE.raw();
    guest.put_bytes(ring + 1024, b"hello\n");
    guest.put(ring + 3084, &6_u32);
    let port = guest.domain.log_ring.get().unwrap().port;
    guest.enter_long_mode();
    assert_eq!(guest.result(HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_SEND, Send { port: port.raw() }), 0);
    assert_eq!(host.console(), "(d1) hello\r\n");
    assert_eq!(guest.get::<u32>(ring + 3080), 6);
}

#[test]
fn a_console_page_that_was_given_back_is_nobody_elses() {
    let (host, guest) = built();
    guest.enter_long_mode();
    let mfn = guest.domain.log_ring.get().unwrap().mfn;
    guest.put(arg(1), &GUEST_CONSOLE.gfn().raw());
    let argument =
        MemoryReservation { extent_start: arg(1), nr_extents: 1, domid: DomId::SELF.raw(), ..Default::default() };
    assert_eq!(guest.result(HYPERVISOR_MEMORY_OP, XENMEM_DECREASE_RESERVATION, argument), 1);
    // The hypervisor goes on writing there.
    let info = host.hv.frames.info(mfn);
    assert_eq!((info.owner, info.kind, info.count), (guest.id(), FrameType::Ram, 1));
    let port = guest.domain.log_ring.get().unwrap().port;
    assert_eq!(guest.result(HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_SEND, Send { port: port.raw() }), 0);
}

#[test]
fn what_a_guest_cannot_be_made_of_is_said() {
    let message = |spec, kernel: &[u8]| match build(Host::new(), &spec, kernel) {
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    };
    assert!(message(spec(2 * MIB, 0), &kernel()).contains("0 vCPUs"));
    assert!(message(spec(2 * MIB, 33), &kernel()).contains("33 vCPUs"));
    assert!(message(spec(64 * MIB, 1), &kernel()).contains("not enough free memory"));
    for (spec, kernel) in [(spec(0, 1), kernel()), (spec(MIB, 1), kernel()), (spec(2 * MIB, 1), b"#!/bin/sh".to_vec())]
    {
        assert!(!message(spec, &kernel).is_empty());
    }
}

#[test]
fn ports_exit_for_a_guest_and_those_withheld_for_dom0() {
    let host = Host::new();
    let map = |raw: u16, owns_devices| {
        host.hv.frames.open_account(DomId::new(raw), Limits::NONE).unwrap();
        fill_io_map(host.hv, DomId::new(raw), owns_devices).unwrap()
    };
    let exits = |map: Mfn, port: u64| {
        let frame = map.offset(port / (8 * PAGE_SIZE as u64));
        host.hv.mem.word(frame, to_usize(port / 64) % 512).load(Ordering::Relaxed) >> (port % 64) & 1 != 0
    };
    let all = map(7, false);
    assert!((0..=0xffff).all(|port| exits(all, port)));
    let some = map(8, true);
    for port in [0x20, 0x21, 0x43, 0x61, 0x92, 0xa0, 0xcf, 0xe9, 0x3f8, 0x3ff, 0x4d1] {
        assert!(exits(some, port), "{port:#x}");
    }
    for port in [0x60, 0x64, 0x70, 0x71, 0x80, 0x1f0, 0x2f8, 0x3f7, 0x400, 0xcf8, 0xcfc, 0x8000, 0xc000, 0xffff] {
        assert!(!exits(some, port), "{port:#x}");
    }
    assert!(exits(some, 0x1_0000) && exits(some, 0x1_0001), "an access of several bytes at the end");
}

#[test]
fn a_hypercall_before_long_mode_reaches_flat_memory() {
    let (_, guest) = built();
    guest.cpu(0).state.rip = 0x8000;
    guest.put(arg(0), &Send { port: 4095 });
    guest.load_call(HYPERVISOR_EVENT_CHANNEL_OP, [u64::from(EVTCHNOP_SEND), arg(0), 0]);
    assert_eq!(guest.hypercall_once(), Some(failed(guest_abi::Errno::EINVAL)));
}
