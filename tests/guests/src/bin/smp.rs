// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves that a second vCPU starts, is interrupted, is told of events, polls, goes down and comes back.
//!
//! Needs `vcpus=2`. The second vCPU obeys a command word and counts what reaches it; the first one
//! checks. A pass cannot tell anything about two physical CPUs.
//!
//! Checks: Intel SDM vol. 3A, "Multiple-Processor (MP) Initialization" and "Issuing Interprocessor
//! Interrupts"; `event_channel.h`, `sched.h` and `vcpu.h` at 4.17.
//! Expects: status 0.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering::SeqCst};

use guest_abi::event_channel::{BindVcpu, EVTCHNOP_BIND_VCPU};
use guest_abi::hypercall::HYPERVISOR_VCPU_OP;
use guest_abi::shared_info::{SHARED_VCPU_INFO, VCPU_INFO_SIZE};
use guest_abi::vcpu::VCPUOP_IS_UP;
use guest_abi::{DomId, num::to_usize};
use test_guests::{apic, check, check_eq, cpu, events, guest, hypercall, sched, smp, time, traps};

guest!(main);

const PAGE: u8 = 8;
const TO_SECOND: u8 = 0x61;
const TO_FIRST: u8 = 0x62;
const LIMIT_MS: u64 = 2000;
const SLEEP: u32 = 0;
const POLL: u32 = 1;
const DOWN: u32 = 2;

static STARTS: AtomicU32 = AtomicU32::new(0);
static APIC_ID: AtomicU32 = AtomicU32::new(u32::MAX);
static VCPU: AtomicU32 = AtomicU32::new(u32::MAX);
static COMMAND: AtomicU32 = AtomicU32::new(SLEEP);
static POLLED_PORT: AtomicU32 = AtomicU32::new(0);
static POLL_DEADLINE: AtomicU64 = AtomicU64::new(0);
static POLL_RESULT: AtomicI64 = AtomicI64::new(i64::MIN);
static UPCALLS: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];

fn main() {
    events::init();
    traps::on(events::CALLBACK_VECTOR, upcall);
    traps::on(TO_SECOND, reply);
    traps::on(TO_FIRST, smp::end_of_interrupt);
    check("the local APIC is enabled", apic::enable().is_ok());
    start();
    interrupts();
    event_channels();
    polling();
    down_and_up();
}

/// What the second vCPU does for ever.
fn second() -> ! {
    APIC_ID.store(cpu::cpuid(0xb, 0).edx, SeqCst);
    VCPU.store(smp::own_vcpu(), SeqCst);
    smp::apic_write(apic::SVR, 0x1ff);
    STARTS.fetch_add(1, SeqCst);
    loop {
        match COMMAND.load(SeqCst) {
            POLL => {
                let result = sched::poll(&[POLLED_PORT.load(SeqCst)], POLL_DEADLINE.load(SeqCst));
                COMMAND.store(SLEEP, SeqCst);
                POLL_RESULT.store(result, SeqCst);
            }
            DOWN => {
                COMMAND.store(SLEEP, SeqCst);
                cpu::halt_off();
            }
            _ => cpu::wait(),
        }
    }
}

/// On the second vCPU: answers an interrupt with another one.
fn reply() {
    smp::end_of_interrupt();
    smp::apic_write(apic::ICR, u64::from(TO_FIRST));
}

fn upcall() {
    let vcpu = smp::own_vcpu();
    let info = events::shared_info() + (SHARED_VCPU_INFO + VCPU_INFO_SIZE * (vcpu as usize & 1)) as u64;
    // SAFETY: the first byte of a vCPU's information in the shared page: its upcall is taken.
    unsafe { (info as *mut u8).write_volatile(0) };
    // SAFETY: its selector word, at 8.
    unsafe { ((info + 8) as *mut u64).write_volatile(0) };
    UPCALLS[to_usize(u64::from(vcpu & 1))].fetch_add(1, SeqCst);
}

fn upcalls() -> [u32; 2] {
    [UPCALLS[0].load(SeqCst), UPCALLS[1].load(SeqCst)]
}

fn is_up() -> i64 {
    hypercall::plain(HYPERVISOR_VCPU_OP, [u64::from(VCPUOP_IS_UP), 1, 0, 0, 0])
}

fn send(command: u64) -> bool {
    apic::write(apic::ICR, command).is_ok()
}

/// Lets the second vCPU run until what it should do is done.
fn soon(condition: impl FnMut() -> bool) -> bool {
    sched::wait_until(LIMIT_MS, condition)
}

/// Lets it run for long enough to do what it should not.
fn never(mut condition: impl FnMut() -> bool) -> bool {
    !sched::wait_until(3, &mut condition)
}

