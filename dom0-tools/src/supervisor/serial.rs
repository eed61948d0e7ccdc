// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guests' serial lines, on their way from the hypervisor to files.
//!
//! The hypervisor keeps the last bytes of each line and raises one virtual interrupt for all of them when there is
//! something that nobody has read. They are fetched a little later, many at once: a guest that writes without end costs
//! a bounded share of dom0, and what it writes faster than that is lost to it alone. How far a line was fetched is
//! written down beside its file, so that a successor goes on there.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use guest_abi::event_channel::VIRQ_CON_RING;
use guest_abi::{DomId, EvtchnPort};
use uuid::Uuid;

use crate::console::log::{self, Log};
use crate::console::{LOG_LIMIT, LOGS_KEPT};
use crate::registry::run_folder;
use crate::sys::evtchn::Evtchn;
use crate::sys::privcmd::Privcmd;

/// How long bytes wait for others.
const GATHER: Duration = Duration::from_millis(100);
/// Bytes that are fetched at once, and how often in a row: all that the hypervisor keeps.
const CHUNK: usize = 2048;
const CHUNKS: usize = 8;

/// All lines that are followed.
pub(super) struct Serials {
    /// The virtual interrupt; without it lines are fetched when domains are looked at.
    port: Option<EvtchnPort>,
    due: Option<Instant>,
    lines: BTreeMap<String, Line>,
}

struct Line {
    domain: DomId,
    handle: Uuid,
    position: u64,
    log: Option<Log>,
}

impl Serials {
    /// Asks to be told of news. What was written before is fetched, too.
    pub(super) fn open(evtchn: &Evtchn) -> Self {
        Self { port: evtchn.bind_virq(VIRQ_CON_RING).ok(), due: Some(Instant::now()), lines: BTreeMap::new() }
    }

    /// Whether a signal was for this.
    pub(super) fn signal(&mut self, port: EvtchnPort) -> bool {
        let is_ours = self.port == Some(port);
        if is_ours {
            self.due.get_or_insert_with(|| Instant::now() + GATHER);
        }
        is_ours
    }

    /// How long until there is something to do without a signal.
    pub(super) fn wait(&self) -> Option<Duration> {
        self.due.map(|due| due.saturating_duration_since(Instant::now()))
    }

    /// Follows a domain's line, from where it was fetched to.
    pub(super) fn follow(&mut self, name: &str, domain: DomId, handle: Uuid) {
        if self.lines.get(name).is_none_or(|line| line.handle != handle) {
            let position = fs::read_to_string(mark(name)).ok().and_then(|text| position(&text, handle)).unwrap_or(0);
            self.lines.insert(name.to_owned(), Line { domain, handle, position, log: None });
            self.due = Some(Instant::now());
        }
    }

    /// Forgets the lines whose domain is none of these.
    pub(super) fn retain(&mut self, lives: impl Fn(&str, Uuid) -> bool) {
        self.lines.retain(|name, line| lives(name, line.handle));
    }

    /// Fetches what there is, if it is time to.
    pub(super) fn serve(&mut self, privcmd: &Privcmd, evtchn: &Evtchn) {
        if self.wait().is_none_or(|wait| !wait.is_zero()) {
            return;
        }
        self.due = None;
        // What is written from here on signals again.
        if let Some(port) = self.port {
            let _ = evtchn.unmask(port);
        }
        self.fetch_all(privcmd);
    }

    /// Fetches what a domain has written before it goes.
    pub(super) fn fetch_last(&mut self, privcmd: &Privcmd, name: &str) {
        if let Some(line) = self.lines.get_mut(name) {
            line.fetch(privcmd, name);
        }
    }

    /// Fetches what there is.
    pub(super) fn fetch_all(&mut self, privcmd: &Privcmd) {
        for (name, line) in &mut self.lines {
            if !line.fetch(privcmd, name) {
                self.due.get_or_insert_with(|| Instant::now() + GATHER);
            }
        }
    }
}

impl Line {
    /// Writes what the line has said since to its file. Returns whether that was all.
    fn fetch(&mut self, privcmd: &Privcmd, name: &str) -> bool {
        for _ in 0..CHUNKS {
            let Ok((bytes, position)) = privcmd.read_log_console(self.domain, self.position, CHUNK) else {
                return true;
            };
            if bytes.is_empty() {
                return true;
            }
            self.position = position;
            self.log = self.log.take().or_else(|| Log::open(&log::serial_path(name), LOG_LIMIT, LOGS_KEPT).ok());
            // A full file system must not stop anything; what is lost is lost.
            if let Some(log) = &mut self.log {
                let _ = log.write(&bytes);
            }
            let _ = fs::write(mark(name), format!("{} {position}\n", self.handle));
            if bytes.len() < CHUNK {
                return true;
            }
        }
        false
    }
}

/// The file that says how far a guest's line was fetched.
fn mark(name: &str) -> PathBuf {
    run_folder().join(format!("{name}.serial"))
}

/// What such a file says of the domain with this handle.
fn position(text: &str, handle: Uuid) -> Option<u64> {
    let (whose, position) = text.trim().split_once(' ')?;
    (whose == handle.to_string()).then_some(())?;
    position.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_of_one_domain() {
        let handle = Uuid::from_u128(7);
        assert_eq!(position(&format!("{handle} 4711\n"), handle), Some(4711));
        assert_eq!(position(&format!("{handle} 4711\n"), Uuid::from_u128(8)), None);
        assert_eq!(position(&format!("{handle} "), handle), None, "cut in the middle of writing");
        assert_eq!(position("", handle), None);
    }
}
