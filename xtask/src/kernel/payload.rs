// SPDX-License-Identifier: MIT OR Apache-2.0
//! The compressed ELF inside a bzImage.
//!
//! The boot header says where the payload is; what compresses it is seen from its first bytes. The
//! build appends the unpacked length as four little-endian bytes (gzip has that trailer of its own),
//! so a truncated or misread payload is noticed. What follows the ELF in the unpacked bytes
//! (relocations for address randomisation) belongs to the decompressor and is left to `vmlinux` to
//! drop.
//!
//! Source: Linux `Documentation/arch/x86/boot.rst`, "The Real-Mode Kernel Header";
//! `scripts/Makefile.lib` names the formats.

use std::io::Read;

use anyhow::{Context, Result, bail, ensure};

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

/// What a kernel file is.
#[derive(Debug)]
pub(super) enum Image<'a> {
    /// An ELF file.
    Elf,
    /// A bzImage.
    BzImage(Payload<'a>),
}

/// The payload of a bzImage, its trailer included.
#[derive(Debug)]
pub(super) struct Payload<'a> {
    bytes: &'a [u8],
}

/// Tells an ELF from a bzImage and finds the latter's payload.
pub(super) fn find(image: &[u8]) -> Result<Image<'_>> {
    if image.starts_with(b"\x7fELF") {
        return Ok(Image::Elf);
    }
    ensure!(
        image.get(HEADER_MAGIC..HEADER_MAGIC + 4) == Some(b"HdrS"),
        "it is neither an ELF nor a bzImage: give Debian's /boot/vmlinuz-* or a vmlinux"
    );
    let version = u16_at(image, VERSION)?;
    ensure!(version >= VERSION_WITH_PAYLOAD, "its boot protocol {version:#x} is older than 2.08");
    let setup_sectors = match image[SETUP_SECTS] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (setup_sectors + 1) * 512 + usize::try_from(u32_at(image, PAYLOAD_OFFSET)?)?;
    let length = usize::try_from(u32_at(image, PAYLOAD_LENGTH)?)?;
    let bytes = image.get(start..start + length).context("it is shorter than its boot header says")?;
    Ok(Image::BzImage(Payload { bytes }))
}

impl Payload<'_> {
    /// Unpacks the payload and checks the result against its recorded length.
    pub(super) fn unpack(&self) -> Result<Vec<u8>> {
        let (stream, trailer) = self.bytes.split_last_chunk::<TRAILER>().context("its payload is empty")?;
        let expected = usize::try_from(u32::from_le_bytes(*trailer))?;
        let unpacked = match stream {
            [0x1f, 0x8b, ..] => read_to_end(flate2::read::GzDecoder::new(self.bytes), expected, "gzip"),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
                read_to_end(lzma_rust2::XzReader::new(stream, false), expected, "xz")
            }
            [0x02, 0x21, 0x4c, 0x18, blocks @ ..] => unpack_lz4_legacy(blocks),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                let decoder = ruzstd::decoding::StreamingDecoder::new(stream)
                    .map_err(|error| anyhow::anyhow!("its zstd payload is damaged: {error}"))?;
                read_to_end(decoder, expected, "zstd")
            }
            [b'B', b'Z', b'h', ..] => bail!(unsupported("bzip2")),
            [0x89, b'L', b'Z', b'O', ..] => bail!(unsupported("lzo")),
            [0x5d, 0, 0, ..] => bail!(unsupported("lzma")),
            _ => bail!("its payload starts with {:02x?}: no compression known", &stream[..stream.len().min(6)]),
        }?;
        ensure!(
            unpacked.len() == expected,
            "its payload unpacks to {} bytes, its trailer says {expected}: the file is damaged",
            unpacked.len()
        );
        Ok(unpacked)
    }
}

fn unsupported(name: &str) -> String {
    format!("its payload is compressed with {name}, which is not supported: give its vmlinux instead")
}

fn read_to_end(mut reader: impl Read, expected: usize, name: &str) -> Result<Vec<u8>> {
    let mut unpacked = Vec::with_capacity(expected);
    reader.read_to_end(&mut unpacked).with_context(|| format!("its {name} payload is damaged"))?;
    Ok(unpacked)
}

/// The legacy format: blocks of a 32-bit compressed length and that many bytes, up to the end.
fn unpack_lz4_legacy(mut blocks: &[u8]) -> Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    while let Some((length, rest)) = blocks.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_le_bytes(*length))?;
        let block = rest.get(..length).context("its lz4 payload ends inside a block")?;
        let bytes = lz4_flex::block::decompress(block, LZ4_LEGACY_BLOCK).context("its lz4 payload is damaged")?;
        unpacked.extend_from_slice(&bytes);
        blocks = &rest[length..];
    }
    Ok(unpacked)
}

fn u16_at(image: &[u8], offset: usize) -> Result<u16> {
    let bytes = image.get(offset..).and_then(|rest| rest.first_chunk()).context("it ends inside its boot header")?;
    Ok(u16::from_le_bytes(*bytes))
}

fn u32_at(image: &[u8], offset: usize) -> Result<u32> {
    let bytes = image.get(offset..).and_then(|rest| rest.first_chunk()).context("it ends inside its boot header")?;
    Ok(u32::from_le_bytes(*bytes))
}
