// SPDX-License-Identifier: MIT OR Apache-2.0
//! The daemon: one thread, one loop, one message at a time.
//!
//! Clients with something to do stand in a queue; a turn serves the first one's next message, whatever else
//! it has sent, and puts it at the end again. So no client waits for more than one message of each other.
//!
//! A message's way, with the points at which the process may die ([`Point`]):
//!
//! 1. its bytes are copied out of the ring, once;
//! 2. the state is changed, and the record appended to the log: from here on it has happened;
//! 3. the ring is told that the bytes are taken;
//! 4. the answer is put into the ring, the ring is told of it, the peer is signalled.
//!
//! A successor knows from the log what was taken and what is to be said, and from the ring's own counter
//! how much of that has been said. So it repeats 3, and goes on with 4.

pub mod linux;
mod local;
mod serve;
pub mod supervise;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use guest_abi::io::xs_wire::RING_ERROR_COMM;
use guest_abi::{DomId, EvtchnPort};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::local::{Listener, Local};
use super::log::{self, Log};
use super::ring::Ring;
use super::store::{Machine, Store};
use super::{Conn, store};
use crate::sys::Mapping;

/// Where a daemon may die.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Point {
    /// A message's bytes are copied, nothing else is done.
    Copied,
    /// The state is changed, the record not yet logged.
    Decided,
    /// The record is logged, nobody knows of it.
    Logged,
    /// The ring knows that the bytes are taken.
    Taken,
    /// A piece of an answer is in the ring, unannounced.
    Put,
    /// It is announced.
    Said,
    /// The peer is signalled.
    Signalled,
}

impl Point {
    /// All of them, in order.
    pub const ALL: [Self; 7] =
        [Self::Copied, Self::Decided, Self::Logged, Self::Taken, Self::Put, Self::Said, Self::Signalled];

    /// Its name, for tests that name one.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Copied => "copied",
            Self::Decided => "decided",
            Self::Logged => "logged",
            Self::Taken => "taken",
            Self::Put => "put",
            Self::Said => "said",
            Self::Signalled => "signalled",
        }
    }
}

/// Something that has happened outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A domain has signalled its ring's port.
    Ring(DomId),
    /// A domain has ended or changed its state.
    Domains,
}

/// What the daemon needs of the machine: rings, ports, and news of domains.
pub trait Host: Machine {
    /// The port of this domain's own kernel, if that waits for a store.
    fn own_port(&self) -> Option<EvtchnPort>;
    /// The page of a domain that is attached.
    fn page(&self, domain: DomId) -> Option<&Mapping>;
    /// Signals a domain's port.
    fn signal(&self, domain: DomId);
    /// Lets go of a domain's ring and port.
    fn detach(&mut self, domain: DomId);
    /// Readable when [`Host::events`] has something.
    fn events_fd(&self) -> BorrowedFd<'_>;
    /// What has happened since it was asked last.
    ///
    /// # Errors
    /// The device fails.
    fn events(&mut self) -> Result<Vec<Event>, crate::sys::Error>;
    /// The daemon is at a point where it might die; does nothing but in tests.
    fn reached(&mut self, _point: Point) {}
}

/// Why the daemon cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log fails, so nothing can be promised any more.
    #[error(transparent)]
    Log(#[from] log::Error),
    /// The socket cannot be made.
    #[error("{}: {operation}: {cause}", .path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What was to be done.
        operation: &'static str,
        /// The reason.
        cause: std::io::Error,
    },
    /// A device of the machine fails.
    #[error(transparent)]
    Device(#[from] crate::sys::Error),
    /// Waiting fails.
    #[error("waiting for clients: {0}")]
    Wait(rustix::io::Errno),
}

