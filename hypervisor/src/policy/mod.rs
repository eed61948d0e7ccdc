// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest is told about its CPU, and what it may set in it.
//!
//! Everything here is an allow-list. A feature that nobody put on the list is not offered, an MSR
//! that has no rule raises #GP, a control-register bit without an offered feature is reserved. So a
//! CPU that is newer than the hypervisor cannot open a door that nobody has looked at.
//! [`hygiene`] is about the other direction: what the CPU itself could tell one domain of another.

pub mod control;
pub mod cpuid;
pub mod features;
pub mod hygiene;
pub mod msr;

#[cfg(test)]
mod book_tests;
