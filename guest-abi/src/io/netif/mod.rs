// SPDX-License-Identifier: MIT OR Apache-2.0
//! The network protocol: packets in granted pages, over a ring for each way and one for control.
//!
//! A packet takes one or several slots. The first slot's flags tell whether slots with *extra information* follow it
//! (segmentation offload, multicast filters, a hash), and each data slot's whether another one does. The two ways
//! differ: to the backend ([`NetTx`]) the first slot's size is the whole packet's, to the frontend ([`NetRx`]) each
//! slot's is its own. [`TxReader`] and [`RxReader`] put packets together from copied slots; what they refuse cannot be
//! skipped, since nobody knows where the next packet begins, and ends the connection.
//!
//! Every slot to the backend is answered, those with extra information by [`NETIF_RSP_NULL`]. The frontend gives the
//! backend empty pages on [`NetRx`]; since extra information covers the response's id, a response stands in the same
//! slot as the request whose page it is about: see [`Half::next_in`](crate::ring::Half::next_in).
//!
//! *Checksums.* A sender on the same machine may leave the TCP or UDP checksum to whoever needs it
//! ([`Checksum::Blank`]). *Segmentation.* A packet may be up to 65,535 bytes, with [`Gso`] saying how to cut it.
//!
//! Source: `xen/include/public/io/netif.h` at 4.17.

mod control;
mod packet;
#[cfg(test)]
mod tests;

pub use control::{
    CtrlRequest, CtrlResponse, NetCtrl, StaticGrant, XEN_NETIF_CTRL_HASH_ALGORITHM_NONE,
    XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ, XEN_NETIF_CTRL_HASH_TYPE_IPV4, XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP,
    XEN_NETIF_CTRL_HASH_TYPE_IPV6, XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP, XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW,
    XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER, XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED, XEN_NETIF_CTRL_STATUS_SUCCESS,
    XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING, XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING,
    XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE, XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS,
    XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE, XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM,
    XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS, XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING,
    XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE, XEN_NETIF_CTRLF_GREF_READONLY,
};
pub use packet::{BadPacket, MAX_RX_SLOTS, MAX_SLOTS, RxPacket, RxPart, RxReader, TxPacket, TxReader, push_packet};

use crate::ring::Protocol;
use crate::wire::Wire;

/// The largest packet.
pub const XEN_NETIF_MAX_TX_SIZE: usize = 0xffff;
/// The checksum is left to the receiver.
pub const NETTXF_CSUM_BLANK: u16 = 1 << 0;
/// The sender vouches for the data.
pub const NETTXF_DATA_VALIDATED: u16 = 1 << 1;
/// Another data slot follows.
pub const NETTXF_MORE_DATA: u16 = 1 << 2;
/// Extra information follows.
pub const NETTXF_EXTRA_INFO: u16 = 1 << 3;
/// The sender vouches for the data.
pub const NETRXF_DATA_VALIDATED: u16 = 1 << 0;
/// The checksum is left to the receiver.
pub const NETRXF_CSUM_BLANK: u16 = 1 << 1;
/// Another data slot follows.
pub const NETRXF_MORE_DATA: u16 = 1 << 2;
/// Extra information follows.
pub const NETRXF_EXTRA_INFO: u16 = 1 << 3;
/// Out of use.
pub const NETRXF_GSO_PREFIX: u16 = 1 << 4;

/// [`ExtraInfo::Gso`].
pub const XEN_NETIF_EXTRA_TYPE_GSO: u8 = 1;
/// [`ExtraInfo::MulticastAdd`].
pub const XEN_NETIF_EXTRA_TYPE_MCAST_ADD: u8 = 2;
/// [`ExtraInfo::MulticastDel`].
pub const XEN_NETIF_EXTRA_TYPE_MCAST_DEL: u8 = 3;
/// [`ExtraInfo::Hash`].
pub const XEN_NETIF_EXTRA_TYPE_HASH: u8 = 4;
/// More extra information follows.
pub const XEN_NETIF_EXTRA_FLAG_MORE: u8 = 1;
/// TCP over IPv4.
pub const XEN_NETIF_GSO_TYPE_TCPV4: u8 = 1;
/// TCP over IPv6.
pub const XEN_NETIF_GSO_TYPE_TCPV6: u8 = 2;

