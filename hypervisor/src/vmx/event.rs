// SPDX-License-Identifier: MIT OR Apache-2.0
//! Events as VT-x words them: the interruption-information formats, in one typed place.
//!
//! Three fields share the format: what an exit was caused by, what was being delivered when the
//! exit happened, and what the next entry delivers. An [`Event`] is decoded from the first two and
//! encoded into the third; nothing else in the backend looks at the bits.
//!
//! Source: Intel SDM vol. 3C (326019-080), §24.8.3 VM-Entry Controls for Event Injection,
//! §24.9.2 Information for VM Exits Due to Vectored Events, §24.9.3.

use guest_abi::num::low_u8;

use crate::backend::Injection;

const VALID: u32 = 1 << 31;
const HAS_ERROR_CODE: u32 = 1 << 11;
/// The exit happened inside an IRET that had already unblocked NMIs.
const NMI_UNBLOCKED_BY_IRET: u32 = 1 << 12;

/// What kind of event; the values are the CPU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EventKind {
    /// An external interrupt.
    External = 0,
    /// A non-maskable interrupt.
    Nmi = 2,
    /// A fault, trap or abort that the CPU raised.
    Exception = 3,
    /// INT n.
    SoftwareInterrupt = 4,
    /// INT1.
    PrivilegedSoftware = 5,
    /// INT3 or INTO.
    SoftwareException = 6,
}

impl EventKind {
    const fn from_bits(info: u32) -> Option<Self> {
        match info >> 8 & 7 {
            0 => Some(Self::External),
            2 => Some(Self::Nmi),
            3 => Some(Self::Exception),
            4 => Some(Self::SoftwareInterrupt),
            5 => Some(Self::PrivilegedSoftware),
            6 => Some(Self::SoftwareException),
            _ => None,
        }
    }

    /// Whether delivery pushes the address behind an instruction, so that the entry must be told
    /// the instruction's length.
    #[must_use]
    pub const fn needs_length(self) -> bool {
        matches!(self, Self::SoftwareInterrupt | Self::PrivilegedSoftware | Self::SoftwareException)
    }
}

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What kind of event.
    pub kind: EventKind,
    /// The vector.
    pub vector: u8,
    /// The error code that delivery pushes.
    pub error_code: Option<u32>,
    /// The length in bytes of the instruction that caused a software event, else 0.
    pub length: u8,
}

impl Event {
    /// Decodes an interruption-information word. The error code and the instruction's length are
    /// asked for only where the word says that they exist. `None` if the word is not valid.
    pub fn decode(info: u32, error_code: impl FnOnce() -> u32, length: impl FnOnce() -> u8) -> Option<Self> {
        if info & VALID == 0 {
            return None;
        }
        let kind = EventKind::from_bits(info)?;
        Some(Self {
            kind,
            vector: low_u8(u64::from(info)),
            error_code: (info & HAS_ERROR_CODE != 0).then(error_code),
            length: if kind.needs_length() { length() } else { 0 },
        })
    }

    /// The word for the VM-entry interruption-information field.
    ///
    /// In real mode no exception has an error code and the CPU refuses an entry that brings one,
    /// so `protected` (CR0.PE) decides.
    #[must_use]
    pub const fn encode(self, protected: bool) -> u32 {
        let error = if self.error_code.is_some() && protected { HAS_ERROR_CODE } else { 0 };
        VALID | error | (self.kind as u32) << 8 | self.vector as u32
    }

    /// What the caller of the seam wants delivered. An error code is kept only for vectors
    /// that have one and supplied where the caller forgot it: the CPU refuses anything else.
    #[must_use]
    pub fn from_injection(injection: Injection) -> Self {
        let (kind, vector, error_code) = match injection {
            Injection::Interrupt { vector } => (EventKind::External, vector, None),
            Injection::Nmi => (EventKind::Nmi, 2, None),
            Injection::Exception { vector, error_code } => {
                let vector = vector & 31;
                let error_code = has_error_code(vector).then_some(error_code.unwrap_or(0));
                (EventKind::Exception, vector, error_code)
            }
        };
        Self { kind, vector, error_code, length: 0 }
    }
}

/// Whether an exception pushes an error code in protected mode.
#[must_use]
pub const fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17)
}

/// Whether an interruption-information word says that an IRET had unblocked NMIs before it
/// faulted, so that they must be blocked again.
#[must_use]
pub const fn nmi_unblocked_by_iret(info: u32) -> bool {
    // The bit has no meaning for a double fault.
    info & VALID != 0 && info & NMI_UNBLOCKED_BY_IRET != 0 && info & 0xff != 8
}

/// Whether the IDT-vectoring information says that an event was being delivered.
#[must_use]
pub const fn is_vectoring(info: u32) -> bool {
    info & VALID != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(info: u32) -> Option<Event> {
        Event::decode(info, || 0x99, || 2)
    }

    #[test]
    fn an_invalid_word_is_no_event() {
        assert_eq!(decode(0x0000_0b0e), None);
        assert_eq!(decode(0x8000_0700), None, "other event");
    }

    #[test]
    fn words_come_back_as_they_were() {
        for kind in [0, 2, 3, 4, 5, 6] {
            for vector in [0, 2, 14, 0x80, 0xff] {
                for error in [0, HAS_ERROR_CODE] {
                    let info = VALID | kind << 8 | error | vector;
                    let event = decode(info).unwrap();
                    assert_eq!(event.encode(true), info);
                    assert_eq!(event.encode(false), info & !HAS_ERROR_CODE);
                    assert_eq!(event.length, if kind >= 4 { 2 } else { 0 });
                }
            }
        }
    }

    #[test]
    fn an_injected_exception_gets_exactly_the_error_code_its_vector_has() {
        let inject =
            |vector, error_code| Event::from_injection(Injection::Exception { vector, error_code }).encode(true);
        assert_eq!(inject(6, Some(5)), 0x8000_0306);
        assert_eq!(inject(13, None), 0x8000_0b0d);
        assert_eq!(inject(14, Some(2)), 0x8000_0b0e);
        assert_eq!(Event::from_injection(Injection::Nmi).encode(true), 0x8000_0202);
        assert_eq!(Event::from_injection(Injection::Interrupt { vector: 0xf3 }).encode(true), 0x8000_00f3);
    }

    #[test]
    fn a_double_fault_says_nothing_about_iret() {
        assert!(nmi_unblocked_by_iret(0x8000_130e));
        assert!(!nmi_unblocked_by_iret(0x8000_1308));
        assert!(!nmi_unblocked_by_iret(0x0000_130e));
    }
}
