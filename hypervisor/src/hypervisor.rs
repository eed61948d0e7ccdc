// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor as one value: what every handler is given.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use guest_abi::num::low_u32;
use guest_abi::{DomId, VcpuId};
use spin::{Mutex, Once};

use crate::addr::{Mfn, Order};
use crate::backend::Machine;
use crate::boot::cmdline::OnPanic;
use crate::debug::DebugConsole;
use crate::domain::{Domain, DomainTable, News, Privileges, ShutdownReason, destroy};
use crate::emul::lapic::{Effect, IpiKind, Trigger};
use crate::emul::lapic_timer::TimerClock;
use crate::emul::pvclock;
use crate::facts::HostFacts;
use crate::frame::FrameTable;
use crate::input::InputRing;
use crate::mem::PhysMem;
use crate::p2m::Format;
use crate::pcpu;
use crate::sched::Scheduler;
use crate::time::SystemClock;
use crate::vcpu::Vcpu;

/// VIRQ_CONSOLE. Source: `xen.h`.
const VIRQ_CONSOLE: u32 = 2;

const NS_PER_SEC: u64 = 1_000_000_000;

/// The state of the hypervisor.
pub struct Hypervisor {
    /// The hardware.
    pub machine: &'static dyn Machine,
    /// Physical memory.
    pub mem: PhysMem,
    /// Who owns which frame.
    pub frames: &'static FrameTable,
    /// The domains.
    pub domains: DomainTable,
    /// System time.
    pub clock: SystemClock,
    /// Nanoseconds since 1970 at system time 0.
    pub wallclock_ns: AtomicU64,
    /// Whether all TSCs run in step at one rate.
    pub is_tsc_stable: bool,
    /// Who runs where.
    pub sched: &'static Scheduler,
    /// The APIC ids of the pCPUs, by their numbers.
    pub apic_ids: Vec<u32>,
    /// One of the idle pCPUs cleans free frames.
    pub is_cleaning: AtomicBool,
    /// What happened to domains, for those who control them.
    pub news: &'static News,
    /// The port-permission map of all domains that own no devices, once there is one.
    pub guest_io_map: Once<Mfn>,
    /// Held while a domain is being made: one at a time, so that the heap's room is counted once.
    pub making: Mutex<()>,
    /// What was typed on the console.
    pub input: InputRing,
    /// What follows a crash of dom0.
    pub on_panic: OnPanic,
    /// Which page tables the CPU walks.
    pub format: Format,
    /// The largest leaf that they may have.
    pub largest_leaf: Order,
    /// The width of a physical address, host and guest.
    pub phys_bits: u8,
    /// Whether COM1 is the hypervisor's console.
    pub keeps_com1: bool,
    /// The debug keys.
    pub debug: DebugConsole,
    /// What the boot found, for reports.
    pub facts: HostFacts,
}

impl Hypervisor {
    /// The clock that a domain's local APIC timers count by.
    #[must_use]
    pub fn timer_clock(&self, domain: &Domain) -> TimerClock {
        TimerClock { now: self.machine.tsc(), tsc_offset: domain.tsc_offset, scale: self.clock.scale() }
    }

    /// Seconds and nanoseconds since 1970 at system time 0.
    #[must_use]
    pub fn wallclock(&self) -> (u64, u32) {
        let ns = self.wallclock_ns.load(Ordering::Relaxed);
        (ns / NS_PER_SEC, low_u32(ns % NS_PER_SEC))
    }

    /// dom0 says what time it was at a point of system time; every domain is told.
    pub(crate) fn set_wallclock(&self, seconds: u64, nanoseconds: u32, system_time: u64) {
        let then = u128::from(seconds) * u128::from(NS_PER_SEC) + u128::from(nanoseconds);
        let at_zero = then.saturating_sub(u128::from(system_time));
        self.wallclock_ns.store(u64::try_from(at_zero).unwrap_or(u64::MAX), Ordering::Relaxed);
        for (_, domain) in self.domains.iter().filter(|(_, domain)| !domain.life.is_dying()) {
            let (seconds, nanoseconds) = self.wallclock();
            pvclock::write_wallclock(&self.mem, domain.shared_info, seconds, nanoseconds);
        }
    }

    /// The pCPUs that run domains: a bit for each.
    #[must_use]
    pub const fn pcpus(&self) -> u64 {
        u64::MAX >> (pcpu::MAX_PCPUS - self.sched.nr_pcpus())
    }

