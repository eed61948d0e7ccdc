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
use crate::policy::msr::{are_pat_types, is_canonical};

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

const FIXED: &str = "a bit that VT-x fixes has the wrong value";
const RESERVED: &str = "reserved bits must be 0";
const CANONICAL: &str = "must be canonical";
const LOW_HALF: &str = "bits 63:32 must be 0";

impl State<'_> {
    fn get(&self, field: Field) -> u64 {
        (self.read)(field)
    }

    /// Checks what a field holds.
    fn rule(&self, field: Field, rule: &'static str, holds: impl FnOnce(u64) -> bool) -> Check {
        let value = self.get(field);
        if holds(value) { Ok(()) } else { Err(Failure { rule, field, value }) }
    }

    fn is_long(&self) -> bool {
        low_u32(self.get(Field::ENTRY_CONTROLS)) & EntryControls::GUEST_LONG_MODE.bits() != 0
    }

    fn is_protected(&self) -> bool {
        self.get(Field::GUEST_CR0) & cr0::PE != 0
    }

    /// The kind of event that the entry is to inject.
    fn injects(&self) -> Option<u64> {
        let event = self.get(Field::ENTRY_INTERRUPTION_INFO);
        (event & 1 << 31 != 0).then_some(event >> 8 & 7)
    }

    fn control_registers(&self) -> Check {
        let fixed = self.caps.cr0.for_unrestricted_guest();
        self.rule(Field::GUEST_CR0, FIXED, |cr0| fixed.accepts(cr0))?;
        self.rule(Field::GUEST_CR0, "paging needs protected mode", |cr0| cr0 & cr0::PG == 0 || cr0 & cr0::PE != 0)?;
        self.rule(Field::GUEST_CR4, FIXED, |cr4| self.caps.cr4.accepts(cr4))?;
        if self.is_long() {
            self.rule(Field::GUEST_CR0, "IA-32e mode needs paging", |cr0| cr0 & cr0::PG != 0)?;
            self.rule(Field::GUEST_CR4, "IA-32e mode needs PAE", |cr4| cr4 & cr4::PAE != 0)?;
        } else {
            self.rule(Field::GUEST_CR4, "PCIDE needs IA-32e mode", |cr4| cr4 & cr4::PCIDE == 0)?;
        }
        self.rule(Field::GUEST_CR3, "bits beyond the physical address must be 0", |cr3| cr3 >> 52 == 0)
    }

    fn msrs(&self) -> Check {
        self.rule(Field::GUEST_DEBUGCTL, RESERVED, |debugctl| debugctl & !0xffff == 0)?;
        for field in [Field::GUEST_SYSENTER_ESP, Field::GUEST_SYSENTER_EIP] {
            self.rule(field, CANONICAL, is_canonical)?;
        }
        self.rule(Field::GUEST_DR7, LOW_HALF, |dr7| dr7 >> 32 == 0)?;
        self.rule(Field::GUEST_PAT, "each byte must be a memory type", are_pat_types)?;
        self.rule(Field::GUEST_EFER, RESERVED, |efer| efer & !0xd01 == 0)?;
        let has_lma = |efer: u64| efer & efer::LMA != 0;
        self.rule(Field::GUEST_EFER, "LMA must equal the entry control for IA-32e mode", |efer| {
            has_lma(efer) == self.is_long()
        })?;
        let is_paging = self.get(Field::GUEST_CR0) & cr0::PG != 0;
        self.rule(Field::GUEST_EFER, "LMA must equal LME while paging is on", |efer| {
            !is_paging || has_lma(efer) == (efer & efer::LME != 0)
        })
    }

    fn segments(&self) -> Check {
        if self.get(Field::GUEST_RFLAGS) & RFLAGS_VM != 0 {
            use SegmentName::{Cs, Ds, Es, Fs, Gs, Ss};
            [Cs, Ss, Ds, Es, Fs, Gs].into_iter().try_for_each(|which| self.virtual_8086_segment(which))?;
        } else {
            self.code_segment()?;
            self.stack_segment()?;
            for which in [SegmentName::Ds, SegmentName::Es, SegmentName::Fs, SegmentName::Gs] {
                self.data_segment(which)?;
            }
        }
        self.task_register()?;
        self.local_descriptor_table()
    }

    fn virtual_8086_segment(&self, which: SegmentName) -> Check {
        let f = SegmentFields::of(which);
        let selector = self.get(f.selector);
        self.rule(f.base, "virtual-8086: must be the selector times 16", |base| base == selector << 4)?;
        self.rule(f.limit, "virtual-8086: must be 0xffff", |limit| limit == 0xffff)?;
        self.rule(f.rights, "virtual-8086: must be 0xf3", |rights| rights == 0xf3)
    }

    fn code_segment(&self) -> Check {
        let f = SegmentFields::of(SegmentName::Cs);
        let stack_dpl = dpl(self.get(Field::GUEST_SS_RIGHTS));
        match self.get(f.rights) & 15 {
            3 => self.rule(f.rights, "CS of type 3 must have DPL 0", |rights| dpl(rights) == 0)?,
            9 | 11 => self.rule(f.rights, "DPL must equal that of SS", |rights| {
                !self.is_protected() || dpl(rights) == stack_dpl
            })?,
            13 | 15 => self.rule(f.rights, "DPL must not exceed that of SS", |rights| dpl(rights) <= stack_dpl)?,
            _ => return self.rule(f.rights, "type must be 3, 9, 11, 13 or 15", |_| false),
        }
        self.rule(f.rights, "CS must be usable", |rights| rights & UNUSABLE == 0)?;
        self.common_rights(f)?;
        self.rule(f.rights, "L and D must not both be set", |rights| !self.is_long() || !rights & (LONG | BIG) != 0)?;
        self.rule(f.base, LOW_HALF, |base| base >> 32 == 0)
    }

    fn stack_segment(&self) -> Check {
        let f = SegmentFields::of(SegmentName::Ss);
        let data_in_cs = self.get(Field::GUEST_CS_RIGHTS) & 15 == 3;
        self.rule(f.rights, "DPL must be 0 in real mode", |rights| {
            !data_in_cs && self.is_protected() || dpl(rights) == 0
        })?;
        if self.get(f.rights) & UNUSABLE != 0 {
            return Ok(());
        }
        self.rule(f.rights, "type must be 3 or 7", |rights| matches!(rights & 15, 3 | 7))?;
        self.common_rights(f)?;
        self.rule(f.base, LOW_HALF, |base| base >> 32 == 0)
    }

    fn data_segment(&self, which: SegmentName) -> Check {
        let f = SegmentFields::of(which);
        let has_long_base = matches!(which, SegmentName::Fs | SegmentName::Gs);
        if has_long_base {
            self.rule(f.base, CANONICAL, is_canonical)?;
        }
        if self.get(f.rights) & UNUSABLE != 0 {
            return Ok(());
        }
        self.rule(f.rights, "type must be accessed", |rights| rights & 1 != 0)?;
        self.rule(f.rights, "a code segment must be readable", |rights| rights & 8 == 0 || rights & 2 != 0)?;
        self.rule(f.base, LOW_HALF, |base| has_long_base || base >> 32 == 0)?;
        self.common_rights(f)
    }

    fn common_rights(&self, f: SegmentFields) -> Check {
        self.rule(f.rights, "S must be set", |rights| rights & CODE_OR_DATA != 0)?;
        self.rule(f.rights, "P must be set", |rights| rights & PRESENT != 0)?;
        self.rule(f.rights, RESERVED, |rights| rights & RESERVED_RIGHTS == 0)?;
        self.granularity(f)
    }

    fn granularity(&self, f: SegmentFields) -> Check {
        let is_granular = self.get(f.rights) & GRANULAR != 0;
        self.rule(f.limit, "a limit that ends inside a page needs G clear", |limit| {
            limit & 0xfff == 0xfff || !is_granular
        })?;
        self.rule(f.limit, "a limit of 1 MiB or more needs G set", |limit| limit >> 20 == 0 || is_granular)
    }

    fn task_register(&self) -> Check {
        let f = SegmentFields::of(SegmentName::Tr);
        self.rule(f.selector, "TR must not be in the LDT", |selector| selector & 4 == 0)?;
        self.rule(f.rights, "type must be a busy TSS; 11 in IA-32e mode", |rights| {
            rights & 15 == 11 || rights & 15 == 3 && !self.is_long()
        })?;
        self.system_segment(f)?;
        self.rule(f.rights, "TR must be usable", |rights| rights & UNUSABLE == 0)
    }

    fn local_descriptor_table(&self) -> Check {
        let f = SegmentFields::of(SegmentName::Ldtr);
        if self.get(f.rights) & UNUSABLE != 0 {
            return Ok(());
        }
        self.rule(f.selector, "LDTR must not be in the LDT", |selector| selector & 4 == 0)?;
        self.rule(f.rights, "type must be 2", |rights| rights & 15 == 2)?;
        self.system_segment(f)
    }

    fn system_segment(&self, f: SegmentFields) -> Check {
        self.rule(f.rights, "S must be clear", |rights| rights & CODE_OR_DATA == 0)?;
        self.rule(f.rights, "P must be set", |rights| rights & PRESENT != 0)?;
        self.rule(f.rights, RESERVED, |rights| rights & RESERVED_RIGHTS & !UNUSABLE == 0)?;
        self.rule(f.base, CANONICAL, is_canonical)?;
        self.granularity(f)
    }

    fn descriptor_tables(&self) -> Check {
        for (base, limit) in
            [(Field::GUEST_GDTR_BASE, Field::GUEST_GDTR_LIMIT), (Field::GUEST_IDTR_BASE, Field::GUEST_IDTR_LIMIT)]
        {
            self.rule(base, CANONICAL, is_canonical)?;
            self.rule(limit, "must fit in 16 bits", |limit| limit >> 16 == 0)?;
        }
        Ok(())
    }

    fn rip_and_rflags(&self) -> Check {
        if self.is_long() && self.get(Field::GUEST_CS_RIGHTS) & LONG != 0 {
            self.rule(Field::GUEST_RIP, CANONICAL, is_canonical)?;
        } else {
            self.rule(Field::GUEST_RIP, "bits 63:32 must be 0 outside 64-bit code", |rip| rip >> 32 == 0)?;
        }
        self.rule(Field::GUEST_RFLAGS, RESERVED, |flags| flags & 0xffff_ffff_ffc0_8028 == 0)?;
        self.rule(Field::GUEST_RFLAGS, "bit 1 must be set", |flags| flags & 2 != 0)?;
        self.rule(Field::GUEST_RFLAGS, "VM needs legacy protected mode", |flags| {
            flags & RFLAGS_VM == 0 || self.is_protected() && !self.is_long()
        })?;
        self.rule(Field::GUEST_RFLAGS, "IF must be set to inject an interrupt", |flags| {
            self.injects() != Some(0) || flags & RFLAGS_IF != 0
        })
    }

    fn non_register_state(&self) -> Check {
        self.rule(Field::GUEST_ACTIVITY, "only the active state is used", |activity| activity == 0)?;
        let (flags, event, field) = (self.get(Field::GUEST_RFLAGS), self.injects(), Field::GUEST_INTERRUPTIBILITY);
        self.rule(field, RESERVED, |shadow| shadow & !0x1f == 0)?;
        self.rule(field, "STI and MOV SS must not both block", |shadow| shadow & 3 != 3)?;
        self.rule(field, "blocking by STI needs IF", |shadow| shadow & 1 == 0 || flags & RFLAGS_IF != 0)?;
        self.rule(field, "nothing may block an injected interrupt", |shadow| event != Some(0) || shadow & 3 == 0)?;
        self.rule(field, "nothing may block an injected NMI", |shadow| event != Some(2) || shadow & 0xa == 0)?;
        self.rule(Field::VMCS_LINK_POINTER, "must be all ones", |link| link == u64::MAX)?;
        self.rule(Field::GUEST_PENDING_DEBUG, RESERVED, |pending| pending & !0x1_500f == 0)?;
        let is_blocked = self.get(field) & 3 != 0;
        let steps = flags & 1 << 8 != 0 && self.get(Field::GUEST_DEBUGCTL) & 2 == 0;
        self.rule(Field::GUEST_PENDING_DEBUG, "BS must equal single-stepping while interrupts are blocked", |pending| {
            !is_blocked || steps == (pending & 1 << 14 != 0)
        })
    }
}

const fn dpl(rights: u64) -> u64 {
    rights >> 5 & 3
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
