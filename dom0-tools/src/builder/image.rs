// SPDX-License-Identifier: MIT OR Apache-2.0
//! The files that a guest is loaded from.
//!
//! A kernel that is an ELF file is mapped and copied from where it lies, once, by the hypervisor. A bzImage is
//! unpacked into memory first: that is where its time goes, and why a guest that is started often is better
//! given its vmlinux.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use guest_abi::{DomId, Gpa};
use pvh_loader::bzimage::{self, Image, Payload};
use pvh_loader::elf::{self, Kernel};

use super::{BuildError, Progress};
use crate::sys::privcmd::Privcmd;
use crate::sys::{self, Mapping};

/// Bytes in memory that the hypervisor can copy from.
enum Bytes {
    Mapped(Mapping),
    Unpacked(Vec<u8>),
}

/// A kernel or an initial RAM disk.
pub(super) struct Contents {
    path: PathBuf,
    bytes: Bytes,
}

impl Contents {
    /// Maps a file.
    fn map(what: &'static str, path: &Path) -> Result<Self, BuildError> {
        let failed = |cause| BuildError::File { what, path: path.to_owned(), cause };
        Ok(Self { path: path.to_owned(), bytes: Bytes::Mapped(Mapping::of_file(path).map_err(failed)?) })
    }

    /// Gets an initial RAM disk ready.
    pub(super) fn initrd(path: &Path) -> Result<Self, BuildError> {
        Self::map("initrd", path)
    }

    /// Gets a kernel ready and reads what it consists of.
    pub(super) fn kernel(path: &Path, progress: &mut dyn Progress) -> Result<(Self, Kernel), BuildError> {
        let failed = |cause| BuildError::File { what: "kernel", path: path.to_owned(), cause };
        let mut magic = [0; 4];
        let is_elf = File::open(path).and_then(|mut file| file.read_exact(&mut magic)).map_err(failed);
        is_elf?;
        let contents = if magic == *b"\x7fELF" {
            Self::map("kernel", path)?
        } else {
            let file = std::fs::read(path).map_err(failed)?;
            Self { path: path.to_owned(), bytes: Bytes::Unpacked(unpack(path, &file, progress)?) }
        };
        let parsed = match &contents.bytes {
            Bytes::Mapped(mapping) => elf::parse_source(mapping),
            Bytes::Unpacked(bytes) => elf::parse(bytes),
        };
        let kernel = parsed.map_err(|cause| BuildError::Elf { path: path.to_owned(), cause })?;
        Ok((contents, kernel))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn len(&self) -> u64 {
        match &self.bytes {
            Bytes::Mapped(mapping) => mapping.len() as u64,
            Bytes::Unpacked(bytes) => bytes.len() as u64,
        }
    }

    /// Has the hypervisor copy a part into a domain's memory.
    pub(super) fn copy(
        &self,
        privcmd: &Privcmd,
        domain: DomId,
        to: Gpa,
        offset: usize,
        length: usize,
    ) -> Result<(), sys::Error> {
        match &self.bytes {
            Bytes::Mapped(mapping) => privcmd.copy_mapped(domain, to, mapping, offset, length),
            Bytes::Unpacked(bytes) => privcmd.copy_in(domain, to, &bytes[offset..offset + length]),
        }
    }
}

/// The ELF inside a bzImage.
fn unpack(path: &Path, file: &[u8], progress: &mut dyn Progress) -> Result<Vec<u8>, BuildError> {
    let failed = |cause| BuildError::Unpack { path: path.to_owned(), cause };
    let unpack = |payload: &Payload<'_>| payload.unpack().map_err(failed);
    match bzimage::find(file).map_err(failed)? {
        Image::Elf => Ok(file.to_vec()),
        Image::BzImage(payload) => {
            progress.step(&format!("unpacking {} ({})", path.display(), payload.format()));
            unpack(&payload)
        }
    }
}