/// How much may wait for a client before those who cause more are made to wait.
const HIGH_BYTES: usize = 256 << 10;
/// How much may wait for a client whose causes cannot be made to wait.
const MOST_BYTES: usize = 1 << 20;
/// How long a guest waits for a client that does not read; then the client is dropped.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a guest is held that is in the way of the control domain's transactions.
const HOLD: Duration = Duration::from_millis(100);
/// After so many conflicts in a row it is.
const CONFLICTS: u32 = 2;
/// Messages about one client in a period.
const COMPLAINTS: u32 = 5;
/// That period.
const PERIOD: Duration = Duration::from_secs(10);

/// Why a guest is not served for now.
#[derive(Clone, Copy, Debug)]
struct Pause {
    until: Instant,
    reason: Reason,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reason {
    /// This client must first read what it was told.
    Reader(Conn),
    /// This client must first commit.
    Victim(Conn),
}

/// The daemon.
#[derive(Debug)]
pub struct Daemon<H> {
    store: Store,
    log: Log,
    host: H,
    listener: Listener,
    locals: BTreeMap<u32, Local>,
    /// Clients with something to do, in order, none twice.
    queue: VecDeque<Conn>,
    queued: BTreeSet<Conn>,
    pauses: BTreeMap<DomId, Pause>,
    /// How much was said about each client, since when.
    complaints: BTreeMap<Conn, (Instant, u32)>,
}

impl<H: Host> Daemon<H> {
    /// Starts on a folder that holds log and socket, and continues what its log says.
    ///
    /// # Errors
    /// The log or the socket cannot be used.
    pub fn start(folder: &Path, host: H) -> Result<Self, Error> {
        let (log, store) = Log::open(&folder.join("log"))?;
        let mut daemon = Self {
            store,
            log,
            host,
            listener: Listener::bind(&folder.join("socket"))?,
            locals: BTreeMap::new(),
            queue: VecDeque::new(),
            queued: BTreeSet::new(),
            pauses: BTreeMap::new(),
            complaints: BTreeMap::new(),
        };
        daemon.reattach()?;
        daemon.adopt_own_kernel()?;
        daemon.store.check_domains(&mut daemon.host);
        daemon.settle(None)?;
        Ok(daemon)
    }

    /// Connects to the rings of the domains that the log knows.
    fn reattach(&mut self) -> Result<(), Error> {
        let known: Vec<_> = self.store.domains().iter().map(|(id, domain)| (*id, domain.gfn, domain.port)).collect();
        for (domain, gfn, port) in known {
            match self.host.attach(domain, gfn, port) {
                Ok((_, said)) => self.continue_ring(domain, said)?,
                Err(_) if self.host.life(domain) == store::Life::Gone => {}
                Err(_) => self.drop_ring(domain, RING_ERROR_COMM, "its ring cannot be mapped any more")?,
            }
        }
        Ok(())
    }

    /// Repeats what the ring may not have been told, and goes on with the answers.
    fn continue_ring(&mut self, domain: DomId, said: u32) -> Result<(), Error> {
        if self.store.domains().get(&domain).is_some_and(|known| known.refused.is_some()) {
            return Ok(());
        }
        if let Err(lie) = self.store.resume(domain, said) {
            return self.drop_ring(domain, guest_abi::io::xs_wire::RING_ERROR_RINGIDX, &lie.to_string());
        }
        if let (Some(page), Some(stream)) = (self.host.page(domain), self.store.stream(Conn::Ring(domain))) {
            Ring(page).offer();
            Ring(page).publish_taken(stream.taken());
        }
        // It may wait for a signal that died with the predecessor; what waits for it goes with its first turn.
        self.host.signal(domain);
        self.enqueue(Conn::Ring(domain));
        Ok(())
    }

    /// Serves this domain's kernel, which waits for its port to be signalled.
    fn adopt_own_kernel(&mut self) -> Result<(), Error> {
        let Some(port) = self.host.own_port() else { return Ok(()) };
        if self.store.domains().contains_key(&DomId::DOM0) {
            return Ok(());
        }
        match self.host.attach(DomId::DOM0, 0, port) {
            Ok(counters) => {
                self.store.introduce(DomId::DOM0, 0, port, counters);
                self.settle(None)?;
                self.continue_ring(DomId::DOM0, counters.1)
            }
            Err(_) => {
                self.complain(Conn::Ring(DomId::DOM0), "this domain's kernel cannot be served");
                Ok(())
            }
        }
    }

