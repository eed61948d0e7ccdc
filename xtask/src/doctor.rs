// SPDX-License-Identifier: MIT OR Apache-2.0
//! What this machine has, what it lacks, and which emulator `run` would take and why. Changes nothing.

use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::emulator::{self, Choice, Emulator, kvm};
use crate::setup::{self, Missing, Purpose};
use crate::tool;

const AREAS: [(&str, Purpose); 7] = [
    ("compile for the bare machine", Purpose::Compile),
    ("format and lints", Purpose::Checks),
    ("bootable disk images", Purpose::Image),
    ("machines that start by UEFI", Purpose::Uefi),
    ("QEMU", Purpose::Qemu),
    ("Bochs", Purpose::Bochs),
    ("dom0's kernel and root", Purpose::Dom0),
];

/// `xtask doctor`. Fails when something is missing.
pub(crate) fn command() -> Result<ExitCode> {
    let mut packages = Vec::new();
    let mut is_complete = true;
    for (area, purpose) in AREAS {
        let missing = setup::missing(&[purpose])?;
        is_complete &= missing.is_empty();
        let state = if missing.is_empty() { "ok".to_owned() } else { format!("missing: {}", list(&missing)) };
        println!("{area:<30} {state}");
        packages.extend(missing.iter().filter_map(|m| if let Missing::Package(name) = m { Some(*name) } else { None }));
    }
    println!("{:<30} {}", "QEMU version", version("qemu-system-x86"));
    println!("{:<30} {}", "Bochs version", version("bochs"));
    let kvm = match kvm::Offer::of_this_machine() {
        kvm::Offer::Nested(what) => format!("usable, with nested {what}"),
        kvm::Offer::Unusable(why) => format!("not usable: {why}"),
    };
    println!("{:<30} {kvm}", "KVM");
    let decision = emulator::decide(Choice::Auto)?;
    let note = if emulator::is_installed(decision.emulator) { "" } else { " (to be installed first)" };
    println!("{:<30} {}{note}: {}", "`run` would use", decision.emulator.name(), decision.reason);
    println!("{:<30} VT-x: {}; SVM: {}", "tests", Emulator::Bochs.name(), Emulator::Qemu.name());
    if !packages.is_empty() {
        println!("\n`cargo xtask setup` as root, or: sudo sh -c '{}'", setup::apt_command(&packages));
    }
    Ok(if is_complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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

/// The version of a Debian package. Not every emulator tells its own.
fn version(package: &str) -> String {
    let query = tool::run(Command::new("dpkg-query").args(["--show", "--showformat=${Version}", package]));
    query.map_or_else(|_| "no Debian package".to_owned(), |version| String::from_utf8_lossy(&version).into_owned())
}
