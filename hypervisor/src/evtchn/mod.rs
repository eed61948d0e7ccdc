// SPDX-License-Identifier: MIT OR Apache-2.0
//! Event channels: one bit of news from one domain to another, or from the hypervisor.
//!
//! [`EventChannels`] is what one domain has: a table of ports and the pages where its kernel sees
//! events. It knows nothing of domains; whoever calls gives it the peer ([`Peers`]) and a way to
//! make a vCPU look ([`Wake`]). A channel between two ports of one domain (loopback) is an
//! ordinary channel whose two ends share an object.
//!
//! *Locks.* Sending takes none: the sender's port word names the peer's port, and the peer's word
//! must name the sender back before anything is raised, so a port that was closed or taken over
//! between two loads costs the sender its event and nobody else anything. Changes are made under
//! the domain's lock, and what changes both ends under both, in the order of their ids.
//! Allocating, binding and closing keep this invariant: an interdomain port's peer either names it
//! back or belongs to a domain that cannot be found any more.
//!
//! *The price of having no lock:* a sender that was overtaken by `close` may leave a stray pending
//! bit on a free port. Allocating clears it; what arrives even later is a spurious event, which
//! the ABI allows.
//!
//! A guest sees events as the bits of [`two_level`] until it chooses the queues of [`fifo`]; sending then takes the
//! receiver's lock of that, for some ten instructions.
//!
//! Source: `xen/include/public/event_channel.h` at 4.17.

mod fifo;
mod poll;
mod port;
#[cfg(test)]
mod tests;
pub mod two_level;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use guest_abi::event_channel::{FIFO_MASKED, FIFO_PENDING};
use guest_abi::{DomId, Errno, EvtchnPort, VcpuId};

pub use fifo::Pinned;
pub use poll::Poll;
pub use port::{Port, PortState};

use crate::addr::{Hpa, Mfn, PAGE_SIZE};
use crate::lock::{Lock, LockGuard, Rank};
use crate::mem::PhysMem;
pub use crate::progress::Progress;
use fifo::Fifo;
use port::PortTable;
use two_level::{NR_PORTS, Raised, TwoLevel, VCPU_INFO_BYTES};

/// VIRQ numbers. Source: `xen.h`, `NR_VIRQS`.
pub const NR_VIRQS: u32 = 24;

/// Ports that one call of [`EventChannels::reset`] closes.
const RESET_BATCH: usize = 64;
/// How often closing starts over because the peer closed or bound at the same moment.
const CLOSE_ATTEMPTS: usize = 4;

/// Makes a vCPU of one domain look at its events.
pub trait Wake {
    /// The vCPU's `evtchn_upcall_pending` went from 0 to 1: wake it if it sleeps, make it exit if
    /// it runs elsewhere.
    fn upcall(&self, vcpu: VcpuId);
    /// An event arrived on a port that the vCPU polls: end its poll.
    fn poll_wake(&self, vcpu: VcpuId);
}

/// Finds other domains.
pub trait Peers {
    /// Calls `act` with a domain's channels while holding a reference to the domain; `None` if
    /// there is no such domain. `act` may take the event-channel locks.
    fn with<R>(&self, domain: DomId, act: impl FnOnce(&EventChannels, &dyn Wake) -> R) -> Option<R>;
}

/// Why an operation on event channels failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The port is not in a state that allows it.
    BadPort(EvtchnPort),
    /// The other end does not wait for this domain.
    BadPeer(EvtchnPort),
    /// The domain has no such vCPU.
    NoVcpu(VcpuId),
    /// There is no such VIRQ, or it must be bound on vCPU 0.
    BadVirq(u32),
    /// The VIRQ is bound already.
    VirqBound(u32),
    /// The global VIRQ belongs to another domain.
    VirqTaken(u32),
    /// The place for a `vcpu_info` is misaligned or leaves its page, or one is registered.
    BadPlace,
    /// All ports are in use.
    NoPort,
    /// The domain does not use the FIFO ABI.
    NotFifo,
    /// Memory ran out.
    NoMemory,
    /// The domain is being destroyed.
    Dying,
    /// The peer changed the channel again and again at the same moment: repeat the call.
    Again,
}

