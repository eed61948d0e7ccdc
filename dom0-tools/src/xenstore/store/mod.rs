// SPDX-License-Identifier: MIT OR Apache-2.0
//! The daemon's state, and the one way in which it changes.
//!
//! [`Store::apply`] is the only function that changes the state, by an [`Entry`]. A request is checked, then
//! turned into entries; what of them outlives the daemon is gathered in a record, which the caller logs
//! before it lets anybody see the outcome. Reading a log back is applying its entries again, so there is no
//! second idea of what an entry means.
//!
//! What is *not* in a record: sockets, which end with the daemon, and how much of a ring's output has been
//! delivered, which the ring's own counter says.

mod domains;
mod entry;
mod events;
mod manage;
mod request;
mod snapshot;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use guest_abi::{DomId, EvtchnPort};

pub use entry::Entry;

use super::Conn;
use super::path::Path;
use super::perms::{Access, Perms, Who};
use super::quota::Quota;
use super::stream::{NotOurs, Stream};
use super::transaction::Transaction;
use super::tree::{Change, Tree};
use super::watch::{Special, Target, Watch, Watches};
use super::wire::{Code, Message};

/// What the store must ask of the machine in the middle of a request.
pub trait Machine {
    /// Gets access to a domain's ring and port. Returns the counters of requests taken and answers given that the
    /// ring's page has. A connection that the domain had is given up.
    ///
    /// # Errors
    /// EINVAL: there is no such domain, ring or port.
    fn attach(&mut self, domain: DomId, gfn: u64, port: EvtchnPort) -> Result<(u32, u32), Code>;

    /// What has become of a domain.
    fn life(&mut self, domain: DomId) -> Life;

    /// Has the daemon die at a point of a later message's way, for tests of what follows.
    ///
    /// # Errors
    /// EINVAL: there is no such point, or this machine has none.
    fn die_at(&mut self, _point: &str) -> Result<(), Code> {
        Err(Code::Einval)
    }
}

/// What has become of a domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    /// It is there.
    Alive,
    /// It is there, and has shut down.
    ShutDown,
    /// It does not exist, or is being taken apart.
    Gone,
}

/// A domain that has been introduced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Domain {
    /// The frame of its ring, by its own number.
    pub gfn: u64,
    /// The port at its end.
    pub port: EvtchnPort,
    /// It has shut down, and that has been told.
    pub is_shut_down: bool,
    /// Its connection was dropped; `RING_ERROR_*`.
    pub refused: Option<u32>,
    /// The domain that it may act for.
    pub target: Option<DomId>,
}

/// A client's state.
#[derive(Clone, Debug, Default)]
struct Client {
    stream: Stream,
    transactions: BTreeMap<u32, Transaction>,
    last_transaction: u32,
    /// Commits that failed one after the other.
    conflicts: u32,
}

/// Somebody of the control domain could not commit because of what a guest wrote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Contention {
    /// Who must try again.
    pub victim: Conn,
    /// Who wrote.
    pub offender: DomId,
    /// How often in a row.
    pub times: u32,
}

/// The state.
#[derive(Debug)]
pub struct Store {
    tree: Tree,
    special: BTreeMap<Special, Perms>,
    watches: Watches,
    clients: BTreeMap<Conn, Client>,
    domains: BTreeMap<DomId, Domain>,
    /// Limits that were set, for one domain or for all.
    quotas: BTreeMap<(Option<u16>, Quota), u32>,
    /// Entries since the last [`Store::take_record`].
    record: Vec<Entry>,
    /// Events that the request under way has caused.
    events: Vec<(Conn, Vec<u8>)>,
    contention: Option<Contention>,
    complaints: Vec<(Conn, String)>,
    /// Who has been told something since the last [`Store::take_told`].
    told: BTreeSet<Conn>,
    /// Domains whose connection has come or gone since the last [`Store::take_moved`].
    moved: BTreeSet<DomId>,
}

impl Store {
    /// An empty store: a root, nothing else. The tree's stamps begin at `stamp`.
    #[must_use]
    pub fn new(stamp: u64) -> Self {
        let nobody = Perms::new(DomId::DOM0, Access::NONE);
        Self {
            tree: Tree::new(stamp),
            special: Special::ALL.map(|special| (special, nobody.clone())).into(),
            watches: Watches::default(),
            clients: BTreeMap::new(),
            domains: BTreeMap::new(),
            quotas: BTreeMap::new(),
            record: Vec::new(),
            events: Vec::new(),
            contention: None,
            complaints: Vec::new(),
            told: BTreeSet::new(),
            moved: BTreeSet::new(),
        }
    }

