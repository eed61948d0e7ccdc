// SPDX-License-Identifier: MIT OR Apache-2.0
//! What requests do, one by one. Random sequences are beside a model, in `tests/xenstore_model.rs`.

use guest_abi::io::xs_wire::{self, XS_ERROR, XS_WATCH_EVENT};
use guest_abi::{DomId, EvtchnPort};

use super::{Life, Machine, Store};
use crate::xenstore::Conn;
use crate::xenstore::wire::{Code, Fields, Message, strings};

/// A machine on which domains 1 to 9 exist but for those that have ended.
#[derive(Default)]
struct Toy {
    gone: Vec<u16>,
    shut_down: Vec<u16>,
}

impl Machine for Toy {
    fn attach(&mut self, domain: DomId, _: u64, _: EvtchnPort) -> Result<(u32, u32), Code> {
        if self.life(domain) == Life::Gone { Err(Code::Einval) } else { Ok((0, 0)) }
    }

    fn life(&mut self, domain: DomId) -> Life {
        match domain.raw() {
            id if id > 9 || self.gone.contains(&id) => Life::Gone,
            id if self.shut_down.contains(&id) => Life::ShutDown,
            _ => Life::Alive,
        }
    }
}

struct World {
    store: Store,
    machine: Toy,
}

const LOCAL: Conn = Conn::Socket(1);
const ONE: Conn = Conn::Ring(DomId::new(1));
const TWO: Conn = Conn::Ring(DomId::new(2));

impl World {
    /// A local client, and domains 1 and 2 with a node of their own each.
    fn new() -> Self {
        let mut world = Self { store: Store::new(0), machine: Toy::default() };
        world.store.furnish();
        world.store.connect(LOCAL);
        for domain in ["1", "2"] {
            world.ok(LOCAL, xs_wire::XS_INTRODUCE, &[domain, "7", "3"]);
            let own = format!("/local/domain/{domain}");
            world.ok(LOCAL, xs_wire::XS_WRITE, &[&own, ""]);
            let data = format!("{own}/data");
            world.write(LOCAL, &data, "");
            world.ok(LOCAL, xs_wire::XS_SET_PERMS, &[&data, &format!("n{domain}")]);
        }
        world.output(ONE);
        world.output(TWO);
        world
    }

    fn send(&mut self, conn: Conn, kind: u32, tx_id: u32, payload: Vec<u8>) -> Result<Vec<u8>, Code> {
        let request = Message { kind, req_id: 5, tx_id, payload };
        let (before, _) = self.split(conn);
        assert!(before.is_empty(), "{conn}: an answer nobody asked for");
        self.store.request(conn, &request, 0, &mut self.machine);
        assert!(self.store.tree().is_counted(), "the count of nodes is wrong after {request:?}");
        let (mut answers, events) = self.split(conn);
        assert_eq!(answers.len(), 1, "one answer to {request:?}");
        // Events stay to be looked at.
        for event in events {
            self.store.say(conn, event.to_bytes());
        }
        let answer = answers.remove(0);
        assert_eq!((answer.req_id, answer.tx_id), (5, tx_id));
        match answer.kind {
            XS_ERROR => Err(Code::from_name(answer.payload.strip_suffix(&[0]).unwrap())),
            same => {
                assert_eq!(same, kind);
                Ok(answer.payload)
            }
        }
    }

    /// What waits for a client: answers, and events.
    fn split(&mut self, conn: Conn) -> (Vec<Message>, Vec<Message>) {
        let mut bytes = self.store.stream(conn).map(super::Stream::rest).unwrap_or_default();
        self.store.delivered(conn, bytes.len());
        let mut messages = Vec::new();
        while let Some(message) = Message::take(&mut bytes).unwrap() {
            messages.push(message);
        }
        messages.into_iter().partition(|message| message.kind != XS_WATCH_EVENT)
    }

