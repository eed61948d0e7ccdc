// SPDX-License-Identifier: MIT OR Apache-2.0
//! The commands about devices: block-attach, block-detach, net-attach, net-detach, stats.

use anyhow::{Context, Result, bail};
use guest_abi::hypercall as number;
use guest_abi::isthmus::{GrantStats, REASON_NAMES};
use guest_abi::{DomId, VcpuId};
use serde::Serialize;
use uuid::Uuid;

use super::guests::print_done;
use crate::devices::stats::DeviceStats;
use crate::devices::{Device, Devices, DiskConfig, NicConfig, VirtualDisk};
use crate::sys::privcmd::{Privcmd, Snapshot};
use crate::toolstack::{Guest, Toolstack};

/// A guest that can have devices.
fn guest(name: &str) -> Result<Guest> {
    let guest = Toolstack::open()?.find(name)?;
    if guest.id == DomId::DOM0 {
        bail!("this is the control domain");
    }
    if guest.record.as_ref().is_some_and(|record| !record.config.xenstore) {
        bail!("it was made without xenstore, where it would find its devices");
    }
    Ok(guest)
}

fn backend(name: Option<&str>) -> Result<DomId> {
    name.map_or(Ok(DomId::DOM0), |name| Toolstack::open()?.backend(name))
}

/// `isthmus block-attach`.
///
/// # Errors
/// There is no such guest, or the disk cannot be made.
pub fn block_attach(name: &str, disk: &str, mut config: DiskConfig, json: bool) -> Result<()> {
    let mut attach = || {
        let (guest, backend) = (guest(name)?, backend(config.backend.as_deref())?);
        config.source = std::path::absolute(&config.source)?;
        Devices::open()?.attach_disk((guest.id, backend), &config, disk)?;
        print_done(json, &guest.name, guest.id, None, || None)
    };
    attach().with_context(|| format!("attaching a disk to {name}"))
}

/// `isthmus block-detach`.
///
/// # Errors
/// There is no such guest or disk, or the guest does not let go of it.
pub fn block_detach(name: &str, disk: &str, force: bool, json: bool) -> Result<()> {
    let number = || VirtualDisk::from_name(disk).with_context(|| format!("{disk} is none of xvda to xvdz"));
    let detach = || detach(name, Device::Disk(number()?), force, json);
    detach().with_context(|| format!("detaching disk {disk} from {name}"))
}

/// `isthmus net-attach`.
///
/// # Errors
/// There is no such guest or bridge, or the card cannot be made.
pub fn net_attach(name: &str, card: u32, config: NicConfig, json: bool) -> Result<()> {
    let attach = || {
        if let Err((field, value, reason)) = config.check() {
            bail!("--{} {value}: {reason}", field.trim_start_matches("nic."));
        }
        let guest = guest(name)?;
        let uuid = guest.record.as_ref().map_or_else(Uuid::new_v4, |record| record.uuid);
        Devices::open()?.attach_nic((guest.id, backend(config.backend.as_deref())?), &config, card, uuid)?;
        print_done(json, &guest.name, guest.id, None, || None)
    };
    attach().with_context(|| format!("attaching a network card to {name}"))
}

/// `isthmus net-detach`.
///
/// # Errors
/// There is no such guest or card, or the guest does not let go of it.
pub fn net_detach(name: &str, card: u32, force: bool, json: bool) -> Result<()> {
    let detach = detach(name, Device::Nic(card), force, json);
    detach.with_context(|| format!("detaching network card {card} from {name}"))
}

fn detach(name: &str, device: Device, force: bool, json: bool) -> Result<()> {
    let guest = guest(name)?;
    Devices::open()?.detach(guest.id, device, force)?;
    print_done(json, &guest.name, guest.id, None, || None)
}

