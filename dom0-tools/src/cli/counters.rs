// SPDX-License-Identifier: MIT OR Apache-2.0
//! `isthmus counters`: what each vCPU has cost, by exit reason and by hypercall; with
//! `--cpus` what each CPU has done between the runs of vCPUs.
//!
//! The hypervisor's counters only grow and nobody resets them, so that any number of readers do not
//! disturb each other: what happened in a time is the difference of two readings, which `--interval`
//! takes. A tick is one of the host's time-stamp counter; the ticks of a reason are those from an
//! exit to the next entry.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use guest_abi::hypercall as number;
use guest_abi::isthmus::{PcpuCounters, REASON_NAMES};
use guest_abi::{DomId, VcpuId};
use serde::Serialize;

use crate::sys::privcmd::{Privcmd, Snapshot};

/// One vCPU's counters; what is zero is left out.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Vcpu {
    domain: u16,
    vcpu: u32,
    state: &'static str,
    exits: u64,
    ticks: u64,
    reasons: Vec<Reason>,
    hypercalls: Vec<Hypercall>,
    /// Ticks that passed: since the machine started, or in the interval.
    tsc: u64,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Reason {
    reason: String,
    exits: u64,
    ticks: u64,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Hypercall {
    number: usize,
    name: &'static str,
    calls: u64,
}

/// Prints the counters of `domain`, or of all; with `interval` how much they grow in so many seconds.
///
/// # Errors
/// The hypervisor is not Isthmus or refuses; there is no such domain.
pub fn run(domain: Option<u16>, interval: Option<f64>, json: bool) -> Result<()> {
    let privcmd = Privcmd::open()?;
    let mut snapshots = read(&privcmd, domain)?;
    if interval.is_some() {
        pause(interval)?;
        let before = snapshots;
        snapshots = read(&privcmd, domain)?;
        snapshots.iter_mut().for_each(|now| subtract(now, &before));
    }
    let vcpus: Vec<Vcpu> = snapshots.iter().map(Vcpu::of).collect();
    if json {
        println!("{}", serde_json::to_string_pretty(&vcpus)?);
    } else {
        print!("{}", vcpus.iter().map(Vcpu::to_text).collect::<Vec<_>>().join("\n"));
    }
    Ok(())
}

/// What one CPU of the machine has done between runs of vCPUs.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Cpu {
    cpu: u32,
    /// Runs of vCPUs that it began.
    runs: u64,
    halts: u64,
    /// Interrupts that it sent to other CPUs.
    kicks: u64,
    /// Ticks that passed neither in a run nor halted.
    ticks: u64,
    /// As for [`Vcpu::tsc`].
    tsc: u64,
}

/// Prints what the CPUs have done; with `interval` what they do in so many seconds.
///
/// # Errors
/// As for [`run`].
pub fn run_cpus(interval: Option<f64>, json: bool) -> Result<()> {
    let privcmd = Privcmd::open()?;
    let before = match interval {
        Some(_) => privcmd.cpus()?,
        None => Vec::new(),
    };
    pause(interval)?;
    let cpu = |now: PcpuCounters| {
        let old = before.iter().find(|old| old.pcpu == now.pcpu).cloned().unwrap_or_default();
        Cpu {
            cpu: now.pcpu,
            runs: now.runs - old.runs,
            halts: now.halts - old.halts,
            kicks: now.kicks - old.kicks,
            ticks: now.ticks - old.ticks,
            tsc: now.tsc - old.tsc,
        }
    };
    let cpus: Vec<Cpu> = privcmd.cpus()?.into_iter().map(cpu).collect();
    if json {
        println!("{}", serde_json::to_string_pretty(&cpus)?);
    } else {
        println!("{:<6}{:>12}{:>12}{:>12}{:>16}", "CPU", "runs", "halts", "kicks", "ticks between");
        for Cpu { cpu, runs, halts, kicks, ticks, .. } in cpus {
            println!("{cpu:<6}{runs:>12}{halts:>12}{kicks:>12}{ticks:>16}");
        }
    }
    Ok(())
}

