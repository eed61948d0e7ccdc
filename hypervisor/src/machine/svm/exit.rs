// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exit codes of SVM, decoded into the vendor-neutral type.
//!
//! Source: AMD APM vol. 2, appendix C, SVM Intercept Exit Codes.

use guest_abi::Gpa;
use guest_abi::num::{low_u8, low_u16, low_u32};
use hypervisor::backend::SegmentName;
use hypervisor::exit::{ControlRegister, Exit, Fault, IoAccess, P2mFault};

use super::EVENT_VALID;
use super::vmcb::Vmcb;

const CR0_WRITE: u64 = 0x10;
const CR4_WRITE: u64 = 0x14;
const CR8_READ: u64 = 0x08;
const CR8_WRITE: u64 = 0x18;
const EXCEPTION_0: u64 = 0x40;
const EXCEPTION_31: u64 = 0x5f;
pub(super) const VMMCALL: u64 = 0x81;
const INVALID: u64 = u64::MAX;
const INVALID_LOW: u64 = 0xffff_ffff;
/// Port I/O: the second information word holds the next RIP.
pub(super) const IO: u64 = 0x7b;

/// The guest is about to return from an interrupt.
pub(super) const IRET: u64 = 0x74;

/// Decodes the exit that the control block describes, other than VMMCALL's.
pub(super) fn decode(vmcb: &Vmcb) -> Exit {
    let info = vmcb.exit_info_1;
    match vmcb.exit_code {
        0x60 => Exit::ExternalInterrupt { vector: None },
        0x61 => Exit::HostNmi,
        // SMI and INIT are pending for the host; GIF set again by the exit path takes them.
        0x62 | 0x63 => Exit::ExternalInterrupt { vector: None },
        // The return from a handler, too, is waited for to deliver an interrupt.
        0x64 | IRET => Exit::InterruptWindow,
        0x6f => Exit::Forbidden(Fault::GeneralProtection),
        0x72 => Exit::Cpuid,
        0x73 => Exit::Forbidden(Fault::InvalidOpcode),
        0x76 | 0x89 => Exit::CacheFlush,
        0x78 => Exit::Halt,
        IO => Exit::Io(io(info)),
        0x7c if info & 1 == 0 => Exit::Rdmsr,
        0x7c => Exit::Wrmsr,
        0x7f => Exit::TripleFault,
        0x7a | 0x80 | 0x82..=0x86 | 0x8a | 0x8b | 0x8c | 0x8e => Exit::Forbidden(Fault::InvalidOpcode),
        0x8d => Exit::Xsetbv,
        0x400 => Exit::P2mFault(P2mFault {
            gpa: Gpa::new(vmcb.exit_info_2),
            is_fetch: info & 1 << 4 != 0,
            is_walk: info & 1 << 33 != 0,
            is_delivery: vmcb.exit_int_info & EVENT_VALID != 0,
        }),
        // The value is in a register that only decoding the instruction tells.
        CR0_WRITE => Exit::ControlWrite { register: ControlRegister::Cr0, value: None },
        CR4_WRITE => Exit::ControlWrite { register: ControlRegister::Cr4, value: None },
        CR8_WRITE => Exit::ControlWrite { register: ControlRegister::Cr8, value: None },
        CR8_READ => Exit::Cr8Read { into: None },
        code @ EXCEPTION_0..=EXCEPTION_31 => {
            let vector = low_u8(code - EXCEPTION_0);
            let error_code = has_error_code(vector).then(|| low_u32(info));
            Exit::Exception { vector, error_code }
        }
        // The code is all ones, of which some implementations store the low half.
        INVALID | INVALID_LOW => Exit::EntryFailed { raw: INVALID },
        raw => Exit::Unexpected { raw },
    }
}

/// Whose hypercall it is.
#[inline]
pub(super) fn hypercall_of(vmcb: &Vmcb) -> Exit {
    if vmcb.cpl != 0 {
        Exit::UserHypercall
    } else if vmcb.segment(SegmentName::Cs).is_long() {
        Exit::Hypercall
    } else {
        Exit::NarrowHypercall
    }
}

fn io(info: u64) -> IoAccess {
    let size = match info >> 4 & 7 {
        1 => 1,
        2 => 2,
        _ => 4,
    };
    IoAccess {
        port: low_u16(info >> 16),
        size,
        is_in: info & 1 != 0,
        is_string: info & 1 << 2 != 0,
        is_repeated: info & 1 << 3 != 0,
    }
}

const fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21)
}