/// Sent or received.
pub const NETIF_RSP_OKAY: i16 = 0;
/// Failed.
pub const NETIF_RSP_ERROR: i16 = -1;
/// Thrown away.
pub const NETIF_RSP_DROPPED: i16 = -2;
/// No answer: the slot had extra information.
pub const NETIF_RSP_NULL: i16 = 1;

/// Names of nodes in xenstore.
pub mod node {
    /// Of a front: the reference of [`NetTx`](super::NetTx)'s page.
    pub const TX_RING_REF: &str = "tx-ring-ref";
    /// Of a front: the reference of [`NetRx`](super::NetRx)'s page.
    pub const RX_RING_REF: &str = "rx-ring-ref";
    /// Of a front with a channel for each ring, which the back offers with [`FEATURE_SPLIT_EVENT_CHANNELS`].
    pub const EVENT_CHANNEL_TX: &str = "event-channel-tx";
    /// As [`EVENT_CHANNEL_TX`].
    pub const EVENT_CHANNEL_RX: &str = "event-channel-rx";
    /// Of a back: 1 if it can use two channels.
    pub const FEATURE_SPLIT_EVENT_CHANNELS: &str = "feature-split-event-channels";
    /// Of a front: must be 1; pages are copied to, not flipped.
    pub const REQUEST_RX_COPY: &str = "request-rx-copy";
    /// Of a back: 1 if it copies.
    pub const FEATURE_RX_COPY: &str = "feature-rx-copy";
    /// Of a front: 1 if it sends an event when it has given pages.
    pub const FEATURE_RX_NOTIFY: &str = "feature-rx-notify";
    /// Of both: 1 if packets may have several slots.
    pub const FEATURE_SG: &str = "feature-sg";
    /// Of both: 1 if TCP over IPv4 may come in packets to be cut.
    pub const FEATURE_GSO_TCPV4: &str = "feature-gso-tcpv4";
    /// Of both: 1 if TCP over IPv6 may come in packets to be cut.
    pub const FEATURE_GSO_TCPV6: &str = "feature-gso-tcpv6";
    /// Of a front: 1 if checksums over IPv4 must *not* be left blank.
    pub const FEATURE_NO_CSUM_OFFLOAD: &str = "feature-no-csum-offload";
    /// Of both: 1 if checksums over IPv6 may be left blank.
    pub const FEATURE_IPV6_CSUM_OFFLOAD: &str = "feature-ipv6-csum-offload";
    /// Of a back: 1 if it filters multicast.
    pub const FEATURE_MULTICAST_CONTROL: &str = "feature-multicast-control";
    /// Of a back: 1 if it has a control ring.
    pub const FEATURE_CTRL_RING: &str = "feature-ctrl-ring";
    /// Of a front: the reference of [`NetCtrl`](super::NetCtrl)'s page.
    pub const CTRL_RING_REF: &str = "ctrl-ring-ref";
    /// Of a front: the control ring's event channel.
    pub const EVENT_CHANNEL_CTRL: &str = "event-channel-ctrl";
    /// Of both: the address, as `aa:bb:cc:dd:ee:ff`.
    pub const MAC: &str = "mac";
    /// Of both: the number of the device in the guest.
    pub const HANDLE: &str = "handle";
}

