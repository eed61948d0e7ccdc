// SPDX-License-Identifier: MIT OR Apache-2.0
//! Protocols between domains: what lies in a page that two of them share.

pub mod xs_wire;
