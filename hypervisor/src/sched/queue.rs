// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who runs where: one queue of ready vCPUs for all pCPUs, in the order of virtual time.
//!
//! A vCPU's *virtual time* is the time that it has run, divided by its weight. A pCPU takes the ready
//! vCPU with the least of it, so over time each gets CPU by its weight, whichever pCPUs they run on:
//! with one queue there is nothing to balance, and no pCPU idles while somebody waits. The price is
//! one lock, held for some hundred instructions at a wake-up and a switch; per-pCPU queues would have
//! to be kept fair among each other, at more cost in code than this machine's CPUs are worth.
//!
//! *Waking up.* Who slept comes back with the virtual time of those who did not, less a credit of
//! [`CREDIT`] slices, and so goes before everybody that uses its share up: it preempts at once. It
//! cannot live on that: what it runs counts, and once it has used its credit it waits its turn.
//! *Lag.* Nobody gets further ahead of those who wait than two of its own slices, nor further behind. So
//! a vCPU that had a pCPU to itself (others being pinned elsewhere) is not made to wait for long when
//! that ends, and one whose weight is worth more than one pCPU saves nothing up.
//! *Caps.* A domain's cap is a budget a period; when it is used up its vCPUs wait for the next period.
//!
//! Nothing here knows vCPUs, locks or interrupts; what other pCPUs have to be told is returned. So the
//! tests simulate machines with it.

use alloc::vec::Vec;
use core::cmp::Reverse;

use crate::addr::Ticks;
use crate::vcpu::NEVER;

/// A vCPU's place in the queue.
pub type SeatId = usize;

/// The weight of a domain that nobody has given another.
pub const DEFAULT_WEIGHT: u32 = 256;
/// Slices a period of caps.
const PERIOD_SLICES: u64 = 5;
/// A slice divided by this is the shortest that a vCPU of little weight gets.
const SHORTEST: u64 = 10;
/// A slice divided by this is what one who wakes up may be behind those who did not sleep.
const CREDIT: u64 = 2;
/// A slice divided by this is the lead that is not worth a preemption, or a migration.
const GRAIN: u64 = 16;
/// Slices that a vCPU runs at most while nobody waits. A kick comes much sooner; this is for what no kick makes exit.
const ALONE: u64 = 10;

/// A vCPU, as the queue names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who {
    /// The domain's place in the table of domains.
    pub domain: usize,
    /// The vCPU's number.
    pub vcpu: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Asleep,
    Ready,
    Running,
}

struct Seat {
    who: Who,
    state: State,
    vtime: u64,
    weight: u32,
    affinity: u64,
    /// The pCPU where it last ran, which watches its timer while it sleeps.
    last: usize,
    wake_at: Ticks,
    ready_since: Ticks,
}

/// One pCPU.
#[derive(Clone, Copy)]
struct Pcpu {
    running: Option<SeatId>,
    since: Ticks,
}

/// A domain's budget.
#[derive(Clone, Copy, Default)]
struct Cap {
    percent: u32,
    period: u64,
    used: u64,
}

/// What a pCPU does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It runs this vCPU.
    Run {
        /// Its place.
        seat: SeatId,
        /// Who it is.
        who: Who,
        /// When to ask again at the latest.
        until: Ticks,
        /// Since when it has waited for a pCPU.
        ready_since: Ticks,
    },
    /// It has nothing to run.
    Idle {
        /// When to ask again at the latest.
        until: Ticks,
    },
}

/// Why a vCPU no longer runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It could go on.
    Ready,
    /// It could go on, and lets others go first.
    Yields,
    /// It waits to be woken, or for a time.
    Asleep {
        /// The time; [`NEVER`] for none.
        until: Ticks,
    },
}

/// The queue.
pub struct RunQueue {
    seats: Vec<Option<Seat>>,
    /// By virtual time.
    ready: Vec<SeatId>,
    /// Those that wait for a time, by that time.
    sleepers: Vec<SeatId>,
    pcpus: Vec<Pcpu>,
    /// pCPUs that idle and have not been told of anything.
    idle: u64,
    /// pCPUs whose vCPU runs without end, because nobody waited when it began.
    endless: u64,
    /// The virtual time of the least served of all; never goes back.
    base: u64,
    /// The same of those that wait, if somebody does.
    floor: u64,
    caps: Vec<Cap>,
    slice: u64,
}