    /// The nodes that there are before anybody has made any.
    pub fn furnish(&mut self) {
        for (path, value) in [("/tool", ""), ("/local/domain/0/domid", "0"), ("/local/domain/0/name", "dom0")] {
            let path = Path::known(path);
            self.commit(Entry::Change(Change::Write { path, value: value.into(), by: DomId::DOM0 }));
        }
    }

    /// The tree.
    #[must_use]
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The domains that have been introduced.
    #[must_use]
    pub fn domains(&self) -> &BTreeMap<DomId, Domain> {
        &self.domains
    }

    /// A client's streams.
    #[must_use]
    pub fn stream(&self, conn: Conn) -> Option<&Stream> {
        self.clients.get(&conn).map(|client| &client.stream)
    }

    /// So many bytes of a client's output have been delivered.
    pub fn delivered(&mut self, conn: Conn, count: usize) {
        if let Some(client) = self.clients.get_mut(&conn) {
            client.stream.delivered(count);
        }
    }

    /// The ring's counter of delivered bytes, after a restart.
    ///
    /// # Errors
    /// It cannot be true.
    pub fn resume(&mut self, domain: DomId, said: u32) -> Result<(), NotOurs> {
        let client = self.clients.get_mut(&Conn::Ring(domain));
        client.map_or(Ok(()), |client| client.stream.resume(said))
    }

    /// A local client has connected.
    pub fn connect(&mut self, conn: Conn) {
        self.clients.insert(conn, Client::default());
    }

    /// A local client has gone.
    pub fn disconnect(&mut self, conn: Conn) {
        self.watches.remove_all(conn);
        self.clients.remove(&conn);
    }

