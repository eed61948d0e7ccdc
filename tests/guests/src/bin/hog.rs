// SPDX-License-Identifier: MIT OR Apache-2.0
//! Uses a CPU up, with a vector register that changes all the time, and checks that nobody else changes it.
//!
//! It stands beside other guests, so that there are more vCPUs than CPUs. It never ends by itself.
//!
//! Expects: nothing; the machine ends with domain 1. A FAIL line if the register was not kept.
#![no_std]
#![no_main]

use core::arch::asm;

use test_guests::{check, cpu, guest, report};

guest!(main);

const OSFXSR: u64 = 1 << 9;

fn main() {
    // SAFETY: the bit only allows instructions.
    check("CR4 takes OSFXSR", unsafe { cpu::set_cr4(cpu::cr4() | OSFXSR) }.is_ok());
    // Said in advance: there is no end.
    report::done();
    for pattern in 0x5a5a_0000_u64.. {
        let kept: u64;
        // SAFETY: nothing else in this guest uses vector registers: it is compiled without them.
        unsafe {
            asm!("movq xmm0, {pattern}", "mov {left}, 100000", "2: dec {left}", "jnz 2b", "movq {kept}, xmm0",
                pattern = in(reg) pattern, left = out(reg) _, kept = out(reg) kept, options(nomem, nostack));
        }
        if kept != pattern {
            report::fail("a vector register is kept", format_args!("{kept:#x}, not {pattern:#x}"));
        }
    }
}
