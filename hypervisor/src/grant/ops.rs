// SPDX-License-Identifier: MIT OR Apache-2.0
//! grant_table_op: lists of elements in guest memory, and questions about tables.
//!
//! A list is copied in a batch at a time, worked off by [`super::map`] or [`super::copy`], and
//! copied back with a status in each element. The call as a whole succeeds if every element was
//! processed, whatever became of it: Linux treats anything else as a bug of its own. After
//! [`BATCHES`] batches the hypercall is taken up again behind what is done.
//!
//! Version 2 is not offered; a kernel that asks is told so and stays with version 1.
//!
//! Source: `xen/include/public/grant_table.h` at 4.17, `enum grant_table_op`.

use guest_abi::grant_table as abi;
use guest_abi::num::to_usize;
use guest_abi::{DomId, Errno, Gfn, Wire};

use super::{BATCH, Parties, Party, Refusal, copy, map, with_party};
use crate::addr::Mfn;

/// Batches worked off before the hypercall is taken up again.
pub const BATCHES: usize = 4;

/// The caller's memory: its lists by virtual address, its pages by their number.
pub trait Buffers {
    /// Copies bytes in.
    ///
    /// # Errors
    /// `EFAULT`.
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Errno>;
    /// Copies bytes out.
    ///
    /// # Errors
    /// `EFAULT`.
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Errno>;
    /// The frame of the caller's own RAM at `gfn`. It stays the caller's until this pCPU next honours a flush of its p2m,
    /// which is after the hypercall.
    fn own_ram(&mut self, gfn: Gfn) -> Option<Mfn>;
}

/// Whose tables the caller may ask about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Its own.
    Own,
    /// Anybody's.
    All,
}

/// The arguments of the hypercall, as in the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// `GNTTABOP_*`.
    pub operation: u32,
    /// Virtual address of the list.
    pub address: u64,
    /// Elements in it.
    pub count: u32,
}

/// How far a request got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Step {
    /// It is complete: the hypercall returns 0.
    Done,
    /// This is left of it.
    Again(Request),
}

/// Carries a request out, or the first part of it.
///
/// # Errors
/// `ENOSYS` for operations that are not offered, `EINVAL` for a count that cannot be, `EFAULT`;
/// for `get_version` also `ESRCH` and `EPERM`. What was done before an error stays done.
pub fn handle<P: Parties>(
    request: Request,
    rights: Rights,
    buffers: &mut impl Buffers,
    me: Party<'_, P::Memory>,
    parties: &P,
) -> Result<Step, Errno> {
    // The count is a signed number to the caller.
    if i32::try_from(request.count).is_err() {
        return Err(Errno::EINVAL);
    }
    match request.operation {
        abi::GNTTABOP_MAP_GRANT_REF => list(request, buffers, |ops, _| map::map(me, ops, parties)),
        abi::GNTTABOP_UNMAP_GRANT_REF => list(request, buffers, |ops, _| map::unmap(me, ops, parties)),
        abi::GNTTABOP_COPY => list(request, buffers, |ops, buffers| copy::copy(me, buffers, ops, parties)),
        abi::GNTTABOP_QUERY_SIZE => single(request, buffers, |op, _| query_size(op, rights, me, parties)),
        abi::GNTTABOP_SETUP_TABLE => single(request, buffers, |op: &mut abi::SetupTable, _| {
            // For domains that see machine frames; ours use XENMEM_add_to_physmap.
            op.status = abi::GNTST_GENERAL_ERROR;
            Ok(())
        }),
        abi::GNTTABOP_SET_VERSION => single(request, buffers, |op, _| set_version(op)),
        abi::GNTTABOP_GET_VERSION => single(request, buffers, |op, _| get_version(op, rights, me, parties)),
        _ => Err(Errno::ENOSYS),
    }
}

/// The longest element.
const ELEMENT_MAX: usize = 40;

/// Works a list off.
fn list<T: Wire + Default, B: Buffers>(
    request: Request,
    buffers: &mut B,
    work: impl Fn(&mut [T], &mut B),
) -> Result<Step, Errno> {
    match request.count {
        // blkback unmaps nothing by a hypercall for each request whose grants persist.
        0 => Ok(Step::Done),
        // Most lists have one element, which then needs no buffer but its own.
        1 => single(request, buffers, |element, buffers| {
            work(core::slice::from_mut(element), buffers);
            Ok(())
        }),
        _ => batches(request, buffers, work),
    }
}