impl RunQueue {
    /// A queue for pCPUs 0 to `nr_pcpus` - 1 and domains below `nr_domains`. `slice` is how long a vCPU
    /// runs while others wait, if it has the usual weight or more.
    #[must_use]
    pub fn new(nr_pcpus: usize, nr_domains: usize, slice: Ticks) -> Self {
        let mut caps = Vec::new();
        caps.resize(nr_domains, Cap::default());
        let mut pcpus = Vec::new();
        pcpus.resize(nr_pcpus, Pcpu { running: None, since: Ticks::new(0) });
        // Above 0, so that the first who wake up have their credit too.
        let floor = slice.raw();
        let (seats, ready, sleepers) = (Vec::new(), Vec::new(), Vec::new());
        Self { seats, ready, sleepers, pcpus, idle: 0, endless: 0, base: floor, floor, caps, slice: slice.raw() }
    }

    /// Gives a vCPU a place, asleep. `home` is the pCPU that it prefers at first. `None` when memory ran out.
    pub fn add(&mut self, who: Who, home: usize) -> Option<SeatId> {
        let id = self.seats.iter().position(Option::is_none).unwrap_or(self.seats.len());
        if id == self.seats.len() {
            self.seats.try_reserve(1).ok()?;
            // Every seat fits into either list, so nothing allocates later.
            self.ready.try_reserve(id + 1 - self.ready.len()).ok()?;
            self.sleepers.try_reserve(id + 1 - self.sleepers.len()).ok()?;
            self.seats.push(None);
        }
        self.seats[id] = Some(Seat {
            who,
            state: State::Asleep,
            vtime: 0,
            weight: DEFAULT_WEIGHT,
            affinity: u64::MAX,
            last: home % self.pcpus.len(),
            wake_at: NEVER,
            ready_since: Ticks::new(0),
        });
        Some(id)
    }

    /// Takes a place away, wherever its vCPU is.
    pub fn remove(&mut self, id: SeatId) {
        self.ready.retain(|other| *other != id);
        self.sleepers.retain(|other| *other != id);
        for pcpu in self.pcpus.iter_mut().filter(|pcpu| pcpu.running == Some(id)) {
            pcpu.running = None;
        }
        if let Some(seat) = self.seats.get_mut(id) {
            *seat = None;
        }
    }

    /// A vCPU has something to do. Returns the pCPUs that have to ask [`RunQueue::next`] for that.
    #[must_use]
    pub fn wake(&mut self, id: SeatId, now: Ticks) -> u64 {
        match self.seats.get(id) {
            Some(Some(seat)) if seat.state == State::Asleep => {}
            _ => return 0,
        }
        self.sleepers.retain(|other| *other != id);
        self.raise_floors(now);
        let credited = self.base.saturating_sub(self.slice / CREDIT);
        let seat = self.seat_mut(id);
        seat.vtime = seat.vtime.max(credited);
        self.enqueue(id, now);
        self.place(id, now)
    }

