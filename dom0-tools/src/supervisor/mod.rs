// SPDX-License-Identifier: MIT OR Apache-2.0
//! The one process that stands by all guests: it serves their consoles and does what is to be done when they end.
//!
//! It has one thread and one loop, and waits for nobody: guests are read at a rate, watchers lose what they do not
//! read, and what takes time (making a guest anew) is a process of its own. It keeps nothing that it could not find
//! again: after SIGKILL at any moment its successor takes domains from the hypervisor, names and consoles from the
//! registry, and goes on in the middle of a ring. A restart that was under way is begun again, half a domain whose
//! maker was killed is destroyed.
//!
//! Domains that end are noticed within a second, at once when a command has ended them ([`nudge`]).

mod client;
pub mod protocol;
mod served;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use guest_abi::DomId;
use guest_abi::domctl::{GetDomainInfo, XEN_DOMINF_DYING};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FlockOperation;

use crate::config::Action;
use crate::console::log;
use crate::registry::{End, Reason, Record, RegistryError, State, run_folder};
use crate::sys::evtchn::Evtchn;
use crate::toolstack::{Toolstack, now, shutdown_reason};
use client::{Came, Client, Role};
use protocol::{Answer, Request, ask, socket};
use served::Served;

/// How often domains are looked at while there are guests.
const LOOK: Duration = Duration::from_secs(1);
/// How long a command waits for the supervisor to notice what it has done.
const NUDGE_PATIENCE: Duration = Duration::from_secs(3);
/// Bytes of a log in which a kernel's last words are looked for.
const LAST_WORDS: u64 = 16 << 10;
/// A guest that crashes sooner than this after its start, so often in a row, is not started again.
const QUICK_CRASH_SECONDS: u64 = 15;
const QUICK_CRASHES: u32 = 5;
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
    quick_crashes: BTreeMap<String, u32>,
    has_guests: bool,
    looked: Instant,
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
        let mut supervisor = Self {
            tools,
            evtchn: Evtchn::open()?,
            listener,
            clients: Vec::new(),
            served: BTreeMap::new(),
            refused: BTreeMap::new(),
            restarts: BTreeMap::new(),
            quick_crashes: BTreeMap::new(),
            has_guests: false,
            looked: Instant::now(),
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
            self.reap();
            if self.has_guests && self.looked.elapsed() >= LOOK {
                self.look();
            }
            self.clients.retain_mut(|client| client.flush() && !client.is_done());
        }
    }

    /// Waits for a signal, a client, or for time to pass.
    fn wait(&self) -> Result<()> {
        let look = self.has_guests.then(|| LOOK.saturating_sub(self.looked.elapsed()));
        // The end of a restart is noticed by looking.
        let restart = (!self.restarts.is_empty()).then_some(Duration::from_millis(50));
        let wait = self.served.values().filter_map(Served::wait).chain(look).chain(restart).min();
        let wait = wait.map(Timespec::try_from).transpose().context("a wait that is too long")?;
        let mut fds = vec![PollFd::new(&self.evtchn, PollFlags::IN), PollFd::new(&self.listener, PollFlags::IN)];
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
                        client.send(&log::tail(&log::path(&name), history.min(MAX_HISTORY).into()).unwrap_or_default());
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
        self.looked = Instant::now();
        let domains = match self.tools.privcmd.domains() {
            Ok(domains) => domains,
            Err(error) => return say(error),
        };
        let records = match self.tools.registry.all(say_error) {
            Ok(records) => records,
            Err(error) => return say(error),
        };
        self.has_guests = records.iter().any(|record| !matches!(record.state, State::Ended { .. }));
        self.let_go(&records, &domains);
        for record in &records {
            let name = &record.config.name;
            let done = match &record.state {
                State::Ended { .. } => Ok(()),
                State::Building { .. } => self.resume(record),
                State::Running { domain, console, ended, .. } => match record.find(&domains) {
                    None => self.settle(record, DomId::new(*domain), Reason::Destroyed.into()),
                    Some(info) => {
                        self.attach(record, info, *console);
                        match shutdown_reason(info) {
                            Some(reason) if ended.is_none() => self.ended(record, info, reason),
                            _ => Ok(()),
                        }
                    }
                },
            };
            if let Err(error) = done {
                // Whoever holds the lock is at work on it, and says so when it is done.
                if !matches!(error.downcast_ref(), Some(RegistryError::Busy { .. })) {
                    say(format_args!("{name}: {error:#}"));
                }
            }
        }
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
        for name in gone {
            let Some(mut served) = self.served.remove(&name) else { continue };
            let bytes = served.last_words(&self.tools.privcmd, &name);
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
        if let Some(served) = self.served.get_mut(name) {
            served.fetch_serial(&self.tools.privcmd, name);
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

    /// Goes on with what a killed command has begun, if it was killed.
    fn resume(&mut self, record: &Record) -> Result<()> {
        let name = &record.config.name;
        if self.restarts.contains_key(name) {
            return Ok(());
        }
        let lock = self.tools.registry.try_lock(name)?;
        // Between the look and the lock its maker may have come to an end.
        match self.tools.record(name)? {
            Some(record) if matches!(record.state, State::Building { .. }) => {
                if let Some(domain) = self.tools.clear_unfinished(&record)? {
                    say(format_args!("{name}: {domain} was half made by a command that was killed: destroyed"));
                }
                if record.boots == 0 {
                    return Ok(self.tools.registry.remove(name)?);
                }
                drop(lock);
                self.restart(name)
            }
            _ => Ok(()),
        }
    }

    /// A domain is gone without a word from whoever ended it.
    fn settle(&mut self, record: &Record, domain: DomId, end: End) -> Result<()> {
        let name = &record.config.name;
        let _lock = self.tools.registry.try_lock(name)?;
        if self.tools.record(name)?.as_ref() == Some(record) {
            say(format_args!("{name}: {domain} is gone"));
            self.tools.end(name, domain, &end)?;
        }
        Ok(())
    }

    /// A domain has stopped by itself: does what its description says.
    fn ended(&mut self, record: &Record, info: &GetDomainInfo, reason: Reason) -> Result<()> {
        let name = &record.config.name;
        let lock = self.tools.registry.try_lock(name)?;
        if self.tools.record(name)?.as_ref() != Some(record) {
            return Ok(());
        }
        let domain = DomId::new(info.domain);
        if let Some(served) = self.served.get_mut(name) {
            let bytes = served.last_words(&self.tools.privcmd, name);
            self.clients.iter_mut().filter(|client| client.watches(name)).for_each(|client| client.send(&bytes));
        }
        let detail = matches!(reason, Reason::Crash).then(|| panic_line(name)).flatten();
        let end = End { reason, detail };
        let action = self.action(record, reason);
        say(format_args!("{name} ({domain}) has ended: {end}; {action:?}"));
        match action {
            Action::Destroy => {
                // Nothing of ours may keep the domain when its end is told.
                if let Some(served) = self.served.remove(name) {
                    served.detach(&self.evtchn);
                }
                self.tools.end(name, domain, &end)?;
                self.dismiss(name, &format!("has ended: {end}"));
                Ok(())
            }
            Action::Restart => {
                drop(lock);
                self.restart(name)
            }
            Action::Preserve => {
                let mut record = record.clone();
                if let State::Running { ended, .. } = &mut record.state {
                    *ended = Some(end);
                }
                Ok(self.tools.registry.save(&record)?)
            }
        }
    }

    fn action(&mut self, record: &Record, reason: Reason) -> Action {
        let name = &record.config.name;
        let wanted = match reason {
            Reason::Reboot => record.config.on_reboot,
            Reason::Crash | Reason::Watchdog => record.config.on_crash,
            Reason::Suspend => Action::Preserve,
            Reason::Poweroff | Reason::Destroyed | Reason::Failed => record.config.on_poweroff,
        };
        let is_quick = now().saturating_sub(record.started) < QUICK_CRASH_SECONDS;
        if !matches!(reason, Reason::Crash | Reason::Watchdog) || !is_quick {
            self.quick_crashes.remove(name);
            return wanted;
        }
        let crashes = self.quick_crashes.entry(name.clone()).or_default();
        *crashes += 1;
        if wanted == Action::Restart && *crashes >= QUICK_CRASHES {
            say(format_args!("{name} has crashed {crashes} times right after its start: it is not started again"));
            self.quick_crashes.remove(name);
            return Action::Destroy;
        }
        wanted
    }

    fn restart(&mut self, name: &str) -> Result<()> {
        if self.restarts.contains_key(name) {
            return Ok(());
        }
        // The page must not outlive the domain by more than this.
        if let Some(served) = self.served.remove(name) {
            served.detach(&self.evtchn);
        }
        for client in self.clients.iter_mut().filter(|client| client.watches(name)) {
            client.send(format!("\r\n[isthmus: {name} starts again]\r\n").as_bytes());
        }
        let program = std::env::current_exe().context("finding isthmus itself")?;
        let child =
            Command::new(program).args(["restart-guest", name]).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        self.restarts.insert(name.to_owned(), child.context("starting isthmus restart-guest")?);
        Ok(())
    }

    fn reap(&mut self) {
        let mut is_done = false;
        self.restarts.retain(|name, child| match child.try_wait() {
            Ok(None) => true,
            Ok(Some(status)) => {
                if !status.success() {
                    say(format_args!("{name} could not be started again"));
                }
                is_done = true;
                false
            }
            Err(error) => {
                say(format_args!("{name}: {error}"));
                is_done = true;
                false
            }
        });
        if is_done {
            self.look();
            self.dismiss_the_failed();
        }
    }

    /// Whoever watches a guest that could not be started again watches nothing.
    fn dismiss_the_failed(&mut self) {
        let watched: Vec<String> = self
            .clients
            .iter()
            .filter_map(|client| match &client.role {
                Role::Watching { name, .. } => Some(name.clone()),
                _ => None,
            })
            .collect();
        for name in watched {
            if let Ok(Some(Record { state: State::Ended { end, .. }, .. })) = self.tools.record(&name) {
                self.dismiss(&name, &format!("has ended: {end}"));
            }
        }
    }
}

fn say_error(error: RegistryError) {
    say(error);
}

/// The reason of a kernel's panic, by what it wrote last.
fn panic_line(name: &str) -> Option<String> {
    let tail = log::tail(&log::path(name), LAST_WORDS).ok()?;
    panic_words(&String::from_utf8_lossy(&tail))
}

fn panic_words(text: &str) -> Option<String> {
    const WORDS: &str = "Kernel panic - not syncing: ";
    /// The kernel repeats the reason at the end, in brackets.
    const END: &str = "end Kernel panic";
    const LONGEST: usize = 200;
    let lines = text.lines().filter(|line| !line.contains(END));
    let found = lines.filter_map(|line| line.split_once(WORDS)).next_back()?;
    Some(found.1.trim().chars().filter(|c| !c.is_control()).take(LONGEST).collect())
}

#[cfg(test)]
mod tests {
    use super::panic_words;

    #[test]
    fn a_panics_reason_is_found_in_what_the_kernel_wrote() {
        let text = "[  1.0] Kernel panic - not syncing: VFS: Unable to mount root\r\n[  1.1] CPU: 0\r\n\
                    [  1.2] ---[ end Kernel panic - not syncing: VFS: Unable to mount root ]---\r\n";
        assert_eq!(panic_words(text).as_deref(), Some("VFS: Unable to mount root"));
        assert_eq!(panic_words("all is well\n"), None);
    }
}
