// SPDX-License-Identifier: MIT OR Apache-2.0
//! The list of CPU features that a guest may see, each with what it depends on.
//!
//! A bit is offered if it is listed here and its condition holds. What is missing is hidden on
//! purpose: VMX, SVM and SMX (no nesting), MONITOR and MWAIT (the hypervisor owns idling), the PMU,
//! PT, LBR and IBS (host state), RDT, SGX, SME, PCONFIG and TME (owned by the host), LA57 (the
//! guest walk has four levels), CET, PKU, PKS, AMX, UINTR and XSAVES (state that no backend
//! switches), TSX (TSX_CTRL), MCE and MCA (no virtual banks), SPEC_CTRL, PRED_CMD, FLUSH_CMD and
//! ARCH_CAPABILITIES (MSRs that no backend switches), FFXSR, thermal, APERF/MPERF, HWP and EPB.
//!
//! Sources: Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E.

use self::Needs::{Computed, Forced, Host, Invpcid, Rdtscp, State};

/// One of the four result registers of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the CPU's own")]
pub enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// What must hold for a listed feature to be offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// The host has it. It works on registers, memory, and control bits and MSRs that the policy
    /// lets through, and needs nothing else from the hypervisor.
    Host,
    /// The host has it, and all these bits of XCR0 are offered.
    State(u64),
    /// The host has it, and the backend lets RDTSCP and RDPID run.
    Rdtscp,
    /// The host has it, and the backend lets INVPCID run.
    Invpcid,
    /// The hypervisor itself provides it, on every host.
    Forced,
    /// Set from the domain's parameters or the vCPU's state; never taken from the host.
    Computed,
}

/// One feature bit.
#[derive(Clone, Copy, Debug)]
pub struct Feature {
    /// The bit's number in its register.
    pub bit: u8,
    /// Its name in the manuals.
    pub name: &'static str,
    /// Its condition.
    pub needs: Needs,
}

/// The listed bits of one register of one leaf.
#[derive(Clone, Copy, Debug)]
pub struct Word {
    /// The leaf (EAX).
    pub leaf: u32,
    /// The subleaf (ECX).
    pub subleaf: u32,
    /// The result register.
    pub register: Register,
    /// The bits; what is not here reads as zero.
    pub features: &'static [Feature],
}

/// XCR0 bits of the AVX state.
pub const XCR0_AVX: u64 = 0b111;
/// XCR0 bits of the AVX-512 state.
pub const XCR0_AVX512: u64 = 0b1110_0111;

const fn f(bit: u8, name: &'static str) -> Feature {
    Feature { bit, name, needs: Host }
}

const fn when(bit: u8, name: &'static str, needs: Needs) -> Feature {
    Feature { bit, name, needs }
}

const fn avx(bit: u8, name: &'static str) -> Feature {
    when(bit, name, State(XCR0_AVX))
}

const fn avx512(bit: u8, name: &'static str) -> Feature {
    when(bit, name, State(XCR0_AVX512))
}

/// Every word of feature bits that a guest sees.
pub const WORDS: &[Word] = &[
    Word { leaf: 1, subleaf: 0, register: Register::Ecx, features: LEAF_1_ECX },
    Word { leaf: 1, subleaf: 0, register: Register::Edx, features: LEAF_1_EDX },
    // ARAT: the virtual timers never stop in idle.
    Word { leaf: 6, subleaf: 0, register: Register::Eax, features: &[when(2, "ARAT", Forced)] },
    Word { leaf: 7, subleaf: 0, register: Register::Ebx, features: LEAF_7_EBX },
    Word { leaf: 7, subleaf: 0, register: Register::Ecx, features: LEAF_7_ECX },
    Word { leaf: 7, subleaf: 0, register: Register::Edx, features: LEAF_7_EDX },
    Word { leaf: 7, subleaf: 1, register: Register::Eax, features: LEAF_7_1_EAX },
    Word {
        leaf: 0xd,
        subleaf: 1,
        register: Register::Eax,
        features: &[when(0, "XSAVEOPT", State(1)), when(1, "XSAVEC", State(1)), when(2, "XGETBV1", State(1))],
    },
    Word { leaf: 0x8000_0001, subleaf: 0, register: Register::Ecx, features: LEAF_81_ECX },
    Word { leaf: 0x8000_0001, subleaf: 0, register: Register::Edx, features: LEAF_81_EDX },
    Word { leaf: 0x8000_0007, subleaf: 0, register: Register::Edx, features: &[when(8, "INVARIANT_TSC", Computed)] },
    Word {
        leaf: 0x8000_0008,
        subleaf: 0,
        register: Register::Ebx,
        features: &[f(0, "CLZERO"), when(2, "XSAVE_ERPTR", State(1))],
    },
    Word {
        leaf: 0x8000_0021,
        subleaf: 0,
        register: Register::Eax,
        features: &[f(0, "NO_NESTED_DATA_BP"), f(2, "LFENCE_SERIALIZING"), f(6, "NULL_SEL_CLR_BASE")],
    },
];

const LEAF_1_ECX: &[Feature] = &[
    f(0, "SSE3"),
    f(1, "PCLMULQDQ"),
    f(9, "SSSE3"),
    avx(12, "FMA"),
    f(13, "CX16"),
    f(17, "PCID"),
    f(19, "SSE4_1"),
    f(20, "SSE4_2"),
    // The virtual local APIC has only this mode.
    when(21, "X2APIC", Forced),
    f(22, "MOVBE"),
    f(23, "POPCNT"),
    // A mode of the virtual local APIC's timer.
    when(24, "TSC_DEADLINE", Forced),
    f(25, "AES"),
    when(26, "XSAVE", State(1)),
    when(27, "OSXSAVE", Computed),
    avx(28, "AVX"),
    avx(29, "F16C"),
    f(30, "RDRAND"),
    when(31, "HYPERVISOR", Forced),
];

