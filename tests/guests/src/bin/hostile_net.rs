// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves that a hostile network driver gets errors from Linux' backend, or loses its card, and harms nobody.
//!
//! The twin of `net_front`, with 16 cards in a bridge that has the address 192.168.77.1. With the first one it does
//! what is answered: grants that do not exist, are another domain's, or change while the backend uses them; sizes that
//! cannot be; more slots than there may be; frames of random bytes. The second one's empty pages cannot be written.
//! The last ones do each a thing that Linux takes for the end of the device, after which the first one must work
//! still. Memory that was not granted for writing must stay as it was.
//!
//! A pass cannot tell how dom0 and its other guests fared; the session that starts it looks at that.
//!
//! Expects: status 0.
#![no_std]
#![no_main]

use guest_abi::grant_table::{GTF_PERMIT_ACCESS, GTF_READONLY};
use guest_abi::io::netif::{
    ExtraInfo, Gso, NETIF_RSP_ERROR, NETIF_RSP_OKAY, NETTXF_CSUM_BLANK, NETTXF_DATA_VALIDATED, NETTXF_EXTRA_INFO,
    NETTXF_MORE_DATA, NetRx, RawExtra, RxRequest, TxRequest, TxSlot, XEN_NETIF_EXTRA_FLAG_MORE,
    XEN_NETIF_EXTRA_TYPE_HASH, XEN_NETIF_GSO_TYPE_TCPV4, node,
};
use guest_abi::num::{low_u8, low_u16, low_u32};
use guest_abi::ring::mock::{Attack, Attacks, Hostile};
use guest_abi::ring::{Front, Shared};
use guest_abi::{GrantRef, PAGE_SIZE};
use test_guests::card::{Card, GIVEN, NOBODYS, Rings, SENT, give_pages, part};
use test_guests::device::{BACK, Device, Page, lend, page, words};
use test_guests::xenstore::Failed;
use test_guests::{check, check_eq, events, grants, guest, say, sched};

guest!(main);

const READ_ONLY: u32 = 100;
const STRANGERS: u32 = 101;
const CHANGING: u32 = 102;
/// Grants by which the backend can read nothing: none, behind the table's end, another domain's.
const UNREADABLE: [u32; 5] = [NOBODYS, 511, 512, u32::MAX, STRANGERS];
const ROUNDS: u32 = 200;
const MARK: u8 = 0xa5;
/// Slots that a packet may have, for Linux' backend; two more than that it takes for malice.
const MOST_SLOTS: usize = 19;
/// Slots of a ring.
const ALL: usize = 256;
/// Cards before those with which something deadly is done: the one that works, the one that cannot receive, and the one
/// whose rings are none.
const FIRST_DEADLY: u16 = 3;
const CARDS: usize = FIRST_DEADLY as usize + DEADLY.len();

/// Granted for reading.
static READ_ONLY_PAGE: Page = page();
/// Granted to nobody, or to a domain that is not the backend's.
static PRIVATE_PAGE: Page = page();
static RINGS: [Rings; CARDS] = [const { Rings::new() }; CARDS];

