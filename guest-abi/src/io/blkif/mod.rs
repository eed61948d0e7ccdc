// SPDX-License-Identifier: MIT OR Apache-2.0
//! The block protocol: requests for sectors, and the pages that they go to.
//!
//! A request in a slot has up to 11 segments, each a granted page with a first and a last sector. An *indirect* request
//! has up to 4096: they stand in pages of their own, which the request names. [`Request::parse`] makes of a copied
//! slot what a backend can act on, or says what is wrong with it; a request that is wrong is answered with
//! [`BLKIF_RSP_ERROR`] and does not end the connection.
//!
//! The ring may have several pages (`ring-page-order`) and a device several rings (see
//! [`xenbus::QueueNode`](super::xenbus::QueueNode)). With *persistent grants* a front uses the same references again
//! and again and the back keeps them mapped; the front must not end such a grant while it is connected.
//!
//! Sectors are 512 bytes here, whatever the disk's are.
//!
//! Source: `xen/include/public/io/blkif.h` at 4.17, x86-64.

#[cfg(test)]
mod tests;

use crate::ring::Protocol;
use crate::wire::Wire;
use crate::{GrantRef, PAGE_SIZE};

/// Bytes of what the protocol calls a sector.
pub const SECTOR_SIZE: usize = 512;
/// Sectors in a page.
pub const SECTORS_PER_PAGE: u8 = 8;
const _: () = assert!(SECTORS_PER_PAGE as usize * SECTOR_SIZE == PAGE_SIZE);

/// Reads sectors.
pub const BLKIF_OP_READ: u8 = 0;
/// Writes sectors.
pub const BLKIF_OP_WRITE: u8 = 1;
/// Writes sectors after all writes before it and before all after it. Deprecated.
pub const BLKIF_OP_WRITE_BARRIER: u8 = 2;
/// Makes all that was written before durable.
pub const BLKIF_OP_FLUSH_DISKCACHE: u8 = 3;
/// Tells that sectors are not needed any more.
pub const BLKIF_OP_DISCARD: u8 = 5;
/// Reads or writes with segments in pages of their own.
pub const BLKIF_OP_INDIRECT: u8 = 6;

/// Segments in a request that is not indirect.
pub const BLKIF_MAX_SEGMENTS_PER_REQUEST: usize = 11;
/// Pages of segments in an indirect request.
pub const BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST: usize = 8;
/// Segments in a page of them.
pub const SEGMENTS_PER_INDIRECT_PAGE: usize = PAGE_SIZE / Segment::SIZE;
/// Segments in an indirect request.
pub const MAX_INDIRECT_SEGMENTS: usize = BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST * SEGMENTS_PER_INDIRECT_PAGE;
/// Discard so that nothing can be read any more.
pub const BLKIF_DISCARD_SECURE: u8 = 1;

/// Done.
pub const BLKIF_RSP_OKAY: i16 = 0;
/// Failed.
pub const BLKIF_RSP_ERROR: i16 = -1;
/// There is no such operation.
pub const BLKIF_RSP_EOPNOTSUPP: i16 = -2;

/// The device is a CD drive; in the back's node `info`.
pub const VDISK_CDROM: u32 = 1;
/// The medium can be taken out.
pub const VDISK_REMOVABLE: u32 = 2;
/// It cannot be written.
pub const VDISK_READONLY: u32 = 4;

