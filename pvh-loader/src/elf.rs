// SPDX-License-Identifier: MIT OR Apache-2.0
//! A PVH kernel as an ELF file: what to copy where, and where to enter.
//!
//! Only three things in the file matter to a PVH start: the `PT_LOAD` segments at their
//! *physical* addresses, the note with the 32-bit entry point, and, if there is one, the note
//! that allows the image to be moved. The ELF header's own entry point, sections and symbols are
//! not looked at. Reading those few fields ourselves is shorter than checking what a general
//! ELF crate returns, and it lets each error say what is wrong with *this kernel*.
//!
//! The file is untrusted bytes. Every offset is checked before use, and what comes out is
//! consistent: segments sorted by address, inside the file, below 4 GiB, not overlapping, with
//! the entry inside one of them.
//!
//! Sources: *System V ABI, Edition 4.1*, chapter 5 (program header, note section);
//! `xen/include/public/elfnote.h` at 4.17.

use alloc::{vec, vec::Vec};
use core::{fmt, ops::Range};

use guest_abi::{
    Wire,
    num::to_usize,
    pvh::{ELFNOTE_OWNER, ELFNOTE_PHYS32_ENTRY, ELFNOTE_PHYS32_RELOC, ELFNOTE_SUPPORTED_FEATURES},
};

/// A kernel's image, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// What to load, sorted by address; at least one.
    pub segments: Vec<Segment>,
    /// Physical address of the 32-bit entry, for the image at its own addresses.
    pub entry: u32,
    /// Where else the image may go, if anywhere.
    pub relocation: Option<Relocation>,
    /// The features that the kernel says it supports, as bits of `XENFEAT_*` numbers below 32.
    pub features: Option<u32>,
}

/// A piece of memory that the image fills.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest physical address of the first byte, below 4 GiB.
    pub start: u64,
    /// Bytes of memory, below 4 GiB; what the file does not give is zero.
    pub mem_len: u64,
    /// The bytes in the file; not more than `mem_len`.
    pub file: Range<usize>,
}

/// `XEN_ELFNOTE_PHYS32_RELOC`: the image may be anywhere within bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relocation {
    /// The first segment's address must be a multiple of this, a power of two.
    pub align: u64,
    /// The lowest address that the image may use.
    pub min: u64,
    /// The highest address that the image may use, inclusive.
    pub max: u64,
}

impl Kernel {
    /// The image's first address and the one behind its last, guest physical.
    #[must_use]
    pub fn extent(&self) -> Range<u64> {
        let start = self.segments.first().map_or(0, |segment| segment.start);
        let end = self.segments.last().map_or(0, |segment| segment.start + segment.mem_len);
        start..end
    }
}

/// What is wrong with a kernel file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElfError {
    /// No ELF magic.
    NotElf,
    /// A Linux bzImage.
    Compressed,
    /// An ELF file for another CPU, byte order, or of another kind.
    Foreign {
        /// The field that says so.
        field: &'static str,
    },
    /// The file ends before something that it announces.
    Truncated {
        /// What is missing.
        what: &'static str,
    },
    /// No segment that is to be loaded.
    NothingToLoad,
    /// More segments or notes than a kernel has.
    TooMany {
        /// Of what.
        what: &'static str,
    },
    /// A segment whose bytes in the file are more than its bytes in memory.
    Overlong {
        /// Its physical address.
        start: u64,
    },
    /// A segment that ends above 4 GiB.
    TooHigh {
        /// Its physical address.
        start: u64,
    },
    /// Two segments fill the same memory.
    Overlap {
        /// Physical address of the second one.
        start: u64,
    },
    /// No note with a PVH entry.
    NoPvhEntry,
    /// A note whose contents have the wrong size or value.
    BadNote {
        /// Its name in `elfnote.h`.
        name: &'static str,
    },
    /// The entry is in no segment.
    EntryOutside {
        /// The entry's physical address.
        entry: u64,
    },
}

