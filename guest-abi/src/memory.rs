// SPDX-License-Identifier: MIT OR Apache-2.0
//! A domain's physical address space: placing, giving back, asking.
//!
//! The command is in the first argument, a structure's virtual address in the second. The reservation
//! calls return the number of extents done; all others return 0. Linux treats a short result of
//! `decrease_reservation` as fatal.
//!
//! Source: `xen/include/public/memory.h` at 4.17.

use crate::wire::Wire;

/// Adds frames without a place; not for translated guests.
pub const XENMEM_INCREASE_RESERVATION: u32 = 0;
/// Gives frames back: [`MemoryReservation`].
pub const XENMEM_DECREASE_RESERVATION: u32 = 1;
/// One more than the machine's highest RAM frame.
pub const XENMEM_MAXIMUM_RAM_PAGE: u32 = 2;
/// Frames that a domain has; argument: [`MemoryDomain`].
pub const XENMEM_CURRENT_RESERVATION: u32 = 3;
/// Frames that a domain may have; argument: [`MemoryDomain`].
pub const XENMEM_MAXIMUM_RESERVATION: u32 = 4;
/// Fills holes with frames: [`MemoryReservation`].
pub const XENMEM_POPULATE_PHYSMAP: u32 = 6;
/// Places a special page: [`AddToPhysmap`].
pub const XENMEM_ADD_TO_PHYSMAP: u32 = 7;
/// The caller's memory map: [`MemoryMap`].
pub const XENMEM_MEMORY_MAP: u32 = 9;
/// The machine's memory map; control domain only: [`MemoryMap`].
pub const XENMEM_MACHINE_MEMORY_MAP: u32 = 10;
/// Not for translated guests.
pub const XENMEM_EXCHANGE: u32 = 11;
/// Sets a domain's memory map: [`ForeignMemoryMap`].
pub const XENMEM_SET_MEMORY_MAP: u32 = 13;
/// The highest guest frame in use; argument: [`MemoryDomain`].
pub const XENMEM_MAXIMUM_GPFN: u32 = 14;
/// Makes a hole: [`RemoveFromPhysmap`].
pub const XENMEM_REMOVE_FROM_PHYSMAP: u32 = 15;
/// Places several pages, of another domain too: [`AddToPhysmapBatch`]. Linux calls it `add_to_physmap_range`.
pub const XENMEM_ADD_TO_PHYSMAP_BATCH: u32 = 23;
/// Reserves frames for a domain being built: [`MemoryReservation`].
pub const XENMEM_CLAIM_PAGES: u32 = 24;
/// Ranges that devices need identity-mapped.
pub const XENMEM_RESERVED_DEVICE_MEMORY_MAP: u32 = 27;
/// Maps pages of the hypervisor for a domain: [`AcquireResource`].
pub const XENMEM_ACQUIRE_RESOURCE: u32 = 28;

/// The shared page.
pub const XENMAPSPACE_SHARED_INFO: u32 = 0;
/// A frame of the grant table.
pub const XENMAPSPACE_GRANT_TABLE: u32 = 1;
/// Another of the own frames; moves it.
pub const XENMAPSPACE_GMFN: u32 = 2;
/// Several of them.
pub const XENMAPSPACE_GMFN_RANGE: u32 = 3;
/// A frame of another domain; only by [`XENMEM_ADD_TO_PHYSMAP_BATCH`].
pub const XENMAPSPACE_GMFN_FOREIGN: u32 = 4;
/// Device memory; not on x86.
pub const XENMAPSPACE_DEV_MMIO: u32 = 5;
/// Index bit: a status frame of a version 2 table.
pub const XENMAPIDX_GRANT_TABLE_STATUS: u64 = 0x8000_0000;
/// Pages for a device model; not offered.
pub const XENMEM_RESOURCE_IOREQ_SERVER: u16 = 0;
/// Frames of a domain's grant table.
pub const XENMEM_RESOURCE_GRANT_TABLE: u16 = 1;
/// Trace buffer; not offered.
pub const XENMEM_RESOURCE_VMTRACE_BUF: u16 = 2;
/// The grant entries.
pub const XENMEM_RESOURCE_GRANT_TABLE_ID_SHARED: u32 = 0;
/// Version 2 status words.
pub const XENMEM_RESOURCE_GRANT_TABLE_ID_STATUS: u32 = 1;
/// `mem_flags`: reserve only.
pub const XENMEMF_POPULATE_ON_DEMAND: u32 = 1 << 16;
/// `mem_flags`: no other NUMA node.
pub const XENMEMF_EXACT_NODE_REQUEST: u32 = 1 << 17;
/// `mem_flags`: the node is a virtual one.
pub const XENMEMF_VNODE: u32 = 1 << 18;

