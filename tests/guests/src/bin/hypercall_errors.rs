// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves that a wrong hypercall gets the error that the interface defines, and does nothing.
//!
//! A pass cannot tell what values inside a structure do; `guestmem_hostile` and the guests for each
//! call show those.
//!
//! Checks: `xen.h` and `errno.h` at 4.17; the ground rules of the interface document.
//! Expects: status 0.
#![no_std]
#![no_main]

use guest_abi::Errno;
use guest_abi::event_channel::{EVTCHNOP_SEND, EVTCHNOP_STATUS};
use guest_abi::hypercall::{
    HYPERVISOR_EVENT_CHANNEL_OP, HYPERVISOR_GRANT_TABLE_OP, HYPERVISOR_HVM_OP, HYPERVISOR_MEMORY_OP,
    HYPERVISOR_SCHED_OP, HYPERVISOR_VCPU_OP, HYPERVISOR_XEN_VERSION,
};
use guest_abi::version::{XENVER_GET_FEATURES, XENVER_VERSION};
use test_guests::paging::{self, PRESENT, USER, WINDOW, WRITABLE};
use test_guests::shared::Shared;
use test_guests::{boot, check, check_eq, guest, hypercall, report, traps};

static PAGE: Shared<[u64; 512]> = Shared::new([0; 512]);
const RO: u64 = WINDOW + 0x10_0000;
const RW: u64 = WINDOW + 0x20_0000;
const UNMAPPED: u64 = RW + 0x1000;
const CODE: u64 = WINDOW + 0x30_0000;

guest!(main);

fn error(errno: Errno) -> i64 {
    errno.to_rax().cast_signed()
}

fn main() {
    numbers();
    commands();
    pointers();
    domains();
    ring_3();
    let version = hypercall::plain(HYPERVISOR_XEN_VERSION, [u64::from(XENVER_VERSION), 0, 0, 0, 0]);
    check_eq("a right call still works", version, 4 << 16 | 17);
}

fn each(name: &str, numbers: &[u64], call: impl Fn(u64) -> i64, is_right: impl Fn(i64) -> bool) {
    match numbers.iter().map(|n| (*n, call(*n))).find(|(_, result)| !is_right(*result)) {
        Some((n, result)) => report::fail(name, format_args!("{n:#x} gives {result}")),
        None => check(name, true),
    }
}

fn numbers() {
    // SAFETY: the calls do not exist.
    let call = |number| unsafe { hypercall::raw(number, [0; 5]) };
    let enosys = |result| result == error(Errno::ENOSYS);
    each("numbers that are not there", &[11, 43, 47, 57, 63, 64, 1000, 0x7fff_ffff, 0xffff_ffff], call, enosys);
    // mmu_update, set_gdt, update_descriptor, update_va_mapping, iret, set_segment_base.
    each("numbers for PV guests only", &[1, 2, 10, 14, 23, 25], call, enosys);
}

fn commands() {
    for (name, number) in [
        ("an event-channel command that is not there", HYPERVISOR_EVENT_CHANNEL_OP),
        ("a memory command that is not there", HYPERVISOR_MEMORY_OP),
        ("a vCPU command that is not there", HYPERVISOR_VCPU_OP),
        ("a scheduler command that is not there", HYPERVISOR_SCHED_OP),
        ("an HVM command that is not there", HYPERVISOR_HVM_OP),
        ("a version command that is not there", HYPERVISOR_XEN_VERSION),
        ("a grant command that is not there", HYPERVISOR_GRANT_TABLE_OP),
    ] {
        // For grants the third argument is a count; memory keeps progress above bit 6.
        let command = if number == HYPERVISOR_MEMORY_OP { 60 } else { 99 };
        let args = [command, if number == HYPERVISOR_VCPU_OP { 0 } else { PAGE.address() }, 1, 0, 0];
        check_eq(name, hypercall::plain(number, args), error(Errno::ENOSYS));
    }
}