type Deed = fn(&mut Card, &'static Rings);

/// What ends a device, each done with a card of its own.
const DEADLY: [(&str, Deed); 13] = [
    ("a producer that is far ahead", |card, rings| lie(card, rings, Attack::Claim(1 << 30))),
    ("a producer that goes back", |card, rings| lie(card, rings, Attack::Claim(u32::MAX))),
    ("a slot beyond its page and a number's end", |card, _| {
        push(card, [TxRequest { offset: u16::MAX, size: u16::MAX, ..slot(0) }.into()]);
    }),
    ("a second slot beyond its page", |card, _| {
        push(card, [slot(NETTXF_MORE_DATA).into(), TxRequest { offset: 4090, size: 20, ..slot(0) }.into()]);
    }),
    ("more data that is not there", |card, _| push(card, [slot(NETTXF_MORE_DATA).into()])),
    ("more data without end", |card, _| push(card, [TxSlot::from(slot(NETTXF_MORE_DATA)); ALL])),
    ("extra information that is not there", |card, _| push(card, [slot(NETTXF_EXTRA_INFO).into()])),
    ("extra information without end", |card, _| push_extra(card, [endless(); ALL - 1])),
    ("extra information of type 0", |card, _| push_extra(card, [RawExtra::default()])),
    ("extra information of type 255", |card, _| push_extra(card, [RawExtra { kind: 255, ..RawExtra::default() }])),
    ("segments of no size", |card, _| push_extra(card, [gso(0, XEN_NETIF_GSO_TYPE_TCPV4)])),
    ("segments of no protocol", |card, _| push_extra(card, [gso(1400, 77)])),
    ("anything at all", |card, rings| (1..ROUNDS).for_each(|seed| anything(card, &rings.tx, seed))),
];

fn main() {
    events::init();
    check_eq("the grant table is placed", grants::init(), 0);
    for at in 0..PAGE_SIZE {
        READ_ONLY_PAGE.put(at, MARK);
        PRIVATE_PAGE.put(at, MARK);
    }
    lend(GrantRef::new(READ_ONLY), &READ_ONLY_PAGE, GTF_PERMIT_ACCESS | GTF_READONLY);
    grants::grant(STRANGERS, BACK + 1, PRIVATE_PAGE.address() >> 12, GTF_PERMIT_ACCESS);
    let Some(mut card) = connect(0, give_pages) else { return };
    check("the card works", card.works(0));
    wrong_grants(&mut card);
    wrong_sizes(&mut card);
    changing_grants(&mut card);
    random_frames(&mut card);
    check("the card works after all that", card.works(1));
    receives_nowhere();
    rings_of_nobody();
    deadly(&mut card);
    let is_whole = |page: &Page| (0..PAGE_SIZE).all(|at| page.byte(at) == MARK);
    check("a page granted for reading is as it was", is_whole(&READ_ONLY_PAGE));
    check("a page granted to nobody is as it was", is_whole(&PRIVATE_PAGE));
    let is_used = || (SENT..GIVEN).any(|reference| grants::access_bits(reference) != 0);
    check("nobody uses a page of a packet any more", sched::wait_until(5000, || !is_used()));
}

fn connect(number: u16, give: impl FnOnce(&mut Front<NetRx, Shared<'static>>)) -> Option<Card> {
    match Card::connect(number, &RINGS[usize::from(number)], give) {
        Ok(card) => Some(card),
        Err(failed) => {
            say!("the store, with card {number}: {failed:?}");
            check("the card is connected", false);
            None
        }
    }
}

/// A slot of 60 bytes that can be.
const fn slot(flags: u16) -> TxRequest {
    TxRequest { gref: SENT, offset: 0, flags, id: 0, size: 60 }
}

fn push<const N: usize>(card: &mut Card, slots: [TxSlot; N]) {
    slots.iter().for_each(|slot| {
        let _ = card.tx.push(slot);
    });
    card.announce();
}

fn push_extra<const N: usize>(card: &mut Card, extras: [RawExtra; N]) {
    let _ = card.tx.push(&slot(NETTXF_EXTRA_INFO).into());
    push(card, extras.map(TxSlot::from));
}

fn endless() -> RawExtra {
    RawExtra { kind: XEN_NETIF_EXTRA_TYPE_HASH, flags: XEN_NETIF_EXTRA_FLAG_MORE, ..RawExtra::default() }
}

fn gso(size: u16, kind: u8) -> RawExtra {
    ExtraInfo::Gso(Gso { size, kind, features: 0 }).raw(false)
}

/// After a packet that is in order: the index is not where it began.
fn lie(card: &mut Card, rings: &'static Rings, attack: Attack) {
    let question = card.question();
    check_eq("a packet is sent before the lie", card.send(&[question]), Some(NETIF_RSP_OKAY));
    Hostile::front(words(&rings.tx)).attack(attack);
    card.device.kick();
}

fn anything(card: &Card, page: &'static Page, seed: u32) {
    let hostile = Hostile::front(words(page));
    Attacks::new(seed.into()).take(4).for_each(|attack| hostile.attack(attack));
    card.device.kick();
}

fn wrong_grants(card: &mut Card) {
    for gref in UNREADABLE {
        // The backend copies the first bytes of a packet and maps the rest.
        for size in [60, 1000] {
            let bad = TxRequest { gref, size, ..slot(0) };
            check_eq("a grant that is not the backend's is an error", card.send(&[bad]), Some(NETIF_RSP_ERROR));
        }
        let mixed = [part(0, 0, 500), TxRequest { gref, ..part(1, 0, 500) }];
        check_eq("one bad grant of two is an error", card.send(&mixed), Some(NETIF_RSP_ERROR));
    }
    let read_only = TxRequest { gref: READ_ONLY, size: 1000, ..slot(0) };
    check_eq("a packet may be in a page granted for reading", card.send(&[read_only]), Some(NETIF_RSP_OKAY));
}

fn wrong_sizes(card: &mut Card) {
    for size in [0, 1, 13] {
        let short = TxRequest { size, ..slot(0) };
        check_eq("a packet shorter than its header is an error", card.send(&[short]), Some(NETIF_RSP_ERROR));
    }
    let raw = |card: &mut Card, slots: &[TxRequest]| {
        slots.iter().try_for_each(|slot| card.tx.push(&(*slot).into())).ok()?;
        card.announce();
        card.answers(20_000, slots.len())
    };
    let second_longer = [slot(NETTXF_MORE_DATA), TxRequest { size: 100, ..slot(0) }];
    check_eq("a slot longer than its packet is an error", raw(card, &second_longer), Some(NETIF_RSP_ERROR));
    let empty = [slot(NETTXF_MORE_DATA), TxRequest { size: 0, ..slot(0) }];
    check_eq("an empty slot is none", raw(card, &empty), Some(NETIF_RSP_OKAY));
    let mut many = [TxRequest { size: 1, ..slot(NETTXF_MORE_DATA) }; MOST_SLOTS + 1];
    (many[0].size, many[MOST_SLOTS].flags) = (1000, 0);
    check_eq("a slot more than there may be is an error", raw(card, &many), Some(NETIF_RSP_ERROR));
}

/// Makes the entry one of those that cannot be written to.
fn change(round: u32) {
    match round % 4 {
        0 => grants::grant(CHANGING, 0, 0, 0),
        1 => grants::grant(CHANGING, BACK + 1, PRIVATE_PAGE.address() >> 12, GTF_PERMIT_ACCESS),
        2 => grants::grant(CHANGING, BACK, u32::MAX.into(), GTF_PERMIT_ACCESS),
        _ => lend(GrantRef::new(CHANGING), &READ_ONLY_PAGE, GTF_PERMIT_ACCESS | GTF_READONLY),
    }
}

/// The entry and what it names change after the backend was told of the packet and before it has looked.
fn changing_grants(card: &mut Card) {
    let mut answered = 0;
    for round in 0..ROUNDS {
        lend(GrantRef::new(CHANGING), &READ_ONLY_PAGE, GTF_PERMIT_ACCESS | GTF_READONLY);
        let _ = card.tx.push(&TxRequest { gref: CHANGING, size: 1000, ..slot(NETTXF_MORE_DATA) }.into());
        push(card, [TxRequest { gref: CHANGING, size: 500, ..slot(0) }.into()]);
        change(round);
        answered += u32::from(card.answers(20_000, 2).is_some());
    }
    check_eq("each packet whose grants change is answered", answered, ROUNDS);
}

/// From this card to whom it may concern, with any type and content.
fn random_frames(card: &mut Card) {
    let mut random = Attacks::new(1);
    let mut answered = 0;
    for round in 0..ROUNDS {
        let question = card.question();
        let frame = TxRequest { size: 60 + low_u16(random.number()) % 400, ..question };
        card.scribble(12, core::iter::from_fn(|| Some(low_u8(random.number()))).take(400));
        // Half of them are IPv4, of which the backend looks for the checksum.
        if round % 2 == 0 {
            card.scribble(12, [8, 0, 0x45].into_iter());
        }
        let flags = low_u16(random.number()) & (NETTXF_CSUM_BLANK | NETTXF_DATA_VALIDATED);
        push(card, [TxRequest { flags, ..frame }.into()]);
        answered += u32::from(card.answers(20_000, 1).is_some());
    }
    check_eq("each frame of random bytes is answered", answered, ROUNDS);
}

/// What arrives has no page to go to: the backend says so, and the next card's packets are none the worse.
fn receives_nowhere() {
    let give = |rx: &mut Front<NetRx, Shared<'static>>| {
        let unwritable = UNREADABLE.into_iter().chain([READ_ONLY, CHANGING]).cycle();
        for (gref, at) in unwritable.zip(0..low_u16(ALL as u64)) {
            let _ = rx.push(&RxRequest { id: !at, pad: 0, gref });
        }
    };
    let Some(mut card) = connect(1, give) else { return };
    let mut statuses = [0; 7];
    for status in &mut statuses {
        let question = card.question();
        check_eq("a card without pages sends", card.send(&[question]), Some(NETIF_RSP_OKAY));
        let mut round = 0;
        sched::wait_until(20_000, || {
            round += 1;
            change(round);
            card.rx.pop().ok().flatten().is_some_and(|answer| {
                *status = answer.data().status;
                true
            })
        });
    }
    check("what cannot be written is an error", statuses.iter().all(|status| *status < 0));
    let rx = &RINGS[1].rx;
    let hostile = Hostile::front(words(rx));
    let lies = [Attack::Claim(1 << 30), Attack::Claim(1 << 31), Attack::Index(0), Attack::Index(u32::MAX)];
    for (seed, attack) in (1000..).zip(lies) {
        hostile.attack(attack);
        anything(&card, rx, seed);
        let question = card.question();
        check_eq("and sends whatever it says of its pages", card.send(&[question]), Some(NETIF_RSP_OKAY));
    }
}

/// Rings that nobody granted. The card can be connected by others after that.
fn rings_of_nobody() {
    let refused_and_back = || {
        let mut device = Device::find("vif", 2)?;
        for (name, value) in
            [(node::TX_RING_REF, NOBODYS), (node::RX_RING_REF, STRANGERS), (node::REQUEST_RX_COPY, 1), ("state", 4)]
        {
            device.put(name, format_args!("{value}"))?;
        }
        device.wait_for_back(b"5")?;
        for (closed_or_new, answer) in [("6", b"6"), ("1", b"2")] {
            device.put("state", format_args!("{closed_or_new}"))?;
            device.wait_for_back(answer)?;
        }
        Ok(())
    };
    check_eq("rings that are none are refused, and the card may come back", refused_and_back(), Ok::<_, Failed>(()));
    let Some(mut card) = connect(2, |_| ()) else { return };
    let question = card.question();
    check_eq("the card that came back sends", card.send(&[question]), Some(NETIF_RSP_OKAY));
}

fn deadly(card: &mut Card) {
    let mut dead: [Option<Card>; DEADLY.len()] = [const { None }; DEADLY.len()];
    for (((name, deed), number), dead) in DEADLY.iter().zip(FIRST_DEADLY..).zip(&mut dead) {
        let Some(mut victim) = connect(number, |_| ()) else { return };
        say!("{name}");
        deed(&mut victim, &RINGS[usize::from(number)]);
        check("the first card works beside it", card.works(low_u8(number.into())));
        *dead = Some(victim);
    }
    for victim in dead.iter_mut().flatten() {
        // What it has unanswered would be in the way.
        while let Ok(Some(_)) = victim.tx.pop() {}
        push(victim, [slot(0).into()]);
        victim.device.kick();
    }
    sched::wait_until(1000, || false);
    let served = dead.iter_mut().flatten().filter_map(|victim| victim.tx.pop().ok().flatten()).count();
    check_eq("nobody serves a liar", low_u32(served as u64), 0);
}
