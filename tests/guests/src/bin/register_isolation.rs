// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves that a domain's MSRs and general-purpose registers are its own while another one uses the same CPU.
//!
//! Two of these run together, each with its `mark=`. A fresh domain has to find reset values. Then both put values made of
//! their marks into every MSR that a guest keeps, into CR2, and, in a loop without an exit of its own, into all general-purpose
//! registers; they lose the CPU to each other for some time slices, and look. FPU, vector and debug registers are
//! `fpu_isolation`'s subject. A pass cannot tell about what the CPU remembers elsewhere (caches, predictors).
//!
//! Checks: the table of MSRs in the reference.
//! Expects: status 0 of both.
#![no_std]
#![no_main]

use core::arch::asm;

use test_guests::pair::{self, Pair};
use test_guests::{check, check_eq, cpu, guest, report, say, time};

guest!(main);

/// MSRs that are kept, each with the bits that it can have beside the mark's and its reset value.
const KEPT: &[(u32, &str, u64, u64)] = &[
    (0x174, "SYSENTER_CS", 0xffff, 0),
    (0x175, "SYSENTER_ESP", LOW_HALF, 0),
    (0x176, "SYSENTER_EIP", LOW_HALF, 0),
    (0xc000_0081, "STAR", u64::MAX, 0),
    (0xc000_0082, "LSTAR", LOW_HALF, 0),
    (0xc000_0083, "CSTAR", LOW_HALF, 0),
    (0xc000_0084, "SFMASK", 0xffff_ffff, 0),
    (0xc000_0100, "FS_BASE", LOW_HALF, 0),
    (0xc000_0101, "GS_BASE", LOW_HALF, 0),
    (0xc000_0102, "KERNEL_GS_BASE", LOW_HALF, 0),
];
/// Canonical addresses of the lower half.
const LOW_HALF: u64 = (1 << 47) - 1;
const PAT: u32 = 0x277;
const PAT_AT_RESET: u64 = 0x0007_0406_0007_0406;
/// All write-back and all uncacheable memory types, which nobody uses here but to be told apart.
const PATS: [u64; 2] = [0x0606_0606_0606_0606, 0x0600_0600_0600_0606];
const ROUNDS: u32 = 3;
/// Some slices.
const SPIN_MS: u64 = 25;
/// A gap in time as long as this is somebody else's slice.
const GAP_US: u64 = 5000;

fn main() {
    let Some(mark) = pair::word("mark") else { report::fatal(format_args!("mark= is missing")) };
    for &(msr, name, _, reset) in KEPT {
        check_eq(name, cpu::rdmsr(msr).ok(), Some(reset));
    }
    check_eq("PAT", cpu::rdmsr(PAT).ok(), Some(PAT_AT_RESET));
    check_eq("CR2", cpu::cr2(), 0);
    let pair = Pair::meet();
    let pat = PATS[usize::from(pair.leads())];
    for round in 0..ROUNDS {
        let mark = mark.rotate_left(round * 8);
        let is_set = |&(msr, _, bits, _): &(u32, &str, u64, u64)| {
            // SAFETY: nothing here uses SYSCALL, SYSENTER, or the segments' bases.
            unsafe { cpu::wrmsr(msr, mark & bits) }.is_ok()
        };
        check("every MSR takes its value", KEPT.iter().all(is_set));
        // SAFETY: memory types matter to nobody here.
        check("PAT takes its value", unsafe { cpu::wrmsr(PAT, pat) }.is_ok());
        set_cr2(mark & LOW_HALF);
        pair.step();
        let gaps = spin();
        say!("the other one had the CPU {gaps} times");
        check("the CPU was shared", gaps > 0);
        check_eq("general-purpose registers outlive the other's slices", registers_that_change(mark), 0);
        for &(msr, name, bits, _) in KEPT {
            check_eq(name, cpu::rdmsr(msr).ok(), Some(mark & bits));
        }
        check_eq("PAT", cpu::rdmsr(PAT).ok(), Some(pat));
        check_eq("CR2", cpu::cr2(), mark & LOW_HALF);
        pair.step();
    }
    pair.finish();
}

fn set_cr2(value: u64) {
    // SAFETY: only a page-fault handler reads it.
    unsafe { asm!("mov cr2, {}", in(reg) value, options(nostack)) };
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

/// Holds a pattern in the registers that the loop does not need until some slices have passed; returns the bits in which any of
/// them differs afterwards. RAX and RDX hold the counter that ends the loop.
fn registers_that_change(mark: u64) -> u64 {
    let ticks = time::tsc_khz() * SPIN_MS;
    let end = cpu::tsc() + ticks;
    let difference: u64;
    // SAFETY: RBX and RBP are put back; nothing else that is not declared is touched, and the red zone is not used.
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            "push rsi",
            "push rdi",
            "lea rbx, [rdi + 3]", "lea rbp, [rdi + 5]", "lea rcx, [rdi + 2]",
            "lea r8, [rdi + 8]", "lea r9, [rdi + 9]", "lea r10, [rdi + 10]", "lea r11, [rdi + 11]",
            "lea r12, [rdi + 12]", "lea r13, [rdi + 13]", "lea r14, [rdi + 14]", "lea r15, [rdi + 15]",
            "2:",
            "rdtsc",
            "shl rdx, 32",
            "or rax, rdx",
            "cmp rax, [rsp + 8]",
            "jb 2b",
            "xor eax, eax",
            "sub rbx, 3", "xor rbx, [rsp]", "or rax, rbx",
            "sub rbp, 5", "xor rbp, [rsp]", "or rax, rbp",
            "sub rcx, 2", "xor rcx, [rsp]", "or rax, rcx",
            "sub r8, 8", "xor r8, [rsp]", "or rax, r8",
            "sub r9, 9", "xor r9, [rsp]", "or rax, r9",
            "sub r10, 10", "xor r10, [rsp]", "or rax, r10",
            "sub r11, 11", "xor r11, [rsp]", "or rax, r11",
            "sub r12, 12", "xor r12, [rsp]", "or rax, r12",
            "sub r13, 13", "xor r13, [rsp]", "or rax, r13",
            "sub r14, 14", "xor r14, [rsp]", "or rax, r14",
            "sub r15, 15", "xor r15, [rsp]", "or rax, r15",
            "xor rdi, [rsp]", "or rax, rdi",
            "xor rsi, [rsp + 8]", "or rax, rsi",
            "add rsp, 16",
            "pop rbp",
            "pop rbx",
            inout("rdi") mark => _, inout("rsi") end => _, out("rax") difference, out("rcx") _, out("rdx") _,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _, out("r12") _, out("r13") _, out("r14") _,
            out("r15") _,
        );
    }
    difference
}
