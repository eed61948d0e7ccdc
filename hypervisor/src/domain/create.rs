// SPDX-License-Identifier: MIT OR Apache-2.0
//! A domain without memory: everything that it has from its first moment to its last.
//!
//! Every piece is asked for before it is needed and can be refused. What was got before a refusal is
//! given back by [`Estate::settle`], which is also what ends a domain's last piece when it is
//! destroyed, so the two cannot drift apart.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arrayvec::ArrayVec;
use guest_abi::isthmus::CONSOLE_KEPT;
use guest_abi::num::{low_u32, to_usize};
use guest_abi::{DomId, VcpuId};
use spin::Once;

use super::build::BuildError;
use super::sched_params::SchedParams;
use super::{Domain, Life, MAX_VCPUS, NR_HVM_PARAMS, Privileges, console};
use crate::addr::{Mfn, Order, PAGE_SIZE};
use crate::backend::VcpuConfig;
use crate::boot::host_map::Entry;
use crate::evtchn::EventChannels;
use crate::frame::{Fill, FrameType, Limits};
use crate::grant::{self, GrantTable};
use crate::hypervisor::Hypervisor;
use crate::lock::{Lock, Rank};
use crate::p2m::P2m;
use crate::policy::control::ControlPolicy;
use crate::policy::cpuid::{CpuidParams, CpuidPolicy};
use crate::policy::msr::MsrPolicy;
use crate::room;
use crate::vcpu::Vcpu;

/// Frames in a port-permission map: 8 KiB of bits and what SVM reads behind them.
const IO_MAP_ORDER: u8 = 2;
/// Frames of a domain's log-only console.
const CONSOLE_ORDER: u8 = 1;
const _: () = assert!(CONSOLE_KEPT == PAGE_SIZE << CONSOLE_ORDER);
/// Heap that one vCPU takes outside of [`Vcpu`]: VMCB or VMCS, saved FPU state, event state.
const HEAP_PER_VCPU: usize = 12 << 10;
/// Frames of a domain besides its page tables and its grant table: shared page and console.
const FIXED_FRAMES: usize = 1 + (1 << CONSOLE_ORDER);
// What an idle domain with one vCPU takes of the machine, page tables and grant frames aside.
const _: () = assert!(size_of::<Domain>() + size_of::<Vcpu>() + HEAP_PER_VCPU + FIXED_FRAMES * PAGE_SIZE <= 48 << 10);

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

/// A domain without memory.
pub(crate) struct Blueprint {
    pub(crate) id: DomId,
    pub(crate) name: String,
    pub(crate) handle: [u8; 16],
    pub(crate) privileges: Privileges,
    pub(crate) nr_vcpus: u32,
    pub(crate) max_ports: u32,
    pub(crate) grants: grant::Limits,
    pub(crate) max_ram_frames: u64,
    pub(crate) e820: Vec<Entry>,
    pub(crate) tsc_offset: u64,
    /// Whether what it logs also appears on the hypervisor's console.
    pub(crate) echoes: bool,
}

/// What a domain that may hold so many frames of RAM may hold of others: tables, grant frames, its
/// shared pages. Enough for a table of single pages with all of its grants mapped in one place each.
pub(crate) fn limits(max_ram_frames: u64, privileges: Privileges) -> Limits {
    const FIXED: u64 = 1024;
    let overhead = if privileges.contains(Privileges::HARDWARE) { u64::MAX } else { FIXED + max_ram_frames / 256 };
    Limits { ram: max_ram_frames, overhead }
}

/// Frames that a domain holds besides its RAM and its grant table, whatever it does.
#[derive(Default)]
pub(super) struct Estate {
    pub(super) p2m: Option<P2m>,
    pub(super) shared_info: Option<Mfn>,
    pub(super) console: Option<Mfn>,
    /// The port-permission map, if it is not the one that all guests share.
    pub(super) io_map: Option<Mfn>,
}

