// SPDX-License-Identifier: MIT OR Apache-2.0
//! The checks that boot the hypervisor in an emulator.
//!
//! All of them boot the same two builds, made once before the first of them runs. A build that fails makes
//! each of them a failure, with that cause.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use isthmus_tests::verdict::{self, Ended, Verdict};
use isthmus_tests::{Backend, boots};

use super::{Judged, Unit, log_file};
use crate::compile::{self, Profile, Program};
use crate::console::{self, End, Log, Until};
use crate::emulator::{self, Emulator, Firmware, Machine, Running, bochs};
use crate::launch::{Launch, RunDir, Via};
use crate::run::{self, guests::Guest};
use crate::symbolize::Symbols;

/// A check of the list on one backend.
pub(super) struct Boot {
    check: &'static isthmus_tests::Check,
    backend: Backend,
}

/// The programs that are booted, or why there are none.
pub(super) struct Built {
    pub(super) hypervisor: PathBuf,
    guests: Vec<Program>,
}

impl Built {
    /// The micro-guest of this name.
    pub(super) fn guest(&self, name: &str) -> Result<&Path> {
        let program = self.guests.iter().find(|program| program.name == name);
        Ok(&program.with_context(|| format!("package test-guests has no program {name}"))?.path)
    }
}

static BUILT: OnceLock<Result<Built, String>> = OnceLock::new();

/// Where a backend can be shown without hardware.
pub(super) fn emulator_of(backend: Backend) -> Emulator {
    match backend {
        Backend::Svm => Emulator::Qemu,
        Backend::Vmx => Emulator::Bochs,
    }
}

/// Every check on each of its backends.
pub(super) fn all() -> impl Iterator<Item = Boot> {
    boots::CHECKS.iter().flat_map(|check| check.backends.iter().map(move |&backend| Boot { check, backend }))
}

/// Compiles what the checks boot, the first time.
pub(super) fn built() -> Result<&'static Built> {
    let built = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    built.as_ref().map_err(|why| anyhow!("{why}"))
}

fn build() -> Result<Built> {
    Ok(Built { hypervisor: compile::hypervisor(Profile::Checked)?.path, guests: compile::guests(Profile::Checked)? })
}

impl Boot {
    pub(super) fn tier(&self) -> isthmus_tests::Tier {
        self.check.tier
    }

    fn launch(&self, built: &Built, dir: &Path) -> Result<Launch> {
        let mut modules = Vec::new();
        for guest in self.check.guests {
            let path = built.guest(guest.program)?;
            let guest = Guest::parse(&format!("{}:{}", path.display(), guest.words)).map_err(|why| anyhow!(why))?;
            modules.extend(guest.modules(dir)?);
        }
        let cmdline = run::hypervisor_cmdline(emulator_of(self.backend), Some(self.check.hv_append));
        Ok(Launch { hypervisor: built.hypervisor.clone(), cmdline, modules })
    }

    fn machine(&self, boot: emulator::Boot) -> Machine {
        Machine {
            cpus: self.check.cpus,
            firmware: if self.check.by_uefi { Firmware::Uefi } else { Firmware::Bios },
            // With time counted in instructions a busy host changes nothing. UEFI waits for devices in virtual time,
            // which then is not to be had for less than its instructions.
            counts_instructions: self.backend == Backend::Svm && self.check.cpus == 1 && !self.check.by_uefi,
            bochs_cpu: bochs::Cpu::quick(self.check.bochs_model),
            ..Machine::new(boot, self.check.memory_mib)
        }
    }
}

impl Unit for Boot {
    fn names(&self) -> Vec<String> {
        vec![self.name()]
    }

    fn run(&self, logs: &Path) -> Result<Vec<Judged>> {
        let (name, log) = (self.name(), log_file(logs, &self.name()));
        let start = Instant::now();
        let verdict = self.judged(&log)?;
        Ok(vec![Judged { name, verdict, took: start.elapsed(), log }])
    }
}

impl Boot {
    fn name(&self) -> String {
        format!("{}/{}", self.check.name, self.backend.name())
    }

    /// Boots it with the machine's log in `log_file`.
    fn judged(&self, log_file: &Path) -> Result<Verdict> {
        // An old log must not be taken for this run's.
        fs::write(log_file, "")?;
        let built = built()?;
        let dir = RunDir::create(&self.name().replace('/', "."))?;
        let via = if self.check.by_grub || self.check.by_uefi { Via::Grub } else { Via::Quickest };
        let boot = self.launch(built, dir.path())?.prepare(emulator_of(self.backend), via, dir.path())?;
        let log = Mutex::new(Log::to_file(log_file)?);
        let limit = Duration::from_secs(self.check.limit_seconds);
        let until = Until { deadline: Some(Instant::now() + limit), stop: None };
        let mut running = emulator::start(emulator_of(self.backend), self.machine(boot), dir.path(), false)?;
        let end = console::watch(&mut running, &log, until, |_| Ok(()))?;
        let ended = match end {
            End::Status(status) => Ended::Status(status),
            End::Panicked => Ended::Panic,
            End::TimedOut => Ended::TooLate,
            End::Silent | End::Stopped | End::Interrupted => Ended::Silently,
        };
        let text = String::from_utf8_lossy(&fs::read(log_file)?).into_owned();
        explain(end, &console::lock(&log), &running, &built.hypervisor, log_file)?;
        Ok(verdict::judge(self.check, &text, ended))
    }
}

/// Adds to the log what is known of a bad end: the emulator's last words, a panic's backtrace in words.
pub(super) fn explain(end: End, log: &Log, running: &Running, hypervisor: &Path, log_file: &Path) -> Result<()> {
    match end {
        End::Silent => append(log_file, &format!("\nthe emulator's last words:\n{}\n", running.said())),
        End::Panicked => append(log_file, &explained(log, hypervisor)?),
        _ => Ok(()),
    }
}

/// The backtrace of a panic in words.
fn explained(log: &Log, hypervisor: &Path) -> Result<String> {
    let symbols = Symbols::open(hypervisor)?;
    let mut text = "\nbacktrace:\n".to_owned();
    for line in log.backtrace() {
        text += &format!("{line}\n");
        for frame in symbols.describe(line) {
            text += &format!("       {frame}\n");
        }
    }
    Ok(text)
}

fn append(file: &Path, text: &str) -> Result<()> {
    let mut file = OpenOptions::new().append(true).open(file).context("reopening the log")?;
    file.write_all(text.as_bytes()).context("writing to the log")
}
