// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can happen to the state.

use guest_abi::DomId;
use serde::{Deserialize, Serialize};

use crate::xenstore::Conn;
use crate::xenstore::path::Path;
use crate::xenstore::perms::Perms;
use crate::xenstore::quota::Quota;
use crate::xenstore::tree::Change;
use crate::xenstore::watch::Special;

/// One change of the state.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are named after what they are")]
pub enum Entry {
    /// A daemon has started on this log, for the `count`th time.
    Started { count: u64 },
    /// A node as a stored tree has it.
    Node { path: Path, value: Vec<u8>, perms: Perms },
    /// The tree has changed.
    Change(Change),
    /// Who may watch for news that is no node's.
    SpecialPerms { special: Special, perms: Perms },
    /// A limit was set, for a domain or for all, or taken back.
    Quota { domain: Option<u16>, quota: Quota, limit: Option<u32> },
    /// A domain's connection begins, its ring's counters standing at these numbers.
    Introduced {
        #[serde(with = "crate::xenstore::domid")]
        domain: DomId,
        gfn: u64,
        port: u32,
        taken: u32,
        said: u32,
    },
    /// It ends.
    Released {
        #[serde(with = "crate::xenstore::domid")]
        domain: DomId,
    },
    /// It begins anew, with counters at zero.
    Reconnected {
        #[serde(with = "crate::xenstore::domid")]
        domain: DomId,
    },
    /// It is not served any more: `RING_ERROR_*`.
    Refused {
        #[serde(with = "crate::xenstore::domid")]
        domain: DomId,
        error: u32,
    },
    /// The domain has shut down, or runs again.
    ShutDown {
        #[serde(with = "crate::xenstore::domid")]
        domain: DomId,
        is: bool,
    },
    /// The domain may act for another.
    Target {
        #[serde(with = "crate::xenstore::domid")]
        domain: DomId,
        target: u16,
    },
    /// Bytes were taken from a ring that do not make a message whole.
    Received {
        #[serde(with = "crate::xenstore::domid")]
        domain: DomId,
        bytes: Vec<u8>,
    },
    /// The last bytes of a message were taken from a ring; this message's outcome is the rest of the record.
    Taken {
        #[serde(with = "crate::xenstore::domid")]
        domain: DomId,
        bytes: u32,
        kind: u32,
        req_id: u32,
        tx_id: u32,
    },
    /// A client is told something.
    Said { conn: Conn, bytes: Vec<u8> },
    /// A watch was made.
    Watched { conn: Conn, path: String, token: Vec<u8> },
    /// It was ended.
    Unwatched { conn: Conn, path: String, token: Vec<u8> },
    /// All watches and transactions of a client were ended.
    Forgotten { conn: Conn },
    /// A transaction began.
    Began { conn: Conn, transaction: u32 },
    /// It changed something, as yet for itself.
    Within { conn: Conn, transaction: u32, change: Change },
    /// It ended; what it changed, if it was committed, follows or precedes.
    Ended { conn: Conn, transaction: u32 },
}

impl Entry {
    /// Whether it must outlive the daemon: what only concerns a local client's connection need not.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        match self {
            Self::Said { conn, .. }
            | Self::Watched { conn, .. }
            | Self::Unwatched { conn, .. }
            | Self::Forgotten { conn }
            | Self::Began { conn, .. }
            | Self::Within { conn, .. }
            | Self::Ended { conn, .. } => matches!(conn, Conn::Ring(_)),
            _ => true,
        }
    }
}
