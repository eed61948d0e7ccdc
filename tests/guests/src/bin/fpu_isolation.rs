// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves that FPU, vector and debug registers belong to a domain while another one uses the same CPU.
//!
//! Two of these run together, each with its `mark=`. Both load patterns into x87, XMM, YMM (domain 1
//! only: domain 2 keeps it off in XCR0), MXCSR and the debug registers, spin for more than a time slice,
//! and look. A fresh domain has to find reset values. A pass cannot tell about registers that the
//! emulated CPU lacks.
//!
//! Checks: Intel SDM vol. 1, "Managing State Using the XSAVE Feature Set"; vol. 3B, "Debug Registers".
//! Expects: status 0 of both.
#![no_std]
#![no_main]

use core::arch::asm;

use guest_abi::num::{high_u32, low_u8, low_u32};
use test_guests::pair::{self, Pair};
use test_guests::shared::Shared;
use test_guests::{check, check_eq, cpu, guest, report, say, time, traps};

guest!(main);

const OSFXSR: u64 = 1 << 9;
const OSXMMEXCPT: u64 = 1 << 10;
const OSXSAVE: u64 = 1 << 18;
const X87_SSE: u64 = 3;
const AVX: u64 = 4;
const ROUNDS: u32 = 2;
const SPIN_MS: u64 = 25;
/// A gap in time as long as this is somebody else's slice.
const GAP_US: u64 = 5000;
/// Enabled: address 0, for writes of eight bytes.
const DR7_WATCH: u64 = 0x400 | 1 | 0b1001 << 16;

static IMAGE: Shared<[u8; 4096]> = Shared::new([0; 4096]);
static SEEN: Shared<[u8; 4096]> = Shared::new([0; 4096]);
static WATCHED: Shared<[u64; 2]> = Shared::new([0; 2]);

fn main() {
    let Some(mark) = pair::word("mark") else { report::fatal(format_args!("mark= is missing")) };
    // SAFETY: the bits only allow instructions.
    let is_on = unsafe { cpu::set_cr4(cpu::cr4() | OSFXSR | OSXMMEXCPT | OSXSAVE) }.is_ok();
    check("CR4 takes OSFXSR, OSXMMEXCPT and OSXSAVE", is_on);
    let pair = Pair::meet();
    let supported = u64::from(cpu::cpuid(0xd, 0).eax);
    let xcr0 = if pair.leads() { supported & (X87_SSE | AVX) } else { X87_SSE };
    say!("XCR0 {xcr0:#x} of {supported:#x}");
    fresh();
    set_xcr0(xcr0);
    fill(mark, xcr0);
    let debug = [WATCHED.address(), mark << 4 & 0xffff_f000, 0x1000 + low_mark(mark), u64::MAX << 47 | low_mark(mark)];
    restore(IMAGE.get());
    set_debug(debug, if pair.leads() { DR7_WATCH } else { 0x400 });
    pair.step();
    for _ in 0..ROUNDS {
        let gaps = spin();
        save(SEEN.get());
        check("another domain had the CPU meanwhile", gaps >= 1);
        check_eq("FPU and vector registers are this domain's", first_difference(xcr0), None);
        check_eq("debug registers too", read_debug(), debug);
        check_eq("and XCR0", xgetbv(), xcr0);
    }
    watchpoint(pair.leads());
    pair.finish();
}

fn low_mark(mark: u64) -> u64 {
    mark & 0xff0
}

/// What a domain finds before it has loaded anything.
fn fresh() {
    check_eq("XCR0 is x87 alone", xgetbv(), 1);
    set_xcr0(X87_SSE);
    save(SEEN.get());
    let words = (160..416).step_by(8).filter(|at| word(&SEEN, *at) != 0).count();
    check_eq("XMM registers are 0 at first", words, 0);
    check_eq(
        "FCW and MXCSR have their reset values",
        (word(&SEEN, 0) & 0xffff, word(&SEEN, 24) & 0xffff_ffff),
        (0x37f, 0x1f80),
    );
    check_eq("debug registers are 0", read_debug(), [0; 4]);
}

