// SPDX-License-Identifier: MIT OR Apache-2.0
//! `xtask bench`: what operations cost, counted in instructions.
//!
//! QEMU without KVM is told to advance time by one nanosecond an instruction, and its time-stamp counter then counts
//! instructions: figures that do not depend on the machine they are taken on, and come out the same again. They say
//! nothing of caches or of the price of an exit, which is why exits stand beside them.
//!
//! Micro-guests that repeat single operations (`tests/guests/src/bin/bench.rs`, `wake_cost.rs`), dom0, whose counters are
//! read when its shell answers, guests that dom0 makes ([`guests`]), and a guest's devices ([`devices`]). What the figures
//! are held against is in [`figures`].

mod devices;
mod figures;
mod goals;
mod guests;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde_json::json;

use crate::compile::{self, Profile};
use crate::console::{self, End, Log, Until};
use crate::emulator::{self, Emulator, Machine, bochs};
use crate::launch::{Launch, RunDir, Via};
use crate::run::{self, guests::Guest};
use crate::setup::{self, Purpose};
use crate::{dom0, interrupt, report, shell, workspace};
pub(crate) use devices::measure as of_devices;
use figures::Dom0;
pub(crate) use figures::Report;
pub(crate) use guests::measure as of_guests;

const GUEST_MEMORY_MIB: u32 = 512;
const DOM0_MEMORY_MIB: u32 = 2048;
const GUEST_LIMIT: Duration = Duration::from_secs(300);
/// The CPU that Bochs plays.
const BOCHS_MODEL: &str = "corei7_skylake_x";
const DOM0_LIMIT: Duration = Duration::from_secs(600);
/// Read the counters, make null hypercalls, read them again; sleep.
const DOM0_COMMAND: &str = "isthmus counters 0 --json && isthmus bench null-hypercall --json \
    && isthmus counters 0 --json && isthmus bench sleep --json";

/// The page of the book that has the figures, and the lines that the table is between.
pub(crate) const BOOK: &str = "docs/src/reference/figures.md";
const BOOK_BEGIN: &str = "<!-- cargo xtask bench --book writes what follows -->";
const BOOK_END: &str = "<!-- to here -->";

