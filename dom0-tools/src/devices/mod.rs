// SPDX-License-Identifier: MIT OR Apache-2.0
//! Disks and network cards of guests, served by Linux' backends.
//!
//! A device is two folders in xenstore, one for each half, and something on the host that stands behind it: a block
//! device, or an interface in a bridge. Elsewhere udev and shell scripts do the host's part; here it is [`host`], in
//! the same program that writes the folders ([`halves`]).
//!
//! Or a *driver domain* serves the device: a guest with the backend's driver and what stands behind it. The folders are
//! made here all the same; the rest is [`driver`], which runs there.
//!
//! *Who holds what.* A file becomes a loop device that lets go of the file when it is closed for the last time, and is
//! open here until the kernel's backend has opened it. So nothing has to be remembered: whatever ends first, guest,
//! tool or backend, the file is free when the backend has closed it.

pub mod driver;
pub mod halves;
pub mod host;
pub mod nat;
pub mod nft;
pub mod shares;
pub mod stats;

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use guest_abi::DomId;
use guest_abi::io::blkif::node;
use guest_abi::io::xenbus::{self, State};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::config::GuestConfig;
use crate::toolstack::DOM0_NAME;
use crate::xenstore::SOCKET;
use crate::xenstore::client::{Client, Error, View};
use crate::xenstore::wire::Code;
use halves::{Class, Halves};

/// How long a device is waited for.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a guest from which a device is taken away has to end what it is doing with it.
const FORCED_PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// A disk in a guest's description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// A file or a block device of the domain that serves it.
    pub source: PathBuf,
    /// Its name in the guest; `xvda` and on in the order of the description if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether the guest can only read it.
    #[serde(default)]
    pub readonly: bool,
    /// The domain that serves it, by its name: dom0 if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
}

/// A network card in a guest's description.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicConfig {
    /// What it is connected to.
    #[serde(default)]
    pub network: Network,
    /// The bridge that it is in, in the domain that serves it. `isthmus0`, if none is given, is made if it does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// Its address; made of the guest's uuid if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The largest packet, if not the usual 1500 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// The domain that serves it, by its name: dom0 if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
}

/// What a network card is connected to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// A bridge
    #[default]
    Bridge,
    /// The outside, with dom0's address; the guest gets its own by DHCP
    Nat,
}

impl NicConfig {
    /// The bridge that it is in.
    #[must_use]
    pub fn bridge(&self) -> &str {
        match (self.network, &self.bridge) {
            (Network::Nat, _) => nat::BRIDGE,
            (Network::Bridge, Some(bridge)) => bridge,
            (Network::Bridge, None) => host::OWN_BRIDGE,
        }
    }

    /// Whether it can be.
    ///
    /// # Errors
    /// The field that is wrong, what it says, and why that cannot be.
    pub fn check(&self) -> Result<(), (&'static str, String, &'static str)> {
        if let Some(Err(reason)) = self.mac.as_deref().map(Mac::parse) {
            return Err(("nic.mac", format!("{:?}", self.mac.as_deref().unwrap_or_default()), reason));
        }
        if let Err(reason) = check_bridge(self.bridge()) {
            return Err(("nic.bridge", format!("{:?}", self.bridge()), reason));
        }
        let nat = |reason| Err(("nic.network", "\"nat\"".to_owned(), reason));
        match (self.network, &self.bridge, self.backend.as_deref().unwrap_or(DOM0_NAME)) {
            (Network::Nat, Some(_), _) => nat("it has a bridge of its own: leave bridge out"),
            (Network::Nat, None, backend) if backend != DOM0_NAME => nat(
                "dom0 translates addresses, no driver domain does: leave backend out, or name a bridge of the backend's",
            ),
            _ => Ok(()),
        }
    }
}

impl DiskConfig {
    /// Its name if it is the disk `at` of its guest.
    #[must_use]
    pub fn name_at(&self, at: u32) -> String {
        let letter = |at: u32| char::from_u32(u32::from('a') + at).unwrap_or('?');
        self.name.clone().unwrap_or_else(|| format!("xvd{}", letter(at)))
    }
}

/// Whether an interface can be called so.
///
/// # Errors
/// Why not.
fn check_bridge(name: &str) -> Result<(), &'static str> {
    let is_fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 15 || name.starts_with('.') || !name.chars().all(is_fine) {
        return Err("an interface's name has 1 to 15 letters, digits, '-', '_' and '.'");
    }
    Ok(())
}

