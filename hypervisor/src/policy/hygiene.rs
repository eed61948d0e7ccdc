// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a CPU remembers of one domain and must forget before it runs another.
//!
//! One table for all CPUs: each row is a kind of memory, how the CPU says that it can drop it, and how
//! it says that it need not. What architectural state there is beside that (FPU, vector and debug
//! registers) is switched whole at every change of vCPU; performance counters are given to no domain.
//!
//! The rows apply when a pCPU goes from one domain to another, not at every entry: what the hypervisor
//! itself has brought into a cache for a domain is not protected from that domain by them. Sibling
//! threads of a core share what these rows are about while both run; turn them off in the firmware
//! where domains do not trust each other and the CPU is one that needs a row.
//!
//! Source: Intel SDM vol. 2A, CPUID leaf 07H; Intel SDM vol. 4, IA32_ARCH_CAPABILITIES; Intel, "Deep
//! Dive: Intel Analysis of L1 Terminal Fault" and "of Microarchitectural Data Sampling"; AMD,
//! "Indirect Branch Control Extension" and CPUID Fn8000_0008.

use guest_abi::isthmus;

use crate::backend::CpuidResult;

bitflags::bitflags! {
    /// What to do at a change of domain; bits as in [`isthmus::FEATURE_NAMES`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Hygiene: u64 {
        /// Make the branch predictors forget (IBPB): write bit 0 of MSR 49h.
        const BRANCHES = isthmus::FEATURE_IBPB;
        /// Overwrite the buffers between core and cache: VERW.
        const BUFFERS = isthmus::FEATURE_MD_CLEAR;
        /// Empty the first-level data cache: write bit 0 of MSR 10Bh.
        const L1D = isthmus::FEATURE_L1D_FLUSH;
    }
}

/// What a CPU says about itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    /// CPUID leaf 7, EDX.
    pub leaf_7_edx: u32,
    /// CPUID leaf 8000_0008h, EBX: AMD's.
    pub leaf_8_ebx: u32,
    /// IA32_ARCH_CAPABILITIES, 0 where there is none.
    pub capabilities: u64,
}

/// CPUID leaf 7 EDX bit: IA32_ARCH_CAPABILITIES exists.
const ARCH_CAPABILITIES: u32 = 1 << 29;

/// A kind of memory: its mark, the bits of leaf 7 EDX and of leaf 8000_0008h EBX of which either says that
/// it can be dropped, and those of IA32_ARCH_CAPABILITIES of which either says that it need not.
const TABLE: [(Hygiene, u32, u32, u64); 3] = [
    (Hygiene::BRANCHES, 1 << 26, 1 << 12, 0),
    // MDS_NO.
    (Hygiene::BUFFERS, 1 << 10, 0, 1 << 5),
    // RDCL_NO, and "need not at VM entry".
    (Hygiene::L1D, 1 << 28, 0, 1 << 0 | 1 << 3),
];

impl Cpu {
    /// Asks a CPU. `capabilities` reads IA32_ARCH_CAPABILITIES, and is called only where it exists.
    pub fn ask(cpuid: impl Fn(u32, u32) -> CpuidResult, capabilities: impl FnOnce() -> u64) -> Self {
        let leaf_7_edx = if cpuid(0, 0).eax >= 7 { cpuid(7, 0).edx } else { 0 };
        let leaf_8_ebx = if cpuid(0x8000_0000, 0).eax >= 0x8000_0008 { cpuid(0x8000_0008, 0).ebx } else { 0 };
        let capabilities = if leaf_7_edx & ARCH_CAPABILITIES != 0 { capabilities() } else { 0 };
        Self { leaf_7_edx, leaf_8_ebx, capabilities }
    }

    /// What to do at a change of domain.
    #[must_use]
    pub fn hygiene(&self) -> Hygiene {
        let can = |row: &&(Hygiene, u32, u32, u64)| self.leaf_7_edx & row.1 != 0 || self.leaf_8_ebx & row.2 != 0;
        let needs = |row: &&(Hygiene, u32, u32, u64)| self.capabilities & row.3 == 0;
        TABLE.iter().filter(can).filter(needs).fold(Hygiene::empty(), |all, row| all | row.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cpu_gets_what_it_needs_and_can() {
        const INTEL: u32 = 1 << 10 | 1 << 26 | 1 << 28 | ARCH_CAPABILITIES;
        let cpu = |leaf_7_edx, leaf_8_ebx, capabilities| Cpu { leaf_7_edx, leaf_8_ebx, capabilities }.hygiene();
        // Skylake with new microcode, Cascade Lake, Ice Lake, Zen 2, and one that knows of nothing.
        assert_eq!(cpu(INTEL & !ARCH_CAPABILITIES, 0, 0), Hygiene::all());
        assert_eq!(cpu(INTEL, 0, 0x2b), Hygiene::BRANCHES);
        assert_eq!(cpu(INTEL, 0, 0x08), Hygiene::BRANCHES | Hygiene::BUFFERS);
        assert_eq!(cpu(0, 1 << 12 | 1 << 14, 0), Hygiene::BRANCHES);
        assert_eq!(cpu(0, 0, 0), Hygiene::empty());
    }

    #[test]
    fn capabilities_are_read_only_where_they_exist() {
        let leaf =
            |edx| move |leaf, _| CpuidResult { eax: 7, edx: if leaf == 7 { edx } else { 0 }, ..Default::default() };
        let without = Cpu::ask(leaf(1 << 10), || unreachable!("the register does not exist"));
        assert_eq!(without.hygiene(), Hygiene::BUFFERS);
        let with = Cpu::ask(leaf(1 << 10 | ARCH_CAPABILITIES), || 1 << 5);
        assert_eq!(with.hygiene(), Hygiene::empty());
    }
}
