// SPDX-License-Identifier: MIT OR Apache-2.0
//! Model-specific registers as a domain sees them.
//!
//! Everything is denied with #GP except what has a [`Rule`]. A rule says what a read gives and what
//! a write does; nothing in it touches the hardware. What has to is handed back to the vCPU loop
//! as [`MsrRead`] or [`MsrWrite`], already checked.
//!
//! Linux survives #GP on any MSR once its exception tables are in place; what it touches before
//! (EFER, GS_BASE, MISC_ENABLE, APIC_BASE, the x2APIC id) has a rule on every host where it does.
//!
//! Sources: Intel SDM vol. 4; AMD APM vol. 2, appendix A.

use guest_abi::Gpa;
use guest_abi::cpuid::HYPERCALL_MSR;

use self::Read::{ApicBase, Constant, Kept};
use self::Write::{Address, Bits, Ignored, PatTypes, Refused};
use super::cpuid::{CpuidPolicy, Vendor};
use super::features::Register;
use crate::backend::GuestMsr;

/// What RDMSR gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrRead {
    /// This value.
    Value(u64),
    /// What the backend keeps.
    Hw(GuestMsr),
    /// EFER, from the backend.
    Efer,
    /// The guest's time-stamp counter.
    Tsc,
    /// The local APIC register at offset `reg << 4` of the xAPIC page.
    Lapic(u8),
    /// The local APIC timer's deadline, in guest ticks.
    TscDeadline,
    /// #GP(0).
    Fault,
}

/// What WRMSR does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrWrite {
    /// It is done, or has no effect.
    Done,
    /// The backend keeps the value, which has been checked.
    Hw(GuestMsr, u64),
    /// EFER; [`super::control::ControlPolicy::check_efer`] decides.
    Efer(u64),
    /// The local APIC register at offset `reg << 4` of the xAPIC page.
    Lapic(u8, u64),
    /// The local APIC timer's deadline, in guest ticks.
    TscDeadline(u64),
    /// Fill this guest page with hypercall stubs.
    HypercallPage(Gpa),
    /// #GP(0).
    Fault,
}

/// MSRs whose value is kept here for one vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrState {
    is_bsp: bool,
    mtrr_def_type: u64,
}

impl MsrState {
    /// The state after reset. `is_bsp` for vCPU 0.
    #[must_use]
    pub const fn new(is_bsp: bool) -> Self {
        Self { is_bsp, mtrr_def_type: MTRR_ENABLE | MTRR_WRITE_BACK }
    }

    /// IA32_APIC_BASE: enabled, in x2APIC mode, always.
    #[must_use]
    pub const fn apic_base(&self) -> u64 {
        const BSP: u64 = 1 << 8;
        0xfee0_0000 | 1 << 11 | 1 << 10 | if self.is_bsp { BSP } else { 0 }
    }
}

const MTRR_ENABLE: u64 = 1 << 11;
const MTRR_WRITE_BACK: u64 = 6;

/// On which domains a rule applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    All,
    Intel,
    Amd,
    /// Where RDTSCP or RDPID is offered.
    TscAux,
}

/// What a read gives.
#[derive(Clone, Copy, Debug)]
enum Read {
    Constant(u64),
    /// The backend's value.
    Kept(GuestMsr),
    ApicBase,
    MtrrDefType,
    Efer,
    Tsc,
}

/// What a write does.
#[derive(Clone, Copy, Debug)]
enum Write {
    Refused,
    /// Accepted without effect.
    Ignored,
    /// Kept by the backend if no other bits are set.
    Bits(GuestMsr, u64),
    /// Kept by the backend if canonical.
    Address(GuestMsr),
    /// Kept by the backend if each of the eight fields is a memory type.
    PatTypes,
    /// Accepted if it changes nothing.
    ApicBase,
    MtrrDefType,
    Efer,
    HypercallPage,
}

/// One MSR that a guest may touch.
struct Rule {
    msr: u32,
    applies: Where,
    read: Read,
    write: Write,
}

