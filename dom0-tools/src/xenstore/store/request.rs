// SPDX-License-Identifier: MIT OR Apache-2.0
//! What each request does: checks first, entries last.

use guest_abi::DomId;
use guest_abi::io::xs_wire;

use super::{Contention, Machine, Store};
use crate::xenstore::Conn;
use crate::xenstore::path::Path;
use crate::xenstore::perms::{Perms, Who};
use crate::xenstore::quota::Quota;
use crate::xenstore::store::Entry;
use crate::xenstore::tree::{Aspect, Change, Node, Tree};
use crate::xenstore::watch::{Special, Target};
use crate::xenstore::wire::{Code, Fields, Message, strings};

/// An event is a path and a token, and must fit into a message whatever the path.
const TOKEN_MAX: usize = xs_wire::PAYLOAD_MAX - xs_wire::ABS_PATH_MAX - 2;
const FEATURES: u32 = xs_wire::RING_FEATURE_RECONNECTION | xs_wire::RING_FEATURE_ERROR;

/// Whose view of the tree a request is about.
#[derive(Clone, Copy)]
pub(super) struct At {
    pub(super) conn: Conn,
    pub(super) who: Who,
    /// The transaction, if it is in one.
    transaction: Option<u32>,
}

pub(super) type Answer = Result<Vec<u8>, Code>;

pub(super) fn done() -> Vec<u8> {
    strings(["OK"])
}

impl Store {
    pub(super) fn handle(&mut self, conn: Conn, message: &Message, machine: &mut dyn Machine) -> Answer {
        let transaction = Some(message.tx_id).filter(|id| *id != 0);
        let at = At { conn, who: self.who(conn), transaction };
        if transaction.is_some_and(|id| !self.has_transaction(conn, id)) {
            return Err(Code::Enoent);
        }
        let mut fields = Fields::new(&message.payload);
        match message.kind {
            xs_wire::XS_CONTROL => self.control(at, fields, machine),
            xs_wire::XS_DIRECTORY => self.directory(at, &one_path(fields, at)?),
            xs_wire::XS_DIRECTORY_PART => self.directory_part(at, fields),
            xs_wire::XS_READ => Ok(self.readable(at, &one_path(fields, at)?, Aspect::Content)?.value().to_vec()),
            xs_wire::XS_GET_PERMS => self.get_perms(at, fields),
            xs_wire::XS_SET_PERMS => self.set_perms(at, fields),
            xs_wire::XS_WATCH => self.watch(at, fields),
            xs_wire::XS_UNWATCH => self.unwatch(at, fields),
            xs_wire::XS_RESET_WATCHES => {
                self.commit(Entry::Forgotten { conn });
                Ok(done())
            }
            xs_wire::XS_TRANSACTION_START => self.begin(at),
            xs_wire::XS_TRANSACTION_END => self.end(at, fields),
            xs_wire::XS_WRITE => {
                let path = Path::parse(fields.text()?, at.who.domain)?;
                self.write(at, path, fields.rest())
            }
            xs_wire::XS_MKDIR => self.make(at, one_path(fields, at)?),
            xs_wire::XS_RM => self.remove(at, one_path(fields, at)?),
            xs_wire::XS_INTRODUCE => self.handle_introduce(at, fields, machine),
            xs_wire::XS_RELEASE => self.release(at, fields, machine),
            xs_wire::XS_RESUME => self.resume_domain(at, fields),
            xs_wire::XS_SET_TARGET => self.set_target(at, fields),
            xs_wire::XS_GET_DOMAIN_PATH => {
                let domain = domain_of(&mut fields)?;
                fields.end()?;
                Ok(strings([Path::of_domain(domain).as_str()]))
            }
            xs_wire::XS_IS_DOMAIN_INTRODUCED => {
                let domain = domain_of(&mut fields)?;
                fields.end()?;
                let is_known = domain == DomId::DOM0 || self.domains.contains_key(&domain);
                Ok(strings([if is_known { "T" } else { "F" }]))
            }
            xs_wire::XS_GET_FEATURE => Ok(strings([FEATURES.to_string()])),
            xs_wire::XS_GET_QUOTA => self.get_quota(at, fields),
            xs_wire::XS_SET_QUOTA => self.set_quota(at, fields),
            _ => Err(Code::Enosys),
        }
    }

    fn has_transaction(&self, conn: Conn, id: u32) -> bool {
        self.clients.get(&conn).is_some_and(|client| client.transactions.contains_key(&id))
    }

