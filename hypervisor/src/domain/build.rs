// SPDX-License-Identifier: MIT OR Apache-2.0
//! Filling a domain at boot: its memory, its kernel.
//!
//! Two kinds are made here, both at boot. dom0 gets the machine's own memory at the machine's own
//! addresses; a guest from a boot module gets RAM from address 0 up. Both are loaded by the same
//! plan ([`crate::boot::pvh`]). Nothing runs while this goes on, so a failure ends the boot with
//! its reason.

use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use guest_abi::num::to_usize;
use guest_abi::pvh::{SIF_INITDOMAIN, SIF_PRIVILEGED};
use guest_abi::version::XENFEAT_DOM0;
use guest_abi::{DomId, Gfn, Gpa, hvm};
use pvh_loader::acpi::NoRoom;

use super::create::{Blueprint, create};
use super::{Domain, Privileges, console};
use crate::addr::{Mfn, Order, PAGE_SIZE};
use crate::boot::acpi;
use crate::boot::dom0_map::Dom0Map;
use crate::boot::elf::{self, ElfError, Kernel};
use crate::boot::host_map::Kind;
use crate::boot::module::GuestSpec;
use crate::boot::pvh::{self, GUEST_CONSOLE, GUEST_TABLES, LoadError, Plan, Request, Source};
use crate::boot::span::Span;
use crate::evtchn;
use crate::frame::{Fill, FrameError};
use crate::grant;
use crate::hypervisor::Hypervisor;
use crate::p2m::{P2mError, P2mKind};
use crate::room;
use crate::vcpu::RunState;
use crate::vcpu::regs::CpuState;

/// Event-channel ports of a domain.
pub(crate) const MAX_PORTS: u32 = 4096;

/// Why a domain could not be made.
#[derive(Clone, Debug)]
pub enum BuildError {
    /// The kernel's file.
    Kernel(ElfError),
    /// The kernel cannot be dom0, and says so.
    OnlyForGuests,
    /// Kernel, initial RAM disk and command line do not fit.
    Load(LoadError),
    /// The domain's ACPI tables.
    Tables(NoRoom),
    /// Event channels.
    Events(evtchn::Error),
    /// Frames.
    Frames(FrameError),
    /// The p2m.
    P2m(P2mError),
    /// The hypervisor's heap is full.
    NoHeap,
    /// A domain cannot have that many.
    TooManyVcpus(u32),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel(error) => error.fmt(f),
            Self::OnlyForGuests => write!(
                f,
                "the kernel was built without CONFIG_XEN_DOM0, as Debian's cloud flavour is; take another one, such as \
                 linux-image-amd64"
            ),
            Self::Load(error) => error.fmt(f),
            Self::Tables(error) => error.fmt(f),
            Self::Events(error) => write!(f, "event channels: {error:?}"),
            Self::Frames(FrameError::NoMemory) => {
                write!(f, "not enough free memory; give it less, or the machine more")
            }
            Self::Frames(error) => write!(f, "memory: {error:?}"),
            Self::P2m(P2mError::Frame(FrameError::NoMemory)) => {
                write!(f, "not enough free memory; give it less, or the machine more")
            }
            Self::P2m(error) => write!(f, "memory map: {error:?}"),
            Self::NoHeap => write!(f, "the hypervisor's heap is full"),
            Self::TooManyVcpus(count) => write!(f, "{count} vCPUs are more than the 32 that a domain can have"),
        }
    }
}

macro_rules! from_error {
    ($($error:ty => $variant:ident),*) => {$(
        impl From<$error> for BuildError {
            fn from(error: $error) -> Self {
                Self::$variant(error)
            }
        }
    )*};
}
from_error!(ElfError => Kernel, LoadError => Load, NoRoom => Tables, evtchn::Error => Events, FrameError => Frames, P2mError => P2m);

impl From<room::Full> for BuildError {
    fn from(_: room::Full) -> Self {
        Self::NoHeap
    }
}

/// What a domain is loaded from.
#[derive(Clone, Copy)]
pub struct Images<'a> {
    /// The kernel's file.
    pub kernel: &'a [u8],
    /// The initial RAM disk.
    pub initrd: Option<&'a [u8]>,
    /// The kernel's command line.
    pub cmdline: &'a str,
}

