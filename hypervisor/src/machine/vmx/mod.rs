// SPDX-License-Identifier: MIT OR Apache-2.0
//! The VT-x backend: EPT and unrestricted guests.
//!
//! This half executes the instructions; what it uses and why is decided in [`hypervisor::vmx`].
//! One [`VmxVcpu`] owns one VMCS. While it is scheduled in, its VMCS is current on the CPU and its
//! FPU, debug registers and system-call MSRs are in the registers; exits and entries move only
//! the general-purpose registers. What the guest sees is read from the VMCS when somebody asks.
//!
//! TLB: translations are tagged with the domain's tag (VPID) and with the p2m's root. They are
//! dropped when a vCPU is scheduled in after another one with its tag, and when its p2m's
//! generation has moved on ([`hypervisor::tlb`]).
//!
//! Events: one that was being delivered when the guest exited is delivered again; an exception
//! that the caller injects goes first, and an interrupt that it displaces waits for its window.
//!
//! Source: Intel SDM vol. 3C (326019-080), chapters 23 to 30.

mod events;
mod msrs;
mod tlb;
mod vcpu;
mod vmcs;

use alloc::boxed::Box;

use guest_abi::isthmus;
use hypervisor::addr::Hpa;
use hypervisor::pcpu::MAX_PCPUS;
use hypervisor::policy::control::cr4;
use hypervisor::tlb::PcpuTlb;
use hypervisor::vmx::caps::{Capabilities, CapabilityMsrs, NoVmx, Proc2};
use hypervisor::vmx::msr_bitmap;
use spin::{Mutex, Once};

pub(crate) use self::vcpu::VmxVcpu;
use self::vmcs::Page;
use super::{cpu, layout, percpu};

const FEATURE_LOCKED: u64 = 1 << 0;
const FEATURE_VMX: u64 = 1 << 2;

/// Finds out whether and how this CPU can run guests by VT-x.
///
/// # Errors
/// What is missing. Firmware that has left the choice open is answered with "on" for good.
pub(crate) fn probe() -> Result<Capabilities, NoVmx> {
    if cpu::cpuid(1, 0).ecx & 1 << 5 == 0 {
        return Err(NoVmx::NotReported);
    }
    // SAFETY: every CPU with VT-x has the MSR.
    let feature = unsafe { cpu::rdmsr(cpu::msr::FEATURE_CONTROL) };
    if feature & FEATURE_LOCKED == 0 {
        // SAFETY: not locked; the bits turn VT-x on outside SMX, and nothing else off.
        unsafe { cpu::wrmsr(cpu::msr::FEATURE_CONTROL, feature | FEATURE_VMX | FEATURE_LOCKED) };
    } else if feature & FEATURE_VMX == 0 {
        return Err(NoVmx::LockedOff);
    }
    // SAFETY: `read` asks only for MSRs that the ones before report.
    let msrs = CapabilityMsrs::read(|number| unsafe { cpu::rdmsr(number) });
    log::debug!("VT-x: {msrs:x?}");
    Capabilities::negotiate(&msrs)
}

/// What all vCPUs share.
struct Shared {
    caps: Capabilities,
    msr_bitmap: Hpa,
    /// What each pCPU may hold translations of; only that pCPU looks.
    tlbs: [Once<Box<Mutex<PcpuTlb>>>; MAX_PCPUS],
}

impl Shared {
    /// This pCPU's.
    #[inline]
    fn tlb(&self, pcpu: usize) -> Option<&Mutex<PcpuTlb>> {
        Some(self.tlbs.get(pcpu)?.get()?)
    }
}

static SHARED: Once<Shared> = Once::new();

/// Turns VT-x on for this CPU. The capabilities of the first one are everybody's.
///
/// # Errors
/// When memory ran out, the CPU refused, or it is unlike the first one.
pub(crate) fn enable(caps: Capabilities) -> Result<(), &'static str> {
    const NO_MEMORY: &str = "no memory for VT-x's own pages";
    let region = vmcs::revision_page(caps.revision).ok_or(NO_MEMORY)?;
    let region = layout::hpa_of(Box::leak(region));
    // SAFETY: VT-x fixes NE to 1 beyond what is set; paging bits stay.
    unsafe { cpu::set_cr0(caps.cr0.apply(cpu::cr0())) };
    // SAFETY: the CPU reports VT-x.
    unsafe { cpu::set_cr4(caps.cr4.apply(cpu::cr4() | cr4::VMXE)) };
    // SAFETY: the registers were set above, feature control by `probe`; the region is leaked.
    if !unsafe { vmcs::vmxon(region) } {
        return Err("VMXON failed");
    }
    let shared = SHARED.call_once(|| {
        let map = Box::leak(Box::new(Page(msr_bitmap::build())));
        Shared { caps, msr_bitmap: layout::hpa_of(map), tlbs: [const { Once::new() }; MAX_PCPUS] }
    });
    if shared.caps != caps {
        return Err("its VT-x is not the same as the boot CPU's");
    }
    shared.tlbs[percpu::number()].call_once(|| Box::new(Mutex::new(PcpuTlb::default())));
    Ok(())
}

/// Features in use, as bits of [`isthmus::FEATURE_NAMES`].
pub(crate) fn features() -> u64 {
    let Some(Shared { caps, .. }) = SHARED.get() else { return 0 };
    let vpid = if caps.controls.proc2.contains(Proc2::VPID) { isthmus::FEATURE_VPID } else { 0 };
    let timer = if caps.timer_shift.is_some() { isthmus::FEATURE_PREEMPTION_TIMER } else { 0 };
    vpid | timer
}
