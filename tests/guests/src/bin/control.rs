// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves that a control domain makes, fills, runs, pauses, maps and ends another domain, and that a
//! hundred of them leave the machine's free memory as it was.
//!
//! The other domain is some 30 bytes of 32-bit code. A pass cannot tell how a kernel likes what it is given
//! to boot with.
//!
//! Checks: `domctl.h`, `sysctl.h` and `memory.h` at 4.17; the hypercall reference.
//! Expects: status 0.
#![no_std]
#![no_main]

use guest_abi::Errno;
use guest_abi::domctl as d;
use guest_abi::event_channel::VIRQ_DOM_EXC;
use guest_abi::num::to_usize;
use test_guests::control::{console, copy, create, info, map, physinfo, populate, set_entry, simple, unmap};
use test_guests::paging::{self, PRESENT, WINDOW, WRITABLE};
use test_guests::{check, check_eq, cpu, events, guest, report, sched};

/// Frames that the domain may hold: a few pages and a block of 2 MiB.
const FRAMES: u64 = 1024;
/// Where its code and what it writes go.
const CODE: u64 = 0x8000;
const MARK: u64 = 0x9000;
/// A guest physical address where this guest has nothing, and where it maps it.
const HOLE: u64 = 1 << 32;
const VA: u64 = WINDOW + 0x100_0000;

/// Writes a mark, prints `h` to port 0xE9 and `i` and a line feed to COM1, and powers off by halting with
/// interrupts off.
const HELLO: [u8; 27] = [
    0xc7, 0x05, 0x00, 0x90, 0x00, 0x00, 0x34, 0x12, 0xaa, 0x55, // mov dword [0x9000], 0x55aa1234
    0xb0, b'h', 0xe6, 0xe9, // mov al, 'h'; out 0xe9, al
    0x66, 0xba, 0xf8, 0x03, 0xb0, b'i', 0xee, // mov dx, 0x3f8; mov al, 'i'; out dx, al
    0xb0, b'\n', 0xee, // mov al, '\n'; out dx, al
    0xfa, 0xf4, 0x90, // cli; hlt; nop
];
/// Counts in memory for ever.
const COUNT: [u8; 8] = [0xff, 0x05, 0x00, 0x90, 0x00, 0x00, 0xeb, 0xf8]; // inc dword [0x9000]; jmp -8

guest!(main);

fn error(errno: Errno) -> i64 {
    errno.to_rax().cast_signed()
}

fn main() {
    events::init();
    hello();
    pausing();
    a_hundred();
}

/// A domain with `code` in it, ready to be unpaused.
fn build(code: &[u8]) -> Result<u16, i64> {
    let domain = create(FRAMES)?;
    let steps = [
        populate(domain, 0, 16, 0) - 16,
        populate(domain, 512, 1, 9) - 1,
        copy(domain, CODE, code),
        copy(domain, 3 << 20, &[7; 5000]),
        set_entry(domain, CODE),
    ];
    match steps.iter().find(|result| **result != 0) {
        Some(error) => Err(*error),
        None => Ok(domain),
    }
}

