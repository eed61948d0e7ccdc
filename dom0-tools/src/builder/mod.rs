// SPDX-License-Identifier: MIT OR Apache-2.0
//! Making a guest: from its description to a domain that waits for its first instruction.
//!
//! Everything that can be known to fail is looked at before a domain exists: files, their kind, and whether they
//! fit into the memory ([`Prepared`]). From then on the domain belongs to a guard that destroys it, unless all
//! went well: no error leaves half a domain behind. (A process that is killed in the middle cannot clean up; the
//! supervisor finds what it left by the record that was written before.)
//!
//! The layout is [`pvh_loader`]'s, the same that the hypervisor uses for guests that are boot modules.

mod image;

use std::fmt;
use std::path::PathBuf;

use guest_abi::domctl::{CreateDomain, XEN_DOMCTL_CDF_HAP, XEN_DOMCTL_CDF_HVM, XEN_X86_EMU_LAPIC};
use guest_abi::hvm::{HVM_PARAM_CONSOLE_EVTCHN, HVM_PARAM_CONSOLE_PFN, HVM_PARAM_STORE_EVTCHN, HVM_PARAM_STORE_PFN};
use guest_abi::memory::E820Entry;
use guest_abi::num::to_usize;
use guest_abi::{DomId, EvtchnPort, Gfn, Gpa, GrantRef, PAGE_SIZE, VcpuId};
use pvh_loader::acpi::{self, NoRoom, Tables};
use pvh_loader::bzimage::UnpackError;
use pvh_loader::elf::ElfError;
use pvh_loader::map::{Entry, Kind};
use pvh_loader::plan::{self, GUEST_CONSOLE, GUEST_STORE, GUEST_TABLES, LoadError, Plan, Request, Source};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::config::{GuestConfig, ORDINARY_WEIGHT};
use crate::sys;
use crate::sys::privcmd::Privcmd;
use image::Contents;

/// The grant of the console's page in every guest that a toolstack makes. Source: `grant_table.h`, reserved entries.
const CONSOLE_GRANT: GrantRef = GrantRef::new(0);
/// The grant of xenstore's page.
const STORE_GRANT: GrantRef = GrantRef::new(1);
/// log2 of the frames in a large extent.
const LARGE_ORDER: u32 = 9;
/// Extents that are asked for in one call.
const EXTENTS: usize = 512;
/// Bytes copied between two words of progress.
const COPY_CHUNK: u64 = 8 << 20;
/// Kernels and tools expect at least this many; it costs nothing until it is used.
const MAX_PORTS: u32 = 1023;

/// Why a guest cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A file cannot be used at all.
    #[error("{what} {}: {cause}", path.display())]
    File {
        /// Which one.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// The system's reason.
        cause: std::io::Error,
    },
    /// A kernel is no bzImage that can be unpacked.
    #[error("kernel {}: {cause}", path.display())]
    Unpack {
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        cause: UnpackError,
    },
    /// A kernel cannot be started as a guest.
    #[error("kernel {}: {cause}", path.display())]
    Elf {
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        cause: ElfError,
    },
    /// Something does not fit.
    #[error("{subject}: {cause}")]
    Layout {
        /// What does not.
        subject: String,
        /// Why.
        cause: LoadError,
    },
    /// Too many vCPUs for the tables.
    #[error("{0}")]
    Tables(NoRoom),
    /// The machine has too little memory.
    #[error("memory: {wanted} MiB are wanted and {free} MiB are free; give the guest less, or end another domain")]
    Memory {
        /// What the guest should have.
        wanted: u64,
        /// What the machine had left when it was asked.
        free: u64,
    },
    /// The hypervisor refused a step.
    #[error("{0}")]
    Hypervisor(#[from] sys::Error),
}

/// Whoever wants to know how far it is.
pub trait Progress {
    /// A new step begins.
    fn step(&mut self, what: &str);
    /// So much of the step is done.
    fn done(&mut self, bytes: u64, of: u64);
}

/// Nobody wants to know.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Progress for Silent {
    fn step(&mut self, _: &str) {}
    fn done(&mut self, _: u64, _: u64) {}
}

/// A ring of a guest's: its page, and the guest's port that belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ring {
    /// The page's guest frame.
    pub frame: u64,
    /// The guest's end of the event channel, which waits for dom0.
    pub port: u32,
}

/// A guest that was made and does not run yet.
#[derive(Clone, Copy, Debug)]
pub struct Built {
    /// Its number.
    pub domain: DomId,
    /// Its console.
    pub console: Ring,
    /// Its xenstore ring, if it has one.
    pub store: Option<Ring>,
}

