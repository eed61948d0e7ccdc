// SPDX-License-Identifier: MIT OR Apache-2.0
//! The store beside a naive model of it: random requests of a local client and two guests.
//!
//! The model is a map from paths to values and permissions. A transaction of the model is a list of what
//! was asked and answered: it may be committed if asking all of it again, at once, at the end, gives the same
//! answers. The store must never commit what the model says it may not, and must commit what nobody was in
//! the way of. Now and then the state is read back from its own entries, as after a kill.

use std::collections::BTreeMap;

use dom0_tools::xenstore::Conn;
use dom0_tools::xenstore::store::{Entry, Life, Machine, Store};
use dom0_tools::xenstore::wire::{Code, Fields, Message, strings};
use guest_abi::io::xs_wire;
use guest_abi::{DomId, EvtchnPort};
use proptest::prelude::{Just, Strategy, prop_oneof};

const LOCAL: Conn = Conn::Socket(1);

struct Toy;

impl Machine for Toy {
    fn attach(&mut self, _: DomId, _: u64, _: EvtchnPort) -> Result<(u32, u32), Code> {
        Ok((0, 0))
    }

    fn life(&mut self, _: DomId) -> Life {
        Life::Alive
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Node {
    value: String,
    owner: u16,
    others: char,
    named: Option<(u16, char)>,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
enum Ask {
    Read(String),
    List(String),
    Write(String, String),
    Make(String),
    Remove(String),
    Perms(String, char, Option<(u16, char)>),
}

/// What a client does.
#[derive(Clone, Debug)]
enum Step {
    Ask(usize, bool, Ask),
    Begin(usize),
    End(usize, bool),
    Watch(usize, String),
    Restart,
}

type Nodes = BTreeMap<String, Node>;
type Answer = Result<String, Code>;

fn parent(path: &str) -> String {
    match path.rfind('/') {
        Some(0) | None => "/".to_owned(),
        Some(at) => path[..at].to_owned(),
    }
}

fn may(node: &Node, who: u16, what: char) -> bool {
    let letter = match node.named {
        _ if who == 0 || who == node.owner => 'b',
        Some((domain, letter)) if domain == who => letter,
        _ => node.others,
    };
    letter == 'b' || letter == what
}

/// The last node that exists on the way.
fn nearest<'a>(nodes: &'a Nodes, path: &str) -> (&'a Node, usize) {
    let (mut path, mut missing) = (path.to_owned(), 0);
    loop {
        if let Some(node) = nodes.get(&path) {
            return (node, missing);
        }
        path = parent(&path);
        missing += 1;
    }
}

fn readable<'a>(nodes: &'a Nodes, who: u16, path: &str) -> Result<&'a Node, Code> {
    let (node, missing) = nearest(nodes, path);
    match (may(node, who, 'r'), missing) {
        (false, _) => Err(Code::Eacces),
        (true, 0) => Ok(node),
        (true, _) => Err(Code::Enoent),
    }
}

fn make(nodes: &mut Nodes, who: u16, path: &str) -> Result<(), Code> {
    if !may(nearest(nodes, path).0, who, 'w') {
        return Err(Code::Eacces);
    }
    if nodes.contains_key(path) {
        return Ok(());
    }
    let above = parent(path);
    make(nodes, who, &above)?;
    let mut node = nodes[&above].clone();
    node.value.clear();
    if who != 0 {
        node.owner = who;
    }
    nodes.insert(path.to_owned(), node);
    Ok(())
}

