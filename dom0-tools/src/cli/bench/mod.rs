// SPDX-License-Identifier: MIT OR Apache-2.0
//! `isthmus bench`: what single operations cost, in ticks of the TSC.

pub mod devices;

use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use guest_abi::isthmus::{GrantStats, REASON_NAMES};
use guest_abi::{DomId, Gfn, VcpuId};
use serde::Serialize;

use super::counters::hypercall_name;
use crate::sys::clock::tsc;
use crate::sys::privcmd::{Interface, Privcmd, Snapshot};
use crate::toolstack::Toolstack;

/// Frames that are mapped at once, and where a guest has RAM.
const FRAMES: u64 = 256;
const FIRST_FRAME: u64 = 0x1000;
/// Calls between two readings of the time-stamp counter, where one call is too short.
const CALLS: u64 = 100;

/// Ticks of one operation over many repetitions.
#[derive(Debug, Serialize)]
struct Ticks {
    operation: &'static str,
    repetitions: usize,
    minimum: u64,
    median: u64,
    mean: u64,
}

impl Ticks {
    fn of(operation: &'static str, mut samples: Vec<u64>) -> Self {
        samples.sort_unstable();
        let repetitions = samples.len();
        let count = u64::try_from(repetitions).unwrap_or(u64::MAX);
        let mean = samples.iter().sum::<u64>() / count.max(1);
        let at = |index: usize| samples.get(index).copied().unwrap_or(0);
        Self { operation, repetitions, minimum: at(0), median: at(repetitions / 2), mean }
    }

    fn print(&self, json: bool) -> Result<()> {
        if json {
            println!("{}", serde_json::to_string(self)?);
        } else {
            let Self { operation, repetitions, minimum, median, mean } = self;
            println!("{operation}: {median} ticks (minimum {minimum}, mean {mean}, {repetitions} times)");
        }
        Ok(())
    }
}

/// Measures a hypercall that does nothing but answer, made through privcmd: the system call is in it.
///
/// # Errors
/// This is no domain.
pub fn null_hypercall(repetitions: usize, json: bool) -> Result<()> {
    ensure!(repetitions > 0, "0 repetitions measure nothing");
    let privcmd = Privcmd::open()?;
    let mut samples = Vec::with_capacity(repetitions);
    for _ in 0..repetitions {
        let start = tsc();
        privcmd.version()?;
        samples.push(tsc() - start);
    }
    Ticks::of("null-hypercall", samples).print(json)
}

/// Measures mapping, touching and unmapping 256 frames of a guest.
///
/// # Errors
/// There is no such guest, or it has less than 20 MiB.
pub fn foreign_map(guest: &str, repetitions: usize, json: bool) -> Result<()> {
    let tools = Toolstack::open()?;
    let domain = tools.find(guest)?.id;
    let frames: Vec<Gfn> = (FIRST_FRAME..FIRST_FRAME + FRAMES).map(Gfn::new).collect();
    let mut samples = Vec::with_capacity(repetitions);
    for _ in 0..repetitions {
        let start = tsc();
        let pages = tools.privcmd.map_pages(domain, &frames, false, Interface::BatchV2)?;
        for index in 0..frames.len() {
            let window = pages.page(index).map_err(|error| anyhow::anyhow!("{error}"))?;
            window.read(0, &mut [0; 8]);
        }
        drop(pages);
        samples.push(tsc() - start);
    }
    Ticks::of("foreign-map-256", samples).print(json)
}

/// Measures what it costs to ask for the time. This works on any machine.
///
/// # Errors
/// Standard output is closed.
pub fn clock(repetitions: usize, json: bool) -> Result<()> {
    let sample = |_| {
        let start = tsc();
        for _ in 0..CALLS {
            std::hint::black_box(SystemTime::now());
        }
        (tsc() - start) / CALLS
    };
    Ticks::of("clock", (0..repetitions).map(sample).collect()).print(json)
}

/// Measures a command from its start to its end, with whatever else the machine does meanwhile.
///
/// # Errors
/// It cannot be started, or fails.
pub fn command(words: &[String], json: bool) -> Result<()> {
    let [program, arguments @ ..] = words else { return Ok(()) };
    let start = tsc();
    let status = Command::new(program).args(arguments).status().with_context(|| format!("starting {program}"))?;
    let ticks = tsc() - start;
    ensure!(status.success(), "{program} ended with {status}");
    Ticks::of("command", vec![ticks]).print(json)
}

