// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writing another domain's memory without mapping it: what a domain builder does most.
//!
//! Mapping a page through the builder's kernel costs thousands of instructions; here a page costs two
//! lookups and the copy. A batch of pages is copied, `done` in the caller's structure moves on, and
//! the hypercall runs again, so the caller finds there how far it came whatever happens.

use guest_abi::isthmus as abi;
use guest_abi::num::to_usize;
use guest_abi::{DomId, Errno, Gpa, PAGE_SIZE};

use super::super::{Call, DONE, HypercallResult, Reply};
use super::check_version;
use crate::addr::Gva;
use crate::domain::Domain;
use crate::frame::FrameRef;

/// Pieces within one page, on either side, that one batch copies.
const BATCH: usize = 64;

/// Where the bytes come from.
#[derive(Clone, Copy)]
enum Source {
    /// The caller's memory from this address on.
    Buffer(u64),
    Zeroes,
}

pub(super) fn domain_copy(call: &mut Call<'_>) -> HypercallResult {
    let mut argument: abi::DomainCopy = call.read(call.arg1())?;
    check_version(argument.interface_version)?;
    let target = call.other(DomId::new(argument.domid))?;
    let source = match argument.kind {
        abi::COPY_IN => Source::Buffer(argument.buffer),
        abi::COPY_ZERO => Source::Zeroes,
        _ => return Err(Errno::EINVAL),
    };
    if target.id == call.domain.id
        || argument.done > argument.len
        || argument.gpa.checked_add(argument.len).is_none()
        || argument.buffer.checked_add(argument.len).is_none() && argument.kind == abi::COPY_IN
    {
        return Err(Errno::EINVAL);
    }
    if target.life.is_dying() {
        return Err(Errno::ESRCH);
    }
    let mut result = Ok(());
    for _ in 0..BATCH {
        if argument.done == argument.len || result.is_err() {
            break;
        }
        result = copy_piece(call, &target, &argument, source).map(|len| argument.done += len);
    }
    call.write(call.arg1(), &argument)?;
    result?;
    if argument.done == argument.len { DONE } else { Ok(Reply::Again) }
}

/// Copies as much as lies in one page of the target and one of the source; returns how much.
fn copy_piece(call: &mut Call<'_>, target: &Domain, range: &abi::DomainCopy, source: Source) -> Result<u64, Errno> {
    let mem = call.hv.mem;
    let to = Gpa::new(range.gpa + range.done);
    let page = ram(target, to)?;
    let mfn = page.mfn();
    let room = (PAGE_SIZE - to.page_offset()).min(to_usize(range.len - range.done));
    match source {
        Source::Zeroes if room == PAGE_SIZE => {
            mem.zero(mfn);
            Ok(room as u64)
        }
        Source::Zeroes => {
            const ZEROES: [u8; 512] = [0; 512];
            let len = room.min(ZEROES.len());
            mem.write(mfn, to.page_offset(), &ZEROES[..len]);
            Ok(len as u64)
        }
        Source::Buffer(buffer) => {
            let (from, offset) = call.space().source(Gva::new(buffer + range.done))?;
            let len = room.min(PAGE_SIZE - offset);
            mem.copy((mfn, to.page_offset()), (from, offset), len);
            Ok(len as u64)
        }
    }
}

/// The target's own RAM behind an address. It is held, since the target may run on another CPU and give it up there.
fn ram(target: &Domain, at: Gpa) -> Result<FrameRef, Errno> {
    match target.p2m_view.pin(at.gfn()) {
        Some(page) => Ok(page?),
        None if target.p2m_view.lookup(at.gfn()).is_some() => Err(Errno::EPERM),
        None => Err(Errno::ENOENT),
    }
}

#[cfg(test)]
mod tests;
