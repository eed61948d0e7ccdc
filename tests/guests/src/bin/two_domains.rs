// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves that two domains on one machine never see each other's memory.
//!
//! Two of these run together, each with `mark=` and `other=` on its command line. Fresh RAM has to be
//! zero. Then both fill all their free RAM with their marks, several times, in step, and look at all
//! of it and at addresses outside it for anything that is not their own. A pass cannot tell what
//! devices reach, nor what is left behind by a domain that has ended.
//!
//! Checks: the rule on the address space in the interface document.
//! Expects: status 0 of both.
#![no_std]
#![no_main]

use test_guests::pair::{self, Pair};
use test_guests::{boot, check_eq, cpu, guest, report, say};

guest!(main);

const ROUNDS: u64 = 3;
const WORDS: u64 = 512;

fn main() {
    let (Some(mark), Some(other)) = (pair::word("mark"), pair::word("other")) else {
        report::fatal(format_args!("mark= and other= are missing"));
    };
    let dirty = boot::for_free_pages(|page| (0..WORDS).any(|word| load(page + 8 * word) != 0));
    check_eq("no fresh page has anything in it", dirty, 0);
    let pair = Pair::meet();
    for round in 0..ROUNDS {
        let own = mark + (round << 48);
        let pages = boot::for_free_pages(|page| {
            store(page, own);
            store(page + 4088, own ^ page);
            true
        });
        say!("{pages} pages marked {own:#x}");
        pair.step();
        let wrong = boot::for_free_pages(|page| load(page) != own || load(page + 4088) != own ^ page);
        check_eq("all RAM has this domain's mark and nothing else", (wrong, pages > 100), (0, true));
        check_eq("outside RAM nobody's mark is to be seen", marks_outside(other + (round << 48)), 0);
        pair.step();
    }
    pair.finish();
}

/// Looks at places outside RAM, writes there, and counts those that show a mark.
fn marks_outside(other: u64) -> usize {
    let outside = (0..4096).step_by(5).map(|mib| mib << 20).filter(|address| {
        !(0..).map_while(boot::memmap).any(|e| address + (1 << 20) > e.addr && *address < e.addr + e.size)
    });
    outside
        .filter(|address| {
            let seen = [cpu::read(*address), cpu::read(address + 4088)];
            // SAFETY: not RAM: the store has nowhere to go.
            let _ = unsafe { cpu::write(*address, !other) };
            seen.into_iter().flatten().any(|value| value != u64::MAX)
        })
        .count()
}

fn load(address: u64) -> u64 {
    // SAFETY: identity-mapped RAM outside the image.
    unsafe { (address as *const u64).read_volatile() }
}

fn store(address: u64, value: u64) {
    // SAFETY: free RAM by the memory map, behind the image and outside what the loader left.
    unsafe { (address as *mut u64).write_volatile(value) };
}