impl fmt::Display for ElfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotElf => write!(f, "this is not an ELF file; give an uncompressed kernel (vmlinux)"),
            Self::Compressed => write!(
                f,
                "this is a compressed kernel (bzImage); give the unpacked ELF that is in it \
                 (cargo xtask unpacks it by itself)"
            ),
            Self::Foreign { field } => {
                write!(f, "this ELF file is not an x86 executable (see its field {field}); give a kernel for x86-64")
            }
            Self::Truncated { what } => {
                write!(f, "the file ends within its {what}; it was cut, copy it again")
            }
            Self::NothingToLoad => write!(f, "the file has no segment to load; give an executable, not an object file"),
            Self::TooMany { what } => write!(f, "the file has too many {what} for a kernel; is it damaged?"),
            Self::Overlong { start } => {
                write!(f, "the segment at {start:#x} has more bytes in the file than in memory; the file is damaged")
            }
            Self::TooHigh { start } => {
                write!(f, "the segment at {start:#x} does not end below 4 GiB, where PVH starts; link the kernel lower")
            }
            Self::Overlap { start } => {
                write!(f, "the segment at {start:#x} overlaps the one before it; the file is damaged")
            }
            Self::NoPvhEntry => write!(
                f,
                "the kernel has no PVH entry (the Xen note PHYS32_ENTRY); Linux has it with CONFIG_PVH or CONFIG_XEN_PVH"
            ),
            Self::BadNote { name } => write!(f, "the kernel's Xen note {name} is malformed; the file is damaged"),
            Self::EntryOutside { entry } => {
                write!(f, "the PVH entry {entry:#x} is in none of the kernel's segments; the file is damaged")
            }
        }
    }
}

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const MAX_PROGRAM_HEADERS: u16 = 128;
const MAX_NOTES: usize = 256;
const MAX_NOTES_LEN: usize = 64 << 10;
const FOUR_GIB: u64 = 1 << 32;

/// Bytes of a kernel file, read in pieces: of a file of 60 MiB a few hundred bytes matter here.
pub trait Source {
    /// The file's length in bytes.
    fn len(&self) -> usize;

    /// Copies the bytes from `at` on. They are inside the file.
    fn read(&self, at: usize, bytes: &mut [u8]);

    /// Whether there is nothing in it.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Source for [u8] {
    fn len(&self) -> usize {
        self.len()
    }

    fn read(&self, at: usize, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self[at..at + bytes.len()]);
    }
}

/// Reads a kernel file.
///
/// # Errors
/// What is wrong with it; the text does not repeat the file's name, which the caller knows.
pub fn parse(file: &[u8]) -> Result<Kernel, ElfError> {
    parse_source(file)
}

/// Reads a kernel file that is not in memory as a slice.
///
/// # Errors
/// As [`parse`].
pub fn parse_source<S: Source + ?Sized>(file: &S) -> Result<Kernel, ElfError> {
    let header = Header::parse(file)?;
    let mut kernel = Kernel { segments: Vec::new(), entry: 0, relocation: None, features: None };
    let mut entry = None;
    for i in 0..header.nr_program_headers {
        let segment = header.program_header(file, i)?;
        match segment.kind {
            PT_LOAD if segment.mem_len != 0 => kernel.segments.push(segment.load(file)?),
            PT_NOTE => kernel.read_notes(&segment.notes(file)?, &mut entry)?,
            _ => {}
        }
    }
    kernel.check(entry)?;
    Ok(kernel)
}

impl Kernel {
    fn check(&mut self, entry: Option<u64>) -> Result<(), ElfError> {
        if self.segments.is_empty() {
            return Err(ElfError::NothingToLoad);
        }
        self.segments.sort_by_key(|segment| segment.start);
        for pair in self.segments.windows(2) {
            if pair[0].start + pair[0].mem_len > pair[1].start {
                return Err(ElfError::Overlap { start: pair[1].start });
            }
        }
        let entry = entry.ok_or(ElfError::NoPvhEntry)?;
        let inside = |segment: &Segment| (segment.start..segment.start + segment.mem_len).contains(&entry);
        if !self.segments.iter().any(inside) {
            return Err(ElfError::EntryOutside { entry });
        }
        self.entry = u32::try_from(entry).map_err(|_| ElfError::EntryOutside { entry })?;
        Ok(())
    }

    fn read_notes(&mut self, mut notes: &[u8], entry: &mut Option<u64>) -> Result<(), ElfError> {
        for _ in 0..MAX_NOTES {
            if notes.is_empty() {
                return Ok(());
            }
            let (note, rest) = Note::first(notes).ok_or(ElfError::Truncated { what: "notes" })?;
            notes = rest;
            if note.owner != ELFNOTE_OWNER {
                continue;
            }
            match note.kind {
                ELFNOTE_PHYS32_ENTRY => *entry = Some(note.entry()?),
                ELFNOTE_PHYS32_RELOC => self.relocation = Some(note.relocation()?),
                ELFNOTE_SUPPORTED_FEATURES => {
                    let bits = note.word(0).ok_or(ElfError::BadNote { name: "SUPPORTED_FEATURES" })?;
                    self.features = Some(bits);
                }
                _ => {}
            }
        }
        Err(ElfError::TooMany { what: "notes" })
    }
}