    /// The tree as the client sees it.
    fn view(&self, at: At) -> &Tree {
        let transaction = at.transaction.and_then(|id| self.clients.get(&at.conn)?.transactions.get(&id));
        transaction.map_or(&self.tree, |transaction| transaction.view())
    }

    /// Notes for a transaction what it looks at: the node and, as far as they are missing, those above it.
    fn note(&mut self, at: At, path: &Path, aspect: Aspect) -> Result<(), Code> {
        let Some(id) = at.transaction else { return Ok(()) };
        let missing = self.view(at).nearest(path).1;
        let Some(client) = self.clients.get_mut(&at.conn) else { return Ok(()) };
        let Some(transaction) = client.transactions.get_mut(&id) else { return Ok(()) };
        transaction.note(path, aspect);
        let mut on_the_way = path.clone();
        transaction.note(&on_the_way, Aspect::Content);
        for _ in 0..missing {
            let Some(parent) = on_the_way.parent() else { break };
            transaction.note(&parent, Aspect::Content);
            on_the_way = parent;
        }
        let size = transaction.size();
        self.demand(at.conn, at.who.domain, Quota::TransactionNodes, size, || format!("looking at {path}"))?;
        self.demand_memory(at, at.who.domain, 0, || format!("looking at {path}"))
    }

    /// Refuses what would exceed a limit of `domain`, and says so.
    fn demand(
        &mut self,
        conn: Conn,
        domain: DomId,
        quota: Quota,
        wanted: usize,
        what: impl FnOnce() -> String,
    ) -> Result<(), Code> {
        let limit = self.limit(domain, quota);
        if wanted <= limit {
            return Ok(());
        }
        let name = quota.name();
        self.complaints.push((conn, format!("{}: refused: {domain} may have {limit} {name}", what())));
        Err(quota.code())
    }

    /// The bytes that a domain has in nodes of its own, as the client sees them, and in transactions.
    fn demand_memory(&mut self, at: At, domain: DomId, more: usize, what: impl FnOnce() -> String) -> Result<(), Code> {
        if domain == DomId::DOM0 {
            return Ok(());
        }
        let client = self.clients.get(&Conn::Ring(domain));
        let in_transactions: usize =
            client.map_or(0, |client| client.transactions.values().map(super::Transaction::bytes).sum());
        let wanted = self.view(at).usage(domain).bytes + in_transactions + more;
        self.demand(at.conn, domain, Quota::Memory, wanted, what)
    }

    /// What a missing node looks like: it is not there, for those who may read the last one that is.
    fn absence(&self, at: At, path: &Path) -> Code {
        let nearest = self.view(at).nearest(path).0;
        if nearest.perms().access(at.who).read { Code::Enoent } else { Code::Eacces }
    }

    fn readable(&mut self, at: At, path: &Path, aspect: Aspect) -> Result<&Node, Code> {
        self.note(at, path, aspect)?;
        match self.view(at).get(path) {
            Some(node) if node.perms().access(at.who).read => Ok(node),
            Some(_) => Err(Code::Eacces),
            None => Err(self.absence(at, path)),
        }
    }

    /// Makes a change in the client's view.
    fn make_change(&mut self, at: At, change: Change) {
        match at.transaction {
            Some(transaction) => self.commit(Entry::Within { conn: at.conn, transaction, change }),
            None => self.change(change),
        }
    }

    fn directory(&mut self, at: At, path: &Path) -> Answer {
        Ok(strings(self.readable(at, path, Aspect::List)?.names()))
    }

    fn directory_part(&mut self, at: At, mut fields: Fields<'_>) -> Answer {
        let path = Path::parse(fields.text()?, at.who.domain)?;
        let offset: usize = fields.number()?;
        fields.end()?;
        let node = self.readable(at, &path, Aspect::List)?;
        let mut part = strings([node.list_stamp().to_string()]);
        let (mut position, mut is_whole) = (0, true);
        for name in node.names() {
            let end = position + name.len() + 1;
            if position >= offset {
                // One byte stays for the empty name at the end.
                is_whole = part.len() + name.len() + 1 < xs_wire::PAYLOAD_MAX;
                if !is_whole {
                    break;
                }
                part.extend_from_slice(&strings([name]));
            }
            position = end;
        }
        if is_whole {
            part.push(0);
        }
        Ok(part)
    }

