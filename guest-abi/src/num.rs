// SPDX-License-Identifier: MIT OR Apache-2.0
//! Narrowing that is meant: each function says in its name which bits it keeps.

const _: () = assert!(usize::BITS == 64, "the interface is for x86-64");

/// A 64-bit number as an index. Nothing is lost: the crate is for 64-bit targets only.
#[inline]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits, asserted above")]
pub const fn to_usize(raw: u64) -> usize {
    raw as usize
}

/// Bits 31:0.
#[inline]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "keeping the low half is the purpose")]
pub const fn low_u32(raw: u64) -> u32 {
    raw as u32
}

/// Bits 63:32.
#[inline]
#[must_use]
pub const fn high_u32(raw: u64) -> u32 {
    low_u32(raw >> 32)
}

/// Bits 15:0.
#[inline]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "keeping the low bits is the purpose")]
pub const fn low_u16(raw: u64) -> u16 {
    raw as u16
}

/// Bits 7:0.
#[inline]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "keeping the low bits is the purpose")]
pub const fn low_u8(raw: u64) -> u8 {
    raw as u8
}
