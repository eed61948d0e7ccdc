// SPDX-License-Identifier: MIT OR Apache-2.0
//! grant_table_op (20): the way from registers to [`crate::grant::ops`].
//!
//! A list that is not finished is recorded in the registers: the address of its rest and how many
//! elements that has. The instruction then runs again.

use guest_abi::num::low_u32;
use guest_abi::{DomId, Errno, Gfn};

use super::{Call, DONE, HypercallResult, Reply};
use crate::addr::Mfn;
use crate::domain::{Domain, Privileges};
use crate::grant::ops::{self, Buffers, Request, Rights, Step};
use crate::grant::{Memory, Parties, Party};
use crate::hypervisor::Hypervisor;
use crate::lock::Lock;
use crate::p2m::{FlushSite, P2m, P2mView, UnmappedBatch};

/// Errors: those of [`ops::handle`]. What concerns one element is in its `status`.
#[inline(never)]
pub(super) fn handle(call: &mut Call<'_>) -> HypercallResult {
    let request = Request { operation: call.operation(), address: call.arg1(), count: low_u32(call.arg2()) };
    let rights = if call.domain.privileges.contains(Privileges::CONTROL) { Rights::All } else { Rights::Own };
    let (hv, domain) = (call.hv, call.domain);
    match ops::handle(request, rights, call, domain.as_party(), hv)? {
        Step::Done => DONE,
        Step::Again(rest) => {
            call.state.regs.rsi = rest.address;
            call.state.regs.rdx = u64::from(rest.count);
            Ok(Reply::Again)
        }
    }
}

impl Buffers for Call<'_> {
    #[inline(always)]
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        self.read_bytes(address, bytes)
    }

    #[inline(always)]
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.write_bytes(address, bytes)
    }

    #[inline]
    fn own_ram(&mut self, gfn: Gfn) -> Option<Mfn> {
        self.space().own_ram(gfn)
    }
}

impl Domain {
    /// The domain as one side of a grant.
    pub(crate) fn as_party(&self) -> Party<'_, Self> {
        Party { table: &self.grants, memory: self }
    }
}

impl Memory for Domain {
    fn p2m(&self) -> &Lock<P2m> {
        &self.p2m
    }

    fn p2m_view(&self) -> P2mView {
        self.p2m_view
    }
}

impl Parties for Hypervisor {
    type Memory = Domain;

    fn with<R>(&self, domain: DomId, act: impl FnOnce(Party<'_, Domain>) -> R) -> Option<R> {
        self.domains.get(domain).map(|domain| act(domain.as_party()))
    }

    fn flush(&self, memory: &Domain, removed: &mut UnmappedBatch) {
        removed.flush_in_place(&memory.tlb, self.machine, FlushSite::GrantUnmap);
    }
}

#[cfg(test)]
mod tests;