const LEAF_1_EDX: &[Feature] = &[
    f(0, "FPU"),
    f(1, "VME"),
    f(2, "DE"),
    f(3, "PSE"),
    f(4, "TSC"),
    f(5, "MSR"),
    f(6, "PAE"),
    f(8, "CX8"),
    when(9, "APIC", Forced),
    f(11, "SEP"),
    // An MTRR unit without ranges whose default is write-back: Linux 6.1 switches PAT off where
    // MTRRs are absent or disabled. The real types of device memory come from the p2m.
    when(12, "MTRR", Forced),
    f(13, "PGE"),
    f(15, "CMOV"),
    f(16, "PAT"),
    f(17, "PSE36"),
    f(19, "CLFSH"),
    f(23, "MMX"),
    f(24, "FXSR"),
    f(25, "SSE"),
    f(26, "SSE2"),
    f(27, "SS"),
    when(28, "HTT", Computed),
];

const LEAF_7_EBX: &[Feature] = &[
    f(0, "FSGSBASE"),
    // Reads as 0. Linux trusts a TSC with this MSR and then runs no watchdog over it.
    when(1, "TSC_ADJUST", Forced),
    f(3, "BMI1"),
    avx(5, "AVX2"),
    f(6, "FDP_EXCPTN_ONLY"),
    f(7, "SMEP"),
    f(8, "BMI2"),
    f(9, "ERMS"),
    when(10, "INVPCID", Invpcid),
    f(13, "FPU_CS_DS_DEPRECATED"),
    avx512(16, "AVX512F"),
    avx512(17, "AVX512DQ"),
    f(18, "RDSEED"),
    f(19, "ADX"),
    f(20, "SMAP"),
    avx512(21, "AVX512_IFMA"),
    f(23, "CLFLUSHOPT"),
    f(24, "CLWB"),
    avx512(28, "AVX512CD"),
    f(29, "SHA"),
    avx512(30, "AVX512BW"),
    avx512(31, "AVX512VL"),
];

const LEAF_7_ECX: &[Feature] = &[
    avx512(1, "AVX512_VBMI"),
    f(2, "UMIP"),
    avx512(6, "AVX512_VBMI2"),
    f(8, "GFNI"),
    avx(9, "VAES"),
    avx(10, "VPCLMULQDQ"),
    avx512(11, "AVX512_VNNI"),
    avx512(12, "AVX512_BITALG"),
    avx512(14, "AVX512_VPOPCNTDQ"),
    when(22, "RDPID", Rdtscp),
    f(25, "CLDEMOTE"),
    f(27, "MOVDIRI"),
    f(28, "MOVDIR64B"),
];

const LEAF_7_EDX: &[Feature] = &[
    f(4, "FSRM"),
    avx512(8, "AVX512_VP2INTERSECT"),
    // VERW clears buffers; no MSR goes with it.
    f(10, "MD_CLEAR"),
    f(14, "SERIALIZE"),
    avx512(23, "AVX512_FP16"),
];

const LEAF_7_1_EAX: &[Feature] =
    &[avx(4, "AVX_VNNI"), avx512(5, "AVX512_BF16"), f(10, "FZLRM"), f(11, "FSRS"), f(12, "FSRCS")];

const LEAF_81_ECX: &[Feature] = &[
    f(0, "LAHF64"),
    when(1, "CMP_LEGACY", Computed),
    f(4, "ALT_MOV_CR8"),
    f(5, "ABM"),
    f(6, "SSE4A"),
    f(7, "MISALIGN_SSE"),
    f(8, "PREFETCHW"),
    avx(11, "XOP"),
    avx(16, "FMA4"),
    f(21, "TBM"),
];

const LEAF_81_EDX: &[Feature] = &[
    // Bits 0-9 and 12-24 repeat leaf 1 on AMD and read as zero on Intel.
    f(0, "FPU"),
    f(1, "VME"),
    f(2, "DE"),
    f(3, "PSE"),
    f(4, "TSC"),
    f(5, "MSR"),
    f(6, "PAE"),
    f(8, "CX8"),
    f(9, "APIC"),
    f(11, "SYSCALL"),
    f(12, "MTRR"),
    f(13, "PGE"),
    f(15, "CMOV"),
    f(16, "PAT"),
    f(17, "PSE36"),
    f(20, "NX"),
    f(22, "MMXEXT"),
    f(23, "MMX"),
    f(24, "FXSR"),
    f(26, "PAGE_1G"),
    when(27, "RDTSCP", Rdtscp),
    f(29, "LM"),
    f(30, "3DNOWEXT"),
    f(31, "3DNOW"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_word_and_no_bit_is_listed_twice() {
        for (i, word) in WORDS.iter().enumerate() {
            let same = |w: &&Word| (w.leaf, w.subleaf, w.register) == (word.leaf, word.subleaf, word.register);
            assert_eq!(WORDS.iter().filter(same).count(), 1, "word {i}");
            assert!(word.features.is_sorted_by(|a, b| a.bit < b.bit), "leaf {:#x}", word.leaf);
            assert!(word.features.iter().all(|f| f.bit < 32));
        }
    }
}
