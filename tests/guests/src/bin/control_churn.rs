// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves that domains which run on another CPU are paused, continued and destroyed there, `rounds=` (hexadecimal) of
//! them, four pauses each: a paused one stands still, one that goes on counts on, and nothing of them is left.
//!
//! Needs two CPUs to mean anything. The other domain counts in its memory with interrupts off. A pass cannot tell
//! that every moment of an entry or an exit was hit.
//!
//! Checks: `domctl.h` at 4.17; the hypercall reference.
//! Expects: status 0.
#![no_std]
#![no_main]

use guest_abi::Errno;
use guest_abi::domctl::{XEN_DOMCTL_DESTROYDOMAIN, XEN_DOMCTL_PAUSEDOMAIN, XEN_DOMCTL_UNPAUSEDOMAIN};
use test_guests::control::{copy, create, info, map, physinfo, populate, set_entry, simple, unmap};
use test_guests::paging::{self, PRESENT, WINDOW, WRITABLE};
use test_guests::{check_eq, cpu, events, guest, pair, report, say, time};

guest!(main);

const FRAMES: u64 = 64;
const PAGES: u64 = 16;
const CODE: u64 = 0x8000;
const MARK: u64 = 0x9000;
const PAUSES: u64 = 4;
/// A guest physical address where this guest has nothing, and where it maps the other's page.
const HOLE: u64 = 1 << 32;
const VA: u64 = WINDOW + 0x100_0000;
const LIMIT_MS: u64 = 5000;

/// Counts in memory for ever.
const COUNT: [u8; 8] = [0xff, 0x05, 0x00, 0x90, 0x00, 0x00, 0xeb, 0xf8]; // inc dword [0x9000]; jmp -8

fn main() {
    events::init();
    let rounds = pair::word("rounds").unwrap_or(16);
    paging::map(VA, HOLE, PRESENT | WRITABLE);
    let mut free = 0;
    for round in 0..=rounds {
        // What the first one's page needs of page tables of this domain stays.
        if round == 1 {
            free = settled();
        }
        if let Err(why) = live_and_die() {
            return report::fail("each round", format_args!("{round}: {why}"));
        }
    }
    let is_free = time::spin_until(LIMIT_MS, || physinfo().free_pages == free);
    check_eq("all memory is free again", (is_free, physinfo().free_pages), (true, free));
    say!("{rounds} domains, {} pauses", rounds * PAUSES);
}

/// The free pages when nobody gives any back: the number of a domain is gone a moment before its last page, where the
/// other CPU ends it.
fn settled() -> u64 {
    let mut free = physinfo().free_pages;
    loop {
        let before = free;
        time::spin_until(20, || false);
        free = physinfo().free_pages;
        if free == before {
            return free;
        }
    }
}

fn live_and_die() -> Result<(), &'static str> {
    let domain = create(FRAMES).map_err(|_| "it is not made")?;
    let is_built = populate(domain, 0, PAGES, 0) == PAGES.cast_signed()
        && copy(domain, CODE, &COUNT) == 0
        && set_entry(domain, CODE) == 0;
    demand(is_built, "it is not filled")?;
    demand(map(domain, MARK >> 12, HOLE >> 12) == (0, 0), "its page is not mapped")?;
    let mut seen = count();
    demand(simple(XEN_DOMCTL_UNPAUSEDOMAIN, domain) == 0, "it is not started")?;
    for _ in 0..PAUSES {
        demand(time::spin_until(LIMIT_MS, || count() != seen), "it does not count")?;
        demand(simple(XEN_DOMCTL_PAUSEDOMAIN, domain) == 0, "it is not paused")?;
        seen = count();
        demand((0..200).all(|_| count() == seen), "it counts while it is paused")?;
        demand(simple(XEN_DOMCTL_UNPAUSEDOMAIN, domain) == 0, "it does not go on")?;
    }
    demand(time::spin_until(LIMIT_MS, || count() != seen), "it does not count at last")?;
    demand(simple(XEN_DOMCTL_DESTROYDOMAIN, domain) == 0, "it is not destroyed")?;
    seen = count();
    demand((0..200).all(|_| count() == seen), "it counts when it is dead")?;
    demand(unmap(HOLE >> 12) == 0, "its page is not unmapped")?;
    let gone = Err(Errno::ESRCH.to_rax().cast_signed());
    demand(time::spin_until(LIMIT_MS, || info(domain) == gone), "it does not go away")
}

fn demand(holds: bool, or: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(or) }
}

fn count() -> u64 {
    cpu::read(VA).unwrap_or(0)
}
