// SPDX-License-Identifier: MIT OR Apache-2.0
//! platform_op (7): what dom0 asks about the machine.
//!
//! Without firmware services there is nothing to answer: dom0 then boots as on a BIOS without
//! them. Setting the wall clock is accepted, because dom0 keeps the machine's clock.
//!
//! Source: `xen/include/public/platform.h` at 4.17.

use guest_abi::Errno;
use guest_abi::platform as abi;

use super::{Call, DONE, HypercallResult};
use crate::domain::Privileges;

/// Errors: EPERM for other domains, EACCES for another interface version, ENOSYS for what is not
/// handled, EFAULT.
#[inline(never)]
pub(super) fn handle(call: &mut Call<'_>) -> HypercallResult {
    call.require(Privileges::HARDWARE)?;
    let argument = call.arg0();
    let op: abi::PlatformOp = call.read(argument)?;
    if op.interface_version != abi::XENPF_INTERFACE_VERSION {
        return Err(Errno::EACCES);
    }
    match op.cmd {
        abi::XENPF_SETTIME64 => {
            let time: abi::Settime64 = call.read(argument.wrapping_add(abi::PLATFORM_OP_ARG as u64))?;
            if time.mbz != 0 {
                return Err(Errno::EINVAL);
            }
            call.hv.set_wallclock(time.secs, time.nsecs, time.system_time);
            DONE
        }
        abi::XENPF_SETTIME32 => {
            let time: abi::Settime32 = call.read(argument.wrapping_add(abi::PLATFORM_OP_ARG as u64))?;
            call.hv.set_wallclock(u64::from(time.secs), time.nsecs, time.system_time);
            DONE
        }
        _ => Err(Errno::ENOSYS),
    }
}