crate::wire_struct! {
    /// Data to the backend (`struct netif_tx_request`).
    pub struct TxRequest: 12 {
        /// The page.
        0 => pub gref: u32,
        /// Where the data begins in it.
        4 => pub offset: u16,
        /// `NETTXF_*`.
        6 => pub flags: u16,
        /// The front's own; comes back in the response.
        8 => pub id: u16,
        /// In a packet's first slot all its bytes, in others the slot's own.
        10 => pub size: u16,
    }
}

crate::wire_struct! {
    /// Answer to a slot (`struct netif_tx_response`).
    pub struct TxResponse: 4 {
        /// The slot's.
        0 => pub id: u16,
        /// `NETIF_RSP_*`.
        2 => pub status: i16,
    }
}

crate::wire_struct! {
    /// An empty page for the backend (`struct netif_rx_request`).
    pub struct RxRequest: 8 {
        /// The front's own; comes back in the response.
        0 => pub id: u16,
        /// Nothing.
        2 => pub pad: u16,
        /// The page.
        4 => pub gref: u32,
    }
}

crate::wire_struct! {
    /// A page with data for the frontend (`struct netif_rx_response`).
    pub struct RxResponse: 8 {
        /// The request's.
        0 => pub id: u16,
        /// Where the data begins.
        2 => pub offset: u16,
        /// `NETRXF_*`.
        4 => pub flags: u16,
        /// Bytes, or `NETIF_RSP_*` if negative.
        6 => pub status: i16,
    }
}

crate::wire_struct! {
    /// Extra information as it lies in a slot (`struct netif_extra_info`).
    pub struct RawExtra: 8 {
        /// `XEN_NETIF_EXTRA_TYPE_*`.
        0 => pub kind: u8,
        /// `XEN_NETIF_EXTRA_FLAG_*`.
        1 => pub flags: u8,
        /// What the type says.
        2 => pub data: [u8; 6],
    }
}

/// How to cut a packet into segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// Payload of each segment at most, not 0.
    pub size: u16,
    /// `XEN_NETIF_GSO_TYPE_*`.
    pub kind: u8,
    /// None are defined.
    pub features: u16,
}

/// A hash that one side has computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash {
    /// Number of the bit of `XEN_NETIF_CTRL_HASH_TYPE_*`.
    pub kind: u8,
    /// `XEN_NETIF_CTRL_HASH_ALGORITHM_*`.
    pub algorithm: u8,
    /// The hash.
    pub value: u32,
}

/// Extra information.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtraInfo {
    /// The packet is to be cut.
    Gso(Gso),
    /// A multicast address to receive.
    MulticastAdd([u8; 6]),
    /// A multicast address not to receive any more.
    MulticastDel([u8; 6]),
    /// The packet's hash.
    Hash(Hash),
}

impl ExtraInfo {
    /// Parses a slot's first bytes; also tells whether more extra information follows.
    ///
    /// # Errors
    /// [`BadPacket::Extra`] for a type that there is not, [`BadPacket::Gso`] for segments that cannot be.
    pub fn parse(raw: &RawExtra) -> Result<(Self, bool), BadPacket> {
        let [a, b, c, d, e, f] = raw.data;
        let extra = match raw.kind {
            XEN_NETIF_EXTRA_TYPE_GSO => {
                let gso = Gso { size: u16::from_le_bytes([a, b]), kind: c, features: u16::from_le_bytes([e, f]) };
                if gso.size == 0 || !matches!(gso.kind, XEN_NETIF_GSO_TYPE_TCPV4 | XEN_NETIF_GSO_TYPE_TCPV6) {
                    return Err(BadPacket::Gso(gso));
                }
                Self::Gso(gso)
            }
            XEN_NETIF_EXTRA_TYPE_MCAST_ADD => Self::MulticastAdd(raw.data),
            XEN_NETIF_EXTRA_TYPE_MCAST_DEL => Self::MulticastDel(raw.data),
            XEN_NETIF_EXTRA_TYPE_HASH => {
                Self::Hash(Hash { kind: a, algorithm: b, value: u32::from_le_bytes([c, d, e, f]) })
            }
            other => return Err(BadPacket::Extra(other)),
        };
        Ok((extra, raw.flags & XEN_NETIF_EXTRA_FLAG_MORE != 0))
    }

