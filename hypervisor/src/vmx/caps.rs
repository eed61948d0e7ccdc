// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which VT-x controls this CPU offers and which of them are used.
//!
//! The CPU says for each control whether it may be 0 and whether it may be 1. [`Controls::negotiate`]
//! takes those answers, sets what we need, adds what is useful where it is there, leaves
//! everything else at the CPU's default, and names the first thing that is missing. Adding a
//! requirement here means losing machines: KVM's nested VT-x and the oldest Bochs model with
//! unrestricted guest stand in the test table for that reason.
//!
//! Source: Intel SDM vol. 3D (326019-080), appendix A, VMX Capability Reporting Facility;
//! vol. 3C, §24.6 to §24.8.

use alloc::string::String;
use core::fmt;

use bitflags::{Flags, bitflags};
use guest_abi::num::{high_u32, low_u8, low_u32};

use super::control_regs::FixedBits;

bitflags! {
    /// Pin-based controls.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Pin: u32 {
        /// External interrupts exit.
        const EXTERNAL_INTERRUPT_EXIT = 1 << 0;
        /// NMIs exit.
        const NMI_EXIT = 1 << 3;
        /// The CPU keeps the guest's NMI blocking apart from its own.
        const VIRTUAL_NMIS = 1 << 5;
        /// A timer that runs in the guest and exits at 0.
        const PREEMPTION_TIMER = 1 << 6;
        /// What must be there.
        const REQUIRED = Self::EXTERNAL_INTERRUPT_EXIT.bits() | Self::NMI_EXIT.bits() | Self::VIRTUAL_NMIS.bits();
    }

    /// Primary processor-based controls.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Proc: u32 {
        /// Exit as soon as the guest can take an interrupt.
        const INTERRUPT_WINDOW = 1 << 2;
        /// The guest's TSC is the host's plus an offset.
        const TSC_OFFSET = 1 << 3;
        /// HLT exits.
        const HLT_EXIT = 1 << 7;
        /// INVLPG exits.
        const INVLPG_EXIT = 1 << 9;
        /// MWAIT exits.
        const MWAIT_EXIT = 1 << 10;
        /// RDPMC exits.
        const RDPMC_EXIT = 1 << 11;
        /// RDTSC exits.
        const RDTSC_EXIT = 1 << 12;
        /// Writes of CR3 exit.
        const CR3_LOAD_EXIT = 1 << 15;
        /// Reads of CR3 exit.
        const CR3_STORE_EXIT = 1 << 16;
        /// Writes of CR8 exit.
        const CR8_LOAD_EXIT = 1 << 19;
        /// Reads of CR8 exit.
        const CR8_STORE_EXIT = 1 << 20;
        /// Exit as soon as the guest can take an NMI.
        const NMI_WINDOW = 1 << 22;
        /// Accesses to debug registers exit.
        const MOV_DR_EXIT = 1 << 23;
        /// The port-permission map decides which I/O exits.
        const IO_BITMAPS = 1 << 25;
        /// The MSR map decides which MSR accesses exit.
        const MSR_BITMAPS = 1 << 28;
        /// MONITOR exits.
        const MONITOR_EXIT = 1 << 29;
        /// There are secondary controls.
        const SECONDARY_CONTROLS = 1 << 31;
        /// What must be there.
        const REQUIRED = Self::SECONDARY_CONTROLS.bits() | Self::WINDOWS.bits() | Self::TSC_OFFSET.bits()
            | Self::HLT_EXIT.bits() | Self::MWAIT_EXIT.bits() | Self::MONITOR_EXIT.bits() | Self::RDPMC_EXIT.bits()
            | Self::CR8_LOAD_EXIT.bits() | Self::CR8_STORE_EXIT.bits()
            | Self::IO_BITMAPS.bits() | Self::MSR_BITMAPS.bits();
        /// What starts as 0 and is switched on while the guest runs.
        const WINDOWS = Self::INTERRUPT_WINDOW.bits() | Self::NMI_WINDOW.bits();
        /// What would steal from the guest what it needs without an exit.
        const FORBIDDEN = Self::CR3_LOAD_EXIT.bits() | Self::CR3_STORE_EXIT.bits() | Self::INVLPG_EXIT.bits();
    }

    /// Secondary processor-based controls.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Proc2: u32 {
        /// Extended page tables.
        const EXTENDED_PAGE_TABLES = 1 << 1;
        /// RDTSCP works in the guest.
        const RDTSCP = 1 << 3;
        /// Translations are tagged by vCPU owner.
        const VPID = 1 << 5;
        /// WBINVD exits.
        const WBINVD_EXIT = 1 << 6;
        /// The guest may run in real mode and without paging.
        const UNRESTRICTED_GUEST = 1 << 7;
        /// A guest that spins on PAUSE exits.
        const PAUSE_LOOP_EXIT = 1 << 10;
        /// INVPCID works in the guest.
        const INVPCID = 1 << 12;
        /// XSAVES and XRSTORS work in the guest.
        const XSAVES = 1 << 20;
        /// What must be there.
        const REQUIRED = Self::EXTENDED_PAGE_TABLES.bits() | Self::UNRESTRICTED_GUEST.bits();
        /// What is used where it is there.
        const OPTIONAL = Self::RDTSCP.bits() | Self::VPID.bits() | Self::WBINVD_EXIT.bits() | Self::INVPCID.bits()
            | Self::XSAVES.bits() | Self::PAUSE_LOOP_EXIT.bits();
    }

    /// Controls of VM exits.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ExitControls: u32 {
        /// DR7 and DEBUGCTL are saved.
        const SAVE_DEBUG = 1 << 2;
        /// The host runs in 64-bit mode.
        const HOST_64_BIT = 1 << 9;
        /// An external interrupt is acknowledged at the local APIC before the exit.
        const ACKNOWLEDGE_INTERRUPT = 1 << 15;
        /// The guest's PAT is saved.
        const SAVE_PAT = 1 << 18;
        /// The host's PAT is loaded.
        const LOAD_PAT = 1 << 19;
        /// The guest's EFER is saved.
        const SAVE_EFER = 1 << 20;
        /// The host's EFER is loaded.
        const LOAD_EFER = 1 << 21;
    }

    /// Controls of VM entries.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct EntryControls: u32 {
        /// DR7 and DEBUGCTL are loaded.
        const LOAD_DEBUG = 1 << 2;
        /// The guest is in IA-32e mode. The CPU keeps this bit up to date at exits.
        const GUEST_LONG_MODE = 1 << 9;
        /// The guest's PAT is loaded.
        const LOAD_PAT = 1 << 14;
        /// The guest's EFER is loaded.
        const LOAD_EFER = 1 << 15;
    }
}

