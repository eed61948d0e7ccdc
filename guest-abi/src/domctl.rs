// SPDX-License-Identifier: MIT OR Apache-2.0
//! Management of a domain: made, sized, started, looked at, ended.
//!
//! The argument is the virtual address of one structure of [`DOMCTL_SIZE`] bytes: a [`DomctlHeader`], and
//! at [`DOMCTL_ARG`] the operation's own part. The hypervisor writes the header back where the operation
//! says so, and the own part of those that answer something. What is not in this module is ENOSYS; another
//! interface version is EACCES, and a caller without the right to control domains gets EPERM, both before
//! anything else is looked at.
//!
//! Source: `xen/include/public/domctl.h`, `arch-x86/xen.h` and `arch-x86/xen-x86_64.h` at 4.17.

/// The version of these structures that [`DomctlHeader::interface_version`] has to name.
pub const XEN_DOMCTL_INTERFACE_VERSION: u32 = 0x15;
/// Bytes of the whole structure.
pub const DOMCTL_SIZE: usize = 144;
/// Where in it the operation's part begins.
pub const DOMCTL_ARG: usize = 16;

/// Makes a domain without memory, paused once: [`CreateDomain`]. The header's domain is the number
/// wanted, or 0 or a reserved one for any; the number given is written back.
/// Errors: EEXIST (number taken), EINVAL (a field), ENOMEM, ENOSPC (as many domains as there can be).
pub const XEN_DOMCTL_CREATEDOMAIN: u32 = 1;
/// Ends a domain and takes back all that it had. Takes up again by itself until that is done.
/// Errors: ESRCH, EINVAL (the caller or the domain of the devices).
pub const XEN_DOMCTL_DESTROYDOMAIN: u32 = 2;
/// Stops a domain's vCPUs; when the call returns none runs. Counted: each needs its own unpause.
/// Errors: ESRCH, EINVAL (the caller).
pub const XEN_DOMCTL_PAUSEDOMAIN: u32 = 3;
/// Takes one pause back. Errors: ESRCH, EINVAL (it is not paused).
pub const XEN_DOMCTL_UNPAUSEDOMAIN: u32 = 4;
/// Answers a [`GetDomainInfo`]. Errors: ESRCH.
pub const XEN_DOMCTL_GETDOMAININFO: u32 = 5;
/// Says on which CPUs a vCPU may run: [`VcpuAffinity`]. Errors: ESRCH, ENOENT (vCPU), EINVAL (no CPU left).
pub const XEN_DOMCTL_SETVCPUAFFINITY: u32 = 9;
/// Limits a domain's memory: [`MaxMem`]. Errors: ESRCH.
pub const XEN_DOMCTL_MAX_MEM: u32 = 11;
/// Gives a vCPU its registers: [`VcpuContext`]. Errors: ESRCH, ENOENT (vCPU), EBUSY (the domain is not
/// paused), EINVAL (a state in which it cannot be started).
pub const XEN_DOMCTL_SETVCPUCONTEXT: u32 = 12;
/// Copies them out: [`VcpuContext`]. Errors: ESRCH, ENOENT (vCPU), EBUSY (not paused).
pub const XEN_DOMCTL_GETVCPUCONTEXT: u32 = 13;
/// Answers a [`GetVcpuInfo`]. Errors: ESRCH, ENOENT (vCPU).
pub const XEN_DOMCTL_GETVCPUINFO: u32 = 14;
/// Confirms the number of vCPUs: [`MaxVcpus`]. Errors: ESRCH, EINVAL (another number than the domain
/// was made with).
pub const XEN_DOMCTL_MAX_VCPUS: u32 = 15;
/// Reads or sets a domain's share of the CPUs: [`SchedulerOp`]. Errors: ESRCH, EINVAL (scheduler, value),
/// EOPNOTSUPP (per vCPU).
pub const XEN_DOMCTL_SCHEDULER_OP: u32 = 16;

crate::wire_struct! {
    /// What every operation begins with (`struct xen_domctl`).
    pub struct DomctlHeader: 16 {
        /// `XEN_DOMCTL_*`.
        0 => pub cmd: u32,
        /// [`XEN_DOMCTL_INTERFACE_VERSION`].
        4 => pub interface_version: u32,
        /// The domain meant.
        8 => pub domain: u16,
        /// Zero.
        10 => pub pad: [u16; 3],
    }
}

