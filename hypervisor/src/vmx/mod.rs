// SPDX-License-Identifier: MIT OR Apache-2.0
//! What of VT-x needs no VT-x: numbers, negotiation, decoding and checks.
//!
//! The bare-metal half, `machine/vmx/`, executes VMREAD, VMWRITE and VMLAUNCH and decides as
//! little as it can. Which controls are used ([`caps`]), what an exit means ([`exit`]), how an
//! event is encoded ([`event`]), which bits of CR0 and CR4 the guest owns ([`control_regs`]) and why
//! the CPU refused an entry ([`entry_check`]) are functions over plain numbers, so the host tests them with the capability values of
//! machines that nobody here has.
//!
//! VT-x is used where it has EPT and unrestricted guest. Everything required here is offered by
//! KVM to a nested hypervisor and by Bochs' models from Haswell on.
//!
//! Source: Intel SDM vol. 3C (order number 326019-080, June 2023), chapters 24 to 28 and
//! appendices A to C.

pub mod caps;
pub mod control_regs;
pub mod entry_check;
pub mod event;
pub mod exit;
pub mod fields;
pub mod guest_state;
pub mod msr_bitmap;
pub mod pending;
