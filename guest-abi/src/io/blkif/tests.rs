// SPDX-License-Identifier: MIT OR Apache-2.0
//! Requests as bytes, and bytes as requests.

use std::vec::Vec;

use proptest::prelude::{any, proptest};

use super::*;
use crate::ring::mock::Page;
use crate::ring::{Back, Front};

/// A slot that begins with these bytes.
fn slot(bytes: &[u8]) -> RawSlot {
    let mut all = [0; RawRequest::SIZE];
    all[..bytes.len()].copy_from_slice(bytes);
    RawSlot(all)
}

fn wants(bytes: &[u8]) -> Result<Operation, BadRequest> {
    Request::parse(&slot(bytes), 256).wants
}

#[rustfmt::skip]
const WRITE: [u8; 40] = [
    1, 2, 0, 202, 0, 0, 0, 0,  0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01,
    8, 0, 0, 0, 0, 0, 0, 0,    0x11, 1, 0, 0, 0, 7, 0, 0,
    0x12, 1, 0, 0, 3, 3, 0, 0,
];

#[test]
fn a_write_of_two_segments() {
    let parsed = Request::parse(&slot(&WRITE), 0);
    assert_eq!((parsed.id, parsed.operation), (0x0123_4567_89ab_cdef, BLKIF_OP_WRITE));
    let Ok(Operation::Transfer { direction, sector, parts }) = parsed.wants else { panic!("{parsed:?}") };
    assert_eq!((direction, sector, parts.sectors()), (Direction::Write, 8, 9));
    let [whole, one] = parts.as_slice() else { panic!("{parts:?}") };
    assert_eq!(*whole, Part::whole(GrantRef::new(0x111)));
    assert_eq!((one.gref, one.offset(), one.len_bytes()), (GrantRef::new(0x112), 3 * 512, 512));
    // What the front makes is the same bytes.
    let made = transfer_request(parsed.id, direction, 0xca00, sector, parts.as_slice());
    assert_eq!(made, slot(&WRITE));
    let mut bytes = [0xff; 16];
    parsed.response(BLKIF_RSP_ERROR).to_bytes(&mut bytes);
    assert_eq!(bytes, [0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01, 1, 0, 0xff, 0xff, 0, 0, 0, 0]);
}

#[test]
fn an_indirect_read() {
    let mut bytes = [0; 64];
    bytes[..4].copy_from_slice(&[6, 0, 0x01, 0x02]);
    bytes[8] = 9;
    bytes[16] = 64;
    bytes[28..36].copy_from_slice(&[1, 0, 0, 0, 2, 0, 0, 0]);
    let parsed = Request::parse(&slot(&bytes), 513);
    let Ok(Operation::Indirect(indirect)) = parsed.wants else { panic!("{parsed:?}") };
    assert_eq!((indirect.direction, indirect.sector, indirect.nr_segments()), (Direction::Read, 64, 513));
    let pages: Vec<_> = indirect.pages().collect();
    assert_eq!(pages, [(GrantRef::new(1), 512), (GrantRef::new(2), 1)]);
    assert_eq!(Request::parse(&slot(&bytes), 512).wants, Err(BadRequest::SegmentCount(513)), "more than offered");
    assert_eq!(Request::parse(&slot(&bytes), 0).wants, Err(BadRequest::Operation(BLKIF_OP_INDIRECT)), "not offered");
    let segments = [7, 0, 0, 0, 0, 7, 0, 0, 8, 0, 0, 0, 5, 4, 0, 0];
    let parts: Vec<_> = Indirect::parts_in(&segments).collect();
    assert_eq!(parts, [Ok(Part::whole(GrantRef::new(7))), Err(BadRequest::Segment { first: 5, last: 4 })]);
}

#[test]
fn a_flush_and_a_discard() {
    assert_eq!(wants(&[3]), Ok(Operation::Flush));
    assert_eq!(wants(&[2]), Ok(Operation::Flush), "a barrier without data");
    assert_eq!(Request::parse(&flush_request(5, 6), 0).wants, Ok(Operation::Flush));
    let mut bytes = [0; 32];
    bytes[..2].copy_from_slice(&[5, 1]);
    (bytes[16], bytes[24]) = (4, 100);
    assert_eq!(wants(&bytes), Ok(Operation::Discard { sector: 4, count: 100, is_secure: true }));
}

