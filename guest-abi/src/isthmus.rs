// SPDX-License-Identifier: MIT OR Apache-2.0
//! The calls of Isthmus's own, behind one number ([`crate::hypercall::HYPERVISOR_ISTHMUS`]).
//!
//! The first argument is the operation, the second the virtual address of its structure. Every
//! structure begins with the version of the interface that its caller was built for: another one
//! than the hypervisor's is answered EACCES before anything else is looked at, as management calls
//! do. [`ISTHMUS_VERSION`] itself takes no structure, so that it can be asked by anybody of any
//! version. An operation that is not known is ENOSYS.

use crate::wire_struct;

/// The version of this interface. It changes whenever a structure does.
pub const INTERFACE_VERSION: u32 = 2;

/// Result: [`INTERFACE_VERSION`] of the hypervisor. For everybody.
pub const ISTHMUS_VERSION: u32 = 0;
/// [`VcpuCounters`]. A domain may ask for itself, one with control of domains for any.
pub const ISTHMUS_VCPU_COUNTERS: u32 = 1;
/// [`HostInfo`]. For a domain with control of domains.
pub const ISTHMUS_HOST_INFO: u32 = 2;
/// [`DomainCopy`]. For a domain with control of domains.
pub const ISTHMUS_DOMAIN_COPY: u32 = 3;
/// [`ConsoleRead`]. For a domain with control of domains.
pub const ISTHMUS_CONSOLE_READ: u32 = 4;
/// [`PcpuCounters`]. For a domain with control of domains.
pub const ISTHMUS_PCPU_COUNTERS: u32 = 5;
/// [`GrantStats`]. A domain may ask for itself, one with control of domains for any.
pub const ISTHMUS_GRANT_STATS: u32 = 6;

/// Flag in [`VcpuCounters::flags`], in: the domain with the lowest number from `domid` on is meant,
/// and `domid` is set to its number.
pub const COUNTERS_NEXT_DOMAIN: u32 = 1 << 0;
/// Shift in [`VcpuCounters::flags`], out: the vCPU's run state, 0 down, 1 blocked, 2 runnable.
pub const COUNTERS_STATE_SHIFT: u32 = 8;
/// Mask of the run state, after the shift.
pub const COUNTERS_STATE_MASK: u32 = 0x3;

wire_struct! {
    /// Argument of [`ISTHMUS_VCPU_COUNTERS`]: what a vCPU has cost so far.
    ///
    /// Counters never go back while the domain lives and start at 0 with it. Exits and ticks of one
    /// reason belong together; ticks are those of the host's TSC from an exit to the next entry.
    /// Errors: ESRCH no such domain, ENOENT no such vCPU, EPERM not the caller's to know, EFAULT.
    pub struct VcpuCounters: 56 {
        /// In: [`INTERFACE_VERSION`].
        0 => pub interface_version: u32,
        /// In: the domain, or `DOMID_SELF`. Out: its number.
        4 => pub domid: u16,
        /// Out: how many vCPUs the domain has.
        6 => pub nr_vcpus: u16,
        /// In: the vCPU.
        8 => pub vcpu: u32,
        /// In and out: [`COUNTERS_NEXT_DOMAIN`], [`COUNTERS_STATE_SHIFT`].
        12 => pub flags: u32,
        /// In: the room in `exits` and in `ticks`, in elements. Out: how many reasons there are, of
        /// which as many as there was room for are written.
        16 => pub nr_reasons: u32,
        /// In: the room in `hypercalls`. Out: how many hypercall numbers are told apart.
        20 => pub nr_hypercalls: u32,
        /// In: address of an array of `u64`: exits by reason, see [`REASON_NAMES`].
        24 => pub exits: u64,
        /// In: address of an array of `u64`: ticks by reason.
        32 => pub ticks: u64,
        /// In: address of an array of `u64`: hypercalls by number; the last element takes the rest.
        40 => pub hypercalls: u64,
        /// Out: the host's TSC at the time of the answer.
        48 => pub tsc: u64,
    }
}