    /// The events that wait for a client, as `path token`.
    fn output(&mut self, conn: Conn) -> Vec<String> {
        let event = |message: Message| {
            let mut fields = Fields::new(&message.payload);
            format!("{} {}", fields.text().unwrap(), fields.text().unwrap())
        };
        self.split(conn).1.into_iter().map(event).collect()
    }

    fn call(&mut self, conn: Conn, kind: u32, words: &[&str]) -> Result<String, Code> {
        self.within(conn, 0, kind, words)
    }

    fn within(&mut self, conn: Conn, tx_id: u32, kind: u32, words: &[&str]) -> Result<String, Code> {
        let is_write = kind == xs_wire::XS_WRITE;
        let payload = if is_write { strings(&words[..1]) } else { strings(words) };
        let payload = if is_write { [&payload, words[1].as_bytes()].concat() } else { payload };
        let answer = self.send(conn, kind, tx_id, payload)?;
        Ok(String::from_utf8(answer).unwrap().trim_end_matches('\0').replace('\0', " "))
    }

    fn ok(&mut self, conn: Conn, kind: u32, words: &[&str]) -> String {
        self.call(conn, kind, words).unwrap_or_else(|code| panic!("{conn}: {kind} {words:?}: {code}"))
    }

    fn write(&mut self, conn: Conn, path: &str, value: &str) {
        self.ok(conn, xs_wire::XS_WRITE, &[path, value]);
    }

    fn read(&mut self, conn: Conn, path: &str) -> Result<String, Code> {
        self.call(conn, xs_wire::XS_READ, &[path])
    }

    fn begin(&mut self, conn: Conn) -> u32 {
        self.ok(conn, xs_wire::XS_TRANSACTION_START, &[""]).parse().unwrap()
    }

    fn commit(&mut self, conn: Conn, transaction: u32) -> Result<String, Code> {
        self.within(conn, transaction, xs_wire::XS_TRANSACTION_END, &["T"])
    }
}

#[test]
fn paths_are_relative_to_the_callers_own_node() {
    let mut world = World::new();
    world.write(ONE, "data/x", "1");
    assert_eq!(world.read(LOCAL, "/local/domain/1/data/x"), Ok("1".to_owned()));
    assert_eq!(world.ok(ONE, xs_wire::XS_DIRECTORY, &["data"]), "x");
    assert_eq!(world.read(LOCAL, "name"), Ok("dom0".to_owned()));
    assert_eq!(world.ok(TWO, xs_wire::XS_GET_DOMAIN_PATH, &["1"]), "/local/domain/1");
}

#[test]
fn a_guest_sees_and_changes_what_it_may() {
    let mut world = World::new();
    world.write(ONE, "data/x", "1");
    let path = "/local/domain/1/data/x";
    assert_eq!(world.read(TWO, path), Err(Code::Eacces));
    assert_eq!(world.read(TWO, "/local/domain/1/data/none"), Err(Code::Eacces), "that it is not there is no news");
    assert_eq!(world.call(TWO, xs_wire::XS_WRITE, &[path, "2"]), Err(Code::Eacces));
    assert_eq!(world.call(TWO, xs_wire::XS_RM, &[path]), Err(Code::Eacces));
    assert_eq!(world.call(TWO, xs_wire::XS_SET_PERMS, &[path, "b2"]), Err(Code::Eacces));
    assert_eq!(world.call(ONE, xs_wire::XS_WRITE, &["/tool/x", ""]), Err(Code::Eacces));
    world.ok(ONE, xs_wire::XS_SET_PERMS, &[path, "n1", "r2"]);
    assert_eq!(world.read(TWO, path), Ok("1".to_owned()));
    assert_eq!(world.call(TWO, xs_wire::XS_WRITE, &[path, "2"]), Err(Code::Eacces));
    assert_eq!(world.call(ONE, xs_wire::XS_SET_PERMS, &[path, "n2"]), Err(Code::Eacces), "nodes are not given away");
    assert_eq!(world.call(TWO, xs_wire::XS_SET_PERMS, &[path, "b1"]), Err(Code::Eacces));
    assert_eq!(world.ok(LOCAL, xs_wire::XS_GET_PERMS, &[path]), "n1 r2");
}