fn pause(interval: Option<f64>) -> Result<()> {
    if let Some(seconds) = interval {
        let Ok(pause) = Duration::try_from_secs_f64(seconds) else { bail!("--interval {seconds}: not a time") };
        std::thread::sleep(pause);
    }
    Ok(())
}

/// Reads every vCPU of the domain, or of all domains.
fn read(privcmd: &Privcmd, domain: Option<u16>) -> Result<Vec<Snapshot>> {
    let mut all = Vec::new();
    let mut next = domain.unwrap_or(0);
    loop {
        let first = match domain {
            Some(_) => {
                Some(privcmd.counters(DomId::new(next), VcpuId::new(0)).with_context(|| format!("domain {next}"))?)
            }
            None => privcmd.counters_from(DomId::new(next))?,
        };
        let Some(first) = first else { break };
        let id = first.domain;
        let nr_vcpus = first.nr_vcpus;
        all.push(first);
        for vcpu in 1..u32::from(nr_vcpus) {
            all.push(privcmd.counters(id, VcpuId::new(vcpu))?);
        }
        next = id.raw() + 1;
        if domain.is_some() {
            break;
        }
    }
    Ok(all)
}

/// Takes off what had been counted before. A vCPU that was not there then began at 0.
fn subtract(now: &mut Snapshot, before: &[Snapshot]) {
    let Some(old) = before.iter().find(|old| old.domain == now.domain && old.vcpu == now.vcpu) else { return };
    let lists = [(&mut now.exits, &old.exits), (&mut now.ticks, &old.ticks), (&mut now.hypercalls, &old.hypercalls)];
    for (now, old) in lists {
        now.iter_mut().zip(old).for_each(|(now, old)| *now = now.saturating_sub(*old));
    }
    now.tsc = now.tsc.saturating_sub(old.tsc);
}

impl Vcpu {
    fn of(snapshot: &Snapshot) -> Self {
        let reason = |(place, (&exits, &ticks)): (usize, (&u64, &u64))| {
            let name = REASON_NAMES.get(place).map_or_else(|| format!("reason {place}"), |name| (*name).to_owned());
            (exits != 0 || ticks != 0).then_some(Reason { reason: name, exits, ticks })
        };
        let call = |(number, &calls): (usize, &u64)| {
            (calls != 0).then(|| Hypercall { number, name: hypercall_name(number), calls })
        };
        Self {
            domain: snapshot.domain.raw(),
            vcpu: snapshot.vcpu.raw(),
            state: match snapshot.state {
                0 => "down",
                1 => "blocked",
                _ => "runnable",
            },
            exits: snapshot.exits.iter().sum(),
            ticks: snapshot.ticks.iter().sum(),
            reasons: snapshot.exits.iter().zip(&snapshot.ticks).enumerate().filter_map(reason).collect(),
            hypercalls: snapshot.hypercalls.iter().enumerate().filter_map(call).collect(),
            tsc: snapshot.tsc,
        }
    }

    fn to_text(&self) -> String {
        let mut text = format!("d{} v{} ({})\n", self.domain, self.vcpu, self.state);
        // Writing to a string does not fail.
        let mut line = |name: &str, exits: u64, ticks: u64| {
            let each = ticks.checked_div(exits).unwrap_or(0);
            let _ = writeln!(text, "  {name:<20}{exits:>12}{ticks:>16}{each:>10}");
        };
        for reason in &self.reasons {
            line(&reason.reason, reason.exits, reason.ticks);
        }
        line("all exits", self.exits, self.ticks);
        for call in &self.hypercalls {
            let _ = writeln!(text, "  {:<20}{:>12}", format!("{} {}", call.number, call.name), call.calls);
        }
        let heading = format!("  {:<20}{:>12}{:>16}{:>10}\n", "reason", "exits", "ticks", "each");
        text.insert_str(text.find('\n').map_or(0, |end| end + 1), &heading);
        text
    }
}