impl From<Error> for Errno {
    fn from(error: Error) -> Self {
        match error {
            Error::BadPort(_) | Error::BadPeer(_) | Error::BadVirq(_) | Error::BadPlace => Self::EINVAL,
            Error::Dying => Self::ESRCH,
            Error::NoVcpu(_) => Self::ENOENT,
            Error::VirqBound(_) => Self::EEXIST,
            Error::VirqTaken(_) => Self::EBUSY,
            Error::NoPort => Self::ENOSPC,
            Error::NotFifo => Self::EOPNOTSUPP,
            Error::NoMemory => Self::ENOMEM,
            Error::Again => Self::EAGAIN,
        }
    }
}

/// Whether a domain is the one that handles the machine's global VIRQs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GlobalVirqs {
    /// It may bind them.
    Handler,
    /// It may not.
    Refused,
}

/// What the allocator of ports knows.
struct Allocation {
    /// No port below this one is free, port 0 aside.
    first_free: u32,
    is_dying: bool,
}

/// What one vCPU has.
struct VcpuEvents {
    /// The port of each VIRQ bound on this vCPU; 0 is none.
    virqs: [AtomicU32; NR_VIRQS as usize],
    /// The address of its `vcpu_info`; 0 is none.
    info: AtomicU64,
    /// What it polls; see [`poll`].
    polled: AtomicU32,
}

/// The event channels of one domain.
pub struct EventChannels {
    domain: DomId,
    max_ports: u32,
    ports: PortTable,
    bits: TwoLevel,
    /// Whether `fifo` is there, to be asked without the lock.
    uses_fifo: AtomicBool,
    fifo: Lock<Option<Fifo>>,
    vcpus: Box<[VcpuEvents]>,
    /// vCPUs that poll.
    nr_polling: AtomicU32,
    allocation: Lock<Allocation>,
}

impl EventChannels {
    /// Makes the channels of a domain whose `shared_info` is the zeroed frame `shared_info`.
    ///
    /// That frame, and any frame given to [`EventChannels::register_vcpu_info`], must stay the
    /// domain's until nobody holds a reference to the domain: a sender on another CPU may still
    /// be setting a bit there while the domain is torn down. `max_ports` bounds the port numbers.
    ///
    /// # Errors
    /// [`Error::NoMemory`]; [`Error::NoVcpu`] if there are more vCPUs than a port can name.
    pub fn new(domain: DomId, mem: PhysMem, shared_info: Mfn, nr_vcpus: u32, max_ports: u32) -> Result<Self, Error> {
        if nr_vcpus > port::MAX_VCPUS {
            return Err(Error::NoVcpu(VcpuId::new(nr_vcpus)));
        }
        let bits = TwoLevel::new(mem, shared_info);
        let mut vcpus = Vec::new();
        vcpus.try_reserve_exact(VcpuId::new(nr_vcpus).index()).map_err(|_| Error::NoMemory)?;
        vcpus.extend((0..nr_vcpus).map(|vcpu| VcpuEvents {
            virqs: [const { AtomicU32::new(0) }; NR_VIRQS as usize],
            info: AtomicU64::new(bits.legacy_place(vcpu).map_or(0, Hpa::raw)),
            polled: AtomicU32::new(0),
        }));
        Ok(Self {
            domain,
            max_ports: max_ports.min(NR_PORTS),
            ports: PortTable::new(),
            bits,
            uses_fifo: AtomicBool::new(false),
            fifo: Lock::for_domain(Rank::EventQueues, domain, None),
            vcpus: vcpus.into_boxed_slice(),
            nr_polling: AtomicU32::new(0),
            allocation: Lock::for_domain(Rank::EventChannels, domain, Allocation { first_free: 1, is_dying: false }),
        })
    }

    /// Allocates a port that `remote` may bind to.
    ///
    /// # Errors
    /// [`Error::NoPort`], [`Error::NoMemory`], [`Error::Dying`].
    pub fn alloc_unbound(&self, remote: DomId) -> Result<EvtchnPort, Error> {
        self.allocate(&mut self.allocation.lock(), PortState::Unbound { remote }, VcpuId::new(0))
    }

