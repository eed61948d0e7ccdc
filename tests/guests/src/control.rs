// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a control domain does, by name: making, filling, mapping and ending another domain.

use guest_abi::domctl::{self as d, CpuUserRegs, CreateDomain, DomctlHeader, GetDomainInfo, VcpuContext};
use guest_abi::hypercall::{HYPERVISOR_DOMCTL, HYPERVISOR_ISTHMUS, HYPERVISOR_MEMORY_OP, HYPERVISOR_SYSCTL};
use guest_abi::isthmus::{ConsoleRead, DomainCopy, INTERFACE_VERSION, ISTHMUS_CONSOLE_READ, ISTHMUS_DOMAIN_COPY};
use guest_abi::memory::{
    AddToPhysmapBatch, MemoryReservation, RemoveFromPhysmap, XENMAPSPACE_GMFN_FOREIGN, XENMEM_ADD_TO_PHYSMAP_BATCH,
    XENMEM_POPULATE_PHYSMAP, XENMEM_REMOVE_FROM_PHYSMAP,
};
use guest_abi::num::{low_u16, low_u32};
use guest_abi::sysctl::{self as s, PhysInfo, SysctlHeader};
use guest_abi::{DomId, Wire};

use crate::hypercall;

const SELF: u16 = DomId::SELF.raw();

/// A management structure, aligned as C would.
#[repr(align(8))]
struct Block([u8; 256]);

fn call(number: u32, block: &mut Block) -> i64 {
    let address = block.0.as_mut_ptr().addr() as u64;
    // SAFETY: the block is ours and longer than what the hypervisor writes.
    unsafe { hypercall::raw(u64::from(number), [address, 0, 0, 0, 0]) }
}

/// A domctl of any version; the header and the argument are written back.
pub fn domctl_of<T: Wire>(version: u32, cmd: u32, domain: &mut u16, argument: &mut T) -> i64 {
    let mut block = Block([0; 256]);
    DomctlHeader { cmd, interface_version: version, domain: *domain, pad: [0; 3] }.to_bytes(&mut block.0);
    argument.to_bytes(&mut block.0[d::DOMCTL_ARG..]);
    let result = call(HYPERVISOR_DOMCTL, &mut block);
    *domain = DomctlHeader::from_bytes(&block.0).domain;
    *argument = T::from_bytes(&block.0[d::DOMCTL_ARG..]);
    result
}

/// A domctl about a domain.
pub fn domctl<T: Wire>(cmd: u32, mut domain: u16, argument: &mut T) -> i64 {
    domctl_of(d::XEN_DOMCTL_INTERFACE_VERSION, cmd, &mut domain, argument)
}

/// A domctl without an argument.
pub fn simple(cmd: u32, domain: u16) -> i64 {
    domctl(cmd, domain, &mut 0_u64)
}

/// What [`create`] asks for.
#[must_use]
pub fn wanted() -> CreateDomain {
    CreateDomain {
        flags: d::XEN_DOMCTL_CDF_HVM | d::XEN_DOMCTL_CDF_HAP,
        max_vcpus: 1,
        max_evtchn_port: 1023,
        max_grant_frames: -1,
        max_maptrack_frames: -1,
        grant_opts: 1,
        emulation_flags: d::XEN_X86_EMU_LAPIC,
        ..Default::default()
    }
}

/// Makes a domain that may hold `frames` frames; its number.
pub fn create(frames: u64) -> Result<u16, i64> {
    let mut domain = 0;
    let result = domctl_of(d::XEN_DOMCTL_INTERFACE_VERSION, d::XEN_DOMCTL_CREATEDOMAIN, &mut domain, &mut wanted());
    if result != 0 {
        return Err(result);
    }
    match domctl(d::XEN_DOMCTL_MAX_MEM, domain, &mut (frames * 4)) {
        0 => Ok(domain),
        error => Err(error),
    }
}

/// `getdomaininfo`.
pub fn info(domain: u16) -> Result<GetDomainInfo, i64> {
    let mut info = GetDomainInfo::default();
    match domctl(d::XEN_DOMCTL_GETDOMAININFO, domain, &mut info) {
        0 => Ok(info),
        error => Err(error),
    }
}

/// `physinfo`.
#[must_use]
pub fn physinfo() -> PhysInfo {
    let mut block = Block([0; 256]);
    let header = SysctlHeader { cmd: s::XEN_SYSCTL_PHYSINFO, interface_version: s::XEN_SYSCTL_INTERFACE_VERSION };
    header.to_bytes(&mut block.0);
    let result = call(HYPERVISOR_SYSCTL, &mut block);
    if result == 0 { PhysInfo::from_bytes(&block.0[s::SYSCTL_ARG..]) } else { PhysInfo::default() }
}

