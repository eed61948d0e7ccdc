// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves that a network driver on `guest-abi` alone works with Linux' backend.
//!
//! It runs as a guest of dom0 with a network card 0, whose bridge has the address 192.168.77.1. It makes the two rings,
//! asks who has that address, and pings it with a packet of two slots; the answer must have the same bytes. A packet
//! in a page that was not granted must come back as an error, and the next one must arrive. At the end it sends a slot
//! that leaves its page: the backend must stop serving it, which dom0 sees. Its hostile twin is `hostile_net`.
//!
//! Expects: status 0.
#![no_std]
#![no_main]

use guest_abi::io::netif::{NETIF_RSP_ERROR, TxRequest};
use test_guests::card::{Card, NOBODYS, Rings, give_pages, part};
use test_guests::{check, check_eq, events, grants, guest, say};

guest!(main);

static RINGS: Rings = Rings::new();

fn main() {
    events::init();
    check_eq("the grant table is placed", grants::init(), 0);
    match Card::connect(0, &RINGS, give_pages) {
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

fn works(card: &mut Card) {
    check("dom0 answers, and a ping of two slots comes back as it was sent", card.works(1));
    let nobodys = TxRequest { gref: NOBODYS, ..part(0, 0, 100) };
    check_eq("a grant that is none is an error", card.send(&[nobodys]), Some(NETIF_RSP_ERROR));
    check("the card works after that", card.works(2));
}

/// Linux' backend says so in its log and serves this front no more.
fn leaves_its_page(card: &mut Card) {
    check_eq("a slot that leaves its page has no answer", unanswered(card, part(0, 4000, 200)), None);
    check_eq("nobody serves a liar", unanswered(card, part(0, 0, 60)), None);
}

fn unanswered(card: &mut Card, slot: TxRequest) -> Option<i16> {
    card.tx.push(&slot.into()).ok()?;
    card.announce();
    card.answers(2000, 1)
}