wire_struct! {
    /// Argument of [`ISTHMUS_PCPU_COUNTERS`]: what a CPU of the machine has done between the runs of vCPUs, since
    /// it was started.
    ///
    /// Errors: ENOENT no such CPU, EPERM without control of domains, EFAULT.
    pub struct PcpuCounters: 48 {
        /// In: [`INTERFACE_VERSION`].
        0 => pub interface_version: u32,
        /// In: the CPU's number, from 0 on.
        4 => pub pcpu: u32,
        /// Out: runs of vCPUs that it began.
        8 => pub runs: u64,
        /// Out: how often it halted, nobody having anything to do.
        16 => pub halts: u64,
        /// Out: interrupts that it sent to other CPUs.
        24 => pub kicks: u64,
        /// Out: ticks that passed neither in a run nor while it was halted.
        32 => pub ticks: u64,
        /// Out: the host's TSC at the time of the answer.
        40 => pub tsc: u64,
    }
}

/// [`DomainCopy::kind`]: bytes of the caller into the domain's memory.
pub const COPY_IN: u16 = 0;
/// [`DomainCopy::kind`]: zeroes into the domain's memory.
pub const COPY_ZERO: u16 = 1;

wire_struct! {
    /// Argument of [`ISTHMUS_DOMAIN_COPY`]: writes a range of a domain's physical memory, as a domain
    /// builder does with kernel, initial RAM disk and tables, without mapping it.
    ///
    /// The range may be of any length and alignment. All of it has to be the domain's own RAM. The
    /// hypervisor works some pages at a time, lets others run in between and keeps `done` up to date in the
    /// structure; a caller that got an error finds there how far it came, and may call again with
    /// the same structure to go on. The caller's buffer has to be present in its address space: a part that
    /// is not is EFAULT, after which the caller touches `buffer + done` and goes on.
    ///
    /// Errors: ESRCH no such domain, or it is dying; ENOENT `gpa + done` is not mapped; EPERM it is not RAM of
    /// its own, or the caller has no control of domains; EINVAL an unknown kind, the range wraps, or `done`
    /// is beyond it; EFAULT.
    pub struct DomainCopy: 40 {
        /// In: [`INTERFACE_VERSION`].
        0 => pub interface_version: u32,
        /// In: whose memory is written. Not the caller's.
        4 => pub domid: u16,
        /// In: [`COPY_IN`] or [`COPY_ZERO`].
        6 => pub kind: u16,
        /// In: guest physical address of the first byte.
        8 => pub gpa: u64,
        /// In: bytes.
        16 => pub len: u64,
        /// In: virtual address of the bytes in the caller's address space; not looked at for
        /// [`COPY_ZERO`].
        24 => pub buffer: u64,
        /// In: bytes that are done already: 0. Out: bytes done so far.
        32 => pub done: u64,
    }
}

wire_struct! {
    /// Argument of [`ISTHMUS_CONSOLE_READ`]: what a domain has written to its log-only console (port 0xE9 and
    /// COM1), of which the hypervisor keeps the last [`CONSOLE_KEPT`] bytes until the domain is gone.
    ///
    /// Bytes are numbered from the domain's start on. A reader remembers `position` and hands it in
    /// again. When bytes that it has not read are overwritten, reading goes on with the oldest that is kept;
    /// that `position` on return is more than `position` before plus `len` says how many were lost.
    /// VIRQ_CON_RING comes when something was written after everything had been read.
    ///
    /// Errors: ESRCH no such domain, EPERM without control of domains, EFAULT.
    pub struct ConsoleRead: 32 {
        /// In: [`INTERFACE_VERSION`].
        0 => pub interface_version: u32,
        /// In: whose console.
        4 => pub domid: u16,
        /// Zero.
        6 => pub pad: u16,
        /// In: the number of the first byte wanted. Out: that of the first byte not yet returned.
        8 => pub position: u64,
        /// In: virtual address of room for the bytes.
        16 => pub buffer: u64,
        /// In: how much room. Out: bytes written there.
        24 => pub len: u64,
    }
}

