// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who owns which piece of the machine's memory.
//!
//! dom0's devices do DMA by addresses that dom0 believes in, so dom0's RAM has to be at the same
//! address in the machine, and its kernel expects to lie at 16 MiB. Everything else gives way:
//!
//! ```text
//! 0 .. 640 KiB        dom0, less one page in which CPUs start
//! 1 MiB .. 16 MiB     the hypervisor's image, dom0's rewritten ACPI tables, free
//! 16 MiB ..           dom0's RAM, then the scratch hole of its address space (free memory behind it)
//! .. below 4 GiB      what the hypervisor allocates at boot: frame records, heap, page tables
//! rest                free
//! ```
//!
//! Boot modules lie where the loader put them. One that lies where dom0's RAM will be is moved,
//! to free memory only: no destination touches the source of any module, so the moves may
//! run in any order and none overlaps itself. The hypervisor's own allocation avoids the modules
//! instead, because it is needed before anything can be moved.
//!
//! The *scratch hole* is where Linux puts other domains' pages. Linux 6.1 takes the lowest
//! 128-MiB-aligned block of addresses that its memory map does not mention, before it
//! knows its PCI windows. So the hole has to come before every other such block, and it must not be
//! a PCI window: it lies over host RAM, below the first block that the firmware leaves open. If dom0
//! asks for so much that nothing is left above it, the hole moves down and dom0's RAM goes on behind.
//!
//! What each domain is told of this is [`super::dom0_map`]'s subject.

use alloc::vec::Vec;
use core::fmt;

use super::{
    cmdline::MIB,
    dom0_map::Dom0Map,
    host_map::{HostMap, Kind},
    span::{Span, Spans},
};
use crate::addr::{PAGE_SHIFT, PAGE_SIZE};

const PAGE: u64 = PAGE_SIZE as u64;
/// What Linux aligns its scratch areas to: a section of its memory model.
pub const SCRATCH_BLOCK: u64 = 128 * MIB;
/// Where dom0's RAM begins, and its kernel.
pub const DOM0_START: u64 = 16 * MIB;
/// Bytes kept for dom0's rewritten ACPI tables.
pub const DOM0_TABLES: u64 = 64 << 10;
/// Where conventional memory ends and the video memory begins.
const LOW_END: u64 = 640 << 10;
/// Kernels search from here to 1 MiB for tables of the firmware, reading whatever is there; the
/// trampoline page is a hole in dom0's memory and must not be in the way.
const TRAMPOLINE_END: u64 = 512 << 10;
const FOUR_GIB: u64 = 1 << 32;
/// The hypervisor's allocation is mapped with pages of this size.
const BOOT_ALIGN: u64 = 2 * MIB;
/// dom0's RAM when the user does not say: half of the machine, but not more than this.
const DEFAULT_DOM0_MEM: u64 = 4096 * MIB;

/// What the layout depends on. All addresses are host physical.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The firmware's map.
    pub host: &'a HostMap,
    /// The hypervisor's image with its stacks and early tables.
    pub hypervisor: Span,
    /// The boot modules, to the byte. They do not overlap.
    pub modules: &'a [Span],
    /// Bytes that the hypervisor allocates at boot, apart from what depends on the amount of memory.
    pub boot_fixed: u64,
    /// Bytes that it allocates for each 4 KiB frame up to the end of RAM.
    pub boot_per_frame: u64,
    /// What dom0 is to get; `None` if there is none.
    pub dom0: Option<Dom0Request>,
    /// Device pages that dom0 must not reach: I/O APICs, IOMMUs. The local APIC's window always is among them.
    pub withheld: &'a [Span],
}

/// dom0's share as the command line asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dom0Request {
    /// RAM from 16 MiB up, in bytes.
    pub mem: Option<u64>,
    /// The scratch hole in bytes; rounded up to 128 MiB, shortened where less is to be had.
    pub scratch: u64,
}

