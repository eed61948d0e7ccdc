// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves the local APIC in x2APIC mode: identity, priorities, self-IPIs, NMI, the one-shot timer.
//!
//! A pass cannot tell anything about IPIs between vCPUs, nor about xAPIC mode, which is not offered.
//!
//! Not compared with Xen 4.17: the last part, on TPR. There QEMU 7.2 without KVM takes a virtual
//! interrupt whose class equals V_TPR, and Xen's interrupt window never ends.
//!
//! Checks: Intel SDM vol. 3A, "Advanced Programmable Interrupt Controller (APIC)", and there
//! "Extended xAPIC (x2APIC)".
//! Expects: status 0.
#![no_std]
#![no_main]

use test_guests::apic::{self, EOI, ICR, IRR, ISR, SELF_IPI, TPR, is_set};
use test_guests::{check, check_eq, cpu, events, guest, say, time, traps};

guest!(main);

const LOW: u8 = 0x41;
const HIGH: u8 = 0x81;

fn main() {
    if apic::enter_x2apic().is_err() || apic::read(apic::VERSION).is_err() {
        test_guests::report::fatal(format_args!("no x2APIC registers"));
    }
    identity();
    check("SVR enables the APIC", apic::enable().is_ok() && apic::read(apic::SVR) == Ok(0x1ff));
    requests();
    priorities();
    bad_writes();
    nmi();
    timer();
    task_priority();
}

fn identity() {
    let id = apic::read(apic::ID).unwrap_or(u64::MAX);
    check_eq("the id is the one in CPUID", id, u64::from(cpu::cpuid(0xb, 0).edx));
    let version = apic::read(apic::VERSION).unwrap_or(0);
    say!("id {id:#x} version {version:#x}");
    check("the version is that of an integrated APIC", (0x10..=0x15).contains(&(version & 0xff)));
    check("it has at least timer, LINT0, LINT1 and error entries", version >> 16 & 0xff >= 3);
    let logical = 1 << (id & 0xf) | (id >> 4) << 16;
    check_eq("the logical id follows from the id", apic::read(apic::LDR), Ok(logical));
    check_eq("SVR has its reset value", apic::read(apic::SVR), Ok(0xff));
    check_eq("the timer is masked", apic::read(apic::LVT_TIMER).map(|v| v >> 16 & 1), Ok(1));
    let quiet = (0..8).all(|i| apic::read(ISR + i) == Ok(0) && apic::read(IRR + i) == Ok(0));
    check("nothing is requested or in service", quiet);
}

fn self_ipi(vector: u8) {
    check("a self-IPI is accepted", apic::write(SELF_IPI, u64::from(vector)).is_ok());
}

fn requests() {
    self_ipi(LOW);
    check_eq("with interrupts off it stays requested", (is_set(IRR, LOW), traps::count(LOW)), (true, 0));
    self_ipi(LOW);
    events::open();
    check_eq("two requests of one vector are one interrupt", traps::count(LOW), 1);
    check_eq("it is in service until EOI", (is_set(IRR, LOW), is_set(ISR, LOW)), (false, true));
    check_eq("PPR is its class", apic::read(apic::PPR), Ok(u64::from(LOW & 0xf0)));
    check("EOI", apic::write(EOI, 0).is_ok());
    check_eq("ends it", (is_set(ISR, LOW), apic::read(apic::PPR)), (false, Ok(0)));
    check("the IPI by ICR shorthand", apic::write(ICR, 1 << 18 | u64::from(LOW)).is_ok());
    events::open();
    check_eq("arrives too", traps::count(LOW), 2);
    let id = apic::read(apic::ID).unwrap_or(0);
    check("EOI and an IPI by id", apic::write(EOI, 0).and(apic::write(ICR, id << 32 | u64::from(LOW))).is_ok());
    events::open();
    check_eq("arrives too", traps::count(LOW), 3);
    check("EOI", apic::write(EOI, 0).is_ok());
}

