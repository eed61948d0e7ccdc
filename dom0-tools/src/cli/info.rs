// SPDX-License-Identifier: MIT OR Apache-2.0
//! `isthmus info`: the hypervisor below, and the machine as it sees it.

use std::fmt::Write;

use anyhow::{Context, Result, bail};
use guest_abi::isthmus::{BACKEND_SVM, BACKEND_VMX, FEATURE_NAMES, HostInfo, IOMMU_IN_USE, IOMMU_NONE, IOMMU_UNUSED};
use serde::Serialize;

use crate::sys::privcmd::Privcmd;

const TYPE: &str = "/sys/hypervisor/type";
const FRAME_KIB: u64 = 4;

/// What is known of the hypervisor.
#[derive(Debug, Serialize)]
struct Info {
    /// What the kernel calls the interface.
    interface: String,
    version: String,
    capabilities: Vec<String>,
    changeset: String,
    uuid: String,
    /// Memory of this domain.
    domain_memory_kib: u64,
    /// The buffer that DMA goes through (the kernel's swiotlb); absent where the kernel does not tell.
    dma_buffer_kib: Option<u64>,
    /// Absent when the hypervisor is not Isthmus, or this domain does not control others.
    host: Option<Host>,
}

#[derive(Debug, Serialize)]
struct Host {
    version: String,
    backend: &'static str,
    features: Vec<&'static str>,
    tsc_khz: u64,
    uptime_ns: u64,
    iommu: &'static str,
    cpus: u32,
    present_cpus: u32,
    domains: u32,
    memory_kib: u64,
    free_kib: u64,
    clean_kib: u64,
    hypervisor_kib: u64,
    image_bytes: u64,
    heap_used_bytes: u64,
    heap_bytes: u64,
    domain_overhead_kib: u64,
    physical_address_bits: u32,
    largest_page_bits: u32,
}

/// Where the kernel tells how many slots of [`SLOT_KIB`] its DMA buffer has. Source: Linux
/// `kernel/dma/swiotlb.c`.
const DMA_SLOTS: &str = "/sys/kernel/debug/swiotlb/io_tlb_nslabs";
const SLOT_KIB: u64 = 2;

fn dma_buffer_kib() -> Option<u64> {
    Some(file(DMA_SLOTS).ok()?.parse::<u64>().ok()?.saturating_mul(SLOT_KIB))
}

/// Checks that dom0's devices cannot be handed a page of another domain by its guest frame number: an IOMMU
/// confines them, or the kernel copies through a buffer of its own.
///
/// # Errors
/// Neither is so, or it cannot be told.
pub fn check_dma() -> Result<()> {
    let info = Info::read()?;
    if info.host.as_ref().is_some_and(|host| host.iommu.starts_with("in use")) {
        return Ok(());
    }
    match info.dma_buffer_kib {
        Some(0) => bail!(
            "no IOMMU is in use and this kernel has no buffer for DMA (swiotlb): devices could write into pages of \
             other domains. Give dom0 more memory below 4 GiB, and leave swiotlb=force on its command line"
        ),
        Some(_) => Ok(()),
        None => bail!("{DMA_SLOTS} cannot be read: is debugfs mounted?"),
    }
}

/// Prints the information.
///
/// # Errors
/// This is no domain, or not root.
pub fn run(json: bool) -> Result<()> {
    let info = Info::read()?;
    if json {
        println!("{}", serde_json::to_string_pretty(&info)?);
    } else {
        print!("{}", info.to_text());
    }
    Ok(())
}

impl Info {
    fn read() -> Result<Self> {
        let interface = file(TYPE)
            .with_context(|| format!("{TYPE} does not exist: no hypervisor that this kernel knows is below"))?;
        let privcmd = Privcmd::open()?;
        let (major, minor) = privcmd.version()?;
        Ok(Self {
            interface,
            version: format!("{major}.{minor}{}", privcmd.extra_version()?),
            capabilities: privcmd.capabilities()?.split_whitespace().map(str::to_owned).collect(),
            changeset: privcmd.changeset().unwrap_or_default(),
            uuid: file("/sys/hypervisor/uuid").unwrap_or_default(),
            domain_memory_kib: domain_memory_kib()?,
            dma_buffer_kib: dma_buffer_kib(),
            host: privcmd.host_info().ok().as_ref().map(Host::of),
        })
    }

