// SPDX-License-Identifier: MIT OR Apache-2.0
//! Parameters of a PVH domain, and where its upcalls go.
//!
//! The command is in the first argument, a structure's virtual address in the second. A kernel tells by
//! [`HVM_PARAM_CALLBACK_IRQ`] which vector announces events, and asks for the frames and ports of its
//! console and of xenstore.
//!
//! Source: `xen/include/public/hvm/hvm_op.h` and `hvm/params.h` at 4.17.

/// [`HvmParam`].
pub const HVMOP_SET_PARAM: u32 = 0;
/// [`HvmParam`].
pub const HVMOP_GET_PARAM: u32 = 1;
/// Flushes all vCPUs; no argument.
pub const HVMOP_FLUSH_TLBS: u32 = 5;
/// A hint; better refused, since Linux then stops calling it: [`PagetableDying`].
pub const HVMOP_PAGETABLE_DYING: u32 = 9;
/// [`GetTime`].
pub const HVMOP_GET_TIME: u32 = 10;
/// Not offered.
pub const HVMOP_XENTRACE: u32 = 11;
/// [`GetMemType`].
pub const HVMOP_GET_MEM_TYPE: u32 = 15;
/// [`EvtchnUpcallVector`].
pub const HVMOP_SET_EVTCHN_UPCALL_VECTOR: u32 = 23;
/// Not offered.
pub const HVMOP_GUEST_REQUEST_VM_EVENT: u32 = 24;
/// Not offered.
pub const HVMOP_ALTP2M: u32 = 25;

crate::wire_struct! {
    /// Argument of [`HVMOP_SET_PARAM`] and [`HVMOP_GET_PARAM`] (`struct xen_hvm_param`).
    pub struct HvmParam: 16 {
        /// Whose parameter.
        0 => pub domid: u16,
        /// Zero.
        2 => pub pad: u16,
        /// `HVM_PARAM_*`.
        4 => pub index: u32,
        /// Its value.
        8 => pub value: u64,
    }
}

crate::wire_struct! {
    /// Argument of [`HVMOP_PAGETABLE_DYING`].
    pub struct PagetableDying: 16 {
        /// The caller.
        0 => pub domid: u16,
        /// Zero.
        2 => pub pad: [u16; 3],
        /// Guest physical address of the root.
        8 => pub gpa: u64,
    }
}

crate::wire_struct! {
    /// Argument of [`HVMOP_GET_TIME`].
    pub struct GetTime: 8 {
        /// System time in nanoseconds; written by the hypervisor.
        0 => pub now: u64,
    }
}

crate::wire_struct! {
    /// Argument of [`HVMOP_GET_MEM_TYPE`].
    pub struct GetMemType: 16 {
        /// Whose frame.
        0 => pub domid: u16,
        /// `HVMMEM_*`; written by the hypervisor.
        2 => pub mem_type: u16,
        /// Zero.
        4 => pub pad: [u16; 2],
        /// The guest frame.
        8 => pub pfn: u64,
    }
}

crate::wire_struct! {
    /// Argument of [`HVMOP_SET_EVTCHN_UPCALL_VECTOR`].
    pub struct EvtchnUpcallVector: 8 {
        /// Whose vector.
        0 => pub vcpu: u32,
        /// The vector, 0x10 or above.
        4 => pub vector: u8,
    }
}

/// How an upcall is delivered: type in bits 63:56, for the vector type the vector in bits 7:0.
pub const HVM_PARAM_CALLBACK_IRQ: u32 = 0;
/// Guest frame of the xenstore ring.
pub const HVM_PARAM_STORE_PFN: u32 = 1;
/// Port of xenstore.
pub const HVM_PARAM_STORE_EVTCHN: u32 = 2;
/// Device model.
pub const HVM_PARAM_IOREQ_PFN: u32 = 5;
/// Device model.
pub const HVM_PARAM_BUFIOREQ_PFN: u32 = 6;
/// HVM only.
pub const HVM_PARAM_TIMER_MODE: u32 = 10;
/// HVM only.
pub const HVM_PARAM_HPET_ENABLED: u32 = 11;
/// HVM only.
pub const HVM_PARAM_IDENT_PT: u32 = 12;
/// HVM only.
pub const HVM_PARAM_ACPI_S_STATE: u32 = 14;
/// HVM only.
pub const HVM_PARAM_VPT_ALIGN: u32 = 16;
/// Guest frame of the console ring.
pub const HVM_PARAM_CONSOLE_PFN: u32 = 17;
/// Port of the console.
pub const HVM_PARAM_CONSOLE_EVTCHN: u32 = 18;
/// HVM only.
pub const HVM_PARAM_ACPI_IOPORTS_LOCATION: u32 = 19;
/// Not offered.
pub const HVM_PARAM_PAGING_RING_PFN: u32 = 27;
/// Not offered.
pub const HVM_PARAM_MONITOR_RING_PFN: u32 = 28;
/// Not offered.
pub const HVM_PARAM_SHARING_RING_PFN: u32 = 29;
/// `SHUTDOWN_*` for a triple fault.
pub const HVM_PARAM_TRIPLE_FAULT_REASON: u32 = 31;
/// HVM only.
pub const HVM_PARAM_VM_GENERATION_ID_ADDR: u32 = 34;
/// HVM only.
pub const HVM_PARAM_X87_FIP_WIDTH: u32 = 36;
/// Numbers below this are parameters.
pub const HVM_NR_PARAMS: u32 = 39;
/// The type in [`HVM_PARAM_CALLBACK_IRQ`].
pub const HVM_PARAM_CALLBACK_IRQ_TYPE_MASK: u64 = 0xff << 56;
/// Type: a GSI; not offered.
pub const HVM_PARAM_CALLBACK_TYPE_GSI: u64 = 0;
/// Type: a PCI interrupt line; not offered.
pub const HVM_PARAM_CALLBACK_TYPE_PCI_INTX: u64 = 1;
/// Type: a vector, injected without the local APIC.
pub const HVM_PARAM_CALLBACK_TYPE_VECTOR: u64 = 2;

/// Writable RAM.
pub const HVMMEM_RAM_RW: u16 = 0;
/// Read-only RAM.
pub const HVMMEM_RAM_RO: u16 = 1;
/// No RAM.
pub const HVMMEM_MMIO_DM: u16 = 2;
