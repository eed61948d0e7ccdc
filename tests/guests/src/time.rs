// SPDX-License-Identifier: MIT OR Apache-2.0
//! Time: the PV clock, and time-outs so that a check reports rather than hangs.

use core::sync::atomic::{Ordering::SeqCst, fence};

use guest_abi::cpuid::LEAF_TIME;
use guest_abi::num::low_u32;
use guest_abi::shared_info::{SHARED_VCPU_INFO, VCPU_TIME, VcpuTimeInfo};

use crate::{cpu, hypercall};

/// The guest TSC's frequency in kHz as the hypervisor's leaf says; 1 GHz where there is none.
#[must_use]
pub fn tsc_khz() -> u64 {
    let khz = if hypercall::present() { cpu::cpuid(LEAF_TIME, 0).ecx } else { 0 };
    if khz == 0 { 1_000_000 } else { u64::from(khz) }
}

/// Waits, interrupts as they are, until `condition` holds or `ms` milliseconds of TSC passed.
pub fn spin_until(ms: u64, mut condition: impl FnMut() -> bool) -> bool {
    let end = cpu::tsc() + ms * tsc_khz();
    loop {
        if condition() {
            return true;
        }
        if cpu::tsc() > end {
            return false;
        }
        core::hint::spin_loop();
    }
}

/// Reads vCPU 0's time structure in the shared page at `shared_info` consistently.
#[must_use]
pub fn read_time_info(shared_info: u64) -> VcpuTimeInfo {
    let address = shared_info + (SHARED_VCPU_INFO + VCPU_TIME) as u64;
    loop {
        let first = version(address);
        fence(SeqCst);
        // SAFETY: the page is mapped; the hypervisor writes it, hence volatile and the retry.
        let copy = unsafe { (address as *const VcpuTimeInfo).read_volatile() };
        fence(SeqCst);
        if first == version(address) && first.is_multiple_of(2) {
            return copy;
        }
    }
}

fn version(time_info: u64) -> u32 {
    cpu::read(time_info).map_or(1, low_u32)
}

/// System time in nanoseconds at a TSC value.
#[must_use]
pub fn at(info: &VcpuTimeInfo, tsc: u64) -> u64 {
    let delta = u128::from(tsc.wrapping_sub(info.tsc_timestamp));
    let shift = info.tsc_shift;
    let shifted = if shift < 0 { delta >> shift.unsigned_abs() } else { delta << shift };
    let ns = (shifted * u128::from(info.tsc_to_system_mul)) >> 32;
    info.system_time.wrapping_add(u64::try_from(ns).unwrap_or(u64::MAX))
}

/// System time in nanoseconds.
#[must_use]
pub fn now(shared_info: u64) -> u64 {
    let info = read_time_info(shared_info);
    at(&info, cpu::tsc())
}
