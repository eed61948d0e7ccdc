// SPDX-License-Identifier: MIT OR Apache-2.0
//! Domains.
//!
//! A [`Domain`] is shared by everybody who holds a reference to it. Each part has its own way to
//! be changed: the p2m and the grant table under their locks, event channels by their own rules,
//! small state in atomics. What makes a domain is `create`, what fills one at boot is [`build`], what ends one
//! is `destroy`.

pub mod build;
pub mod console;
pub mod create;
pub(crate) mod destroy;
mod life;
mod sched_params;
mod table;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arrayvec::ArrayVec;
use guest_abi::shared_info::{VCPU_TIME, VcpuTimeInfo};
use guest_abi::{DomId, Errno, VcpuId, Wire};
pub use life::{Life, News, ShutdownReason};
pub use sched_params::SchedParams;
use spin::Once;
pub use table::{DomainTable, Vacancy};

use crate::addr::{Mfn, PAGE_SHIFT, Ticks};
use crate::backend::{Machine, SegmentName};
use crate::boot::host_map::Entry;
use crate::emul::ioapic::Ioapics;
use crate::emul::pvclock::{self, Area, GuestClock};
use crate::evtchn::{EventChannels, Wake};
use crate::frame::FrameRef;
use crate::grant::GrantTable;
use crate::hypervisor::Hypervisor;
use crate::lock::Lock;
use crate::mem::PhysMem;
use crate::p2m::{P2m, P2mView, TlbState};
use crate::policy::control::ControlPolicy;
use crate::policy::cpuid::CpuidPolicy;
use crate::policy::msr::MsrPolicy;
use crate::sched::Seats;
use crate::vcpu::exits::Outcome;
use crate::vcpu::{RunState, Vcpu, VcpuState};
use create::Estate;

/// vCPUs that a domain can have.
pub const MAX_VCPUS: usize = 32;
/// The number of HVM parameters.
pub const NR_HVM_PARAMS: usize = guest_abi::num::to_usize(guest_abi::hvm::HVM_NR_PARAMS as u64);

bitflags::bitflags! {
    /// What a domain may do beyond its own affairs.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Privileges: u8 {
        /// Owns the machine's devices: ports, device memory, I/O APICs, global VIRQs.
        const HARDWARE = 1 << 0;
        /// Controls other domains: creates, maps, destroys.
        const CONTROL = 1 << 1;
        /// Uses the hypervisor's console.
        const CONSOLE = 1 << 2;
    }
}

/// What a guest did that ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashReason {
    /// The CPU shut down.
    TripleFault,
    /// The CPU refused the guest's state.
    EntryFailed(u64),
    /// An exit that nothing asked for.
    UnexpectedExit(u64),
    /// Page tables outside its memory.
    PageTablesOutsideRam(u64),
    /// Descriptor tables or the stack of a handler outside its memory.
    EventDeliveryOutsideRam(u64),
}

/// Pages that a domain can have pinned: a `vcpu_info` for each vCPU, and a console ring.
const MAX_PINS: usize = MAX_VCPUS + 1;

/// A domain.
pub struct Domain {
    /// Its number.
    pub id: DomId,
    /// What people call it; empty for a domain that dom0 made, where only dom0 knows.
    pub name: String,
    /// What its toolstack knows it by.
    pub handle: [u8; 16],
    /// What it may do.
    pub privileges: Privileges,
    /// Its guest-physical memory: changes.
    pub p2m: Lock<P2m>,
    /// Its guest-physical memory: lookups.
    pub p2m_view: P2mView,
    /// What TLBs may know of its memory.
    pub tlb: Arc<TlbState>,
    /// Its event channels.
    pub events: EventChannels,
    /// Its grant table, and what it has mapped of others'.
    pub grants: GrantTable,
    /// The page that it shares with the hypervisor.
    pub shared_info: Mfn,
    /// Parameters that toolstack and kernel exchange.
    pub hvm_params: [AtomicU64; NR_HVM_PARAMS],
    /// Its vCPUs.
    pub vcpus: Box<[Vcpu]>,
    /// What it sees of the CPU.
    pub cpuid: CpuidPolicy,
    /// Which MSRs it may use.
    pub msr: MsrPolicy,
    /// Which control bits it may set.
    pub control: ControlPolicy,
    /// What its TSC is ahead of the host's.
    pub tsc_offset: u64,
    /// The I/O APICs, for the domain that owns the devices.
    pub ioapics: Once<Ioapics>,
    /// Its memory map.
    pub e820: Lock<Vec<Entry>>,
    /// What it printed on the log-only console.
    pub console: Lock<console::Console>,
    /// The console ring that the hypervisor drains, for a guest without a backend.
    pub log_ring: Once<console::LogRing>,
    /// Its share of the CPUs.
    pub sched: SchedParams,
    /// Frames of its own that the hypervisor writes to wherever the guest has mapped them since.
    pins: Lock<ArrayVec<FrameRef, MAX_PINS>>,
    estate: Estate,
    /// Where taking its p2m apart goes on.
    drained_to: AtomicU64,
    news: &'static News,
    /// Its vCPUs' places in the scheduler.
    pub seats: Seats,
    /// Its kernel wants to see that a run state is being written.
    pub marks_runstate_updates: AtomicBool,
    callback: AtomicU64,
    /// Whether it may run.
    pub life: Life,
}

