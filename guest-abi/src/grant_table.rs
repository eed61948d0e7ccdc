// SPDX-License-Identifier: MIT OR Apache-2.0
//! Grant tables: entries of version 1, operations and their status codes.
//!
//! A grant is an entry that the granting domain writes in memory shared with the hypervisor: who may use
//! which frame, and how. The operations take an array and a count; the hypercall itself returns 0 once
//! it has processed the array, and each element has its own status. Version 2 is not offered.
//!
//! Addresses to map at are guest physical, since all guests are translated.
//!
//! Source: `xen/include/public/grant_table.h` at 4.17.

/// Size of a version 1 entry; 512 in a frame.
pub const GRANT_ENTRY_SIZE: usize = 8;
/// Version 1 entries in a frame of the table.
pub const GRANT_ENTRIES_PER_FRAME: u32 = 512;
/// References below this are never handed out by a kernel (`GNTTAB_NR_RESERVED_ENTRIES`).
pub const GRANT_RESERVED_ENTRIES: u32 = 8;
/// The reference of the console ring.
pub const GRANT_RESERVED_CONSOLE: u32 = 0;
/// The reference of the xenstore ring.
pub const GRANT_RESERVED_XENSTORE: u32 = 1;

crate::wire_struct! {
    /// A version 1 entry (`struct grant_entry_v1`). It is shared: access flags and domid together, atomically.
    pub struct GrantEntryV1: 8 {
        /// `GTF_*`.
        0 => pub flags: u16,
        /// The domain that may use the grant.
        2 => pub domid: u16,
        /// Guest frame that is granted.
        4 => pub frame: u32,
    }
}

/// The entry grants nothing.
pub const GTF_INVALID: u16 = 0;
/// The peer may map or copy.
pub const GTF_PERMIT_ACCESS: u16 = 1;
/// The peer may give a frame; not offered.
pub const GTF_ACCEPT_TRANSFER: u16 = 2;
/// Refers to another grant; version 2 only.
pub const GTF_TRANSITIVE: u16 = 3;
/// The type, one of the four above.
pub const GTF_TYPE_MASK: u16 = 3;
/// The peer may only read.
pub const GTF_READONLY: u16 = 1 << 2;
/// Set by the hypervisor while the frame is mapped or read.
pub const GTF_READING: u16 = 1 << 3;
/// Set by the hypervisor while the frame is mapped writable or written.
pub const GTF_WRITING: u16 = 1 << 4;
/// Cache attribute.
pub const GTF_PWT: u16 = 1 << 5;
/// Cache attribute.
pub const GTF_PCD: u16 = 1 << 6;
/// Cache attribute.
pub const GTF_PAT: u16 = 1 << 7;
/// Version 2 only.
pub const GTF_SUB_PAGE: u16 = 1 << 8;

/// Maps grants: [`MapGrantRef`].
pub const GNTTABOP_MAP_GRANT_REF: u32 = 0;
/// Unmaps grants: [`UnmapGrantRef`].
pub const GNTTABOP_UNMAP_GRANT_REF: u32 = 1;
/// Not used by translated guests: [`SetupTable`].
pub const GNTTABOP_SETUP_TABLE: u32 = 2;
/// Debug output; not offered.
pub const GNTTABOP_DUMP_TABLE: u32 = 3;
/// Gives a frame away; not offered.
pub const GNTTABOP_TRANSFER: u32 = 4;
/// Copies between grants and own frames: [`GrantCopy`].
pub const GNTTABOP_COPY: u32 = 5;
/// Size of the table: [`QuerySize`].
pub const GNTTABOP_QUERY_SIZE: u32 = 6;
/// Not for translated guests.
pub const GNTTABOP_UNMAP_AND_REPLACE: u32 = 7;
/// Chooses the entry format: [`SetVersion`].
pub const GNTTABOP_SET_VERSION: u32 = 8;
/// Version 2 only.
pub const GNTTABOP_GET_STATUS_FRAMES: u32 = 9;
/// The entry format in use: [`GetVersion`].
pub const GNTTABOP_GET_VERSION: u32 = 10;
/// Exchanges two entries: [`SwapGrantRef`].
pub const GNTTABOP_SWAP_GRANT_REF: u32 = 11;
/// Cache maintenance; not offered.
pub const GNTTABOP_CACHE_FLUSH: u32 = 12;

crate::wire_struct! {
    /// Element of [`GNTTABOP_MAP_GRANT_REF`].
    pub struct MapGrantRef: 32 {
        /// Guest physical address at which to map; a hole.
        0 => pub host_addr: u64,
        /// `GNTMAP_*`.
        8 => pub flags: u32,
        /// The grant; the field is `ref` in the header.
        12 => pub reference: u32,
        /// The granter.
        16 => pub dom: u16,
        /// `GNTST_*`; written by the hypervisor.
        18 => pub status: i16,
        /// Names the mapping for the unmap; written by the hypervisor.
        20 => pub handle: u32,
        /// Bus address for a device; written by the hypervisor.
        24 => pub dev_bus_addr: u64,
    }
}

