// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves the PV clock, the one-shot timer, and that HLT is woken by it.
//!
//! A pass cannot tell how exact the timer is, only that it is never early and late by less than a
//! second; nor anything about a second vCPU.
//!
//! Checks: `vcpu.h` and `xen.h` (`vcpu_time_info`) at 4.17.
//! Expects: status 0.
#![no_std]
#![no_main]

use guest_abi::event_channel::VIRQ_TIMER;
use guest_abi::shared_info::{RUNSTATE_RUNNING, RunstateInfo, VcpuTimeInfo};
use guest_abi::vcpu::{
    RegisterArea, SetSingleshotTimer, VCPU_SSHOTTMR_FUTURE, VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA,
    VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA, VCPUOP_SET_SINGLESHOT_TIMER, VCPUOP_STOP_PERIODIC_TIMER,
    VCPUOP_STOP_SINGLESHOT_TIMER,
};
use guest_abi::{Errno, hypercall::HYPERVISOR_VCPU_OP};
use test_guests::shared::Shared;
use test_guests::{check, check_eq, cpu, events, guest, hypercall, say, time};

guest!(main);

const MS: u64 = 1_000_000;
static TIME_AREA: Shared<VcpuTimeInfo> = Shared::new(VcpuTimeInfo {
    version: 0,
    pad0: 0,
    tsc_timestamp: 0,
    system_time: 0,
    tsc_to_system_mul: 0,
    tsc_shift: 0,
    flags: 0,
    pad1: [0; 2],
});
static RUNSTATE: Shared<RunstateInfo> = Shared::new(RunstateInfo { state: -1, state_entry_time: 0, time: [0; 4] });

fn main() {
    events::init();
    clock();
    areas();
    check_eq("stop_periodic_timer", stop(VCPUOP_STOP_PERIODIC_TIMER), 0);
    let port = events::bind_virq(VIRQ_TIMER, 0).unwrap_or(0);
    check("VIRQ_TIMER is bound", port != 0);
    events::set_masked(port, false);
    events::clear_all();
    deadlines(port);
    waking(port);
}

fn stop(command: u32) -> i64 {
    hypercall::plain(HYPERVISOR_VCPU_OP, [u64::from(command), 0, 0, 0, 0])
}

fn set(timeout_abs_ns: u64, flags: u32) -> i64 {
    hypercall::vcpu_op(VCPUOP_SET_SINGLESHOT_TIMER, 0, &mut SetSingleshotTimer { timeout_abs_ns, flags })
}

fn now() -> u64 {
    time::now(events::shared_info())
}

fn clock() {
    let info = time::read_time_info(events::shared_info());
    say!("{info:?}");
    check("the clock is valid as soon as the page is placed", info.tsc_to_system_mul != 0 && info.version != 0);
    let shift = i32::from(info.tsc_shift);
    let khz = (1_000_000u64 << 32) / u64::from(info.tsc_to_system_mul.max(1));
    let khz = if shift < 0 { khz << shift.unsigned_abs() } else { khz >> shift };
    let leaf = time::tsc_khz();
    check("its frequency is the one in CPUID", khz.abs_diff(leaf) * 100 < leaf);
    let mut last = now();
    let mut backwards = 0;
    for _ in 0..1000 {
        let next = now();
        backwards += u32::from(next < last);
        last = next;
    }
    check_eq("it never goes backwards", backwards, 0);
    let (start, tsc) = (now(), cpu::tsc());
    time::spin_until(5, || false);
    let (ns, ticks) = (now() - start, cpu::tsc() - tsc);
    let want = ticks * 1_000_000 / leaf;
    check("5 ms of TSC are 5 ms of system time", ns.abs_diff(want) * 50 < want);
    check_eq("the wall clock is not being written", wall_version() % 2, 0);
}

fn wall_version() -> u64 {
    let offset = guest_abi::shared_info::SHARED_WC_VERSION as u64;
    cpu::read(events::shared_info() + offset).map_or(1, |words| words & 0xffff_ffff)
}

fn areas() {
    let mut area = RegisterArea { addr: TIME_AREA.address() };
    let result = hypercall::vcpu_op(VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA, 0, &mut area);
    check_eq("the time area is registered", result, 0);
    // SAFETY: a copy; the hypervisor writes the area, hence volatile.
    let copy = unsafe { TIME_AREA.get().read_volatile() };
    let info = time::read_time_info(events::shared_info());
    check_eq("and is filled before the call returns", copy.tsc_to_system_mul, info.tsc_to_system_mul);
    let mut area = RegisterArea { addr: RUNSTATE.address() };
    let result = hypercall::vcpu_op(VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, 0, &mut area);
    check_eq("the runstate area is registered", result, 0);
    // SAFETY: as above.
    let state = unsafe { RUNSTATE.get().read_volatile() };
    check_eq("and says running", state.state, RUNSTATE_RUNNING);
}

fn deadlines(port: u32) {
    for past in [1, now() - MS] {
        check_eq("a deadline in the past is accepted", set(past, 0), 0);
        check("and fires at once", time::spin_until(1000, || events::is_pending(port)));
        events::clear_all();
    }
    // The header wants ETIME, Xen 4.17 takes it and fires; kernels do not use the flag.
    let refused = set(1, VCPU_SSHOTTMR_FUTURE) == Errno::ETIME.to_rax().cast_signed();
    let fired = time::spin_until(2, || events::is_pending(port));
    check("a past deadline with the future flag is refused, or fires", refused != fired);
    events::clear_all();
    // Printing takes longer than these deadlines on a slow serial line: it comes last.
    let deadline = now() + 5 * MS;
    let (result, fired) = (set(deadline, 0), events::is_pending(port));
    let fires = time::spin_until(1000, || events::is_pending(port));
    let is_early = now() < deadline;
    check_eq("a deadline in the future is accepted", result, 0);
    check("and has not fired when the call returns", !fired);
    check("it fires while the guest spins", fires);
    check("not early", !is_early);
    events::clear_all();
    let results = (set(now() + 5 * MS, 0), stop(VCPUOP_STOP_SINGLESHOT_TIMER));
    let fires = time::spin_until(8, || events::is_pending(port));
    check_eq("a timer is stopped", results, (0, 0));
    check("and does not fire", !fires);
    let results = (set(now() + 5 * MS, 0), set(now() + 5000 * MS, 0));
    let fires = time::spin_until(8, || events::is_pending(port));
    check_eq("a later deadline replaces an earlier one", results, (0, 0));
    check("and the earlier does not fire", !fires);
    stop(VCPUOP_STOP_SINGLESHOT_TIMER);
    events::clear_all();
    let mut other = SetSingleshotTimer { timeout_abs_ns: 1, flags: 0 };
    check(
        "the timer of a vCPU that is not there is refused",
        hypercall::vcpu_op(VCPUOP_SET_SINGLESHOT_TIMER, 77, &mut other) < 0,
    );
}

fn waking(port: u32) {
    for ms in [1, 2, 5] {
        let (before, deadline) = (events::upcalls(), now() + ms * MS);
        set(deadline, 0);
        // Other interrupts may end HLT too; this loop ends with the upcall.
        while events::upcalls() == before {
            cpu::wait();
        }
        check("HLT sleeps until the timer", now() >= deadline && events::is_pending(port));
        events::clear_all();
    }
}