    /// The vCPU that runs on a pCPU no longer does.
    pub fn stop(&mut self, pcpu: usize, now: Ticks, how: Stop) {
        // With the one that stops, which may be the least served.
        self.raise_floors(now);
        let Some(id) = self.pcpus[pcpu].running.take() else { return };
        self.endless &= !(1 << pcpu);
        let ran = now.raw().saturating_sub(self.pcpus[pcpu].since.raw());
        let (floor, slice) = (self.floor, self.slice);
        let seat = self.seat_mut(id);
        // A slice is as long in virtual time for everybody, unless it would be too short to be worth it.
        let lag = 2 * slice.max(scaled(slice / SHORTEST, seat.weight));
        let vtime = seat.vtime.saturating_add(scaled(ran, seat.weight));
        seat.vtime = vtime.clamp(floor.saturating_sub(lag), floor.saturating_add(lag));
        let domain = seat.who.domain;
        self.charge(domain, ran, now);
        match how {
            Stop::Ready => self.enqueue(id, now),
            Stop::Yields => {
                // Behind the first of those that wait.
                let first = self.ready.first().map_or(0, |first| self.seat(*first).vtime);
                let seat = self.seat_mut(id);
                seat.vtime = seat.vtime.max(first);
                self.enqueue(id, now);
            }
            Stop::Asleep { until } => {
                let seat = self.seat_mut(id);
                (seat.state, seat.wake_at) = (State::Asleep, until);
                if until != NEVER {
                    let at = self.sleepers.partition_point(|other| self.seat(*other).wake_at <= until);
                    self.sleepers.insert(at, id);
                }
            }
        }
    }

    /// What a pCPU does next; it runs nobody. The second part is the pCPUs that have to ask too.
    #[must_use]
    pub fn next(&mut self, pcpu: usize, now: Ticks) -> (Next, u64) {
        // It is as good a place as any for those whose time has come.
        self.idle |= 1 << pcpu;
        let mut others = 0;
        while let Some(id) = self.sleepers.first().copied().filter(|id| self.seat(*id).wake_at <= now) {
            others |= self.wake(id, now);
        }
        let timer = self.sleepers.iter().map(|id| self.seat(*id)).find(|seat| seat.last == pcpu);
        let until = timer.map_or(NEVER, |seat| seat.wake_at);
        let Some(id) = self.choose(pcpu, now) else {
            self.idle |= 1 << pcpu;
            return (Next::Idle { until: until.min(self.end_of_caps(pcpu, now)) }, others & !(1 << pcpu));
        };
        self.idle &= !(1 << pcpu);
        self.ready.retain(|other| *other != id);
        self.pcpus[pcpu] = Pcpu { running: Some(id), since: now };
        let seat = self.seat_mut(id);
        (seat.state, seat.last) = (State::Running, pcpu);
        let (who, ready_since, weight) = (seat.who, seat.ready_since, seat.weight);
        let is_wanted = self.ready.iter().any(|id| self.may_run(*id, pcpu, now));
        let (slice, slice_end) = if is_wanted {
            (self.slice_of(weight), NEVER)
        } else {
            self.endless |= 1 << pcpu;
            (self.slice * ALONE, self.end_of_caps(pcpu, now))
        };
        let slice_end = slice_end.min(Ticks::new(now.raw() + slice));
        let until = until.min(slice_end).min(self.end_of_budget(who.domain, now));
        others |= self.bystanders(now);
        (Next::Run { seat: id, who, until, ready_since }, others & !(1 << pcpu))
    }

    /// Sets which pCPUs a vCPU may run on. Returns those that have to ask for that.
    #[must_use]
    pub fn set_affinity(&mut self, id: SeatId, affinity: u64, now: Ticks) -> u64 {
        let Some(Some(seat)) = self.seats.get_mut(id) else { return 0 };
        seat.affinity = affinity;
        let (state, last) = (seat.state, seat.last);
        match state {
            State::Running if affinity & 1 << last == 0 => 1 << last,
            State::Ready => self.place(id, now),
            _ => 0,
        }
    }

    /// Which pCPUs a vCPU may run on.
    #[must_use]
    pub fn affinity(&self, id: SeatId) -> u64 {
        self.seats.get(id).and_then(Option::as_ref).map_or(0, |seat| seat.affinity)
    }

    /// The pCPU on which a vCPU runs or last ran.
    #[must_use]
    pub fn last_pcpu(&self, id: SeatId) -> usize {
        self.seats.get(id).and_then(Option::as_ref).map_or(0, |seat| seat.last)
    }

    /// Whether a vCPU waits for a pCPU, and may run on this one.
    #[must_use]
    pub fn waits_for(&self, id: SeatId, pcpu: usize, now: Ticks) -> bool {
        matches!(self.seats.get(id), Some(Some(seat)) if seat.state == State::Ready) && self.may_run(id, pcpu, now)
    }

