// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's console: the first argument is a command, then a length and a virtual address.
//!
//! For the control domain, whose hvc0 it is. Other domains get `ENOSYS`: Linux then writes its earliest
//! messages to port [`DEBUG_PORT`].
//!
//! Source: `xen/include/public/xen.h` (`CONSOLEIO_*`) and `arch-x86/xen.h` at 4.17.

/// Writes bytes; result 0.
pub const CONSOLEIO_WRITE: u32 = 0;
/// Reads bytes; result: how many.
pub const CONSOLEIO_READ: u32 = 1;
/// I/O port that logs a byte (`XEN_HVM_DEBUGCONS_IOPORT`).
pub const DEBUG_PORT: u16 = 0xe9;
