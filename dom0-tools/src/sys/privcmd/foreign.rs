// SPDX-License-Identifier: MIT OR Apache-2.0
//! Other domains' memory in our address space.
//!
//! The kernel maps a list of frames in one call and says of each whether it could. All pages that could be
//! mapped are, when the call returns: nothing is left to a later fault. A page that could not has nothing
//! behind it and would end the process when touched, so [`ForeignPages`] hands out windows of good pages
//! only. A mapping ends when its owner is dropped, and the borrow checker keeps windows from outliving it.
//!
//! Two of Linux' calls are used, MMAPBATCH_V2 and, for kernels before 3.8 and to compare, MMAPBATCH; the third,
//! MMAP, takes machine frames and is refused by Linux in every domain whose frames the hypervisor translates.
//!
//! Source: Linux `include/uapi/xen/privcmd.h` at 6.1.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};

use guest_abi::num::to_usize;
use guest_abi::{DomId, Gfn, PAGE_SIZE};
use rustix::io::Errno;
use rustix::ioctl::Opcode;

use super::super::{Error, Mapping, ioctl, open};
use super::{DEVICE, Privcmd};

const MMAPBATCH: Opcode = ioctl::number(b'P', 3, 24);
const MMAPBATCH_V2: Opcode = ioctl::number(b'P', 4, 32);
const RESTRICT: Opcode = ioctl::number(b'P', 6, 2);
const MMAP_RESOURCE: Opcode = ioctl::number(b'P', 7, 32);
const _: () =
    assert!(MMAPBATCH == 0x18_5003 && RESTRICT == 0x2_5006 && MMAP_RESOURCE == 0x20_5007, "uapi/xen/privcmd.h");
/// What MMAPBATCH writes over the high bits of a frame that it could not map.
const BATCH_ERRORS: u64 = 0xf000_0000;

/// `struct privcmd_mmapbatch`.
#[repr(C)]
struct MapBatch {
    count: u32,
    domain: u16,
    address: u64,
    frames: u64,
}
const _: () = assert!(size_of::<MapBatch>() == 24);

/// `struct privcmd_mmapbatch_v2`.
#[repr(C)]
struct MapBatchV2 {
    count: u32,
    domain: u16,
    address: u64,
    frames: u64,
    errors: u64,
}
const _: () = assert!(size_of::<MapBatchV2>() == 32);

/// `struct privcmd_mmap_resource`.
#[repr(C)]
struct MapResource {
    domain: u16,
    kind: u32,
    id: u32,
    first: u32,
    count: u64,
    address: u64,
}
const _: () = assert!(size_of::<MapResource>() == 32);

/// Which of the kernel's calls maps frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interface {
    /// MMAPBATCH_V2: an error number for each frame.
    #[default]
    BatchV2,
    /// MMAPBATCH: whether each frame could be mapped, but not why not, and for frames below 2^28 only.
    Batch,
}

/// Frames of another domain, mapped one after the other; some may have failed.
#[derive(Debug)]
pub struct ForeignPages {
    mapping: Mapping,
    domain: DomId,
    frames: Vec<Gfn>,
    errors: Vec<Option<Errno>>,
}

/// One mapped page, for as long as its mapping is borrowed. The other domain may write it at any time.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    mapping: &'a Mapping,
    offset: usize,
}

/// A frame that could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameError {
    /// Its place in the list.
    pub index: usize,
    /// The frame.
    pub frame: Gfn,
    /// Why.
    pub cause: Errno,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.frame, self.cause)
    }
}

