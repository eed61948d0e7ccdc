// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves that a guest reaches its own RAM and nothing else, wherever it looks.
//!
//! It marks its free RAM, then reads (and in places writes) guest physical addresses that are not
//! its RAM, up to the width of addresses and beyond the first 4 GiB. Each access has to give all ones or
//! a fault, must not change its own RAM, and must not stop it. A pass cannot tell that another
//! domain's memory kept its contents; `two_domains` shows that. Page tables that lie outside RAM end a guest:
//! see `tables_outside_ram`.
//!
//! Not compared with Xen 4.17: there a micro-guest is the control domain, which reaches devices.
//!
//! Checks: the rule on the address space in the interface document; Intel SDM vol. 3A, paging.
//! Expects: status 0.
#![no_std]
#![no_main]

use test_guests::paging::{self, PRESENT, WINDOW, WRITABLE};
use test_guests::{boot, check, check_eq, cpu, guest, say};

guest!(main);

const VA: u64 = WINDOW + 0x7654_3000;
const MARK: u64 = 0x6973_7468_6d75_7321;

fn main() {
    let pages = boot::for_free_pages(|page| {
        // SAFETY: free RAM by the memory map, behind the image and outside what the loader left.
        let _ = unsafe { cpu::write(page, MARK ^ page) };
        true
    });
    say!("{pages} pages marked");
    check("there is free RAM", pages > 100);
    check("RAM keeps what is written", own_pages_hold());
    below_4_gib();
    above_4_gib();
    check("own RAM has not changed", own_pages_hold());
}

fn own_pages_hold() -> bool {
    let wrong = boot::for_free_pages(|page| cpu::read(page) != Ok(MARK ^ page));
    wrong == 0
}

/// Whether an access outside RAM ended as it should: all ones, or a fault.
fn is_nothing(result: Result<u64, test_guests::traps::Fault>) -> bool {
    result.map_or(true, |value| value == u64::MAX)
}

fn below_4_gib() {
    let (mut looked, mut wrong) = (0, 0);
    for mib in (0..4096).filter(|mib| !boot::is_ram(mib << 20)) {
        let address = mib << 20;
        // What is not RAM may be a table that the map declares: those are the guest's to read.
        let declared = (0..).map_while(boot::memmap).any(|e| address + 8 > e.addr && address < e.addr + e.size);
        if declared {
            continue;
        }
        for offset in [0, 0xff8, 0x8_0000] {
            let result = cpu::read(address + offset);
            looked += 1;
            if !is_nothing(result) {
                wrong += 1;
                if wrong < 10 {
                    say!("read {:#x}: {result:x?}", address + offset);
                }
            }
        }
        // SAFETY: not RAM: the store has nowhere to go.
        let _ = unsafe { cpu::write(address + 0x10, !MARK) };
        wrong += u32::from(!is_nothing(cpu::read(address + 0x10)));
    }
    say!("{looked} addresses looked at below 4 GiB");
    check("there are addresses outside RAM", looked > 0);
    check_eq("outside RAM below 4 GiB there is nothing", wrong, 0);
}

fn above_4_gib() {
    let width = cpu::cpuid(0x8000_0008, 0).eax & 0xff;
    let mut wrong = 0;
    for bit in 32..width {
        for address in [1 << bit, (1 << bit) + 0x7654_3000, (1u64 << bit) * 2 - 4096] {
            if (0..).map_while(boot::memmap).any(|e| address >= e.addr && address < e.addr + e.size) {
                continue;
            }
            paging::map(VA, address, PRESENT | WRITABLE);
            let result = cpu::read(VA);
            // SAFETY: not RAM: the store has nowhere to go.
            let _ = unsafe { cpu::write(VA + 8, !MARK) };
            if !is_nothing(result) || !is_nothing(cpu::read(VA + 8)) {
                wrong += 1;
                say!("read {address:#x}: {result:x?}");
            }
        }
    }
    check_eq("above 4 GiB there is nothing", wrong, 0);
}
