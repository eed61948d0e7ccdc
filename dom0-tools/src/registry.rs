// SPDX-License-Identifier: MIT OR Apache-2.0
//! What dom0's tools remember of guests: a file for each name.
//!
//! The hypervisor knows which domains there are and nothing of names. So for each guest that `isthmus create` has made
//! there is a record below `/run/isthmus/guests`: what it was made from, under which number it runs, and, when
//! it is over, why. A record is replaced as a whole, so a reader sees the old one or the new one; whoever changes
//! a guest's life holds the lock of its name meanwhile.
//!
//! The record is written *before* the domain exists, with the handle that the domain will have. So whatever is
//! killed, and when, what it left can be found: a domain with the handle of a record that is still being built, whose
//! lock nobody holds, is half a domain and is destroyed.

use std::fmt;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use guest_abi::DomId;
use guest_abi::domctl::{GetDomainInfo, XEN_DOMINF_DYING};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::builder::Ring;
use crate::config::GuestConfig;

/// Where records are, unless the environment variable `ISTHMUS_RUN` names another place for all files of a run.
const RUN: &str = "/run/isthmus";
/// How long a lock is waited for. Building holds it for as long as a large kernel takes to unpack.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);
const LOCK_RETRY: Duration = Duration::from_millis(50);
/// Guests that are over whose end is remembered.
const KEPT_ENDS: usize = 64;

/// The folder for sockets, records and locks.
#[must_use]
pub fn run_folder() -> PathBuf {
    std::env::var_os("ISTHMUS_RUN").map_or_else(|| PathBuf::from(RUN), PathBuf::from)
}

/// What is known of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its description, files with their whole paths.
    pub config: GuestConfig,
    /// What identifies the machine to itself, the same over all reboots.
    pub uuid: Uuid,
    /// The handle of its domain, another one at each start.
    pub handle: Uuid,
    /// Where it is in its life.
    pub state: State,
    /// How often it was started, the first time included.
    pub boots: u32,
    /// Seconds since 1970 at its last start.
    pub started: u64,
}

/// A guest's life, as the tools see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// A domain is being made for it.
    Building {
        /// The domain that it had before, while it is restarted.
        replaces: Option<Old>,
    },
    /// It has a domain.
    Running {
        /// The domain's number.
        domain: u16,
        /// Its console.
        console: Ring,
        /// Its xenstore ring.
        store: Option<Ring>,
        /// How it ended, if it did and is preserved.
        ended: Option<End>,
    },
    /// It is over.
    Ended {
        /// The number that it had.
        domain: u16,
        /// How.
        end: End,
    },
}

/// A domain that is to make room for its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Old {
    /// Its number.
    pub domain: u16,
    /// Its handle.
    pub handle: Uuid,
}

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Why.
    pub reason: Reason,
    /// What it said about that, or what went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl From<Reason> for End {
    fn from(reason: Reason) -> Self {
        Self { reason, detail: None }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.detail {
            Some(detail) => write!(f, "{} ({detail})", self.reason.name()),
            None => f.write_str(self.reason.name()),
        }
    }
}

/// Why a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// It switched itself off.
    Poweroff,
    /// It wanted to start again.
    Reboot,
    /// It stopped to be kept.
    Suspend,
    /// It panicked, or did what a CPU cannot do.
    Crash,
    /// It did not reset its watchdog.
    Watchdog,
    /// Somebody destroyed it.
    Destroyed,
    /// It could not be made again.
    Failed,
}

impl Reason {
    /// From the number that the domain gave (`SHUTDOWN_*`).
    #[must_use]
    pub const fn from_code(code: u32) -> Self {
        match code {
            guest_abi::sched::SHUTDOWN_POWEROFF => Self::Poweroff,
            // A soft reset is what kexec asks for; the guest starts anew.
            guest_abi::sched::SHUTDOWN_REBOOT | guest_abi::sched::SHUTDOWN_SOFT_RESET => Self::Reboot,
            guest_abi::sched::SHUTDOWN_SUSPEND => Self::Suspend,
            guest_abi::sched::SHUTDOWN_WATCHDOG => Self::Watchdog,
            _ => Self::Crash,
        }
    }

    /// Its name, as JSON has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Poweroff => "poweroff",
            Self::Reboot => "reboot",
            Self::Suspend => "suspend",
            Self::Crash => "crash",
            Self::Watchdog => "watchdog",
            Self::Destroyed => "destroyed",
            Self::Failed => "failed",
        }
    }
}