impl ForeignPages {
    /// The page of the frame at `index` in the list.
    ///
    /// # Errors
    /// It could not be mapped.
    ///
    /// # Panics
    /// If the list has no such frame: the caller's own bug.
    pub fn page(&self, index: usize) -> Result<Window<'_>, FrameError> {
        match self.errors[index] {
            Some(cause) => Err(FrameError { index, frame: self.frames[index], cause }),
            None => Ok(Window { mapping: &self.mapping, offset: index * PAGE_SIZE }),
        }
    }

    /// The frames that could not be mapped, in the list's order.
    pub fn failed(&self) -> impl Iterator<Item = FrameError> {
        let all = self.errors.iter().zip(&self.frames).enumerate();
        all.filter_map(|(index, (cause, frame))| cause.map(|cause| FrameError { index, frame: *frame, cause }))
    }

    /// The whole mapping, if all of it is there.
    ///
    /// # Errors
    /// A frame could not be mapped; the first is named.
    pub fn complete(self) -> Result<Mapping, Error> {
        let first = self.failed().next();
        match first {
            Some(failed) => Err(Error::Operation {
                device: DEVICE,
                operation: format!("mapping {:?} of {}", failed.frame, self.domain),
                cause: failed.cause,
            }),
            None => Ok(self.mapping),
        }
    }
}

impl Window<'_> {
    /// Copies bytes out.
    ///
    /// # Panics
    /// If they are not inside the page.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        assert!(offset + bytes.len() <= PAGE_SIZE, "{offset}+{} in a page", bytes.len());
        self.mapping.read(self.offset + offset, bytes);
    }

    /// Copies bytes in. The mapping must be writable, or the kernel ends the process.
    ///
    /// # Panics
    /// If they are not inside the page.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= PAGE_SIZE, "{offset}+{} in a page", bytes.len());
        self.mapping.write(self.offset + offset, bytes);
    }
}

impl Privcmd {
    /// Maps frames of another domain, in the list's order, with a result for each.
    ///
    /// # Errors
    /// The domain does not exist or may not be mapped by this one.
    pub fn map_pages(
        &self,
        domain: DomId,
        frames: &[Gfn],
        writable: bool,
        interface: Interface,
    ) -> Result<ForeignPages, Error> {
        map(&self.device, domain, frames, writable, interface)
    }

    /// Maps frames of another domain, all or none.
    ///
    /// # Errors
    /// The domain does not exist, may not be mapped by this one, or a frame cannot be; the first
    /// such frame is named.
    pub fn map_foreign(&self, domain: DomId, frames: &[Gfn], writable: bool) -> Result<Mapping, Error> {
        self.map_pages(domain, frames, writable, Interface::BatchV2)?.complete()
    }

    /// Maps `count` pages of a resource of another domain: its grant table, say.
    ///
    /// # Errors
    /// The domain or the resource does not exist or may not be mapped by this domain.
    pub fn map_resource(&self, domain: DomId, kind: u16, id: u32, first: u32, count: u32) -> Result<Mapping, Error> {
        let operation = || format!("mapping resource {kind} of {domain}");
        let failed = |cause| Error::Operation { device: DEVICE, operation: operation(), cause };
        if self.fails_now() {
            return Err(failed(Errno::NOMEM));
        }
        let length = to_usize(u64::from(count)) * PAGE_SIZE;
        let mapping = Mapping::new(&self.device, 0, length, true).map_err(failed)?;
        let mut call = MapResource {
            domain: domain.raw(),
            kind: u32::from(kind),
            id,
            first,
            count: u64::from(count),
            address: mapping.address(),
        };
        // SAFETY: the structure is the opcode's; the mapping is of this device and `count` pages long.
        unsafe { ioctl::one(&self.device, MMAP_RESOURCE, &mut call) }.map_err(failed)?;
        Ok(mapping)
    }
}

/// A handle that can map the memory of one domain and do nothing else, for good: no hypercall, no other domain.
#[derive(Debug)]
pub struct Restricted {
    device: OwnedFd,
    domain: DomId,
}

impl Restricted {
    /// Opens the device for `domain` alone.
    ///
    /// # Errors
    /// This is no domain, or not root, or the kernel is older than 4.13.
    pub fn open(domain: DomId) -> Result<Self, Error> {
        let device = open(DEVICE, "xen-privcmd")?;
        let mut argument = domain.raw();
        // SAFETY: the argument is the opcode's: a domain's number.
        let result = unsafe { ioctl::one(&device, RESTRICT, &mut argument) };
        let operation = || format!("restricting a handle to {domain}");
        result.map_err(|cause| Error::Operation { device: DEVICE, operation: operation(), cause })?;
        Ok(Self { device, domain })
    }

