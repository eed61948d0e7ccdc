// SPDX-License-Identifier: MIT OR Apache-2.0
//! `isthmus`: the control domain's one command.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Controls the Isthmus hypervisor from its control domain.
#[derive(Parser)]
#[command(name = "isthmus", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the host's commands that arrive on a serial line (started by dom0's init)
    Agent {
        /// The serial device
        #[arg(default_value = "/dev/ttyS1")]
        line: PathBuf,
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
    use dom0_tools::agent;
    match command {
        Command::Agent { line } => agent::serve(agent::open_line(&line)?, agent::power_off),
    }
}
