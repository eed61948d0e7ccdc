// SPDX-License-Identifier: MIT OR Apache-2.0
//! The log that is the daemon's state.
//!
//! A file on a file system in memory (`/run`), which outlives the process and not the machine: guests do not
//! outlive it either. A record is a length, a checksum and the entries of one message. It is appended by
//! one write, which the kernel may cut off when the process is killed in the middle; so a record that ends
//! with the file counts only if it is whole. What it would have said has not been seen by anybody.
//!
//! When the log has grown to a multiple of what the state takes, the state is written to a second file
//! which then takes the name: at each instant one of the two is complete under the name.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use guest_abi::num::{low_u32, to_usize};

use super::store::{Entry, Store};

/// Which program's file this is, and in which form. A change of [`Entry`] must change it.
const MAGIC: &[u8; 16] = b"isthmus-store-1\n";
const HEAD: usize = 8;
/// A log below this size is not worth a new one.
const SMALL: u64 = 1 << 20;
/// How many times its state a log may be.
const GROWTH: u64 = 4;
/// The state is written in records of about so many entries.
const ENTRIES_A_RECORD: usize = 256;
/// The highest value that a tree's stamps have reached in one life of the daemon is below this.
const STAMPS: u64 = 1 << 40;

/// The open log.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    length: u64,
    /// Its length when it held the state and nothing else.
    compact_length: u64,
    /// How many daemons have worked on it, this one included.
    count: u64,
}

/// Why a log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read or written.
    #[error("{}: {operation}: {cause}{}", .path.display(), hint(.cause))]
    File {
        /// The file.
        path: PathBuf,
        /// What was to be done.
        operation: &'static str,
        /// The reason.
        cause: io::Error,
    },
    /// It is no log of this version.
    #[error("{}: is no store of this version of isthmus: remove it to start with an empty store", .0.display())]
    Foreign(PathBuf),
    /// A record in the middle is not what was written.
    #[error("{}: damaged at byte {at}: remove it to start with an empty store (guests must be restarted)", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the damaged record begins.
        at: usize,
    },
}

fn hint(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::StorageFull => " (free memory, or make the file system of /run larger)",
        io::ErrorKind::PermissionDenied => " (only root may)",
        _ => "",
    }
}

impl Log {
    /// Opens the log, or makes one, and the state that it holds.
    ///
    /// # Errors
    /// The file cannot be used, or is not what this program has written.
    pub fn open(path: &Path) -> Result<(Self, Store), Error> {
        let failed = |operation, cause| Error::File { path: path.to_owned(), operation, cause };
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600);
        let mut file = options.open(path).map_err(|cause| failed("opening", cause))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|cause| failed("reading", cause))?;
        let (records, end) = parse(path, &bytes)?;
        // What follows must not be appended to half a record.
        file.set_len(end as u64).map_err(|cause| failed("cutting off half a record", cause))?;
        let last = records.iter().flatten().filter_map(|entry| match entry {
            Entry::Started { count } => Some(*count),
            _ => None,
        });
        let count = last.max().unwrap_or(0) + 1;
        // Stamps of this life are none that a client has seen in an earlier one.
        let mut store = Store::new(count * STAMPS);
        records.iter().flatten().for_each(|entry| store.apply(entry));
        let mut log = Self { path: path.to_owned(), file, length: end as u64, compact_length: 0, count };
        if end == 0 {
            log.write(MAGIC)?;
        }
        if records.is_empty() {
            store.furnish();
        }
        store.doom_transactions();
        let mut first = vec![Entry::Started { count }];
        first.append(&mut store.take_record());
        log.append(&first)?;
        Ok((log, store))
    }

    /// Appends a record: when this has returned, the entries outlive the process.
    ///
    /// # Errors
    /// The file cannot be written: no memory is left.
    pub fn append(&mut self, entries: &[Entry]) -> Result<(), Error> {
        if entries.is_empty() {
            return Ok(());
        }
        self.write(&record(entries))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let result = self.file.write_all(bytes);
        result.map_err(|cause| Error::File { path: self.path.clone(), operation: "writing", cause })?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Length of the file in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Whether the log has grown so far beyond the state that [`Log::compact`] is due.
    #[must_use]
    pub fn is_long(&self) -> bool {
        self.length > SMALL.max(self.compact_length * GROWTH)
    }

    /// Replaces the log by one that holds the state and nothing else.
    ///
    /// # Errors
    /// The new file cannot be written; the log is as it was.
    pub fn compact(&mut self, store: &Store) -> Result<(), Error> {
        let new_path = self.path.with_extension("new");
        let failed = |operation, cause| Error::File { path: new_path.clone(), operation, cause };
        let mut bytes = MAGIC.to_vec();
        bytes.extend(record(&[Entry::Started { count: self.count }]));
        for entries in store.snapshot().chunks(ENTRIES_A_RECORD) {
            bytes.extend(record(entries));
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&new_path).map_err(|cause| failed("opening", cause))?;
        file.write_all(&bytes).map_err(|cause| failed("writing", cause))?;
        std::fs::rename(&new_path, &self.path).map_err(|cause| failed("renaming", cause))?;
        self.file = file;
        self.length = bytes.len() as u64;
        self.compact_length = self.length;
        Ok(())
    }
}