/// An image for XRSTOR, each byte from the mark and its place.
fn fill(mark: u64, xcr0: u64) {
    for at in (32..416).chain(avx_range(xcr0)) {
        IMAGE.put(at, low_u8(mark >> (8 * (at & 7))).wrapping_add(low_u8(at as u64 >> 3)));
    }
    let rounding = low_u8(mark & 0xc);
    IMAGE.put(0, 0x7f);
    IMAGE.put(1, 3 | rounding);
    IMAGE.put(4, 0xff);
    IMAGE.put(24, 0x80);
    IMAGE.put(25, 0x1f | (rounding << 3));
    IMAGE.put(512, low_u8(xcr0));
}

fn avx_range(xcr0: u64) -> core::ops::Range<usize> {
    if xcr0 & AVX == 0 {
        return 0..0;
    }
    let leaf = cpu::cpuid(0xd, 2);
    leaf.ebx as usize..(leaf.ebx + leaf.eax) as usize
}

/// Where what was saved is not what was loaded: control words, ST0-7 (10 of 16 bytes each), XMM, YMM.
fn first_difference(xcr0: u64) -> Option<usize> {
    let mut bytes =
        [0, 1, 24, 25].into_iter().chain((32..160).filter(|at| at & 15 < 10)).chain(160..416).chain(avx_range(xcr0));
    bytes.find(|at| IMAGE.byte(*at) != SEEN.byte(*at))
}

fn word(page: &Shared<[u8; 4096]>, at: usize) -> u64 {
    (0..8).map(|i| u64::from(page.byte(at + i)) << (8 * i)).sum()
}

fn save(page: *mut [u8; 4096]) {
    // SAFETY: the page is large enough for every component; OSXSAVE is set.
    unsafe { asm!("xsave64 [{}]", in(reg) page, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack)) };
}

fn restore(page: *mut [u8; 4096]) {
    // SAFETY: the image is valid: no reserved bit is set in MXCSR or the header.
    unsafe { asm!("xrstor64 [{}]", in(reg) page, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack)) };
}

fn set_xcr0(value: u64) {
    let fault = traps::catch(|| {
        // SAFETY: it only allows instructions.
        unsafe { asm!("xsetbv", in("ecx") 0, in("eax") low_u32(value), in("edx") high_u32(value), options(nostack)) };
    });
    check_eq("XCR0 is accepted", fault, None);
}

fn xgetbv() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: a plain read; OSXSAVE is set.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nostack, nomem)) };
    u64::from(high) << 32 | u64::from(low)
}

fn set_debug([a, b, c, d]: [u64; 4], dr7: u64) {
    // SAFETY: the one breakpoint that may be enabled is on a word that is written on purpose.
    unsafe {
        asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}", "mov dr7, {}", in(reg) a, in(reg) b, in(reg) c,
            in(reg) d, in(reg) dr7, options(nostack));
    };
}

fn read_debug() -> [u64; 4] {
    let (a, b, c, d): (u64, u64, u64, u64);
    // SAFETY: plain reads.
    unsafe {
        asm!("mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3", out(reg) a, out(reg) b, out(reg) c, out(reg) d,
            options(nostack, nomem));
    };
    [a, b, c, d]
}

/// Spins for some slices; how often somebody else had the CPU.
fn spin() -> u32 {
    let gap = time::tsc_khz() * GAP_US / 1000;
    let (mut last, mut gaps) = (cpu::tsc(), 0);
    let end = last + time::tsc_khz() * SPIN_MS;
    while last < end {
        let now = cpu::tsc();
        gaps += u32::from(now - last >= gap);
        last = now;
    }
    gaps
}

/// Domain 1 watches a word at an address that domain 2 writes too.
fn watchpoint(watches: bool) {
    let mut write = || {
        // SAFETY: nobody else uses the word.
        unsafe { WATCHED.get().cast::<u64>().write_volatile(1) };
    };
    let vector = traps::catch(&mut write).map(|f| f.vector);
    check_eq("a watched word traps, one that is not does not", vector, watches.then_some(1));
}
