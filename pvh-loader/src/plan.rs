// SPDX-License-Identifier: MIT OR Apache-2.0
//! Loading a PVH kernel: what goes where in a domain's memory before its first instruction.
//!
//! The plan is made of four kinds of work: copy bytes of a module, zero, write bytes that were made here,
//! enter. It is the same for dom0 and for a guest; they differ in the address space that it is
//! made for. A kernel goes to its own addresses; if these are not all RAM and it says that it can
//! be moved, to the lowest place that it allows. Behind it come the *boot block* (`start_info` with all that
//! it points to) and the initial RAM disk.
//!
//! Rules that no ABI document states, from what Linux does with the values: the boot block lies below
//! 1 GiB, because that is all that Linux maps when it reads the lists; it is writable RAM, because
//! Linux 6.12 uses its first word as a stack; disk image and command line lie below 4 GiB,
//! because Linux keeps their addresses in 32 bits. Nothing is put below 1 MiB, where Linux starts CPUs.
//!
//! Source: `xen/include/public/arch-x86/hvm/start_info.h` at 4.17.

use alloc::{vec, vec::Vec};
use core::fmt;

use guest_abi::{
    Gpa, PAGE_SIZE, Wire,
    num::{low_u32, to_usize},
    pvh::{MemmapEntry, ModlistEntry, START_MAGIC, START_VERSION, StartInfo},
};

use crate::{
    elf::Kernel,
    map::{Entry, Kind, MAX_ENTRIES, memmap},
    span::{Span, Spans},
};

const PAGE: u64 = PAGE_SIZE as u64;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1024 * MIB;
/// The longest command line that Linux keeps, without its end mark.
pub const MAX_CMDLINE: usize = 2047;

/// What is to be loaded, and into which address space. All addresses are guest physical.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Bytes of the initial RAM disk, if there is one.
    pub initrd_len: Option<u64>,
    /// The command line.
    pub cmdline: &'a str,
    /// The domain's memory map.
    pub e820: &'a [Entry],
    /// Where its ACPI root pointer will be; 0 for none.
    pub rsdp: u64,
    /// `SIF_*` flags.
    pub flags: u32,
}

/// How to load the domain. The pieces do not overlap and all are in its RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where to enter, 32-bit, with [`Plan::start_info`] in EBX.
    pub entry: u32,
    /// The address of the `start_info` structure.
    pub start_info: u32,
    /// Bytes to copy from modules.
    pub copies: Vec<Copy>,
    /// Memory that must be zero: what the kernel's file leaves out. To the byte.
    pub zero: Vec<Span>,
    /// Bytes to write.
    pub blobs: Vec<(Gpa, Vec<u8>)>,
    /// By how much the kernel was moved from its own addresses, in bytes (wrapping, may be downwards).
    pub moved_by: u64,
}

/// Bytes of a module that go into the domain's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Which module.
    pub source: Source,
    /// From which byte of it.
    pub offset: u64,
    /// Where to.
    pub to: Gpa,
    /// How many bytes.
    pub len: u64,
}

/// A module that a domain is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The kernel's file.
    Kernel,
    /// The initial RAM disk.
    Initrd,
}

/// Why a domain cannot be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadError {
    /// The kernel's own addresses are not RAM, and it cannot be moved.
    KernelFixed {
        /// The addresses it needs.
        extent: Span,
    },
    /// The kernel can be moved, but no place is large enough.
    KernelMovable {
        /// Bytes it needs.
        len: u64,
        /// Where it may be.
        within: Span,
    },
    /// The disk image does not fit.
    Initrd {
        /// Bytes it has.
        len: u64,
        /// The largest free piece, in bytes.
        room: u64,
    },
    /// No room for `start_info`.
    BootBlock,
    /// The command line is too long.
    Cmdline {
        /// Bytes it has.
        len: usize,
    },
    /// The memory map is too long.
    Memmap {
        /// How many entries it has.
        entries: usize,
    },
    /// A guest's memory is not a number that the layout can hold.
    GuestMem {
        /// Bytes asked for.
        mem: u64,
    },
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::KernelFixed { extent } => write!(
                f,
                "the kernel must lie at {extent}, which is not all RAM of the domain, and it cannot be moved; give the \
                 domain at least {} MiB, or a kernel with the note PHYS32_RELOC (Linux 6.12 and later). dom0 has RAM only \
                 where the firmware's map, printed above, has it, from 16 MiB up",
                extent.end().div_ceil(MIB)
            ),
            Self::KernelMovable { len, within } => write!(
                f,
                "the kernel needs {} MiB of RAM in one piece within {within}, and the domain has none; give it more memory",
                len.div_ceil(MIB)
            ),
            Self::Initrd { len, room } => write!(
                f,
                "the initial RAM disk has {} KiB, and the largest piece of RAM left below 4 GiB has {} KiB; give the \
                 domain more memory or a smaller disk",
                len.div_ceil(1024),
                room / 1024
            ),
            Self::BootBlock => write!(
                f,
                "no RAM is left between 1 MiB and 1 GiB for the boot information; give the domain more memory"
            ),
            Self::Cmdline { len } => {
                write!(f, "the kernel's command line has {len} bytes and Linux takes {MAX_CMDLINE}; shorten it")
            }
            Self::Memmap { entries } => {
                write!(f, "the domain's memory map has {entries} entries and Linux takes {MAX_ENTRIES}")
            }
            Self::GuestMem { mem } => write!(
                f,
                "a guest with {} KiB of memory cannot be laid out; give it from 1 MiB to {} GiB, in whole pages",
                mem >> 10,
                MAX_GUEST_MEM >> 30
            ),
        }
    }
}

