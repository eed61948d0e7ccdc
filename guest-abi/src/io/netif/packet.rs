// SPDX-License-Identifier: MIT OR Apache-2.0
//! Packets from slots, and slots from packets.

use super::{
    Checksum, ExtraInfo, Gso, Hash, NETRXF_CSUM_BLANK, NETRXF_DATA_VALIDATED, NETRXF_EXTRA_INFO, NETRXF_MORE_DATA,
    NETTXF_CSUM_BLANK, NETTXF_DATA_VALIDATED, NETTXF_EXTRA_INFO, NETTXF_MORE_DATA, NetTx, RxSlot, TxRequest, TxSlot,
    XEN_NETIF_MAX_TX_SIZE,
};
use crate::PAGE_SIZE;
use crate::num::low_u16;
use crate::ring::{Front, RingError, SharedMemory};

/// Data slots of a packet to the backend: what every backend accepts, and what this one does at most.
pub const MAX_SLOTS: usize = 18;
/// Data slots of a packet to the frontend.
pub const MAX_RX_SLOTS: usize = MAX_SLOTS + 1;
/// Slots with extra information in a packet: one of each type.
const MAX_EXTRAS: u8 = 4;

/// What makes a packet unreadable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadPacket {
    /// More data slots than there may be.
    TooManySlots,
    /// More extra information than there is.
    TooManyExtras,
    /// Extra information of a type that there is not.
    Extra(u8),
    /// Segmentation that cannot be.
    Gso(Gso),
    /// Data that leaves its page.
    CrossesPage {
        /// Where it begins.
        offset: u16,
        /// Its bytes.
        size: u16,
    },
    /// The slots have more bytes than the packet.
    Sizes {
        /// Bytes of the packet.
        total: u16,
        /// Bytes of the slots behind the first.
        rest: u32,
    },
    /// More bytes than a packet can have.
    TooLong,
}

/// What extra information said of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Extras {
    gso: Option<Gso>,
    hash: Option<Hash>,
    /// An address, and whether it is added.
    multicast: Option<([u8; 6], bool)>,
    count: u8,
}

impl Extras {
    fn add(&mut self, extra: ExtraInfo) -> Result<(), BadPacket> {
        if self.count == MAX_EXTRAS {
            return Err(BadPacket::TooManyExtras);
        }
        self.count += 1;
        match extra {
            ExtraInfo::Gso(gso) => self.gso = Some(gso),
            ExtraInfo::Hash(hash) => self.hash = Some(hash),
            ExtraInfo::MulticastAdd(address) => self.multicast = Some((address, true)),
            ExtraInfo::MulticastDel(address) => self.multicast = Some((address, false)),
        }
        Ok(())
    }
}

/// What the next slot is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Expect {
    #[default]
    First,
    Extra {
        then_more_data: bool,
    },
    MoreData,
}

impl Expect {
    const fn after_extra(has_more: bool, then_more_data: bool) -> Self {
        match (has_more, then_more_data) {
            (true, _) => Self::Extra { then_more_data },
            (false, true) => Self::MoreData,
            (false, false) => Self::First,
        }
    }

    const fn after_data(has_extra: bool, has_more: bool) -> Self {
        if has_extra { Self::Extra { then_more_data: has_more } } else { Self::after_extra(false, has_more) }
    }
}

/// A packet from a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxPacket {
    /// Data slots; in the first the size is its own, as in the others.
    slots: [TxRequest; MAX_SLOTS],
    len: usize,
    checksum: Checksum,
    extras: Extras,
    total: u16,
}

impl TxPacket {
    /// Where the data is: slots whose `size` is their own and which lie in their pages.
    #[must_use]
    pub fn parts(&self) -> &[TxRequest] {
        &self.slots[..self.len]
    }

    /// Bytes of the packet.
    #[must_use]
    pub const fn len_bytes(&self) -> usize {
        self.total as usize
    }

    /// Where the checksum is.
    #[must_use]
    pub const fn checksum(&self) -> Checksum {
        self.checksum
    }

    /// How to cut the packet.
    #[must_use]
    pub const fn gso(&self) -> Option<Gso> {
        self.extras.gso
    }

    /// The packet's hash.
    #[must_use]
    pub const fn hash(&self) -> Option<Hash> {
        self.extras.hash
    }

    /// A multicast address to receive (`true`) or not to receive any more; the packet itself is then empty of meaning.
    #[must_use]
    pub const fn multicast(&self) -> Option<([u8; 6], bool)> {
        self.extras.multicast
    }

