// SPDX-License-Identifier: MIT OR Apache-2.0
//! `isthmus console`: a terminal, or a script, at a guest's console.
//!
//! On a terminal every key goes to the guest but one, Ctrl-], which detaches. The terminal's settings come back however
//! this ends, except by SIGKILL. Standard input that is no terminal is sent as it is, and its end does not end the
//! connection: what the guest answers comes later.
//!
//! A console carries bytes and nothing else, so a guest is not told of a terminal's size; a program in the guest can ask
//! the terminal itself, as `resize` does.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

use crate::supervisor::protocol::{Answer, Request, ask, socket};

/// Ctrl-].
const ESCAPE: u8 = 0x1d;
/// Bytes of the log that come before what is new.
const HISTORY: u32 = 4096;
const PATIENCE: Duration = Duration::from_secs(10);

/// How to attach.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What is typed does not go to the guest.
    pub read_only: bool,
    /// End when the guest has written this.
    pub until: Option<String>,
    /// End after this time.
    pub timeout: Option<Duration>,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// The user has detached.
    Detached,
    /// The guest is over, or its console.
    Closed,
    /// What was waited for has come.
    Found,
    /// The time is over.
    TimedOut,
}

/// The terminal's settings from before.
struct Raw(Option<Termios>);

impl Raw {
    fn enter() -> Result<Self> {
        let stdin = std::io::stdin();
        if !isatty(&stdin) {
            return Ok(Self(None));
        }
        let before = tcgetattr(&stdin).context("reading the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Drain, &raw).context("setting the terminal to raw mode")?;
        Ok(Self(Some(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // Where it cannot be set back there is no terminal any more.
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, before);
        }
    }
}

/// Attaches to a guest's console until one of the two sides ends it.
///
/// # Errors
/// The supervisor does not run, or has no such console.
pub fn attach(name: &str, options: &Options) -> Result<Left> {
    let request = Request::Attach { name: name.to_owned(), history: HISTORY, input: !options.read_only };
    let (stream, answer) = ask(&request, PATIENCE).with_context(|| {
        format!("{} does not answer: consoles are served by isthmus supervisor, is it running?", socket().display())
    })?;
    if let Answer::Error(why) = answer {
        bail!(why);
    }
    let raw = Raw::enter()?;
    if raw.0.is_some() {
        eprint!("attached to {name}; Ctrl-] detaches\r\n");
    }
    let left = carry(stream, options);
    drop(raw);
    if left.as_ref().is_ok_and(|left| *left == Left::Detached) {
        eprintln!("\ndetached from {name}");
    }
    left
}

fn carry(mut stream: UnixStream, options: &Options) -> Result<Left> {
    let deadline = options.timeout.map(|timeout| Instant::now() + timeout);
    let mut until = options.until.as_deref().map(Until::new);
    let (mut stdin, mut stdout) = (std::io::stdin(), std::io::stdout());
    let mut has_input = true;
    let mut bytes = [0; 4096];
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(Left::TimedOut);
        }
        let wait = left.map(Timespec::try_from).transpose().context("a time that is too long")?;
        let (from_guest, from_user) = {
            let mut fds = vec![PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::IN)];
            if has_input {
                fds.push(PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN));
            }
            match poll(&mut fds, wait.as_ref()) {
                Ok(_) => {}
                // A window that changed its size, say.
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error).context("waiting for the console"),
            }
            (!fds[0].revents().is_empty(), fds.get(1).is_some_and(|fd| !fd.revents().is_empty()))
        };
        if from_guest {
            let count = stream.read(&mut bytes).context("reading the console")?;
            if count == 0 {
                return Ok(Left::Closed);
            }
            stdout.write_all(&bytes[..count]).and_then(|()| stdout.flush()).context("writing to standard output")?;
            if until.as_mut().is_some_and(|until| until.is_complete(&bytes[..count])) {
                return Ok(Left::Found);
            }
        }
        if from_user {
            let count = stdin.read(&mut bytes).context("reading standard input")?;
            has_input = count > 0;
            let (keys, detaches) = before_escape(&bytes[..count], isatty(&stdin));
            stream.write_all(keys).context("writing to the console")?;
            if detaches {
                return Ok(Left::Detached);
            }
        }
    }
}

/// The keys up to the one that detaches, and whether it is among them. A script's bytes are all the guest's.
fn before_escape(keys: &[u8], is_terminal: bool) -> (&[u8], bool) {
    let escape = keys.iter().position(|key| is_terminal && *key == ESCAPE);
    escape.map_or((keys, false), |at| (&keys[..at], true))
}

/// Looks for a text in a stream of bytes.
struct Until {
    text: Vec<u8>,
    seen: Vec<u8>,
}

impl Until {
    fn new(text: &str) -> Self {
        Self { text: text.as_bytes().to_vec(), seen: Vec::new() }
    }

    fn is_complete(&mut self, bytes: &[u8]) -> bool {
        self.seen.extend(bytes);
        let is_found = self.text.is_empty() || self.seen.windows(self.text.len()).any(|part| part == self.text);
        let surplus = self.seen.len().saturating_sub(self.text.len());
        self.seen.drain(..surplus);
        is_found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_found_across_pieces_and_once_only_what_is_there() {
        let mut until = Until::new("login: ");
        assert!(!until.is_complete(b"host log"));
        assert!(!until.is_complete(b"in:"));
        assert!(until.is_complete(b" "));
        assert!(!Until::new("x").is_complete(b"abc"));
    }

    #[test]
    fn the_key_that_detaches_is_a_terminals() {
        assert_eq!(before_escape(b"ls\x1dx", true), (&b"ls"[..], true));
        assert_eq!(before_escape(b"ls\x1dx", false), (&b"ls\x1dx"[..], false));
    }
}
