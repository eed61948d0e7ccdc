// SPDX-License-Identifier: MIT OR Apache-2.0
//! What this machine must have, and how it gets there.
//!
//! Every need is a row in one table: the files that prove it is there, and the Debian package that brings it. A check
//! looks at files only, so it costs nothing when nothing is missing; `run` and `test` do it each time for what they are
//! about to use. What is missing is installed as root on Debian, otherwise the one command that does so is the error.
//!
//! The compiler's parts come from rustup, or its bare-metal target from Debian (see [`toolchain`]). `rust-toolchain.toml` names the channel only, so that cargo downloads nothing
//! behind our back: a missing target or component is added here, and said.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::emulator::bochs;
use crate::toolchain::{self, Toolchain};
use crate::{report, tool, workspace};

/// The target that the hypervisor and the test guests are compiled for.
pub(crate) const BARE_METAL: &str = "x86_64-unknown-none";

/// What a need is needed for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    /// Compiling for the bare machine.
    Compile,
    /// Format and lint checks.
    Checks,
    /// Disk images that boot by BIOS and by UEFI.
    Image,
    /// Firmware that emulators start by UEFI.
    Uefi,
    /// QEMU, with KVM or without.
    Qemu,
    /// Bochs.
    Bochs,
    /// dom0's kernel and root file system.
    Dom0,
}

impl Purpose {
    const ALL: [Self; 7] = [Self::Compile, Self::Checks, Self::Image, Self::Uefi, Self::Qemu, Self::Bochs, Self::Dom0];
}

struct Package {
    name: &'static str,
    purpose: Purpose,
    /// One of these proves that the package is installed: a file, or a program by its bare name.
    proofs: &'static [&'static str],
}

