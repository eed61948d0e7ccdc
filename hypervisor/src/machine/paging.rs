// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's own page tables, built once.
//!
//! The image is mapped where it is linked, text executable, nothing both writable and
//! executable, with holes for the guard pages. RAM and firmware tables are in the direct map,
//! without the image, so that no writable alias of the code exists. Page 0 is mapped nowhere but
//! in the direct map: a null pointer faults.

use core::ops::Range;

use hypervisor::addr::{Hpa, PAGE_SIZE};
use x86_64::PhysAddr;
use x86_64::structures::paging::{PageTable, PageTableFlags};

use super::cpu;
use super::layout::{self, ApStack};

const PAGE: u64 = PAGE_SIZE as u64;
const MIB_2: u64 = 2 << 20;
const GIB_1: u64 = 1 << 30;
/// Table pages needed beyond those that large pages make: edges of ranges, image, devices.
const EDGE_TABLES: u64 = 64;

/// What is mapped besides the image and memory.
pub(crate) struct Extras<'a> {
    /// The local APIC.
    pub(crate) lapic: Hpa,
    /// The I/O APICs, mapped one page after the other from [`layout::IOAPIC`].
    pub(crate) ioapics: &'a [Hpa],
    /// Memory for the stacks of the CPUs to be started, [`ApStack::SIZE`] for each, from number 1 on.
    pub(crate) ap_stacks: Range<u64>,
    /// Video memory, mapped where [`layout::screen_mapped`] says.
    pub(crate) screen: Option<Range<u64>>,
}

/// Bytes of memory that [`install`] may take for `top` bytes of RAM.
pub(crate) fn tables_size(top: u64) -> u64 {
    // One directory a GiB in the worst case (no 1 GiB pages), plus the edges.
    (top.div_ceil(GIB_1) + EDGE_TABLES) * PAGE
}

/// Builds the tables in `memory` (identity-mapped, below 4 GiB, of [`tables_size`]) and loads them.
///
/// `direct` lists the ranges of the direct map; they are widened to whole pages. The other CPUs load
/// the same tables.
///
/// # Safety
/// `memory` is unused RAM. Called once, with the boot page tables in use.
pub(crate) unsafe fn install(memory: Range<u64>, direct: &[Range<u64>], extras: &Extras<'_>) {
    let gib_pages = cpu::cpuid(0x8000_0001, 0).edx & 1 << 26 != 0;
    let mut tables = Tables { next: memory.start, end: memory.end, root: 0, gib_pages };
    tables.root = tables.new_table();
    let nx = PageTableFlags::PRESENT | PageTableFlags::NO_EXECUTE | PageTableFlags::GLOBAL;
    let rw = nx | PageTableFlags::WRITABLE;
    map_image(&mut tables, nx, rw);
    let image = layout::image_start()..layout::image_end();
    for range in direct {
        let range = range.start & !(PAGE - 1)..range.end.next_multiple_of(PAGE);
        for part in without(&range, &image) {
            tables.map(layout::DIRECT_MAP + part.start, part.start, part.end - part.start, rw);
        }
    }
    let uncached = rw | PageTableFlags::NO_CACHE | PageTableFlags::WRITE_THROUGH;
    tables.map(layout::LAPIC, extras.lapic.raw() & !(PAGE - 1), PAGE, uncached);
    for (i, ioapic) in extras.ioapics.iter().enumerate() {
        tables.map(layout::IOAPIC + i as u64 * PAGE, ioapic.raw() & !(PAGE - 1), PAGE, uncached);
    }
    let mut at = extras.ap_stacks.start;
    for id in (1..).take_while(|id| u64::from(*id) * ApStack::SIZE <= extras.ap_stacks.end - extras.ap_stacks.start) {
        for stack in ApStack::ALL.map(|which| layout::ap_stack(id, which)) {
            let len = stack.end - stack.start;
            tables.map(stack.start, at, len, rw);
            at += len;
        }
    }
    if let Some(screen) = &extras.screen {
        let first = screen.start & !(PAGE - 1);
        let len = screen.end.next_multiple_of(PAGE) - first;
        tables.map(layout::screen_mapped(first), first, len, uncached);
    }
    // SAFETY: the new tables map the image, and with it code, data and stack, where they were.
    unsafe { cpu::set_cr3(Hpa::new(tables.root)) };
    // SAFETY: every CPU with long mode has global pages.
    unsafe { cpu::set_cr4(cpu::cr4() | 1 << 7) };
}

