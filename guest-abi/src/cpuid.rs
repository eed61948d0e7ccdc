// SPDX-License-Identifier: MIT OR Apache-2.0
//! CPUID leaves of the hypervisor, from [`FIRST_LEAF`] on.
//!
//! Linux looks for the signature at every 0x100 from 0x40000000, and needs a highest leaf of at least
//! base + 2.
//!
//! Source: `xen/include/public/arch-x86/cpuid.h` at 4.17.

/// Leaf 0: EAX is the highest leaf; EBX, ECX and EDX are the signature.
pub const FIRST_LEAF: u32 = 0x4000_0000;
/// The highest leaf.
pub const MAX_LEAF: u32 = FIRST_LEAF + 5;
/// "XenV".
pub const SIGNATURE_EBX: u32 = 0x566e_6558;
/// "MMXe".
pub const SIGNATURE_ECX: u32 = 0x6558_4d4d;
/// "nVMM".
pub const SIGNATURE_EDX: u32 = 0x4d4d_566e;
/// EAX: major << 16 | minor.
pub const LEAF_VERSION: u32 = FIRST_LEAF + 1;
/// EAX: pages of stubs; EBX: the MSR that places them.
pub const LEAF_HYPERCALL_PAGE: u32 = FIRST_LEAF + 2;
/// Subleaf 0: EAX TSC flags, EBX TSC mode, ECX guest TSC kHz, EDX incarnation.
pub const LEAF_TIME: u32 = FIRST_LEAF + 3;
/// EAX: `HVM_*` flags; EBX: vCPU number; ECX: domain number.
pub const LEAF_HVM: u32 = FIRST_LEAF + 4;
/// EBX bits 7:0: width of machine addresses; PV only.
pub const LEAF_WIDTH: u32 = FIRST_LEAF + 5;
/// MSR that older kernels write the address of their hypercall page to; number as [`LEAF_HYPERCALL_PAGE`] tells.
pub const HYPERCALL_MSR: u32 = 0x4000_0000;

/// [`LEAF_TIME`] EAX: RDTSC is emulated.
pub const TIME_EMULATED: u32 = 1 << 0;
/// [`LEAF_TIME`] EAX: the host's TSC is reliable.
pub const TIME_HOST_RELIABLE: u32 = 1 << 1;
/// [`LEAF_TIME`] EAX: RDTSCP is available.
pub const TIME_RDTSCP: u32 = 1 << 2;
/// [`LEAF_TIME`] EBX: the hypervisor chooses.
pub const TSC_MODE_DEFAULT: u32 = 0;
/// [`LEAF_TIME`] EBX: RDTSC is native; Linux 6.12 then prefers the TSC.
pub const TSC_MODE_NEVER_EMULATE: u32 = 2;

/// [`LEAF_HVM`] EAX: xAPIC accesses are virtualized by hardware.
pub const HVM_APIC_ACCESS_VIRT: u32 = 1 << 0;
/// [`LEAF_HVM`] EAX: x2APIC accesses are virtualized by hardware.
pub const HVM_X2APIC_VIRT: u32 = 1 << 1;
/// [`LEAF_HVM`] EAX: foreign mappings are in the IOMMU too.
pub const HVM_IOMMU_MAPPINGS: u32 = 1 << 2;
/// [`LEAF_HVM`] EAX: EBX is valid.
pub const HVM_VCPU_ID_PRESENT: u32 = 1 << 3;
/// [`LEAF_HVM`] EAX: ECX is valid.
pub const HVM_DOMID_PRESENT: u32 = 1 << 4;
/// [`LEAF_HVM`] EAX: 15-bit APIC ids in MSIs.
pub const HVM_EXT_DEST_ID: u32 = 1 << 5;
/// [`LEAF_HVM`] EAX: `HVMOP_set_evtchn_upcall_vector` works.
pub const HVM_UPCALL_VECTOR: u32 = 1 << 6;
