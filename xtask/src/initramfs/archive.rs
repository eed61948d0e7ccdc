// SPDX-License-Identifier: MIT OR Apache-2.0
//! A root file system in memory, and as the archive that the kernel unpacks.
//!
//! The tree is Debian's merged layout: `/bin`, `/sbin`, `/lib` and `/lib64` are links into `/usr`,
//! and whoever adds `bin/x` adds `usr/bin/x`. Entries are kept by name, all belong to root and have
//! no time, so the same input makes the same bytes.
//!
//! The archive is a "newc" cpio, compressed by legacy lz4, which unpacks in a few instructions a
//! byte: an emulated BIOS needs more time to read the bytes that it saves. Source: Linux
//! `Documentation/driver-api/early-userspace/buffer-format.rst`; `lz4_Frame_format.md`, "Legacy frame".

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];
/// `S_IFDIR` and its kin. Source: `stat.h`.
const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;
const LZ4_LEGACY_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
const LZ4_LEGACY_BLOCK: usize = 8 << 20;

/// A tree of files.
#[derive(Debug)]
pub(super) struct Root {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    mode: u32,
    device: (u32, u32),
    data: Vec<u8>,
}

impl Root {
    /// The merged layout with nothing in it.
    pub(super) fn new() -> Self {
        let mut root = Self { entries: BTreeMap::new() };
        for name in MERGED {
            root.insert(&format!("usr/{name}"), DIRECTORY | 0o755, Vec::new());
            let link = Entry { mode: SYMLINK | 0o777, device: (0, 0), data: format!("usr/{name}").into_bytes() };
            root.entries.insert(name.to_owned(), link);
        }
        root
    }

    /// Adds a folder.
    pub(super) fn directory(&mut self, path: &str) {
        self.insert(path, DIRECTORY | 0o755, Vec::new());
    }

    /// Adds or replaces a file.
    pub(super) fn file(&mut self, path: &str, executable: bool, data: impl Into<Vec<u8>>) {
        self.insert(path, FILE | if executable { 0o755 } else { 0o644 }, data.into());
    }

    /// Adds or replaces a symbolic link.
    pub(super) fn symlink(&mut self, path: &str, target: &str) {
        self.insert(path, SYMLINK | 0o777, target.as_bytes().to_vec());
    }

    /// Adds a character device.
    pub(super) fn character_device(&mut self, path: &str, device: (u32, u32)) {
        let path = self.insert(path, CHARACTER | 0o600, Vec::new());
        if let Some(entry) = self.entries.get_mut(&path) {
            entry.device = device;
        }
    }

    /// Adds what lies below `from`, if `wanted` says so of its path. Later trees win.
    pub(super) fn tree(&mut self, from: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
        ensure!(from.is_dir(), "{} is not a folder", from.display());
        self.subtree(from, "", wanted)
    }

    fn subtree(&mut self, from: &Path, prefix: &str, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
        let context = || format!("reading {}", from.display());
        for item in fs::read_dir(from).with_context(context)? {
            let item = item.with_context(context)?;
            let name = item.file_name();
            let name = name.to_str().with_context(|| format!("{}: the name is not UTF-8", item.path().display()))?;
            let path = format!("{prefix}{name}");
            if !wanted(&path) {
                continue;
            }
            let kind = item.file_type().with_context(context)?;
            if kind.is_dir() {
                // A folder in a tree never replaces the link of the merged layout.
                if !MERGED.contains(&path.as_str()) {
                    self.directory(&path);
                }
                self.subtree(&item.path(), &format!("{path}/"), wanted)?;
            } else if kind.is_symlink() {
                let target = fs::read_link(item.path()).with_context(context)?;
                if !MERGED.contains(&path.as_str()) {
                    self.symlink(&path, &target.to_string_lossy());
                }
            } else if kind.is_file() {
                let data = fs::read(item.path()).with_context(|| format!("reading {}", item.path().display()))?;
                let mode = item.metadata().with_context(context)?.permissions().mode();
                self.file(&path, mode & 0o111 != 0, data);
            } else {
                bail!("{} is neither a file, a folder nor a link", item.path().display());
            }
        }
        Ok(())
    }