/// Makes a guest from a boot module, ready to run.
///
/// # Errors
/// What is wrong with the module, or which resource is lacking.
pub fn guest(
    hv: &'static Hypervisor,
    id: DomId,
    spec: &GuestSpec<'_>,
    images: Images<'_>,
) -> Result<Arc<Domain>, BuildError> {
    let kernel = elf::parse(images.kernel)?;
    let e820 = pvh::guest_map(spec.mem)?;
    let special = 1 + GUEST_TABLES.len() / PAGE_SIZE as u64;
    let domain = create(
        hv,
        Blueprint {
            id,
            name: spec.name.to_string(),
            handle: [0; 16],
            privileges: if spec.control { Privileges::CONTROL } else { Privileges::empty() },
            nr_vcpus: spec.vcpus,
            max_ports: MAX_PORTS,
            grants: grant::Limits::default(),
            max_ram_frames: (spec.mem / PAGE_SIZE as u64) + special,
            e820,
            tsc_offset: hv.machine.tsc().raw().wrapping_neg(),
            echoes: true,
        },
    )?;
    for entry in domain.e820.lock().iter().filter(|entry| entry.kind == Kind::Ram) {
        populate(&domain, entry.span)?;
    }
    let rsdp = add_tables(hv, &domain)?;
    add_log_ring(&domain)?;
    load(hv, &domain, &kernel, images, rsdp, 0)?;
    Ok(domain)
}

/// Makes dom0, ready to run. `tables` are its rewritten ACPI tables.
///
/// # Errors
/// As [`guest`].
pub fn dom0(
    hv: &'static Hypervisor,
    map: &Dom0Map,
    nr_vcpus: u32,
    tables: &acpi::build::Tables,
    images: Images<'_>,
) -> Result<Arc<Domain>, BuildError> {
    let kernel = elf::parse(images.kernel)?;
    if kernel.features.is_some_and(|features| features & 1 << XENFEAT_DOM0 == 0) {
        return Err(BuildError::OnlyForGuests);
    }
    let frames = (map.ram.total() + map.tables.len()) / PAGE_SIZE as u64;
    let domain = create(
        hv,
        Blueprint {
            id: DomId::DOM0,
            name: "dom0".to_string(),
            handle: [0; 16],
            privileges: Privileges::all(),
            nr_vcpus,
            max_ports: MAX_PORTS,
            grants: grant::Limits::default(),
            max_ram_frames: frames,
            e820: map.e820.clone(),
            tsc_offset: 0,
            echoes: true,
        },
    )?;
    {
        let mut p2m = domain.p2m.lock();
        for span in map.ram.iter().chain([map.tables]) {
            let range = mfns(span);
            hv.frames.reserve_for_dom0(range.clone(), domain.id)?;
            p2m.map_range_identity(range, P2mKind::Ram)?;
        }
        for span in map.identity.iter() {
            // The firmware's tables in RAM are never dom0's to own; it reads them as it would a ROM.
            p2m.map_range_identity(mfns(span), P2mKind::Mmio)?;
        }
    }
    write_phys(hv, &domain, Gpa::new(tables.at), &tables.bytes);
    load(hv, &domain, &kernel, images, tables.rsdp, SIF_PRIVILEGED | SIF_INITDOMAIN)?;
    Ok(domain)
}

/// Lets a domain that was made at boot run.
pub fn start(hv: &Hypervisor, domain: Arc<Domain>) {
    domain.life.unpause();
    hv.domains.insert(domain.clone());
    domain.kick_all();
}

fn mfns(span: Span) -> core::ops::Range<Mfn> {
    Mfn::new(span.start() / PAGE_SIZE as u64)..Mfn::new(span.end() / PAGE_SIZE as u64)
}

/// Gives a domain RAM for a range of its addresses.
fn populate(domain: &Domain, span: Span) -> Result<(), BuildError> {
    let mut p2m = domain.p2m.lock();
    let (mut at, end) = (span.start() / PAGE_SIZE as u64, span.end() / PAGE_SIZE as u64);
    while at < end {
        at += p2m.populate_some(Gfn::new(at), end - at, Fill::Zeroed)?;
    }
    Ok(())
}

/// ACPI tables for a guest; returns the address of the root pointer.
fn add_tables(hv: &Hypervisor, domain: &Domain) -> Result<u64, BuildError> {
    let ids: Vec<u32> = domain.vcpus.iter().map(|vcpu| vcpu.apic_id).collect();
    let tables = acpi::build::for_guest(GUEST_TABLES, &ids)?;
    populate(domain, GUEST_TABLES)?;
    write_phys(hv, domain, Gpa::new(tables.at), &tables.bytes);
    Ok(tables.rsdp)
}