/// Any sysctl, for its error.
pub fn sysctl(cmd: u32, interface_version: u32) -> i64 {
    let mut block = Block([0; 256]);
    SysctlHeader { cmd, interface_version }.to_bytes(&mut block.0);
    call(HYPERVISOR_SYSCTL, &mut block)
}

/// Fills `count` extents from `gfn` on; how many were.
pub fn populate(domid: u16, gfn: u64, count: u64, order: u32) -> i64 {
    let mut gfns = [0_u64; 64];
    for (step, slot) in (0..count).zip(&mut gfns) {
        *slot = gfn + (step << order);
    }
    let extent_start = gfns.as_ptr().addr() as u64;
    let mut list = MemoryReservation { extent_start, nr_extents: count, extent_order: order, mem_flags: 0, domid };
    hypercall::op(HYPERVISOR_MEMORY_OP, XENMEM_POPULATE_PHYSMAP, &mut list)
}

/// Copies bytes into a domain's memory.
pub fn copy(domid: u16, gpa: u64, bytes: &[u8]) -> i64 {
    let mut argument = DomainCopy {
        interface_version: INTERFACE_VERSION,
        domid,
        kind: 0,
        gpa,
        len: bytes.len() as u64,
        buffer: bytes.as_ptr().addr() as u64,
        done: 0,
    };
    hypercall::op(HYPERVISOR_ISTHMUS, ISTHMUS_DOMAIN_COPY, &mut argument)
}

/// Maps a domain's frame at a guest frame of the caller: the call's result, and the frame's.
pub fn map(foreign_domid: u16, gfn: u64, at: u64) -> (i64, i32) {
    let (idx, gpfn, mut error) = (gfn, at, 1_i32);
    let mut batch = AddToPhysmapBatch {
        domid: SELF,
        space: low_u16(u64::from(XENMAPSPACE_GMFN_FOREIGN)),
        size: 1,
        foreign_domid,
        idxs: core::ptr::from_ref(&idx).addr() as u64,
        gpfns: core::ptr::from_ref(&gpfn).addr() as u64,
        errs: core::ptr::from_mut(&mut error).expose_provenance() as u64,
    };
    let result = hypercall::op(HYPERVISOR_MEMORY_OP, XENMEM_ADD_TO_PHYSMAP_BATCH, &mut batch);
    let place = core::ptr::from_mut(&mut error);
    // SAFETY: the hypervisor has written there behind the compiler's back.
    (result, unsafe { place.read_volatile() })
}

/// Ends such a mapping.
pub fn unmap(at: u64) -> i64 {
    hypercall::op(HYPERVISOR_MEMORY_OP, XENMEM_REMOVE_FROM_PHYSMAP, &mut RemoveFromPhysmap { domid: SELF, gpfn: at })
}

/// Lets vCPU 0 begin at `rip`.
pub fn set_entry(domain: u16, rip: u64) -> i64 {
    let mut context = [0_u8; d::VCPU_CONTEXT_SIZE];
    d::VGCF_ONLINE.to_bytes(&mut context[d::VCPU_CONTEXT_FLAGS..]);
    CpuUserRegs { rip, rflags: 2, ..Default::default() }.to_bytes(&mut context[d::VCPU_CONTEXT_USER_REGS..]);
    1_u64.to_bytes(&mut context[d::VCPU_CONTEXT_CTRLREG..]);
    let ctxt = context.as_ptr().addr() as u64;
    domctl(d::XEN_DOMCTL_SETVCPUCONTEXT, domain, &mut VcpuContext { vcpu: 0, ctxt })
}

/// What the domain has logged, up to the buffer's length; how much it was.
pub fn console(domid: u16, buffer: &mut [u8]) -> Result<u32, i64> {
    let mut read = ConsoleRead {
        interface_version: INTERFACE_VERSION,
        domid,
        pad: 0,
        position: 0,
        buffer: buffer.as_mut_ptr().expose_provenance() as u64,
        len: buffer.len() as u64,
    };
    match hypercall::op(HYPERVISOR_ISTHMUS, ISTHMUS_CONSOLE_READ, &mut read) {
        0 => Ok(low_u32(read.len)),
        error => Err(error),
    }
}
