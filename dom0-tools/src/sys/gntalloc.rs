// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory of this process that another domain may map: `/dev/xen/gntalloc`.
//!
//! The kernel allocates the pages and writes the entries of the grant table; no hypercall is made
//! for it. When [`Granted`] is dropped the entries are taken back as soon as nobody uses them.

use std::os::fd::OwnedFd;

use guest_abi::num::{high_u32, low_u32, to_usize};
use guest_abi::{DomId, GrantRef, PAGE_SIZE};
use rustix::ioctl::Opcode;

use super::{Error, Mapping, ioctl, open};

const DEVICE: &str = "/dev/xen/gntalloc";

const ALLOC_GREF: Opcode = ioctl::number(b'G', 5, 24);
const DEALLOC_GREF: Opcode = ioctl::number(b'G', 6, 16);
const _: () = assert!(ALLOC_GREF == 0x18_4705 && DEALLOC_GREF == 0x10_4706, "uapi/xen/gntalloc.h");
/// The domain may write, not only read.
const FLAG_WRITABLE: u32 = 1;

/// The open device.
#[derive(Debug)]
pub struct Gntalloc {
    device: OwnedFd,
}

/// Pages that are granted to a domain.
#[derive(Debug)]
pub struct Granted<'a> {
    owner: &'a Gntalloc,
    // Taken before the entries are taken back, so that the pages are not in use by us any more.
    mapping: Option<Mapping>,
    index: u64,
    references: Vec<GrantRef>,
}

impl Gntalloc {
    /// Opens the device.
    ///
    /// # Errors
    /// This is no domain, or not root.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { device: open(DEVICE, "xen-gntalloc")? })
    }

    /// Allocates `count` zeroed pages and grants them to `domain`, to read or also to write.
    ///
    /// # Errors
    /// No memory, no free reference, or the module's limit is reached.
    pub fn allocate(&self, domain: DomId, count: u32, writable: bool) -> Result<Granted<'_>, Error> {
        let failed = |cause| Error::Operation {
            device: DEVICE,
            operation: format!("granting {count} pages to {domain}"),
            cause,
        };
        // domid: u16, flags: u16, count: u32; index: u64; gref_ids: [u32; count].
        let pairs = to_usize(u64::from(count)).div_ceil(2);
        let flags = if writable { FLAG_WRITABLE } else { 0 };
        let mut words = vec![ioctl::pair(u32::from(domain.raw()) | flags << 16, count), 0];
        words.resize(2 + pairs.max(1), 0);
        // SAFETY: the words are the opcode's structure with room for `count` references.
        unsafe { ioctl::words(&self.device, ALLOC_GREF, &mut words) }.map_err(failed)?;
        let ids = words[2..].iter().flat_map(|pair| [low_u32(*pair), high_u32(*pair)]);
        let references = ids.take(to_usize(u64::from(count))).map(GrantRef::new).collect();
        let mut granted = Granted { owner: self, mapping: None, index: words[1], references };
        let length = to_usize(u64::from(count)) * PAGE_SIZE;
        granted.mapping = Some(Mapping::new(&self.device, granted.index, length, true).map_err(failed)?);
        Ok(granted)
    }
}

impl Granted<'_> {
    /// The pages.
    ///
    /// # Panics
    /// Never: a value that can be had has its mapping.
    #[must_use]
    pub fn memory(&self) -> &Mapping {
        self.mapping.as_ref().expect("made by allocate, taken only by drop")
    }

    /// The references, one a page in order, to hand to the other domain.
    #[must_use]
    pub fn references(&self) -> &[GrantRef] {
        &self.references
    }
}

impl Drop for Granted<'_> {
    fn drop(&mut self) {
        drop(self.mapping.take());
        let count = u32::try_from(self.references.len()).unwrap_or(u32::MAX);
        let mut words = [self.index, u64::from(count)];
        // SAFETY: the words are the opcode's structure: index, count, padding.
        let result = unsafe { ioctl::words(&self.owner.device, DEALLOC_GREF, &mut words) };
        debug_assert!(result.is_ok(), "the kernel knows what it allocated");
    }
}
