// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest's console: its ring, the log that is kept of it, and those who watch.
//!
//! The supervisor serves the rings of all guests ([`crate::supervisor`]). What a guest writes goes to its log file and to
//! whoever is attached; what they type goes to the guest. Nothing here waits for a guest or for a watcher: a
//! ring that is full, or a watcher that does not read, costs that one its bytes.
//!
//! Source: `xen/include/public/io/console.h` at 4.17.

pub mod attach;
pub mod log;
pub mod ring;

/// Bytes of a guest's log file before another is begun.
pub const LOG_LIMIT: u64 = 1 << 20;
/// Older log files that are kept.
pub const LOGS_KEPT: u32 = 3;