/// [`CreateDomain::flags`]: not a PV domain. Required.
pub const XEN_DOMCTL_CDF_HVM: u32 = 1 << 0;
/// [`CreateDomain::flags`]: paging by hardware. Required.
pub const XEN_DOMCTL_CDF_HAP: u32 = 1 << 1;
/// [`CreateDomain::emulation_flags`]: the local APIC. Required, and nothing else is emulated.
pub const XEN_X86_EMU_LAPIC: u32 = 1 << 0;

crate::wire_struct! {
    /// Argument of [`XEN_DOMCTL_CREATEDOMAIN`] (`struct xen_domctl_createdomain`).
    pub struct CreateDomain: 64 {
        /// Security label: 0.
        0 => pub ssidref: u32,
        /// Any 16 bytes that the toolstack knows the domain by.
        4 => pub handle: [u8; 16],
        /// [`XEN_DOMCTL_CDF_HVM`] and [`XEN_DOMCTL_CDF_HAP`].
        20 => pub flags: u32,
        /// 0.
        24 => pub iommu_opts: u32,
        /// Its vCPUs, 1 to 32.
        28 => pub max_vcpus: u32,
        /// Its highest event-channel port; more than there are is taken as all.
        32 => pub max_evtchn_port: u32,
        /// Frames that its grant table may have, at most 64; negative for that.
        36 => pub max_grant_frames: i32,
        /// Frames of 512 mappings of others' grants, at most 32; negative for that.
        40 => pub max_maptrack_frames: i32,
        /// The grant table's version in the low four bits: 1.
        44 => pub grant_opts: u32,
        /// 0.
        48 => pub vmtrace_size: u32,
        /// 0.
        52 => pub cpupool_id: u32,
        /// [`XEN_X86_EMU_LAPIC`].
        56 => pub emulation_flags: u32,
        /// 0.
        60 => pub misc_flags: u32,
    }
}

/// [`GetDomainInfo::flags`]: it is being destroyed, or others still map its memory.
pub const XEN_DOMINF_DYING: u32 = 1 << 0;
/// [`GetDomainInfo::flags`]: not a PV domain.
pub const XEN_DOMINF_HVM_GUEST: u32 = 1 << 1;
/// [`GetDomainInfo::flags`]: it has shut down; why is above [`XEN_DOMINF_SHUTDOWNSHIFT`].
pub const XEN_DOMINF_SHUTDOWN: u32 = 1 << 2;
/// [`GetDomainInfo::flags`]: paused by [`XEN_DOMCTL_PAUSEDOMAIN`], or not started yet.
pub const XEN_DOMINF_PAUSED: u32 = 1 << 3;
/// [`GetDomainInfo::flags`]: all its vCPUs sleep.
pub const XEN_DOMINF_BLOCKED: u32 = 1 << 4;
/// [`GetDomainInfo::flags`]: one of its vCPUs is running.
pub const XEN_DOMINF_RUNNING: u32 = 1 << 5;
/// [`GetDomainInfo::flags`]: paging by hardware.
pub const XEN_DOMINF_HAP: u32 = 1 << 8;
/// Mask of the `SHUTDOWN_*` reason, after the shift; 255 for none.
pub const XEN_DOMINF_SHUTDOWNMASK: u32 = 255;
/// Where the reason is.
pub const XEN_DOMINF_SHUTDOWNSHIFT: u32 = 16;

crate::wire_struct! {
    /// Answer of [`XEN_DOMCTL_GETDOMAININFO`], and an element of
    /// [`crate::sysctl::XEN_SYSCTL_GETDOMAININFOLIST`] (`struct xen_domctl_getdomaininfo`).
    pub struct GetDomainInfo: 112 {
        /// Its number.
        0 => pub domain: u16,
        /// Zero.
        2 => pub pad1: u16,
        /// `XEN_DOMINF_*`.
        4 => pub flags: u32,
        /// Frames of RAM that it holds, also those that others still map after it gave them up.
        8 => pub tot_pages: u64,
        /// Frames of RAM that it may hold.
        16 => pub max_pages: u64,
        /// Zero.
        24 => pub outstanding_pages: u64,
        /// Zero.
        32 => pub shr_pages: u64,
        /// Zero.
        40 => pub paged_pages: u64,
        /// All ones: the frame has no place before the domain gives it one.
        48 => pub shared_info_frame: u64,
        /// Nanoseconds that its vCPUs have run.
        56 => pub cpu_time: u64,
        /// vCPUs that are up.
        64 => pub nr_online_vcpus: u32,
        /// Its vCPUs less one.
        68 => pub max_vcpu_id: u32,
        /// Zero.
        72 => pub ssidref: u32,
        /// As it was made with.
        76 => pub handle: [u8; 16],
        /// Zero.
        92 => pub cpupool: u32,
        /// Bits of a guest physical address.
        96 => pub gpaddr_bits: u8,
        /// Zero.
        97 => pub pad2: [u8; 7],
        /// [`XEN_X86_EMU_LAPIC`].
        104 => pub emulation_flags: u32,
        /// Zero.
        108 => pub misc_flags: u32,
    }
}