#[test]
fn what_is_made_belongs_to_its_maker() {
    let mut world = World::new();
    world.write(LOCAL, "/pool", "");
    world.ok(LOCAL, xs_wire::XS_SET_PERMS, &["/pool", "b0"]);
    world.write(ONE, "/pool/a/b", "");
    assert_eq!(world.ok(LOCAL, xs_wire::XS_GET_PERMS, &["/pool/a"]), "b1");
    world.write(LOCAL, "/local/domain/1/data/by-dom0", "");
    assert_eq!(world.ok(LOCAL, xs_wire::XS_GET_PERMS, &["/local/domain/1/data/by-dom0"]), "n1");
}

#[test]
fn removal_takes_all_below_and_minds_no_absence() {
    let mut world = World::new();
    world.write(LOCAL, "/a/b/c", "1");
    world.ok(LOCAL, xs_wire::XS_RM, &["/a/none"]);
    assert_eq!(world.call(LOCAL, xs_wire::XS_RM, &["/none/b"]), Err(Code::Enoent));
    assert_eq!(world.call(LOCAL, xs_wire::XS_RM, &["/"]), Err(Code::Einval));
    world.ok(LOCAL, xs_wire::XS_RM, &["/a/b"]);
    assert_eq!(world.read(LOCAL, "/a/b/c"), Err(Code::Enoent));
    assert_eq!(world.ok(LOCAL, xs_wire::XS_DIRECTORY, &["/a"]), "");
}

#[test]
fn a_watch_fires_at_once_and_for_all_below() {
    let mut world = World::new();
    world.ok(ONE, xs_wire::XS_WATCH, &["data", "mine"]);
    assert_eq!(world.output(ONE), ["data mine"]);
    assert_eq!(world.call(ONE, xs_wire::XS_WATCH, &["data", "mine"]), Err(Code::Eexist));
    world.write(LOCAL, "/local/domain/1/data/a/b", "");
    world.write(LOCAL, "/local/domain/1/data/a/b", "");
    world.ok(LOCAL, xs_wire::XS_MKDIR, &["/local/domain/1/data/a/b"]);
    assert_eq!(
        world.output(ONE),
        ["data/a/b mine", "data/a/b mine"],
        "a value that stays fires, a node that stays not"
    );
    world.ok(ONE, xs_wire::XS_WATCH, &["/local/domain/1/data/a/b", "leaf"]);
    world.output(ONE);
    world.ok(LOCAL, xs_wire::XS_RM, &["/local/domain/1/data/a"]);
    assert_eq!(world.output(ONE), ["data/a mine", "/local/domain/1/data/a/b leaf"]);
    world.ok(ONE, xs_wire::XS_UNWATCH, &["data", "mine"]);
    world.write(LOCAL, "/local/domain/1/data/x", "");
    assert_eq!(world.output(ONE), [""; 0]);
    assert_eq!(world.call(ONE, xs_wire::XS_UNWATCH, &["data", "mine"]), Err(Code::Enoent));
}

#[test]
fn a_watch_tells_only_of_what_may_be_read() {
    let mut world = World::new();
    world.ok(TWO, xs_wire::XS_WATCH, &["/", "all"]);
    world.output(TWO);
    world.write(ONE, "data/secret", "1");
    assert_eq!(world.output(TWO), [""; 0]);
    world.ok(ONE, xs_wire::XS_SET_PERMS, &["data/secret", "n1", "r2"]);
    world.write(ONE, "data/secret", "2");
    world.ok(ONE, xs_wire::XS_SET_PERMS, &["data/secret", "n1"]);
    world.write(ONE, "data/secret", "3");
    world.ok(ONE, xs_wire::XS_RM, &["data/secret"]);
    assert_eq!(world.output(TWO), ["/local/domain/1/data/secret all"; 3]);
}

