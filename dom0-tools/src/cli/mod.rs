// SPDX-License-Identifier: MIT OR Apache-2.0
//! The commands of `isthmus`, one module each. Results go to standard output, by `--json` in a form
//! for programs; errors to standard error.

pub mod bench;
pub mod counters;
pub mod devices;
pub mod guests;
pub mod info;
pub mod selftest;
pub mod store;
pub mod xenstored;