/// The layout of the machine's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineMap {
    /// What the hypervisor allocates from at boot: below 4 GiB, aligned to 2 MiB.
    pub boot_area: Span,
    /// Frames from 0 to the end of RAM: how many records the frame table has.
    pub nr_frames: u64,
    /// A page below 640 KiB in which CPUs start. Nobody else gets it.
    pub trampoline: Span,
    /// The modules to move, before anything is written to dom0's RAM. Any order is right.
    pub moves: Vec<Move>,
    /// Where each module is after the moves, to the byte.
    pub modules: Vec<Span>,
    /// dom0's part.
    pub dom0: Option<Dom0Map>,
    /// What nobody has: for the frame allocator, at once.
    pub free: Spans,
    /// What will be free when the domains are built: modules and loader's data.
    pub reclaim: Spans,
}

/// A module's move: `from.len()` bytes to `to`, which is page-aligned and overlaps no module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The module's number.
    pub module: usize,
    /// Where it is.
    pub from: Span,
    /// Where it goes.
    pub to: u64,
}

/// Why the machine's memory cannot be laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// No piece of RAM below 4 GiB is large enough for the hypervisor.
    TooSmall {
        /// Bytes in one piece that it needs.
        need: u64,
        /// Bytes of RAM in the machine.
        have: u64,
    },
    /// No page below 640 KiB.
    NoLowPage,
    /// No place for the scratch hole.
    NoScratch {
        /// Bytes of RAM in the machine.
        have: u64,
    },
    /// dom0 asks for more than there is.
    Dom0TooLarge {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes that it can have.
        fits: u64,
    },
    /// No place for dom0's ACPI tables.
    NoRoomForTables,
    /// A module lies where the firmware's map has no RAM.
    ModuleOutsideRam {
        /// Its number.
        module: usize,
        /// Where it is.
        at: Span,
    },
    /// No place for a module that is in dom0's way.
    NoRoomForModule {
        /// Its number.
        module: usize,
        /// Its length in bytes.
        len: u64,
    },
    /// dom0's memory map is longer than Linux takes.
    TooManyEntries {
        /// How many it would have.
        entries: usize,
    },
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes.div_ceil(MIB);
        write!(f, "machine map: ")?;
        match *self {
            Self::TooSmall { need, have } => write!(
                f,
                "the hypervisor needs {} MiB of RAM in one piece between 16 MiB and 4 GiB, and of the machine's {} MiB \
                 no such piece is free; give the machine more memory",
                mib(need),
                mib(have)
            ),
            Self::NoLowPage => write!(
                f,
                "the firmware leaves no page of RAM below 640 KiB, where CPUs start; look for a firmware option that \
                 uses low memory (network boot, legacy storage) and turn it off"
            ),
            Self::NoScratch { have } => write!(
                f,
                "dom0 needs a hole of 128 MiB, aligned to 128 MiB, over RAM below the PCI windows, and the machine's \
                 {} MiB do not have one; give the machine 512 MiB or more",
                mib(have)
            ),
            Self::Dom0TooLarge { wanted, fits } => write!(
                f,
                "dom0_mem={} is more than there is; at most dom0_mem={} fits in this machine",
                mib(wanted),
                fits / MIB
            ),
            Self::NoRoomForTables => write!(
                f,
                "no {} KiB of RAM are free between 1 and 16 MiB for dom0's ACPI tables; make the loader put its data \
                 elsewhere",
                DOM0_TABLES >> 10
            ),
            Self::ModuleOutsideRam { module, at } => write!(
                f,
                "boot module {module} lies at {at}, which is not all RAM in the firmware's map; the loader and the firmware \
                 disagree, try another loader or a firmware update"
            ),
            Self::NoRoomForModule { module, len } => write!(
                f,
                "boot module {module} lies where dom0's RAM will be and its {} MiB fit nowhere else; lower dom0_mem= or \
                 give the machine more memory",
                mib(len)
            ),
            Self::TooManyEntries { entries } => write!(
                f,
                "the firmware's memory map is so fragmented that dom0's would have {entries} entries, and Linux takes \
                 127; a firmware update may help"
            ),
        }
    }
}

