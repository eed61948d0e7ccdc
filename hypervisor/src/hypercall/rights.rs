// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who may do what: the one place where a caller's rights are looked at.
//!
//! What a domain may do beyond its own affairs is its set of [`Privileges`]. A hypercall that takes a
//! domain's number gets the domain only through [`Call::subject`] or [`Call::other`], and so only with
//! the right to it. A caller without the right learns nothing of which domains there are: it is EPERM
//! whatever the number.

use alloc::sync::Arc;
use core::ops::Deref;

use guest_abi::{DomId, Errno};

use super::Call;
use crate::domain::{Domain, Privileges};

/// The domain that a hypercall is about.
pub(crate) enum Subject<'a> {
    /// The caller.
    Own(&'a Domain),
    /// Another one, which the caller may control. It stays whole as long as this exists.
    Other(Arc<Domain>),
}

impl Deref for Subject<'_> {
    type Target = Domain;

    fn deref(&self) -> &Domain {
        match self {
            Self::Own(domain) => domain,
            Self::Other(domain) => domain,
        }
    }
}

impl<'a> Call<'a> {
    /// Refuses callers that lack a privilege.
    pub(crate) fn require(&self, privilege: Privileges) -> Result<(), Errno> {
        if self.domain.privileges.contains(privilege) { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// The domain that an id means; "self" is the caller.
    pub(crate) fn resolve(&self, id: u16) -> DomId {
        let id = DomId::new(id);
        if id == DomId::SELF { self.domain.id } else { id }
    }

    /// The domain that an id means: the caller, or another one that it may control.
    ///
    /// # Errors
    /// EPERM without the right, ESRCH if there is no such domain.
    pub(crate) fn subject(&self, id: u16) -> Result<Subject<'a>, Errno> {
        let id = self.resolve(id);
        if id == self.domain.id { Ok(Subject::Own(self.domain)) } else { self.other(id).map(Subject::Other) }
    }

    /// A domain that the caller may control; a caller with that right may name itself.
    ///
    /// # Errors
    /// As [`Call::subject`].
    pub(crate) fn other(&self, id: DomId) -> Result<Arc<Domain>, Errno> {
        self.require(Privileges::CONTROL)?;
        self.hv.domains.get(id).ok_or(Errno::ESRCH)
    }
}
