// SPDX-License-Identifier: MIT OR Apache-2.0
//! console_io (18): dom0's way to the hypervisor's console.
//!
//! Bytes go out as they are. Another domain gets -ENOSYS, which makes Linux' early console use
//! port 0xE9 instead.
//!
//! Source: `xen/include/public/xen.h`, CONSOLEIO_*, at 4.17.

use guest_abi::Errno;
use guest_abi::console_io as abi;
use guest_abi::num::{low_u32, to_usize};

use super::{Call, HypercallResult, Reply};
use crate::domain::Privileges;

/// Bytes moved before the hypercall is taken up again, so that a large write holds nobody up.
const CHUNK: usize = 256;

/// Errors: ENOSYS for other domains and unknown operations, EFAULT.
#[inline(never)]
pub(super) fn handle(call: &mut Call<'_>) -> HypercallResult {
    if !call.domain.privileges.contains(Privileges::CONSOLE) {
        return Err(Errno::ENOSYS);
    }
    let (count, address) = (low_u32(call.arg1()), call.arg2());
    let len = to_usize(u64::from(count)).min(CHUNK);
    let mut buffer = [0; CHUNK];
    match call.operation() {
        abi::CONSOLEIO_WRITE => {
            call.read_bytes(address, &mut buffer[..len])?;
            call.hv.machine.console_write(&buffer[..len]);
            if to_usize(u64::from(count)) > len {
                call.state.regs.rsi = u64::from(count) - len as u64;
                call.state.regs.rdx = address.wrapping_add(len as u64);
                return Ok(Reply::Again);
            }
            Ok(Reply::Value(0))
        }
        abi::CONSOLEIO_READ => {
            let len = call.hv.input.take(&mut buffer[..len]);
            call.write_bytes(address, &buffer[..len]).inspect_err(|_| call.hv.input.put_back(&buffer[..len]))?;
            Ok(Reply::Value(len as u64))
        }
        _ => Err(Errno::ENOSYS),
    }
}