/// Lays out the machine's memory.
///
/// # Errors
/// What does not fit, and what would.
pub fn plan(input: &Input<'_>) -> Result<MachineMap, MapError> {
    let ram = input.host.of(Kind::Ram);
    let modules: Spans = input.modules.iter().map(|module| module.pages_around()).collect();
    if let Some(module) = input.modules.iter().position(|module| !ram.contains(*module)) {
        return Err(MapError::ModuleOutsideRam { module, at: input.modules[module] });
    }
    let usable = ram.clone().without_span(input.hypervisor.pages_around());
    let untouched = usable.clone().without(&modules);

    let nr_frames = ram.end() >> PAGE_SHIFT;
    let boot_area = boot_area(input, &untouched, nr_frames)?;
    let low = untouched.within(Span::new(PAGE, TRAMPOLINE_END));
    let trampoline = low.last_fit(PAGE, PAGE).ok_or(MapError::NoLowPage)?;
    let usable = usable.without_span(boot_area).without_span(trampoline);

    let dom0 = match input.dom0 {
        Some(request) => Some(dom0_share(input, &request, &ram, &usable)?),
        None => None,
    };
    // Nobody but dom0 gets memory below 1 MiB: the firmware may still use some of it.
    let mut rest = usable.within(Span::new(MIB, u64::MAX));
    if let Some(share) = &dom0 {
        rest = rest.without(&share.ram).without_span(share.tables);
    }
    let (moves, moved) = relocate(input.modules, dom0.as_ref(), rest.clone().without(&modules))?;
    let held: Spans = moved.iter().map(|module| module.pages_around()).collect();
    let free = rest.clone().without(&held);
    let reclaim = rest.without(&free);
    let dom0 = match dom0 {
        Some(share) => Some(Dom0Map::new(input.host, share, input.withheld)?),
        None => None,
    };
    Ok(MachineMap { boot_area, nr_frames, trampoline, moves, modules: moved, dom0, free, reclaim })
}

/// The highest place below 4 GiB for what the hypervisor allocates at boot.
fn boot_area(input: &Input<'_>, untouched: &Spans, nr_frames: u64) -> Result<Span, MapError> {
    let need = (input.boot_fixed + nr_frames * input.boot_per_frame).next_multiple_of(BOOT_ALIGN);
    let have = input.host.of(Kind::Ram).total();
    let below = untouched.within(Span::new(DOM0_START, FOUR_GIB));
    below.last_fit(need, BOOT_ALIGN).ok_or(MapError::TooSmall { need, have })
}

/// What dom0 gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// Its RAM.
    pub(super) ram: Spans,
    /// RAM for its ACPI tables.
    pub(super) tables: Span,
    /// The hole in its address space.
    pub(super) scratch: Span,
}

fn dom0_share(input: &Input<'_>, request: &Dom0Request, ram: &Spans, usable: &Spans) -> Result<Share, MapError> {
    let high = usable.within(Span::new(DOM0_START, u64::MAX));
    let blocks = scratch_blocks(input.host, ram);
    let wanted = request.scratch.max(1).checked_next_multiple_of(SCRATCH_BLOCK).unwrap_or(SCRATCH_BLOCK);
    let least = blocks.last_fit(SCRATCH_BLOCK, SCRATCH_BLOCK).ok_or(MapError::NoScratch { have: ram.total() })?;
    let fits = high.clone().without_span(least).total();
    let mem = match request.mem {
        Some(mem) => mem,
        None => (high.total() / 2).min(DEFAULT_DOM0_MEM).min(fits) & !(2 * MIB - 1),
    };
    if mem > fits {
        return Err(MapError::Dom0TooLarge { wanted: mem, fits });
    }
    let (own, scratch) = above(&high, &blocks, mem, wanted)
        .or_else(|| between(&high, &blocks, mem, wanted))
        .ok_or(MapError::Dom0TooLarge { wanted: mem, fits })?;

    let below = usable.within(Span::new(MIB, DOM0_START));
    let modules: Spans = input.modules.iter().map(|module| module.pages_around()).collect();
    let undisturbed = below.clone().without(&modules).last_fit(DOM0_TABLES, PAGE);
    let tables = undisturbed.or_else(|| below.last_fit(DOM0_TABLES, PAGE)).ok_or(MapError::NoRoomForTables)?;

    let mut all = usable.within(Span::new(0, LOW_END));
    own.iter().for_each(|span| all.insert(span));
    Ok(Share { ram: all, tables, scratch })
}

