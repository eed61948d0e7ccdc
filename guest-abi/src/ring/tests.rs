// SPDX-License-Identifier: MIT OR Apache-2.0
//! Both halves beside a model, and beside a peer that lies.

use core::sync::atomic::{AtomicU32, Ordering};
use std::collections::VecDeque;
use std::vec::Vec;

use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};

use super::mock::{Attack, Attacks, Hostile, Page};
use super::*;
use crate::console::CONSOLE_OUTPUT;

/// One word each way, so that a ring is small: 4 slots in 20 words.
struct Words;

impl Protocol for Words {
    type Request = u32;
    type Response = u32;
}

const FOUR_SLOTS: usize = 20;

fn memory<const N: usize>() -> [AtomicU32; N] {
    [const { AtomicU32::new(0) }; N]
}

type Pair<'a> = (Front<Words, &'a [AtomicU32]>, Back<Words, &'a [AtomicU32]>);

fn pair(words: &[AtomicU32]) -> Pair<'_> {
    (Front::new(words).unwrap(), Back::attach(words).unwrap())
}

fn word(words: &[AtomicU32], at: usize) -> u32 {
    words[at].load(Ordering::Relaxed)
}

#[test]
fn slots_are_the_largest_power_of_two_that_fits() {
    assert_eq!(entries_in(4096, 112), Some(32));
    assert_eq!(entries_in(16 * 4096, 112), Some(512));
    assert_eq!(entries_in(4096, 12), Some(256));
    assert_eq!(entries_in(4096, 8), Some(256));
    assert_eq!(entries_in(64 + 112, 112), Some(1));
    assert_eq!(entries_in(64 + 111, 112), None);
    assert_eq!(entries_in(0, 8), None);
    assert_eq!(Front::<Words, _>::new(&memory::<16>()[..]).err(), Some(TooSmall));
    assert_eq!(Back::<Words, _>::attach(&memory::<1>()[..]).err(), Some(RingError::Full));
}

#[test]
fn a_new_ring_shows_nothing_of_what_was_there() {
    let words = [const { AtomicU32::new(0xdead_beef) }; FOUR_SLOTS];
    let front = Front::<Words, _>::new(&words[..]).unwrap();
    assert_eq!((front.slots(), front.space()), (4, 4));
    let seen: Vec<u32> = words.iter().map(|word| word.load(Ordering::Relaxed)).collect();
    assert_eq!(seen[..4], [0, 1, 0, 1], "both indices at 0, both ask for the first entry");
    assert!(seen[4..].iter().all(|word| *word == 0));
}

#[test]
fn entries_lie_where_the_layout_says() {
    let words = memory::<FOUR_SLOTS>();
    let (mut front, mut back) = pair(&words);
    for value in 1..=3 {
        front.push(&value).unwrap();
    }
    assert_eq!(word(&words, 0), 0, "not published");
    assert_eq!(back.pop(), Ok(None));
    assert_eq!(front.publish(), Notify::Peer);
    assert_eq!((word(&words, 0), word(&words, 16), word(&words, 18)), (3, 1, 3));
    assert_eq!((back.pop(), back.pop()), (Ok(Some(1)), Ok(Some(2))));
    back.push(&7).unwrap();
    assert_eq!(back.publish(), Notify::Peer);
    assert_eq!((word(&words, 2), word(&words, 16)), (1, 7), "a response takes the slot of a request");
    assert_eq!(front.pop(), Ok(Some(7)));
}

#[test]
fn a_full_ring_takes_no_more_until_a_response_is_taken() {
    let words = memory::<FOUR_SLOTS>();
    let (mut front, mut back) = pair(&words);
    for value in 0..4 {
        front.push(&value).unwrap();
    }
    assert_eq!(front.push(&4), Err(RingError::Full));
    assert!(front.publish().is_needed());
    assert_eq!(back.push(&0), Err(RingError::Full), "nothing was taken out");
    assert_eq!(back.pop(), Ok(Some(0)));
    back.push(&0).unwrap();
    assert_eq!(back.push(&0), Err(RingError::Full));
    assert!(back.publish().is_needed());
    assert_eq!(front.push(&4), Err(RingError::Full), "the response is still in its slot");
    assert_eq!(front.pop(), Ok(Some(0)));
    front.push(&4).unwrap();
}

