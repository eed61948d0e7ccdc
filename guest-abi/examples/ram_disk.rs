// SPDX-License-Identifier: MIT OR Apache-2.0
//! A block driver and a block device that do not trust each other: all of a driver that is not hypercalls.
//!
//! ```text
//! $ cargo run -p guest-abi --example ram_disk
//! ```
//!
//! Two threads play the two domains. Pages of the driver are shared memory, a grant reference is a number of one of
//! them, and an event channel is a thread that is woken up. In a guest these three are what differs: there a grant
//! reference names an entry of the grant table, the device uses it by `GNTTABOP_copy` or `GNTTABOP_map_grant_ref`,
//! and an event is `EVTCHNOP_send`.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, Thread};

use guest_abi::io::blkif::{
    BLKIF_RSP_ERROR, BLKIF_RSP_OKAY, Blkif, Direction, Operation, Part, Request, Response, SECTOR_SIZE, flush_request,
    transfer_request,
};
use guest_abi::ring::{Back, Front, Lie, RingError, Shared};
use guest_abi::{GrantRef, PAGE_SIZE};

type Page = [AtomicU32; PAGE_SIZE / 4];

const SECTORS: u64 = 256;
const PAGES: usize = 8;
/// Where the driver's data lies on the disk.
const FIRST: u64 = 16;

/// What the driver has granted: a page for the ring and some for data.
struct Granted {
    ring: Page,
    data: [Page; PAGES],
}

fn main() {
    let granted: &'static Granted = Box::leak(Box::new(Granted {
        ring: [const { AtomicU32::new(0) }; PAGE_SIZE / 4],
        data: [const { [const { AtomicU32::new(0) }; PAGE_SIZE / 4] }; PAGES],
    }));
    let mut front = Front::<Blkif, _>::new(Shared::new(&granted.ring)).expect("a page is large enough");
    let driver = thread::current();
    let device = thread::spawn(move || serve(granted, &driver));

    let all_pages: Vec<Part> = (0..8).map(|page| Part::whole(GrantRef::new(page))).collect();
    granted.data.iter().enumerate().for_each(|(page, words)| fill(words, page));
    let mut next_id = 0;
    let mut run = |request: &dyn Fn(u64) -> _| {
        next_id += 1;
        front.push(&request(next_id)).expect("one request at a time fits");
        if front.publish().is_needed() {
            device.thread().unpark();
        }
        let response = wait_for_response(&mut front).expect("the device does not lie");
        assert_eq!(response.id, next_id);
        response.status
    };
    assert_eq!(run(&|id| transfer_request(id, Direction::Write, 0, FIRST, &all_pages)), BLKIF_RSP_OKAY);
    assert_eq!(run(&|id| flush_request(id, 0)), BLKIF_RSP_OKAY);
    granted.data.iter().flatten().for_each(|word| word.store(0, Ordering::Relaxed));
    assert_eq!(run(&|id| transfer_request(id, Direction::Read, 0, FIRST, &all_pages)), BLKIF_RSP_OKAY);
    assert!(granted.data.iter().enumerate().all(|(page, words)| is_filled(words, page)), "the disk forgot something");
    assert_eq!(run(&|id| transfer_request(id, Direction::Read, 0, SECTORS, &all_pages)), BLKIF_RSP_ERROR);
    println!("{} sectors written, flushed, read and compared; a read past the end was refused", 8 * PAGES);
}

fn fill(words: &Page, page: usize) {
    let page = u32::try_from(page).expect("a small number");
    (0..).zip(words).for_each(|(at, word): (u32, _)| word.store(at << 8 | page, Ordering::Relaxed));
}

fn is_filled(words: &Page, page: usize) -> bool {
    let page = u32::try_from(page).expect("a small number");
    (0..).zip(words).all(|(at, word): (u32, _)| word.load(Ordering::Relaxed) == at << 8 | page)
}

fn wait_for_response(front: &mut Front<Blkif, Shared<'_>>) -> Result<Response, Lie> {
    loop {
        if let Some(response) = front.pop()? {
            return Ok(response);
        }
        // Without `arm` the response could come right here, and the driver would sleep for ever.
        if !front.arm()? {
            thread::park();
        }
    }
}

/// The device: ends with the connection.
fn serve(granted: &'static Granted, driver: &Thread) -> Result<(), RingError> {
    let mut back = Back::<Blkif, _>::attach(Shared::new(&granted.ring))?;
    let mut disk = vec![0; usize::try_from(SECTORS).expect("a small number") * SECTOR_SIZE];
    loop {
        let Some(slot) = back.pop()? else {
            if !back.arm()? {
                thread::park();
            }
            continue;
        };
        let request = Request::parse(&slot, 0);
        let status = match request.wants {
            Ok(operation) => carry_out(operation, granted, &mut disk),
            Err(bad) => bad.status(),
        };
        back.push(&request.response(status))?;
        if back.publish().is_needed() {
            driver.unpark();
        }
    }
}

/// All that is left to check is what only the device knows: its size, and which grants there are.
fn carry_out(operation: Operation, granted: &Granted, disk: &mut [u8]) -> i16 {
    let Operation::Transfer { direction, sector, parts } = operation else {
        return if operation == Operation::Flush { BLKIF_RSP_OKAY } else { BLKIF_RSP_ERROR };
    };
    if sector + parts.sectors() > SECTORS {
        return BLKIF_RSP_ERROR;
    }
    let mut at = usize::try_from(sector).expect("checked above") * SECTOR_SIZE;
    for part in parts.as_slice() {
        let Some(page) = granted.data.get(part.gref.index()) else { return BLKIF_RSP_ERROR };
        let words = &page[part.offset() / 4..][..part.len_bytes() / 4];
        for (word, bytes) in words.iter().zip(disk[at..].chunks_exact_mut(4)) {
            match direction {
                Direction::Read => {
                    word.store(u32::from_le_bytes(bytes.try_into().expect("four bytes")), Ordering::Relaxed);
                }
                Direction::Write => bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes()),
            }
        }
        at += part.len_bytes();
    }
    BLKIF_RSP_OKAY
}

#[test]
fn it_ends_well() {
    main();
}