impl Record {
    /// The number of its domain, if it has one.
    #[must_use]
    pub fn domain(&self) -> Option<DomId> {
        match self.state {
            State::Running { domain, .. } => Some(DomId::new(domain)),
            State::Building { .. } | State::Ended { .. } => None,
        }
    }

    /// Its domain among those that exist. Numbers are used again, so the handle has to be the same, too.
    #[must_use]
    pub fn find<'a>(&self, domains: &'a [GetDomainInfo]) -> Option<&'a GetDomainInfo> {
        let number = self.domain()?.raw();
        domains.iter().find(|info| info.domain == number && info.handle == *self.handle.as_bytes())
    }

    /// The domain that somebody began to make for it, if that one is not being destroyed already.
    #[must_use]
    pub fn find_unfinished<'a>(&self, domains: &'a [GetDomainInfo]) -> Option<&'a GetDomainInfo> {
        let is_alive = |info: &&GetDomainInfo| info.flags & XEN_DOMINF_DYING == 0;
        let is_building = matches!(self.state, State::Building { .. });
        domains.iter().filter(|_| is_building).filter(is_alive).find(|info| info.handle == *self.handle.as_bytes())
    }
}

/// Why the registry could not be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A file operation failed.
    #[error("{}: {cause}{}", path.display(), if cause.kind() == ErrorKind::PermissionDenied { " (only root may)" } else { "" })]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        cause: std::io::Error,
    },
    /// A record cannot be read.
    #[error("{}: the record is damaged ({cause}); remove it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: serde_json::Error,
    },
    /// Another command is at work on the guest.
    #[error("{name} is being created or changed by another command; try again when it is done")]
    Busy {
        /// The guest.
        name: String,
    },
}

/// All records.
#[derive(Clone, Debug)]
pub struct Registry {
    folder: PathBuf,
}