#[test]
fn news_of_domains_is_for_those_who_may_have_it() {
    let mut world = World::new();
    assert_eq!(world.call(ONE, xs_wire::XS_WATCH, &["@releaseDomain", "r"]), Err(Code::Eacces));
    world.ok(LOCAL, xs_wire::XS_SET_PERMS, &["@releaseDomain", "n0", "r1"]);
    world.ok(ONE, xs_wire::XS_WATCH, &["@releaseDomain", "r"]);
    world.ok(LOCAL, xs_wire::XS_WATCH, &["@introduceDomain", "i"]);
    world.output(ONE);
    world.output(LOCAL);
    world.ok(LOCAL, xs_wire::XS_INTRODUCE, &["3", "1", "1"]);
    assert_eq!(world.output(LOCAL), ["@introduceDomain i"]);
    world.machine.shut_down.push(3);
    world.store.check_domains(&mut world.machine);
    world.store.check_domains(&mut world.machine);
    assert_eq!(world.output(ONE), ["@releaseDomain r"], "a shutdown is told once");
    world.machine.gone.push(3);
    world.store.check_domains(&mut world.machine);
    assert_eq!(world.output(ONE), ["@releaseDomain r"]);
    assert_eq!(world.ok(LOCAL, xs_wire::XS_IS_DOMAIN_INTRODUCED, &["3"]), "F");
}

#[test]
fn a_dead_domain_leaves_nothing_to_the_next_of_its_number() {
    let mut world = World::new();
    world.write(ONE, "data/x/y", "");
    world.write(LOCAL, "/shared", "");
    world.ok(LOCAL, xs_wire::XS_SET_PERMS, &["/shared", "n0", "b1", "r2"]);
    world.ok(LOCAL, xs_wire::XS_SET_QUOTA, &["1", "nodes", "5"]);
    world.machine.gone.push(1);
    world.store.check_domains(&mut world.machine);
    assert_eq!(world.ok(LOCAL, xs_wire::XS_DIRECTORY, &["/local/domain/1"]), "", "its nodes are gone");
    assert_eq!(world.ok(LOCAL, xs_wire::XS_GET_PERMS, &["/shared"]), "n0 r2");
    assert_eq!(world.ok(LOCAL, xs_wire::XS_GET_QUOTA, &["1", "nodes"]), "1000");
    assert!(world.store.stream(ONE).is_none());
}

#[test]
fn only_the_control_domain_manages() {
    let mut world = World::new();
    for (kind, words) in [
        (xs_wire::XS_INTRODUCE, &["3", "1", "1"][..]),
        (xs_wire::XS_RELEASE, &["2"]),
        (xs_wire::XS_RESUME, &["2"]),
        (xs_wire::XS_SET_TARGET, &["1", "2"]),
        (xs_wire::XS_SET_QUOTA, &["nodes", "9999"]),
        (xs_wire::XS_CONTROL, &["memreport"]),
        (xs_wire::XS_SET_PERMS, &["@releaseDomain", "r1"]),
        (xs_wire::XS_GET_PERMS, &["@releaseDomain"]),
    ] {
        assert_eq!(world.call(ONE, kind, words), Err(Code::Eacces), "{kind} {words:?}");
    }
    assert_eq!(world.call(LOCAL, xs_wire::XS_INTRODUCE, &["17", "1", "1"]), Err(Code::Einval), "there is none");
    assert_eq!(world.call(LOCAL, xs_wire::XS_INTRODUCE, &["0", "1", "1"]), Err(Code::Einval));
    assert_eq!(world.call(LOCAL, xs_wire::XS_SET_TARGET, &["1", "0"]), Err(Code::Einval));
    world.ok(LOCAL, xs_wire::XS_SET_TARGET, &["1", "2"]);
    world.write(ONE, "/local/domain/2/data/by-one", "");
}

