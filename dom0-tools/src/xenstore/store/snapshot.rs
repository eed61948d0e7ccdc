// SPDX-License-Identifier: MIT OR Apache-2.0
//! The state as entries, for a log that begins with it.

use guest_abi::DomId;
use guest_abi::num::low_u32;

use super::{Domain, Entry, Store};
use crate::xenstore::Conn;
use crate::xenstore::path::Path;
use crate::xenstore::watch::Watch;

impl Store {
    /// Entries that make an empty store what this one is, but for local clients.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        self.tree.visit(&Path::root(), |path, node| {
            let (value, perms) = (node.value().to_vec(), node.perms().clone());
            entries.push(Entry::Node { path: path.clone(), value, perms });
        });
        entries.extend(
            self.special.iter().map(|(special, perms)| Entry::SpecialPerms { special: *special, perms: perms.clone() }),
        );
        let limits = self.quotas.iter();
        entries.extend(limits.map(|((domain, quota), limit)| Entry::Quota {
            domain: *domain,
            quota: *quota,
            limit: Some(*limit),
        }));
        for (domain, known) in &self.domains {
            self.snapshot_domain(*domain, known, &mut entries);
        }
        entries
    }

    fn snapshot_domain(&self, domain: DomId, known: &Domain, entries: &mut Vec<Entry>) {
        let conn = Conn::Ring(domain);
        let Some(client) = self.clients.get(&conn) else { return };
        let stream = &client.stream;
        let partial = stream.partial();
        // Reading the partial message back counts its bytes again.
        let taken = stream.taken().wrapping_sub(low_u32(partial.len() as u64));
        let (gfn, port) = (known.gfn, known.port.raw());
        entries.push(Entry::Introduced { domain, gfn, port, taken, said: stream.said() });
        if !partial.is_empty() {
            entries.push(Entry::Received { domain, bytes: partial.to_vec() });
        }
        if stream.pending() > 0 {
            entries.push(Entry::Said { conn, bytes: stream.rest() });
        }
        if known.is_shut_down {
            entries.push(Entry::ShutDown { domain, is: true });
        }
        if let Some(target) = known.target {
            entries.push(Entry::Target { domain, target: target.raw() });
        }
        for Watch { given, token, .. } in self.watches.of(conn) {
            entries.push(Entry::Watched { conn, path: given.clone(), token: token.clone() });
        }
        for (&transaction, state) in &client.transactions {
            entries.push(Entry::Began { conn, transaction });
            let changes = state.changes().iter();
            entries.extend(changes.map(|change| Entry::Within { conn, transaction, change: change.clone() }));
        }
        if let Some(error) = known.refused {
            entries.push(Entry::Refused { domain, error });
        }
    }
}
