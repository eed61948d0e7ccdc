// SPDX-License-Identifier: MIT OR Apache-2.0
//! Machine control by the control domain: clock, firmware data, CPUs.
//!
//! The only argument is the virtual address of a structure of [`PLATFORM_OP_SIZE`] bytes: command and
//! version word, then the command's own part.
//!
//! Source: `xen/include/public/platform.h` at 4.17.

/// The version word that every call carries.
pub const XENPF_INTERFACE_VERSION: u32 = 0x0300_0001;
/// Size of `struct xen_platform_op`.
pub const PLATFORM_OP_SIZE: usize = 136;
/// Offset of the operation's own structure in it.
pub const PLATFORM_OP_ARG: usize = 8;

/// Argument: [`Settime32`].
pub const XENPF_SETTIME32: u32 = 17;
/// Family and model of a CPU.
pub const XENPF_GET_CPU_VERSION: u32 = 48;
/// Not offered.
pub const XENPF_EFI_RUNTIME_CALL: u32 = 49;
/// Argument: [`FirmwareInfo`].
pub const XENPF_FIRMWARE_INFO: u32 = 50;
/// Argument: [`EnterAcpiSleep`].
pub const XENPF_ENTER_ACPI_SLEEP: u32 = 51;
/// Power states of a CPU; Linux tolerates a refusal.
pub const XENPF_SET_PROCESSOR_PMINFO: u32 = 54;
/// Argument: [`PcpuInfo`].
pub const XENPF_GET_CPUINFO: u32 = 55;
/// Brings a CPU up; argument: its number.
pub const XENPF_CPU_ONLINE: u32 = 56;
/// Takes a CPU down; argument: its number.
pub const XENPF_CPU_OFFLINE: u32 = 57;
/// Not offered.
pub const XENPF_RESOURCE_OP: u32 = 61;
/// Argument: [`Settime64`].
pub const XENPF_SETTIME64: u32 = 62;
/// Not offered.
pub const XENPF_GET_SYMBOL: u32 = 63;
/// Out: a `dom0_vga_console_info`; result: its size. Newer than the 4.17 headers.
pub const XENPF_GET_DOM0_CONSOLE: u32 = 64;

crate::wire_struct! {
    /// The head of `struct xen_platform_op`; the argument follows at [`PLATFORM_OP_ARG`].
    pub struct PlatformOp: 8 {
        /// `XENPF_*`.
        0 => pub cmd: u32,
        /// [`XENPF_INTERFACE_VERSION`].
        4 => pub interface_version: u32,
    }
}

crate::wire_struct! {
    /// Argument of [`XENPF_SETTIME32`]: UTC at a system time.
    pub struct Settime32: 16 {
        /// Seconds.
        0 => pub secs: u32,
        /// Nanoseconds.
        4 => pub nsecs: u32,
        /// System time in nanoseconds.
        8 => pub system_time: u64,
    }
}

crate::wire_struct! {
    /// Argument of [`XENPF_SETTIME64`]: UTC at a system time.
    pub struct Settime64: 24 {
        /// Seconds.
        0 => pub secs: u64,
        /// Nanoseconds.
        8 => pub nsecs: u32,
        /// Zero.
        12 => pub mbz: u32,
        /// System time in nanoseconds.
        16 => pub system_time: u64,
    }
}

crate::wire_struct! {
    /// Argument of [`XENPF_FIRMWARE_INFO`].
    pub struct FirmwareInfo: 40 {
        /// `XEN_FW_*`; the field is `type` in the header.
        0 => pub kind: u32,
        /// Which one of the kind.
        4 => pub index: u32,
        /// By kind.
        8 => pub data: [u64; 4],
    }
}

crate::wire_struct! {
    /// Argument of [`XENPF_ENTER_ACPI_SLEEP`].
    pub struct EnterAcpiSleep: 12 {
        /// Value for the first control register.
        0 => pub val_a: u16,
        /// Value for the second.
        2 => pub val_b: u16,
        /// The S-state.
        4 => pub sleep_state: u32,
        /// Bit 0: extended registers.
        8 => pub flags: u32,
    }
}

crate::wire_struct! {
    /// Argument of [`XENPF_GET_CPUINFO`].
    pub struct PcpuInfo: 20 {
        /// Which CPU.
        0 => pub xen_cpuid: u32,
        /// The highest number; written by the hypervisor.
        4 => pub max_present: u32,
        /// Bit 0: online; bit 1: no such CPU. Written by the hypervisor.
        8 => pub flags: u32,
        /// Written by the hypervisor.
        12 => pub apic_id: u32,
        /// Written by the hypervisor.
        16 => pub acpi_id: u32,
    }
}

/// BIOS disk.
pub const XEN_FW_DISK_INFO: u32 = 1;
/// Signature of a BIOS disk.
pub const XEN_FW_DISK_MBR_SIGNATURE: u32 = 2;
/// Display data.
pub const XEN_FW_VBEDDC_INFO: u32 = 3;
/// UEFI tables; a refusal says that the machine has none.
pub const XEN_FW_EFI_INFO: u32 = 4;
/// Keyboard state.
pub const XEN_FW_KBD_SHIFT_FLAGS: u32 = 5;
