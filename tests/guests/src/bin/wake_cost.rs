// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves what it takes to wake a vCPU up, to give a CPU from one to another, and to sleep: exits, and interrupts
//! between CPUs.
//!
//! Domain 2 is `event_echo`; `hogs=` (hexadecimal) domains from 3 on are `hog`. Without hogs: an event to the other
//! domain and back, timers, and nothing at all for a while. Beside hogs: how many exits a change of vCPUs takes, and how
//! long one who sleeps waits for a CPU, printed as `bench` does. A pass says nothing of time on a real CPU.
//!
//! Checks: the scheduler's chapter of the book.
//! Expects: status 0.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use guest_abi::DomId;
use guest_abi::event_channel::VIRQ_TIMER;
use guest_abi::vcpu::{SetSingleshotTimer, VCPUOP_SET_SINGLESHOT_TIMER};
use test_guests::pair::{self, Pair};
use test_guests::{apic, check, check_eq, counters, cpu, events, guest, hypercall, say, time, traps};

guest!(main);

const SELF: u16 = DomId::SELF.raw();
const FIRST_HOG: u16 = pair::FOLLOWER + 1;
const MS: u64 = 1_000_000;
const TRIPS: u64 = 200;
const TIMERS: u64 = 20;
/// A trip through a hypervisor that was stopped itself, or an interrupt of the machine's own, may be among them.
const SLACK: u64 = 4;
/// Ticks, which are instructions in either emulator with one CPU. A slice is ten million of them in QEMU, and 40,000 in
/// Bochs.
const SOON: u64 = 12_000;

/// Machines with more ticks do enough in 7 microseconds.
const FAST_KHZ: u64 = 500_000;
/// NMIs among events.
const NMIS: u32 = 8;

static UPCALLS: AtomicU32 = AtomicU32::new(0);

/// What was counted up to now.
#[derive(Clone, Copy, Default)]
struct Work {
    own: u64,
    peer: u64,
    /// Exits of all hogs, and the hypervisor's ticks for them.
    hogs: u64,
    hog_ticks: u64,
    kicks: u64,
    runs: u64,
    halts: u64,
    /// The hypervisor's ticks between runs.
    ticks: u64,
}

fn main() {
    let pair = Pair::meet();
    let (cpus, hogs) = (pair::word("cpus").unwrap_or(1), pair::word("hogs").unwrap_or(0));
    let machine = Machine { cpus, hogs, hands_over: cpus == 1 && time::tsc_khz() > FAST_KHZ };
    traps::on(events::CALLBACK_VECTOR, || {
        events::take_all();
        UPCALLS.fetch_add(1, SeqCst);
    });
    let Ok(timer) = events::bind_virq(VIRQ_TIMER, 0) else { return check("VIRQ_TIMER is bound", false) };
    events::clear_all();
    events::set_masked(pair.port(), false);
    events::set_masked(timer, false);
    cpu::enable_interrupts();
    sleep(20 * MS);
    if machine.hogs == 0 {
        wake_ups(&machine, &pair);
        nmis(&pair);
        timers(&machine);
        nothing(&machine);
    } else {
        changes(&machine);
        latency(&machine, &pair);
    }
    cpu::disable_interrupts();
}

struct Machine {
    cpus: u64,
    hogs: u64,
    /// Who takes turns leaves its CPU with an event. Not in Bochs, where sending one takes longer than the moment in which
    /// one has to sleep to be known for it.
    hands_over: bool,
}

impl Machine {
    fn work(&self) -> Work {
        let mut work =
            Work { own: counters::of_domain(SELF).0, peer: counters::of_domain(pair::FOLLOWER).0, ..Work::default() };
        for (hog, _) in (FIRST_HOG..).zip(0..self.hogs) {
            let (exits, ticks) = counters::of_domain(hog);
            work.hogs += exits;
            work.hog_ticks += ticks;
        }
        for (pcpu, _) in (0..).zip(0..self.cpus) {
            let counted = counters::of_pcpu(pcpu);
            work.kicks += counted.kicks;
            work.runs += counted.runs;
            work.halts += counted.halts;
            work.ticks += counted.ticks;
        }
        work
    }

    /// What `act` takes, without what the counting itself does.
    fn spent(&self, act: impl FnOnce()) -> Work {
        let start = self.work();
        let before = self.work();
        act();
        let after = self.work();
        let own = (after.own - before.own) - (before.own - start.own);
        Work {
            own,
            peer: after.peer - before.peer,
            hogs: after.hogs - before.hogs,
            hog_ticks: after.hog_ticks - before.hog_ticks,
            kicks: after.kicks - before.kicks,
            runs: after.runs - before.runs,
            halts: after.halts - before.halts,
            ticks: after.ticks - before.ticks,
        }
    }
}

fn now() -> u64 {
    time::now(events::shared_info())
}

fn set_timer(at: u64) {
    let mut timer = SetSingleshotTimer { timeout_abs_ns: at, flags: 0 };
    hypercall::vcpu_op(VCPUOP_SET_SINGLESHOT_TIMER, 0, &mut timer);
}

/// Sleeps, and returns how many nanoseconds too long.
fn sleep(ns: u64) -> u64 {
    let at = now() + ns;
    set_timer(at);
    events::sleep_until(|| now() >= at);
    now() - at
}

