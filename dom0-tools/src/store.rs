// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guests' nodes in xenstore: [`Tree`] over the kernel's connection, which no kill of the daemon cuts.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use guest_abi::{DomId, EvtchnPort, Gfn};

use crate::nodes::{Access, Node, Tree};
use crate::xenstore::client::{Client, Error, View};
use crate::xenstore::wire::Code;

/// How long an answer of the daemon is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Connects to the server.
///
/// # Errors
/// It does not run.
pub fn connect() -> Result<Box<dyn Tree>> {
    let mut client = Client::connect()?;
    client.set_limit(PATIENCE);
    Ok(Box::new(client))
}

impl Tree for Client {
    fn add_guest(&mut self, guest: DomId, nodes: &[Node], ring: (Gfn, EvtchnPort)) -> Result<()> {
        self.transaction(|view| {
            nodes.iter().zip(needs_permissions(nodes)).try_for_each(|pair| add(view, guest, pair))
        })?;
        Ok(self.introduce(guest, ring.0.raw(), ring.1)?)
    }

    fn remove_guest(&mut self, guest: DomId, paths: &[String]) -> Result<()> {
        // The server lets go of a domain that is gone by itself, so it may be before us.
        ignore(self.release(guest), Code::Enoent)?;
        self.transaction(|view| paths.iter().try_for_each(|path| ignore(view.remove(path), Code::Enoent)))?;
        Ok(())
    }

    fn write(&mut self, path: &str, value: &str) -> Result<()> {
        Ok(self.all().write(path, value)?)
    }

    fn read(&mut self, path: &str) -> Result<Option<String>> {
        Ok(self.all().read_text(path)?)
    }
}

/// Whether each node's permissions have to be set: not where they are those of the node above, which a new node gets.
fn needs_permissions(nodes: &[Node]) -> impl Iterator<Item = bool> {
    let all: BTreeMap<&str, Access> = nodes.iter().map(|node| (node.path.as_str(), node.access)).collect();
    nodes.iter().map(move |node| {
        let above = node.path.rsplit_once('/').map_or("", |(above, _)| above);
        all.get(above) != Some(&node.access)
    })
}

fn add(view: &mut View<'_>, guest: DomId, (node, sets_permissions): (&Node, bool)) -> Result<(), Error> {
    view.write(&node.path, &node.value)?;
    if sets_permissions {
        view.set_perms(&node.path, &node.access.permissions(guest))?;
    }
    Ok(())
}

fn ignore(result: Result<(), Error>, code: Code) -> Result<(), Error> {
    match result {
        Err(error) if error.code() == Some(code) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_set_where_they_differ_from_those_above() {
        let node = |path: &str, access| Node { path: path.to_owned(), value: String::new(), access };
        let nodes = [
            node("/local/domain/5", Access::GuestReads),
            node("/local/domain/5/name", Access::GuestReads),
            node("/local/domain/5/control", Access::GuestOwns),
            node("/local/domain/5/control/shutdown", Access::GuestOwns),
            node("/local/domain/5/control/platform", Access::GuestReads),
        ];
        assert_eq!(needs_permissions(&nodes).collect::<Vec<_>>(), [true, false, true, false, true]);
    }
}
