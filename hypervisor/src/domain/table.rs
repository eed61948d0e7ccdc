// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table of all domains.
//!
//! Whoever finds a domain here gets a counted reference, and the domain stays whole until that is
//! dropped, even if it is destroyed meanwhile. A domain leaves the table only when nobody else
//! refers to it ([`DomainTable::take`]): the table's owner then has it to himself and takes the rest
//! apart, and only after that is the number free for another domain ([`Vacancy`]).

use alloc::sync::Arc;
use core::sync::atomic::{AtomicUsize, Ordering};

use guest_abi::DomId;
use spin::Mutex;

use super::Domain;
use crate::evtchn::{EventChannels, Peers, Wake};

/// One place. The lock is held for a few instructions, in which no other is taken.
enum Slot {
    Vacant,
    /// A domain with this number is being made, or its last pieces are taken apart.
    Claimed,
    Present(Arc<Domain>),
}

/// All domains, each at the place of its number.
pub struct DomainTable {
    slots: [Mutex<Slot>; Self::CAPACITY],
    /// No place from here on was ever taken.
    end: AtomicUsize,
    /// The number that was given out last.
    last: AtomicUsize,
}

/// The right to a number that nobody has. Dropping it gives the number back.
#[must_use]
pub struct Vacancy<'a> {
    table: &'a DomainTable,
    id: DomId,
}

impl Default for DomainTable {
    /// An empty table.
    fn default() -> Self {
        Self {
            slots: [const { Mutex::new(Slot::Vacant) }; Self::CAPACITY],
            end: AtomicUsize::new(0),
            last: AtomicUsize::new(0),
        }
    }
}

impl DomainTable {
    /// The most domains at a time.
    pub const CAPACITY: usize = 64;

    /// Claims a number, if it is free.
    pub fn claim(&self, id: DomId) -> Option<Vacancy<'_>> {
        let mut slot = self.slots.get(id.index())?.lock();
        match *slot {
            Slot::Vacant => *slot = Slot::Claimed,
            Slot::Claimed | Slot::Present(_) => return None,
        }
        Some(Vacancy { table: self, id })
    }

    /// Whether a domain can have this number.
    #[must_use]
    pub fn has_number(&self, id: DomId) -> bool {
        id.index() < Self::CAPACITY
    }

    /// Claims a free number that is not the control domain's: the next one behind that given out last, so
    /// that a number is not used again as soon as it is free.
    pub fn claim_any(&self) -> Option<Vacancy<'_>> {
        const COUNT: usize = DomainTable::CAPACITY - 1;
        let last = self.last.load(Ordering::Relaxed);
        let number = |step| u16::try_from((last + step) % COUNT + 1).ok();
        let vacancy = (0..COUNT).filter_map(number).find_map(|raw| self.claim(DomId::new(raw)))?;
        self.last.store(vacancy.id.index(), Ordering::Relaxed);
        Some(vacancy)
    }

    /// Adds a domain that was made while nothing else ran.
    ///
    /// # Panics
    /// If its number is taken.
    pub fn insert(&self, domain: Arc<Domain>) {
        match self.claim(domain.id) {
            Some(vacancy) => vacancy.fill(domain),
            None => panic!("{} exists already", domain.id),
        }
    }

    /// The domain with this number.
    #[inline]
    #[must_use]
    pub fn get(&self, id: DomId) -> Option<Arc<Domain>> {
        self.by_index(id.index())
    }

    /// The domain at this place.
    #[inline]
    #[must_use]
    pub fn by_index(&self, index: usize) -> Option<Arc<Domain>> {
        match &*self.slots.get(index)?.lock() {
            Slot::Present(domain) => Some(domain.clone()),
            Slot::Vacant | Slot::Claimed => None,
        }
    }

    /// All domains with their places.
    pub fn iter(&self) -> impl Iterator<Item = (usize, Arc<Domain>)> + Clone {
        (0..self.end.load(Ordering::Acquire)).filter_map(|index| Some((index, self.by_index(index)?)))
    }

    /// Takes a domain out of the table, if nobody else refers to it at this moment. The reference that is
    /// returned is the only one.
    pub fn take(&self, id: DomId) -> Option<(Arc<Domain>, Vacancy<'_>)> {
        let mut slot = self.slots.get(id.index())?.lock();
        match core::mem::replace(&mut *slot, Slot::Claimed) {
            // New references are only made under this lock, or from one that exists.
            Slot::Present(domain) if Arc::strong_count(&domain) == 1 => Some((domain, Vacancy { table: self, id })),
            other => {
                *slot = other;
                None
            }
        }
    }
}

