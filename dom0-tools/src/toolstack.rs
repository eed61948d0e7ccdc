// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can be done with guests, for the commands and for the supervisor.
//!
//! Three sources are brought together here: the hypervisor says which domains there are, the registry what they are called,
//! xenstore carries requests to them. A change of a guest's life is made under the lock of its name. Domains that
//! are in no record (dom0, guests that are boot modules) can be named by their number.

use std::fs::File;
use std::io::Read;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use guest_abi::domctl::{
    GetDomainInfo, XEN_DOMINF_DYING, XEN_DOMINF_PAUSED, XEN_DOMINF_RUNNING, XEN_DOMINF_SHUTDOWN,
    XEN_DOMINF_SHUTDOWNMASK, XEN_DOMINF_SHUTDOWNSHIFT,
};
use guest_abi::{DomId, EvtchnPort, Gfn};
use uuid::Uuid;

use crate::builder::{self, Built, Progress};
use crate::config::GuestConfig;
use crate::devices::{Devices, Waiting};
use crate::nodes::{self, Tree};
use crate::registry::{self, End, Old, Reason, Record, Registry, State};
use crate::sys::privcmd::Privcmd;

/// dom0's name.
pub const DOM0_NAME: &str = "dom0";

/// How long is waited for a domain that dies to give its number free.
const LAST_BREATH: Duration = Duration::from_secs(10);

/// The open hypervisor and the registry.
#[derive(Debug)]
pub struct Toolstack {
    /// The hypervisor.
    pub privcmd: Privcmd,
    /// The records.
    pub registry: Registry,
    /// Whether the supervisor is told of changes.
    pub nudges: bool,
}

/// A domain that exists, with what is known of it.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its number.
    pub id: DomId,
    /// Its name; the number again if it has none.
    pub name: String,
    /// What the hypervisor says.
    pub info: GetDomainInfo,
    /// What the registry says.
    pub record: Option<Record>,
}

/// Whether a new guest runs at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// It does.
    Running,
    /// It waits to be unpaused.
    Paused,
}

impl Guest {
    /// Why it has shut down, if it has.
    #[must_use]
    pub fn shutdown(&self) -> Option<Reason> {
        shutdown_reason(&self.info)
    }

    /// What it is doing, in one word.
    #[must_use]
    pub fn state(&self) -> &'static str {
        let flags = self.info.flags;
        if flags & XEN_DOMINF_DYING != 0 {
            return "dying";
        }
        match self.shutdown() {
            Some(Reason::Crash | Reason::Watchdog) => "crashed",
            Some(_) => "shutdown",
            None if flags & XEN_DOMINF_PAUSED != 0 => "paused",
            None if flags & XEN_DOMINF_RUNNING != 0 => "running",
            None => "blocked",
        }
    }
}

/// Why a domain has shut down, if it has.
#[must_use]
pub fn shutdown_reason(info: &GetDomainInfo) -> Option<Reason> {
    let code = info.flags >> XEN_DOMINF_SHUTDOWNSHIFT & XEN_DOMINF_SHUTDOWNMASK;
    (info.flags & XEN_DOMINF_SHUTDOWN != 0).then(|| Reason::from_code(code))
}

impl Toolstack {
    /// Opens the hypervisor and the registry.
    ///
    /// # Errors
    /// This is no control domain, or not root.
    pub fn open() -> Result<Self> {
        let privcmd = Privcmd::open()?;
        let registry = Registry::open(&registry::run_folder())?;
        Ok(Self { privcmd, registry, nudges: true })
    }

    fn nudge(&self) {
        if self.nudges {
            crate::supervisor::nudge();
        }
    }

    fn store(&self) -> Result<Box<dyn Tree>> {
        crate::store::connect()
    }

    /// All domains, dom0 first.
    ///
    /// # Errors
    /// The hypervisor does not answer, or the registry cannot be read.
    pub fn guests(&self) -> Result<Vec<Guest>> {
        let domains = self.privcmd.domains()?;
        let records = self.registry.all(|error| eprintln!("isthmus: {error}"))?;
        let guest = |info: &GetDomainInfo| {
            let alone = std::slice::from_ref(info);
            let own = |record: &&Record| record.find(alone).or(record.find_unfinished(alone)).is_some();
            let record = records.iter().find(own).cloned();
            let id = DomId::new(info.domain);
            let name = match &record {
                Some(record) => record.config.name.clone(),
                None if id == DomId::DOM0 => DOM0_NAME.to_owned(),
                None => id.raw().to_string(),
            };
            Guest { id, name, info: *info, record }
        };
        Ok(domains.iter().map(guest).collect())
    }