/// Plans the loading of a domain.
///
/// # Errors
/// What does not fit. The text does not name the domain, which the caller knows.
pub fn plan(request: &Request<'_>) -> Result<Plan, LoadError> {
    if request.cmdline.len() > MAX_CMDLINE {
        return Err(LoadError::Cmdline { len: request.cmdline.len() });
    }
    if request.e820.len() > MAX_ENTRIES {
        return Err(LoadError::Memmap { entries: request.e820.len() });
    }
    let ram: Spans = request.e820.iter().filter(|entry| entry.kind == Kind::Ram).map(|entry| entry.span).collect();
    let kernel = request.kernel;
    let place = place_kernel(kernel, &ram)?;
    let extent = kernel.extent();
    let moved_by = place.start().wrapping_sub(extent.start);

    let mut free = ram.within(Span::new(MIB, 1 << 32)).without_span(place.pages_around());
    let block_len = block_len(request);
    let low = free.within(Span::new(0, GIB));
    let behind = low.within(Span::new(place.end(), GIB)).first_fit(block_len, PAGE);
    let block = behind.or_else(|| low.first_fit(block_len, PAGE)).ok_or(LoadError::BootBlock)?;
    free.remove(block.pages_around());
    let initrd = match request.initrd_len {
        Some(len) => Some(place_initrd(&free, place, len)?),
        None => None,
    };

    let mut copies = Vec::new();
    let mut zero = Vec::new();
    for segment in &kernel.segments {
        let start = segment.start.wrapping_add(moved_by);
        let len = segment.file.len() as u64;
        if len != 0 {
            let offset = segment.file.start as u64;
            copies.push(Copy { source: Source::Kernel, offset, to: Gpa::new(start), len });
        }
        if len < segment.mem_len {
            zero.push(Span::new(start + len, start + segment.mem_len));
        }
    }
    if let Some(at) = initrd {
        copies.push(Copy { source: Source::Initrd, offset: 0, to: Gpa::new(at.start()), len: at.len() });
    }
    let bytes = boot_block(request, block.start(), initrd);
    Ok(Plan {
        // Both lie below 4 GiB: the image does, wherever it is, and the block.
        entry: low_u32(u64::from(kernel.entry).wrapping_add(moved_by)),
        start_info: low_u32(block.start()),
        copies,
        zero,
        blobs: Vec::from([(Gpa::new(block.start()), bytes)]),
        moved_by,
    })
}

fn place_kernel(kernel: &Kernel, ram: &Spans) -> Result<Span, LoadError> {
    let extent = Span::new(kernel.extent().start, kernel.extent().end);
    if kernel.segments.iter().all(|segment| ram.contains(Span::sized(segment.start, segment.mem_len))) {
        return Ok(extent);
    }
    let relocation = kernel.relocation.ok_or(LoadError::KernelFixed { extent })?;
    // The note has 32-bit words, so the sum cannot overflow and the place is below 4 GiB.
    let within = Span::new(relocation.min.max(MIB), relocation.max + 1);
    let none = LoadError::KernelMovable { len: extent.len(), within };
    ram.within(within).first_fit(extent.len(), relocation.align.max(PAGE)).ok_or(none)
}

