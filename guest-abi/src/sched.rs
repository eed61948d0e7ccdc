// SPDX-License-Identifier: MIT OR Apache-2.0
//! Giving the CPU away, and ending a domain.
//!
//! The command is in the first argument, a structure's virtual address in the second. A PVH kernel idles
//! by HLT and powers off by HLT with interrupts disabled on its last vCPU; it reboots and reports a
//! crash by [`SCHEDOP_SHUTDOWN`].
//!
//! Source: `xen/include/public/sched.h` at 4.17.

/// Lets others run; no argument.
pub const SCHEDOP_YIELD: u32 = 0;
/// Waits for an event with interrupts enabled; no argument.
pub const SCHEDOP_BLOCK: u32 = 1;
/// Ends the domain: [`Shutdown`].
pub const SCHEDOP_SHUTDOWN: u32 = 2;
/// Waits for one of some ports: [`Poll`].
pub const SCHEDOP_POLL: u32 = 3;
/// Ends another domain: [`RemoteShutdown`].
pub const SCHEDOP_REMOTE_SHUTDOWN: u32 = 4;
/// Sets the reason before ending another way: [`Shutdown`].
pub const SCHEDOP_SHUTDOWN_CODE: u32 = 5;
/// [`Watchdog`].
pub const SCHEDOP_WATCHDOG: u32 = 6;
/// Control domain only.
pub const SCHEDOP_PIN_OVERRIDE: u32 = 7;

/// Ended as it wished.
pub const SHUTDOWN_POWEROFF: u32 = 0;
/// To be started again.
pub const SHUTDOWN_REBOOT: u32 = 1;
/// State to be saved.
pub const SHUTDOWN_SUSPEND: u32 = 2;
/// Ended in an error.
pub const SHUTDOWN_CRASH: u32 = 3;
/// Its watchdog expired.
pub const SHUTDOWN_WATCHDOG: u32 = 4;
/// Start again with memory kept (kexec).
pub const SHUTDOWN_SOFT_RESET: u32 = 5;

crate::wire_struct! {
    /// Argument of [`SCHEDOP_SHUTDOWN`].
    pub struct Shutdown: 4 {
        /// `SHUTDOWN_*`.
        0 => pub reason: u32,
    }
}

crate::wire_struct! {
    /// Argument of [`SCHEDOP_POLL`].
    pub struct Poll: 24 {
        /// Virtual address of an array of ports (`u32`).
        0 => pub ports: u64,
        /// Elements of it.
        8 => pub nr_ports: u32,
        /// Until when, in nanoseconds of system time; 0 is for ever.
        16 => pub timeout: u64,
    }
}

crate::wire_struct! {
    /// Argument of [`SCHEDOP_REMOTE_SHUTDOWN`].
    pub struct RemoteShutdown: 8 {
        /// The domain.
        0 => pub domain_id: u16,
        /// `SHUTDOWN_*`.
        4 => pub reason: u32,
    }
}

crate::wire_struct! {
    /// Argument of [`SCHEDOP_WATCHDOG`].
    pub struct Watchdog: 8 {
        /// 0 makes one; the result is its number.
        0 => pub id: u32,
        /// Seconds; 0 ends it.
        4 => pub timeout: u32,
    }
}