fn priorities() {
    let (low, high) = (traps::count(LOW), traps::count(HIGH));
    self_ipi(HIGH);
    events::open();
    check_eq("a high interrupt is in service", traps::count(HIGH), high + 1);
    self_ipi(LOW);
    events::open();
    check_eq("a lower one waits", (traps::count(LOW), is_set(IRR, LOW)), (low, true));
    self_ipi(HIGH + 1);
    events::open();
    check_eq("one of the same class waits", traps::count(HIGH + 1), 0);
    self_ipi(0xa0);
    events::open();
    check_eq("a higher one does not", traps::count(0xa0), 1);
    check("EOI ends the highest", apic::write(EOI, 0).is_ok() && !is_set(ISR, 0xa0) && is_set(ISR, HIGH));
    check("EOI of the high one", apic::write(EOI, 0).is_ok());
    events::open();
    check_eq("lets the next of its class in first", (traps::count(HIGH + 1), traps::count(LOW)), (1, low));
    check("EOI of that", apic::write(EOI, 0).is_ok());
    events::open();
    check_eq("lets the lower in", traps::count(LOW), low + 1);
    check("EOI of that", apic::write(EOI, 0).is_ok());
    check("an EOI with nothing in service is quiet", apic::write(EOI, 0).is_ok());
}

fn task_priority() {
    let before = traps::count(LOW);
    check("TPR is written", apic::write(TPR, 0x40).is_ok() && apic::read(TPR) == Ok(0x40));
    self_ipi(LOW);
    events::open();
    check_eq("its class is held back", traps::count(LOW), before);
    check("TPR is lowered", apic::write(TPR, 0x30).is_ok());
    events::open();
    check_eq("and the interrupt comes", traps::count(LOW), before + 1);
    check("EOI, TPR 0", apic::write(EOI, 0).and(apic::write(TPR, 0)).is_ok());
}

fn bad_writes() {
    let refused = |register, value| apic::write(register, value).is_err_and(|f| f.vector == traps::GP);
    check(
        "writing the id, version or ISR raises #GP",
        refused(apic::ID, 0) && refused(apic::VERSION, 0) && refused(ISR, 0),
    );
    check(
        "a reserved bit in EOI, TPR or SVR raises #GP",
        refused(EOI, 1) && refused(TPR, 0x100) && refused(apic::SVR, 1 << 16),
    );
    check("registers that are not there raise #GP", apic::read(0x80e).is_err() && apic::read(0x804).is_err());
    check("EOI and self-IPI cannot be read", apic::read(EOI).is_err() && apic::read(SELF_IPI).is_err());
}

fn nmi() {
    let id = apic::read(apic::ID).unwrap_or(0);
    check("an NMI to itself is accepted", apic::write(ICR, id << 32 | 4 << 8).is_ok());
    check("and comes with interrupts off", time::spin_until(100, || traps::count(2) == 1));
}

fn timer() {
    let vector = 0x51;
    check(
        "divide by 1, one-shot",
        apic::write(apic::TIMER_DIVIDE, 0b1011).and(apic::write(apic::LVT_TIMER, u64::from(vector))).is_ok(),
    );
    check("it counts from 1000000", apic::write(apic::TIMER_INITIAL, 1_000_000).is_ok());
    check("down", apic::read(apic::TIMER_CURRENT).is_ok_and(|count| count < 1_000_000));
    check("to an interrupt request", time::spin_until(2000, || is_set(IRR, vector)));
    check_eq("and stops at 0", apic::read(apic::TIMER_CURRENT), Ok(0));
    events::open();
    check_eq("the interrupt comes once", traps::count(vector), 1);
    check("EOI", apic::write(EOI, 0).is_ok());
    check("a longer one", apic::write(apic::TIMER_INITIAL, 1_000_000_000).is_ok());
    check(
        "is stopped by writing 0",
        apic::write(apic::TIMER_INITIAL, 0).is_ok() && apic::read(apic::TIMER_CURRENT) == Ok(0),
    );
    check("HLT: the timer", apic::write(apic::TIMER_INITIAL, 5_000_000).is_ok());
    while traps::count(vector) == 1 {
        cpu::wait();
    }
    check_eq("wakes the CPU", traps::count(vector), 2);
    check("EOI", apic::write(EOI, 0).is_ok());
}