    /// How many responses of [`NETIF_RSP_NULL`](super::NETIF_RSP_NULL) are due beside one for each part.
    #[must_use]
    pub const fn nr_extras(&self) -> usize {
        self.extras.count as usize
    }
}

/// Puts packets together from a frontend's slots.
#[derive(Debug, Default)]
pub struct TxReader {
    expect: Expect,
    packet: Option<TxPacket>,
    broken: Option<BadPacket>,
}

impl TxReader {
    /// Before the first slot.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next slot. Returns a packet with its last slot.
    ///
    /// # Errors
    /// [`BadPacket`]; nothing can be read after it.
    pub fn feed(&mut self, slot: &TxSlot) -> Result<Option<TxPacket>, BadPacket> {
        match self.broken {
            Some(bad) => Err(bad),
            None => self.take(slot).inspect_err(|bad| self.broken = Some(*bad)),
        }
    }

    fn take(&mut self, slot: &TxSlot) -> Result<Option<TxPacket>, BadPacket> {
        let empty = TxPacket {
            slots: [TxRequest::default(); MAX_SLOTS],
            len: 0,
            checksum: Checksum::Present,
            extras: Extras::default(),
            total: 0,
        };
        let packet = self.packet.get_or_insert(empty);
        self.expect = match self.expect {
            Expect::First => {
                let data = slot.data();
                packet.total = data.size;
                packet.checksum = Checksum::of(data.flags, NETTXF_CSUM_BLANK, NETTXF_DATA_VALIDATED);
                packet.add(data)?;
                Expect::after_data(data.flags & NETTXF_EXTRA_INFO != 0, data.flags & NETTXF_MORE_DATA != 0)
            }
            Expect::Extra { then_more_data } => {
                let (extra, has_more) = ExtraInfo::parse(&slot.extra())?;
                packet.extras.add(extra)?;
                Expect::after_extra(has_more, then_more_data)
            }
            Expect::MoreData => {
                let data = slot.data();
                packet.add(data)?;
                Expect::after_data(false, data.flags & NETTXF_MORE_DATA != 0)
            }
        };
        if self.expect != Expect::First {
            return Ok(None);
        }
        self.packet.take().map(TxPacket::complete).transpose()
    }
}

impl TxPacket {
    fn add(&mut self, data: TxRequest) -> Result<(), BadPacket> {
        *self.slots.get_mut(self.len).ok_or(BadPacket::TooManySlots)? = data;
        self.len += 1;
        Ok(())
    }

    /// Gives the first slot its own size and checks that everything lies in pages.
    fn complete(mut self) -> Result<Self, BadPacket> {
        let rest: u32 = self.parts().iter().skip(1).map(|part| u32::from(part.size)).sum();
        let bad = BadPacket::Sizes { total: self.total, rest };
        let own = u32::from(self.total).checked_sub(rest).ok_or(bad)?;
        self.slots[0].size = low_u16(own.into());
        for part in self.parts() {
            in_page(part.offset, part.size)?;
        }
        Ok(self)
    }
}

fn in_page(offset: u16, size: u16) -> Result<(), BadPacket> {
    if usize::from(offset) + usize::from(size) > PAGE_SIZE {
        return Err(BadPacket::CrossesPage { offset, size });
    }
    Ok(())
}

/// A packet to a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RxPacket {
    parts: [RxPart; MAX_RX_SLOTS],
    len: usize,
    checksum: Checksum,
    extras: Extras,
    total: u16,
    error: Option<i16>,
}

/// Data in a page that the frontend gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RxPart {
    /// The index of the response, which is also that of the request with the page, modulo the number of slots.
    pub index: u32,
    /// Where the data begins in the page.
    pub offset: u16,
    /// Its bytes, within the page.
    pub size: u16,
}

impl RxPacket {
    /// Where the data is.
    #[must_use]
    pub fn parts(&self) -> &[RxPart] {
        &self.parts[..self.len]
    }

    /// Bytes of the packet.
    #[must_use]
    pub const fn len_bytes(&self) -> usize {
        self.total as usize
    }

    /// Where the checksum is.
    #[must_use]
    pub const fn checksum(&self) -> Checksum {
        self.checksum
    }

    /// How the packet is to be cut, or has been put together.
    #[must_use]
    pub const fn gso(&self) -> Option<Gso> {
        self.extras.gso
    }

