// SPDX-License-Identifier: MIT OR Apache-2.0
//! The grant table of version 1 and its operations by name, one element a call.

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use guest_abi::cpuid::LEAF_HVM;
use guest_abi::grant_table::{
    GNTTABOP_MAP_GRANT_REF, GNTTABOP_UNMAP_GRANT_REF, GTF_READING, GTF_WRITING, GrantCopy, MapGrantRef, UnmapGrantRef,
};
use guest_abi::hypercall::{HYPERVISOR_GRANT_TABLE_OP, HYPERVISOR_MEMORY_OP};
use guest_abi::memory::{AddToPhysmap, XENMAPSPACE_GRANT_TABLE, XENMEM_ADD_TO_PHYSMAP};
use guest_abi::num::{low_u16, low_u32};
use guest_abi::{DomId, Wire};

use crate::shared::Shared;
use crate::{cpu, hypercall};

static TABLE: Shared<[u64; 512]> = Shared::new([0; 512]);

/// This domain's number, as CPUID tells it.
#[must_use]
pub fn own_id() -> u16 {
    low_u16(u64::from(cpu::cpuid(LEAF_HVM, 0).ecx))
}

/// A grant operation on one element.
pub fn op<T: Wire>(command: u32, element: &mut T) -> i64 {
    let address = core::ptr::from_mut(element).addr() as u64;
    // SAFETY: the element is borrowed for the call.
    unsafe { hypercall::raw(u64::from(HYPERVISOR_GRANT_TABLE_OP), [u64::from(command), address, 1, 0, 0]) }
}

/// Places the table's first frame; the result of the hypercall.
pub fn init() -> i64 {
    let mut place = AddToPhysmap {
        domid: DomId::SELF.raw(),
        space: XENMAPSPACE_GRANT_TABLE,
        gpfn: TABLE.address() >> 12,
        ..Default::default()
    };
    hypercall::op(HYPERVISOR_MEMORY_OP, XENMEM_ADD_TO_PHYSMAP, &mut place)
}

fn word(reference: u32, offset: u64) -> &'static AtomicU32 {
    // SAFETY: inside the table's page for a reference below 512; both sides access it by atomics.
    unsafe { AtomicU32::from_ptr((TABLE.address() + 8 * u64::from(reference & 511) + offset) as *mut u32) }
}

/// Flags and domain of entry `reference`.
#[must_use]
pub fn entry(reference: u32) -> &'static AtomicU32 {
    word(reference, 0)
}

/// Fills entry `reference`: frame first, flags and domain last.
pub fn grant(reference: u32, domain: u16, frame: u64, flags: u16) {
    word(reference, 4).store(low_u32(frame), SeqCst);
    entry(reference).store(u32::from(domain) << 16 | u32::from(flags), SeqCst);
}

/// The access bits that the hypervisor keeps in entry `reference`.
#[must_use]
pub fn access_bits(reference: u32) -> u16 {
    low_u16(u64::from(entry(reference).load(SeqCst))) & (GTF_READING | GTF_WRITING)
}

/// Maps a grant at a guest physical address; status and handle, or the hypercall's error.
pub fn map(domain: u16, reference: u32, flags: u32, host_addr: u64) -> Result<(i16, u32), i64> {
    let mut map = MapGrantRef { host_addr, flags, reference, dom: domain, status: 1, ..Default::default() };
    match op(GNTTABOP_MAP_GRANT_REF, &mut map) {
        0 => Ok((map.status, map.handle)),
        error => Err(error),
    }
}

/// Unmaps; the status, or the hypercall's error.
pub fn unmap(handle: u32, host_addr: u64) -> Result<i16, i64> {
    let mut unmap = UnmapGrantRef { host_addr, handle, status: 1, ..Default::default() };
    match op(GNTTABOP_UNMAP_GRANT_REF, &mut unmap) {
        0 => Ok(unmap.status),
        error => Err(error),
    }
}

/// Copies; the status, or the hypercall's error.
pub fn copy(mut copy: GrantCopy) -> Result<i16, i64> {
    copy.status = 1;
    match op(guest_abi::grant_table::GNTTABOP_COPY, &mut copy) {
        0 => Ok(copy.status),
        error => Err(error),
    }
}
