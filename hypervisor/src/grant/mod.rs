// SPDX-License-Identifier: MIT OR Apache-2.0
//! Grant tables: a domain lends single pages to another, to map or to copy.
//!
//! The granter writes an entry into memory that it shares with the hypervisor; the peer names the
//! entry by number. The hypervisor reads an entry exactly once for each use, as one word, and in
//! the same compare-and-swap marks it as in use ([`table`]), so a granter that rewrites it
//! meanwhile either loses the race or changes nothing. The page itself is held by a counted
//! reference to its frame ([`crate::frame::FrameRef`]): whatever becomes of the entry or of the granter, the
//! memory stays what it was until the last user has let go.
//!
//! A mapping is written down at the mapping domain (`track`), and the granter counts, for each
//! entry, how many read and how many write. The marks in the entry vanish when the count falls to
//! zero *and* no TLB can hold the translation any more: unmapping a batch removes all entries of
//! the p2m, flushes once, and only then touches the counts ([`map`]). Copying takes no mapping and
//! needs no count: it happens under the granter's lock ([`copy`]).
//!
//! One lock a domain, two in the order of the domains' ids, taken once for a run of elements that
//! concern the same granter. All domains are translated, so addresses are guest physical and a
//! grant is mapped at a hole. Version 1 entries only; transitive grants, sub-page grants and
//! transfers do not exist.
//!
//! Source: `xen/include/public/grant_table.h` at 4.17.

pub mod copy;
#[cfg(test)]
mod interleavings;
pub mod map;
mod memory;
pub mod ops;
pub mod table;
#[cfg(test)]
mod tests;
mod track;
mod uses;

use guest_abi::DomId;
use guest_abi::grant_table as abi;

use crate::p2m::UnmappedBatch;
pub use memory::Memory;
pub use table::{GrantTable, Limits};
pub use track::Mapping;

/// Elements that one call of [`map::map`], [`map::unmap`] or [`copy::copy`] takes.
pub const BATCH: usize = 32;

/// What may be done with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read only.
    Read,
    /// Read and write.
    Write,
}

/// Why an element of a batch was refused: `GNTST_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i16)]
pub enum Refusal {
    /// The element makes no sense, or the granter changes the entry without end.
    General = abi::GNTST_GENERAL_ERROR,
    /// There is no such domain, or it is dying.
    BadDomain = abi::GNTST_BAD_DOMAIN,
    /// The entry does not exist or grants nothing to this domain.
    BadRef = abi::GNTST_BAD_GNTREF,
    /// The handle names no mapping.
    BadHandle = abi::GNTST_BAD_HANDLE,
    /// The address to map at is not a hole, or not where the mapping is.
    BadAddress = abi::GNTST_BAD_VIRT_ADDR,
    /// A bus address was given, and there are none.
    BadBusAddress = abi::GNTST_BAD_DEV_ADDR,
    /// The domain has as many mappings as it may have, or the entry as many as can be counted.
    NoSpace = abi::GNTST_NO_DEVICE_SPACE,
    /// The entry allows reading only, or the memory is not the caller's.
    Denied = abi::GNTST_PERMISSION_DENIED,
    /// What was granted, or is to be copied, is not RAM of its domain.
    BadPage = abi::GNTST_BAD_PAGE,
    /// A copy that crosses the end of a page.
    BadCopy = abi::GNTST_BAD_COPY_ARG,
}

impl Refusal {
    /// The value for a `status` field.
    #[must_use]
    pub const fn status(self) -> i16 {
        self as i16
    }
}

/// One domain that takes part in an operation.
pub struct Party<'a, M> {
    /// Its grant table.
    pub table: &'a GrantTable,
    /// Its memory.
    pub memory: &'a M,
}

impl<M> Clone for Party<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for Party<'_, M> {}

/// Finds other domains, and flushes TLBs.
pub trait Parties {
    /// Who has the memory of a domain.
    type Memory: Memory;

    /// Calls `act` with a domain while holding a reference to it, or returns `None` if there is
    /// no such domain. `act` may take grant-table and p2m locks.
    fn with<R>(&self, domain: DomId, act: impl FnOnce(Party<'_, Self::Memory>) -> R) -> Option<R>;

    /// Flushes what was removed from a domain's p2m, and releases it. Called without any lock.
    fn flush(&self, memory: &Self::Memory, removed: &mut UnmappedBatch);
}

/// Calls `act` with the domain that a guest named, which may be the caller itself.
fn with_party<P: Parties, R>(
    me: Party<'_, P::Memory>,
    domain: DomId,
    parties: &P,
    act: impl FnOnce(Party<'_, P::Memory>) -> R,
) -> Option<R> {
    if domain == DomId::SELF || domain == me.table.domain() { Some(act(me)) } else { parties.with(domain, act) }
}