crate::wire_struct! {
    /// A set of CPUs in the caller's memory (`struct xenctl_bitmap`).
    pub struct CpuBitmap: 16 {
        /// Virtual address of its bytes.
        0 => pub bitmap: u64,
        /// Bits that it has.
        8 => pub nr_bits: u32,
    }
}

/// [`VcpuAffinity::flags`]: the CPUs on which the vCPU may run.
pub const XEN_VCPUAFFINITY_HARD: u32 = 1 << 0;
/// [`VcpuAffinity::flags`]: the CPUs on which it should run; accepted, and the same as where it may.
pub const XEN_VCPUAFFINITY_SOFT: u32 = 1 << 1;

crate::wire_struct! {
    /// Argument of [`XEN_DOMCTL_SETVCPUAFFINITY`] (`struct xen_domctl_vcpuaffinity`). What is in force
    /// afterwards is written to the bitmaps that the flags name.
    pub struct VcpuAffinity: 40 {
        /// The vCPU.
        0 => pub vcpu: u32,
        /// `XEN_VCPUAFFINITY_*`.
        4 => pub flags: u32,
        /// For [`XEN_VCPUAFFINITY_HARD`].
        8 => pub cpumap_hard: CpuBitmap,
        /// For [`XEN_VCPUAFFINITY_SOFT`].
        24 => pub cpumap_soft: CpuBitmap,
    }
}

crate::wire_struct! {
    /// Argument of [`XEN_DOMCTL_MAX_MEM`] (`struct xen_domctl_max_mem`).
    pub struct MaxMem: 8 {
        /// KiB of RAM that it may hold; less than it holds only keeps it from getting more.
        0 => pub max_memkb: u64,
    }
}

crate::wire_struct! {
    /// Argument of [`XEN_DOMCTL_SETVCPUCONTEXT`] and [`XEN_DOMCTL_GETVCPUCONTEXT`]
    /// (`struct xen_domctl_vcpucontext`).
    pub struct VcpuContext: 16 {
        /// The vCPU.
        0 => pub vcpu: u32,
        /// Virtual address of [`VCPU_CONTEXT_SIZE`] bytes; see there.
        8 => pub ctxt: u64,
    }
}

/// Bytes of a `struct vcpu_guest_context`. It is mostly about PV domains; what is used of it is at
/// [`VCPU_CONTEXT_FLAGS`], [`VCPU_CONTEXT_USER_REGS`], [`VCPU_CONTEXT_CTRLREG`] and, out only,
/// [`VCPU_CONTEXT_FS_BASE`]. The rest is ignored and read as zero.
///
/// A vCPU can be set to what PVH kernels are entered in and to nothing else: `ctrlreg[0]` 0 or PE, all
/// other `ctrlreg` 0, `rflags` without IF and VM; segments are flat 32-bit ones whatever the selectors say.
/// General-purpose registers, RIP below 4 GiB and RSP are the caller's.
pub const VCPU_CONTEXT_SIZE: usize = 5168;
/// Offset of the flags, `u64`: [`VGCF_ONLINE`].
pub const VCPU_CONTEXT_FLAGS: usize = 512;
/// Offset of the [`CpuUserRegs`].
pub const VCPU_CONTEXT_USER_REGS: usize = 520;
/// Offset of CR0 to CR7, `u64` each.
pub const VCPU_CONTEXT_CTRLREG: usize = 4984;
/// Offset of the bases of FS, of GS in the kernel and of GS in user mode, `u64` each.
pub const VCPU_CONTEXT_FS_BASE: usize = 5144;
/// The vCPU is up: it runs as soon as its domain does.
pub const VGCF_ONLINE: u64 = 1 << 5;

