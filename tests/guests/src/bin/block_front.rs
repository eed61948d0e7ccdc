// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves that a block driver on `guest-abi` alone works with Linux' backend.
//!
//! It runs as a guest of dom0 with a disk `xvda`. It finds the disk in xenstore, writes a ring's reference and an event
//! channel there, waits until the backend is connected, writes a page of its own making, reads it back into another
//! page and compares. A request that cannot be must come back as an error. At the end it lies about its index,
//! as a hostile front would: the backend must stop serving it, which dom0 sees, and nothing else happens.
//!
//! A pass cannot tell that the data is on the disk; dom0 looks at that.
//!
//! Expects: status 0.
#![no_std]
#![no_main]

use guest_abi::grant_table::GTF_PERMIT_ACCESS;
use guest_abi::io::blkif::{
    BLKIF_RSP_ERROR, BLKIF_RSP_OKAY, Direction, Part, RawRequest, flush_request, transfer_request,
};
use guest_abi::num::low_u32;
use guest_abi::ring::mock::{Attack, Hostile};
use guest_abi::{GrantRef, PAGE_SIZE};
use test_guests::device::{Page, lend, page, words};
use test_guests::disk::{DISK, Disk, RING_PAGE};
use test_guests::{check, check_eq, events, grants, guest, say, sched};

guest!(main);

const WRITTEN: GrantRef = GrantRef::new(9);
const READ: GrantRef = GrantRef::new(10);

static WRITTEN_PAGE: Page = page();
static READ_PAGE: Page = page();

fn main() {
    events::init();
    check_eq("the grant table is placed", grants::init(), 0);
    lend(WRITTEN, &WRITTEN_PAGE, GTF_PERMIT_ACCESS);
    lend(READ, &READ_PAGE, GTF_PERMIT_ACCESS);
    match Disk::connect() {
        Ok(mut disk) => {
            works(&mut disk);
            lies(disk);
        }
        Err(failed) => {
            say!("the store: {failed:?}");
            check("the disk is connected", false);
        }
    }
}

fn works(disk: &mut Disk) {
    for at in 0..PAGE_SIZE {
        let byte = (low_u32(at as u64) % 251) as u8;
        WRITTEN_PAGE.put(at, byte);
    }
    let part = |reference| [Part::whole(reference)];
    let written = disk.run(|id| transfer_request(id, Direction::Write, DISK, 8, &part(WRITTEN)));
    check_eq("a page is written", written, Some(BLKIF_RSP_OKAY));
    check_eq("it is flushed", disk.run(|id| flush_request(id, DISK)), Some(BLKIF_RSP_OKAY));
    let read = disk.run(|id| transfer_request(id, Direction::Read, DISK, 8, &part(READ)));
    check_eq("a page is read", read, Some(BLKIF_RSP_OKAY));
    check("it is what was written", (0..PAGE_SIZE).all(|at| READ_PAGE.byte(at) == WRITTEN_PAGE.byte(at)));
    let beyond = disk.run(|id| transfer_request(id, Direction::Read, DISK, 1 << 40, &part(READ)));
    check_eq("sectors beyond the end are an error", beyond, Some(BLKIF_RSP_ERROR));
    let nobodys = disk.run(|id| transfer_request(id, Direction::Write, DISK, 8, &part(GrantRef::new(99))));
    check_eq("a grant that is none is an error", nobodys, Some(BLKIF_RSP_ERROR));
    let nonsense = disk.run(|id| RawRequest { operation: 0, nr_segments: 200, id, ..RawRequest::default() }.into());
    check_eq("too many segments are an error", nonsense, Some(BLKIF_RSP_ERROR));
    let again = disk.run(|id| transfer_request(id, Direction::Read, DISK, 8, &part(READ)));
    check_eq("the disk works after all that", again, Some(BLKIF_RSP_OKAY));
}

/// Claims a billion requests. Linux' backend says so in its log and serves this front no more.
fn lies(mut disk: Disk) {
    Hostile::front(words(&RING_PAGE)).attack(Attack::Claim(1 << 30));
    disk.device.kick();
    // The next request sets the index right again, so the backend gets the time to see it wrong.
    sched::wait_until(500, || false);
    let part = [Part::whole(READ)];
    let after = disk.run_within(2000, |id| transfer_request(id, Direction::Read, DISK, 8, &part), || ());
    check_eq("nobody serves a liar", after, None);
}
