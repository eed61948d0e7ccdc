// SPDX-License-Identifier: MIT OR Apache-2.0
//! Other domains' granted pages: `/dev/xen/gntdev`.
//!
//! Mapping takes two steps for the kernel (name the references, then mmap, which makes the
//! hypercall), one for the caller. A copy needs no mapping: the hypervisor moves the bytes, which is
//! the way between domains that do not trust each other.

use std::os::fd::OwnedFd;

use guest_abi::num::to_usize;
use guest_abi::{DomId, GrantRef, PAGE_SIZE, grant_table};
use rustix::ioctl::Opcode;

use super::{Error, Mapping, ioctl, open};

const DEVICE: &str = "/dev/xen/gntdev";

const MAP_GRANT_REF: Opcode = ioctl::number(b'G', 0, 24);
const UNMAP_GRANT_REF: Opcode = ioctl::number(b'G', 1, 16);
const GRANT_COPY: Opcode = ioctl::number(b'G', 8, 16);
const _: () = assert!(MAP_GRANT_REF == 0x18_4700 && GRANT_COPY == 0x10_4708, "uapi/xen/gntdev.h");

const COPY_SOURCE_IS_GRANT: u16 = 1 << 0;
const COPY_DEST_IS_GRANT: u16 = 1 << 1;

/// `struct gntdev_grant_copy_segment`; an end is an address, or a reference (bits 31:0), an offset
/// (47:32) and a domain (63:48).
#[repr(C)]
struct CopySegment {
    source: u64,
    dest: u64,
    length: u16,
    flags: u16,
    status: i16,
}
const _: () = assert!(size_of::<CopySegment>() == 24 && std::mem::offset_of!(CopySegment, status) == 20);

#[repr(C)]
struct Copy {
    count: u32,
    segments: u64,
}
const _: () = assert!(size_of::<Copy>() == 16);

/// The open device.
#[derive(Debug)]
pub struct Gntdev {
    device: OwnedFd,
}

/// Granted pages, mapped.
#[derive(Debug)]
pub struct Mapped<'a> {
    owner: &'a Gntdev,
    mapping: Option<Mapping>,
    index: u64,
    count: u32,
}

/// A place in a granted page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantedAt {
    /// Who granted it.
    pub domain: DomId,
    /// Which page.
    pub reference: GrantRef,
    /// The first byte in the page.
    pub offset: u16,
}

impl GrantedAt {
    fn word(self) -> u64 {
        u64::from(self.reference.raw()) | u64::from(self.offset) << 32 | u64::from(self.domain.raw()) << 48
    }
}

