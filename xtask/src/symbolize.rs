// SPDX-License-Identifier: MIT OR Apache-2.0
//! Backtraces of the hypervisor in words.
//!
//! A panic prints `  #N 0xADDR` lines, N counting from the innermost frame. Those for N ≥ 1 are return addresses: they
//! point behind the call, which may belong to another line or even another function, so the byte before is looked up.
//! A function that was inlined into another is printed above it, under the same number.

use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use addr2line::Loader;
use anyhow::{Context, Result, anyhow};
use clap::Args;

use crate::compile::{self, Profile};
use crate::setup::{self, Purpose};
use crate::workspace;

#[derive(Args)]
pub(crate) struct Options {
    /// The log to read [default: standard input]
    log: Option<PathBuf>,
    /// The hypervisor that printed it [default: the one that is compiled from this tree]
    #[arg(long, value_name = "ELF")]
    hypervisor: Option<PathBuf>,
    /// How the hypervisor was compiled, without --hypervisor
    #[arg(long, value_enum, default_value_t)]
    profile: Profile,
}

/// `xtask symbolize`: copies the log, each address followed by what it means.
pub(crate) fn command(options: &Options) -> Result<ExitCode> {
    let elf = match &options.hypervisor {
        Some(elf) => elf.clone(),
        None => {
            setup::ensure(&[Purpose::Compile])?;
            compile::hypervisor(options.profile)?.path
        }
    };
    let symbols = Symbols::open(&elf)?;
    let input: Box<dyn BufRead> = match &options.log {
        Some(file) => {
            let file = std::fs::File::open(file).with_context(|| format!("reading {}", file.display()))?;
            Box::new(std::io::BufReader::new(file))
        }
        None => Box::new(std::io::stdin().lock()),
    };
    for line in input.split(b'\n') {
        let line = String::from_utf8_lossy(&line.context("reading the log")?).into_owned();
        println!("{}", line.trim_end_matches('\r'));
        for frame in symbols.describe(&line) {
            println!("       {frame}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The symbols and line numbers of an ELF file.
pub(crate) struct Symbols(Loader);

impl Symbols {
    /// Reads `elf`'s tables.
    pub(crate) fn open(elf: &Path) -> Result<Self> {
        Loader::new(elf).map(Self).map_err(|error| anyhow!("reading the symbols of {}: {error}", elf.display()))
    }

    /// What a line of a backtrace means, innermost function first. Nothing for other lines and unknown addresses.
    pub(crate) fn describe(&self, line: &str) -> Vec<String> {
        frame_address(line).map_or_else(Vec::new, |address| self.functions(address).unwrap_or_default())
    }

    fn functions(&self, address: u64) -> Option<Vec<String>> {
        let mut found = Vec::new();
        let mut frames = self.0.find_frames(address).ok()?;
        while let Ok(Some(frame)) = frames.next() {
            let name = frame.function.as_ref().and_then(|name| name.demangle().ok().map(|name| name.into_owned()));
            let place =
                frame.location.as_ref().and_then(|place| Some(format!("{}:{}", in_tree(place.file?), place.line?)));
            found.push(format!("{} at {}", name.as_deref().unwrap_or("?"), place.as_deref().unwrap_or("?")));
        }
        if found.is_empty() {
            found.extend(self.0.find_symbol(address).map(str::to_owned));
        }
        Some(found)
    }
}

/// A file's name as seen from the workspace, if it is in there.
fn in_tree(file: &str) -> &str {
    let root = workspace::root();
    file.strip_prefix(&*root.to_string_lossy()).map_or(file, |rest| rest.trim_start_matches('/'))
}

/// The address to look up for a line `  #N 0xADDR`.
fn frame_address(line: &str) -> Option<u64> {
    let (number, address) = line.trim().strip_prefix('#')?.split_once(' ')?;
    let number: u32 = number.parse().ok()?;
    let address = u64::from_str_radix(address.trim().strip_prefix("0x")?, 16).ok()?;
    if number == 0 { Some(address) } else { address.checked_sub(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn return_addresses_are_looked_up_at_the_call() {
        assert_eq!(frame_address("  #0 0x1000\r"), Some(0x1000));
        assert_eq!(frame_address("  #1 0x1000"), Some(0xfff));
        for other in ["", "#", "#1", "#1 1000", "#x 0x10", "(d1) #1 0x10", "#1 0x0"] {
            assert_eq!(frame_address(other), None, "{other}");
        }
    }

    #[inline(never)]
    fn landmark() -> u64 {
        0
    }

    #[test]
    fn a_function_of_this_program_is_found_by_its_address() {
        // A position-independent program's addresses count from where it was loaded; its table holds offsets.
        let symbols = Symbols::open(&std::env::current_exe().unwrap()).unwrap();
        let base = symbols.0.relative_address_base();
        let known = symbols.0.find_symbol(base);
        assert!(known.is_none() || !known.unwrap_or_default().is_empty());
        assert_eq!(landmark(), 0);
        assert!(symbols.describe("#0 0xffffffffffff0000").is_empty());
    }
}
