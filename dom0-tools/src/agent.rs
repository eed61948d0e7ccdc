// SPDX-License-Identifier: MIT OR Apache-2.0
//! dom0's end of the exec channel: runs the host's commands.
//!
//! One loop waits on the serial line, on the running command's two pipes and on the command itself
//! (a pidfd), so output streams while the command runs and a host that comes back with another
//! session ends the command of the one before. A command is over when its shell is: what a process
//! that it left in the background writes later goes nowhere.
//!
//! The line must be a serial device in raw mode ([`open_line`]) or, in tests, any stream. A command
//! has no standard input and a process group of its own, so that all of it can be killed.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::termios::{self, ControlModes, OptionalActions};

use crate::exec_protocol::{Event, Link, Message};

/// How long the loop sleeps at most while the link may have to send something again.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };
const READ: usize = 4096;
const BAUD: u32 = 115_200;

/// Opens a serial device, eight bits, nothing interpreted, no modem lines.
///
/// # Errors
/// The device does not exist or is no serial device.
pub fn open_line(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let line = rustix::fs::open(path, flags, Mode::empty()).with_context(|| format!("opening {}", path.display()))?;
    let mut mode = termios::tcgetattr(&line)
        .with_context(|| format!("{} is no serial device: give /dev/ttyS1", path.display()))?;
    mode.make_raw();
    mode.control_modes |= ControlModes::CLOCAL | ControlModes::CREAD;
    mode.control_modes &= !ControlModes::CRTSCTS;
    mode.set_speed(BAUD).with_context(|| format!("setting the speed of {}", path.display()))?;
    termios::tcsetattr(&line, OptionalActions::Now, &mode).with_context(|| format!("setting up {}", path.display()))?;
    Ok(line)
}

/// Powers the machine off at once, after writing file systems out.
///
/// # Errors
/// The caller is not root, or the kernel refuses.
pub fn power_off() -> Result<()> {
    rustix::fs::sync();
    rustix::system::reboot(rustix::system::RebootCommand::PowerOff).context("powering off (only root may)")
}

/// Serves the host at the other end of `line` until it asks for power-off; then calls `power_off`.
///
/// # Errors
/// The line fails or is closed.
pub fn serve(line: OwnedFd, power_off: impl FnOnce() -> Result<()>) -> Result<()> {
    rustix::io::ioctl_fionbio(&line, true).context("making the line non-blocking")?;
    let mut agent = Agent {
        line: File::from(line),
        link: Link::agent(),
        outgoing: Vec::new(),
        command: Vec::new(),
        job: None,
        started: Instant::now(),
    };
    while !agent.step()? {}
    agent.flush()?;
    power_off()
}

struct Agent {
    line: File,
    link: Link,
    /// Bytes that the line has not yet taken.
    outgoing: Vec<u8>,
    /// The command as far as it has arrived.
    command: Vec<u8>,
    job: Option<Job>,
    started: Instant,
}

/// A running command.
struct Job {
    child: Child,
    ended: OwnedFd,
    pipes: [Option<Pipe>; 2],
}

struct Pipe {
    file: File,
    message: fn(Vec<u8>) -> Message,
}

/// What [`Agent::wait`] found to be ready.
#[derive(Default)]
struct Ready {
    line: bool,
    pipes: [bool; 2],
    ended: bool,
}

impl Agent {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// One turn of the loop. Returns whether the host has asked for power-off.
    fn step(&mut self) -> Result<bool> {
        if self.outgoing.is_empty() {
            let now = self.now_ms();
            self.link.transmit(now, &mut self.outgoing);
        }
        self.write_line()?;
        let ready = self.wait()?;
        if ready.line {
            self.read_line()?;
        }
        if let Some(job) = &mut self.job {
            for (pipe, ready) in job.pipes.iter_mut().zip(ready.pipes) {
                if ready {
                    forward_once(pipe, &mut self.link);
                }
            }
        }
        if ready.ended {
            self.finish();
        }
        while let Some(event) = self.link.next_event() {
            match event {
                Event::Connected => self.abandon(),
                Event::Message(Message::Command(piece)) => self.command.extend_from_slice(&piece),
                Event::Message(Message::Run) => self.run(),
                Event::Message(Message::PowerOff) => return Ok(true),
                // The agent's own kinds: a line that loops back, say.
                Event::Message(_) => {}
            }
        }
        Ok(false)
    }

