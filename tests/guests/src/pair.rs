// SPDX-License-Identifier: MIT OR Apache-2.0
//! Two domains that are started together and keep in step: domain 1 leads, domain 2 follows.
//!
//! They meet over an event channel and wait for each other by SCHEDOP_poll, so that neither
//! takes an interrupt. The follower says that it has arrived, the leader lets it go: one pending
//! bit each way cannot collapse two announcements. Since the machine ends with the leader, the
//! leader ends last.

use guest_abi::sched::{SHUTDOWN_CRASH, SHUTDOWN_POWEROFF};

use crate::{boot, events, grants, hypercall, report, sched, time};

/// Nobody is kept waiting longer, in milliseconds: a walk through all addresses takes its time where a second has few
/// instructions.
const LIMIT_MS: u64 = 600_000;
const LEADER: u16 = 1;
/// The domain that follows.
pub const FOLLOWER: u16 = 2;
/// Ports that the follower tries: the leader's first free one is among them.
const PORTS: core::ops::Range<u32> = 1..32;

/// One of the two.
pub struct Pair {
    port: u32,
    leads: bool,
}

impl Pair {
    /// Meets the other one. Places the shared page by [`events::init`].
    #[must_use]
    pub fn meet() -> Self {
        events::init();
        let leads = match grants::own_id() {
            LEADER => true,
            FOLLOWER => false,
            id => report::fatal(format_args!("this is for domains 1 and 2, not {id}")),
        };
        let port = if leads { events::alloc_unbound(guest_abi::DomId::SELF.raw(), FOLLOWER).ok() } else { bind() };
        let Some(port) = port else { report::fatal(format_args!("no event channel to the other domain")) };
        events::set_masked(port, true);
        if !leads {
            // A port that was just bound is pending, and has an upcall due.
            events::clear_all();
        }
        let pair = Self { port, leads };
        pair.step();
        pair
    }

    /// This domain's end of the channel, masked so far.
    #[must_use]
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Whether this is domain 1.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.leads
    }

    /// Waits until the other one is here too.
    pub fn step(&self) {
        if self.leads {
            self.wait();
            events::send(self.port);
        } else {
            events::send(self.port);
            self.wait();
        }
    }

    /// Prints the last line and ends the guest; the leader waits for the follower's last line.
    pub fn finish(self) -> ! {
        if self.leads {
            self.wait();
            report::finish();
        }
        report::done();
        events::send(self.port);
        hypercall::shutdown(if report::any_failed() { SHUTDOWN_CRASH } else { SHUTDOWN_POWEROFF })
    }

    fn wait(&self) {
        let end = time::now(events::shared_info()) + LIMIT_MS * 1_000_000;
        while !events::is_pending(self.port) {
            if time::now(events::shared_info()) >= end {
                report::fatal(format_args!("the other domain does not come"));
            }
            sched::poll(&[self.port], end);
        }
        events::clear_pending(self.port);
    }
}

fn bind() -> Option<u32> {
    let mut bound = None;
    time::spin_until(LIMIT_MS, || {
        bound = PORTS.into_iter().find_map(|port| events::bind_interdomain(LEADER, port).ok());
        if bound.is_none() {
            sched::yield_cpu();
        }
        bound.is_some()
    });
    bound
}

/// The number after `name=` on the command line, in hexadecimal.
#[must_use]
pub fn word(name: &str) -> Option<u64> {
    let words = boot::cmdline().to_str().ok()?.split(' ');
    let value = words.filter_map(|word| word.split_once('=')).find(|(key, _)| *key == name)?.1;
    u64::from_str_radix(value, 16).ok()
}
