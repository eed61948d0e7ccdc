// SPDX-License-Identifier: MIT OR Apache-2.0
//! The names and numbers of the fields in a VMCS.
//!
//! A number tells its field's width and kind by itself (bits 14:13 and 11:10), which a test uses
//! to catch a slip in the table.
//!
//! Source: Intel SDM vol. 3D (326019-080), appendix B, Field Encoding in VMCS.

use core::fmt;

/// The number of a VMCS field, as VMREAD and VMWRITE take it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Field(u32);

impl Field {
    /// The number itself.
    #[must_use]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// Whether the field is in the guest-state area.
    #[must_use]
    pub const fn is_guest_state(self) -> bool {
        self.0 >> 10 & 3 == 2
    }
}

macro_rules! fields {
    ($($name:ident = $number:literal;)*) => {
        #[expect(missing_docs, reason = "the names are the manual's")]
        impl Field {
            $(pub const $name: Self = Self($number);)*

            /// Every field of this table with its name.
            pub const ALL: &'static [(&'static str, Self)] = &[$((stringify!($name), Self::$name)),*];
        }
    };
}

fields! {
    VPID = 0x0000;

    GUEST_ES_SELECTOR = 0x0800;
    GUEST_CS_SELECTOR = 0x0802;
    GUEST_SS_SELECTOR = 0x0804;
    GUEST_DS_SELECTOR = 0x0806;
    GUEST_FS_SELECTOR = 0x0808;
    GUEST_GS_SELECTOR = 0x080a;
    GUEST_LDTR_SELECTOR = 0x080c;
    GUEST_TR_SELECTOR = 0x080e;

    HOST_ES_SELECTOR = 0x0c00;
    HOST_CS_SELECTOR = 0x0c02;
    HOST_SS_SELECTOR = 0x0c04;
    HOST_DS_SELECTOR = 0x0c06;
    HOST_FS_SELECTOR = 0x0c08;
    HOST_GS_SELECTOR = 0x0c0a;
    HOST_TR_SELECTOR = 0x0c0c;

    IO_BITMAP_A = 0x2000;
    IO_BITMAP_B = 0x2002;
    MSR_BITMAP = 0x2004;
    EXIT_MSR_STORE_ADDRESS = 0x2006;
    EXIT_MSR_LOAD_ADDRESS = 0x2008;
    ENTRY_MSR_LOAD_ADDRESS = 0x200a;
    TSC_OFFSET = 0x2010;
    EPT_POINTER = 0x201a;
    XSS_EXIT_BITMAP = 0x202c;

    GUEST_PHYSICAL_ADDRESS = 0x2400;

    VMCS_LINK_POINTER = 0x2800;
    GUEST_DEBUGCTL = 0x2802;
    GUEST_PAT = 0x2804;
    GUEST_EFER = 0x2806;
    GUEST_PDPTE0 = 0x280a;
    GUEST_PDPTE1 = 0x280c;
    GUEST_PDPTE2 = 0x280e;
    GUEST_PDPTE3 = 0x2810;

    HOST_PAT = 0x2c00;
    HOST_EFER = 0x2c02;

    PIN_CONTROLS = 0x4000;
    PROC_CONTROLS = 0x4002;
    EXCEPTION_BITMAP = 0x4004;
    PAGE_FAULT_ERROR_MASK = 0x4006;
    PAGE_FAULT_ERROR_MATCH = 0x4008;
    CR3_TARGET_COUNT = 0x400a;
    EXIT_CONTROLS = 0x400c;
    EXIT_MSR_STORE_COUNT = 0x400e;
    EXIT_MSR_LOAD_COUNT = 0x4010;
    ENTRY_CONTROLS = 0x4012;
    ENTRY_MSR_LOAD_COUNT = 0x4014;
    ENTRY_INTERRUPTION_INFO = 0x4016;
    ENTRY_ERROR_CODE = 0x4018;
    ENTRY_INSTRUCTION_LENGTH = 0x401a;
    PROC_CONTROLS2 = 0x401e;
    PLE_GAP = 0x4020;
    PLE_WINDOW = 0x4022;

    INSTRUCTION_ERROR = 0x4400;
    EXIT_REASON = 0x4402;
    EXIT_INTERRUPTION_INFO = 0x4404;
    EXIT_ERROR_CODE = 0x4406;
    IDT_VECTORING_INFO = 0x4408;
    IDT_VECTORING_ERROR_CODE = 0x440a;
    EXIT_INSTRUCTION_LENGTH = 0x440c;

    GUEST_ES_LIMIT = 0x4800;
    GUEST_CS_LIMIT = 0x4802;
    GUEST_SS_LIMIT = 0x4804;
    GUEST_DS_LIMIT = 0x4806;
    GUEST_FS_LIMIT = 0x4808;
    GUEST_GS_LIMIT = 0x480a;
    GUEST_LDTR_LIMIT = 0x480c;
    GUEST_TR_LIMIT = 0x480e;
    GUEST_GDTR_LIMIT = 0x4810;
    GUEST_IDTR_LIMIT = 0x4812;
    GUEST_ES_RIGHTS = 0x4814;
    GUEST_CS_RIGHTS = 0x4816;
    GUEST_SS_RIGHTS = 0x4818;
    GUEST_DS_RIGHTS = 0x481a;
    GUEST_FS_RIGHTS = 0x481c;
    GUEST_GS_RIGHTS = 0x481e;
    GUEST_LDTR_RIGHTS = 0x4820;
    GUEST_TR_RIGHTS = 0x4822;
    GUEST_INTERRUPTIBILITY = 0x4824;
    GUEST_ACTIVITY = 0x4826;
    GUEST_SYSENTER_CS = 0x482a;
    PREEMPTION_TIMER = 0x482e;

    HOST_SYSENTER_CS = 0x4c00;

    CR0_MASK = 0x6000;
    CR4_MASK = 0x6002;
    CR0_SHADOW = 0x6004;
    CR4_SHADOW = 0x6006;

    EXIT_QUALIFICATION = 0x6400;
    GUEST_LINEAR_ADDRESS = 0x640a;

    GUEST_CR0 = 0x6800;
    GUEST_CR3 = 0x6802;
    GUEST_CR4 = 0x6804;
    GUEST_ES_BASE = 0x6806;
    GUEST_CS_BASE = 0x6808;
    GUEST_SS_BASE = 0x680a;
    GUEST_DS_BASE = 0x680c;
    GUEST_FS_BASE = 0x680e;
    GUEST_GS_BASE = 0x6810;
    GUEST_LDTR_BASE = 0x6812;
    GUEST_TR_BASE = 0x6814;
    GUEST_GDTR_BASE = 0x6816;
    GUEST_IDTR_BASE = 0x6818;
    GUEST_DR7 = 0x681a;
    GUEST_RSP = 0x681c;
    GUEST_RIP = 0x681e;
    GUEST_RFLAGS = 0x6820;
    GUEST_PENDING_DEBUG = 0x6822;
    GUEST_SYSENTER_ESP = 0x6824;
    GUEST_SYSENTER_EIP = 0x6826;

    HOST_CR0 = 0x6c00;
    HOST_CR3 = 0x6c02;
    HOST_CR4 = 0x6c04;
    HOST_FS_BASE = 0x6c06;
    HOST_GS_BASE = 0x6c08;
    HOST_TR_BASE = 0x6c0a;
    HOST_GDTR_BASE = 0x6c0c;
    HOST_IDTR_BASE = 0x6c0e;
    HOST_SYSENTER_ESP = 0x6c10;
    HOST_SYSENTER_EIP = 0x6c12;
    HOST_RSP = 0x6c14;
    HOST_RIP = 0x6c16;
}

