// SPDX-License-Identifier: MIT OR Apache-2.0
//! One port's state in one word, and the table of those words.
//!
//! A sender reads the state of a port without a lock, so everything a sender needs (kind, peer,
//! vCPU) is packed into one atomic word. Words change only under the owning domain's event-channel
//! lock; a reader sees the old state or the new one, never a mixture.
//!
//! The table grows in buckets and never shrinks: a bucket, once there, stays until the domain is
//! gone, so a reference into it needs no lock either. A domain with twenty ports pays 512 bytes.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_abi::num::{high_u32, low_u16};
use guest_abi::{DomId, EvtchnPort, VcpuId};
use spin::Once;

use super::{Error, two_level};

/// Ports in a bucket.
pub(super) const BUCKET_PORTS: usize = 64;
const BUCKETS: usize = two_level::NR_PORTS as usize / BUCKET_PORTS;

/// What a port is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortState {
    /// Not in use.
    Free,
    /// Waits for a domain to bind to it.
    Unbound {
        /// The only domain that may.
        remote: DomId,
    },
    /// One end of a channel.
    Interdomain {
        /// The domain of the other end, which may be the same domain.
        remote: DomId,
        /// The other end's port.
        port: EvtchnPort,
    },
    /// A source inside the hypervisor.
    Virq {
        /// Its number.
        virq: u32,
    },
    /// A vCPU of the same domain.
    Ipi,
}

/// A port's state with the vCPU that it notifies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// What the port is bound to.
    pub state: PortState,
    /// The vCPU that is notified.
    pub vcpu: VcpuId,
}

/// The word of a free port.
const FREE: u64 = 0;
const UNBOUND: u64 = 1;
const INTERDOMAIN: u64 = 2;
const VIRQ: u64 = 3;
const IPI: u64 = 4;

const KIND: u64 = 0xf;
const VCPU_SHIFT: u32 = 4;
/// vCPU numbers that the word has room for.
pub(super) const MAX_VCPUS: u32 = 1 << 12;
const DOMAIN_SHIFT: u32 = 16;
const PORT_SHIFT: u32 = 32;

impl Port {
    /// Packs the port: kind in bits 3:0, vCPU in 15:4, domain in 31:16, peer's port or VIRQ in
    /// 63:32.
    pub(super) const fn encode(self) -> u64 {
        let (kind, domain, number) = match self.state {
            PortState::Free => return FREE,
            PortState::Unbound { remote } => (UNBOUND, remote.raw(), 0),
            PortState::Interdomain { remote, port } => (INTERDOMAIN, remote.raw(), port.raw()),
            PortState::Virq { virq } => (VIRQ, 0, virq),
            PortState::Ipi => (IPI, 0, 0),
        };
        kind | (self.vcpu.raw() as u64) << VCPU_SHIFT | (domain as u64) << DOMAIN_SHIFT | (number as u64) << PORT_SHIFT
    }

    /// Unpacks a word that [`Port::encode`] made.
    #[inline]
    pub(super) const fn decode(word: u64) -> Self {
        let remote = DomId::new(low_u16(word >> DOMAIN_SHIFT));
        let number = high_u32(word);
        let state = match word & KIND {
            UNBOUND => PortState::Unbound { remote },
            INTERDOMAIN => PortState::Interdomain { remote, port: EvtchnPort::new(number) },
            VIRQ => PortState::Virq { virq: number },
            IPI => PortState::Ipi,
            _ => PortState::Free,
        };
        let vcpu = VcpuId::new((low_u16(word) >> VCPU_SHIFT) as u32);
        Self { state, vcpu }
    }
}

/// The words of all ports of a domain.
pub(super) struct PortTable {
    buckets: [Once<Box<[AtomicU64; BUCKET_PORTS]>>; BUCKETS],
}

impl PortTable {
    pub(super) const fn new() -> Self {
        Self { buckets: [const { Once::new() }; BUCKETS] }
    }

    /// The port's word, or `None` if no port of its bucket was ever used.
    #[inline]
    pub(super) fn word(&self, port: EvtchnPort) -> Option<&AtomicU64> {
        let bucket = self.buckets.get(port.index() / BUCKET_PORTS)?.get()?;
        Some(&bucket[port.index() % BUCKET_PORTS])
    }

    /// The port, free if it was never used or cannot exist.
    #[inline]
    pub(super) fn get(&self, port: EvtchnPort) -> Port {
        // Acquire pairs with the Release in `set`: what was prepared before a port was bound is
        // visible to whoever sees it bound.
        Port::decode(self.word(port).map_or(FREE, |word| word.load(Ordering::Acquire)))
    }

    /// Stores a port whose bucket exists. The caller holds the domain's event-channel lock.
    pub(super) fn set(&self, port: EvtchnPort, value: Port) {
        if let Some(word) = self.word(port) {
            word.store(value.encode(), Ordering::Release);
        }
    }

    /// Makes sure that the port's bucket exists.
    ///
    /// # Errors
    /// [`Error::NoMemory`]; [`Error::NoPort`] if the number is beyond the table.
    pub(super) fn grow_to(&self, port: EvtchnPort) -> Result<(), Error> {
        let bucket = self.buckets.get(port.index() / BUCKET_PORTS).ok_or(Error::NoPort)?;
        bucket.try_call_once(new_bucket)?;
        Ok(())
    }
}

fn new_bucket() -> Result<Box<[AtomicU64; BUCKET_PORTS]>, Error> {
    let mut words = Vec::new();
    words.try_reserve_exact(BUCKET_PORTS).map_err(|_| Error::NoMemory)?;
    words.extend((0..BUCKET_PORTS).map(|_| AtomicU64::new(FREE)));
    words.into_boxed_slice().try_into().map_err(|_| Error::NoMemory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_survives_its_word() {
        let remote = DomId::new(0x7fef);
        let states = [
            PortState::Free,
            PortState::Unbound { remote },
            PortState::Interdomain { remote, port: EvtchnPort::new(u32::MAX) },
            PortState::Virq { virq: 23 },
            PortState::Ipi,
        ];
        for state in states {
            let vcpu = if state == PortState::Free { VcpuId::new(0) } else { VcpuId::new(MAX_VCPUS - 1) };
            let port = Port { state, vcpu };
            assert_eq!(Port::decode(port.encode()), port);
        }
    }
}