impl Gntdev {
    /// Opens the device.
    ///
    /// # Errors
    /// This is no domain, or not root.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { device: open(DEVICE, "xen-gntdev")? })
    }

    /// Maps pages that `domain` has granted, one after the other, to read or also to write.
    ///
    /// # Errors
    /// EINVAL: a reference is not granted, or not to be written.
    pub fn map(&self, domain: DomId, references: &[GrantRef], writable: bool) -> Result<Mapped<'_>, Error> {
        let failed = |cause| Error::Operation {
            device: DEVICE,
            operation: format!("mapping {references:?} of {domain}"),
            cause,
        };
        let count = u32::try_from(references.len()).map_err(|_| Error::Range("too many references".to_owned()))?;
        // count: u32, pad: u32; index: u64; refs: [{ domid: u32, ref: u32 }; count].
        let mut words = vec![u64::from(count), 0];
        words.extend(references.iter().map(|reference| ioctl::pair(u32::from(domain.raw()), reference.raw())));
        // SAFETY: the words are the opcode's structure with `count` references.
        unsafe { ioctl::words(&self.device, MAP_GRANT_REF, &mut words) }.map_err(failed)?;
        let mut mapped = Mapped { owner: self, mapping: None, index: words[1], count };
        let mapping = Mapping::new(&self.device, mapped.index, references.len() * PAGE_SIZE, writable);
        mapped.mapping = Some(mapping.map_err(failed)?);
        Ok(mapped)
    }

    /// Copies bytes out of a granted page.
    ///
    /// # Errors
    /// [`Error::Grant`] with the hypervisor's status; EINVAL if the bytes leave the page.
    pub fn copy_from(&self, from: GrantedAt, bytes: &mut [u8]) -> Result<(), Error> {
        let length = copy_length(bytes.len())?;
        let dest = bytes.as_mut_ptr().expose_provenance() as u64;
        let segment = CopySegment { source: from.word(), dest, length, flags: COPY_SOURCE_IS_GRANT, status: 0 };
        // SAFETY: the destination is the `length` bytes of `bytes`, borrowed mutably here.
        unsafe { self.copy(segment) }.map_err(|error| error.told(&format!("copying from {from:?}")))
    }

    /// Copies bytes into a granted page.
    ///
    /// # Errors
    /// As for [`Gntdev::copy_from`].
    pub fn copy_to(&self, bytes: &[u8], to: GrantedAt) -> Result<(), Error> {
        let length = copy_length(bytes.len())?;
        let source = bytes.as_ptr().expose_provenance() as u64;
        let segment = CopySegment { source, dest: to.word(), length, flags: COPY_DEST_IS_GRANT, status: 0 };
        // SAFETY: the source is the `length` bytes of `bytes`, borrowed here; they are only read.
        unsafe { self.copy(segment) }.map_err(|error| error.told(&format!("copying to {to:?}")))
    }

    /// # Safety
    /// The end of `segment` that is an address is `length` bytes that may be read or written.
    unsafe fn copy(&self, mut segment: CopySegment) -> Result<(), CopyError> {
        let mut argument = Copy { count: 1, segments: std::ptr::from_mut(&mut segment).expose_provenance() as u64 };
        // SAFETY: one segment lies at the address, alive until the call is over; its own address is
        // the caller's promise.
        unsafe { ioctl::one(&self.device, GRANT_COPY, &mut argument) }.map_err(CopyError::Kernel)?;
        // SAFETY: the segment is ours; the kernel wrote it behind the compiler's back.
        let status = unsafe { std::ptr::from_ref(&segment.status).read_volatile() };
        if status == grant_table::GNTST_OKAY { Ok(()) } else { Err(CopyError::Status(status)) }
    }
}

enum CopyError {
    Kernel(rustix::io::Errno),
    Status(i16),
}

impl CopyError {
    fn told(self, operation: &str) -> Error {
        let operation = operation.to_owned();
        match self {
            Self::Kernel(cause) => Error::Operation { device: DEVICE, operation, cause },
            Self::Status(status) => Error::Grant { operation, status },
        }
    }
}

fn copy_length(length: usize) -> Result<u16, Error> {
    let fits = u16::try_from(length).ok().filter(|length| to_usize(u64::from(*length)) <= PAGE_SIZE);
    fits.ok_or_else(|| Error::Range(format!("{length} bytes are more than a page: copy page by page")))
}

impl Mapped<'_> {
    /// The pages.
    ///
    /// # Panics
    /// Never: a value that can be had has its mapping.
    #[must_use]
    pub fn memory(&self) -> &Mapping {
        self.mapping.as_ref().expect("made by map, taken only by drop")
    }
}

impl Drop for Mapped<'_> {
    fn drop(&mut self) {
        drop(self.mapping.take());
        let mut words = [self.index, u64::from(self.count)];
        // SAFETY: the words are the opcode's structure: index, count, padding.
        let result = unsafe { ioctl::words(&self.owner.device, UNMAP_GRANT_REF, &mut words) };
        debug_assert!(result.is_ok(), "the kernel knows what it mapped");
    }
}

/// What a `GNTST_*` is called in the interface's header.
#[must_use]
pub fn status_name(status: i16) -> &'static str {
    match status {
        grant_table::GNTST_OKAY => "okay",
        grant_table::GNTST_BAD_DOMAIN => "no such domain",
        grant_table::GNTST_BAD_GNTREF => "bad grant reference",
        grant_table::GNTST_BAD_HANDLE => "bad handle",
        grant_table::GNTST_NO_DEVICE_SPACE => "no room for another mapping",
        grant_table::GNTST_PERMISSION_DENIED => "permission denied",
        grant_table::GNTST_BAD_PAGE => "bad page",
        grant_table::GNTST_BAD_COPY_ARG => "the copy leaves its page",
        grant_table::GNTST_EAGAIN => "try again",
        _ => "general error",
    }
}
