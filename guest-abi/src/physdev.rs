// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a control domain tells of physical devices.
//!
//! The command is in the first argument, a structure's virtual address in the second. PVH control
//! domains program interrupts through the emulated I/O APIC and by native MSI; most of these calls only
//! inform.
//!
//! Source: `xen/include/public/physdev.h` at 4.17.

/// Argument: [`IrqStatusQuery`].
pub const PHYSDEVOP_IRQ_STATUS_QUERY: u32 = 5;
/// Argument: [`Eoi`].
pub const PHYSDEVOP_EOI: u32 = 12;
/// Argument: [`MapPirq`].
pub const PHYSDEVOP_MAP_PIRQ: u32 = 13;
/// Argument: [`UnmapPirq`].
pub const PHYSDEVOP_UNMAP_PIRQ: u32 = 14;
/// Argument: [`ManagePci`].
pub const PHYSDEVOP_MANAGE_PCI_ADD: u32 = 15;
/// Argument: [`ManagePci`].
pub const PHYSDEVOP_MANAGE_PCI_REMOVE: u32 = 16;
/// Argument: [`ManagePci`].
pub const PHYSDEVOP_RESTORE_MSI: u32 = 19;
/// Virtual functions, the old way.
pub const PHYSDEVOP_MANAGE_PCI_ADD_EXT: u32 = 20;
/// Argument: [`SetupGsi`].
pub const PHYSDEVOP_SETUP_GSI: u32 = 21;
/// Argument: [`GetFreePirq`].
pub const PHYSDEVOP_GET_FREE_PIRQ: u32 = 23;
/// Argument: [`PciMmcfgReserved`].
pub const PHYSDEVOP_PCI_MMCFG_RESERVED: u32 = 24;
/// Argument: [`PciDeviceAdd`].
pub const PHYSDEVOP_PCI_DEVICE_ADD: u32 = 25;
/// Argument: [`PciDevice`].
pub const PHYSDEVOP_PCI_DEVICE_REMOVE: u32 = 26;
/// Argument: [`PciDevice`].
pub const PHYSDEVOP_RESTORE_MSI_EXT: u32 = 27;
/// Argument: [`DbgpOp`].
pub const PHYSDEVOP_DBGP_OP: u32 = 29;
/// Argument: [`PciDevice`].
pub const PHYSDEVOP_PREPARE_MSIX: u32 = 30;
/// Argument: [`PciDevice`].
pub const PHYSDEVOP_RELEASE_MSIX: u32 = 31;
/// Resets what is known of a device. Newer than the 4.17 headers.
pub const PHYSDEVOP_PCI_DEVICE_RESET: u32 = 32;

crate::wire_struct! {
    /// Argument of [`PHYSDEVOP_IRQ_STATUS_QUERY`].
    pub struct IrqStatusQuery: 8 {
        /// The physical interrupt.
        0 => pub irq: u32,
        /// Bit 0: needs EOI; bit 1: shared. Written by the hypervisor.
        4 => pub flags: u32,
    }
}

crate::wire_struct! {
    /// Argument of [`PHYSDEVOP_EOI`].
    pub struct Eoi: 4 {
        /// The physical interrupt.
        0 => pub irq: u32,
    }
}

crate::wire_struct! {
    /// Argument of [`PHYSDEVOP_MAP_PIRQ`].
    pub struct MapPirq: 40 {
        /// The receiver.
        0 => pub domid: u16,
        /// `MAP_PIRQ_TYPE_*`; the field is `type` in the header.
        4 => pub kind: i32,
        /// The GSI.
        8 => pub index: i32,
        /// Wanted number, negative for any; written by the hypervisor.
        12 => pub pirq: i32,
        /// PCI bus, with the segment above it.
        16 => pub bus: i32,
        /// PCI device and function.
        20 => pub devfn: i32,
        /// MSI-X entry, or number of MSIs.
        24 => pub entry_nr: i32,
        /// Address of the MSI-X table.
        32 => pub table_base: u64,
    }
}

