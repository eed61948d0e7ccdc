// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who wants to know of which changes.
//!
//! Watches are found by path, so that a change costs as many look-ups as its path has parts, however many
//! watches there are.

use std::collections::BTreeMap;
use std::ops::Bound;

use guest_abi::DomId;

use super::Conn;
use super::path::Path;
use super::wire::Code;

/// News that is no node's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize)]
pub enum Special {
    /// A domain has been introduced.
    Introduced,
    /// A domain has ended, or its state has changed.
    Released,
}

impl Special {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Introduced, Self::Released];

    /// The name that clients use for a path.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Introduced => "@introduceDomain",
            Self::Released => "@releaseDomain",
        }
    }

    /// The one of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|special| special.name() == name)
    }
}

/// What is watched.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Target {
    /// A node and all below.
    Node(Path),
    /// Other news.
    Special(Special),
}

impl Target {
    /// Parses what a client of `domain` watches.
    ///
    /// # Errors
    /// EINVAL: neither a path nor one of the special names.
    pub fn parse(text: &str, domain: DomId) -> Result<Self, Code> {
        if text.starts_with('@') {
            return Special::from_name(text).map(Self::Special).ok_or(Code::Einval);
        }
        Path::parse(text, domain).map(Self::Node)
    }
}

/// A watch as its client made it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Watch {
    /// Whose it is.
    pub conn: Conn,
    /// The path as given.
    pub given: String,
    /// The client's name for it.
    pub token: Vec<u8>,
}

/// All watches.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Watches {
    nodes: BTreeMap<Path, Vec<Watch>>,
    special: BTreeMap<Special, Vec<Watch>>,
}

impl Watches {
    /// Whether a client has this watch.
    #[must_use]
    pub fn has(&self, target: &Target, conn: Conn, token: &[u8]) -> bool {
        self.at(target).iter().any(|watch| watch.conn == conn && watch.token == token)
    }

    /// Adds a watch.
    pub fn add(&mut self, target: Target, watch: Watch) {
        let list = match target {
            Target::Node(path) => self.nodes.entry(path).or_default(),
            Target::Special(special) => self.special.entry(special).or_default(),
        };
        list.push(watch);
    }

    /// Removes a watch; says whether it was there.
    pub fn remove(&mut self, target: &Target, conn: Conn, token: &[u8]) -> bool {
        let was_there = self.has(target, conn, token);
        let list = match target {
            Target::Node(path) => self.nodes.get_mut(path),
            Target::Special(special) => self.special.get_mut(special),
        };
        if let Some(list) = list {
            list.retain(|watch| !(watch.conn == conn && watch.token == token));
        }
        self.drop_empty();
        was_there
    }

    /// Removes all watches of a client.
    pub fn remove_all(&mut self, conn: Conn) {
        for list in self.nodes.values_mut().chain(self.special.values_mut()) {
            list.retain(|watch| watch.conn != conn);
        }
        self.drop_empty();
    }

    fn drop_empty(&mut self) {
        self.nodes.retain(|_, list| !list.is_empty());
        self.special.retain(|_, list| !list.is_empty());
    }

    /// How many watches a client has.
    #[must_use]
    pub fn count(&self, conn: Conn) -> usize {
        self.of(conn).count()
    }

    /// A client's watches.
    pub fn of(&self, conn: Conn) -> impl Iterator<Item = &Watch> {
        self.nodes.values().chain(self.special.values()).flatten().filter(move |watch| watch.conn == conn)
    }

    /// The watches at exactly this target.
    #[must_use]
    pub fn at(&self, target: &Target) -> &[Watch] {
        let list = match target {
            Target::Node(path) => self.nodes.get(path),
            Target::Special(special) => self.special.get(special),
        };
        list.map_or(&[], Vec::as_slice)
    }

    /// The watches that a change of a node concerns: those at it and above it.
    pub fn above(&self, path: &Path) -> impl Iterator<Item = &Watch> {
        path.ancestors().filter_map(|ancestor| self.nodes.get(ancestor)).flatten()
    }

    /// The watches below a node, not at it, each with its path.
    pub fn below(&self, path: &Path) -> impl Iterator<Item = (&Path, &Watch)> {
        let from_here = self.nodes.range::<str, _>((Bound::Excluded(path.as_str()), Bound::Unbounded));
        // Sorted as text, `/a-b` stands between `/a` and `/a/b`.
        let is_root = path.as_str() == "/";
        from_here
            .take_while(move |(at, _)| at.as_str().starts_with(path.as_str()))
            .filter(move |(at, _)| is_root || at.below(path).is_some())
            .flat_map(|(at, list)| list.iter().map(move |watch| (at, watch)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watches(paths: &[&str]) -> Watches {
        let mut watches = Watches::default();
        for path in paths {
            let watch = Watch { conn: Conn::Socket(1), given: (*path).to_owned(), token: b"t".to_vec() };
            watches.add(Target::parse(path, DomId::DOM0).unwrap(), watch);
        }
        watches
    }

    #[test]
    fn a_change_concerns_those_above_a_removal_also_those_below() {
        let watches = watches(&["/", "/a", "/a-b", "/a/b", "/a/b/c", "/ab", "@releaseDomain"]);
        let above = |path| watches.above(&Path::known(path)).map(|watch| &*watch.given).collect::<Vec<_>>();
        let below = |path| watches.below(&Path::known(path)).map(|(at, _)| at.as_str()).collect::<Vec<_>>();
        assert_eq!(above("/a/b"), ["/a/b", "/a", "/"]);
        assert_eq!(above("/x"), ["/"]);
        assert_eq!(below("/a"), ["/a/b", "/a/b/c"]);
        assert_eq!(below("/a/b/c"), [""; 0]);
        assert_eq!(below("/").len(), 5);
    }

    #[test]
    fn a_watch_is_its_path_and_token() {
        let mut watches = watches(&["/a", "/b"]);
        let target = Target::parse("/a", DomId::DOM0).unwrap();
        assert!(watches.has(&target, Conn::Socket(1), b"t"));
        assert!(!watches.has(&target, Conn::Socket(2), b"t"));
        assert!(!watches.remove(&target, Conn::Socket(1), b"u"));
        assert!(watches.remove(&target, Conn::Socket(1), b"t"));
        assert_eq!(watches.count(Conn::Socket(1)), 1);
        watches.remove_all(Conn::Socket(1));
        assert_eq!(watches, Watches::default());
    }
}