#[test]
fn who_is_awake_is_not_told() {
    let words = memory::<FOUR_SLOTS>();
    let (mut front, mut back) = pair(&words);
    assert_eq!(front.publish(), Notify::Nobody, "nothing to tell");
    front.push(&1).unwrap();
    assert_eq!(front.publish(), Notify::Peer, "a new ring asks for the first");
    front.push(&2).unwrap();
    assert_eq!(front.publish(), Notify::Nobody, "the back has been told and has not asked again");
    assert_eq!((back.pop(), back.pop()), (Ok(Some(1)), Ok(Some(2))));
    assert_eq!(back.arm(), Ok(false));
    front.push(&3).unwrap();
    assert_eq!(front.publish(), Notify::Peer);
    assert_eq!(back.arm(), Ok(true), "something came: do not sleep");
    assert_eq!(back.pop(), Ok(Some(3)));
    assert_eq!(back.arm_after(2), Ok(false));
    for _ in 0..3 {
        back.push(&0).unwrap();
    }
    assert!(back.publish().is_needed());
    while front.pop().unwrap().is_some() {}
    front.push(&4).unwrap();
    assert_eq!(front.publish(), Notify::Nobody, "one of two");
    front.push(&5).unwrap();
    assert_eq!(front.publish(), Notify::Peer, "two");
}

#[test]
fn a_backend_that_comes_back_takes_up_what_is_unanswered() {
    let words = memory::<FOUR_SLOTS>();
    let (mut front, mut back) = pair(&words);
    for value in 1..=3 {
        front.push(&value).unwrap();
    }
    assert!(front.publish().is_needed());
    assert_eq!((back.pop(), back.pop()), (Ok(Some(1)), Ok(Some(2))));
    back.push(&1).unwrap();
    assert!(back.publish().is_needed());
    let mut next = Back::<Words, _>::attach(&words[..]).unwrap();
    assert_eq!((next.pop(), next.pop(), next.pop()), (Ok(Some(2)), Ok(Some(3)), Ok(None)));
}

#[test]
fn indices_wrap() {
    let words = memory::<FOUR_SLOTS>();
    let (mut front, _) = pair(&words);
    let near = u32::MAX - 1;
    front.at = front.at.moved_to(near);
    words[0].store(near, Ordering::Relaxed);
    words[2].store(near, Ordering::Relaxed);
    words[1].store(near.wrapping_add(1), Ordering::Relaxed);
    let mut back = Back::<Words, _>::attach(&words[..]).unwrap();
    for value in 0..4 {
        front.push(&value).unwrap();
    }
    assert_eq!(front.publish(), Notify::Peer);
    for value in 0..4 {
        assert_eq!(back.pop(), Ok(Some(value)));
        back.push(&value).unwrap();
    }
    assert_eq!(back.pop(), Ok(None));
    assert_eq!(back.publish(), Notify::Peer);
    assert_eq!(word(&words, 2), 2);
    for value in 0..4 {
        assert_eq!(front.pop(), Ok(Some(value)));
    }
}

#[test]
fn an_index_that_lies_ends_the_connection_for_good() {
    // What a hostile front can claim: more requests than slots, or fewer than it had made.
    for claim in [5, 6, 1 << 31, u32::MAX] {
        let words = memory::<FOUR_SLOTS>();
        let (_, mut back) = pair(&words);
        let peer = Hostile::front(&words[..]);
        peer.attack(Attack::Claim(2));
        assert_eq!(back.pop(), Ok(Some(0)), "a claim that could be true is believed");
        peer.attack(Attack::Index(claim));
        let lie = Lie { claimed: claim, from: 1, bound: 3 };
        assert_eq!(back.arm(), Err(lie));
        peer.attack(Attack::Index(2));
        assert_eq!((back.pop(), back.arm(), back.pop()), (Err(lie), Err(lie), Err(lie)), "it does not recover");
        assert_eq!(back.push(&1), Err(RingError::Lie(lie)));
        assert_eq!(back.publish(), Notify::Nobody);
    }
    // A hostile back: responses to requests that it was not told of.
    let words = memory::<FOUR_SLOTS>();
    let (mut front, _) = pair(&words);
    front.push(&1).unwrap();
    front.push(&1).unwrap();
    let peer = Hostile::back(&words[..]);
    peer.attack(Attack::Index(1));
    assert_eq!(front.pop(), Err(Lie { claimed: 1, from: 0, bound: 0 }));
}

#[test]
fn an_index_does_not_go_back_over_entries_that_were_seen() {
    let words = memory::<FOUR_SLOTS>();
    let (_, mut back) = pair(&words);
    let peer = Hostile::front(&words[..]);
    peer.attack(Attack::Index(3));
    assert_eq!(back.pop(), Ok(Some(0)));
    peer.attack(Attack::Index(2));
    assert!(back.arm().is_err());
}

