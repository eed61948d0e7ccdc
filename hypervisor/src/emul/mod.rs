// SPDX-License-Identifier: MIT OR Apache-2.0
//! The few devices that the hypervisor emulates itself.
//!
//! A device is here only if a guest's CPU cannot do without it: the local APIC, the I/O APIC of
//! the control domain, the PV clock with its timers. Everything else is a process in a domain.
//! None of it touches hardware except through a trait, so all of it is tested on the host.

pub mod decode;
pub mod ioapic;
pub mod lapic;
pub mod lapic_timer;
pub mod mmio;
pub mod port;
pub mod pvclock;