    /// The entries to log, all of one record.
    pub fn take_record(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.record)
    }

    /// What is to be told to whoever reads the daemon's messages.
    pub fn take_complaints(&mut self) -> Vec<(Conn, String)> {
        std::mem::take(&mut self.complaints)
    }

    /// For whom something waits that did not before.
    pub fn take_told(&mut self) -> BTreeSet<Conn> {
        std::mem::take(&mut self.told)
    }

    /// Domains that have been introduced or released.
    pub fn take_moved(&mut self) -> BTreeSet<DomId> {
        std::mem::take(&mut self.moved)
    }

    /// Commits of a client that failed one after the other.
    #[must_use]
    pub fn conflicts(&self, conn: Conn) -> u32 {
        self.clients.get(&conn).map_or(0, |client| client.conflicts)
    }

    /// Whom the last request has found in its way.
    pub fn take_contention(&mut self) -> Option<Contention> {
        self.contention.take()
    }

    /// A ring has given bytes that do not make its message whole.
    pub fn receive(&mut self, domain: DomId, bytes: Vec<u8>) {
        self.commit(Entry::Received { domain, bytes });
    }

    /// A ring's message was refused as a whole, and its connection with it: it is not served any more.
    pub fn refuse(&mut self, domain: DomId, error: u32) {
        self.commit(Entry::Refused { domain, error });
    }

    /// A domain asks for a fresh connection.
    pub fn reconnect(&mut self, domain: DomId) {
        self.commit(Entry::Reconnected { domain });
    }

    /// Who a client is, for permissions.
    fn who(&self, conn: Conn) -> Who {
        match conn {
            Conn::Ring(domain) => Who { domain, target: self.domains.get(&domain).and_then(|domain| domain.target) },
            Conn::Socket(_) => Who::DOM0,
        }
    }

    /// A domain's limit; none for the control domain.
    #[must_use]
    pub fn limit(&self, domain: DomId, quota: Quota) -> usize {
        if domain == DomId::DOM0 {
            return usize::MAX;
        }
        let set = self.quotas.get(&(Some(domain.raw()), quota)).or_else(|| self.quotas.get(&(None, quota)));
        set.copied().unwrap_or_else(|| quota.default_limit()).try_into().unwrap_or(usize::MAX)
    }

    /// Changes the state, and notes the entry for the record if it must outlive the daemon.
    fn commit(&mut self, entry: Entry) {
        self.apply(&entry);
        if entry.is_durable() {
            self.record.push(entry);
        }
    }

    /// Applies an entry that a log holds.
    pub fn apply(&mut self, entry: &Entry) {
        match entry {
            Entry::Started { .. } => {}
            Entry::Node { path, value, perms } => self.tree.restore(path, value, perms),
            Entry::Change(change) => self.tree.apply(change),
            Entry::SpecialPerms { special, perms } => drop(self.special.insert(*special, perms.clone())),
            Entry::Quota { domain, quota, limit: Some(limit) } => drop(self.quotas.insert((*domain, *quota), *limit)),
            Entry::Quota { domain, quota, limit: None } => drop(self.quotas.remove(&(*domain, *quota))),
            Entry::Introduced { domain, gfn, port, taken, said } => {
                self.apply_introduced(*domain, *gfn, EvtchnPort::new(*port), (*taken, *said));
            }
            Entry::Released { domain } => {
                self.disconnect(Conn::Ring(*domain));
                self.domains.remove(domain);
                self.moved.insert(*domain);
            }
            Entry::Reconnected { domain } => self.reset(*domain, None, Stream::default()),
            Entry::Refused { domain, error } => {
                // The counters stay where they are: the ring's owner may still look at them.
                let at = self.stream(Conn::Ring(*domain)).map_or((0, 0), |stream| (stream.taken(), stream.said()));
                self.reset(*domain, Some(*error), Stream::new(at.0, at.1));
            }
            Entry::ShutDown { domain, is } => self.on_domain(*domain, |domain| domain.is_shut_down = *is),
            Entry::Target { domain, target } => {
                self.on_domain(*domain, |domain| domain.target = Some(DomId::new(*target)));
            }
            Entry::Received { domain, bytes } => self.on_client(Conn::Ring(*domain), |c| c.stream.receive(bytes)),
            Entry::Taken { domain, bytes, .. } => self.on_client(Conn::Ring(*domain), |c| c.stream.finish(*bytes)),
            Entry::Said { conn, bytes } => self.on_client(*conn, |client| client.stream.say(bytes.clone())),
            Entry::Watched { conn, path, token } => {
                if let Ok(target) = Target::parse(path, self.who(*conn).domain) {
                    let watch = Watch { conn: *conn, given: path.clone(), token: token.clone() };
                    self.watches.add(target, watch);
                }
            }
            Entry::Unwatched { conn, path, token } => {
                if let Ok(target) = Target::parse(path, self.who(*conn).domain) {
                    self.watches.remove(&target, *conn, token);
                }
            }
            Entry::Forgotten { conn } => {
                self.watches.remove_all(*conn);
                self.on_client(*conn, |client| client.transactions.clear());
            }
            Entry::Began { conn, transaction } => {
                let new = Transaction::new(&self.tree);
                self.on_client(*conn, |client| {
                    client.transactions.insert(*transaction, new);
                    client.last_transaction = *transaction;
                });
            }
            Entry::Within { conn, transaction, change } => self.on_client(*conn, |client| {
                if let Some(transaction) = client.transactions.get_mut(transaction) {
                    transaction.apply(change);
                }
            }),
            Entry::Ended { conn, transaction } => {
                self.on_client(*conn, |client| drop(client.transactions.remove(transaction)));
            }
        }
    }

    fn apply_introduced(&mut self, domain: DomId, gfn: u64, port: EvtchnPort, (taken, said): (u32, u32)) {
        let known = Domain { gfn, port, is_shut_down: false, refused: None, target: None };
        self.domains.insert(domain, known);
        self.moved.insert(domain);
        self.reset(domain, None, Stream::new(taken, said));
    }

    /// Begins a domain's connection anew.
    fn reset(&mut self, domain: DomId, refused: Option<u32>, stream: Stream) {
        let conn = Conn::Ring(domain);
        self.watches.remove_all(conn);
        self.clients.insert(conn, Client { stream, ..Client::default() });
        self.on_domain(domain, |domain| domain.refused = refused);
    }

    fn on_client(&mut self, conn: Conn, f: impl FnOnce(&mut Client)) {
        if let Some(client) = self.clients.get_mut(&conn) {
            f(client);
        }
    }

    fn on_domain(&mut self, domain: DomId, f: impl FnOnce(&mut Domain)) {
        if let Some(domain) = self.domains.get_mut(&domain) {
            f(domain);
        }
    }

    /// After a log has been read: transactions of before can go on, and not be committed.
    pub fn doom_transactions(&mut self) {
        for client in self.clients.values_mut() {
            client.transactions.values_mut().for_each(Transaction::doom);
        }
    }

    /// The bytes that wait for a client.
    #[must_use]
    pub fn pending(&self, conn: Conn) -> usize {
        self.stream(conn).map_or(0, Stream::pending)
    }

    /// Handles one message of a client, of which `bytes` have come from its ring just now.
    pub fn request(&mut self, conn: Conn, message: &Message, bytes: u32, machine: &mut dyn Machine) {
        if let Conn::Ring(domain) = conn {
            let Message { kind, req_id, tx_id, .. } = *message;
            self.commit(Entry::Taken { domain, bytes, kind, req_id, tx_id });
        }
        let result = self.handle(conn, message, machine);
        self.say(conn, message.answer(result).to_bytes());
        self.say_events();
    }

    fn say(&mut self, conn: Conn, bytes: Vec<u8>) {
        self.told.insert(conn);
        self.commit(Entry::Said { conn, bytes });
    }
}