/// Where the program headers are.
struct Header {
    is_64: bool,
    program_headers: u64,
    entry_size: u16,
    nr_program_headers: u16,
}

/// A little-endian number at a byte offset, if it is in the file.
fn read<T: Wire, S: Source + ?Sized>(file: &S, at: u64) -> Option<T> {
    let at = to_usize(at);
    let end = at.checked_add(T::SIZE)?;
    let mut bytes = [0; 8];
    let bytes = bytes.get_mut(..T::SIZE)?;
    (end <= file.len()).then(|| {
        file.read(at, bytes);
        T::from_bytes(bytes)
    })
}

impl Header {
    fn parse<S: Source + ?Sized>(file: &S) -> Result<Self, ElfError> {
        if read(file, 0) != Some(u32::from_le_bytes(*b"\x7fELF")) {
            // The boot sector's signature and, behind the jump, the setup header's.
            let is_linux =
                read(file, 0x1fe) == Some(0xaa55_u16) && read(file, 0x202) == Some(u32::from_le_bytes(*b"HdrS"));
            return Err(if is_linux { ElfError::Compressed } else { ElfError::NotElf });
        }
        let truncated = ElfError::Truncated { what: "header" };
        let byte = |at: u64| read::<u8, S>(file, at).ok_or(truncated);
        let half = |at: u64| read::<u16, S>(file, at).ok_or(truncated);
        let is_64 = match byte(4)? {
            1 => false,
            2 => true,
            _ => return Err(ElfError::Foreign { field: "EI_CLASS" }),
        };
        if byte(5)? != 1 {
            return Err(ElfError::Foreign { field: "EI_DATA" });
        }
        let machine = if is_64 { 62 } else { 3 };
        if half(18)? != machine {
            return Err(ElfError::Foreign { field: "e_machine" });
        }
        // ET_EXEC or ET_DYN: something with load addresses.
        if !matches!(half(16)?, 2 | 3) {
            return Err(ElfError::Foreign { field: "e_type" });
        }
        let (program_headers, sizes) = if is_64 {
            (read::<u64, S>(file, 32).ok_or(truncated)?, 54)
        } else {
            (u64::from(read::<u32, S>(file, 28).ok_or(truncated)?), 42)
        };
        let header = Self { is_64, program_headers, entry_size: half(sizes)?, nr_program_headers: half(sizes + 2)? };
        if header.nr_program_headers > MAX_PROGRAM_HEADERS {
            return Err(ElfError::TooMany { what: "program headers" });
        }
        if header.entry_size < if is_64 { 56 } else { 32 } && header.nr_program_headers != 0 {
            return Err(ElfError::Foreign { field: "e_phentsize" });
        }
        Ok(header)
    }

    fn program_header<S: Source + ?Sized>(&self, file: &S, index: u16) -> Result<ProgramHeader, ElfError> {
        let truncated = ElfError::Truncated { what: "program headers" };
        let offset = u64::from(index) * u64::from(self.entry_size);
        let at = self.program_headers.checked_add(offset).ok_or(truncated)?;
        // All fields lie in the entry, whose end is checked here for the sums below.
        at.checked_add(56).ok_or(truncated)?;
        let word = |field: u64| read::<u32, S>(file, at + field).map(u64::from).ok_or(truncated);
        let long = |field: u64| read::<u64, S>(file, at + field).ok_or(truncated);
        let kind = read::<u32, S>(file, at).ok_or(truncated)?;
        if self.is_64 {
            Ok(ProgramHeader { kind, offset: long(8)?, start: long(24)?, file_len: long(32)?, mem_len: long(40)? })
        } else {
            Ok(ProgramHeader { kind, offset: word(4)?, start: word(12)?, file_len: word(16)?, mem_len: word(20)? })
        }
    }
}

struct ProgramHeader {
    kind: u32,
    offset: u64,
    start: u64,
    file_len: u64,
    mem_len: u64,
}

impl ProgramHeader {
    fn range<S: Source + ?Sized>(&self, file: &S, what: &'static str) -> Result<Range<usize>, ElfError> {
        let end = self.offset.checked_add(self.file_len).filter(|end| *end <= file.len() as u64);
        Ok(to_usize(self.offset)..to_usize(end.ok_or(ElfError::Truncated { what })?))
    }

    fn notes<S: Source + ?Sized>(&self, file: &S) -> Result<Vec<u8>, ElfError> {
        let range = self.range(file, "notes")?;
        if range.len() > MAX_NOTES_LEN {
            return Err(ElfError::TooMany { what: "notes" });
        }
        let mut notes = vec![0; range.len()];
        file.read(range.start, &mut notes);
        Ok(notes)
    }

