// SPDX-License-Identifier: MIT OR Apache-2.0
//! What Linux' backends count of each device.
//!
//! Source: Linux `drivers/block/xen-blkback/xenbus.c` (the files in `statistics`), and the statistics that every
//! network interface has.

use std::fs;
use std::path::Path;

use guest_abi::DomId;
use serde::Serialize;

const BACKENDS: &str = "/sys/bus/xen-backend/devices";
const INTERFACES: &str = "/sys/class/net";
/// Bytes of a sector as the block backend counts them.
const SECTOR: u64 = 512;

/// What a device has done since it was connected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum DeviceStats {
    /// A disk.
    Disk {
        /// Its number in the guest.
        number: u32,
        /// Requests to read.
        reads: u64,
        /// Requests to write.
        writes: u64,
        /// Requests to make writes durable.
        flushes: u64,
        /// Requests to discard.
        discards: u64,
        /// Bytes read.
        bytes_read: u64,
        /// Bytes written.
        bytes_written: u64,
        /// Requests that had to wait because there was no memory for them.
        delayed: u64,
    },
    /// A network card.
    Nic {
        /// Its number in the guest.
        number: u32,
        /// The backend's interface.
        interface: String,
        /// Packets that the guest sent.
        packets_sent: u64,
        /// Their bytes.
        bytes_sent: u64,
        /// Packets that the guest received.
        packets_received: u64,
        /// Their bytes.
        bytes_received: u64,
        /// Packets for the guest that were thrown away.
        dropped: u64,
    },
}

/// All devices of a guest, disks first.
#[must_use]
pub fn of_guest(guest: DomId) -> Vec<DeviceStats> {
    of_guest_in(Path::new(BACKENDS), Path::new(INTERFACES), guest)
}

fn of_guest_in(backends: &Path, interfaces: &Path, guest: DomId) -> Vec<DeviceStats> {
    let names = fs::read_dir(backends).into_iter().flatten().flatten();
    let mut devices: Vec<(String, u32)> = names
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let mut parts = name.split('-');
            let (class, domain, number) = (parts.next()?.to_owned(), parts.next()?, parts.next()?);
            (domain.parse() == Ok(guest.raw())).then_some((class, number.parse().ok()?))
        })
        .collect();
    devices.sort();
    let of = |(class, number): (String, u32)| match class.as_str() {
        "vbd" => Some(disk(&backends.join(format!("vbd-{}-{number}/statistics", guest.raw())), number)),
        "vif" => Some(nic(interfaces, format!("vif{}.{number}", guest.raw()), number)),
        _ => None,
    };
    devices.into_iter().filter_map(of).collect()
}

/// A counter in a file; 0 before the backend counts it.
fn count(folder: &Path, name: &str) -> u64 {
    fs::read_to_string(folder.join(name)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn disk(folder: &Path, number: u32) -> DeviceStats {
    DeviceStats::Disk {
        number,
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
fn nic(interfaces: &Path, interface: String, number: u32) -> DeviceStats {
    let folder = interfaces.join(&interface).join("statistics");
    DeviceStats::Nic {
        number,
        packets_sent: count(&folder, "rx_packets"),
        bytes_sent: count(&folder, "rx_bytes"),
        packets_received: count(&folder, "tx_packets"),
        bytes_received: count(&folder, "tx_bytes"),
        dropped: count(&folder, "tx_dropped"),
        interface,
    }
}

impl std::fmt::Display for DeviceStats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Disk { number, reads, writes, flushes, discards, bytes_read, bytes_written, .. } => write!(
                f,
                "disk {number}: {reads} reads ({bytes_read} bytes), {writes} writes ({bytes_written} bytes), {flushes} \
                 flushes, {discards} discards"
            ),
            Self::Nic { interface, packets_sent, bytes_sent, packets_received, bytes_received, dropped, .. } => write!(
                f,
                "network card {interface}: {packets_sent} packets sent ({bytes_sent} bytes), {packets_received} received \
                 ({bytes_received} bytes), {dropped} dropped"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_one_guest_are_found_and_counted_from_its_side() {
        let root = std::env::temp_dir().join(format!("isthmus-stats-{}", std::process::id()));
        let (backends, interfaces) = (root.join("devices"), root.join("net"));
        let put = |path: &Path, name: &str, value: &str| {
            fs::create_dir_all(path).unwrap();
            fs::write(path.join(name), value).unwrap();
        };
        let disk = backends.join("vbd-7-51712/statistics");
        put(&disk, "rd_req", "3\n");
        put(&disk, "rd_sect", "16\n");
        put(&backends.join("vbd-77-51712/statistics"), "rd_req", "9\n");
        fs::create_dir_all(backends.join("vif-7-0")).unwrap();
        put(&interfaces.join("vif7.0/statistics"), "rx_bytes", "1500\n");
        let found = of_guest_in(&backends, &interfaces, DomId::new(7));
        fs::remove_dir_all(root).unwrap();
        let [
            DeviceStats::Disk { reads: 3, bytes_read: 8192, number: 51712, .. },
            DeviceStats::Nic { bytes_sent: 1500, .. },
        ] = &found[..]
        else {
            panic!("{found:?}")
        };
    }
}
