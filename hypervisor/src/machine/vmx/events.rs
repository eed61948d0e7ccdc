// SPDX-License-Identifier: MIT OR Apache-2.0
//! Events on their way into the guest.
//!
//! Up to three wait: what the caller injected, what the CPU was delivering when the guest exited,
//! and an NMI. An entry delivers one. The caller's goes first if it is an exception: the
//! exception that it displaces comes again by itself, since its instruction runs again, but an
//! interrupt does not, so that one is kept, and if the guest cannot take it at once, it waits for
//! an interrupt window. NMIs wait for the CPU's own NMI blocking to end.
//!
//! Source: Intel SDM vol. 3C (326019-080), §26.6 Event Injection, §31.7.1 (in older editions
//! Handling VM Exits Due to Exceptions).

use guest_abi::num::{low_u8, low_u32};
use hypervisor::backend::Injection;
use hypervisor::vmx::caps::Proc;
use hypervisor::vmx::control_regs::CR0_PE;
use hypervisor::vmx::event::{Event, EventKind, nmi_unblocked_by_iret};
use hypervisor::vmx::fields::Field;

use super::vmcs::{Active, Vmcs};

const BLOCKED_BY_STI: u64 = 1 << 0;
const BLOCKED_BY_MOV_SS: u64 = 1 << 1;
const SHADOW: u64 = BLOCKED_BY_STI | BLOCKED_BY_MOV_SS;
const BLOCKED_BY_NMI: u64 = 1 << 3;
const RFLAGS_IF: u64 = 1 << 9;

/// What waits, and the processor controls that ask for windows.
pub(super) struct Events {
    injected: Option<Event>,
    interrupted: Option<Event>,
    is_nmi_pending: bool,
    /// The caller wants to hear of an interrupt window.
    is_window_wanted: bool,
    /// What the VMCS's controls hold.
    controls: Proc,
}

impl Events {
    /// Nothing waits; `controls` are what the VMCS was given.
    pub(super) const fn new(controls: Proc) -> Self {
        Self { injected: None, interrupted: None, is_nmi_pending: false, is_window_wanted: false, controls }
    }

    /// Forgets everything, for a vCPU that starts again.
    pub(super) fn reset(&mut self) {
        *self = Self { is_window_wanted: self.is_window_wanted, ..Self::new(self.controls) };
    }

    /// Queues what the caller injects.
    pub(super) fn inject(&mut self, vmcs: &Vmcs, injection: Injection) {
        if injection == Injection::Nmi {
            self.is_nmi_pending = true;
            return;
        }
        let event = Event::from_injection(injection);
        if event.kind == EventKind::Exception {
            // Delivery ends the shadow; the CPU checks that none is left with single-stepping.
            vmcs.visit(|vmcs| clear_shadow(&vmcs));
        }
        self.injected = Some(event);
    }

    /// Asks for the caller's interrupt window.
    pub(super) const fn request_window(&mut self, wanted: bool) {
        self.is_window_wanted = wanted;
    }

    /// Whether nothing is queued that an interrupt would have to wait for.
    pub(super) const fn is_empty(&self) -> bool {
        self.injected.is_none() && self.interrupted.is_none() && !self.is_nmi_pending
    }

    /// Whether an open window is for an interrupt that waits here, not for the caller.
    pub(super) const fn keeps_window(&self) -> bool {
        self.interrupted.is_some()
    }

    /// After an exit: keeps what the CPU was delivering.
    #[inline]
    pub(super) fn collect(&mut self, vmcs: &Active<'_>) {
        let info = low_u32(vmcs.read(Field::IDT_VECTORING_INFO));
        self.interrupted = Event::decode(
            info,
            || low_u32(vmcs.read(Field::IDT_VECTORING_ERROR_CODE)),
            || low_u8(vmcs.read(Field::EXIT_INSTRUCTION_LENGTH)),
        );
        if let Some(event) = self.interrupted
            && event.kind == EventKind::Nmi
        {
            // Its delivery did not happen, so it must not block the one to come.
            let blocked = vmcs.read(Field::GUEST_INTERRUPTIBILITY);
            vmcs.write_guest(Field::GUEST_INTERRUPTIBILITY, blocked & !BLOCKED_BY_NMI);
            self.interrupted = None;
            self.is_nmi_pending = true;
        }
    }

    /// After an exit by a fault: if an IRET had unblocked NMIs before it faulted, blocks them again.
    /// `info` is the word, or an EPT violation's qualification, that says so.
    pub(super) fn reblock_nmis(&self, vmcs: &Active<'_>, info: u32) {
        if self.interrupted.is_none() && nmi_unblocked_by_iret(info) {
            let blocked = vmcs.read(Field::GUEST_INTERRUPTIBILITY);
            vmcs.write_guest(Field::GUEST_INTERRUPTIBILITY, blocked | BLOCKED_BY_NMI);
        }
    }

    /// Before an entry: gives the CPU the event to deliver, and asks for the windows that others
    /// wait for.
    #[inline]
    pub(super) fn deliver(&mut self, vmcs: &Active<'_>) {
        let mut wanted = Proc::empty();
        if !self.is_empty() {
            wanted = self.pick(vmcs);
        }
        wanted.set(Proc::INTERRUPT_WINDOW, wanted.contains(Proc::INTERRUPT_WINDOW) || self.is_window_wanted);
        let windows = Proc::INTERRUPT_WINDOW | Proc::NMI_WINDOW;
        if self.controls & windows != wanted {
            self.controls = self.controls.difference(windows) | wanted;
            // SAFETY: only the two window bits differ from what was negotiated, and both may be
            // set, which negotiation required.
            unsafe { vmcs.write(Field::PROC_CONTROLS, u64::from(self.controls.bits())) };
        }
    }

    #[cold]
    fn pick(&mut self, vmcs: &Active<'_>) -> Proc {
        let mut wanted = Proc::empty();
        let mut chosen = self.injected.take();
        if let Some(event) = self.interrupted {
            let is_interrupt = event.kind == EventKind::External;
            if chosen.is_some() {
                // An exception comes again by itself, an interrupt stays.
                self.interrupted = is_interrupt.then_some(event);
            } else if !is_interrupt || can_take_interrupt(vmcs) {
                self.interrupted = None;
                chosen = Some(event);
            }
            if self.interrupted.is_some() {
                wanted |= Proc::INTERRUPT_WINDOW;
            }
        }
        if self.is_nmi_pending {
            let blocked = vmcs.read(Field::GUEST_INTERRUPTIBILITY) & (SHADOW | BLOCKED_BY_NMI) != 0;
            if chosen.is_none() && !blocked {
                self.is_nmi_pending = false;
                chosen = Some(Event::from_injection(Injection::Nmi));
            } else {
                wanted |= Proc::NMI_WINDOW;
            }
        }
        if let Some(event) = chosen {
            write_event(vmcs, event);
        }
        wanted
    }
}

fn write_event(vmcs: &Active<'_>, event: Event) {
    let protected = event.error_code.is_none() || vmcs.read(Field::GUEST_CR0) & CR0_PE != 0;
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

/// Ends the shadow of STI and MOV SS.
#[inline]
pub(super) fn clear_shadow(vmcs: &Active<'_>) {
    let blocked = vmcs.read(Field::GUEST_INTERRUPTIBILITY);
    if blocked & SHADOW != 0 {
        vmcs.write_guest(Field::GUEST_INTERRUPTIBILITY, blocked & !SHADOW);
    }
}
