// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why the CPU refused to enter a guest.
//!
//! A failed entry says only "invalid guest state". [`first_failure`] repeats the CPU's checks on
//! the fields of the VMCS, in the manual's order, and names the first that fails, so that the log
//! says what is wrong. It runs after a failure only, so it may read as many fields as it likes.
//! A state that it finds nothing wrong with is reported as such: the list holds the checks
//! that a guest or a toolstack can reach, not those on features that are never switched on.
//!
//! Source: Intel SDM vol. 3C (326019-080), §26.3.1 Checks on the Guest State Area.

use core::fmt;

use guest_abi::num::low_u32;

use super::caps::{Capabilities, EntryControls};
use super::fields::{Field, SegmentFields};
use crate::backend::SegmentName;
use crate::policy::control::{cr0, cr4, efer};
use crate::policy::msr::is_canonical;

/// A check that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What must hold.
    pub rule: &'static str,
    /// The field to look at.
    pub field: Field,
    /// What it holds.
    pub value: u64,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} = {:#x}: {}", self.field, self.value, self.rule)
    }
}

type Check = Result<(), Failure>;

struct State<'a> {
    read: &'a dyn Fn(Field) -> u64,
    caps: &'a Capabilities,
}

/// The first check on the guest state that fails. `read` executes VMREAD.
#[must_use]
pub fn first_failure(read: &dyn Fn(Field) -> u64, caps: &Capabilities) -> Option<Failure> {
    let state = State { read, caps };
    let checks = [
        State::control_registers,
        State::msrs,
        State::segments,
        State::descriptor_tables,
        State::rip_and_rflags,
        State::non_register_state,
    ];
    checks.iter().find_map(|check| check(&state).err())
}

const RFLAGS_VM: u64 = 1 << 17;
const RFLAGS_IF: u64 = 1 << 9;
const UNUSABLE: u64 = 1 << 16;
const PRESENT: u64 = 1 << 7;
const CODE_OR_DATA: u64 = 1 << 4;
const LONG: u64 = 1 << 13;
const BIG: u64 = 1 << 14;
const GRANULAR: u64 = 1 << 15;
const RESERVED_RIGHTS: u64 = 0xfffe_0f00;

