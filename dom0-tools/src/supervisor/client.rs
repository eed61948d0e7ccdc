// SPDX-License-Identifier: MIT OR Apache-2.0
//! A connection to the supervisor: whoever watches a console, or wants something once.
//!
//! A client that does not read never holds the supervisor up: what it is behind by is bounded, and when more comes, the
//! oldest is left out and it is told how much.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use super::protocol::{Answer, MAX_REQUEST, Request};

/// Bytes that a client may be behind.
const BACKLOG: usize = 256 << 10;

/// What a client is there for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It has not said yet.
    New(Vec<u8>),
    /// It watches a console.
    Watching { name: String, may_type: bool },
    /// It gets what is left for it, and then is closed.
    Leaving,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) stream: UnixStream,
    pub(super) role: Role,
    out: VecDeque<u8>,
    left_out: usize,
}

/// What came of reading from a client.
pub(super) enum Came {
    /// Nothing that asks for anything.
    Nothing,
    /// A whole request.
    Request(Result<Request, String>),
    /// Bytes for the guest that it watches.
    Typed(Vec<u8>),
    /// It is gone.
    Gone,
}

impl Client {
    pub(super) fn new(stream: UnixStream) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, role: Role::New(Vec::new()), out: VecDeque::new(), left_out: 0 })
    }

    pub(super) fn watches(&self, guest: &str) -> bool {
        matches!(&self.role, Role::Watching { name, .. } if name == guest)
    }

    pub(super) fn wants_to_write(&self) -> bool {
        !self.out.is_empty()
    }

    /// Whether all is said and it can be closed.
    pub(super) fn is_done(&self) -> bool {
        self.role == Role::Leaving && self.out.is_empty()
    }

    /// Queues bytes, and leaves out the oldest of what it has not read if that is too much.
    pub(super) fn send(&mut self, bytes: &[u8]) {
        self.out.extend(bytes);
        let surplus = self.out.len().saturating_sub(BACKLOG);
        if surplus > 0 {
            self.out.drain(..surplus);
            self.left_out += surplus;
        }
    }

    pub(super) fn answer(&mut self, answer: &Answer) {
        // An answer is text and a tag: it always has a form in JSON.
        let mut line = serde_json::to_vec(answer).unwrap_or_default();
        line.push(b'\n');
        self.send(&line);
    }

    /// Writes what it takes. `false`: it is gone.
    pub(super) fn flush(&mut self) -> bool {
        if self.left_out > 0 {
            let note = format!("\r\n[isthmus: {} bytes left out]\r\n", self.left_out);
            self.left_out = 0;
            note.bytes().rev().for_each(|byte| self.out.push_front(byte));
        }
        while !self.out.is_empty() {
            let (first, _) = self.out.as_slices();
            match self.stream.write(first) {
                Ok(0) => return false,
                Ok(count) => drop(self.out.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// Reads what there is.
    pub(super) fn read(&mut self) -> Came {
        let mut bytes = [0; 1024];
        let count = match self.stream.read(&mut bytes) {
            Ok(0) => return Came::Gone,
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Came::Nothing;
            }
            Err(_) => return Came::Gone,
        };
        match &mut self.role {
            Role::Watching { may_type: true, .. } => Came::Typed(bytes[..count].to_vec()),
            Role::Watching { .. } | Role::Leaving => Came::Nothing,
            Role::New(line) => {
                line.extend(&bytes[..count]);
                let Some(end) = line.iter().position(|byte| *byte == b'\n') else {
                    return if line.len() > MAX_REQUEST { Came::Gone } else { Came::Nothing };
                };
                Came::Request(serde_json::from_slice(&line[..end]).map_err(|error| error.to_string()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watcher_that_does_not_read_loses_the_oldest_and_is_told() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut client = Client::new(ours).unwrap();
        for i in 0..100_u8 {
            client.send(&vec![i; 8 << 10]);
        }
        assert!(client.out.len() <= BACKLOG);
        client.role = Role::Leaving;
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).unwrap();
            all
        });
        while !client.is_done() {
            assert!(client.flush());
            std::thread::yield_now();
        }
        drop(client);
        let all = reader.join().unwrap();
        let note = format!("\r\n[isthmus: {} bytes left out]\r\n", 100 * (8 << 10) - BACKLOG);
        assert!(all.starts_with(note.as_bytes()) && all.last() == Some(&99) && all.len() == BACKLOG + note.len());
    }

    #[test]
    fn requests_come_in_pieces_and_are_bounded() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut client = Client::new(ours).unwrap();
        theirs.write_all(b"\"refr").unwrap();
        assert!(matches!(client.read(), Came::Nothing));
        theirs.write_all(b"esh\"\n").unwrap();
        assert!(matches!(client.read(), Came::Request(Ok(Request::Refresh))));
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut client = Client::new(ours).unwrap();
        theirs.write_all(&[b'x'; MAX_REQUEST + 1]).unwrap();
        let last = (0..10).map(|_| client.read()).find(|came| !matches!(came, Came::Nothing));
        assert!(matches!(last, Some(Came::Gone)));
    }
}
