// SPDX-License-Identifier: MIT OR Apache-2.0
//! The one process that stands by all guests: it serves their consoles and does what is to be done when they end.
//!
//! It has one thread and one loop, and waits for nobody: guests are read at a rate, watchers lose what they do not
//! read, and what takes time (making a guest anew) is a process of its own. It keeps nothing that it could not find
//! again: after SIGKILL at any moment its successor takes domains from the hypervisor, names and consoles from the
//! registry, and goes on in the middle of a ring. A restart that was under way is begun again, half a domain whose
//! maker was killed is destroyed.
//!
//! xenstored tells of domains that end ([`news`]), commands tell of what they have done ([`nudge`]).

mod client;
mod ends;
mod news;
pub mod protocol;
mod serial;
mod served;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::process::Child;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use guest_abi::DomId;
use guest_abi::domctl::{GetDomainInfo, XEN_DOMINF_DYING};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FlockOperation;

use crate::console::log;
use crate::devices::nat;
use crate::registry::{Reason, Record, RegistryError, State, run_folder};
use crate::sys::evtchn::Evtchn;
use crate::toolstack::{Toolstack, shutdown_reason};
use client::{Came, Client, Role};
use news::News;
use protocol::{Answer, Request, ask, socket};
use serial::Serials;
use served::Served;

/// How long a command waits for the supervisor to notice what it has done.
const NUDGE_PATIENCE: Duration = Duration::from_secs(3);
/// The most history that a client may ask for.
const MAX_HISTORY: u32 = 1 << 20;

/// Tells the supervisor that something has changed, and waits until it has seen to it. It may not run: then
/// it will find out when it does.
pub fn nudge() {
    let _ = ask(&Request::Refresh, NUDGE_PATIENCE);
}

/// Runs until the process is ended.
///
/// # Errors
/// Another supervisor runs, or a device or the socket cannot be opened.
pub fn run() -> Result<()> {
    let lock = only_one()?;
    let mut supervisor = Supervisor::open()?;
    say("ready");
    let result = supervisor.work();
    drop(lock);
    result
}

fn only_one() -> Result<File> {
    let path = run_folder().join("supervisor.lock");
    fs::create_dir_all(run_folder()).with_context(|| format!("making {}", run_folder().display()))?;
    let file = File::options().create(true).append(true).open(&path);
    let file = file.with_context(|| format!("opening {}", path.display()))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => bail!("another supervisor is running"),
        Err(cause) => Err(cause).with_context(|| format!("locking {}", path.display())),
    }
}

/// Writes to the log; what is the same as the last time is not said again, since some things are looked at each second.
fn say(what: impl std::fmt::Display) {
    static LAST: Mutex<String> = Mutex::new(String::new());
    let what = what.to_string();
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if *last != what {
        eprintln!("isthmus supervisor: {what}");
        *last = what;
    }
}

struct Supervisor {
    tools: Toolstack,
    evtchn: Evtchn,
    listener: UnixListener,
    clients: Vec<Client>,
    served: BTreeMap<String, Served>,
    /// Guests whose console could not be served, by the handle of their domain, so that it is said once.
    refused: BTreeMap<String, uuid::Uuid>,
    restarts: BTreeMap<String, Child>,
    quick_ends: BTreeMap<String, u32>,
    serials: Serials,
    news: News,
    has_guests: bool,
}

