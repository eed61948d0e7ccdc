// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves that what two vCPUs do to each other at the same moment comes out right, again and again.
//!
//! Needs `vcpus=2 control`, and two physical CPUs to mean anything. *Time:* each reads the PV clock in turn with
//! the other and never sees less than the other saw. *Interrupts and events:* one sends, the other answers; each
//! arrives once, by one interrupt between CPUs at most. *TLB:* the first gives a page back and fills another one in
//! at the same address, while the second reads there: it may find nothing (all ones), but never what the page held
//! before a change that it has been told of. A pass cannot tell that no race is left, and QEMU drops
//! its translations at every exit anyway.
//!
//! Checks: `xen.h` (`vcpu_time_info`), `memory.h`, `event_channel.h` at 4.17; Intel SDM vol. 3A,
//! "Issuing Interprocessor Interrupts".
//! Expects: status 0.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

use guest_abi::DomId;
use guest_abi::hypercall::HYPERVISOR_MEMORY_OP;
use guest_abi::memory::{MemoryReservation, XENMEM_DECREASE_RESERVATION, XENMEM_POPULATE_PHYSMAP};
use guest_abi::num::to_usize;
use guest_abi::shared_info::{SHARED_VCPU_INFO, VCPU_INFO_SIZE};
use test_guests::{apic, boot, check, check_eq, counters, events, guest, hypercall, say, smp, time, traps};

guest!(main);

const PAGE: u8 = 8;
const TO_SECOND: u8 = 0x61;
const TO_FIRST: u8 = 0x62;
const LIMIT_MS: u64 = 5000;
const READINGS: u32 = 5000;
const ROUNDS: u32 = 100;
const CHANGES: u64 = 100;

/// What the second vCPU does.
const WAIT: u32 = 0;
const READ_TIME: u32 = 1;
const READ_PAGE: u32 = 2;

static STARTED: AtomicU32 = AtomicU32::new(0);
static JOB: AtomicU32 = AtomicU32::new(WAIT);
static DONE: AtomicU32 = AtomicU32::new(0);

static CLOCK_LOCK: AtomicU32 = AtomicU32::new(0);
static CLOCK: AtomicU64 = AtomicU64::new(0);
static BACKWARDS: AtomicU32 = AtomicU32::new(0);

static TARGET: AtomicU64 = AtomicU64::new(0);
/// The first change that is not undone by now.
static CHANGE: AtomicU64 = AtomicU64::new(1);
static STALE: AtomicU32 = AtomicU32::new(0);
static HOLES: AtomicU32 = AtomicU32::new(0);
static READS: AtomicU32 = AtomicU32::new(0);

static UPCALLS: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];

fn main() {
    events::init();
    traps::on(events::CALLBACK_VECTOR, upcall);
    traps::on(TO_SECOND, reply);
    traps::on(TO_FIRST, smp::end_of_interrupt);
    check("the local APIC is enabled", apic::enable().is_ok());
    // SAFETY: page 8 is RAM that nobody uses.
    unsafe { smp::prepare(PAGE, second) };
    check("a start-up IPI", apic::write(apic::ICR, smp::STARTUP_OTHERS | u64::from(PAGE)).is_ok());
    check("starts the second vCPU", time::spin_until(LIMIT_MS, || STARTED.load(SeqCst) == 1));
    clock();
    interrupts();
    event_channels();
    translations();
}

fn second() -> ! {
    smp::apic_write(apic::SVR, 0x1ff);
    STARTED.store(1, SeqCst);
    loop {
        match JOB.load(SeqCst) {
            READ_TIME => (0..READINGS).for_each(|_| read_clock()),
            READ_PAGE => read_page(),
            _ => {
                events::open();
                continue;
            }
        }
        JOB.store(WAIT, SeqCst);
        DONE.fetch_add(1, SeqCst);
    }
}

/// Reads the clock in turn with the other vCPU.
fn read_clock() {
    while CLOCK_LOCK.swap(1, SeqCst) != 0 {
        core::hint::spin_loop();
    }
    let now = time::now(events::shared_info());
    if CLOCK.swap(now, SeqCst) > now {
        BACKWARDS.fetch_add(1, SeqCst);
    }
    CLOCK_LOCK.store(0, SeqCst);
}

fn clock() {
    let begin = time::now(events::shared_info());
    JOB.store(READ_TIME, SeqCst);
    (0..READINGS).for_each(|_| read_clock());
    check("both have read the clock", time::spin_until(LIMIT_MS, || DONE.load(SeqCst) == 1));
    check_eq("it never went back", BACKWARDS.load(SeqCst), 0);
    check("and it went on", time::now(events::shared_info()) > begin);
}

/// On the second vCPU: answers an interrupt with another one.
fn reply() {
    smp::end_of_interrupt();
    smp::apic_write(apic::ICR, u64::from(TO_FIRST));
}

