// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which values a guest may put into CR0, CR4, EFER and XCR0.
//!
//! The checks are the CPU's own, made by us because the write exits: what raises #GP on a CPU with
//! the offered features raises it here. A bit whose feature is not offered is reserved. The
//! hypervisor's own needs (CR4.VMXE, CR0.NE) are the backend's and not visible here.
//!
//! CR4.PCE is let through although there is no PMU, because every CPU since the P6 has it; RDPMC
//! has to be intercepted.
//!
//! Sources: Intel SDM vol. 3A, Control Registers; vol. 2C, XSETBV; AMD APM vol. 2, System Registers.

use super::cpuid::CpuidPolicy;
use super::features::{Register, XCR0_AVX512};

/// CR0 bits.
pub mod cr0 {
    #![expect(missing_docs, reason = "the names are the CPU's own")]
    pub const PE: u64 = 1 << 0;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
}

/// CR4 bits.
pub mod cr4 {
    #![expect(missing_docs, reason = "the names are the CPU's own")]
    pub const VME: u64 = 1 << 0;
    pub const PVI: u64 = 1 << 1;
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const LA57: u64 = 1 << 12;
    pub const VMXE: u64 = 1 << 13;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
}

/// EFER bits.
pub mod efer {
    #![expect(missing_docs, reason = "the names are the CPU's own")]
    pub const SCE: u64 = 1 << 0;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
}

/// A value that the CPU would refuse: #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// The registers that a check looks at besides the written value, as the guest sees them.
#[derive(Clone, Copy, Debug, Default)]
pub struct ControlState {
    /// CR0 before the write.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4 before the write.
    pub cr4: u64,
    /// EFER before the write.
    pub efer: u64,
    /// CS.L: the guest runs 64-bit code, where LMA is set too.
    pub is_long_code: bool,
}

impl ControlState {
    const fn is_paging(&self) -> bool {
        self.cr0 & cr0::PG != 0
    }

    const fn is_long_mode(&self) -> bool {
        self.efer & efer::LMA != 0
    }
}

/// EFER with LMA as CR0.PG and LME make it.
#[must_use]
pub const fn efer_with_lma(efer: u64, cr0: u64) -> u64 {
    if efer & efer::LME != 0 && cr0 & cr0::PG != 0 { efer | efer::LMA } else { efer & !efer::LMA }
}

/// The control bits that a domain may set.
#[derive(Clone, Copy, Debug)]
pub struct ControlPolicy {
    cr4: u64,
    efer: u64,
    xcr0: u64,
}

/// CR0 bits that exist; writes to the others are dropped, not refused, in the low half.
const CR0_DEFINED: u64 =
    cr0::PE | cr0::MP | cr0::EM | cr0::TS | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::NW | cr0::CD | cr0::PG;

impl ControlPolicy {
    /// Derives the allowed bits from the offered features.
    #[must_use]
    pub fn new(cpuid: &CpuidPolicy) -> Self {
        use Register::{Ebx, Ecx, Edx};
        let cr4_features = [
            (cr4::VME | cr4::PVI, 1, Edx, 1),
            (cr4::TSD, 1, Edx, 4),
            (cr4::DE, 1, Edx, 2),
            (cr4::PSE, 1, Edx, 3),
            (cr4::PAE, 1, Edx, 6),
            (cr4::PGE, 1, Edx, 13),
            (cr4::OSFXSR, 1, Edx, 24),
            (cr4::OSXMMEXCPT, 1, Edx, 25),
            (cr4::UMIP, 7, Ecx, 2),
            (cr4::FSGSBASE, 7, Ebx, 0),
            (cr4::PCIDE, 1, Ecx, 17),
            (cr4::OSXSAVE, 1, Ecx, 26),
            (cr4::SMEP, 7, Ebx, 7),
            (cr4::SMAP, 7, Ebx, 20),
        ];
        let offered = cr4_features.iter().filter(|(_, leaf, register, bit)| cpuid.offers(*leaf, 0, *register, *bit));
        let efer_features = [(efer::SCE, 11), (efer::LME | efer::LMA, 29), (efer::NXE, 20)];
        let modes = efer_features.iter().filter(|(_, bit)| cpuid.offers(0x8000_0001, 0, Edx, *bit));
        Self {
            cr4: offered.fold(cr4::PCE, |bits, f| bits | f.0),
            // SYSCALL reads as absent on Intel outside 64-bit mode, so SCE goes with long mode.
            efer: modes.fold(0, |bits, f| bits | f.0 | if f.0 & efer::LME != 0 { efer::SCE } else { 0 }),
            xcr0: cpuid.xcr0(),
        }
    }

