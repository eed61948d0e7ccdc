// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sleeps with interrupts on until the machine is ended from outside: for looking at a domain that is
//! there, by debug keys for example. It proves nothing.
//!
//! Expects: no status.
#![no_std]
#![no_main]

use guest_abi::DomId;
use test_guests::{cpu, events, guest, say};

guest!(main);

fn main() {
    events::init();
    // Something to be seen among the event channels.
    let port = events::alloc_unbound(DomId::SELF.raw(), 0);
    say!("idle; a port waits for domain 0: {port:?}");
    loop {
        cpu::wait();
    }
}