    /// Who runs on a pCPU.
    #[must_use]
    pub fn running(&self, pcpu: usize) -> Option<Who> {
        let id = self.pcpus.get(pcpu)?.running?;
        Some(self.seat(id).who)
    }

    /// Sets the weight of all vCPUs of a domain, and how many per cent of one pCPU they may use
    /// together; 0 for no limit. Returns the pCPUs that have to ask for that.
    #[must_use]
    pub fn set_share(&mut self, domain: usize, weight: u32, cap: u32) -> u64 {
        for seat in self.seats.iter_mut().flatten().filter(|seat| seat.who.domain == domain) {
            seat.weight = weight.max(1);
        }
        if let Some(own) = self.caps.get_mut(domain) {
            *own = Cap { percent: cap, ..*own };
        }
        let runs = |pcpu: &Pcpu| pcpu.running.is_some_and(|id| self.seat(id).who.domain == domain);
        self.pcpus.iter().enumerate().filter(|(_, pcpu)| runs(pcpu)).fold(self.idle, |all, (i, _)| all | 1 << i)
    }

    /// The weight and the cap of a domain.
    #[must_use]
    pub fn share(&self, domain: usize) -> (u32, u32) {
        let seat = self.seats.iter().flatten().find(|seat| seat.who.domain == domain);
        let cap = self.caps.get(domain).map_or(0, |cap| cap.percent);
        (seat.map_or(DEFAULT_WEIGHT, |seat| seat.weight), cap)
    }

    // An id in `ready`, `sleepers` or `running` always is a seat's.
    fn seat(&self, id: SeatId) -> &Seat {
        match self.seats.get(id) {
            Some(Some(seat)) => seat,
            _ => unreachable!("seat {id} is empty"),
        }
    }

    fn seat_mut(&mut self, id: SeatId) -> &mut Seat {
        match self.seats.get_mut(id) {
            Some(Some(seat)) => seat,
            _ => unreachable!("seat {id} is empty"),
        }
    }

    fn enqueue(&mut self, id: SeatId, now: Ticks) {
        let seat = self.seat_mut(id);
        (seat.state, seat.ready_since) = (State::Ready, now);
        let vtime = seat.vtime;
        let at = self.ready.partition_point(|other| self.seat(*other).vtime <= vtime);
        self.ready.insert(at, id);
    }

    /// A running vCPU's virtual time by now.
    fn running_vtime(&self, pcpu: &Pcpu, now: Ticks) -> Option<u64> {
        let seat = self.seat(pcpu.running?);
        Some(seat.vtime.saturating_add(scaled(now.raw().saturating_sub(pcpu.since.raw()), seat.weight)))
    }

    fn raise_floors(&mut self, now: Ticks) {
        let running = self.pcpus.iter().filter_map(|pcpu| self.running_vtime(pcpu, now)).min();
        let waiting = self.ready.first().map(|id| self.seat(*id).vtime);
        self.base = self.base.max(running.into_iter().chain(waiting).min().unwrap_or(0));
        self.floor = self.floor.max(waiting.or(running).unwrap_or(0));
    }

    fn may_run(&self, id: SeatId, pcpu: usize, now: Ticks) -> bool {
        let seat = self.seat(id);
        seat.affinity & 1 << pcpu != 0 && !self.is_spent(seat.who.domain, now)
    }

    /// The least served that may run here, or one that is hardly better served and ran here last.
    fn choose(&self, pcpu: usize, now: Ticks) -> Option<SeatId> {
        let mut candidates = self.ready.iter().copied().filter(|id| self.may_run(*id, pcpu, now));
        let first = candidates.next()?;
        let limit = self.seat(first).vtime.saturating_add(self.slice / GRAIN);
        let near = core::iter::once(first).chain(candidates).take_while(|id| self.seat(*id).vtime <= limit);
        Some(near.into_iter().find(|id| self.seat(*id).last == pcpu).unwrap_or(first))
    }