impl State<'_> {
    fn require(&self, holds: bool, field: Field, rule: &'static str) -> Check {
        if holds { Ok(()) } else { Err(Failure { rule, field, value: (self.read)(field) }) }
    }

    fn is_long(&self) -> bool {
        low_u32((self.read)(Field::ENTRY_CONTROLS)) & EntryControls::GUEST_LONG_MODE.bits() != 0
    }

    fn is_virtual_8086(&self) -> bool {
        (self.read)(Field::GUEST_RFLAGS) & RFLAGS_VM != 0
    }

    fn control_registers(&self) -> Check {
        let (cr0, cr4) = ((self.read)(Field::GUEST_CR0), (self.read)(Field::GUEST_CR4));
        let fixed = self.caps.cr0.for_unrestricted_guest();
        self.require(fixed.accepts(cr0), Field::GUEST_CR0, "a bit that VT-x fixes has the wrong value")?;
        self.require(cr0 & cr0::PG == 0 || cr0 & cr0::PE != 0, Field::GUEST_CR0, "paging needs protected mode")?;
        self.require(self.caps.cr4.accepts(cr4), Field::GUEST_CR4, "a bit that VT-x fixes has the wrong value")?;
        if self.is_long() {
            self.require(cr0 & cr0::PG != 0, Field::GUEST_CR0, "IA-32e mode needs paging")?;
            self.require(cr4 & cr4::PAE != 0, Field::GUEST_CR4, "IA-32e mode needs PAE")?;
        } else {
            self.require(cr4 & cr4::PCIDE == 0, Field::GUEST_CR4, "PCIDE needs IA-32e mode")?;
        }
        let cr3 = (self.read)(Field::GUEST_CR3);
        self.require(cr3 >> 52 == 0, Field::GUEST_CR3, "bits beyond the physical address must be 0")
    }

    fn msrs(&self) -> Check {
        let debugctl = (self.read)(Field::GUEST_DEBUGCTL);
        self.require(debugctl & !0xffff == 0, Field::GUEST_DEBUGCTL, "reserved bits must be 0")?;
        for field in [Field::GUEST_SYSENTER_ESP, Field::GUEST_SYSENTER_EIP] {
            self.require(is_canonical((self.read)(field)), field, "must be canonical")?;
        }
        let dr7 = (self.read)(Field::GUEST_DR7);
        self.require(dr7 >> 32 == 0, Field::GUEST_DR7, "bits 63:32 must be 0")?;
        let pat = (self.read)(Field::GUEST_PAT).to_le_bytes();
        let is_type = |byte: &u8| matches!(byte, 0 | 1 | 4..=7);
        self.require(pat.iter().all(is_type), Field::GUEST_PAT, "each byte must be a memory type")?;
        let efer = (self.read)(Field::GUEST_EFER);
        self.require(efer & !0xd01 == 0, Field::GUEST_EFER, "reserved bits must be 0")?;
        let lma = efer & efer::LMA != 0;
        self.require(lma == self.is_long(), Field::GUEST_EFER, "LMA must equal the entry control for IA-32e mode")?;
        let paging = (self.read)(Field::GUEST_CR0) & cr0::PG != 0;
        self.require(
            !paging || lma == (efer & efer::LME != 0),
            Field::GUEST_EFER,
            "LMA must equal LME while paging is on",
        )
    }

    fn segments(&self) -> Check {
        if self.is_virtual_8086() {
            return self.virtual_8086_segments();
        }
        self.code_segment()?;
        self.stack_segment()?;
        for which in [SegmentName::Ds, SegmentName::Es, SegmentName::Fs, SegmentName::Gs] {
            self.data_segment(which)?;
        }
        self.task_register()?;
        self.local_descriptor_table()
    }

    fn virtual_8086_segments(&self) -> Check {
        use SegmentName::{Cs, Ds, Es, Fs, Gs, Ss};
        for which in [Cs, Ss, Ds, Es, Fs, Gs] {
            let f = SegmentFields::of(which);
            let selector = (self.read)(f.selector);
            self.require((self.read)(f.base) == selector << 4, f.base, "virtual-8086: must be the selector times 16")?;
            self.require((self.read)(f.limit) == 0xffff, f.limit, "virtual-8086: must be 0xffff")?;
            self.require((self.read)(f.rights) == 0xf3, f.rights, "virtual-8086: must be 0xf3")?;
        }
        self.task_register()?;
        self.local_descriptor_table()
    }

    fn code_segment(&self) -> Check {
        let f = SegmentFields::of(SegmentName::Cs);
        let rights = (self.read)(f.rights);
        let stack_rights = (self.read)(Field::GUEST_SS_RIGHTS);
        let (dpl, stack_dpl) = (rights >> 5 & 3, stack_rights >> 5 & 3);
        let real_mode = (self.read)(Field::GUEST_CR0) & cr0::PE == 0;
        match rights & 15 {
            // Only unrestricted guest admits data in CS.
            3 => self.require(dpl == 0, f.rights, "CS of type 3 must have DPL 0")?,
            9 | 11 => self.require(real_mode || dpl == stack_dpl, f.rights, "DPL must equal that of SS")?,
            13 | 15 => self.require(dpl <= stack_dpl, f.rights, "DPL must not exceed that of SS")?,
            _ => return self.require(false, f.rights, "type must be 3, 9, 11, 13 or 15"),
        }
        self.require(rights & UNUSABLE == 0, f.rights, "CS must be usable")?;
        self.common_rights(f)?;
        let both = LONG | BIG;
        self.require(!self.is_long() || rights & both != both, f.rights, "L and D must not both be set")?;
        self.require((self.read)(f.base) >> 32 == 0, f.base, "bits 63:32 must be 0")
    }

    fn stack_segment(&self) -> Check {
        let f = SegmentFields::of(SegmentName::Ss);
        let rights = (self.read)(f.rights);
        let dpl = rights >> 5 & 3;
        let data_in_cs = (self.read)(Field::GUEST_CS_RIGHTS) & 15 == 3;
        let real_mode = (self.read)(Field::GUEST_CR0) & cr0::PE == 0;
        self.require(!(data_in_cs || real_mode) || dpl == 0, f.rights, "DPL must be 0 in real mode")?;
        if rights & UNUSABLE != 0 {
            return Ok(());
        }
        self.require(matches!(rights & 15, 3 | 7), f.rights, "type must be 3 or 7")?;
        self.common_rights(f)?;
        self.require((self.read)(f.base) >> 32 == 0, f.base, "bits 63:32 must be 0")
    }

    fn data_segment(&self, which: SegmentName) -> Check {
        let f = SegmentFields::of(which);
        let rights = (self.read)(f.rights);
        let base = (self.read)(f.base);
        if matches!(which, SegmentName::Fs | SegmentName::Gs) {
            self.require(is_canonical(base), f.base, "must be canonical")?;
        }
        if rights & UNUSABLE != 0 {
            return Ok(());
        }
        self.require(rights & 1 != 0, f.rights, "type must be accessed")?;
        self.require(rights & 8 == 0 || rights & 2 != 0, f.rights, "a code segment must be readable")?;
        if matches!(which, SegmentName::Ds | SegmentName::Es) {
            self.require(base >> 32 == 0, f.base, "bits 63:32 must be 0")?;
        }
        self.common_rights(f)
    }

    fn common_rights(&self, f: SegmentFields) -> Check {
        let rights = (self.read)(f.rights);
        self.require(rights & CODE_OR_DATA != 0, f.rights, "S must be set")?;
        self.require(rights & PRESENT != 0, f.rights, "P must be set")?;
        self.require(rights & RESERVED_RIGHTS == 0, f.rights, "reserved bits must be 0")?;
        self.granularity(f)
    }

    fn granularity(&self, f: SegmentFields) -> Check {
        let (rights, limit) = ((self.read)(f.rights), (self.read)(f.limit));
        self.require(
            limit & 0xfff == 0xfff || rights & GRANULAR == 0,
            f.limit,
            "a limit that ends inside a page needs G clear",
        )?;
        self.require(limit >> 20 == 0 || rights & GRANULAR != 0, f.limit, "a limit of 1 MiB or more needs G set")
    }

    fn task_register(&self) -> Check {
        let f = SegmentFields::of(SegmentName::Tr);
        let rights = (self.read)(f.rights);
        let kind = rights & 15;
        self.require((self.read)(f.selector) & 4 == 0, f.selector, "TR must not be in the LDT")?;
        self.require(
            kind == 11 || kind == 3 && !self.is_long(),
            f.rights,
            "type must be a busy TSS; 11 in IA-32e mode",
        )?;
        self.system_segment(f)?;
        self.require(rights & UNUSABLE == 0, f.rights, "TR must be usable")
    }

    fn local_descriptor_table(&self) -> Check {
        let f = SegmentFields::of(SegmentName::Ldtr);
        let rights = (self.read)(f.rights);
        if rights & UNUSABLE != 0 {
            return Ok(());
        }
        self.require((self.read)(f.selector) & 4 == 0, f.selector, "LDTR must not be in the LDT")?;
        self.require(rights & 15 == 2, f.rights, "type must be 2")?;
        self.system_segment(f)
    }

    fn system_segment(&self, f: SegmentFields) -> Check {
        let rights = (self.read)(f.rights);
        self.require(rights & CODE_OR_DATA == 0, f.rights, "S must be clear")?;
        self.require(rights & PRESENT != 0, f.rights, "P must be set")?;
        self.require(rights & RESERVED_RIGHTS & !UNUSABLE == 0, f.rights, "reserved bits must be 0")?;
        self.require(is_canonical((self.read)(f.base)), f.base, "must be canonical")?;
        self.granularity(f)
    }

    fn descriptor_tables(&self) -> Check {
        for (base, limit) in
            [(Field::GUEST_GDTR_BASE, Field::GUEST_GDTR_LIMIT), (Field::GUEST_IDTR_BASE, Field::GUEST_IDTR_LIMIT)]
        {
            self.require(is_canonical((self.read)(base)), base, "must be canonical")?;
            self.require((self.read)(limit) >> 16 == 0, limit, "must fit in 16 bits")?;
        }
        Ok(())
    }

    fn rip_and_rflags(&self) -> Check {
        let rip = (self.read)(Field::GUEST_RIP);
        let is_64bit = self.is_long() && (self.read)(Field::GUEST_CS_RIGHTS) & LONG != 0;
        if is_64bit {
            self.require(is_canonical(rip), Field::GUEST_RIP, "must be canonical")?;
        } else {
            self.require(rip >> 32 == 0, Field::GUEST_RIP, "bits 63:32 must be 0 outside 64-bit code")?;
        }
        let flags = (self.read)(Field::GUEST_RFLAGS);
        self.require(flags & 0xffff_ffff_ffc0_8028 == 0, Field::GUEST_RFLAGS, "reserved bits must be 0")?;
        self.require(flags & 2 != 0, Field::GUEST_RFLAGS, "bit 1 must be set")?;
        let protected = (self.read)(Field::GUEST_CR0) & cr0::PE != 0;
        self.require(
            flags & RFLAGS_VM == 0 || protected && !self.is_long(),
            Field::GUEST_RFLAGS,
            "VM needs legacy protected mode",
        )?;
        let event = (self.read)(Field::ENTRY_INTERRUPTION_INFO);
        let is_interrupt = event & 1 << 31 != 0 && event >> 8 & 7 == 0;
        self.require(
            !is_interrupt || flags & RFLAGS_IF != 0,
            Field::GUEST_RFLAGS,
            "IF must be set to inject an interrupt",
        )
    }

    fn non_register_state(&self) -> Check {
        let activity = (self.read)(Field::GUEST_ACTIVITY);
        self.require(activity == 0, Field::GUEST_ACTIVITY, "only the active state is used")?;
        let shadow = (self.read)(Field::GUEST_INTERRUPTIBILITY);
        let field = Field::GUEST_INTERRUPTIBILITY;
        self.require(shadow & !0x1f == 0, field, "reserved bits must be 0")?;
        self.require(shadow & 3 != 3, field, "STI and MOV SS must not both block")?;
        let interrupts_on = (self.read)(Field::GUEST_RFLAGS) & RFLAGS_IF != 0;
        self.require(shadow & 1 == 0 || interrupts_on, field, "blocking by STI needs IF")?;
        let event = (self.read)(Field::ENTRY_INTERRUPTION_INFO);
        let kind = (event & 1 << 31 != 0).then_some(event >> 8 & 7);
        self.require(kind != Some(0) || shadow & 3 == 0, field, "nothing may block an injected interrupt")?;
        self.require(kind != Some(2) || shadow & 0xa == 0, field, "nothing may block an injected NMI")?;
        let link = (self.read)(Field::VMCS_LINK_POINTER);
        self.require(link == u64::MAX, Field::VMCS_LINK_POINTER, "must be all ones")?;
        let pending = (self.read)(Field::GUEST_PENDING_DEBUG);
        self.require(pending & !0x1_500f == 0, Field::GUEST_PENDING_DEBUG, "reserved bits must be 0")?;
        let steps = (self.read)(Field::GUEST_RFLAGS) & 1 << 8 != 0 && (self.read)(Field::GUEST_DEBUGCTL) & 2 == 0;
        let says_step = pending & 1 << 14 != 0;
        self.require(
            shadow & 3 == 0 || steps == says_step,
            Field::GUEST_PENDING_DEBUG,
            "BS must equal single-stepping while interrupts are blocked",
        )
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::vcpu::regs::CpuState;
    use crate::vmx::caps::tests::haswell;
    use crate::vmx::guest_state;
    use std::collections::HashMap;

    pub(crate) type Fields = HashMap<Field, u64>;

    /// The fields of a VMCS that holds the state.
    pub(crate) fn vmcs_of(state: &CpuState, caps: &Capabilities) -> Fields {
        let mut fields = Fields::from([(Field::VMCS_LINK_POINTER, u64::MAX)]);
        guest_state::store(state, caps, |field, value| {
            fields.insert(field, value);
        });
        fields
    }

    /// A field's value; fields that were never written are 0.
    pub(crate) fn stored(fields: &Fields, field: Field) -> u64 {
        fields.get(&field).copied().unwrap_or(0)
    }

    fn failure(fields: &Fields) -> Option<Failure> {
        first_failure(&|field| stored(fields, field), &haswell())
    }

    fn long_mode() -> CpuState {
        let mut state = CpuState::pvh_entry(0x1000);
        state.cr0 = 0x8000_0033;
        state.cr4 = 0x20;
        state.efer = 0x501;
        state.segments.0[SegmentName::Cs as usize].attributes = 0xa09b;
        state
    }

    #[test]
    fn the_states_that_vcpus_start_in_pass() {
        for state in [CpuState::pvh_entry(0x10_0000), CpuState::startup_ipi(0x9a), long_mode()] {
            assert_eq!(failure(&vmcs_of(&state, &haswell())), None, "{state:x?}");
        }
    }

    #[test]
    fn each_check_names_its_field() {
        let cases: &[(Field, u64)] = &[
            (Field::GUEST_CR0, 0x11),
            (Field::GUEST_CR0, 0x8000_0030),
            (Field::GUEST_CR4, 0x60),
            (Field::GUEST_CR4, 0x2000),
            (Field::GUEST_CR3, 1 << 52),
            (Field::GUEST_DEBUGCTL, 1 << 16),
            (Field::GUEST_SYSENTER_EIP, 1 << 47),
            (Field::GUEST_DR7, 1 << 32),
            (Field::GUEST_PAT, 2),
            (Field::GUEST_EFER, 1 << 1),
            (Field::GUEST_EFER, 0x101),
            (Field::GUEST_CS_RIGHTS, 0xa092),
            (Field::GUEST_CS_RIGHTS, 0xe09b),
            (Field::GUEST_CS_RIGHTS, 0xa0fb),
            (Field::GUEST_CS_RIGHTS, 0x1_a09b),
            (Field::GUEST_CS_BASE, 1 << 32),
            (Field::GUEST_CS_LIMIT, 0x1234),
            (Field::GUEST_SS_RIGHTS, 0xc091),
            (Field::GUEST_SS_RIGHTS, 0xc013),
            (Field::GUEST_DS_RIGHTS, 0xc090),
            (Field::GUEST_DS_RIGHTS, 0xc099),
            (Field::GUEST_ES_RIGHTS, 0xcf93),
            (Field::GUEST_FS_BASE, 1 << 63),
            (Field::GUEST_TR_RIGHTS, 0x83),
            (Field::GUEST_TR_RIGHTS, 0x1_008b),
            (Field::GUEST_TR_SELECTOR, 4),
            (Field::GUEST_LDTR_RIGHTS, 0x83),
            (Field::GUEST_GDTR_BASE, 1 << 50),
            (Field::GUEST_IDTR_LIMIT, 0x1_0000),
            (Field::GUEST_RIP, 1 << 47),
            (Field::GUEST_RFLAGS, 0),
            (Field::GUEST_RFLAGS, 0x2 | 1 << 17),
            (Field::GUEST_RFLAGS, 0x2 | 1 << 15),
            (Field::GUEST_ACTIVITY, 1),
            (Field::GUEST_INTERRUPTIBILITY, 1),
            (Field::GUEST_INTERRUPTIBILITY, 3),
            (Field::VMCS_LINK_POINTER, 0),
            (Field::GUEST_PENDING_DEBUG, 1 << 13),
        ];
        for &(field, value) in cases {
            let mut fields = vmcs_of(&long_mode(), &haswell());
            fields.insert(field, value);
            let failed = failure(&fields).unwrap_or_else(|| panic!("{field:?} = {value:#x} passes"));
            let culprit = match field {
                // A guest in virtual-8086 mode fails on its first segment.
                Field::GUEST_RFLAGS if value & 1 << 17 != 0 => Field::GUEST_CS_BASE,
                _ => field,
            };
            if culprit != Field::GUEST_CS_BASE {
                assert_eq!(failed.field, culprit, "{failed}");
            }
        }
    }

    #[test]
    fn an_interrupt_needs_a_guest_that_takes_it() {
        let mut fields = vmcs_of(&long_mode(), &haswell());
        fields.insert(Field::ENTRY_INTERRUPTION_INFO, 0x8000_0030);
        assert_eq!(failure(&fields).map(|failed| failed.field), Some(Field::GUEST_RFLAGS));
        fields.insert(Field::GUEST_RFLAGS, 0x202);
        assert_eq!(failure(&fields), None);
        fields.insert(Field::GUEST_INTERRUPTIBILITY, 1);
        assert_eq!(failure(&fields).map(|failed| failed.field), Some(Field::GUEST_INTERRUPTIBILITY));
    }

    #[test]
    fn real_mode_rules_differ() {
        let mut fields = vmcs_of(&CpuState::startup_ipi(0x10), &haswell());
        fields.insert(Field::GUEST_CS_RIGHTS, 0x93);
        assert_eq!(failure(&fields), None, "data in CS is fine in real mode");
        fields.insert(Field::GUEST_SS_RIGHTS, 0xf3);
        assert_eq!(failure(&fields).map(|failed| failed.field), Some(Field::GUEST_SS_RIGHTS));
    }
}