wire_struct! {
    /// Argument of [`ISTHMUS_GRANT_STATS`]: what a domain has done with the pages that another one grants, since that
    /// one's start.
    ///
    /// Errors: ESRCH no such domain, EPERM not the caller's to know, EFAULT.
    pub struct GrantStats: 72 {
        /// In: [`INTERFACE_VERSION`].
        0 => pub interface_version: u32,
        /// In: the domain that grants, or `DOMID_SELF`. Out: its number.
        4 => pub domid: u16,
        /// In: which of those that have used its pages, from 0.
        6 => pub at: u16,
        /// Out: frames of its grant table.
        8 => pub table_frames: u32,
        /// Out: pages of others that it has mapped now.
        12 => pub mapped_by_it: u32,
        /// Out: how many have used its pages. What follows is 0 if `at` is not below.
        16 => pub nr_users: u16,
        /// Out: who it was; `DOMID_INVALID`: all together that came when [`GRANT_USERS`] were told apart.
        18 => pub user: u16,
        /// Zero.
        20 => pub pad: u32,
        /// Out: how often one of its pages was mapped for reading only.
        24 => pub read_maps: u64,
        /// Out: how often such a mapping ended; the rest exists now.
        32 => pub read_unmaps: u64,
        /// Out: how often one was mapped for writing, too.
        40 => pub write_maps: u64,
        /// Out: how often such a mapping ended.
        48 => pub write_unmaps: u64,
        /// Out: pieces that were copied from or to its pages.
        56 => pub copies: u64,
        /// Out: their bytes.
        64 => pub copied_bytes: u64,
    }
}

/// Users of a domain's grants that are told apart, those that come last together.
pub const GRANT_USERS: usize = 8;

/// Bytes of a domain's log-only console that are kept.
pub const CONSOLE_KEPT: usize = 8192;

/// What the exit reasons are called, in the order in which they are counted.
pub const REASON_NAMES: [&str; 16] = [
    "hypercall",
    "cpuid",
    "rdmsr",
    "wrmsr",
    "hlt",
    "xsetbv",
    "io",
    "p2m-fault",
    "control-write",
    "exception",
    "forbidden",
    "interrupt",
    "window",
    "deadline",
    "cache-flush",
    "other",
];

/// [`HostInfo::backend`]: guests run by AMD-V.
pub const BACKEND_SVM: u32 = 1;
/// [`HostInfo::backend`]: guests run by VT-x.
pub const BACKEND_VMX: u32 = 2;

/// [`HostInfo::iommu`]: the machine has none.
pub const IOMMU_NONE: u32 = 0;
/// [`HostInfo::iommu`]: there is one and it is not used: devices reach all memory.
pub const IOMMU_UNUSED: u32 = 1;
/// [`HostInfo::iommu`]: devices are confined.
pub const IOMMU_IN_USE: u32 = 2;

/// Bit of [`HostInfo::features`]: SVM saves where the next instruction is.
pub const FEATURE_NEXT_RIP: u64 = 1 << 0;
/// Bit of [`HostInfo::features`]: SVM flushes one tag of the TLB.
pub const FEATURE_FLUSH_BY_ASID: u64 = 1 << 1;
/// Bit of [`HostInfo::features`]: The host's local APICs are driven as MSRs.
pub const FEATURE_X2APIC: u64 = 1 << 2;
/// Bit of [`HostInfo::features`]: Timers are deadlines of the TSC.
pub const FEATURE_TSC_DEADLINE: u64 = 1 << 3;
/// Bit of [`HostInfo::features`]: All TSCs run in step at one rate.
pub const FEATURE_TSC_STABLE: u64 = 1 << 4;
/// Bit of [`HostInfo::features`]: Page tables have 1 GiB leaves.
pub const FEATURE_GIB_PAGES: u64 = 1 << 5;
/// Bit of [`HostInfo::features`]: Guests' vector state is moved by XSAVE.
pub const FEATURE_XSAVE: u64 = 1 << 6;
/// Bit of [`HostInfo::features`]: VT-x tags translations.
pub const FEATURE_VPID: u64 = 1 << 7;
/// Bit of [`HostInfo::features`]: VT-x ends a run at a deadline by itself.
pub const FEATURE_PREEMPTION_TIMER: u64 = 1 << 8;
/// Bit of [`HostInfo::features`]: VT-x serves the guests' APIC registers.
pub const FEATURE_APICV: u64 = 1 << 9;
/// Bit of [`HostInfo::features`]: VT-x delivers interrupts without an exit.
pub const FEATURE_POSTED_INTERRUPTS: u64 = 1 << 10;
/// Bit of [`HostInfo::features`]: VT-x logs what is written.
pub const FEATURE_PML: u64 = 1 << 11;