impl Supervisor {
    fn open() -> Result<Self> {
        let mut tools = Toolstack::open()?;
        // It need not tell itself.
        tools.nudges = false;
        let path = socket();
        // Left by a predecessor: the lock says that there is none any more.
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).with_context(|| format!("making {}", path.display()))?;
        listener.set_nonblocking(true)?;
        let evtchn = Evtchn::open()?;
        let mut supervisor = Self {
            tools,
            serials: Serials::open(&evtchn),
            evtchn,
            listener,
            clients: Vec::new(),
            served: BTreeMap::new(),
            refused: BTreeMap::new(),
            restarts: BTreeMap::new(),
            quick_ends: BTreeMap::new(),
            news: News::new(),
            has_guests: false,
        };
        supervisor.look();
        Ok(supervisor)
    }

    fn work(&mut self) -> Result<()> {
        loop {
            self.wait()?;
            self.take_signals()?;
            self.take_clients();
            self.serve_clients();
            self.serve_consoles();
            self.serials.serve(&self.tools.privcmd, &self.evtchn);
            self.reap();
            // Also without guests the store's words are taken, so that they do not pile up.
            if self.news.is_time() && self.has_guests {
                self.look();
            }
            self.clients.retain_mut(|client| client.flush() && !client.is_done());
        }
    }

    /// Waits for a signal, a client, or for time to pass.
    fn wait(&self) -> Result<()> {
        let look = self.has_guests.then(|| self.news.wait());
        // The end of a restart is noticed by looking.
        let restart = (!self.restarts.is_empty()).then_some(Duration::from_millis(50));
        let served = self.served.values().filter_map(Served::wait);
        let wait = served.chain(self.serials.wait()).chain(look).chain(restart).min();
        let wait = wait.map(Timespec::try_from).transpose().context("a wait that is too long")?;
        let mut fds = vec![PollFd::new(&self.evtchn, PollFlags::IN), PollFd::new(&self.listener, PollFlags::IN)];
        fds.extend(self.news.store().map(|store| PollFd::new(store, PollFlags::IN)));
        for client in &self.clients {
            let write = if client.wants_to_write() { PollFlags::OUT } else { PollFlags::empty() };
            let fd: BorrowedFd<'_> = client.stream.as_fd();
            fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN | write));
        }
        match poll(&mut fds, wait.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("waiting for events"),
        }
    }

    fn take_signals(&mut self) -> Result<()> {
        while let Some(port) = self.evtchn.wait(Duration::ZERO)? {
            match self.served.values_mut().find(|served| served.port() == port) {
                Some(served) => served.signal(),
                None if self.serials.signal(port) => {}
                None => {
                    // Of a console that was let go in the meantime.
                    let _ = self.evtchn.unmask(port);
                }
            }
        }
        Ok(())
    }

    fn take_clients(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            self.clients.extend(Client::new(stream).ok());
        }
    }

    fn serve_clients(&mut self) {
        let mut clients = std::mem::take(&mut self.clients);
        clients.retain_mut(|client| {
            match client.read() {
                Came::Nothing => {}
                Came::Gone => return false,
                Came::Typed(bytes) => {
                    if let Role::Watching { name, .. } = &client.role
                        && let Some(served) = self.served.get_mut(name)
                    {
                        served.typed(&bytes);
                    }
                }
                Came::Request(request) => self.request(client, request),
            }
            true
        });
        clients.append(&mut self.clients);
        self.clients = clients;
    }

    fn request(&mut self, client: &mut Client, request: Result<Request, String>) {
        client.role = Role::Leaving;
        match request {
            Err(error) => client.answer(&Answer::Error(format!("a request that is none: {error}"))),
            Ok(Request::Refresh) => {
                self.look();
                client.answer(&Answer::Done);
            }
            Ok(Request::Attach { name, history, input }) => {
                if !self.served.contains_key(&name) {
                    self.look();
                }
                match self.why_not_attach(&name) {
                    Some(why) => client.answer(&Answer::Error(why)),
                    None => {
                        client.answer(&Answer::Done);
                        let tail = log::tail(&log::path(&name), history.min(MAX_HISTORY).into());
                        client.send(&log::for_terminal(&tail.unwrap_or_default()));
                        client.role = Role::Watching { name, may_type: input };
                    }
                }
            }
        }
    }

    fn why_not_attach(&self, name: &str) -> Option<String> {
        if self.served.contains_key(name) {
            return None;
        }
        match self.tools.record(name) {
            Err(error) => Some(format!("{error:#}")),
            Ok(None) => Some(format!("no guest is called {name}: see isthmus list")),
            Ok(Some(record)) => match record.state {
                // It will be served as soon as it is there.
                State::Building { .. } => None,
                State::Running { .. } => {
                    Some(format!("the console of {name} is not served; the reason is in the supervisor's log"))
                }
                State::Ended { end, .. } => {
                    Some(format!("{name} has ended: {end}; isthmus console --log {name} shows what it has written"))
                }
            },
        }
    }

    fn serve_consoles(&mut self) {
        let mut broken = Vec::new();
        for (name, served) in &mut self.served {
            match served.serve(&self.evtchn) {
                Ok(bytes) if bytes.is_empty() => {}
                Ok(bytes) => {
                    self.clients
                        .iter_mut()
                        .filter(|client| client.watches(name))
                        .for_each(|client| client.send(&bytes));
                }
                Err(error) => broken.push((name.clone(), error)),
            }
        }
        for (name, error) in broken {
            say(format_args!("the console of {name} is not served any more: {error:#}"));
            if let Some(served) = self.served.remove(&name) {
                self.refused.insert(name.clone(), served.handle);
                served.detach(&self.evtchn);
            }
            self.dismiss(&name, &format!("its console is broken: {error:#}"));
        }
    }

    /// Ends the connections of those who watch a guest, with a reason.
    fn dismiss(&mut self, name: &str, why: &str) {
        for client in self.clients.iter_mut().filter(|client| client.watches(name)) {
            client.send(format!("\r\n[isthmus: {name}: {why}]\r\n").as_bytes());
            client.role = Role::Leaving;
        }
    }

    /// Compares domains with records, and does what follows from it.
    fn look(&mut self) {
        self.news.looks();
        let domains = match self.tools.privcmd.domains() {
            Ok(domains) => domains,
            Err(error) => return say(error),
        };
        let records = match self.tools.registry.all(say_error) {
            Ok(records) => records,
            Err(error) => return say(error),
        };
        self.has_guests = records.iter().any(|record| !matches!(record.state, State::Ended { .. }));
        self.serials.fetch_all(&self.tools.privcmd);
        if self.has_guests
            && let Err(error) = nat::keep()
        {
            say(format_args!("the network nat: {error:#}"));
        }
        self.let_go(&records, &domains);
        let mut is_alone = false;
        for record in &records {
            let name = &record.config.name;
            is_alone |= match record.state {
                State::Building { .. } => true,
                State::Running { .. } => !record.config.xenstore,
                State::Ended { .. } => false,
            };
            let done = match &record.state {
                State::Ended { .. } => Ok(()),
                State::Building { .. } => self.resume(record),
                State::Running { domain, console, ended, .. } => match record.find(&domains) {
                    None => self.settle(record, DomId::new(*domain), Reason::Destroyed.into()),
                    Some(info) => {
                        self.serials.follow(name, DomId::new(info.domain), record.handle);
                        self.attach(record, info, *console);
                        match shutdown_reason(info) {
                            Some(reason) if ended.is_none() => self.ended(record, info, reason),
                            _ => Ok(()),
                        }
                    }
                },
            };
            if let Err(error) = done {
                // Whoever holds the lock is at work on it; it is looked at again.
                is_alone = true;
                if !matches!(error.downcast_ref(), Some(RegistryError::Busy { .. })) {
                    say(format_args!("{name}: {error:#}"));
                }
            }
        }
        self.news.set_alone(is_alone);
    }

    /// Lets go of consoles whose domain is gone or going.
    fn let_go(&mut self, records: &[Record], domains: &[GetDomainInfo]) {
        let lives = |name: &String, served: &Served| {
            let record = records.iter().find(|record| &record.config.name == name);
            let info = record.filter(|record| record.handle == served.handle).and_then(|record| record.find(domains));
            info.is_some_and(|info| info.flags & XEN_DOMINF_DYING == 0)
        };
        let gone: Vec<String> =
            self.served.iter().filter(|(name, served)| !lives(name, served)).map(|(name, _)| name.clone()).collect();
        self.serials.retain(|name, handle| {
            let record = records.iter().find(|record| record.config.name == name);
            record.is_some_and(|record| record.handle == handle && record.find(domains).is_some())
        });
        for name in gone {
            let Some(mut served) = self.served.remove(&name) else { continue };
            let bytes = served.last_words();
            self.clients.iter_mut().filter(|client| client.watches(&name)).for_each(|client| client.send(&bytes));
            served.detach(&self.evtchn);
            match records.iter().find(|record| record.config.name == name).map(|record| &record.state) {
                Some(State::Building { .. } | State::Running { .. }) => {
                    for client in self.clients.iter_mut().filter(|client| client.watches(&name)) {
                        client.send(format!("\r\n[isthmus: {name} starts again]\r\n").as_bytes());
                    }
                }
                Some(State::Ended { end, .. }) => self.dismiss(&name, &format!("has ended: {end}")),
                None => self.dismiss(&name, "is gone"),
            }
        }
    }

    fn attach(&mut self, record: &Record, info: &GetDomainInfo, console: crate::builder::Ring) {
        let name = &record.config.name;
        if self.served.contains_key(name) {
            return;
        }
        if self.refused.get(name) == Some(&record.handle) || info.flags & XEN_DOMINF_DYING != 0 {
            return;
        }
        let domain = DomId::new(info.domain);
        match Served::attach(&self.tools.privcmd, &self.evtchn, name, domain, record.handle, console) {
            Ok(served) => {
                self.served.insert(name.clone(), served);
            }
            Err(error) => {
                say(format_args!("the console of {name} cannot be served: {error:#}"));
                self.refused.insert(name.clone(), record.handle);
            }
        }
    }
}

fn say_error(error: RegistryError) {
    say(error);
}
