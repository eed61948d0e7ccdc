// SPDX-License-Identifier: MIT OR Apache-2.0
//! memory_op (12): what lies where in a domain's physical address space.
//!
//! Long lists are worked off in batches of [`BATCH`]; the number of entries done is kept in the upper
//! bits of the operation, as the ABI provides, and the hypercall runs again.
//!
//! Source: `xen/include/public/memory.h` at 4.17.

use guest_abi::memory as abi;
use guest_abi::num::{low_u32, to_usize};
use guest_abi::{Errno, Gfn};

use super::{Call, DONE, HypercallResult, Reply};
use crate::addr::Order;
use crate::frame::Fill;
use crate::p2m::{Backing, FlushSite, P2mError, P2mKind, UnmappedBatch};

/// The operation is in the low bits, how many entries are done above them. Source: `memory.h`.
const EXTENT_SHIFT: u32 = 6;
/// Entries done before the hypercall is taken up again.
const BATCH: u64 = UnmappedBatch::CAPACITY as u64;

/// Errors: ENOSYS for unknown operations and spaces, EINVAL, ESRCH, EPERM, ENOMEM, EFAULT as the
/// operations say. `decrease_reservation` and `populate_physmap` return the entries done.
#[inline(never)]
pub(super) fn handle(call: &mut Call<'_>) -> HypercallResult {
    let operation = call.operation() & ((1 << EXTENT_SHIFT) - 1);
    match operation {
        abi::XENMEM_ADD_TO_PHYSMAP => add_to_physmap(call),
        abi::XENMEM_REMOVE_FROM_PHYSMAP => remove_from_physmap(call),
        abi::XENMEM_DECREASE_RESERVATION => reservation(call, give_back),
        abi::XENMEM_POPULATE_PHYSMAP => reservation(call, populate),
        abi::XENMEM_MEMORY_MAP => memory_map(call),
        abi::XENMEM_CURRENT_RESERVATION | abi::XENMEM_MAXIMUM_RESERVATION => {
            let argument: abi::MemoryDomain = call.read(call.arg1())?;
            call.only_self(argument.domid)?;
            let (usage, limits) = call.hv.frames.account(call.domain.id).ok_or(Errno::ESRCH)?;
            Ok(Reply::Value(if operation == abi::XENMEM_CURRENT_RESERVATION { usage.ram } else { limits.ram }))
        }
        abi::XENMEM_MAXIMUM_GPFN => {
            let argument: abi::MemoryDomain = call.read(call.arg1())?;
            call.only_self(argument.domid)?;
            Ok(Reply::Value(call.domain.max_gfn()))
        }
        _ => Err(Errno::ENOSYS),
    }
}

fn add_to_physmap(call: &mut Call<'_>) -> HypercallResult {
    let argument: abi::AddToPhysmap = call.read(call.arg1())?;
    call.only_self(argument.domid)?;
    let gfn = Gfn::new(argument.gpfn);
    let mfn = match argument.space {
        abi::XENMAPSPACE_SHARED_INFO if argument.idx == 0 => call.domain.shared_info,
        abi::XENMAPSPACE_SHARED_INFO => return Err(Errno::EINVAL),
        abi::XENMAPSPACE_GRANT_TABLE => call.domain.grant_frame(argument.idx)?,
        _ => return Err(Errno::ENOSYS),
    };
    // Whatever the guest had there makes place; its own RAM goes back to where it came from.
    let mut batch = UnmappedBatch::new();
    {
        let mut p2m = call.domain.p2m.lock();
        match p2m.lookup(gfn).map(|leaf| leaf.kind) {
            None => {}
            Some(P2mKind::Ram | P2mKind::Shared) => {
                let token = p2m.unmap(gfn, Order::PAGE)?;
                // A new batch has room for one.
                let _ = batch.push(token);
            }
            Some(_) => return Err(Errno::EBUSY),
        }
        if let Err(error) = p2m.map(gfn, mfn, Order::PAGE, P2mKind::Shared) {
            log::debug!("{}: cannot share a page at {gfn:?}: {error:?}", call.domain.id);
            drop(p2m);
            batch.flush(&call.domain.tlb, call.hv.machine, FlushSite::Remap);
            return Err(error.into());
        }
    }
    batch.flush(&call.domain.tlb, call.hv.machine, FlushSite::Remap);
    DONE
}

