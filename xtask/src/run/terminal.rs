// SPDX-License-Identifier: MIT OR Apache-2.0
//! This terminal as the machine's console.
//!
//! In raw mode every key goes to the machine, Ctrl-C included. Ctrl-] twice in a row ends the machine; once, it goes to
//! the machine like any key, where it detaches from a guest's console. The terminal gets its settings back when [`Raw`] is dropped. Standard input that is no terminal is passed
//! on as it is, and its end does not end the machine.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result};
use rustix::termios::{OptionalActions, OutputModes, Termios, isatty, tcgetattr, tcsetattr};

/// Ctrl-].
const ESCAPE: u8 = 0x1d;

/// The terminal's settings from before.
pub(super) struct Raw(Option<Termios>);

impl Raw {
    /// Sets standard input to raw mode if it is a terminal.
    pub(super) fn enter() -> Result<Self> {
        let stdin = std::io::stdin();
        if !isatty(&stdin) {
            return Ok(Self(None));
        }
        let before = tcgetattr(&stdin).context("reading the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        // xtask's own lines end with a newline alone.
        raw.output_modes |= OutputModes::OPOST | OutputModes::ONLCR;
        tcsetattr(&stdin, OptionalActions::Drain, &raw).context("setting the terminal to raw mode")?;
        Ok(Self(Some(before)))
    }

    /// Whether there is a terminal.
    pub(super) fn is_terminal(&self) -> bool {
        self.0.is_some()
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

/// Passes standard input to the machine from a thread of its own, until the escape key, which sets the flag.
pub(super) fn forward(mut com1: TcpStream) -> Arc<AtomicBool> {
    let escaped = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&escaped);
    thread::spawn(move || {
        let mut stdin = std::io::stdin();
        let mut buffer = [0; 1024];
        let mut last = 0;
        while let Ok(count) = stdin.read(&mut buffer) {
            if count == 0 {
                return;
            }
            let (keys, has_escape) = before_escape(last, &buffer[..count]);
            last = buffer[count - 1];
            if com1.write_all(keys).is_err() {
                return;
            }
            if has_escape {
                flag.store(true, Ordering::Relaxed);
                return;
            }
        }
    });
    escaped
}

/// The keys up to the second of two escape keys in a row, and whether it is among them. `last` is the key before.
fn before_escape(last: u8, keys: &[u8]) -> (&[u8], bool) {
    let before = std::iter::once(&last).chain(keys);
    let second = before.zip(keys).position(|pair| pair == (&ESCAPE, &ESCAPE));
    second.map_or((keys, false), |at| (&keys[..at], true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_escape_keys_in_a_row_end_the_machine_and_one_does_not() {
        assert_eq!(before_escape(0, b"ls\r"), (b"ls\r".as_slice(), false));
        assert_eq!(before_escape(0, b"\x03\x1dls\x1d"), (b"\x03\x1dls\x1d".as_slice(), false));
        assert_eq!(before_escape(0, b"\x03\x1d\x1dls"), (b"\x03\x1d".as_slice(), true));
        assert_eq!(before_escape(0x1d, b"\x1d"), (b"".as_slice(), true));
        assert_eq!(before_escape(0x1d, b"x\x1d"), (b"x\x1d".as_slice(), false));
    }
}
