// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves that a domain can read what itself has cost, that the figures count what it does, and that
//! it cannot read what others or the machine cost.
//!
//! A pass cannot tell whether the ticks are right; it shows that they grow.
//!
//! Checks: `guest_abi::isthmus`.
//! Expects: status 0.
#![no_std]
#![no_main]

use guest_abi::hypercall::{HYPERVISOR_ISTHMUS, HYPERVISOR_XEN_VERSION};
use guest_abi::isthmus::{
    COUNTERS_NEXT_DOMAIN, HostInfo, INTERFACE_VERSION, ISTHMUS_HOST_INFO, ISTHMUS_VCPU_COUNTERS, ISTHMUS_VERSION,
    REASON_NAMES, VcpuCounters,
};
use guest_abi::num::low_u32;
use guest_abi::version::XENVER_VERSION;
use guest_abi::{DomId, Errno};
use test_guests::paging::WINDOW;
use test_guests::{check, check_eq, cpu, guest, hypercall};

guest!(main);

/// One more than there are, so that writing too much would show.
const REASONS: usize = REASON_NAMES.len();
const HYPERCALLS: usize = 64;
const CANARY: u64 = 0x1357_9bdf_0246_8ace;

struct Read {
    exits: [u64; REASONS + 1],
    ticks: [u64; REASONS + 1],
    hypercalls: [u64; HYPERCALLS + 1],
}

fn error(errno: Errno) -> i64 {
    errno.to_rax().cast_signed()
}

fn ask(argument: &mut VcpuCounters) -> i64 {
    hypercall::op(HYPERVISOR_ISTHMUS, ISTHMUS_VCPU_COUNTERS, argument)
}

fn request(read: &mut Read) -> VcpuCounters {
    VcpuCounters {
        interface_version: INTERFACE_VERSION,
        domid: DomId::SELF.raw(),
        nr_reasons: low_u32(REASONS as u64),
        nr_hypercalls: low_u32(HYPERCALLS as u64),
        exits: (&raw mut read.exits).addr() as u64,
        ticks: (&raw mut read.ticks).addr() as u64,
        hypercalls: (&raw mut read.hypercalls).addr() as u64,
        ..Default::default()
    }
}

fn read() -> Read {
    let mut read =
        Read { exits: [CANARY; REASONS + 1], ticks: [CANARY; REASONS + 1], hypercalls: [CANARY; HYPERCALLS + 1] };
    let mut argument = request(&mut read);
    check_eq("own counters can be read", ask(&mut argument), 0);
    core::hint::black_box(&mut read);
    read
}

fn main() {
    let version = hypercall::plain(HYPERVISOR_ISTHMUS, [u64::from(ISTHMUS_VERSION), 0, 0, 0, 0]);
    check_eq("the interface has its version", version, i64::from(INTERFACE_VERSION));
    let unknown = hypercall::plain(HYPERVISOR_ISTHMUS, [0x77, 0, 0, 0, 0]);
    check_eq("an unknown operation", unknown, error(Errno::ENOSYS));
    figures();
    refusals();
}

fn figures() {
    let before = read();
    for _ in 0..7 {
        hypercall::plain(HYPERVISOR_XEN_VERSION, [u64::from(XENVER_VERSION), 0, 0, 0, 0]);
    }
    for _ in 0..5 {
        let _ = cpu::cpuid(0, 0);
    }
    let after = read();
    let version = HYPERVISOR_XEN_VERSION as usize;
    check_eq("hypercalls are counted by number", after.hypercalls[version] - before.hypercalls[version], 7);
    let own = HYPERVISOR_ISTHMUS as usize;
    check_eq("this one too", after.hypercalls[own] - before.hypercalls[own], 1);
    let place = |name| REASON_NAMES.iter().position(|reason| *reason == name).unwrap_or(0);
    let (hypercalls, cpuids) = (place("hypercall"), place("cpuid"));
    check_eq("exits are counted by reason: hypercalls", after.exits[hypercalls] - before.exits[hypercalls], 8);
    check_eq("exits are counted by reason: CPUID", after.exits[cpuids] - before.exits[cpuids], 5);
    check("ticks grow with them", after.ticks[cpuids] > before.ticks[cpuids]);
    check("nothing is written behind the room", after.exits[REASONS] == CANARY && after.ticks[REASONS] == CANARY);
    check_eq("nor behind the hypercalls", after.hypercalls[HYPERCALLS], CANARY);

    let mut read = Read { exits: [CANARY; REASONS + 1], ticks: [0; REASONS + 1], hypercalls: [0; HYPERCALLS + 1] };
    let mut argument = VcpuCounters { nr_reasons: 2, nr_hypercalls: 0, ..request(&mut read) };
    check_eq("less room is enough", ask(&mut argument), 0);
    core::hint::black_box(&mut read);
    check("only the room is written", read.exits[1] != CANARY && read.exits[2] == CANARY);
    check_eq("the answer says how many there are", argument.nr_reasons, low_u32(REASONS as u64));
    check_eq("and of hypercalls", argument.nr_hypercalls, low_u32(HYPERCALLS as u64));
    check("the answer names the domain", argument.domid != DomId::SELF.raw());
    check_eq("which has one vCPU", argument.nr_vcpus, 1);
}

fn refusals() {
    let mut room = Read { exits: [0; REASONS + 1], ticks: [0; REASONS + 1], hypercalls: [0; HYPERCALLS + 1] };
    let good = request(&mut room);
    let with = |change: fn(&mut VcpuCounters)| {
        let mut argument = good;
        change(&mut argument);
        ask(&mut argument)
    };
    check_eq("another version", with(|a| a.interface_version += 1), error(Errno::EACCES));
    check_eq("a vCPU that is not there", with(|a| a.vcpu = 1), error(Errno::ENOENT));
    check_eq("a domain that may be there", with(|a| a.domid = 0), error(Errno::EPERM));
    check_eq("a domain that cannot be there", with(|a| a.domid = 0x7000), error(Errno::EPERM));
    check_eq("the next domain", with(|a| a.flags = COUNTERS_NEXT_DOMAIN), error(Errno::EPERM));
    check_eq("a buffer that is not mapped", with(|a| a.ticks = WINDOW + 0x100_0000), error(Errno::EFAULT));
    check_eq("a buffer at the end of all", with(|a| a.exits = u64::MAX - 3), error(Errno::EFAULT));
    core::hint::black_box(&mut room);
    let mut host = HostInfo { interface_version: INTERFACE_VERSION, ..Default::default() };
    let asked = hypercall::op(HYPERVISOR_ISTHMUS, ISTHMUS_HOST_INFO, &mut host);
    check_eq("the machine is not a guest's to know", asked, error(Errno::EPERM));
    host.interface_version = 0;
    let asked = hypercall::op(HYPERVISOR_ISTHMUS, ISTHMUS_HOST_INFO, &mut host);
    check_eq("the machine in another version", asked, error(Errno::EACCES));
}
