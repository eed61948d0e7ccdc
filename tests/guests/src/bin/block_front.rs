// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves that a block driver on `guest-abi` alone works with Linux' backend, and that a hostile one harms nobody.
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

use core::fmt::Write;

use guest_abi::grant_table::GTF_PERMIT_ACCESS;
use guest_abi::io::blkif::{
    BLKIF_RSP_ERROR, BLKIF_RSP_OKAY, Blkif, Direction, Part, RawRequest, RawSlot, flush_request, transfer_request,
};
use guest_abi::num::low_u32;
use guest_abi::ring::mock::{Attack, Hostile};
use guest_abi::ring::{Front, Shared as Ring};
use guest_abi::{DomId, GrantRef, PAGE_SIZE};
use test_guests::shared::Shared;
use test_guests::xenstore::{Failed, Store};
use test_guests::{check, check_eq, events, grants, guest, say, sched};

guest!(main);

const DISK: u16 = 51712;
const RING: GrantRef = GrantRef::new(8);
const WRITTEN: GrantRef = GrantRef::new(9);
const READ: GrantRef = GrantRef::new(10);
const BACK: u16 = DomId::DOM0.raw();
const PATIENCE_MS: u64 = 20_000;

static RING_PAGE: Shared<[u8; PAGE_SIZE]> = Shared::new([0; PAGE_SIZE]);
static WRITTEN_PAGE: Shared<[u8; PAGE_SIZE]> = Shared::new([0; PAGE_SIZE]);
static READ_PAGE: Shared<[u8; PAGE_SIZE]> = Shared::new([0; PAGE_SIZE]);

/// Text of a few bytes.
struct Text {
    bytes: [u8; 64],
    len: usize,
}

impl Text {
    fn new(arguments: core::fmt::Arguments<'_>) -> Self {
        let mut text = Self { bytes: [0; 64], len: 0 };
        let fits = text.write_fmt(arguments).is_ok();
        check("a text fits its place", fits);
        text
    }

    fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let end = self.len + text.len();
        self.bytes.get_mut(self.len..end).ok_or(core::fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

struct Disk {
    front: Front<Blkif, Ring<'static>>,
    port: u32,
    next: u64,
}

fn main() {
    events::init();
    check_eq("the grant table is placed", grants::init(), 0);
    match connect() {
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

fn connect() -> Result<Disk, Failed> {
    let mut store = Store::open()?;
    let node = |name: &str| Text::new(format_args!("device/vbd/{DISK}/{name}"));
    let back = store.read(node("backend").as_str())?.ok_or(Failed::Refused)?;
    let back = core::str::from_utf8(back.bytes()).map_err(|_| Failed::Refused)?;
    let back_state = Text::new(format_args!("{back}/state"));
    store.wait_for(back_state.as_str(), b"2")?;
    for (reference, page) in [(RING, &RING_PAGE), (WRITTEN, &WRITTEN_PAGE), (READ, &READ_PAGE)] {
        grants::grant(reference.raw(), BACK, page.address() >> 12, GTF_PERMIT_ACCESS);
    }
    // SAFETY: the page is a static that is granted to the backend and used through this handle only.
    let ring = unsafe { Ring::from_raw(RING_PAGE.get().cast(), PAGE_SIZE) };
    let Ok(front) = Front::new(ring) else { return Err(Failed::TooLong) };
    let port = events::alloc_unbound(DomId::SELF.raw(), BACK).map_err(|_| Failed::Refused)?;
    store.write(node("ring-ref").as_str(), Text::new(format_args!("{}", RING.raw())).as_str())?;
    store.write(node("event-channel").as_str(), Text::new(format_args!("{port}")).as_str())?;
    store.write(node("protocol").as_str(), "x86_64-abi")?;
    store.write(node("state").as_str(), "3")?;
    store.wait_for(back_state.as_str(), b"4")?;
    let sectors = store.read(Text::new(format_args!("{back}/sectors")).as_str())?;
    check("the backend tells the disk's size", sectors.and_then(|value| value.number()).is_some_and(|size| size >= 64));
    store.write(node("state").as_str(), "4")?;
    Ok(Disk { front, port, next: 1 })
}

impl Disk {
    /// Makes a request and waits for its status.
    fn run(&mut self, request: impl FnOnce(u64) -> RawSlot) -> Option<i16> {
        let id = self.next;
        self.next += 1;
        self.front.push(&request(id)).ok()?;
        if self.front.publish().is_needed() {
            events::send(self.port);
        }
        let mut status = None;
        sched::wait_until(PATIENCE_MS, || match self.front.pop() {
            Ok(Some(response)) => {
                check_eq("a response is to the request", response.id, id);
                status = Some(response.status);
                true
            }
            Ok(None) => false,
            Err(_) => true,
        });
        status
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
    // SAFETY: as in `connect`.
    let ring = unsafe { Ring::from_raw(RING_PAGE.get().cast(), PAGE_SIZE) };
    Hostile::front(ring).attack(Attack::Claim(1 << 30));
    events::send(disk.port);
    let part = [Part::whole(READ)];
    let after = disk.run(|id| transfer_request(id, Direction::Read, DISK, 8, &part));
    check_eq("nobody serves a liar", after, None);
}