fn map_image(tables: &mut Tables, nx: PageTableFlags, rw: PageTableFlags) {
    let rx = PageTableFlags::PRESENT | PageTableFlags::GLOBAL;
    let (text, text_end) = (layout::text_start(), layout::text_end());
    tables.map(text, text, text_end - text, rx);
    let rodata_end = layout::rodata_end();
    tables.map(text_end, text_end, rodata_end - text_end, nx);
    let guards = [layout::boot_stack_guard(), layout::fault_stack_guard(), layout::nmi_stack_guard()];
    let mut at = rodata_end;
    for stop in guards.into_iter().chain([layout::image_end()]) {
        tables.map(at, at, stop - at, rw);
        at = stop + PAGE;
    }
}

/// `range` without what lies in `hole`.
fn without(range: &Range<u64>, hole: &Range<u64>) -> [Range<u64>; 2] {
    let before = range.start..range.end.min(hole.start).max(range.start);
    let after = range.start.max(hole.end).min(range.end)..range.end;
    if hole.end <= range.start || hole.start >= range.end {
        [range.clone(), range.end..range.end]
    } else {
        [before, after]
    }
}

struct Tables {
    next: u64,
    end: u64,
    root: u64,
    gib_pages: bool,
}

impl Tables {
    fn new_table(&mut self) -> u64 {
        assert!(self.next + PAGE <= self.end, "page tables outgrew what tables_size reckoned");
        let table = self.next;
        self.next += PAGE;
        *self.table(table) = PageTable::new();
        table
    }

    fn table(&mut self, at: u64) -> &mut PageTable {
        let table = core::ptr::with_exposed_provenance_mut::<PageTable>(guest_abi::num::to_usize(at));
        // SAFETY: `at` lies in the memory that `install` was given: identity-mapped, unused, and
        // reached only through this borrow of self.
        unsafe { &mut *table }
    }

    fn map(&mut self, va: u64, pa: u64, len: u64, flags: PageTableFlags) {
        let mut done = 0;
        while done < len {
            let (va, pa, left) = (va + done, pa + done, len - done);
            let fits = |size: u64| (va | pa) % size == 0 && left >= size;
            let (level, size) = if self.gib_pages && fits(GIB_1) {
                (3, GIB_1)
            } else if fits(MIB_2) {
                (2, MIB_2)
            } else {
                (1, PAGE)
            };
            let table = self.descend(va, level);
            let large = if level > 1 { PageTableFlags::HUGE_PAGE } else { PageTableFlags::empty() };
            self.table(table)[index(va, level)].set_addr(PhysAddr::new(pa), flags | large);
            done += size;
        }
    }

    /// The table of `level` (1 to 3) that maps `va`, made where it is missing.
    fn descend(&mut self, va: u64, level: u32) -> u64 {
        let mut table = self.root;
        for above in (level + 1..=4).rev() {
            let i = index(va, above);
            let entry = &self.table(table)[i];
            let next = if entry.is_unused() {
                let new = self.new_table();
                let flags = PageTableFlags::PRESENT | PageTableFlags::WRITABLE;
                self.table(table)[i].set_addr(PhysAddr::new(new), flags);
                new
            } else {
                entry.addr().as_u64()
            };
            table = next;
        }
        table
    }
}

fn index(va: u64, level: u32) -> usize {
    guest_abi::num::to_usize(va >> (12 + 9 * (level - 1)) & 511)
}
