// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves that string port I/O moves what it should, in batches, in both directions, and faults where it should.
//!
//! A pass cannot tell anything about ports of real devices, nor about address-size and segment prefixes.
//!
//! Checks: Intel SDM vol. 2, INS/INSB/INSW/INSD and OUTS/OUTSB/OUTSW/OUTSD.
//! Expects: status 0.
#![no_std]
#![no_main]

use core::arch::asm;

use guest_abi::console_io::DEBUG_PORT;
use test_guests::paging::{self, PRESENT, USER, WINDOW, WRITABLE};
use test_guests::shared::Shared;
use test_guests::{check_eq, guest, traps};

guest!(main);

/// A port that nobody answers at.
const NOBODY: u16 = 0x2e0;
const VA: u64 = WINDOW + 0x20_0000;
static BUFFER: Shared<[u8; 8192]> = Shared::new([0; 8192]);
static CODE: Shared<[u8; 4096]> = Shared::new([0; 4096]);

/// One string instruction; address and count behind it.
macro_rules! string {
    ($name:ident, $instruction:literal, $register:tt) => {
        fn $name(port: u16, mut address: u64, mut count: u64) -> (u64, u64) {
            // SAFETY: memory is the buffer's, or not mapped and the fault is caught; DF ends clear.
            unsafe {
                asm!($instruction, "cld", in("dx") port, inout($register) address, inout("rcx") count, options(nostack))
            };
            (address, count)
        }
    };
}
string!(outs, "rep outsb", "rsi");
string!(outs_once, "outsb", "rsi");
string!(outs_backwards, "std; rep outsb", "rsi");
string!(outs_words, "rep outsw", "rsi");
string!(ins, "rep insb", "rdi");
string!(ins_words, "rep insw", "rdi");
string!(ins_doubles, "rep insd", "rdi");
string!(ins_backwards, "std; rep insb", "rdi");

fn main() {
    output();
    input();
    faults();
    user_mode();
}

fn fill(text: &[u8]) -> u64 {
    for (i, byte) in text.iter().enumerate() {
        BUFFER.put(i, *byte);
    }
    BUFFER.address()
}

fn byte(offset: usize) -> u8 {
    BUFFER.byte(offset)
}

fn output() {
    let line = b"PASS one of fourteen long lines by one REP OUTSB\n";
    let length = line.len() * 14;
    for copy in 0..14 {
        let start = line.len() * copy;
        line.iter().enumerate().for_each(|(i, byte)| BUFFER.put(start + i, *byte));
    }
    let buffer = BUFFER.address();
    check_eq("it ends behind its last byte", outs(DEBUG_PORT, buffer, length as u64), (buffer + length as u64, 0));
    check_eq("a count of 0 moves nothing", outs(DEBUG_PORT, 1 << 63, 0), (1 << 63, 0));
    let text = fill(b"\nsdrawkcab SSAP");
    check_eq("backwards it ends before its first byte", outs_backwards(DEBUG_PORT, text + 14, 15), (text - 1, 0));
    let text = fill(b"PASS byte by byte\n");
    let end = (0..18).fold(text, |at, _| outs_once(DEBUG_PORT, at, 77).0);
    check_eq("without REP one byte moves and RCX stays", (end, outs_once(NOBODY, text, 77).1), (text + 18, 77));
    check_eq("words move two bytes each", outs_words(NOBODY, text, 9), (text + 18, 0));
}

fn input() {
    let buffer = fill(&[0x11; 1024]);
    check_eq("INSB", ins(NOBODY, buffer + 1, 700), (buffer + 701, 0));
    let edges = [byte(0), byte(1), byte(350), byte(700), byte(701)];
    check_eq("reads all ones where nobody answers", edges, [0x11, 0xff, 0xff, 0xff, 0x11]);
    fill(&[0x22; 1024]);
    check_eq("INSW", ins_words(NOBODY, buffer, 200), (buffer + 400, 0));
    check_eq("fills two bytes each", (byte(399), byte(400)), (0xff, 0x22));
    check_eq("INSD", ins_doubles(NOBODY, buffer + 500, 100), (buffer + 900, 0));
    check_eq("fills four bytes each", (byte(499), byte(500), byte(899), byte(900)), (0x22, 0xff, 0xff, 0x22));
    fill(&[0x33; 64]);
    check_eq("INSB backwards", ins_backwards(NOBODY, buffer + 40, 8), (buffer + 32, 0));
    check_eq("fills downwards", (byte(32), byte(33), byte(40), byte(41)), (0x33, 0xff, 0xff, 0x33));
}

fn faults() {
    let text = fill(&[b'\n'; 4096]);
    paging::map(VA, text, PRESENT | WRITABLE);
    paging::map(VA + 0x1000, text, 0);
    let fault = |f: &mut dyn FnMut()| traps::catch(f).map(|f| (f.vector, f.error, f.cr2));
    let out = fault(&mut || _ = outs(DEBUG_PORT, VA + 4000, 200));
    check_eq("OUTS into a page that is not there raises #PF(0) at it", out, Some((traps::PF, 0, VA + 0x1000)));
    let input = fault(&mut || _ = ins(NOBODY, VA + 4000, 200));
    check_eq("INS raises #PF(W)", input, Some((traps::PF, 2, VA + 0x1000)));
    check_eq("what came before it was done", (byte(3999), byte(4000), byte(4095)), (b'\n', 0xff, 0xff));
    let split = fault(&mut || _ = ins_doubles(NOBODY, VA + 4094, 1));
    check_eq("an element across two pages faults at the second", split, Some((traps::PF, 2, VA + 0x1000)));
    paging::map(VA, text, PRESENT);
    let read_only = fault(&mut || _ = ins(NOBODY, VA + 8, 1));
    check_eq("INS to a read-only page raises #PF(P, W)", read_only, Some((traps::PF, 3, VA + 8)));
    let wild = fault(&mut || _ = outs(DEBUG_PORT, 1 << 47, 1)).map(|f| (f.0, f.1));
    check_eq("OUTS from a non-canonical address raises #GP(0)", wild, Some((traps::GP, 0)));
    let beyond = outs(NOBODY, 0xf000_0000, 4);
    check_eq("OUTS from where no memory is goes on", beyond, (0xf000_0004, 0));
}

/// User code at I/O privilege 0. The CPU refuses where the TSS allows nothing; where it allows the
/// port, memory of ring 0 must stay out of reach all the same.
fn user_mode() {
    const IN: [u8; 4] = [0xe4, 0x80, 0x0f, 0x0b];
    // OUTSB from address 0, which only ring 0 may read, to port 0.
    const OUTSB: [u8; 4] = [0x6e, 0x90, 0x0f, 0x0b];
    check_eq("IN in user mode raises #GP(0)", run_user(IN), Some((traps::GP, VA)));
    check_eq("OUTSB in user mode raises #GP(0)", run_user(OUTSB), Some((traps::GP, VA)));
    traps::allow_user_io(true);
    check_eq("IN from a port that the TSS allows works", run_user(IN), Some((traps::UD, VA + 2)));
    let refused = matches!(run_user(OUTSB), Some((traps::GP | traps::PF, VA)));
    check_eq("OUTSB of what is ring 0's is refused", refused, true);
    traps::allow_user_io(false);
}

/// Vector and place of the fault that ends the code.
fn run_user(code: [u8; 4]) -> Option<(u64, u64)> {
    for (i, byte) in code.iter().enumerate() {
        CODE.put(i, *byte);
    }
    paging::map(VA, CODE.address(), PRESENT | USER);
    traps::run_user(VA, 0).map(|f| (f.vector, f.rip))
}
