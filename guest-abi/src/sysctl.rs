// SPDX-License-Identifier: MIT OR Apache-2.0
//! Management of the machine: what it is, which domains there are, what the hypervisor has said.
//!
//! The argument is the virtual address of one structure of [`SYSCTL_SIZE`] bytes: a [`SysctlHeader`],
//! and at [`SYSCTL_ARG`] the operation's own part, which is written back. What is not in this module is
//! ENOSYS; another interface version is EACCES, and a caller without the right to control domains gets
//! EPERM, both before anything else is looked at.
//!
//! Source: `xen/include/public/sysctl.h` at 4.17.

/// The version of these structures that [`SysctlHeader::interface_version`] has to name.
pub const XEN_SYSCTL_INTERFACE_VERSION: u32 = 0x15;
/// Bytes of the whole structure.
pub const SYSCTL_SIZE: usize = 136;
/// Where in it the operation's part begins.
pub const SYSCTL_ARG: usize = 8;

/// Copies out what the hypervisor has written to its log: [`ReadConsole`].
pub const XEN_SYSCTL_READCONSOLE: u32 = 1;
/// Answers a [`PhysInfo`].
pub const XEN_SYSCTL_PHYSINFO: u32 = 3;
/// Answers a [`SchedId`].
pub const XEN_SYSCTL_SCHED_ID: u32 = 4;
/// Answers many [`crate::domctl::GetDomainInfo`]: [`GetDomainInfoList`].
pub const XEN_SYSCTL_GETDOMAININFOLIST: u32 = 6;

crate::wire_struct! {
    /// What every operation begins with (`struct xen_sysctl`).
    pub struct SysctlHeader: 8 {
        /// `XEN_SYSCTL_*`.
        0 => pub cmd: u32,
        /// [`XEN_SYSCTL_INTERFACE_VERSION`].
        4 => pub interface_version: u32,
    }
}

crate::wire_struct! {
    /// Argument of [`XEN_SYSCTL_READCONSOLE`] (`struct xen_sysctl_readconsole`).
    pub struct ReadConsole: 24 {
        /// In: 1 to forget what has been read.
        0 => pub clear: u8,
        /// In: 1 to read from `index` on; 0 from the oldest that is kept.
        1 => pub incremental: u8,
        /// Zero.
        2 => pub pad0: u8,
        /// Zero.
        3 => pub pad1: u8,
        /// In: where to begin, as a count of bytes since the start; what is no longer kept is skipped.
        /// Out: where to go on. Wraps.
        4 => pub index: u32,
        /// Virtual address of room for the bytes.
        8 => pub buffer: u64,
        /// In: how much room. Out: bytes written.
        16 => pub count: u32,
    }
}

/// [`PhysInfo::capabilities`]: domains that are not PV.
pub const XEN_SYSCTL_PHYSCAP_HVM: u32 = 1 << 0;
/// [`PhysInfo::capabilities`]: paging by hardware.
pub const XEN_SYSCTL_PHYSCAP_HAP: u32 = 1 << 3;
/// [`PhysInfo::capabilities`]: grant tables of version 1.
pub const XEN_SYSCTL_PHYSCAP_GNTTAB_V1: u32 = 1 << 8;

crate::wire_struct! {
    /// Answer of [`XEN_SYSCTL_PHYSINFO`] (`struct xen_sysctl_physinfo`).
    pub struct PhysInfo: 112 {
        /// 1.
        0 => pub threads_per_core: u32,
        /// CPUs of the machine.
        4 => pub cores_per_socket: u32,
        /// CPUs that run domains.
        8 => pub nr_cpus: u32,
        /// The highest number of one.
        12 => pub max_cpu_id: u32,
        /// 1.
        16 => pub nr_nodes: u32,
        /// 0.
        20 => pub max_node_id: u32,
        /// The TSC's frequency in kHz.
        24 => pub cpu_khz: u32,
        /// `XEN_SYSCTL_PHYSCAP_*`.
        28 => pub capabilities: u32,
        /// 0.
        32 => pub arch_capabilities: u32,
        /// Zero.
        36 => pub pad: u32,
        /// Frames of RAM.
        40 => pub total_pages: u64,
        /// Frames that are free.
        48 => pub free_pages: u64,
        /// Those of them that still have to be cleaned.
        56 => pub scrub_pages: u64,
        /// Zero.
        64 => pub outstanding_pages: u64,
        /// The highest frame of RAM.
        72 => pub max_mfn: u64,
        /// CPUID 1 EDX, 0x80000001 EDX, zero, zero, 1 ECX, zero, 0x80000001 ECX, 7 EBX.
        80 => pub hw_cap: [u32; 8],
    }
}

crate::wire_struct! {
    /// Answer of [`XEN_SYSCTL_SCHED_ID`] (`struct xen_sysctl_sched_id`).
    pub struct SchedId: 4 {
        /// [`crate::domctl::XEN_SCHEDULER_CREDIT`].
        0 => pub sched_id: u32,
    }
}

crate::wire_struct! {
    /// Argument of [`XEN_SYSCTL_GETDOMAININFOLIST`] (`struct xen_sysctl_getdomaininfolist`).
    pub struct GetDomainInfoList: 24 {
        /// In: the lowest number of interest.
        0 => pub first_domain: u16,
        /// In: room at `buffer`, in elements.
        4 => pub max_domains: u32,
        /// Virtual address of an array of [`crate::domctl::GetDomainInfo`].
        8 => pub buffer: u64,
        /// Out: elements written, by rising number.
        16 => pub num_domains: u32,
    }
}
