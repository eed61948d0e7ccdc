// SPDX-License-Identifier: MIT OR Apache-2.0
//! `run --guest`: PVH images as domains, without dom0.
//!
//! The value of `--guest` is a file, optionally followed by a colon and what the hypervisor is to be told about it:
//! `FILE[:WORDS][ -- CMDLINE]`, as in `linux:mem=256 vcpus=2 initrd=root.cpio -- console=hvc0`. `name=`, `mem=` (MiB)
//! and `vcpus=` have defaults; `control` lets the guest control others; `initrd=` is xtask's own word and names a file that becomes the guest's initial RAM disk.
//! A file name may have colons in it as long as a file of that whole name exists.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::{Options, ShowTail, terminal};
use crate::bundle::Module;
use crate::console::{self, End, Log, Until};
use crate::emulator::Running;
use crate::{kernel, report};

/// Memory of a guest that does not say how much it wants.
const DEFAULT_MEMORY_MIB: u32 = 64;
/// The word that lets a guest control others.
const CONTROL: &str = "control";

/// One guest as the user gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Guest {
    pub(crate) file: PathBuf,
    words: Vec<String>,
    initrd: Option<PathBuf>,
    cmdline: String,
}

impl Guest {
    /// Reads the value of `--guest`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (file, arguments) =
            if Path::new(text).exists() { (text, "") } else { text.split_once(':').unwrap_or((text, "")) };
        let (words, cmdline) = match arguments.strip_prefix("-- ") {
            Some(cmdline) => ("", cmdline),
            None => arguments.split_once(" -- ").unwrap_or((arguments, "")),
        };
        let (initrd, words): (Vec<_>, Vec<_>) = words.split_whitespace().partition(|word| word.starts_with("initrd="));
        let initrd = initrd.last().map(|word| PathBuf::from(&word["initrd=".len()..]));
        if let Some(unknown) = words
            .iter()
            .find(|w| **w != "control" && !["name=", "mem=", "vcpus="].iter().any(|name| w.starts_with(name)))
        {
            return Err(format!(
                "`{unknown}`: name=, mem=, vcpus=, control or initrd= expected; kernel arguments follow ` -- `"
            ));
        }
        let words = words.into_iter().map(str::to_owned).collect();
        Ok(Self { file: file.into(), words, initrd, cmdline: cmdline.to_owned() })
    }

    /// The guest's boot modules. A kernel that is not an ELF file yet is unpacked below `dir`.
    pub(crate) fn modules(&self, dir: &Path) -> Result<Vec<Module>> {
        let file = if is_elf(&self.file)? {
            self.file.clone()
        } else {
            let unpacked = kernel::unpack(&self.file, &dir.join(format!("{}.elf", self.name())))?;
            unpacked.require_pvh()?;
            unpacked.path
        };
        let mut modules = vec![Module { file, args: self.module_string() }];
        if let Some(initrd) = &self.initrd {
            ensure!(initrd.exists(), "{}: no such file", initrd.display());
            modules.push(Module { file: initrd.clone(), args: "guest-initrd".to_owned() });
        }
        Ok(modules)
    }

    /// What the hypervisor is told: the user's words after the defaults, of which the last holds.
    fn module_string(&self) -> String {
        let mut words = vec!["guest".to_owned()];
        for (name, default) in
            [("name=", self.name()), ("mem=", DEFAULT_MEMORY_MIB.to_string()), ("vcpus=", "1".into())]
        {
            let given = self.words.iter().rev().find(|word| word.starts_with(name));
            words.push(given.cloned().unwrap_or_else(|| format!("{name}{default}")));
        }
        words.extend(self.words.iter().find(|word| *word == CONTROL).cloned());
        if !self.cmdline.is_empty() {
            words.extend(["--".to_owned(), self.cmdline.clone()]);
        }
        words.join(" ")
    }

    /// A name made of the file's, with the characters that the hypervisor's syntax has no use for.
    fn name(&self) -> String {
        let stem = self.file.file_stem().unwrap_or_default().to_string_lossy();
        stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
    }
}