/// Bit of [`HostInfo::features`]: A CPU that goes to another domain forgets its branches (IBPB).
pub const FEATURE_IBPB: u64 = 1 << 12;
/// Bit of [`HostInfo::features`]: A CPU that goes to another domain overwrites its buffers (VERW).
pub const FEATURE_MD_CLEAR: u64 = 1 << 13;
/// Bit of [`HostInfo::features`]: A CPU that goes to another domain empties its L1 data cache.
pub const FEATURE_L1D_FLUSH: u64 = 1 << 14;

/// What the bits of [`HostInfo::features`] are called, from bit 0 on: features of the CPU that are
/// in use.
pub const FEATURE_NAMES: [&str; 15] = [
    "next-rip",
    "flush-by-asid",
    "x2apic",
    "tsc-deadline",
    "tsc-stable",
    "1gib-pages",
    "xsave",
    "vpid",
    "preemption-timer",
    "apicv",
    "posted-interrupts",
    "pml",
    "ibpb",
    "md-clear",
    "l1d-flush",
];

/// Bytes of [`HostInfo::version`].
pub const VERSION_LEN: usize = 32;

wire_struct! {
    /// Argument of [`ISTHMUS_HOST_INFO`]: the machine, and what the hypervisor takes of it.
    /// Errors: EPERM for a domain without control of others, EFAULT.
    pub struct HostInfo: 152 {
        /// In: [`INTERFACE_VERSION`].
        0 => pub interface_version: u32,
        /// Out: [`BACKEND_SVM`] or [`BACKEND_VMX`].
        4 => pub backend: u32,
        /// Out: bits as [`FEATURE_NAMES`] says.
        8 => pub features: u64,
        /// Out: the TSC's frequency in kHz.
        16 => pub tsc_khz: u64,
        /// Out: nanoseconds since the hypervisor started.
        24 => pub uptime_ns: u64,
        /// Out: 4 KiB frames of RAM that the firmware reports.
        32 => pub total_frames: u64,
        /// Out: frames that are free.
        40 => pub free_frames: u64,
        /// Out: those of the free frames that are known to hold zeroes.
        48 => pub clean_frames: u64,
        /// Out: frames that the hypervisor keeps for itself: image, heap, frame records, page tables.
        56 => pub hypervisor_frames: u64,
        /// Out: bytes of the image with its data, stacks and early tables.
        64 => pub image_bytes: u64,
        /// Out: bytes of the heap in use.
        72 => pub heap_used: u64,
        /// Out: bytes of the heap.
        80 => pub heap_size: u64,
        /// Out: CPUs that the hypervisor drives.
        88 => pub nr_pcpus: u32,
        /// Out: CPUs that the machine has.
        92 => pub nr_present_cpus: u32,
        /// Out: [`IOMMU_NONE`], [`IOMMU_UNUSED`] or [`IOMMU_IN_USE`].
        96 => pub iommu: u32,
        /// Out: domains.
        100 => pub nr_domains: u32,
        /// Out: bits of a host physical address.
        104 => pub phys_bits: u32,
        /// Out: page-table leaves: 12, 21 or 30 bits for the largest in use.
        108 => pub largest_page_shift: u32,
        /// Out: frames of page tables, grant tables and shared pages that domains are charged for.
        112 => pub overhead_frames: u64,
        /// Out: the hypervisor's version, padded with zeroes.
        120 => pub version: [u8; VERSION_LEN],
    }
}