    /// Binds a VIRQ on a vCPU.
    ///
    /// # Errors
    /// [`Error::BadVirq`] for an unknown number or a global one elsewhere than on vCPU 0;
    /// [`Error::NoVcpu`]; [`Error::VirqTaken`]; [`Error::VirqBound`]; allocation errors.
    pub fn bind_virq(&self, virq: u32, vcpu: VcpuId, globals: GlobalVirqs) -> Result<EvtchnPort, Error> {
        if virq >= NR_VIRQS || (!is_per_vcpu(virq) && vcpu.raw() != 0) {
            return Err(Error::BadVirq(virq));
        }
        let slot = self.vcpu(vcpu)?.virqs.get(VcpuId::new(virq).index()).ok_or(Error::BadVirq(virq))?;
        if !is_per_vcpu(virq) && globals == GlobalVirqs::Refused {
            return Err(Error::VirqTaken(virq));
        }
        let mut allocation = self.allocation.lock();
        if slot.load(Ordering::Relaxed) != 0 {
            return Err(Error::VirqBound(virq));
        }
        let port = self.allocate(&mut allocation, PortState::Virq { virq }, vcpu)?;
        slot.store(port.raw(), Ordering::Release);
        Ok(port)
    }

    /// Binds a port by which the domain's vCPUs interrupt `vcpu`.
    ///
    /// # Errors
    /// [`Error::NoVcpu`] and allocation errors.
    pub fn bind_ipi(&self, vcpu: VcpuId) -> Result<EvtchnPort, Error> {
        self.vcpu(vcpu)?;
        self.allocate(&mut self.allocation.lock(), PortState::Ipi, vcpu)
    }

    /// Says which vCPU a port notifies.
    ///
    /// # Errors
    /// [`Error::NoVcpu`]; [`Error::BadPort`] for a free port, an IPI or a per-vCPU VIRQ.
    pub fn bind_vcpu(&self, port: EvtchnPort, vcpu: VcpuId) -> Result<(), Error> {
        self.vcpu(vcpu)?;
        let _allocation = self.allocation.lock();
        let bound = self.ports.get(port);
        match bound.state {
            PortState::Unbound { .. } | PortState::Interdomain { .. } => {}
            PortState::Virq { virq } if !is_per_vcpu(virq) => {}
            PortState::Virq { .. } | PortState::Ipi | PortState::Free => return Err(Error::BadPort(port)),
        }
        self.ports.set(port, Port { vcpu, ..bound });
        Ok(())
    }

    /// What a port is bound to; an unused port is free.
    ///
    /// # Errors
    /// [`Error::BadPort`] for a number that the domain cannot have.
    pub fn status(&self, port: EvtchnPort) -> Result<Port, Error> {
        if port.raw() >= self.max_ports {
            return Err(Error::BadPort(port));
        }
        Ok(self.ports.get(port))
    }

    /// Signals through a port: raises the other end of a channel, or the port itself if it is an
    /// IPI. A port that nobody has bound to yet takes the event and drops it.
    ///
    /// # Errors
    /// [`Error::BadPort`] for a free port and a VIRQ.
    #[inline]
    pub fn send(&self, port: EvtchnPort, wake: &dyn Wake, peers: &impl Peers) -> Result<(), Error> {
        let from = self.ports.get(port);
        match from.state {
            PortState::Interdomain { remote, port: to } if remote == self.domain => {
                self.receive(to, (self.domain, port), wake);
            }
            PortState::Interdomain { remote, port: to } => {
                // A peer that cannot be found is dying; it has no use for events.
                let _ = peers.with(remote, |peer, wake| peer.receive(to, (self.domain, port), wake));
            }
            PortState::Ipi => self.raise(port, from.vcpu, wake),
            PortState::Unbound { .. } => {}
            PortState::Free | PortState::Virq { .. } => return Err(Error::BadPort(port)),
        }
        Ok(())
    }

    /// Raises `port` if it is the other end of the sender's port.
    #[inline]
    fn receive(&self, port: EvtchnPort, sender: (DomId, EvtchnPort), wake: &dyn Wake) {
        let to = self.ports.get(port);
        if to.state == (PortState::Interdomain { remote: sender.0, port: sender.1 }) {
            self.raise(port, to.vcpu, wake);
        }
    }

