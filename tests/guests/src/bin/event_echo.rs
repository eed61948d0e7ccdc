// SPDX-License-Identifier: MIT OR Apache-2.0
//! Answers each event of domain 1 with another one, from its upcall, and sleeps in between; it proves nothing.
//!
//! `bench` and `wake_cost` measure with it what an event costs that goes to another domain and back.
//!
//! Expects: nothing; the machine ends with domain 1.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use test_guests::pair::Pair;
use test_guests::{events, guest, report, traps};

guest!(main);

static PORT: AtomicU32 = AtomicU32::new(0);

fn main() {
    let pair = Pair::meet();
    PORT.store(pair.port(), SeqCst);
    traps::on(events::CALLBACK_VECTOR, || {
        events::take_all();
        events::send(PORT.load(SeqCst));
    });
    events::set_masked(pair.port(), false);
    // Said in advance: there is no end.
    report::done();
    events::sleep_until(|| false);
}