/// Does it, or says why not.
fn answer(nodes: &mut Nodes, who: u16, ask: &Ask) -> Answer {
    let ok = || Ok("OK".to_owned());
    match ask {
        Ask::Read(path) => readable(nodes, who, path).map(|node| node.value.clone()),
        Ask::List(path) => {
            readable(nodes, who, path)?;
            let below = nodes.keys().filter(|other| *other != "/" && parent(other) == *path);
            Ok(below.map(|path| path.rsplit('/').next().unwrap()).collect::<Vec<_>>().join(" "))
        }
        Ask::Write(path, value) => {
            make(nodes, who, path)?;
            nodes.get_mut(path).unwrap().value.clone_from(value);
            ok()
        }
        Ask::Make(path) => make(nodes, who, path).and_then(|()| ok()),
        Ask::Remove(path) => {
            let (node, missing) = nearest(nodes, path);
            match missing {
                0 if may(node, who, 'w') => {
                    let below = format!("{path}/");
                    nodes.retain(|other, _| other != path && !other.starts_with(&below));
                    ok()
                }
                1 if may(node, who, 'r') || may(node, who, 'w') => ok(),
                0 | 1 => Err(Code::Eacces),
                _ if may(node, who, 'r') => Err(Code::Enoent),
                _ => Err(Code::Eacces),
            }
        }
        Ask::Perms(path, others, named) => {
            let (node, missing) = nearest(nodes, path);
            if missing > 0 {
                return Err(if may(node, who, 'r') { Code::Enoent } else { Code::Eacces });
            }
            if who != 0 && who != node.owner {
                return Err(Code::Eacces);
            }
            let node = nodes.get_mut(path).unwrap();
            (node.others, node.named) = (*others, *named);
            ok()
        }
    }
}

/// A transaction of the model.
#[derive(Clone)]
struct Open {
    id: u32,
    view: Nodes,
    /// Somebody has changed something since it began, if only to what it was.
    is_disturbed: bool,
    log: Vec<(Ask, Answer)>,
    changes: Vec<Ask>,
    is_doomed: bool,
}

struct World {
    store: Store,
    entries: Vec<Entry>,
    nodes: Nodes,
    open: [Option<Open>; 3],
    watches: Vec<(usize, String)>,
    /// Events that each client must be told, in any order.
    expected: Vec<(usize, String)>,
}

fn conn(client: usize) -> Conn {
    match client {
        0 => LOCAL,
        guest => Conn::Ring(DomId::new(u16::try_from(guest).unwrap())),
    }
}

impl World {
    fn new() -> Self {
        let mut store = Store::new(0);
        store.connect(LOCAL);
        let root = Node { value: String::new(), owner: 0, others: 'r', named: None };
        let mut world = Self {
            store,
            entries: Vec::new(),
            nodes: BTreeMap::from([("/".to_owned(), root)]),
            open: [None, None, None],
            watches: Vec::new(),
            expected: Vec::new(),
        };
        for guest in ["1", "2"] {
            world.call(LOCAL, xs_wire::XS_INTRODUCE, 0, strings([guest, "1", "1"])).unwrap();
        }
        for (path, others) in [("/a", 'b'), ("/b", 'r')] {
            world.ask(0, false, Ask::Make(path.to_owned()));
            world.ask(0, false, Ask::Perms(path.to_owned(), others, None));
        }
        world
    }

    fn who(client: usize) -> u16 {
        u16::try_from(client).unwrap()
    }

    fn call(&mut self, conn: Conn, kind: u32, tx_id: u32, payload: Vec<u8>) -> Answer {
        let message = Message { kind, req_id: 3, tx_id, payload };
        self.store.request(conn, &message, 0, &mut Toy);
        self.entries.extend(self.store.take_record());
        let mut result = None;
        for client in 0..3 {
            let own = self::conn(client);
            let Some(stream) = self.store.stream(own) else { continue };
            let mut bytes = stream.rest();
            self.store.delivered(own, bytes.len());
            while let Some(message) = Message::take(&mut bytes).unwrap() {
                match message.kind {
                    xs_wire::XS_WATCH_EVENT => {
                        let path = Fields::new(&message.payload).text().unwrap().to_owned();
                        let at = self.expected.iter().position(|event| *event == (client, path.clone()));
                        let at = at.unwrap_or_else(|| panic!("client {client} is told of {path} for no reason"));
                        self.expected.swap_remove(at);
                    }
                    kind => {
                        assert!(own == conn && result.is_none(), "an answer to nothing");
                        let text = String::from_utf8(message.payload).unwrap();
                        let text = text.trim_end_matches('\0').replace('\0', " ");
                        let is_error = kind == xs_wire::XS_ERROR;
                        result = Some(if is_error { Err(Code::from_name(text.as_bytes())) } else { Ok(text) });
                    }
                }
            }
        }
        assert_eq!(self.expected, [], "events that nobody was told of");
        result.expect("each request is answered")
    }

