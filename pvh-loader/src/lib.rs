// SPDX-License-Identifier: MIT OR Apache-2.0
//! Loading PVH kernels: from an image file to what goes where in a domain's memory.
//!
//! The hypervisor loads dom0 and the guests that are boot modules by it, dom0's tools load every other guest, and
//! `xtask` unpacks kernels by it on the host. Nothing here touches memory of a domain: [`elf`] says what a
//! kernel consists of, [`plan`] where it goes and what it finds there, [`acpi`] makes its tables, and the
//! caller copies. `bzimage` (feature of the same name, needs `std`) finds the ELF inside a compressed Linux image.
//!
//! Images are untrusted bytes: every length is checked before it is used, and each error says what is wrong with the
//! file and what to do about it. It does not repeat the file's name, which the caller knows.
#![cfg_attr(not(any(test, feature = "bzimage")), no_std)]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

extern crate alloc;

pub mod acpi;
#[cfg(feature = "bzimage")]
pub mod bzimage;
pub mod elf;
pub mod map;
pub mod plan;
#[cfg(any(test, feature = "sample"))]
pub mod sample;
pub mod span;
