// SPDX-License-Identifier: MIT OR Apache-2.0
//! Simulated machines: tasks that compute, sleep and wake each other, on pCPUs that do what the queue
//! says. A tick is a nanosecond. What the queue promises is checked at every step, or at the end.

use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

use super::queue::{DEFAULT_WEIGHT, Next, RunQueue, SeatId, Stop, Who};
use crate::addr::Ticks;
use crate::vcpu::NEVER;

const MS: u64 = 1_000_000;
const SLICE: u64 = 10 * MS;

/// What a task does, for ever.
#[derive(Clone, Copy, Debug)]
enum Habit {
    Computes,
    /// Runs so long, then sleeps so long.
    Sleeps(u64, u64),
    /// Runs so long, wakes that task, and waits to be woken.
    Wakes(u64, usize),
}

struct Task {
    seat: SeatId,
    habit: Habit,
    affinity: u64,
    /// What is left until it sleeps.
    left: u64,
    ran: u64,
    woken_at: Option<u64>,
    ready_since: Option<u64>,
    worst_latency: u64,
    worst_wait: u64,
}

struct Machine {
    queue: RunQueue,
    now: u64,
    /// What each pCPU does: which task until when, or nothing until when.
    doing: Vec<(Option<usize>, u64)>,
    tasks: Vec<Task>,
    pokes: u64,
}

impl Machine {
    fn new(nr_pcpus: usize) -> Self {
        let queue = RunQueue::new(nr_pcpus, 64, Ticks::new(SLICE));
        let mut machine = Self { queue, now: 0, doing: vec![(None, u64::MAX); nr_pcpus], tasks: vec![], pokes: 0 };
        machine.serve((1 << nr_pcpus) - 1);
        machine
    }

    /// Adds a task of a domain of its own, which wakes up at once.
    fn add(&mut self, habit: Habit, weight: u32, affinity: u64) -> usize {
        let domain = self.tasks.len();
        let seat = self.queue.add(Who { domain, vcpu: 0 }, 0).unwrap();
        let _ = self.queue.set_share(domain, weight, 0);
        let _ = self.queue.set_affinity(seat, affinity, Ticks::new(self.now));
        let left = Self::burst(habit);
        self.tasks.push(Task {
            seat,
            habit,
            affinity,
            left,
            ran: 0,
            woken_at: None,
            ready_since: None,
            worst_latency: 0,
            worst_wait: 0,
        });
        self.wake(domain);
        domain
    }

    fn burst(habit: Habit) -> u64 {
        match habit {
            Habit::Computes => u64::MAX / 2,
            Habit::Sleeps(run, _) | Habit::Wakes(run, _) => run,
        }
    }

    fn wake(&mut self, task: usize) {
        if self.tasks[task].ready_since.is_none() && !self.doing.iter().any(|doing| doing.0 == Some(task)) {
            self.tasks[task].woken_at = Some(self.now);
            self.tasks[task].ready_since = Some(self.now);
        }
        let pokes = self.queue.wake(self.tasks[task].seat, Ticks::new(self.now));
        self.serve(pokes);
    }

    /// The pCPUs named ask the queue, and those that it names then.
    fn serve(&mut self, mut pokes: u64) {
        let mut rounds = 0;
        while pokes != 0 {
            rounds += 1;
            assert!(rounds < 1000, "pCPUs poke each other for ever");
            let pcpu = pokes.trailing_zeros() as usize;
            pokes &= pokes - 1;
            self.pokes += 1;
            if let (Some(task), _) = self.doing[pcpu] {
                self.queue.stop(pcpu, Ticks::new(self.now), Stop::Ready);
                self.tasks[task].ready_since = Some(self.now);
            }
            pokes |= self.ask(pcpu);
        }
    }

    fn ask(&mut self, pcpu: usize) -> u64 {
        let (next, others) = self.queue.next(pcpu, Ticks::new(self.now));
        assert_eq!(others & 1 << pcpu, 0, "it asks already");
        self.doing[pcpu] = match next {
            Next::Idle { until } => (None, until.raw()),
            Next::Run { who, until, .. } => {
                let task = &mut self.tasks[who.domain];
                assert!(task.affinity & 1 << pcpu != 0, "it may not run there");
                if let Some(since) = task.woken_at.take() {
                    task.worst_latency = task.worst_latency.max(self.now - since);
                }
                // One whose sleep ended by itself has been ready since then.
                let since = task.ready_since.take().unwrap_or(self.now);
                task.worst_wait = task.worst_wait.max(self.now - since);
                (Some(who.domain), until.raw())
            }
        };
        others
    }