/// A domain as the log names it: its number, and its name if the hypervisor knows one.
pub struct Label<'a>(&'a Domain);

impl fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(domain) = self;
        if domain.name.is_empty() { write!(f, "{}", domain.id) } else { write!(f, "{} ({})", domain.id, domain.name) }
    }
}

impl Domain {
    /// How the log names it.
    #[must_use]
    pub const fn label(&self) -> Label<'_> {
        Label(self)
    }

    /// Whether its vCPUs may run.
    #[inline]
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.life.is_running()
    }

    /// Why it stopped, if it did.
    #[must_use]
    pub fn shutdown_reason(&self) -> Option<ShutdownReason> {
        self.life.shutdown_reason()
    }

    /// Stops all vCPUs for a reason; the first reason counts.
    pub fn shut_down(&self, reason: ShutdownReason) {
        if self.life.shut_down(reason) {
            self.console.lock().flush(self.id);
            log::info!("{} has shut down: {reason:?}", self.label());
            self.news.spread();
        }
        self.kick_all();
        // Which looks whether the machine's work is done.
        self.seats.scheduler().request(0);
    }

    /// Makes every vCPU look at whether the domain may run: those that do leave their guest soon, those
    /// that do not get the chance.
    pub fn kick_all(&self) {
        for vcpu in &self.vcpus {
            vcpu.attract();
            self.tell(vcpu);
        }
    }

    /// Whether no CPU runs one of its vCPUs. To be asked again and again after the reason for which none
    /// starts again was set, and after [`Domain::kick_all`]; a CPU that still runs one is made to exit.
    #[must_use]
    pub(crate) fn is_quiet(&self, machine: &dyn Machine) -> bool {
        let running = self.vcpus.iter().find(|vcpu| vcpu.try_state().is_none());
        if let Some(pcpu) = running.and_then(Vcpu::is_on) {
            machine.insist(pcpu, &mut Ticks::new(0));
        }
        running.is_none()
    }

    /// Keeps a frame for as long as the domain is in the table.
    ///
    /// # Errors
    /// EBUSY if there are as many as there can be.
    pub(crate) fn pin(&self, frame: FrameRef) -> Result<(), Errno> {
        self.pins.lock().try_push(frame).map_err(|_| Errno::EBUSY)
    }

    /// Ends the domain because of what one of its vCPUs did.
    pub(crate) fn crash(&self, reason: CrashReason, state: &VcpuState) -> Outcome {
        if self.is_running() {
            log::warn!("{} crashed: {reason:x?}", self.label());
            let (cpu, regs) = (state.hw.state(), &state.regs);
            log::warn!(
                "  rip {:#x} rsp {:#x} rflags {:#x} cs {:x?}",
                cpu.rip,
                cpu.rsp,
                cpu.rflags,
                cpu.segments[SegmentName::Cs]
            );
            log::warn!(
                "  cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x}",
                cpu.cr0,
                cpu.cr2,
                cpu.cr3,
                cpu.cr4,
                cpu.efer
            );
            log::warn!("  {regs:x?}");
        }
        self.shut_down(ShutdownReason::Crash);
        Outcome::Leave
    }

    /// A vCPU halted with interrupts off. When none is left that could run, the domain has powered
    /// itself off: kernels have no other way to say so without ACPI.
    pub fn vcpu_went_down(&self) {
        if self.vcpus.iter().all(|vcpu| vcpu.run_state() == RunState::Down) {
            self.shut_down(ShutdownReason::Poweroff);
        }
    }

    /// The vector that the kernel wants injected directly for events.
    #[inline]
    #[must_use]
    pub fn callback_vector(&self) -> Option<u8> {
        match self.callback.load(Ordering::Relaxed) {
            0 => None,
            vector => Some(guest_abi::num::low_u8(vector)),
        }
    }

    /// Sets that vector; vCPUs with events waiting get their upcall at once.
    pub fn set_callback_vector(&self, vector: Option<u8>) {
        self.callback.store(vector.map_or(0, u64::from), Ordering::Release);
        for vcpu in &self.vcpus {
            if vector.is_some() && self.events.upcall_pending(vcpu.id) {
                self.upcall(vcpu.id);
            }
        }
    }

    /// Whether its guest frames are the machine frames of the same number.
    #[must_use]
    pub fn is_identity(&self) -> bool {
        self.privileges.contains(Privileges::HARDWARE)
    }

    /// The highest guest frame that its memory map names.
    #[must_use]
    pub fn max_gfn(&self) -> u64 {
        self.e820.lock().iter().map(|entry| entry.span.end()).max().unwrap_or(0).saturating_sub(1) >> PAGE_SHIFT
    }

    /// Sets a parameter that the kernel reads.
    pub fn set_param(&self, index: u32, value: u64) {
        if let Some(param) = self.hvm_params.get(index as usize) {
            param.store(value, Ordering::Release);
        }
    }

    /// A frame of its grant table, made on demand.
    ///
    /// # Errors
    /// EINVAL beyond the table's limit or for the status frames of version 2; ENOMEM.
    pub fn grant_frame(&self, index: u64) -> Result<Mfn, Errno> {
        let index = u32::try_from(index).map_err(|_| Errno::EINVAL)?;
        Ok(self.grants.frame(index)?)
    }

    /// The relation of this domain's TSC and system time.
    #[must_use]
    pub fn guest_clock(&self, hv: &Hypervisor) -> GuestClock {
        GuestClock { system: hv.clock, tsc_offset: self.tsc_offset, is_tsc_stable: hv.is_tsc_stable }
    }

    /// Writes the wall clock and every vCPU's time where the kernel reads them.
    pub fn write_clocks(&self, hv: &Hypervisor) {
        let (seconds, nanoseconds) = hv.wallclock();
        pvclock::write_wallclock(&hv.mem, self.shared_info, seconds, nanoseconds);
        for vcpu in &self.vcpus {
            self.write_time(hv, vcpu.id);
        }
    }

    /// Writes one vCPU's time into its `vcpu_info`, wherever that is.
    pub fn write_time(&self, hv: &Hypervisor, vcpu: VcpuId) {
        let Some(place) = self.events.vcpu_info(vcpu) else { return };
        let offset = place.page_offset() + VCPU_TIME;
        if let Some(area) = Area::new(place.mfn(), offset, VcpuTimeInfo::SIZE, None) {
            self.guest_clock(hv).write_time(&hv.mem, &area);
        }
    }

    /// One of its vCPUs.
    #[must_use]
    pub fn vcpu(&self, id: VcpuId) -> Option<&Vcpu> {
        self.vcpus.get(id.index())
    }

    /// Takes what the kernel has put into the console ring that the hypervisor drains.
    pub(crate) fn drain_log_ring(&self, mem: &PhysMem) {
        if let Some(ring) = self.log_ring.get() {
            ring.drain(mem, &mut self.console.lock(), self.id);
        }
    }

    /// Makes a vCPU look at its flags, wherever it is: one interrupt to its pCPU at most.
    pub fn kick(&self, vcpu: &Vcpu) {
        if vcpu.attract() {
            self.tell(vcpu);
        }
    }

    fn tell(&self, vcpu: &Vcpu) {
        match vcpu.is_on() {
            Some(pcpu) => self.seats.kick(pcpu),
            None => self.seats.wake(vcpu.id),
        }
    }
}

impl Wake for Domain {
    fn upcall(&self, vcpu: VcpuId) {
        if let Some(vcpu) = self.vcpu(vcpu) {
            vcpu.upcall_due.store(true, Ordering::Release);
            self.kick(vcpu);
        }
    }

    fn poll_wake(&self, vcpu: VcpuId) {
        if let Some(vcpu) = self.vcpu(vcpu) {
            self.kick(vcpu);
        }
    }
}
