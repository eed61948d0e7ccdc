// SPDX-License-Identifier: MIT OR Apache-2.0
//! `xtask run`: the hypervisor in an emulator, with dom0 or with guests alone.
//!
//! Everything the machine needs is made first, in the foreground, with its progress on standard error; then the
//! emulator starts. Exit statuses, beside those of a command in dom0 or of a guest: 124 the time was over, 125 the
//! hypervisor panicked or the machine ended without a status, 126 dom0 did not reach its shell.

mod dom0;
pub(crate) mod guests;
mod terminal;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::compile::{self, Profile};
use crate::console::{End, Log};
use crate::dom0::Wanted;
use crate::emulator::{self, Boot, Choice, Emulator, Firmware, Machine, Running};
use crate::initramfs::guest;
use crate::kernel::Series;
use crate::launch::{Launch, RunDir, Via};
use crate::setup::{self, Purpose};
use crate::symbolize::Symbols;
use crate::{disk, interrupt, report};
use guests::Guest;

pub(crate) const STATUS_TIMEOUT: u8 = 124;
pub(crate) const STATUS_NO_VERDICT: u8 = 125;
const STATUS_NO_SHELL: u8 = 126;
/// As a shell reports a program that SIGINT ended.
pub(crate) const STATUS_INTERRUPTED: u8 = 130;

const GUESTS_MEMORY_MIB: u32 = 512;
const DOM0_MEMORY_MIB: u32 = 2048;
/// How long a command in dom0 may take, booting included, when the user does not say.
const EXEC_TIMEOUT_SECONDS: u64 = 300;

#[derive(Args)]
pub(crate) struct Options {
    /// Which emulator plays the machine
    #[arg(long, value_enum, default_value_t)]
    emulator: Choice,
    /// Not interactive: run CMD in dom0's shell as root, print its output, power off, exit with its status
    #[arg(long, value_name = "CMD", conflicts_with = "guests")]
    exec: Option<String>,
    /// With --exec: bring the demo guest's files to dom0 [default: if CMD names their folder]
    #[arg(long, requires = "exec", conflicts_with = "initrd")]
    demo: bool,
    #[command(flatten)]
    dom0: Wanted,
    /// More words for the hypervisor's command line
    #[arg(long, value_name = "STR", allow_hyphen_values = true)]
    hv_append: Option<String>,
    /// Start by this firmware and GRUB, as a bare machine does [default: the quickest way that the emulator has]
    #[arg(long, value_enum, value_name = "bios|uefi")]
    firmware: Option<Firmware>,
    /// The machine's memory [default: 2048, with --guest 512]
    #[arg(long, value_name = "MiB", value_parser = clap::value_parser!(u32).range(32..))]
    memory: Option<u32>,
    /// The machine's CPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    smp: u32,
    /// A raw disk image that the machine has (repeatable)
    #[arg(long = "disk", value_name = "FILE")]
    disks: Vec<PathBuf>,
    /// Whether the machine has an IOMMU (not in Bochs)
    #[arg(long, value_enum, value_name = "on|off", default_value_t)]
    iommu: Switch,
    /// Boot without dom0: start this PVH image as a domain (repeatable); exit with the first one's shutdown code,
    /// 0 poweroff, 3 crash. WORDS: name=, mem=MiB, vcpus=N, control, initrd=FILE, then ` -- ` and the image's command line
    #[arg(long = "guest", value_name = "FILE[:WORDS]", value_parser = Guest::parse)]
    guests: Vec<Guest>,
    /// One virtual nanosecond an instruction, for repeatable timings (QEMU without KVM)
    #[arg(long)]
    icount: bool,
    /// Passed to the emulator as it is: an argument of QEMU's, a line of Bochs' configuration (repeatable)
    #[arg(long = "emulator-arg", value_name = "ARG", allow_hyphen_values = true)]
    emulator_args: Vec<String>,
    /// End with status 124 after this many seconds [default: 300 with --exec, else none]
    #[arg(long, value_name = "S")]
    timeout: Option<u64>,
    /// Write the machine's whole serial output to this file
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// How to compile the hypervisor
    #[arg(long, value_enum, default_value_t)]
    profile: Profile,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, ValueEnum)]