    fn write(&mut self, at: At, path: Path, value: &[u8]) -> Answer {
        self.demand(at.conn, at.who.domain, Quota::NodeSize, value.len(), || format!("writing {path}"))?;
        self.demand_growth(at, &path, value.len())?;
        let (value, by) = (value.to_vec(), at.who.domain);
        self.make_change(at, Change::Write { path, value, by });
        Ok(done())
    }

    fn make(&mut self, at: At, path: Path) -> Answer {
        // One that exists is not made again, and that is no change.
        let exists = self.view(at).get(&path).is_some();
        self.demand_growth(at, &path, 0)?;
        if !exists {
            self.make_change(at, Change::Make { path, by: at.who.domain });
        }
        Ok(done())
    }

    /// Demands the right to write a node, or to make it, and the room for it.
    fn demand_growth(&mut self, at: At, path: &Path, length: usize) -> Result<(), Code> {
        self.note(at, path, Aspect::Content)?;
        let view = self.view(at);
        let (nearest, missing) = view.nearest(path);
        if !nearest.perms().access(at.who).write {
            return Err(Code::Eacces);
        }
        let is_made_by_guest = missing > 0 && !at.who.is_privileged();
        let owner = if is_made_by_guest { at.who.domain } else { nearest.perms().owner() };
        if at.who.is_privileged() {
            return Ok(());
        }
        let (has, growth) = (view.usage(owner), view.growth(path, length));
        if growth.nodes > 0 {
            self.demand(at.conn, owner, Quota::Nodes, has.nodes + growth.nodes, || format!("making {path}"))?;
        }
        // In a transaction the change is remembered besides what it changes.
        let twice = if at.transaction.is_some() { length + path.as_str().len() } else { 0 };
        if growth.bytes + twice > 0 {
            self.demand_memory(at, owner, growth.bytes + twice, || format!("writing {path}"))?;
        }
        Ok(())
    }

    fn remove(&mut self, at: At, path: Path) -> Answer {
        if path == Path::root() {
            return Err(Code::Einval);
        }
        self.note(at, &path, Aspect::Subtree)?;
        let (nearest, missing) = self.view(at).nearest(&path);
        let access = nearest.perms().access(at.who);
        match missing {
            0 if access.write => {
                self.make_change(at, Change::Remove { path, by: at.who.domain });
                Ok(done())
            }
            // What is to be gone is.
            1 if access.read || access.write => Ok(done()),
            0 | 1 => Err(Code::Eacces),
            _ => Err(self.absence(at, &path)),
        }
    }

    fn get_perms(&mut self, at: At, mut fields: Fields<'_>) -> Answer {
        let name = fields.text()?;
        fields.end()?;
        let perms = match Special::from_name(name) {
            Some(special) if at.who.is_privileged() => self.special.get(&special).ok_or(Code::Enoent)?,
            Some(_) => return Err(Code::Eacces),
            None => self.readable(at, &Path::parse(name, at.who.domain)?, Aspect::Content)?.perms(),
        };
        Ok(strings(perms.entries().iter().map(ToString::to_string)))
    }

    fn set_perms(&mut self, at: At, mut fields: Fields<'_>) -> Answer {
        let name = fields.text()?;
        let perms = Perms::parse(fields)?;
        if let Some(special) = Special::from_name(name) {
            if !at.who.is_privileged() {
                return Err(Code::Eacces);
            }
            self.commit(Entry::SpecialPerms { special, perms });
            return Ok(done());
        }
        let path = Path::parse(name, at.who.domain)?;
        let entries = perms.entries().len();
        self.demand(at.conn, at.who.domain, Quota::NodePermissions, entries, || {
            format!("setting permissions of {path}")
        })?;
        self.note(at, &path, Aspect::Content)?;
        let node = self.view(at).get(&path).ok_or_else(|| self.absence(at, &path))?;
        let owner = node.perms().owner();
        let is_owner = at.who.domain == owner || at.who.target == Some(owner);
        // A guest that gave its nodes away would have them counted elsewhere.
        let is_within_rights = is_owner && perms.owner() == owner;
        if !at.who.is_privileged() && !is_within_rights {
            return Err(Code::Eacces);
        }
        self.demand_memory(at, owner, size_of_val(perms.entries()), || format!("setting permissions of {path}"))?;
        self.make_change(at, Change::SetPerms { path, perms, by: at.who.domain });
        Ok(done())
    }

