// SPDX-License-Identifier: MIT OR Apache-2.0
//! memory_op (12): what lies where in a domain's physical address space.
//!
//! Long lists are worked off in batches; the number of entries done is kept in the upper bits of the
//! operation, as the ABI provides, and the hypercall runs again.
//!
//! Source: `xen/include/public/memory.h` at 4.17.

mod physmap;
mod reservation;

use alloc::vec::Vec;

use guest_abi::memory as abi;
use guest_abi::num::{low_u32, to_usize};
use guest_abi::{Errno, Wire};

use super::{Call, DONE, HypercallResult, Reply};
use crate::boot::dom0_map::MAX_ENTRIES;
use crate::boot::host_map::{Entry, Kind};
use crate::boot::span::Span;

/// The operation is in the low bits, how many entries are done above them. Source: `memory.h`.
const EXTENT_SHIFT: u32 = 6;

/// Errors: ENOSYS for unknown operations and spaces, EINVAL, ESRCH, EPERM, ENOMEM, EFAULT as the
/// operations say. `decrease_reservation` and `populate_physmap` return the entries done.
#[inline(never)]
pub(super) fn handle(call: &mut Call<'_>) -> HypercallResult {
    let operation = call.operation() & ((1 << EXTENT_SHIFT) - 1);
    match operation {
        abi::XENMEM_ADD_TO_PHYSMAP => physmap::add(call),
        abi::XENMEM_ADD_TO_PHYSMAP_BATCH => physmap::foreign(call),
        abi::XENMEM_REMOVE_FROM_PHYSMAP => physmap::remove(call),
        abi::XENMEM_ACQUIRE_RESOURCE => physmap::acquire(call),
        abi::XENMEM_DECREASE_RESERVATION => reservation::work_off(call, reservation::give_back),
        abi::XENMEM_POPULATE_PHYSMAP => reservation::work_off(call, reservation::populate),
        abi::XENMEM_MEMORY_MAP => memory_map(call),
        abi::XENMEM_SET_MEMORY_MAP => set_memory_map(call),
        abi::XENMEM_CURRENT_RESERVATION | abi::XENMEM_MAXIMUM_RESERVATION => {
            let argument: abi::MemoryDomain = call.read(call.arg1())?;
            let subject = call.subject(argument.domid)?;
            let (usage, limits) = call.hv.frames.account(subject.id).ok_or(Errno::ESRCH)?;
            Ok(Reply::Value(if operation == abi::XENMEM_CURRENT_RESERVATION { usage.ram } else { limits.ram }))
        }
        abi::XENMEM_MAXIMUM_GPFN => {
            let argument: abi::MemoryDomain = call.read(call.arg1())?;
            Ok(Reply::Value(call.subject(argument.domid)?.max_gfn()))
        }
        _ => Err(Errno::ENOSYS),
    }
}

/// How many entries of a list were done before the hypercall was taken up again.
fn nr_done(call: &Call<'_>) -> u64 {
    u64::from(call.operation() >> EXTENT_SHIFT)
}

/// Takes the hypercall up again with so many entries done.
fn again_from(call: &mut Call<'_>, done: u64) -> Reply {
    let operation = call.operation() & ((1 << EXTENT_SHIFT) - 1);
    call.state.regs.rdi = u64::from(operation) | done << EXTENT_SHIFT;
    Reply::Again
}

/// The domain's memory map as 20-byte e820 entries, as many as fit the guest's buffer.
fn memory_map(call: &mut Call<'_>) -> HypercallResult {
    let mut argument: abi::MemoryMap = call.read(call.arg1())?;
    let domain = call.domain;
    let entries = domain.e820.lock();
    let room = to_usize(u64::from(argument.nr_entries));
    if room < entries.len() {
        return Err(Errno::EINVAL);
    }
    for (i, entry) in entries.iter().enumerate() {
        let at = argument.buffer.wrapping_add((i * abi::E820Entry::SIZE) as u64);
        let kind = entry.kind.number();
        call.write(at, &abi::E820Entry { addr: entry.span.start(), size: entry.span.len(), kind })?;
    }
    argument.nr_entries = low_u32(entries.len() as u64);
    call.write(call.arg1(), &argument)?;
    DONE
}

/// What another domain's memory map says from now on.
fn set_memory_map(call: &mut Call<'_>) -> HypercallResult {
    let argument: abi::ForeignMemoryMap = call.read(call.arg1())?;
    let subject = call.other(call.resolve(argument.domid))?;
    let count = to_usize(u64::from(argument.map.nr_entries));
    if subject.is_identity() || count > MAX_ENTRIES {
        return Err(Errno::EINVAL);
    }
    let mut entries = Vec::new();
    entries.try_reserve_exact(count).map_err(|_| Errno::ENOMEM)?;
    for i in 0..count {
        let at = argument.map.buffer.wrapping_add((i * abi::E820Entry::SIZE) as u64);
        let entry: abi::E820Entry = call.read(at)?;
        let end = entry.addr.checked_add(entry.size).filter(|end| *end <= 1 << 52).ok_or(Errno::EINVAL)?;
        entries.push(Entry { span: Span::new(entry.addr, end), kind: Kind::from_number(entry.kind) });
    }
    let before = core::mem::replace(&mut *subject.e820.lock(), entries);
    drop(before);
    DONE
}

#[cfg(test)]
mod tests;
