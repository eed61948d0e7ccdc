// SPDX-License-Identifier: MIT OR Apache-2.0
//! The control domain's library: what `isthmus` and the host's tools are made of.
#![deny(missing_docs)]
#![deny(unsafe_code)]

pub mod agent;
pub mod builder;
pub mod cli;
pub mod config;
pub mod console;
pub mod devices;
pub mod exec_protocol;
pub mod nodes;
pub mod registry;
pub mod store;
pub mod supervisor;
pub mod sys;
pub mod toolstack;
pub mod xenstore;