/// Behind the kernel if it fits there, else at the lowest place where it fits.
fn place_initrd(free: &Spans, kernel: Span, len: u64) -> Result<Span, LoadError> {
    let behind = free.within(Span::new(kernel.end(), u64::MAX)).first_fit(len, PAGE);
    let room = free.iter().map(|span| span.len()).max().unwrap_or(0);
    behind.or_else(|| free.first_fit(len, PAGE)).ok_or(LoadError::Initrd { len, room })
}

// The boot block: start_info, the module list of at most one entry, the memory map, the command line.
const MODLIST_AT: u64 = 64;
const MEMMAP_AT: u64 = 96;
const _: () = assert!(StartInfo::SIZE <= 64 && ModlistEntry::SIZE <= 32);

fn cmdline_at(request: &Request<'_>) -> u64 {
    MEMMAP_AT + (request.e820.len() * MemmapEntry::SIZE) as u64
}

/// Bytes of the boot block: at most two pages, by the limits on command line and memory map.
fn block_len(request: &Request<'_>) -> u64 {
    cmdline_at(request) + request.cmdline.len() as u64 + 1
}

fn boot_block(request: &Request<'_>, at: u64, initrd: Option<Span>) -> Vec<u8> {
    let mut bytes = vec![0; to_usize(block_len(request))];
    let info = StartInfo {
        magic: START_MAGIC,
        version: START_VERSION,
        flags: request.flags,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: if initrd.is_some() { at + MODLIST_AT } else { 0 },
        cmdline_paddr: at + cmdline_at(request),
        rsdp_paddr: request.rsdp,
        memmap_paddr: at + MEMMAP_AT,
        memmap_entries: low_u32(request.e820.len() as u64),
        reserved: 0,
    };
    info.to_bytes(&mut bytes);
    if let Some(initrd) = initrd {
        let module = ModlistEntry { paddr: initrd.start(), size: initrd.len(), cmdline_paddr: 0, reserved: 0 };
        module.to_bytes(&mut bytes[to_usize(MODLIST_AT)..]);
    }
    for (entry, slot) in memmap(request.e820).iter().zip(bytes[to_usize(MEMMAP_AT)..].chunks_mut(MemmapEntry::SIZE)) {
        entry.to_bytes(slot);
    }
    let text = to_usize(cmdline_at(request));
    bytes[text..text + request.cmdline.len()].copy_from_slice(request.cmdline.as_bytes());
    bytes
}

/// The most memory that a guest can have.
pub const MAX_GUEST_MEM: u64 = 256 * GIB;
/// A guest's RAM below 4 GiB ends here at the latest; above are its ACPI tables and special pages.
const GUEST_HOLE: Span = Span::new(3 * GIB, 4 * GIB);
/// Where a guest finds its ACPI tables.
pub const GUEST_TABLES: Span = Span::sized(0xfc00_0000, 64 << 10);
/// The page of a guest's console ring.
pub const GUEST_CONSOLE: Gpa = Gpa::new(0xfc01_0000);
/// The page of a guest's xenstore ring.
pub const GUEST_STORE: Gpa = Gpa::new(0xfc01_1000);
/// All special pages, reserved in the guest's memory map so that it puts nothing else there.
const GUEST_SPECIAL: Span = Span::sized(0xfc01_0000, 64 << 10);

