// SPDX-License-Identifier: MIT OR Apache-2.0
//! Local clients: programs of this domain, by a socket that only root may connect to.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use super::{Daemon, Error, Host};
use crate::xenstore::Conn;
use crate::xenstore::wire::Message;

/// Local clients at a time.
const CLIENTS: usize = 1000;
const READ: usize = 8 << 10;

/// The socket that clients connect to.
#[derive(Debug)]
pub(super) struct Listener(UnixListener);

impl Listener {
    pub(super) fn bind(path: &Path) -> Result<Self, Error> {
        let failed = |operation, cause| Error::Socket { path: path.to_owned(), operation, cause };
        // A predecessor's is of no use: nobody listens there. That none does is the folder's lock.
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed("removing the old socket", error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(|cause| failed("binding", cause))?;
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(path, private).map_err(|cause| failed("restricting it to root", cause))?;
        listener.set_nonblocking(true).map_err(|cause| failed("making it non-blocking", cause))?;
        Ok(Self(listener))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A connected client.
#[derive(Debug)]
pub(super) struct Local {
    stream: UnixStream,
    input: Vec<u8>,
}

impl AsFd for Local {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl<H: Host> Daemon<H> {
    pub(super) fn accept(&mut self) {
        // Those that cannot be had now stay in the socket's queue.
        let Ok((stream, _)) = self.listener.0.accept() else { return };
        let number = self.locals.keys().next_back().map_or(1, |last| last.wrapping_add(1));
        if self.locals.len() >= CLIENTS {
            self.complain(Conn::Socket(0), &format!("{CLIENTS} local clients are connected: another is refused"));
        } else if stream.set_nonblocking(true).is_ok() {
            self.locals.insert(number, Local { stream, input: Vec::new() });
            self.store.connect(Conn::Socket(number));
        }
    }

    /// Serves a client's next message. Says whether there may be another.
    pub(super) fn serve_local(&mut self, number: u32) -> Result<bool, Error> {
        let conn = Conn::Socket(number);
        self.deliver_local(number);
        if self.store.pending(conn) > 0 {
            return Ok(false);
        }
        let Some(local) = self.locals.get_mut(&number) else { return Ok(false) };
        if Message::missing(&local.input).is_ok_and(|missing| missing > 0) {
            let mut bytes = [0; READ];
            match local.stream.read(&mut bytes) {
                Ok(count) if count > 0 => local.input.extend_from_slice(&bytes[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    return Ok(false);
                }
                Ok(_) | Err(_) => {
                    self.drop_local(number);
                    return Ok(false);
                }
            }
        }
        match Message::take(&mut local.input) {
            Ok(Some(message)) => {
                self.store.request(conn, &message, 0, &mut self.host);
                self.settle(Some(conn))?;
                Ok(true)
            }
            Ok(None) => Ok(true),
            Err(error) => {
                self.complain(conn, &error.to_string());
                self.drop_local(number);
                Ok(false)
            }
        }
    }

    pub(super) fn drop_local(&mut self, number: u32) {
        self.locals.remove(&number);
        self.store.disconnect(Conn::Socket(number));
        self.complaints.remove(&Conn::Socket(number));
    }

    pub(super) fn deliver_local(&mut self, number: u32) {
        let conn = Conn::Socket(number);
        while let (Some(local), Some(stream)) = (self.locals.get_mut(&number), self.store.stream(conn)) {
            let bytes = stream.next();
            if bytes.is_empty() {
                return;
            }
            match local.stream.write(bytes) {
                Ok(count) => self.store.delivered(conn, count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.drop_local(number),
            }
        }
    }
}