/// Zeroes the page except for its first word.
fn fill_page(first: u64) {
    let mut words = [0; 512];
    words[0] = first;
    // SAFETY: the page is ours, and the hypervisor uses it only inside a call.
    unsafe { PAGE.get().write_volatile(words) };
}

fn status_at(address: u64) -> i64 {
    hypercall::plain(HYPERVISOR_EVENT_CHANNEL_OP, [u64::from(EVTCHNOP_STATUS), address, 0, 0, 0])
}

fn features_at(address: u64) -> i64 {
    fill_page(0);
    hypercall::plain(HYPERVISOR_XEN_VERSION, [u64::from(XENVER_GET_FEATURES), address, 0, 0, 0])
}

fn pointers() {
    let efault = |result| result == error(Errno::EFAULT);
    paging::map(RW, PAGE.address(), PRESENT | WRITABLE);
    paging::map(RO, PAGE.address(), PRESENT);
    let _ = paging::entry(UNMAPPED, 1);
    check_eq("a mapped page", features_at(RW), 0);
    check_eq(
        "two pages",
        {
            paging::map(UNMAPPED, PAGE.address(), PRESENT | WRITABLE);
            features_at(UNMAPPED - 4)
        },
        0,
    );
    paging::map(UNMAPPED, 0, 0);
    let hole = (1..4095).map(|mib| mib << 20).find(|a| *a >= boot::ram_end() + (1 << 20) && !boot::is_ram(*a));
    let bad = [
        UNMAPPED,
        UNMAPPED - 4,
        UNMAPPED - 1,
        1 << 47,
        (1 << 47) - 4,
        0xffff_7fff_ffff_fffc,
        u64::MAX,
        u64::MAX - 3,
        u64::MAX - 7,
        // Xen 4.17 does not see that this one is not canonical: EINVAL.
        1 << 63,
        hole.unwrap_or(UNMAPPED),
    ];
    each("pointers that lead nowhere are EFAULT", &bad, features_at, efault);
    each("a result for a read-only page is EFAULT", &[RO, RO + 8], features_at, efault);
    let call = |a| hypercall::plain(HYPERVISOR_EVENT_CHANNEL_OP, [u64::from(EVTCHNOP_SEND), a, 0, 0, 0]);
    check_eq("an argument in a read-only page is read", call(RO), error(Errno::EINVAL));
    check("a structure half in an unmapped page is EFAULT", efault(status_at(UNMAPPED - 16)));
    paging::map(RW, PAGE.address(), PRESENT | WRITABLE | USER);
    check_eq("a user page is usable", features_at(RW), 0);
}

fn domains() {
    for (name, domain) in [("a domain that is not there", 0x7000u64), ("DOMID_INVALID", 0x7ff4), ("DOMID_XEN", 0x7ff2)]
    {
        fill_page(domain | 1 << 32);
        let status =
            hypercall::plain(HYPERVISOR_EVENT_CHANNEL_OP, [u64::from(EVTCHNOP_STATUS), PAGE.address(), 0, 0, 0]);
        check(name, status == error(Errno::ESRCH) || status == error(Errno::EPERM));
    }
}

fn ring_3() {
    let code: [u8; 8] = if hypercall::is_amd() {
        [0x0f, 0x01, 0xd9, 0x0f, 0x0b, 0, 0, 0]
    } else {
        [0x0f, 0x01, 0xc1, 0x0f, 0x0b, 0, 0, 0]
    };
    fill_page(u64::from_le_bytes(code));
    paging::map(CODE, PAGE.address(), PRESENT | USER);
    let fault = traps::run_user(CODE, u64::from(HYPERVISOR_XEN_VERSION));
    check_eq(
        "user code runs until its ud2",
        fault.map(|f| (f.vector, f.cs & 3, f.rip)),
        Some((traps::UD, 3, CODE + 3)),
    );
    check_eq("a hypercall from ring 3 is EPERM", fault.map(|f| f.rax.cast_signed()), Some(error(Errno::EPERM)));
}
