// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask`: everything one does with this repository, as one program.
//!
//! This file is the list of commands and their help; each command is a module. Results go to standard output,
//! progress and xtask's own words to standard error.
#![forbid(unsafe_code)]

mod bench;
mod bundle;
mod compile;
mod console;
mod debian;
mod disk;
mod doctor;
mod dom0;
mod emulator;
mod exec;
mod image;
mod initramfs;
mod interrupt;
mod kernel;
mod launch;
mod loc;
mod report;
mod run;
mod setup;
mod shell;
mod symbolize;
mod test;
mod tool;
mod toolchain;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Sets up, builds, images, runs and tests Isthmus.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 110, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what is missing on this machine: Debian packages, the bare-metal target, rustfmt and clippy
    Setup(setup::Options),
    /// Compile the hypervisor, the test guests and dom0's `isthmus` program; print their paths
    Build(compile::Options),
    /// Make what a machine boots from: a disk image for BIOS and UEFI, or the bundle for QEMU's `-kernel`
    Image(image::Options),
    /// Boot the hypervisor in an emulator
    Run(Box<run::Options>),
    /// Run the checks: format, lints, documentation, unit tests, and boots in emulators
    Test(test::Options),
    /// Count what operations cost, in instructions, on QEMU without KVM
    Bench(bench::Options),
    /// Say what this machine has and lacks, and which emulator would be used and why
    Doctor,
    /// Count the hypervisor's lines of code and its unsafe share
    Loc(loc::Options),
    /// Turn the backtraces in a log of the hypervisor into functions and lines
    Symbolize(symbolize::Options),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Setup(options) => setup::command(&options),
        Command::Build(options) => compile::command(&options),
        Command::Image(options) => image::command(&options),
        Command::Run(options) => run::command(&options),
        Command::Test(options) => test::command(&options),
        Command::Bench(options) => bench::command(&options),
        Command::Doctor => doctor::command(),
        Command::Loc(options) => loc::command(&options),
        Command::Symbolize(options) => symbolize::command(&options),
    };
    outcome.unwrap_or_else(|error| {
        report::error(&error);
        ExitCode::FAILURE
    })
}
