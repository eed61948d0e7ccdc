// SPDX-License-Identifier: MIT OR Apache-2.0
//! A network card that Linux' backend in dom0 serves, and the packets that show that it does.

use guest_abi::GrantRef;
use guest_abi::grant_table::GTF_PERMIT_ACCESS;
use guest_abi::io::netif::{
    Checksum, NETIF_RSP_OKAY, NetRx, NetTx, RxPacket, RxReader, RxRequest, TxRequest, node, push_packet,
};
use guest_abi::num::low_u16;
use guest_abi::ring::{Front, Shared};

use crate::device::{Device, Page, lend, page};
use crate::xenstore::Failed;
use crate::{check, sched};

const PATIENCE_MS: u64 = 20_000;
/// The rings' references: two for each card.
const RINGS: u32 = 8;
/// The pages that packets are sent from.
pub const SENT: u32 = 64;
/// The pages for what arrives.
pub const GIVEN: u32 = 128;
/// A grant that is none.
pub const NOBODYS: u32 = 99;
/// Pages for what arrives; the back wants more than one packet's worth at the start.
const PAGES: usize = 64;

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

/// The pages of a card's rings.
pub struct Rings {
    /// Of what it sends.
    pub tx: Page,
    /// Of what it receives.
    pub rx: Page,
}

impl Rings {
    /// Empty ones.
    #[must_use]
    pub const fn new() -> Self {
        Self { tx: page(), rx: page() }
    }
}

impl Default for Rings {
    fn default() -> Self {
        Self::new()
    }
}

/// A connected card.
pub struct Card {
    /// The device behind it.
    pub device: Device,
    /// What it sends.
    pub tx: Front<NetTx, Shared<'static>>,
    /// What it receives.
    pub rx: Front<NetRx, Shared<'static>>,
    reader: RxReader,
    mac: [u8; 6],
}