impl Estate {
    /// Gives back everything but the p2m.
    pub(super) fn settle_pages(&mut self, hv: &Hypervisor, id: DomId) {
        let io_map = self.io_map.take().map(|first| (first, IO_MAP_ORDER));
        let console = self.console.take().map(|first| (first, CONSOLE_ORDER));
        let shared_info = self.shared_info.take().map(|first| (first, Order::PAGE.raw()));
        for (first, order) in [io_map, console, shared_info].into_iter().flatten() {
            for step in 0..1 << order {
                let given_up = hv.frames.give_up(first.offset(step), Order::PAGE, id);
                debug_assert!(given_up.is_ok(), "{id}'s own page is not its own: {given_up:?}");
            }
        }
    }

    /// Gives everything back, and ends the account.
    fn settle(mut self, hv: &Hypervisor, id: DomId) {
        self.settle_pages(hv, id);
        if let Some(p2m) = self.p2m.take() {
            p2m.free(hv.machine);
        }
        let closed = hv.frames.close_account(id);
        debug_assert!(closed.is_ok(), "a domain that was not made holds frames: {closed:?}");
    }
}

/// Makes a domain without memory, paused, with its vCPUs down. Nobody else can find it yet.
///
/// # Errors
/// Which resource is lacking; nothing is held then.
pub(crate) fn create(hv: &'static Hypervisor, plan: Blueprint) -> Result<Arc<Domain>, BuildError> {
    if plan.nr_vcpus == 0 || plan.nr_vcpus > low_u32(MAX_VCPUS as u64) {
        return Err(BuildError::TooManyVcpus(plan.nr_vcpus));
    }
    let id = plan.id;
    let vcpus = VcpuId::new(plan.nr_vcpus).index();
    // What follows takes the heap in many small pieces, not all of which can be refused.
    room::ensure(size_of::<Domain>() + vcpus * (size_of::<Vcpu>() + HEAP_PER_VCPU))?;
    hv.frames.open_account(id, limits(plan.max_ram_frames, plan.privileges))?;
    let mut estate = Estate::default();
    assemble(hv, plan, &mut estate).inspect_err(|_| core::mem::take(&mut estate).settle(hv, id))
}

fn assemble(hv: &'static Hypervisor, plan: Blueprint, estate: &mut Estate) -> Result<Arc<Domain>, BuildError> {
    let tag = plan.id.raw() + 1;
    let p2m = estate.p2m.insert(P2m::new(hv.frames, plan.id, hv.format, hv.largest_leaf)?);
    let (p2m_view, tlb) = (p2m.view(), p2m.tlb().clone());
    let shared_info = hv.frames.alloc(Order::PAGE, plan.id, FrameType::Shared, Fill::Zeroed)?;
    estate.shared_info = Some(shared_info);
    let order = Order::new(CONSOLE_ORDER).ok_or(BuildError::NoHeap)?;
    let kept = hv.frames.alloc(order, plan.id, FrameType::Shared, Fill::Overwritten)?;
    estate.console = Some(kept);
    let io_map = if plan.privileges.contains(Privileges::HARDWARE) {
        let first = fill_io_map(hv, plan.id, true)?;
        estate.io_map = Some(first);
        first
    } else {
        prepare(hv)?
    };
    let events = EventChannels::new(plan.id, hv.mem, shared_info, plan.nr_vcpus, plan.max_ports)?;
    let seats = hv.sched.seat(plan.id, plan.nr_vcpus).ok_or(BuildError::NoHeap)?;
    let apic_ids = apic_ids(hv, &plan);
    let cpuid = cpuid_policy(hv, plan.nr_vcpus, apic_ids);
    let config = VcpuConfig { p2m_root: tlb.root(), io_bitmap: io_map.base(), tlb_tag: tag };
    let vcpus = vcpus(hv, &plan, &config, p2m_view, apic_ids)?;
    let console = console::Console::new(hv.machine, console::Kept::new(hv.mem, kept), plan.echoes);
    let Some(p2m) = estate.p2m.take() else { unreachable!("it was made above") };
    let domain = Arc::new(Domain {
        id: plan.id,
        name: plan.name,
        handle: plan.handle,
        privileges: plan.privileges,
        p2m: Lock::for_domain(Rank::P2m, plan.id, p2m),
        p2m_view,
        tlb,
        events,
        grants: GrantTable::new(plan.id, hv.frames, plan.grants),
        shared_info,
        hvm_params: [const { AtomicU64::new(0) }; NR_HVM_PARAMS],
        vcpus,
        msr: MsrPolicy::new(&cpuid),
        control: ControlPolicy::new(&cpuid),
        cpuid,
        tsc_offset: plan.tsc_offset,
        e820: Lock::for_domain(Rank::LifeCycle, plan.id, plan.e820),
        ioapics: Once::new(),
        console: Lock::for_domain(Rank::Console, plan.id, console),
        log_ring: Once::new(),
        sched: SchedParams::default(),
        pins: Lock::for_domain(Rank::Devices, plan.id, ArrayVec::new()),
        estate: core::mem::take(estate),
        drained_to: AtomicU64::new(0),
        seats,
        marks_runstate_updates: AtomicBool::new(false),
        news: hv.news,
        callback: AtomicU64::new(0),
        life: Life::default(),
    });
    domain.write_clocks(hv);
    Ok(domain)
}