    /// Checks a write to CR0 and returns what the register becomes.
    ///
    /// # Errors
    /// [`Refused`] where the CPU raises #GP.
    pub const fn check_cr0(&self, value: u64, now: &ControlState) -> Result<u64, Refused> {
        if value >> 32 != 0 {
            return Err(Refused);
        }
        let value = value & CR0_DEFINED | cr0::ET;
        let pages = value & cr0::PG != 0;
        if pages && value & cr0::PE == 0 || value & cr0::NW != 0 && value & cr0::CD == 0 {
            return Err(Refused);
        }
        // Long mode starts with paging: it needs PAE, and code that is not 64-bit yet.
        if pages && !now.is_paging() && now.efer & efer::LME != 0 && (now.cr4 & cr4::PAE == 0 || now.is_long_code) {
            return Err(Refused);
        }
        // And it ends with it: neither 64-bit code nor PCIDs can outlive it.
        if !pages && now.is_paging() && (now.is_long_mode() && now.is_long_code || now.cr4 & cr4::PCIDE != 0) {
            return Err(Refused);
        }
        Ok(value)
    }

    /// Checks a write to CR4.
    ///
    /// # Errors
    /// [`Refused`] where the CPU raises #GP.
    pub const fn check_cr4(&self, value: u64, now: &ControlState) -> Result<u64, Refused> {
        if value & !self.cr4 != 0 {
            return Err(Refused);
        }
        if now.is_long_mode() && value & cr4::PAE == 0 {
            return Err(Refused);
        }
        let starts_pcid = value & !now.cr4 & cr4::PCIDE != 0;
        if starts_pcid && (!now.is_long_mode() || now.cr3 & 0xfff != 0) {
            return Err(Refused);
        }
        Ok(value)
    }

    /// Checks a write to EFER. LMA cannot be written and keeps its value.
    ///
    /// # Errors
    /// [`Refused`] where the CPU raises #GP, and for SVME and FFXSR, which are not offered.
    pub const fn check_efer(&self, value: u64, now: &ControlState) -> Result<u64, Refused> {
        if value & !self.efer != 0 {
            return Err(Refused);
        }
        if now.is_paging() && (value ^ now.efer) & efer::LME != 0 {
            return Err(Refused);
        }
        Ok(value & !efer::LMA | now.efer & efer::LMA)
    }

