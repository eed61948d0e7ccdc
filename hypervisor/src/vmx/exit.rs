// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a VT-x exit means.
//!
//! [`decode`] turns the raw reason into the vendor-neutral [`Exit`] or into something that the
//! backend finishes by itself. It reads further fields only where the reason needs them, since on
//! a nested host each VMREAD can cost as much as an exit. Every architectural reason has a
//! decision here; those that no control set by us can cause are reported as unexpected, with
//! their name for the log.
//!
//! Source: Intel SDM vol. 3D (326019-080), appendix C, VMX Basic Exit Reasons; vol. 3C, §27.2.1
//! Basic VM-Exit Information.

use guest_abi::Gpa;
use guest_abi::num::{low_u8, low_u16, low_u32};

use super::control_regs::{CR0_MASK, guest_view};
use super::event::{Event, EventKind, is_vectoring};
use super::fields::Field;
use crate::exit::{ControlRegister, Exit, Fault, IoAccess, P2mFault};
use crate::policy::control::efer;
use crate::vcpu::regs::GuestRegs;

/// Basic exit reasons that need a name in code; the book lists all that are expected.
#[expect(missing_docs, reason = "the names are the manual's")]
pub mod reason {
    pub const EXCEPTION_OR_NMI: u16 = 0;
    pub const EXTERNAL_INTERRUPT: u16 = 1;
    pub const TRIPLE_FAULT: u16 = 2;
    pub const INTERRUPT_WINDOW: u16 = 7;
    pub const NMI_WINDOW: u16 = 8;
    pub const CPUID: u16 = 10;
    pub const GETSEC: u16 = 11;
    pub const HLT: u16 = 12;
    pub const INVD: u16 = 13;
    pub const RDPMC: u16 = 15;
    pub const RSM: u16 = 17;
    pub const VMCALL: u16 = 18;
    pub const VMCLEAR: u16 = 19;
    pub const VMXON: u16 = 27;
    pub const CONTROL_REGISTER: u16 = 28;
    pub const IO: u16 = 30;
    pub const RDMSR: u16 = 31;
    pub const WRMSR: u16 = 32;
    pub const INVALID_GUEST_STATE: u16 = 33;
    pub const MSR_LOADING: u16 = 34;
    pub const MWAIT: u16 = 36;
    pub const MONITOR: u16 = 39;
    pub const PAUSE: u16 = 40;
    pub const EPT_VIOLATION: u16 = 48;
    pub const INVEPT: u16 = 50;
    pub const PREEMPTION_TIMER: u16 = 52;
    pub const INVVPID: u16 = 53;
    pub const WBINVD: u16 = 54;
    pub const XSETBV: u16 = 55;
}

/// The exit-reason field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitReason(pub u32);

impl ExitReason {
    /// The basic reason.
    #[must_use]
    pub const fn basic(self) -> u16 {
        low_u16(self.0 as u64)
    }

    /// The entry failed and the guest did not run.
    #[must_use]
    pub const fn is_entry_failure(self) -> bool {
        self.0 & 1 << 31 != 0
    }

    /// The exits that say all by their reason and never interrupt the delivery of an event: what
    /// a guest does most.
    #[inline]
    #[must_use]
    pub const fn plain(self) -> Option<Exit> {
        if self.0 > 0xffff {
            return None;
        }
        match self.basic() {
            reason::CPUID => Some(Exit::Cpuid),
            reason::HLT => Some(Exit::Halt),
            reason::VMCALL => Some(Exit::Hypercall),
            reason::RDMSR => Some(Exit::Rdmsr),
            reason::WRMSR => Some(Exit::Wrmsr),
            reason::PREEMPTION_TIMER => Some(Exit::Deadline),
            _ => None,
        }
    }

    /// Whether an instruction caused the exit, so that the exit-instruction length is valid.
    #[must_use]
    pub const fn has_instruction_length(self) -> bool {
        !self.is_entry_failure()
            && matches!(self.basic(), 9..=13 | 15..=28 | 30..=32 | 36 | 39 | 40 | 50 | 51 | 53..=55 | 57..=59 | 61)
    }