/// What an operation has cost, all repetitions together.
#[derive(Debug, Serialize)]
struct Cost {
    operation: &'static str,
    repetitions: u32,
    /// Exits of the domains that were looked at.
    exits: u64,
    /// Ticks from their exits to their entries, and of all CPUs between runs.
    ticks: u64,
    /// Ticks of the whole machine.
    passed: u64,
    /// How often a CPU halted: then not all ticks that passed were instructions.
    halts: u64,
    /// Exits by domain and reason.
    reasons: Vec<(u16, &'static str, u64)>,
    /// Ticks by domain and reason.
    ticks_of: Vec<(u16, &'static str, u64)>,
    /// Hypercalls by domain and name.
    calls: Vec<(u16, &'static str, u64)>,
    /// Pages of each domain that others mapped, and pieces that they copied.
    grants: Vec<(u16, &'static str, u64)>,
}

/// What has been counted so far.
struct Counted {
    /// Exits of each domain, by reason, and their ticks.
    exits: Vec<Vec<u64>>,
    ticks_of: Vec<Vec<u64>>,
    /// Pages mapped and pieces copied of each domain.
    grants: Vec<Vec<u64>>,
    /// Hypercalls of each domain, by number.
    calls: Vec<Vec<u64>>,
    ticks: u64,
    halts: u64,
}

impl Counted {
    fn read(privcmd: &Privcmd, domains: &[DomId]) -> Result<Self> {
        let cpus = privcmd.cpus()?;
        let mut counted = Self {
            exits: Vec::new(),
            ticks_of: Vec::new(),
            grants: Vec::new(),
            calls: Vec::new(),
            ticks: cpus.iter().map(|cpu| cpu.ticks).sum(),
            halts: cpus.iter().map(|cpu| cpu.halts).sum(),
        };
        for domain in domains {
            let nr_vcpus = privcmd.counters(*domain, VcpuId::new(0))?.nr_vcpus;
            let vcpus = (0..u32::from(nr_vcpus)).map(|vcpu| privcmd.counters(*domain, VcpuId::new(vcpu)));
            let vcpus: Vec<Snapshot> = vcpus.collect::<Result<_, _>>()?;
            let total = |list: fn(&Snapshot) -> &Vec<u64>| {
                let longest = vcpus.iter().map(|vcpu| list(vcpu).len()).max().unwrap_or(0);
                (0..longest).map(|at| vcpus.iter().filter_map(|vcpu| list(vcpu).get(at)).sum()).collect::<Vec<u64>>()
            };
            counted.exits.push(total(|vcpu| &vcpu.exits));
            counted.calls.push(total(|vcpu| &vcpu.hypercalls));
            let ticks = total(|vcpu| &vcpu.ticks);
            counted.ticks += ticks.iter().sum::<u64>();
            counted.ticks_of.push(ticks);
            let grants = privcmd.grant_stats(*domain)?;
            let sum = |of: fn(&GrantStats) -> u64| grants.iter().map(of).sum();
            counted.grants.push(vec![sum(|user| user.read_maps + user.write_maps), sum(|user| user.copies)]);
        }
        Ok(counted)
    }
}

/// What has grown, by domain and name.
fn grown(
    domains: &[DomId],
    (before, after): (&[Vec<u64>], &[Vec<u64>]),
    name: impl Fn(usize) -> &'static str,
) -> Vec<(u16, &'static str, u64)> {
    let mut all = Vec::new();
    for ((domain, before), after) in domains.iter().zip(before).zip(after) {
        let grown = before.iter().zip(after).map(|(before, after)| after - before).enumerate();
        all.extend(grown.filter(|(_, count)| *count > 0).map(|(at, count)| (domain.raw(), name(at), count)));
    }
    all
}

impl Cost {
    /// Counts what `act` costs, which does the operation as often as is said, with all else that happens meanwhile.
    fn of(
        operation: &'static str,
        domains: &[DomId],
        repetitions: u32,
        act: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        ensure!(repetitions > 0, "0 repetitions measure nothing");
        let privcmd = Privcmd::open()?;
        let (before, start) = (Counted::read(&privcmd, domains)?, tsc());
        act().context(operation)?;
        let (passed, after) = (tsc() - start, Counted::read(&privcmd, domains)?);
        let reason = |at| REASON_NAMES.get(at).copied().unwrap_or("unknown");
        let reasons = grown(domains, (&before.exits, &after.exits), reason);
        let ticks_of = grown(domains, (&before.ticks_of, &after.ticks_of), reason);
        let grants = grown(domains, (&before.grants, &after.grants), |at| ["mapped", "copied"][at]);
        let calls = grown(domains, (&before.calls, &after.calls), hypercall_name);
        let exits = reasons.iter().map(|(.., count)| count).sum();
        let (ticks, halts) = (after.ticks - before.ticks, after.halts - before.halts);
        Ok(Self { operation, repetitions, exits, ticks, passed, halts, reasons, ticks_of, calls, grants })
    }

    fn print(&self, json: bool) -> Result<()> {
        if json {
            println!("{}", serde_json::to_string(self)?);
            return Ok(());
        }
        let each = |total: u64| total / u64::from(self.repetitions);
        println!(
            "{}: {}.{:02} exits, {} ticks in the hypervisor, {} ticks passed, each of {}",
            self.operation,
            each(self.exits),
            each(self.exits * 100) % 100,
            each(self.ticks),
            each(self.passed),
            self.repetitions
        );
        Ok(())
    }
}

/// Measures what the hypervisor does for a thread that sleeps for a millisecond.
///
/// # Errors
/// This is not the control domain.
pub fn sleep(repetitions: u32, json: bool) -> Result<()> {
    let act = || {
        (0..repetitions).for_each(|_| std::thread::sleep(Duration::from_millis(1)));
        Ok(())
    };
    Cost::of("sleep-1ms", &[DomId::SELF], repetitions, act)?.print(json)
}

#[cfg(test)]
mod tests {
    use super::Ticks;

    #[test]
    fn one_slow_call_does_not_move_the_median() {
        let ticks = Ticks::of("x", vec![10, 1_000, 12, 11, 9]);
        assert_eq!((ticks.minimum, ticks.median, ticks.mean), (9, 11, 208));
    }
}
