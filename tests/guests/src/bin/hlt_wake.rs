// SPDX-License-Identifier: MIT OR Apache-2.0
//! Measures how late a sleeping guest is woken: by its one-shot timer, and by an event of its own. And proves that an
//! interrupt behind an upcall wakes one that sleeps in the upcall's handler.
//!
//! The numbers are for reading; what is checked is only that none is negative or absurd. A pass
//! cannot tell how late a guest is woken while others want the CPU.
//!
//! Checks: `vcpu.h` at 4.17 (`VCPUOP_set_singleshot_timer`).
//! Expects: status 0.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use guest_abi::event_channel::VIRQ_TIMER;
use guest_abi::vcpu::{SetSingleshotTimer, VCPUOP_SET_SINGLESHOT_TIMER};
use test_guests::{apic, check, check_eq, cpu, events, guest, hypercall, report, say, sched, time, traps};

guest!(main);

/// The vector that comes with an upcall, and the HLTs that it may take until it does.
const SECOND: u8 = 0x41;
const FEW: u32 = 3;
/// HLTs after which nothing is expected any more.
const MANY: u32 = 20_000;
/// HLTs in the upcall's handler.
static HALTS: AtomicU32 = AtomicU32::new(0);
const ROUNDS: u64 = 20;
const SLEEP_NS: u64 = 1_000_000;
/// Later than this is no latency any more.
const ABSURD_NS: u64 = 500_000_000;

fn main() {
    events::init();
    let Ok(port) = events::bind_virq(VIRQ_TIMER, 0) else { report::fatal(format_args!("VIRQ_TIMER is not bound")) };
    events::set_masked(port, false);
    measure("HLT until the timer", || {
        let deadline = set_timer();
        let before = events::upcalls();
        while events::upcalls() == before {
            cpu::wait();
        }
        events::clear_all();
        now().checked_sub(deadline)
    });
    events::set_masked(port, true);
    measure("SCHEDOP_poll until the timer", || {
        let deadline = set_timer();
        while !events::is_pending(port) {
            sched::poll(&[port], 0);
        }
        events::clear_all();
        now().checked_sub(deadline)
    });
    measure("SCHEDOP_poll until its time is over", || {
        let deadline = now() + SLEEP_NS;
        while now() < deadline {
            sched::poll(&[port], deadline);
        }
        now().checked_sub(deadline)
    });
    let ipi = events::bind_ipi(0).unwrap_or(0);
    check("an IPI port", ipi != 0);
    measure("an event of its own, send to handler", || {
        let before = events::upcalls();
        let start = now();
        events::send(ipi);
        events::open();
        check_eq("the upcall came", events::upcalls(), before + 1);
        events::clear_all();
        now().checked_sub(start)
    });
    behind_an_upcall(ipi);
}

/// An interrupt that waits behind an upcall is let in where the upcall's handler sleeps, as a kernel does that goes on
/// with another thread: no IRET comes first.
fn behind_an_upcall(ipi: u32) {
    check("the local APIC", apic::enter_x2apic().and_then(|()| apic::enable()).is_ok());
    traps::on(events::CALLBACK_VECTOR, || {
        events::clear_all();
        while traps::count(SECOND) == 0 && HALTS.fetch_add(1, Relaxed) < MANY {
            cpu::wait();
        }
    });
    check("a second interrupt", apic::write(apic::SELF_IPI, u64::from(SECOND)).is_ok());
    events::send(ipi);
    events::open();
    check_eq("it comes", traps::count(SECOND), 1);
    let halts = HALTS.load(Relaxed);
    say!("after {halts} HLTs in the upcall's handler");
    check("without many a HLT before it", halts <= FEW);
    check("EOI", apic::write(apic::EOI, 0).is_ok());
}

fn now() -> u64 {
    time::now(events::shared_info())
}

/// Sets the timer and returns when it fires.
fn set_timer() -> u64 {
    let timeout_abs_ns = now() + SLEEP_NS;
    hypercall::vcpu_op(VCPUOP_SET_SINGLESHOT_TIMER, 0, &mut SetSingleshotTimer { timeout_abs_ns, flags: 0 });
    timeout_abs_ns
}

/// Runs `sample` (how late, in nanoseconds; `None` is early) and tells the smallest, the mean, the largest.
fn measure(name: &str, mut sample: impl FnMut() -> Option<u64>) {
    let (mut least, mut sum, mut most, mut early) = (u64::MAX, 0, 0, 0);
    for _ in 0..ROUNDS {
        match sample() {
            Some(late) => {
                least = least.min(late);
                most = most.max(late);
                sum += late;
            }
            None => early += 1,
        }
    }
    say!("{name}: {least} ns, {} ns, {most} ns (least, mean, most)", sum / ROUNDS);
    check_eq(name, (early, most < ABSURD_NS), (0, true));
}