    /// Raises a VIRQ: a per-vCPU one on `vcpu`, a global one wherever its port is bound.
    /// Nothing happens if nobody has bound it.
    pub fn raise_virq(&self, virq: u32, vcpu: VcpuId, wake: &dyn Wake) {
        let bound_on = if is_per_vcpu(virq) { vcpu } else { VcpuId::new(0) };
        let Ok(events) = self.vcpu(bound_on) else { return };
        let Some(slot) = events.virqs.get(VcpuId::new(virq).index()) else { return };
        let port = EvtchnPort::new(slot.load(Ordering::Acquire));
        let to = self.ports.get(port);
        if to.state == (PortState::Virq { virq }) {
            self.raise(port, to.vcpu, wake);
        }
    }

    /// Clears a port's mask bit and delivers what is pending.
    ///
    /// # Errors
    /// [`Error::BadPort`] for a free port.
    pub fn unmask(&self, port: EvtchnPort, wake: &dyn Wake) -> Result<(), Error> {
        let bound = self.ports.get(port);
        if bound.state == PortState::Free {
            return Err(Error::BadPort(port));
        }
        let fifo = |fifo: &mut Fifo| (false, fifo.unmask(port, bound.vcpu));
        match self.by_fifo(bound.vcpu, wake, fifo) {
            Some(_) => {}
            None if self.bits.unmask(port) => self.notify(port, bound.vcpu, wake),
            None => {}
        }
        Ok(())
    }

    /// Closes a port; the peer of a channel waits for this domain again.
    ///
    /// # Errors
    /// [`Error::BadPort`] for a free port; [`Error::Again`] if the peer won the race repeatedly.
    pub fn close(&self, port: EvtchnPort, peers: &impl Peers) -> Result<(), Error> {
        for _ in 0..CLOSE_ATTEMPTS {
            let seen = self.ports.get(port);
            let is_closed = match seen.state {
                PortState::Free => return Err(Error::BadPort(port)),
                PortState::Interdomain { remote, .. } if remote != self.domain => peers
                    .with(remote, |peer, _| self.close_if(port, seen, peer))
                    .unwrap_or_else(|| self.close_if(port, seen, self)),
                _ => self.close_if(port, seen, self),
            };
            if is_closed {
                return Ok(());
            }
        }
        Err(Error::Again)
    }

    /// Closes a port that is still what the caller saw, under the locks of both ends.
    fn close_if(&self, port: EvtchnPort, seen: Port, peer: &Self) -> bool {
        let (mut allocation, _peer) = lock_both(self, peer);
        let bound = self.ports.get(port);
        if bound.state != seen.state {
            return false;
        }
        match bound.state {
            // A peer that cannot be found leaves this domain's own table here, and one whose domain
            // closed alone has another use for the port: the far end must name this one.
            PortState::Interdomain { port: far, .. } => {
                let end = peer.ports.get(far);
                if end.state == (PortState::Interdomain { remote: self.domain, port }) {
                    peer.ports.set(far, Port { state: PortState::Unbound { remote: self.domain }, ..end });
                }
            }
            PortState::Virq { virq } => {
                let bound_on = if is_per_vcpu(virq) { bound.vcpu } else { VcpuId::new(0) };
                if let Some(slot) = self.vcpu(bound_on).ok().and_then(|v| v.virqs.get(VcpuId::new(virq).index())) {
                    slot.store(0, Ordering::Relaxed);
                }
            }
            PortState::Unbound { .. } | PortState::Ipi | PortState::Free => {}
        }
        self.ports.set(port, Port { state: PortState::Free, vcpu: VcpuId::new(0) });
        self.clear_pending(port);
        allocation.first_free = allocation.first_free.min(port.raw());
        true
    }

    /// Closes all ports, a bounded number in each call, and goes back to the two-level ABI.
    pub fn reset(&self, peers: &impl Peers) -> Progress {
        let mut closed = 0;
        for raw in 1..self.max_ports {
            let port = EvtchnPort::new(raw);
            if self.ports.get(port).state == PortState::Free {
                continue;
            }
            if closed == RESET_BATCH || self.close(port, peers) == Err(Error::Again) {
                return Progress::Again;
            }
            closed += 1;
        }
        self.leave_fifo();
        Progress::Done
    }

    /// Closes all ports for good: nothing can be allocated any more. To be called until it is
    /// done; before that, the domain must still be found by its peers' [`Peers`] or they free
    /// their ends themselves.
    pub fn destroy(&self, peers: &impl Peers) -> Progress {
        self.allocation.lock().is_dying = true;
        self.reset(peers)
    }

