// SPDX-License-Identifier: MIT OR Apache-2.0
//! Mapped memory that somebody else may write at any time.
//!
//! No reference to the bytes is ever made, except to atomics: bytes are copied in and out by
//! volatile accesses, so that what was read once stays what was read.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

use pvh_loader::elf;
use rustix::io::Result;
use rustix::mm::{MapFlags, ProtFlags};

/// A shared mapping of a device, unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and all accesses to what it holds
// are volatile or atomic.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `length` bytes of `device` from `offset` on.
    pub(super) fn new(device: impl AsFd, offset: u64, length: usize, writable: bool) -> Result<Self> {
        let protection = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: the kernel chooses the address, so no mapping of ours is replaced.
        let base =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, protection, MapFlags::SHARED, device, offset)? };
        let base = NonNull::new(base.cast()).ok_or(rustix::io::Errno::FAULT)?;
        Ok(Self { base, length })
    }

    /// Memory of its own, zero and present.
    pub(super) fn anonymous(length: usize) -> Result<Self> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::POPULATE);
        // SAFETY: the kernel chooses the address, so no mapping of ours is replaced.
        let base = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), length, protection, flags)? };
        let base = NonNull::new(base.cast()).ok_or(rustix::io::Errno::FAULT)?;
        Ok(Self { base, length })
    }

    /// Two mappings of the same memory, as two domains have them: for tests of rings.
    #[cfg(test)]
    pub(crate) fn shared_pair(length: usize) -> Result<(Self, Self)> {
        let memory = rustix::fs::memfd_create("isthmus-test", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&memory, length as u64)?;
        Ok((Self::new(&memory, 0, length, true)?, Self::new(&memory, 0, length, true)?))
    }

    /// Maps a whole file to read it or to have the hypervisor copy from it: all pages are in memory and stay there.
    ///
    /// # Errors
    /// It cannot be opened, is empty or no regular file, or does not fit.
    pub fn of_file(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let length = usize::try_from(metadata.len()).map_err(io::Error::other)?;
        if length == 0 {
            return Err(io::Error::other("it is empty"));
        }
        let flags = MapFlags::SHARED | MapFlags::POPULATE | MapFlags::LOCKED;
        // SAFETY: the kernel chooses the address, so no mapping of ours is replaced.
        let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, ProtFlags::READ, flags, &file, 0)? };
        let base = NonNull::new(base.cast()).ok_or(rustix::io::Errno::FAULT)?;
        Ok(Self { base, length })
    }

    /// Maps the first `length` bytes of a file that several processes share, to read and to write.
    ///
    /// # Errors
    /// The file cannot be mapped.
    pub fn of_shared_file(file: &File, length: usize) -> io::Result<Self> {
        Ok(Self::new(file, 0, length, true)?)
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The address of the first byte, for a hypercall or an ioctl.
    pub(super) fn address(&self) -> u64 {
        self.base.as_ptr().expose_provenance() as u64
    }

    /// The place of `length` bytes at `offset`.
    ///
    /// # Panics
    /// If they are not inside the mapping: the caller's own bug.
    fn at(&self, offset: usize, length: usize) -> *mut u8 {
        assert!(offset.checked_add(length).is_some_and(|end| end <= self.length), "{offset}+{length} in {self:?}");
        // SAFETY: the assertion keeps the result inside the mapping or at its end.
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// Copies bytes out.
    ///
    /// # Panics
    /// If they are not inside the mapping.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        let from = self.at(offset, bytes.len());
        for (i, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: `at` has checked the range, so the byte is in it.
            let place = unsafe { from.add(i) };
            // SAFETY: the byte is mapped as long as `self` lives; a volatile read allows others to write.
            *byte = unsafe { place.read_volatile() };
        }
    }

    /// Copies bytes in. The mapping must be writable, or the kernel ends the process.
    ///
    /// # Panics
    /// If they are not inside the mapping.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.at(offset, bytes.len());
        for (i, byte) in bytes.iter().enumerate() {
            // SAFETY: `at` has checked the range, so the byte is in it.
            let place = unsafe { to.add(i) };
            // SAFETY: the byte is mapped as long as `self` lives and no reference to it exists.
            unsafe { place.write_volatile(*byte) };
        }
    }

    /// A 32-bit word as an atomic: ring indices, say.
    ///
    /// # Panics
    /// If it is not inside the mapping or not aligned.
    #[must_use]
    pub fn atomic_u32(&self, offset: usize) -> &AtomicU32 {
        assert_eq!(offset % 4, 0, "words are aligned");
        let place = self.at(offset, 4).cast();
        // SAFETY: (1) the word is inside the mapping and aligned, checked above (the base is a page's);
        // (2) it stays mapped as long as `self` is borrowed; (3) all accesses are atomic or volatile.
        unsafe { AtomicU32::from_ptr(place) }
    }
}

impl elf::Source for Mapping {
    fn len(&self) -> usize {
        self.length
    }

    fn read(&self, at: usize, bytes: &mut [u8]) {
        Self::read(self, at, bytes);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is the one that `new` mapped, and nothing borrows it any more.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.length) };
        debug_assert!(unmapped.is_ok(), "unmapping what was mapped cannot fail");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::Mapping;

    fn page() -> Mapping {
        let file = std::fs::OpenOptions::new().read(true).write(true).open("/dev/zero").unwrap();
        Mapping::new(&file, 0, 4096, true).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let page = page();
        page.write(4090, b"abcdef");
        let mut back = [0; 6];
        page.read(4090, &mut back);
        assert_eq!(&back, b"abcdef");
        page.atomic_u32(8).store(7, Ordering::Release);
        let mut word = [0; 4];
        page.read(8, &mut word);
        assert_eq!(word, [7, 0, 0, 0]);
    }

    #[test]
    #[should_panic = "4090+7"]
    fn the_end_is_checked() {
        page().write(4090, b"abcdefg");
    }
}