    fn load<S: Source + ?Sized>(&self, file: &S) -> Result<Segment, ElfError> {
        let start = self.start;
        if self.file_len > self.mem_len {
            return Err(ElfError::Overlong { start });
        }
        if start.checked_add(self.mem_len).is_none_or(|end| end > FOUR_GIB) {
            return Err(ElfError::TooHigh { start });
        }
        // An empty piece may claim to be anywhere in the file.
        let file = if self.file_len == 0 { 0..0 } else { self.range(file, "segments")? };
        Ok(Segment { start, mem_len: self.mem_len, file })
    }
}

struct Note<'a> {
    owner: &'a [u8],
    kind: u32,
    desc: &'a [u8],
}

impl<'a> Note<'a> {
    /// Splits off the first note; name and contents are each padded to 4 bytes.
    fn first(notes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let name_len = to_usize(u64::from(read::<u32, _>(notes, 0)?));
        let desc_len = to_usize(u64::from(read::<u32, _>(notes, 4)?));
        let kind = read::<u32, _>(notes, 8)?;
        let desc_at = 12 + name_len.next_multiple_of(4);
        let owner = notes.get(12..12 + name_len)?;
        let desc = notes.get(desc_at..desc_at + desc_len)?;
        // The last note's padding may be missing.
        let rest = notes.get(desc_at + desc_len.next_multiple_of(4)..).unwrap_or_default();
        Some((Self { owner, kind, desc }, rest))
    }

    fn word(&self, index: u64) -> Option<u32> {
        read(self.desc, index * 4)
    }

    fn entry(&self) -> Result<u64, ElfError> {
        let entry = match self.desc.len() {
            4 => read::<u32, _>(self.desc, 0).map(u64::from),
            8 => read::<u64, _>(self.desc, 0),
            _ => None,
        };
        entry.ok_or(ElfError::BadNote { name: "PHYS32_ENTRY" })
    }

