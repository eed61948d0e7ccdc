// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host's end of the exec channel: runs commands in dom0 over the emulator's COM2.
//!
//! The emulator gives COM2 as a stream socket. The agent in dom0 may start minutes after the
//! emulator or be there already; [`Channel::connect`] says hello until it answers. One boot serves
//! any number of commands, one after the other. That the machine has ended shows as the end of the
//! stream, and each way to fail is one of [`Failure`]'s, because each has its own exit status.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use dom0_tools::exec_protocol::link::HELLO_MS;
use dom0_tools::exec_protocol::{Event, Link, Message};
use guest_abi::num::low_u32;

/// A stream whose reads can be bounded.
pub(crate) trait Line: Read + Write {
    /// Lets each later read fail with `WouldBlock` or `TimedOut` after this time.
    fn set_read_timeout(&self, timeout: Duration) -> io::Result<()>;
}

impl Line for UnixStream {
    fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(timeout))
    }
}

impl Line for TcpStream {
    fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(timeout))
    }
}

/// Why a command has no status.
#[derive(Debug)]
pub(crate) enum Failure {
    /// dom0's agent did not answer before the deadline.
    NotReached,
    /// The line was closed: the machine has ended.
    Ended,
    /// The deadline passed while the command ran.
    TimedOut,
    /// The line failed otherwise.
    Line(io::Error),
    /// The command's output could not be written on the host.
    Output(io::Error),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReached => f.write_str("dom0 did not reach its shell in time"),
            Self::Ended => f.write_str("the machine ended before the command did"),
            Self::TimedOut => f.write_str("the command did not end in time"),
            Self::Line(error) => write!(f, "the exec channel (COM2) failed: {error}"),
            Self::Output(error) => write!(f, "writing the command's output: {error}"),
        }
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Line(error) | Self::Output(error) => Some(error),
            _ => None,
        }
    }
}

/// A connection to dom0's agent.
pub(crate) struct Channel<L> {
    line: L,
    link: Link,
    started: Instant,
}

impl<L: Line> Channel<L> {
    /// Waits for dom0's agent at the other end of `line`.
    ///
    /// # Errors
    /// [`Failure::NotReached`] at the deadline, [`Failure::Ended`] if the machine ends before.
    pub(crate) fn connect(line: L, deadline: Instant) -> Result<Self, Failure> {
        let mut channel = Self { line, link: Link::host(new_session()), started: Instant::now() };
        channel.hello(deadline)?;
        Ok(channel)
    }

    /// Starts over after a failed command, which dom0 kills if it still runs.
    ///
    /// # Errors
    /// As for [`Channel::connect`].
    pub(crate) fn reconnect(&mut self, deadline: Instant) -> Result<(), Failure> {
        self.link = Link::host(new_session());
        self.hello(deadline)
    }

    fn hello(&mut self, deadline: Instant) -> Result<(), Failure> {
        while !self.link.is_connected() {
            self.pump(deadline, Failure::NotReached)?;
        }
        Ok(())
    }

    /// Runs `command` by dom0's shell and copies its output as it comes.
    ///
    /// Returns the command's exit status, or 128 + n if signal n ended it.
    ///
    /// # Errors
    /// Any of [`Failure`] but [`Failure::NotReached`].
    pub(crate) fn run(
        &mut self,
        command: &str,
        stdout: &mut dyn Write,
        stderr: &mut dyn Write,
        deadline: Instant,
    ) -> Result<u8, Failure> {
        self.link.send(&Message::Command(command.as_bytes().to_vec()));
        self.link.send(&Message::Run);
        loop {
            while let Some(event) = self.link.next_event() {
                match event {
                    Event::Message(Message::Stdout(piece)) => copy(stdout, &piece)?,
                    Event::Message(Message::Stderr(piece)) => copy(stderr, &piece)?,
                    Event::Message(Message::Exit(status)) => {
                        // The agent would send the last pieces again if it never heard of this.
                        self.write_out()?;
                        return Ok(status);
                    }
                    Event::Message(_) | Event::Connected => {}
                }
            }
            self.pump(deadline, Failure::TimedOut)?;
        }
    }

    /// Asks dom0 to power the machine off; returns when it has heard or the line is closed.
    ///
    /// # Errors
    /// [`Failure::TimedOut`] at the deadline.
    pub(crate) fn power_off(&mut self, deadline: Instant) -> Result<(), Failure> {
        self.link.send(&Message::PowerOff);
        while !self.link.is_drained() {
            match self.pump(deadline, Failure::TimedOut) {
                Err(Failure::Ended) => return Ok(()),
                other => other?,
            }
        }
        Ok(())
    }