    /// `NETIF_RSP_*` if the backend failed to fill a page; the packet is then to be thrown away.
    #[must_use]
    pub const fn error(&self) -> Option<i16> {
        self.error
    }
}

/// Puts packets together from a backend's slots.
#[derive(Debug, Default)]
pub struct RxReader {
    expect: Expect,
    packet: Option<RxPacket>,
    broken: Option<BadPacket>,
}

impl RxReader {
    /// Before the first slot.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next slot, with its index on the ring. Returns a packet with its last slot.
    ///
    /// # Errors
    /// [`BadPacket`]; nothing can be read after it.
    pub fn feed(&mut self, index: u32, slot: &RxSlot) -> Result<Option<RxPacket>, BadPacket> {
        match self.broken {
            Some(bad) => Err(bad),
            None => self.take(index, slot).inspect_err(|bad| self.broken = Some(*bad)),
        }
    }

    fn take(&mut self, index: u32, slot: &RxSlot) -> Result<Option<RxPacket>, BadPacket> {
        let empty = RxPacket {
            parts: [RxPart::default(); MAX_RX_SLOTS],
            len: 0,
            checksum: Checksum::Present,
            extras: Extras::default(),
            total: 0,
            error: None,
        };
        let packet = self.packet.get_or_insert(empty);
        self.expect = match self.expect {
            Expect::First => {
                let flags = slot.data().flags;
                packet.checksum = Checksum::of(flags, NETRXF_CSUM_BLANK, NETRXF_DATA_VALIDATED);
                packet.add(index, slot)?;
                Expect::after_data(flags & NETRXF_EXTRA_INFO != 0, flags & NETRXF_MORE_DATA != 0)
            }
            Expect::Extra { then_more_data } => {
                let (extra, has_more) = ExtraInfo::parse(&slot.extra())?;
                packet.extras.add(extra)?;
                Expect::after_extra(has_more, then_more_data)
            }
            Expect::MoreData => {
                packet.add(index, slot)?;
                Expect::after_data(false, slot.data().flags & NETRXF_MORE_DATA != 0)
            }
        };
        Ok(if self.expect == Expect::First { self.packet.take() } else { None })
    }
}

impl RxPacket {
    fn add(&mut self, index: u32, slot: &RxSlot) -> Result<(), BadPacket> {
        let data = slot.data();
        let size = match u16::try_from(data.status) {
            Ok(size) => size,
            Err(_) => {
                self.error = Some(data.status);
                0
            }
        };
        let part = RxPart { index, offset: data.offset, size };
        if size != 0 {
            in_page(part.offset, size)?;
        }
        self.total = self.total.checked_add(size).ok_or(BadPacket::TooLong)?;
        *self.parts.get_mut(self.len).ok_or(BadPacket::TooManySlots)? = part;
        self.len += 1;
        Ok(())
    }
}

/// Writes a packet to a ring, all of it or nothing. `parts` are as [`TxPacket::parts`] gives them back: each with its
/// own size; their flags are set here.
///
/// # Errors
/// [`RingError::Full`] if there is not room for all slots; [`RingError::Lie`].
///
/// # Panics
/// If there is no part, more than [`MAX_SLOTS`], or more than [`XEN_NETIF_MAX_TX_SIZE`] bytes: the caller's own bug.
pub fn push_packet<M: SharedMemory>(
    ring: &mut Front<NetTx, M>,
    parts: &[TxRequest],
    checksum: Checksum,
    gso: Option<Gso>,
) -> Result<(), RingError> {
    let total: usize = parts.iter().map(|part| usize::from(part.size)).sum();
    assert!((1..=MAX_SLOTS).contains(&parts.len()) && total <= XEN_NETIF_MAX_TX_SIZE, "1 to 18 slots, 65,535 bytes");
    if (ring.space() as usize) < parts.len() + usize::from(gso.is_some()) {
        return Err(RingError::Full);
    }
    for (at, part) in parts.iter().enumerate() {
        let more = if at + 1 < parts.len() { NETTXF_MORE_DATA } else { 0 };
        if at != 0 {
            ring.push(&TxRequest { flags: more, ..*part }.into())?;
            continue;
        }
        let extra = if gso.is_some() { NETTXF_EXTRA_INFO } else { 0 };
        let flags = more | extra | checksum.tx_flags();
        ring.push(&TxRequest { flags, size: low_u16(total as u64), ..*part }.into())?;
        if let Some(gso) = gso {
            ring.push(&ExtraInfo::Gso(gso).raw(false).into())?;
        }
    }
    Ok(())
}
