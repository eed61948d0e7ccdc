// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves that a triple fault ends its domain, and only it, and is reported as a crash.
//!
//! A pass cannot tell that other domains went on: the harness starts one beside it for that.
//!
//! Checks: Intel SDM vol. 3A, "Interrupt 8 - Double Fault Exception"; `sched.h` at 4.17 (crash is 3).
//! Expects: status 3.
#![no_std]
#![no_main]

use test_guests::{guest, report, say, traps};

guest!(main);

fn main() {
    say!("PASS the guest reached its triple fault");
    report::done();
    traps::triple_fault();
}