crate::wire_struct! {
    /// A vCPU's registers (`struct cpu_user_regs`).
    pub struct CpuUserRegs: 200 {
        /// R15.
        0 => pub r15: u64,
        /// R14.
        8 => pub r14: u64,
        /// R13.
        16 => pub r13: u64,
        /// R12.
        24 => pub r12: u64,
        /// RBP.
        32 => pub rbp: u64,
        /// RBX: where a PVH kernel finds its start info.
        40 => pub rbx: u64,
        /// R11.
        48 => pub r11: u64,
        /// R10.
        56 => pub r10: u64,
        /// R9.
        64 => pub r9: u64,
        /// R8.
        72 => pub r8: u64,
        /// RAX.
        80 => pub rax: u64,
        /// RCX.
        88 => pub rcx: u64,
        /// RDX.
        96 => pub rdx: u64,
        /// RSI.
        104 => pub rsi: u64,
        /// RDI.
        112 => pub rdi: u64,
        /// Zero.
        120 => pub error_code: u32,
        /// Zero.
        124 => pub entry_vector: u32,
        /// RIP.
        128 => pub rip: u64,
        /// CS selector.
        136 => pub cs: u16,
        /// Zero.
        138 => pub pad0: u16,
        /// Zero.
        140 => pub saved_upcall_mask: u8,
        /// Zero.
        141 => pub pad1: [u8; 3],
        /// RFLAGS.
        144 => pub rflags: u64,
        /// RSP.
        152 => pub rsp: u64,
        /// SS selector.
        160 => pub ss: u16,
        /// Zero.
        162 => pub pad2: [u16; 3],
        /// ES selector.
        168 => pub es: u16,
        /// Zero.
        170 => pub pad3: [u16; 3],
        /// DS selector.
        176 => pub ds: u16,
        /// Zero.
        178 => pub pad4: [u16; 3],
        /// FS selector.
        184 => pub fs: u16,
        /// Zero.
        186 => pub pad5: [u16; 3],
        /// GS selector.
        192 => pub gs: u16,
        /// Zero.
        194 => pub pad6: [u16; 3],
    }
}

crate::wire_struct! {
    /// Argument of [`XEN_DOMCTL_GETVCPUINFO`] (`struct xen_domctl_getvcpuinfo`).
    pub struct GetVcpuInfo: 24 {
        /// In: the vCPU.
        0 => pub vcpu: u32,
        /// Out: 1 if it is up.
        4 => pub online: u8,
        /// Out: 1 if it sleeps.
        5 => pub blocked: u8,
        /// Out: 1 if it is on a CPU.
        6 => pub running: u8,
        /// Out: nanoseconds that it has run.
        8 => pub cpu_time: u64,
        /// Out: the CPU on which it runs or last ran.
        16 => pub cpu: u32,
    }
}

crate::wire_struct! {
    /// Argument of [`XEN_DOMCTL_MAX_VCPUS`] (`struct xen_domctl_max_vcpus`).
    pub struct MaxVcpus: 4 {
        /// As in [`CreateDomain::max_vcpus`].
        0 => pub max: u32,
    }
}

/// [`SchedulerOp::sched_id`]: what weight and cap mean here is what they mean to Xen's credit scheduler.
pub const XEN_SCHEDULER_CREDIT: u32 = 5;
/// [`SchedulerOp::cmd`]: sets weight and cap of the domain.
pub const XEN_DOMCTL_SCHEDOP_PUTINFO: u32 = 0;
/// [`SchedulerOp::cmd`]: reads them.
pub const XEN_DOMCTL_SCHEDOP_GETINFO: u32 = 1;

crate::wire_struct! {
    /// Argument of [`XEN_DOMCTL_SCHEDULER_OP`] (`struct xen_domctl_scheduler_op`).
    pub struct SchedulerOp: 24 {
        /// [`XEN_SCHEDULER_CREDIT`].
        0 => pub sched_id: u32,
        /// `XEN_DOMCTL_SCHEDOP_*`.
        4 => pub cmd: u32,
        /// Share of the CPUs against that of others, 1 to 65535; 256 to begin with. 0 leaves it.
        8 => pub weight: u16,
        /// At most so many hundredths of one CPU; 0 for no limit, all ones leaves it.
        10 => pub cap: u16,
        /// Room of other schedulers' parameters.
        12 => pub unused: [u32; 3],
    }
}
