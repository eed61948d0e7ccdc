// SPDX-License-Identifier: MIT OR Apache-2.0
//! Protocols between domains: what lies in a page that two of them share, and its messages, parsed from what was
//! copied out of it.
//!
//! A device's two halves first find each other through xenstore ([`xs_wire`]); the names of the nodes by which they do
//! stand with each protocol, and what all devices have in common in [`xenbus`].

pub mod blkif;
pub mod netif;
pub mod xenbus;
pub mod xs_wire;
