// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves that a network driver on `guest-abi` alone works with Linux' backend, and that a hostile one harms nobody.
//!
//! It runs as a guest of dom0 with a network card 0, whose bridge has the address 192.168.77.1. It makes the two rings,
//! asks who has that address, and pings it with a packet of two slots; the answer must have the same bytes. A packet
//! in a page that was not granted must come back as an error, and the next one must arrive. At the end it sends a slot
//! that leaves its page, as a hostile front would: the backend must stop serving it, which dom0 sees.
//!
//! Expects: status 0.
#![no_std]
#![no_main]

use guest_abi::GrantRef;
use guest_abi::grant_table::GTF_PERMIT_ACCESS;
use guest_abi::io::netif::{
    Checksum, NETIF_RSP_ERROR, NETIF_RSP_OKAY, NetRx, NetTx, RxPacket, RxReader, RxRequest, TxRequest, node,
    push_packet,
};
use guest_abi::num::low_u16;
use guest_abi::ring::{Front, Shared};
use test_guests::device::{Device, Page, lend, page};
use test_guests::xenstore::Failed;
use test_guests::{check, check_eq, events, grants, guest, say, sched};

guest!(main);

const PATIENCE_MS: u64 = 20_000;
const TX_RING: GrantRef = GrantRef::new(8);
const RX_RING: GrantRef = GrantRef::new(9);
const SENT: u32 = 10;
const GIVEN: u32 = 16;
const NOBODYS: u32 = 99;
/// Pages for what arrives; the back wants more than one packet's worth at the start.
const PAGES: usize = 64;

static TX_PAGE: Page = page();
static RX_PAGE: Page = page();
static SENT_PAGES: [Page; 2] = [const { page() }; 2];
static GIVEN_PAGES: [Page; PAGES] = [const { page() }; PAGES];

const OUR_ADDRESS: [u8; 4] = [192, 168, 77, 3];
const DOM0_ADDRESS: [u8; 4] = [192, 168, 77, 1];
const BROADCAST: [u8; 6] = [0xff; 6];
const TYPE_IPV4: [u8; 2] = [8, 0];
const TYPE_ARP: [u8; 2] = [8, 6];
/// Ethernet, IPv4 and ICMP.
const HEADERS: usize = 14 + 20 + 8;
const PAYLOAD: usize = 1400;
/// Bytes of a ping in its first slot.
const FIRST: usize = 500;

struct Card {
    device: Device,
    tx: Front<NetTx, Shared<'static>>,
    rx: Front<NetRx, Shared<'static>>,
    reader: RxReader,
    mac: [u8; 6],
}

fn main() {
    events::init();
    check_eq("the grant table is placed", grants::init(), 0);
    match connect() {
        Ok(mut card) => {
            works(&mut card);
            leaves_its_page(&mut card);
        }
        Err(failed) => {
            say!("the store: {failed:?}");
            check("the card is connected", false);
        }
    }
}

fn connect() -> Result<Card, Failed> {
    let mut device = Device::find("vif", 0)?;
    let mac = device.get(node::MAC)?.ok_or(Failed::Refused)?;
    let mac = mac_address(mac.bytes()).ok_or(Failed::Refused)?;
    let tx = device.ring(node::TX_RING_REF, TX_RING, &TX_PAGE)?;
    let mut rx: Front<NetRx, _> = device.ring(node::RX_RING_REF, RX_RING, &RX_PAGE)?;
    for (page, reference) in SENT_PAGES.iter().zip(SENT..) {
        lend(GrantRef::new(reference), page, GTF_PERMIT_ACCESS);
    }
    for (page, at) in GIVEN_PAGES.iter().zip(0..) {
        lend(GrantRef::new(GIVEN + u32::from(at)), page, GTF_PERMIT_ACCESS);
        give(&mut rx, at);
    }
    let _ = rx.publish();
    for (name, value) in [(node::REQUEST_RX_COPY, 1), (node::FEATURE_RX_NOTIFY, 1), (node::FEATURE_SG, 1), ("state", 4)]
    {
        device.put(name, format_args!("{value}"))?;
    }
    device.wait_for_back(b"4")?;
    device.kick();
    Ok(Card { device, tx, rx, reader: RxReader::new(), mac })
}

fn mac_address(text: &[u8]) -> Option<[u8; 6]> {
    let mut parts = core::str::from_utf8(text).ok()?.split(':');
    let mut mac = [0; 6];
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    Some(mac)
}

/// Gives the back page `at`, which is also the slot.
fn give(rx: &mut Front<NetRx, Shared<'static>>, at: u16) {
    let pushed = rx.push(&RxRequest { id: at, pad: 0, gref: GIVEN + u32::from(at) });
    if pushed.is_err() {
        check("a page can be given", false);
    }
}

impl Card {
    /// Sends a packet and waits for the status of its first slot.
    fn send(&mut self, parts: &[TxRequest]) -> Option<i16> {
        self.send_within(PATIENCE_MS, parts)
    }

    fn send_within(&mut self, ms: u64, parts: &[TxRequest]) -> Option<i16> {
        push_packet(&mut self.tx, parts, Checksum::Present, None).ok()?;
        if self.tx.publish().is_needed() {
            self.device.kick();
        }
        let (mut first, mut left) = (None, parts.len());
        sched::wait_until(ms, || {
            while let Ok(Some(response)) = self.tx.pop() {
                first = first.or(Some(response.status));
                left -= 1;
            }
            left == 0
        });
        first
    }

