// SPDX-License-Identifier: MIT OR Apache-2.0
//! The other end: how this program's commands use the store.
//!
//! Over `/dev/xen/xenbus`, which hands the messages to the store of this domain, wherever that is, or over
//! the daemon's socket. One request at a time; events that arrive meanwhile are kept.

mod view;

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use guest_abi::io::xs_wire;
use guest_abi::{DomId, EvtchnPort};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

pub use self::view::View;
use super::SOCKET;
use super::wire::{Code, Fields, Message, strings};

/// The kernel's way to the store.
pub const DEVICE: &str = "/dev/xen/xenbus";
const READ: usize = 4096;
/// How often a transaction is tried that others get in the way of.
const TRIES: usize = 100;

/// Why the store could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no way to a store.
    #[error("{path}: {cause} (is `isthmus xenstored` running, and is this root?)")]
    Unreachable {
        /// What was opened.
        path: String,
        /// The reason.
        cause: io::Error,
    },
    /// The connection failed.
    #[error("{operation} {path}: the connection to the store failed: {cause}")]
    Connection {
        /// What was asked for.
        operation: &'static str,
        /// Of which node or domain.
        path: String,
        /// The reason.
        cause: io::Error,
    },
    /// The store has refused.
    #[error("{operation} {path}: {code}{}", hint(*.code))]
    Refused {
        /// What was asked for.
        operation: &'static str,
        /// Of which node or domain.
        path: String,
        /// The store's reason.
        code: Code,
    },
    /// An argument that no message can carry.
    #[error("{operation} {path}: the request has more than {} bytes", xs_wire::PAYLOAD_MAX)]
    TooLong {
        /// What was asked for.
        operation: &'static str,
        /// Of which node or domain.
        path: String,
    },
}

impl Error {
    /// The store's reason, if it is that.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        if let Self::Refused { code, .. } = self { Some(*code) } else { None }
    }
}

fn hint(code: Code) -> &'static str {
    match code {
        Code::Einval => " (a path has names of letters, digits and -_@:+ with one / between them)",
        Code::Eacces => " (not permitted: see `isthmus store perms`)",
        Code::Enoent => " (does not exist)",
        Code::Enospc => " (the domain's quota is used up: see `isthmus store quota`)",
        Code::E2big => " (more than a message holds, or than the domain's quota of watches)",
        Code::Eagain => " (others changed the same nodes meanwhile: try again)",
        Code::Eexist => " (there already)",
        Code::Ebusy => " (in a transaction already)",
        Code::Enosys => " (not known to this store)",
        Code::Eio | Code::Other(_) => "",
    }
}

#[derive(Debug)]
enum Transport {
    Socket(UnixStream),
    Device(File),
}

impl Transport {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Socket(stream) => stream.read(bytes),
            Self::Device(file) => file.read(bytes),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Socket(stream) => stream.write_all(bytes),
            Self::Device(file) => file.write_all(bytes),
        }
    }
}

/// A watch has fired.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Event {
    /// The node that has changed, relative if the watch was made so.
    pub path: String,
    /// The watch's token.
    pub token: String,
}

/// A connection to the store.
#[derive(Debug)]
pub struct Client {
    transport: Transport,
    input: Vec<u8>,
    events: VecDeque<Event>,
    next_request: u32,
    /// How long an answer is waited for.
    limit: Option<Duration>,
}

impl Client {
    /// Connects by the kernel, whose ring no daemon's death cuts: a request that is under way is answered by
    /// the daemon's successor. Where there is no such device, to the daemon's socket.
    ///
    /// # Errors
    /// Neither can be reached.
    pub fn connect() -> Result<Self, Error> {
        if Path::new(DEVICE).exists() { Self::by_kernel() } else { Self::by_socket(SOCKET) }
    }