    /// Inserts an entry and the folders above it; returns its path in the merged layout.
    fn insert(&mut self, path: &str, mode: u32, data: Vec<u8>) -> String {
        let path = path.trim_matches('/');
        let first = path.split('/').next().unwrap_or_default();
        let path = if MERGED.contains(&first) { format!("usr/{path}") } else { path.to_owned() };
        for (at, _) in path.match_indices('/') {
            let above = Entry { mode: DIRECTORY | 0o755, device: (0, 0), data: Vec::new() };
            self.entries.entry(path[..at].to_owned()).or_insert(above);
        }
        self.entries.insert(path.clone(), Entry { mode, device: (0, 0), data });
        path
    }

    /// The tree as a cpio archive.
    pub(super) fn to_cpio(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        for (number, (path, entry)) in (1..).zip(&self.entries) {
            member(&mut out, number, path, entry)?;
        }
        let end = Entry { mode: 0, device: (0, 0), data: Vec::new() };
        member(&mut out, 0, "TRAILER!!!", &end)?;
        Ok(out)
    }
}

fn member(out: &mut Vec<u8>, inode: u32, path: &str, entry: &Entry) -> Result<()> {
    let size = u32::try_from(entry.data.len()).with_context(|| format!("{path} is too large for an archive"))?;
    let name_length = u32::try_from(path.len() + 1)?;
    let (major, minor) = entry.device;
    let links = if entry.mode & DIRECTORY != 0 { 2 } else { 1 };
    out.extend_from_slice(b"070701");
    for field in [inode, entry.mode, 0, 0, links, 0, size, 0, 0, major, minor, name_length, 0] {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(&entry.data);
    out.resize(out.len().next_multiple_of(4), 0);
    Ok(())
}

/// Compresses in the format of `lz4 -l`.
pub(super) fn compress(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut out = LZ4_LEGACY_MAGIC.to_vec();
    for block in bytes.chunks(LZ4_LEGACY_BLOCK) {
        let packed = lz4_flex::block::compress(block);
        out.extend_from_slice(&u32::try_from(packed.len())?.to_le_bytes());
        out.extend_from_slice(&packed);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::Root;

    fn names(root: &Root) -> Vec<&str> {
        root.entries.keys().map(String::as_str).collect()
    }

    #[test]
    fn entries_land_in_the_merged_layout_below_their_folders() {
        let mut root = Root::new();
        root.file("/bin/a", true, b"x");
        root.file("etc/b/c", false, b"y");
        let names = names(&root);
        assert!(names.contains(&"usr/bin/a") && names.contains(&"etc/b") && !names.contains(&"bin/a"));
        let (etc, file) = (names.iter().position(|n| *n == "etc/b"), names.iter().position(|n| *n == "etc/b/c"));
        assert!(etc < file, "a folder comes before what is in it");
        assert_eq!(root.entries["bin"].data, b"usr/bin");
    }

    #[test]
    fn a_later_tree_wins_and_does_not_break_the_merged_links() {
        let dir = std::env::temp_dir().join(format!("xtask-overlay-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("bin")).unwrap();
        std::fs::write(dir.join("bin/a"), b"mine").unwrap();
        let mut root = Root::new();
        root.file("usr/bin/a", true, b"theirs");
        root.tree(&dir, &|_| true).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(root.entries["usr/bin/a"].data, b"mine");
        assert_eq!(root.entries["bin"].data, b"usr/bin");
    }

    #[test]
    fn the_archive_has_the_bytes_that_the_format_describes() {
        let mut root = Root::new();
        root.file("z", false, b"12345");
        root.character_device("dev/null", (1, 3));
        let archive = root.to_cpio().unwrap();
        assert_eq!(archive, root.to_cpio().unwrap());
        assert_eq!(archive.len() % 4, 0);
        let at = archive.windows(2).rposition(|w| w == b"z\0").unwrap() - 110;
        assert_eq!(&archive[at..at + 6], b"070701");
        assert_eq!(&archive[at + 14..at + 22], b"000081a4");
        assert_eq!(&archive[at + 46..at + 62], b"0000000000000005", "no time, size 5");
        assert_eq!(&archive[at + 112..at + 117], b"12345");
    }
}