    fn watch(&mut self, at: At, mut fields: Fields<'_>) -> Answer {
        let (path, token) = (fields.text()?, fields.string()?);
        if token.len() > TOKEN_MAX {
            return Err(Code::Einval);
        }
        let target = Target::parse(path, at.who.domain)?;
        if let Target::Special(special) = target
            && !self.special.get(&special).is_some_and(|perms| perms.access(at.who).read)
        {
            return Err(Code::Eacces);
        }
        if self.watches.has(&target, at.conn, token) {
            return Err(Code::Eexist);
        }
        let count = self.watches.count(at.conn) + 1;
        self.demand(at.conn, at.who.domain, Quota::Watches, count, || format!("watching {path}"))?;
        self.commit(Entry::Watched { conn: at.conn, path: path.to_owned(), token: token.to_vec() });
        // Whoever begins to watch does not know what it has missed.
        self.events.push((at.conn, Message::event(path, token).to_bytes()));
        Ok(done())
    }

    fn unwatch(&mut self, at: At, mut fields: Fields<'_>) -> Answer {
        let (path, token) = (fields.text()?, fields.string()?);
        let target = Target::parse(path, at.who.domain)?;
        if !self.watches.has(&target, at.conn, token) {
            return Err(Code::Enoent);
        }
        self.commit(Entry::Unwatched { conn: at.conn, path: path.to_owned(), token: token.to_vec() });
        Ok(done())
    }

    fn begin(&mut self, at: At) -> Answer {
        if at.transaction.is_some() {
            return Err(Code::Ebusy);
        }
        let client = self.clients.get(&at.conn).ok_or(Code::Eio)?;
        let count = client.transactions.len() + 1;
        let used = |id: &u32| *id == 0 || client.transactions.contains_key(id);
        let mut transaction = client.last_transaction.wrapping_add(1);
        while used(&transaction) {
            transaction = transaction.wrapping_add(1);
        }
        let what = || "beginning a transaction".to_owned();
        self.demand(at.conn, at.who.domain, Quota::Transactions, count, what)?;
        self.commit(Entry::Began { conn: at.conn, transaction });
        Ok(strings([transaction.to_string()]))
    }

    fn end(&mut self, at: At, mut fields: Fields<'_>) -> Answer {
        let is_commit = match fields.string()? {
            b"T" => true,
            b"F" => false,
            _ => return Err(Code::Einval),
        };
        let id = at.transaction.ok_or(Code::Enoent)?;
        let conn = at.conn;
        let client = self.clients.get_mut(&conn).ok_or(Code::Eio)?;
        let transaction = client.transactions.get(&id).cloned().ok_or(Code::Enoent)?;
        self.commit(Entry::Ended { conn, transaction: id });
        if !is_commit {
            return Ok(done());
        }
        let conflict = transaction.check(&self.tree).err();
        let client = self.clients.get_mut(&conn).ok_or(Code::Eio)?;
        client.conflicts = if conflict.is_some() { client.conflicts + 1 } else { 0 };
        if let Some(conflict) = conflict {
            let by_guest = conflict.with.filter(|(_, by)| *by != DomId::DOM0 && at.who.is_privileged());
            let times = client.conflicts;
            self.contention = by_guest.map(|(_, offender)| Contention { victim: conn, offender, times });
            return Err(Code::Eagain);
        }
        self.demand_outcome(at, transaction.changes())?;
        for change in transaction.changes() {
            self.change(change.clone());
        }
        Ok(done())
    }

    /// Demands that a transaction's outcome is within the limits: others may have used the room since.
    fn demand_outcome(&mut self, at: At, changes: &[Change]) -> Result<(), Code> {
        let domain = at.who.domain;
        if at.who.is_privileged() {
            return Ok(());
        }
        let mut outcome = self.tree.clone();
        changes.iter().for_each(|change| outcome.apply(change));
        let (before, after) = (self.tree.usage(domain), outcome.usage(domain));
        let what = || "committing a transaction".to_owned();
        if after.nodes > before.nodes {
            self.demand(at.conn, domain, Quota::Nodes, after.nodes, what)?;
        }
        if after.bytes > before.bytes {
            self.demand(at.conn, domain, Quota::Memory, after.bytes, what)?;
        }
        Ok(())
    }
}

fn one_path(mut fields: Fields<'_>, at: At) -> Result<Path, Code> {
    let path = Path::parse(fields.text()?, at.who.domain)?;
    fields.end()?;
    Ok(path)
}

pub(super) fn domain_of(fields: &mut Fields<'_>) -> Result<DomId, Code> {
    Some(DomId::new(fields.number()?)).filter(|domain| domain.is_domain()).ok_or(Code::Einval)
}