    /// Goes to the next moment at which something happens.
    fn step(&mut self, end: u64) {
        let ends = |(task, until): &(Option<usize>, u64)| {
            task.map_or(*until, |task| (*until).min(self.now.saturating_add(self.tasks[task].left)))
        };
        let (pcpu, at) = self.doing.iter().map(ends).enumerate().min_by_key(|(_, at)| *at).unwrap();
        let at = at.min(end);
        let passed = at - self.now;
        for task in self.doing.iter().filter_map(|doing| doing.0) {
            self.tasks[task].ran += passed;
            self.tasks[task].left -= passed;
        }
        self.now = at;
        if at == end {
            return;
        }
        let now = Ticks::new(at);
        let mut woken = None;
        if let (Some(index), _) = self.doing[pcpu] {
            let task = &mut self.tasks[index];
            let stop = match task.habit {
                _ if task.left > 0 => Stop::Ready,
                Habit::Sleeps(_, sleep) => Stop::Asleep { until: Ticks::new(at + sleep) },
                Habit::Wakes(_, other) => {
                    woken = Some(other);
                    Stop::Asleep { until: NEVER }
                }
                Habit::Computes => Stop::Ready,
            };
            if task.left == 0 {
                task.left = Self::burst(task.habit);
            }
            if let Stop::Asleep { until } = stop {
                // Not before then.
                task.woken_at = (until != NEVER).then_some(until.raw());
                task.ready_since = task.woken_at;
            } else {
                task.ready_since = Some(at);
            }
            self.queue.stop(pcpu, now, stop);
            self.doing[pcpu] = (None, u64::MAX);
        }
        if let Some(other) = woken {
            // Its pCPU goes on to the next one afterwards, as a sender that then blocks does.
            let pokes = self.queue.wake(self.tasks[other].seat, now);
            if self.tasks[other].ready_since.is_none() && !self.doing.iter().any(|doing| doing.0 == Some(other)) {
                self.tasks[other].woken_at = Some(at);
                self.tasks[other].ready_since = Some(at);
            }
            self.serve(pokes & !(1 << pcpu));
        }
        let others = self.ask(pcpu);
        self.serve(others);
        self.check_work();
    }

    /// No pCPU idles while somebody waits who may run there.
    fn check_work(&self) {
        for (pcpu, _) in self.doing.iter().enumerate().filter(|(_, doing)| doing.0.is_none()) {
            for (index, task) in self.tasks.iter().enumerate() {
                let waits = task.ready_since.is_some_and(|since| since < self.now) && self.queue.share(index).1 == 0;
                assert!(!waits || task.affinity & 1 << pcpu == 0, "task {index} waits while pCPU {pcpu} idles");
            }
        }
    }

    fn run(&mut self, time: u64) {
        let end = self.now + time;
        while self.now < end {
            self.step(end);
        }
    }

    fn share(&self, task: usize) -> f64 {
        self.tasks[task].ran as f64 / self.now as f64
    }
}

