// SPDX-License-Identifier: MIT OR Apache-2.0
//! The xenstore protocol: message heads, and the page with the two byte rings that carry them.
//!
//! A message is a [`Head`] and at most [`PAYLOAD_MAX`] bytes. A request is answered by a message of the
//! same type and request id, or by [`XS_ERROR`] whose payload is one of [`ERRORS`]. The same bytes go
//! over the ring of a guest, over `/dev/xen/xenbus` and over the daemon's socket.
//!
//! The ring's counters run freely; an index is a counter modulo [`RING_SIZE`]. Both sides write the page
//! at any time, so it is described by offsets.
//!
//! Source: `xen/include/public/io/xs_wire.h` at 4.17; the types above [`XS_DIRECTORY_PART`] and
//! [`RING_EVTCHN_PORT`] are of later versions.

use crate::ring::ByteLayout;

crate::wire_struct! {
    /// What stands before each payload (`struct xsd_sockmsg`).
    pub struct Head: 16 {
        /// `XS_*`.
        0 => pub kind: u32,
        /// Chosen by the client, returned with the answer.
        4 => pub req_id: u32,
        /// A transaction, or 0.
        8 => pub tx_id: u32,
        /// Bytes of the payload.
        12 => pub len: u32,
    }
}

/// The daemon's own business; the payload is a command with its arguments.
pub const XS_CONTROL: u32 = 0;
/// The names of a node's children.
pub const XS_DIRECTORY: u32 = 1;
/// A node's value.
pub const XS_READ: u32 = 2;
/// A node's permissions.
pub const XS_GET_PERMS: u32 = 3;
/// Asks for events below a path.
pub const XS_WATCH: u32 = 4;
/// Ends that.
pub const XS_UNWATCH: u32 = 5;
/// Begins a transaction.
pub const XS_TRANSACTION_START: u32 = 6;
/// Commits it or gives it up.
pub const XS_TRANSACTION_END: u32 = 7;
/// Tells the daemon of a new domain.
pub const XS_INTRODUCE: u32 = 8;
/// Tells it that a domain's connection is over.
pub const XS_RELEASE: u32 = 9;
/// The path of a domain's own nodes.
pub const XS_GET_DOMAIN_PATH: u32 = 10;
/// Sets a node's value.
pub const XS_WRITE: u32 = 11;
/// Makes a node.
pub const XS_MKDIR: u32 = 12;
/// Removes a node and all below.
pub const XS_RM: u32 = 13;
/// Sets a node's permissions.
pub const XS_SET_PERMS: u32 = 14;
/// From the daemon, unasked: something below a watched path has changed.
pub const XS_WATCH_EVENT: u32 = 15;
/// The answer to a request that failed: one of [`ERRORS`].
pub const XS_ERROR: u32 = 16;
/// Whether the daemon knows a domain.
pub const XS_IS_DOMAIN_INTRODUCED: u32 = 17;
/// A suspended domain runs again.
pub const XS_RESUME: u32 = 18;
/// Lets a domain act for another.
pub const XS_SET_TARGET: u32 = 19;
/// Ends all of a client's watches.
pub const XS_RESET_WATCHES: u32 = 21;
/// The names of a node's children, from an offset on.
pub const XS_DIRECTORY_PART: u32 = 22;
/// What the daemon can do.
pub const XS_GET_FEATURE: u32 = 23;
/// What it may do for a domain.
pub const XS_SET_FEATURE: u32 = 24;
/// The limits of domains.
pub const XS_GET_QUOTA: u32 = 25;
/// Changes one.
pub const XS_SET_QUOTA: u32 = 26;

/// The longest payload.
pub const PAYLOAD_MAX: usize = 4096;
/// The longest path that begins at the root.
pub const ABS_PATH_MAX: usize = 3072;
/// The longest path that begins at the caller's own node.
pub const REL_PATH_MAX: usize = 2048;

/// The errors that the protocol knows, as their payload says them, without its final NUL.
pub const ERRORS: [&str; 16] = [
    "EINVAL",
    "EACCES",
    "EEXIST",
    "EISDIR",
    "ENOENT",
    "ENOMEM",
    "ENOSPC",
    "EIO",
    "ENOTEMPTY",
    "ENOSYS",
    "EROFS",
    "EBUSY",
    "EAGAIN",
    "EISCONN",
    "E2BIG",
    "EPERM",
];

/// Bytes of each ring, a power of two.
pub const RING_SIZE: usize = 1024;
/// Offset of the bytes to the daemon.
pub const RING_REQ: usize = 0;
/// Offset of the bytes from the daemon.
pub const RING_RSP: usize = 1024;
/// Offset of the consumer counter of requests; the daemon writes it.
pub const RING_REQ_CONS: usize = 2048;
/// Offset of the producer counter of requests; the client writes it.
pub const RING_REQ_PROD: usize = 2052;
/// Offset of the consumer counter of answers; the client writes it.
pub const RING_RSP_CONS: usize = 2056;
/// Offset of the producer counter of answers; the daemon writes it.
pub const RING_RSP_PROD: usize = 2060;
/// Requests, as a ring: the client writes it.
pub const REQUESTS: ByteLayout = ByteLayout::new(RING_REQ, 1024, RING_REQ_CONS, RING_REQ_PROD);
/// Answers and events, as a ring: the daemon writes it.
pub const RESPONSES: ByteLayout = ByteLayout::new(RING_RSP, 1024, RING_RSP_CONS, RING_RSP_PROD);
const _: () = assert!(REQUESTS.size() as usize == RING_SIZE && RESPONSES.size() as usize == RING_SIZE);
/// Offset of a word with `RING_FEATURE_*`; the daemon writes it.
pub const RING_SERVER_FEATURES: usize = 2064;
/// Offset of the connection's state, `RING_CONNECTED` or `RING_RECONNECT`.
pub const RING_CONNECTION: usize = 2068;
/// Offset of the reason why the daemon serves this ring no more, `RING_ERROR_*`; the daemon writes it.
pub const RING_ERROR: usize = 2072;
/// Bytes of the page in use at 4.17.
pub const RING_PAGE_USED: usize = 2076;
/// Offset of the client's port, which later versions put there for a client that cannot ask.
pub const RING_EVTCHN_PORT: usize = 2076;

/// A client may ask for a fresh connection.
pub const RING_FEATURE_RECONNECTION: u32 = 1;
/// The word at [`RING_ERROR`] means something.
pub const RING_FEATURE_ERROR: u32 = 2;

/// In [`RING_CONNECTION`]: all is as it should be.
pub const RING_CONNECTED: u32 = 0;
/// In [`RING_CONNECTION`]: the client asks for a fresh connection; the daemon answers with [`RING_CONNECTED`].
pub const RING_RECONNECT: u32 = 1;

/// In [`RING_ERROR`]: none.
pub const RING_ERROR_NONE: u32 = 0;
/// In [`RING_ERROR`]: the daemon could not use the ring.
pub const RING_ERROR_COMM: u32 = 1;
/// In [`RING_ERROR`]: the client's counters cannot be true.
pub const RING_ERROR_RINGIDX: u32 = 2;
/// In [`RING_ERROR`]: the client has sent what is no message.
pub const RING_ERROR_PROTO: u32 = 3;
