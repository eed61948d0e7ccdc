// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a domain prints before, or without, a console of its own.
//!
//! Bytes from port 0xE9, from the log-only COM1 and from the console ring of a domain that was
//! started at boot end up here. The last of them are kept for tools to read; and they appear a line at a
//! time, with the domain's number in front, in the hypervisor's log, for domains that were started at boot
//! on its console too. (A serial line is slow, and whoever floods one that the hypervisor waits for holds the CPU.)
//! A line that is too long is broken. What a terminal would act on (escape sequences could rewrite what
//! the hypervisor has said, or ask the operator's terminal to type) is shown there as `\xNN`: a log is
//! read, not obeyed.

use core::fmt::{self, Write};
use core::num::Wrapping;

use arrayvec::ArrayVec;
use guest_abi::console as abi;
use guest_abi::isthmus::CONSOLE_KEPT;
use guest_abi::num::{low_u8, to_usize};
use guest_abi::{DomId, EvtchnPort};

use crate::addr::{Mfn, PAGE_SIZE};
use crate::backend::Machine;
use crate::log_ring::LOG;
use crate::mem::PhysMem;

const LINE: usize = 240;
/// What the longest prefix and the end of a line take.
const FRAME: usize = 16;
/// Bytes that a byte can become: `\xNN`.
const SHOWN: usize = 4;

/// A line under construction.
pub struct LineBuffer {
    machine: &'static dyn Machine,
    echoes: bool,
    line: ArrayVec<u8, LINE>,
}

impl LineBuffer {
    /// An empty line.
    #[must_use]
    pub const fn new(machine: &'static dyn Machine, echoes: bool) -> Self {
        Self { machine, echoes, line: ArrayVec::new_const() }
    }

    /// Adds a byte; a line feed, or a full line, prints it.
    pub fn push(&mut self, byte: u8, domain: DomId) {
        match byte {
            b'\n' => self.print(domain),
            b'\r' | 0 => {}
            _ => {
                if self.line.try_push(byte).is_err() {
                    self.print(domain);
                    let _ = self.line.try_push(byte);
                }
            }
        }
    }

    /// Prints what has been collected, if anything has.
    pub fn flush(&mut self, domain: DomId) {
        if !self.line.is_empty() {
            self.print(domain);
        }
    }

    fn print(&mut self, domain: DomId) {
        let mut out = Text(ArrayVec::new());
        // There is room: the line has at most so many bytes, and each becomes at most so many.
        let _ = write!(out, "({domain}) ");
        let _ = show(&self.line, &mut out);
        let _ = out.write_str("\r\n");
        if self.echoes {
            self.machine.console_write(&out.0);
        } else {
            LOG.push(&out.0);
        }
        self.line.clear();
    }
}

/// The last bytes that a domain has logged, for tools to read.
pub struct Kept {
    mem: PhysMem,
    first: Mfn,
    /// Bytes that were ever put in.
    written: u64,
    /// Whether somebody has read to the end since the last byte was put in.
    is_read: bool,
}

impl Kept {
    /// An empty record in frames that are the domain's: [`CONSOLE_KEPT`] bytes from `first` on. What
    /// they hold is never read before it was written.
    #[must_use]
    pub const fn new(mem: PhysMem, first: Mfn) -> Self {
        Self { mem, first, written: 0, is_read: true }
    }

    /// Puts a byte in; returns whether it is the first after all had been read.
    fn push(&mut self, byte: u8) -> bool {
        let (mfn, at) = self.place(self.written);
        self.mem.write(mfn, at, &[byte]);
        self.written += 1;
        core::mem::take(&mut self.is_read)
    }

    /// Copies out what is kept from byte number `position` on, as much as fits. Returns the number of
    /// the first byte copied, and how many were.
    pub fn read(&mut self, position: u64, out: &mut [u8]) -> (u64, usize) {
        let oldest = self.written.saturating_sub(CONSOLE_KEPT as u64);
        let start = position.clamp(oldest, self.written);
        let len = out.len().min(to_usize(self.written - start));
        for (at, slot) in (start..).zip(&mut out[..len]) {
            let (mfn, offset) = self.place(at);
            self.mem.read(mfn, offset, core::slice::from_mut(slot));
        }
        self.is_read |= start + len as u64 == self.written;
        (start, len)
    }

    const fn place(&self, position: u64) -> (Mfn, usize) {
        let at = to_usize(position) % CONSOLE_KEPT;
        (self.first.offset((at / PAGE_SIZE) as u64), at % PAGE_SIZE)
    }
}

/// A domain's log-only console.
pub struct Console {
    line: LineBuffer,
    /// What tools can read.
    pub kept: Kept,
}

impl Console {
    /// An empty console. Lines also appear on the hypervisor's own if `echoes`; else only in its log.
    #[must_use]
    pub const fn new(machine: &'static dyn Machine, kept: Kept, echoes: bool) -> Self {
        Self { line: LineBuffer::new(machine, echoes), kept }
    }

    /// Adds a byte. Returns whether it is the first since all had been read.
    pub fn push(&mut self, byte: u8, domain: DomId) -> bool {
        self.line.push(byte, domain);
        self.kept.push(byte)
    }

    /// Prints what has been collected, if anything has.
    pub fn flush(&mut self, domain: DomId) {
        self.line.flush(domain);
    }
}

/// Writes text as it is but for control characters and what is no UTF-8.
fn show(line: &[u8], out: &mut Text) -> fmt::Result {
    for chunk in line.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() && character != '\t' {
                let mut buffer = [0; 4];
                escape(character.encode_utf8(&mut buffer).as_bytes(), out)?;
            } else {
                out.write_char(character)?;
            }
        }
        escape(chunk.invalid(), out)?;
    }
    Ok(())
}

fn escape(bytes: &[u8], out: &mut Text) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(out, "\\x{byte:02x}"))
}

/// A console ring that the hypervisor drains into its log, for a guest without a backend.
pub struct LogRing {
    /// The ring's page.
    pub mfn: Mfn,
    /// The domain's port that announces output.
    pub port: EvtchnPort,
}

impl LogRing {
    /// Takes everything that the guest has put in, at most one ring full. Indices that lie (more
    /// in the ring than fits) are met by skipping to the guest's own position.
    pub fn drain(&self, mem: &PhysMem, console: &mut Console, domain: DomId) {
        let produced = Wrapping(mem.load_u32(self.mfn, abi::CONSOLE_OUT_PROD));
        let mut consumed = Wrapping(mem.load_u32(self.mfn, abi::CONSOLE_OUT_CONS));
        if to_usize(u64::from((produced - consumed).0)) > abi::CONSOLE_OUT_SIZE {
            consumed = produced;
        }
        while consumed != produced {
            let at = abi::CONSOLE_OUT + to_usize(u64::from(consumed.0)) % abi::CONSOLE_OUT_SIZE;
            let word = mem.load_u32(self.mfn, at & !3);
            console.push(low_u8(u64::from(word) >> (8 * (at & 3))), domain);
            consumed += 1;
        }
        mem.store_u32(self.mfn, abi::CONSOLE_OUT_CONS, consumed.0);
    }
}

struct Text(ArrayVec<u8, { LINE * SHOWN + FRAME }>);

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.try_extend_from_slice(text.as_bytes()).map_err(|_| fmt::Error)
    }
}

#[cfg(test)]
mod tests;
