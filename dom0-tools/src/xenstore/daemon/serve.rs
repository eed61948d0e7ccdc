// SPDX-License-Identifier: MIT OR Apache-2.0
//! One client's turn: its next message in, what follows from it out.

use std::collections::BTreeSet;
use std::time::Instant;

use guest_abi::DomId;
use guest_abi::io::xs_wire::{RING_ERROR_COMM, RING_ERROR_PROTO, RING_ERROR_RINGIDX};
use guest_abi::num::low_u32;

use super::{CONFLICTS, Daemon, Error, HIGH_BYTES, HOLD, Host, MOST_BYTES, PATIENCE, Pause, Point, Reason};
use crate::xenstore::Conn;
use crate::xenstore::ring::Ring;
use crate::xenstore::wire::Message;

/// What a ring has given in one turn.
enum Pulled {
    /// Nothing new.
    Nothing,
    /// Bytes of a message that is not whole yet.
    Piece(Vec<u8>),
    /// A message, of which the last so many bytes are new.
    Whole(Message, u32),
}

impl<H: Host> Daemon<H> {
    /// Serves a client's next message. Says whether there may be another.
    pub(super) fn serve(&mut self, conn: Conn) -> Result<bool, Error> {
        match conn {
            Conn::Ring(domain) => self.serve_ring(domain),
            Conn::Socket(number) => self.serve_local(number),
        }
    }

    fn serve_ring(&mut self, domain: DomId) -> Result<bool, Error> {
        let conn = Conn::Ring(domain);
        let Some(page) = self.host.page(domain) else { return Ok(false) };
        let Some(known) = self.store.domains().get(&domain) else { return Ok(false) };
        if Ring(page).wants_reconnection() {
            self.reconnect(domain)?;
            return Ok(false);
        }
        if known.refused.is_some() || self.pauses.contains_key(&domain) {
            return Ok(false);
        }
        if self.deliver_ring(domain)? {
            self.signal(domain);
        }
        // Who does not read its answers is not asked for more; it signals when it has read.
        if self.store.pending(conn) > HIGH_BYTES {
            return Ok(false);
        }
        match self.pull(domain) {
            Err((error, text)) => {
                self.drop_ring(domain, error, &text)?;
                Ok(false)
            }
            Ok(Pulled::Nothing) => Ok(false),
            Ok(Pulled::Piece(bytes)) => {
                self.host.reached(Point::Copied);
                self.store.receive(domain, bytes);
                self.settle(Some(conn))?;
                Ok(true)
            }
            Ok(Pulled::Whole(message, bytes)) => {
                self.host.reached(Point::Copied);
                self.store.request(conn, &message, bytes, &mut self.host);
                self.settle(Some(conn))?;
                Ok(true)
            }
        }
    }

    /// Copies what is new of a ring's next message.
    fn pull(&self, domain: DomId) -> Result<Pulled, (u32, String)> {
        let (Some(page), Some(stream)) = (self.host.page(domain), self.store.stream(Conn::Ring(domain))) else {
            return Ok(Pulled::Nothing);
        };
        let mut bytes = stream.partial().to_vec();
        let before = bytes.len();
        loop {
            let missing = Message::missing(&bytes).map_err(|error| (RING_ERROR_PROTO, error.to_string()))?;
            if missing == 0 {
                break;
            }
            let at = stream.taken().wrapping_add(low_u32((bytes.len() - before) as u64));
            let piece = Ring(page).pull(at, missing).map_err(|error| (RING_ERROR_RINGIDX, error.to_string()))?;
            if piece.is_empty() {
                break;
            }
            bytes.extend(piece);
        }
        let count = bytes.len() - before;
        let taken = match Message::take(&mut bytes).map_err(|error| (RING_ERROR_PROTO, error.to_string()))? {
            Some(message) => Pulled::Whole(message, low_u32(count as u64)),
            None if count == 0 => Pulled::Nothing,
            None => Pulled::Piece(bytes.split_off(before)),
        };
        Ok(taken)
    }

    /// Makes what has been decided true and then known: logs it, moves the ring's counter, delivers what
    /// is to be said. `from` is whose message it was.
    pub(super) fn settle(&mut self, from: Option<Conn>) -> Result<(), Error> {
        self.host.reached(Point::Decided);
        self.log.append(&self.store.take_record())?;
        self.host.reached(Point::Logged);
        self.detach_released();
        if let Some(conn @ Conn::Ring(domain)) = from {
            let taken = self.store.stream(conn).map(|stream| stream.taken());
            if let (Some(page), Some(taken)) = (self.host.page(domain), taken) {
                Ring(page).publish_taken(taken);
            }
            self.host.reached(Point::Taken);
        }
        for (about, text) in self.store.take_complaints() {
            self.complain(about, &text);
        }
        let mut told = self.store.take_told();
        // That bytes were taken is news too.
        told.extend(from);
        for &conn in &told {
            match conn {
                Conn::Ring(domain) => {
                    self.deliver_ring(domain)?;
                    self.signal(domain);
                }
                Conn::Socket(number) => self.deliver_local(number),
            }
        }
        self.keep_fair(from, &told)
    }