/// A disk's number in a guest, which stands for its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtualDisk(u32);

impl VirtualDisk {
    /// The number of `xvda` to `xvdz`. Source: `docs/man/xen-vbd-interface.7.pandoc` of Xen at 4.17.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let letter = name.strip_prefix("xvd")?;
        let [letter @ b'a'..=b'z'] = letter.as_bytes() else { return None };
        let disk = u32::from(letter - b'a');
        // The old numbers have place for 16 disks of 16 partitions.
        Some(Self(if disk < 16 { 202 << 8 | disk << 4 } else { 1 << 28 | disk << 8 }))
    }

    /// The disk of a number that was made by [`VirtualDisk::from_name`].
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac([u8; 6]);

impl Mac {
    /// Reads `aa:bb:cc:dd:ee:ff`.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const REASON: &str = "an address is like 00:16:3e:01:02:03, and its first byte is even";
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(REASON)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| REASON)?;
        }
        if parts.next().is_some() || bytes[0] & 1 != 0 {
            return Err(REASON);
        }
        Ok(Self(bytes))
    }

    /// The address of card `at` of a guest that gives none: the same with each start.
    #[must_use]
    pub fn of(uuid: Uuid, at: u8) -> Self {
        let [.., a, b, c] = *uuid.as_bytes();
        Self([0, 0x16, 0x3e, a & 0x7f, b, c.wrapping_add(at)])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A device of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// A disk.
    Disk(VirtualDisk),
    /// A network card, by its number.
    Nic(u32),
}

/// A device whose front waits for a domain that served it and is gone.
#[derive(Debug)]
pub struct Waiting {
    guest: DomId,
    backend: DomId,
    front: String,
    back: String,
    /// What the back's folder held.
    values: Vec<(String, String)>,
}

impl Waiting {
    fn give_back(&self, view: &mut View<'_>) -> Result<(), Error> {
        let (guest, backend) = (self.guest.raw(), self.backend.raw());
        let mut readable = vec![self.front.clone()];
        while let Some(node) = readable.pop() {
            view.set_perms(&node, &[format!("n{guest}"), format!("r{backend}")])?;
            readable.extend(children(view, &node)?.into_iter().map(|name| format!("{node}/{name}")));
        }
        view.make(&self.back)?;
        view.set_perms(&self.back, &[format!("n{backend}"), format!("r{guest}")])?;
        self.values.iter().try_for_each(|(name, value)| view.write(&format!("{}/{name}", self.back), value))
    }
}

/// The connection to the store, with what can be done to devices.
#[derive(Debug)]
pub struct Devices {
    store: Client,
}

impl Devices {
    /// Connects to the store.
    ///
    /// # Errors
    /// It does not run.
    pub fn open() -> Result<Self> {
        let mut store = Client::by_socket(SOCKET)?;
        store.set_limit(Duration::from_secs(30));
        Ok(Self { store })
    }

    /// Makes all devices of a guest that is not running yet. `find` knows domains by their names.
    ///
    /// # Errors
    /// The first that failed, by its name. What was made before it stays for [`Devices::remove_all`].
    pub fn attach_all(
        &mut self,
        guest: DomId,
        config: &GuestConfig,
        uuid: Uuid,
        find: impl Fn(&str) -> Result<DomId>,
    ) -> Result<()> {
        let backend = |name: &Option<String>| name.as_deref().map_or(Ok(DomId::DOM0), &find);
        for (at, disk) in (0..).zip(&config.disks) {
            self.attach_disk((guest, backend(&disk.backend)?), disk, &disk.name_at(at))?;
        }
        for (at, nic) in (0..).zip(&config.nics) {
            self.attach_nic((guest, backend(&nic.backend)?), nic, at, uuid)?;
        }
        Ok(())
    }

    /// Gives a guest a disk that the second domain serves.
    ///
    /// # Errors
    /// The source is neither file nor block device, the guest has a disk of that name, or the backend refused.
    pub fn attach_disk(&mut self, domains: (DomId, DomId), disk: &DiskConfig, name: &str) -> Result<()> {
        let what = || format!("disk {name} ({})", disk.source.display());
        let number = VirtualDisk::from_name(name).with_context(|| format!("{name} is none of xvda to xvdz"))?;
        if domains.1 != DomId::DOM0 {
            let halves = halves::disk(domains, number, name, disk, None);
            self.attach(&halves).with_context(what)?;
            return self.finish(&halves, Self::wait_for_driver).with_context(what);
        }
        let source = host::Source::open(&disk.source, disk.readonly).with_context(what)?;
        host::load(Class::Vbd.module())?;
        let halves = halves::disk(domains, number, name, disk, Some((source.number(), source.identity())));
        self.attach(&halves).with_context(what)?;
        let opened = halves.sysfs().join("physical_device");
        // Once the backend has the device open it may be let go of here.
        self.finish(&halves, |devices, halves| devices.wait_for(halves, "the backend to open it", |_| opened.exists()))
            .with_context(what)
    }