const fn package(name: &'static str, purpose: Purpose, proofs: &'static [&'static str]) -> Package {
    Package { name, purpose, proofs }
}

const PACKAGES: &[Package] = &[
    package("gcc", Purpose::Compile, &["cc"]),
    package("libc6-dev", Purpose::Compile, &["/usr/lib/x86_64-linux-gnu/libc.a", "/usr/lib64/libc.a"]),
    package("grub-pc-bin", Purpose::Image, &["/usr/lib/grub/i386-pc/boot.img"]),
    package("grub-efi-amd64-bin", Purpose::Image, &["/usr/lib/grub/x86_64-efi/multiboot2.mod"]),
    package("grub-common", Purpose::Image, &["grub-mkimage"]),
    package("mtools", Purpose::Image, &["mformat"]),
    package("ovmf", Purpose::Uefi, &[bochs::UEFI_ROM]),
    package("qemu-system-x86", Purpose::Qemu, &["qemu-system-x86_64"]),
    package("qemu-system-data", Purpose::Qemu, &["/usr/share/qemu/pvh.bin"]),
    package("seabios", Purpose::Qemu, &["/usr/share/seabios/bios-256k.bin"]),
    package("bochs", Purpose::Bochs, &["bochs"]),
    package(
        "bochs-term",
        Purpose::Bochs,
        &["/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so", "/usr/lib/bochs/plugins/libbx_term_gui.so"],
    ),
    package("bochsbios", Purpose::Bochs, &["/usr/share/bochs/BIOS-bochs-latest"]),
    package("vgabios", Purpose::Bochs, &["/usr/share/bochs/VGABIOS-lgpl-latest"]),
    // The public headers that the guest interface is compared with.
    package("libxen-dev", Purpose::Checks, &["/usr/include/xen/xen.h"]),
    package("apt", Purpose::Dom0, &["apt-get"]),
    package("dpkg", Purpose::Dom0, &["dpkg-deb"]),
];

/// Something that is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// A Debian package.
    Package(&'static str),
    /// apt's lists of packages, from which dom0's are downloaded.
    PackageLists,
    /// The compiler's bare-metal target.
    Target,
    /// A component of the toolchain.
    Component(&'static str),
}

impl Missing {
    /// The arguments for rustup that bring it, if rustup does.
    fn rustup_arguments(&self) -> Option<[&'static str; 3]> {
        match self {
            Self::Package(_) | Self::PackageLists => None,
            Self::Target => Some(["target", "add", BARE_METAL]),
            Self::Component(name) => Some(["component", "add", name]),
        }
    }
}

#[derive(Args)]
pub(crate) struct Options {
    /// The compiler for the bare machine's programs, from now on [default: the one in use, at first rustup's; Debian's
    /// if rustup cannot download what it lacks]
    #[arg(long, value_enum)]
    toolchain: Option<Toolchain>,
}

/// `xtask setup`.
pub(crate) fn command(options: &Options) -> Result<ExitCode> {
    if let Some(toolchain) = options.toolchain {
        // The compiler comes by apt.
        ensure(if toolchain == Toolchain::Debian { &[Purpose::Dom0] } else { &[] })?;
        toolchain::choose(toolchain)?;
    }
    if !ensure(&Purpose::ALL)? {
        report::step("nothing is missing");
    }
    Ok(ExitCode::SUCCESS)
}

/// Installs what is missing for `purposes`; says whether that was anything. Errors: it cannot be installed from here;
/// the message holds the command that the user can run.
pub(crate) fn ensure(purposes: &[Purpose]) -> Result<bool> {
    let missing = missing(purposes)?;
    can_install(&missing)?;
    let packages = packages(&missing);
    if !packages.is_empty() {
        install_packages(&packages)?;
    }
    for item in &missing {
        if *item == Missing::PackageLists {
            update_lists()?;
        }
        if let Some(arguments) = item.rustup_arguments() {
            match add_with_rustup(&arguments) {
                Err(why) if *item == Missing::Target => {
                    report::step(format!("{why:#}"));
                    ensure(&[Purpose::Dom0])?;
                    toolchain::choose(Toolchain::Debian)?;
                }
                added => added?,
            }
        }
    }
    Ok(!missing.is_empty())
}

/// Refuses what cannot be installed from here; the message holds what the user can do.
pub(crate) fn can_install(missing: &[Missing]) -> Result<()> {
    let packages = packages(missing);
    let list = packages.join(" ");
    let (has_apt, is_root) = (tool::find("apt-get").is_some(), rustix::process::geteuid().is_root());
    if !packages.is_empty() && !has_apt {
        bail!("missing: {list} (names of Debian's packages; install what your system calls them)");
    }
    if !packages.is_empty() && !is_root {
        bail!("missing: {list}; run: sudo sh -c '{}'", apt_command(&packages));
    }
    if missing.contains(&Missing::PackageLists) && !is_root {
        bail!("apt's package lists are missing; run: sudo apt-get update");
    }
    // Debian has the target, too, if not the components.
    let by_rustup_only = missing.iter().filter(|item| **item != Missing::Target || !has_apt);
    let of_rustup = by_rustup_only.filter_map(Missing::rustup_arguments).next();
    if let Some(arguments) = of_rustup
        && tool::find("rustup").is_none()
    {
        let line = format!("rustup {}", arguments.join(" "));
        bail!("the toolchain lacks something that `{line}` would add, but there is no rustup: see https://rustup.rs");
    }
    Ok(())
}

/// The Debian packages among what is missing.
pub(crate) fn packages(missing: &[Missing]) -> Vec<&'static str> {
    missing.iter().filter_map(|m| if let Missing::Package(name) = m { Some(*name) } else { None }).collect()
}

/// What is missing for `purposes`. Errors: there is no compiler to ask.
pub(crate) fn missing(purposes: &[Purpose]) -> Result<Vec<Missing>> {
    let mut missing: Vec<_> = PACKAGES
        .iter()
        .filter(|p| purposes.contains(&p.purpose) && !p.proofs.iter().any(|proof| is_there(proof)))
        .map(|p| Missing::Package(p.name))
        .collect();
    if purposes.contains(&Purpose::Dom0) && !has_package_lists() {
        missing.push(Missing::PackageLists);
    }
    if purposes.contains(&Purpose::Compile) || purposes.contains(&Purpose::Checks) {
        let sysroot = sysroot()?;
        let has_target = sysroot.join("lib/rustlib").join(BARE_METAL).join("lib").is_dir();
        if purposes.contains(&Purpose::Compile) && !has_target && toolchain::current()? == Toolchain::Rustup {
            missing.push(Missing::Target);
        }
        if purposes.contains(&Purpose::Checks) {
            let components = [("bin/cargo-fmt", "rustfmt"), ("bin/cargo-clippy", "clippy")];
            let absent = components.iter().filter(|(file, _)| !sysroot.join(file).exists());
            missing.extend(absent.map(|(_, name)| Missing::Component(name)));
        }
    }
    Ok(missing)
}

fn is_there(proof: &str) -> bool {
    if proof.starts_with('/') { Path::new(proof).exists() } else { tool::find(proof).is_some() }
}

fn sysroot() -> Result<PathBuf> {
    let printed = tool::run(Command::new("rustc").args(["--print", "sysroot"]).current_dir(workspace::root()))
        .context("asking rustc for its folder (is rustup's cargo in the search path?)")?;
    Ok(PathBuf::from(String::from_utf8(printed)?.trim()))
}

/// The command that installs `packages`, for a user to type.
pub(crate) fn apt_command(packages: &[&str]) -> String {
    format!("apt-get update && apt-get install -y --no-install-recommends {}", packages.join(" "))
}

fn install_packages(packages: &[&str]) -> Result<()> {
    report::step(format!("installing Debian packages: {}", packages.join(" ")));
    // The package lists of a fresh machine are absent or too old to be downloaded from; those of a busy one are not.
    if apt_install(packages).is_err() {
        update_lists()?;
        apt_install(packages)?;
    }
    Ok(())
}

/// Whether apt has any list of packages. A container's image usually has none.
fn has_package_lists() -> bool {
    let lists = std::fs::read_dir("/var/lib/apt/lists").into_iter().flatten().flatten();
    lists.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().contains("_Packages"))
}

