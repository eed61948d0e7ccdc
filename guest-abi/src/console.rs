// SPDX-License-Identifier: MIT OR Apache-2.0
//! The console ring: one page, two byte rings and their counters.
//!
//! The counters run freely; an index is a counter modulo the ring size. Both sides write the page at any
//! time, so it is described by offsets.
//!
//! Each end sends an event after it has written and after it has read.
//!
//! Source: `xen/include/public/io/console.h` at 4.17 (`struct xencons_interface`).

use crate::ring::ByteLayout;

/// Offset of the bytes to the guest.
pub const CONSOLE_IN: usize = 0;
/// Bytes of that ring, a power of two.
pub const CONSOLE_IN_SIZE: usize = 1024;
/// Offset of the bytes from the guest.
pub const CONSOLE_OUT: usize = 1024;
/// Bytes of that ring, a power of two.
pub const CONSOLE_OUT_SIZE: usize = 2048;
/// Offset of the consumer counter of the input ring; the guest writes it.
pub const CONSOLE_IN_CONS: usize = 3072;
/// Offset of the producer counter of the input ring; the backend writes it.
pub const CONSOLE_IN_PROD: usize = 3076;
/// Offset of the consumer counter of the output ring; the backend writes it.
pub const CONSOLE_OUT_CONS: usize = 3080;
/// Offset of the producer counter of the output ring; the guest writes it.
pub const CONSOLE_OUT_PROD: usize = 3084;
/// Bytes of the page in use.
pub const CONSOLE_SIZE: usize = 3088;

/// What is typed: the guest reads it.
pub const CONSOLE_INPUT: ByteLayout = ByteLayout::new(CONSOLE_IN, 1024, CONSOLE_IN_CONS, CONSOLE_IN_PROD);
/// What is shown: the guest writes it.
pub const CONSOLE_OUTPUT: ByteLayout = ByteLayout::new(CONSOLE_OUT, 2048, CONSOLE_OUT_CONS, CONSOLE_OUT_PROD);
const _: () =
    assert!(CONSOLE_INPUT.size() as usize == CONSOLE_IN_SIZE && CONSOLE_OUTPUT.size() as usize == CONSOLE_OUT_SIZE);