    /// As it lies in a slot.
    #[must_use]
    pub fn raw(&self, has_more: bool) -> RawExtra {
        let (kind, data) = match *self {
            Self::Gso(Gso { size, kind, features }) => {
                let ([a, b], [e, f]) = (size.to_le_bytes(), features.to_le_bytes());
                (XEN_NETIF_EXTRA_TYPE_GSO, [a, b, kind, 0, e, f])
            }
            Self::MulticastAdd(address) => (XEN_NETIF_EXTRA_TYPE_MCAST_ADD, address),
            Self::MulticastDel(address) => (XEN_NETIF_EXTRA_TYPE_MCAST_DEL, address),
            Self::Hash(Hash { kind, algorithm, value }) => {
                let [c, d, e, f] = value.to_le_bytes();
                (XEN_NETIF_EXTRA_TYPE_HASH, [kind, algorithm, c, d, e, f])
            }
        };
        RawExtra { kind, flags: if has_more { XEN_NETIF_EXTRA_FLAG_MORE } else { 0 }, data }
    }
}

/// A slot to the backend, copied out; what it is depends on the slots before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxSlot([u8; TxRequest::SIZE]);

/// A slot to the frontend, copied out; what it is depends on the slots before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RxSlot([u8; RxResponse::SIZE]);

macro_rules! slot {
    ($slot:ident: $data:ident) => {
        impl Wire for $slot {
            const SIZE: usize = $data::SIZE;
            fn from_bytes(bytes: &[u8]) -> Self {
                Self(Wire::from_bytes(bytes))
            }
            fn to_bytes(&self, bytes: &mut [u8]) {
                self.0.to_bytes(bytes);
            }
        }

        impl From<$data> for $slot {
            fn from(data: $data) -> Self {
                let mut bytes = [0; Self::SIZE];
                data.to_bytes(&mut bytes);
                Self(bytes)
            }
        }

        impl From<RawExtra> for $slot {
            fn from(extra: RawExtra) -> Self {
                let mut bytes = [0; Self::SIZE];
                extra.to_bytes(&mut bytes);
                Self(bytes)
            }
        }

        impl $slot {
            /// The slot as data.
            #[must_use]
            pub fn data(&self) -> $data {
                $data::from_bytes(&self.0)
            }

            /// The slot as extra information.
            #[must_use]
            pub fn extra(&self) -> RawExtra {
                RawExtra::from_bytes(&self.0)
            }
        }
    };
}
slot!(TxSlot: TxRequest);
slot!(RxSlot: RxResponse);

/// The ring to the backend.
#[derive(Debug)]
pub enum NetTx {}

impl Protocol for NetTx {
    type Request = TxSlot;
    type Response = TxResponse;
}

/// The ring to the frontend.
#[derive(Debug)]
pub enum NetRx {}

impl Protocol for NetRx {
    type Request = RxRequest;
    type Response = RxSlot;
}

/// Where a packet's checksum is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// In the packet, to be checked.
    #[default]
    Present,
    /// The sender vouches for the data.
    Validated,
    /// Not there: the sender is on this machine, and whoever sends the packet out of it computes the checksum.
    Blank,
}

impl Checksum {
    const fn of(flags: u16, blank: u16, validated: u16) -> Self {
        if flags & blank != 0 {
            Self::Blank
        } else if flags & validated != 0 {
            Self::Validated
        } else {
            Self::Present
        }
    }

    const fn tx_flags(self) -> u16 {
        match self {
            Self::Present => 0,
            Self::Validated => NETTXF_DATA_VALIDATED,
            Self::Blank => NETTXF_CSUM_BLANK | NETTXF_DATA_VALIDATED,
        }
    }
}