fn update_lists() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("apt's package lists are missing; run: sudo apt-get update");
    }
    report::step("updating apt's package lists");
    tool::run_shown(Command::new("apt-get").args(["-qq", "update"]))
}

/// Brings apt's package lists up to date where that is possible from here; says whether it was done. Once in the life of
/// this program: a package that is in none of them costs no second update.
pub(crate) fn renew_lists() -> bool {
    static TRIED: AtomicBool = AtomicBool::new(false);
    rustix::process::geteuid().is_root() && !TRIED.swap(true, Ordering::Relaxed) && update_lists().is_ok()
}

fn apt_install(packages: &[&str]) -> Result<()> {
    tool::run_shown(
        Command::new("apt-get")
            .args(["-qq", "install", "-y", "--no-install-recommends"])
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

fn add_with_rustup(arguments: &[&str]) -> Result<()> {
    let line = format!("rustup {}", arguments.join(" "));
    report::step(&line);
    tool::run_shown(Command::new("rustup").args(arguments).current_dir(workspace::root())).with_context(|| {
        format!("`{line}` did not work; it downloads from static.rust-lang.org, which this machine may not reach")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_has_a_proof_and_appears_once() {
        for (i, package) in PACKAGES.iter().enumerate() {
            assert!(!package.proofs.is_empty());
            assert!(PACKAGES[..i].iter().all(|other| other.name != package.name), "{} twice", package.name);
        }
    }

    #[test]
    fn a_file_and_a_program_are_both_proofs() {
        assert!(is_there("/"));
        assert!(is_there("sh"));
        assert!(!is_there("/no/such/file"));
        assert!(!is_there("no-such-program"));
    }

    #[test]
    fn the_command_for_the_user_updates_the_lists_first() {
        let line = apt_command(&["bochs", "mtools"]);
        assert_eq!(line, "apt-get update && apt-get install -y --no-install-recommends bochs mtools");
    }
}