const fn rule(msr: u32, applies: Where, read: Read, write: Write) -> Rule {
    Rule { msr, applies, read, write }
}

const LOW_HALF: u64 = 0xffff_ffff;

/// Every MSR with a rule except the local APIC's, in ascending order.
#[rustfmt::skip]
const RULES: &[Rule] = &[
    // The TSC: RDMSR gives what RDTSC gives. It cannot be moved, since all vCPUs share one offset.
    rule(0x10, Where::All, Read::Tsc, Ignored),
    // PLATFORM_ID: read for the microcode loader, which has nothing to load.
    rule(0x17, Where::Intel, Constant(0), Refused),
    // APIC_BASE: x2APIC mode from the start; there is no other.
    rule(0x1b, Where::All, ApicBase, Write::ApicBase),
    // FEATURE_CONTROL: locked with nothing enabled.
    rule(0x3a, Where::Intel, Constant(1), Refused),
    // TSC_ADJUST: the TSC is not adjusted and cannot be.
    rule(0x3b, Where::All, Constant(0), Ignored),
    // Microcode revision: Linux writes 0, runs CPUID and reads; AMD kernels read only.
    rule(0x8b, Where::All, Constant(0), Ignored),
    // PLATFORM_INFO: no CPUID faulting, no ratios.
    rule(0xce, Where::Intel, Constant(0), Refused),
    // MTRRcap: no ranges, neither fixed nor variable.
    rule(0xfe, Where::All, Constant(0), Refused),
    // SYSENTER's entry point.
    rule(0x174, Where::All, Kept(GuestMsr::SysenterCs), Bits(GuestMsr::SysenterCs, LOW_HALF)),
    rule(0x175, Where::All, Kept(GuestMsr::SysenterEsp), Address(GuestMsr::SysenterEsp)),
    rule(0x176, Where::All, Kept(GuestMsr::SysenterEip), Address(GuestMsr::SysenterEip)),
    // MISC_ENABLE: fast strings; no BTS, no PEBS; execute-disable not disabled. Read without an IDT.
    rule(0x1a0, Where::Intel, Constant(1 << 0 | 1 << 11 | 1 << 12), Ignored),
    // DEBUGCTL: nothing in it is offered; Linux clears BTF here.
    rule(0x1d9, Where::All, Constant(0), Ignored),
    // PAT combines with the p2m's type; both backends switch it.
    rule(0x277, Where::All, Kept(GuestMsr::Pat), PatTypes),
    // MTRRdefType: kept without effect. Linux turns it off and on around setting PAT.
    rule(0x2ff, Where::All, Read::MtrrDefType, Write::MtrrDefType),
    // The hypercall page, for kernels before the direct call.
    rule(HYPERCALL_MSR, Where::All, Constant(0), Write::HypercallPage),
    rule(0xc000_0080, Where::All, Read::Efer, Write::Efer),
    // SYSCALL's entry points.
    rule(0xc000_0081, Where::All, Kept(GuestMsr::Star), Bits(GuestMsr::Star, u64::MAX)),
    rule(0xc000_0082, Where::All, Kept(GuestMsr::Lstar), Address(GuestMsr::Lstar)),
    rule(0xc000_0083, Where::All, Kept(GuestMsr::Cstar), Address(GuestMsr::Cstar)),
    rule(0xc000_0084, Where::All, Kept(GuestMsr::Sfmask), Bits(GuestMsr::Sfmask, LOW_HALF)),
    // Segment bases; normally not intercepted.
    rule(0xc000_0100, Where::All, Kept(GuestMsr::FsBase), Address(GuestMsr::FsBase)),
    rule(0xc000_0101, Where::All, Kept(GuestMsr::GsBase), Address(GuestMsr::GsBase)),
    rule(0xc000_0102, Where::All, Kept(GuestMsr::KernelGsBase), Address(GuestMsr::KernelGsBase)),
    // TSC_AUX: what RDTSCP and RDPID return.
    rule(0xc000_0103, Where::TscAux, Kept(GuestMsr::TscAux), Bits(GuestMsr::TscAux, LOW_HALF)),
    // SYSCFG: no memory encryption, no TOM2; read with MTRRs.
    rule(0xc001_0010, Where::Amd, Constant(0), Ignored),
    // HWCR: TscFreqSel, which Linux expects with a constant TSC.
    rule(0xc001_0015, Where::Amd, Constant(1 << 24), Ignored),
    // DE_CFG: LFENCE waits for earlier instructions. The boot code sets the bit in the hardware.
    rule(0xc001_1029, Where::Amd, Constant(1 << 1), Ignored),
];