    /// Gives up the rings of domains that the store has let go of, and serves those that it has met.
    fn detach_released(&mut self) {
        for domain in self.store.take_moved() {
            if self.store.domains().contains_key(&domain) {
                if let Some(page) = self.host.page(domain) {
                    Ring(page).offer();
                }
                self.enqueue(Conn::Ring(domain));
            } else {
                self.host.detach(domain);
                self.pauses.remove(&domain);
                self.complaints.remove(&Conn::Ring(domain));
            }
        }
    }

    /// Puts answers into a ring while there is room. Says whether there was anything to put.
    fn deliver_ring(&mut self, domain: DomId) -> Result<bool, Error> {
        let conn = Conn::Ring(domain);
        let mut has_put = false;
        while let (Some(page), Some(stream)) = (self.host.page(domain), self.store.stream(conn)) {
            let said = stream.said();
            let put = match Ring(page).push(said, stream.next()) {
                Ok(put) => put,
                Err(error) => {
                    self.drop_ring(domain, RING_ERROR_RINGIDX, &error.to_string())?;
                    return Ok(false);
                }
            };
            if put == 0 {
                break;
            }
            self.host.reached(Point::Put);
            if let Some(page) = self.host.page(domain) {
                Ring(page).publish_said(said.wrapping_add(low_u32(put as u64)));
            }
            self.store.delivered(conn, put);
            self.host.reached(Point::Said);
            has_put = true;
        }
        Ok(has_put)
    }

    fn signal(&mut self, domain: DomId) {
        self.host.signal(domain);
        self.host.reached(Point::Signalled);
    }

    /// Stops serving a domain that does not keep to the protocol. It may ask for a fresh connection.
    pub(super) fn drop_ring(&mut self, domain: DomId, error: u32, text: &str) -> Result<(), Error> {
        self.complain(Conn::Ring(domain), &format!("connection dropped: {text}"));
        self.store.refuse(domain, error);
        self.log.append(&self.store.take_record())?;
        if let Some(page) = self.host.page(domain) {
            Ring(page).set_error(error);
        }
        self.host.signal(domain);
        Ok(())
    }

    fn reconnect(&mut self, domain: DomId) -> Result<(), Error> {
        self.store.reconnect(domain);
        self.log.append(&self.store.take_record())?;
        if let Some(page) = self.host.page(domain) {
            Ring(page).reset();
            Ring(page).offer();
        }
        self.host.signal(domain);
        Ok(())
    }

    /// Makes a guest wait that says more than others can hear, or that is in the control domain's way;
    /// drops who does not listen where nobody can be made to wait.
    fn keep_fair(&mut self, from: Option<Conn>, told: &BTreeSet<Conn>) -> Result<(), Error> {
        if let Some(contention) = self.store.take_contention().filter(|contention| contention.times >= CONFLICTS) {
            let pause = Pause { until: Instant::now() + HOLD, reason: Reason::Victim(contention.victim) };
            self.pauses.entry(contention.offender).or_insert(pause);
        }
        for &conn in told.iter().filter(|conn| Some(**conn) != from) {
            let pending = self.store.pending(conn);
            match from {
                Some(Conn::Ring(guest)) if guest != DomId::DOM0 && pending > HIGH_BYTES => {
                    let pause = Pause { until: Instant::now() + PATIENCE, reason: Reason::Reader(conn) };
                    self.pauses.entry(guest).or_insert(pause);
                }
                _ if pending > MOST_BYTES => self.drop_reader(conn)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn drop_reader(&mut self, conn: Conn) -> Result<(), Error> {
        let text = format!("does not read what it is told ({} bytes wait)", self.store.pending(conn));
        match conn {
            // This domain's kernel reads in a thread of its own; if that hangs, dropping helps nobody.
            Conn::Ring(DomId::DOM0) => Ok(()),
            Conn::Ring(domain) => self.drop_ring(domain, RING_ERROR_COMM, &text),
            Conn::Socket(number) => {
                self.complain(conn, &text);
                self.drop_local(number);
                Ok(())
            }
        }
    }

    /// Lets guests go on whose reason to wait is gone or has taken too long.
    pub(super) fn end_pauses(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        for (guest, pause) in self.pauses.clone() {
            let is_late = now >= pause.until;
            let is_over = match pause.reason {
                Reason::Reader(conn) => self.store.pending(conn) <= HIGH_BYTES,
                Reason::Victim(conn) => self.store.conflicts(conn) == 0,
            };
            if let (Reason::Reader(conn), true, false) = (pause.reason, is_late, is_over) {
                self.drop_reader(conn)?;
            }
            if is_late || is_over {
                self.pauses.remove(&guest);
                self.enqueue(Conn::Ring(guest));
            }
        }
        Ok(())
    }
}
