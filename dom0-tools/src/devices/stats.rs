// SPDX-License-Identifier: MIT OR Apache-2.0
//! What Linux' backends have done for each device, and what they have done with the guest's grants for it.
//!
//! Requests and bytes are the backends' own counts. Those of a driver domain stay in it; of its devices only the grants
//! are told.
//!
//! Source: Linux `drivers/block/xen-blkback/xenbus.c` (the files in `statistics`), and the statistics that every
//! network interface has.

use std::fs;
use std::path::Path;

use anyhow::Result;
use guest_abi::DomId;
use guest_abi::isthmus::GrantStats;
use serde::Serialize;

use super::Devices;
use super::halves::Class;
use super::shares::{DeviceGrants, Served, grants, served};

const BACKENDS: &str = "/sys/bus/xen-backend/devices";
const INTERFACES: &str = "/sys/class/net";
/// Bytes of a sector as the block backend counts them.
const SECTOR: u64 = 512;

/// What a device has done since it was connected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceStats {
    /// What it is, and what its backend counts.
    #[serde(flatten)]
    pub work: Work,
    /// The domain that serves it.
    pub backend: u16,
    /// What that domain has done with the guest's grants for it; `None` if too many domains have for that to be known.
    pub grants: Option<DeviceGrants>,
}

/// A device's requests; `None` if dom0 does not serve it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Work {
    /// A disk.
    Disk {
        /// Its number in the guest.
        number: u32,
        /// What its backend counts.
        #[serde(flatten)]
        done: Option<DiskWork>,
    },
    /// A network card.
    Nic {
        /// Its number in the guest.
        number: u32,
        /// The backend's interface.
        interface: String,
        /// What its backend counts.
        #[serde(flatten)]
        done: Option<NicWork>,
    },
}

/// What the block backend counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DiskWork {
    /// Requests to read.
    pub reads: u64,
    /// Requests to write.
    pub writes: u64,
    /// Requests to make writes durable.
    pub flushes: u64,
    /// Requests to discard.
    pub discards: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Requests that had to wait because there was no memory for them.
    pub delayed: u64,
}

/// What the network backend counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NicWork {
    /// Packets that the guest sent.
    pub packets_sent: u64,
    /// Their bytes.
    pub bytes_sent: u64,
    /// Packets that the guest received.
    pub packets_received: u64,
    /// Their bytes.
    pub bytes_received: u64,
    /// Packets for the guest that were thrown away.
    pub dropped: u64,
}

impl Devices {
    /// What all devices of a guest have done, disks first. `users` is what the hypervisor has counted of its grants.
    ///
    /// # Errors
    /// The store does not answer.
    pub fn stats(&mut self, guest: DomId, users: &[GrantStats]) -> Result<Vec<DeviceStats>> {
        let all = served(&mut self.store.all(), guest)?;
        let (backends, interfaces) = (Path::new(BACKENDS), Path::new(INTERFACES));
        let stats = |device: &Served| DeviceStats {
            work: work(backends, interfaces, guest, device),
            backend: device.backend.raw(),
            grants: grants(device, &all, users),
        };
        Ok(all.iter().map(stats).collect())
    }
}

