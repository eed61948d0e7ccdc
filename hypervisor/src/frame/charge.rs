// SPDX-License-Identifier: MIT OR Apache-2.0
//! Accounts: how many frames each domain holds, and how many it may hold.
//!
//! Every allocation names the domain that pays. A frame stays on its owner's account until its
//! use has ended, also when the owner has given it up or is dying and others still map it: so an
//! account can be closed only when nothing of the domain is left in memory.

use guest_abi::DomId;

use super::types::{FrameError, FrameType, Limits, Usage};

/// Domains that can hold memory at the same time.
pub const MAX_ACCOUNTS: usize = 256;

#[derive(Clone, Copy)]
struct Account {
    owner: DomId,
    limits: Limits,
    usage: Usage,
    /// Somebody waits for what is left of the domain to come back.
    is_watched: bool,
}

/// All accounts; a small hash table with linear probing, so that lookups by consecutive domain
/// numbers hit at once and nothing is allocated.
pub(super) struct Accounts {
    slots: [Option<Account>; MAX_ACCOUNTS],
}

impl Accounts {
    pub(super) const fn new() -> Self {
        Self { slots: [None; MAX_ACCOUNTS] }
    }

    /// Opens an account. One that exists keeps its usage and gets the new limits.
    pub(super) fn open(&mut self, owner: DomId, limits: Limits) -> Result<(), FrameError> {
        if let Some(account) = self.find_mut(owner) {
            account.limits = limits;
            return Ok(());
        }
        let free = probe(owner).find(|&at| self.slots[at].is_none()).ok_or(FrameError::NoAccount(owner))?;
        self.slots[free] = Some(Account { owner, limits, usage: Usage::default(), is_watched: false });
        Ok(())
    }

    pub(super) fn close(&mut self, owner: DomId) -> Result<(), FrameError> {
        let at = self.position(owner).ok_or(FrameError::NoAccount(owner))?;
        match self.slots[at] {
            Some(account) if account.usage != Usage::default() => Err(FrameError::AccountInUse(owner, account.usage)),
            _ => {
                self.slots[at] = None;
                Ok(())
            }
        }
    }

    pub(super) fn usage(&self, owner: DomId) -> Option<(Usage, Limits)> {
        let account = self.slots[self.position(owner)?].as_ref()?;
        Some((account.usage, account.limits))
    }

    pub(super) fn charge(&mut self, owner: DomId, kind: FrameType, frames: u64) -> Result<(), FrameError> {
        let account = self.find_mut(owner).ok_or(FrameError::NoAccount(owner))?;
        let (used, limit) = account.side(kind);
        match used.checked_add(frames) {
            Some(sum) if sum <= limit => {
                *used = sum;
                Ok(())
            }
            _ => Err(FrameError::OverLimit(owner)),
        }
    }

    /// Marks an account as one of which each change is news.
    pub(super) fn watch(&mut self, owner: DomId) {
        if let Some(account) = self.find_mut(owner) {
            account.is_watched = true;
        }
    }

    /// Returns whether the account is watched.
    ///
    /// # Panics
    /// If more is given back than was charged: the records and the accounts contradict each other.
    pub(super) fn uncharge(&mut self, owner: DomId, kind: FrameType, frames: u64) -> bool {
        let Some(account) = self.find_mut(owner) else { panic!("{owner} has frames but no account") };
        let (used, _) = account.side(kind);
        let Some(rest) = used.checked_sub(frames) else { panic!("{owner} gives back more than it holds") };
        *used = rest;
        account.is_watched
    }

    // A slot in the middle of a probe sequence may be emptied, so a lookup looks at all slots
    // before it gives up; it finds a domain that exists at once or nearly so.
    fn position(&self, owner: DomId) -> Option<usize> {
        probe(owner).find(|&at| self.slots[at].as_ref().is_some_and(|account| account.owner == owner))
    }

    fn find_mut(&mut self, owner: DomId) -> Option<&mut Account> {
        let at = self.position(owner)?;
        self.slots[at].as_mut()
    }
}

impl Account {
    fn side(&mut self, kind: FrameType) -> (&mut u64, u64) {
        if kind.is_ram() {
            (&mut self.usage.ram, self.limits.ram)
        } else {
            (&mut self.usage.overhead, self.limits.overhead)
        }
    }
}

fn probe(owner: DomId) -> impl Iterator<Item = usize> {
    let start = owner.index();
    (0..MAX_ACCOUNTS).map(move |step| (start + step) % MAX_ACCOUNTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { ram: 4, overhead: 2 };

    #[test]
    fn limits_hold_for_each_side() {
        let mut accounts = Accounts::new();
        let a = DomId::new(1);
        assert_eq!(accounts.charge(a, FrameType::Ram, 1), Err(FrameError::NoAccount(a)));
        accounts.open(a, LIMITS).unwrap();
        accounts.charge(a, FrameType::Ram, 4).unwrap();
        assert_eq!(accounts.charge(a, FrameType::Ram, 1), Err(FrameError::OverLimit(a)));
        accounts.charge(a, FrameType::Table, 2).unwrap();
        assert_eq!(accounts.charge(a, FrameType::GrantFrame, u64::MAX), Err(FrameError::OverLimit(a)));
        assert!(accounts.close(a).is_err());
        accounts.uncharge(a, FrameType::Ram, 4);
        accounts.uncharge(a, FrameType::Shared, 2);
        accounts.close(a).unwrap();
        assert_eq!(accounts.usage(a), None);
    }

    #[test]
    fn domains_with_the_same_slot_are_told_apart_also_after_one_is_gone() {
        let mut accounts = Accounts::new();
        let step = u16::try_from(MAX_ACCOUNTS).unwrap();
        let (a, b) = (DomId::new(3), DomId::new(3 + step));
        accounts.open(a, LIMITS).unwrap();
        accounts.open(b, LIMITS).unwrap();
        accounts.charge(b, FrameType::Ram, 3).unwrap();
        accounts.close(a).unwrap();
        assert_eq!(accounts.usage(b).unwrap().0.ram, 3);
        accounts.open(b, Limits::NONE).unwrap();
        assert_eq!(accounts.usage(b).unwrap(), (Usage { ram: 3, overhead: 0 }, Limits::NONE));
    }

    #[test]
    fn a_full_table_refuses() {
        let mut accounts = Accounts::new();
        for raw in 0..u16::try_from(MAX_ACCOUNTS).unwrap() {
            accounts.open(DomId::new(raw), LIMITS).unwrap();
        }
        assert!(accounts.open(DomId::XEN, LIMITS).is_err());
    }
}