    /// Gives a guest its network card `at`, which the second domain serves.
    ///
    /// # Errors
    /// There is no such bridge, the guest has a card of that number, or the backend refused.
    pub fn attach_nic(&mut self, domains: (DomId, DomId), nic: &NicConfig, at: u32, uuid: Uuid) -> Result<()> {
        let what = || format!("network card {at} (bridge {})", nic.bridge());
        let made = Mac::of(uuid, u8::try_from(at).unwrap_or(u8::MAX));
        let mac = match nic.mac.as_deref().map(Mac::parse) {
            Some(Ok(mac)) => mac,
            Some(Err(reason)) => bail!("{}: {reason}", what()),
            None => made,
        };
        let halves = halves::nic(domains, at, mac, nic);
        if domains.1 != DomId::DOM0 {
            self.attach(&halves).with_context(what)?;
            return self.finish(&halves, Self::wait_for_driver).with_context(what);
        }
        match nic.network {
            Network::Bridge => host::prepare_bridge(nic.bridge()),
            Network::Nat => nat::prepare(),
        }
        .with_context(what)?;
        host::load(Class::Vif.module())?;
        self.attach(&halves).with_context(what)?;
        let interface = halves.interface();
        let connect = |devices: &mut Self, halves: &Halves| {
            let made = |_: &mut Client| host::has_interface(&interface);
            devices.wait_for(halves, "the backend to make its interface", made)?;
            host::connect_interface(nic.bridge(), &interface, nic.mtu)?;
            let status = format!("{}/{}", halves.back, xenbus::HOTPLUG_STATUS);
            Ok(devices.store.all().write(&status, xenbus::HOTPLUG_CONNECTED)?)
        };
        self.finish(&halves, connect).with_context(what)
    }

    /// The last step of an attach. If it fails nothing is left.
    fn finish(&mut self, halves: &Halves, last: impl FnOnce(&mut Self, &Halves) -> Result<()>) -> Result<()> {
        last(self, halves).or_else(|error| self.remove(halves).and(Err(error)))
    }

    fn wait_for_driver(&mut self, halves: &Halves) -> Result<()> {
        let status = format!("{}/{}", halves.back, xenbus::HOTPLUG_STATUS);
        let what = format!("domain {} to serve it (does `isthmus driver` run there?)", halves.backend.raw());
        self.wait_for(halves, &what, |store| matches!(store.all().read_text(&status), Ok(Some(_))))
    }

    fn attach(&mut self, halves: &Halves) -> Result<()> {
        let exists = self.store.all().read_text(&halves.front)?.is_some();
        ensure!(!exists, "the guest has a device of this name already");
        let nodes = halves.nodes();
        let error = halves.error();
        let copy = (halves.backend != DomId::DOM0).then(|| serde_json::to_string(&nodes[1].2)).transpose()?;
        let user = self.store.transaction(|view| {
            let user = other_user(view, halves)?;
            if user.is_some() {
                return Ok(user);
            }
            // Left by an earlier device of this number; nobody else removes it.
            remove_if_there(view, &error)?;
            for (folder, permissions, values) in &nodes {
                view.make(folder)?;
                view.set_perms(folder, permissions)?;
                // What is in the folder has its permissions.
                values.iter().try_for_each(|(name, value)| view.write(&format!("{folder}/{name}"), value))?;
            }
            if let Some(copy) = &copy {
                view.write(&halves.served(), copy)?;
            }
            Ok(None)
        })?;
        match user {
            Some(user) => bail!("its source is {user} already: give it a copy, or both of them readonly = true"),
            None => Ok(()),
        }
    }