/// Names of nodes in xenstore.
pub mod node {
    /// Of a front: the reference of a ring of one page.
    pub const RING_REF: &str = "ring-ref";
    /// Of a front: log2 of the ring's pages; their references are then `ring-ref0` and on.
    pub const RING_PAGE_ORDER: &str = "ring-page-order";
    /// Of a back: the largest `ring-page-order`.
    pub const MAX_RING_PAGE_ORDER: &str = "max-ring-page-order";
    /// Of a front: [`PROTOCOL_X86_64`].
    pub const PROTOCOL: &str = "protocol";
    /// The layouts here.
    pub const PROTOCOL_X86_64: &str = "x86_64-abi";
    /// Of both: 1 for persistent grants, which are used if both have it.
    pub const FEATURE_PERSISTENT: &str = "feature-persistent";
    /// Of a back: 1 if [`BLKIF_OP_FLUSH_DISKCACHE`](super::BLKIF_OP_FLUSH_DISKCACHE) is understood.
    pub const FEATURE_FLUSH_CACHE: &str = "feature-flush-cache";
    /// Of a back: 1 if [`BLKIF_OP_WRITE_BARRIER`](super::BLKIF_OP_WRITE_BARRIER) is understood.
    pub const FEATURE_BARRIER: &str = "feature-barrier";
    /// Of a back: 1 if [`BLKIF_OP_DISCARD`](super::BLKIF_OP_DISCARD) is understood.
    pub const FEATURE_DISCARD: &str = "feature-discard";
    /// Of a back: segments that an indirect request may have; none without the node.
    pub const FEATURE_MAX_INDIRECT_SEGMENTS: &str = "feature-max-indirect-segments";
    /// Of a back: the disk's size in sectors of 512 bytes.
    pub const SECTORS: &str = "sectors";
    /// Of a back: bytes of a sector of the disk; requests are whole ones of these.
    pub const SECTOR_SIZE: &str = "sector-size";
    /// Of a back: `VDISK_*`.
    pub const INFO: &str = "info";
    /// Of a back: `r` or `w`.
    pub const MODE: &str = "mode";
    /// Of a back: the host's block device, `major:minor` in hexadecimal.
    pub const PHYSICAL_DEVICE: &str = "physical-device";
    /// Of a front: the device's number in the guest.
    pub const VIRTUAL_DEVICE: &str = "virtual-device";
    /// Of both: `disk` or `cdrom`.
    pub const DEVICE_TYPE: &str = "device-type";
}

crate::wire_struct! {
    /// Part of a page to read to or write from (`struct blkif_request_segment`).
    pub struct Segment: 8 {
        /// The page.
        0 => pub gref: u32,
        /// First sector in it, from 0.
        4 => pub first_sect: u8,
        /// Last sector in it; itself included.
        5 => pub last_sect: u8,
    }
}

crate::wire_struct! {
    /// A slot as it is in memory, read as the request that has segments of its own (`struct blkif_request`).
    pub struct RawRequest: 112 {
        /// `BLKIF_OP_*`.
        0 => pub operation: u8,
        /// Segments in use.
        1 => pub nr_segments: u8,
        /// The device's number in the guest.
        2 => pub handle: u16,
        /// The front's own; comes back in the response.
        8 => pub id: u64,
        /// First sector on the disk.
        16 => pub sector_number: u64,
        /// The segments.
        24 => pub seg: [Segment; 11],
    }
}

crate::wire_struct! {
    /// A slot read as a discard (`struct blkif_request_discard`).
    pub struct RawDiscard: 32 {
        /// [`BLKIF_OP_DISCARD`].
        0 => pub operation: u8,
        /// [`BLKIF_DISCARD_SECURE`] or 0.
        1 => pub flag: u8,
        /// The device's number in the guest.
        2 => pub handle: u16,
        /// The front's own.
        8 => pub id: u64,
        /// First sector on the disk.
        16 => pub sector_number: u64,
        /// Sectors.
        24 => pub nr_sectors: u64,
    }
}

crate::wire_struct! {
    /// A slot read as an indirect request (`struct blkif_request_indirect`).
    pub struct RawIndirect: 64 {
        /// [`BLKIF_OP_INDIRECT`].
        0 => pub operation: u8,
        /// [`BLKIF_OP_READ`] or [`BLKIF_OP_WRITE`].
        1 => pub indirect_op: u8,
        /// Segments.
        2 => pub nr_segments: u16,
        /// The front's own.
        8 => pub id: u64,
        /// First sector on the disk.
        16 => pub sector_number: u64,
        /// The device's number in the guest.
        24 => pub handle: u16,
        /// Pages with the segments.
        28 => pub indirect_grefs: [u32; 8],
    }
}

