// SPDX-License-Identifier: MIT OR Apache-2.0
//! From what the boot loader left to domains that can be started.
//!
//! Everything between the first instruction and the first VM entry that is a decision and not a
//! register write is here, as functions from bytes and ranges to a plan: which words were on the
//! command line, what each boot module is, who owns which piece of the machine's memory, where
//! a kernel's segments go, which ACPI tables a domain sees. The bare-metal code gathers the
//! input, executes the plan (moves, copies, zeroes), and decides nothing.
//!
//! All input is somebody else's: the user's command line, the firmware's map and tables, a
//! kernel file. So every function returns an error whose text names the object, the cause and
//! the remedy, because it is printed on the console as it is and is all that the user will see.
//!
//! Start with [`machine_map`] for the layout of memory and [`module`] for the input.

pub mod acpi;
pub mod cmdline;
pub mod dom0_map;
pub mod host_map;
pub mod machine_map;
pub mod module;

pub use pvh_loader::{elf, plan as pvh, span};
