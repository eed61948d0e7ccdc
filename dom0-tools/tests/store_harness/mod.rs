// SPDX-License-Identifier: MIT OR Apache-2.0
//! A machine in a folder, for the store's daemon: a domain is a file that is its ring's page.
//!
//! Signals to the daemon are datagrams; those from it are counted. What it cannot tell is whether a kernel
//! that sleeps is woken: the peers here look again and again.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use dom0_tools::sys::{Error, Mapping};
use dom0_tools::xenstore::daemon::linux::DieAt;
use dom0_tools::xenstore::daemon::{Event, Host, Point};
use dom0_tools::xenstore::ring::{Peer, Ring};
use dom0_tools::xenstore::store::{Life, Machine};
use dom0_tools::xenstore::wire::{Code, Message};
use guest_abi::{DomId, EvtchnPort};

/// The machine.
pub(crate) struct Toy {
    folder: PathBuf,
    pages: BTreeMap<DomId, Mapping>,
    events: UnixDatagram,
    pub(crate) die_at: Option<DieAt>,
    pub(crate) signals: AtomicU32,
}

fn ring_file(folder: &Path, domain: u16) -> PathBuf {
    folder.join(format!("d{domain}"))
}

fn map(folder: &Path, domain: u16) -> std::io::Result<Mapping> {
    let file = File::options().read(true).write(true).open(ring_file(folder, domain))?;
    Mapping::of_shared_file(&file, 4096)
}

impl Toy {
    pub(crate) fn open(folder: &Path) -> Self {
        let path = folder.join("events");
        let _ = std::fs::remove_file(&path);
        let events = UnixDatagram::bind(path).unwrap();
        events.set_nonblocking(true).unwrap();
        let signals = AtomicU32::new(0);
        Self { folder: folder.to_owned(), pages: BTreeMap::new(), events, die_at: None, signals }
    }
}

impl Machine for Toy {
    fn attach(&mut self, domain: DomId, _: u64, _: EvtchnPort) -> Result<(u32, u32), Code> {
        let page = map(&self.folder, domain.raw()).map_err(|_| Code::Einval)?;
        let counters = Ring(&page).counters();
        self.pages.insert(domain, page);
        Ok(counters)
    }

    fn life(&mut self, domain: DomId) -> Life {
        if ring_file(&self.folder, domain.raw()).exists() { Life::Alive } else { Life::Gone }
    }
}

impl Host for Toy {
    fn own_port(&self) -> Option<EvtchnPort> {
        ring_file(&self.folder, 0).exists().then_some(EvtchnPort::new(1))
    }

    fn page(&self, domain: DomId) -> Option<&Mapping> {
        self.pages.get(&domain)
    }

    fn signal(&self, _: DomId) {
        self.signals.fetch_add(1, Ordering::Relaxed);
    }

    fn detach(&mut self, domain: DomId) {
        self.pages.remove(&domain);
    }

    fn events_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    fn events(&mut self) -> Result<Vec<Event>, Error> {
        let (mut events, mut bytes) = (Vec::new(), [0; 2]);
        while events.len() < 100 && self.events.recv(&mut bytes).is_ok() {
            let number = u16::from_le_bytes(bytes);
            events.push(if number == u16::MAX { Event::Domains } else { Event::Ring(DomId::new(number)) });
        }
        Ok(events)
    }

    fn reached(&mut self, point: Point) {
        if let Some(die_at) = &mut self.die_at {
            die_at.reached(point);
        }
    }
}

/// A domain, from its own side.
pub(crate) struct Guest {
    pub(crate) number: u16,
    pub(crate) page: Mapping,
    sender: UnixDatagram,
    events: PathBuf,
    /// What the store has said, as far as nobody has looked at it.
    pub(crate) said: Vec<u8>,
}

impl Guest {
    /// Makes the domain.
    pub(crate) fn new(folder: &Path, number: u16) -> Self {
        let file = File::create(ring_file(folder, number)).unwrap();
        file.set_len(4096).unwrap();
        let sender = UnixDatagram::unbound().unwrap();
        sender.set_nonblocking(true).unwrap();
        Self { number, page: map(folder, number).unwrap(), sender, events: folder.join("events"), said: Vec::new() }
    }

    /// Signals the daemon, if there is one.
    pub(crate) fn signal(&self) {
        let _ = self.sender.send_to(&self.number.to_le_bytes(), &self.events);
    }

    /// Puts bytes into the ring, as many as fit; says how many.
    pub(crate) fn write(&self, bytes: &[u8]) -> usize {
        let count = Peer(&self.page).write(bytes);
        self.signal();
        count
    }

    /// Takes what there is to take.
    pub(crate) fn read(&mut self) {
        let bytes = Peer(&self.page).read();
        if !bytes.is_empty() {
            self.said.extend(bytes);
            self.signal();
        }
    }

    /// The whole messages among what was said.
    pub(crate) fn messages(&mut self) -> Vec<Message> {
        self.read();
        std::iter::from_fn(|| Message::take(&mut self.said).unwrap()).collect()
    }
}

/// A folder that is removed in the end.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("isthmus-{name}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A request as bytes.
pub(crate) fn request(kind: u32, req_id: u32, tx_id: u32, payload: &[u8]) -> Vec<u8> {
    Message { kind, req_id, tx_id, payload: payload.to_vec() }.to_bytes()
}
