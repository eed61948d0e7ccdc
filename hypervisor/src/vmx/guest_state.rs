// SPDX-License-Identifier: MIT OR Apache-2.0
//! A vCPU's architectural state as VMCS fields, and back.
//!
//! CR2 and XCR0 have no field; the machine half keeps them. Everything else of a [`CpuState`] goes
//! through here, so that the host can test that each state we start a vCPU in passes the
//! CPU's own checks ([`super::entry_check`]).

use guest_abi::num::{low_u16, low_u32};

use super::caps::{Capabilities, EntryControls};
use super::control_regs::{CR0_MASK, CR4_MASK, guest_view, real_cr0, real_cr4};
use super::fields::{Field, SegmentFields};
use crate::backend::SegmentName;
use crate::policy::control::{efer, efer_with_lma};
use crate::vcpu::regs::{CpuState, Segment, Segments, TableRegister};

/// Writes every field that the state determines, and resets what a fresh state has not: pending
/// debug exceptions, interrupt shadow, events. `write` executes VMWRITE.
pub fn store(state: &CpuState, caps: &Capabilities, mut write: impl FnMut(Field, u64)) {
    let efer = efer_with_lma(state.efer, state.cr0);
    for which in SegmentName::ALL {
        let (f, segment) = (SegmentFields::of(which), state.segments[which]);
        write(f.selector, u64::from(segment.selector));
        write(f.limit, u64::from(segment.limit));
        write(f.rights, u64::from(segment.attributes));
        write(f.base, segment.base);
    }
    let rest = [
        (Field::GUEST_CR0, real_cr0(state.cr0, caps.cr0)),
        (Field::CR0_SHADOW, state.cr0),
        (Field::GUEST_CR3, state.cr3),
        (Field::GUEST_CR4, real_cr4(state.cr4, caps.cr4)),
        (Field::CR4_SHADOW, state.cr4),
        (Field::GUEST_EFER, efer),
        (Field::ENTRY_CONTROLS, entry_controls(caps, efer)),
        (Field::GUEST_RIP, state.rip),
        (Field::GUEST_RSP, state.rsp),
        (Field::GUEST_RFLAGS, state.rflags),
        (Field::GUEST_DR7, state.dr7),
        (Field::GUEST_GDTR_BASE, state.gdtr.base),
        (Field::GUEST_GDTR_LIMIT, u64::from(state.gdtr.limit)),
        (Field::GUEST_IDTR_BASE, state.idtr.base),
        (Field::GUEST_IDTR_LIMIT, u64::from(state.idtr.limit)),
        (Field::GUEST_PAT, state.pat),
        (Field::GUEST_DEBUGCTL, 0),
        (Field::GUEST_INTERRUPTIBILITY, 0),
        (Field::GUEST_PENDING_DEBUG, 0),
        (Field::GUEST_ACTIVITY, 0),
        (Field::ENTRY_INTERRUPTION_INFO, 0),
    ];
    for (field, value) in rest {
        write(field, value);
    }
}

/// The entry controls for a guest with this EFER.
#[must_use]
pub fn entry_controls(caps: &Capabilities, efer: u64) -> u64 {
    let mut entry = caps.controls.entry;
    entry.set(EntryControls::GUEST_LONG_MODE, efer & efer::LMA != 0);
    u64::from(entry.bits())
}

/// Reads the state back as the guest sees it; CR2 and XCR0 are left 0. `read` executes VMREAD.
#[must_use]
pub fn fetch(read: impl Fn(Field) -> u64) -> CpuState {
    let table = |base, limit| TableRegister { base: read(base), limit: low_u16(read(limit)) };
    CpuState {
        rip: read(Field::GUEST_RIP),
        rsp: read(Field::GUEST_RSP),
        rflags: read(Field::GUEST_RFLAGS),
        cr0: guest_view(read(Field::GUEST_CR0), read(Field::CR0_SHADOW), CR0_MASK),
        cr2: 0,
        cr3: read(Field::GUEST_CR3),
        cr4: guest_view(read(Field::GUEST_CR4), read(Field::CR4_SHADOW), CR4_MASK),
        efer: read(Field::GUEST_EFER),
        xcr0: 0,
        dr7: read(Field::GUEST_DR7),
        segments: Segments::new(|which| fetch_segment(which, &read)),
        gdtr: table(Field::GUEST_GDTR_BASE, Field::GUEST_GDTR_LIMIT),
        idtr: table(Field::GUEST_IDTR_BASE, Field::GUEST_IDTR_LIMIT),
        pat: read(Field::GUEST_PAT),
    }
}

/// Reads one segment register.
#[must_use]
pub fn fetch_segment(which: SegmentName, read: impl Fn(Field) -> u64) -> Segment {
    let f = SegmentFields::of(which);
    Segment {
        selector: low_u16(read(f.selector)),
        attributes: low_u32(read(f.rights)),
        limit: low_u32(read(f.limit)),
        base: read(f.base),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmx::caps::tests::haswell;
    use crate::vmx::entry_check::tests::{stored, vmcs_of};

    #[test]
    fn a_state_comes_back_as_it_was() {
        let caps = haswell();
        for state in [CpuState::pvh_entry(0x10_0000), CpuState::startup_ipi(0x9a)] {
            let fields = vmcs_of(&state, &caps);
            let back = fetch(|field| stored(&fields, field));
            assert_eq!(back, CpuState { xcr0: 0, ..state });
        }
    }

    #[test]
    fn long_mode_reaches_the_entry_control() {
        let caps = haswell();
        let long = CpuState { cr0: 0x8000_0033, cr4: 0x20, efer: 0x500, ..CpuState::pvh_entry(0) };
        let fields = vmcs_of(&long, &caps);
        let bit = u64::from(EntryControls::GUEST_LONG_MODE.bits());
        assert_ne!(stored(&fields, Field::ENTRY_CONTROLS) & bit, 0);
        let not_yet = CpuState { cr0: 0x33, ..long };
        let fields = vmcs_of(&not_yet, &caps);
        assert_eq!(stored(&fields, Field::ENTRY_CONTROLS) & bit, 0);
        assert_eq!(stored(&fields, Field::GUEST_EFER), 0x100);
    }
}