fn is_elf(file: &Path) -> Result<bool> {
    use std::io::Read;
    let mut magic = Vec::new();
    let open = std::fs::File::open(file).with_context(|| format!("reading {}", file.display()))?;
    open.take(4).read_to_end(&mut magic)?;
    Ok(magic == *b"\x7fELF")
}

/// The exit status of `xtask run` for a run's end; what needs saying goes to standard error.
pub(crate) fn exit_code(end: End) -> u8 {
    match end {
        End::Status(status) => status,
        End::Panicked | End::Silent | End::Stopped => super::STATUS_NO_VERDICT,
        End::TimedOut => super::STATUS_TIMEOUT,
        End::Interrupted => super::STATUS_INTERRUPTED,
    }
}

/// The boot modules of all guests.
pub(super) fn modules(options: &Options, dir: &Path) -> Result<Vec<Module>> {
    let mut modules = Vec::new();
    for guest in &options.guests {
        modules.extend(guest.modules(dir)?);
    }
    Ok(modules)
}

/// Copies the log to standard output until the machine ends. Keys typed on a terminal are the hypervisor's debug keys;
/// input that is no terminal stays whose it is. Returns the exit status of `xtask run`.
pub(super) fn run(running: &mut Running, log: Log, deadline: Option<Instant>, hypervisor: &Path) -> Result<u8> {
    let log = Mutex::new(log);
    let raw = terminal::Raw::enter()?;
    let keys = raw.is_terminal().then(|| running.com1.try_clone()).transpose()?;
    let stop = keys.map(|com1| {
        report::step("h lists the hypervisor's debug keys; Ctrl-] ends the machine");
        terminal::forward(com1)
    });
    let mut stdout = std::io::stdout().lock();
    let end = console::watch(running, &log, Until { deadline, stop: stop.as_deref() }, |bytes| {
        stdout.write_all(bytes).and_then(|()| stdout.flush()).context("writing to standard output")
    })?;
    drop(raw);
    super::explain(end, &console::lock(&log), running, hypervisor, ShowTail::No);
    Ok(exit_code(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module_string(text: &str) -> String {
        Guest::parse(text).unwrap().module_string()
    }

    #[test]
    fn a_file_alone_gets_the_defaults() {
        assert_eq!(module_string("out/event_channels"), "guest name=event-channels mem=64 vcpus=1");
    }

    #[test]
    fn words_replace_defaults_and_the_rest_is_the_command_line() {
        let text = "vmlinux:vcpus=2 mem=256 -- console=hvc0 a -- b";
        assert_eq!(module_string(text), "guest name=vmlinux mem=256 vcpus=2 -- console=hvc0 a -- b");
        assert_eq!(module_string("g.elf:control mem=8"), "guest name=g mem=8 vcpus=1 control");
        assert_eq!(module_string("g.elf:-- only this"), "guest name=g mem=64 vcpus=1 -- only this");
    }

    #[test]
    fn an_initrd_is_a_module_of_its_own() {
        let guest = Guest::parse("vmlinux:initrd=root.cpio mem=128").unwrap();
        assert_eq!(guest.initrd, Some("root.cpio".into()));
        assert_eq!(guest.module_string(), "guest name=vmlinux mem=128 vcpus=1");
    }

    #[test]
    fn kernel_arguments_in_the_wrong_place_are_refused() {
        assert!(Guest::parse("vmlinux:console=hvc0").unwrap_err().contains("console=hvc0"));
    }

    #[test]
    fn the_machines_end_is_the_commands_status() {
        let codes = [End::Status(0), End::Status(3), End::Panicked, End::Silent, End::TimedOut].map(exit_code);
        assert_eq!(codes, [0, 3, 125, 125, 124]);
    }
}
