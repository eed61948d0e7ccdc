// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tree of nodes, as a value that is cheap to copy.
//!
//! Nodes are shared between copies of the tree; a change copies the nodes on its way from the root, if
//! somebody else still has them, and no other. So a transaction's view is a copy that costs nothing, and
//! two copies that hold the *same* node hold the same nodes below it: comparing an address compares a
//! subtree ([`Tree::is_same`] with [`Aspect::Subtree`]).
//!
//! Each node has two stamps, one for what it holds (value, permissions) and one for its list of children,
//! taken from a counter with each change. Who makes two different children of one node does not collide.
//!
//! The tree knows what each domain owns ([`Usage`]); limits are not enforced here.

use std::collections::BTreeMap;
use std::sync::Arc;

use guest_abi::DomId;
use serde::{Deserialize, Serialize};

use super::path::Path;
use super::perms::{Access, Perms};

/// What a node costs besides its texts, so that empty ones are not free.
const NODE_BYTES: usize = 128;

/// One node.
#[derive(Clone, Debug)]
pub struct Node {
    value: Arc<[u8]>,
    perms: Perms,
    children: BTreeMap<Arc<str>, Arc<Self>>,
    content_stamp: u64,
    list_stamp: u64,
    writer: DomId,
}

/// What a domain owns.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Nodes.
    pub nodes: usize,
    /// Bytes of their values and names, and a fixed price for each.
    pub bytes: usize,
}

/// A change of the tree. What it leaves open is decided by the tree it is applied to, always alike.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Change {
    /// Sets a value; makes the node and its parents where they are missing.
    Write {
        /// The node.
        path: Path,
        /// The value.
        value: Vec<u8>,
        /// Whose doing it is: the owner of new nodes, unless it is the control domain.
        #[serde(with = "super::domid")]
        by: DomId,
    },
    /// Makes a node and its parents where they are missing.
    Make {
        /// The node.
        path: Path,
        /// As for a write.
        #[serde(with = "super::domid")]
        by: DomId,
    },
    /// Removes a node and all below.
    Remove {
        /// The node.
        path: Path,
        /// Whose doing it is.
        #[serde(with = "super::domid")]
        by: DomId,
    },
    /// Sets a node's permissions.
    SetPerms {
        /// The node.
        path: Path,
        /// The permissions.
        perms: Perms,
        /// Whose doing it is.
        #[serde(with = "super::domid")]
        by: DomId,
    },
}

impl Change {
    /// The node that it is about.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Write { path, .. } | Self::Make { path, .. } => path,
            Self::Remove { path, .. } | Self::SetPerms { path, .. } => path,
        }
    }

    /// The bytes that it takes to remember it.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let value = if let Self::Write { value, .. } = self { value.len() } else { 0 };
        NODE_BYTES + self.path().as_str().len() + value
    }
}

/// What of a node a client has seen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Aspect {
    /// Whether it exists, its value and permissions.
    Content,
    /// The names of its children.
    List,
    /// All of it and all below.
    Subtree,
}

/// The nodes, and what each domain owns of them.
#[derive(Clone, Debug)]
pub struct Tree {
    root: Arc<Node>,
    usage: Arc<BTreeMap<DomId, Usage>>,
    stamp: u64,
}

impl Node {
    fn new(perms: Perms, stamp: u64, writer: DomId) -> Self {
        let (value, children) = (Arc::from([]), BTreeMap::new());
        Self { value, perms, children, content_stamp: stamp, list_stamp: stamp, writer }
    }

