// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine's first serial line: what it says, and how the machine ends.
//!
//! [`Log`] takes the bytes as they come, keeps the last lines for a report of failure, and recognizes the hypervisor's
//! own lines that decide a run: its panic with the backtrace, and the status with which it ends the machine. Those
//! lines begin with `(isthmus)`, possibly in the middle of a line that a domain had begun. [`watch`] feeds it until the
//! machine has ended, or must be.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::emulator::Running;
use crate::interrupt;

/// How many lines are kept for a report.
const TAIL_LINES: usize = 50;
/// Longer lines are cut into several, so that a domain cannot make xtask grow.
const LINE_BYTES: usize = 4096;
const POLL: Duration = Duration::from_millis(50);
/// How long the machine may go on after its end was announced, to print a backtrace for example.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// The same after the announcement of a status, which is the last line there is.
const AFTER_STATUS: Duration = Duration::from_secs(1);

const OURS: &str = "(isthmus)";
const STATUS: &str = "machine exit status=";
const PANIC: &str = "PANIC: ";

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The hypervisor ended the machine with this status.
    Status(u8),
    /// The hypervisor panicked.
    Panicked,
    /// The machine ended without a word of the hypervisor's.
    Silent,
    /// The time was over.
    TimedOut,
    /// It was stopped from inside xtask, see [`Until`].
    Stopped,
    /// A signal stopped it.
    Interrupted,
}

/// What the machine has said so far.
#[derive(Default)]
pub(crate) struct Log {
    file: Option<File>,
    line: Vec<u8>,
    tail: VecDeque<String>,
    status: Option<u8>,
    has_panicked: bool,
    backtrace: Vec<String>,
}

impl Log {
    /// A log that is also written to a file.
    pub(crate) fn to_file(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self { file: Some(file), ..Self::default() })
    }

    /// Takes the next bytes. Errors: the file cannot be written.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some(file) = &mut self.file {
            file.write_all(bytes).context("writing the log")?;
        }
        for &byte in bytes {
            if byte == b'\n' || self.line.len() == LINE_BYTES {
                self.finish_line();
            }
            if byte != b'\n' && byte != b'\r' {
                self.line.push(byte);
            }
        }
        Ok(())
    }

    fn finish_line(&mut self) {
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned();
        // A guest's lines have its own prefix, whatever else it writes into them.
        if let Some((before, ours)) = line.split_once(OURS)
            && !before.starts_with("(d")
        {
            self.has_panicked |= ours.contains(PANIC);
            if let Some((_, number)) = ours.split_once(STATUS) {
                self.status = number.trim().parse().ok();
            }
        }
        if self.has_panicked && line.trim_start().starts_with('#') {
            self.backtrace.push(line.clone());
        }
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }

    /// The last lines, the unfinished one included.
    pub(crate) fn tail(&self) -> impl Iterator<Item = String> {
        let unfinished = (!self.line.is_empty()).then(|| String::from_utf8_lossy(&self.line).into_owned());
        self.tail.iter().cloned().chain(unfinished)
    }

    /// The lines of the panic's backtrace.
    pub(crate) fn backtrace(&self) -> &[String] {
        &self.backtrace
    }

    fn end(&self) -> Option<End> {
        if self.has_panicked { Some(End::Panicked) } else { self.status.map(End::Status) }
    }
}

/// What ends a run from outside.
#[derive(Clone, Copy, Default)]
pub(crate) struct Until<'a> {
    /// When the time is over.
    pub(crate) deadline: Option<Instant>,
    /// Set by somebody who has what he wanted.
    pub(crate) stop: Option<&'a AtomicBool>,
}

