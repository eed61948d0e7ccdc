// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask`: everything one does with this repository, as one program.
//!
//! This file is the list of commands and their help; each command is a module. Results go to standard output,
//! progress and xtask's own words to standard error.
#![forbid(unsafe_code)]

mod bundle;
mod compile;
mod debian;
mod image;
#[cfg_attr(not(test), expect(dead_code, reason = "the commands that use it are not there yet"))]
mod kernel;
mod report;
mod setup;
mod tool;
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
    Setup,
    /// Compile the hypervisor, the test guests and dom0's `isthmus` program; print their paths
    Build(compile::Options),
    /// Make what a machine boots from: a BIOS disk image with GRUB, or the bundle for QEMU's `-kernel`
    Image(image::Options),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Setup => setup::command(),
        Command::Build(options) => compile::command(&options),
        Command::Image(options) => image::command(&options),
    };
    outcome.unwrap_or_else(|error| {
        report::error(&error);
        ExitCode::FAILURE
    })
}