    /// Connects to a daemon's socket.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn by_socket(path: &str) -> Result<Self, Error> {
        let stream = UnixStream::connect(path);
        let stream = stream.map_err(|cause| Error::Unreachable { path: path.to_owned(), cause })?;
        Ok(Self::new(Transport::Socket(stream)))
    }

    /// Connects by the kernel, which a domain can whose store is elsewhere.
    ///
    /// # Errors
    /// The device cannot be opened.
    pub fn by_kernel() -> Result<Self, Error> {
        let file = OpenOptions::new().read(true).write(true).open(DEVICE);
        let file = file.map_err(|cause| Error::Unreachable { path: DEVICE.to_owned(), cause })?;
        Ok(Self::new(Transport::Device(file)))
    }

    fn new(transport: Transport) -> Self {
        Self { transport, input: Vec::new(), events: VecDeque::new(), next_request: 1, limit: None }
    }

    /// The store as all see it.
    pub fn all(&mut self) -> View<'_> {
        View { client: self, transaction: 0 }
    }

    /// Does several things as one: again, when others got in the way.
    ///
    /// # Errors
    /// What `f` fails with, then nothing has happened; or EAGAIN, when others got in the way too often.
    pub fn transaction<T>(&mut self, mut f: impl FnMut(&mut View<'_>) -> Result<T, Error>) -> Result<T, Error> {
        for attempt in 1.. {
            let transaction = self.begin()?;
            let mut view = View { client: self, transaction };
            let result = f(&mut view);
            let verdict: &[u8] = if result.is_ok() { b"T\0" } else { b"F\0" };
            let kind = xs_wire::XS_TRANSACTION_END;
            match (result, self.request("committing", "a transaction", kind, transaction, verdict)) {
                (Err(error), _) => return Err(error),
                (Ok(value), Ok(_)) => return Ok(value),
                (Ok(_), Err(error)) if error.code() == Some(Code::Eagain) && attempt < TRIES => {}
                (Ok(_), Err(error)) => return Err(error),
            }
        }
        unreachable!("the last try returns")
    }

    /// Looks at several things as they are at one moment.
    ///
    /// # Errors
    /// What `f` fails with.
    pub fn at_once<T>(&mut self, f: impl FnOnce(&mut View<'_>) -> Result<T, Error>) -> Result<T, Error> {
        let transaction = self.begin()?;
        let result = f(&mut View { client: self, transaction });
        self.request("ending", "a transaction", xs_wire::XS_TRANSACTION_END, transaction, b"F\0")?;
        result
    }

    fn begin(&mut self) -> Result<u32, Error> {
        let id = self.request("beginning", "a transaction", xs_wire::XS_TRANSACTION_START, 0, &[0])?;
        Fields::new(&id).number().map_err(|code| refused("beginning", "a transaction", code))
    }

    /// Bounds the wait for each answer.
    pub fn set_limit(&mut self, limit: Duration) {
        self.limit = Some(limit);
    }

    /// Sends one request and waits for its answer.
    fn request(
        &mut self,
        operation: &'static str,
        about: &str,
        kind: u32,
        transaction: u32,
        payload: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let path = || about.to_owned();
        if payload.len() > xs_wire::PAYLOAD_MAX {
            return Err(Error::TooLong { operation, path: path() });
        }
        let req_id = self.next_request;
        self.next_request = self.next_request.wrapping_add(1).max(1);
        let request = Message { kind, req_id, tx_id: transaction, payload: payload.to_vec() };
        let failed = |cause| Error::Connection { operation, path: path(), cause };
        self.transport.write_all(&request.to_bytes()).map_err(failed)?;
        loop {
            let message = self.next_message(self.limit).map_err(failed)?;
            match message.kind {
                xs_wire::XS_WATCH_EVENT => self.events.extend(parse_event(&message.payload)),
                xs_wire::XS_ERROR if message.req_id == req_id => {
                    let name = message.payload.strip_suffix(&[0]).unwrap_or(&message.payload);
                    return Err(refused(operation, about, Code::from_name(name)));
                }
                _ if message.req_id == req_id => return Ok(message.payload),
                // An answer to nothing that was asked.
                _ => return Err(failed(io::ErrorKind::InvalidData.into())),
            }
        }
    }

    fn next_message(&mut self, limit: Option<Duration>) -> io::Result<Message> {
        let end = limit.map(|limit| Instant::now() + limit);
        loop {
            match Message::take(&mut self.input) {
                Ok(Some(message)) => return Ok(message),
                Ok(None) => {}
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
            if end.is_some() && !self.is_readable(end)? {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer"));
            }
            let mut bytes = [0; READ];
            match self.transport.read(&mut bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.input.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Asks for events of a node and all below it, one at once.
    ///
    /// # Errors
    /// EEXIST for the same path and token again, or the path is none.
    pub fn watch(&mut self, path: &str, token: &str) -> Result<(), Error> {
        self.request("watching", path, xs_wire::XS_WATCH, 0, &strings([path, token])).map(drop)
    }

    /// Ends a watch.
    ///
    /// # Errors
    /// ENOENT for one that there is not.
    pub fn unwatch(&mut self, path: &str, token: &str) -> Result<(), Error> {
        self.request("unwatching", path, xs_wire::XS_UNWATCH, 0, &strings([path, token])).map(drop)
    }

    /// The next event, if there is one within `limit`; without a limit it is waited for.
    ///
    /// # Errors
    /// The connection fails.
    pub fn event(&mut self, limit: Option<Duration>) -> Result<Option<Event>, Error> {
        let failed = |cause| Error::Connection { operation: "waiting for", path: "events".to_owned(), cause };
        let end = limit.map(|limit| Instant::now() + limit);
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            let is_whole = Message::missing(&self.input).is_ok_and(|missing| missing == 0);
            if !is_whole && !self.is_readable(end).map_err(failed)? {
                return Ok(None);
            }
            let message = self.next_message(None).map_err(failed)?;
            if message.kind == xs_wire::XS_WATCH_EVENT {
                self.events.extend(parse_event(&message.payload));
            }
        }
    }

    fn is_readable(&self, end: Option<Instant>) -> io::Result<bool> {
        let limit = end.map(|end| end.saturating_duration_since(Instant::now()));
        let limit = limit.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
        let mut fds = [PollFd::from_borrowed_fd(self.as_fd(), PollFlags::IN)];
        Ok(poll(&mut fds, limit.as_ref())? > 0)
    }

    /// Tells the store of a domain: the frame of its ring and the port at its end.
    ///
    /// # Errors
    /// EINVAL: there is no such domain, ring or port.
    pub fn introduce(&mut self, domain: DomId, gfn: u64, port: EvtchnPort) -> Result<(), Error> {
        let payload = strings([domain.raw().to_string(), gfn.to_string(), port.raw().to_string()]);
        self.request("introducing", &domain.to_string(), xs_wire::XS_INTRODUCE, 0, &payload).map(drop)
    }

    /// Ends the store's connection to a domain.
    ///
    /// # Errors
    /// ENOENT for one that it does not know.
    pub fn release(&mut self, domain: DomId) -> Result<(), Error> {
        let payload = strings([domain.raw().to_string()]);
        self.request("releasing", &domain.to_string(), xs_wire::XS_RELEASE, 0, &payload).map(drop)
    }

    /// Whether the store knows a domain.
    ///
    /// # Errors
    /// The connection fails.
    pub fn is_introduced(&mut self, domain: DomId) -> Result<bool, Error> {
        let payload = strings([domain.raw().to_string()]);
        let kind = xs_wire::XS_IS_DOMAIN_INTRODUCED;
        Ok(self.request("asking for", &domain.to_string(), kind, 0, &payload)? == b"T\0")
    }

    /// Gives the daemon a command of its own; see `isthmus store control help`.
    ///
    /// # Errors
    /// It does not know the command.
    pub fn control(&mut self, words: &[&str]) -> Result<String, Error> {
        let about = words.first().copied().unwrap_or_default();
        self.request("control", about, xs_wire::XS_CONTROL, 0, &strings(words)).map(|answer| text(&answer))
    }

    /// The limit `name` of a domain, or of all; with no name, the names.
    ///
    /// # Errors
    /// ENOENT for another name.
    pub fn quota(&mut self, domain: Option<DomId>, name: Option<&str>) -> Result<String, Error> {
        let words: Vec<String> =
            domain.map(|domain| domain.raw().to_string()).into_iter().chain(name.map(str::to_owned)).collect();
        let about = name.unwrap_or("names");
        self.request("reading quota", about, xs_wire::XS_GET_QUOTA, 0, &strings(words)).map(|answer| text(&answer))
    }

    /// Sets the limit `name` of a domain, or of all for which none is set.
    ///
    /// # Errors
    /// ENOENT for another name or an unknown domain.
    pub fn set_quota(&mut self, domain: Option<DomId>, name: &str, limit: u32) -> Result<(), Error> {
        let domain = domain.map(|domain| domain.raw().to_string());
        let words: Vec<String> = domain.into_iter().chain([name.to_owned(), limit.to_string()]).collect();
        self.request("setting quota", name, xs_wire::XS_SET_QUOTA, 0, &strings(words)).map(drop)
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.transport {
            Transport::Socket(stream) => stream.as_fd(),
            Transport::Device(file) => file.as_fd(),
        }
    }
}

impl From<Client> for OwnedFd {
    fn from(client: Client) -> Self {
        match client.transport {
            Transport::Socket(stream) => stream.into(),
            Transport::Device(file) => file.into(),
        }
    }
}

fn refused(operation: &'static str, path: &str, code: Code) -> Error {
    Error::Refused { operation, path: path.to_owned(), code }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned()
}

fn parse_event(payload: &[u8]) -> Option<Event> {
    let mut fields = Fields::new(payload);
    Some(Event { path: text(fields.string().ok()?), token: text(fields.string().ok()?) })
}