fn remove_from_physmap(call: &mut Call<'_>) -> HypercallResult {
    let argument: abi::RemoveFromPhysmap = call.read(call.arg1())?;
    call.only_self(argument.domid)?;
    let gfn = Gfn::new(argument.gpfn);
    let mut batch = UnmappedBatch::new();
    {
        let mut p2m = call.domain.p2m.lock();
        match p2m.lookup(gfn).map(|leaf| leaf.kind) {
            None => return Err(Errno::ENOENT),
            // Grants are ended by their own operation, which knows the handle.
            Some(P2mKind::GrantRw | P2mKind::GrantRo | P2mKind::Mmio) => return Err(Errno::EPERM),
            Some(_) => {
                let _ = batch.push(p2m.unmap(gfn, Order::PAGE)?);
            }
        }
    }
    batch.flush(&call.domain.tlb, call.hv.machine, FlushSite::ForeignUnmap);
    DONE
}

/// What is done for one entry; `false` ends the list there.
type Step = fn(&mut Call<'_>, Gfn, Order, &mut UnmappedBatch) -> bool;

/// Works a list of extents off, a batch at a time.
fn reservation(call: &mut Call<'_>, step: Step) -> HypercallResult {
    let argument: abi::MemoryReservation = call.read(call.arg1())?;
    call.only_self(argument.domid)?;
    let order = u8::try_from(argument.extent_order).ok().and_then(Order::new).ok_or(Errno::EINVAL)?;
    // Larger extents must be leaves of the p2m; Linux asks for single pages.
    if order != Order::PAGE && order != Order::MIB_2 {
        return Err(Errno::EINVAL);
    }
    let done = u64::from(call.operation() >> EXTENT_SHIFT);
    if done > argument.nr_extents || argument.nr_extents >= 1 << (32 - EXTENT_SHIFT) {
        return Err(Errno::EINVAL);
    }
    // A large extent is a batch of its own: zeroing it takes as long as many single ones.
    let batch_len = if order == Order::PAGE { BATCH } else { 1 };
    let end = argument.nr_extents.min(done + batch_len);
    let mut batch = UnmappedBatch::new();
    let mut at = done;
    while at < end {
        let Ok(gfn) = call.read::<u64>(argument.extent_start.wrapping_add(at * 8)) else { break };
        if !step(call, Gfn::new(gfn), order, &mut batch) {
            break;
        }
        at += 1;
    }
    batch.flush(&call.domain.tlb, call.hv.machine, FlushSite::Balloon);
    if at < end || at == argument.nr_extents {
        return Ok(Reply::Value(at));
    }
    let operation = call.operation() & ((1 << EXTENT_SHIFT) - 1);
    call.state.regs.rdi = u64::from(operation) | at << EXTENT_SHIFT;
    Ok(Reply::Again)
}

fn give_back(call: &mut Call<'_>, gfn: Gfn, order: Order, batch: &mut UnmappedBatch) -> bool {
    match call.domain.p2m.lock().depopulate(gfn, order) {
        Ok(token) => {
            let pushed = batch.push(token);
            debug_assert!(pushed.is_ok(), "a batch is as long as the list");
            pushed.is_ok()
        }
        Err(error) => {
            log::debug!("{}: cannot give back {gfn:?}: {error:?}", call.domain.id);
            false
        }
    }
}

fn populate(call: &mut Call<'_>, gfn: Gfn, order: Order, _: &mut UnmappedBatch) -> bool {
    let backing = if call.domain.is_identity() { Backing::Identity } else { Backing::Free(Fill::Zeroed) };
    match call.domain.p2m.lock().populate(gfn, order, backing) {
        Ok(_) => true,
        Err(P2mError::Occupied(_)) => false,
        Err(error) => {
            log::debug!("{}: cannot populate {gfn:?}: {error:?}", call.domain.id);
            false
        }
    }
}

/// The domain's memory map as 20-byte e820 entries, as many as fit the guest's buffer.
fn memory_map(call: &mut Call<'_>) -> HypercallResult {
    let mut argument: abi::MemoryMap = call.read(call.arg1())?;
    let entries = &call.domain.e820;
    let room = to_usize(u64::from(argument.nr_entries));
    if room < entries.len() {
        return Err(Errno::EINVAL);
    }
    for (i, entry) in entries.iter().enumerate() {
        let mut bytes = [0; abi::E820_ENTRY_SIZE];
        bytes[..8].copy_from_slice(&entry.span.start().to_le_bytes());
        bytes[8..16].copy_from_slice(&entry.span.len().to_le_bytes());
        bytes[16..].copy_from_slice(&entry.kind.number().to_le_bytes());
        call.write_bytes(argument.buffer.wrapping_add((i * abi::E820_ENTRY_SIZE) as u64), &bytes)?;
    }
    argument.nr_entries = low_u32(entries.len() as u64);
    call.write(call.arg1(), &argument)?;
    DONE
}

#[cfg(test)]
mod tests;