#[derive(Args)]
pub(crate) struct Options {
    /// Write the figures to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the figures into the book, where they are in docs/src/reference/figures.md
    #[arg(long, conflicts_with_all = ["no_dom0", "no_guests"])]
    book: bool,
    /// Measure another hypervisor in the same way, for comparison
    #[arg(long, value_enum)]
    peer: Option<Peer>,
    /// Only the micro-guest, which takes seconds, not dom0
    #[arg(long)]
    no_dom0: bool,
    /// Not the guests of dom0, which take minutes
    #[arg(long)]
    no_guests: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Peer {
    /// Xen from Debian's packages
    Xen,
}

/// `xtask bench`.
pub(crate) fn command(options: &Options) -> Result<ExitCode> {
    if options.peer == Some(Peer::Xen) {
        bail!(
            "--peer xen is not available yet: nothing here boots Xen. The column `Xen 4.17` of the table was measured \
             with Linux in its domains, not with these programs"
        );
    }
    interrupt::catch()?;
    setup::ensure(&[Emulator::Qemu.purposes(), &[Purpose::Compile]].concat())?;
    let mut report = micro_guest(Emulator::Qemu)?;
    if !options.no_dom0 {
        setup::ensure(&[Purpose::Dom0])?;
        report.dom0 = Some(in_dom0()?);
        if !options.no_guests {
            report.add_guests(&of_guests()?)?;
            report.add_devices(&of_devices()?)?;
        }
    }
    print!("{}", report.to_text());
    if options.book {
        write_book(&report.to_markdown())?;
    }
    if let Some(file) = &options.json {
        let json = json!({ "unit": "instructions", "emulator": "qemu", "backend": "svm", "figures": report.to_json() });
        std::fs::write(file, format!("{json:#}\n")).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Replaces the table in the book.
fn write_book(table: &str) -> Result<()> {
    let page = workspace::root().join(BOOK);
    let text = std::fs::read_to_string(&page).with_context(|| format!("reading {}", page.display()))?;
    let marks = text.split_once(BOOK_BEGIN).zip(text.split_once(BOOK_END));
    let ((before, _), (_, after)) = marks.with_context(|| format!("{} has no place for a table", page.display()))?;
    let text = format!("{before}{BOOK_BEGIN}\n\n{table}\n{BOOK_END}{after}");
    std::fs::write(&page, text).with_context(|| format!("writing {}", page.display()))
}

/// A machine whose time-stamp counter counts instructions, as Bochs' always does.
fn machine(emulator: Emulator, boot: emulator::Boot, memory_mib: u32) -> Machine {
    let counts_instructions = emulator == Emulator::Qemu;
    Machine { counts_instructions, bochs_cpu: bochs::Cpu::quick(BOCHS_MODEL), ..Machine::new(boot, memory_mib) }
}

/// The micro-guest that measures single operations, and who answers it.
const OPERATIONS: &[(&str, &str)] = &[("bench", "control"), ("event_echo", "mem=8")];
/// The one that measures how soon it gets a CPU that others use up.
const BESIDE_HOGS: &[(&str, &str)] =
    &[("wake_cost", "mem=8 control -- hogs=2"), ("event_echo", "mem=8"), ("hog", "mem=8"), ("hog", "mem=8 name=hog2")];

/// Boots the micro-guests and reads what they measured. The release build, which is what is shipped.
pub(crate) fn micro_guest(emulator: Emulator) -> Result<Report> {
    report::step("measuring single operations in a micro-guest");
    let said = boot_guests(emulator, OPERATIONS)?;
    report::step("measuring wake-ups beside micro-guests that use the CPU up");
    Report::read(&(said + &boot_guests(emulator, BESIDE_HOGS)?))
}

/// Boots micro-guests, by their names with words for their boot modules, until the first one ends. Returns what they
/// said.
fn boot_guests(emulator: Emulator, wanted: &[(&str, &str)]) -> Result<String> {
    let guests = compile::guests(Profile::Release)?;
    let dir = RunDir::create("bench")?;
    let mut modules = Vec::new();
    for (name, words) in wanted {
        let program = guests.iter().find(|program| program.name == *name);
        let program = program.with_context(|| format!("there is no guest `{name}`"))?;
        let guest = Guest::parse(&format!("{}:{words}", program.path.display())).map_err(anyhow::Error::msg)?;
        modules.extend(guest.modules(dir.path())?);
    }
    let launch = Launch {
        hypervisor: compile::hypervisor(Profile::Release)?.path,
        cmdline: run::hypervisor_cmdline(emulator, None),
        modules,
    };
    let boot = launch.prepare(emulator, Via::Quickest, dir.path())?;
    let log = Mutex::new(Log::default());
    let mut said = Vec::new();
    let mut running = emulator::start(emulator, machine(emulator, boot, GUEST_MEMORY_MIB), dir.path(), false)?;
    let until = Until { deadline: Some(Instant::now() + GUEST_LIMIT), stop: None };
    let end = console::watch(&mut running, &log, until, |bytes| {
        said.extend_from_slice(bytes);
        Ok(())
    })?;
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(end == End::Status(0), "the micro-guests did not end well ({end:?}):\n{said}");
    Ok(said)
}

/// Boots dom0 in QEMU and reads its counters.
pub(crate) fn in_dom0() -> Result<Dom0> {
    report::step("measuring dom0's boot and a hypercall from its user space");
    let (output, log) = ask_dom0(&dom0::Wanted::default(), DOM0_COMMAND)?;
    Dom0::read(&output, &log)
}

/// Boots dom0 in QEMU and has it run a command. Returns its output, and the machine's log.
fn ask_dom0(wanted: &dom0::Wanted, command: &str) -> Result<(String, String)> {
    let dir = RunDir::create("bench-dom0")?;
    let launch = Launch {
        hypervisor: compile::hypervisor(Profile::Release)?.path,
        cmdline: run::hypervisor_cmdline(Emulator::Qemu, Some(&run::dom0_memory(DOM0_MEMORY_MIB))),
        modules: dom0::modules(wanted, dir.path())?,
    };
    let boot = launch.prepare(Emulator::Qemu, Via::Quickest, dir.path())?;
    let log_file = dir.path().join("log");
    let log = Mutex::new(Log::to_file(&log_file)?);
    let machine = Machine { has_nic: true, ..machine(Emulator::Qemu, boot, DOM0_MEMORY_MIB) };
    let mut running = emulator::start(Emulator::Qemu, machine, dir.path(), true)?;
    let deadline = Instant::now() + DOM0_LIMIT;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let (end, talked) =
        shell::attend(&mut running, &log, deadline, |channel| channel.run(command, &mut out, &mut err, deadline))?;
    let (out, err) = (String::from_utf8_lossy(&out).into_owned(), String::from_utf8_lossy(&err));
    match talked {
        Ok(Ok(0)) => {}
        Ok(Ok(status)) => bail!("dom0's command ended with {status}: {err}{out}"),
        Ok(Err(failure)) | Err(failure) => bail!("dom0: {failure} (the machine's end: {end:?}): {err}{out}"),
    }
    let log = std::fs::read(&log_file).context("reading the log")?;
    Ok((out, String::from_utf8_lossy(&log).into_owned()))
}
