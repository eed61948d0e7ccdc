// SPDX-License-Identifier: MIT OR Apache-2.0
//! Events between [`Pending`], which decides, and the VMCS.
//!
//! The interruptibility field is written back where an event that did not reach the guest has left
//! its blocking behind, or where an injected one ends the interrupt shadow.

use guest_abi::num::{low_u8, low_u32};
use hypervisor::backend::Injection;
use hypervisor::policy::control::cr0;
use hypervisor::vmx::caps::Proc;
use hypervisor::vmx::event::{Event, EventKind, nmi_unblocked_by_iret};
use hypervisor::vmx::fields::Field;
use hypervisor::vmx::pending::Pending;

use super::vmcs::{Active, Vmcs};

const BLOCKED_BY_STI: u64 = 1 << 0;
const BLOCKED_BY_MOV_SS: u64 = 1 << 1;
const SHADOW: u64 = BLOCKED_BY_STI | BLOCKED_BY_MOV_SS;
const BLOCKED_BY_NMI: u64 = 1 << 3;
const RFLAGS_IF: u64 = 1 << 9;

/// What waits, and the processor controls that ask for windows.
pub(super) struct Events {
    pending: Pending,
    /// The caller wants to hear of an interrupt window.
    is_window_wanted: bool,
    /// What the VMCS's controls hold.
    controls: Proc,
    /// The next entry has something to do.
    is_stale: bool,
}

impl Events {
    /// Nothing waits; `controls` are what the VMCS was given.
    pub(super) fn new(controls: Proc) -> Self {
        Self { pending: Pending::default(), is_window_wanted: false, controls, is_stale: false }
    }

    /// Forgets every event, for a vCPU that starts again.
    pub(super) fn reset(&mut self) {
        self.pending = Pending::default();
        self.is_stale = true;
    }

    /// Queues what the caller injects.
    pub(super) fn inject(&mut self, vmcs: &Vmcs, injection: Injection) {
        if matches!(injection, Injection::Exception { .. }) {
            // Delivery ends the shadow; the CPU checks that none is left with single-stepping.
            vmcs.visit(|vmcs| clear_shadow(&vmcs));
        }
        self.pending.inject(injection);
        self.is_stale = true;
    }

    /// Asks for the caller's interrupt window.
    pub(super) const fn request_window(&mut self, wanted: bool) {
        self.is_window_wanted = wanted;
        self.is_stale = true;
    }

    /// Whether nothing waits.
    pub(super) const fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Whether an open window is for an interrupt that waits here, not for the caller.
    pub(super) const fn keeps_window(&self) -> bool {
        self.pending.wants_window()
    }

    /// After an exit: keeps what the CPU was delivering.
    #[inline]
    pub(super) fn collect(&mut self, vmcs: &Active<'_>) {
        let event = Event::decode(
            low_u32(vmcs.read(Field::IDT_VECTORING_INFO)),
            || low_u32(vmcs.read(Field::IDT_VECTORING_ERROR_CODE)),
            || low_u8(vmcs.read(Field::EXIT_INSTRUCTION_LENGTH)),
        );
        let Some(event) = event else { return };
        if event.kind == EventKind::Nmi {
            // Its delivery did not happen, so it must not block the one to come.
            let blocked = vmcs.read(Field::GUEST_INTERRUPTIBILITY);
            vmcs.write_guest(Field::GUEST_INTERRUPTIBILITY, blocked & !BLOCKED_BY_NMI);
        }
        self.pending.interrupted(event);
        self.is_stale = true;
    }

    /// After an exit by a fault: if an IRET had unblocked NMIs before it faulted, blocks them again.
    /// `info` is the interruption-information word that says so.
    pub(super) fn reblock_nmis(&self, vmcs: &Active<'_>, info: u32) {
        if !self.pending.wants_window() && nmi_unblocked_by_iret(info) {
            let blocked = vmcs.read(Field::GUEST_INTERRUPTIBILITY);
            vmcs.write_guest(Field::GUEST_INTERRUPTIBILITY, blocked | BLOCKED_BY_NMI);
        }
    }

    /// Before an entry: gives the CPU the event to deliver, and asks for the windows that others
    /// wait for.
    #[inline]
    pub(super) fn deliver(&mut self, vmcs: &Active<'_>) {
        if self.is_stale {
            self.bring_up_to_date(vmcs);
        }
    }

    #[inline(never)]
    fn bring_up_to_date(&mut self, vmcs: &Active<'_>) {
        let mut windows = Proc::empty();
        if !self.pending.is_empty() {
            windows = self.deliver_pending(vmcs);
        }
        if self.is_window_wanted {
            windows |= Proc::INTERRUPT_WINDOW;
        }
        if self.controls & Proc::WINDOWS != windows {
            self.controls = self.controls.difference(Proc::WINDOWS) | windows;
            // SAFETY: only the two window bits differ from what was negotiated, and both may be
            // set, which negotiation required.
            unsafe { vmcs.write(Field::PROC_CONTROLS, u64::from(self.controls.bits())) };
        }
        self.is_stale = !self.pending.is_empty();
    }

    fn deliver_pending(&mut self, vmcs: &Active<'_>) -> Proc {
        let delivery = self.pending.next(|| can_take_interrupt(vmcs), || can_take_nmi(vmcs));
        if let Some(event) = delivery.event {
            write_event(vmcs, event);
        }
        let mut windows = Proc::empty();
        windows.set(Proc::INTERRUPT_WINDOW, delivery.interrupt_window);
        windows.set(Proc::NMI_WINDOW, delivery.nmi_window);
        windows
    }
}

fn write_event(vmcs: &Active<'_>, event: Event) {
    let protected = event.error_code.is_none() || vmcs.read(Field::GUEST_CR0) & cr0::PE != 0;
    if let Some(code) = event.error_code {
        // SAFETY: an error code is data for the guest.
        unsafe { vmcs.write(Field::ENTRY_ERROR_CODE, u64::from(code)) };
    }
    if event.kind.needs_length() {
        // SAFETY: a length is added to the guest's RIP only.
        unsafe { vmcs.write(Field::ENTRY_INSTRUCTION_LENGTH, u64::from(event.length)) };
    }
    // SAFETY: an event is delivered through the guest's own descriptor table; a word that the CPU
    // does not accept fails the entry.
    unsafe { vmcs.write(Field::ENTRY_INTERRUPTION_INFO, u64::from(event.encode(protected))) };
}

/// Whether the guest could take an interrupt at the next entry.
pub(super) fn can_take_interrupt(vmcs: &Active<'_>) -> bool {
    vmcs.read(Field::GUEST_RFLAGS) & RFLAGS_IF != 0 && vmcs.read(Field::GUEST_INTERRUPTIBILITY) & SHADOW == 0
}

fn can_take_nmi(vmcs: &Active<'_>) -> bool {
    vmcs.read(Field::GUEST_INTERRUPTIBILITY) & (SHADOW | BLOCKED_BY_NMI) == 0
}

/// Ends the shadow of STI and MOV SS.
#[inline]
pub(super) fn clear_shadow(vmcs: &Active<'_>) {
    let blocked = vmcs.read(Field::GUEST_INTERRUPTIBILITY);
    if blocked & SHADOW != 0 {
        vmcs.write_guest(Field::GUEST_INTERRUPTIBILITY, blocked & !SHADOW);
    }
}