    /// The value.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        &self.value
    }

    /// The permissions.
    #[must_use]
    pub fn perms(&self) -> &Perms {
        &self.perms
    }

    /// The names of the children, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.children.keys().map(|name| &**name)
    }

    /// Changes with the list of children.
    #[must_use]
    pub fn list_stamp(&self) -> u64 {
        self.list_stamp
    }

    /// Who changed it last.
    #[must_use]
    pub fn writer(&self) -> DomId {
        self.writer
    }

    fn cost(&self, name: &str) -> usize {
        NODE_BYTES + name.len() + self.value.len() + size_of_val(self.perms.entries())
    }

    /// Calls `visit` with each node below and including this one, parents first.
    fn visit(&self, path: &Path, visit: &mut impl FnMut(&Path, &Self)) {
        visit(path, self);
        for (name, child) in &self.children {
            // What is in the tree has been a path once.
            if let Ok(path) = path.child(name) {
                child.visit(&path, visit);
            }
        }
    }
}

impl Tree {
    /// A tree with a root that everybody may read. Stamps begin at `stamp`.
    #[must_use]
    pub fn new(stamp: u64) -> Self {
        let root = Node::new(Perms::new(DomId::DOM0, Access::READ), stamp, DomId::DOM0);
        let mut tree = Self { root: Arc::new(root), usage: Arc::default(), stamp };
        tree.charge(DomId::DOM0, 1, 0, tree.root.cost(""));
        tree
    }

    /// The node at a path, if it exists.
    #[must_use]
    pub fn get(&self, path: &Path) -> Option<&Node> {
        self.get_shared(path).map(|node| &**node)
    }

    fn get_shared(&self, path: &Path) -> Option<&Arc<Node>> {
        path.parts().try_fold(&self.root, |node, name| node.children.get(name))
    }

    /// The last node that exists on the way to a path, and how many are missing behind it.
    #[must_use]
    pub fn nearest(&self, path: &Path) -> (&Node, usize) {
        let mut parts = path.parts();
        let mut node = &self.root;
        for name in parts.by_ref() {
            match node.children.get(name) {
                Some(child) => node = child,
                None => return (node, 1 + parts.count()),
            }
        }
        (node, 0)
    }

    /// Calls `visit` with a node and all below, parents first; with none if it does not exist.
    pub fn visit(&self, path: &Path, mut visit: impl FnMut(&Path, &Node)) {
        if let Some(node) = self.get(path) {
            node.visit(path, &mut visit);
        }
    }

    /// What a domain owns.
    #[must_use]
    pub fn usage(&self, domain: DomId) -> Usage {
        self.usage.get(&domain).copied().unwrap_or_default()
    }

    /// The domains that own a node.
    pub fn owners(&self) -> impl Iterator<Item = DomId> {
        self.usage.keys().copied()
    }

    /// What writing a value of `length` bytes to `path` would add to what `by` owns, if it then owns the node.
    #[must_use]
    pub fn growth(&self, path: &Path, length: usize) -> Usage {
        let (node, missing) = self.nearest(path);
        if missing == 0 {
            return Usage { nodes: 0, bytes: length.saturating_sub(node.value.len()) };
        }
        let names: usize = path.ancestors().take(missing).map(|path| path.len()).sum();
        let perms = size_of_val(node.perms.entries());
        Usage { nodes: missing, bytes: missing * (NODE_BYTES + perms) + names + length }
    }

    /// Whether a node is the same here and there in one aspect.
    #[must_use]
    pub fn is_same(&self, other: &Self, path: &Path, aspect: Aspect) -> bool {
        match (self.get_shared(path), other.get_shared(path)) {
            (None, None) => true,
            (Some(ours), Some(theirs)) => match aspect {
                Aspect::Content => ours.content_stamp == theirs.content_stamp,
                Aspect::List => ours.list_stamp == theirs.list_stamp,
                Aspect::Subtree => Arc::ptr_eq(ours, theirs),
            },
            _ => false,
        }
    }

