// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guests that do not keep to the protocol, and what others notice of it: nothing.

mod store_harness;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dom0_tools::xenstore::Conn;
use dom0_tools::xenstore::daemon::Daemon;
use dom0_tools::xenstore::quota::Quota;
use dom0_tools::xenstore::wire::{Message, strings};
use guest_abi::DomId;
use guest_abi::io::xs_wire;
use proptest::prelude::{Strategy, any, prop_oneof};
use store_harness::{Folder, Guest, Toy, request};

struct World {
    daemon: Daemon<Toy>,
    local: UnixStream,
    folder: Folder,
}

impl World {
    fn new(guests: &[u16]) -> (Self, Vec<Guest>) {
        let folder = Folder::new("hostile");
        let guests: Vec<Guest> = guests.iter().map(|number| Guest::new(&folder.0, *number)).collect();
        let daemon = Daemon::start(&folder.0, Toy::open(&folder.0)).unwrap();
        let local = UnixStream::connect(folder.0.join("socket")).unwrap();
        local.set_nonblocking(true).unwrap();
        let mut world = Self { daemon, local, folder };
        for guest in &guests {
            let number = guest.number.to_string();
            world.manage(xs_wire::XS_INTRODUCE, &strings([&*number, "1", "1"]));
            let own = format!("/local/domain/{number}/data");
            world.manage(xs_wire::XS_MKDIR, &strings([&own]));
            world.manage(xs_wire::XS_SET_PERMS, &strings([own, format!("n{number}")]));
        }
        (world, guests)
    }

    fn turns(&mut self, count: u32) {
        for _ in 0..count {
            self.daemon.turn(Some(Duration::ZERO)).unwrap();
        }
    }

    /// A request of a local client.
    fn manage(&mut self, kind: u32, payload: &[u8]) -> Message {
        self.local.write_all(&request(kind, 1, 0, payload)).unwrap();
        let mut bytes = Vec::new();
        for _ in 0..1000 {
            self.turns(1);
            let mut more = [0; 8192];
            if let Ok(count) = self.local.read(&mut more) {
                bytes.extend_from_slice(&more[..count]);
            }
            if let Some(message) = Message::take(&mut bytes).unwrap() {
                return message;
            }
        }
        panic!("no answer to {kind}");
    }

    /// A request of a guest; `None` if it is not served.
    fn ask(&mut self, guest: &mut Guest, kind: u32, payload: &[u8]) -> Option<Message> {
        let bytes = request(kind, 77, 0, payload);
        let mut sent = 0;
        for _ in 0..200 {
            sent += guest.write(&bytes[sent..]);
            self.turns(1);
            if let Some(answer) = guest.messages().into_iter().find(|message| message.kind != xs_wire::XS_WATCH_EVENT) {
                return Some(answer);
            }
        }
        None
    }

    fn is_served(&mut self, guest: &mut Guest) -> bool {
        let answer = self.ask(guest, xs_wire::XS_GET_DOMAIN_PATH, b"7\0");
        answer.is_some_and(|answer| answer.payload == b"/local/domain/7\0")
    }

    fn refused(&self, guest: &Guest) -> Option<u32> {
        self.daemon.store().domains().get(&DomId::new(guest.number)).and_then(|domain| domain.refused)
    }

    fn pending(&self, guest: &Guest) -> usize {
        self.daemon.store().pending(Conn::Ring(DomId::new(guest.number)))
    }
}

fn set(guest: &Guest, offset: usize, value: u32) {
    guest.page.atomic_u32(offset).store(value, Ordering::SeqCst);
    guest.signal();
}

fn get(guest: &Guest, offset: usize) -> u32 {
    guest.page.atomic_u32(offset).load(Ordering::SeqCst)
}

/// Puts a message into the ring if it fits as a whole; says whether it did.
fn write_whole(guest: &Guest, bytes: &[u8]) -> bool {
    let used = get(guest, xs_wire::RING_REQ_PROD).wrapping_sub(get(guest, xs_wire::RING_REQ_CONS));
    let fits = usize::try_from(used).is_ok_and(|used| used + bytes.len() <= xs_wire::RING_SIZE);
    if fits {
        assert_eq!(guest.write(bytes), bytes.len());
    }
    fits
}

