// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hypercall numbers.
//!
//! A guest puts the number in EAX and up to five arguments in RDI, RSI, RDX, R10 and R8, and executes
//! VMCALL or VMMCALL, whichever its processor's vendor has. The result comes back in RAX: zero or a
//! positive result, or a negated [`crate::Errno`]. Nothing but RAX, the argument registers and the
//! memory that the call names may change. Pointers are virtual addresses in the caller's current
//! address space. A number that is not offered returns `ENOSYS`, and kernels rely on it: almost every
//! optional call degrades quietly. Calls from above ring 0 return `EPERM`.
//!
//! Source: `xen/include/public/xen.h` at 4.17, `__HYPERVISOR_*`.

/// Machine control: clock, firmware data, CPU power data. Control domain only.
pub const HYPERVISOR_PLATFORM_OP: u32 = 7;
/// Physical address space of a domain; see [`crate::memory`].
pub const HYPERVISOR_MEMORY_OP: u32 = 12;
/// A batch of hypercalls.
pub const HYPERVISOR_MULTICALL: u32 = 13;
/// The old one-shot timer; argument in nanoseconds of system time.
pub const HYPERVISOR_SET_TIMER_OP: u32 = 15;
/// What the hypervisor is and offers; see [`crate::version`].
pub const HYPERVISOR_XEN_VERSION: u32 = 17;
/// The hypervisor's console; see [`crate::console_io`].
pub const HYPERVISOR_CONSOLE_IO: u32 = 18;
/// Grants; see [`crate::grant_table`].
pub const HYPERVISOR_GRANT_TABLE_OP: u32 = 20;
/// Switches of guest behaviour; see [`crate::vcpu`].
pub const HYPERVISOR_VM_ASSIST: u32 = 21;
/// Per-vCPU areas and timers; see [`crate::vcpu`].
pub const HYPERVISOR_VCPU_OP: u32 = 24;
/// Security module control.
pub const HYPERVISOR_XSM_OP: u32 = 27;
/// Not for PVH guests.
pub const HYPERVISOR_NMI_OP: u32 = 28;
/// Yield, poll, shut down; see [`crate::sched`].
pub const HYPERVISOR_SCHED_OP: u32 = 29;
/// Event channels; see [`crate::event_channel`].
pub const HYPERVISOR_EVENT_CHANNEL_OP: u32 = 32;
/// Physical devices; see [`crate::physdev`].
pub const HYPERVISOR_PHYSDEV_OP: u32 = 33;
/// Parameters and vectors of a PVH domain; see [`crate::hvm`].
pub const HYPERVISOR_HVM_OP: u32 = 34;
/// Management of the machine.
pub const HYPERVISOR_SYSCTL: u32 = 35;
/// Management of a domain.
pub const HYPERVISOR_DOMCTL: u32 = 36;
/// Not for PVH guests.
pub const HYPERVISOR_KEXEC_OP: u32 = 37;
/// Not offered.
pub const HYPERVISOR_ARGO_OP: u32 = 39;
/// Not offered.
pub const HYPERVISOR_XENPMU_OP: u32 = 40;
/// Device-model operations.
pub const HYPERVISOR_DM_OP: u32 = 41;
/// Not offered.
pub const HYPERVISOR_HYPFS_OP: u32 = 42;
/// Machine checks (`__HYPERVISOR_arch_0`). Not offered.
pub const HYPERVISOR_MCA: u32 = 48;
/// Calls of Isthmus's own (`__HYPERVISOR_arch_7`): counters, who maps whom, revocation.
pub const HYPERVISOR_ISTHMUS: u32 = 55;

/// Opcode bytes of VMCALL, the instruction on Intel processors.
pub const VMCALL: [u8; 3] = [0x0f, 0x01, 0xc1];
/// Opcode bytes of VMMCALL, the instruction on AMD processors.
pub const VMMCALL: [u8; 3] = [0x0f, 0x01, 0xd9];