impl Card {
    /// Connects card `number`, with what `give` puts into the ring of empty pages. Events and the grant table are there
    /// already.
    ///
    /// # Errors
    /// Why not.
    pub fn connect(
        number: u16,
        rings: &'static Rings,
        give: impl FnOnce(&mut Front<NetRx, Shared<'static>>),
    ) -> Result<Self, Failed> {
        let mut device = Device::find("vif", number)?;
        let mac = device.get(node::MAC)?.ok_or(Failed::Refused)?;
        let mac = mac_address(mac.bytes()).ok_or(Failed::Refused)?;
        let reference = |ring| GrantRef::new(RINGS + 2 * u32::from(number) + ring);
        let tx = device.ring(node::TX_RING_REF, reference(0), &rings.tx)?;
        let mut rx: Front<NetRx, _> = device.ring(node::RX_RING_REF, reference(1), &rings.rx)?;
        for (page, reference) in SENT_PAGES.iter().zip(SENT..) {
            lend(GrantRef::new(reference), page, GTF_PERMIT_ACCESS);
        }
        give(&mut rx);
        let _ = rx.publish();
        let features = [(node::REQUEST_RX_COPY, 1), (node::FEATURE_RX_NOTIFY, 1), (node::FEATURE_SG, 1), ("state", 4)];
        for (name, value) in features {
            device.put(name, format_args!("{value}"))?;
        }
        device.wait_for_back(b"4")?;
        device.kick();
        Ok(Self { device, tx, rx, reader: RxReader::new(), mac })
    }

    /// Sends a packet and waits for the status of its first slot.
    pub fn send(&mut self, parts: &[TxRequest]) -> Option<i16> {
        push_packet(&mut self.tx, parts, Checksum::Present, None).ok()?;
        self.announce();
        self.answers(PATIENCE_MS, parts.len())
    }

    /// Tells the back of what was pushed.
    pub fn announce(&mut self) {
        if self.tx.publish().is_needed() {
            self.device.kick();
        }
    }

    /// The first of so many answers, if all of them come.
    pub fn answers(&mut self, ms: u64, mut left: usize) -> Option<i16> {
        let mut first = None;
        let all = sched::wait_until(ms, || {
            while let Ok(Some(response)) = self.tx.pop() {
                first = first.or(Some(response.status));
                left = left.saturating_sub(1);
            }
            left == 0
        });
        first.filter(|_| all)
    }

    /// Whether dom0 answers a question for its address and a ping of two slots, with the bytes that were sent.
    pub fn works(&mut self, sequence: u8) -> bool {
        let dom0 = self.resolve();
        dom0.is_some_and(|dom0| self.ping(dom0, sequence))
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

    /// The question for dom0's address, which is in the pages afterwards.
    pub fn question(&self) -> TxRequest {
        write(0, &BROADCAST);
        write(6, &self.mac);
        write(12, &TYPE_ARP);
        write(14, &[0, 1, 8, 0, 6, 4, 0, 1]);
        write(22, &self.mac);
        write(28, &OUR_ADDRESS);
        write(32, &[0; 6]);
        write(38, &DOM0_ADDRESS);
        write(42, &[0; 18]);
        part(0, 4096 - FIRST, 60)
    }

    /// Writes other bytes into the packet from `at` on.
    pub fn scribble(&self, at: usize, bytes: impl Iterator<Item = u8>) {
        bytes.zip(at..).for_each(|(byte, at)| write(at, &[byte]));
    }

    fn resolve(&mut self) -> Option<[u8; 6]> {
        let question = self.question();
        if self.send(&[question]) != Some(NETIF_RSP_OKAY) {
            return None;
        }
        self.receive(|frame| {
            let is_answer = frame.has(12, &TYPE_ARP) && frame.has(20, &[0, 2]) && frame.has(28, &DOM0_ADDRESS);
            is_answer.then(|| core::array::from_fn(|at| frame.byte(22 + at)))
        })
    }

    fn ping(&mut self, dom0: [u8; 6], sequence: u8) -> bool {
        let length = low_u16((HEADERS - 14 + PAYLOAD) as u64).to_be_bytes();
        write(0, &dom0);
        write(6, &self.mac);
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
        let is_sent = self.send(&parts) == Some(NETIF_RSP_OKAY);
        let is_answered = self.receive(|frame| {
            let ours = [0x15, 0x77, 0, sequence];
            let is_ours = frame.has(12, &TYPE_IPV4) && frame.has(34, &[0, 0]) && frame.has(38, &ours);
            is_ours.then(|| payload(sequence).zip(HEADERS..).all(|(byte, at)| frame.byte(at) == byte))
        });
        is_sent && is_answered == Some(true)
    }
}

fn mac_address(text: &[u8]) -> Option<[u8; 6]> {
    let mut parts = core::str::from_utf8(text).ok()?.split(':');
    let mut mac = [0; 6];
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    Some(mac)
}

/// Gives the back all pages for what arrives, which only one card can do.
pub fn give_pages(rx: &mut Front<NetRx, Shared<'static>>) {
    for (page, at) in GIVEN_PAGES.iter().zip(0..) {
        lend(GrantRef::new(GIVEN + u32::from(at)), page, GTF_PERMIT_ACCESS);
        give(rx, at);
    }
}

/// Gives the back page `at`, which is also the slot.
fn give(rx: &mut Front<NetRx, Shared<'static>>, at: u16) {
    let pushed = rx.push(&RxRequest { id: at, pad: 0, gref: GIVEN + u32::from(at) });
    if pushed.is_err() {
        check("a page can be given", false);
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

/// A slot with bytes of the first or the second page that is sent.
#[must_use]
pub fn part(page: u32, offset: usize, size: usize) -> TxRequest {
    let (offset, size) = (low_u16(offset as u64), low_u16(size as u64));
    TxRequest { gref: SENT + page, offset, flags: 0, id: low_u16(page.into()), size }
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
