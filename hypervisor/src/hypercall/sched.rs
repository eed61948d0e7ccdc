// SPDX-License-Identifier: MIT OR Apache-2.0
//! sched_op (29): giving the CPU away, and ending.
//!
//! Source: `xen/include/public/sched.h` at 4.17.

use arrayvec::ArrayVec;
use guest_abi::sched as abi;
use guest_abi::{Errno, EvtchnPort};

use super::{Call, DONE, HypercallResult, Reply};
use crate::addr::Nanos;
use crate::domain::ShutdownReason;
use crate::evtchn::Poll;
use crate::vcpu::NEVER;

/// Ports that one call can poll. Source: `sched.h`, SCHEDOP_poll (Xen's own limit is the same).
const MAX_POLL: usize = 128;

/// Errors: ENOSYS for an unknown operation, EINVAL for a bad reason, port or count, EFAULT.
#[inline(never)]
pub(super) fn handle(call: &mut Call<'_>) -> HypercallResult {
    match call.operation() {
        abi::SCHEDOP_YIELD => Ok(Reply::Yield(0)),
        abi::SCHEDOP_BLOCK => {
            if call.state.has_deliverable(call.domain, call.vcpu) {
                return DONE;
            }
            Ok(Reply::Sleep(0))
        }
        abi::SCHEDOP_SHUTDOWN => {
            let argument: abi::Shutdown = call.read(call.arg1())?;
            let reason = ShutdownReason::from_raw(argument.reason).ok_or(Errno::EINVAL)?;
            call.domain.shut_down(reason);
            Ok(Reply::Stop)
        }
        abi::SCHEDOP_POLL => poll(call),
        _ => Err(Errno::ENOSYS),
    }
}

fn poll(call: &mut Call<'_>) -> HypercallResult {
    let argument: abi::Poll = call.read(call.arg1())?;
    let count = argument.nr_ports as usize;
    if count > MAX_POLL {
        return Err(Errno::EINVAL);
    }
    let mut ports: ArrayVec<EvtchnPort, MAX_POLL> = ArrayVec::new();
    for i in 0..count as u64 {
        let port: u32 = call.read(argument.ports.wrapping_add(i * 4))?;
        ports.push(EvtchnPort::new(port));
    }
    if call.state.has_deliverable(call.domain, call.vcpu) {
        return DONE;
    }
    if call.domain.events.begin_poll(call.vcpu.id, &ports)? == Poll::Ready {
        return DONE;
    }
    call.state.is_polling = true;
    call.state.poll_timeout = match argument.timeout {
        0 => NEVER,
        nanos => call.hv.clock.when(Nanos::new(nanos)),
    };
    Ok(Reply::Sleep(0))
}
