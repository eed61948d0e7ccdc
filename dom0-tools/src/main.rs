// SPDX-License-Identifier: MIT OR Apache-2.0
//! `isthmus`: the control domain's one command.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use dom0_tools::{agent, cli};
use guest_abi::DomId;

/// Controls the Isthmus hypervisor from its control domain.
///
/// Exit status: 0 done, 1 failed (the reason is on standard error), 2 wrong usage.
#[derive(Parser)]
#[command(name = "isthmus", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the hypervisor's version, and what it knows of the machine
    Info {
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Show what each vCPU has cost: exits and ticks in the hypervisor by reason, hypercalls by number
    Counters {
        /// Of this domain only [default: all]
        domain: Option<u16>,
        /// How much they grow in so many seconds, instead of all since the domain's start
        #[arg(long, value_name = "S")]
        interval: Option<f64>,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Measure single operations in ticks of the TSC
    #[command(subcommand)]
    Bench(Bench),
    /// Check from inside this domain that the hypervisor's services work
    #[command(subcommand)]
    Selftest(Selftest),
    /// Run the host's commands that arrive on a serial line (started by dom0's init)
    Agent {
        /// The serial device
        #[arg(default_value = "/dev/ttyS1")]
        line: PathBuf,
    },
}

#[derive(Subcommand)]
enum Bench {
    /// A hypercall that only answers, through privcmd
    NullHypercall {
        /// How often to call
        #[arg(long, default_value_t = 10_000)]
        repetitions: usize,
        /// For programs
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
enum Selftest {
    /// Grant pages to this domain itself, map and copy them, and check what must be refused
    Grants {
        /// This domain's number
        #[arg(long, default_value_t = 0)]
        domain: u16,
    },
    /// Connect two event-channel ports of this domain and signal both ways
    Events {
        /// This domain's number
        #[arg(long, default_value_t = 0)]
        domain: u16,
        /// How many events each way
        #[arg(long, default_value_t = 100)]
        count: u32,
    },
    /// Compare the kernel's clock with the ACPI power-management timer
    Clock {
        /// For how long
        #[arg(long, default_value_t = 3)]
        seconds: u32,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("isthmus: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Info { json } => cli::info::run(json),
        Command::Counters { domain, interval, json } => cli::counters::run(domain, interval, json),
        Command::Bench(Bench::NullHypercall { repetitions, json }) => cli::bench::null_hypercall(repetitions, json),
        Command::Selftest(Selftest::Grants { domain }) => cli::selftest::grants(DomId::new(domain)),
        Command::Selftest(Selftest::Events { domain, count }) => cli::selftest::events(DomId::new(domain), count),
        Command::Selftest(Selftest::Clock { seconds }) => cli::selftest::clock(seconds),
        Command::Agent { line } => agent::serve(agent::open_line(&line)?, agent::power_off),
    }
}