crate::wire_struct! {
    /// Argument of the reservation calls (`struct xen_memory_reservation`). The result is the number of extents done.
    pub struct MemoryReservation: 32 {
        /// Virtual address of an array of guest frame numbers (`u64`), each the first of an extent.
        0 => pub extent_start: u64,
        /// Elements of that array.
        8 => pub nr_extents: u64,
        /// log2 of the frames in an extent.
        16 => pub extent_order: u32,
        /// `XENMEMF_*`.
        20 => pub mem_flags: u32,
        /// Whose memory.
        24 => pub domid: u16,
    }
}

crate::wire_struct! {
    /// Argument that only names a domain (`struct xen_memory_domain`).
    pub struct MemoryDomain: 2 {
        /// The domain.
        0 => pub domid: u16,
    }
}

crate::wire_struct! {
    /// Argument of [`XENMEM_ADD_TO_PHYSMAP`] (`struct xen_add_to_physmap`).
    pub struct AddToPhysmap: 24 {
        /// Whose address space.
        0 => pub domid: u16,
        /// Number of frames; for the range space only.
        2 => pub size: u16,
        /// `XENMAPSPACE_*`.
        4 => pub space: u32,
        /// Which page of the space.
        8 => pub idx: u64,
        /// Guest frame at which to place it.
        16 => pub gpfn: u64,
    }
}

crate::wire_struct! {
    /// Argument of [`XENMEM_ADD_TO_PHYSMAP_BATCH`] (`struct xen_add_to_physmap_batch`).
    pub struct AddToPhysmapBatch: 32 {
        /// Whose address space.
        0 => pub domid: u16,
        /// `XENMAPSPACE_*`.
        2 => pub space: u16,
        /// Elements of each array.
        4 => pub size: u16,
        /// Owner of the frames, for the foreign space.
        6 => pub foreign_domid: u16,
        /// Virtual address of an array of `u64`: which page of the space.
        8 => pub idxs: u64,
        /// Virtual address of an array of `u64`: guest frames at which to place them.
        16 => pub gpfns: u64,
        /// Virtual address of an array of `i32`: the result of each.
        24 => pub errs: u64,
    }
}

crate::wire_struct! {
    /// Argument of [`XENMEM_REMOVE_FROM_PHYSMAP`] (`struct xen_remove_from_physmap`).
    pub struct RemoveFromPhysmap: 16 {
        /// Whose address space.
        0 => pub domid: u16,
        /// The guest frame that becomes a hole.
        8 => pub gpfn: u64,
    }
}

crate::wire_struct! {
    /// Argument of [`XENMEM_MEMORY_MAP`] (`struct xen_memory_map`).
    pub struct MemoryMap: 16 {
        /// In: room at `buffer`; out: entries written.
        0 => pub nr_entries: u32,
        /// Virtual address of an array of [`E820Entry`], packed.
        8 => pub buffer: u64,
    }
}

crate::wire_struct! {
    /// Argument of [`XENMEM_SET_MEMORY_MAP`] (`struct xen_foreign_memory_map`).
    pub struct ForeignMemoryMap: 24 {
        /// Whose map.
        0 => pub domid: u16,
        /// The map.
        8 => pub map: MemoryMap,
    }
}

crate::wire_struct! {
    /// Argument of [`XENMEM_ACQUIRE_RESOURCE`] (`struct xen_mem_acquire_resource`).
    pub struct AcquireResource: 32 {
        /// Whose resource.
        0 => pub domid: u16,
        /// `XENMEM_RESOURCE_*`; the field is `type` in the header.
        2 => pub kind: u16,
        /// Which one, by kind.
        4 => pub id: u32,
        /// Frames wanted; 0 with no list asks for the size.
        8 => pub nr_frames: u32,
        /// Zero.
        12 => pub pad: u32,
        /// The first frame of the resource to map.
        16 => pub frame: u64,
        /// Virtual address of an array of `u64`: guest frames at which to map; 0 to ask for the size.
        24 => pub frame_list: u64,
    }
}

/// Bytes of an [`E820Entry`] in an array: the entries are packed.
pub const E820_ENTRY_SIZE: usize = 20;

/// An entry of a memory map as firmware gives it: 20 bytes, packed, unlike [`crate::pvh::MemmapEntry`].
///
/// Source: `xen/include/public/hvm/e820.h` at 4.17 names the types; the layout is ACPI 6.5 §15.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct E820Entry {
    /// Guest physical address of the first byte.
    pub addr: u64,
    /// Length in bytes.
    pub size: u64,
    /// As `MEMMAP_*` in [`crate::pvh`].
    pub kind: u32,
}

impl Wire for E820Entry {
    const SIZE: usize = E820_ENTRY_SIZE;

    fn from_bytes(bytes: &[u8]) -> Self {
        Self { addr: u64::from_bytes(bytes), size: u64::from_bytes(&bytes[8..]), kind: u32::from_bytes(&bytes[16..]) }
    }

    fn to_bytes(&self, bytes: &mut [u8]) {
        self.addr.to_bytes(bytes);
        self.size.to_bytes(&mut bytes[8..]);
        self.kind.to_bytes(&mut bytes[16..]);
    }
}
