// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which watches a change fires, and what they are told.
//!
//! A watch is told of a change only if its client may read the node, or could before: an event tells that a
//! node exists. With a subtree go the watches below it, each with its own path, if there was a node.

use super::Store;
use crate::xenstore::Conn;
use crate::xenstore::path::Path;
use crate::xenstore::perms::Perms;
use crate::xenstore::store::Entry;
use crate::xenstore::tree::Change;
use crate::xenstore::watch::{Special, Target, Watch};
use crate::xenstore::wire::Message;

impl Store {
    /// Changes the tree that all see, and queues the events.
    pub(super) fn change(&mut self, change: Change) {
        let path = change.path().clone();
        let before = self.tree.get(&path).map(|node| node.perms().clone());
        let removed = match &change {
            Change::Remove { .. } => self.removal_events(&path),
            _ => Vec::new(),
        };
        self.commit(Entry::Change(change));
        let after = self.tree.get(&path).map(|node| node.perms().clone());
        let may_see = [before, after];
        let above = self.watches.above(&path).filter(|watch| self.may_see(watch.conn, may_see.iter().flatten()));
        let events: Vec<_> = above.map(|watch| self.event(watch, &path)).collect();
        self.events.extend(events);
        self.events.extend(removed);
    }

    /// The events of watches below a node that is about to be removed.
    fn removal_events(&self, path: &Path) -> Vec<(Conn, Vec<u8>)> {
        let below = self.watches.below(path).filter_map(|(at, watch)| {
            let node = self.tree.get(at)?;
            self.may_see(watch.conn, [node.perms()]).then(|| self.event(watch, at))
        });
        below.collect()
    }

    fn may_see<'a>(&self, conn: Conn, perms: impl IntoIterator<Item = &'a Perms>) -> bool {
        let who = self.who(conn);
        perms.into_iter().any(|perms| perms.access(who).read)
    }

    /// What a watch says of a node: its path, relative if the watch was made with a relative one.
    fn event(&self, watch: &Watch, changed: &Path) -> (Conn, Vec<u8>) {
        let is_relative = !watch.given.starts_with('/');
        let base = Path::of_domain(self.who(watch.conn).domain);
        let relative = changed.below(&base).filter(|_| is_relative);
        (watch.conn, Message::event(relative.unwrap_or(changed.as_str()), &watch.token).to_bytes())
    }

    /// Queues the events of news that is no node's.
    pub(super) fn tell_special(&mut self, special: Special) {
        let Some(perms) = self.special.get(&special) else { return };
        let watching = self.watches.at(&Target::Special(special)).iter();
        let allowed = watching.filter(|watch| self.may_see(watch.conn, [perms]));
        let told = allowed.map(|watch| (watch.conn, Message::event(special.name(), &watch.token).to_bytes()));
        let told: Vec<_> = told.collect();
        self.events.extend(told);
    }

    /// Gives the queued events to their clients' streams.
    pub(super) fn say_events(&mut self) {
        for (conn, event) in std::mem::take(&mut self.events) {
            if !self.stream(conn).is_none_or(|stream| stream.is_redundant(&event)) {
                self.say(conn, event);
            }
        }
    }
}