/// An event to the other domain and its answer; both slept.
fn trip(pair: &Pair) {
    let upcalls = UPCALLS.load(SeqCst);
    events::send(pair.port());
    events::sleep_until(|| UPCALLS.load(SeqCst) != upcalls);
}

fn wake_ups(machine: &Machine, pair: &Pair) {
    let work = machine.spent(|| (0..TRIPS).for_each(|_| trip(pair)));
    say!("{TRIPS} trips: {} and {} exits, {} kicks", work.own, work.peer, work.kicks);
    check("a wake-up takes two exits, the sender's and the sleeper's", work.own + work.peer <= 4 * TRIPS + TRIPS / 5);
    if machine.hands_over {
        check("a known habit saves the sleeper's", work.own + work.peer <= 2 * TRIPS + TRIPS / 5);
    }
    let most = if machine.cpus == 1 { 0 } else { 2 * TRIPS + SLACK };
    check("and at most one interrupt to another CPU", work.kicks <= most);
}

/// An NMI comes with interrupts off, also where an answer is there that has to wait for them.
fn nmis(pair: &Pair) {
    check("the local APIC", apic::enter_x2apic().and_then(|()| apic::enable()).is_ok());
    let itself = apic::read(apic::ID).unwrap_or(0) << 32 | 4 << 8;
    let mut all_came = true;
    for sent in 1..=NMIS {
        let upcalls = UPCALLS.load(SeqCst);
        cpu::disable_interrupts();
        events::send(pair.port());
        all_came &= apic::write(apic::ICR, itself).is_ok() && time::spin_until(100, || traps::count(2) == sent);
        all_came &= UPCALLS.load(SeqCst) == upcalls;
        cpu::enable_interrupts();
        events::sleep_until(|| UPCALLS.load(SeqCst) != upcalls);
    }
    check("an NMI is not held up by an upcall that waits", all_came);
}

fn timers(machine: &Machine) {
    let asleep = machine.spent(|| (0..TIMERS).for_each(|_| _ = sleep(MS)));
    let busy = machine.spent(|| {
        for _ in 0..TIMERS {
            let upcalls = UPCALLS.load(SeqCst);
            set_timer(now() + MS);
            while UPCALLS.load(SeqCst) == upcalls {
                core::hint::spin_loop();
            }
        }
    });
    say!("{TIMERS} timers: {} exits asleep, {} busy, {} kicks", asleep.own, busy.own, asleep.kicks + busy.kicks);
    check("a timer takes two exits of who sleeps", asleep.own <= 2 * TIMERS + SLACK);
    check("and of who works", busy.own <= 2 * TIMERS + SLACK);
    check("and no interrupt to another CPU", asleep.kicks + busy.kicks <= SLACK);
}

fn nothing(machine: &Machine) {
    let work = machine.spent(|| _ = sleep(500 * MS));
    say!("half a second of sleep: {} and {} exits, {} halts", work.own, work.peer, work.halts);
    check("who sleeps takes no exits beyond its timer's", work.own <= 2);
    check_eq("who sleeps without a timer takes none", work.peer, 0);
    check("no CPU looks whether there is something to do", work.halts <= SLACK + machine.cpus);
}

/// The hogs share the CPUs among themselves.
fn changes(machine: &Machine) {
    let work = machine.spent(|| _ = sleep(300 * MS));
    let (exits, runs) = (work.hogs, work.runs);
    say!("0.3 seconds of {} hogs: {exits} exits, {runs} runs", machine.hogs);
    check("they are run in turn", runs > 2 * machine.hogs);
    check("a change from one to another takes one exit", exits <= runs + SLACK);
    // From the exit of one until the other's entry.
    say!("BENCH vcpu_switch ops={runs} ticks=- hv={} exits={exits}", work.hog_ticks + work.ticks);
}

/// How long one who sleeps waits for a CPU that a hog has.
fn latency(machine: &Machine, pair: &Pair) {
    // Who has just written lines has used its credit up.
    sleep(100 * MS);
    let mut late = Times::default();
    let sleeps = machine.spent(|| (0..TIMERS).for_each(|_| late.add(sleep(5 * MS) * time::tsc_khz() / MS)));
    late.say("timer_late_beside_hogs", sleeps.own + sleeps.hogs);
    let mut took = Times::default();
    let trips = machine.spent(|| {
        for _ in 0..TIMERS {
            sleep(5 * MS);
            let start = cpu::tsc();
            trip(pair);
            took.add(cpu::tsc() - start);
        }
    });
    took.say("event_round_trip_beside_hogs", (trips.own + trips.peer + trips.hogs) - (sleeps.own + sleeps.hogs));
    check("who wakes up gets a CPU at once, whoever has it", late.all.max(took.all) < SOON * TIMERS);
}

/// Ticks of each of [`TIMERS`].
#[derive(Default)]
struct Times {
    all: u64,
    longest: u64,
}

impl Times {
    fn add(&mut self, ticks: u64) {
        self.all += ticks;
        self.longest = self.longest.max(ticks);
    }

    fn say(&self, name: &str, exits: u64) {
        say!("BENCH {name} ops={TIMERS} ticks={} hv=- exits={exits}", self.all);
        say!("{name}: {} ticks at most", self.longest);
    }
}
