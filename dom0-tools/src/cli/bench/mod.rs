// SPDX-License-Identifier: MIT OR Apache-2.0
//! `isthmus bench`: what single operations cost, in ticks of the TSC.

use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use guest_abi::{DomId, Gfn, VcpuId};
use serde::Serialize;

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

/// What the hypervisor has done for an operation of this domain, all repetitions together.
#[derive(Debug, Serialize)]
struct Cost {
    operation: &'static str,
    repetitions: u32,
    /// Exits of this domain.
    exits: u64,
    /// Ticks from its exits to its entries, and of all CPUs between runs.
    ticks: u64,
    /// Ticks of the whole machine.
    passed: u64,
}

impl Cost {
    /// Counts what `operation` costs, with all else that happens meanwhile.
    fn of(operation: &'static str, repetitions: u32, mut act: impl FnMut()) -> Result<Self> {
        let privcmd = Privcmd::open()?;
        let read = || -> Result<(u64, u64)> {
            let nr_vcpus = privcmd.counters(DomId::SELF, VcpuId::new(0))?.nr_vcpus;
            let vcpus = (0..u32::from(nr_vcpus)).map(|vcpu| privcmd.counters(DomId::SELF, VcpuId::new(vcpu)));
            let vcpus = vcpus.collect::<Result<Vec<_>, _>>()?;
            let between: u64 = privcmd.cpus()?.iter().map(|cpu| cpu.ticks).sum();
            let total = |list: fn(&Snapshot) -> &Vec<u64>| vcpus.iter().flat_map(list).sum::<u64>();
            Ok((total(|vcpu| &vcpu.exits), total(|vcpu| &vcpu.ticks) + between))
        };
        let (before, start) = (read()?, tsc());
        (0..repetitions).for_each(|_| act());
        let (passed, after) = (tsc() - start, read()?);
        Ok(Self { operation, repetitions, exits: after.0 - before.0, ticks: after.1 - before.1, passed })
    }
}

/// Measures what the hypervisor does for a thread that sleeps for a millisecond.
///
/// # Errors
/// This is not the control domain.
pub fn sleep(repetitions: u32, json: bool) -> Result<()> {
    ensure!(repetitions > 0, "0 repetitions measure nothing");
    let cost = Cost::of("sleep-1ms", repetitions, || std::thread::sleep(Duration::from_millis(1)))?;
    if json {
        println!("{}", serde_json::to_string(&cost)?);
    } else {
        let each = |total: u64| total / u64::from(repetitions);
        println!(
            "{}: {}.{:02} exits, {} ticks in the hypervisor, {} ticks passed, each of {repetitions}",
            cost.operation,
            each(cost.exits),
            each(cost.exits * 100) % 100,
            each(cost.ticks),
            each(cost.passed)
        );
    }
    Ok(())
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