    /// Raises a global VIRQ in every domain that controls others and has bound it.
    pub(crate) fn raise_in_control(&self, virq: u32) {
        for (_, domain) in self.domains.iter() {
            if domain.privileges.contains(Privileges::CONTROL) {
                domain.events.raise_virq(virq, VcpuId::new(0), &*domain);
            }
        }
    }

    /// Carries out what a write to a local APIC does to others.
    pub(crate) fn lapic_effect(&self, domain: &Domain, sender: &Vcpu, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::LevelEoi(vector) => {
                if let Some(ioapics) = domain.ioapics.get() {
                    ioapics.end_of_interrupt(self.machine, vector, sender.apic_id);
                }
            }
            Effect::Ipi(ipi) => {
                for vcpu in &domain.vcpus {
                    if !ipi.destination.includes(vcpu.apic_id, sender.apic_id) {
                        continue;
                    }
                    match ipi.kind {
                        IpiKind::Fixed(vector) | IpiKind::LowestPriority(vector) => {
                            vcpu.lapic.post(vector, Trigger::Edge);
                        }
                        IpiKind::Nmi => vcpu.lapic.post_nmi(),
                        IpiKind::Init => vcpu.lapic.post_init(),
                        IpiKind::Startup(page) => vcpu.lapic.post_sipi(page),
                    }
                    domain.kick(vcpu);
                    if matches!(ipi.kind, IpiKind::LowestPriority(_)) {
                        break;
                    }
                }
            }
        }
    }

    /// A device of dom0 interrupts on this pCPU: the same vector is requested at the local APIC
    /// of the dom0 vCPU with this pCPU's APIC id, wherever that vCPU runs.
    pub(crate) fn device_interrupt(&self, vector: u8) {
        let Some(dom0) = self.domains.get(DomId::DOM0) else {
            self.machine.end_of_interrupt();
            return;
        };
        let Some(vcpu) = dom0.vcpus.get(pcpu::current()) else {
            // No vCPU of dom0 has this APIC id, so nobody was given it as a destination.
            log::debug!("vector {vector:#x} arrived where dom0 has no vCPU");
            self.machine.end_of_interrupt();
            return;
        };
        let trigger = match dom0.ioapics.get() {
            Some(ioapics) => ioapics.arrived(self.machine, vector, vcpu.apic_id),
            None => Trigger::Edge,
        };
        self.machine.end_of_interrupt();
        if vcpu.lapic.post(vector, trigger) {
            dom0.kick(vcpu);
        }
    }

    /// The console has input: it is for dom0, which is told by its VIRQ, or a debug key.
    pub(crate) fn console_input(&self) {
        let dom0 = self.domains.get(DomId::DOM0);
        let mut buffer = [0; 64];
        loop {
            let len = self.machine.console_read(&mut buffer);
            if len == 0 {
                break;
            }
            for byte in &buffer[..len] {
                self.debug.feed(*byte, dom0.is_some(), self.machine, |byte| self.input.push(byte));
            }
        }
        self.debug.request(self.sched);
        if let Some(dom0) = dom0 {
            dom0.events.raise_virq(VIRQ_CONSOLE, VcpuId::new(0), &*dom0);
        }
    }

    /// Between two slices: tells what happened to domains, and on pCPU 0 serves debug keys and ends the machine when the
    /// domain it was started for has ended.
    pub(crate) fn after_slice(&self) {
        destroy::reap(self);
        if pcpu::current() != 0 {
            return;
        }
        self.debug.serve(self);
        let Some((_, first)) = self.domains.iter().next() else { return };
        let Some(reason) = first.shutdown_reason() else { return };
        crate::debug::print_counters(self.machine, &first);
        match reason {
            ShutdownReason::Reboot if first.id == DomId::DOM0 => self.machine.reset(),
            ShutdownReason::Crash | ShutdownReason::Watchdog if first.id == DomId::DOM0 => self.dom0_crashed(),
            // As the machine's status their own numbers say that the boot failed or the hypervisor did.
            ShutdownReason::Watchdog | ShutdownReason::SoftReset => self.machine.power_off(ShutdownReason::Crash as u8),
            reason => self.machine.power_off(reason as u8),
        }
    }

    fn dom0_crashed(&self) -> ! {
        match self.on_panic {
            OnPanic::Reboot => self.machine.reset(),
            OnPanic::Halt => {
                log::error!("dom0 has crashed; halted, as panic=halt asks");
                self.machine.halt()
            }
            OnPanic::Exit => self.machine.power_off(ShutdownReason::Crash as u8),
        }
    }
}

#[cfg(test)]
mod tests;