impl Vacancy<'_> {
    /// The number.
    #[must_use]
    pub const fn id(&self) -> DomId {
        self.id
    }

    /// Gives the number to a domain, which everybody finds from then on.
    ///
    /// # Panics
    /// If the domain was made for another number.
    pub fn fill(self, domain: Arc<Domain>) {
        assert_eq!(domain.id, self.id, "a domain is put into another one's place");
        let index = self.id.index();
        *self.table.slots[index].lock() = Slot::Present(domain);
        self.table.end.fetch_max(index + 1, Ordering::Release);
        core::mem::forget(self);
    }
}

impl Drop for Vacancy<'_> {
    fn drop(&mut self) {
        *self.table.slots[self.id.index()].lock() = Slot::Vacant;
    }
}

impl Peers for DomainTable {
    fn with<R>(&self, domain: DomId, act: impl FnOnce(&EventChannels, &dyn Wake) -> R) -> Option<R> {
        let domain = self.get(domain)?;
        Some(act(&domain.events, &*domain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{GUEST, Guest, Host};

    #[test]
    fn a_number_is_free_again_only_after_all_of_its_domain_is_gone() {
        let host = Host::new();
        let guest = Guest::new(host, 1, GUEST, 1);
        let (table, id) = (&host.hv.domains, DomId::new(1));
        assert!(table.claim(id).is_none());
        assert!(table.take(id).is_none(), "the test refers to it");
        assert!(table.get(id).is_some(), "and it is still there");
        drop(guest);
        let (domain, vacancy) = table.take(id).unwrap();
        assert!(table.get(id).is_none() && table.claim(id).is_none() && table.take(id).is_none());
        assert!(table.iter().next().is_none());
        drop(domain);
        assert!(table.claim(id).is_none(), "its frames are not");
        drop(vacancy);
        assert_eq!(table.claim(id).map(|vacancy| vacancy.id()), Some(id));
    }

    #[test]
    fn numbers_are_given_in_turn_and_never_the_control_domains() {
        let table = DomainTable::default();
        let mut claims: std::vec::Vec<_> = core::iter::from_fn(|| table.claim_any()).collect();
        let ids: std::vec::Vec<u16> = claims.iter().map(|vacancy| vacancy.id().raw()).collect();
        assert_eq!(ids, (1..64).collect::<std::vec::Vec<u16>>());
        drop(claims.remove(9));
        assert_eq!(table.claim_any().map(|vacancy| vacancy.id().raw()), Some(10));
        drop(claims.remove(1));
        drop(claims.remove(19));
        assert_eq!(table.claim_any().map(|vacancy| vacancy.id().raw()), Some(22), "2 was free longer ago");
        for raw in [64, 0x7ff0, u16::MAX] {
            assert!(table.claim(DomId::new(raw)).is_none());
        }
    }

    #[test]
    fn whoever_holds_a_domain_keeps_it_whole() {
        let host = Host::new();
        drop(Guest::new(host, 3, GUEST, 1));
        let held = host.hv.domains.get(DomId::new(3)).unwrap();
        std::thread::scope(|scope| {
            let taker = scope.spawn(|| {
                loop {
                    if let Some(taken) = host.hv.domains.take(DomId::new(3)) {
                        return taken.0.id;
                    }
                    std::thread::yield_now();
                }
            });
            for _ in 0..100 {
                assert_eq!(host.hv.domains.get(DomId::new(3)).map(|domain| domain.id), Some(DomId::new(3)));
            }
            drop(held);
            assert_eq!(taker.join().unwrap(), DomId::new(3));
        });
    }
}
