// SPDX-License-Identifier: MIT OR Apache-2.0
//! `run` with dom0: its kernel and root, the console on this terminal, or one command.
//!
//! A command runs over COM2, which dom0 owns, so that kernel lines cannot get into its output. COM1 is followed at the
//! same time by a thread: when the machine ends or the hypervisor panics, that thread closes COM2, and so whoever waits
//! for an answer there learns of it.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::{Options, ShowTail, terminal};
use crate::bundle::Module;
use crate::console::{self, End, Log, Until};
use crate::emulator::Running;
use crate::exec::{Channel, Failure};
use crate::kernel::{self, Series};
use crate::{compile, initramfs, report, workspace};

/// What dom0's kernel is always told; the user's arguments follow.
const KERNEL_ARGUMENTS: &str = "console=hvc0";
/// How long a dom0 whose command is done may take to power off.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// dom0's boot modules, from what the user asked for or else from Debian's packages.
pub(super) fn modules(options: &Options, dir: &Path) -> Result<Vec<Module>> {
    let kernel = Kernel::get(options)?;
    let initrd = match &options.initrd {
        Some(file) => file.clone(),
        None => root(options, &kernel, dir)?,
    };
    let arguments = match &options.append {
        Some(more) => format!("{KERNEL_ARGUMENTS} {more}"),
        None => KERNEL_ARGUMENTS.to_owned(),
    };
    report::step(format!("dom0: Linux {} with arguments: {arguments}", kernel.release));
    let kernel = Module { file: kernel.elf, args: format!("kernel {arguments}") };
    Ok(vec![kernel, Module { file: initrd, args: "initrd".to_owned() }])
}

/// A kernel that can be dom0.
struct Kernel {
    elf: PathBuf,
    release: String,
    /// Its `lib/modules/RELEASE`, if there is one.
    modules: Option<PathBuf>,
}

impl Kernel {
    /// The user's file, or Debian's kernel of the series that the user names, or Debian's default.
    fn get(options: &Options) -> Result<Self> {
        let target = workspace::target();
        let (vmlinuz, packaged_modules) = match &options.kernel {
            Some(file) if file.exists() => (file.clone(), None),
            name => {
                let package = kernel::fetch(name.as_deref().map_or_else(|| Ok(Series::default()), series)?, &target)?;
                report::step(format!("kernel package: {} ({})", package.name, package.release));
                (package.vmlinuz, Some(package.modules))
            }
        };
        report::step(format!("kernel: {}", vmlinuz.display()));
        let name = vmlinuz.file_name().unwrap_or_default().to_string_lossy();
        let unpacked = kernel::unpack(&vmlinuz, &target.join("kernels/unpacked").join(format!("{name}.elf")))?;
        unpacked.require_dom0()?;
        let installed = Path::new("/lib/modules").join(&unpacked.release);
        let installed = (!unpacked.release.is_empty() && installed.is_dir()).then_some(installed);
        let modules = options.modules.clone().or(packaged_modules).or(installed);
        Ok(Self { elf: unpacked.path, release: unpacked.release, modules })
    }
}

/// Makes dom0's root file system in `dir`.
fn root(options: &Options, kernel: &Kernel, dir: &Path) -> Result<PathBuf> {
    let isthmus = compile::dom0_tools()?.path;
    report::step("making dom0's root file system");
    if kernel.modules.is_none() {
        report::step(format!("no modules for Linux {}: dom0 has what is built into it; see --modules", kernel.release));
    }
    let spec = initramfs::Spec {
        modules: kernel.modules.as_deref(),
        release: &kernel.release,
        isthmus: &isthmus,
        overlays: &options.overlays,
        packages: &options.packages,
        target_dir: &workspace::target(),
    };
    let file = dir.join("root.cpio.lz4");
    let made = initramfs::build(&spec, &file)?;
    let is_plain = options.overlays.is_empty() && options.packages.is_empty();
    if is_plain && made.bytes > initramfs::LIMIT_BYTES {
        report::step(format!("dom0's root has {} bytes, more than the {} it may", made.bytes, initramfs::LIMIT_BYTES));
    }
    if !made.missing_modules.is_empty() {
        report::step(format!("the kernel has no module {}", made.missing_modules.join(", ")));
    }
    Ok(file)
}

fn series(name: &Path) -> Result<Series> {
    name.to_string_lossy().parse().with_context(|| format!("{}: no such file", name.display()))
}

/// What became of a command.
enum Outcome {
    /// It ended with this status.
    Status(u8),
    /// It has none.
    None { failure: Failure, shell_was_reached: bool },
}

