// SPDX-License-Identifier: MIT OR Apache-2.0
//! Giving the CPU away.

use guest_abi::hypercall::HYPERVISOR_SCHED_OP;
use guest_abi::sched::{Poll, SCHEDOP_POLL, SCHEDOP_YIELD};

use crate::{hypercall, time};

/// `SCHEDOP_yield`.
pub fn yield_cpu() {
    hypercall::plain(HYPERVISOR_SCHED_OP, [u64::from(SCHEDOP_YIELD), 0, 0, 0, 0]);
}

/// `SCHEDOP_poll` until one of `ports` is pending or system time is `deadline_ns`; 0 is for ever.
pub fn poll(ports: &[u32], deadline_ns: u64) -> i64 {
    let nr_ports = u32::try_from(ports.len()).unwrap_or(u32::MAX);
    let mut poll = Poll { ports: ports.as_ptr().addr() as u64, nr_ports, timeout: deadline_ns };
    hypercall::op(HYPERVISOR_SCHED_OP, SCHEDOP_POLL, &mut poll)
}

/// Lets other vCPUs run until `condition` holds or `ms` milliseconds have passed.
pub fn wait_until(ms: u64, mut condition: impl FnMut() -> bool) -> bool {
    time::spin_until(ms, || {
        let holds = condition();
        if !holds {
            yield_cpu();
        }
        holds
    })
}
