// SPDX-License-Identifier: MIT OR Apache-2.0
//! The FIFO ABI: a word for each port, and for each vCPU a queue of ports for each of 16 priorities.
//!
//! A port's word holds *pending*, *masked*, *linked*, and the port behind it in its queue. An event sets *pending*;
//! if the port is neither masked nor linked it sets *linked* and puts the port behind its queue's last one, or, if the
//! guest has taken that one out already, at the head, which the vCPU's control block names, and then tells the vCPU.
//! The guest takes a port out by clearing *linked* and the link together.
//!
//! *No loop depends on the guest.* Each step here is one locked OR or AND, whose old value says what the guest had
//! done by then. The link of a queue's last port is put there by an OR: if *linked* was clear already, it came too late
//! and is taken back. So the ABI's bit *busy*, by which a guest is kept from changing a word meanwhile, is not needed.
//!
//! *What is trusted.* Which port is a queue's last, where a port was put last, and its priority are kept here. From the
//! guest's memory only bits of the word in question are believed, and those concern nobody else.
//!
//! Changes are made under one lock a domain, also by senders, for some ten instructions: the pages can be let go of at
//! any time ([`EventChannels::reset`]). An event for a port whose word is in no page yet waits as a bit of the
//! two-level ABI, as do those that were pending when the guest chose this ABI.
//!
//! Source: `xen/include/public/event_channel.h` at 4.17; D. Vrabel, *Event Channel ABI for Xen*, draft H.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use guest_abi::event_channel as abi;
use guest_abi::num::low_u32;
use guest_abi::{EvtchnPort, VcpuId};

use super::two_level::{NR_PORTS, Raised, TwoLevel};
use super::{Error, EventChannels, Wake};
use crate::addr::{Mfn, PAGE_SIZE};
use crate::frame::FrameRef;
use crate::mem::PhysMem;

const PORTS_PER_PAGE: usize = guest_abi::num::to_usize(abi::FIFO_WORDS_PER_PAGE as u64);
const NR_PAGES: usize = NR_PORTS as usize / PORTS_PER_PAGE;

/// A page of the guest that stays where it is; the reference is missing in tests that have no frame table.
pub struct Pinned(pub Mfn, pub Option<FrameRef>);

/// What a domain has that uses the ABI.
pub(super) struct Fifo {
    mem: PhysMem,
    pages: ArrayVec<ArrayPage, NR_PAGES>,
    controls: Box<[Option<Control>]>,
}

/// Event words, and what is known of their ports.
struct ArrayPage {
    words: Pinned,
    ports: Box<[Queued]>,
}

#[derive(Clone, Copy)]
struct Queued {
    priority: u8,
    /// Where the port was put last.
    last: (u8, u16),
}

/// One vCPU's queues.
struct Control {
    block: Pinned,
    offset: usize,
    /// The port that was put last into each; 0 if it cannot be there any more.
    tails: [u32; abi::FIFO_QUEUES],
}

