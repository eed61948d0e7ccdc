// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves that nothing random stops the machine: hypercalls, ports, MSRs and CPUID leaves by the thousand.
//!
//! `seed=` chooses the sequence, `count=` how many hypercalls (both in hexadecimal). Arguments are drawn
//! from what is likely to reach far: small numbers, own pages, edges of pages and of the address space,
//! and structures of such words. A pass cannot tell that the answers were right.
//!
//! Not called: what ends the guest or makes it sleep. Not written: MSRs that the guest stands on.
//!
//! Checks: nothing but that the machine, and this guest, go on.
//! Expects: status 0.
#![no_std]
#![no_main]

use core::arch::asm;
use core::sync::atomic::Ordering::SeqCst;

use guest_abi::hypercall::{HYPERVISOR_GRANT_TABLE_OP, HYPERVISOR_SCHED_OP};
use guest_abi::num::{low_u8, low_u16, low_u32, to_usize};
use guest_abi::sched::{SCHEDOP_BLOCK, SCHEDOP_POLL, SCHEDOP_SHUTDOWN, SCHEDOP_YIELD};
use test_guests::paging::{self, PRESENT, WRITABLE};
use test_guests::{boot, check, check_eq, cpu, guest, hypercall, pair, say};

guest!(main);

const SELF: u64 = 0x7ff0;
/// What a domain without privileges can get answers from, and how many commands it has.
const ANSWERED: [(u32, u64); 10] =
    [(7, 8), (12, 28), (17, 12), (20, 12), (24, 15), (29, 6), (32, 14), (33, 30), (34, 8), (55, 8)];
const PAGES: u64 = 16;
/// RAM whose frames are named to the hypervisor.
const LOSABLE: u64 = 48 << 20;
/// Free RAM far from the image: structures are here, and arrays that begin there end in zeroes.
const SCRATCH: u64 = 32 << 20;

/// xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled".
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit
    }

    /// A word that some argument could be.
    fn word(&mut self) -> u64 {
        let page = SCRATCH + (self.below(PAGES) << 12);
        match self.below(16) {
            0..=3 => self.below(8),
            4 => self.below(64),
            5 => 0x7ff0 + self.below(16),
            6 | 7 => page + 8 * self.below(512),
            8 => page + 4096 - self.below(64),
            9 | 10 => (LOSABLE >> 12) + self.below(256),
            // Neither address nor frame of this image: bits 8 and 20 are left out.
            11 => 1 << (21 + self.below(43)),
            12 => (1_u64 << self.below(64)).wrapping_neg(),
            13 => u64::MAX - self.below(8),
            14 => self.next(),
            _ => self.half() << 32 | self.half(),
        }
    }

    /// Half a word: a number, a domain id, or both.
    fn half(&mut self) -> u64 {
        match self.below(4) {
            0 => SELF,
            1 => SELF | self.below(8) << 16,
            2 => 1 | self.below(8) << 16,
            _ => self.below(8),
        }
    }

    /// The address of a structure, mostly, whose words it has just filled.
    fn structure(&mut self) -> u64 {
        if self.below(8) == 0 {
            return self.word();
        }
        let address = SCRATCH + 8 * self.below(512 * PAGES);
        for place in 0..6 {
            let value = if self.below(2) == 0 { self.half() | self.half() << 32 } else { self.word() };
            // SAFETY: scratch memory, on which nothing depends, whatever it has become.
            let _ = unsafe { cpu::write(address + 8 * place, value) };
        }
        address
    }
}

fn main() {
    let seed = pair::word("seed").unwrap_or(1).max(1);
    let count = pair::word("count").unwrap_or(0x2000);
    let mut random = Random(seed);
    say!("seed {seed:#x}");
    check("there is RAM to lose", boot::is_ram(SCRATCH) && boot::is_ram(SCRATCH + (16 << 20)));
    unmap_low_memory();
    hypercalls(&mut random, count);
    ports(&mut random, count / 8);
    msrs(&mut random, count / 8);
    (0..count / 8).for_each(|_| {
        let _ = cpu::cpuid(low_u32(random.word()), low_u32(random.word()));
    });
    check("CPUID leaves", true);
}

