// SPDX-License-Identifier: MIT OR Apache-2.0
//! Per-vCPU operations: areas that the hypervisor keeps up to date, and timers.
//!
//! The command is in the first argument, the vCPU number in the second, a structure's virtual address
//! in the third. Linux sets up the areas of a vCPU before it first runs, from another vCPU. Linux never
//! accepts `ETIME` from the timer: a deadline in the past has to fire.
//!
//! Source: `xen/include/public/vcpu.h` and `xen.h` (`VMASST_*`) at 4.17.

/// Gives a vCPU its first state: a `vcpu_hvm_context`.
pub const VCPUOP_INITIALISE: u32 = 0;
/// Lets it run.
pub const VCPUOP_UP: u32 = 1;
/// Stops it.
pub const VCPUOP_DOWN: u32 = 2;
/// 1 if it is up, else 0.
pub const VCPUOP_IS_UP: u32 = 3;
/// Copies a [`crate::shared_info::RunstateInfo`] out.
pub const VCPUOP_GET_RUNSTATE_INFO: u32 = 4;
/// Keeps one up to date: [`RegisterArea`].
pub const VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA: u32 = 5;
/// [`SetPeriodicTimer`].
pub const VCPUOP_SET_PERIODIC_TIMER: u32 = 6;
/// No argument.
pub const VCPUOP_STOP_PERIODIC_TIMER: u32 = 7;
/// [`SetSingleshotTimer`]; only for the caller itself.
pub const VCPUOP_SET_SINGLESHOT_TIMER: u32 = 8;
/// No argument.
pub const VCPUOP_STOP_SINGLESHOT_TIMER: u32 = 9;
/// Moves the `vcpu_info`, once: [`RegisterVcpuInfo`].
pub const VCPUOP_REGISTER_VCPU_INFO: u32 = 10;
/// No argument.
pub const VCPUOP_SEND_NMI: u32 = 11;
/// Not for guests.
pub const VCPUOP_GET_PHYSID: u32 = 12;
/// Keeps a copy of the time up to date: [`RegisterArea`].
pub const VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA: u32 = 13;

crate::wire_struct! {
    /// Argument of [`VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA`] and [`VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA`].
    pub struct RegisterArea: 8 {
        /// Virtual address of the area; 0 unregisters.
        0 => pub addr: u64,
    }
}

crate::wire_struct! {
    /// Argument of [`VCPUOP_SET_PERIODIC_TIMER`].
    pub struct SetPeriodicTimer: 8 {
        /// Nanoseconds between two events.
        0 => pub period_ns: u64,
    }
}

crate::wire_struct! {
    /// Argument of [`VCPUOP_SET_SINGLESHOT_TIMER`].
    pub struct SetSingleshotTimer: 16 {
        /// When, in nanoseconds of system time; a past one fires at once.
        0 => pub timeout_abs_ns: u64,
        /// [`VCPU_SSHOTTMR_FUTURE`].
        8 => pub flags: u32,
    }
}

/// Fail with `ETIME` if the deadline has passed.
pub const VCPU_SSHOTTMR_FUTURE: u32 = 1 << 0;

crate::wire_struct! {
    /// Argument of [`VCPUOP_REGISTER_VCPU_INFO`].
    pub struct RegisterVcpuInfo: 16 {
        /// Guest frame of the new place.
        0 => pub mfn: u64,
        /// Offset in the frame, in bytes; the structure stays in it.
        8 => pub offset: u32,
        /// Zero.
        12 => pub rsvd: u32,
    }
}

/// `vm_assist`: switch on.
pub const VMASST_CMD_ENABLE: u32 = 0;
/// `vm_assist`: switch off.
pub const VMASST_CMD_DISABLE: u32 = 1;
/// `vm_assist`: mark runstate areas while writing them.
pub const VMASST_TYPE_RUNSTATE_UPDATE_FLAG: u32 = 5;
