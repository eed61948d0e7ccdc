// SPDX-License-Identifier: MIT OR Apache-2.0
//! The log of a console: a file that never grows beyond a limit.
//!
//! When it is full it becomes `NAME.log.1`, the one before `NAME.log.2`, and so on; the oldest goes. So what a guest writes
//! costs a bounded amount of dom0's memory, whatever it writes.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Where logs are, unless the environment variable `ISTHMUS_LOGS` names another place.
const LOGS: &str = "/var/log/isthmus";

/// The folder of all consoles' logs.
#[must_use]
pub fn folder() -> PathBuf {
    std::env::var_os("ISTHMUS_LOGS").map_or_else(|| PathBuf::from(LOGS), PathBuf::from)
}

/// The newest log of a guest's console.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    folder().join(format!("{name}.log"))
}

/// What a guest has written to its serial line.
#[must_use]
pub fn serial_path(name: &str) -> PathBuf {
    folder().join(format!("{name}.serial.log"))
}

/// An open log.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    length: u64,
    limit: u64,
    kept: u32,
}

impl Log {
    /// Opens a log to append to it.
    ///
    /// # Errors
    /// The file or its folder cannot be made.
    pub fn open(path: &Path, limit: u64, kept: u32) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = File::options().create(true).append(true).open(path)?;
        let length = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, length, limit, kept })
    }

    /// Appends bytes; begins another file first if this one is full.
    ///
    /// # Errors
    /// The file cannot be written. What has been written is not written again.
    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.length >= self.limit {
                self.rotate()?;
            }
            let room = usize::try_from(self.limit - self.length).unwrap_or(usize::MAX);
            let part = &bytes[..bytes.len().min(room.max(1))];
            self.file.write_all(part)?;
            self.length += part.len() as u64;
            bytes = &bytes[part.len()..];
        }
        Ok(())
    }

    fn numbered(&self, number: u32) -> PathBuf {
        PathBuf::from(format!("{}.{number}", self.path.display()))
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..self.kept).rev() {
            match fs::rename(self.numbered(number), self.numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.kept > 0 {
            fs::rename(&self.path, self.numbered(1))?;
        } else {
            fs::remove_file(&self.path)?;
        }
        self.file = File::options().create(true).append(true).open(&self.path)?;
        self.length = 0;
        Ok(())
    }
}

/// The last bytes of a log, at most `count`, from the beginning of a line on if there is one.
///
/// # Errors
/// The file cannot be read.
pub fn tail(path: &Path, count: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let start = length.saturating_sub(count);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(count).read_to_end(&mut bytes)?;
    if start > 0
        && let Some(end) = bytes.iter().position(|byte| *byte == b'\n')
    {
        bytes.drain(..=end);
    }
    Ok(bytes)
}

/// What a log says to a terminal that sees it later: text and colours. Other sequences are left out, above all
/// questions, whose answers would be typed into the guest.
#[must_use]
pub fn for_terminal(bytes: &[u8]) -> Vec<u8> {
    const ESC: u8 = 0x1b;
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [first, tail @ ..] = rest {
        if *first != ESC {
            out.push(*first);
            rest = tail;
            continue;
        }
        // A sequence with parameters ends with its first byte from `@` on; others have one byte behind the escape.
        let is_long = tail.first() == Some(&b'[');
        let end = tail.iter().skip(1).position(|byte| (b'@'..=b'~').contains(byte)).map_or(tail.len(), |at| at + 2);
        let length = if is_long { end } else { tail.len().min(1) };
        if is_long && tail[..length].ends_with(b"m") {
            out.push(ESC);
            out.extend(&tail[..length]);
        }
        rest = &tail[length..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_to_the_terminal_are_not_asked_again() {
        let text = b"a\x1b[31mred\x1b[0m \x1b7\x1b[r\x1b[999;999H\x1b[6n\x1b8b\x1b[c\xff\x1b[12";
        assert_eq!(for_terminal(text), b"a\x1b[31mred\x1b[0m b\xff");
        assert_eq!(for_terminal(b"\x1b"), b"");
    }

    #[test]
    fn a_log_and_those_before_it_are_bounded() {
        let folder = std::env::temp_dir().join(format!("isthmus-log-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        let path = folder.join("a.log");
        let mut log = Log::open(&path, 10, 2).unwrap();
        for i in 0..9_u8 {
            log.write(&[b'a' + i; 5]).unwrap();
        }
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
        assert_eq!(
            (read("a.log").as_str(), read("a.log.1").as_str(), read("a.log.2").as_str()),
            ("iiiii", "ggggghhhhh", "eeeeefffff")
        );
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 3);
        drop(log);
        let mut log = Log::open(&path, 10, 2).unwrap();
        log.write(b"0123456789").unwrap();
        assert_eq!((read("a.log").as_str(), read("a.log.1").as_str()), ("56789", "iiiii01234"));
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_tail_begins_with_a_line() {
        let path = std::env::temp_dir().join(format!("isthmus-tail-{}", std::process::id()));
        fs::write(&path, "one\ntwo\nthree").unwrap();
        assert_eq!(tail(&path, 100).unwrap(), b"one\ntwo\nthree");
        assert_eq!(tail(&path, 7).unwrap(), b"three");
        fs::remove_file(path).unwrap();
    }
}
