// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names of nodes.
//!
//! A [`Path`] is absolute and in the one form that each node has: no empty part, no slash at the end. A
//! client may also give a path that begins at its own node, `/local/domain/N`; it is made absolute here,
//! and what the client is told later is made relative again by [`Path::below`].
//!
//! Source: `docs/misc/xenstore.txt` of Xen 4.17; the characters `:` and `+` are of later versions.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use guest_abi::DomId;
use guest_abi::io::xs_wire::{ABS_PATH_MAX, REL_PATH_MAX};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::wire::Code;

/// An absolute path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path(Arc<str>);

impl Path {
    /// The path of the tree's root.
    #[must_use]
    pub fn root() -> Self {
        Self("/".into())
    }

    /// A path that this program knows to be one.
    ///
    /// # Panics
    /// If it is none.
    #[must_use]
    pub fn known(text: &str) -> Self {
        Self::absolute(text).unwrap_or_else(|_| panic!("{text} is no path"))
    }

    /// The node that holds all of a domain's own nodes.
    #[must_use]
    pub fn of_domain(domain: DomId) -> Self {
        Self(format!("/local/domain/{}", domain.raw()).into())
    }

    /// Parses an absolute path.
    ///
    /// # Errors
    /// EINVAL: it is none, or too long.
    pub fn absolute(text: &str) -> Result<Self, Code> {
        let is_name = |part: &str| !part.is_empty() && part.bytes().all(is_in_names);
        let rest = text.strip_prefix('/').ok_or(Code::Einval)?;
        let is_path = rest.is_empty() || rest.split('/').all(is_name);
        if is_path && text.len() <= ABS_PATH_MAX { Ok(Self(text.into())) } else { Err(Code::Einval) }
    }

    /// Parses what a client of `domain` calls a path.
    ///
    /// # Errors
    /// EINVAL: it is none, or too long.
    pub fn parse(text: &str, domain: DomId) -> Result<Self, Code> {
        if text.starts_with('/') {
            return Self::absolute(text);
        }
        if text.is_empty() || text.len() > REL_PATH_MAX {
            return Err(Code::Einval);
        }
        Self::absolute(&format!("{}/{text}", Self::of_domain(domain)))
    }

    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The names on the way from the root, none for the root itself.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').filter(|part| !part.is_empty())
    }

    /// The node that this one is a child of; the root has none.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        let slash = self.0.rfind('/')?;
        match slash {
            0 if self.0.len() == 1 => None,
            0 => Some(Self::root()),
            _ => Some(Self(self.0[..slash].into())),
        }
    }

    /// The last name, empty for the root.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// The child of this name.
    ///
    /// # Errors
    /// EINVAL: it is no name.
    pub fn child(&self, name: &str) -> Result<Self, Code> {
        let slash = if self.0.len() == 1 { "" } else { "/" };
        Self::absolute(&format!("{}{slash}{name}", self.0))
    }

    /// This path, then its parent, and so on to the root.
    pub fn ancestors(&self) -> impl Iterator<Item = &str> {
        let mut next = Some(&*self.0);
        std::iter::from_fn(move || {
            let current = next?;
            next = match current.rfind('/') {
                Some(0) if current.len() == 1 => None,
                Some(0) => Some("/"),
                Some(slash) => Some(&current[..slash]),
                None => None,
            };
            Some(current)
        })
    }

    /// What a client calls this path that begins its paths at `base`: the part behind it.
    #[must_use]
    pub fn below(&self, base: &Self) -> Option<&str> {
        self.0.strip_prefix(&*base.0)?.strip_prefix('/')
    }
}

fn is_in_names(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_@:+".contains(&byte)
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for Path {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Serialize for Path {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Path {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::absolute(&text).map_err(|_| serde::de::Error::custom(format!("{text} is no path")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_one_form() {
        for wrong in ["", "/a/", "//", "/a//b", "a b", "/a\0", "/ä", "/a*", "@x/y z"] {
            assert_eq!(Path::parse(wrong, DomId::new(3)), Err(Code::Einval), "{wrong:?}");
        }
        assert_eq!(Path::parse("/", DomId::new(3)).unwrap().as_str(), "/");
        assert_eq!(Path::parse("device/vif:1+2", DomId::new(3)).unwrap().as_str(), "/local/domain/3/device/vif:1+2");
    }

    #[test]
    fn lengths_are_limited() {
        assert!(Path::parse(&"x".repeat(2048), DomId::DOM0).is_ok());
        assert!(Path::parse(&"x".repeat(2049), DomId::DOM0).is_err());
        assert!(Path::absolute(&format!("/{}", "x".repeat(3071))).is_ok());
        assert!(Path::absolute(&format!("/{}", "x".repeat(3072))).is_err());
    }

    #[test]
    fn ancestors_end_at_the_root() {
        let all = |text| Path::known(text).ancestors().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(all("/a/b"), ["/a/b", "/a", "/"]);
        assert_eq!(all("/"), ["/"]);
        assert_eq!(Path::known("/a/b").parent(), Some(Path::known("/a")));
        assert_eq!(Path::known("/a").parent(), Some(Path::root()));
        assert_eq!(Path::root().parent(), None);
        assert_eq!(Path::root().child("a"), Ok(Path::known("/a")));
        assert!(Path::root().child("a/b").is_ok_and(|path| path.name() == "b"));
    }

    #[test]
    fn a_relative_name_is_what_stands_behind_the_base() {
        let base = Path::of_domain(DomId::new(1));
        assert_eq!(Path::known("/local/domain/1/a/b").below(&base), Some("a/b"));
        assert_eq!(Path::known("/local/domain/10/a").below(&base), None);
        assert_eq!(base.below(&base), None);
    }
}
