// SPDX-License-Identifier: MIT OR Apache-2.0
//! A driver domain's part of its clients' devices: `isthmus driver` opens disks and puts interfaces into bridges.
//!
//! It runs in a guest that other guests' descriptions name as `backend`. The toolstack in dom0 makes a device's two
//! folders; here the back's folder, which is in this domain's part of the store, is watched and completed, with no more
//! rights than this domain has. What cannot be done is written there, for the toolstack to tell.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use guest_abi::DomId;
use guest_abi::io::{blkif, xenbus};

use super::halves::{self, Class, Halves};
use super::host::{self, Source};
use super::{Device, VirtualDisk, children};
use crate::xenstore::client::Client;

/// How often is looked at what no watch tells of: devices and interfaces of this kernel.
const LOOK: Duration = Duration::from_millis(200);

/// What is open for backends that have not opened it themselves yet, by the back's folder.
type Held = BTreeMap<String, Source>;

/// Whether a device needs more.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Not until its folder changes.
    Done,
    /// The kernel has to do its part first.
    Wait,
}

/// Serves until it is killed.
///
/// # Errors
/// This is no guest, or its kernel has no backends.
pub fn run() -> Result<()> {
    for class in Class::ALL {
        host::load(class.module())?;
    }
    let mut store = Client::by_kernel()?;
    let own = store.all().read_text("domid")?.context("this domain has no node `domid`: it is no guest")?;
    let own = DomId::new(own.parse().context("the node `domid` is no number")?);
    store.watch("backend", "devices")?;
    let mut held = Held::new();
    loop {
        let step = serve(&mut store, own, &mut held)?;
        store.event(if step == Step::Wait { Some(LOOK) } else { None })?;
    }
}

/// Looks at all devices.
fn serve(store: &mut Client, own: DomId, held: &mut Held) -> Result<Step> {
    let (mut step, mut seen) = (Step::Done, Vec::new());
    for class in Class::ALL {
        let all = halves::all_backs(own, class);
        for guest in children(&mut store.all(), &all)? {
            for number in children(&mut store.all(), &format!("{all}/{guest}"))? {
                let Some(halves) = halves_of(class, &guest, &number, own) else { continue };
                let result = complete(store, &halves, held);
                if let Err(error) = &result {
                    println!("{}: {error:#}", halves.back);
                    // The folder may be gone; then nobody asks.
                    let node = format!("{}/{}", halves.back, halves::HOTPLUG_ERROR);
                    let _ = store.all().write(&node, format!("{error:#}"));
                }
                if result.unwrap_or(Step::Done) == Step::Wait {
                    step = Step::Wait;
                }
                seen.push(halves.back);
            }
        }
    }
    held.retain(|back, _| seen.contains(back));
    Ok(step)
}

fn halves_of(class: Class, guest: &str, number: &str, own: DomId) -> Option<Halves> {
    let (guest, number) = (DomId::new(guest.parse().ok()?), number.parse().ok()?);
    let device = match class {
        Class::Vbd => Device::Disk(VirtualDisk::from_number(number)),
        Class::Vif => Device::Nic(number),
    };
    Some(Halves::of(guest, device, own))
}

/// Does what there is to do for one device.
fn complete(store: &mut Client, halves: &Halves, held: &mut Held) -> Result<Step> {
    let get = |store: &mut Client, name: &str| store.all().read_text(&format!("{}/{name}", halves.back));
    if get(store, halves::HOTPLUG_ERROR)?.is_some() || get(store, xenbus::ONLINE)?.is_none() {
        return Ok(Step::Done);
    }
    if get(store, xenbus::HOTPLUG_STATUS)?.is_some() {
        if held.contains_key(&halves.back) && !halves.sysfs().join("physical_device").exists() {
            return Ok(Step::Wait);
        }
        held.remove(&halves.back);
        return Ok(Step::Done);
    }
    let put =
        |store: &mut Client, name: &str, value: &str| store.all().write(&format!("{}/{name}", halves.back), value);
    match halves.class {
        Class::Vbd => {
            let source = get(store, "params")?.map(PathBuf::from).context("there is no node `params`")?;
            let read_only = get(store, blkif::node::MODE)?.as_deref() != Some("w");
            let source = Source::open(&source, read_only)?;
            let (major, minor) = source.number();
            put(store, blkif::node::PHYSICAL_DEVICE, &format!("{major:x}:{minor:x}"))?;
            held.insert(halves.back.clone(), source);
        }
        Class::Vif => {
            let interface = halves.interface();
            if !host::has_interface(&interface) {
                return Ok(Step::Wait);
            }
            let bridge = get(store, halves::BRIDGE)?.context("there is no node `bridge`")?;
            let mtu = get(store, halves::MTU)?.and_then(|mtu| mtu.parse().ok());
            host::prepare_bridge(&bridge)?;
            host::connect_interface(&bridge, &interface, mtu)?;
        }
    }
    put(store, xenbus::HOTPLUG_STATUS, xenbus::HOTPLUG_CONNECTED)?;
    Ok(if halves.class == Class::Vbd { Step::Wait } else { Step::Done })
}
