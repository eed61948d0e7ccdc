// SPDX-License-Identifier: MIT OR Apache-2.0
//! The control ring: how a frontend has its packets spread over queues, and pages kept mapped.

use crate::ring::Protocol;

/// What the backend can hash.
pub const XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS: u16 = 1;
/// What is to be hashed: `data[0]` is `XEN_NETIF_CTRL_HASH_TYPE_*`.
pub const XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS: u16 = 2;
/// The key: `data[0]` is the page, `data[1]` its bytes.
pub const XEN_NETIF_CTRL_TYPE_SET_HASH_KEY: u16 = 3;
/// How many entries the table from hashes to queues may have.
pub const XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE: u16 = 4;
/// How many it shall have: `data[0]`.
pub const XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE: u16 = 5;
/// Entries of it: `data[0]` is the page, `data[1]` how many, `data[2]` the first.
pub const XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING: u16 = 6;
/// How to hash: `data[0]` is `XEN_NETIF_CTRL_HASH_ALGORITHM_*`.
pub const XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM: u16 = 7;
/// How many pages the backend keeps mapped for queue `data[0]`.
pub const XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE: u16 = 8;
/// Keep pages mapped: `data[0]` is the queue, `data[1]` a page of [`StaticGrant`], `data[2]` how many.
pub const XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING: u16 = 9;
/// Keep them no more; arguments as before.
pub const XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING: u16 = 10;

/// Done.
pub const XEN_NETIF_CTRL_STATUS_SUCCESS: u32 = 0;
/// There is no such operation.
pub const XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED: u32 = 1;
/// An argument makes no sense.
pub const XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER: u32 = 2;
/// More than the backend can keep.
pub const XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW: u32 = 3;

/// The backend spreads packets as it likes.
pub const XEN_NETIF_CTRL_HASH_ALGORITHM_NONE: u32 = 0;
/// Toeplitz, as network cards have it.
pub const XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ: u32 = 1;
/// Over the addresses of IPv4.
pub const XEN_NETIF_CTRL_HASH_TYPE_IPV4: u32 = 1 << 0;
/// Over the addresses of IPv4 and the ports of TCP.
pub const XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP: u32 = 1 << 1;
/// Over the addresses of IPv6.
pub const XEN_NETIF_CTRL_HASH_TYPE_IPV6: u32 = 1 << 2;
/// Over the addresses of IPv6 and the ports of TCP.
pub const XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP: u32 = 1 << 3;
/// The page is for reading.
pub const XEN_NETIF_CTRLF_GREF_READONLY: u16 = 1;

crate::wire_struct! {
    /// What a frontend wants changed (`struct xen_netif_ctrl_request`).
    pub struct CtrlRequest: 16 {
        /// The front's own.
        0 => pub id: u16,
        /// `XEN_NETIF_CTRL_TYPE_*`.
        2 => pub kind: u16,
        /// What the type says.
        4 => pub data: [u32; 3],
    }
}

crate::wire_struct! {
    /// What became of it (`struct xen_netif_ctrl_response`).
    pub struct CtrlResponse: 12 {
        /// The request's.
        0 => pub id: u16,
        /// The request's.
        2 => pub kind: u16,
        /// `XEN_NETIF_CTRL_STATUS_*`.
        4 => pub status: u32,
        /// What the type says.
        8 => pub data: u32,
    }
}

crate::wire_struct! {
    /// A page to keep mapped (`struct xen_netif_gref`).
    pub struct StaticGrant: 8 {
        /// The page.
        0 => pub gref: u32,
        /// `XEN_NETIF_CTRLF_GREF_*`.
        4 => pub flags: u16,
        /// `XEN_NETIF_CTRL_STATUS_*`; written by the backend.
        6 => pub status: u16,
    }
}

/// The ring for control.
#[derive(Debug)]
pub enum NetCtrl {}

impl Protocol for NetCtrl {
    type Request = CtrlRequest;
    type Response = CtrlResponse;
}

impl CtrlRequest {
    /// The response to this request.
    #[must_use]
    pub const fn response(&self, status: u32, data: u32) -> CtrlResponse {
        CtrlResponse { id: self.id, kind: self.kind, status, data }
    }
}