    /// Checks XSETBV with `index` in ECX. The caller has checked CPL 0 and CR4.OSXSAVE.
    ///
    /// # Errors
    /// [`Refused`] where the CPU raises #GP.
    pub const fn check_xcr0(&self, index: u32, value: u64) -> Result<u64, Refused> {
        const SSE: u64 = 1 << 1;
        const AVX: u64 = 1 << 2;
        const ZMM: u64 = XCR0_AVX512 & !0b111;
        if index != 0 || value & 1 == 0 || value & !self.xcr0 != 0 {
            return Err(Refused);
        }
        if value & AVX != 0 && value & SSE == 0 {
            return Err(Refused);
        }
        if value & ZMM != 0 && (value & ZMM != ZMM || value & AVX == 0) {
            return Err(Refused);
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::cpuid::tests::{AMD, INTEL, full_host, params};

    fn policy() -> ControlPolicy {
        ControlPolicy::new(&CpuidPolicy::new(&full_host(INTEL), &params()))
    }

    const REAL: ControlState = ControlState { cr0: cr0::ET, cr3: 0, cr4: 0, efer: 0, is_long_code: false };
    const LONG: ControlState = ControlState {
        cr0: cr0::PE | cr0::PG | cr0::ET,
        cr3: 0x1000,
        cr4: cr4::PAE,
        efer: efer::LME | efer::LMA,
        is_long_code: true,
    };

    #[test]
    fn lma_follows_paging() {
        assert_eq!(efer_with_lma(efer::LME, cr0::PG), efer::LME | efer::LMA);
        assert_eq!(efer_with_lma(efer::LME | efer::LMA, 0), efer::LME);
        assert_eq!(efer_with_lma(0, cr0::PG), 0);
    }

    #[test]
    fn cr0_combinations_that_the_cpu_refuses_are_refused() {
        let p = policy();
        assert_eq!(p.check_cr0(cr0::PG, &REAL), Err(Refused));
        assert_eq!(p.check_cr0(cr0::NW, &REAL), Err(Refused));
        assert_eq!(p.check_cr0(1 << 32 | cr0::PE, &REAL), Err(Refused));
        assert_eq!(p.check_cr0(cr0::NW | cr0::CD, &REAL), Ok(cr0::NW | cr0::CD | cr0::ET));
        assert_eq!(p.check_cr0(cr0::PE | 1 << 7 | 1 << 17, &REAL), Ok(cr0::PE | cr0::ET));
    }

    #[test]
    fn long_mode_is_entered_and_left_in_order() {
        let p = policy();
        let on = cr0::PE | cr0::PG;
        let ready = ControlState { cr0: cr0::PE, cr4: cr4::PAE, efer: efer::LME, ..REAL };
        assert_eq!(p.check_cr0(on, &ready), Ok(on | cr0::ET));
        assert_eq!(p.check_cr0(on, &ControlState { cr4: 0, ..ready }), Err(Refused));
        assert_eq!(p.check_cr0(on, &ControlState { is_long_code: true, ..ready }), Err(Refused));
        assert_eq!(p.check_cr0(on, &ControlState { efer: 0, cr4: 0, ..ready }), Ok(on | cr0::ET));
        assert_eq!(p.check_cr0(cr0::PE, &LONG), Err(Refused));
        let compatible = ControlState { is_long_code: false, ..LONG };
        assert_eq!(p.check_cr0(cr0::PE, &compatible), Ok(cr0::PE | cr0::ET));
        let pcid = ControlState { cr4: cr4::PAE | cr4::PCIDE, ..compatible };
        assert_eq!(p.check_cr0(cr0::PE, &pcid), Err(Refused));
        assert_eq!(p.check_cr4(0, &LONG), Err(Refused));
        assert_eq!(p.check_efer(0, &LONG), Err(Refused));
    }

    #[test]
    fn cr4_bits_need_their_feature() {
        let p = policy();
        for hidden in [6, 12, 13, 14, 15, 19, 22, 23, 24, 25, 28, 32, 63] {
            assert_eq!(p.check_cr4(1 << hidden, &REAL), Err(Refused), "bit {hidden}");
        }
        let bits = cr4::PAE | cr4::PGE | cr4::OSFXSR | cr4::OSXSAVE | cr4::SMEP | cr4::SMAP | cr4::FSGSBASE;
        assert_eq!(p.check_cr4(bits, &LONG), Ok(bits));
        let bare = |leaf, _| crate::backend::CpuidResult { edx: u32::from(leaf == 1) << 6, ..Default::default() };
        let bare = ControlPolicy::new(&CpuidPolicy::new(&bare, &params()));
        assert_eq!(bare.check_cr4(cr4::PAE, &REAL), Ok(cr4::PAE));
        assert_eq!(bare.check_cr4(cr4::SMEP, &REAL), Err(Refused));
        assert_eq!(bare.check_efer(efer::NXE, &REAL), Err(Refused));
    }

    #[test]
    fn pcids_start_only_in_long_mode_with_pcid_0() {
        let p = policy();
        let bits = cr4::PAE | cr4::PCIDE;
        assert_eq!(p.check_cr4(bits, &LONG), Ok(bits));
        assert_eq!(p.check_cr4(bits, &ControlState { cr3: 0x1003, ..LONG }), Err(Refused));
        assert_eq!(p.check_cr4(bits, &ControlState { cr3: 0x1003, cr4: bits, ..LONG }), Ok(bits));
        assert_eq!(p.check_cr4(bits, &REAL), Err(Refused));
    }

    #[test]
    fn efer_takes_only_what_is_offered_and_keeps_lma() {
        for vendor in [INTEL, AMD] {
            let p = ControlPolicy::new(&CpuidPolicy::new(&full_host(vendor), &params()));
            let all = efer::SCE | efer::LME | efer::NXE;
            assert_eq!(p.check_efer(all, &REAL), Ok(all));
            assert_eq!(p.check_efer(all | efer::LMA, &REAL), Ok(all));
            assert_eq!(p.check_efer(all, &LONG), Ok(all | efer::LMA));
            for refused in [1, 7, 9, 12, 13, 14, 15, 21, 63] {
                assert_eq!(p.check_efer(1 << refused, &REAL), Err(Refused), "bit {refused}");
            }
        }
    }

    #[test]
    fn xcr0_takes_legal_groups_only() {
        let p = policy();
        for legal in [0b1, 0b11, 0b111, 0b1110_0111] {
            assert_eq!(p.check_xcr0(0, legal), Ok(legal));
        }
        for illegal in [0, 0b10, 0b101, 0b110, 0b0010_0111, 0b1110_0011, 0b1001, 0b1_0001, 1 << 9 | 1, 1 << 63 | 1] {
            assert_eq!(p.check_xcr0(0, illegal), Err(Refused), "{illegal:#b}");
        }
        assert_eq!(p.check_xcr0(1, 1), Err(Refused));
    }
}
