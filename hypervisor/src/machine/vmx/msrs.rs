// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest's MSRs without a VMCS field, and DR6 and CR2: they stay in the CPU from exit to entry.
//!
//! The hypervisor uses none of them. Writes of all but KERNEL_GS_BASE exit, so only that one has to
//! be read back when another vCPU takes the CPU.

use hypervisor::backend::GuestMsr;

use super::super::cpu;

/// In the order in which [`SwitchedMsrs`] keeps them.
const SWITCHED: [(GuestMsr, u32); 6] = [
    (GuestMsr::KernelGsBase, cpu::msr::KERNEL_GS_BASE),
    (GuestMsr::Star, cpu::msr::STAR),
    (GuestMsr::Lstar, cpu::msr::LSTAR),
    (GuestMsr::Cstar, cpu::msr::CSTAR),
    (GuestMsr::Sfmask, cpu::msr::SFMASK),
    (GuestMsr::TscAux, cpu::msr::TSC_AUX),
];
const KERNEL_GS_BASE: usize = 0;
const TSC_AUX: usize = 5;

/// DR6 after reset.
const DR6_RESET: u64 = 0xffff_0ff0;

/// One vCPU's values.
pub(super) struct SwitchedMsrs {
    values: [u64; SWITCHED.len()],
    cr2: u64,
    dr6: u64,
    is_loaded: bool,
    has_tsc_aux: bool,
}

impl SwitchedMsrs {
    /// The values after reset.
    pub(super) fn new() -> Self {
        let has_tsc_aux = cpu::cpuid(0x8000_0001, 0).edx & 1 << 27 != 0;
        Self { values: [0; SWITCHED.len()], cr2: 0, dr6: DR6_RESET, is_loaded: false, has_tsc_aux }
    }

    fn slot(msr: GuestMsr) -> Option<usize> {
        SWITCHED.iter().position(|(name, _)| *name == msr)
    }

    fn put(&self, slot: usize) {
        if slot == TSC_AUX && !self.has_tsc_aux {
            return;
        }
        // SAFETY: every x86-64 CPU has the first five and TSC_AUX was looked up; the policy has
        // checked the values, and the hypervisor uses none of these MSRs.
        unsafe { cpu::wrmsr(SWITCHED[slot].1, self.values[slot]) };
    }

    /// Moves the values into the CPU.
    pub(super) fn load(&mut self) {
        for slot in 0..SWITCHED.len() {
            self.put(slot);
        }
        cpu::set_cr2(self.cr2);
        cpu::set_dr6(self.dr6);
        self.is_loaded = true;
    }

    /// Takes the values out of the CPU.
    pub(super) fn save(&mut self) {
        self.values[KERNEL_GS_BASE] = live_kernel_gs_base();
        self.cr2 = cpu::cr2();
        self.dr6 = cpu::dr6();
        self.is_loaded = false;
    }

    /// An MSR's value, or `None` if it has a VMCS field.
    pub(super) fn get(&self, msr: GuestMsr) -> Option<u64> {
        let slot = Self::slot(msr)?;
        if slot == KERNEL_GS_BASE && self.is_loaded {
            return Some(live_kernel_gs_base());
        }
        Some(self.values[slot])
    }

    /// Sets an MSR; `false` if it has a VMCS field.
    pub(super) fn set(&mut self, msr: GuestMsr, value: u64) -> bool {
        let Some(slot) = Self::slot(msr) else { return false };
        self.values[slot] = value;
        if self.is_loaded {
            self.put(slot);
        }
        true
    }

    /// CR2.
    pub(super) fn cr2(&self) -> u64 {
        if self.is_loaded { cpu::cr2() } else { self.cr2 }
    }

    /// Sets CR2.
    pub(super) fn set_cr2(&mut self, value: u64) {
        self.cr2 = value;
        if self.is_loaded {
            cpu::set_cr2(value);
        }
    }

    /// Notes in the guest's DR6 what an intercepted debug exception would have set: `found` in the
    /// format of the exit qualification. The vCPU is loaded.
    pub(super) fn note_debug_exception(&mut self, found: u64) {
        const BREAKPOINTS: u64 = 0xf;
        const DETECTED: u64 = 0x600f;
        cpu::set_dr6(cpu::dr6() & !BREAKPOINTS | found & DETECTED);
    }
}

fn live_kernel_gs_base() -> u64 {
    // SAFETY: every x86-64 CPU has the MSR.
    unsafe { cpu::rdmsr(cpu::msr::KERNEL_GS_BASE) }
}