    /// Notes the events of a change from one state of the nodes to another.
    fn expect_events(&mut self, before: &Nodes, ask: &Ask) {
        let (path, is_removal) = match ask {
            Ask::Write(path, _) | Ask::Perms(path, ..) => (path, false),
            Ask::Make(path) if !before.contains_key(path) => (path, false),
            Ask::Remove(path) if before.contains_key(path) => (path, true),
            _ => return,
        };
        for (client, watched) in &self.watches {
            let sees = |path: &str| {
                let states = [before.get(path), self.nodes.get(path)];
                states.into_iter().flatten().any(|node| may(node, Self::who(*client), 'r'))
            };
            let is_at_or_above = watched == path || watched == "/" || path.starts_with(&format!("{watched}/"));
            let is_below = is_removal && watched.starts_with(&format!("{path}/")) && before.contains_key(watched);
            if is_at_or_above && sees(path) {
                self.expected.push((*client, path.clone()));
            } else if is_below && sees(watched) {
                self.expected.push((*client, watched.clone()));
            }
        }
    }

    fn ask(&mut self, client: usize, in_transaction: bool, ask: Ask) {
        let who = Self::who(client);
        let open = self.open[client].as_ref().filter(|_| in_transaction);
        let id = open.map_or(0, |open| open.id);
        let exists = |path: &String| open.is_some_and(|open| open.view.contains_key(path));
        // To make what is there, or to remove what is not, is no change.
        let has_effect = match &ask {
            Ask::Read(_) | Ask::List(_) => false,
            Ask::Make(path) => !exists(path),
            Ask::Remove(path) => exists(path),
            Ask::Write(..) | Ask::Perms(..) => true,
        };
        let expected = match self.open[client].as_mut().filter(|_| in_transaction) {
            Some(open) => answer(&mut open.view, who, &ask),
            None => {
                let before = self.nodes.clone();
                let result = answer(&mut self.nodes, who, &ask);
                if result.is_ok() {
                    if !matches!(ask, Ask::Read(_) | Ask::List(_)) {
                        self.disturb();
                    }
                    self.expect_events(&before, &ask);
                }
                result
            }
        };
        let perms = |letter: char, domain: u16| format!("{letter}{domain}");
        let (kind, payload) = match &ask {
            Ask::Read(path) => (xs_wire::XS_READ, strings([path])),
            Ask::List(path) => (xs_wire::XS_DIRECTORY, strings([path])),
            Ask::Write(path, value) => (xs_wire::XS_WRITE, [strings([path]), value.clone().into_bytes()].concat()),
            Ask::Make(path) => (xs_wire::XS_MKDIR, strings([path])),
            Ask::Remove(path) => (xs_wire::XS_RM, strings([path])),
            Ask::Perms(path, others, named) => {
                let view = self.open[client].as_ref().filter(|_| in_transaction).map_or(&self.nodes, |open| &open.view);
                let owner = view.get(path).map_or(who, |node| node.owner);
                let first = perms(*others, owner);
                let all: Vec<String> = [path.clone(), first]
                    .into_iter()
                    .chain(named.map(|(domain, letter)| perms(letter, domain)))
                    .collect();
                (xs_wire::XS_SET_PERMS, strings(all))
            }
        };
        let got = self.call(conn(client), kind, id, payload);
        assert_eq!(got, expected, "client {client} {ask:?} in transaction {id}");
        if let Some(open) = self.open[client].as_mut().filter(|_| in_transaction) {
            if has_effect && expected.is_ok() {
                open.changes.push(ask.clone());
            }
            open.log.push((ask, expected));
        }
    }