#[test]
fn wild_counters_end_that_guests_connection_alone() {
    for (offset, value) in [
        (xs_wire::RING_REQ_PROD, 1025),
        (xs_wire::RING_REQ_PROD, u32::MAX),
        (xs_wire::RING_RSP_CONS, 1),
        (xs_wire::RING_RSP_CONS, 0x8000_0000),
    ] {
        let (mut world, mut guests) = World::new(&[1, 2]);
        let (bad, good) = guests.split_at_mut(1);
        set(&bad[0], offset, value);
        // To find out about the consumer counter the daemon must have something to say.
        world.manage(xs_wire::XS_MKDIR, &strings(["/x"]));
        if offset == xs_wire::RING_RSP_CONS {
            bad[0].write(&request(xs_wire::XS_READ, 1, 0, b"data\0"));
        }
        world.turns(5);
        assert_eq!(world.refused(&bad[0]), Some(xs_wire::RING_ERROR_RINGIDX), "{offset}: {value:#x}");
        assert_eq!(get(&bad[0], xs_wire::RING_ERROR), xs_wire::RING_ERROR_RINGIDX);
        assert!(world.is_served(&mut good[0]));
    }
}

#[test]
fn our_own_counters_are_not_the_guests_to_change() {
    let (mut world, mut guests) = World::new(&[1]);
    let guest = &mut guests[0];
    assert!(world.is_served(guest));
    let (cons, prod) = (get(guest, xs_wire::RING_REQ_CONS), get(guest, xs_wire::RING_RSP_PROD));
    set(guest, xs_wire::RING_REQ_CONS, 12345);
    set(guest, xs_wire::RING_RSP_PROD, 54321);
    world.turns(3);
    set(guest, xs_wire::RING_REQ_CONS, cons);
    set(guest, xs_wire::RING_RSP_PROD, prod);
    assert!(world.is_served(guest), "the daemon goes on where it was");
}

#[test]
fn a_message_too_long_ends_the_connection_and_reconnecting_begins_a_new_one() {
    let (mut world, mut guests) = World::new(&[1, 2]);
    let (bad, good) = guests.split_at_mut(1);
    let bad = &mut bad[0];
    assert!(world.ask(bad, xs_wire::XS_WATCH, b"data\0t\0").is_some());
    let mut bytes = request(xs_wire::XS_READ, 1, 0, b"data\0");
    bytes[12..16].copy_from_slice(&4097_u32.to_le_bytes());
    bad.write(&bytes);
    world.turns(5);
    assert_eq!(world.refused(bad), Some(xs_wire::RING_ERROR_PROTO));
    assert!(!world.is_served(bad), "what follows cannot be understood");
    assert!(world.is_served(&mut good[0]));
    set(bad, xs_wire::RING_CONNECTION, xs_wire::RING_RECONNECT);
    world.turns(3);
    assert_eq!(get(bad, xs_wire::RING_CONNECTION), xs_wire::RING_CONNECTED);
    bad.said.clear();
    assert!(world.is_served(bad));
    world.manage(xs_wire::XS_WRITE, b"/local/domain/1/data/x\0");
    world.turns(3);
    assert!(bad.messages().is_empty(), "watches do not survive that");
    assert_eq!(get(bad, xs_wire::RING_SERVER_FEATURES), 3);
}

#[test]
fn one_that_does_not_read_its_answers_is_not_asked_for_more() {
    let (mut world, mut guests) = World::new(&[1, 2]);
    let (bad, good) = guests.split_at_mut(1);
    let value = [b"data/x\0".to_vec(), vec![b'x'; 2000]].concat();
    world.ask(&mut bad[0], xs_wire::XS_WRITE, &value).unwrap();
    let reads = request(xs_wire::XS_READ, 1, 0, b"data/x\0");
    for _ in 0..3000 {
        // It never consumes.
        write_whole(&bad[0], &reads);
        world.turns(1);
    }
    assert_eq!(world.refused(&bad[0]), None);
    assert!(world.pending(&bad[0]) < 300 << 10, "{} bytes wait", world.pending(&bad[0]));
    assert!(world.is_served(&mut good[0]));
    // When it begins to read it gets everything and is served again.
    for _ in 0..1000 {
        bad[0].read();
        world.turns(1);
    }
    assert_eq!(world.pending(&bad[0]), 0);
}