    fn to_text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{:<16}{value}", format!("{name}:"));
        };
        line("interface", format!("{} {}", self.interface, self.version));
        line("guests", self.capabilities.join(" "));
        if !self.changeset.is_empty() {
            line("changeset", self.changeset.clone());
        }
        line("this domain", format!("{} MiB", self.domain_memory_kib / 1024));
        line(
            "DMA buffer",
            match self.dma_buffer_kib {
                Some(0) => "none".to_owned(),
                Some(size) => format!("{} MiB", size / 1024),
                None => "not told (is debugfs mounted?)".to_owned(),
            },
        );
        let Some(host) = &self.host else {
            line("host", "not told (another hypervisor, or not the control domain)".to_owned());
            return text;
        };
        line("hypervisor", format!("Isthmus {}, up {} s", host.version, host.uptime_ns / 1_000_000_000));
        line("CPUs", format!("{} of {}, {}", host.cpus, host.present_cpus, host.backend));
        line("features", host.features.join(" "));
        line("TSC", format!("{} kHz", host.tsc_khz));
        line(
            "memory",
            format!(
                "{} MiB, {} MiB free ({} MiB clean)",
                host.memory_kib >> 10,
                host.free_kib >> 10,
                host.clean_kib >> 10
            ),
        );
        line(
            "hypervisor uses",
            format!(
                "{} KiB: image {} KiB, heap {} of {} KiB; for domains {} KiB",
                host.hypervisor_kib,
                host.image_bytes >> 10,
                host.heap_used_bytes >> 10,
                host.heap_bytes >> 10,
                host.domain_overhead_kib
            ),
        );
        line("domains", host.domains.to_string());
        line("IOMMU", host.iommu.to_owned());
        text
    }
}

impl Host {
    fn of(raw: &HostInfo) -> Self {
        let features = FEATURE_NAMES.iter().enumerate();
        Self {
            version: String::from_utf8_lossy(&raw.version).trim_end_matches('\0').to_owned(),
            backend: match raw.backend {
                BACKEND_SVM => "AMD-V",
                BACKEND_VMX => "VT-x",
                _ => "unknown",
            },
            features: features.filter(|(bit, _)| raw.features >> bit & 1 != 0).map(|(_, name)| *name).collect(),
            tsc_khz: raw.tsc_khz,
            uptime_ns: raw.uptime_ns,
            iommu: match raw.iommu {
                IOMMU_NONE => "none: dom0's devices reach all memory",
                IOMMU_UNUSED => "present, not used: dom0's devices reach all memory",
                IOMMU_IN_USE => "in use: dom0's devices are confined",
                _ => "unknown",
            },
            cpus: raw.nr_pcpus,
            present_cpus: raw.nr_present_cpus,
            domains: raw.nr_domains,
            memory_kib: raw.total_frames.saturating_mul(FRAME_KIB),
            free_kib: raw.free_frames.saturating_mul(FRAME_KIB),
            clean_kib: raw.clean_frames.saturating_mul(FRAME_KIB),
            hypervisor_kib: raw.hypervisor_frames.saturating_mul(FRAME_KIB),
            image_bytes: raw.image_bytes,
            heap_used_bytes: raw.heap_used,
            heap_bytes: raw.heap_size,
            domain_overhead_kib: raw.overhead_frames.saturating_mul(FRAME_KIB),
            physical_address_bits: raw.phys_bits,
            largest_page_bits: raw.largest_page_shift,
        }
    }
}

fn file(path: &str) -> Result<String> {
    Ok(std::fs::read_to_string(path).with_context(|| format!("reading {path}"))?.trim().to_owned())
}

fn domain_memory_kib() -> Result<u64> {
    let text = file("/proc/meminfo")?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().split(' ').next()?.parse().ok());
    match kib {
        Some(kib) => Ok(kib),
        None => bail!("/proc/meminfo has no MemTotal"),
    }
}

#[cfg(test)]
mod tests {
    use guest_abi::isthmus::{BACKEND_VMX, FEATURE_PML, FEATURE_X2APIC, HostInfo};

    use super::{Host, Info};

    #[test]
    fn the_text_says_what_confines_devices_and_which_features_are_used() {
        let raw = HostInfo {
            backend: BACKEND_VMX,
            features: FEATURE_X2APIC | FEATURE_PML,
            total_frames: 1 << 19,
            version: *b"0.1.0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            ..HostInfo::default()
        };
        let info = Info {
            interface: "xen".into(),
            version: "4.17.0".into(),
            capabilities: vec!["hvm-3.0-x86_64".into()],
            changeset: String::new(),
            uuid: String::new(),
            domain_memory_kib: 1 << 20,
            dma_buffer_kib: Some(65536),
            host: Some(Host::of(&raw)),
        };
        let text = info.to_text();
        for words in ["Isthmus 0.1.0,", "VT-x", "x2apic pml\n", "2048 MiB", "dom0's devices reach all memory"] {
            assert!(text.contains(words), "{words} in {text}");
        }
    }
}
