// SPDX-License-Identifier: MIT OR Apache-2.0
//! Debian packages that a user adds to dom0's root, with the libraries that they need.
//!
//! Dependencies are followed into packages of the section `libs` only: those are files that a
//! program cannot start without. Others (debconf, init scripts' helpers) serve a package's
//! installation, which does not take place.

use std::collections::BTreeSet;

use anyhow::{Context, Result};

use super::archive::Root;
use crate::debian::{self, Store};

/// What nobody needs in an initramfs: conversions between character sets, and what is to be read.
const UNWANTED: &[&str] = &[
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/share/bug",
    "usr/share/doc",
    "usr/share/doc-base",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
];

/// Adds `packages` and the libraries that they depend on.
pub(super) fn add(root: &mut Root, store: &Store, packages: &[String]) -> Result<()> {
    for name in closure(packages)? {
        let tree = store.fetch(&name)?;
        root.tree(&tree.path, &|path| !UNWANTED.contains(&path)).with_context(|| format!("package {name}"))?;
    }
    Ok(())
}

fn closure(packages: &[String]) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut wanted = packages.to_vec();
    while let Some(name) = wanted.pop() {
        if !found.insert(name.clone()) {
            continue;
        }
        for needed in debian::depends(&name)? {
            // A name in angle brackets is one that several packages provide.
            if !needed.starts_with('<') && debian::section(&needed) == "libs" {
                wanted.push(needed);
            }
        }
    }
    Ok(found)
}