/// RAM in which the scratch hole may lie: whole aligned blocks, below the first such block of which
/// Linux sees nothing when it looks for one.
fn scratch_blocks(host: &HostMap, ram: &Spans) -> Spans {
    // Linux enters reserved areas later than it looks, so they are as open as holes.
    let seen: Spans =
        host.entries().iter().filter(|entry| entry.kind != Kind::Reserved).map(|entry| entry.span).collect();
    let open = Spans::from_iter([Span::new(0, u64::MAX)]).without(&seen);
    let first_open = open.first_fit(SCRATCH_BLOCK, SCRATCH_BLOCK).map_or(0, Span::start);
    let aligned = |span: Span| {
        let start = span.start().next_multiple_of(SCRATCH_BLOCK);
        Span::new(start, span.end() & !(SCRATCH_BLOCK - 1))
    };
    ram.within(Span::new(SCRATCH_BLOCK, first_open)).iter().map(aligned).collect()
}

/// dom0's RAM in the lowest memory, the hole in the next block above it.
fn above(high: &Spans, blocks: &Spans, mem: u64, wanted: u64) -> Option<(Spans, Span)> {
    let own = high.lowest(mem);
    let start = own.end().next_multiple_of(SCRATCH_BLOCK);
    let left = blocks.within(Span::new(start, u64::MAX));
    let run = left.iter().next().filter(|run| run.start() == start)?;
    Some((own, Span::sized(start, run.len().min(wanted))))
}

/// The hole as large and as high as may be, dom0's RAM below and above it.
fn between(high: &Spans, blocks: &Spans, mem: u64, wanted: u64) -> Option<(Spans, Span)> {
    let mut len = wanted.min(blocks.total());
    while len != 0 {
        if let Some(hole) = blocks.last_fit(len, SCRATCH_BLOCK) {
            let rest = high.clone().without_span(hole);
            if rest.total() >= mem {
                return Some((rest.lowest(mem), hole));
            }
        }
        len -= SCRATCH_BLOCK;
    }
    None
}

/// Finds a place in `room` for each module that is in dom0's way.
fn relocate(modules: &[Span], dom0: Option<&Share>, mut room: Spans) -> Result<(Vec<Move>, Vec<Span>), MapError> {
    let mut moves = Vec::new();
    let mut moved = Vec::with_capacity(modules.len());
    for (module, from) in modules.iter().copied().enumerate() {
        let pages = from.pages_around();
        let in_the_way = dom0.is_some_and(|dom0| dom0.ram.overlaps(pages) || dom0.tables.overlaps(pages));
        if !in_the_way {
            moved.push(from);
            continue;
        }
        let len = from.len().next_multiple_of(PAGE);
        let low = room.within(Span::new(0, FOUR_GIB)).last_fit(len, PAGE);
        let to = low.or_else(|| room.last_fit(len, PAGE));
        let to = to.ok_or(MapError::NoRoomForModule { module, len: from.len() })?;
        room.remove(to);
        moves.push(Move { module, from, to: to.start() });
        moved.push(Span::sized(to.start(), from.len()));
    }
    Ok((moves, moved))
}

#[cfg(test)]
mod tests;
