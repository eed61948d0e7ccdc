// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random reads and writes of a disk, each block of which says where and when it was written.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, ensure};
use rustix::fs::OFlags;

const BLOCK: usize = 4096;
/// The longest request, in blocks.
const LONGEST: usize = 32;
const BLOCK_BYTES: u64 = BLOCK as u64;

/// What is done to a disk.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// Requests of each job, half of them writes.
    pub operations: u32,
    /// Threads that have a request under way at the same time, each on its own part of the disk.
    pub jobs: u32,
    /// What the order depends on.
    pub seed: u64,
}

/// Overwrites a disk or a file in random order past the page cache, and checks every block that is read.
///
/// # Errors
/// A block that is not what was written last, by its number; a failed request; a disk with no room for the jobs.
pub fn disk(path: &Path, mix: Mix) -> Result<()> {
    let direct = i32::try_from(OFlags::DIRECT.bits()).unwrap_or(0);
    let open = OpenOptions::new().read(true).write(true).custom_flags(direct).open(path);
    let file = &open.with_context(|| format!("opening {}", path.display()))?;
    let end = rustix::fs::seek(file, rustix::fs::SeekFrom::End(0)).context("asking for its size")?;
    let blocks = usize::try_from(end / BLOCK_BYTES / u64::from(mix.jobs.max(1)))?;
    ensure!(blocks >= LONGEST, "{} has no room for {} jobs of {LONGEST} blocks", path.display(), mix.jobs);
    let checked: Result<u64> = thread::scope(|scope| {
        let jobs: Vec<_> = (0..mix.jobs)
            .map(|job| scope.spawn(move || Job::new(file, job, blocks, mix.seed).run(mix.operations)))
            .collect();
        jobs.into_iter().map(|job| job.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked")))).sum()
    });
    let checked = checked.with_context(|| path.display().to_string())?;
    println!("{} operations of each of {} jobs, {checked} blocks read as they were written", mix.operations, mix.jobs);
    Ok(())
}

/// One thread's part of the disk.
struct Job<'a> {
    file: &'a File,
    first: u64,
    /// How often each block was written.
    written: Vec<u32>,
    random: u64,
    buffer: Vec<u8>,
    checked: u64,
}

impl<'a> Job<'a> {
    fn new(file: &'a File, number: u32, blocks: usize, seed: u64) -> Self {
        Self {
            file,
            first: u64::from(number) * blocks as u64,
            written: vec![0; blocks],
            random: scatter(seed ^ u64::from(number) << 32),
            buffer: vec![0; (LONGEST + 1) * BLOCK],
            checked: 0,
        }
    }

    fn run(mut self, operations: u32) -> Result<u64> {
        for _ in 0..operations {
            let count = 1 + self.below(LONGEST);
            let at = self.below(self.written.len() - count + 1);
            if self.below(2) == 0 { self.write(at, count)? } else { self.read(at, count)? }
        }
        self.file.sync_data().context("flushing")?;
        for at in (0..self.written.len()).step_by(LONGEST) {
            self.read(at, LONGEST.min(self.written.len() - at))?;
        }
        Ok(self.checked)
    }

    /// A random number below `end`.
    fn below(&mut self, end: usize) -> usize {
        self.random = self.random.wrapping_add(1);
        usize::try_from(scatter(self.random) % end.max(1) as u64).unwrap_or(0)
    }

    fn offset(&self, at: usize) -> u64 {
        (self.first + at as u64) * BLOCK_BYTES
    }

    fn content(&self, at: usize) -> impl Iterator<Item = [u8; 8]> + use<> {
        let block = scatter((self.first + at as u64) ^ (u64::from(self.written[at]) << 40));
        (0..BLOCK_BYTES / 8).map(move |word| scatter(block.wrapping_add(word)).to_le_bytes())
    }

