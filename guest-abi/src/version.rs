// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the hypervisor says of itself, and the feature bits.
//!
//! The command is in the first argument, a buffer's virtual address in the second. Linux uses the result
//! of [`XENVER_VERSION`] as a number even when it is negative.
//!
//! Source: `xen/include/public/version.h` and `features.h` at 4.17.

/// Result: major << 16 | minor.
pub const XENVER_VERSION: u32 = 0;
/// Out: [`EXTRAVERSION_LEN`] bytes, NUL-terminated.
pub const XENVER_EXTRAVERSION: u32 = 1;
/// Out: [`COMPILE_INFO_LEN`] bytes, four strings.
pub const XENVER_COMPILE_INFO: u32 = 2;
/// Out: [`CAPABILITIES_INFO_LEN`] bytes, NUL-terminated.
pub const XENVER_CAPABILITIES: u32 = 3;
/// Out: [`CHANGESET_INFO_LEN`] bytes, NUL-terminated.
pub const XENVER_CHANGESET: u32 = 4;
/// Out: a `u64`, start of the reserved addresses; 0 for PVH.
pub const XENVER_PLATFORM_PARAMETERS: u32 = 5;
/// [`FeatureInfo`].
pub const XENVER_GET_FEATURES: u32 = 6;
/// Result: 4096.
pub const XENVER_PAGESIZE: u32 = 7;
/// Out: the domain's UUID, 16 bytes.
pub const XENVER_GUEST_HANDLE: u32 = 8;
/// Out: 1024 bytes, NUL-terminated.
pub const XENVER_COMMANDLINE: u32 = 9;
/// Out: a counted string.
pub const XENVER_BUILD_ID: u32 = 10;

/// Size of `xen_extraversion_t`.
pub const EXTRAVERSION_LEN: usize = 16;
/// Size of `struct xen_compile_info`: compiler 64, by 16, domain 32, date 32 bytes.
pub const COMPILE_INFO_LEN: usize = 144;
/// Size of `xen_capabilities_info_t`.
pub const CAPABILITIES_INFO_LEN: usize = 1024;
/// Size of `xen_changeset_info_t`.
pub const CHANGESET_INFO_LEN: usize = 64;
/// Size of `xen_commandline_t`.
pub const COMMANDLINE_LEN: usize = 1024;
/// Size of `xen_domain_handle_t`.
pub const DOMAIN_HANDLE_LEN: usize = 16;
/// The major version that the interface is of.
pub const XEN_MAJOR: u32 = 4;
/// The minor version that the interface is of.
pub const XEN_MINOR: u32 = 17;

crate::wire_struct! {
    /// Argument of [`XENVER_GET_FEATURES`] (`struct xen_feature_info`).
    pub struct FeatureInfo: 8 {
        /// Which 32 features; below [`XENFEAT_NR_SUBMAPS`].
        0 => pub submap_idx: u32,
        /// Bit n: feature n; written by the hypervisor.
        4 => pub submap: u32,
    }
}

/// Bit number: guests write their page tables themselves.
pub const XENFEAT_WRITABLE_PAGE_TABLES: u32 = 0;
/// Bit number: guests write their descriptor tables themselves.
pub const XENFEAT_WRITABLE_DESCRIPTOR_TABLES: u32 = 1;
/// Bit number: guest frames are translated: mandatory for PVH.
pub const XENFEAT_AUTO_TRANSLATED_PHYSMAP: u32 = 2;
/// Bit number: PV only.
pub const XENFEAT_SUPERVISOR_MODE_KERNEL: u32 = 3;
/// Bit number: PV only.
pub const XENFEAT_PAE_PGDIR_ABOVE_4GB: u32 = 4;
/// Bit number: PV only.
pub const XENFEAT_MMU_PT_UPDATE_PRESERVE_AD: u32 = 5;
/// Bit number: PV only.
pub const XENFEAT_HIGHMEM_ASSIST: u32 = 6;
/// Bit number: PV only.
pub const XENFEAT_GNTTAB_MAP_AVAIL_BITS: u32 = 7;
/// Bit number: upcalls may come by a vector.
pub const XENFEAT_HVM_CALLBACK_VECTOR: u32 = 8;
/// Bit number: the PV clock is usable: Linux has no Xen timer without it.
pub const XENFEAT_HVM_SAFE_PVCLOCK: u32 = 9;
/// Bit number: interrupts may come as events: clear for PVH.
pub const XENFEAT_HVM_PIRQS: u32 = 10;
/// Bit number: the caller is the control domain.
pub const XENFEAT_DOM0: u32 = 11;
/// Bit number: virtual NUMA nodes.
pub const XENFEAT_MEMORY_OP_VNODE_SUPPORTED: u32 = 13;
/// Bit number: the RSDP may be anywhere.
pub const XENFEAT_LINUX_RSDP_UNRESTRICTED: u32 = 15;
/// Bit number: guest and machine frames differ.
pub const XENFEAT_NOT_DIRECT_MAPPED: u32 = 16;
/// Bit number: guest frames are machine frames.
pub const XENFEAT_DIRECT_MAPPED: u32 = 17;
/// Words of feature bits.
pub const XENFEAT_NR_SUBMAPS: u32 = 1;