    fn disturb(&mut self) {
        self.open.iter_mut().flatten().for_each(|open| open.is_disturbed = true);
    }

    fn begin(&mut self, client: usize) {
        if self.open[client].is_some() {
            return;
        }
        let id = self.call(conn(client), xs_wire::XS_TRANSACTION_START, 0, vec![0]).unwrap().parse().unwrap();
        let view = self.nodes.clone();
        self.open[client] =
            Some(Open { id, view, is_disturbed: false, log: Vec::new(), changes: Vec::new(), is_doomed: false });
    }

    fn end(&mut self, client: usize, is_commit: bool) {
        let Some(open) = self.open[client].take() else { return };
        let who = Self::who(client);
        // What the outcome would be if all of it took place now.
        let (mut outcome, mut states, mut may_commit) = (self.nodes.clone(), Vec::new(), true);
        for (ask, answered) in &open.log {
            states.push(outcome.clone());
            may_commit &= answer(&mut outcome, who, ask) == *answered;
        }
        let before = std::mem::replace(&mut self.nodes, outcome.clone());
        if is_commit {
            // Told at the end, each as the step by itself would be. The store may refuse, then nobody is told.
            for ((ask, answered), state) in open.log.iter().zip(&states) {
                let mut after = state.clone();
                let _ = answer(&mut after, who, ask);
                self.nodes = after;
                if answered.is_ok() {
                    self.expect_events(state, ask);
                }
            }
            self.nodes = outcome;
        }
        let verdict: &[u8] = if is_commit { b"T\0" } else { b"F\0" };
        let expected = self.expected.clone();
        let got = self.end_call(client, open.id, verdict, is_commit && !may_commit);
        match got {
            Ok(_) if is_commit => {
                assert!(may_commit && !open.is_doomed, "client {client} has committed what others had changed");
                self.disturb();
                assert_eq!(self.expected, []);
            }
            Ok(_) => self.nodes = before,
            Err(Code::Eagain) => {
                assert!(is_commit && (open.is_disturbed || open.is_doomed), "nobody was in client {client}'s way");
                assert_eq!(self.expected, expected, "events of what was not committed");
                self.expected.clear();
                self.nodes = before;
            }
            Err(code) => panic!("ending a transaction: {code}"),
        }
    }

    /// As [`World::call`], for a request whose events are told only if it succeeds.
    fn end_call(&mut self, client: usize, id: u32, verdict: &[u8], must_fail: bool) -> Answer {
        let own = conn(client);
        let message = Message { kind: xs_wire::XS_TRANSACTION_END, req_id: 3, tx_id: id, payload: verdict.to_vec() };
        self.store.request(own, &message, 0, &mut Toy);
        self.entries.extend(self.store.take_record());
        let mut bytes = self.store.stream(own).unwrap().rest();
        let answer = Message::take(&mut bytes).unwrap().expect("an answer comes first");
        let is_error = answer.kind == xs_wire::XS_ERROR;
        self.store.delivered(own, answer.to_bytes().len());
        assert!(is_error || !must_fail, "client {client} has committed what others had changed");
        if is_error {
            return Err(Code::from_name(answer.payload.strip_suffix(&[0]).unwrap()));
        }
        // A request without an effect, to look at the events.
        let path = self.call(own, xs_wire::XS_GET_DOMAIN_PATH, 0, strings(["1"]));
        assert_eq!(path, Ok("/local/domain/1".to_owned()));
        Ok("OK".to_owned())
    }

    fn watch(&mut self, client: usize, path: String) {
        if self.watches.contains(&(client, path.clone())) {
            return;
        }
        self.expected.push((client, path.clone()));
        self.call(conn(client), xs_wire::XS_WATCH, 0, strings([&path, "t"])).unwrap();
        self.watches.push((client, path));
    }