fn start() {
    check_eq("the second vCPU is down at first", is_up(), 0);
    // SAFETY: page 8 is RAM that nobody uses.
    unsafe { smp::prepare(PAGE, second) };
    check("a start-up IPI without INIT before it is accepted", send(smp::STARTUP_OTHERS | u64::from(PAGE)));
    check("and starts a CPU that waits since its reset", soon(|| STARTS.load(SeqCst) == 1));
    check("INIT takes it down", send(smp::INIT_OTHERS) && soon(|| is_up() == 0));
    check("the next start-up IPI starts it", send(smp::STARTUP_OTHERS | u64::from(PAGE)));
    check("again", soon(|| STARTS.load(SeqCst) == 2));
    check_eq("it is up", is_up(), 1);
    check_eq("it knows its number", VCPU.load(SeqCst), 1);
    check("its APIC id is another one", apic::read(apic::ID) != Ok(u64::from(APIC_ID.load(SeqCst))));
    check("a start-up IPI to a CPU that runs", send(smp::STARTUP_OTHERS | u64::from(PAGE)));
    check("is ignored", never(|| STARTS.load(SeqCst) != 2));
}

fn interrupts() {
    let id = u64::from(APIC_ID.load(SeqCst));
    let logical = id >> 4 << 16 | 1 << (id & 0xf);
    let to = u64::from(TO_SECOND);
    for (name, command) in [
        ("an IPI by APIC id", id << 32 | to),
        ("an IPI by logical id", logical << 32 | 1 << 11 | to),
        ("an IPI to all others", 3 << 18 | to),
        ("an IPI of lowest priority", id << 32 | 1 << 8 | to),
    ] {
        let (there, back) = (traps::count(TO_SECOND), traps::count(TO_FIRST));
        check(name, send(command) && soon(|| traps::count(TO_SECOND) == there + 1));
        events::open();
        check(
            "is answered by another",
            soon(|| {
                traps::count(TO_FIRST) == back + 1 || {
                    events::open();
                    false
                }
            }),
        );
    }
    let there = traps::count(TO_SECOND);
    check("an IPI to an APIC that is not there", send(77 << 32 | to));
    check("goes nowhere", never(|| traps::count(TO_SECOND) != there));
}

fn event_channels() {
    let ipi = events::bind_ipi(1).unwrap_or(0);
    events::set_masked(ipi, false);
    let before = upcalls();
    check_eq("an event bound to the second vCPU is sent", events::send(ipi), 0);
    check("and interrupts it", soon(|| upcalls()[1] == before[1] + 1));
    events::open();
    check_eq("and not the first", upcalls()[0], before[0]);
    let own = DomId::SELF.raw();
    let a = events::alloc_unbound(own, own).unwrap_or(0);
    let b = events::bind_interdomain(own, a).unwrap_or(0);
    events::set_masked(a, false);
    events::open();
    let before = upcalls();
    check_eq("an event of the first vCPU", events::send(b), 0);
    events::open();
    check_eq("interrupts that one", upcalls(), [before[0] + 1, before[1]]);
    events::clear_pending(a);
    check_eq("bind_vcpu", events::op(EVTCHNOP_BIND_VCPU, &mut BindVcpu { port: a, vcpu: 1 }), 0);
    check_eq("the next one", events::send(b), 0);
    check("interrupts the second", soon(|| upcalls()[1] == before[1] + 1));
    events::open();
    check_eq("and only that", upcalls()[0], before[0] + 1);
}

/// Makes the second vCPU poll, interrupts off, until `deadline`.
fn poll(port: u32, deadline: u64) {
    POLLED_PORT.store(port, SeqCst);
    POLL_DEADLINE.store(deadline, SeqCst);
    POLL_RESULT.store(i64::MIN, SeqCst);
    COMMAND.store(POLL, SeqCst);
    send(u64::from(APIC_ID.load(SeqCst)) << 32 | u64::from(TO_SECOND));
}

fn polling() {
    let port = events::bind_ipi(1).unwrap_or(0);
    events::set_masked(port, true);
    poll(port, 0);
    check("SCHEDOP_poll without an end waits", never(|| POLL_RESULT.load(SeqCst) != i64::MIN));
    check_eq("the polled event is sent", events::send(port), 0);
    check("and ends the poll", soon(|| POLL_RESULT.load(SeqCst) == 0));
    check("without taking the event", events::is_pending(port));
    events::clear_pending(port);
    let deadline = time::now(events::shared_info()) + 2_000_000;
    poll(port, deadline);
    check("SCHEDOP_poll with an end", soon(|| POLL_RESULT.load(SeqCst) == 0));
    check("lasts until then", time::now(events::shared_info()) >= deadline);
    poll(port, 1);
    check("SCHEDOP_poll with an end in the past returns", soon(|| POLL_RESULT.load(SeqCst) == 0));
}

fn down_and_up() {
    COMMAND.store(DOWN, SeqCst);
    let id = u64::from(APIC_ID.load(SeqCst));
    send(id << 32 | u64::from(TO_SECOND));
    check("HLT with interrupts off takes it down", soon(|| is_up() == 0));
    let there = traps::count(TO_SECOND);
    send(id << 32 | u64::from(TO_SECOND));
    check("no interrupt brings it back", never(|| is_up() != 0 || traps::count(TO_SECOND) != there));
    check("INIT and a start-up IPI", send(smp::INIT_OTHERS) && send(smp::STARTUP_OTHERS | u64::from(PAGE)));
    check("do", soon(|| STARTS.load(SeqCst) == 3));
}
