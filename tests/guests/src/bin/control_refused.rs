// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves that a domain without the right to control others gets EPERM for everything that concerns them,
//! whatever it sends, and that nothing happens to it.
//!
//! A pass cannot tell what a domain with the right gets wrong; the hypervisor's own tests show that.
//!
//! Checks: the hypercall reference.
//! Expects: status 0.
#![no_std]
#![no_main]

use guest_abi::Errno;
use guest_abi::event_channel::{VIRQ_CON_RING, VIRQ_DOM_EXC};
use guest_abi::hypercall::{HYPERVISOR_DOMCTL, HYPERVISOR_SYSCTL};
use test_guests::control::{console, copy, create, domctl_of, info, map, populate, simple, sysctl};
use test_guests::grants::own_id;
use test_guests::{check_eq, events, guest, hypercall, report};

const EPERM: i64 = Errno::EPERM.to_rax().cast_signed();

guest!(main);

/// Whether every one of `results` is EPERM.
fn all(name: &str, results: impl IntoIterator<Item = i64>) {
    match results.into_iter().enumerate().find(|(_, result)| *result != EPERM) {
        Some((i, result)) => report::fail(name, format_args!("number {i} gives {result}")),
        None => report::check(name, true),
    }
}

fn main() {
    let me = own_id();
    let others = [0, 1, 2, 3, 63, 64, 0x7fef, 0x7ff1, 0x7ff2, u16::MAX];
    all("each domctl", (0..100).map(|cmd| simple(cmd, me)));
    all("of each version", (0..40).map(|version| domctl_of(version, 1, &mut 0, &mut 0_u64)));
    all("each sysctl", (0..40).map(|cmd| sysctl(cmd, 0x15)));
    let wild = [0, 1, 0xdead_beef, 1 << 47, u64::MAX];
    let pointers = |number| wild.map(|at| hypercall::plain(number, [at, 0, 0, 0, 0]));
    all("domctl with any pointer", pointers(HYPERVISOR_DOMCTL));
    all("sysctl with any pointer", pointers(HYPERVISOR_SYSCTL));
    check_eq("making a domain", create(1), Err(EPERM));
    check_eq("asking about oneself", info(me).map(|_| ()), Err(EPERM));
    let others = || others.into_iter().filter(|id| *id != me);
    all("filling another's holes", others().map(|id| populate(id, 5000, 1, 0)));
    all("mapping another's pages", others().map(|id| map(id, 0, 1 << 20).0));
    all("writing another's memory", others().map(|id| copy(id, 0, &[1; 8])));
    all("reading another's console", others().map(|id| console(id, &mut [0; 8]).map_or_else(|error| error, i64::from)));
    let ebusy = Err(Errno::EBUSY.to_rax().cast_signed());
    check_eq("news of domains", events::bind_virq(VIRQ_DOM_EXC, 0), ebusy);
    check_eq("news of consoles", events::bind_virq(VIRQ_CON_RING, 0), ebusy);
}