/// A 32-bit word that the guest changes too.
#[derive(Clone, Copy)]
struct Word(&'static AtomicU64, usize);

impl Word {
    fn at(mem: &PhysMem, mfn: Mfn, offset: usize) -> Self {
        Self(mem.word(mfn, offset / 8), offset % 8 * 8)
    }

    fn get(self) -> u32 {
        low_u32(self.0.load(Ordering::SeqCst) >> self.1)
    }

    /// Sets bits; returns what was there.
    fn set(self, bits: u32) -> u32 {
        low_u32(self.0.fetch_or(u64::from(bits) << self.1, Ordering::SeqCst) >> self.1)
    }

    /// Clears bits; returns what was there.
    fn clear(self, bits: u32) -> u32 {
        low_u32(self.0.fetch_and(!(u64::from(bits) << self.1), Ordering::SeqCst) >> self.1)
    }
}

impl Fifo {
    fn new(mem: PhysMem, nr_vcpus: usize) -> Result<Self, Error> {
        let mut controls = Vec::new();
        controls.try_reserve_exact(nr_vcpus).map_err(|_| Error::NoMemory)?;
        controls.resize_with(nr_vcpus, || None);
        Ok(Self { mem, pages: ArrayVec::new(), controls: controls.into_boxed_slice() })
    }

    fn word(&self, port: EvtchnPort) -> Option<Word> {
        let page = self.pages.get(port.index() / PORTS_PER_PAGE)?;
        Some(Word::at(&self.mem, page.words.0, port.index() % PORTS_PER_PAGE * 4))
    }

    fn queued(&mut self, port: EvtchnPort) -> Option<&mut Queued> {
        self.pages.get_mut(port.index() / PORTS_PER_PAGE)?.ports.get_mut(port.index() % PORTS_PER_PAGE)
    }

    /// Sets a port pending: whether it was not, and whether its vCPU is to be told.
    pub(super) fn raise(&mut self, port: EvtchnPort, vcpu: VcpuId, waiting: &TwoLevel) -> (bool, bool) {
        match self.word(port) {
            None => (waiting.set_pending(port) != Raised::Already, false),
            Some(word) => {
                let old = word.set(abi::FIFO_PENDING);
                (old & abi::FIFO_PENDING == 0, self.link(port, vcpu))
            }
        }
    }

    /// Puts a port that is pending, and not masked, into its queue, with what waited for a word.
    /// Returns whether the vCPU is to be told.
    pub(super) fn settle(&mut self, port: EvtchnPort, vcpu: VcpuId, waiting: &TwoLevel) -> bool {
        let Some(word) = self.word(port) else { return false };
        if waiting.clear_pending(port) {
            word.set(abi::FIFO_PENDING);
        }
        word.get() & abi::FIFO_PENDING != 0 && self.link(port, vcpu)
    }

    fn link(&mut self, port: EvtchnPort, vcpu: VcpuId) -> bool {
        let (Some(word), Some(Some(control))) = (self.word(port), self.controls.get(vcpu.index())) else {
            return false;
        };
        let block = (control.block.0, control.offset);
        if word.get() & abi::FIFO_MASKED != 0 || word.set(abi::FIFO_LINKED) & abi::FIFO_LINKED != 0 {
            return false;
        }
        let Some(queued) = self.queued(port) else { return false };
        let (queue, priority) = (usize::from(queued.priority), queued.priority);
        let (old_queue, old_vcpu) =
            core::mem::replace(&mut queued.last, (priority, guest_abi::num::low_u16(u64::from(vcpu.raw()))));
        // The guest has taken it out of where it was. If it was the last there, nobody is.
        if let Some(Some(old)) = self.controls.get_mut(usize::from(old_vcpu)) {
            let tail = &mut old.tails[usize::from(old_queue)];
            *tail = if *tail == port.raw() { 0 } else { *tail };
        }
        let Some(Some(control)) = self.controls.get_mut(vcpu.index()) else { return false };
        let tail = core::mem::replace(&mut control.tails[queue], port.raw());
        if tail != 0 && self.append(EvtchnPort::new(tail), port) {
            return false;
        }
        self.mem.store_u32(block.0, block.1 + abi::FIFO_CONTROL_HEAD + queue * 4, port.raw());
        let bit = 1 << priority;
        Word::at(&self.mem, block.0, block.1 + abi::FIFO_CONTROL_READY).set(bit) & bit == 0
    }

    /// Puts a port behind another one, if the guest has not taken that out of its queue.
    fn append(&self, tail: EvtchnPort, port: EvtchnPort) -> bool {
        let Some(tail) = self.word(tail) else { return false };
        let is_linked = tail.set(port.raw() & abi::FIFO_LINK_MASK) & abi::FIFO_LINKED != 0;
        if !is_linked {
            tail.clear(abi::FIFO_LINK_MASK);
        }
        is_linked
    }

    pub(super) fn unmask(&mut self, port: EvtchnPort, vcpu: VcpuId) -> bool {
        let Some(word) = self.word(port) else { return false };
        word.clear(abi::FIFO_MASKED) & abi::FIFO_PENDING != 0 && self.link(port, vcpu)
    }

    pub(super) fn clear_pending(&mut self, port: EvtchnPort) {
        if let Some(word) = self.word(port) {
            word.clear(abi::FIFO_PENDING);
        }
        if let Some(queued) = self.queued(port) {
            queued.priority = guest_abi::num::low_u8(u64::from(abi::FIFO_PRIORITY_DEFAULT));
        }
    }

    pub(super) fn has(&self, port: EvtchnPort, bit: u32) -> Option<bool> {
        self.word(port).map(|word| word.get() & bit != 0)
    }

    fn is_full(&self) -> bool {
        self.pages.is_full()
    }
}

fn new_page(words: Pinned) -> Result<ArrayPage, Error> {
    const FRESH: Queued = Queued { priority: 7, last: (0, 0) };
    const _: () = assert!(FRESH.priority as u32 == abi::FIFO_PRIORITY_DEFAULT);
    let mut ports = Vec::new();
    ports.try_reserve_exact(PORTS_PER_PAGE).map_err(|_| Error::NoMemory)?;
    ports.resize(PORTS_PER_PAGE, FRESH);
    Ok(ArrayPage { words, ports: ports.into_boxed_slice() })
}

impl EventChannels {
    /// Gives a vCPU its control block at byte `offset` of a page. The first one changes the domain to the FIFO ABI.
    ///
    /// # Errors
    /// [`Error::NoVcpu`]; [`Error::BadPlace`] if the block is misaligned or leaves its page, or the vCPU has one;
    /// [`Error::Dying`]; [`Error::NoMemory`].
    pub fn init_control(&self, vcpu: VcpuId, block: Pinned, offset: usize, wake: &dyn Wake) -> Result<(), Error> {
        self.vcpu(vcpu)?;
        if !offset.is_multiple_of(8) || offset > PAGE_SIZE - abi::FIFO_CONTROL_SIZE {
            return Err(Error::BadPlace);
        }
        let allocation = self.allocation.lock();
        if allocation.is_dying {
            return Err(Error::Dying);
        }
        let mut fifo = self.fifo.lock();
        if fifo.is_none() {
            *fifo = Some(Fifo::new(self.bits.mem(), self.vcpus.len())?);
        }
        let control = fifo.as_mut().and_then(|fifo| fifo.controls.get_mut(vcpu.index())).ok_or(Error::NoVcpu(vcpu))?;
        if control.is_some() {
            return Err(Error::BadPlace);
        }
        *control = Some(Control { block, offset, tails: [0; abi::FIFO_QUEUES] });
        self.uses_fifo.store(true, Ordering::SeqCst);
        let nr_words = fifo.as_ref().map_or(0, |fifo| fifo.pages.len()) * PORTS_PER_PAGE;
        drop(fifo);
        drop(allocation);
        self.settle_all(0..nr_words, wake);
        Ok(())
    }

    /// Adds a page of event words.
    ///
    /// # Errors
    /// [`Error::NotFifo`]; [`Error::NoPort`] if there are words for all ports; [`Error::NoMemory`].
    pub fn expand_array(&self, words: Pinned, wake: &dyn Wake) -> Result<(), Error> {
        let page = new_page(words)?;
        let mut guard = self.fifo.lock();
        let fifo = guard.as_mut().ok_or(Error::NotFifo)?;
        if fifo.is_full() {
            return Err(Error::NoPort);
        }
        fifo.pages.push(page);
        let end = fifo.pages.len() * PORTS_PER_PAGE;
        drop(guard);
        self.settle_all(end - PORTS_PER_PAGE..end, wake);
        Ok(())
    }

    /// Sets the priority of a port's next event.
    ///
    /// # Errors
    /// [`Error::NotFifo`]; [`Error::BadPort`] for a free port, one without a word, and a priority that there is not.
    pub fn set_priority(&self, port: EvtchnPort, priority: u32) -> Result<(), Error> {
        let _allocation = self.allocation.lock();
        let mut fifo = self.fifo.lock();
        let fifo = fifo.as_mut().ok_or(Error::NotFifo)?;
        let is_bound = self.ports.get(port).state != super::PortState::Free;
        let queued = fifo.queued(port).filter(|_| is_bound && priority <= abi::FIFO_PRIORITY_MIN);
        queued.ok_or(Error::BadPort(port))?.priority = guest_abi::num::low_u8(u64::from(priority));
        Ok(())
    }

    /// Goes back to the two-level ABI and lets go of the pages.
    pub(super) fn leave_fifo(&self) {
        self.uses_fifo.store(false, Ordering::SeqCst);
        let fifo = self.fifo.lock().take();
        drop(fifo);
    }

    fn settle_all(&self, ports: core::ops::Range<usize>, wake: &dyn Wake) {
        for port in ports.filter_map(|port| u32::try_from(port).ok()).map(EvtchnPort::new) {
            self.settle(port, self.ports.get(port).vcpu, wake);
        }
    }

    /// Delivers what waits for a port in either ABI.
    pub(super) fn settle(&self, port: EvtchnPort, vcpu: VcpuId, wake: &dyn Wake) {
        let is_due = self.fifo.lock().as_mut().is_some_and(|fifo| fifo.settle(port, vcpu, &self.bits));
        if is_due {
            self.call_up(vcpu, wake);
        }
    }
}