/// The capability MSRs of one CPU, as read. Those that do not exist are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the manual's")]
pub struct CapabilityMsrs {
    pub basic: u64,
    pub pin: u64,
    pub proc: u64,
    pub proc2: u64,
    pub exit: u64,
    pub entry: u64,
    pub misc: u64,
    pub cr0_fixed0: u64,
    pub cr0_fixed1: u64,
    pub cr4_fixed0: u64,
    pub cr4_fixed1: u64,
    pub ept_vpid: u64,
}

impl CapabilityMsrs {
    const BASIC: u32 = 0x480;
    const TRUE_CONTROLS: u64 = 1 << 55;

    /// Reads them, each only if the CPU has it; the "true" variants where there are any.
    pub fn read(rdmsr: impl Fn(u32) -> u64) -> Self {
        let basic = rdmsr(Self::BASIC);
        let step = if basic & Self::TRUE_CONTROLS != 0 { 12 } else { 0 };
        let proc = rdmsr(0x482 + step);
        let allowed = |msr: u64, bit: u32| high_u32(msr) & bit != 0;
        let proc2 = if allowed(proc, Proc::SECONDARY_CONTROLS.bits()) { rdmsr(0x48b) } else { 0 };
        let has_ept_vpid = allowed(proc2, Proc2::EXTENDED_PAGE_TABLES.union(Proc2::VPID).bits());
        Self {
            basic,
            pin: rdmsr(0x481 + step),
            proc,
            proc2,
            exit: rdmsr(0x483 + step),
            entry: rdmsr(0x484 + step),
            misc: rdmsr(0x485),
            cr0_fixed0: rdmsr(0x486),
            cr0_fixed1: rdmsr(0x487),
            cr4_fixed0: rdmsr(0x488),
            cr4_fixed1: rdmsr(0x489),
            ept_vpid: if has_ept_vpid { rdmsr(0x48c) } else { 0 },
        }
    }
}