    /// Why an entry failed.
    #[must_use]
    pub const fn entry_failure(self) -> &'static str {
        match self.basic() {
            reason::INVALID_GUEST_STATE => "invalid guest state",
            reason::MSR_LOADING => "MSR loading",
            _ => "machine check",
        }
    }
}

/// Decodes an exit; `None` for an NMI window, which the backend finishes by itself. `read` executes VMREAD.
pub fn decode(reason: ExitReason, regs: &GuestRegs, read: impl Fn(Field) -> u64) -> Option<Exit> {
    if reason.is_entry_failure() {
        return Some(Exit::EntryFailed { raw: u64::from(reason.0) });
    }
    let unexpected = Exit::Unexpected { raw: u64::from(reason.0) };
    Some(match reason.basic() {
        reason::EXCEPTION_OR_NMI => exception_or_nmi(&read).unwrap_or(unexpected),
        reason::EXTERNAL_INTERRUPT => Exit::ExternalInterrupt { vector: interruption(&read).map(|event| event.vector) },
        reason::TRIPLE_FAULT => Exit::TripleFault,
        reason::INTERRUPT_WINDOW => Exit::InterruptWindow,
        reason::NMI_WINDOW => return None,
        reason::CPUID => Exit::Cpuid,
        reason::HLT => Exit::Halt,
        reason::INVD | reason::WBINVD => Exit::CacheFlush,
        reason::RDPMC => Exit::Forbidden(Fault::GeneralProtection),
        reason::GETSEC | reason::RSM | reason::MWAIT | reason::MONITOR => Exit::Forbidden(Fault::InvalidOpcode),
        reason::VMCALL => Exit::Hypercall,
        reason::VMCLEAR..=reason::VMXON | reason::INVEPT | reason::INVVPID => Exit::Forbidden(Fault::InvalidOpcode),
        reason::CONTROL_REGISTER => control_register(regs, &read).unwrap_or(unexpected),
        reason::IO => io(read(Field::EXIT_QUALIFICATION)),
        reason::RDMSR => Exit::Rdmsr,
        reason::WRMSR => Exit::Wrmsr,
        reason::PAUSE => Exit::PauseLoop,
        reason::EPT_VIOLATION => ept_violation(&read),
        reason::PREEMPTION_TIMER => Exit::Deadline,
        reason::XSETBV => Exit::Xsetbv,
        // The rest needs a control that is never set, system-management mode, or a p2m entry
        // that this hypervisor has written wrongly.
        _ => unexpected,
    })
}

fn interruption(read: &impl Fn(Field) -> u64) -> Option<Event> {
    let info = low_u32(read(Field::EXIT_INTERRUPTION_INFO));
    let length = || low_u8(read(Field::EXIT_INSTRUCTION_LENGTH));
    Event::decode(info, || low_u32(read(Field::EXIT_ERROR_CODE)), length)
}

fn exception_or_nmi(read: &impl Fn(Field) -> u64) -> Option<Exit> {
    let event = interruption(read)?;
    Some(match event.kind {
        EventKind::Nmi => Exit::HostNmi,
        _ => Exit::Exception { vector: event.vector, error_code: event.error_code },
    })
}

fn control_register(regs: &GuestRegs, read: &impl Fn(Field) -> u64) -> Option<Exit> {
    let qualification = read(Field::EXIT_QUALIFICATION);
    let register = low_u8(qualification & 15);
    let access = qualification >> 4 & 3;
    let number = low_u8(qualification >> 8 & 15);
    let cr0 = || guest_view(read(Field::GUEST_CR0), read(Field::CR0_SHADOW), CR0_MASK);
    let operand = || general_register(regs, number, read);
    let (register, value) = match (access, register) {
        (0, 0) => (ControlRegister::Cr0, operand()),
        (0, 4) => (ControlRegister::Cr4, operand()),
        (0, 8) => (ControlRegister::Cr8, operand()),
        (1, 8) => return Some(Exit::Cr8Read { into: Some(number) }),
        (2, _) => (ControlRegister::Cr0, cr0() & !(1 << 3)),
        // LMSW loads bits 3:0 and can set PE but not clear it.
        (3, _) => (ControlRegister::Cr0, cr0() & !0xe | qualification >> 16 & 15),
        _ => return None,
    };
    Some(Exit::ControlWrite { register, value: Some(value) })
}