    fn relocation(&self) -> Result<Relocation, ElfError> {
        let malformed = ElfError::BadNote { name: "PHYS32_RELOC" };
        let word = |index| self.word(index).map(u64::from).ok_or(malformed);
        let relocation = Relocation { align: word(0)?, min: word(1)?, max: word(2)? };
        let sane = relocation.align.is_power_of_two() && relocation.min <= relocation.max;
        if sane { Ok(relocation) } else { Err(malformed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::image;
    use proptest::prelude::*;

    const M: u64 = 1 << 20;

    /// What Debian's 6.12 looks like, but smaller.
    fn relocatable() -> Vec<u8> {
        let mut reloc = Vec::new();
        for word in [0x20_0000_u32, 0x100_0000, 0x3fff_ffff] {
            reloc.extend(word.to_le_bytes());
        }
        image(
            &[(18 * M, 4 * M, b"data"), (16 * M, M, b"text")],
            &[
                (b"GNU\0", 18, b"not ours"),
                (b"Xen\0", ELFNOTE_SUPPORTED_FEATURES, &0x8801_u32.to_le_bytes()),
                (b"Xen\0", ELFNOTE_PHYS32_ENTRY, &(16 * M + 0x850).to_le_bytes()),
                (b"Xen\0", ELFNOTE_PHYS32_RELOC, &reloc),
            ],
        )
    }

    #[test]
    fn segments_notes_and_entry_are_found() {
        let file = relocatable();
        let kernel = parse(&file).unwrap();
        assert_eq!(kernel.extent(), 16 * M..22 * M);
        assert_eq!(&file[kernel.segments[0].file.clone()], b"text");
        assert_eq!(&file[kernel.segments[1].file.clone()], b"data");
        assert_eq!(kernel.entry, 0x100_0850);
        assert_eq!(kernel.features, Some(0x8801));
        assert_eq!(kernel.relocation, Some(Relocation { align: 2 * M, min: 16 * M, max: 0x3fff_ffff }));
    }

    #[test]
    fn the_entry_may_have_four_bytes_and_no_note_may_follow() {
        let file = image(&[(M, M, b"x")], &[(b"Xen\0", ELFNOTE_PHYS32_ENTRY, &0x10_0000_u32.to_le_bytes())]);
        let kernel = parse(&file).unwrap();
        assert_eq!((kernel.entry, kernel.relocation, kernel.features), (0x10_0000, None, None));
    }

    #[test]
    fn a_32_bit_file_is_read_by_its_own_layout() {
        let mut file = vec![0; 52 + 64];
        file[..7].copy_from_slice(b"\x7fELF\x01\x01\x01");
        file[16..20].copy_from_slice(&[2, 0, 3, 0]);
        (file[28], file[42], file[44]) = (52, 32, 2);
        let mut put = |at: usize, words: &[u32]| {
            for (i, word) in words.iter().enumerate() {
                file[at + 4 * i..at + 4 * i + 4].copy_from_slice(&word.to_le_bytes());
            }
        };
        put(52, &[PT_LOAD, 116, 0, 0x10_0000, 4, 0x1000]);
        put(84, &[PT_NOTE, 120, 0, 0, 20, 20]);
        file.extend(b"code");
        for word in [4, 4, ELFNOTE_PHYS32_ENTRY, u32::from_le_bytes(*b"Xen\0"), 0x10_0010] {
            file.extend(word.to_le_bytes());
        }
        let kernel = parse(&file).unwrap();
        assert_eq!(kernel.segments, [Segment { start: 0x10_0000, mem_len: 0x1000, file: 116..120 }]);
        assert_eq!(kernel.entry, 0x10_0010);
    }

    #[test]
    fn each_defect_has_its_own_error() {
        let entry: &[(&[u8], u32, &[u8])] = &[(b"Xen\0", ELFNOTE_PHYS32_ENTRY, &[0, 0, 0x10, 0])];
        assert_eq!(parse(b"#!/bin/sh"), Err(ElfError::NotElf));
        assert_eq!(parse(b""), Err(ElfError::NotElf));
        let mut linux = vec![0; 0x400];
        linux[0x1fe..0x200].copy_from_slice(b"\x55\xaa");
        linux[0x202..0x206].copy_from_slice(b"HdrS");
        assert_eq!(parse(&linux), Err(ElfError::Compressed));
        let good = image(&[(M, M, b"x")], entry);
        for (at, value, field) in [(4, 3, "EI_CLASS"), (5, 2, "EI_DATA"), (18, 183, "e_machine"), (16, 1, "e_type")] {
            let mut file = good.clone();
            file[at] = value;
            assert_eq!(parse(&file), Err(ElfError::Foreign { field }));
        }
        assert_eq!(parse(&image(&[], entry)), Err(ElfError::NothingToLoad));
        assert_eq!(parse(&image(&[(M, M, b"x")], &[])), Err(ElfError::NoPvhEntry));
        assert_eq!(parse(&image(&[(M, 1, b"xx")], entry)), Err(ElfError::Overlong { start: M }));
        let high = FOUR_GIB - 1;
        assert_eq!(parse(&image(&[(high, 2, b"x")], entry)), Err(ElfError::TooHigh { start: high }));
        assert_eq!(parse(&image(&[(!0, 2, b"x")], entry)), Err(ElfError::TooHigh { start: !0 }));
        let overlap = [(M, M + 1, &b"x"[..]), (2 * M, M, b"x")];
        assert_eq!(parse(&image(&overlap, entry)), Err(ElfError::Overlap { start: 2 * M }));
        assert_eq!(parse(&image(&[(2 * M, M, b"x")], entry)), Err(ElfError::EntryOutside { entry: M }));
        let odd: &[(&[u8], u32, &[u8])] = &[(b"Xen\0", ELFNOTE_PHYS32_ENTRY, &[0; 6])];
        assert_eq!(parse(&image(&[(M, M, b"x")], odd)), Err(ElfError::BadNote { name: "PHYS32_ENTRY" }));
        let unaligned: &[(&[u8], u32, &[u8])] =
            &[(b"Xen\0", ELFNOTE_PHYS32_RELOC, &[3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0])];
        assert_eq!(parse(&image(&[(M, M, b"x")], unaligned)), Err(ElfError::BadNote { name: "PHYS32_RELOC" }));
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let file = relocatable();
        for len in 0..file.len() {
            // Without the padding behind the last note nothing is missing.
            assert!(parse(&file[..len]).is_err(), "{len}");
        }
    }

    proptest! {
        #[test]
        fn corrupted_files_are_refused_or_consistent(changes in proptest::collection::vec((0..600usize, any::<u8>()), 1..6)) {
            let mut file = relocatable();
            for (at, value) in changes {
                let at = at % file.len();
                file[at] = value;
            }
            if let Ok(kernel) = parse(&file) {
                let mut last = 0;
                for segment in &kernel.segments {
                    prop_assert!(segment.start >= last && segment.mem_len > 0);
                    last = segment.start + segment.mem_len;
                    prop_assert!(last <= FOUR_GIB);
                    prop_assert!(file.get(segment.file.clone()).is_some());
                    prop_assert!(segment.file.len() as u64 <= segment.mem_len);
                }
                prop_assert!(kernel.extent().contains(&u64::from(kernel.entry)));
            }
        }
    }
}