/// A console ring that the hypervisor itself drains into its log, for a guest that has no backend.
fn add_log_ring(domain: &Domain) -> Result<(), BuildError> {
    let mfn = domain.p2m.lock().populate(GUEST_CONSOLE.gfn(), Order::PAGE, crate::p2m::Backing::Free(Fill::Zeroed))?;
    // The hypervisor reads and writes the frame whatever the guest has done with its page since.
    domain.pin(domain.p2m_view.frames().get(mfn, domain.id)?).map_err(|_| BuildError::NoHeap)?;
    let port = domain.events.alloc_unbound(DomId::XEN)?;
    domain.set_param(hvm::HVM_PARAM_CONSOLE_PFN, GUEST_CONSOLE.gfn().raw());
    domain.set_param(hvm::HVM_PARAM_CONSOLE_EVTCHN, u64::from(port.raw()));
    domain.log_ring.call_once(|| console::LogRing { mfn, port });
    Ok(())
}

fn load(
    hv: &Hypervisor,
    domain: &Domain,
    kernel: &Kernel,
    images: Images<'_>,
    rsdp: u64,
    flags: u32,
) -> Result<(), BuildError> {
    let initrd_len = images.initrd.map(|bytes| bytes.len() as u64);
    let e820 = domain.e820.lock();
    let plan = pvh::plan(&Request { kernel, initrd_len, cmdline: images.cmdline, e820: &e820, rsdp, flags })?;
    drop(e820);
    for copy in &plan.copies {
        let source = match copy.source {
            Source::Kernel => images.kernel,
            Source::Initrd => images.initrd.unwrap_or(&[]),
        };
        let first = to_usize(copy.offset);
        write_phys(hv, domain, copy.to, &source[first..first + to_usize(copy.len)]);
    }
    for span in &plan.zero {
        zero_phys(hv, domain, *span);
    }
    for (to, bytes) in &plan.blobs {
        write_phys(hv, domain, *to, bytes);
    }
    start_first_vcpu(domain, &plan);
    log::info!(
        "{} ({}): {} MiB, {} vCPU, enters at {:#x}, start info at {:#x}",
        domain.id,
        domain.name,
        hv.frames.account(domain.id).map_or(0, |(usage, _)| usage.ram >> 8),
        domain.vcpus.len(),
        plan.entry,
        plan.start_info
    );
    Ok(())
}

fn start_first_vcpu(domain: &Domain, plan: &Plan) {
    let Some(first) = domain.vcpus.first() else { return };
    let mut state = first.state();
    state.hw.set_state(&CpuState::pvh_entry(plan.entry));
    state.regs.rbx = u64::from(plan.start_info);
    drop(state);
    first.set_run_state(RunState::Runnable);
}

/// Calls `act` for each part of a range that lies in one frame: frame, offset, how far, length.
fn each_frame(domain: &Domain, at: u64, len: usize, mut act: impl FnMut(Mfn, usize, usize, usize)) {
    let mut done = 0;
    while done < len {
        let gpa = Gpa::new(at + done as u64);
        let part = (PAGE_SIZE - gpa.page_offset()).min(len - done);
        // The plan lies in RAM of the domain's map, all of which has been populated.
        let Some(leaf) = domain.p2m_view.lookup(gpa.gfn()) else { unreachable!("{gpa:?} is not mapped") };
        act(leaf.mfn, gpa.page_offset(), done, part);
        done += part;
    }
}

/// Writes a domain's memory while it is being built.
pub(crate) fn write_phys(hv: &Hypervisor, domain: &Domain, to: Gpa, bytes: &[u8]) {
    each_frame(domain, to.raw(), bytes.len(), |mfn, offset, done, part| {
        hv.mem.write(mfn, offset, &bytes[done..done + part]);
    });
}

fn zero_phys(hv: &Hypervisor, domain: &Domain, span: Span) {
    const ZEROES: [u8; PAGE_SIZE] = [0; PAGE_SIZE];
    each_frame(domain, span.start(), to_usize(span.len()), |mfn, offset, _, part| {
        hv.mem.write(mfn, offset, &ZEROES[..part]);
    });
}

#[cfg(test)]
mod tests;
