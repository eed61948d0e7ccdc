// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine as the library sees it: [`Machine`] over the modules here.

use alloc::boxed::Box;

use guest_abi::isthmus;
use hypervisor::addr::{Order, Ticks};
use hypervisor::backend::{CpuidResult, HostInterrupt, Machine, VcpuConfig, VcpuHw};
use hypervisor::facts::HeapUsage;
use hypervisor::p2m::Format;
use spin::Once;

use super::apic::{self, vector};
use super::boot::power;
use super::{console, cpu, heap, hygiene, lazy, percpu, smp, svm, vmx};

/// Which of the two ways this CPU runs guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// AMD-V.
    Svm,
    /// VT-x.
    Vmx {
        /// The largest block that an EPT entry maps.
        largest_leaf: Order,
    },
}

static BACKEND: Once<Backend> = Once::new();

/// Finds out how this CPU runs guests, and turns that on.
///
/// # Errors
/// What is missing, for each way.
pub(crate) fn enable_backend() -> Result<Backend, alloc::string::String> {
    let no_vmx = match vmx::probe() {
        Ok(caps) => {
            vmx::enable(caps)?;
            log::info!("VT-x: {:?}, {:?}, timer shift {:?}", caps.controls.proc2, caps.ept, caps.timer_shift);
            return Ok(*BACKEND.call_once(|| Backend::Vmx { largest_leaf: caps.largest_leaf() }));
        }
        Err(why) => why,
    };
    let features = svm::probe().map_err(|no_svm| {
        alloc::format!(
            "{no_vmx}, and {no_svm}; one of them is needed, with EPT and unrestricted guest or nested paging"
        )
    })?;
    svm::enable(features)?;
    log::info!("SVM: {features:?}");
    Ok(*BACKEND.call_once(|| Backend::Svm))
}

/// Turns on, for a CPU that was started, what [`enable_backend`] has found on the boot CPU.
///
/// # Errors
/// What is missing, or different.
pub(crate) fn enable_this_cpu() -> Result<(), alloc::string::String> {
    match BACKEND.get() {
        Some(Backend::Vmx { .. }) => vmx::enable(vmx::probe().map_err(|why| alloc::format!("{why}"))?)?,
        Some(Backend::Svm) => svm::enable(svm::probe()?)?,
        None => return Err("the boot CPU runs no guests".into()),
    }
    Ok(())
}

impl Backend {
    /// The page tables that the CPU walks.
    pub(crate) const fn format(self) -> Format {
        match self {
            Self::Svm => Format::Npt,
            Self::Vmx { .. } => Format::Ept,
        }
    }

    /// The largest block that one entry of them maps.
    pub(crate) fn largest_leaf(self) -> Order {
        match self {
            Self::Svm if cpu::has_gib_pages() => Order::GIB_1,
            Self::Svm => Order::MIB_2,
            Self::Vmx { largest_leaf } => largest_leaf,
        }
    }
}

/// Features of this CPU that are in use, as bits of [`isthmus::FEATURE_NAMES`].
pub(crate) fn features() -> u64 {
    let (x2apic, deadline) = apic::modes();
    let common = [
        (x2apic, isthmus::FEATURE_X2APIC),
        (deadline, isthmus::FEATURE_TSC_DEADLINE),
        (cpu::has_gib_pages(), isthmus::FEATURE_GIB_PAGES),
        (lazy::supported_xcr0() != 0, isthmus::FEATURE_XSAVE),
    ];
    let backend = match BACKEND.get() {
        Some(Backend::Svm) => svm::features(),
        Some(Backend::Vmx { .. }) => vmx::features(),
        None => 0,
    };
    common.iter().filter(|(present, _)| *present).fold(backend | hygiene::features(), |bits, (_, bit)| bits | bit)
}

/// The one machine.
pub(crate) struct Hw;

impl Machine for Hw {
    #[inline]
    fn tsc(&self) -> Ticks {
        cpu::rdtsc()
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        cpu::cpuid(leaf, subleaf)
    }

    fn supported_xcr0(&self) -> u64 {
        lazy::supported_xcr0()
    }

    fn new_vcpu(&self, config: &VcpuConfig) -> Option<Box<dyn VcpuHw>> {
        match BACKEND.get()? {
            Backend::Svm => Some(Box::new(svm::SvmVcpu::new(config)?)),
            Backend::Vmx { .. } => Some(Box::new(vmx::VmxVcpu::new(config)?)),
        }
    }

    fn console_write(&self, bytes: &[u8]) {
        console::write_raw(bytes);
    }

    fn console_read(&self, buffer: &mut [u8]) -> usize {
        console::read_raw(buffer)
    }

    fn idle(&self, until: Ticks) {
        if until <= cpu::rdtsc() {
            return;
        }
        apic::set_deadline(until);
        cpu::wait_for_interrupt();
    }

    fn take_interrupt(&self, acknowledged: Option<u8>) -> Option<HostInterrupt> {
        let taken = match acknowledged {
            Some(vector) => vector,
            None => percpu::take_interrupt().or_else(|| {
                cpu::take_pending_interrupt();
                percpu::take_interrupt()
            })?,
        };
        Some(match taken {
            vector::TIMER => {
                apic::timer_fired();
                apic::eoi();
                HostInterrupt::Timer
            }
            vector::UART => {
                apic::eoi();
                HostInterrupt::Console
            }
            vector::KICK => {
                apic::eoi();
                HostInterrupt::Kick
            }
            0x20..=0xeb => HostInterrupt::Device { vector: taken },
            _ => HostInterrupt::Spurious,
        })
    }

    fn end_of_interrupt(&self) {
        apic::eoi();
    }

    fn heap_usage(&self) -> HeapUsage {
        let (used, free) = heap::usage();
        HeapUsage { used: used as u64, size: (used + free) as u64 }
    }

    fn forget_domain(&self) {
        hygiene::forget_domain();
    }

    fn kick(&self, pcpu: usize) {
        smp::kick(pcpu);
    }

    fn insist(&self, pcpu: usize, since: &mut Ticks) {
        // With SVM an interrupt ends a run whatever the guest masks, and the NMI would be one exit more.
        if matches!(BACKEND.get(), Some(Backend::Vmx { .. })) {
            smp::insist(pcpu, since);
        }
    }

    fn take_stray_nmi(&self) -> bool {
        percpu::take_nmi()
    }

    fn ioapic_write(&self, ioapic: usize, register: u8, value: u32) {
        apic::ioapic_write(ioapic, register, value);
    }

    fn reset(&self) -> ! {
        power::reset()
    }

    fn power_off(&self, status: u8) -> ! {
        power::exit(status)
    }

    fn halt(&self) -> ! {
        console::drain();
        cpu::halt()
    }
}