/// A counter in a file; 0 before the backend counts it.
fn count(folder: &Path, name: &str) -> u64 {
    fs::read_to_string(folder.join(name)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn work(backends: &Path, interfaces: &Path, guest: DomId, device: &Served) -> Work {
    let (guest, number, is_here) = (guest.raw(), device.number, device.backend == DomId::DOM0);
    match device.class {
        Class::Vbd => {
            let folder = backends.join(format!("vbd-{guest}-{number}/statistics"));
            Work::Disk { number, done: is_here.then(|| disk(&folder)) }
        }
        Class::Vif => {
            let interface = format!("vif{guest}.{number}");
            let folder = interfaces.join(&interface).join("statistics");
            Work::Nic { number, interface, done: is_here.then(|| nic(&folder)) }
        }
    }
}

fn disk(folder: &Path) -> DiskWork {
    DiskWork {
        reads: count(folder, "rd_req"),
        writes: count(folder, "wr_req"),
        flushes: count(folder, "f_req"),
        discards: count(folder, "ds_req"),
        bytes_read: count(folder, "rd_sect") * SECTOR,
        bytes_written: count(folder, "wr_sect") * SECTOR,
        delayed: count(folder, "oo_req"),
    }
}

/// What the backend receives is what the guest has sent.
fn nic(folder: &Path) -> NicWork {
    NicWork {
        packets_sent: count(folder, "rx_packets"),
        bytes_sent: count(folder, "rx_bytes"),
        packets_received: count(folder, "tx_packets"),
        bytes_received: count(folder, "tx_bytes"),
        dropped: count(folder, "tx_dropped"),
    }
}

impl std::fmt::Display for DeviceStats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let backend = self.backend;
        match &self.work {
            Work::Disk { number, done: Some(done) } => write!(f, "disk {number}: {done}"),
            Work::Disk { number, .. } => write!(f, "disk {number}: domain {backend} counts its requests"),
            Work::Nic { interface, done: Some(done), .. } => write!(f, "network card {interface}: {done}"),
            Work::Nic { interface, .. } => write!(f, "network card {interface}: domain {backend} counts its packets"),
        }?;
        let Some(DeviceGrants { mapped, mapped_now, copied, bytes_copied, together_with }) = &self.grants else {
            return f.write_str("; grants: counted with those of other domains");
        };
        write!(f, "; grants mapped {mapped} times, {mapped_now} now")?;
        if matches!(self.work, Work::Nic { .. }) {
            write!(f, ", {copied} pieces copied ({bytes_copied} bytes)")?;
        }
        if together_with.is_empty() { Ok(()) } else { write!(f, " together with {}", together_with.join(", ")) }
    }
}

impl std::fmt::Display for DiskWork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { reads, writes, flushes, discards, bytes_read, bytes_written, .. } = self;
        write!(
            f,
            "{reads} reads ({bytes_read} bytes), {writes} writes ({bytes_written} bytes), {flushes} flushes, {discards} \
             discards"
        )
    }
}

impl std::fmt::Display for NicWork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { packets_sent, bytes_sent, packets_received, bytes_received, dropped } = self;
        write!(
            f,
            "{packets_sent} packets sent ({bytes_sent} bytes), {packets_received} received ({bytes_received} bytes), \
             {dropped} dropped"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_counted_from_the_guests_side() {
        let root = std::env::temp_dir().join(format!("isthmus-stats-{}", std::process::id()));
        let (backends, interfaces) = (root.join("devices"), root.join("net"));
        let put = |path: &Path, name: &str, value: &str| {
            fs::create_dir_all(path).unwrap();
            fs::write(path.join(name), value).unwrap();
        };
        put(&backends.join("vbd-7-51712/statistics"), "rd_req", "3\n");
        put(&backends.join("vbd-7-51712/statistics"), "rd_sect", "16\n");
        put(&backends.join("vbd-77-51712/statistics"), "rd_req", "9\n");
        put(&interfaces.join("vif7.0/statistics"), "rx_bytes", "1500\n");
        let of = |class, number, backend| {
            let device = Served { class, number, backend, is_persistent: false };
            work(&backends, &interfaces, DomId::new(7), &device)
        };
        let (disk, nic) = (of(Class::Vbd, 51712, DomId::DOM0), of(Class::Vif, 0, DomId::DOM0));
        let elsewhere = of(Class::Vif, 1, DomId::new(3));
        fs::remove_dir_all(root).unwrap();
        assert!(matches!(disk, Work::Disk { done: Some(DiskWork { reads: 3, bytes_read: 8192, .. }), .. }), "{disk:?}");
        assert!(matches!(nic, Work::Nic { done: Some(NicWork { bytes_sent: 1500, .. }), .. }), "{nic:?}");
        assert!(matches!(elsewhere, Work::Nic { done: None, .. }), "{elsewhere:?}");
    }
}