/// Why VT-x cannot be used on this CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoVmx {
    /// CPUID does not report VT-x.
    NotReported,
    /// The firmware has locked VT-x off.
    LockedOff,
    /// Something that is needed is not there.
    Missing(&'static str),
    /// The control of this name cannot be set.
    CannotSet(&'static str),
    /// The control of this name is in the way and cannot be cleared.
    CannotClear(&'static str),
}

impl fmt::Display for NoVmx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReported => f.write_str("this CPU does not report VT-x"),
            Self::LockedOff => f.write_str("the firmware has locked VT-x off; enable virtualization in its setup"),
            Self::Missing(what) => write!(f, "this CPU's VT-x has no {what}"),
            Self::CannotSet(name) => write!(f, "this CPU's VT-x has no {}", words(name)),
            Self::CannotClear(name) => write!(f, "this CPU's VT-x cannot do without {}", words(name)),
        }
    }
}

/// A control's name as words.
fn words(name: &str) -> String {
    name.replace('_', " ").to_lowercase()
}

/// The control words that every VMCS starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the manual's")]
pub struct Controls {
    pub pin: Pin,
    pub proc: Proc,
    pub proc2: Proc2,
    pub exit: ExitControls,
    pub entry: EntryControls,
}

impl Controls {
    fn negotiate(msrs: &CapabilityMsrs) -> Result<Self, NoVmx> {
        let forced = Proc::from_bits_retain(low_u32(msrs.proc));
        if let Some((name, _)) = (forced & Proc::FORBIDDEN).iter_names().next() {
            return Err(NoVmx::CannotClear(name));
        }
        Ok(Self {
            pin: word(msrs.pin, Pin::REQUIRED, Pin::PREEMPTION_TIMER)?,
            proc: word(msrs.proc, Proc::REQUIRED, Proc::empty())?.difference(Proc::WINDOWS.difference(forced)),
            proc2: word(msrs.proc2, Proc2::REQUIRED, Proc2::OPTIONAL)?,
            exit: word(msrs.exit, ExitControls::all(), ExitControls::empty())?,
            // Set by whoever knows the guest's mode.
            entry: word(msrs.entry, EntryControls::all(), EntryControls::empty())?
                .difference(EntryControls::GUEST_LONG_MODE),
        })
    }
}

/// One control word: what must be 1 (low half of the MSR), plus `required`, plus what of
/// `optional` may be 1 (high half).
fn word<F: Flags<Bits = u32>>(msr: u64, required: F, optional: F) -> Result<F, NoVmx> {
    let (must, may) = (low_u32(msr), high_u32(msr));
    if let Some((name, _)) = F::from_bits_retain(required.bits() & !may).iter_names().next() {
        return Err(NoVmx::CannotSet(name));
    }
    Ok(F::from_bits_retain(must | required.bits() | optional.bits() & may))
}

/// What the CPU's EPT and VPID can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct EptFeatures {
    pub pages_2m: bool,
    pub pages_1g: bool,
    pub execute_only: bool,
    pub invept_single: bool,
    pub invvpid_single: bool,
}

impl EptFeatures {
    fn decode(ept_vpid: u64) -> Result<Self, NoVmx> {
        let has = |bit: u32| ept_vpid & 1 << bit != 0;
        if !has(6) {
            return Err(NoVmx::Missing("four-level EPT"));
        }
        if !has(14) {
            return Err(NoVmx::Missing("write-back EPT tables"));
        }
        if !has(20) || !(has(25) || has(26)) {
            return Err(NoVmx::Missing("INVEPT"));
        }
        Ok(Self {
            execute_only: has(0),
            pages_2m: has(16),
            pages_1g: has(17),
            invept_single: has(25),
            invvpid_single: has(41),
        })
    }
}