/// What a guest will be, with everything checked that needs no domain.
pub struct Prepared<'a> {
    config: &'a GuestConfig,
    kernel: Contents,
    initrd: Option<Contents>,
    map: Vec<Entry>,
    tables: Tables,
    plan: Plan,
}

impl fmt::Debug for Prepared<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared").field("name", &self.config.name).field("plan.entry", &self.plan.entry).finish()
    }
}

/// Reads a guest's files and lays its memory out.
///
/// # Errors
/// What is wrong with a file, or does not fit.
pub fn prepare<'a>(config: &'a GuestConfig, progress: &mut dyn Progress) -> Result<Prepared<'a>, BuildError> {
    let (contents, kernel) = Contents::kernel(&config.kernel, progress)?;
    let initrd = config.initrd.as_deref().map(Contents::initrd).transpose()?;
    let about = |subject: String| move |cause| BuildError::Layout { subject, cause };
    let map = plan::guest_map(config.memory << 20).map_err(about("memory".to_owned()))?;
    let apic_ids: Vec<u32> = (0..config.vcpus).collect();
    let tables = acpi::for_guest(GUEST_TABLES, &apic_ids).map_err(BuildError::Tables)?;
    let request = Request {
        kernel: &kernel,
        initrd_len: initrd.as_ref().map(Contents::len),
        cmdline: &config.cmdline,
        e820: &map,
        rsdp: tables.rsdp,
        flags: 0,
    };
    let plan = plan::plan(&request).map_err(|cause| {
        let subject = match (&cause, &initrd) {
            (LoadError::Initrd { .. }, Some(initrd)) => format!("initrd {}", initrd.path().display()),
            (LoadError::Cmdline { .. }, _) => "cmdline".to_owned(),
            (LoadError::GuestMem { .. } | LoadError::Memmap { .. }, _) => "memory".to_owned(),
            _ => format!("kernel {}", contents.path().display()),
        };
        BuildError::Layout { subject, cause }
    })?;
    Ok(Prepared { config, kernel: contents, initrd, map, tables, plan })
}

/// A domain that is destroyed unless it is [kept](Guard::keep).
#[derive(Debug)]
pub struct Guard<'a> {
    privcmd: &'a Privcmd,
    domain: Option<DomId>,
}

impl Guard<'_> {
    /// Lets the domain live.
    pub fn keep(mut self) {
        self.domain = None;
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if let Some(domain) = self.domain {
            // There is nobody left to tell; the supervisor looks for what remains.
            let _ = self.privcmd.destroy_domain(domain);
        }
    }
}

/// Makes an empty domain for a description, with a number of its own or with this one.
///
/// # Errors
/// The hypervisor's reason.
pub fn create(
    privcmd: &Privcmd,
    vcpus: u32,
    handle: Uuid,
    number: Option<DomId>,
) -> Result<(DomId, Guard<'_>), BuildError> {
    let wanted = CreateDomain {
        handle: *handle.as_bytes(),
        flags: XEN_DOMCTL_CDF_HVM | XEN_DOMCTL_CDF_HAP,
        max_vcpus: vcpus,
        max_evtchn_port: MAX_PORTS,
        max_grant_frames: -1,
        max_maptrack_frames: -1,
        grant_opts: 1,
        emulation_flags: XEN_X86_EMU_LAPIC,
        ..CreateDomain::default()
    };
    let domain = privcmd.create_domain(&wanted, number)?;
    Ok((domain, Guard { privcmd, domain: Some(domain) }))
}

