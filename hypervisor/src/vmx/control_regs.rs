// SPDX-License-Identifier: MIT OR Apache-2.0
//! CR0 and CR4: which bits are the guest's and which are ours.
//!
//! VT-x lets the guest change a bit of CR0 or CR4 without an exit unless the bit is masked; a
//! masked bit reads from a shadow and its change exits. Ours are only bits whose real value must
//! differ from the guest's (NE, VMXE, MCE), bits that would slow the machine down (CD, NW), and all
//! bits of CR4 that no domain has been offered. Paging is the guest's own, so a guest switches
//! modes without exits and the CPU loads PAE page-directory pointers by itself.
//!
//! Source: Intel SDM vol. 3C (326019-080), §23.8 Restrictions on VMX Operation, §24.6.6
//! Guest/Host Masks and Read Shadows, §26.3.1.1.

use crate::policy::control::{cr0, cr4, efer};

/// The bits of CR0 that exit when the guest changes them.
pub const CR0_MASK: u64 = cr0::NE | cr0::NW | cr0::CD;

/// The bits of CR4 that are the guest's: VME PVI TSD DE PSE PAE, PGE PCE OSFXSR OSXMMEXCPT
/// UMIP, FSGSBASE PCIDE OSXSAVE, SMEP SMAP. Where the CPU lacks one, it refuses it itself.
const CR4_FREE: u64 = 0x3f | 0xf << 7 | 1 << 11 | 0x7 << 16 | 0x3 << 20;

/// The bits of CR4 that exit when the guest changes them.
pub const CR4_MASK: u64 = !CR4_FREE;

/// What VT-x says about a control register: a bit set in both words must be 1, a bit clear in
/// both must be 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedBits {
    must_be_one: u64,
    may_be_one: u64,
}

impl FixedBits {
    /// From the two capability MSRs.
    #[must_use]
    pub const fn new(fixed0: u64, fixed1: u64) -> Self {
        Self { must_be_one: fixed0, may_be_one: fixed1 }
    }

    /// The value with every fixed bit put right; for the host's own registers.
    #[must_use]
    pub const fn apply(self, value: u64) -> u64 {
        (value | self.must_be_one) & self.may_be_one
    }

    /// The same for a guest's CR0, where unrestricted guest frees PE and PG.
    #[must_use]
    pub const fn for_unrestricted_guest(self) -> Self {
        Self { must_be_one: self.must_be_one & !(cr0::PE | cr0::PG), ..self }
    }

    /// Whether the CPU accepts the value.
    #[must_use]
    pub const fn accepts(self, value: u64) -> bool {
        self.apply(value) == value
    }
}

/// A guest's CR0 as the CPU must hold it.
#[must_use]
pub const fn real_cr0(guest: u64, fixed: FixedBits) -> u64 {
    let guest = guest & !(cr0::CD | cr0::NW) | cr0::NE;
    fixed.for_unrestricted_guest().apply(guest)
}

/// A guest's CR4 as the CPU must hold it. Machine checks stay on, since with MCE clear one would
/// shut the machine down.
#[must_use]
pub const fn real_cr4(guest: u64, fixed: FixedBits) -> u64 {
    fixed.apply(guest | cr4::MCE | cr4::VMXE)
}

/// A control register as the guest sees it.
#[must_use]
pub const fn guest_view(real: u64, shadow: u64, mask: u64) -> u64 {
    real & !mask | shadow & mask
}

/// Whether a write of CR0 makes the CPU load PAE page-directory pointers from memory. A write that
/// exits cannot be completed by storing the value then: the guest repeats it with nothing
/// masked left to change.
#[must_use]
pub const fn loads_pdptes(old_cr0: u64, new_cr0: u64, cr4: u64, efer: u64) -> bool {
    let turns_paging_on = new_cr0 & cr0::PG != 0 && old_cr0 & cr0::PG == 0;
    turns_paging_on && cr4 & cr4::PAE != 0 && efer & efer::LME == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const CR0: FixedBits = FixedBits::new(0x8000_0021, 0xffff_ffff);
    const CR4: FixedBits = FixedBits::new(0x2000, 0x0017_67ff);

    #[test]
    fn the_guest_reads_back_what_it_wrote() {
        for value in [0x10, 0x11, 0x6000_0010, 0x8005_0033, 0xe000_0011] {
            assert_eq!(guest_view(real_cr0(value, CR0), value, CR0_MASK), value, "{value:#x}");
        }
        for value in [0, 0x20, 0x6f0, 0x0017_06b0] {
            assert_eq!(guest_view(real_cr4(value, CR4), value, CR4_MASK), value, "{value:#x}");
        }
    }

    #[test]
    fn the_cpu_accepts_what_it_gets() {
        for value in [0, 0x10, 0x11, 0x6000_0010, 0x8005_0033] {
            let real = real_cr0(value, CR0);
            assert!(CR0.for_unrestricted_guest().accepts(real), "{value:#x}");
            assert_eq!(real & (cr0::CD | cr0::NW), 0, "caches stay on");
        }
        assert!(!CR0.accepts(0x11) && CR4.accepts(real_cr4(0, CR4)));
        assert_eq!(real_cr4(0, CR4), cr4::VMXE | cr4::MCE);
    }

    #[test]
    fn bits_of_cr4_that_no_domain_has_exit() {
        // VMXE, SMXE, LA57, KL, PKE, CET, PKS, UINTR, FRED.
        for bit in [13, 14, 12, 19, 22, 23, 24, 25, 32] {
            assert_ne!(CR4_MASK & 1 << bit, 0, "{bit}");
        }
        for bit in [0, 2, 4, 5, 7, 8, 9, 10, 11, 16, 17, 18, 20, 21] {
            assert_eq!(CR4_MASK & 1 << bit, 0, "{bit}");
        }
    }

    #[test]
    fn only_pae_paging_without_long_mode_loads_pointers() {
        assert!(loads_pdptes(0x11, cr0::PG | 0x31, cr4::PAE, 0));
        assert!(!loads_pdptes(0x11, cr0::PG | 0x31, cr4::PAE, efer::LME));
        assert!(!loads_pdptes(0x11, cr0::PG | 0x31, 0, 0));
        assert!(!loads_pdptes(cr0::PG | 0x11, cr0::PG | 0x31, cr4::PAE, 0));
    }
}