    /// Serves, until something happens that it cannot go on with.
    ///
    /// # Errors
    /// That.
    pub fn run(&mut self) -> Result<std::convert::Infallible, Error> {
        loop {
            self.turn(None)?;
        }
    }

    /// Waits for something to do, for at most `limit`, and gives each client in the queue one turn.
    ///
    /// # Errors
    /// The daemon cannot go on.
    pub fn turn(&mut self, limit: Option<Duration>) -> Result<(), Error> {
        self.wait(limit)?;
        self.end_pauses()?;
        for _ in 0..self.queue.len() {
            let Some(conn) = self.queue.pop_front() else { break };
            self.queued.remove(&conn);
            if self.serve(conn)? {
                self.enqueue(conn);
            }
        }
        if self.log.is_long() {
            self.log.compact(&self.store)?;
        }
        Ok(())
    }

    /// Whether nobody has anything to do.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.pauses.is_empty()
    }

    /// The state.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The machine.
    pub fn host(&mut self) -> &mut H {
        &mut self.host
    }

    fn enqueue(&mut self, conn: Conn) {
        if self.queued.insert(conn) {
            self.queue.push_back(conn);
        }
    }

    /// Sleeps until something happens, and puts whom it concerns into the queue.
    fn wait(&mut self, limit: Option<Duration>) -> Result<(), Error> {
        let timeout = self.timeout(limit);
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.host.events_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN),
        ];
        for (&number, local) in &self.locals {
            let is_waiting = self.store.pending(Conn::Socket(number)) > 0;
            let flags = if is_waiting { PollFlags::OUT } else { PollFlags::empty() };
            // Who does not read its answers is not asked for more.
            let reads = if is_waiting { PollFlags::empty() } else { PollFlags::IN };
            fds.push(PollFd::from_borrowed_fd(local.as_fd(), flags | reads));
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Error::Wait(error)),
        }
        let fired: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        let ready: Vec<u32> =
            self.locals.keys().zip(&fired[2..]).filter(|(_, fired)| **fired).map(|(n, _)| *n).collect();
        if fired[0] {
            self.take_events()?;
        }
        if fired[1] {
            self.accept();
        }
        ready.into_iter().for_each(|number| self.enqueue(Conn::Socket(number)));
        Ok(())
    }

    fn timeout(&self, limit: Option<Duration>) -> Option<Timespec> {
        let until_pause = self.pauses.values().map(|pause| pause.until.saturating_duration_since(Instant::now())).min();
        // A little more than the rest, so that it is over then.
        let until_pause = until_pause.map(|rest| rest + Duration::from_millis(1));
        let wait =
            if self.queue.is_empty() { limit.into_iter().chain(until_pause).min() } else { Some(Duration::ZERO) };
        wait.and_then(|wait| Timespec::try_from(wait).ok())
    }

    fn take_events(&mut self) -> Result<(), Error> {
        for event in self.host.events()? {
            match event {
                Event::Ring(domain) => self.enqueue(Conn::Ring(domain)),
                Event::Domains => {
                    self.store.check_domains(&mut self.host);
                    self.settle(None)?;
                }
            }
        }
        Ok(())
    }

    /// Tells whoever reads the daemon's messages, but not all that a client may provoke.
    fn complain(&mut self, about: Conn, text: &str) {
        let now = Instant::now();
        let (since, count) = self.complaints.entry(about).or_insert((now, 0));
        if now.duration_since(*since) > PERIOD {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        match (*count).cmp(&COMPLAINTS) {
            std::cmp::Ordering::Less => eprintln!("xenstored: {about}: {text}"),
            std::cmp::Ordering::Equal => {
                eprintln!("xenstored: {about}: {text} (more of this within {PERIOD:?} is not shown)");
            }
            std::cmp::Ordering::Greater => {}
        }
    }
}
