// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest's console while the supervisor serves it.
//!
//! A guest may write as fast as it likes; it is read at a rate. While it has used up its share its port stays masked,
//! so that it costs dom0 nothing until there is a share again: the guest waits, nobody else does.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use guest_abi::{DomId, EvtchnPort, Gfn};
use uuid::Uuid;

use crate::builder::Ring;
use crate::console::log::{self, Log};
use crate::console::ring::{ConsoleRing, RingError};
use crate::console::{LOG_LIMIT, LOGS_KEPT};
use crate::sys::evtchn::Evtchn;
use crate::sys::privcmd::Privcmd;

/// Bytes a second that are read of a guest, in the long run.
const RATE: u64 = 512 << 10;
/// Bytes that are read at once after a quiet time.
const BURST: u64 = 64 << 10;
/// Bytes that are kept for a guest that does not read what is typed.
const TYPED_LIMIT: usize = 64 << 10;
/// How long a guest that has used up its share waits at least.
const PAUSE: Duration = Duration::from_millis(20);

/// A console that is served.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) handle: Uuid,
    port: EvtchnPort,
    ring: ConsoleRing,
    log: Log,
    typed: VecDeque<u8>,
    share: u64,
    filled: Instant,
    /// The port was signalled and is masked until the ring is empty.
    is_signalled: bool,
}

impl Served {
    /// Maps a console's page and binds its port.
    pub(super) fn attach(
        privcmd: &Privcmd,
        evtchn: &Evtchn,
        name: &str,
        domain: DomId,
        handle: Uuid,
        console: Ring,
    ) -> anyhow::Result<Self> {
        let page = privcmd.map_foreign(domain, &[Gfn::new(console.frame)], true)?;
        let log = Log::open(&log::path(name), LOG_LIMIT, LOGS_KEPT)?;
        let port = evtchn.bind_interdomain(domain, EvtchnPort::new(console.port))?;
        Ok(Self {
            handle,
            port,
            ring: ConsoleRing::new(page),
            log,
            typed: VecDeque::new(),
            share: BURST,
            filled: Instant::now(),
            // What was written before is there without a signal.
            is_signalled: true,
        })
    }

    pub(super) fn port(&self) -> EvtchnPort {
        self.port
    }

    pub(super) fn signal(&mut self) {
        self.is_signalled = true;
    }

    /// How long until there is something to do without a signal.
    pub(super) fn wait(&self) -> Option<Duration> {
        self.is_signalled.then_some(if self.share == 0 { PAUSE } else { Duration::ZERO })
    }

    /// Keeps what was typed for the guest.
    pub(super) fn typed(&mut self, bytes: &[u8]) {
        let room = TYPED_LIMIT.saturating_sub(self.typed.len());
        self.typed.extend(&bytes[..bytes.len().min(room)]);
        self.is_signalled = true;
    }

    /// Moves what there is, at most a ring of each kind. Returns what the guest has written.
    pub(super) fn serve(&mut self, evtchn: &Evtchn) -> anyhow::Result<Vec<u8>> {
        self.fill_share();
        if !self.is_signalled {
            return Ok(Vec::new());
        }
        let mut bytes = Vec::new();
        let mut moved = 0;
        if self.share > 0 {
            moved += self.take(&mut bytes)?;
            self.share = self.share.saturating_sub(bytes.len() as u64);
        }
        let typed = self.ring.give(self.typed.make_contiguous()).map_err(|error| anyhow::anyhow!("{error}"))?;
        self.typed.drain(..typed);
        moved += typed;
        if moved > 0 {
            evtchn.notify(self.port)?;
        }
        if bytes.is_empty() && self.share > 0 {
            // What is written from here on signals again. Bytes that wait for the guest to read others do not keep
            // us busy: it signals when it has.
            self.is_signalled = false;
            evtchn.unmask(self.port)?;
        }
        Ok(bytes)
    }

    /// What is left in the ring of a guest that has stopped.
    pub(super) fn last_words(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // A guest that lies to the end has said all that is heard of it.
        let _ = self.take(&mut bytes);
        bytes
    }

    fn take(&mut self, bytes: &mut Vec<u8>) -> anyhow::Result<usize> {
        let taken = self.ring.take(bytes).map_err(|error: RingError| anyhow::anyhow!("{error}"))?;
        // A full file system must not stop the guest; what is lost is lost.
        let _ = self.log.write(bytes);
        Ok(taken)
    }

    fn fill_share(&mut self) {
        let elapsed = self.filled.elapsed();
        if elapsed >= PAUSE {
            let more = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).saturating_mul(RATE) / 1000;
            self.share = self.share.saturating_add(more).min(BURST);
            self.filled = Instant::now();
        }
    }

    /// Lets go of the port; the page follows when the value is dropped.
    pub(super) fn detach(self, evtchn: &Evtchn) {
        // The port is gone already if the guest is.
        let _ = evtchn.unbind(self.port);
    }
}