    /// Moves a vCPU's `vcpu_info` to guest memory at byte `offset` of a frame that the caller has
    /// pinned writable. Possible once for each vCPU.
    ///
    /// Afterwards every selector bit is set and an upcall is raised: an event that was on its way
    /// to the old place is found by looking at all words.
    ///
    /// # Errors
    /// [`Error::NoVcpu`]; [`Error::BadPlace`] if `offset` is not a multiple of 8, the structure
    /// leaves the page, or the vCPU has registered before.
    pub fn register_vcpu_info(&self, vcpu: VcpuId, mfn: Mfn, offset: usize, wake: &dyn Wake) -> Result<(), Error> {
        let events = self.vcpu(vcpu)?;
        if !offset.is_multiple_of(8) || offset > PAGE_SIZE - VCPU_INFO_BYTES {
            return Err(Error::BadPlace);
        }
        let place = Hpa::new(mfn.base().raw() + offset as u64);
        {
            let _allocation = self.allocation.lock();
            let old = events.info.load(Ordering::Acquire);
            if old != self.bits.legacy_place(vcpu.raw()).map_or(0, Hpa::raw) {
                return Err(Error::BadPlace);
            }
            if old == 0 {
                self.bits.clear_info(place)
            } else {
                self.bits.move_info(Hpa::new(old), place)
            }
            events.info.store(place.raw(), Ordering::SeqCst);
        }
        if self.bits.select_all(place) {
            wake.upcall(vcpu);
        }
        Ok(())
    }

    /// Where a vCPU's `vcpu_info` is, for whoever keeps its time up to date: its address, the
    /// structure lying within one frame. `None` for an unknown vCPU, and for one beyond the
    /// 32 in `shared_info` that has not registered a place.
    #[must_use]
    pub fn vcpu_info(&self, vcpu: VcpuId) -> Option<Hpa> {
        self.vcpus.get(vcpu.index()).and_then(VcpuEvents::place)
    }

    /// Whether the vCPU has been told of events that its kernel has not taken yet.
    #[inline]
    #[must_use]
    pub fn upcall_pending(&self, vcpu: VcpuId) -> bool {
        self.vcpu_info(vcpu).is_some_and(|place| self.bits.upcall_pending(place))
    }

    /// Whether an event waits on a port, masked or not.
    #[must_use]
    pub fn is_pending(&self, port: EvtchnPort) -> bool {
        self.in_fifo(port, FIFO_PENDING) || self.bits.is_pending(port)
    }

    /// Whether a port is masked.
    #[must_use]
    pub fn is_masked(&self, port: EvtchnPort) -> bool {
        self.in_fifo(port, FIFO_MASKED) || self.bits.is_masked(port)
    }

    /// Sets a port pending and tells the vCPU, and whoever polls.
    #[inline]
    fn raise(&self, port: EvtchnPort, vcpu: VcpuId, wake: &dyn Wake) {
        match self.by_fifo(vcpu, wake, |fifo| fifo.raise(port, vcpu, &self.bits)) {
            Some(false) => return,
            Some(true) => {}
            None => {
                match self.bits.set_pending(port) {
                    Raised::Already => return,
                    Raised::Masked => {}
                    Raised::Deliver => self.notify(port, vcpu, wake),
                }
                // The guest may have left this ABI since it was asked, and looked at the bit before it was set.
                if self.uses_fifo.load(Ordering::SeqCst) {
                    self.settle(port, vcpu, wake);
                }
            }
        }
        self.wake_pollers(port, wake);
    }

    /// Does something in the queues, if the domain uses them, and tells the vCPU if the second half of the result says
    /// so. Returns the first half.
    #[inline]
    fn by_fifo(&self, vcpu: VcpuId, wake: &dyn Wake, act: impl FnOnce(&mut Fifo) -> (bool, bool)) -> Option<bool> {
        if !self.uses_fifo.load(Ordering::SeqCst) {
            return None;
        }
        let (result, is_due) = self.fifo.lock().as_mut().map(act)?;
        if is_due {
            self.call_up(vcpu, wake);
        }
        Some(result)
    }

    /// Whether the queues' word of a port has a bit.
    fn in_fifo(&self, port: EvtchnPort, bit: u32) -> bool {
        self.uses_fifo.load(Ordering::SeqCst)
            && self.fifo.lock().as_ref().and_then(|fifo| fifo.has(port, bit)).unwrap_or(false)
    }

