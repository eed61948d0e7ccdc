// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's ELF: what it says of itself, and a copy that holds only what must be loaded.
//!
//! A vmlinux from a bzImage has segments that are as long in the file as in memory although a third
//! of them is zero (bss, per-CPU data), and relocations behind them. The trimmed copy keeps the
//! program headers and, for each PT_LOAD, the bytes up to the last one that is not zero; memory
//! sizes stay, so a loader clears the rest. Sections and symbols are dropped.
//!
//! Source: System V ABI, chapter 5, "Program Header"; `xen/include/public/elfnote.h` at 4.17.

use anyhow::{Context, Result, ensure};
use object::elf::{FileHeader64, NoteType, PT_LOAD, PT_NOTE, ProgramHeader64, SymbolSection};
use object::pod::bytes_of;
use object::read::elf::{FileHeader, ProgramHeader};
use object::{LittleEndian, U16, U32, U64};

type Header = FileHeader64<LittleEndian>;
type Segment = ProgramHeader64<LittleEndian>;
const LE: LittleEndian = LittleEndian;

/// `XEN_ELFNOTE_SUPPORTED_FEATURES`: a 32-bit map of features.
const NOTE_SUPPORTED_FEATURES: NoteType = NoteType(17);
/// `XEN_ELFNOTE_PHYS32_ENTRY`: the PVH entry, 4 or 8 bytes.
const NOTE_PHYS32_ENTRY: NoteType = NoteType(18);
/// `XENFEAT_dom0` in the map of features.
const FEATURE_DOM0: u32 = 1 << 11;
/// Segments start at this alignment in the trimmed file.
const ALIGN: usize = 16;

/// What a kernel says of itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) release: String,
    pub(super) pvh_entry: Option<u64>,
    pub(super) dom0_capable: bool,
}

/// Reads a kernel's notes and its version banner.
pub(super) fn inspect(elf: &[u8]) -> Result<Facts> {
    let (_, segments) = parse(elf)?;
    let mut facts = Facts { release: release(elf), pvh_entry: None, dom0_capable: false };
    for segment in segments {
        let Some(mut notes) = segment.notes(LE, elf).context("its notes lie outside the file")? else { continue };
        while let Some(note) = notes.next().context("its notes are damaged")? {
            if note.name() != b"Xen" {
                continue;
            }
            match (note.n_type(LE), note.desc()) {
                (NOTE_PHYS32_ENTRY, desc) => facts.pvh_entry = number(desc),
                (NOTE_SUPPORTED_FEATURES, desc) => {
                    facts.dom0_capable = number(desc).is_some_and(|map| map & u64::from(FEATURE_DOM0) != 0);
                }
                _ => {}
            }
        }
    }
    Ok(facts)
}

/// Copies the kernel, leaving out what a loader would find to be zero or would not load.
pub(super) fn trim(elf: &[u8]) -> Result<Vec<u8>> {
    let (header, segments) = parse(elf)?;
    let mut header = *header;
    let mut trimmed_segments = segments.to_vec();
    let mut out = vec![0; size_of::<Header>() + size_of_val(segments)];
    for (segment, trimmed) in segments.iter().zip(&mut trimmed_segments) {
        let kept = match segment.p_type(LE) {
            PT_LOAD => {
                let data = data(segment, elf)?;
                &data[..data.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)]
            }
            PT_NOTE => data(segment, elf)?,
            _ => &[],
        };
        out.resize(out.len().next_multiple_of(ALIGN), 0);
        trimmed.p_offset = U64::new(LE, out.len() as u64);
        trimmed.p_filesz = U64::new(LE, kept.len() as u64);
        // The offset is no longer congruent to the address: the file is loaded, never mapped.
        trimmed.p_align = U64::new(LE, 1);
        if segment.p_type(LE) == PT_NOTE {
            trimmed.p_align = segment.p_align;
        }
        out.extend_from_slice(kept);
    }
    header.e_phoff = U64::new(LE, size_of::<Header>() as u64);
    header.e_shoff = U64::new(LE, 0);
    header.e_shnum = U16::new(LE, 0);
    header.e_shstrndx = U16::new(LE, SymbolSection(0));
    out[..size_of::<Header>()].copy_from_slice(bytes_of(&header));
    for (index, segment) in trimmed_segments.iter().enumerate() {
        let at = size_of::<Header>() + index * size_of::<Segment>();
        out[at..at + size_of::<Segment>()].copy_from_slice(bytes_of(segment));
    }
    Ok(out)
}

fn parse(elf: &[u8]) -> Result<(&Header, &[Segment])> {
    let header = Header::parse(elf).context("it is not a 64-bit ELF")?;
    ensure!(header.is_little_endian(), "it is not a little-endian ELF");
    ensure!(header.e_machine(LE) == object::elf::EM_X86_64, "it is not for x86-64");
    let segments = header.program_headers(LE, elf).context("its program headers lie outside the file")?;
    ensure!(segments.iter().any(|segment| segment.p_type(LE) == PT_LOAD), "it has nothing to load");
    Ok((header, segments))
}

fn data<'a>(segment: &Segment, elf: &'a [u8]) -> Result<&'a [u8]> {
    segment.data(LE, elf).ok().context("a segment lies outside the file")
}

/// A note's number, in either of the widths that kernels use.
fn number(desc: &[u8]) -> Option<u64> {
    match desc.len() {
        4 => desc.first_chunk().map(|bytes| u64::from(U32::<LittleEndian>::from_bytes(*bytes).get(LE))),
        8 => desc.first_chunk().map(|bytes| U64::<LittleEndian>::from_bytes(*bytes).get(LE)),
        _ => None,
    }
}

/// The release in the version banner, `Linux version RELEASE (builder) ...`.
fn release(elf: &[u8]) -> String {
    const BANNER: &[u8] = b"Linux version ";
    memchr::memmem::find_iter(elf, BANNER)
        .map(|at| &elf[at + BANNER.len()..])
        .find(|text| text.first().is_some_and(u8::is_ascii_digit))
        .map(|text| text.iter().take_while(|byte| byte.is_ascii_graphic()).map(|byte| char::from(*byte)).collect())
        .unwrap_or_default()
}