#[test]
fn a_transaction_sees_its_own_changes_and_nobody_else_does() {
    let mut world = World::new();
    world.ok(LOCAL, xs_wire::XS_WATCH, &["/t", "w"]);
    world.output(LOCAL);
    let id = world.begin(LOCAL);
    world.within(LOCAL, id, xs_wire::XS_WRITE, &["/t/a", "1"]).unwrap();
    assert_eq!(world.within(LOCAL, id, xs_wire::XS_READ, &["/t/a"]), Ok("1".to_owned()));
    assert_eq!(world.read(LOCAL, "/t/a"), Err(Code::Enoent));
    assert_eq!(world.output(LOCAL), [""; 0], "no event before the end");
    assert_eq!(world.commit(LOCAL, id), Ok("OK".to_owned()));
    assert_eq!(world.output(LOCAL), ["/t/a w"]);
    assert_eq!(world.read(LOCAL, "/t/a"), Ok("1".to_owned()));
    assert_eq!(world.commit(LOCAL, id), Err(Code::Enoent), "a transaction ends once");
    let given_up = world.begin(LOCAL);
    world.within(LOCAL, given_up, xs_wire::XS_RM, &["/t"]).unwrap();
    world.within(LOCAL, given_up, xs_wire::XS_TRANSACTION_END, &["F"]).unwrap();
    assert_eq!(world.read(LOCAL, "/t/a"), Ok("1".to_owned()));
}

#[test]
fn what_was_seen_must_still_be_so_at_the_commit() {
    type Step = (u32, &'static [&'static str]);
    let cases: &[(Step, Step, bool)] = &[
        ((xs_wire::XS_READ, &["/a"]), (xs_wire::XS_WRITE, &["/a", "2"]), false),
        ((xs_wire::XS_READ, &["/a"]), (xs_wire::XS_WRITE, &["/a/child", "2"]), true),
        ((xs_wire::XS_READ, &["/a"]), (xs_wire::XS_SET_PERMS, &["/a", "r0"]), false),
        ((xs_wire::XS_READ, &["/a"]), (xs_wire::XS_RM, &["/a"]), false),
        ((xs_wire::XS_READ, &["/none"]), (xs_wire::XS_MKDIR, &["/none"]), false),
        ((xs_wire::XS_DIRECTORY, &["/a"]), (xs_wire::XS_WRITE, &["/a/child", "2"]), false),
        ((xs_wire::XS_DIRECTORY, &["/a"]), (xs_wire::XS_WRITE, &["/a/old", "2"]), true),
        ((xs_wire::XS_WRITE, &["/a/mine", "1"]), (xs_wire::XS_WRITE, &["/a/yours", "2"]), true),
        ((xs_wire::XS_WRITE, &["/a/mine", "1"]), (xs_wire::XS_WRITE, &["/a/mine", "2"]), false),
        ((xs_wire::XS_WRITE, &["/a/mine/x", "1"]), (xs_wire::XS_WRITE, &["/a/mine/y", "2"]), false),
        ((xs_wire::XS_RM, &["/a"]), (xs_wire::XS_WRITE, &["/a/old/deep", "2"]), false),
        ((xs_wire::XS_READ, &["/a"]), (xs_wire::XS_WRITE, &["/b", "2"]), true),
    ];
    for ((kind, words), (other_kind, other_words), may_commit) in cases {
        let mut world = World::new();
        world.write(LOCAL, "/a/old", "");
        let id = world.begin(LOCAL);
        let _ = world.within(LOCAL, id, *kind, words);
        world.within(LOCAL, id, xs_wire::XS_WRITE, &["/result", ""]).unwrap();
        world.ok(LOCAL, *other_kind, other_words);
        let expected = if *may_commit { Ok("OK".to_owned()) } else { Err(Code::Eagain) };
        assert_eq!(world.commit(LOCAL, id), expected, "{words:?} against {other_words:?}");
        assert_eq!(world.read(LOCAL, "/result").is_ok(), *may_commit);
    }
}

