// SPDX-License-Identifier: MIT OR Apache-2.0
//! ACPI tables: reading the host's, and making those that domains see.
//!
//! The hypervisor needs few facts from the firmware: which CPUs and I/O APICs there are, how ISA
//! interrupts are wired, where IOMMUs are. It reads static tables only; AML is
//! dom0's to run. [`host`] walks the tables, [`build`] makes others.
//!
//! The firmware's tables are bytes that may be wrong. Every length is bounded before it is
//! used, what is read is read once into a buffer and checked by its sum, and a broken table gives an error that
//! names it. What the hypervisor cannot do without (root pointer, root table, MADT) stops the boot;
//! other broken tables are listed and treated as absent.
//!
//! Source: *ACPI Specification 6.5*, §5.2 ACPI System Description Tables.

use alloc::{vec, vec::Vec};
use core::fmt;

use guest_abi::num::to_usize;
use pvh_loader::acpi::NoRoom;

pub mod build;
pub mod host;
pub mod links;

/// Physical memory as the table walker reads it.
pub trait PhysRead {
    /// Fills `bytes` from the physical address `at`, or says `false` if that is not mapped.
    #[must_use]
    fn read(&self, at: u64, bytes: &mut [u8]) -> bool;
}

/// A table's name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 4]);

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let printable = |byte: u8| if byte.is_ascii_graphic() { char::from(byte) } else { '?' };
        self.0.iter().try_for_each(|byte| write!(f, "{}", printable(*byte)))
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What is wrong with ACPI tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcpiError {
    /// No root pointer where one has to be.
    NoRootPointer,
    /// The root pointer's sum or form is wrong.
    BadRootPointer,
    /// A table lies where there is no memory.
    Unreadable {
        /// The table; `????` if not even its name could be read.
        table: Signature,
        /// Host physical address.
        at: u64,
    },
    /// A table's length cannot be.
    BadLength {
        /// The table.
        table: Signature,
        /// Host physical address.
        at: u64,
        /// What it says.
        len: u32,
    },
    /// A table's bytes do not add up to 0.
    BadChecksum {
        /// The table.
        table: Signature,
        /// Host physical address.
        at: u64,
    },
    /// The root table is another one.
    NotARootTable {
        /// What stands there.
        table: Signature,
        /// Host physical address.
        at: u64,
    },
    /// An entry in a table is broken.
    BadEntry {
        /// The table.
        table: Signature,
        /// The entry's byte offset in it.
        offset: usize,
    },
    /// There is no MADT.
    NoMadt,
    /// The MADT has no enabled CPU.
    NoCpu,
    /// More tables, CPUs or I/O APICs than can be.
    TooMany {
        /// The table.
        table: Signature,
    },
    /// Tables that were made do not fit.
    NoRoom(NoRoom),
}

impl fmt::Display for AcpiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !matches!(self, Self::NoRoom(_)) {
            write!(f, "ACPI: ")?;
        }
        match *self {
            Self::NoRootPointer => write!(f, "no root pointer (RSDP) was found; turn ACPI on in the firmware")?,
            Self::BadRootPointer => write!(f, "the root pointer (RSDP) is damaged")?,
            Self::Unreadable { table, at } => write!(f, "the table {table} at {at:#x} lies outside of memory")?,
            Self::BadLength { table, at, len } => {
                write!(f, "the table {table} at {at:#x} has the impossible length {len}")?;
            }
            Self::BadChecksum { table, at } => write!(f, "the table {table} at {at:#x} has a wrong checksum")?,
            Self::NotARootTable { table, at } => {
                write!(f, "the root pointer leads to the table {table} at {at:#x}, not to an XSDT or RSDT")?;
            }
            Self::BadEntry { table, offset } => write!(f, "the table {table} is broken at byte {offset}")?,
            Self::NoMadt => write!(f, "there is no MADT, so the machine's CPUs and I/O APICs are not known")?,
            Self::NoCpu => write!(f, "the MADT lists no enabled CPU")?,
            Self::TooMany { table } => write!(f, "the table {table} has more entries than a machine can have")?,
            Self::NoRoom(error) => return error.fmt(f),
        }
        if *self == Self::NoRootPointer { Ok(()) } else { write!(f, "; a firmware update may help") }
    }
}

impl From<NoRoom> for AcpiError {
    fn from(error: NoRoom) -> Self {
        Self::NoRoom(error)
    }
}

/// Bytes in a table's header.
const HEADER: usize = 36;
/// No table that is read as a whole is larger.
const MAX_LEN: u32 = 1 << 20;

/// The header that all tables but the root pointer begin with.
#[derive(Clone, Copy, Debug)]
struct Header {
    signature: Signature,
    len: u32,
}

impl Header {
    fn read(memory: &impl PhysRead, at: u64) -> Result<Self, AcpiError> {
        let mut bytes = [0; 8];
        if !memory.read(at, &mut bytes) {
            return Err(AcpiError::Unreadable { table: Signature(*b"????"), at });
        }
        let [a, b, c, d, len @ ..] = bytes;
        let header = Self { signature: Signature([a, b, c, d]), len: u32::from_le_bytes(len) };
        if to_usize(header.len.into()) < HEADER {
            return Err(AcpiError::BadLength { table: header.signature, at, len: header.len });
        }
        Ok(header)
    }

    /// Reads the whole table and checks its sum.
    fn whole(self, memory: &impl PhysRead, at: u64) -> Result<Vec<u8>, AcpiError> {
        let table = self.signature;
        if self.len > MAX_LEN {
            return Err(AcpiError::BadLength { table, at, len: self.len });
        }
        let mut bytes = vec![0; to_usize(self.len.into())];
        if !memory.read(at, &mut bytes) {
            return Err(AcpiError::Unreadable { table, at });
        }
        if sum(&bytes) != 0 {
            return Err(AcpiError::BadChecksum { table, at });
        }
        Ok(bytes)
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}