crate::wire_struct! {
    /// An answer (`struct blkif_response`).
    pub struct Response: 16 {
        /// The request's.
        0 => pub id: u64,
        /// The request's.
        8 => pub operation: u8,
        /// `BLKIF_RSP_*`.
        10 => pub status: i16,
    }
}

/// A slot's bytes, copied out and not looked at yet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RawSlot([u8; RawRequest::SIZE]);

impl core::fmt::Debug for RawSlot {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        RawRequest::from_bytes(&self.0).fmt(f)
    }
}

impl Wire for RawSlot {
    const SIZE: usize = RawRequest::SIZE;
    fn from_bytes(bytes: &[u8]) -> Self {
        Self(Wire::from_bytes(bytes))
    }
    fn to_bytes(&self, bytes: &mut [u8]) {
        self.0.to_bytes(bytes);
    }
}

macro_rules! from_raw {
    ($($raw:ty),*) => {$(
        impl From<$raw> for RawSlot {
            fn from(request: $raw) -> Self {
                let mut bytes = [0; RawRequest::SIZE];
                request.to_bytes(&mut bytes);
                Self(bytes)
            }
        }
    )*};
}
from_raw!(RawRequest, RawDiscard, RawIndirect);

/// The protocol, for [`Front`](crate::ring::Front) and [`Back`](crate::ring::Back).
#[derive(Debug)]
pub enum Blkif {}

impl Protocol for Blkif {
    type Request = RawSlot;
    type Response = Response;
}

/// Which way data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the disk to the pages.
    Read,
    /// From the pages to the disk.
    Write,
}

/// A segment that lies in its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The page.
    pub gref: GrantRef,
    /// First sector in the page, below [`SECTORS_PER_PAGE`].
    first: u8,
    /// How many, at least 1.
    count: u8,
}

impl Part {
    /// The whole page.
    #[must_use]
    pub const fn whole(gref: GrantRef) -> Self {
        Self { gref, first: 0, count: SECTORS_PER_PAGE }
    }

    /// Checks a segment.
    ///
    /// # Errors
    /// [`BadRequest::Segment`] if it does not lie in its page.
    pub const fn parse(segment: &Segment) -> Result<Self, BadRequest> {
        let Segment { gref, first_sect: first, last_sect: last } = *segment;
        if first > last || last >= SECTORS_PER_PAGE {
            return Err(BadRequest::Segment { first, last });
        }
        Ok(Self { gref: GrantRef::new(gref), first, count: last - first + 1 })
    }

    /// Where the part begins in its page, in bytes.
    #[must_use]
    pub const fn offset(&self) -> usize {
        self.first as usize * SECTOR_SIZE
    }

    /// Its length in bytes, at least [`SECTOR_SIZE`].
    #[must_use]
    pub const fn len_bytes(&self) -> usize {
        self.count as usize * SECTOR_SIZE
    }

    /// Its length in sectors of 512 bytes.
    #[must_use]
    pub const fn sectors(&self) -> u64 {
        self.count as u64
    }

    /// As a request has it.
    #[must_use]
    pub const fn segment(&self) -> Segment {
        Segment { gref: self.gref.raw(), first_sect: self.first, last_sect: self.first + self.count - 1 }
    }
}

/// Segments of a request, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    list: [Part; BLKIF_MAX_SEGMENTS_PER_REQUEST],
    len: usize,
}

impl Parts {
    /// The segments in order.
    #[must_use]
    pub fn as_slice(&self) -> &[Part] {
        &self.list[..self.len]
    }

    /// Sectors of all of them.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.as_slice().iter().map(Part::sectors).sum()
    }
}

