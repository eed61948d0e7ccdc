// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a domain may use of the store.
//!
//! The control domain is not limited. All that a guest can make the daemon remember is counted by one of
//! these, so that what it costs at most can be said: see the chapter on the store.

use serde::{Deserialize, Serialize};

use super::wire::Code;

/// One kind of limit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Quota {
    /// Nodes that a domain owns.
    Nodes,
    /// Bytes of these nodes and of what its transactions have changed.
    Memory,
    /// Bytes of a value.
    NodeSize,
    /// Entries in a node's permissions.
    NodePermissions,
    /// Watches.
    Watches,
    /// Transactions at a time.
    Transactions,
    /// Nodes that one transaction has seen and changed.
    TransactionNodes,
}

impl Quota {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Nodes,
        Self::Memory,
        Self::NodeSize,
        Self::NodePermissions,
        Self::Watches,
        Self::Transactions,
        Self::TransactionNodes,
    ];

    /// Its name in the protocol.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::Memory => "memory",
            Self::NodeSize => "node-size",
            Self::NodePermissions => "node-permissions",
            Self::Watches => "watches",
            Self::Transactions => "transactions",
            Self::TransactionNodes => "transaction-nodes",
        }
    }

    /// The one of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|quota| quota.name() == name)
    }

    /// The limit of a domain for which none was set.
    #[must_use]
    pub fn default_limit(self) -> u32 {
        match self {
            Self::Nodes => 1000,
            Self::Memory => 1 << 20,
            Self::NodeSize => 2048,
            Self::NodePermissions => 5,
            Self::Watches => 128,
            Self::Transactions => 10,
            Self::TransactionNodes => 1024,
        }
    }

    /// What a domain is told that would exceed it.
    #[must_use]
    pub fn code(self) -> Code {
        match self {
            Self::Watches => Code::E2big,
            _ => Code::Enospc,
        }
    }
}
