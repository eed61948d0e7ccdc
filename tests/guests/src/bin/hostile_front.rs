// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves that a hostile block driver gets errors from Linux' backend and harms nobody.
//!
//! The twin of `block_front`, with a disk `xvda` of its own: grants that do not exist, are another domain's, allow
//! reading only, or change while the backend uses them; segments that cannot be; requests of random bytes. Each must
//! be answered, memory that was not granted for writing must stay as it was, and the disk must work afterwards.
//!
//! A pass cannot tell how dom0 and its other guests fared; the session that starts it looks at that.
//!
//! Expects: status 0.
#![no_std]
#![no_main]

use guest_abi::grant_table::{GTF_PERMIT_ACCESS, GTF_READONLY};
use guest_abi::io::blkif::{
    BLKIF_OP_INDIRECT, BLKIF_OP_READ, BLKIF_RSP_ERROR, BLKIF_RSP_OKAY, Direction, Part, RawIndirect, RawRequest,
    RawSlot, Segment, transfer_request,
};
use guest_abi::num::low_u32;
use guest_abi::ring::mock::Attacks;
use guest_abi::{GrantRef, PAGE_SIZE, Wire};
use test_guests::device::{BACK, Page, lend, page};
use test_guests::disk::{DISK, Disk};
use test_guests::{check, check_eq, events, grants, guest, say};

guest!(main);

const GOOD: GrantRef = GrantRef::new(10);
const READ_ONLY: GrantRef = GrantRef::new(11);
const STRANGERS: GrantRef = GrantRef::new(12);
const CHANGING: GrantRef = GrantRef::new(13);
const NOBODYS: [u32; 4] = [99, 511, 512, u32::MAX];
const ROUNDS: u32 = 200;
const MARK: u8 = 0xa5;

static GOOD_PAGE: Page = page();
/// Granted for reading.
static READ_ONLY_PAGE: Page = page();
/// Granted to nobody, or to a domain that is not the backend's.
static PRIVATE_PAGE: Page = page();

fn main() {
    events::init();
    check_eq("the grant table is placed", grants::init(), 0);
    for at in 0..PAGE_SIZE {
        READ_ONLY_PAGE.put(at, MARK);
        PRIVATE_PAGE.put(at, MARK);
    }
    lend(GOOD, &GOOD_PAGE, GTF_PERMIT_ACCESS);
    lend(READ_ONLY, &READ_ONLY_PAGE, GTF_PERMIT_ACCESS | GTF_READONLY);
    grants::grant(STRANGERS.raw(), BACK + 1, PRIVATE_PAGE.address() >> 12, GTF_PERMIT_ACCESS);
    let Ok(mut disk) = Disk::connect() else { return check("the disk is connected", false) };
    wrong_grants(&mut disk);
    wrong_segments(&mut disk);
    changing_grants(&mut disk);
    random_requests(&mut disk);
    let is_whole = |page: &Page| (0..PAGE_SIZE).all(|at| page.byte(at) == MARK);
    check("a page granted for reading is as it was", is_whole(&READ_ONLY_PAGE));
    check("a page granted to nobody is as it was", is_whole(&PRIVATE_PAGE));
    check_eq("the disk works after all that", read(&mut disk, GOOD), Some(BLKIF_RSP_OKAY));
}

fn read(disk: &mut Disk, reference: GrantRef) -> Option<i16> {
    disk.run(|id| transfer_request(id, Direction::Read, DISK, 0, &[Part::whole(reference)]))
}

fn wrong_grants(disk: &mut Disk) {
    for reference in NOBODYS {
        check_eq("a grant that is none is an error", read(disk, GrantRef::new(reference)), Some(BLKIF_RSP_ERROR));
    }
    check_eq("another domain's grant is an error", read(disk, STRANGERS), Some(BLKIF_RSP_ERROR));
    check_eq("reading into a read-only grant is an error", read(disk, READ_ONLY), Some(BLKIF_RSP_ERROR));
    let good_then_bad = [Part::whole(GOOD), Part::whole(STRANGERS)];
    let mixed = disk.run(|id| transfer_request(id, Direction::Read, DISK, 0, &good_then_bad));
    check_eq("one bad grant of two is an error", mixed, Some(BLKIF_RSP_ERROR));
}

fn wrong_segments(disk: &mut Disk) {
    let with = |first_sect, last_sect| {
        move |id| {
            let mut request = RawRequest { operation: BLKIF_OP_READ, nr_segments: 1, id, ..RawRequest::default() };
            request.seg[0] = Segment { gref: GOOD.raw(), first_sect, last_sect };
            request.into()
        }
    };
    for (first, last) in [(5, 2), (0, 8), (8, 8), (255, 255), (0, 255)] {
        check_eq("a segment outside its page is an error", disk.run(with(first, last)), Some(BLKIF_RSP_ERROR));
    }
    for nr_segments in [0, 1, 33, 600, u16::MAX] {
        let indirect = |id| -> RawSlot {
            let (operation, indirect_op) = (BLKIF_OP_INDIRECT, BLKIF_OP_READ);
            let indirect_grefs = [NOBODYS[0]; 8];
            RawIndirect { operation, indirect_op, nr_segments, id, indirect_grefs, ..RawIndirect::default() }.into()
        };
        check_eq("a list of segments that cannot be is an error", disk.run(indirect), Some(BLKIF_RSP_ERROR));
    }
}

/// The entry and what it names change after the backend was told of the request and before it has looked.
fn changing_grants(disk: &mut Disk) {
    let mut answered = 0;
    for round in 0..ROUNDS {
        lend(CHANGING, &GOOD_PAGE, GTF_PERMIT_ACCESS);
        let request = |id| transfer_request(id, Direction::Read, DISK, 0, &[Part::whole(CHANGING)]);
        let status = disk.run_within(20_000, request, || match round % 3 {
            0 => grants::grant(CHANGING.raw(), 0, 0, 0),
            1 => lend(CHANGING, &READ_ONLY_PAGE, GTF_PERMIT_ACCESS | GTF_READONLY),
            _ => grants::grant(CHANGING.raw(), BACK, u64::from(u32::MAX), GTF_PERMIT_ACCESS),
        });
        answered += u32::from(status.is_some());
    }
    check_eq("each request whose grant changes is answered", answered, ROUNDS);
}

fn random_requests(disk: &mut Disk) {
    let mut random = Attacks::new(1);
    let mut answered = 0;
    for _ in 0..ROUNDS {
        let mut bytes = [0; RawSlot::SIZE];
        for word in bytes.chunks_exact_mut(8) {
            word.copy_from_slice(&random.number().to_le_bytes());
        }
        let status = disk.run(|id| {
            // An operation that there may be, and the number by which the answer is known.
            bytes[0] = low_u32(random.number()).to_le_bytes()[0] % 8;
            bytes[8..16].copy_from_slice(&id.to_le_bytes());
            RawSlot::from_bytes(&bytes)
        });
        if status.is_none() {
            say!("not answered: {bytes:x?}");
            break;
        }
        answered += 1;
    }
    check_eq("each request of random bytes is answered", answered, ROUNDS);
}
