// SPDX-License-Identifier: MIT OR Apache-2.0
//! What this machine has, what it lacks, and which emulator `run` would take and why. Changes nothing.

use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::emulator::{self, Choice, Decision, Emulator, kvm};
use crate::launch::RunDir;
use crate::setup::{self, Missing, Purpose};
use crate::toolchain::{self, Toolchain};
use crate::{run, tool};

const AREAS: [(&str, Purpose); 7] = [
    ("compile for the bare machine", Purpose::Compile),
    ("format and lints", Purpose::Checks),
    ("bootable disk images", Purpose::Image),
    ("machines that start by UEFI", Purpose::Uefi),
    ("QEMU", Purpose::Qemu),
    ("Bochs", Purpose::Bochs),
    ("dom0's kernel and root", Purpose::Dom0),
];

/// `xtask doctor`. Fails when `run` would.
pub(crate) fn command() -> Result<ExitCode> {
    let mut packages = Vec::new();
    for (area, purpose) in AREAS {
        // Without a compiler there is nobody to ask for its parts; the verdict below says so.
        let state = match setup::missing(&[purpose]) {
            Ok(missing) if missing.is_empty() => "ok".to_owned(),
            Ok(missing) => {
                packages.extend(setup::packages(&missing));
                format!("missing: {}", list(&missing))
            }
            Err(error) => format!("unknown: {error:#}"),
        };
        println!("{area:<30} {state}");
    }
    println!("{:<30} {}", "compiler for it", compiler());
    println!("{:<30} {}", "QEMU version", version("qemu-system-x86"));
    println!("{:<30} {}", "Bochs version", version("bochs"));
    let kvm = match kvm::Offer::of_this_machine() {
        kvm::Offer::Nested(what) => format!("usable, with nested {what}"),
        kvm::Offer::Unusable(why) => format!("not usable: {why}"),
    };
    println!("{:<30} {kvm}", "KVM");
    println!("{:<30} VT-x: {}; SVM: {}", "tests", Emulator::Bochs.name(), Emulator::Qemu.name());
    let verdict = verdict_on_run();
    match &verdict {
        Ok(what) => println!("{:<30} {what}", "`run` would use"),
        Err(why) => println!("{:<30} {why:#}", "`run` would fail"),
    }
    if !packages.is_empty() {
        println!("\n`cargo xtask setup` as root, or: sudo sh -c '{}'", setup::apt_command(&packages));
    }
    Ok(if verdict.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Which emulator `run` would take and why; or why it would fail. It asks what `run` asks, in the same order. That a
/// download works is found out by trying it.
fn verdict_on_run() -> Result<String> {
    let Decision { emulator, reason } = emulator::decide(Choice::Auto)?;
    let missing = setup::missing(&run::needs(emulator, None, true))?;
    setup::can_install(&missing)?;
    if emulator::is_installed(emulator) {
        emulator::check_version(emulator)?;
    }
    RunDir::create("doctor")?;
    let first = if missing.is_empty() { String::new() } else { format!(" (installs first: {})", list(&missing)) };
    Ok(format!("{}{first}: {reason}", emulator.name()))
}

fn list(missing: &[Missing]) -> String {
    let names = missing.iter().map(|item| match item {
        Missing::Package(name) => format!("package {name}"),
        Missing::PackageLists => "apt's package lists".to_owned(),
        Missing::Target => format!("the compiler's target {}", setup::BARE_METAL),
        Missing::Component(name) => format!("the toolchain's {name}"),
    });
    names.collect::<Vec<_>>().join(", ")
}

fn compiler() -> String {
    match toolchain::current() {
        Ok(Toolchain::Rustup) => "rustup's".to_owned(),
        Ok(Toolchain::Debian) if toolchain::is_fetched() => "Debian's, below the build directory".to_owned(),
        Ok(Toolchain::Debian) => "Debian's, to be downloaded".to_owned(),
        Err(why) => why.to_string(),
    }
}

/// The version of a Debian package. Not every emulator tells its own.
fn version(package: &str) -> String {
    let query = tool::run(Command::new("dpkg-query").args(["--show", "--showformat=${Version}", package]));
    query.map_or_else(|_| "no Debian package".to_owned(), |version| String::from_utf8_lossy(&version).into_owned())
}
