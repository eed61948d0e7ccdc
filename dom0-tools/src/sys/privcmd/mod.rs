// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hypercalls and other domains' memory: `/dev/xen/privcmd` and `/dev/xen/hypercall`.
//!
//! The hypervisor reads a hypercall's structures at our virtual addresses, so they must be resident
//! and stay where they are. [`Buffer`] is memory of the kernel that is: pages of
//! `/dev/xen/hypercall`. Arguments are copied there and back; the safe calls below do so with the
//! structures of `guest-abi`.
//!
//! [`host`] asks about the machine, [`manage`] makes and ends domains, [`foreign`] maps their memory, [`holdings`]
//! counts what they have.

mod foreign;
mod holdings;
mod host;
mod manage;

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};

use guest_abi::{PAGE_SIZE, Wire};
use rustix::ioctl::Opcode;

use super::{Error, Mapping, ioctl, open};

pub use foreign::{ForeignPages, Interface, Restricted};
pub use host::Snapshot;

const DEVICE: &str = "/dev/xen/privcmd";
const BUFFER_DEVICE: &str = "/dev/xen/hypercall";

const HYPERCALL: Opcode = ioctl::number(b'P', 0, 48);
const _: () = assert!(HYPERCALL == 0x30_5000, "uapi/xen/privcmd.h");

/// `struct privcmd_hypercall`.
#[repr(C)]
struct Hypercall {
    number: u64,
    arguments: [u64; 5],
}
const _: () = assert!(size_of::<Hypercall>() == 48);

/// The open devices.
#[derive(Debug)]
pub struct Privcmd {
    device: OwnedFd,
    buffers: OwnedFd,
    /// Calls until one fails on purpose; 0 for none.
    fails_in: AtomicU32,
}

/// Memory for a hypercall's structures: whole zeroed pages.
#[derive(Debug)]
pub struct Buffer(Mapping);

impl Buffer {
    /// The address to put into an argument or a structure.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.0.address()
    }

    /// Puts a structure at `offset`.
    ///
    /// # Panics
    /// If it does not fit.
    pub fn put<T: Wire>(&self, offset: usize, value: &T) {
        let mut bytes = vec![0; T::SIZE];
        value.to_bytes(&mut bytes);
        self.0.write(offset, &bytes);
    }

    /// Takes the structure at `offset`.
    ///
    /// # Panics
    /// If it would not fit.
    #[must_use]
    pub fn get<T: Wire>(&self, offset: usize) -> T {
        let mut bytes = vec![0; T::SIZE];
        self.0.read(offset, &mut bytes);
        T::from_bytes(&bytes)
    }

    /// Copies bytes out.
    ///
    /// # Panics
    /// If they are not inside the buffer.
    #[must_use]
    pub fn bytes(&self, offset: usize, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.0.read(offset, &mut bytes);
        bytes
    }

    /// The bytes up to the first zero, as text.
    fn text(&self, length: usize) -> String {
        let mut bytes = self.bytes(0, length);
        bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(length));
        String::from_utf8_lossy(&bytes).trim_end().to_owned()
    }
}

impl Privcmd {
    /// Opens the devices.
    ///
    /// # Errors
    /// This is no domain, or not root.
    pub fn open() -> Result<Self, Error> {
        Self::with_device(open(DEVICE, "xen-privcmd")?)
    }

    fn with_device(device: OwnedFd) -> Result<Self, Error> {
        Ok(Self { device, buffers: open(BUFFER_DEVICE, "xen-privcmd")?, fails_in: AtomicU32::new(0) })
    }

    /// Has the `number`th call from now fail with ENOMEM without being made, to see what is left of what was begun.
    pub fn fail_call(&self, number: u32) {
        self.fails_in.store(number, Ordering::Relaxed);
    }

    /// Whether the call that is about to be made is the one that fails.
    fn fails_now(&self) -> bool {
        let left = self.fails_in.load(Ordering::Relaxed);
        self.fails_in.store(left.saturating_sub(1), Ordering::Relaxed);
        left == 1
    }

    /// Makes a buffer of at least `bytes` bytes.
    ///
    /// # Errors
    /// No memory.
    pub fn buffer(&self, bytes: usize) -> Result<Buffer, Error> {
        let length = bytes.max(1).next_multiple_of(PAGE_SIZE);
        let failed =
            |cause| Error::Operation { device: BUFFER_DEVICE, operation: format!("mapping {length} bytes"), cause };
        Mapping::new(&self.buffers, 0, length, true).map(Buffer).map_err(failed)
    }

    /// Makes a hypercall. Returns its result if it is not negative.
    ///
    /// # Safety
    /// What the arguments, and the structures that they point to, name by address is memory that
    /// the hypervisor may read and write as the call is documented to: a [`Buffer`] long enough.
    ///
    /// # Errors
    /// The hypervisor's error number, or the kernel's.
    pub unsafe fn hypercall(&self, number: u32, arguments: [u64; 5]) -> Result<u32, Error> {
        // SAFETY: the caller's promise.
        unsafe { self.call(number, arguments, || format!("hypercall {number} with {:#x}", arguments[0])) }
    }

    /// [`Privcmd::hypercall`] with words for what it is to do, for the error.
    ///
    /// # Safety
    /// As there.
    unsafe fn call(&self, number: u32, arguments: [u64; 5], operation: impl FnOnce() -> String) -> Result<u32, Error> {
        let failed = |cause| Error::Operation { device: DEVICE, operation: operation(), cause };
        if self.fails_now() {
            return Err(failed(rustix::io::Errno::NOMEM));
        }
        let mut call = Hypercall { number: u64::from(number), arguments };
        // SAFETY: the structure is the opcode's; the addresses in it are the caller's promise.
        let result = unsafe { ioctl::one(&self.device, HYPERCALL, &mut call) };
        result.map(i32::cast_unsigned).map_err(failed)
    }
}