/// IA32_TSC_DEADLINE.
const TSC_DEADLINE: u32 = 0x6e0;
/// The x2APIC's registers.
const X2APIC: core::ops::RangeInclusive<u32> = 0x800..=0x8ff;

/// The MSR policy of one domain.
#[derive(Clone, Copy, Debug)]
pub struct MsrPolicy {
    vendor: Vendor,
    has_tsc_aux: bool,
}

impl MsrPolicy {
    /// Derives the policy from the features that the domain is offered.
    #[must_use]
    pub fn new(cpuid: &CpuidPolicy) -> Self {
        let rdtscp = cpuid.offers(0x8000_0001, 0, Register::Edx, 27);
        let rdpid = cpuid.offers(7, 0, Register::Ecx, 22);
        Self { vendor: cpuid.vendor(), has_tsc_aux: rdtscp || rdpid }
    }

    /// Decides on RDMSR.
    #[must_use]
    pub fn read(&self, msr: u32, state: &MsrState) -> MsrRead {
        if X2APIC.contains(&msr) {
            return MsrRead::Lapic(msr.to_le_bytes()[0]);
        }
        if msr == TSC_DEADLINE {
            return MsrRead::TscDeadline;
        }
        let Some(rule) = self.rule(msr) else { return MsrRead::Fault };
        match rule.read {
            Constant(value) => MsrRead::Value(value),
            Kept(register) => MsrRead::Hw(register),
            ApicBase => MsrRead::Value(state.apic_base()),
            Read::MtrrDefType => MsrRead::Value(state.mtrr_def_type),
            Read::Efer => MsrRead::Efer,
            Read::Tsc => MsrRead::Tsc,
        }
    }

    /// Decides on WRMSR.
    #[must_use]
    pub fn write(&self, msr: u32, value: u64, state: &mut MsrState) -> MsrWrite {
        if X2APIC.contains(&msr) {
            return MsrWrite::Lapic(msr.to_le_bytes()[0], value);
        }
        if msr == TSC_DEADLINE {
            return MsrWrite::TscDeadline(value);
        }
        let Some(rule) = self.rule(msr) else { return MsrWrite::Fault };
        match rule.write {
            Ignored => MsrWrite::Done,
            Bits(register, mask) if value & !mask == 0 => MsrWrite::Hw(register, value),
            Address(register) if is_canonical(value) => MsrWrite::Hw(register, value),
            PatTypes if are_pat_types(value) => MsrWrite::Hw(GuestMsr::Pat, value),
            Write::ApicBase if value == state.apic_base() => MsrWrite::Done,
            Write::MtrrDefType if is_mtrr_def_type(value) => {
                state.mtrr_def_type = value;
                MsrWrite::Done
            }
            Write::Efer => MsrWrite::Efer(value),
            Write::HypercallPage => MsrWrite::HypercallPage(Gpa::new(value)),
            Refused | Bits(..) | Address(_) | PatTypes | Write::ApicBase | Write::MtrrDefType => MsrWrite::Fault,
        }
    }

    fn rule(&self, msr: u32) -> Option<&'static Rule> {
        let rule = RULES.binary_search_by_key(&msr, |rule| rule.msr).ok().and_then(|i| RULES.get(i))?;
        let applies = match rule.applies {
            Where::All => true,
            Where::Intel => self.vendor == Vendor::Intel,
            Where::Amd => self.vendor == Vendor::Amd,
            Where::TscAux => self.has_tsc_aux,
        };
        applies.then_some(rule)
    }
}