#[test]
fn an_entry_is_what_it_was_when_it_was_taken() {
    let words = memory::<FOUR_SLOTS>();
    let (mut front, mut back) = pair(&words);
    front.push(&1).unwrap();
    assert!(front.publish().is_needed());
    let taken = back.pop().unwrap().unwrap();
    Hostile::front(&words[..]).attack(Attack::Write { word: 16, value: 99 });
    assert_eq!(taken, 1);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    FrontPush,
    FrontPublish,
    FrontPop,
    FrontArm,
    BackPush,
    BackPublish,
    BackPop,
    BackArm,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::FrontPush),
        2 => Just(Step::FrontPublish),
        3 => Just(Step::FrontPop),
        1 => Just(Step::FrontArm),
        4 => Just(Step::BackPush),
        2 => Just(Step::BackPublish),
        4 => Just(Step::BackPop),
        1 => Just(Step::BackArm),
    ]
}

/// One direction as the model has it: what is where.
#[derive(Default)]
struct Flow {
    written: VecDeque<u32>,
    published: VecDeque<u32>,
    /// The receiver has asked, and been told of nothing since.
    is_asleep: bool,
}

impl Flow {
    fn publish(&mut self, notify: Notify) {
        let tells = !self.written.is_empty();
        self.published.extend(self.written.drain(..));
        assert_eq!(notify.is_needed(), tells && self.is_asleep);
        self.is_asleep &= !tells;
    }

    /// The receiver's next entry. One that has looked and found nothing has not asked for an event by that.
    fn arm(&mut self, has_entries: bool) {
        assert_eq!(has_entries, !self.published.is_empty());
        // An event asked for while there is something comes with the entry behind the next one to be taken.
        self.is_asleep = self.published.is_empty();
    }
}

proptest! {
    #[test]
    fn any_history_is_what_the_model_says(steps in proptest::collection::vec(step(), 1..400)) {
        let words = memory::<FOUR_SLOTS>();
        let (mut front, mut back) = pair(&words);
        let (mut requests, mut responses) = (Flow { is_asleep: true, ..Flow::default() }, Flow { is_asleep: true, ..Flow::default() });
        // Requests in slots, and taken without a response.
        let (mut outstanding, mut taken, mut next) = (0, 0, 0);
        for step in steps {
            match step {
                Step::FrontPush => {
                    next += 1;
                    let full = outstanding == 4;
                    assert_eq!(front.push(&next), if full { Err(RingError::Full) } else { Ok(()) });
                    if !full {
                        outstanding += 1;
                        requests.written.push_back(next);
                    }
                }
                Step::FrontPublish => requests.publish(front.publish()),
                Step::FrontPop => {
                    let response = responses.published.pop_front();
                    assert_eq!(front.pop(), Ok(response));
                    outstanding -= u32::from(response.is_some());
                }
                Step::FrontArm => responses.arm(front.arm().unwrap()),
                Step::BackPush => {
                    next += 1;
                    assert_eq!(back.push(&next), if taken == 0 { Err(RingError::Full) } else { Ok(()) });
                    if taken != 0 {
                        taken -= 1;
                        responses.written.push_back(next);
                    }
                }
                Step::BackPublish => responses.publish(back.publish()),
                Step::BackPop => {
                    let request = requests.published.pop_front();
                    assert_eq!(back.pop(), Ok(request));
                    taken += u32::from(request.is_some());
                }
                Step::BackArm => requests.arm(back.arm().unwrap()),
            }
            assert_eq!(front.space(), 4 - outstanding);
            assert_eq!(back.space(), taken);
        }
    }

    #[test]
    fn a_half_survives_any_peer(seed in any::<u64>(), is_front in any::<bool>()) {
        let page = Page::default();
        let mut attacks = Attacks::new(seed);
        if is_front {
            let mut front = Front::<crate::io::blkif::Blkif, _>::new(page.words()).unwrap();
            let slot = crate::io::blkif::flush_request(1, 2);
            survive(&mut front, &slot, &Hostile::back(page.words()), &mut attacks);
        } else {
            let mut back = Back::<crate::io::netif::NetTx, _>::attach(page.words()).unwrap();
            survive(&mut back, &crate::io::netif::TxResponse::default(), &Hostile::front(page.words()), &mut attacks);
        }
    }

    #[test]
    fn a_byte_ring_survives_any_peer(seed in any::<u64>(), is_producer in any::<bool>()) {
        use crate::console::{CONSOLE_OUT_CONS, CONSOLE_OUT_PROD};
        let page = Page::default();
        let mut attacks = Attacks::new(seed);
        let mut buffer = [0x55; 700];
        let mut producer = ByteProducer::attach(page.words(), CONSOLE_OUTPUT);
        let mut consumer = ByteConsumer::attach(page.words(), CONSOLE_OUTPUT);
        let peer = if is_producer {
            Hostile::bytes(page.words(), CONSOLE_OUT_CONS, CONSOLE_OUT_PROD)
        } else {
            Hostile::bytes(page.words(), CONSOLE_OUT_PROD, CONSOLE_OUT_CONS)
        };
        let mut lie = None;
        for attack in attacks.by_ref().take(200) {
            peer.attack(attack);
            let result = if is_producer { producer.write(&buffer) } else { consumer.read(&mut buffer) };
            assert!(result.is_err() || result.unwrap() <= 700);
            assert!(lie.is_none() || result.err() == lie, "it recovered");
            lie = result.err();
        }
    }

    #[test]
    fn a_stream_arrives_as_it_was_sent(lens in proptest::collection::vec((0..3000usize, 0..3000usize), 1..60)) {
        let page = Page::default();
        let mut producer = ByteProducer::attach(page.words(), CONSOLE_OUTPUT);
        let mut consumer = ByteConsumer::attach(page.words(), CONSOLE_OUTPUT);
        let mut numbers = Attacks::new(1);
        let mut sent = VecDeque::new();
        for (write, read) in lens {
            let bytes: Vec<u8> = (0..write).map(|_| crate::num::low_u8(numbers.number())).collect();
            let room = 2048 - sent.len();
            assert_eq!(producer.space(), Ok(u32::try_from(room).unwrap()));
            let written = producer.write(&bytes).unwrap();
            assert_eq!(written, room.min(write));
            sent.extend(&bytes[..written]);
            let mut got = std::vec![0; read];
            let len = consumer.read(&mut got).unwrap();
            assert_eq!(len, read.min(sent.len()));
            assert!(got[..len].iter().copied().eq(sent.drain(..len)));
        }
    }
}