impl Prepared<'_> {
    /// Gives an empty domain memory, kernel, rings and an entry.
    ///
    /// # Errors
    /// The machine has too little memory, or the hypervisor refused a step.
    pub fn build(&self, privcmd: &Privcmd, domain: DomId, progress: &mut dyn Progress) -> Result<Built, BuildError> {
        privcmd.set_max_vcpus(domain, self.config.vcpus)?;
        if (self.config.weight, self.config.cap) != (ORDINARY_WEIGHT, 0) {
            privcmd.set_share(domain, Some(self.config.weight), Some(self.config.cap))?;
        }
        self.give_memory(privcmd, domain, progress)?;
        self.load(privcmd, domain, progress)?;
        let console = ring(privcmd, domain, GUEST_CONSOLE, HVM_PARAM_CONSOLE_PFN, HVM_PARAM_CONSOLE_EVTCHN)?;
        let mut grants = vec![(CONSOLE_GRANT, GUEST_CONSOLE.gfn())];
        let mut store = None;
        if self.config.xenstore {
            store = Some(ring(privcmd, domain, GUEST_STORE, HVM_PARAM_STORE_PFN, HVM_PARAM_STORE_EVTCHN)?);
            grants.push((STORE_GRANT, GUEST_STORE.gfn()));
        }
        privcmd.seed_grants(domain, DomId::DOM0, &grants)?;
        privcmd.set_pvh_entry(domain, VcpuId::new(0), self.plan.entry, self.plan.start_info)?;
        Ok(Built { domain, console, store })
    }

    fn give_memory(&self, privcmd: &Privcmd, domain: DomId, progress: &mut dyn Progress) -> Result<(), BuildError> {
        progress.step(&format!("giving {domain} {} MiB", self.config.memory));
        let table_frames = self.tables.bytes.len().div_ceil(PAGE_SIZE) as u64;
        let special: Vec<Gfn> =
            frames(self.tables.at, table_frames).chain([GUEST_CONSOLE.gfn(), GUEST_STORE.gfn()]).collect();
        let kib = (self.config.memory << 10) + ((special.len() * PAGE_SIZE) >> 10) as u64;
        privcmd.set_max_memory(domain, kib)?;
        let e820: Vec<E820Entry> = self.map.iter().map(e820_entry).collect();
        privcmd.set_memory_map(domain, &e820)?;
        for ram in self.map.iter().filter(|entry| entry.kind == Kind::Ram) {
            // A guest's memory is whole MiB from 0 or 4 GiB on, so there are at most 256 small pages.
            let (start, end) = (ram.span.start() >> 12, ram.span.end() >> 12);
            let large_end = end & !((1 << LARGE_ORDER) - 1);
            let large: Vec<Gfn> = (start..large_end).step_by(1 << LARGE_ORDER).map(Gfn::new).collect();
            self.populate(privcmd, domain, &large, LARGE_ORDER)?;
            self.populate(privcmd, domain, &(large_end..end).map(Gfn::new).collect::<Vec<_>>(), 0)?;
        }
        self.populate(privcmd, domain, &special, 0)
    }

    fn populate(&self, privcmd: &Privcmd, domain: DomId, all: &[Gfn], order: u32) -> Result<(), BuildError> {
        for extents in all.chunks(EXTENTS) {
            let free = || privcmd.host_info().map_or(0, |info| info.free_frames >> 8);
            let short = || BuildError::Memory { wanted: self.config.memory, free: free() };
            let done = match privcmd.populate(domain, extents, order) {
                Err(sys::Error::Operation { cause: rustix::io::Errno::NOMEM, .. }) => return Err(short()),
                other => other?,
            };
            // The second try finds what the first could not get in one piece of 2 MiB.
            if done < extents.len() && order == 0 {
                return Err(short());
            }
            for first in &extents[done..] {
                let small: Vec<Gfn> = (0..1 << order).filter_map(|i| first.checked_add(i)).collect();
                self.populate(privcmd, domain, &small, 0)?;
            }
        }
        Ok(())
    }

    fn load(&self, privcmd: &Privcmd, domain: DomId, progress: &mut dyn Progress) -> Result<(), BuildError> {
        let total = self.plan.copies.iter().map(|copy| copy.len).sum();
        progress.step(&format!("loading {}", self.kernel.path().display()));
        let mut done = 0;
        for copy in &self.plan.copies {
            let contents = match (copy.source, &self.initrd) {
                (Source::Initrd, Some(initrd)) => initrd,
                _ => &self.kernel,
            };
            let mut part = 0;
            while part < copy.len {
                let length = COPY_CHUNK.min(copy.len - part);
                let to = Gpa::new(copy.to.raw() + part);
                contents.copy(privcmd, domain, to, to_usize(copy.offset + part), to_usize(length))?;
                part += length;
                done += length;
                progress.done(done, total);
            }
        }
        // What the kernel's file leaves out is zero already: a new domain's memory is.
        for (to, bytes) in &self.plan.blobs {
            privcmd.copy_in(domain, *to, bytes)?;
        }
        Ok(privcmd.copy_in(domain, Gpa::new(self.tables.at), &self.tables.bytes)?)
    }
}

fn frames(start: u64, count: u64) -> impl Iterator<Item = Gfn> {
    (0..count).map(move |i| Gfn::new((start >> 12) + i))
}

fn e820_entry(entry: &Entry) -> E820Entry {
    E820Entry { addr: entry.span.start(), size: entry.span.len(), kind: entry.kind.number() }
}

/// Tells a domain the page and the port of a ring.
fn ring(privcmd: &Privcmd, domain: DomId, page: Gpa, frame_param: u32, port_param: u32) -> Result<Ring, BuildError> {
    let port: EvtchnPort = privcmd.alloc_unbound(domain, DomId::DOM0)?;
    privcmd.set_param(domain, frame_param, page.gfn().raw())?;
    privcmd.set_param(domain, port_param, u64::from(port.raw()))?;
    Ok(Ring { frame: page.gfn().raw(), port: port.raw() })
}

#[cfg(test)]
mod tests;
