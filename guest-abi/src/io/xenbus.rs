// SPDX-License-Identifier: MIT OR Apache-2.0
//! How the two halves of a device find each other: their states, and the nodes in xenstore that all protocols share.
//!
//! Each half has a folder with a node `state` that it writes and the other watches. Both begin at
//! [`State::Initialising`]; the front writes its rings' grant references and event channels, the back maps them, and
//! both end in [`State::Connected`].
//!
//! Source: `xen/include/public/io/xenbus.h` at 4.17.

use core::fmt;

/// Where a half stands. The number is what the node `state` holds, in decimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum State {
    /// There is no such half.
    Unknown = 0,
    /// It exists.
    Initialising = 1,
    /// A back that waits for the front's rings.
    InitWait = 2,
    /// A front that has written down its rings.
    Initialised = 3,
    /// It works.
    Connected = 4,
    /// It is going.
    Closing = 5,
    /// It is gone, and lets go of everything.
    Closed = 6,
    /// Something is changed while it works.
    Reconfiguring = 7,
    /// It has changed.
    Reconfigured = 8,
}

impl State {
    /// Reads a node's value: decimal digits. Some write a NUL behind them.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let [digit, rest @ ..] = value else { return None };
        if !matches!(rest, [] | [0]) {
            return None;
        }
        Some(match digit {
            b'0' => Self::Unknown,
            b'1' => Self::Initialising,
            b'2' => Self::InitWait,
            b'3' => Self::Initialised,
            b'4' => Self::Connected,
            b'5' => Self::Closing,
            b'6' => Self::Closed,
            b'7' => Self::Reconfiguring,
            b'8' => Self::Reconfigured,
            _ => return None,
        })
    }

    /// The value for the node.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "0",
            Self::Initialising => "1",
            Self::InitWait => "2",
            Self::Initialised => "3",
            Self::Connected => "4",
            Self::Closing => "5",
            Self::Closed => "6",
            Self::Reconfiguring => "7",
            Self::Reconfigured => "8",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A node of a queue of several: `queue-3/ring-ref`. Devices with one queue have the nodes without the prefix.
///
/// ```
/// use guest_abi::io::xenbus::QueueNode;
/// assert_eq!(QueueNode { queue: 3, node: "ring-ref" }.to_string(), "queue-3/ring-ref");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueNode<'a> {
    /// Which queue, from 0.
    pub queue: u32,
    /// The node's name.
    pub node: &'a str,
}

impl fmt::Display for QueueNode<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "queue-{}/{}", self.queue, self.node)
    }
}

/// The half's [`State`].
pub const STATE: &str = "state";
/// Of a front: the back's folder, absolute.
pub const BACKEND: &str = "backend";
/// Of a front: the domain of the back.
pub const BACKEND_ID: &str = "backend-id";
/// Of a back: the front's folder, absolute.
pub const FRONTEND: &str = "frontend";
/// Of a back: the domain of the front.
pub const FRONTEND_ID: &str = "frontend-id";
/// Of a back: 1 while the device is meant to be there.
pub const ONLINE: &str = "online";
/// Of a back: [`HOTPLUG_CONNECTED`] once the host's side of the device is set up.
pub const HOTPLUG_STATUS: &str = "hotplug-status";
/// The value that [`HOTPLUG_STATUS`] must have, without anything behind it.
pub const HOTPLUG_CONNECTED: &str = "connected";
/// Of a front: the event channel's port.
pub const EVENT_CHANNEL: &str = "event-channel";
/// Of a back: queues that it can serve.
pub const MULTI_QUEUE_MAX_QUEUES: &str = "multi-queue-max-queues";
/// Of a front: queues that it uses. Each then has its nodes in a folder: [`QueueNode`].
pub const MULTI_QUEUE_NUM_QUEUES: &str = "multi-queue-num-queues";