    fn clear_pending(&self, port: EvtchnPort) {
        self.bits.clear_pending(port);
        if let Some(fifo) = &mut *self.fifo.lock() {
            fifo.clear_pending(port);
        }
    }

    /// Raises a vCPU's upcall.
    fn call_up(&self, vcpu: VcpuId, wake: &dyn Wake) {
        if let Some(place) = self.vcpus.get(vcpu.index()).and_then(VcpuEvents::place)
            && self.bits.set_upcall(place)
        {
            wake.upcall(vcpu);
        }
    }

    /// Raises the upcall of a port that is pending and not masked.
    #[inline]
    fn notify(&self, port: EvtchnPort, vcpu: VcpuId, wake: &dyn Wake) {
        // SeqCst: the pending bit was set before, and registration publishes the new place
        // before it makes the vCPU look at everything.
        if let Some(place) = self.vcpus.get(vcpu.index()).and_then(VcpuEvents::place)
            && self.bits.select(place, port)
        {
            wake.upcall(vcpu);
        }
    }

    fn vcpu(&self, vcpu: VcpuId) -> Result<&VcpuEvents, Error> {
        self.vcpus.get(vcpu.index()).ok_or(Error::NoVcpu(vcpu))
    }

    /// Takes the lowest free port. The caller holds the lock.
    fn allocate(&self, allocation: &mut Allocation, state: PortState, vcpu: VcpuId) -> Result<EvtchnPort, Error> {
        if allocation.is_dying {
            return Err(Error::Dying);
        }
        let port = (allocation.first_free..self.max_ports)
            .map(EvtchnPort::new)
            .find(|port| self.ports.get(*port).state == PortState::Free)
            .ok_or(Error::NoPort)?;
        self.ports.grow_to(port)?;
        self.clear_pending(port);
        self.ports.set(port, Port { state, vcpu });
        allocation.first_free = port.raw() + 1;
        Ok(port)
    }
}

impl VcpuEvents {
    #[inline]
    fn place(&self) -> Option<Hpa> {
        match self.info.load(Ordering::SeqCst) {
            0 => None,
            raw => Some(Hpa::new(raw)),
        }
    }
}

/// Connects a fresh port of `local` to a port of `remote` that waits for `local`'s domain.
///
/// The local port is raised at once: the peer may have signalled before there was anybody to
/// hear it. Returns the local port. Both may be one object.
///
/// # Errors
/// [`Error::BadPeer`] if the remote port does not wait for this domain; allocation errors.
pub fn bind_interdomain(
    local: &EventChannels,
    wake: &dyn Wake,
    remote: &EventChannels,
    remote_port: EvtchnPort,
) -> Result<EvtchnPort, Error> {
    let (mut allocation, _remote) = lock_both(local, remote);
    let far = remote.ports.get(remote_port);
    if far.state != (PortState::Unbound { remote: local.domain }) {
        return Err(Error::BadPeer(remote_port));
    }
    let state = PortState::Interdomain { remote: remote.domain, port: remote_port };
    let port = local.allocate(&mut allocation, state, VcpuId::new(0))?;
    remote.ports.set(remote_port, Port { state: PortState::Interdomain { remote: local.domain, port }, ..far });
    local.raise(port, VcpuId::new(0), wake);
    Ok(port)
}

type Locked<'a> = LockGuard<'a, Allocation>;

/// Takes the locks of both ends in the order of their ids, or the only one there is.
fn lock_both<'a>(local: &'a EventChannels, remote: &'a EventChannels) -> (Locked<'a>, Option<Locked<'a>>) {
    if core::ptr::eq(local, remote) {
        return (local.allocation.lock(), None);
    }
    if local.domain < remote.domain {
        let mine = local.allocation.lock();
        (mine, Some(remote.allocation.lock()))
    } else {
        let theirs = remote.allocation.lock();
        (local.allocation.lock(), Some(theirs))
    }
}

/// Whether each vCPU binds its own port for this VIRQ.
const fn is_per_vcpu(virq: u32) -> bool {
    const TIMER: u32 = 0;
    const DEBUG: u32 = 1;
    const XENOPROF: u32 = 7;
    const XENPMU: u32 = 13;
    matches!(virq, TIMER | DEBUG | XENOPROF | XENPMU)
}
