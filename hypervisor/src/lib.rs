// SPDX-License-Identifier: MIT OR Apache-2.0
//! The logic of the hypervisor.
//!
//! Everything here is plain Rust without `unsafe` and builds and tests on the host. It reaches
//! the hardware only through what it declares itself: [`backend::Machine`] and
//! [`backend::VcpuHw`] for the CPU, [`mem::PhysMem`] for memory. The bare-metal binary around it
//! is `main.rs` with `machine/`.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

extern crate alloc;

pub mod addr;
pub mod backend;
#[cfg(test)]
mod book_tests;
pub mod boot;
pub mod counters;
pub mod debug;
pub mod domain;
pub mod emul;
pub mod evtchn;
pub mod exit;
pub mod facts;
pub mod frame;
pub mod grant;
pub mod guest_mem;
pub mod hypercall;
pub mod hypervisor;
pub mod input;
pub mod lock;
pub mod log_ring;
pub mod mem;
pub mod msr;
pub mod p2m;
pub mod pcpu;
pub mod policy;
pub mod progress;
pub mod room;
pub mod sched;
pub mod screen;
#[cfg(test)]
mod testing;
pub mod time;
pub mod tlb;
pub mod vcpu;
pub mod vmx;