    /// Where one that has become ready should run at once: where nobody does, or instead of whoever is
    /// furthest ahead of it.
    fn place(&mut self, id: SeatId, now: Ticks) -> u64 {
        let seat = self.seat(id);
        if self.is_spent(seat.who.domain, now) {
            return 0;
        }
        let (idle, home) = (self.idle & seat.affinity, 1 << seat.last);
        if idle != 0 {
            let pcpu = if idle & home != 0 { home } else { idle & idle.wrapping_neg() };
            self.idle &= !pcpu;
            return pcpu;
        }
        let (vtime, affinity) = (seat.vtime.saturating_add(self.slice / GRAIN), seat.affinity);
        let lead = |pcpu: usize| self.running_vtime(&self.pcpus[pcpu], now)?.checked_sub(vtime);
        let allowed = (0..self.pcpus.len()).filter(|pcpu| affinity & 1 << pcpu != 0);
        let ahead = allowed.filter_map(|pcpu| Some((lead(pcpu)?, Reverse(1_u64 << pcpu != home), pcpu))).max();
        match ahead {
            Some((.., pcpu)) => 1 << pcpu,
            None => self.bystanders(now),
        }
    }

    /// pCPUs that could take part and do not know: idle ones, and those whose vCPU runs without end,
    /// although somebody waits who may run there.
    fn bystanders(&mut self, now: Ticks) -> u64 {
        let unaware = self.idle | self.endless;
        if unaware == 0 || self.ready.is_empty() {
            return 0;
        }
        let waiting = self.ready.iter().map(|id| self.seat(*id)).filter(|seat| !self.is_spent(seat.who.domain, now));
        let wanted = waiting.fold(0, |all, seat| all | seat.affinity) & unaware;
        self.idle &= !wanted;
        self.endless &= !wanted;
        wanted
    }

    /// How long a vCPU of some weight runs while others wait.
    fn slice_of(&self, weight: u32) -> u64 {
        let slice = self.slice * u64::from(weight) / u64::from(DEFAULT_WEIGHT);
        slice.clamp(self.slice / SHORTEST, self.slice)
    }

    const fn period(&self) -> u64 {
        self.slice * PERIOD_SLICES
    }

    const fn budget(&self, cap: &Cap) -> u64 {
        self.period() / 100 * cap.percent as u64
    }

    /// What a capped domain has used of this period's budget. What it used beyond an earlier one's counts.
    fn used(&self, cap: &Cap, now: Ticks) -> u64 {
        let periods = (now.raw() / self.period()).saturating_sub(cap.period);
        cap.used.saturating_sub(self.budget(cap).saturating_mul(periods))
    }

    fn charge(&mut self, domain: usize, ran: u64, now: Ticks) {
        let Some(cap) = self.caps.get(domain).filter(|cap| cap.percent != 0) else { return };
        let used = self.used(cap, now) + ran;
        let period = now.raw() / self.period();
        self.caps[domain] = Cap { used, period, ..self.caps[domain] };
    }

    fn is_spent(&self, domain: usize, now: Ticks) -> bool {
        self.caps.get(domain).is_some_and(|cap| cap.percent != 0 && self.used(cap, now) >= self.budget(cap))
    }

    /// When a domain that runs will have used its budget up.
    fn end_of_budget(&self, domain: usize, now: Ticks) -> Ticks {
        match self.caps.get(domain).filter(|cap| cap.percent != 0) {
            Some(cap) => Ticks::new(now.raw() + self.budget(cap).saturating_sub(self.used(cap, now)).max(1)),
            None => NEVER,
        }
    }

    /// When somebody who waits for the next period may run here again.
    fn end_of_caps(&self, pcpu: usize, now: Ticks) -> Ticks {
        let is_waiting = |id: &SeatId| self.seat(*id).affinity & 1 << pcpu != 0;
        if self.ready.iter().any(is_waiting) {
            Ticks::new((now.raw() / self.period() + 1) * self.period())
        } else {
            NEVER
        }
    }
}

/// Time in virtual time.
const fn scaled(ticks: u64, weight: u32) -> u64 {
    ticks.saturating_mul(DEFAULT_WEIGHT as u64) / weight as u64
}