/// What tasks that compute for ever are due: by weight, but none more than one pCPU.
fn due(weights: &[u32], nr_pcpus: usize) -> Vec<f64> {
    let mut due = vec![0.0; weights.len()];
    let mut open: Vec<usize> = (0..weights.len()).collect();
    let mut left = nr_pcpus as f64;
    loop {
        let total: u32 = open.iter().map(|i| weights[*i]).sum();
        let (full, rest): (Vec<usize>, Vec<usize>) =
            open.iter().partition(|i| f64::from(weights[**i]) / f64::from(total) * left >= 1.0);
        if full.is_empty() {
            for i in rest {
                due[i] = f64::from(weights[i]) / f64::from(total) * left;
            }
            return due;
        }
        for i in full {
            due[i] = 1.0;
            left -= 1.0;
        }
        open = rest;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn those_who_compute_share_by_weight(
        weights in prop::collection::vec(prop_oneof![Just(64), Just(256), Just(512), 100_u32..1000], 1..9),
        nr_pcpus in 1_usize..5,
    ) {
        let mut machine = Machine::new(nr_pcpus);
        for weight in &weights {
            machine.add(Habit::Computes, *weight, u64::MAX);
        }
        machine.run(10_000 * MS);
        for (task, due) in due(&weights, nr_pcpus).into_iter().enumerate() {
            let share = machine.share(task);
            prop_assert!((share - due).abs() < 0.02, "task {task} of {weights:?} on {nr_pcpus}: {share:.3}, due {due:.3}");
        }
    }

    #[test]
    fn whoever_needs_little_runs_at_once(
        hogs in 1_usize..8,
        nr_pcpus in 1_usize..5,
        run in 10_000_u64..500_000,
        sleep in 10_000_000_u64..100_000_000,
    ) {
        let mut machine = Machine::new(nr_pcpus);
        for _ in 0..hogs {
            machine.add(Habit::Computes, DEFAULT_WEIGHT, u64::MAX);
        }
        let task = machine.add(Habit::Sleeps(run, sleep), DEFAULT_WEIGHT, u64::MAX);
        // All begin at once, so at first it has to wait its turn.
        machine.run(300 * MS);
        machine.tasks[task].worst_latency = 0;
        machine.run(3_000 * MS);
        prop_assert_eq!(machine.tasks[task].worst_latency, 0);
        let wanted = run as f64 / (run + sleep) as f64;
        prop_assert!((machine.share(task) - wanted).abs() < wanted / 20.0 + 0.001);
    }

    #[test]
    fn nobody_waits_longer_than_a_round(
        habits in prop::collection::vec(
            prop_oneof![
                Just(Habit::Computes),
                (1_u64..30 * MS, 1_u64..30 * MS).prop_map(|(run, sleep)| Habit::Sleeps(run, sleep))
            ],
            1..10
        ),
        nr_pcpus in 1_usize..5,
    ) {
        let mut machine = Machine::new(nr_pcpus);
        for habit in &habits {
            machine.add(*habit, DEFAULT_WEIGHT, u64::MAX);
        }
        machine.run(3_000 * MS);
        // A slice of each of the others, and what each may come back with as a credit.
        let bound = habits.len() as u64 * (SLICE + SLICE);
        for task in &machine.tasks {
            prop_assert!(task.worst_wait <= bound, "waited {} ms", task.worst_wait / MS);
        }
    }

    #[test]
    fn pinned_tasks_run_where_they_may_and_no_cpu_is_left_idle(
        tasks in prop::collection::vec((1_u64..16, any::<bool>()), 1..10),
    ) {
        let mut machine = Machine::new(4);
        for (affinity, computes) in &tasks {
            let habit = if *computes { Habit::Computes } else { Habit::Sleeps(3 * MS, 5 * MS) };
            machine.add(habit, DEFAULT_WEIGHT, *affinity);
        }
        machine.run(2_000 * MS);
        let bound = tasks.len() as u64 * 4 * SLICE;
        for task in &machine.tasks {
            prop_assert!(task.worst_wait <= bound, "waited {} ms", task.worst_wait / MS);
        }
    }
}

#[test]
fn a_pair_that_wakes_each_other_does_not_keep_others_out() {
    for (nr_pcpus, nr_hogs) in [(1, 1), (1, 2), (2, 3)] {
        let mut machine = Machine::new(nr_pcpus);
        let pair = [0, 1].map(|i| machine.add(Habit::Wakes(20_000, 1 - i), DEFAULT_WEIGHT, u64::MAX));
        let hogs: Vec<usize> = (0..nr_hogs).map(|_| machine.add(Habit::Computes, DEFAULT_WEIGHT, u64::MAX)).collect();
        machine.run(5_000 * MS);
        let due = nr_pcpus as f64 / (2 + nr_hogs) as f64;
        for hog in hogs {
            assert!(machine.share(hog) > due * 0.95, "a hog got {:.3} of {due:.3}", machine.share(hog));
        }
        // One of the pair sleeps at any time, so together they are due what one task is.
        let both = nr_pcpus as f64 / (1 + nr_hogs) as f64;
        let got = pair.iter().map(|task| machine.share(*task)).sum::<f64>();
        assert!(got > both * 0.9, "the pair got {got:.3} of {both:.3}");
    }
}

#[test]
fn a_cap_holds_and_what_it_leaves_is_used() {
    let mut machine = Machine::new(1);
    let capped = machine.add(Habit::Computes, DEFAULT_WEIGHT, u64::MAX);
    let pokes = machine.queue.set_share(capped, DEFAULT_WEIGHT, 30);
    machine.serve(pokes);
    machine.run(5_000 * MS);
    assert!((machine.share(capped) - 0.3).abs() < 0.02, "alone: {:.3}", machine.share(capped));
    let other = machine.add(Habit::Computes, DEFAULT_WEIGHT, u64::MAX);
    let before = machine.tasks[other].ran;
    machine.run(5_000 * MS);
    let share = (machine.tasks[other].ran - before) as f64 / (5_000 * MS) as f64;
    assert!((share - 0.7).abs() < 0.02, "the other one: {share:.3}");
}

#[test]
fn whoever_had_a_cpu_alone_shares_it_soon() {
    let mut machine = Machine::new(2);
    machine.add(Habit::Computes, DEFAULT_WEIGHT, 0b01);
    machine.add(Habit::Computes, DEFAULT_WEIGHT, 0b01);
    let alone = machine.add(Habit::Computes, DEFAULT_WEIGHT, 0b10);
    machine.run(10_000 * MS);
    assert!(machine.share(alone) > 0.99);
    machine.add(Habit::Computes, DEFAULT_WEIGHT, 0b10);
    machine.tasks[alone].worst_wait = 0;
    machine.run(1_000 * MS);
    assert!(machine.tasks[alone].worst_wait <= 5 * SLICE, "{} ms", machine.tasks[alone].worst_wait / MS);
}

#[test]
fn one_that_runs_alone_is_left_alone() {
    let mut machine = Machine::new(2);
    machine.add(Habit::Computes, DEFAULT_WEIGHT, u64::MAX);
    machine.add(Habit::Computes, DEFAULT_WEIGHT, u64::MAX);
    let pokes = machine.pokes;
    machine.run(1_000 * MS);
    assert_eq!(machine.pokes, pokes);
    assert!(machine.doing.iter().all(|doing| doing.1 <= 1_000 * MS + 10 * SLICE), "no run is endless");
}

#[test]
fn a_wake_up_tells_one_pcpu() {
    let mut queue = RunQueue::new(4, 64, Ticks::new(SLICE));
    let seats: Vec<SeatId> = (0..4).map(|domain| queue.add(Who { domain, vcpu: 0 }, domain).unwrap()).collect();
    let now = Ticks::new(5);
    for pcpu in 0..4 {
        assert_eq!(queue.next(pcpu, now), (Next::Idle { until: NEVER }, 0));
    }
    for (pcpu, seat) in seats.iter().enumerate() {
        assert_eq!(queue.wake(*seat, now), 1 << pcpu, "the one where it was");
        assert_eq!(queue.wake(*seat, now), 0, "it is awake");
        assert!(matches!(queue.next(pcpu, now), (Next::Run { seat: found, .. }, 0) if found == *seat));
    }
}

#[test]
fn a_place_can_be_taken_away_wherever_its_vcpu_is() {
    let mut queue = RunQueue::new(1, 64, Ticks::new(SLICE));
    let who = Who { domain: 1, vcpu: 0 };
    let now = Ticks::new(5);
    let running = queue.add(who, 0).unwrap();
    let ready = queue.add(who, 0).unwrap();
    let asleep = queue.add(who, 0).unwrap();
    let _ = queue.wake(asleep, now);
    let _ = queue.next(0, now);
    queue.stop(0, now, Stop::Asleep { until: Ticks::new(100) });
    let _ = (queue.wake(running, now), queue.wake(ready, now));
    assert!(matches!(queue.next(0, now), (Next::Run { seat, .. }, _) if seat == running));
    for seat in [running, ready, asleep] {
        queue.remove(seat);
    }
    queue.stop(0, now, Stop::Ready);
    assert_eq!(queue.next(0, Ticks::new(200)).0, Next::Idle { until: NEVER });
    assert_eq!(queue.wake(ready, now), 0);
    assert_eq!(queue.add(who, 0), Some(running), "a free place is used again");
}
