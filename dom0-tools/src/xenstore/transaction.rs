// SPDX-License-Identifier: MIT OR Apache-2.0
//! Transactions: a view of the tree of its own, and what was seen in it.
//!
//! Nothing is locked. A transaction works on a copy of the tree and remembers each aspect of each node
//! that it has looked at, also in order to write. It may be committed if all of that is in the tree as it
//! was when it began: then the outcome is as if it had taken place at once, at its end. Otherwise it must
//! be tried again, and the tree says who was in the way.
//!
//! A daemon that was killed knows from its log what its transactions had changed, not what they had seen.
//! They go on, so that a client in the middle of one is answered sensibly, and cannot be committed.

use std::collections::BTreeSet;

use guest_abi::DomId;

use super::path::Path;
use super::tree::{Aspect, Change, Tree};

/// A transaction under way.
#[derive(Clone, Debug)]
pub struct Transaction {
    base: Tree,
    view: Tree,
    seen: BTreeSet<(Path, Aspect)>,
    changes: Vec<Change>,
    bytes: usize,
    is_doomed: bool,
}

/// A transaction that cannot be committed as things are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conflict {
    /// The node that changed, and who changed it; none after a restart of the daemon.
    pub with: Option<(Path, DomId)>,
}

impl Transaction {
    /// Begins one.
    #[must_use]
    pub fn new(tree: &Tree) -> Self {
        Self {
            base: tree.clone(),
            view: tree.clone(),
            seen: BTreeSet::new(),
            changes: Vec::new(),
            bytes: 0,
            is_doomed: false,
        }
    }

    /// The tree as the transaction sees it.
    #[must_use]
    pub fn view(&self) -> &Tree {
        &self.view
    }

    /// Notes that an aspect of a node has been looked at.
    pub fn note(&mut self, path: &Path, aspect: Aspect) {
        let bytes = path.as_str().len() + size_of::<(Path, Aspect)>();
        if self.seen.insert((path.clone(), aspect)) {
            self.bytes += bytes;
        }
    }

    /// Changes the view.
    pub fn apply(&mut self, change: &Change) {
        self.view.apply(change);
        self.bytes += change.bytes();
        self.changes.push(change.clone());
    }

    /// What it has changed so far.
    #[must_use]
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// How many nodes it has seen and changes it has made.
    #[must_use]
    pub fn size(&self) -> usize {
        self.seen.len() + self.changes.len()
    }

    /// What it costs to remember it.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// It can be continued, and not be committed.
    pub fn doom(&mut self) {
        self.is_doomed = true;
    }

    /// Whether it may be committed to `tree`.
    ///
    /// # Errors
    /// [`Conflict`].
    pub fn check(&self, tree: &Tree) -> Result<(), Conflict> {
        if self.is_doomed {
            return Err(Conflict { with: None });
        }
        let changed = self.seen.iter().find(|(path, aspect)| !tree.is_same(&self.base, path, *aspect));
        match changed {
            Some((path, _)) => Err(Conflict { with: Some((path.clone(), tree.nearest(path).0.writer())) }),
            None => Ok(()),
        }
    }
}