    /// The daemon is killed, and another reads what the first has logged.
    fn restart(&mut self) {
        let before = self.store.snapshot();
        let mut next = Store::new(1 << 40);
        self.entries.iter().for_each(|entry| next.apply(entry));
        // What was delivered is known from the rings, here: all of it.
        for client in 1..3 {
            let pending = next.pending(conn(client));
            next.delivered(conn(client), pending);
        }
        assert_eq!(next.snapshot(), before);
        // A log that begins with the state is as good as one that tells its whole story.
        let mut compact = Store::new(1 << 41);
        before.iter().for_each(|entry| compact.apply(entry));
        assert_eq!(compact.snapshot(), before);
        compact.doom_transactions();
        self.entries = before;
        self.store = compact;
        self.store.take_told();
        self.store.connect(LOCAL);
        self.open[0] = None;
        self.watches.retain(|(client, _)| *client != 0);
        self.open.iter_mut().flatten().for_each(|open| {
            open.is_doomed = true;
            // It goes on upon the tree as it is now, with its own changes in it.
            open.view = self.nodes.clone();
        });
        for client in 1..3 {
            if let Some(open) = self.open[client].as_mut() {
                for ask in &open.changes {
                    force(&mut open.view, Self::who(client), ask);
                }
            }
        }
    }
}

/// Applies a change of before to whatever there is now.
fn force(nodes: &mut Nodes, who: u16, ask: &Ask) {
    match ask {
        Ask::Write(path, _) | Ask::Make(path) => {
            let mut missing = Vec::new();
            let mut at = path.clone();
            while !nodes.contains_key(&at) {
                missing.push(at.clone());
                at = parent(&at);
            }
            for path in missing.into_iter().rev() {
                let mut node = nodes[&parent(&path)].clone();
                node.value.clear();
                if who != 0 {
                    node.owner = who;
                }
                nodes.insert(path, node);
            }
            if let Ask::Write(path, value) = ask {
                nodes.get_mut(path).unwrap().value.clone_from(value);
            }
        }
        Ask::Remove(path) => {
            let below = format!("{path}/");
            nodes.retain(|other, _| other != path && !other.starts_with(&below));
        }
        Ask::Perms(path, others, named) => {
            if let Some(node) = nodes.get_mut(path) {
                (node.others, node.named) = (*others, *named);
            }
        }
        Ask::Read(_) | Ask::List(_) => {}
    }
}

fn path() -> impl Strategy<Value = String> {
    let name = || prop_oneof![Just("a"), Just("b"), Just("c")];
    proptest::collection::vec(name(), 1..4).prop_map(|names| format!("/{}", names.join("/")))
}

fn letter() -> impl Strategy<Value = char> {
    prop_oneof![Just('n'), Just('r'), Just('w'), Just('b')]
}

fn ask() -> impl Strategy<Value = Ask> {
    prop_oneof![
        3 => path().prop_map(Ask::Read),
        2 => path().prop_map(Ask::List),
        5 => (path(), "[0-9]{0,2}").prop_map(|(path, value)| Ask::Write(path, value)),
        2 => path().prop_map(Ask::Make),
        2 => path().prop_map(Ask::Remove),
        2 => (path(), letter(), proptest::option::of((1_u16..3, letter())))
            .prop_map(|(path, others, named)| Ask::Perms(path, others, named)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (0_usize..3, proptest::bool::ANY, ask()).prop_map(|(client, within, ask)| Step::Ask(client, within, ask)),
        3 => (0_usize..3).prop_map(Step::Begin),
        3 => (0_usize..3, proptest::bool::weighted(0.8)).prop_map(|(client, commit)| Step::End(client, commit)),
        1 => (0_usize..3, path()).prop_map(|(client, path)| Step::Watch(client, path)),
        1 => Just(Step::Restart),
    ]
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(400))]

    #[test]
    fn the_store_is_as_the_model(steps in proptest::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        for step in steps {
            match step {
                Step::Ask(client, within, ask) => world.ask(client, within, ask),
                Step::Begin(client) => world.begin(client),
                Step::End(client, is_commit) => world.end(client, is_commit),
                Step::Watch(client, path) => world.watch(client, path),
                Step::Restart => world.restart(),
            }
            assert!(world.store.tree().is_counted());
        }
    }
}