/// Runs `command` in dom0 and powers the machine off. Returns the exit status of `xtask run`.
pub(super) fn exec(
    running: &mut Running,
    command: &str,
    log: Log,
    deadline: Option<Instant>,
    hypervisor: &Path,
) -> Result<u8> {
    let com2 = running.com2.take().context("the machine was started without COM2")?;
    let deadline = deadline.context("a command needs a time limit")?;
    let closer = com2.try_clone()?;
    let (log, stop) = (Mutex::new(log), AtomicBool::new(false));
    let (end, outcome) = thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let end = console::watch(running, &log, Until { deadline: None, stop: Some(&stop) }, |_| Ok(()));
            // The other end may be gone already.
            let _ = closer.shutdown(Shutdown::Both);
            end
        });
        let outcome = run_command(com2, command, deadline);
        let limit = Instant::now() + POWER_OFF_LIMIT;
        while matches!(outcome, Outcome::Status(_)) && !watcher.is_finished() && Instant::now() < limit {
            sleep(POLL);
        }
        stop.store(true, Ordering::Relaxed);
        let end = watcher.join().unwrap_or_else(|_| Err(anyhow!("following the machine's log failed")));
        (end, outcome)
    });
    let end = end?;
    let status = exit_code(end, &outcome);
    if let Outcome::None { failure, .. } = &outcome {
        super::explain(end, &console::lock(&log), running, hypervisor, ShowTail::Yes);
        report::step(failure.to_string());
    } else if end == End::Panicked {
        super::explain(end, &console::lock(&log), running, hypervisor, ShowTail::Yes);
    }
    Ok(status)
}

/// Waits for dom0's shell, runs the command there with its output on ours, and asks for the machine to be powered off.
fn run_command(com2: TcpStream, command: &str, deadline: Instant) -> Outcome {
    let mut channel = match Channel::connect(com2, deadline) {
        Ok(channel) => channel,
        Err(failure) => return Outcome::None { failure, shell_was_reached: false },
    };
    report::step("dom0 is up");
    let (mut stdout, mut stderr) = (std::io::stdout().lock(), std::io::stderr());
    let status = channel.run(command, &mut stdout, &mut stderr, deadline);
    // A dom0 that does not hear this is ended with its emulator.
    let _ = channel.power_off(Instant::now() + POWER_OFF_LIMIT);
    match status {
        Ok(status) => Outcome::Status(status),
        Err(failure) => Outcome::None { failure, shell_was_reached: true },
    }
}

/// The contract of `--exec`: the command's own status, or why there is none. A machine that ended with a status before
/// the shell answered has said what keeps dom0 from its shell; one that ended without has not.
fn exit_code(end: End, outcome: &Outcome) -> u8 {
    match (end, outcome) {
        (End::Panicked, _) => super::STATUS_NO_VERDICT,
        (End::Interrupted, _) => super::STATUS_INTERRUPTED,
        (_, Outcome::Status(status)) => *status,
        (_, Outcome::None { failure: Failure::TimedOut, .. }) => super::STATUS_TIMEOUT,
        (_, Outcome::None { failure: Failure::NotReached, .. })
        | (End::Status(_), Outcome::None { shell_was_reached: false, .. }) => super::STATUS_NO_SHELL,
        (_, Outcome::None { .. }) => super::STATUS_NO_VERDICT,
    }
}

/// Connects this terminal with dom0's console until the machine ends. Returns the exit status of `xtask run`.
pub(super) fn interact(running: &mut Running, log: Log, deadline: Option<Instant>, hypervisor: &Path) -> Result<u8> {
    let raw = terminal::Raw::enter()?;
    if raw.is_terminal() {
        report::step("this terminal is dom0's console; Ctrl-] ends the machine");
    }
    let stop = terminal::forward(running.com1.try_clone()?);
    let log = Mutex::new(log);
    let mut stdout = std::io::stdout().lock();
    let end = console::watch(running, &log, Until { deadline, stop: Some(&stop) }, |bytes| {
        stdout.write_all(bytes).and_then(|()| stdout.flush()).context("writing to standard output")
    })?;
    drop(raw);
    let end = if end == End::Silent && running.was_powered_off() { End::Status(0) } else { end };
    super::explain(end, &console::lock(&log), running, hypervisor, ShowTail::No);
    Ok(match end {
        End::Stopped => 0,
        other => super::guests::exit_code(other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_status_is_ours_unless_the_hypervisor_panicked() {
        assert_eq!(exit_code(End::Silent, &Outcome::Status(7)), 7);
        assert_eq!(exit_code(End::Status(0), &Outcome::Status(0)), 0);
        assert_eq!(exit_code(End::Stopped, &Outcome::Status(143)), 143, "dom0 did not power off in time");
        assert_eq!(exit_code(End::Panicked, &Outcome::Status(0)), 125);
    }

    #[test]
    fn a_command_without_status_is_told_apart_by_the_reason() {
        let code = |end, failure, reached| exit_code(end, &Outcome::None { failure, shell_was_reached: reached });
        assert_eq!(code(End::Stopped, Failure::TimedOut, true), 124);
        assert_eq!(code(End::Stopped, Failure::NotReached, false), 126);
        assert_eq!(code(End::Status(4), Failure::Ended, false), 126);
        assert_eq!(code(End::Status(3), Failure::Ended, true), 125);
        assert_eq!(code(End::Silent, Failure::Ended, true), 125);
        assert_eq!(code(End::Panicked, Failure::Ended, false), 125);
        assert_eq!(code(End::Interrupted, Failure::Ended, true), 130);
    }
}
