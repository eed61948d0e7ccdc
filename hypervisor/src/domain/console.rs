// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a domain prints before, or without, a console of its own.
//!
//! Bytes from port 0xE9, from the log-only COM1 and from the console ring of a domain that was
//! started at boot end up here and appear on the hypervisor's console a line at a time, with the
//! domain's number in front. A line that is too long is broken; nothing is ever waited for.

use core::num::Wrapping;

use arrayvec::ArrayVec;
use guest_abi::console as abi;
use guest_abi::num::{low_u8, to_usize};
use guest_abi::{DomId, EvtchnPort};

use crate::addr::Mfn;
use crate::backend::Machine;
use crate::mem::PhysMem;

const LINE: usize = 240;

/// A line under construction.
pub struct LineBuffer {
    machine: &'static dyn Machine,
    line: ArrayVec<u8, LINE>,
}

impl LineBuffer {
    /// An empty line.
    #[must_use]
    pub const fn new(machine: &'static dyn Machine) -> Self {
        Self { machine, line: ArrayVec::new_const() }
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
        let mut out: ArrayVec<u8, { LINE + 16 }> = ArrayVec::new();
        let _ = core::fmt::Write::write_fmt(&mut Text(&mut out), format_args!("({domain}) "));
        let _ = out.try_extend_from_slice(&self.line);
        let _ = out.try_extend_from_slice(b"\r\n");
        self.machine.console_write(&out);
        self.line.clear();
    }
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
    pub fn drain(&self, mem: &PhysMem, line: &mut LineBuffer, domain: DomId) {
        let produced = Wrapping(mem.load_u32(self.mfn, abi::CONSOLE_OUT_PROD));
        let mut consumed = Wrapping(mem.load_u32(self.mfn, abi::CONSOLE_OUT_CONS));
        if to_usize(u64::from((produced - consumed).0)) > abi::CONSOLE_OUT_SIZE {
            consumed = produced;
        }
        while consumed != produced {
            let at = abi::CONSOLE_OUT + to_usize(u64::from(consumed.0)) % abi::CONSOLE_OUT_SIZE;
            let word = mem.load_u32(self.mfn, at & !3);
            line.push(low_u8(u64::from(word) >> (8 * (at & 3))), domain);
            consumed += 1;
        }
        mem.store_u32(self.mfn, abi::CONSOLE_OUT_CONS, consumed.0);
    }
}

struct Text<'a>(&'a mut ArrayVec<u8, { LINE + 16 }>);

impl core::fmt::Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.0.try_extend_from_slice(text.as_bytes()).map_err(|_| core::fmt::Error)
    }
}

#[cfg(test)]
mod tests;