/// The lock of a name, held until it is dropped or its process ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Registry {
    /// Opens the registry below a run's folder, which is made if it is missing.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(run: &Path) -> Result<Self, RegistryError> {
        let folder = run.join("guests");
        fs::create_dir_all(&folder).map_err(|cause| RegistryError::File { path: folder.clone(), cause })?;
        Ok(Self { folder })
    }

    fn path(&self, name: &str, kind: &str) -> PathBuf {
        self.folder.join(format!("{name}.{kind}"))
    }

    /// Takes a name's lock at once.
    ///
    /// # Errors
    /// Somebody else holds it.
    pub fn try_lock(&self, name: &str) -> Result<Lock, RegistryError> {
        let path = self.path(name, "lock");
        let failed = |cause| RegistryError::File { path: path.clone(), cause };
        let file = File::options().create(true).append(true).open(&path).map_err(failed)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock { _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(RegistryError::Busy { name: name.to_owned() }),
            Err(cause) => Err(failed(cause.into())),
        }
    }

    /// Takes a name's lock, after some waiting if need be.
    ///
    /// # Errors
    /// Somebody else holds it for a minute.
    pub fn lock(&self, name: &str) -> Result<Lock, RegistryError> {
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            match self.try_lock(name) {
                Err(RegistryError::Busy { .. }) if Instant::now() < deadline => std::thread::sleep(LOCK_RETRY),
                other => return other,
            }
        }
    }

    /// A guest's record, if there is one.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn load(&self, name: &str) -> Result<Option<Record>, RegistryError> {
        let path = self.path(name, "json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(RegistryError::File { path, cause }),
        };
        serde_json::from_slice(&text).map(Some).map_err(|cause| RegistryError::Damaged { path, cause })
    }

    /// All records, by name. One that is damaged is reported and left out.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn all(&self, mut damaged: impl FnMut(RegistryError)) -> Result<Vec<Record>, RegistryError> {
        let failed = |cause| RegistryError::File { path: self.folder.clone(), cause };
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            names.extend(name.to_str().and_then(|name| name.strip_suffix(".json")).map(str::to_owned));
        }
        names.sort();
        let mut records = Vec::new();
        for name in names {
            match self.load(&name) {
                Ok(record) => records.extend(record),
                Err(error) => damaged(error),
            }
        }
        Ok(records)
    }

    /// Writes a record in place of the one before.
    ///
    /// # Errors
    /// It cannot be written; the one before stays.
    pub fn save(&self, record: &Record) -> Result<(), RegistryError> {
        let path = self.path(&record.config.name, "json");
        let new = self.path(&record.config.name, "new");
        let failed = |cause| RegistryError::File { path: new.clone(), cause };
        let text = serde_json::to_vec_pretty(record).map_err(|error| failed(std::io::Error::other(error)))?;
        let write = || {
            File::create(&new)?.write_all(&text)?;
            fs::rename(&new, &path)
        };
        write().map_err(failed)
    }

    /// Forgets a guest.
    ///
    /// # Errors
    /// The record cannot be removed.
    pub fn remove(&self, name: &str) -> Result<(), RegistryError> {
        let path = self.path(name, "json");
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() != ErrorKind::NotFound => Err(RegistryError::File { path, cause }),
            _ => Ok(()),
        }
    }

    /// Forgets the oldest of the guests that are over, if there are many.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn prune(&self) -> Result<(), RegistryError> {
        let mut ended = self.all(drop)?;
        ended.retain(|record| matches!(record.state, State::Ended { .. }));
        ended.sort_by_key(|record| record.started);
        let surplus = ended.len().saturating_sub(KEPT_ENDS);
        for record in &ended[..surplus] {
            if let Ok(_lock) = self.try_lock(&record.config.name) {
                self.remove(&record.config.name)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(name: &str) -> (PathBuf, Registry) {
        let folder = std::env::temp_dir().join(format!("isthmus-registry-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        let registry = Registry::open(&folder).unwrap();
        (folder, registry)
    }

    fn record(name: &str, state: State) -> Record {
        let text = format!("name = {name:?}\nkernel = \"/k\"\nmemory = 64\n");
        let config = GuestConfig::parse(&text, Path::new("/t.toml")).unwrap();
        Record { config, uuid: Uuid::from_u128(1), handle: Uuid::from_u128(7), state, boots: 1, started: 5 }
    }

    fn running(domain: u16) -> State {
        let ring = Ring { frame: 1, port: 2 };
        State::Running { domain, console: ring, store: Some(ring), ended: None }
    }

    fn info(domain: u16, handle: u128, flags: u32) -> GetDomainInfo {
        GetDomainInfo { domain, flags, handle: *Uuid::from_u128(handle).as_bytes(), ..GetDomainInfo::default() }
    }

    #[test]
    fn records_are_kept_by_name_and_damaged_ones_reported() {
        let (folder, registry) = registry("kept");
        let web = record("web", running(3));
        registry.save(&record("web", State::Building { replaces: None })).unwrap();
        registry.save(&web).unwrap();
        registry.save(&record("db", running(4))).unwrap();
        assert_eq!(registry.load("web").unwrap(), Some(web.clone()));
        assert_eq!(registry.load("mail").unwrap(), None);
        fs::write(folder.join("guests/bad.json"), "{").unwrap();
        let mut damaged = 0;
        let all = registry.all(|_| damaged += 1).unwrap();
        assert_eq!((all.len(), damaged, all[1] == web), (2, 1, true));
        registry.remove("web").unwrap();
        registry.remove("web").unwrap();
        assert_eq!(registry.load("web").unwrap(), None);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_name_has_one_lock_which_ends_with_its_owner() {
        let (folder, registry) = registry("locks");
        let lock = registry.try_lock("web").unwrap();
        assert!(matches!(registry.try_lock("web"), Err(RegistryError::Busy { .. })));
        registry.try_lock("db").unwrap();
        drop(lock);
        registry.lock("web").unwrap();
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_number_that_another_domain_has_now_is_not_taken_for_the_guest() {
        let domains = [info(3, 8, 0), info(4, 7, 0)];
        assert_eq!(record("web", running(3)).find(&domains), None);
        assert_eq!(record("web", running(4)).find(&domains).unwrap().domain, 4);
    }

    #[test]
    fn what_a_killed_builder_left_is_found_and_the_old_domain_is_not() {
        let domains = [info(3, 6, 0), info(4, 7, XEN_DOMINF_DYING), info(5, 7, 0), info(6, 9, 0)];
        let building = record("web", State::Building { replaces: None });
        assert_eq!(building.find_unfinished(&domains).unwrap().domain, 5);
        assert_eq!(building.find_unfinished(&domains[..2]), None);
        assert_eq!(record("web", running(5)).find_unfinished(&domains), None);
    }

    #[test]
    fn only_the_last_ends_are_remembered() {
        let (folder, registry) = registry("ends");
        for i in 0..70_u64 {
            let state = State::Ended { domain: 1, end: Reason::Poweroff.into() };
            registry.save(&Record { started: i, ..record(&format!("g{i}"), state) }).unwrap();
        }
        registry.save(&Record { started: 0, ..record("live", running(1)) }).unwrap();
        registry.prune().unwrap();
        let left = registry.all(drop).unwrap();
        assert_eq!(left.len(), KEPT_ENDS + 1);
        assert!(registry.load("g5").unwrap().is_none() && registry.load("g6").unwrap().is_some());
        fs::remove_dir_all(folder).unwrap();
    }
}