#[test]
fn one_that_does_not_hear_its_events_is_dropped_and_holds_nobody_up() {
    let (mut world, mut guests) = World::new(&[1]);
    let deaf = &mut guests[0];
    world.ask(deaf, xs_wire::XS_WATCH, b"data\0t\0").unwrap();
    // Different nodes, so that no event makes another redundant.
    let name = "n".repeat(1800);
    for i in 0..700 {
        let path = format!("/local/domain/1/data/{name}{i}");
        world.manage(xs_wire::XS_MKDIR, &strings([&path]));
        world.manage(xs_wire::XS_RM, &strings([&path]));
    }
    assert_eq!(world.refused(deaf), Some(xs_wire::RING_ERROR_COMM));
    assert_eq!(world.pending(deaf), 0, "what was to be said is forgotten");
}

#[test]
fn equal_events_that_wait_are_one() {
    let (mut world, mut guests) = World::new(&[1]);
    world.ask(&mut guests[0], xs_wire::XS_WATCH, b"data\0t\0").unwrap();
    for _ in 0..2000 {
        world.manage(xs_wire::XS_WRITE, b"/local/domain/1/data/x\0");
    }
    assert!(world.pending(&guests[0]) < 4096);
    assert_eq!(world.refused(&guests[0]), None);
    world.turns(3);
    assert!(guests[0].messages().len() > 1);
}

#[test]
fn a_flood_of_requests_leaves_every_second_turn_to_another() {
    let (mut world, mut guests) = World::new(&[1, 2]);
    let (noisy, quiet) = guests.split_at_mut(1);
    let small = request(xs_wire::XS_READ, 1, 0, b"data\0");
    let mut answers = [0, 0];
    for _ in 0..200 {
        while write_whole(&noisy[0], &small) {}
        write_whole(&quiet[0], &small);
        world.turns(1);
        answers[0] += noisy[0].messages().len();
        answers[1] += quiet[0].messages().len();
        noisy[0].said.clear();
    }
    assert!(answers[0] >= 190 && answers[1] >= 190, "{answers:?}");
}

#[test]
fn a_guest_in_the_way_of_the_control_domains_transactions_is_held_until_they_are_done() {
    let (mut world, mut guests) = World::new(&[1]);
    let guest = &mut guests[0];
    let write = request(xs_wire::XS_WRITE, 1, 0, b"data/x\0value");
    let mut conflicts = 0;
    loop {
        let begun = world.manage(xs_wire::XS_TRANSACTION_START, &[0]);
        let id: u32 = String::from_utf8(begun.payload).unwrap().trim_end_matches('\0').parse().unwrap();
        let mut within = |world: &mut World, kind, payload: &[u8]| {
            world.local.write_all(&request(kind, 1, id, payload)).unwrap();
            // Between any two requests of ours there are many of its.
            for _ in 0..20 {
                write_whole(guest, &write);
                world.turns(1);
                guest.read();
                guest.said.clear();
            }
            let mut bytes = [0; 8192];
            let count = world.local.read(&mut bytes).unwrap();
            Message::take(&mut bytes[..count].to_vec()).unwrap().unwrap()
        };
        within(&mut world, xs_wire::XS_READ, b"/local/domain/1/data/x\0");
        let end = within(&mut world, xs_wire::XS_TRANSACTION_END, b"T\0");
        if end.kind == xs_wire::XS_TRANSACTION_END {
            break;
        }
        conflicts += 1;
        assert!(conflicts < 5, "a guest keeps the control domain from committing");
    }
    assert!(conflicts > 0, "it was not in the way");
    let start = Instant::now();
    while !world.is_served(guest) {
        assert!(start.elapsed() < Duration::from_secs(10), "held for ever");
    }
}

#[test]
fn a_guest_that_disappears_leaves_nothing() {
    let (mut world, mut guests) = World::new(&[1, 2]);
    let (gone, good) = guests.split_at_mut(1);
    world.ask(&mut gone[0], xs_wire::XS_WRITE, b"data/x\0value").unwrap();
    let begun = world.ask(&mut gone[0], xs_wire::XS_TRANSACTION_START, &[0]).unwrap();
    assert_eq!(begun.payload, b"1\0");
    // In the middle of a message, too.
    gone[0].write(&request(xs_wire::XS_WRITE, 1, 1, b"data/y\0value")[..20]);
    world.turns(2);
    std::fs::remove_file(world.folder.0.join("d1")).unwrap();
    let sender = std::os::unix::net::UnixDatagram::unbound().unwrap();
    sender.send_to(&u16::MAX.to_le_bytes(), world.folder.0.join("events")).unwrap();
    world.turns(2);
    assert!(!world.daemon.store().domains().contains_key(&DomId::new(1)));
    assert_eq!(world.daemon.store().tree().usage(DomId::new(1)).nodes, 0);
    assert!(world.is_served(&mut good[0]));
}