/// Leaves only the image of the first 2 MiB: an array at a small address would run into it.
fn unmap_low_memory() {
    let directory = paging::slot(paging::slot(cpu::cr3(), 0).load(SeqCst), 0).load(SeqCst);
    let table = paging::new_table();
    (0x100..0x200).for_each(|page| paging::slot(table, page).store(page << 12 | PRESENT | WRITABLE, SeqCst));
    paging::slot(directory, 0).store(table | PRESENT | WRITABLE, SeqCst);
    // SAFETY: the same tables; loading them again forgets the large page.
    unsafe { cpu::set_cr3(cpu::cr3()) };
}

fn hypercalls(random: &mut Random, count: u64) {
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..count {
        let (mut number, commands) = ANSWERED[to_usize(random.below(ANSWERED.len() as u64))];
        let mut command = random.below(commands);
        if random.below(8) == 0 {
            (number, command) = (low_u32(random.word()), random.word());
        }
        let argument = if random.below(4) == 0 { random.below(4) } else { random.structure() };
        let mut args = [command, argument, random.below(4), random.word(), random.word()];
        // A list may be long now and then: it is worked off in parts.
        if random.below(2) == 0 && (number != HYPERVISOR_GRANT_TABLE_OP || random.below(256) == 0) {
            args[2] = random.structure();
        }
        if number == HYPERVISOR_SCHED_OP && [SCHEDOP_BLOCK, SCHEDOP_SHUTDOWN, SCHEDOP_POLL].contains(&low_u32(args[0]))
        {
            args[0] = u64::from(SCHEDOP_YIELD);
        }
        if hypercall::plain(number, args) < 0 { refused += 1 } else { accepted += 1 }
    }
    say!("{accepted} hypercalls did something, {refused} were refused");
    check("some hypercalls are refused and some are not", accepted > 0 && refused > 0);
}

/// One access to a port.
macro_rules! access {
    ($($operands:tt)*) => {
        // SAFETY: no device of a micro-guest can change memory.
        unsafe { asm!($($operands)*, options(nostack)) }
    };
}

/// Reads and writes of ports; the debug port stays this guest's voice.
fn ports(random: &mut Random, count: u64) {
    for _ in 0..count {
        let port = low_u16(random.next());
        if (0xe6..=0xe9).contains(&port) || (0x3f5..=0x3f8).contains(&port) {
            continue;
        }
        let value = low_u32(random.next());
        match low_u8(random.below(6)) {
            0 => access!("in al, dx", in("dx") port, out("al") _),
            1 => access!("in ax, dx", in("dx") port, out("ax") _),
            2 => access!("in eax, dx", in("dx") port, out("eax") _),
            3 => access!("out dx, al", in("dx") port, in("al") low_u8(u64::from(value))),
            4 => access!("out dx, ax", in("dx") port, in("ax") low_u16(u64::from(value))),
            _ => access!("out dx, eax", in("dx") port, in("eax") value),
        }
    }
    check("port accesses", true);
}

fn msrs(random: &mut Random, count: u64) {
    const BASES: [u32; 7] = [0, 0x170, 0x400, 0x480, 0x800, 0xc000_0080, 0xc001_0000];
    for _ in 0..count {
        let base = BASES[to_usize(random.below(7))];
        let msr = base + low_u32(random.below(0x180));
        let _ = cpu::rdmsr(msr);
        // EFER, the FS and GS bases, and the local APIC, which can send this CPU an INIT.
        let is_kept = msr == 0xc000_0080 || (0xc000_0100..=0xc000_0102).contains(&msr) || msr == 0x830;
        if !is_kept && random.below(4) == 0 {
            // SAFETY: the guest uses none of what is left.
            let _ = unsafe { cpu::wrmsr(msr, random.word()) };
        }
    }
    check_eq("MSR accesses", cpu::rdmsr(0x1b).is_ok(), true);
}