/// Follows the machine until it ends, and ends it if it does not do so by itself. `echo` sees the bytes of the serial
/// line as they come. Errors: the line, the log or `echo` fails; the machine then still runs.
pub(crate) fn watch(
    running: &mut Running,
    log: &Mutex<Log>,
    until: Until<'_>,
    mut echo: impl FnMut(&[u8]) -> Result<()>,
) -> Result<End> {
    let mut com1 = running.com1.try_clone()?;
    com1.set_read_timeout(Some(POLL))?;
    let mut announced: Option<(End, Instant)> = None;
    let mut buffer = [0; 16384];
    let end = loop {
        match read(&mut com1, &mut buffer)? {
            Some(0) => break announced.map_or(End::Silent, |(end, _)| end),
            Some(count) => {
                echo(&buffer[..count])?;
                let mut log = lock(log);
                log.feed(&buffer[..count])?;
                let since = announced.map_or_else(Instant::now, |(_, since)| since);
                announced = log.end().map(|end| (end, since));
            }
            None => {}
        }
        if interrupt::requested() {
            break End::Interrupted;
        }
        if until.stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            break announced.map_or(End::Stopped, |(end, _)| end);
        }
        let now = Instant::now();
        if let Some((end, since)) = announced
            && now > since + if matches!(end, End::Status(_)) { AFTER_STATUS } else { LAST_WORDS }
        {
            break end;
        }
        if until.deadline.is_some_and(|deadline| now > deadline) {
            break announced.map_or(End::TimedOut, |(end, _)| end);
        }
    };
    // A machine that has closed its serial line without a word may have something to say on the emulator's own.
    if end == End::Silent {
        running.wait(LAST_WORDS);
    }
    running.end();
    Ok(end)
}

/// The log, whatever became of another thread that used it.
pub(crate) fn lock(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads what there is. `None`: nothing within the poll interval; `Some(0)`: the other end is closed.
fn read(stream: &mut TcpStream, buffer: &mut [u8]) -> Result<Option<usize>> {
    match stream.read(buffer) {
        Ok(count) => Ok(Some(count)),
        Err(error) => match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => Ok(None),
            ErrorKind::ConnectionReset => Ok(Some(0)),
            _ => Err(error).context("reading the machine's serial line"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(text: &str) -> Log {
        let mut log = Log::default();
        log.feed(text.as_bytes()).unwrap();
        log
    }

    #[test]
    fn the_status_is_the_hypervisors_own_last_word() {
        assert_eq!(log("(isthmus) [1.0] INFO  machine exit status=3\r\n").end(), Some(End::Status(3)));
        assert_eq!(log("boot(isthmus) [1.0] INFO  machine exit status=0\n").end(), Some(End::Status(0)));
        assert_eq!(log("(isthmus) [1.0] INFO  machine exit sta").end(), None, "the line is not complete");
        assert_eq!(log("(d1) machine exit status=0\n").end(), None, "a guest says so");
    }

    #[test]
    fn a_panic_outweighs_the_status_and_keeps_its_backtrace() {
        let log = log("(isthmus) [1.0] ERROR PANIC: at a.rs:1\n  #0 0x1000\n  #1 0x2000\n\
                       (isthmus) [1.0] INFO  machine exit status=5\n");
        assert_eq!(log.end(), Some(End::Panicked));
        assert_eq!(log.backtrace(), ["  #0 0x1000", "  #1 0x2000"]);
    }

    #[test]
    fn a_guests_panic_is_not_the_hypervisors() {
        assert_eq!(log("(d1) (isthmus) [1.0] PANIC: x\n(d12) (isthmus) machine exit status=0\n").end(), None);
        assert_eq!(log("(d1) PANIC: x\nKernel panic - not syncing\n").end(), None);
    }

    #[test]
    fn the_tail_is_bounded_and_ends_with_the_unfinished_line() {
        let text: String = (0..60).map(|i| format!("line {i}\r\n")).collect();
        let log = log(&(text + "half"));
        let tail: Vec<_> = log.tail().collect();
        assert_eq!(tail.len(), TAIL_LINES + 1);
        assert_eq!((tail[0].as_str(), tail[TAIL_LINES].as_str()), ("line 10", "half"));
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let log = log(&"x".repeat(LINE_BYTES * 2 + 1));
        assert_eq!(log.tail().map(|line| line.len()).collect::<Vec<_>>(), [LINE_BYTES, LINE_BYTES, 1]);
    }
}
