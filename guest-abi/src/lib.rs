// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest interface of Isthmus as data.
//!
//! It is the Xen PVH interface at version 4.17: hypercall numbers, shared structures and rings,
//! each with its size and offsets asserted at compile time. The crate holds no policy and no
//! code that touches hardware, so the hypervisor, the control domain's tools and anybody's guest
//! kernel use the same definitions.
//!
//! Who writes a guest kernel or a unikernel adds this crate; it needs neither an allocator nor an operating system.
//! Beside structures it has the code that is hard to get right and the same for everybody: [`ring`], over which
//! drivers and devices talk that do not trust each other, and [`io`], what they say. `examples/ram_disk.rs` is a block
//! driver and a device, complete but for the hypercalls.
//!
//! `unsafe` is used in one place: [`ring::Shared::from_raw`] makes a value of memory that another domain writes.
#![no_std]
#![deny(missing_docs)]
#![deny(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod console;
pub mod console_io;
pub mod cpuid;
pub mod domctl;
pub mod errno;
pub mod event_channel;
pub mod frame;
pub mod grant_table;
pub mod hvm;
pub mod hypercall;
pub mod ids;
pub mod io;
pub mod isthmus;
pub mod memory;
pub mod num;
pub mod physdev;
pub mod platform;
pub mod pvh;
pub mod ring;
pub mod sched;
pub mod shared_info;
pub mod sysctl;
pub mod vcpu;
pub mod version;
pub mod wire;

pub use errno::Errno;
pub use frame::{Gfn, Gpa, PAGE_SHIFT, PAGE_SIZE};
pub use ids::{DomId, EvtchnPort, GrantRef, VcpuId};
pub use wire::Wire;
