// SPDX-License-Identifier: MIT OR Apache-2.0
//! Making a domain: an empty one, its memory, its kernel.
//!
//! Two kinds are made here, both at boot. dom0 gets the machine's own memory at the machine's own
//! addresses; a guest from a boot module gets RAM from address 0 up. Both are loaded by the same
//! plan ([`crate::boot::pvh`]). Nothing runs while this goes on, so a failure ends the boot with
//! its reason.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_abi::num::to_usize;
use guest_abi::pvh::{SIF_INITDOMAIN, SIF_PRIVILEGED};
use guest_abi::{DomId, Gfn, Gpa, VcpuId, hvm};
use pvh_loader::acpi::NoRoom;
use spin::Once;

use super::{Domain, Life, NR_HVM_PARAMS, Privileges, console};
use crate::addr::{Hpa, Mfn, Order, PAGE_SIZE};
use crate::backend::VcpuConfig;
use crate::boot::acpi;
use crate::boot::dom0_map::{Caching, Dom0Map};
use crate::boot::elf::{self, ElfError, Kernel};
use crate::boot::host_map::{Entry, Kind};
use crate::boot::module::GuestSpec;
use crate::boot::pvh::{self, GUEST_CONSOLE, GUEST_TABLES, LoadError, Plan, Request, Source};
use crate::boot::span::Span;
use crate::evtchn::{self, EventChannels};
use crate::frame::{Fill, FrameError, FrameType, Limits};
use crate::grant::{self, GrantTable};
use crate::hypervisor::Hypervisor;
use crate::lock::{Lock, Rank};
use crate::p2m::{P2m, P2mError, P2mKind};
use crate::policy::control::ControlPolicy;
use crate::policy::cpuid::{CpuidParams, CpuidPolicy};
use crate::policy::msr::MsrPolicy;
use crate::vcpu::regs::CpuState;
use crate::vcpu::{RunState, Vcpu};

/// Event-channel ports of a domain.
const MAX_PORTS: u32 = 4096;
/// Frames in a port-permission map: 8 KiB of bits and what SVM reads behind them.
const IO_MAP_ORDER: u8 = 2;

/// Ports that dom0 does not get although it owns the devices: PICs, PIT, speaker gate, fast reset, DMA
/// controllers (0x80 is the delay port that everybody writes), debug console.
const WITHHELD_PORTS: [(u16, u16); 10] = [
    (0x00, 0x1f),
    (0x20, 0x21),
    (0x40, 0x43),
    (0x61, 0x61),
    (0x81, 0x8f),
    (0x92, 0x92),
    (0xa0, 0xa1),
    (0xc0, 0xdf),
    (0xe9, 0xe9),
    (0x4d0, 0x4d1),
];
/// The UART that the hypervisor keeps.
const COM1_PORTS: (u16, u16) = (0x3f8, 0x3ff);

/// Why a domain could not be made.
#[derive(Clone, Debug)]
pub enum BuildError {
    /// The kernel's file.
    Kernel(ElfError),
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
    /// No memory for the vCPUs' hardware state.
    NoVcpuMemory,
    /// A domain cannot have that many.
    TooManyVcpus(u32),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel(error) => error.fmt(f),
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
            Self::NoVcpuMemory => write!(f, "the hypervisor's heap is full"),
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

/// A domain without memory.
pub(crate) struct Blueprint {
    pub(crate) id: DomId,
    pub(crate) name: String,
    pub(crate) privileges: Privileges,
    pub(crate) nr_vcpus: u32,
    pub(crate) max_ram_frames: u64,
    pub(crate) e820: Vec<Entry>,
    pub(crate) tsc_offset: u64,
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
            privileges: Privileges::empty(),
            nr_vcpus: spec.vcpus,
            max_ram_frames: (spec.mem / PAGE_SIZE as u64) + special,
            e820,
            tsc_offset: hv.machine.tsc().raw().wrapping_neg(),
        },
    )?;
    for entry in domain.e820.iter().filter(|entry| entry.kind == Kind::Ram) {
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
    let frames = (map.ram.total() + map.tables.len()) / PAGE_SIZE as u64;
    let domain = create(
        hv,
        Blueprint {
            id: DomId::DOM0,
            name: "dom0".to_string(),
            privileges: Privileges::all(),
            nr_vcpus,
            max_ram_frames: frames,
            e820: map.e820.clone(),
            tsc_offset: 0,
        },
    )?;
    {
        let mut p2m = domain.p2m.lock();
        for span in map.ram.iter().chain([map.tables]) {
            let range = mfns(span);
            hv.frames.reserve_for_dom0(range.clone(), domain.id)?;
            p2m.map_range_identity(range, P2mKind::Ram)?;
        }
        for identity in &map.identity {
            // Tables in RAM are never dom0's to own; it reads them as it would a ROM.
            let (Caching::Device | Caching::Memory) = identity.caching;
            p2m.map_range_identity(mfns(identity.span), P2mKind::Mmio)?;
        }
    }
    write_phys(hv, &domain, Gpa::new(tables.at), &tables.bytes);
    load(hv, &domain, &kernel, images, tables.rsdp, SIF_PRIVILEGED | SIF_INITDOMAIN)?;
    Ok(domain)
}