/// What a domain costs and does.
#[derive(Debug, Serialize)]
struct DomainStats {
    name: String,
    id: u16,
    /// Exits by reason, of all vCPUs; what is zero is left out.
    exits: Vec<(&'static str, u64)>,
    /// Hypercalls about grants: maps, unmaps and copies, each of one or many.
    grant_calls: u64,
    /// How often others mapped a page that it grants.
    grants_mapped: u64,
    /// Such mappings that exist now.
    grants_mapped_now: u64,
    /// Pieces that others copied from or to a page that it grants.
    grants_copied: u64,
    /// Their bytes.
    grant_bytes_copied: u64,
    /// Pages of others that it has mapped now.
    pages_of_others_mapped: u32,
    /// Hypercalls about event channels, sending above all.
    event_calls: u64,
    devices: Vec<DeviceStats>,
}

/// `isthmus stats`.
///
/// # Errors
/// There is no such domain, or the hypervisor does not answer.
pub fn show_stats(name: Option<&str>, json: bool) -> Result<()> {
    let tools = Toolstack::open()?;
    let guests = match name {
        Some(name) => vec![tools.find(name)?],
        None => tools.guests()?,
    };
    let mut devices = Devices::open()?;
    let all: Vec<DomainStats> =
        guests.iter().map(|guest| of(&tools.privcmd, &mut devices, guest)).collect::<Result<_>>()?;
    if json {
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    for domain in &all {
        let exits: Vec<String> = domain.exits.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        println!("{} ({})", domain.name, domain.id);
        println!("  exits: {}", exits.join(", "));
        println!("  hypercalls: {} about grants, {} about events", domain.grant_calls, domain.event_calls);
        println!(
            "  its grants: mapped {} times, {} now; {} pieces copied ({} bytes)",
            domain.grants_mapped, domain.grants_mapped_now, domain.grants_copied, domain.grant_bytes_copied
        );
        println!("  grants of others: {} mapped now", domain.pages_of_others_mapped);
        domain.devices.iter().for_each(|device| println!("  {device}"));
    }
    Ok(())
}

fn of(privcmd: &Privcmd, devices: &mut Devices, guest: &Guest) -> Result<DomainStats> {
    let first = privcmd.counters(guest.id, VcpuId::new(0))?;
    let rest = (1..u32::from(first.nr_vcpus)).map(|vcpu| privcmd.counters(guest.id, VcpuId::new(vcpu)));
    let vcpus: Vec<Snapshot> = std::iter::once(Ok(first)).chain(rest).collect::<Result<_, _>>()?;
    let total = |list: fn(&Snapshot) -> &Vec<u64>, at: usize| {
        vcpus.iter().map(|vcpu| list(vcpu).get(at).copied().unwrap_or(0)).sum::<u64>()
    };
    let calls = |number: u32| total(|vcpu| &vcpu.hypercalls, VcpuId::new(number).index());
    let exits = REASON_NAMES.iter().enumerate().map(|(at, name)| (*name, total(|vcpu| &vcpu.exits, at)));
    let grants = privcmd.grant_stats(guest.id)?;
    let sum = |of: fn(&GrantStats) -> u64| grants.iter().map(of).sum::<u64>();
    let mapped = sum(|user| user.read_maps + user.write_maps);
    Ok(DomainStats {
        grants_mapped: mapped,
        grants_mapped_now: mapped.saturating_sub(sum(|user| user.read_unmaps + user.write_unmaps)),
        grants_copied: sum(|user| user.copies),
        grant_bytes_copied: sum(|user| user.copied_bytes),
        pages_of_others_mapped: grants.first().map_or(0, |first| first.mapped_by_it),
        name: guest.name.clone(),
        id: guest.id.raw(),
        exits: exits.filter(|(_, count)| *count != 0).collect(),
        grant_calls: calls(number::HYPERVISOR_GRANT_TABLE_OP),
        event_calls: calls(number::HYPERVISOR_EVENT_CHANNEL_OP),
        devices: devices.stats(guest.id, &grants).context("reading its devices")?,
    })
}