/// The operand of a MOV to a control register; outside 64-bit code it has 32 bits.
fn general_register(regs: &GuestRegs, number: u8, read: &impl Fn(Field) -> u64) -> u64 {
    let mut regs = *regs;
    let value = match regs.by_number(number) {
        Some(register) => *register,
        None => read(Field::GUEST_RSP),
    };
    let is_long = read(Field::GUEST_EFER) & efer::LMA != 0 && read(Field::GUEST_CS_RIGHTS) & 1 << 13 != 0;
    if is_long { value } else { value & 0xffff_ffff }
}

const fn io(qualification: u64) -> Exit {
    Exit::Io(IoAccess {
        port: low_u16(qualification >> 16),
        size: low_u8(qualification & 7) + 1,
        is_in: qualification & 1 << 3 != 0,
        is_string: qualification & 1 << 4 != 0,
        is_repeated: qualification & 1 << 5 != 0,
    })
}

fn ept_violation(read: &impl Fn(Field) -> u64) -> Exit {
    let qualification = read(Field::EXIT_QUALIFICATION);
    let has_linear = qualification & 1 << 7 != 0;
    let is_final = qualification & 1 << 8 != 0;
    Exit::P2mFault(P2mFault {
        gpa: Gpa::new(read(Field::GUEST_PHYSICAL_ADDRESS)),
        is_fetch: qualification & 1 << 2 != 0,
        is_walk: has_linear && !is_final,
        is_delivery: is_vectoring(low_u32(read(Field::IDT_VECTORING_INFO))),
    })
}

