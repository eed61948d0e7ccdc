// SPDX-License-Identifier: MIT OR Apache-2.0
//! xenstore: the tree through which domains find each other's devices.
//!
//! The daemon is a state ([`store`]) and what carries messages to it ([`daemon`]). The state is changed by
//! entries only, and each message's entries are one record of a log ([`log`]) before anything of its
//! outcome can be seen from outside. So whoever is killed, at whatever instruction, is continued by its
//! successor where it stood: the log is the state, and the rings of the guests hold the rest.
//!
//! Below that, each file is one idea: [`wire`] bytes and messages, [`path`] names, [`perms`] rights,
//! [`tree`] nodes, [`watch`] who wants to know, [`transaction`] several changes as one, [`quota`] limits,
//! [`stream`] what has been taken from and given to a client, [`ring`] the page that carries it.
//! [`client`] is the other end, for this program's other commands.
//!
//! Source: `docs/misc/xenstore.txt`, `xenstore-ring.txt` and `xen/include/public/io/xs_wire.h` of Xen 4.17.

pub mod client;
pub mod daemon;
pub mod log;
pub mod path;
pub mod perms;
pub mod quota;
pub mod ring;
pub mod store;
pub mod stream;
pub mod transaction;
pub mod tree;
pub mod watch;
pub mod wire;

use guest_abi::DomId;
use serde::{Deserialize, Serialize};

/// Where local clients find the daemon, under the name that Debian's programs use.
pub const SOCKET: &str = "/var/run/xenstored/socket";

/// A client's connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Conn {
    /// A domain's ring: it outlives the daemon.
    Ring(#[serde(with = "domid")] DomId),
    /// A local client's socket: it ends with the daemon.
    Socket(u32),
}

impl std::fmt::Display for Conn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ring(domain) => write!(f, "{domain}"),
            Self::Socket(number) => write!(f, "local client {number}"),
        }
    }
}

/// How the log holds a domain's number.
mod domid {
    use guest_abi::DomId;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(domain: &DomId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u16(domain.raw())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DomId, D::Error> {
        u16::deserialize(deserializer).map(DomId::new)
    }
}