/// What VT-x is on this CPU, once it is known to be enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// The control words that every VMCS starts with.
    pub controls: Controls,
    /// EPT and VPID.
    pub ept: EptFeatures,
    /// The bits of CR0 that VT-x fixes, unrestricted guest not considered.
    pub cr0: FixedBits,
    /// The bits of CR4 that VT-x fixes.
    pub cr4: FixedBits,
    /// What goes into the first word of a VMXON region and a VMCS.
    pub revision: u32,
    /// The preemption timer counts once in `1 << shift` TSC ticks; `None` without one.
    pub timer_shift: Option<u8>,
}

impl Capabilities {
    /// Decides how to use VT-x here.
    ///
    /// # Errors
    /// [`NoVmx::Missing`] names the first thing that is not there.
    pub fn negotiate(msrs: &CapabilityMsrs) -> Result<Self, NoVmx> {
        let mut controls = Controls::negotiate(msrs)?;
        let ept = EptFeatures::decode(msrs.ept_vpid)?;
        // A tag that cannot be dropped by itself is worse than none.
        let has_invvpid = msrs.ept_vpid & 1 << 32 != 0;
        if !has_invvpid || !(ept.invvpid_single || msrs.ept_vpid & 1 << 42 != 0) {
            controls.proc2.remove(Proc2::VPID);
        }
        let has_timer = controls.pin.contains(Pin::PREEMPTION_TIMER);
        Ok(Self {
            controls,
            ept,
            cr0: FixedBits::new(msrs.cr0_fixed0, msrs.cr0_fixed1),
            cr4: FixedBits::new(msrs.cr4_fixed0, msrs.cr4_fixed1),
            revision: low_u32(msrs.basic) & 0x7fff_ffff,
            timer_shift: has_timer.then(|| low_u8(msrs.misc & 0x1f)),
        })
    }

    /// The EPT pointer for a p2m root: write-back tables, four levels. Accessed and dirty flags
    /// stay off: nobody reads them, and with them the CPU's walk of a guest's page tables
    /// counts as a write.
    #[must_use]
    pub const fn ept_pointer(root: crate::addr::Mfn) -> u64 {
        root.base().raw() | 3 << 3 | 6
    }

    /// The largest block that one EPT entry maps.
    #[must_use]
    pub const fn largest_leaf(&self) -> crate::addr::Order {
        use crate::addr::Order;
        match self.ept {
            EptFeatures { pages_1g: true, pages_2m: true, .. } => Order::GIB_1,
            EptFeatures { pages_2m: true, .. } => Order::MIB_2,
            EptFeatures { .. } => Order::PAGE,
        }
    }