/// The APIC ids that a domain's vCPUs do not have by their numbers. Device interrupts name the APIC of
/// the pCPU where they arrive, so whoever gets them has its id.
fn apic_ids<'a>(hv: &'a Hypervisor, plan: &Blueprint) -> &'a [u32] {
    if plan.privileges.contains(Privileges::HARDWARE) { &hv.apic_ids } else { &[] }
}

fn apic_id(apic_ids: &[u32], vcpu: u32) -> u32 {
    apic_ids.get(VcpuId::new(vcpu).index()).copied().unwrap_or(vcpu)
}

fn cpuid_policy(hv: &Hypervisor, nr_vcpus: u32, apic_ids: &[u32]) -> CpuidPolicy {
    let params = CpuidParams {
        nr_vcpus,
        max_apic_id: (0..nr_vcpus).map(|vcpu| apic_id(apic_ids, vcpu)).max().unwrap_or(0),
        phys_bits: hv.phys_bits,
        tsc: hv.clock.scale(),
        is_tsc_invariant: hv.is_tsc_stable,
        xcr0: hv.machine.supported_xcr0(),
        has_rdtscp: hv.machine.cpuid(0x8000_0001, 0).edx & 1 << 27 != 0,
        has_invpcid: hv.machine.cpuid(7, 0).ebx & 1 << 10 != 0,
    };
    CpuidPolicy::new(&|leaf, subleaf| hv.machine.cpuid(leaf, subleaf), &params)
}

fn vcpus(
    hv: &Hypervisor,
    plan: &Blueprint,
    config: &VcpuConfig,
    memory: crate::p2m::P2mView,
    apic_ids: &[u32],
) -> Result<alloc::boxed::Box<[Vcpu]>, BuildError> {
    let mut vcpus = Vec::new();
    vcpus.try_reserve_exact(VcpuId::new(plan.nr_vcpus).index()).map_err(|_| BuildError::NoHeap)?;
    for id in 0..plan.nr_vcpus {
        let mut hw = hv.machine.new_vcpu(config).ok_or(BuildError::NoHeap)?;
        hw.set_tsc_offset(plan.tsc_offset);
        vcpus.push(Vcpu::new(VcpuId::new(id), apic_id(apic_ids, id), hw, memory));
    }
    Ok(vcpus.into_boxed_slice())
}

/// Makes what all domains share that own no devices, unless it is there: their port-permission map. At
/// boot, so that the first domain takes no more than any other.
///
/// # Errors
/// If there is no memory.
pub fn prepare(hv: &Hypervisor) -> Result<Mfn, BuildError> {
    Ok(*hv.guest_io_map.try_call_once(|| fill_io_map(hv, DomId::XEN, false))?)
}

/// A port-permission map: everything exits for a guest, what is withheld exits for dom0.
pub(super) fn fill_io_map(hv: &Hypervisor, owner: DomId, owns_devices: bool) -> Result<Mfn, BuildError> {
    let order = Order::new(IO_MAP_ORDER).ok_or(BuildError::NoHeap)?;
    if owner == DomId::XEN {
        hv.frames.open_account(owner, Limits::NONE)?;
    }
    let kind = if owner == DomId::XEN { FrameType::Hypervisor } else { FrameType::Shared };
    let first = hv.frames.alloc(order, owner, kind, Fill::Overwritten)?;
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
    Ok(first)
}