    /// The next packet, while it lasts.
    fn receive<R>(&mut self, mut look: impl FnMut(&Frame<'_>) -> Option<R>) -> Option<R> {
        let mut found = None;
        sched::wait_until(PATIENCE_MS, || {
            while found.is_none() {
                let index = self.rx.next_in();
                let Ok(Some(slot)) = self.rx.pop() else { break };
                let Ok(packet) = self.reader.feed(index, &slot) else { return true };
                found = packet.and_then(|packet| look(&Frame(&packet)));
                // The ring has more slots than there are pages, so a page comes back under its own number.
                give(&mut self.rx, slot.data().id);
                if self.rx.publish().is_needed() {
                    self.device.kick();
                }
            }
            found.is_some()
        });
        found
    }
}

/// A packet that has arrived.
struct Frame<'a>(&'a RxPacket);

impl Frame<'_> {
    /// Its byte at `at`. Packets here lie in one page, which has the slot's number modulo the pages.
    fn byte(&self, at: usize) -> u8 {
        let part = self.0.parts()[0];
        let page = &GIVEN_PAGES[part.index as usize % PAGES];
        if at < usize::from(part.size) { page.byte(usize::from(part.offset) + at) } else { 0 }
    }

    fn has(&self, at: usize, bytes: &[u8]) -> bool {
        bytes.iter().zip(at..).all(|(byte, at)| self.byte(at) == *byte)
    }
}

/// Writes into the pages that are sent: the first [`FIRST`] bytes of a packet are at the end of the first one.
fn write(at: usize, bytes: &[u8]) {
    for (byte, at) in bytes.iter().zip(at..) {
        let (page, place) = if at < FIRST { (0, 4096 - FIRST + at) } else { (1, at - FIRST) };
        SENT_PAGES[page].put(place, *byte);
    }
}

fn part(page: u32, offset: usize, size: usize) -> TxRequest {
    let (offset, size) = (low_u16(offset as u64), low_u16(size as u64));
    TxRequest { gref: SENT + page, offset, flags: 0, id: low_u16(page.into()), size }
}

fn works(card: &mut Card) {
    let Some(dom0) = resolve(card) else { return check("dom0 answers ARP", false) };
    check("dom0 answers ARP", true);
    check("a ping of two slots comes back as it was sent", ping(card, dom0, 1));
    let nobodys = TxRequest { gref: NOBODYS, ..part(0, 0, 100) };
    check_eq("a grant that is none is an error", card.send(&[nobodys]), Some(NETIF_RSP_ERROR));
    check("the card works after that", ping(card, dom0, 2));
}

fn resolve(card: &mut Card) -> Option<[u8; 6]> {
    let mac = card.mac;
    write(0, &BROADCAST);
    write(6, &mac);
    write(12, &TYPE_ARP);
    write(14, &[0, 1, 8, 0, 6, 4, 0, 1]);
    write(22, &mac);
    write(28, &OUR_ADDRESS);
    write(32, &[0; 6]);
    write(38, &DOM0_ADDRESS);
    write(42, &[0; 18]);
    check_eq("a packet is sent", card.send(&[part(0, 4096 - FIRST, 60)]), Some(NETIF_RSP_OKAY));
    card.receive(|frame| {
        let is_answer = frame.has(12, &TYPE_ARP) && frame.has(20, &[0, 2]) && frame.has(28, &DOM0_ADDRESS);
        is_answer.then(|| core::array::from_fn(|at| frame.byte(22 + at)))
    })
}

/// The internet checksum of some bytes of the packet that is written.
fn checksum(bytes: impl Iterator<Item = u8>) -> [u8; 2] {
    let sum: u32 = bytes.zip(0..).map(|(byte, at)| u32::from(byte) << if at % 2 == 0 { 8 } else { 0 }).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    (!low_u16(folded.into())).to_be_bytes()
}

fn payload(sequence: u8) -> impl Iterator<Item = u8> {
    (0..249_u8).cycle().take(PAYLOAD).map(move |byte| byte ^ sequence)
}

fn ping(card: &mut Card, dom0: [u8; 6], sequence: u8) -> bool {
    let length = low_u16((HEADERS - 14 + PAYLOAD) as u64).to_be_bytes();
    write(0, &dom0);
    let mac = card.mac;
    write(6, &mac);
    write(12, &TYPE_IPV4);
    let mut ip = [0x45, 0, length[0], length[1], 0, sequence, 0x40, 0, 64, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    ip[12..16].copy_from_slice(&OUR_ADDRESS);
    ip[16..].copy_from_slice(&DOM0_ADDRESS);
    let sum = checksum(ip.iter().copied());
    ip[10..12].copy_from_slice(&sum);
    write(14, &ip);
    let mut icmp = [8, 0, 0, 0, 0x15, 0x77, 0, sequence];
    let sum = checksum(icmp.iter().copied().chain(payload(sequence)));
    icmp[2..4].copy_from_slice(&sum);
    write(34, &icmp);
    for (byte, at) in payload(sequence).zip(HEADERS..) {
        write(at, &[byte]);
    }
    let parts = [part(0, 4096 - FIRST, FIRST), part(1, 0, HEADERS + PAYLOAD - FIRST)];
    let is_sent = card.send(&parts) == Some(NETIF_RSP_OKAY);
    let is_answered = card.receive(|frame| {
        let is_ours = frame.has(12, &TYPE_IPV4) && frame.has(34, &[0, 0]) && frame.has(38, &[0x15, 0x77, 0, sequence]);
        is_ours.then(|| payload(sequence).zip(HEADERS..).all(|(byte, at)| frame.byte(at) == byte))
    });
    is_sent && is_answered == Some(true)
}

/// Linux' backend says so in its log and serves this front no more.
fn leaves_its_page(card: &mut Card) {
    check_eq("a slot that leaves its page has no answer", card.send_within(2000, &[part(0, 4000, 200)]), None);
    check_eq("nobody serves a liar", card.send_within(2000, &[part(0, 0, 60)]), None);
}