    /// The preemption timer's start value so that it ends at `deadline` or a little later, at
    /// most one of its own ticks; a deadline beyond its 32 bits ends it early. `None` without
    /// a timer.
    #[inline]
    #[must_use]
    pub fn timer_value(&self, now: u64, deadline: u64) -> Option<u32> {
        let shift = u32::from(self.timer_shift?);
        let left = deadline.saturating_sub(now);
        if left >= u64::from(u32::MAX) << shift {
            return Some(u32::MAX);
        }
        Some(low_u32((left + ((1 << shift) - 1)) >> shift))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::addr::Mfn;

    /// The oldest machine of the table, for other modules' tests.
    pub(crate) fn haswell() -> Capabilities {
        Capabilities::negotiate(&bochs(HASWELL)).expect("the table's own machine")
    }

    /// A capability word from what must be 1 and what may be 1.
    const fn cap(must: u32, may: u32) -> u64 {
        (may as u64) << 32 | must as u64
    }

    /// What Bochs 2.7's `broadwell_ult` reports, with the secondary controls of the given model;
    /// those are what its models from Haswell on differ in.
    const fn bochs(proc2: u32) -> CapabilityMsrs {
        CapabilityMsrs {
            basic: 0x00d8_1000_0000_002b,
            pin: cap(0x16, 0x7f),
            proc: cap(0x0400_6172, 0xf7f9_fffe),
            proc2: cap(0, proc2),
            exit: cap(0x0003_6dfb, 0x007f_ffff),
            entry: cap(0x0000_11fb, 0x0000_ffff),
            misc: 0x2004_01e0,
            cr0_fixed0: 0x8000_0021,
            cr0_fixed1: 0xffff_ffff,
            cr4_fixed0: 0x2000,
            cr4_fixed1: 0x0037_27ff,
            ept_vpid: 0x0000_0f01_0633_4141,
        }
    }

    /// What KVM offers to a nested hypervisor, after the lists in `nested_vmx_setup_ctls_msrs`
    /// (Linux 6.1): no PAUSE-loop exiting, among other things.
    fn nested_kvm() -> CapabilityMsrs {
        CapabilityMsrs {
            basic: 0x00d8_1000_11e5_7ed0,
            pin: cap(0x16, 0x7f),
            proc: cap(0x0400_6172, 0xfff9_fffe),
            proc2: cap(0, 0x001b_5fff & !(1 << 10)),
            exit: cap(0x0003_6dfb, 0x007f_efff),
            entry: cap(0x0000_11fb, 0x0000_f3ff),
            misc: 0x0000_0000_2000_0005 | 1 << 6,
            cr0_fixed0: 0x8000_0021,
            cr0_fixed1: 0xffff_ffff,
            cr4_fixed0: 0x2000,
            cr4_fixed1: 0x0037_67ff,
            ept_vpid: 0x0000_0f01_0673_4141,
        }
    }

    const HASWELL: u32 = 0x0004_7fff;

    #[test]
    fn known_machines_are_enough() {
        let machines = [
            ("haswell", bochs(HASWELL), false),
            ("broadwell", bochs(0x0005_7fff), false),
            ("skylake-x", bochs(0x0217_7fff), true),
            ("ice lake", bochs(0x0297_7fff), true),
            ("cannon lake", bochs(0x0215_7cff), true),
            ("nested KVM", nested_kvm(), true),
        ];
        for (name, msrs, xsaves) in machines {
            let caps = Capabilities::negotiate(&msrs).unwrap_or_else(|why| panic!("{name}: {why}"));
            let controls = caps.controls;
            assert!(
                controls.proc2.contains(Proc2::EXTENDED_PAGE_TABLES | Proc2::UNRESTRICTED_GUEST | Proc2::VPID),
                "{name}"
            );
            assert_eq!(controls.proc2.contains(Proc2::XSAVES), xsaves, "{name}");
            for (value, msr) in [
                (controls.pin.bits(), msrs.pin),
                (controls.proc.bits(), msrs.proc),
                (controls.proc2.bits(), msrs.proc2),
                (controls.exit.bits(), msrs.exit),
                (controls.entry.bits(), msrs.entry),
            ] {
                assert_eq!(value & low_u32(msr), low_u32(msr), "{name}: a must-be-one bit is clear");
                assert_eq!(value & !high_u32(msr), 0, "{name}: a must-be-zero bit is set");
            }
            assert!(!controls.proc.intersects(Proc::INTERRUPT_WINDOW | Proc::NMI_WINDOW | Proc::RDTSC_EXIT), "{name}");
            assert!(!controls.proc.intersects(Proc::MOV_DR_EXIT | Proc::CR3_LOAD_EXIT), "{name}");
            assert!(caps.timer_shift.is_some(), "{name}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let without = |bit: Proc2| Capabilities::negotiate(&bochs(HASWELL & !bit.bits()));
        let missing = |caps: Result<Capabilities, NoVmx>| caps.unwrap_err().to_string();
        assert_eq!(missing(without(Proc2::UNRESTRICTED_GUEST)), "this CPU's VT-x has no unrestricted guest");
        assert_eq!(missing(without(Proc2::EXTENDED_PAGE_TABLES)), "this CPU's VT-x has no extended page tables");
        let no_secondary = CapabilityMsrs { proc: cap(0x0400_6172, 0x77f9_fffe), ..bochs(HASWELL) };
        assert!(missing(Capabilities::negotiate(&no_secondary)).ends_with("no secondary controls"));
        let no_efer = CapabilityMsrs { entry: cap(0x11fb, 0x7fff), ..bochs(HASWELL) };
        assert!(missing(Capabilities::negotiate(&no_efer)).ends_with("no load efer"));
        let no_cr3 = CapabilityMsrs { proc: cap(0x0400_e172, 0xf7f9_fffe), ..bochs(HASWELL) };
        assert!(missing(Capabilities::negotiate(&no_cr3)).ends_with("without cr3 load exit"));
    }

    #[test]
    fn every_requirement_is_checked() {
        fn strike<F: Flags<Bits = u32>>(msr: u64, required: F) -> impl Iterator<Item = u64> {
            let bits = (0..32).map(|bit| 1 << bit).filter(move |bit| required.bits() & bit != 0);
            bits.map(move |bit| msr & !(u64::from(bit) << 32))
        }
        let good = bochs(HASWELL);
        let mut broken = Vec::new();
        broken.extend(strike(good.pin, Pin::REQUIRED).map(|pin| CapabilityMsrs { pin, ..good }));
        broken.extend(strike(good.proc, Proc::REQUIRED).map(|proc| CapabilityMsrs { proc, ..good }));
        broken.extend(strike(good.proc2, Proc2::REQUIRED).map(|proc2| CapabilityMsrs { proc2, ..good }));
        broken.extend(strike(good.exit, ExitControls::all()).map(|exit| CapabilityMsrs { exit, ..good }));
        broken.extend(strike(good.entry, EntryControls::all()).map(|entry| CapabilityMsrs { entry, ..good }));
        assert_eq!(broken.len(), 3 + 12 + 2 + 7 + 4);
        for bit in [Proc::CR3_LOAD_EXIT, Proc::CR3_STORE_EXIT, Proc::INVLPG_EXIT] {
            broken.push(CapabilityMsrs { proc: good.proc | u64::from(bit.bits()), ..good });
        }
        for bit in [6, 14, 20] {
            broken.push(CapabilityMsrs { ept_vpid: good.ept_vpid & !(1 << bit), ..good });
        }
        for msrs in broken {
            assert!(Capabilities::negotiate(&msrs).is_err(), "{msrs:x?}");
        }
    }

    #[test]
    fn optional_parts_are_not_missed() {
        let bare = Proc2::REQUIRED.bits();
        let msrs = CapabilityMsrs { pin: cap(0x16, 0x3f), ept_vpid: 0x0410_4040, ..bochs(bare) };
        let caps = Capabilities::negotiate(&msrs).unwrap();
        assert_eq!(caps.controls.proc2.bits(), bare);
        assert_eq!(caps.timer_value(0, 1), None);
        assert_eq!(caps.largest_leaf(), crate::addr::Order::PAGE);
    }

    #[test]
    fn a_tag_is_used_only_where_it_can_be_dropped() {
        let msrs = CapabilityMsrs { ept_vpid: 0x0633_4141, ..bochs(HASWELL) };
        assert!(!Capabilities::negotiate(&msrs).unwrap().controls.proc2.contains(Proc2::VPID));
    }

    #[test]
    fn true_controls_are_read_where_they_exist() {
        let asked = core::cell::RefCell::new(Vec::new());
        let msrs = CapabilityMsrs::read(|number| {
            asked.borrow_mut().push(number);
            if number == 0x480 { 1 << 55 } else { u64::from(number) | 0xffff_ffff << 32 }
        });
        assert_eq!((low_u32(msrs.pin), low_u32(msrs.exit), low_u32(msrs.misc)), (0x48d, 0x48f, 0x485));
        let msrs = CapabilityMsrs::read(|number| if number == 0x48b || number == 0x48c { panic!("absent") } else { 0 });
        assert_eq!(msrs.proc2, 0);
    }

    #[test]
    fn the_timer_never_ends_before_a_near_deadline() {
        let caps = Capabilities::negotiate(&nested_kvm()).unwrap();
        assert_eq!(caps.timer_shift, Some(5));
        assert_eq!(caps.timer_value(100, 100), Some(0));
        assert_eq!(caps.timer_value(100, 50), Some(0));
        assert_eq!(caps.timer_value(0, 1), Some(1));
        assert_eq!(caps.timer_value(0, 64), Some(2));
        assert_eq!(caps.timer_value(0, u64::MAX), Some(u32::MAX));
    }

    #[test]
    fn the_ept_pointer_has_its_format() {
        assert_eq!(Capabilities::ept_pointer(Mfn::new(0xa_bc00)), 0xabc0_001e);
    }
}
