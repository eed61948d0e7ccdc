// SPDX-License-Identifier: MIT OR Apache-2.0
//! The compressed ELF inside a bzImage.
//!
//! The boot header says where the payload is; what compresses it is seen from its first bytes. The
//! build appends the unpacked length as four little-endian bytes (gzip has that trailer of its own),
//! so a truncated or misread payload is noticed, and no more is unpacked than it says. What follows the ELF in the
//! unpacked bytes (relocations for address randomisation) belongs to the decompressor; no segment refers to it.
//!
//! lzo is the one compression of Linux' build that is refused: no crate for it is kept up, and no distribution uses it.
//!
//! Source: Linux `Documentation/arch/x86/boot.rst`, "The Real-Mode Kernel Header";
//! `scripts/Makefile.lib` names the formats.

use alloc::vec::Vec;
use core::fmt;
use std::io::{self, Read};

const SETUP_SECTS: usize = 0x1f1;
const HEADER_MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// The first protocol version that has the payload fields.
const VERSION_WITH_PAYLOAD: u16 = 0x208;
/// Length of the appended unpacked size.
const TRAILER: usize = 4;
/// The largest block of the legacy lz4 format, unpacked. Source: `lz4_Frame_format.md`, "Legacy frame".
const LZ4_LEGACY_BLOCK: usize = 8 << 20;
/// No kernel is larger: it would not fit below the 1 GiB that Linux maps first.
const MAX_UNPACKED: usize = 1 << 30;
/// What the LZMA decoder may allocate, in KiB: a dictionary of 128 MiB, as `lzma -9` uses at most half of.
const LZMA_MEMORY_KIB: u32 = 160 << 10;

/// What a kernel file is.
#[derive(Debug)]
pub enum Image<'a> {
    /// An ELF file.
    Elf,
    /// A bzImage.
    BzImage(Payload<'a>),
}

/// The payload of a bzImage, its trailer included.
#[derive(Debug)]
pub struct Payload<'a> {
    bytes: &'a [u8],
}

/// Why an image cannot be unpacked.
#[derive(Debug)]
pub enum UnpackError {
    /// Neither an ELF nor a bzImage.
    Unknown,
    /// A boot protocol without the payload's place.
    OldProtocol(u16),
    /// The file ends before what its header announces.
    Truncated,
    /// A compression that is not read: its name, or what the payload starts with.
    Compression(&'static str),
    /// The trailer says more than a kernel has.
    TooLarge(usize),
    /// The decoder's words.
    Damaged {
        /// The compression.
        format: &'static str,
        /// The decoder's words.
        cause: io::Error,
    },
    /// The payload has another length than its trailer says.
    Length {
        /// What was unpacked, at least.
        unpacked: usize,
        /// What the trailer says.
        expected: usize,
    },
}

impl fmt::Display for UnpackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => {
                f.write_str("it is neither an ELF nor a bzImage: give Debian's /boot/vmlinuz-* or a vmlinux")
            }
            Self::OldProtocol(version) => {
                write!(f, "its boot protocol {version:#x} is older than 2.08: give its vmlinux")
            }
            Self::Truncated => f.write_str("it is shorter than its boot header says: it was cut, copy it again"),
            Self::Compression(name) => {
                write!(f, "its payload is compressed with {name}, which is not supported: give its vmlinux instead")
            }
            Self::TooLarge(bytes) => write!(f, "its trailer says {bytes} bytes, more than a kernel has: it is damaged"),
            Self::Damaged { format, cause } => write!(f, "its {format} payload is damaged: {cause}"),
            Self::Length { unpacked, expected } => {
                write!(f, "its payload unpacks to {unpacked} bytes, its trailer says {expected}: the file is damaged")
            }
        }
    }
}

impl core::error::Error for UnpackError {}

/// Tells an ELF from a bzImage and finds the latter's payload.
///
/// # Errors
/// The file is neither, or is shorter than its header says.
pub fn find(image: &[u8]) -> Result<Image<'_>, UnpackError> {
    if image.starts_with(b"\x7fELF") {
        return Ok(Image::Elf);
    }
    if image.get(HEADER_MAGIC..HEADER_MAGIC + 4) != Some(b"HdrS") {
        return Err(UnpackError::Unknown);
    }
    let version = low_half(u32_at(image, VERSION)?);
    if version < VERSION_WITH_PAYLOAD {
        return Err(UnpackError::OldProtocol(version));
    }
    let setup_sectors = match image[SETUP_SECTS] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let offset = guest_abi::num::to_usize(u64::from(u32_at(image, PAYLOAD_OFFSET)?));
    let length = guest_abi::num::to_usize(u64::from(u32_at(image, PAYLOAD_LENGTH)?));
    let start = (setup_sectors + 1) * 512 + offset;
    let bytes = image.get(start..start + length).ok_or(UnpackError::Truncated)?;
    Ok(Image::BzImage(Payload { bytes }))
}