    /// As [`Privcmd::map_pages`], of any domain: the kernel refuses all but the handle's own.
    ///
    /// # Errors
    /// EPERM for another domain, else as [`Privcmd::map_pages`].
    pub fn map_pages(&self, domain: DomId, frames: &[Gfn], writable: bool) -> Result<ForeignPages, Error> {
        map(&self.device, domain, frames, writable, Interface::BatchV2)
    }

    /// The domain that it is for.
    #[must_use]
    pub fn domain(&self) -> DomId {
        self.domain
    }

    /// The device as an ordinary handle, to see that the kernel refuses everything else.
    ///
    /// # Errors
    /// The device for buffers cannot be opened.
    pub fn into_privcmd(self) -> Result<Privcmd, Error> {
        Privcmd::with_device(self.device)
    }
}

fn map(
    device: impl AsFd,
    domain: DomId,
    frames: &[Gfn],
    writable: bool,
    interface: Interface,
) -> Result<ForeignPages, Error> {
    let operation = || format!("mapping {} frames of {domain}", frames.len());
    let failed = |cause| Error::Operation { device: DEVICE, operation: operation(), cause };
    let count = u32::try_from(frames.len()).map_err(|_| Error::Range("too many frames".to_owned()))?;
    let mapping = Mapping::new(&device, 0, frames.len() * PAGE_SIZE, writable).map_err(failed)?;
    let mut raw: Vec<u64> = frames.iter().map(|frame| frame.raw()).collect();
    let errors = match interface {
        Interface::BatchV2 => batch_v2(device, domain, count, &mapping, &raw),
        Interface::Batch if raw.iter().any(|frame| frame & BATCH_ERRORS != 0) => Err(Errno::RANGE),
        Interface::Batch => batch(device, domain, count, &mapping, &mut raw),
    };
    Ok(ForeignPages { mapping, domain, frames: frames.to_vec(), errors: errors.map_err(failed)? })
}

fn batch_v2(
    device: impl AsFd,
    domain: DomId,
    count: u32,
    mapping: &Mapping,
    frames: &[u64],
) -> Result<Vec<Option<Errno>>, Errno> {
    let mut errors = vec![0_i32; frames.len()];
    let mut call = MapBatchV2 {
        count,
        domain: domain.raw(),
        address: mapping.address(),
        frames: frames.as_ptr().expose_provenance() as u64,
        errors: errors.as_mut_ptr().expose_provenance() as u64,
    };
    // SAFETY: the structure is the opcode's; the mapping is of this device and `count` pages long,
    // and both arrays have `count` elements and outlive the call.
    let result = unsafe { ioctl::one(device, MMAPBATCH_V2, &mut call) };
    match result {
        // ENOENT is also how the call as a whole says that some frame gave ENOENT.
        Err(Errno::NOENT) if errors.iter().any(|error| *error != 0) => {}
        other => drop(other?),
    }
    Ok(errors.iter().map(|error| (*error != 0).then(|| Errno::from_raw_os_error(-error))).collect())
}

fn batch(
    device: impl AsFd,
    domain: DomId,
    count: u32,
    mapping: &Mapping,
    frames: &mut [u64],
) -> Result<Vec<Option<Errno>>, Errno> {
    let mut call = MapBatch {
        count,
        domain: domain.raw(),
        address: mapping.address(),
        frames: frames.as_mut_ptr().expose_provenance() as u64,
    };
    // SAFETY: the structure is the opcode's; the mapping is of this device and `count` pages long,
    // and the array has `count` elements, may be written, and outlives the call.
    let result = unsafe { ioctl::one(device, MMAPBATCH, &mut call) };
    match result {
        Err(Errno::NOENT) if frames.iter().any(|frame| frame & BATCH_ERRORS != 0) => {}
        other => drop(other?),
    }
    Ok(frames.iter().map(|frame| (frame & BATCH_ERRORS != 0).then_some(Errno::INVAL)).collect())
}