enum Switch {
    On,
    #[default]
    Off,
}

/// `xtask run`. What fails before the machine has a status of its own is status 125, as no command's is.
pub(crate) fn command(options: &Options) -> Result<ExitCode> {
    interrupt::catch()?;
    let status = run(options).unwrap_or_else(|error| {
        report::error(&error);
        if interrupt::requested() { STATUS_INTERRUPTED } else { STATUS_NO_VERDICT }
    });
    Ok(ExitCode::from(status))
}

fn run(options: &Options) -> Result<u8> {
    let decision = emulator::decide(options.emulator)?;
    let emulator = decision.emulator;
    report::step(format!("machine: {} ({})", emulator.name(), decision.reason));
    // What cannot be played is refused before anything is compiled.
    machine(options, Boot::Disk(PathBuf::new())).check(emulator)?;
    let has_dom0 = options.guests.is_empty();
    setup::ensure(&needs(emulator, options.firmware, has_dom0))?;
    emulator::check_version(emulator)?;
    let _disks = disk::hold(&options.disks)?;

    let dir = RunDir::create("run")?;
    let modules = if has_dom0 {
        crate::dom0::modules(&dom0_with_demo(options), dir.path())?
    } else {
        guests::modules(options, dir.path())?
    };
    let mut cmdline = hypervisor_cmdline(emulator, has_dom0.then(|| dom0_memory(memory_mib(options))).as_deref());
    cmdline.extend(options.hv_append.iter().flat_map(|more| [" ", more]));
    let launch = Launch { hypervisor: compile::hypervisor(options.profile)?.path, cmdline, modules };
    let via = if options.firmware.is_some() { Via::Grub } else { Via::Quickest };
    let boot = launch.prepare(emulator, via, dir.path())?;
    let log = options.log.as_deref().map_or_else(|| Ok(Log::default()), Log::to_file)?;

    report::step(format!("starting {}", emulator.name()));
    let mut running = emulator::start(emulator, machine(options, boot), dir.path(), options.exec.is_some())?;
    let limit = options.timeout.or_else(|| options.exec.is_some().then_some(EXEC_TIMEOUT_SECONDS));
    let deadline = limit.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    match &options.exec {
        Some(command) => dom0::exec(&mut running, command, log, deadline, &launch.hypervisor),
        None if has_dom0 => dom0::interact(&mut running, log, deadline, &launch.hypervisor),
        None => guests::run(&mut running, log, deadline, &launch.hypervisor),
    }
}

/// What must be installed for a run.
pub(crate) fn needs(emulator: Emulator, firmware: Option<Firmware>, has_dom0: bool) -> Vec<Purpose> {
    let dom0: &[Purpose] = if has_dom0 { &[Purpose::Dom0] } else { &[] };
    [emulator.purposes(), firmware_purposes(firmware), &[Purpose::Compile], dom0].concat()
}

/// What must be installed to start by `firmware`.
fn firmware_purposes(firmware: Option<Firmware>) -> &'static [Purpose] {
    match firmware {
        None => &[],
        Some(Firmware::Bios) => &[Purpose::Image],
        Some(Firmware::Uefi) => &[Purpose::Image, Purpose::Uefi],
    }
}

/// dom0 as asked for. With the demo guest's files, unless its root is the user's own or a command is run that has no use
/// for them: its kernel is a download of its own. The guest is started when nobody says what is to be done instead.
fn dom0_with_demo(options: &Options) -> Wanted {
    let mut wanted = options.dom0.clone();
    let is_wanted = options.exec.as_deref().is_none_or(|command| options.demo || command.contains(guest::FOLDER));
    if wanted.initrd.is_none() && is_wanted {
        wanted.demo = Some(Series::Cloud6_1);
        if options.exec.is_none() {
            wanted.append =
                Some(["isthmus.demo=start"].into_iter().chain(wanted.append.as_deref()).collect::<Vec<_>>().join(" "));
        }
    }
    wanted
}

fn machine(options: &Options, boot: Boot) -> Machine {
    Machine {
        firmware: options.firmware.unwrap_or(Firmware::Bios),
        cpus: options.smp,
        disks: options.disks.clone(),
        has_nic: options.guests.is_empty(),
        counts_instructions: options.icount,
        has_iommu: options.iommu == Switch::On,
        extra: options.emulator_args.clone(),
        ..Machine::new(boot, memory_mib(options))
    }
}