/// What a request wants; all that can be checked without the disk is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Data, with segments in the request.
    Transfer {
        /// Which way.
        direction: Direction,
        /// First sector on the disk. Whether it and the rest are on the disk is the backend's to check.
        sector: u64,
        /// Where the data is, at least one.
        parts: Parts,
    },
    /// Data, with segments in pages: to be read out with [`Indirect::parts_in`].
    Indirect(Indirect),
    /// Make durable what was written. Also what a barrier without data is.
    Flush,
    /// Sectors are not needed any more.
    Discard {
        /// First sector on the disk.
        sector: u64,
        /// How many; the end does not wrap.
        count: u64,
        /// Nothing of it may be readable afterwards.
        is_secure: bool,
    },
}

/// A request of many segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Indirect {
    /// Which way data goes.
    pub direction: Direction,
    /// First sector on the disk.
    pub sector: u64,
    nr_segments: u16,
    pages: [u32; BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST],
}

impl Indirect {
    /// How many segments there are, from 1 to [`MAX_INDIRECT_SEGMENTS`].
    #[must_use]
    pub const fn nr_segments(&self) -> usize {
        self.nr_segments as usize
    }

    /// The pages with the segments, and how many stand in each.
    pub fn pages(&self) -> impl Iterator<Item = (GrantRef, usize)> + '_ {
        let all = self.nr_segments();
        let first = (0..all).step_by(SEGMENTS_PER_INDIRECT_PAGE);
        first.zip(self.pages).map(move |(at, gref)| (GrantRef::new(gref), (all - at).min(SEGMENTS_PER_INDIRECT_PAGE)))
    }

    /// The segments in the bytes of one of the pages, which were copied out.
    pub fn parts_in(bytes: &[u8]) -> impl Iterator<Item = Result<Part, BadRequest>> + '_ {
        bytes.as_chunks::<{ Segment::SIZE }>().0.iter().map(|raw| Part::parse(&Segment::from_bytes(raw)))
    }
}

/// What is wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadRequest {
    /// An operation that there is not: to be answered with [`BLKIF_RSP_EOPNOTSUPP`].
    Operation(u8),
    /// None or more than there can be.
    SegmentCount(u16),
    /// Sectors that are not in a page.
    Segment {
        /// First.
        first: u8,
        /// Last.
        last: u8,
    },
    /// Sectors beyond the end of all numbers.
    Range,
}

impl BadRequest {
    /// The status to answer with.
    #[must_use]
    pub const fn status(self) -> i16 {
        match self {
            Self::Operation(_) => BLKIF_RSP_EOPNOTSUPP,
            Self::SegmentCount(_) | Self::Segment { .. } | Self::Range => BLKIF_RSP_ERROR,
        }
    }
}

/// A request with the two numbers that its response needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The front's own.
    pub id: u64,
    /// `BLKIF_OP_*` as it was in the slot.
    pub operation: u8,
    /// What it wants.
    pub wants: Result<Operation, BadRequest>,
}

impl Request {
    /// Parses a copied slot. `max_indirect` is what the backend offers in
    /// [`node::FEATURE_MAX_INDIRECT_SEGMENTS`], 0 for none.
    #[must_use]
    pub fn parse(slot: &RawSlot, max_indirect: u16) -> Self {
        // Operation and id lie in the same place in all three, but the wanted operation decides on the rest.
        let raw = RawRequest::from_bytes(&slot.0);
        Self { id: raw.id, operation: raw.operation, wants: Self::wants(slot, &raw, max_indirect) }
    }