    /// Sends what is due and takes what arrives within a short time.
    fn pump(&mut self, deadline: Instant, late: Failure) -> Result<(), Failure> {
        self.write_out()?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late);
        }
        self.line.set_read_timeout(left.min(Duration::from_millis(HELLO_MS))).map_err(Failure::Line)?;
        let mut bytes = [0; 16 << 10];
        match self.line.read(&mut bytes) {
            Ok(0) => Err(Failure::Ended),
            Ok(count) => {
                let now = self.now_ms();
                self.link.receive(&bytes[..count], now);
                Ok(())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(()),
            Err(error) => line_result(error),
        }
    }

    fn write_out(&mut self) -> Result<(), Failure> {
        let mut out = Vec::new();
        let now = self.now_ms();
        self.link.transmit(now, &mut out);
        self.line.write_all(&out).or_else(line_result)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

fn copy(to: &mut dyn Write, piece: &[u8]) -> Result<(), Failure> {
    to.write_all(piece).and_then(|()| to.flush()).map_err(Failure::Output)
}

fn line_result(error: io::Error) -> Result<(), Failure> {
    match error.kind() {
        ErrorKind::Interrupted => Ok(()),
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Err(Failure::Ended),
        _ => Err(Failure::Line(error)),
    }
}

/// A session number that earlier connections to the same machine did not have.
fn new_session() -> u32 {
    low_u32(RandomState::new().build_hasher().finish()).max(1)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::{Channel, Failure};

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    /// An agent on a socket; the receiver hears of its power-off.
    fn agent(line: UnixStream) -> mpsc::Receiver<()> {
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            dom0_tools::agent::serve(line.into(), || {
                sender.send(())?;
                Ok(())
            })
        });
        receiver
    }

    fn run(channel: &mut Channel<UnixStream>, command: &str) -> (u8, Vec<u8>, Vec<u8>) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let status = channel.run(command, &mut out, &mut err, soon()).unwrap();
        (status, out, err)
    }

    #[test]
    fn output_is_exact_and_statuses_are_the_shells() {
        let (host, dom0) = UnixStream::pair().unwrap();
        let off = agent(dom0);
        let mut channel = Channel::connect(host, soon()).unwrap();
        let (status, out, err) = run(&mut channel, r"printf 'a\0b\r\n\377'; printf 'e\n' >&2; exit 7");
        assert_eq!((status, out.as_slice(), err.as_slice()), (7, b"a\0b\r\n\xff".as_slice(), b"e\n".as_slice()));
        assert_eq!(run(&mut channel, "kill -9 $$").0, 137);
        assert_eq!(run(&mut channel, "read line && echo got").0, 1, "no standard input");
        let (status, out, _) = run(&mut channel, "seq 1 200000 | tr -d '\\n'");
        let expected: String = (1..=200_000).map(|n: u32| n.to_string()).collect();
        assert_eq!(status, 0);
        assert!(out == expected.as_bytes());
        let (status, out, _) = run(&mut channel, &format!("echo {}", "x".repeat(50_000)));
        assert_eq!((status, out.len()), (0, 50_001), "a long command arrives whole");
        channel.power_off(soon()).unwrap();
        off.recv_timeout(Duration::from_secs(10)).unwrap();
    }

    #[test]
    fn a_background_process_does_not_hold_the_command() {
        let (host, dom0) = UnixStream::pair().unwrap();
        let _off = agent(dom0);
        let mut channel = Channel::connect(host, soon()).unwrap();
        let before = Instant::now();
        assert_eq!(run(&mut channel, "sleep 30 & echo started").1, b"started\n");
        assert!(before.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn noise_between_and_inside_frames_changes_nothing() {
        let (host, host_far) = UnixStream::pair().unwrap();
        let (dom0, dom0_far) = UnixStream::pair().unwrap();
        let _off = agent(dom0);
        noisy(host_far.try_clone().unwrap(), dom0_far.try_clone().unwrap(), 400);
        noisy(dom0_far, host_far, 7_000);
        let mut channel = Channel::connect(host, soon()).unwrap();
        let (status, out, _) = run(&mut channel, "seq 1 3000; exit 3");
        let expected: String = (1..=3000).map(|n: u32| format!("{n}\n")).collect();
        assert_eq!(status, 3);
        assert!(out == expected.as_bytes());
    }

    /// Copies with a kernel line put in after each `every` bytes.
    fn noisy(mut from: UnixStream, mut to: UnixStream, every: usize) {
        thread::spawn(move || {
            let mut since = 0;
            let mut bytes = [0; 512];
            while let Ok(count @ 1..) = from.read(&mut bytes) {
                for byte in &bytes[..count] {
                    since += 1;
                    if since == every {
                        since = 0;
                        to.write_all(b"[    3.14] usb: \xf5IX\xfa noise\r\n").unwrap();
                    }
                    to.write_all(&[*byte]).unwrap();
                }
            }
        });
    }

    #[test]
    fn an_agent_that_starts_late_is_reached() {
        let (host, dom0) = UnixStream::pair().unwrap();
        let late = thread::spawn(move || {
            thread::sleep(Duration::from_millis(700));
            agent(dom0)
        });
        let mut channel = Channel::connect(host, soon()).unwrap();
        let _off = late.join().unwrap();
        assert_eq!(run(&mut channel, "echo up").1, b"up\n");
    }

    #[test]
    fn each_way_to_fail_is_told_apart() {
        let (host, dom0) = UnixStream::pair().unwrap();
        let at_once = Instant::now() + Duration::from_millis(300);
        assert!(matches!(Channel::connect(host.try_clone().unwrap(), at_once), Err(Failure::NotReached)));
        let _off = agent(dom0);
        let mut channel = Channel::connect(host, soon()).unwrap();
        let at_once = Instant::now() + Duration::from_millis(300);
        let failure = channel.run("sleep 60", &mut Vec::new(), &mut Vec::new(), at_once);
        assert!(matches!(failure, Err(Failure::TimedOut)));
        channel.reconnect(soon()).unwrap();
        assert_eq!(run(&mut channel, "echo again").1, b"again\n");

        let (host, dom0) = UnixStream::pair().unwrap();
        drop(dom0);
        assert!(matches!(Channel::connect(host, soon()), Err(Failure::Ended)));
    }
}