crate::wire_struct! {
    /// Argument of [`PHYSDEVOP_UNMAP_PIRQ`].
    pub struct UnmapPirq: 8 {
        /// The receiver.
        0 => pub domid: u16,
        /// The number.
        4 => pub pirq: i32,
    }
}

crate::wire_struct! {
    /// Names a device on segment 0 (`struct physdev_manage_pci`).
    pub struct ManagePci: 2 {
        /// PCI bus.
        0 => pub bus: u8,
        /// Device in bits 7:3, function in bits 2:0.
        1 => pub devfn: u8,
    }
}

crate::wire_struct! {
    /// Argument of [`PHYSDEVOP_SETUP_GSI`].
    pub struct SetupGsi: 8 {
        /// The GSI.
        0 => pub gsi: i32,
        /// 0 edge, 1 level.
        4 => pub triggering: u8,
        /// 0 high, 1 low.
        5 => pub polarity: u8,
    }
}

crate::wire_struct! {
    /// Argument of [`PHYSDEVOP_GET_FREE_PIRQ`].
    pub struct GetFreePirq: 8 {
        /// `MAP_PIRQ_TYPE_*`; the field is `type` in the header.
        0 => pub kind: i32,
        /// Written by the hypervisor.
        4 => pub pirq: u32,
    }
}

crate::wire_struct! {
    /// Argument of [`PHYSDEVOP_PCI_MMCFG_RESERVED`].
    pub struct PciMmcfgReserved: 16 {
        /// Physical address of the configuration space.
        0 => pub address: u64,
        /// PCI segment.
        8 => pub segment: u16,
        /// First bus.
        10 => pub start_bus: u8,
        /// Last bus.
        11 => pub end_bus: u8,
        /// Bit 0: firmware reserved it.
        12 => pub flags: u32,
    }
}

crate::wire_struct! {
    /// Argument of [`PHYSDEVOP_PCI_DEVICE_ADD`], without the optional words after it.
    pub struct PciDeviceAdd: 12 {
        /// PCI segment.
        0 => pub seg: u16,
        /// PCI bus.
        2 => pub bus: u8,
        /// Device in bits 7:3, function in bits 2:0.
        3 => pub devfn: u8,
        /// Bit 0: extended function; bit 1: virtual function; bit 2: a proximity word follows.
        4 => pub flags: u32,
        /// Bus of the physical function.
        8 => pub physfn_bus: u8,
        /// The physical function.
        9 => pub physfn_devfn: u8,
    }
}

crate::wire_struct! {
    /// Names a device (`struct physdev_pci_device`).
    pub struct PciDevice: 4 {
        /// PCI segment.
        0 => pub seg: u16,
        /// PCI bus.
        2 => pub bus: u8,
        /// Device in bits 7:3, function in bits 2:0.
        3 => pub devfn: u8,
    }
}

crate::wire_struct! {
    /// Argument of [`PHYSDEVOP_DBGP_OP`].
    pub struct DbgpOp: 6 {
        /// 1 before a reset, 2 after it.
        0 => pub op: u8,
        /// 1: the device below is a PCI device.
        1 => pub bus: u8,
        /// The device.
        2 => pub pci: PciDevice,
    }
}

/// One MSI, segment 0.
pub const MAP_PIRQ_TYPE_MSI: i32 = 0;
/// An I/O APIC line.
pub const MAP_PIRQ_TYPE_GSI: i32 = 1;
/// Not known.
pub const MAP_PIRQ_TYPE_UNKNOWN: i32 = 2;
/// One MSI, with a segment.
pub const MAP_PIRQ_TYPE_MSI_SEG: i32 = 3;
/// Several MSIs.
pub const MAP_PIRQ_TYPE_MULTI_MSI: i32 = 4;