#[test]
fn each_quota_names_itself_to_whoever_exceeds_it() {
    let mut world = World::new();
    let refusal = |world: &mut World| world.store.take_complaints().pop().map(|(_, text)| text).unwrap_or_default();
    for i in 1..1000 {
        assert_eq!(world.call(ONE, xs_wire::XS_MKDIR, &[&format!("data/{i}")]), Ok("OK".to_owned()), "{i}");
    }
    assert_eq!(world.call(ONE, xs_wire::XS_MKDIR, &["data/more"]), Err(Code::Enospc));
    assert_eq!(refusal(&mut world), "making /local/domain/1/data/more: refused: d1 may have 1000 nodes");
    world.write(ONE, "data/1", "still writable");
    world.write(TWO, "data/x", "others are not concerned");
    world.ok(ONE, xs_wire::XS_RM, &["data/1"]);
    world.write(ONE, "data/more", "room again");

    let long = "x".repeat(2049);
    assert_eq!(world.call(TWO, xs_wire::XS_WRITE, &["data/x", &long]), Err(Code::Enospc));
    world.write(TWO, "data/x", &long[..2048]);
    let perms = ["data/x", "n2", "r3", "r4", "r5", "r6", "r7"];
    assert_eq!(world.call(TWO, xs_wire::XS_SET_PERMS, &perms), Err(Code::Enospc));
    world.ok(TWO, xs_wire::XS_SET_PERMS, &perms[..6]);
    for i in 0..128 {
        world.ok(TWO, xs_wire::XS_WATCH, &["data", &i.to_string()]);
    }
    assert_eq!(world.call(TWO, xs_wire::XS_WATCH, &["data", "more"]), Err(Code::E2big));
    let ids: Vec<u32> = (0..10).map(|_| world.begin(TWO)).collect();
    assert_eq!(world.call(TWO, xs_wire::XS_TRANSACTION_START, &[""]), Err(Code::Enospc));
    world.within(TWO, ids[0], xs_wire::XS_TRANSACTION_END, &["F"]).unwrap();
    world.begin(TWO);
    world.ok(LOCAL, xs_wire::XS_SET_QUOTA, &["2", "transactions", "11"]);
    world.begin(TWO);
    assert_eq!(world.ok(LOCAL, xs_wire::XS_GET_QUOTA, &["2", "transactions"]), "11");
    assert_eq!(world.ok(LOCAL, xs_wire::XS_GET_QUOTA, &["transactions"]), "10");
}

#[test]
fn memory_is_limited_in_the_tree_and_in_transactions() {
    let mut world = World::new();
    let big = "x".repeat(2048);
    let mut written = 0;
    while world.call(ONE, xs_wire::XS_WRITE, &[&format!("data/{written}"), &big]).is_ok() {
        written += 1;
    }
    assert!((450..512).contains(&written), "{written} values of 2 KiB in a mebibyte");
    // The same node again and again costs a transaction what it remembers.
    let id = world.begin(TWO);
    let mut written = 0;
    while world.within(TWO, id, xs_wire::XS_WRITE, &["data/x", &big]).is_ok() {
        written += 1;
    }
    assert!((400..512).contains(&written), "{written} changes of 2 KiB in a mebibyte");
    assert_eq!(world.commit(TWO, id), Ok("OK".to_owned()));
}

#[test]
fn a_transaction_cannot_commit_what_there_is_no_room_for_any_more() {
    let mut world = World::new();
    world.ok(LOCAL, xs_wire::XS_SET_QUOTA, &["1", "nodes", "3"]);
    let ids = [world.begin(ONE), world.begin(ONE)];
    for (id, name) in ids.into_iter().zip(["data/a", "data/b"]) {
        world.within(ONE, id, xs_wire::XS_WRITE, &[name, ""]).unwrap();
        world.within(ONE, id, xs_wire::XS_WRITE, &[&format!("{name}/x"), ""]).unwrap();
    }
    assert_eq!(world.commit(ONE, ids[0]), Ok("OK".to_owned()));
    assert_eq!(world.commit(ONE, ids[1]), Err(Code::Enospc));
    assert_eq!(world.read(ONE, "data/b"), Err(Code::Enoent), "all or nothing");
}

