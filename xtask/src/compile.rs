// SPDX-License-Identifier: MIT OR Apache-2.0
//! Compiling what a machine boots.
//!
//! Three cargo calls: the hypervisor and the test guests for the bare machine, and dom0's program as a static Linux
//! executable. Cargo itself says where the results are (`--message-format=json`), so no layout of the build directory
//! is assumed. Static linking is asked for per target, not by a general flag, which would also reach build scripts.

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::setup::{self, BARE_METAL, Purpose};
use crate::{report, toolchain, workspace};

/// The target of programs that run in dom0.
const DOM0_TARGET: &str = "x86_64-unknown-linux-gnu";
const DOM0_FLAGS: &str = "-Ctarget-feature=+crt-static -Cstrip=symbols";

#[derive(Args)]
pub(crate) struct Options {
    /// How to compile the hypervisor and the test guests
    #[arg(long, value_enum, default_value_t)]
    profile: Profile,
}

/// A cargo profile (see the root Cargo.toml).
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Profile {
    /// What is shipped
    #[default]
    Release,
    /// Optimized, with every debug assertion: what the tests boot
    Checked,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Checked => "checked",
        }
    }
}

/// `xtask build`: prints a line `name path` for each program.
pub(crate) fn command(options: &Options) -> Result<ExitCode> {
    setup::ensure(&[Purpose::Compile])?;
    let hypervisor = hypervisor(options.profile)?;
    let guests = guests(options.profile)?;
    let tools = dom0_tools()?;
    for (name, path) in [hypervisor, tools].iter().chain(&guests).map(|program| (&program.name, &program.path)) {
        println!("{name} {}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// A compiled program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

/// The hypervisor's ELF file.
pub(crate) fn hypervisor(profile: Profile) -> Result<Program> {
    report::step(format!("compiling the hypervisor ({})", profile.name()));
    let mut cargo = bare_metal_build("hypervisor", profile)?;
    one(build(&mut cargo)?, "isthmus-hypervisor")
}

/// The test guests' ELF files. There may be none.
pub(crate) fn guests(profile: Profile) -> Result<Vec<Program>> {
    report::step(format!("compiling the test guests ({})", profile.name()));
    build(&mut bare_metal_build("test-guests", profile)?)
}

/// dom0's static `isthmus` program.
pub(crate) fn dom0_tools() -> Result<Program> {
    report::step("compiling dom0's tools");
    let mut cargo = cargo("build");
    cargo.args(["--package", "dom0-tools", "--release", "--target", DOM0_TARGET]);
    cargo.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", DOM0_FLAGS);
    one(build(&mut cargo)?, "isthmus")
}

/// A call of cargo in the workspace. Flags from the environment are removed: they would replace those that
/// `.cargo/config.toml` gives for the bare-metal target.
pub(crate) fn cargo(subcommand: &str) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.arg(subcommand).current_dir(workspace::root());
    cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    cargo
}

fn bare_metal_build(package: &str, profile: Profile) -> Result<Command> {
    let mut cargo = cargo("build");
    cargo.args(["--package", package, "--features", "bare-metal", "--bins"]);
    cargo.args(["--target", BARE_METAL, "--profile", profile.name()]);
    toolchain::apply(&mut cargo)?;
    Ok(cargo)
}

/// Runs a build with its progress and messages on standard error; returns the executables.
fn build(cargo: &mut Command) -> Result<Vec<Program>> {
    cargo.args(["--quiet", "--message-format", "json-render-diagnostics"]);
    let output = cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("starting cargo")?;
    if !output.status.success() {
        bail!("compiling failed (messages above)");
    }
    executables(&String::from_utf8(output.stdout)?)
}

/// The executables named in cargo's messages, one JSON object a line.
fn executables(messages: &str) -> Result<Vec<Program>> {
    let mut programs = Vec::new();
    for line in messages.lines() {
        let message: Value = serde_json::from_str(line).context("reading cargo's messages")?;
        if let (Some(path), Some(name)) = (message["executable"].as_str(), message["target"]["name"].as_str()) {
            programs.push(Program { name: name.to_owned(), path: PathBuf::from(path) });
        }
    }
    Ok(programs)
}

fn one(programs: Vec<Program>, name: &str) -> Result<Program> {
    programs.into_iter().find(|program| program.name == name).with_context(|| format!("cargo built no program {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_found_among_cargos_messages() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"log"},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"isthmus"},"executable":"/t/isthmus"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        let program = Program { name: "isthmus".into(), path: "/t/isthmus".into() };
        assert_eq!(executables(messages).unwrap(), [program]);
    }

    #[test]
    fn what_is_not_a_message_is_an_error() {
        assert!(executables("Compiling").is_err());
    }
}
