// SPDX-License-Identifier: MIT OR Apache-2.0
//! vcpu_op (24), vm_assist (21) and set_timer_op (15): what a vCPU arranges for itself.
//!
//! Source: `xen/include/public/vcpu.h` at 4.17.

use core::sync::atomic::Ordering;

use guest_abi::num::{low_u32, to_usize};
use guest_abi::shared_info::{RunstateInfo, VcpuTimeInfo};
use guest_abi::vcpu as abi;
use guest_abi::{Errno, PAGE_SHIFT, VcpuId, Wire};

use super::{Call, DONE, HypercallResult, Reply};
use crate::addr::{Gva, Nanos};
use crate::emul::pvclock::RunstateArea;
use crate::vcpu::{NEVER, RunState};

/// Errors: ENOENT for an unknown vCPU, EINVAL for another than the caller where only itself is
/// meant, ENOSYS for an unknown operation, EFAULT.
#[inline(never)]
pub(super) fn handle(call: &mut Call<'_>) -> HypercallResult {
    let id = VcpuId::new(low_u32(call.arg1()));
    let target = call.domain.vcpu(id).ok_or(Errno::ENOENT)?;
    let is_self = id == call.vcpu.id;
    match call.operation() {
        abi::VCPUOP_IS_UP => Ok(Reply::Value(u64::from(target.run_state() != RunState::Down))),
        abi::VCPUOP_REGISTER_VCPU_INFO => register_info(call, id),
        abi::VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA if is_self => register_runstate(call),
        abi::VCPUOP_GET_RUNSTATE_INFO => {
            let info = target.runstate.lock().at(call.hv.clock.at(call.hv.machine.tsc()));
            call.write(call.arg2(), &info)?;
            DONE
        }
        abi::VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA if is_self => register_time(call),
        abi::VCPUOP_SET_SINGLESHOT_TIMER if is_self => {
            let argument: abi::SetSingleshotTimer = call.read(call.arg2())?;
            call.state.timer = call.hv.clock.when(Nanos::new(argument.timeout_abs_ns));
            if argument.flags & abi::VCPU_SSHOTTMR_FUTURE != 0 && call.state.timer <= call.hv.machine.tsc() {
                call.state.timer = NEVER;
                return Err(Errno::ETIME);
            }
            DONE
        }
        abi::VCPUOP_STOP_SINGLESHOT_TIMER if is_self => {
            call.state.timer = NEVER;
            DONE
        }
        // No periodic timer is ever set, so stopping it always succeeds.
        abi::VCPUOP_STOP_PERIODIC_TIMER => DONE,
        abi::VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA
        | abi::VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA
        | abi::VCPUOP_SET_SINGLESHOT_TIMER
        | abi::VCPUOP_STOP_SINGLESHOT_TIMER => Err(Errno::EINVAL),
        _ => Err(Errno::ENOSYS),
    }
}

fn register_info(call: &mut Call<'_>, id: VcpuId) -> HypercallResult {
    let argument: abi::RegisterVcpuInfo = call.read(call.arg2())?;
    let reference = call.pin(argument.mfn)?;
    let offset = to_usize(u64::from(argument.offset));
    call.domain.events.register_vcpu_info(id, reference.mfn(), offset, call.domain)?;
    // The page stays the vCPU's as long as anybody can find the domain. There is room for each vCPU's.
    call.domain.pin(reference)?;
    call.domain.write_time(call.hv, id);
    DONE
}

/// The area is named by its virtual address once, and written for as long as the vCPU lives.
fn register_runstate(call: &mut Call<'_>) -> HypercallResult {
    let argument: abi::RegisterArea = call.read(call.arg2())?;
    let address = Gva::new(argument.addr);
    let first = call.space().pin(address)??;
    let last = address.wrapping_add(RunstateInfo::SIZE as u64 - 1);
    let crosses = last.raw() >> PAGE_SHIFT != address.raw() >> PAGE_SHIFT;
    let second = if crosses { Some(call.space().pin(last)??) } else { None };
    let area = RunstateArea::new(address.page_offset(), first, second).ok_or(Errno::EINVAL)?;
    let marks_updates = call.domain.marks_runstate_updates.load(Ordering::Relaxed);
    area.write(&call.hv.mem, &call.vcpu.runstate.lock(), marks_updates);
    call.state.runstate_area = Some(area);
    DONE
}

fn register_time(call: &mut Call<'_>) -> HypercallResult {
    let argument: abi::RegisterArea = call.read(call.arg2())?;
    if argument.addr == 0 {
        return DONE;
    }
    let info: VcpuTimeInfo = call.domain.guest_clock(call.hv).time_info(2);
    call.write(argument.addr, &info)?;
    DONE
}

/// vm_assist: only the runstate flag means anything to a PVH guest.
#[inline(never)]
pub(super) fn vm_assist(call: &mut Call<'_>) -> HypercallResult {
    match (call.operation(), low_u32(call.arg1())) {
        (command @ (abi::VMASST_CMD_ENABLE | abi::VMASST_CMD_DISABLE), abi::VMASST_TYPE_RUNSTATE_UPDATE_FLAG) => {
            call.domain.marks_runstate_updates.store(command == abi::VMASST_CMD_ENABLE, Ordering::Relaxed);
            DONE
        }
        (abi::VMASST_CMD_ENABLE | abi::VMASST_CMD_DISABLE, _) => Err(Errno::EINVAL),
        _ => Err(Errno::ENOSYS),
    }
}

/// set_timer_op: the old way to set the one-shot timer; 0 stops it.
#[inline(never)]
pub(super) fn set_timer(call: &mut Call<'_>) -> HypercallResult {
    call.state.timer = match call.arg0() {
        0 => NEVER,
        nanos => call.hv.clock.when(Nanos::new(nanos)),
    };
    DONE
}
