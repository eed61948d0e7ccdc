// SPDX-License-Identifier: MIT OR Apache-2.0
//! The two folders of a device in xenstore.
//!
//! The front's folder is the guest's own and the backend may read it; the back's is the backend's and the guest may
//! read it. The kernel of either side looks at a device only once its folder has a `state`, so all is written at once.
//!
//! Source: `xen/include/public/io/{blkif,netif,xenbus}.h` at 4.17; what Linux' drivers read.

use std::path::{Path, PathBuf};

use guest_abi::DomId;
use guest_abi::io::xenbus::{self, State};
use guest_abi::io::{blkif, netif};

use super::{Device, DiskConfig, Mac, NicConfig, VirtualDisk};

/// What kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A disk.
    Vbd,
    /// A network card.
    Vif,
}

impl Class {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Vbd, Self::Vif];

    /// Its name in paths.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vbd => "vbd",
            Self::Vif => "vif",
        }
    }

    /// Linux' module with the backend.
    #[must_use]
    pub const fn module(self) -> &'static str {
        match self {
            Self::Vbd => "xen-blkback",
            Self::Vif => "xen-netback",
        }
    }
}

/// A device's folders, and what is in them.
#[derive(Clone, Debug)]
pub struct Halves {
    /// What kind of device.
    pub class: Class,
    /// The front's folder.
    pub front: String,
    /// The back's folder.
    pub back: String,
    /// The domain that serves it.
    pub backend: DomId,
    guest: DomId,
    number: u32,
    front_values: Vec<(&'static str, String)>,
    back_values: Vec<(&'static str, String)>,
}

/// A folder, its permissions, and what it holds.
pub type Folder = (String, [String; 2], Vec<(&'static str, String)>);

/// Node of a disk's backend: what the disk is on, under whatever name. Ours: nobody else reads it.
pub const SOURCE: &str = "isthmus-source";
/// Node of a backend: why a driver domain could not do its part. Ours.
pub const HOTPLUG_ERROR: &str = "hotplug-error";
/// Node of a network card's backend: the bridge that its interface is to be in.
pub const BRIDGE: &str = "bridge";
/// Node of a network card: the largest packet.
pub const MTU: &str = "mtu";

impl Halves {
    /// The folders of a device.
    #[must_use]
    pub fn of(guest: DomId, device: Device, backend: DomId) -> Self {
        let (class, number) = match device {
            Device::Disk(disk) => (Class::Vbd, disk.number()),
            Device::Nic(number) => (Class::Vif, number),
        };
        let name = class.name();
        Self {
            class,
            front: format!("/local/domain/{}/device/{name}/{number}", guest.raw()),
            back: format!("{}/{}/{number}", all_backs(backend, class), guest.raw()),
            backend,
            guest,
            number,
            front_values: Vec::new(),
            back_values: Vec::new(),
        }
    }

    /// What Linux shows of the backend while it exists, in the domain that serves it.
    #[must_use]
    pub fn sysfs(&self) -> PathBuf {
        let device = format!("{}-{}-{}", self.class.name(), self.guest.raw(), self.number);
        Path::new("/sys/bus/xen-backend/devices").join(device)
    }

    /// The interface of a network card's backend, in the domain that serves it.
    #[must_use]
    pub fn interface(&self) -> String {
        format!("vif{}.{}", self.guest.raw(), self.number)
    }

    /// The folder where Linux' backend writes why it failed.
    #[must_use]
    pub fn error(&self) -> String {
        errors_of(&self.back)
    }

    /// Where dom0 keeps a copy of the back's folder, which a driver domain takes with it when it ends.
    #[must_use]
    pub fn served(&self) -> String {
        let key = format!("{}-{}-{}", self.class.name(), self.guest.raw(), self.number);
        format!("{}/{key}", all_served(self.backend))
    }

    /// A value of the back's folder as it is to be written.
    #[must_use]
    pub fn back_value(&self, name: &str) -> Option<&str> {
        self.back_values.iter().find(|(node, _)| *node == name).map(|(_, value)| value.as_str())
    }

    /// Both folders as they are to be written.
    #[must_use]
    pub fn nodes(&self) -> [Folder; 2] {
        let (guest, backend) = (self.guest.raw(), self.backend.raw());
        let initial = (xenbus::STATE, State::Initialising.to_string());
        let front = [(xenbus::BACKEND, self.back.clone()), (xenbus::BACKEND_ID, backend.to_string()), initial.clone()];
        let back = [
            (xenbus::FRONTEND, self.front.clone()),
            (xenbus::FRONTEND_ID, guest.to_string()),
            (xenbus::ONLINE, "1".to_owned()),
            initial,
        ];
        let folder = |path: &str, owner, reader, common: &[_], own: &[_]| {
            (path.to_owned(), [format!("n{owner}"), format!("r{reader}")], [own, common].concat())
        };
        [
            folder(&self.front, guest, backend, &front, &self.front_values),
            folder(&self.back, backend, guest, &back, &self.back_values),
        ]
    }
}

/// A disk. What it is on here: major and minor number of the block device, and what it is known by; a driver domain finds
/// that out itself.
#[must_use]
pub fn disk(
    (guest, backend): (DomId, DomId),
    disk: VirtualDisk,
    name: &str,
    config: &DiskConfig,
    source: Option<((u32, u32), String)>,
) -> Halves {
    use blkif::node;
    let mode = if config.readonly { "r" } else { "w" };
    let params = config.source.display().to_string();
    let mut back_values = vec![
        (node::DEVICE_TYPE, "disk".to_owned()),
        (node::MODE, mode.to_owned()),
        ("type", "phy".to_owned()),
        ("dev", name.to_owned()),
    ];
    match source {
        Some(((major, minor), identity)) => back_values.extend([
            (SOURCE, identity),
            (node::PHYSICAL_DEVICE, format!("{major:x}:{minor:x}")),
            (xenbus::HOTPLUG_STATUS, xenbus::HOTPLUG_CONNECTED.to_owned()),
        ]),
        None => back_values.push((SOURCE, format!("path {params}"))),
    }
    back_values.push(("params", params));
    Halves {
        front_values: vec![(node::VIRTUAL_DEVICE, disk.number().to_string()), (node::DEVICE_TYPE, "disk".to_owned())],
        back_values,
        ..Halves::of(guest, Device::Disk(disk), backend)
    }
}

/// A network card. The host's part follows when the backend has made its interface.
#[must_use]
pub fn nic((guest, backend): (DomId, DomId), number: u32, mac: Mac, config: &NicConfig) -> Halves {
    use netif::node;
    let common = vec![(node::MAC, mac.to_string()), (node::HANDLE, number.to_string())];
    let mtu = config.mtu.map(|mtu| (MTU, mtu.to_string()));
    let front_values = common.iter().cloned().chain(mtu.clone()).collect();
    let mut back_values = common;
    back_values.push((BRIDGE, config.bridge().to_owned()));
    back_values.extend(mtu);
    // Linux wants to know the script that would do what is done here, and refuses a device without.
    back_values.push(("script", "none".to_owned()));
    Halves { front_values, back_values, ..Halves::of(guest, Device::Nic(number), backend) }
}

/// Copies of the folders of all devices that driver domains serve, by domain.
pub const SERVED: &str = "/local/domain/0/isthmus/served";

/// The copies for one driver domain.
#[must_use]
pub fn all_served(backend: DomId) -> String {
    format!("{SERVED}/{}", backend.raw())
}

/// The guest and the device of a copy.
#[must_use]
pub fn of_key(key: &str) -> Option<(DomId, Device)> {
    let mut parts = key.split('-');
    let (class, guest, number) = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let device = match class {
        "vbd" => Device::Disk(VirtualDisk::from_number(number)),
        "vif" => Device::Nic(number),
        _ => return None,
    };
    parts.next().is_none().then_some((DomId::new(guest), device))
}

/// The folder that holds all backends of a class in a domain, by guest and number.
#[must_use]
pub fn all_backs(backend: DomId, class: Class) -> String {
    format!("/local/domain/{}/backend/{}", backend.raw(), class.name())
}

/// Where Linux' backends write why they failed, of a folder of theirs.
#[must_use]
pub fn errors_of(backs: &str) -> String {
    backs.replacen("/backend/", "/error/backend/", 1)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn get<'a>(folder: &'a Folder, name: &str) -> &'a str {
        &folder.2.iter().find(|(node, _)| *node == name).unwrap_or_else(|| panic!("{name}")).1
    }

    #[test]
    fn a_disk_has_what_linux_reads() {
        let config = DiskConfig { source: PathBuf::from("/d.img"), name: None, readonly: true, backend: None };
        let xvdb = VirtualDisk::from_name("xvdb").unwrap();
        let source = Some(((7, 31), "file (1, 2)".into()));
        let halves = disk((DomId::new(7), DomId::DOM0), xvdb, "xvdb", &config, source);
        let [front, back] = halves.nodes();
        assert_eq!(
            (front.0.as_str(), front.1.clone()),
            ("/local/domain/7/device/vbd/51728", ["n7".into(), "r0".into()])
        );
        assert_eq!(back.0, "/local/domain/0/backend/vbd/7/51728");
        assert_eq!(back.1, ["n0", "r7"]);
        assert_eq!((get(&front, "backend"), get(&front, "backend-id")), (back.0.as_str(), "0"));
        assert_eq!((get(&front, "virtual-device"), get(&front, "state")), ("51728", "1"));
        assert_eq!((get(&back, "frontend"), get(&back, "frontend-id")), (front.0.as_str(), "7"));
        assert_eq!((get(&back, "physical-device"), get(&back, "mode"), get(&back, "online")), ("7:1f", "r", "1"));
        assert_eq!(halves.sysfs(), Path::new("/sys/bus/xen-backend/devices/vbd-7-51728"));
    }

    #[test]
    fn a_copy_is_found_by_its_name() {
        let device = Device::Disk(VirtualDisk::from_name("xvdb").unwrap());
        let halves = Halves::of(DomId::new(7), device, DomId::new(3));
        assert_eq!(halves.served(), "/local/domain/0/isthmus/served/3/vbd-7-51728");
        assert_eq!(of_key("vbd-7-51728"), Some((DomId::new(7), device)));
        assert_eq!(of_key("vif-7-0"), Some((DomId::new(7), Device::Nic(0))));
        for key in ["", "vbd-7", "vbd-7-1-2", "vkb-7-0", "vif-x-0"] {
            assert_eq!(of_key(key), None, "{key}");
        }
    }

    #[test]
    fn a_network_card_has_its_address_on_both_sides_and_waits_for_the_host() {
        let config = NicConfig { bridge: Some("br0".into()), mtu: Some(9000), ..NicConfig::default() };
        let domains = (DomId::new(7), DomId::DOM0);
        let [front, back] = nic(domains, 1, Mac::parse("00:16:3e:00:00:01").unwrap(), &config).nodes();
        assert_eq!((get(&front, "mac"), get(&back, "mac")), ("00:16:3e:00:00:01", "00:16:3e:00:00:01"));
        assert_eq!((get(&front, "mtu"), get(&back, "handle"), get(&back, "bridge")), ("9000", "1", "br0"));
        assert_eq!(get(&back, "script"), "none");
        assert!(back.2.iter().all(|(name, _)| *name != "hotplug-status"));
    }

    #[test]
    fn a_driver_domain_has_the_backend_and_is_left_to_find_the_source() {
        let config = DiskConfig { source: PathBuf::from("/d.img"), name: None, readonly: false, backend: None };
        let xvda = VirtualDisk::from_name("xvda").unwrap();
        let [front, back] = disk((DomId::new(7), DomId::new(3)), xvda, "xvda", &config, None).nodes();
        assert_eq!((get(&front, "backend-id"), get(&back, "params")), ("3", "/d.img"));
        assert_eq!(
            (back.0.as_str(), back.1.clone()),
            ("/local/domain/3/backend/vbd/7/51712", ["n3".into(), "r7".into()])
        );
        assert!(back.2.iter().all(|(name, _)| !["physical-device", "hotplug-status"].contains(name)));
    }
}