    /// The domain with this name or number.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, name: &str) -> Result<Guest> {
        let number = name.parse::<u16>().ok();
        let mut matching: Vec<Guest> =
            self.guests()?.into_iter().filter(|guest| Some(guest.id.raw()) == number || guest.name == name).collect();
        // One that is going away does not stand in the way of its successor.
        matching.sort_by_key(|guest| guest.info.flags & XEN_DOMINF_DYING);
        match matching.into_iter().next() {
            Some(guest) => Ok(guest),
            None => bail!("no domain is called {name} or has this number: see isthmus list"),
        }
    }

    /// The domain that a device's `backend` names.
    ///
    /// # Errors
    /// There is none, or it has no xenstore connection.
    pub fn backend(&self, name: &str) -> Result<DomId> {
        let domain = self.find(name).with_context(|| format!("backend {name}"))?;
        if domain.record.as_ref().is_some_and(|record| !record.config.xenstore) {
            bail!("backend {name}: it was made without xenstore, where it would find the devices that it is to serve");
        }
        Ok(domain.id)
    }

    /// A guest's record, by its name.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn record(&self, name: &str) -> Result<Option<Record>> {
        Ok(self.registry.load(name)?)
    }

    /// Makes a guest.
    ///
    /// # Errors
    /// A domain of that name exists, something is wrong with a file, or the hypervisor refused. Nothing is left.
    pub fn create(&self, config: &GuestConfig, start: Start, progress: &mut dyn Progress) -> Result<DomId> {
        let _lock = self.registry.lock(&config.name)?;
        let old = self.registry.load(&config.name)?;
        if let Some(old) = &old {
            let domains = self.privcmd.domains()?;
            if let Some(info) = old.find(&domains) {
                bail!("a domain of this name exists, number {}: destroy it first, or give another name", info.domain);
            }
            self.clear_unfinished(old)?;
        }
        let number = old.and_then(|old| match old.state {
            State::Ended { domain, .. } => Some(DomId::new(domain)),
            _ => None,
        });
        let uuid = config.uuid.map_or_else(new_uuid, Ok)?;
        let record = Record {
            config: config.clone(),
            uuid,
            handle: new_uuid()?,
            state: State::Building { replaces: None },
            boots: 0,
            started: now(),
        };
        let made = self.make(record, number, start, progress);
        // The record of a guest before it that has ended stays if nothing was begun.
        if made.is_err() && self.registry.load(&config.name)?.is_some_and(|record| record.uuid == uuid) {
            self.registry.remove(&config.name)?;
        }
        made
    }

    /// Makes a guest that has ended anew: under another number unless others wait for what it served, otherwise as it was.
    ///
    /// # Errors
    /// As [`Toolstack::create`]; the guest is over then.
    pub fn restart(&self, name: &str, progress: &mut dyn Progress) -> Result<DomId> {
        let _lock = self.registry.lock(name)?;
        let mut record = self.registry.load(name)?.with_context(|| format!("no guest is called {name}"))?;
        let old = match record.state {
            State::Running { domain, .. } => Old { domain, handle: record.handle },
            // Whoever began with it was killed.
            State::Building { replaces: Some(old) } => old,
            _ => bail!("it has no domain that could be restarted"),
        };
        self.clear_unfinished(&record)?;
        record.handle = new_uuid()?;
        record.state = State::Building { replaces: Some(old) };
        self.registry.save(&record)?;
        let domains = self.privcmd.domains()?;
        if domains.iter().any(|info| info.domain == old.domain && info.handle == *old.handle.as_bytes()) {
            self.end_domain(&record, DomId::new(old.domain))?;
        }
        let made = self.make(record.clone(), Some(DomId::new(old.domain)), Start::Running, progress);
        if let Err(error) = &made {
            let end = End { reason: Reason::Failed, detail: Some(format!("{error:#}")) };
            self.registry.save(&Record { state: State::Ended { domain: old.domain, end }, ..record })?;
        }
        made
    }

    /// Makes the domain of a record, under the lock of its name. `old` is the number that the guest had before: it has it
    /// again if others wait for what that domain served.
    fn make(&self, mut record: Record, old: Option<DomId>, start: Start, progress: &mut dyn Progress) -> Result<DomId> {
        let config = record.config.clone();
        let prepared = builder::prepare(&config, progress)?;
        // A guest whose devices nobody can serve is not even begun.
        let (disks, nics) = (config.disks.iter(), config.nics.iter());
        let backends =
            disks.filter_map(|disk| disk.backend.as_ref()).chain(nics.filter_map(|nic| nic.backend.as_ref()));
        backends.map(|name| self.backend(name)).collect::<Result<Vec<_>>>()?;
        let mut store = if config.xenstore { Some(self.store()?) } else { None };
        self.registry.save(&record)?;
        // From here on it looks each second, and so finds what is left if this command is killed.
        self.nudge();
        let waiting = match old.filter(|_| config.xenstore) {
            Some(old) => self.waiting_for(old, progress)?,
            None => Vec::new(),
        };
        let number = old.filter(|_| !waiting.is_empty());
        let (domain, guard) = builder::create(&self.privcmd, config.vcpus, record.handle, number)?;
        let built = prepared.build(&self.privcmd, domain, progress)?;
        let published = self.publish(&mut record, &built, store.as_deref_mut(), &waiting, start, progress);
        if let (Err(_), Some(store)) = (&published, &mut store) {
            // The first error is the one to tell.
            let _ = store.remove_guest(domain, &[nodes::home(domain), nodes::vm(record.uuid)]);
            let _ = remove_devices(domain);
        }
        published?;
        guard.keep();
        self.nudge();
        Ok(domain)
    }

    /// The devices that wait for what the domain with this number served. None if the number is another's by now; that
    /// domain itself may still be dying, while others let go of its memory.
    fn waiting_for(&self, old: DomId, progress: &mut dyn Progress) -> Result<Vec<Waiting>> {
        let waiting = Devices::open()?.waiting_for(old)?;
        if waiting.is_empty() {
            return Ok(waiting);
        }
        let end = Instant::now() + LAST_BREATH;
        loop {
            let domains = self.privcmd.domains()?;
            let Some(holder) = domains.iter().find(|info| info.domain == old.raw()) else { return Ok(waiting) };
            if holder.flags & XEN_DOMINF_DYING == 0 || Instant::now() >= end {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        progress.step("its old number is taken: its clients' devices have to be detached and attached again");
        Ok(Vec::new())
    }

    /// Makes a domain's nodes and devices, and lets the registry and the hypervisor know that it is complete.
    fn publish(
        &self,
        record: &mut Record,
        built: &Built,
        store: Option<&mut (dyn Tree + 'static)>,
        waiting: &[Waiting],
        start: Start,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let domain = built.domain;
        if let (Some(store), Some(ring)) = (store, built.store) {
            let nodes = nodes::for_guest(&record.config, record.uuid, built);
            let ring = (Gfn::new(ring.frame), EvtchnPort::new(ring.port));
            store.add_guest(domain, &nodes, ring).context("telling xenstore of it")?;
        }
        if !(record.config.disks.is_empty() && record.config.nics.is_empty()) {
            progress.step("making its devices");
            Devices::open()?.attach_all(domain, &record.config, record.uuid, |name| self.backend(name))?;
        }
        if !waiting.is_empty() {
            progress.step("giving its clients' devices back to it");
            for (device, error) in Devices::open()?.serve_again(waiting) {
                progress.step(&format!("{device} has to be detached and attached again: {error}"));
            }
        }
        let Built { console, store: ring, .. } = *built;
        record.state = State::Running { domain: domain.raw(), console, store: ring, ended: None };
        record.boots += 1;
        record.started = now();
        self.registry.save(record)?;
        match start {
            Start::Running => Ok(self.privcmd.unpause_domain(domain)?),
            Start::Paused => Ok(()),
        }
    }

    /// Destroys a guest, and remembers how it ended.
    ///
    /// # Errors
    /// It cannot be destroyed: dom0, or gone already.
    pub fn destroy(&self, guest: &Guest, end: &End) -> Result<()> {
        let Some(record) = &guest.record else {
            return Ok(self.privcmd.destroy_domain(guest.id)?);
        };
        let name = &record.config.name;
        // What it has written to its serial line goes with it unless the supervisor has it by then.
        self.nudge();
        let _lock = self.registry.lock(name)?;
        // It may have been started again meanwhile: then that domain is the guest's.
        let now = self.registry.load(name)?.filter(|now| now.uuid == record.uuid).and_then(|now| now.domain());
        self.end(name, now.unwrap_or(guest.id), end)
    }

    /// As [`Toolstack::find`], but a guest that is being started again is waited for.
    ///
    /// # Errors
    /// There is none, or making it takes too long.
    pub fn find_settled(&self, name: &str) -> Result<Guest> {
        const TRIES: u32 = 100;
        for _ in 0..TRIES {
            match self.find(name) {
                Err(_) if matches!(self.record(name)?, Some(Record { state: State::Building { .. }, .. })) => {
                    drop(self.registry.lock(name)?);
                    // If whoever made it was killed, the supervisor sees to it within a second.
                    std::thread::sleep(Duration::from_millis(50));
                }
                other => return other,
            }
        }
        self.find(name)
    }

    /// Destroys the domain of a record, under the lock of its name.
    ///
    /// # Errors
    /// As [`Toolstack::destroy`].
    pub fn end(&self, name: &str, domain: DomId, end: &End) -> Result<()> {
        let Some(record) = self.registry.load(name)? else {
            return Ok(self.privcmd.destroy_domain(domain)?);
        };
        self.end_domain(&record, domain)?;
        if record.domain() == Some(domain) || matches!(record.state, State::Building { .. }) {
            let state = State::Ended { domain: domain.raw(), end: end.clone() };
            self.registry.save(&Record { state, ..record })?;
            self.registry.prune()?;
        }
        self.nudge();
        Ok(())
    }

    fn end_domain(&self, record: &Record, domain: DomId) -> Result<()> {
        match self.privcmd.destroy_domain(domain) {
            Err(error) if error.errno() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
            other => other?,
        }
        if record.config.xenstore {
            // Without the server there are no nodes either.
            if let Ok(mut store) = self.store() {
                let paths = [nodes::home(domain), nodes::vm(record.uuid)];
                store.remove_guest(domain, &paths).context("removing its nodes from xenstore")?;
                remove_devices(domain).context("removing its devices from xenstore")?;
            }
        }
        Ok(())
    }

    /// Destroys what a killed builder left of a record, under the lock of its name.
    ///
    /// # Errors
    /// The hypervisor does not answer.
    pub fn clear_unfinished(&self, record: &Record) -> Result<Option<DomId>> {
        let domains = self.privcmd.domains()?;
        let Some(info) = record.find_unfinished(&domains) else { return Ok(None) };
        let domain = DomId::new(info.domain);
        self.end_domain(record, domain)?;
        Ok(Some(domain))
    }

    /// Asks a guest through xenstore to shut down (`poweroff`, `reboot`, `halt`). Returns whether it has said that it
    /// listens; else nothing was asked.
    ///
    /// # Errors
    /// It has no xenstore connection, or is dom0.
    pub fn request_shutdown(&self, guest: &Guest, how: &str) -> Result<bool> {
        if guest.id == DomId::DOM0 {
            bail!("this is the control domain: use its own {how} command");
        }
        if guest.record.as_ref().is_some_and(|record| !record.config.xenstore) {
            bail!("it was made without xenstore, so it cannot be asked; isthmus destroy ends it");
        }
        let mut store = self.store()?;
        let home = nodes::home(guest.id);
        let listens = store.read(&format!("{home}/control/feature-{how}"))?.as_deref() == Some("1");
        if listens {
            store.write(&format!("{home}/control/shutdown"), how)?;
        }
        Ok(listens)
    }
}

/// Removes the backends of a guest that is gone.
fn remove_devices(domain: DomId) -> Result<()> {
    Devices::open()?.remove_all(domain)
}

/// A new identifier. It has to differ from others, not to be a secret, so it does not wait for the kernel to have gathered
/// entropy: on a machine without a random-number instruction that takes minutes after boot.
fn new_uuid() -> Result<Uuid> {
    const SOURCE: &str = "/dev/urandom";
    let mut bytes = [0; 16];
    File::open(SOURCE).and_then(|mut file| file.read_exact(&mut bytes)).with_context(|| format!("reading {SOURCE}"))?;
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid())
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
