// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which uses of a guest's grants were for which device.
//!
//! The hypervisor counts by granter and user and knows of no devices, so devices of one guest that one domain serves are
//! told apart by what Linux' backends do. The network backend copies, and maps the rest of what a guest sends for reading
//! only. The block backend never copies. With persistent grants, which both kernels use unless told not to, it maps for
//! writing always, and keeps mapped; without, it maps for reading what the guest writes. What cannot be told apart is
//! told as one, and says of which devices. The pages of rings are mapped for writing, and so among the disks'; what devices
//! did that are gone is among those of their kind.
//!
//! Source: Linux `drivers/block/xen-blkback/blkback.c`, `drivers/net/xen-netback/netback.c`: the flags of mappings.

use std::fmt;

use guest_abi::DomId;
use guest_abi::io::blkif::node;
use guest_abi::isthmus::GrantStats;
use serde::Serialize;

use super::halves::{self, Class, Halves};
use super::{Device, VirtualDisk, children, domains};
use crate::xenstore::client::{Error, View};

/// What was done with a guest's grants for a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DeviceGrants {
    /// How often a page was mapped.
    pub mapped: u64,
    /// Such mappings that exist now.
    pub mapped_now: u64,
    /// Pieces that were copied from or to pages.
    pub copied: u64,
    /// Their bytes.
    pub bytes_copied: u64,
    /// The devices whose grants are in these numbers, too.
    pub together_with: Vec<String>,
}

/// A device as the store has it.
#[derive(Clone, Debug)]
pub(super) struct Served {
    pub(super) class: Class,
    pub(super) number: u32,
    pub(super) backend: DomId,
    /// Whether both halves of a disk keep pages mapped.
    pub(super) is_persistent: bool,
}

impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.class == Class::Vbd { "disk" } else { "network card" };
        write!(f, "{name} {}", self.number)
    }
}

/// A guest's devices, disks first.
pub(super) fn served(view: &mut View<'_>, guest: DomId) -> Result<Vec<Served>, Error> {
    let mut found = Vec::new();
    let all = domains(view)?;
    for (class, backend) in Class::ALL.into_iter().flat_map(|class| all.iter().map(move |backend| (class, *backend))) {
        for name in children(view, &format!("{}/{}", halves::all_backs(backend, class), guest.raw()))? {
            let Ok(number) = name.parse() else { continue };
            let device = match class {
                Class::Vbd => Device::Disk(VirtualDisk::from_number(number)),
                Class::Vif => Device::Nic(number),
            };
            let Halves { front, back, .. } = Halves::of(guest, device, backend);
            let mut says_so = |half: &str| {
                let value = view.read_text(&format!("{half}/{}", node::FEATURE_PERSISTENT));
                value.map(|value| value.as_deref() == Some("1"))
            };
            let is_persistent = says_so(&front)? && says_so(&back)?;
            found.push(Served { class, number, backend, is_persistent });
        }
    }
    Ok(found)
}

/// What a device's backend has done with the guest's grants, as far as it can be told; see above.
pub(super) fn grants(device: &Served, all: &[Served], users: &[GrantStats]) -> Option<DeviceGrants> {
    let beside = || all.iter().filter(|other| other.backend == device.backend);
    let is_disk = |device: &Served| device.class == Class::Vbd;
    let has_cards = beside().any(|other| !is_disk(other));
    let is_mixed = has_cards && beside().any(|other| is_disk(other) && !other.is_persistent);
    let is_counted_with = |other: &&Served| is_mixed || other.class == device.class;
    let other_devices = beside().filter(is_counted_with).filter(|other| !std::ptr::eq(*other, device));
    let together_with = other_devices.map(ToString::to_string).collect();
    let user = users.iter().find(|user| user.nr_users > 0 && user.user == device.backend.raw());
    let Some(user) = user else {
        let are_all_known = users.iter().all(|user| user.user != DomId::INVALID.raw());
        return are_all_known.then(|| DeviceGrants { together_with, ..DeviceGrants::default() });
    };
    let reads = u64::from(is_mixed || !is_disk(device) || !has_cards);
    let writes = u64::from(is_mixed || is_disk(device));
    let copies = u64::from(!is_disk(device));
    let mapped = reads * user.read_maps + writes * user.write_maps;
    Some(DeviceGrants {
        mapped,
        mapped_now: mapped.saturating_sub(reads * user.read_unmaps + writes * user.write_unmaps),
        copied: copies * user.copies,
        bytes_copied: copies * user.copied_bytes,
        together_with,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRIVER: DomId = DomId::new(3);

    fn device(class: Class, number: u32, backend: DomId, is_persistent: bool) -> Served {
        Served { class, number, backend, is_persistent }
    }

    fn user(domain: DomId) -> GrantStats {
        GrantStats {
            nr_users: 2,
            user: domain.raw(),
            read_maps: 1000,
            read_unmaps: 999,
            write_maps: 40,
            write_unmaps: 7,
            copies: 300,
            copied_bytes: 5000,
            ..GrantStats::default()
        }
    }

    fn of(device: usize, all: &[Served], users: &[GrantStats]) -> (u64, u64, u64, Vec<String>) {
        let grants = grants(&all[device], all, users).unwrap();
        (grants.mapped, grants.mapped_now, grants.bytes_copied, grants.together_with)
    }

    #[test]
    fn grants_of_a_disk_and_a_card_are_told_apart() {
        let all = [device(Class::Vbd, 51712, DomId::DOM0, true), device(Class::Vif, 0, DomId::DOM0, false)];
        let users = [user(DRIVER), user(DomId::DOM0)];
        assert_eq!(of(0, &all, &users), (40, 33, 0, vec![]));
        assert_eq!(of(1, &all, &users), (1000, 1, 5000, vec![]));
        assert_eq!(of(0, &all[..1], &users), (1040, 34, 0, vec![]), "all that was mapped is a lonely disk's");
        assert_eq!(of(0, &all, &[GrantStats::default()]), (0, 0, 0, vec![]), "nobody has used any");
    }

    #[test]
    fn what_cannot_be_told_apart_is_told_as_one() {
        let mut all = vec![
            device(Class::Vbd, 51712, DomId::DOM0, true),
            device(Class::Vbd, 51728, DomId::DOM0, true),
            device(Class::Vif, 0, DomId::DOM0, false),
            device(Class::Vif, 1, DRIVER, false),
        ];
        let users = [user(DomId::DOM0)];
        assert_eq!(of(0, &all, &users), (40, 33, 0, vec!["disk 51728".to_owned()]));
        assert_eq!(of(2, &all, &users), (1000, 1, 5000, vec![]));
        all[1].is_persistent = false;
        let others = ["disk 51712", "disk 51728"].map(str::to_owned).to_vec();
        assert_eq!(of(2, &all, &users), (1040, 34, 5000, others));
        assert_eq!(of(3, &all, &users), (0, 0, 0, vec![]));
        let strangers = GrantStats { user: DomId::INVALID.raw(), ..user(DRIVER) };
        assert_eq!(grants(&all[3], &all, &[user(DomId::DOM0), strangers]), None);
    }
}