/// Lets a domain that was made at boot run.
pub fn start(hv: &Hypervisor, domain: Arc<Domain>) {
    domain.life.unpause();
    hv.domains.insert(domain);
}

fn mfns(span: Span) -> core::ops::Range<Mfn> {
    Mfn::new(span.start() / PAGE_SIZE as u64)..Mfn::new(span.end() / PAGE_SIZE as u64)
}

pub(crate) fn create(hv: &'static Hypervisor, plan: Blueprint) -> Result<Arc<Domain>, BuildError> {
    const MAX_VCPUS: u32 = 32;
    if plan.nr_vcpus == 0 || plan.nr_vcpus > MAX_VCPUS {
        return Err(BuildError::TooManyVcpus(plan.nr_vcpus));
    }
    hv.frames.open_account(plan.id, Limits { ram: plan.max_ram_frames, overhead: u64::MAX })?;
    let tag = plan.id.raw() + 1;
    let p2m = P2m::new(hv.frames, plan.id, hv.format, tag, hv.largest_leaf)?;
    let shared_info = hv.frames.alloc(Order::PAGE, plan.id, FrameType::Shared, Fill::Zeroed)?;
    let events = EventChannels::new(plan.id, hv.mem, shared_info, plan.nr_vcpus, MAX_PORTS)?;
    let cpuid = CpuidPolicy::new(
        &|leaf, subleaf| hv.machine.cpuid(leaf, subleaf),
        &CpuidParams {
            nr_vcpus: plan.nr_vcpus,
            max_apic_id: plan.nr_vcpus - 1,
            phys_bits: hv.phys_bits,
            tsc: hv.clock.scale(),
            is_tsc_invariant: hv.is_tsc_stable,
            xcr0: hv.machine.supported_xcr0(),
            has_rdtscp: hv.machine.cpuid(0x8000_0001, 0).edx & 1 << 27 != 0,
            has_invpcid: hv.machine.cpuid(7, 0).ebx & 1 << 10 != 0,
        },
    );
    let (p2m_view, tlb) = (p2m.view(), p2m.tlb().clone());
    let io_bitmap = io_bitmap(hv, &plan)?;
    let config = VcpuConfig { p2m_root: tlb.root(), io_bitmap, tlb_tag: tag, phys_bits: hv.phys_bits };
    let mut vcpus = Vec::new();
    for id in 0..plan.nr_vcpus {
        let mut hw = hv.machine.new_vcpu(&config).ok_or(BuildError::NoVcpuMemory)?;
        hw.set_tsc_offset(plan.tsc_offset);
        vcpus.push(Vcpu::new(VcpuId::new(id), id, hw, p2m_view));
    }
    let domain = Arc::new(Domain {
        id: plan.id,
        name: plan.name,
        privileges: plan.privileges,
        p2m: Lock::for_domain(Rank::P2m, plan.id, p2m),
        p2m_view,
        tlb,
        events,
        grants: GrantTable::new(plan.id, hv.frames, grant::Limits::default()),
        shared_info,
        hvm_params: [const { AtomicU64::new(0) }; NR_HVM_PARAMS],
        vcpus: vcpus.into_boxed_slice(),
        msr: MsrPolicy::new(&cpuid),
        control: ControlPolicy::new(&cpuid),
        cpuid,
        tsc_offset: plan.tsc_offset,
        e820: plan.e820.into_boxed_slice(),
        ioapics: Once::new(),
        console: Lock::for_domain(Rank::Console, plan.id, console::LineBuffer::new(hv.machine)),
        log_ring: Once::new(),
        attention: hv.attention,
        callback: AtomicU64::new(0),
        life: Life::new(),
    });
    domain.write_clocks(hv);
    Ok(domain)
}

/// The port-permission map: everything exits for a guest, what is withheld exits for dom0.
fn io_bitmap(hv: &Hypervisor, plan: &Blueprint) -> Result<Hpa, BuildError> {
    let order = Order::new(IO_MAP_ORDER).ok_or(BuildError::NoVcpuMemory)?;
    let first = hv.frames.alloc(order, plan.id, FrameType::Shared, Fill::Overwritten)?;
    let owns_devices = plan.privileges.contains(Privileges::HARDWARE);
    for frame in 0..order.frames() {
        let fill = if owns_devices && frame < 2 { 0 } else { u64::MAX };
        for word in hv.mem.frame(first.offset(frame)) {
            word.store(fill, Ordering::Relaxed);
        }
    }
    if owns_devices {
        let uart = hv.keeps_com1.then_some(COM1_PORTS);
        for (low, high) in WITHHELD_PORTS.into_iter().chain(uart) {
            for port in u64::from(low)..=u64::from(high) {
                let frame = first.offset(port / (8 * PAGE_SIZE as u64));
                hv.mem.word(frame, to_usize(port / 64)).fetch_or(1 << (port % 64), Ordering::Relaxed);
            }
        }
    }
    Ok(first.base())
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
    // The hypervisor reads and writes the frame whatever the guest has done with its page since, so it
    // stays the guest's for good: the reference is never put.
    core::mem::forget(domain.p2m_view.frames().get(mfn, domain.id)?);
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
    let request = Request { kernel, initrd_len, cmdline: images.cmdline, e820: &domain.e820, rsdp, flags };
    let plan = pvh::plan(&request)?;
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