    fn wants(slot: &RawSlot, raw: &RawRequest, max_indirect: u16) -> Result<Operation, BadRequest> {
        match raw.operation {
            BLKIF_OP_READ => transfer(Direction::Read, raw),
            BLKIF_OP_WRITE => transfer(Direction::Write, raw),
            // Data never comes with a flush; with a barrier it is a write between two, which is not offered.
            BLKIF_OP_FLUSH_DISKCACHE | BLKIF_OP_WRITE_BARRIER if raw.nr_segments == 0 => Ok(Operation::Flush),
            BLKIF_OP_FLUSH_DISKCACHE => Err(BadRequest::SegmentCount(raw.nr_segments.into())),
            BLKIF_OP_DISCARD => {
                let RawDiscard { flag, sector_number: sector, nr_sectors: count, .. } = RawDiscard::from_bytes(&slot.0);
                sector.checked_add(count).ok_or(BadRequest::Range)?;
                Ok(Operation::Discard { sector, count, is_secure: flag & BLKIF_DISCARD_SECURE != 0 })
            }
            BLKIF_OP_INDIRECT if max_indirect != 0 => indirect(&RawIndirect::from_bytes(&slot.0), max_indirect),
            other => Err(BadRequest::Operation(other)),
        }
    }

    /// The response with this status.
    #[must_use]
    pub const fn response(&self, status: i16) -> Response {
        Response { id: self.id, operation: self.operation, status }
    }
}

fn transfer(direction: Direction, raw: &RawRequest) -> Result<Operation, BadRequest> {
    let len = usize::from(raw.nr_segments);
    let bad = BadRequest::SegmentCount(raw.nr_segments.into());
    let segments = raw.seg.get(..len).filter(|segments| !segments.is_empty()).ok_or(bad)?;
    let mut parts = Parts { list: [Part::whole(GrantRef::new(0)); BLKIF_MAX_SEGMENTS_PER_REQUEST], len };
    for (part, segment) in parts.list.iter_mut().zip(segments) {
        *part = Part::parse(segment)?;
    }
    let sector = raw.sector_number;
    sector.checked_add(parts.sectors()).ok_or(BadRequest::Range)?;
    Ok(Operation::Transfer { direction, sector, parts })
}

fn indirect(raw: &RawIndirect, max_indirect: u16) -> Result<Operation, BadRequest> {
    let direction = match raw.indirect_op {
        BLKIF_OP_READ => Direction::Read,
        BLKIF_OP_WRITE => Direction::Write,
        other => return Err(BadRequest::Operation(other)),
    };
    let nr_segments = raw.nr_segments;
    if nr_segments == 0 || nr_segments > max_indirect || usize::from(nr_segments) > MAX_INDIRECT_SEGMENTS {
        return Err(BadRequest::SegmentCount(nr_segments));
    }
    // The longest it can be; the segments themselves are not known yet.
    let longest = u64::from(nr_segments) * u64::from(SECTORS_PER_PAGE);
    raw.sector_number.checked_add(longest).ok_or(BadRequest::Range)?;
    Ok(Operation::Indirect(Indirect { direction, sector: raw.sector_number, nr_segments, pages: raw.indirect_grefs }))
}

/// A front's request for data.
///
/// # Panics
/// If there is no part or more than [`BLKIF_MAX_SEGMENTS_PER_REQUEST`]: the caller's own bug.
#[must_use]
pub fn transfer_request(id: u64, direction: Direction, handle: u16, sector_number: u64, parts: &[Part]) -> RawSlot {
    assert!((1..=BLKIF_MAX_SEGMENTS_PER_REQUEST).contains(&parts.len()), "1 to 11 segments");
    let operation = match direction {
        Direction::Read => BLKIF_OP_READ,
        Direction::Write => BLKIF_OP_WRITE,
    };
    let mut raw = RawRequest { operation, handle, id, sector_number, ..RawRequest::default() };
    for (segment, part) in raw.seg.iter_mut().zip(parts) {
        *segment = part.segment();
        raw.nr_segments += 1;
    }
    raw.into()
}

/// A front's request to make durable what was written.
#[must_use]
pub fn flush_request(id: u64, handle: u16) -> RawSlot {
    RawRequest { operation: BLKIF_OP_FLUSH_DISKCACHE, handle, id, ..RawRequest::default() }.into()
}