fn memory_mib(options: &Options) -> u32 {
    options.memory.unwrap_or(if options.guests.is_empty() { DOM0_MEMORY_MIB } else { GUESTS_MEMORY_MIB })
}

/// dom0's share of `all` MiB, as a word for the hypervisor: half of the memory, at most 1 GiB; of a small machine all but
/// what the hypervisor and a guest need.
pub(crate) fn dom0_memory(all: u32) -> String {
    let small = all.saturating_sub(128).min(384);
    format!("dom0_mem={}", (all / 2).min(1024).max(small))
}

/// The hypervisor's command line: what every emulated machine needs, then the user's words, which so have the last
/// word. An emulated TSC is one clock for all CPUs, whatever CPUID says of it; KVM's is the host's.
pub(crate) fn hypervisor_cmdline(emulator: Emulator, more: Option<&str>) -> String {
    let mut words = vec!["console=com1", "panic=exit", emulator.exit_option()];
    if emulator != Emulator::Kvm {
        words.push("tsc=stable");
    }
    words.extend(more);
    words.join(" ")
}

/// Whether the end of the log is shown: not when all of it has been.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShowTail {
    Yes,
    No,
}

/// Says on standard error how a run ended, unless it ended as it should.
pub(crate) fn explain(end: End, log: &Log, running: &Running, hypervisor: &Path, tail: ShowTail) {
    let what = match end {
        End::Status(0) if tail == ShowTail::No => return,
        End::Status(0) => "the machine was powered off".to_owned(),
        End::Status(status) => format!("the machine ended with status {status}"),
        End::Panicked => "the hypervisor panicked".to_owned(),
        End::Silent => "the machine ended without a status".to_owned(),
        End::TimedOut => "the time is over".to_owned(),
        End::Stopped => "the machine was stopped".to_owned(),
        End::Interrupted => "interrupted".to_owned(),
    };
    if tail == ShowTail::Yes {
        report::step("the last lines of the machine's log:");
        for line in log.tail() {
            eprintln!("{line}");
        }
    }
    if end == End::Panicked {
        backtrace(log, hypervisor);
    }
    if end == End::Silent && !running.said().is_empty() {
        report::step(format!("the emulator's last words:\n{}", running.said()));
    }
    report::step(what);
}

fn backtrace(log: &Log, hypervisor: &Path) {
    let symbols = match Symbols::open(hypervisor) {
        Ok(symbols) => symbols,
        Err(error) => return report::error(&error),
    };
    report::step("backtrace:");
    for line in log.backtrace() {
        eprintln!("{line}");
        for frame in symbols.describe(line) {
            eprintln!("       {frame}");
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn the_demo_guest_is_there_if_it_is_of_use() {
        let wanted = |words: &[&str]| {
            let line = [&["run"], words].concat();
            let wanted = dom0_with_demo(&Line::try_parse_from(line).unwrap().options);
            (wanted.demo.is_some(), wanted.append)
        };
        assert_eq!(wanted(&["--append", "quiet"]), (true, Some("isthmus.demo=start quiet".to_owned())));
        assert_eq!(wanted(&["--exec", "uname -r"]), (false, None));
        assert_eq!(wanted(&["--exec", "isthmus create /var/lib/isthmus/demo/demo.toml"]), (true, None));
        assert_eq!(wanted(&["--exec", "sh /tests", "--demo"]), (true, None));
        assert_eq!(wanted(&["--initrd", "mine"]), (false, None));
    }

    #[test]
    fn the_users_words_come_last_on_the_hypervisors_command_line() {
        let line = hypervisor_cmdline(Emulator::Qemu, Some("loglvl=debug exit=acpi"));
        assert_eq!(line, "console=com1 panic=exit exit=qemu tsc=stable loglvl=debug exit=acpi");
        assert_eq!(hypervisor_cmdline(Emulator::Kvm, None), "console=com1 panic=exit exit=qemu");
        assert_eq!(hypervisor_cmdline(Emulator::Bochs, None), "console=com1 panic=exit exit=bochs tsc=stable");
    }
}