impl Payload<'_> {
    /// What compresses it, for progress and errors.
    #[must_use]
    pub fn format(&self) -> &'static str {
        match self.bytes {
            [0x1f, 0x8b, ..] => "gzip",
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => "xz",
            [0x02, 0x21, 0x4c, 0x18, ..] => "lz4",
            [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
            [b'B', b'Z', b'h', ..] => "bzip2",
            [0x89, b'L', b'Z', b'O', ..] => "lzo",
            [0x5d, 0, 0, ..] => "lzma",
            _ => "an unknown format",
        }
    }

    /// How long it will be when it is unpacked, by its trailer.
    ///
    /// # Errors
    /// It has no trailer, or one that no kernel has.
    pub fn unpacked_len(&self) -> Result<usize, UnpackError> {
        let trailer = self.bytes.last_chunk::<TRAILER>().ok_or(UnpackError::Truncated)?;
        let expected = guest_abi::num::to_usize(u64::from(u32::from_le_bytes(*trailer)));
        if expected > MAX_UNPACKED { Err(UnpackError::TooLarge(expected)) } else { Ok(expected) }
    }

    /// Unpacks the payload and checks the result against its recorded length.
    ///
    /// # Errors
    /// The compression is not supported, or the payload is damaged.
    pub fn unpack(&self) -> Result<Vec<u8>, UnpackError> {
        let expected = self.unpacked_len()?;
        let stream = &self.bytes[..self.bytes.len() - TRAILER];
        let format = self.format();
        let unpacked = match format {
            "gzip" => read_to_end(flate2::read::GzDecoder::new(self.bytes), expected, format),
            "xz" => read_to_end(lzma_rust2::XzReader::new(stream, false), expected, format),
            "lz4" => unpack_lz4_legacy(&stream[4..], expected),
            "zstd" => {
                let decoder = ruzstd::decoding::StreamingDecoder::new(stream)
                    .map_err(|error| UnpackError::Damaged { format, cause: io::Error::other(error) })?;
                read_to_end(decoder, expected, format)
            }
            "bzip2" => read_to_end(bzip2::read::BzDecoder::new(stream), expected, format),
            "lzma" => {
                let decoder = lzma_rust2::LzmaReader::new_mem_limit(stream, LZMA_MEMORY_KIB, None)
                    .map_err(|cause| UnpackError::Damaged { format, cause })?;
                read_to_end(decoder, expected, format)
            }
            other => Err(UnpackError::Compression(other)),
        }?;
        if unpacked.len() == expected {
            Ok(unpacked)
        } else {
            Err(UnpackError::Length { unpacked: unpacked.len(), expected })
        }
    }
}

/// One byte more than expected is enough to see that there are too many.
fn read_to_end(reader: impl Read, expected: usize, format: &'static str) -> Result<Vec<u8>, UnpackError> {
    let mut unpacked = Vec::with_capacity(expected + 1);
    let bounded = &mut reader.take(expected as u64 + 1);
    bounded.read_to_end(&mut unpacked).map_err(|cause| UnpackError::Damaged { format, cause })?;
    Ok(unpacked)
}

/// The legacy format: blocks of a 32-bit compressed length and that many bytes, up to the end.
fn unpack_lz4_legacy(mut blocks: &[u8], expected: usize) -> Result<Vec<u8>, UnpackError> {
    let damaged = |cause| UnpackError::Damaged { format: "lz4", cause };
    let mut unpacked = vec![0; expected];
    let mut done = 0;
    while let Some((length, rest)) = blocks.split_first_chunk::<4>() {
        let length = guest_abi::num::to_usize(u64::from(u32::from_le_bytes(*length)));
        let block = rest.get(..length).ok_or_else(|| damaged(io::Error::other("it ends inside a block")))?;
        let end = expected.min(done + LZ4_LEGACY_BLOCK);
        let count = lz4_flex::block::decompress_into(block, &mut unpacked[done..end]);
        done += count.map_err(|error| damaged(io::Error::other(error)))?;
        blocks = &rest[length..];
    }
    unpacked.truncate(done);
    Ok(unpacked)
}

fn low_half(word: u32) -> u16 {
    guest_abi::num::low_u16(u64::from(word))
}

fn u32_at(image: &[u8], offset: usize) -> Result<u32, UnpackError> {
    let bytes = image.get(offset..).and_then(|rest| rest.first_chunk()).ok_or(UnpackError::Truncated)?;
    Ok(u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests;