fn interrupts() {
    let (there, back) = (traps::count(TO_SECOND), traps::count(TO_FIRST));
    let kicks = kicks();
    let mut answered = 0;
    for round in 1..=ROUNDS {
        let is_sent = apic::write(apic::ICR, 3 << 18 | u64::from(TO_SECOND)).is_ok();
        let comes = || {
            events::open();
            traps::count(TO_FIRST) == back + round
        };
        if !is_sent || !time::spin_until(LIMIT_MS, comes) {
            break;
        }
        answered += 1;
    }
    check("one IPI is at most one between CPUs", crate::kicks() - kicks <= 2 * u64::from(ROUNDS));
    check_eq("each IPI is answered", answered, ROUNDS);
    check_eq("each arrived once", traps::count(TO_SECOND), there + ROUNDS);
}

fn upcall() {
    let vcpu = smp::own_vcpu() & 1;
    let info = events::shared_info() + (SHARED_VCPU_INFO + VCPU_INFO_SIZE * vcpu as usize) as u64;
    // SAFETY: the first byte of a vCPU's information in the shared page: its upcall is taken.
    unsafe { (info as *mut u8).write_volatile(0) };
    // SAFETY: its selector word, at 8.
    unsafe { ((info + 8) as *mut u64).write_volatile(0) };
    UPCALLS[to_usize(u64::from(vcpu))].fetch_add(1, SeqCst);
}

fn event_channels() {
    let port = events::bind_ipi(1).unwrap_or(0);
    events::set_masked(port, false);
    events::open();
    let before = UPCALLS[1].load(SeqCst);
    let kicks = kicks();
    let mut arrived = 0;
    for round in 1..=ROUNDS {
        let is_sent = events::send(port) == 0;
        if !is_sent || !time::spin_until(LIMIT_MS, || UPCALLS[1].load(SeqCst) == before + round) {
            break;
        }
        check_pending(port);
        arrived += 1;
    }
    check("by one interrupt between CPUs at most", crate::kicks() - kicks <= u64::from(ROUNDS));
    check_eq("each event interrupts the vCPU that runs elsewhere", arrived, ROUNDS);
}

/// Interrupts that the two CPUs have sent each other.
fn kicks() -> u64 {
    counters::of_pcpu(0).kicks + counters::of_pcpu(1).kicks
}

fn check_pending(port: u32) {
    if !events::is_pending(port) {
        check("the event is pending", false);
    }
    events::clear_pending(port);
}

/// On the second vCPU: reads the page until the last change, with interrupts off all the time.
fn read_page() {
    let page = TARGET.load(SeqCst) as *const u64;
    loop {
        let least = CHANGE.load(SeqCst);
        // SAFETY: the page is RAM or nothing, and nobody keeps anything in it.
        let value = unsafe { page.read_volatile() };
        READS.fetch_add(1, SeqCst);
        match value {
            u64::MAX => _ = HOLES.fetch_add(1, SeqCst),
            // A page that was just filled in.
            0 => {}
            value if value < least => _ = STALE.fetch_add(1, SeqCst),
            _ => {}
        }
        if least > CHANGES {
            return;
        }
    }
}

fn reservation(command: u32, gfn: &u64) -> i64 {
    let extent_start = core::ptr::from_ref(gfn).addr() as u64;
    let mut argument =
        MemoryReservation { extent_start, nr_extents: 1, domid: DomId::SELF.raw(), ..MemoryReservation::default() };
    hypercall::op(HYPERVISOR_MEMORY_OP, command, &mut argument)
}

fn translations() {
    let mut page = 0;
    boot::for_free_pages(|free| {
        page = free;
        true
    });
    let gfn = page >> 12;
    TARGET.store(page, SeqCst);
    // SAFETY: free RAM by the memory map.
    unsafe { (page as *mut u64).write_volatile(1) };
    JOB.store(READ_PAGE, SeqCst);
    let mut changed = 0;
    for change in 1..=CHANGES {
        if reservation(XENMEM_DECREASE_RESERVATION, &gfn) != 1 || reservation(XENMEM_POPULATE_PHYSMAP, &gfn) != 1 {
            break;
        }
        // SAFETY: the page is there again, with a frame of its own.
        unsafe { (page as *mut u64).write_volatile(change + 1) };
        CHANGE.store(change + 1, SeqCst);
        changed += 1;
    }
    CHANGE.store(CHANGES + 1, SeqCst);
    check_eq("each page is given back and filled in", changed, CHANGES);
    check("the second vCPU comes to its end", time::spin_until(LIMIT_MS, || DONE.load(SeqCst) == 2));
    check_eq("it never read what was gone", STALE.load(SeqCst), 0);
    say!("{} reads, {} of nothing", READS.load(SeqCst), HOLES.load(SeqCst));
}
