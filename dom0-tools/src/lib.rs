// SPDX-License-Identifier: MIT OR Apache-2.0
//! The control domain's library: what `isthmus` and the host's tools are made of.
#![deny(missing_docs)]
#![deny(unsafe_code)]

pub mod agent;
pub mod builder;
pub mod cli;
pub mod config;
pub mod exec_protocol;
pub mod sys;
