// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves that no page of another domain, and none of the hypervisor's, is at any guest address below the end of the
//! machine's RAM: neither to be seen nor to be changed.
//!
//! Two of these run together, each with `mark=`, `other=` and `top=` (the end of the machine's RAM in MiB, in hexadecimal) on
//! its command line. Both fill every word of their free RAM with a pattern of their own. Then one after the other walks all
//! addresses page by page up to the top, reads two words of each page that is not its RAM, and writes one of them. A guest
//! whose guest frame numbers were machine frame numbers by mistake, for one page, would find the other's pattern, the
//! hypervisor's code, or the other would find its own pattern changed.
//!
//! A pass cannot tell about addresses above the top (`memory_isolation` looks there in places), nor about devices' DMA.
//!
//! Checks: the rule on the address space in the interface document.
//! Expects: status 0 of both.
#![no_std]
#![no_main]

use test_guests::pair::{self, Pair};
use test_guests::{boot, check, check_eq, cpu, guest, report, say};

guest!(main);

const PAGE: u64 = 4096;
const WORDS: u64 = 512;

fn main() {
    let (Some(mark), Some(other), Some(top)) = (pair::word("mark"), pair::word("other"), pair::word("top")) else {
        report::fatal(format_args!("mark=, other= or top= is missing"));
    };
    let pages = boot::for_free_pages(|page| {
        (0..WORDS).for_each(|word| store(page + 8 * word, pattern(mark, page, word)));
        true
    });
    say!("{pages} pages filled");
    check("there is free RAM", pages > 100);
    let pair = Pair::meet();
    for leader_walks in [true, false] {
        if pair.leads() == leader_walks {
            walk(other, top << 20);
        }
        pair.step();
        check_eq("every word of own RAM is what it was", changed_pages(mark), 0);
        pair.step();
    }
    pair.finish();
}

/// No two words of a domain are the same, and none is another domain's.
fn pattern(mark: u64, page: u64, word: u64) -> u64 {
    mark ^ page << 16 ^ word
}

fn changed_pages(mark: u64) -> u32 {
    boot::for_free_pages(|page| (0..WORDS).any(|word| load(page + 8 * word) != pattern(mark, page, word)))
}

/// Looks at each page below `top` that the memory map does not mention.
fn walk(other: u64, top: u64) {
    let (mut looked, mut seen, mut wrong) = (0, 0, 0);
    for page in (0..top).step_by(4096) {
        if (0..).map_while(boot::memmap).any(|e| page + PAGE > e.addr && page < e.addr + e.size) {
            continue;
        }
        looked += 1;
        // Another word of each page, so that all places within pages are looked at.
        let word = page / PAGE % WORDS;
        for at in [page, page + 8 * word] {
            let Ok(value) = cpu::read(at) else { continue };
            // A pattern of the other's differs from its mark in the page's number and the word's only.
            seen += u32::from((value ^ other) >> 60 == 0 && value != u64::MAX);
            wrong += u32::from(value != u64::MAX);
        }
        // SAFETY: not RAM: the store has nowhere to go.
        let _ = unsafe { cpu::write(page + 8 * word, !other) };
    }
    say!("{looked} pages outside RAM looked at");
    check("there are pages outside RAM below the top", looked > 1000);
    check_eq("the other's pattern is not to be seen", seen, 0);
    check_eq("nor is anything else", wrong, 0);
}

fn load(address: u64) -> u64 {
    // SAFETY: identity-mapped RAM outside the image.
    unsafe { (address as *const u64).read_volatile() }
}

fn store(address: u64, value: u64) {
    // SAFETY: free RAM by the memory map, behind the image and outside what the loader left.
    unsafe { (address as *mut u64).write_volatile(value) };
}