    /// Sleeps until something can be done.
    fn wait(&self) -> Result<Ready> {
        let mut fds = Vec::with_capacity(4);
        let writing = if self.outgoing.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        fds.push(PollFd::new(&self.line, PollFlags::IN | writing));
        let mut pipes = [None; 2];
        let mut ended = None;
        if let Some(job) = &self.job {
            for (place, pipe) in pipes.iter_mut().zip(&job.pipes) {
                if let Some(pipe) = pipe.as_ref().filter(|_| self.link.has_room()) {
                    *place = Some(fds.len());
                    fds.push(PollFd::new(&pipe.file, PollFlags::IN));
                }
            }
            ended = Some(fds.len());
            fds.push(PollFd::new(&job.ended, PollFlags::IN));
        }
        let idle = self.outgoing.is_empty() && self.link.is_drained() && !self.link.owes_answer();
        match poll(&mut fds, if idle { None } else { Some(&TICK) }) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for the line"),
        }
        let fired = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
        Ok(Ready {
            line: fds[0].revents().intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR),
            pipes: pipes.map(|place| place.is_some_and(fired)),
            ended: ended.is_some_and(fired),
        })
    }

    fn read_line(&mut self) -> Result<()> {
        let mut bytes = [0; READ];
        match self.line.read(&mut bytes) {
            Ok(count) => {
                ensure!(count > 0, "the line was closed");
                let now = self.now_ms();
                self.link.receive(&bytes[..count], now);
                Ok(())
            }
            Err(error) if is_transient(&error) => Ok(()),
            Err(error) => Err(error).context("reading from the line"),
        }
    }

    fn write_line(&mut self) -> Result<()> {
        while !self.outgoing.is_empty() {
            match self.line.write(&self.outgoing) {
                Ok(count) => drop(self.outgoing.drain(..count)),
                Err(error) if is_transient(&error) => break,
                Err(error) => return Err(error).context("writing to the line"),
            }
        }
        Ok(())
    }

    /// Acknowledges the last message and waits until the line has carried it.
    fn flush(&mut self) -> Result<()> {
        let now = self.now_ms();
        self.link.transmit(now, &mut self.outgoing);
        rustix::io::ioctl_fionbio(&self.line, false).context("making the line blocking")?;
        self.line.write_all(&self.outgoing).context("writing to the line")?;
        match termios::tcdrain(&self.line) {
            Ok(()) | Err(rustix::io::Errno::NOTTY) => Ok(()),
            Err(error) => Err(error).context("draining the line"),
        }
    }

    /// Starts the command that has arrived; a failure to start is told as a shell would.
    fn run(&mut self) {
        self.abandon_job();
        let command = std::mem::take(&mut self.command);
        match Job::start(&command) {
            Ok(job) => self.job = Some(job),
            Err(error) => {
                self.link.send(&Message::Stderr(format!("isthmus agent: starting /bin/sh: {error}\n").into_bytes()));
                self.link.send(&Message::Exit(127));
            }
        }
    }

    /// Sends the rest of the ended command's output and its status.
    fn finish(&mut self) {
        let Some(mut job) = self.job.take() else { return };
        for pipe in &mut job.pipes {
            while forward_once(pipe, &mut self.link) {}
        }
        let status = job.child.wait().map_or(127, |status| match (status.code(), status.signal()) {
            (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
            (None, signal) => u8::try_from(128 + signal.unwrap_or(0)).unwrap_or(u8::MAX),
        });
        self.link.send(&Message::Exit(status));
    }

    /// Forgets the session before.
    fn abandon(&mut self) {
        self.command.clear();
        self.abandon_job();
    }

    fn abandon_job(&mut self) {
        let Some(mut job) = self.job.take() else { return };
        if let Some(group) = i32::try_from(job.child.id()).ok().and_then(Pid::from_raw) {
            // It fails only if all of the group has ended already.
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        // The shell was killed or had ended, so this neither blocks nor can it fail.
        let _ = job.child.wait();
    }
}

/// Sends what a pipe holds, at most one read. Returns whether there may be more; closes the pipe at
/// its end.
fn forward_once(pipe: &mut Option<Pipe>, link: &mut Link) -> bool {
    let Some(open) = pipe else { return false };
    let mut bytes = [0; READ];
    match open.file.read(&mut bytes) {
        Ok(count) if count > 0 => {
            link.send(&(open.message)(bytes[..count].to_vec()));
            true
        }
        Err(error) if is_transient(&error) => false,
        Ok(_) | Err(_) => {
            *pipe = None;
            false
        }
    }
}

impl Job {
    fn start(command: &[u8]) -> io::Result<Self> {
        use std::os::unix::ffi::OsStrExt;
        let mut child = Command::new("/bin/sh")
            .arg("-c")
            .arg(std::ffi::OsStr::from_bytes(command))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
        let ended = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        let stdout = child.stdout.take().map(OwnedFd::from);
        let stderr = child.stderr.take().map(OwnedFd::from);
        for pipe in [&stdout, &stderr].into_iter().flatten() {
            rustix::io::ioctl_fionbio(pipe.as_fd(), true)?;
        }
        let pipes = [
            stdout.map(|fd| Pipe { file: File::from(fd), message: Message::Stdout }),
            stderr.map(|fd| Pipe { file: File::from(fd), message: Message::Stderr }),
        ];
        Ok(Self { child, ended, pipes })
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
