// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves that each vCPU has its own timer and information, and that a timer ends another vCPU's slice.
//!
//! Needs `vcpus=2` on one physical CPU. One vCPU sleeps until its timer while the other spins without
//! any exit of its own; then the other way round. A pass cannot tell about two physical CPUs.
//!
//! Checks: `vcpu.h` at 4.17 (`VCPUOP_register_vcpu_info`, `VCPUOP_set_singleshot_timer`).
//! Expects: status 0.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};

use guest_abi::event_channel::VIRQ_TIMER;
use guest_abi::vcpu::{RegisterVcpuInfo, SetSingleshotTimer, VCPUOP_REGISTER_VCPU_INFO, VCPUOP_SET_SINGLESHOT_TIMER};
use test_guests::shared::Shared;
use test_guests::{apic, check, check_eq, cpu, events, guest, hypercall, paging, report, say, sched, smp, time, traps};

guest!(main);

const PAGE: u8 = 8;
const MS: u64 = 1_000_000;
/// Less than a slice, of which the sleeper must not wait for the end.
const LATE_NS: u64 = 5 * MS;
/// Where in its page each vCPU has its information.
const OFFSET: u32 = 128;

static INFO: [Shared<[u8; 4096]>; 2] = [const { Shared::new([0; 4096]) }; 2];
static PORT: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];
static UPCALLS: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];
static TURN: AtomicU32 = AtomicU32::new(u32::MAX);
static SLEEPER_DONE: AtomicBool = AtomicBool::new(false);
static WOKEN_AFTER: AtomicU64 = AtomicU64::new(u64::MAX);

fn main() {
    events::init();
    traps::on(events::CALLBACK_VECTOR, upcall);
    for vcpu in 0..2 {
        register(vcpu);
    }
    let far = hypercall::vcpu_op(VCPUOP_SET_SINGLESHOT_TIMER, 1, &mut SetSingleshotTimer::default());
    check("nobody sets another vCPU's timer", far < 0);
    check("the clock of a registered place is valid", now(0) != 0 && now(1).abs_diff(now(0)) < 100 * MS);
    // SAFETY: page 8 is RAM that nobody uses.
    unsafe { smp::prepare(PAGE, second) };
    let started = apic::write(apic::ICR, smp::STARTUP_OTHERS | u64::from(PAGE));
    check_eq("the start-up IPI", started, Ok(()));
    turn("the second vCPU's timer", 1, || _ = time::spin_until(500, || SLEEPER_DONE.load(SeqCst)));
    turn("the first vCPU's timer", 0, || sleep(0));
    check_eq("each timer told its own vCPU, once", [UPCALLS[0].load(SeqCst), UPCALLS[1].load(SeqCst)], [1, 1]);
}

/// Gives a vCPU a place of its own for its information, and its timer a port.
fn register(vcpu: usize) {
    let mut place = RegisterVcpuInfo { mfn: INFO[vcpu].address() >> 12, offset: OFFSET, rsvd: 0 };
    let number = u32::try_from(vcpu).unwrap_or(u32::MAX);
    check_eq("vcpu_info is placed", hypercall::vcpu_op(VCPUOP_REGISTER_VCPU_INFO, number, &mut place), 0);
    let Ok(port) = events::bind_virq(VIRQ_TIMER, number) else { report::fatal(format_args!("no VIRQ_TIMER")) };
    events::set_masked(port, false);
    PORT[vcpu].store(port, SeqCst);
    // A place that is new has an upcall that announces nothing.
    take(vcpu);
}

/// Lets the vCPU `sleeper` sleep and this one do `other`.
fn turn(name: &str, sleeper: u32, other: impl FnOnce()) {
    SLEEPER_DONE.store(false, SeqCst);
    TURN.store(sleeper, SeqCst);
    if sleeper == 1 {
        // It has to have begun: it sleeps for long enough to be seen spinning or asleep.
        sched::yield_cpu();
    }
    other();
    let late = WOKEN_AFTER.load(SeqCst);
    say!("{name}: {late} ns late");
    check(name, SLEEPER_DONE.load(SeqCst) && late < LATE_NS);
}

fn now(vcpu: usize) -> u64 {
    time::now(INFO[vcpu].address() + u64::from(OFFSET))
}

/// Sleeps for two milliseconds.
fn sleep(vcpu: usize) {
    let before = UPCALLS[vcpu].load(SeqCst);
    let timeout_abs_ns = now(vcpu) + 2 * MS;
    let number = u32::try_from(vcpu).unwrap_or(u32::MAX);
    let mut timer = SetSingleshotTimer { timeout_abs_ns, flags: 0 };
    hypercall::vcpu_op(VCPUOP_SET_SINGLESHOT_TIMER, number, &mut timer);
    while UPCALLS[vcpu].load(SeqCst) == before {
        cpu::wait();
    }
    WOKEN_AFTER.store(now(vcpu).checked_sub(timeout_abs_ns).unwrap_or(u64::MAX), SeqCst);
    SLEEPER_DONE.store(true, SeqCst);
}

/// The second vCPU: sleeps in its turn and spins in the other's.
fn second() -> ! {
    loop {
        if TURN.compare_exchange(1, u32::MAX, SeqCst, SeqCst).is_ok() {
            sleep(1);
        }
        core::hint::spin_loop();
    }
}

fn upcall() {
    let vcpu = smp::own_vcpu() as usize & 1;
    UPCALLS[vcpu].fetch_add(1, SeqCst);
    take(vcpu);
}

/// Takes back the announcement and the event.
fn take(vcpu: usize) {
    let at = paging::offset(u64::from(OFFSET));
    for byte in [0, 8, 9, 10, 11, 12, 13, 14, 15] {
        INFO[vcpu].put(at + byte, 0);
    }
    events::clear_pending(PORT[vcpu].load(SeqCst));
}
