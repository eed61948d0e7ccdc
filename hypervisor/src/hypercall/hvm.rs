// SPDX-License-Identifier: MIT OR Apache-2.0
//! hvm_op (34): parameters, and where events are announced.
//!
//! The per-vCPU upcall vector is refused (-ENOSYS is what the kernel falls back from): events are
//! announced through the callback vector, which needs no EOI and so no exit (DESIGN D6).
//!
//! Source: `xen/include/public/hvm/hvm_op.h` and `params.h` at 4.17.

use core::sync::atomic::Ordering;

use guest_abi::Errno;
use guest_abi::hvm as abi;
use guest_abi::num::low_u8;

use super::{Call, DONE, HypercallResult};
use crate::domain::Privileges;

/// Vectors below this are exceptions.
const FIRST_VECTOR: u8 = 0x10;

/// Errors: ENOSYS for an unknown operation, EINVAL for an unknown parameter, EPERM for one that
/// the domain may not set, ESRCH for another domain, EFAULT.
#[inline(never)]
pub(super) fn handle(call: &mut Call<'_>) -> HypercallResult {
    match call.operation() {
        abi::HVMOP_SET_PARAM => set_param(call),
        abi::HVMOP_GET_PARAM => get_param(call),
        _ => Err(Errno::ENOSYS),
    }
}

fn get_param(call: &mut Call<'_>) -> HypercallResult {
    let mut argument: abi::HvmParam = call.read(call.arg1())?;
    let subject = call.subject(argument.domid)?;
    let param = subject.hvm_params.get(argument.index as usize).ok_or(Errno::EINVAL)?;
    argument.value = param.load(Ordering::Acquire);
    call.write(call.arg1(), &argument)?;
    DONE
}

fn set_param(call: &mut Call<'_>) -> HypercallResult {
    let argument: abi::HvmParam = call.read(call.arg1())?;
    let subject = call.subject(argument.domid)?;
    match argument.index {
        // How a kernel takes its events is its own business.
        abi::HVM_PARAM_CALLBACK_IRQ if subject.id != call.domain.id => return Err(Errno::EPERM),
        abi::HVM_PARAM_CALLBACK_IRQ => set_callback(call, argument.value)?,
        // Where rings and their ports are is the toolstack's to say.
        abi::HVM_PARAM_STORE_PFN
        | abi::HVM_PARAM_STORE_EVTCHN
        | abi::HVM_PARAM_CONSOLE_PFN
        | abi::HVM_PARAM_CONSOLE_EVTCHN => call.require(Privileges::CONTROL)?,
        abi::HVM_NR_PARAMS.. => return Err(Errno::EINVAL),
        _ => return Err(Errno::EPERM),
    }
    subject.set_param(argument.index, argument.value);
    DONE
}

/// Only the vector kind is delivered. Linux also sets GSI 1 as a placeholder, which is accepted and
/// delivers nothing.
fn set_callback(call: &Call<'_>, value: u64) -> Result<(), Errno> {
    if value >> 56 != abi::HVM_PARAM_CALLBACK_TYPE_VECTOR {
        if value > 1 {
            return Err(Errno::ENOSYS);
        }
        call.domain.set_callback_vector(None);
        return Ok(());
    }
    let vector = low_u8(value);
    if vector < FIRST_VECTOR {
        return Err(Errno::EINVAL);
    }
    call.domain.set_callback_vector(Some(vector));
    Ok(())
}