    /// Applies a change. One that has nothing to act on changes nothing.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { path, value, by } => self.put(path, Some(value), *by),
            Change::Make { path, by } => self.put(path, None, *by),
            Change::Remove { path, by } => self.remove(path, *by),
            Change::SetPerms { path, perms, by } => self.set_perms(path, perms, *by),
        }
    }

    /// Puts a node with its permissions, as a stored tree has it. Its parent must be there.
    pub fn restore(&mut self, path: &Path, value: &[u8], perms: &Perms) {
        self.put(path, Some(value), DomId::DOM0);
        self.set_perms(path, perms, DomId::DOM0);
    }

    fn next_stamp(&mut self) -> u64 {
        self.stamp += 1;
        self.stamp
    }

    /// Counts a node that has changed hands, come or gone, or grown.
    fn charge(&mut self, owner: DomId, nodes: isize, less: usize, more: usize) {
        let usage = Arc::make_mut(&mut self.usage);
        let of = usage.entry(owner).or_default();
        of.nodes = of.nodes.saturating_add_signed(nodes);
        of.bytes = (of.bytes + more).saturating_sub(less);
        if of.nodes == 0 {
            usage.remove(&owner);
        }
    }

    fn put(&mut self, path: &Path, value: Option<&[u8]>, by: DomId) {
        let stamp = self.next_stamp();
        let mut made = Vec::new();
        let mut node = Arc::make_mut(&mut self.root);
        for name in path.parts() {
            if !node.children.contains_key(name) {
                let perms = if by == DomId::DOM0 { node.perms.clone() } else { node.perms.owned_by(by) };
                let child = Node::new(perms, stamp, by);
                made.push((child.perms.owner(), child.cost(name)));
                node.list_stamp = stamp;
                node.writer = by;
                node.children.insert(name.into(), Arc::new(child));
            }
            let Some(child) = node.children.get_mut(name) else { return };
            node = Arc::make_mut(child);
        }
        let (owner, mut before, mut after) = (node.perms.owner(), 0, 0);
        if let Some(value) = value {
            (before, after) = (node.value.len(), value.len());
            node.value = value.into();
            node.content_stamp = stamp;
            node.writer = by;
        }
        for (owner, cost) in made {
            self.charge(owner, 1, 0, cost);
        }
        self.charge(owner, 0, before, after);
    }

    fn remove(&mut self, path: &Path, by: DomId) {
        let Some(parent) = path.parent() else { return };
        let mut gone = Vec::new();
        self.visit(path, |path, node| gone.push((node.perms.owner(), node.cost(path.name()))));
        if gone.is_empty() {
            return;
        }
        for (owner, cost) in gone {
            self.charge(owner, -1, cost, 0);
        }
        let stamp = self.next_stamp();
        if let Some(parent) = self.get_mut(&parent) {
            parent.children.remove(path.name());
            parent.list_stamp = stamp;
            parent.writer = by;
        }
    }

    fn set_perms(&mut self, path: &Path, perms: &Perms, by: DomId) {
        let stamp = self.next_stamp();
        let Some(node) = self.get_mut(path) else { return };
        let (before, cost) = (node.perms.owner(), node.cost(path.name()));
        node.perms = perms.clone();
        node.content_stamp = stamp;
        node.writer = by;
        let after = node.cost(path.name());
        self.charge(before, -1, cost, 0);
        self.charge(perms.owner(), 1, 0, after);
    }

    fn get_mut(&mut self, path: &Path) -> Option<&mut Node> {
        let mut node = Arc::make_mut(&mut self.root);
        for name in path.parts() {
            node = Arc::make_mut(node.children.get_mut(name)?);
        }
        Some(node)
    }

    /// What each domain owns, counted anew: what [`Tree::usage`] must be.
    #[must_use]
    pub fn recount(&self) -> BTreeMap<DomId, Usage> {
        let mut counted: BTreeMap<DomId, Usage> = BTreeMap::new();
        self.visit(&Path::root(), |path, node| {
            let of = counted.entry(node.perms.owner()).or_default();
            of.nodes += 1;
            of.bytes += node.cost(path.name());
        });
        counted
    }

    /// Whether the running count is right.
    #[must_use]
    pub fn is_counted(&self) -> bool {
        *self.usage == self.recount()
    }
}