#[inline(never)]
fn batches<T: Wire + Default, B: Buffers>(
    request: Request,
    buffers: &mut B,
    work: impl Fn(&mut [T], &mut B),
) -> Result<Step, Errno> {
    const { assert!(T::SIZE <= ELEMENT_MAX) };
    let mut bytes = [[0; ELEMENT_MAX]; BATCH];
    let mut elements = [T::default(); BATCH];
    let mut rest = request;
    for _ in 0..BATCHES {
        let len = to_usize(u64::from(rest.count)).min(BATCH);
        if len == 0 {
            break;
        }
        let (bytes, elements) = (&mut bytes.as_flattened_mut()[..len * T::SIZE], &mut elements[..len]);
        buffers.read(rest.address, bytes)?;
        for (element, bytes) in elements.iter_mut().zip(bytes.chunks_exact(T::SIZE)) {
            *element = T::from_bytes(bytes);
        }
        work(elements, buffers);
        for (element, bytes) in elements.iter().zip(bytes.chunks_exact_mut(T::SIZE)) {
            element.to_bytes(bytes);
        }
        buffers.write(rest.address, bytes)?;
        rest.address = rest.address.wrapping_add(bytes.len() as u64);
        rest.count -= u32::try_from(len).unwrap_or(rest.count);
    }
    Ok(if rest.count == 0 { Step::Done } else { Step::Again(rest) })
}

/// Answers a question, or works a list off, that has one element.
#[inline]
fn single<T: Wire, B: Buffers>(
    request: Request,
    buffers: &mut B,
    answer: impl FnOnce(&mut T, &mut B) -> Result<(), Errno>,
) -> Result<Step, Errno> {
    const { assert!(T::SIZE <= ELEMENT_MAX) };
    if request.count != 1 {
        return Err(Errno::EINVAL);
    }
    let mut bytes = [0; ELEMENT_MAX];
    let bytes = &mut bytes[..T::SIZE];
    buffers.read(request.address, bytes)?;
    let mut element = T::from_bytes(bytes);
    let answered = answer(&mut element, buffers);
    element.to_bytes(bytes);
    buffers.write(request.address, bytes)?;
    answered.map(|()| Step::Done)
}

fn query_size<P: Parties>(
    op: &mut abi::QuerySize,
    rights: Rights,
    me: Party<'_, P::Memory>,
    parties: &P,
) -> Result<(), Errno> {
    let domain = DomId::new(op.dom);
    let size = if may_ask(domain, rights, me) {
        with_party(me, domain, parties, |party| party.table.size()).ok_or(Refusal::BadDomain)
    } else {
        Err(Refusal::Denied)
    };
    match size {
        Ok((now, most)) => {
            op.nr_frames = now;
            op.max_nr_frames = most;
            op.status = abi::GNTST_OKAY;
        }
        Err(refusal) => op.status = refusal.status(),
    }
    Ok(())
}

/// Versions that may be asked for; the answer is always the first.
fn set_version(op: &mut abi::SetVersion) -> Result<(), Errno> {
    let wanted = core::mem::replace(&mut op.version, 1);
    match wanted {
        1 => Ok(()),
        2 => Err(Errno::ENOSYS),
        _ => Err(Errno::EINVAL),
    }
}

fn get_version<P: Parties>(
    op: &mut abi::GetVersion,
    rights: Rights,
    me: Party<'_, P::Memory>,
    parties: &P,
) -> Result<(), Errno> {
    let domain = DomId::new(op.dom);
    if !may_ask(domain, rights, me) {
        return Err(Errno::EPERM);
    }
    op.version = with_party(me, domain, parties, |_| 1).ok_or(Errno::ESRCH)?;
    Ok(())
}

fn may_ask<M>(domain: DomId, rights: Rights, me: Party<'_, M>) -> bool {
    rights == Rights::All || domain == DomId::SELF || domain == me.table.domain()
}