    /// The devices that wait for the domain that had this number.
    ///
    /// # Errors
    /// The store does not answer.
    pub fn waiting_for(&mut self, backend: DomId) -> Result<Vec<Waiting>> {
        let mut waiting = Vec::new();
        let folder = halves::all_served(backend);
        for key in children(&mut self.store.all(), &folder)? {
            let Some((guest, device)) = halves::of_key(&key) else { continue };
            let halves = Halves::of(guest, device, backend);
            let named = self.store.all().read_text(&format!("{}/{}", halves.front, xenbus::BACKEND))?;
            let values = self.store.all().read_text(&format!("{folder}/{key}"))?;
            if let (Some(named), Some(values)) = (named, values)
                && named == halves.back
            {
                let values = serde_json::from_str(&values).with_context(|| format!("the node {folder}/{key}"))?;
                let Halves { front, back, .. } = halves;
                waiting.push(Waiting { guest, backend, front, back, values });
            }
        }
        Ok(waiting)
    }

    /// Makes the backs' folders again, in a new domain that has the old one's number. Its kernel finds fronts that are
    /// connected, and goes on with their rings: the fronts need not know of it. What the store let the old domain read of
    /// them it lets the new one read: rights end with their domain.
    ///
    /// Returns the devices for which that failed, with the reason: one whose guest writes to its nodes all the time, or has
    /// gone meanwhile, does not keep the others from being served.
    pub fn serve_again(&mut self, waiting: &[Waiting]) -> Vec<(String, Error)> {
        let failed = |device: &Waiting| {
            let result = self.store.transaction(|view| device.give_back(view));
            result.err().map(|error| (device.front.clone(), error))
        };
        waiting.iter().filter_map(failed).collect()
    }

    /// Takes a device from a guest: asks for it, and with `force` takes it away if the guest does not let go of it soon.
    ///
    /// A guest is asked even then: it ends its requests before it lets go. Of a device that vanishes Linux' driver waits for
    /// answers that nobody gives any more.
    ///
    /// # Errors
    /// It has none of that name, or does not let go of it.
    pub fn detach(&mut self, guest: DomId, device: Device, force: bool) -> Result<()> {
        let mut served = None;
        for backend in domains(&mut self.store.all())? {
            let halves = Halves::of(guest, device, backend);
            if self.store.all().read_text(&halves.back)?.is_some() {
                served = Some(halves);
            }
        }
        let Some(halves) = served else {
            // The domain that served it is gone, and with it the back's folder.
            let front = Halves::of(guest, device, DomId::DOM0).front;
            let backend = self.store.all().read_text(&format!("{front}/{}", xenbus::BACKEND_ID))?;
            let backend = backend.context("the guest has no such device")?.parse().unwrap_or(DomId::DOM0.raw());
            return self.remove(&Halves::of(guest, device, DomId::new(backend)));
        };
        let is_let_go = self.ask_for(&halves, if force { FORCED_PATIENCE } else { PATIENCE });
        if !force {
            is_let_go?;
        }
        self.remove(&halves)
    }

    /// Asks a guest to let go of a device, and waits for that.
    fn ask_for(&mut self, halves: &Halves, patience: Duration) -> Result<()> {
        let state = format!("{}/state", halves.back);
        self.store.transaction(|view| {
            view.write(&format!("{}/online", halves.back), "0")?;
            view.write(&state, State::Closing.as_str())
        })?;
        let is_closed = |store: &mut Client| {
            let value = store.all().read_text(&state).ok().flatten();
            value.is_none_or(|value| State::parse(value.as_bytes()) == Some(State::Closed))
        };
        self.wait_within(patience, halves, "the guest to let go of it (--force does not)", is_closed)
    }

    /// Removes what is left of the devices of a guest that is gone.
    ///
    /// # Errors
    /// The store does not answer.
    pub fn remove_all(&mut self, guest: DomId) -> Result<()> {
        let backends = domains(&mut self.store.all())?;
        for (backend, class) in backends.into_iter().flat_map(|backend| Class::ALL.map(|class| (backend, class))) {
            let backs = format!("{}/{}", halves::all_backs(backend, class), guest.raw());
            remove_if_there(&mut self.store.all(), &backs)?;
            // What the kernel wrote there it never removes.
            remove_if_there(&mut self.store.all(), &halves::errors_of(&backs))?;
        }
        for backend in children(&mut self.store.all(), halves::SERVED)? {
            let folder = format!("{}/{backend}", halves::SERVED);
            for key in children(&mut self.store.all(), &folder)? {
                if halves::of_key(&key).is_none_or(|(owner, _)| owner == guest) {
                    remove_if_there(&mut self.store.all(), &format!("{folder}/{key}"))?;
                }
            }
        }
        Ok(())
    }

