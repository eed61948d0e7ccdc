// SPDX-License-Identifier: MIT OR Apache-2.0
//! The two-level ABI: one pending and one mask bit a port, one selector bit a word.
//!
//! The bits live in pages that the guest writes at the same time. Both sides follow one order, so
//! that no event is lost: a sender sets *pending*, then looks at *mask*, then sets the selector,
//! then the upcall byte; the guest clears in the opposite order and looks again. Setting is one
//! locked OR, whose old value says who goes on: among any number of senders exactly one raises
//! the upcall. All these accesses are `SeqCst`, because each side writes one word and then reads
//! another that the opposite side writes.
//!
//! The byte `evtchn_upcall_mask` is not looked at: a PVH kernel masks by EFLAGS.IF only.
//!
//! Source: `xen/include/public/xen.h` at 4.17, `struct shared_info`, `struct vcpu_info`.

use core::sync::atomic::{AtomicU64, Ordering};

use guest_abi::EvtchnPort;

use crate::addr::{Hpa, Mfn};
use crate::mem::PhysMem;

/// Ports of the two-level ABI: 64 words of 64 bits.
pub const NR_PORTS: u32 = 4096;
const BITS: usize = 64;

/// Words from the start of `shared_info`.
const PENDING_WORD: usize = 2048 / 8;
const MASK_WORD: usize = 2560 / 8;
/// Words from the start of `vcpu_info`.
const UPCALL_WORD: usize = 0;
const SELECTOR_WORD: usize = 1;
/// `evtchn_upcall_pending` is byte 0 of its word.
const UPCALL_BYTE: u64 = 0xff;
const UPCALL_PENDING: u64 = 1;

/// Bytes of a `vcpu_info`.
pub const VCPU_INFO_BYTES: usize = 64;
/// `vcpu_info` structures inside `shared_info`.
pub const LEGACY_VCPUS: u32 = 32;

/// What setting a pending bit found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Raised {
    /// It was set already: whoever set it has done the rest.
    Already,
    /// It was clear, and the guest does not want to hear of it.
    Masked,
    /// It was clear, and the vCPU has to be told.
    Deliver,
}

/// The pages that hold a domain's event bits.
pub(super) struct TwoLevel {
    mem: PhysMem,
    shared_info: Mfn,
}

impl TwoLevel {
    pub(super) const fn new(mem: PhysMem, shared_info: Mfn) -> Self {
        Self { mem, shared_info }
    }

    /// Where a vCPU's `vcpu_info` is until the guest registers another place.
    pub(super) fn legacy_place(&self, vcpu: u32) -> Option<Hpa> {
        (vcpu < LEGACY_VCPUS)
            .then(|| Hpa::new(self.shared_info.base().raw() + u64::from(vcpu) * VCPU_INFO_BYTES as u64))
    }

    fn bit(&self, first_word: usize, port: EvtchnPort) -> (&AtomicU64, u64) {
        let index = port.index() % NR_PORTS as usize;
        (self.mem.word(self.shared_info, first_word + index / BITS), 1 << (index % BITS))
    }

    #[inline]
    fn info_word(&self, place: Hpa, word: usize) -> &AtomicU64 {
        self.mem.word(place.mfn(), place.page_offset() / 8 + word)
    }

    /// Sets a port pending.
    #[inline]
    pub(super) fn set_pending(&self, port: EvtchnPort) -> Raised {
        let (pending, bit) = self.bit(PENDING_WORD, port);
        if pending.fetch_or(bit, Ordering::SeqCst) & bit != 0 {
            return Raised::Already;
        }
        let (mask, bit) = self.bit(MASK_WORD, port);
        if mask.load(Ordering::SeqCst) & bit != 0 { Raised::Masked } else { Raised::Deliver }
    }

    /// Forgets an event of a port; whether there was one.
    pub(super) fn clear_pending(&self, port: EvtchnPort) -> bool {
        let (pending, bit) = self.bit(PENDING_WORD, port);
        pending.load(Ordering::SeqCst) & bit != 0 && pending.fetch_and(!bit, Ordering::SeqCst) & bit != 0
    }

    pub(super) const fn mem(&self) -> PhysMem {
        self.mem
    }

    pub(super) fn is_pending(&self, port: EvtchnPort) -> bool {
        let (pending, bit) = self.bit(PENDING_WORD, port);
        pending.load(Ordering::SeqCst) & bit != 0
    }

    pub(super) fn is_masked(&self, port: EvtchnPort) -> bool {
        let (mask, bit) = self.bit(MASK_WORD, port);
        mask.load(Ordering::SeqCst) & bit != 0
    }

    /// Unmasks a port; `true` if an event is waiting there.
    pub(super) fn unmask(&self, port: EvtchnPort) -> bool {
        let (mask, bit) = self.bit(MASK_WORD, port);
        mask.fetch_and(!bit, Ordering::SeqCst);
        self.is_pending(port)
    }

    /// Sets the port's selector bit; `true` if the vCPU needs an upcall that it has not got yet.
    #[inline]
    pub(super) fn select(&self, place: Hpa, port: EvtchnPort) -> bool {
        let bit = 1 << (port.index() / BITS % BITS);
        self.info_word(place, SELECTOR_WORD).fetch_or(bit, Ordering::SeqCst) & bit == 0 && self.set_upcall(place)
    }

    /// Makes a vCPU look at every word; `true` if it needs an upcall that it has not got yet.
    pub(super) fn select_all(&self, place: Hpa) -> bool {
        self.info_word(place, SELECTOR_WORD).store(u64::MAX, Ordering::SeqCst);
        self.set_upcall(place)
    }

    /// Raises a vCPU's upcall; `true` if it has not got it yet.
    #[inline]
    pub(super) fn set_upcall(&self, place: Hpa) -> bool {
        let word = self.info_word(place, UPCALL_WORD);
        word.fetch_or(UPCALL_PENDING, Ordering::SeqCst) & UPCALL_BYTE == 0
    }

    #[inline]
    pub(super) fn upcall_pending(&self, place: Hpa) -> bool {
        self.info_word(place, UPCALL_WORD).load(Ordering::SeqCst) & UPCALL_BYTE != 0
    }

    /// Copies a `vcpu_info` to its new place.
    pub(super) fn move_info(&self, from: Hpa, to: Hpa) {
        for word in 0..VCPU_INFO_BYTES / 8 {
            let value = self.info_word(from, word).load(Ordering::Relaxed);
            self.info_word(to, word).store(value, Ordering::Relaxed);
        }
    }

    /// Zeroes a `vcpu_info` that had no earlier place.
    pub(super) fn clear_info(&self, place: Hpa) {
        for word in 0..VCPU_INFO_BYTES / 8 {
            self.info_word(place, word).store(0, Ordering::Relaxed);
        }
    }
}