/// The text of a VM-instruction error of an entry.
///
/// Source: Intel SDM vol. 3C, §30.4 VM Instruction Error Numbers.
#[must_use]
pub const fn instruction_error(number: u32) -> &'static str {
    match number {
        4 => "VMLAUNCH with a VMCS that is not clear",
        5 => "VMRESUME with a VMCS that is not launched",
        7 => "entry with invalid control fields",
        8 => "entry with invalid host state",
        26 => "entry with events blocked by MOV SS",
        _ => "another VM-instruction error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A VMCS of the listed fields; everything else reads as 0.
    fn vmcs<'a>(fields: &'a [(Field, u64)]) -> impl Fn(Field) -> u64 + 'a {
        |field| fields.iter().find(|(name, _)| *name == field).map_or(0, |(_, value)| *value)
    }

    fn report(reason: u16, fields: &[(Field, u64)]) -> Exit {
        decode(ExitReason(u32::from(reason)), &GuestRegs::default(), vmcs(fields)).expect("a reason that is reported")
    }

    #[test]
    fn every_reason_has_its_decision() {
        const UD: Exit = Exit::Forbidden(Fault::InvalidOpcode);
        let decided = [
            (1, Exit::ExternalInterrupt { vector: None }),
            (2, Exit::TripleFault),
            (7, Exit::InterruptWindow),
            (10, Exit::Cpuid),
            (11, UD),
            (12, Exit::Halt),
            (13, Exit::CacheFlush),
            (15, Exit::Forbidden(Fault::GeneralProtection)),
            (17, UD),
            (18, Exit::Hypercall),
            (19, UD),
            (20, UD),
            (21, UD),
            (22, UD),
            (23, UD),
            (24, UD),
            (25, UD),
            (26, UD),
            (27, UD),
            (31, Exit::Rdmsr),
            (32, Exit::Wrmsr),
            (36, UD),
            (39, UD),
            (40, Exit::PauseLoop),
            (50, UD),
            (52, Exit::Deadline),
            (53, UD),
            (54, Exit::CacheFlush),
            (55, Exit::Xsetbv),
        ];
        let by_fields = [reason::CONTROL_REGISTER, reason::IO, reason::EPT_VIOLATION, reason::NMI_WINDOW];
        for number in 0..=80 {
            if by_fields.contains(&number) {
                continue;
            }
            let expected = decided
                .iter()
                .find(|(reason, _)| *reason == number)
                .map_or(Exit::Unexpected { raw: u64::from(number) }, |(_, exit)| *exit);
            assert_eq!(report(number, &[]), expected, "{number}");
        }
    }

    #[test]
    fn the_book_lists_the_reasons_that_are_expected() {
        const PAGE: &str = include_str!("../../../docs/src/reference/exits.md");
        let section = PAGE.split_once("## VT-x, by number").and_then(|(_, rest)| rest.split_once("\n## ")).unwrap().0;
        let cells = section.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" |").map(|(cell, _)| cell));
        let mut listed = std::collections::BTreeSet::new();
        for cell in cells {
            // `a` or `a to b` first, what it is called behind.
            for part in cell.split(", ") {
                let mut words = part.split(' ');
                let Some(first) = words.next().and_then(|word| word.parse::<u16>().ok()) else { continue };
                let last = if words.next() == Some("to") { words.next().unwrap().parse().unwrap() } else { first };
                listed.extend(first..=last);
            }
        }
        // Exceptions are told by another field, failed entries by a bit beside their number.
        let by_more = [0, 33, 34, 41];
        for number in 0..=80 {
            let decoded = decode(ExitReason(u32::from(number)), &GuestRegs::default(), vmcs(&[]));
            let is_expected = !matches!(decoded, Some(Exit::Unexpected { .. })) || by_more.contains(&number);
            assert_eq!(listed.contains(&number), is_expected, "reason {number}");
        }
    }

    #[test]
    fn plain_exits_are_decoded_alike() {
        let plain: Vec<u16> = (0..80).filter(|number| ExitReason(u32::from(*number)).plain().is_some()).collect();
        assert_eq!(plain.len(), 6);
        for number in plain {
            assert_eq!(ExitReason(u32::from(number)).plain(), Some(report(number, &[])), "{number}");
        }
    }

    #[test]
    fn only_instructions_have_a_length() {
        let has = |number: u32| ExitReason(number).has_instruction_length();
        assert!([10, 12, 18, 28, 30, 31, 32, 54, 55].into_iter().all(has));
        assert!(![0, 1, 2, 7, 8, 48, 49, 52, 33 | 1 << 31, 18 | 1 << 31, u32::MAX].into_iter().any(has));
    }

    #[test]
    fn a_failed_entry_is_no_exit() {
        for basic in [33, 34, 41] {
            let raw = basic | 1 << 31;
            let decoded = decode(ExitReason(raw), &GuestRegs::default(), vmcs(&[]));
            assert_eq!(decoded, Some(Exit::EntryFailed { raw: u64::from(raw) }));
        }
    }

    #[test]
    fn exceptions_and_nmis_are_told_apart() {
        let info = |word: u64| [(Field::EXIT_INTERRUPTION_INFO, word), (Field::EXIT_ERROR_CODE, 4)];
        assert_eq!(report(0, &info(0x8000_0202)), Exit::HostNmi);
        assert_eq!(report(0, &info(0x8000_0301)), Exit::Exception { vector: 1, error_code: None });
        assert_eq!(report(0, &info(0x8000_0b11)), Exit::Exception { vector: 17, error_code: Some(4) });
        assert_eq!(report(1, &info(0x8000_0030)), Exit::ExternalInterrupt { vector: Some(0x30) });
    }

    #[test]
    fn port_accesses_are_whole() {
        let exit = report(30, &[(Field::EXIT_QUALIFICATION, 0x0cf8_0003)]);
        let plain = IoAccess { port: 0xcf8, size: 4, is_in: false, is_string: false, is_repeated: false };
        assert_eq!(exit, Exit::Io(plain));
        let exit = report(30, &[(Field::EXIT_QUALIFICATION, 0x01f0_0039)]);
        assert_eq!(exit, Exit::Io(IoAccess { port: 0x1f0, size: 2, is_in: true, is_string: true, is_repeated: true }));
    }

    #[test]
    fn p2m_faults_tell_walks_from_accesses() {
        let fault = |qualification| match report(
            48,
            &[(Field::EXIT_QUALIFICATION, qualification), (Field::GUEST_PHYSICAL_ADDRESS, 0xfee0_0300)],
        ) {
            Exit::P2mFault(fault) => fault,
            other => panic!("{other:?}"),
        };
        let write = fault(0x182);
        assert_eq!(write.gpa, Gpa::new(0xfee0_0300));
        assert!(!write.is_fetch && !write.is_walk);
        assert!(fault(0x081).is_walk);
        assert!(fault(0x184).is_fetch);
        assert!(!fault(0x001).is_walk, "no linear address: not a walk of the guest's tables");
        assert!(!write.is_delivery);
    }

    #[test]
    fn a_p2m_fault_during_the_delivery_of_an_event_is_the_deliverys() {
        for (info, is_delivery) in [(0, false), (0x8000_0b0e, true), (0x0000_0b0e, false)] {
            let fields = [(Field::EXIT_QUALIFICATION, 0x182), (Field::IDT_VECTORING_INFO, info)];
            let Exit::P2mFault(fault) = report(48, &fields) else { panic!("{info:#x}") };
            assert_eq!(fault.is_delivery, is_delivery, "{info:#x}");
        }
    }

    #[test]
    fn control_register_writes_carry_the_whole_value() {
        let regs = GuestRegs { rbx: 0x8000_0011, r15: 0x20, ..GuestRegs::default() };
        let run = |qualification| {
            let fields = [
                (Field::EXIT_QUALIFICATION, qualification),
                (Field::GUEST_CR0, 0x8000_0039),
                (Field::CR0_SHADOW, 0x6000_0020),
                (Field::GUEST_RSP, 0x7777),
            ];
            decode(ExitReason(28), &regs, vmcs(&fields))
        };
        let write = |register, value| Some(Exit::ControlWrite { register, value: Some(value) });
        assert_eq!(run(0x300), write(ControlRegister::Cr0, 0x8000_0011));
        assert_eq!(run(0xf04), write(ControlRegister::Cr4, 0x20));
        assert_eq!(run(0x404), write(ControlRegister::Cr4, 0x7777));
        assert_eq!(run(0x20), write(ControlRegister::Cr0, 0xe000_0031), "CLTS");
        assert_eq!(run(0x30 | 0x6 << 16), write(ControlRegister::Cr0, 0xe000_0037), "LMSW keeps PE");
        assert_eq!(run(0xf08), write(ControlRegister::Cr8, 0x20));
        assert_eq!(run(0x118), Some(Exit::Cr8Read { into: Some(1) }));
        assert!(matches!(run(0x013), Some(Exit::Unexpected { .. })), "reads of CR3 do not exit");
    }

    #[test]
    fn only_64_bit_code_writes_more_than_32_bits() {
        let regs = GuestRegs { rax: 0xdead_0000_0000_0011, ..GuestRegs::default() };
        let run = |efer, rights| {
            let fields = [(Field::GUEST_EFER, efer), (Field::GUEST_CS_RIGHTS, rights)];
            match decode(ExitReason(28), &regs, vmcs(&fields)) {
                Some(Exit::ControlWrite { value, .. }) => value,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(run(0x500, 0xa09b), Some(0xdead_0000_0000_0011));
        assert_eq!(run(0x500, 0xc09b), Some(0x11));
        assert_eq!(run(0, 0xa09b), Some(0x11));
    }
}