    fn remove(&mut self, halves: &Halves) -> Result<()> {
        self.store.transaction(|view| {
            [&halves.front, &halves.back, &halves.error(), &halves.served()]
                .into_iter()
                .try_for_each(|path| remove_if_there(view, path))
        })?;
        if halves.backend != DomId::DOM0 {
            return Ok(());
        }
        let device = halves.sysfs();
        self.wait_for(halves, "the backend to let go of it", |_| !device.exists())
    }

    /// Waits for something that the kernel does.
    fn wait_for(&mut self, halves: &Halves, what: &str, is_done: impl Fn(&mut Client) -> bool) -> Result<()> {
        self.wait_within(PATIENCE, halves, what, is_done)
    }

    fn wait_within(
        &mut self,
        patience: Duration,
        halves: &Halves,
        what: &str,
        is_done: impl Fn(&mut Client) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + patience;
        let errors = [format!("{}/error", halves.error()), format!("{}/{}", halves.back, halves::HOTPLUG_ERROR)];
        while !is_done(&mut self.store) {
            for error in &errors {
                if let Ok(Some(reason)) = self.store.all().read_text(error) {
                    bail!("the backend says: {reason}");
                }
            }
            if Instant::now() >= deadline {
                bail!("waited for {what} for {} s in vain", patience.as_secs());
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

/// The disk that has the same source, unless both only read it. Looked at in the transaction that makes the new one, so
/// of two that are made at the same time one is refused.
fn other_user(view: &mut View<'_>, halves: &Halves) -> Result<Option<String>, Error> {
    let (Some(source), Some(mode)) = (halves.back_value(halves::SOURCE), halves.back_value(node::MODE)) else {
        return Ok(None);
    };
    let all = halves::all_backs(halves.backend, halves.class);
    for guest in children(view, &all)? {
        for number in children(view, &format!("{all}/{guest}"))? {
            let back = format!("{all}/{guest}/{number}");
            let is_same = view.read_text(&format!("{back}/{}", halves::SOURCE))?.as_deref() == Some(source);
            let is_read_only =
                mode == "r" && view.read_text(&format!("{back}/{}", node::MODE))?.as_deref() == Some("r");
            if is_same && !is_read_only && back != halves.back {
                let name = view.read_text(&format!("{back}/dev"))?.unwrap_or(number);
                return Ok(Some(format!("disk {name} of domain {guest}")));
            }
        }
    }
    Ok(None)
}

/// All domains that have nodes.
fn domains(view: &mut View<'_>) -> Result<Vec<DomId>, Error> {
    let names = children(view, "/local/domain")?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).map(DomId::new).collect())
}

fn children(view: &mut View<'_>, path: &str) -> Result<Vec<String>, Error> {
    match view.list(path) {
        Err(error) if error.code() == Some(Code::Enoent) => Ok(Vec::new()),
        other => other,
    }
}

fn remove_if_there(view: &mut View<'_>, path: &str) -> Result<(), Error> {
    match view.remove(path) {
        // Not even the folder that it would be in.
        Err(error) if error.code() == Some(Code::Enoent) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_have_the_numbers_that_linux_knows() {
        let number = |name| VirtualDisk::from_name(name).map(VirtualDisk::number);
        assert_eq!((number("xvda"), number("xvdb"), number("xvdp")), (Some(51712), Some(51728), Some(51952)));
        assert_eq!((number("xvdq"), number("xvdz")), (Some(1 << 28 | 16 << 8), Some(1 << 28 | 25 << 8)));
        for name in ["", "sda", "xvd", "xvdA", "xvda1", "xvdaa"] {
            assert_eq!(number(name), None, "{name}");
        }
    }

    #[test]
    fn addresses_are_read_and_made() {
        assert_eq!(Mac::parse("00:16:3e:0A:0b:0c").unwrap().to_string(), "00:16:3e:0a:0b:0c");
        for text in
            ["", "00:16:3e:01:02", "00:16:3e:01:02:03:04", "01:00:5e:00:00:01", "0:16:3e:1:2:3", "00-16-3e-01-02-03"]
        {
            assert!(Mac::parse(text).is_err(), "{text}");
        }
        let uuid = Uuid::from_u128(0xaa_bbcc);
        assert_eq!(Mac::of(uuid, 0).to_string(), "00:16:3e:2a:bb:cc");
        assert_ne!(Mac::of(uuid, 1), Mac::of(uuid, 0));
        assert!(Mac::parse(&Mac::of(uuid, 1).to_string()).is_ok());
    }
}