impl fmt::Debug for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::ALL.iter().find(|(_, field)| field == self) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "field:{:#x}", self.0),
        }
    }
}

/// The four fields of one guest segment register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the manual's")]
pub struct SegmentFields {
    pub selector: Field,
    pub limit: Field,
    pub rights: Field,
    pub base: Field,
}

impl SegmentFields {
    /// The fields of a segment register. All four groups number the registers in the same order.
    #[must_use]
    pub const fn of(which: crate::backend::SegmentName) -> Self {
        let step = 2 * which as u32;
        Self {
            selector: Field(Field::GUEST_ES_SELECTOR.0 + step),
            limit: Field(Field::GUEST_ES_LIMIT.0 + step),
            rights: Field(Field::GUEST_ES_RIGHTS.0 + step),
            base: Field(Field::GUEST_ES_BASE.0 + step),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::SegmentName;

    #[test]
    fn a_fields_number_agrees_with_what_it_holds() {
        for (name, field) in Field::ALL {
            // Bits 0 (high half), 12 and 15 up are not used by any field we name.
            assert_eq!(field.raw() & !0x6ffe, 0, "{name}");
            let kind = field.raw() >> 10 & 3;
            match *name {
                "GUEST_PHYSICAL_ADDRESS" | "GUEST_LINEAR_ADDRESS" => assert_eq!(kind, 1, "{name}"),
                _ if name.starts_with("GUEST_") => assert_eq!(kind, 2, "{name}"),
                _ if name.starts_with("HOST_") => assert_eq!(kind, 3, "{name}"),
                _ => {}
            }
            // 16, 64 and 32 bits, and as wide as a register.
            let width = match *name {
                _ if name.ends_with("_SELECTOR") => Some(0),
                _ if name.ends_with("_LIMIT") || name.ends_with("_RIGHTS") => Some(2),
                _ if name.ends_with("_CONTROLS") || name.ends_with("_COUNT") => Some(2),
                _ if name.ends_with("_BASE") => Some(3),
                _ if name.ends_with("_EFER") || name.ends_with("_PAT") || name.contains("BITMAP_") => Some(1),
                _ => None,
            };
            assert!(width.is_none_or(|width| width == field.raw() >> 13 & 3), "{name}");
        }
    }

    #[test]
    fn segment_fields_follow_the_registers_order() {
        let cases = [
            (SegmentName::Es, Field::GUEST_ES_SELECTOR, Field::GUEST_ES_BASE, Field::GUEST_ES_RIGHTS),
            (SegmentName::Cs, Field::GUEST_CS_SELECTOR, Field::GUEST_CS_BASE, Field::GUEST_CS_RIGHTS),
            (SegmentName::Ss, Field::GUEST_SS_SELECTOR, Field::GUEST_SS_BASE, Field::GUEST_SS_RIGHTS),
            (SegmentName::Gs, Field::GUEST_GS_SELECTOR, Field::GUEST_GS_BASE, Field::GUEST_GS_RIGHTS),
            (SegmentName::Ldtr, Field::GUEST_LDTR_SELECTOR, Field::GUEST_LDTR_BASE, Field::GUEST_LDTR_RIGHTS),
            (SegmentName::Tr, Field::GUEST_TR_SELECTOR, Field::GUEST_TR_BASE, Field::GUEST_TR_RIGHTS),
        ];
        for (name, selector, base, rights) in cases {
            let fields = SegmentFields::of(name);
            assert_eq!((fields.selector, fields.base, fields.rights), (selector, base, rights));
        }
    }
}