/// The memory map of a guest with `mem` bytes of RAM: from 0 up, around the hole below 4 GiB, then tables and
/// special pages.
///
/// # Errors
/// [`LoadError::GuestMem`] for less than 1 MiB, more than [`MAX_GUEST_MEM`], or a broken page.
pub fn guest_map(mem: u64) -> Result<Vec<Entry>, LoadError> {
    if !(MIB..=MAX_GUEST_MEM).contains(&mem) || !mem.is_multiple_of(PAGE) {
        return Err(LoadError::GuestMem { mem });
    }
    let low = mem.min(GUEST_HOLE.start());
    let mut map = Vec::from([
        Entry { span: Span::new(0, low), kind: Kind::Ram },
        Entry { span: GUEST_TABLES, kind: Kind::Acpi },
        Entry { span: GUEST_SPECIAL, kind: Kind::Reserved },
    ]);
    if mem > low {
        map.push(Entry { span: Span::sized(GUEST_HOLE.end(), mem - low), kind: Kind::Ram });
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::{Relocation, Segment};
    use guest_abi::pvh::{SIF_INITDOMAIN, SIF_PRIVILEGED};
    use proptest::prelude::*;

    /// Debian's 6.1 by its measures.
    fn debian() -> Kernel {
        let segment = |start, mem_len, file: u64| Segment {
            start,
            mem_len,
            file: to_usize(file)..to_usize(file + mem_len - 0x1000),
        };
        Kernel {
            segments: vec![segment(16 * MIB, 26 * MIB, 0x1000), segment(42 * MIB, 32 * MIB, 0x200_0000)],
            entry: 0x100_0850,
            relocation: None,
            features: Some(0x8801),
        }
    }

    fn movable() -> Kernel {
        let relocation = Some(Relocation { align: 2 * MIB, min: 16 * MIB, max: 0x3fff_ffff });
        Kernel { relocation, ..debian() }
    }

    fn request<'a>(kernel: &'a Kernel, e820: &'a [Entry]) -> Request<'a> {
        Request { kernel, initrd_len: Some(12 * MIB + 3), cmdline: "console=hvc0", e820, rsdp: 0xfc00_0000, flags: 0 }
    }

    fn ram(spans: &[(u64, u64)]) -> Vec<Entry> {
        spans.iter().map(|&(start, end)| Entry { span: Span::new(start, end), kind: Kind::Ram }).collect()
    }

    /// What a guest reads, by the plan.
    fn info(plan: &Plan) -> (StartInfo, Vec<MemmapEntry>, Option<ModlistEntry>, String) {
        let (at, bytes) = &plan.blobs[0];
        assert_eq!(at.raw(), u64::from(plan.start_info));
        let info = StartInfo::from_bytes(bytes);
        let inside = |gpa: u64| &bytes[to_usize(gpa - at.raw())..];
        let map = (0..info.memmap_entries as usize)
            .map(|i| MemmapEntry::from_bytes(&inside(info.memmap_paddr)[i * MemmapEntry::SIZE..]))
            .collect();
        let module = (info.nr_modules == 1).then(|| ModlistEntry::from_bytes(inside(info.modlist_paddr)));
        let text = inside(info.cmdline_paddr);
        let end = text.iter().position(|byte| *byte == 0).unwrap();
        (info, map, module, String::from_utf8(text[..end].to_vec()).unwrap())
    }

    #[test]
    fn a_kernel_is_loaded_at_its_own_addresses_with_its_block_and_disk_behind_it() {
        let kernel = debian();
        let e820 = guest_map(256 * MIB).unwrap();
        let plan = plan(&Request { flags: SIF_PRIVILEGED | SIF_INITDOMAIN, ..request(&kernel, &e820) }).unwrap();
        assert_eq!((plan.entry, plan.moved_by), (0x100_0850, 0));
        assert_eq!(u64::from(plan.start_info), 74 * MIB);
        assert_eq!(plan.zero, [Span::new(42 * MIB - 0x1000, 42 * MIB), Span::new(74 * MIB - 0x1000, 74 * MIB)]);
        let (info, map, module, cmdline) = info(&plan);
        assert_eq!((info.magic, info.version, info.flags, info.rsdp_paddr), (START_MAGIC, 1, 3, 0xfc00_0000));
        assert_eq!(map, memmap(&e820));
        assert_eq!(map[0], MemmapEntry { addr: 0, size: 256 * MIB, kind: 1, reserved: 0 });
        assert_eq!(cmdline, "console=hvc0");
        let module = module.unwrap();
        assert_eq!(module.size, 12 * MIB + 3);
        let disk = Copy { source: Source::Initrd, offset: 0, to: Gpa::new(module.paddr), len: module.size };
        assert_eq!(plan.copies.last(), Some(&disk));
    }

    #[test]
    fn without_a_disk_there_is_no_module() {
        let (kernel, e820) = (debian(), guest_map(80 * MIB).unwrap());
        let plan = plan(&Request { initrd_len: None, ..request(&kernel, &e820) }).unwrap();
        let (start, _, module, _) = info(&plan);
        assert_eq!((start.nr_modules, start.modlist_paddr, module), (0, 0, None));
    }

    #[test]
    fn a_kernel_moves_only_if_it_must_and_can() {
        let holey = ram(&[(0, 0x9_f000), (18 * MIB, 300 * MIB)]);
        let extent = Span::new(16 * MIB, 74 * MIB);
        assert_eq!(plan(&request(&debian(), &holey)), Err(LoadError::KernelFixed { extent }));
        let plan = plan(&request(&movable(), &holey)).unwrap();
        assert_eq!((plan.moved_by, plan.entry), (2 * MIB, 0x120_0850));
        assert_eq!(plan.copies[0].to, Gpa::new(18 * MIB));
        let full = guest_map(300 * MIB).unwrap();
        assert_eq!(super::plan(&request(&movable(), &full)).unwrap().moved_by, 0);
        let high = ram(&[(0, 0x9_f000), (GIB, 2 * GIB)]);
        let none = LoadError::KernelMovable { len: 58 * MIB, within: Span::new(16 * MIB, GIB) };
        assert_eq!(super::plan(&request(&movable(), &high)), Err(none));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let kernel = debian();
        let small = guest_map(64 * MIB).unwrap();
        let error = plan(&request(&kernel, &small)).unwrap_err();
        assert!(error.to_string().contains("give the domain at least 74 MiB"), "{error}");
        let tight = guest_map(80 * MIB).unwrap();
        let error = plan(&Request { initrd_len: Some(20 * MIB), ..request(&kernel, &tight) }).unwrap_err();
        assert_eq!(error, LoadError::Initrd { len: 20 * MIB, room: 15 * MIB });
        let exact = ram(&[(16 * MIB, 74 * MIB)]);
        assert_eq!(plan(&Request { initrd_len: None, ..request(&kernel, &exact) }), Err(LoadError::BootBlock));
        let long = "x".repeat(MAX_CMDLINE + 1);
        let e820 = guest_map(256 * MIB).unwrap();
        let error = plan(&Request { cmdline: &long, ..request(&kernel, &e820) });
        assert_eq!(error, Err(LoadError::Cmdline { len: 2048 }));
        let many = vec![Entry { span: Span::new(0, PAGE), kind: Kind::Reserved }; 128];
        assert_eq!(plan(&request(&kernel, &many)), Err(LoadError::Memmap { entries: 128 }));
    }

    #[test]
    fn a_guest_has_ram_from_zero_around_the_hole_and_its_pages_reserved() {
        let map = guest_map(5 * GIB).unwrap();
        let ram: Vec<_> = map.iter().filter(|entry| entry.kind == Kind::Ram).map(|entry| entry.span).collect();
        assert_eq!(ram, [Span::new(0, 3 * GIB), Span::new(4 * GIB, 6 * GIB)]);
        for page in [GUEST_CONSOLE, GUEST_STORE] {
            let page = Span::sized(page.raw(), PAGE);
            assert!(map.iter().any(|entry| entry.kind == Kind::Reserved && entry.span.contains(page)));
        }
        assert!(map.windows(2).all(|pair| pair[0].span.end() <= pair[1].span.start()));
        for mem in [0, MIB - PAGE, MIB + 1, MAX_GUEST_MEM + PAGE] {
            assert_eq!(guest_map(mem), Err(LoadError::GuestMem { mem }));
        }
    }

    proptest! {
        #[test]
        fn the_pieces_never_overlap_and_obey_the_placement_rules(
            spans in proptest::collection::vec((0..0x14_0000u64, 1..0x4_0000u64), 1..6),
            initrd in proptest::option::of(1..600 * MIB), relocatable: bool, cmdline in "[a-z]{0,300}"
        ) {
            let ram: Spans = spans.iter().map(|&(start, len)| Span::sized(start * PAGE, len * PAGE)).collect();
            let e820: Vec<_> = ram.iter().map(|span| Entry { span, kind: Kind::Ram }).collect();
            let kernel = if relocatable { movable() } else { debian() };
            let request = Request { initrd_len: initrd, cmdline: &cmdline, ..request(&kernel, &e820) };
            if let Ok(plan) = plan(&request) {
                let mut all = Spans::new();
                let mut sum = 0;
                let copies = plan.copies.iter().map(|copy| Span::sized(copy.to.raw(), copy.len));
                let blobs = plan.blobs.iter().map(|(gpa, bytes)| Span::sized(gpa.raw(), bytes.len() as u64));
                for piece in copies.chain(blobs).chain(plan.zero.iter().copied()) {
                    prop_assert!(ram.contains(piece) && piece.end() <= 1 << 32 && piece.start() >= MIB);
                    all.insert(piece);
                    sum += piece.len();
                }
                prop_assert_eq!(all.total(), sum);
                prop_assert!(plan.blobs[0].0.raw() + plan.blobs[0].1.len() as u64 <= GIB);
                prop_assert!(plan.blobs[0].0.raw().is_multiple_of(PAGE));
                prop_assert_eq!(info(&plan).3, cmdline);
                prop_assert!(relocatable || plan.moved_by == 0);
            }
        }
    }
}