/// What the hypercall with this number is called.
pub(super) fn hypercall_name(number: usize) -> &'static str {
    let names = [
        (number::HYPERVISOR_PLATFORM_OP, "platform_op"),
        (number::HYPERVISOR_MEMORY_OP, "memory_op"),
        (number::HYPERVISOR_MULTICALL, "multicall"),
        (number::HYPERVISOR_SET_TIMER_OP, "set_timer_op"),
        (number::HYPERVISOR_XEN_VERSION, "xen_version"),
        (number::HYPERVISOR_CONSOLE_IO, "console_io"),
        (number::HYPERVISOR_GRANT_TABLE_OP, "grant_table_op"),
        (number::HYPERVISOR_VM_ASSIST, "vm_assist"),
        (number::HYPERVISOR_VCPU_OP, "vcpu_op"),
        (number::HYPERVISOR_XSM_OP, "xsm_op"),
        (number::HYPERVISOR_SCHED_OP, "sched_op"),
        (number::HYPERVISOR_EVENT_CHANNEL_OP, "event_channel_op"),
        (number::HYPERVISOR_PHYSDEV_OP, "physdev_op"),
        (number::HYPERVISOR_HVM_OP, "hvm_op"),
        (number::HYPERVISOR_SYSCTL, "sysctl"),
        (number::HYPERVISOR_DOMCTL, "domctl"),
        (number::HYPERVISOR_ISTHMUS, "isthmus"),
    ];
    names.iter().find(|(raw, _)| u32::try_from(number).is_ok_and(|number| number == *raw)).map_or("", |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(scale: u64) -> Snapshot {
        Snapshot {
            domain: DomId::new(1),
            vcpu: VcpuId::new(0),
            nr_vcpus: 1,
            state: 1,
            exits: vec![4 * scale, 0, 2 * scale],
            ticks: vec![400 * scale, 0, 300 * scale],
            hypercalls: (0..30).map(|number| if number == 17 || number == 29 { scale } else { 0 }).collect(),
            tsc: 1000 * scale,
        }
    }

    #[test]
    fn what_did_not_happen_is_left_out() {
        let vcpu = Vcpu::of(&snapshot(1));
        assert_eq!((vcpu.exits, vcpu.ticks, vcpu.state), (6, 700, "blocked"));
        let reasons: Vec<_> = vcpu.reasons.iter().map(|reason| reason.reason.as_str()).collect();
        assert_eq!(reasons, ["hypercall", "rdmsr"]);
        let calls: Vec<_> = vcpu.hypercalls.iter().map(|call| (call.number, call.name)).collect();
        assert_eq!(calls, [(17, "xen_version"), (29, "sched_op")]);
    }

    #[test]
    fn an_interval_is_the_difference_of_two_readings() {
        let mut now = snapshot(3);
        subtract(&mut now, &[snapshot(1)]);
        assert_eq!(Vcpu::of(&now), Vcpu::of(&snapshot(2)));
        let mut new = Snapshot { domain: DomId::new(2), ..snapshot(3) };
        subtract(&mut new, &[snapshot(1)]);
        assert_eq!(new.exits, snapshot(3).exits);
    }

    #[test]
    fn the_table_has_a_heading_and_ticks_for_each_exit() {
        let text = Vcpu::of(&snapshot(1)).to_text();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["d1", "v0", "(blocked)"]);
        assert_eq!(lines[1], ["reason", "exits", "ticks", "each"]);
        assert_eq!(lines[2], ["hypercall", "4", "400", "100"]);
        assert_eq!(lines[4], ["all", "exits", "6", "700", "116"]);
        assert_eq!(lines[5], ["17", "xen_version", "1"]);
    }
}
