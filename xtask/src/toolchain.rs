// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which compiler makes the programs of the bare machine.
//!
//! Usually rustup's, with the target that it downloads. Where it cannot download (its server is one that many firewalls do
//! not know), Debian's archive has a compiler, too: not the pinned version, but a newer one. Its packages cannot be
//! installed beside rustup, so they are unpacked below the build directory. They bring no library for the bare machine;
//! cargo compiles `core` and `alloc` from their sources, which takes a minute. Programs of the host are compiled as ever,
//! by whatever compiled xtask, so what Debian's compiler makes lies in a build directory of its own.
//!
//! The choice is remembered in the build directory. The variable `ISTHMUS_TOOLCHAIN` overrides it for one call.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::debian::{self, Store};
use crate::setup::BARE_METAL;
use crate::{report, tool, workspace};

/// Where a compiler comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Toolchain {
    /// rustup's, of the version in rust-toolchain.toml
    Rustup,
    /// Debian's, unpacked below the build directory
    Debian,
}

/// The packages that hold a compiler, the sources of its library, and what it is linked with. Those with a version in
/// their names are found among what these depend on.
const PACKAGES: [&str; 2] = ["rustc-web", "rust-web-src"];
/// Names of packages that are followed from there.
const PARTS: [&str; 2] = ["libstd-rust-web", "libllvm"];
/// Beside the target's flags in `.cargo/config.toml`, which a variable of the environment replaces.
const RUSTFLAGS: &str = "-Crelocation-model=static -Cforce-frame-pointers=yes -Clinker-flavor=ld";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

fn folder() -> PathBuf {
    workspace::target().join("toolchains").join("debian")
}

/// The file that says that Debian's compiler is the one to use.
fn mark() -> PathBuf {
    workspace::target().join("toolchains").join("use-debian")
}

/// The file that says that Debian's compiler is there as a whole.
fn stamp() -> PathBuf {
    workspace::target().join("toolchains").join("debian.complete")
}

/// The compiler that is used. Errors: the variable has another value than the two.
pub(crate) fn current() -> Result<Toolchain> {
    match std::env::var("ISTHMUS_TOOLCHAIN").as_deref() {
        Ok("debian") => Ok(Toolchain::Debian),
        Ok("rustup") => Ok(Toolchain::Rustup),
        Ok(other) => bail!("ISTHMUS_TOOLCHAIN={other}: rustup or debian expected"),
        Err(_) if mark().exists() => Ok(Toolchain::Debian),
        Err(_) => Ok(Toolchain::Rustup),
    }
}

/// Uses `toolchain` from now on.
pub(crate) fn choose(toolchain: Toolchain) -> Result<()> {
    match toolchain {
        Toolchain::Debian => {
            fetch()?;
            fs::write(mark(), "").context("writing down which compiler to use")
        }
        Toolchain::Rustup if mark().exists() => fs::remove_file(mark()).context("writing down which compiler to use"),
        Toolchain::Rustup => Ok(()),
    }
}

/// Whether Debian's compiler is there.
pub(crate) fn is_fetched() -> bool {
    stamp().exists()
}

/// Gets Debian's compiler, unless it is there. Errors: apt cannot download, or what it downloaded does not run.
pub(crate) fn fetch() -> Result<()> {
    if is_fetched() {
        return Ok(());
    }
    report::step("getting Debian's Rust compiler, to be used from the build directory");
    let root = folder();
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("removing {}", root.display()))?;
    }
    fs::create_dir_all(&root).with_context(|| format!("creating {}", root.display()))?;
    let store = Store::new(&workspace::target().join("packages"))?;
    for package in packages()? {
        let tree = store.fetch(&package)?;
        // Links instead of copies: half a gigabyte.
        let mut copy = Command::new("cp");
        tool::run(copy.args(["--archive", "--link"]).arg(tree.path.join(".")).arg(&root))?;
    }
    let mut rustc = Command::new(root.join("usr/bin/rustc"));
    tool::run(rustc.arg("--version").env("LD_LIBRARY_PATH", root.join(LIBRARIES)))
        .context("trying Debian's compiler")?;
    fs::write(stamp(), "").context("writing down that the compiler is complete")
}

/// The names of all packages that are needed and not installed.
fn packages() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut wanted: Vec<String> = PACKAGES.map(str::to_owned).into();
    while let Some(name) = wanted.pop() {
        let is_part = |name: &str| PARTS.iter().any(|part| name.starts_with(part));
        let is_library = |name: &str| !name.starts_with('<') && debian::section(name) == "libs" && !is_installed(name);
        if found.insert(name.clone()) {
            let needed = debian::depends(&name)?;
            wanted.extend(needed.into_iter().filter(|name| is_part(name) || is_library(name)));
        }
    }
    Ok(found)
}

fn is_installed(package: &str) -> bool {
    let query = tool::run(Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]));
    query.is_ok_and(|status| status == b"installed")
}

/// Makes a call of cargo for the bare machine use the current compiler.
pub(crate) fn apply(cargo: &mut Command) -> Result<()> {
    if current()? == Toolchain::Rustup {
        return Ok(());
    }
    fetch()?;
    let root = folder();
    apply_debian(cargo, &root, &workspace::target().join("debian"));
    Ok(())
}

fn apply_debian(cargo: &mut Command, root: &Path, target_dir: &Path) {
    let variable = format!("CARGO_TARGET_{}", BARE_METAL.to_uppercase().replace('-', "_"));
    cargo.arg("-Zbuild-std=core,alloc").arg("-Zbuild-std-features=compiler-builtins-mem");
    cargo.env("RUSTC", root.join("usr/bin/rustc")).env("LD_LIBRARY_PATH", root.join(LIBRARIES));
    // The flags above are unstable; the compiler is not.
    cargo.env("RUSTC_BOOTSTRAP", "1").env("CARGO_TARGET_DIR", target_dir);
    cargo.env(format!("{variable}_LINKER"), "ld").env(format!("{variable}_RUSTFLAGS"), RUSTFLAGS);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_are_those_of_the_workspace_and_the_linkers() {
        let config = fs::read_to_string(workspace::root().join(".cargo/config.toml")).unwrap();
        let flags: Vec<&str> = RUSTFLAGS.split(' ').filter(|flag| !flag.starts_with("-Clinker")).collect();
        let line = config.lines().find(|line| line.starts_with("rustflags")).unwrap();
        assert_eq!(line, format!("rustflags = {flags:?}"));
    }

    #[test]
    fn cargo_is_told_the_compiler_its_libraries_and_the_linker() {
        let mut cargo = Command::new("cargo");
        apply_debian(&mut cargo, Path::new("/r"), Path::new("/t"));
        let value = |name: &str| cargo.get_envs().find(|(n, _)| *n == name).and_then(|(_, value)| value).unwrap();
        assert_eq!(value("RUSTC"), "/r/usr/bin/rustc");
        assert_eq!(value("LD_LIBRARY_PATH"), "/r/usr/lib/x86_64-linux-gnu");
        assert_eq!(value("CARGO_TARGET_X86_64_UNKNOWN_NONE_LINKER"), "ld");
        assert_eq!(value("CARGO_TARGET_DIR"), "/t");
    }
}