fn record(entries: &[Entry]) -> Vec<u8> {
    // Nothing in an entry is of a kind that cannot be encoded.
    let body = postcard::to_allocvec(entries).unwrap_or_default();
    let mut bytes = low_u32(body.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

/// The records of a log, and where the last whole one ends.
fn parse(path: &Path, bytes: &[u8]) -> Result<(Vec<Vec<Entry>>, usize), Error> {
    let Some(magic) = bytes.first_chunk::<16>() else {
        let is_start = MAGIC.starts_with(bytes);
        return if is_start { Ok((Vec::new(), 0)) } else { Err(Error::Foreign(path.to_owned())) };
    };
    if magic != MAGIC {
        return Err(Error::Foreign(path.to_owned()));
    }
    let (mut records, mut at) = (Vec::new(), MAGIC.len());
    while let Some(head) = bytes.get(at..at + HEAD) {
        let word = |at: usize| head[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let length = to_usize(u64::from(word(0)));
        let Some(body) = bytes.get(at + HEAD..at + HEAD + length) else { break };
        let damaged = || Error::Damaged { path: path.to_owned(), at };
        if crc32fast::hash(body) != word(4) {
            return Err(damaged());
        }
        records.push(postcard::from_bytes(body).map_err(|_| damaged())?);
        at += HEAD + length;
    }
    Ok((records, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xenstore::path::Path as Node;
    use crate::xenstore::tree::Change;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("isthmus-log-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn log(&self) -> PathBuf {
            self.0.join("log")
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn write(name: &str, value: usize) -> Entry {
        let path = Node::known(name);
        Entry::Change(Change::Write { path, value: vec![b'v'; value], by: guest_abi::DomId::DOM0 })
    }

    fn lengths(store: &Store) -> Vec<usize> {
        let length = |name: &str| store.tree().get(&Node::known(name)).map_or(0, |node| node.value().len());
        vec![length("/a"), length("/b")]
    }

    #[test]
    fn a_log_cut_anywhere_is_the_state_after_some_record() {
        let folder = Folder::new("cut");
        let (mut log, _) = Log::open(&folder.log()).unwrap();
        let start = usize::try_from(log.length()).unwrap();
        let mut ends = vec![(start, vec![0, 0])];
        for i in 1..6 {
            // Both nodes in one record: never one without the other.
            log.append(&[write("/a", i), write("/b", 2 * i)]).unwrap();
            ends.push((usize::try_from(log.length()).unwrap(), vec![i, 2 * i]));
        }
        let whole = std::fs::read(folder.log()).unwrap();
        for cut in 0..=whole.len() {
            std::fs::write(folder.log(), &whole[..cut]).unwrap();
            let (mut log, store) = Log::open(&folder.log()).unwrap();
            let expected =
                ends.iter().rev().find(|(end, _)| *end <= cut).map_or(vec![0, 0], |(_, state)| state.clone());
            assert_eq!(lengths(&store), expected, "cut at {cut} of {}", whole.len());
            // What is appended to a log that was cut can be read.
            log.append(&[write("/a", 77)]).unwrap();
            assert_eq!(lengths(&Log::open(&folder.log()).unwrap().1)[0], 77, "cut at {cut}");
        }
    }

    #[test]
    fn a_log_that_was_tampered_with_is_refused_and_named() {
        let folder = Folder::new("damage");
        let (mut log, _) = Log::open(&folder.log()).unwrap();
        let at = usize::try_from(log.length()).unwrap();
        log.append(&[write("/a", 5)]).unwrap();
        log.append(&[write("/a", 6)]).unwrap();
        let mut bytes = std::fs::read(folder.log()).unwrap();
        bytes[at + HEAD + 1] ^= 1;
        std::fs::write(folder.log(), &bytes).unwrap();
        let error = Log::open(&folder.log()).unwrap_err();
        assert!(matches!(error, Error::Damaged { at: found, .. } if found == at), "{error}");
        assert!(error.to_string().contains("remove it"));
        std::fs::write(folder.log(), "something else entirely").unwrap();
        assert!(matches!(Log::open(&folder.log()), Err(Error::Foreign(_))));
    }

    #[test]
    fn a_long_log_is_replaced_by_the_state() {
        let folder = Folder::new("long");
        let (mut log, mut store) = Log::open(&folder.log()).unwrap();
        let mut times = 0;
        while !log.is_long() {
            let entry = write("/a", 2000 + times % 7);
            store.apply(&entry);
            log.append(&[entry]).unwrap();
            times += 1;
        }
        assert!(times > 100);
        log.compact(&store).unwrap();
        assert!(log.length() < 4000 && !log.is_long(), "{} bytes", log.length());
        log.append(&[write("/b", 3)]).unwrap();
        let (_, again) = Log::open(&folder.log()).unwrap();
        assert_eq!(lengths(&again), [lengths(&store)[0], 3]);
    }

    #[test]
    fn what_begins_with_a_new_log_is_there_once() {
        let folder = Folder::new("new");
        let first = Log::open(&folder.log()).unwrap().1.snapshot();
        assert!(!first.is_empty());
        assert_eq!(Log::open(&folder.log()).unwrap().1.snapshot(), first);
    }
}