#[test]
fn a_list_that_no_message_holds_comes_in_parts() {
    let mut world = World::new();
    let names: Vec<String> = (1000..2000).map(|i| format!("child-{i}")).collect();
    for name in &names {
        world.ok(LOCAL, xs_wire::XS_MKDIR, &[&format!("/many/{name}")]);
    }
    assert_eq!(world.call(LOCAL, xs_wire::XS_DIRECTORY, &["/many"]), Err(Code::E2big));
    let (mut seen, mut parts) = (Vec::new(), 0);
    loop {
        let offset = seen.len().to_string();
        let part = world.send(LOCAL, xs_wire::XS_DIRECTORY_PART, 0, strings(["/many", &offset])).unwrap();
        let mut fields = Fields::new(&part);
        fields.string().unwrap();
        seen.extend_from_slice(fields.rest());
        parts += 1;
        if seen.ends_with(b"\0\0") {
            break;
        }
    }
    assert_eq!(seen, [strings(&names), vec![0]].concat());
    assert_eq!(parts, 3);
}

#[test]
fn what_is_no_request_is_refused() {
    let mut world = World::new();
    for (kind, payload, code) in [
        (xs_wire::XS_READ, &b"data"[..], Code::Einval),
        (xs_wire::XS_READ, b"data\0more\0", Code::Einval),
        (xs_wire::XS_READ, b"\xff\xfe\0", Code::Einval),
        (xs_wire::XS_READ, b"", Code::Einval),
        (xs_wire::XS_WRITE, b"data", Code::Einval),
        (xs_wire::XS_WATCH, b"data\0", Code::Einval),
        (xs_wire::XS_WATCH, b"@nothing\0t\0", Code::Einval),
        (xs_wire::XS_SET_PERMS, b"data\0", Code::Einval),
        (xs_wire::XS_SET_PERMS, b"data\0q1\0", Code::Einval),
        (xs_wire::XS_TRANSACTION_END, b"T\0", Code::Enoent),
        (xs_wire::XS_TRANSACTION_END, b"X\0", Code::Einval),
        (xs_wire::XS_GET_DOMAIN_PATH, b"99999\0", Code::Einval),
        (xs_wire::XS_DIRECTORY_PART, b"data\0-1\0", Code::Einval),
        (xs_wire::XS_WATCH_EVENT, b"x\0y\0", Code::Enosys),
        (20, b"", Code::Enosys),
        (27, b"", Code::Enosys),
        (u32::MAX, b"", Code::Enosys),
    ] {
        assert_eq!(world.send(ONE, kind, 0, payload.to_vec()), Err(code), "{kind} {payload:?}");
    }
    assert_eq!(world.within(ONE, 77, xs_wire::XS_READ, &["data"]), Err(Code::Enoent), "no such transaction");
    let token = "t".repeat(1023);
    assert_eq!(world.call(ONE, xs_wire::XS_WATCH, &["data", &token]), Err(Code::Einval), "no event could carry it");
}

#[test]
fn reset_ends_watches_and_transactions_of_the_caller_alone() {
    let mut world = World::new();
    for conn in [ONE, TWO] {
        world.ok(conn, xs_wire::XS_WATCH, &["data", "t"]);
    }
    let id = world.begin(ONE);
    world.ok(ONE, xs_wire::XS_RESET_WATCHES, &[""]);
    assert_eq!(world.commit(ONE, id), Err(Code::Enoent));
    world.output(ONE);
    world.output(TWO);
    world.write(ONE, "data/x", "");
    world.write(TWO, "data/x", "");
    assert_eq!((world.output(ONE).len(), world.output(TWO).len()), (0, 1));
}
