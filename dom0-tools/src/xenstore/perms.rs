// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who may do what to a node.
//!
//! The first entry names the owner, who may do everything, and what domains may that no other entry
//! names. The control domain may do everything everywhere.
//!
//! Source: `docs/misc/xenstore.txt` of Xen 4.17.

use std::sync::Arc;

use guest_abi::DomId;
use serde::{Deserialize, Serialize};

use super::wire::{Code, Fields};

/// What may be done to a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Access {
    /// The value, the children's names and the permissions may be read, and changes are told.
    pub read: bool,
    /// The value may be changed, children made, the node removed.
    pub write: bool,
}

impl Access {
    /// Nothing.
    pub const NONE: Self = Self { read: false, write: false };
    /// Reading.
    pub const READ: Self = Self { read: true, write: false };
    /// Both.
    pub const BOTH: Self = Self { read: true, write: true };

    fn letter(self) -> char {
        match (self.read, self.write) {
            (false, false) => 'n',
            (true, false) => 'r',
            (false, true) => 'w',
            (true, true) => 'b',
        }
    }
}

/// What one domain may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    #[serde(with = "super::domid")]
    /// The domain.
    pub domain: DomId,
    /// What it may.
    pub access: Access,
}

impl Entry {
    /// Parses the protocol's form: a letter (`n`, `r`, `w`, `b`) and the domain's number.
    ///
    /// # Errors
    /// EINVAL.
    pub fn parse(text: &str) -> Result<Self, Code> {
        let letter = text.chars().next().ok_or(Code::Einval)?;
        let access = match letter {
            'n' => Access::NONE,
            'r' => Access::READ,
            'w' => Access { read: false, write: true },
            'b' => Access::BOTH,
            _ => return Err(Code::Einval),
        };
        let number = &text[1..];
        let is_plain = number.bytes().all(|byte| byte.is_ascii_digit());
        let number = number.parse().ok().filter(|_| is_plain).ok_or(Code::Einval)?;
        let domain = Some(DomId::new(number)).filter(|domain| domain.is_domain()).ok_or(Code::Einval)?;
        Ok(Self { domain, access })
    }
}

impl std::fmt::Display for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.access.letter(), self.domain.raw())
    }
}

/// A client, as permissions see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Who {
    /// Its domain.
    pub domain: DomId,
    /// The domain that it may act for.
    pub target: Option<DomId>,
}

impl Who {
    /// The control domain.
    pub const DOM0: Self = Self { domain: DomId::DOM0, target: None };

    /// Whether permissions do not concern it.
    #[must_use]
    pub fn is_privileged(self) -> bool {
        self.domain == DomId::DOM0
    }

    fn is(self, domain: DomId) -> bool {
        self.domain == domain || self.target == Some(domain)
    }
}

/// A node's permissions, never without an owner.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Perms(Arc<[Entry]>);

impl Perms {
    /// An owner, and what others may.
    #[must_use]
    pub fn new(owner: DomId, others: Access) -> Self {
        Self([Entry { domain: owner, access: others }].into())
    }

    /// The entries of a payload.
    ///
    /// # Errors
    /// EINVAL: there is none, or one is wrong.
    pub fn parse(mut fields: Fields<'_>) -> Result<Self, Code> {
        let mut entries = Vec::new();
        while !fields.is_empty() {
            entries.push(Entry::parse(fields.text()?)?);
        }
        if entries.is_empty() { Err(Code::Einval) } else { Ok(Self(entries.into())) }
    }

    /// The owner.
    #[must_use]
    pub fn owner(&self) -> DomId {
        self.0[0].domain
    }

    /// The entries, the owner's first.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.0
    }

    /// The same with another owner.
    #[must_use]
    pub fn owned_by(&self, owner: DomId) -> Self {
        let mut entries = self.0.to_vec();
        entries[0].domain = owner;
        Self(entries.into())
    }

    /// The same without the entries that name `domain`, except as owner; `None` if there is none.
    #[must_use]
    pub fn without(&self, domain: DomId) -> Option<Self> {
        let (owner, others) = self.0.split_first()?;
        if !others.iter().any(|entry| entry.domain == domain) {
            return None;
        }
        let rest = others.iter().filter(|entry| entry.domain != domain);
        Some(Self(std::iter::once(owner).chain(rest).copied().collect()))
    }

    /// What a client may.
    #[must_use]
    pub fn access(&self, who: Who) -> Access {
        if who.is_privileged() || who.is(self.owner()) {
            return Access::BOTH;
        }
        let named = self.0[1..].iter().find(|entry| who.is(entry.domain));
        named.unwrap_or(&self.0[0]).access
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xenstore::wire::strings;

    fn perms(texts: &[&str]) -> Result<Perms, Code> {
        Perms::parse(Fields::new(&strings(texts)))
    }

    fn guest(domain: u16) -> Who {
        Who { domain: DomId::new(domain), target: None }
    }

    #[test]
    fn the_first_entry_is_the_owner_and_the_rest_of_the_world() {
        let perms = perms(&["r1", "n2", "b3"]).unwrap();
        assert_eq!(perms.access(guest(1)), Access::BOTH);
        assert_eq!(perms.access(guest(2)), Access::NONE);
        assert_eq!(perms.access(guest(3)), Access::BOTH);
        assert_eq!(perms.access(guest(4)), Access::READ);
        assert_eq!(perms.access(Who::DOM0), Access::BOTH);
        let stub = Who { target: Some(DomId::new(1)), ..guest(4) };
        assert_eq!(perms.access(stub), Access::BOTH);
    }

    #[test]
    fn what_is_no_entry_is_refused() {
        for wrong in [&[][..], &[""], &["x1"], &["r"], &["r-1"], &["r65536"], &["r32752"], &["r1", "ä1"]] {
            assert_eq!(perms(wrong), Err(Code::Einval), "{wrong:?}");
        }
    }

    #[test]
    fn a_domain_is_forgotten_except_as_owner() {
        let all = perms(&["n1", "r2", "b1", "r3"]).unwrap();
        assert_eq!(all.without(DomId::new(1)), perms(&["n1", "r2", "r3"]).ok());
        assert_eq!(all.without(DomId::new(9)), None);
    }
}