    fn write(&mut self, at: usize, count: usize) -> Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let part = aligned(&mut buffer, count);
        for (at, block) in (at..).zip(part.chunks_exact_mut(BLOCK)) {
            self.written[at] += 1;
            block.chunks_exact_mut(8).zip(self.content(at)).for_each(|(place, word)| place.copy_from_slice(&word));
        }
        let result = self.file.write_all_at(part, self.offset(at));
        self.buffer = buffer;
        result.with_context(|| format!("writing {count} blocks at {}", self.offset(at)))
    }

    fn read(&mut self, at: usize, count: usize) -> Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let part = aligned(&mut buffer, count);
        let offset = self.offset(at);
        let read = self.file.read_exact_at(part, offset);
        let read = read.with_context(|| format!("reading {count} blocks at {offset}"));
        let result = read.and_then(|()| self.check(at, part));
        self.buffer = buffer;
        result
    }

    /// Blocks that were never written may hold anything.
    fn check(&mut self, at: usize, part: &[u8]) -> Result<()> {
        for (at, block) in (at..).zip(part.chunks_exact(BLOCK)).filter(|(at, _)| self.written[*at] != 0) {
            let is_right = block.chunks_exact(8).zip(self.content(at)).all(|(word, right)| word == right);
            ensure!(is_right, "the block at {} is not what was written there last", self.offset(at));
            self.checked += 1;
        }
        Ok(())
    }
}

/// Room for `count` blocks where the kernel takes it for a request past the page cache.
fn aligned(buffer: &mut [u8], count: usize) -> &mut [u8] {
    let skip = buffer.as_ptr().align_offset(BLOCK).min(BLOCK);
    &mut buffer[skip..][..count * BLOCK]
}

/// A number that looks random for each other. Source: Steele, Lea, Flood, Fast Splittable Pseudorandom Number
/// Generators (2014), the finalizer of SplitMix64.
const fn scatter(number: u64) -> u64 {
    let mut z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file in a folder that can be opened past the page cache, if this machine has one.
    fn file(name: &str) -> Option<(std::path::PathBuf, File)> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../target/{name}-{}", std::process::id()));
        std::fs::write(&path, vec![0; 64 * BLOCK]).ok()?;
        let file = OpenOptions::new().read(true).write(true).open(&path).ok()?;
        Some((path, file))
    }

    #[test]
    fn what_was_written_is_found_and_a_changed_block_is_named() {
        let Some((path, file)) = file("selftest-disk") else { return };
        let mut job = Job::new(&file, 0, 64, 7);
        job.write(3, 5).unwrap();
        job.write(4, 1).unwrap();
        job.read(0, 32).unwrap();
        assert_eq!(job.checked, 5);
        file.write_all_at(b"x", 6 * BLOCK_BYTES + 100).unwrap();
        let error = job.read(0, 32).unwrap_err().to_string();
        std::fs::remove_file(path).unwrap();
        assert_eq!(error, "the block at 24576 is not what was written there last");
    }

    #[test]
    fn a_block_from_before_or_from_elsewhere_is_not_right() {
        let Some((path, file)) = file("selftest-stale") else { return };
        let mut job = Job::new(&file, 0, 64, 7);
        let mut old = vec![0; BLOCK];
        job.write(1, 2).unwrap();
        file.read_exact_at(&mut old, BLOCK_BYTES).unwrap();
        job.write(1, 1).unwrap();
        file.write_all_at(&old, BLOCK_BYTES).unwrap();
        assert!(job.read(1, 1).is_err());
        file.write_all_at(&old, 2 * BLOCK_BYTES).unwrap();
        assert!(job.read(2, 1).is_err());
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn jobs_of_a_mix_check_every_block_at_the_end() {
        let Some((path, file)) = file("selftest-mix") else { return };
        let checked: u64 = (0..2).map(|job| Job::new(&file, job, 32, 1).run(100).unwrap()).sum();
        std::fs::remove_file(path).unwrap();
        assert!(checked >= 64, "{checked}");
    }
}