/// Whether bits 63:47 are equal, as addresses with four levels of tables must be.
#[must_use]
pub const fn is_canonical(address: u64) -> bool {
    (address.cast_signed() << 16 >> 16).cast_unsigned() == address
}

/// Whether all eight fields are memory types: UC, WC, WT, WP, WB, UC-.
pub(crate) fn are_pat_types(value: u64) -> bool {
    value.to_le_bytes().iter().all(|field| matches!(field, 0 | 1 | 4..=7))
}

/// A default type, the enable bit, and the fixed ranges' enable bit, which has no effect.
const fn is_mtrr_def_type(value: u64) -> bool {
    value & !(MTRR_ENABLE | 1 << 10 | 0xff) == 0 && matches!(value & 0xff, 0 | 1 | 4..=6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::cpuid::tests::{AMD, INTEL, full_host, params};
    use crate::policy::cpuid::{CpuidParams, CpuidPolicy};

    fn policy(vendor: &'static [u8; 12]) -> MsrPolicy {
        MsrPolicy::new(&CpuidPolicy::new(&full_host(vendor), &params()))
    }

    fn write(msr: u32, value: u64) -> MsrWrite {
        policy(INTEL).write(msr, value, &mut MsrState::new(true))
    }

    #[test]
    fn the_rules_are_in_ascending_order() {
        assert!(RULES.is_sorted_by(|a, b| a.msr < b.msr));
    }

    #[test]
    fn what_has_no_rule_faults() {
        let state = &mut MsrState::new(true);
        for vendor in [INTEL, AMD] {
            let policy = policy(vendor);
            let hidden = [
                0x48,
                0x49,
                0x10a,
                0x10b,
                0x122,
                0x140,
                0x179,
                0x17a,
                0x186,
                0x198,
                0x199,
                0x19c,
                0x1b0,
                0x200,
                0x250,
                0x38f,
                0x400,
                0x480,
                0x570,
                0x6a0,
                0x7ff,
                0x900,
                0xda0,
                0x4000_0001,
                0xc000_0104,
                0xc001_0131,
                0xc001_0114,
                0xc001_0117,
                0xc001_1020,
                u32::MAX,
            ];
            for msr in hidden {
                assert_eq!(policy.read(msr, state), MsrRead::Fault, "{msr:#x}");
                assert_eq!(policy.write(msr, 0, state), MsrWrite::Fault, "{msr:#x}");
            }
        }
    }

    #[test]
    fn vendor_registers_exist_only_on_their_vendor() {
        let state = &MsrState::new(true);
        assert_eq!(policy(INTEL).read(0x1a0, state), MsrRead::Value(0x1801));
        assert_eq!(policy(AMD).read(0x1a0, state), MsrRead::Fault);
        assert_eq!(policy(AMD).read(0xc001_0015, state), MsrRead::Value(1 << 24));
        assert_eq!(policy(AMD).read(0xc001_1029, state), MsrRead::Value(2));
        assert_eq!(policy(INTEL).read(0xc001_0015, state), MsrRead::Fault);
    }

    #[test]
    fn entry_points_and_bases_must_be_canonical() {
        for msr in [0x175, 0x176, 0xc000_0082, 0xc000_0083, 0xc000_0100, 0xc000_0101, 0xc000_0102] {
            assert_eq!(write(msr, 0x8000_0000_0000), MsrWrite::Fault, "{msr:#x}");
            assert_eq!(write(msr, 0xffff_7fff_ffff_ffff), MsrWrite::Fault, "{msr:#x}");
            assert!(matches!(write(msr, 0xffff_8000_0000_0000), MsrWrite::Hw(..)), "{msr:#x}");
        }
        assert_eq!(write(0xc000_0082, 0x7fff_ffff_ffff), MsrWrite::Hw(GuestMsr::Lstar, 0x7fff_ffff_ffff));
        assert_eq!(write(0xc000_0081, u64::MAX), MsrWrite::Hw(GuestMsr::Star, u64::MAX));
        assert_eq!(write(0xc000_0084, 1 << 32), MsrWrite::Fault);
        assert_eq!(write(0x174, 1 << 32), MsrWrite::Fault);
    }

    #[test]
    fn pat_takes_memory_types_only() {
        assert_eq!(write(0x277, 0x0407_0106_0407_0106), MsrWrite::Hw(GuestMsr::Pat, 0x0407_0106_0407_0106));
        for bad in [2, 3, 8, 0x10, 0xff] {
            assert_eq!(write(0x277, bad << 56), MsrWrite::Fault, "{bad}");
        }
    }

    #[test]
    fn the_apic_stays_in_x2apic_mode() {
        let state = &mut MsrState::new(true);
        let policy = policy(INTEL);
        assert_eq!(policy.read(0x1b, state), MsrRead::Value(0xfee0_0d00));
        assert_eq!(policy.read(0x1b, &MsrState::new(false)), MsrRead::Value(0xfee0_0c00));
        assert_eq!(policy.write(0x1b, 0xfee0_0d00, state), MsrWrite::Done);
        for other in [0, 0xfee0_0100, 0xfee0_0900, 0xfed0_0d00, 0xfee0_0c00] {
            assert_eq!(policy.write(0x1b, other, state), MsrWrite::Fault, "{other:#x}");
        }
        assert_eq!(policy.read(0x80b, state), MsrRead::Lapic(0xb));
        assert_eq!(policy.write(0x830, 5 << 32 | 0x4500, state), MsrWrite::Lapic(0x30, 5 << 32 | 0x4500));
        assert_eq!(policy.write(0x6e0, 77, state), MsrWrite::TscDeadline(77));
    }

    #[test]
    fn mtrrs_are_enabled_without_ranges_and_the_switch_is_kept() {
        let state = &mut MsrState::new(true);
        let policy = policy(INTEL);
        assert_eq!(policy.read(0xfe, state), MsrRead::Value(0));
        assert_eq!(policy.read(0x2ff, state), MsrRead::Value(0x806));
        assert_eq!(policy.write(0x2ff, 0x6, state), MsrWrite::Done);
        assert_eq!(policy.read(0x2ff, state), MsrRead::Value(0x6));
        for bad in [2, 7, 0x1000, 1 << 63] {
            assert_eq!(policy.write(0x2ff, bad, state), MsrWrite::Fault, "{bad:#x}");
        }
    }

    #[test]
    fn tsc_aux_exists_only_where_rdtscp_is_offered() {
        let without = CpuidPolicy::new(&full_host(AMD), &CpuidParams { has_rdtscp: false, ..params() });
        let state = &mut MsrState::new(false);
        assert_eq!(MsrPolicy::new(&without).read(0xc000_0103, state), MsrRead::Fault);
        assert_eq!(policy(AMD).read(0xc000_0103, state), MsrRead::Hw(GuestMsr::TscAux));
        assert_eq!(policy(AMD).write(0xc000_0103, 1 << 32, state), MsrWrite::Fault);
    }

    #[test]
    fn the_rest_of_the_table_does_what_it_says() {
        let state = &mut MsrState::new(false);
        let policy = policy(INTEL);
        assert_eq!(policy.read(0x10, state), MsrRead::Tsc);
        assert_eq!(policy.write(0x10, 5, state), MsrWrite::Done);
        assert_eq!(policy.read(0xc000_0080, state), MsrRead::Efer);
        assert_eq!(policy.write(0xc000_0080, 0x1001, state), MsrWrite::Efer(0x1001));
        assert_eq!(policy.write(0x4000_0000, 0x5000, state), MsrWrite::HypercallPage(Gpa::new(0x5000)));
        assert_eq!(policy.write(0x3a, 0, state), MsrWrite::Fault);
        assert_eq!(policy.write(0xfe, 0, state), MsrWrite::Fault);
    }
}
