// SPDX-License-Identifier: MIT OR Apache-2.0
//! Events on their way into a guest, and which of them the next entry delivers.
//!
//! Up to three wait: what the caller injected, what the CPU was delivering when the guest exited,
//! and an NMI. An entry delivers one. The caller's goes first if it is an exception: the
//! exception that it displaces comes again by itself, since its instruction runs again, but an
//! interrupt does not, so that one is kept, and if the guest cannot take it at once, it waits for
//! an interrupt window. An NMI goes last and waits for the CPU's own NMI blocking to end.
//!
//! Source: Intel SDM vol. 3C (326019-080), §26.6 Event Injection; §27.2.4 Information for VM Exits
//! During Event Delivery.

use super::event::{Event, EventKind};
use crate::backend::Injection;

/// What waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    injected: Option<Event>,
    interrupted: Option<Event>,
    is_nmi_pending: bool,
}

/// What an entry does about what waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    /// The event to deliver.
    pub event: Option<Event>,
    /// Exit as soon as the guest can take the interrupt that waits.
    pub interrupt_window: bool,
    /// Exit as soon as the guest can take the NMI that waits.
    pub nmi_window: bool,
}

impl Pending {
    /// Queues what the caller injects. An interrupt only after [`Pending::is_empty`].
    pub fn inject(&mut self, injection: Injection) {
        match injection {
            Injection::Nmi => self.is_nmi_pending = true,
            Injection::Interrupt { .. } | Injection::Exception { .. } => {
                self.injected = Some(Event::from_injection(injection));
            }
        }
    }

    /// Keeps what the CPU was delivering when the guest exited.
    pub const fn interrupted(&mut self, event: Event) {
        match event.kind {
            EventKind::Nmi => self.is_nmi_pending = true,
            _ => self.interrupted = Some(event),
        }
    }

    /// Whether nothing waits that an interrupt would have to wait for.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.injected.is_none() && self.interrupted.is_none() && !self.is_nmi_pending
    }

    /// Whether an interrupt waits here for its window.
    #[must_use]
    pub const fn wants_window(&self) -> bool {
        self.interrupted.is_some()
    }

    /// What the next entry does. The guest's state is asked for only where it matters.
    pub fn next(&mut self, takes_interrupt: impl FnOnce() -> bool, takes_nmi: impl FnOnce() -> bool) -> Delivery {
        let mut event = self.injected.take();
        if let Some(interrupted) = self.interrupted {
            let is_interrupt = interrupted.kind == EventKind::External;
            let waits = if event.is_some() {
                is_interrupt
            } else if is_interrupt && !takes_interrupt() {
                true
            } else {
                event = Some(interrupted);
                false
            };
            if !waits {
                self.interrupted = None;
            }
        }
        if self.is_nmi_pending && event.is_none() && takes_nmi() {
            self.is_nmi_pending = false;
            event = Some(Event::from_injection(Injection::Nmi));
        }
        Delivery { event, interrupt_window: self.interrupted.is_some(), nmi_window: self.is_nmi_pending }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const INTERRUPT: Event = Event { kind: EventKind::External, vector: 0x30, error_code: None, length: 0 };
    const PAGE_FAULT: Event = Event { kind: EventKind::Exception, vector: 14, error_code: Some(2), length: 0 };
    const BREAKPOINT: Event = Event { kind: EventKind::SoftwareException, vector: 3, error_code: None, length: 1 };
    const GP: Injection = Injection::Exception { vector: 13, error_code: Some(0) };

    fn next(pending: &mut Pending, takes: bool) -> Delivery {
        pending.next(|| takes, || takes)
    }

    #[test]
    fn what_was_interrupted_is_delivered_again() {
        for event in [INTERRUPT, PAGE_FAULT, BREAKPOINT] {
            let mut pending = Pending::default();
            pending.interrupted(event);
            assert!(!pending.is_empty());
            assert_eq!(next(&mut pending, true), Delivery { event: Some(event), ..Delivery::default() });
            assert!(pending.is_empty());
        }
    }

    #[test]
    fn an_injected_exception_displaces_an_exception_for_good() {
        let mut pending = Pending::default();
        pending.interrupted(PAGE_FAULT);
        pending.inject(GP);
        assert_eq!(next(&mut pending, true).event.map(|event| event.vector), Some(13));
        assert!(pending.is_empty());
    }

    #[test]
    fn an_injected_exception_delays_an_interrupt_until_it_can_be_taken() {
        let mut pending = Pending::default();
        pending.interrupted(INTERRUPT);
        pending.inject(GP);
        let delivery = next(&mut pending, true);
        assert_eq!(delivery.event.map(|event| event.vector), Some(13));
        assert!(delivery.interrupt_window);
        let delivery = next(&mut pending, false);
        assert_eq!(delivery, Delivery { interrupt_window: true, ..Delivery::default() });
        assert_eq!(next(&mut pending, true), Delivery { event: Some(INTERRUPT), ..Delivery::default() });
    }

    #[test]
    fn an_nmi_waits_while_blocked_and_behind_everything_else() {
        let mut pending = Pending::default();
        pending.inject(Injection::Nmi);
        pending.inject(Injection::Interrupt { vector: 0x40 });
        let delivery = next(&mut pending, true);
        assert_eq!(delivery.event.map(|event| event.vector), Some(0x40));
        assert!(delivery.nmi_window);
        assert_eq!(next(&mut pending, false), Delivery { nmi_window: true, ..Delivery::default() });
        assert_eq!(next(&mut pending, true).event.map(|event| event.kind), Some(EventKind::Nmi));
        assert!(pending.is_empty());
    }

    proptest! {
        /// Interrupts and NMIs that the CPU had begun to deliver reach the guest, once, and only when it can take them.
        #[test]
        fn no_interrupt_is_lost_or_forced(steps in prop::collection::vec((0..5u8, any::<bool>(), any::<bool>()), 1..60)) {
            let mut pending = Pending::default();
            let (mut interrupts_owed, mut nmi_owed) = (0, false);
            for (action, takes_interrupt, takes_nmi) in steps {
                match action {
                    // The CPU delivers only what an entry gave it, so at most one is ever in its hands.
                    0 if !pending.wants_window() => { pending.interrupted(INTERRUPT); interrupts_owed += 1; }
                    1 => { pending.inject(Injection::Nmi); nmi_owed = true; }
                    2 => pending.inject(GP),
                    3 if !pending.wants_window() => pending.interrupted(PAGE_FAULT),
                    _ => {}
                }
                let delivery = pending.next(|| takes_interrupt, || takes_nmi);
                match delivery.event.map(|event| event.kind) {
                    Some(EventKind::External) => { prop_assert!(takes_interrupt); interrupts_owed -= 1; }
                    Some(EventKind::Nmi) => { prop_assert!(takes_nmi && nmi_owed); nmi_owed = false; }
                    _ => {}
                }
                prop_assert_eq!(delivery.interrupt_window, interrupts_owed != 0);
                prop_assert_eq!(delivery.nmi_window, nmi_owed);
            }
        }
    }
}