fn hello() {
    let virq = events::bind_virq(VIRQ_DOM_EXC, 0);
    check("news of domains is bound", virq.is_ok());
    let port = virq.unwrap_or(0);
    let domain = match build(&HELLO) {
        Ok(domain) => domain,
        Err(error) => return report::fail("a domain is made", format_args!("{error}")),
    };
    let made = info(domain).unwrap_or_default();
    check_eq("it holds what it was given", made.tot_pages, 16 + 512);
    check("it is paused", made.flags & d::XEN_DOMINF_PAUSED != 0);
    check_eq("its page is mapped", map(domain, MARK >> 12, HOLE >> 12), (0, 0));
    check_eq("and a hole of it is not", map(domain, 300, (HOLE >> 12) + 1), (0, -(Errno::EINVAL as i32)));
    paging::map(VA, HOLE, PRESENT | WRITABLE);
    check_eq("it is fresh", cpu::read(VA), Ok(0));
    check_eq("it is started", simple(d::XEN_DOMCTL_UNPAUSEDOMAIN, domain), 0);
    let has_ended = || info(domain).is_ok_and(|info| info.flags & d::XEN_DOMINF_SHUTDOWN != 0);
    check("it runs and powers off", sched::wait_until(5000, has_ended));
    let flags = info(domain).unwrap_or_default().flags;
    check_eq("with that reason", flags >> d::XEN_DOMINF_SHUTDOWNSHIFT & d::XEN_DOMINF_SHUTDOWNMASK, 0);
    check("which is news", sched::wait_until(1000, || events::is_pending(port)));
    events::clear_pending(port);
    check_eq("what it wrote is seen", cpu::read(VA), Ok(0x55aa_1234));
    let mut text = [0; 16];
    let len = console(domain, &mut text).unwrap_or(0);
    check_eq("what it said is kept", &text[..to_usize(u64::from(len)).min(16)], b"hi\n");
    check_eq("it is destroyed", simple(d::XEN_DOMCTL_DESTROYDOMAIN, domain), 0);
    let dying = info(domain).unwrap_or_default();
    check_eq("one page of it is left", (dying.flags & d::XEN_DOMINF_DYING, dying.tot_pages), (1, 1));
    check_eq("with its contents", cpu::read(VA), Ok(0x55aa_1234));
    check_eq("which is unmapped", unmap(HOLE >> 12), 0);
    check("and then it is gone", sched::wait_until(1000, || info(domain) == Err(error(Errno::ESRCH))));
    check("its end is news", sched::wait_until(1000, || events::is_pending(port)));
    check("the place is a hole", cpu::read(VA).map_or(true, |value| value == u64::MAX));
}

fn pausing() {
    let domain = match build(&COUNT) {
        Ok(domain) => domain,
        Err(error) => return report::fail("a second domain is made", format_args!("{error}")),
    };
    let _ = map(domain, MARK >> 12, HOLE >> 12);
    let count = || cpu::read(VA).unwrap_or(0);
    check_eq("it runs", simple(d::XEN_DOMCTL_UNPAUSEDOMAIN, domain), 0);
    check("and counts", sched::wait_until(5000, || count() > 1000));
    check_eq("it is paused", simple(d::XEN_DOMCTL_PAUSEDOMAIN, domain), 0);
    let (before, ran) = (count(), info(domain).map_or(0, |info| info.cpu_time));
    sched::wait_until(30, || false);
    check_eq("and stands still", (count(), info(domain).map_or(1, |info| info.cpu_time)), (before, ran));
    check("it has used time", ran > 0);
    check_eq("it goes on", simple(d::XEN_DOMCTL_UNPAUSEDOMAIN, domain), 0);
    check("and counts on", sched::wait_until(5000, || count() > before + 1000));
    check_eq("it is destroyed while it runs", simple(d::XEN_DOMCTL_DESTROYDOMAIN, domain), 0);
    let before = count();
    sched::wait_until(30, || false);
    check_eq("and has stopped", count(), before);
    let _ = unmap(HOLE >> 12);
    check("and is gone", sched::wait_until(1000, || info(domain) == Err(error(Errno::ESRCH))));
}

fn a_hundred() {
    let free = physinfo().free_pages;
    check("the machine has free memory", free > 0);
    for round in 0..100 {
        let begun = cpu::tsc();
        let ended = build(&HELLO).and_then(|domain| match simple(d::XEN_DOMCTL_DESTROYDOMAIN, domain) {
            0 => Ok(()),
            error => Err(error),
        });
        let left = physinfo().free_pages;
        if ended.is_err() || left != free {
            return report::fail("each round", format_args!("{round}: {ended:?}, {left} of {free} free"));
        }
        if round == 99 {
            test_guests::say!("INFO a domain is made and ended in {} ticks", cpu::tsc() - begun);
        }
    }
    check("a hundred domains leave nothing behind", true);
}