/// Goes on using a half while its peer does what it likes. What the half gives must stay within what it can have, and
/// once it has found a lie it must not give anything more.
fn survive<P: Protocol, R: Role, M: SharedMemory>(
    half: &mut Half<P, R, M>,
    entry: &R::Out<P>,
    peer: &Hostile<M>,
    attacks: &mut Attacks,
) {
    let mut is_over = false;
    for _ in 0..200 {
        let attack = attacks.next().unwrap();
        peer.attack(attack);
        let results = [half.pop().map(|got| got.is_some()), half.arm(), half.pop().map(|got| got.is_some())];
        if is_over {
            assert!(results.iter().all(Result::is_err), "it recovered");
        }
        is_over |= results.iter().any(Result::is_err);
        let pushed = half.push(entry);
        assert!(!is_over || matches!(pushed, Err(RingError::Lie(_))));
        assert!(half.space() <= half.slots() && half.unpublished() <= half.slots());
        let _ = half.publish();
    }
}

#[test]
fn a_stream_wraps_and_its_neighbours_stay() {
    let page = Page::default();
    let layout = ByteLayout::new(8, 8, 0, 4);
    page.words()[4].store(0x6e6e_6e6e, Ordering::Relaxed);
    let mut producer = ByteProducer::attach(page.words(), layout);
    let mut consumer = ByteConsumer::attach(page.words(), layout);
    assert_eq!(producer.write(b"abcdefghij"), Ok(8));
    assert_eq!(producer.write(b"x"), Ok(0));
    let mut bytes = [0; 3];
    assert_eq!((consumer.read(&mut bytes), &bytes), (Ok(3), b"abc"));
    assert_eq!(producer.write(b"ij"), Ok(2));
    let mut bytes = [0; 9];
    assert_eq!((consumer.read(&mut bytes), &bytes[..7]), (Ok(7), &b"defghij"[..]));
    assert_eq!(consumer.read(&mut bytes), Ok(0));
    assert_eq!(page.words()[4].load(Ordering::Relaxed), 0x6e6e_6e6e);
}

#[test]
fn an_end_of_a_byte_ring_believes_no_nonsense() {
    let page = Page::default();
    let layout = ByteLayout::new(8, 8, 0, 4);
    let mut producer = ByteProducer::attach(page.words(), layout);
    assert_eq!(producer.write(b"ab"), Ok(2));
    let peer = Hostile::bytes(page.words(), 0, 4);
    peer.attack(Attack::Index(3));
    let lie = Lie { claimed: 3, from: 2, bound: 8 };
    assert_eq!(producer.write(b"c"), Err(lie), "more was read than was written");
    peer.attack(Attack::Index(2));
    assert_eq!(producer.space(), Err(lie));

    let mut consumer = ByteConsumer::attach(page.words(), layout);
    let peer = Hostile::bytes(page.words(), 4, 0);
    peer.attack(Attack::Index(2 + 9));
    let lie = Lie { claimed: 11, from: 2, bound: 8 };
    assert_eq!(consumer.read(&mut [0; 4]), Err(lie), "more was written than fits");
    peer.attack(Attack::Index(2));
    assert_eq!(consumer.available(), Err(lie));
}
