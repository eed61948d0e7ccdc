// SPDX-License-Identifier: MIT OR Apache-2.0
//! A running emulator: its process and the two serial lines.
//!
//! Starting waits until the emulator has connected its serial ports, so that nothing the machine prints is lost. The
//! process dies with xtask in every way there is: it is ended when [`Running`] is dropped, and should xtask be killed,
//! the kernel kills it too (util-linux' `setpriv` asks for that).

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::{Emulator, Machine, Serial, bochs, command};
use crate::{interrupt, tool};

/// How long an emulator may take to connect its serial ports, on a busy machine.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// How long an emulator may take to end when told to.
const END_LIMIT: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(10);

/// What the emulator itself prints goes to this file in the run's folder.
const OUTPUT: &str = "emulator.out";

/// An emulator that runs. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Running {
    process: Process,
    output: PathBuf,
    pub(crate) com1: TcpStream,
    /// Connected when asked for at the start.
    pub(crate) com2: Option<TcpStream>,
}

/// Starts `emulator` with `machine` in the folder `dir` and waits for the serial ports to be connected. Errors: the
/// machine is none that this emulator plays, or the emulator does not start; its own words are in the error.
pub(crate) fn start(emulator: Emulator, mut machine: Machine, dir: &Path, with_com2: bool) -> Result<Running> {
    let com1 = listen()?;
    machine.com1 = Serial::Connect(com1.local_addr()?.port());
    let com2 = if with_com2 { Some(listen()?) } else { None };
    if let Some(listener) = &com2 {
        machine.com2 = Serial::Connect(listener.local_addr()?.port());
    }
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let output = dir.join(OUTPUT);
    let command = dying_with_us(&command(emulator, &machine, dir)?);
    let mut process = Process { emulator, child: spawn(command, &output)? };
    let com1 = process.accept(&com1, &output)?;
    let com2 = com2.map(|listener| process.accept(&listener, &output)).transpose()?;
    Ok(Running { process, output, com1, com2 })
}

impl Running {
    /// Waits for the emulator to end by itself. `None`: it did not within `limit`.
    pub(crate) fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        self.process.wait(limit)
    }

    /// Ends the emulator.
    pub(crate) fn end(&mut self) {
        self.process.end();
    }

    /// Whether the emulator, having ended by itself, did so because the machine was powered off by ACPI.
    pub(crate) fn was_powered_off(&mut self) -> bool {
        let status = self.process.wait(Duration::ZERO);
        match self.process.emulator {
            Emulator::Kvm | Emulator::Qemu => status.is_some_and(|status| status.success()),
            // Bochs' status is the same for every end.
            Emulator::Bochs => {
                let log = fs::read(self.output.with_file_name(bochs::LOG)).unwrap_or_default();
                status.is_some() && String::from_utf8_lossy(&log).contains(bochs::POWERED_OFF)
            }
        }
    }

    /// What the emulator itself printed.
    pub(crate) fn said(&self) -> String {
        said(&self.output)
    }
}

#[derive(Debug)]
struct Process {
    emulator: Emulator,
    child: Child,
}

impl Process {
    fn accept(&mut self, listener: &TcpListener, output: &Path) -> Result<TcpStream> {
        let name = self.emulator.name();
        let deadline = Instant::now() + CONNECT_LIMIT;
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    stream.set_nodelay(true)?;
                    return Ok(stream);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("accepting a serial line"),
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{name} did not start ({status}): {}", said(output));
            }
            if interrupt::requested() {
                bail!("interrupted");
            }
            if Instant::now() > deadline {
                bail!("{name} did not connect its serial port in {} s: {}", CONNECT_LIMIT.as_secs(), said(output));
            }
            sleep(POLL);
        }
    }

    fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            if Instant::now() > deadline {
                return None;
            }
            sleep(POLL);
        }
    }

    /// Ends the process: politely, then not.
    fn end(&mut self) {
        // Bochs ignores SIGTERM.
        let polite = if self.emulator == Emulator::Bochs { Signal::INT } else { Signal::TERM };
        for signal in [polite, Signal::KILL] {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            // The process has not been waited for, so its number is still its own. It may be ending by itself.
            let _ = kill_process(Pid::from_child(&self.child), signal);
            if self.wait(END_LIMIT).is_some() {
                return;
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

fn listen() -> Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening for a serial line")?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// `command` behind `setpriv`, which has the kernel kill it when its parent dies, where `setpriv` is there.
fn dying_with_us(command: &Command) -> Command {
    let Some(setpriv) = tool::find("setpriv") else { return copy(command, Command::new(command.get_program()), false) };
    let mut wrapped = Command::new(setpriv);
    wrapped.args(["--pdeathsig", "KILL", "--"]);
    copy(command, wrapped, true)
}

/// Gives `to` the arguments, folder and environment of `from`, and its program as the first argument if wanted.
fn copy(from: &Command, mut to: Command, with_program: bool) -> Command {
    if with_program {
        to.arg(from.get_program());
    }
    to.args(from.get_args());
    if let Some(dir) = from.get_current_dir() {
        to.current_dir(dir);
    }
    for (name, value) in from.get_envs() {
        match value {
            Some(value) => to.env(name, value),
            None => to.env_remove(name),
        };
    }
    to
}

fn spawn(mut command: Command, output: &Path) -> Result<Child> {
    let file = File::create(output).with_context(|| format!("creating {}", output.display()))?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
    command.spawn().context("starting the emulator")
}

/// The last lines of what the emulator printed, without a terminal's control characters.
fn said(output: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(output).unwrap_or_default()).into_owned();
    let clean: String = text.chars().filter(|&c| c == '\n' || !c.is_control()).collect();
    let lines: Vec<_> = clean.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}