#[test]
fn what_cannot_be_is_an_error_with_a_status() {
    let one = |first, last| {
        let mut bytes = WRITE;
        (bytes[1], bytes[28], bytes[29]) = (1, first, last);
        wants(&bytes)
    };
    assert!(one(7, 7).is_ok());
    assert_eq!(one(0, 8), Err(BadRequest::Segment { first: 0, last: 8 }));
    assert_eq!(one(4, 3), Err(BadRequest::Segment { first: 4, last: 3 }));
    assert_eq!(one(255, 255), Err(BadRequest::Segment { first: 255, last: 255 }));
    let count = |operation, nr_segments| wants(&[operation, nr_segments]);
    assert_eq!(count(BLKIF_OP_READ, 0), Err(BadRequest::SegmentCount(0)));
    assert_eq!(count(BLKIF_OP_READ, 12), Err(BadRequest::SegmentCount(12)));
    assert_eq!(count(BLKIF_OP_FLUSH_DISKCACHE, 1), Err(BadRequest::SegmentCount(1)));
    assert_eq!(count(BLKIF_OP_WRITE_BARRIER, 1), Err(BadRequest::Operation(BLKIF_OP_WRITE_BARRIER)));
    for operation in [4, 7, 255] {
        assert_eq!(wants(&[operation]), Err(BadRequest::Operation(operation)));
        assert_eq!(wants(&[operation]).unwrap_err().status(), BLKIF_RSP_EOPNOTSUPP);
    }
    assert_eq!(wants(&[6, 6, 1, 0]), Err(BadRequest::Operation(6)), "indirect in indirect");
    assert_eq!(wants(&[6, 0, 0, 0]), Err(BadRequest::SegmentCount(0)));
    let far = RawRequest { nr_segments: 1, sector_number: u64::MAX, ..RawRequest::from_bytes(&slot(&WRITE).0) };
    assert_eq!(Request::parse(&far.into(), 0).wants, Err(BadRequest::Range));
    let far = RawDiscard { operation: 5, sector_number: u64::MAX, nr_sectors: 1, ..RawDiscard::default() };
    assert_eq!(Request::parse(&far.into(), 0).wants, Err(BadRequest::Range));
    assert_eq!(BadRequest::Range.status(), BLKIF_RSP_ERROR);
}

#[test]
fn a_page_has_32_slots_and_16_pages_have_512() {
    let page = Page::default();
    assert_eq!(Front::<Blkif, _>::new(page.words()).unwrap().slots(), 32);
    let pages: Vec<_> = (0..16 * 1024).map(|_| core::sync::atomic::AtomicU32::new(0)).collect();
    assert_eq!(Front::<Blkif, _>::new(&pages[..]).unwrap().slots(), 512);
    assert_eq!(Back::<Blkif, _>::attach(&pages[..]).unwrap().slots(), 512);
}

proptest! {
    #[test]
    fn any_bytes_are_a_request_within_bounds_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 112), max in any::<u16>()) {
        for operation in [bytes[0], bytes[0] % 8] {
            let mut bytes = bytes.clone();
            bytes[0] = operation;
            let parsed = Request::parse(&slot(&bytes), max);
            assert_eq!(parsed.operation, operation);
            match parsed.wants {
                Ok(Operation::Transfer { sector, parts, .. }) => {
                    assert!((1..=11).contains(&parts.as_slice().len()));
                    assert!(parts.as_slice().iter().all(|part| part.len_bytes() != 0 && part.offset() + part.len_bytes() <= PAGE_SIZE));
                    assert!(sector.checked_add(parts.sectors()).is_some());
                }
                Ok(Operation::Indirect(indirect)) => {
                    let segments: usize = indirect.pages().map(|(_, count)| count).sum();
                    assert!(segments == indirect.nr_segments() && segments <= usize::from(max) && segments <= 4096);
                    assert!(indirect.pages().all(|(_, count)| (1..=512).contains(&count)) && indirect.pages().count() <= 8);
                }
                Ok(Operation::Discard { sector, count, .. }) => assert!(sector.checked_add(count).is_some()),
                Ok(Operation::Flush) => {}
                Err(bad) => assert!(bad.status() < 0),
            }
        }
    }
}