#[test]
fn a_quota_used_up_is_the_offenders_own_affair() {
    let (mut world, mut guests) = World::new(&[1, 2]);
    let (greedy, good) = guests.split_at_mut(1);
    let limit = world.daemon.store().limit(DomId::new(1), Quota::Nodes);
    for i in 0..limit - 1 {
        let made = world.ask(&mut greedy[0], xs_wire::XS_MKDIR, &strings([format!("data/{i}")])).unwrap();
        assert_eq!(made.kind, xs_wire::XS_MKDIR, "{i}");
    }
    let refused = world.ask(&mut greedy[0], xs_wire::XS_MKDIR, b"data/more\0").unwrap();
    assert_eq!((refused.kind, refused.payload), (xs_wire::XS_ERROR, b"ENOSPC\0".to_vec()));
    assert_eq!(world.ask(&mut good[0], xs_wire::XS_MKDIR, b"data/mine\0").unwrap().kind, xs_wire::XS_MKDIR);
}

/// What a hostile kernel may do next.
#[derive(Clone, Debug)]
enum Act {
    Bytes(Vec<u8>),
    Almost(u32, u32, Vec<u8>),
    Word(usize, u32),
    Read,
}

fn act() -> impl Strategy<Value = Act> {
    let payload = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..300),
        "(data|/|/local/domain/1|@releaseDomain|x/y)\0(T|F|token|n1|0)?\0?".prop_map(String::into_bytes),
    ];
    prop_oneof![
        3 => proptest::collection::vec(any::<u8>(), 0..600).prop_map(Act::Bytes),
        6 => (0_u32..30, 0_u32..3, payload).prop_map(|(kind, tx_id, payload)| Act::Almost(kind, tx_id, payload)),
        1 => (512_usize..520, any::<u32>()).prop_map(|(word, value)| Act::Word(word * 4, value)),
        1 => (512_usize..520, 0_u32..3).prop_map(|(word, value)| Act::Word(word * 4, value)),
        3 => proptest::strategy::Just(Act::Read),
    ]
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// Whatever a guest does to its page, the daemon goes on, its books are right, its log can be read
    /// back, and another guest is served.
    #[test]
    fn no_guest_harms_another(acts in proptest::collection::vec(act(), 1..60)) {
        let (mut world, mut guests) = World::new(&[1, 2]);
        let (bad, good) = guests.split_at_mut(1);
        for act in acts {
            match act {
                Act::Bytes(bytes) => { let _ = bad[0].write(&bytes); }
                Act::Almost(kind, tx_id, payload) => { let _ = bad[0].write(&request(kind, 1, tx_id, &payload)); }
                Act::Word(offset, value) => set(&bad[0], offset, value),
                Act::Read => { bad[0].read(); bad[0].said.clear(); }
            }
            world.turns(2);
        }
        proptest::prop_assert!(world.is_served(&mut good[0]));
        proptest::prop_assert!(world.daemon.store().tree().is_counted());
        let before = world.daemon.store().snapshot();
        let folder = world.folder;
        drop(world.daemon);
        // A second daemon on the same log and the same pages, whatever they hold.
        let mut again = Daemon::start(&folder.0, Toy::open(&folder.0)).unwrap();
        again.turn(Some(Duration::ZERO)).unwrap();
        let nodes = |entries: Vec<_>| entries.into_iter().filter(|entry| {
            matches!(entry, dom0_tools::xenstore::store::Entry::Node { .. })
        }).collect::<Vec<_>>();
        // The bad guest's next messages may have been served meanwhile; the tree of the good one is the same.
        let of_good = |entries: Vec<_>| nodes(entries).into_iter().filter(|entry| {
            format!("{entry:?}").contains("/local/domain/2")
        }).collect::<Vec<_>>();
        proptest::prop_assert_eq!(of_good(before), of_good(again.store().snapshot()));
    }
}