crate::wire_struct! {
    /// Element of [`GNTTABOP_UNMAP_GRANT_REF`].
    pub struct UnmapGrantRef: 24 {
        /// Guest physical address of the mapping; 0 for none.
        0 => pub host_addr: u64,
        /// Bus address; 0 for none.
        8 => pub dev_bus_addr: u64,
        /// The mapping.
        16 => pub handle: u32,
        /// `GNTST_*`; written by the hypervisor.
        20 => pub status: i16,
    }
}

crate::wire_struct! {
    /// Argument of [`GNTTABOP_SETUP_TABLE`].
    pub struct SetupTable: 24 {
        /// Whose table.
        0 => pub dom: u16,
        /// Frames wanted.
        4 => pub nr_frames: u32,
        /// `GNTST_*`; written by the hypervisor.
        8 => pub status: i16,
        /// Virtual address of an array of frame numbers.
        16 => pub frame_list: u64,
    }
}

crate::wire_struct! {
    /// One side of a [`GrantCopy`].
    pub struct CopyPtr: 16 {
        /// A guest frame, or a grant reference in the low 32 bits if the flag says so.
        0 => pub frame: u64,
        /// Whose frame or grant.
        8 => pub domid: u16,
        /// First byte in the frame.
        10 => pub offset: u16,
    }
}

crate::wire_struct! {
    /// Element of [`GNTTABOP_COPY`].
    pub struct GrantCopy: 40 {
        /// From where.
        0 => pub source: CopyPtr,
        /// To where.
        16 => pub dest: CopyPtr,
        /// Bytes; both ends stay in their frame.
        32 => pub len: u16,
        /// `GNTCOPY_*`.
        34 => pub flags: u16,
        /// `GNTST_*`; written by the hypervisor.
        36 => pub status: i16,
    }
}

crate::wire_struct! {
    /// Argument of [`GNTTABOP_QUERY_SIZE`].
    pub struct QuerySize: 16 {
        /// Whose table.
        0 => pub dom: u16,
        /// Frames in use; written by the hypervisor.
        4 => pub nr_frames: u32,
        /// Frames it may grow to; written by the hypervisor.
        8 => pub max_nr_frames: u32,
        /// `GNTST_*`; written by the hypervisor.
        12 => pub status: i16,
    }
}

crate::wire_struct! {
    /// Argument of [`GNTTABOP_SET_VERSION`].
    pub struct SetVersion: 4 {
        /// Wanted; the hypervisor writes what is in use.
        0 => pub version: u32,
    }
}

crate::wire_struct! {
    /// Argument of [`GNTTABOP_GET_VERSION`].
    pub struct GetVersion: 8 {
        /// Whose table.
        0 => pub dom: u16,
        /// Zero.
        2 => pub pad: u16,
        /// In use; written by the hypervisor.
        4 => pub version: u32,
    }
}

crate::wire_struct! {
    /// Element of [`GNTTABOP_SWAP_GRANT_REF`].
    pub struct SwapGrantRef: 12 {
        /// One entry.
        0 => pub ref_a: u32,
        /// The other.
        4 => pub ref_b: u32,
        /// `GNTST_*`; written by the hypervisor.
        8 => pub status: i16,
    }
}

/// Map for a device: give a bus address.
pub const GNTMAP_DEVICE_MAP: u32 = 1 << 0;
/// Map for the CPU.
pub const GNTMAP_HOST_MAP: u32 = 1 << 1;
/// Map read-only.
pub const GNTMAP_READONLY: u32 = 1 << 2;
/// PV only.
pub const GNTMAP_APPLICATION_MAP: u32 = 1 << 3;
/// PV only.
pub const GNTMAP_CONTAINS_PTE: u32 = 1 << 4;
/// The source is a grant.
pub const GNTCOPY_SOURCE_GREF: u16 = 1 << 0;
/// The destination is a grant.
pub const GNTCOPY_DEST_GREF: u16 = 1 << 1;
/// No mapping; not in the header, by convention of the kernels.
pub const INVALID_HANDLE: u32 = u32::MAX;

/// Done.
pub const GNTST_OKAY: i16 = 0;
/// Failed for another reason.
pub const GNTST_GENERAL_ERROR: i16 = -1;
/// No such domain.
pub const GNTST_BAD_DOMAIN: i16 = -2;
/// No such grant, or it grants nothing to the caller.
pub const GNTST_BAD_GNTREF: i16 = -3;
/// No such mapping.
pub const GNTST_BAD_HANDLE: i16 = -4;
/// The address to map at is not usable.
pub const GNTST_BAD_VIRT_ADDR: i16 = -5;
/// The bus address is not usable.
pub const GNTST_BAD_DEV_ADDR: i16 = -6;
/// No room to record the mapping.
pub const GNTST_NO_DEVICE_SPACE: i16 = -7;
/// The grant does not allow it.
pub const GNTST_PERMISSION_DENIED: i16 = -8;
/// The frame is not usable.
pub const GNTST_BAD_PAGE: i16 = -9;
/// Offset or length leaves the frame.
pub const GNTST_BAD_COPY_ARG: i16 = -10;
/// Address out of range.
pub const GNTST_ADDRESS_TOO_BIG: i16 = -11;
/// Try again later; kernels retry for minutes.
pub const GNTST_EAGAIN: i16 = -12;
/// The table is full.
pub const GNTST_NO_SPACE: i16 = -13;
