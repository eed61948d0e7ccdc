// SPDX-License-Identifier: MIT OR Apache-2.0
//! Physical memory at boot: from the loader's identity map to direct map, heap and frame table.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Range;

use guest_abi::num::to_usize;
use hypervisor::addr::{Hpa, Mfn, PAGE_SIZE};
use hypervisor::boot::acpi::PhysRead;
use hypervisor::boot::host_map::{HostMap, Kind};
use hypervisor::boot::machine_map::MachineMap;
use hypervisor::boot::span::Span;
use hypervisor::frame::{FrameRecord, FrameTable};
use hypervisor::mem::PhysMem;

use super::boot::identity_bytes;
use super::layout::{self, ApStack};
use super::paging::{self, Extras};
use super::{apic, bulk, heap, screen};

/// Bytes of one frame record.
pub(crate) const RECORD_SIZE: u64 = size_of::<FrameRecord>() as u64;

/// What the rest of the hypervisor reaches memory by.
pub(crate) struct Memory {
    /// The words.
    pub(crate) mem: PhysMem,
    /// Whose they are.
    pub(crate) frames: &'static FrameTable,
}

/// The first 4 GiB through the boot page tables, for the firmware's tables.
pub(crate) struct Identity;

impl PhysRead for Identity {
    fn read(&self, at: u64, bytes: &mut [u8]) -> bool {
        match identity_bytes(at, bytes.len() as u64) {
            Some(found) => {
                bytes.copy_from_slice(found);
                true
            }
            None => false,
        }
    }
}

/// Bytes of the boot area that do not depend on the number of frames.
pub(crate) fn boot_fixed(top: u64, heap_size: u64, nr_aps: u64) -> u64 {
    paging::tables_size(top) + nr_aps * ApStack::SIZE + heap_size
}

/// Loads the hypervisor's own page tables and puts heap and frame records into the boot area.
/// `nr_aps` CPUs besides this one get stacks.
/// Called once, with the boot page tables in use.
pub(crate) fn install(host: &HostMap, map: &MachineMap, heap_size: u64, nr_aps: u64, ioapics: &[Hpa]) -> Memory {
    let top = host.of(Kind::Ram).end();
    let area = map.boot_area;
    let tables = area.start()..area.start() + paging::tables_size(top);
    let ap_stacks = tables.end..tables.end + nr_aps * ApStack::SIZE;
    let heap_start = ap_stacks.end;
    let records_start = heap_start + heap_size;
    let records_len = map.nr_frames * RECORD_SIZE;
    assert!(records_start + records_len <= area.end(), "the boot area is too small for what was reckoned");
    let extras = Extras { lapic: Hpa::new(apic::base()), ioapics, ap_stacks, screen: screen::span() };
    screen::detach();
    // SAFETY: the boot area is RAM that the machine map gives to nobody else, below 4 GiB.
    unsafe { paging::install(tables, &direct_ranges(host), &extras) };
    screen::attach();
    let heap = core::ptr::with_exposed_provenance_mut::<u8>(to_usize(layout::direct_mapped(Hpa::new(heap_start))));
    // SAFETY: part of the boot area, mapped by the tables just loaded, used for nothing else.
    unsafe { heap::init_main(heap, to_usize(heap_size)) };
    // SAFETY: the direct map covers all RAM; only frames of the frame table are named from now on.
    let mem = unsafe { bulk::phys_mem(map.nr_frames * PAGE_SIZE as u64) };
    let frames = frame_table(map, mem, records_start);
    Memory { mem, frames }
}

fn frame_table(map: &MachineMap, mem: PhysMem, records_start: u64) -> &'static FrameTable {
    let first =
        core::ptr::with_exposed_provenance_mut::<FrameRecord>(to_usize(layout::direct_mapped(Hpa::new(records_start))));
    let count = to_usize(map.nr_frames);
    // SAFETY: part of the boot area, mapped, large enough (asserted by the caller), used for
    // nothing else; a record of zeroes is a valid one.
    unsafe { core::ptr::write_bytes(first, 0, count) };
    // SAFETY: initialized above, and from here on reached only through this shared slice.
    let records = unsafe { core::slice::from_raw_parts(first, count) };
    let frames: &'static FrameTable = Box::leak(Box::new(FrameTable::new(records, mem)));
    let image = Span::new(layout::image_start(), layout::image_end());
    for span in [image, map.boot_area, map.trampoline] {
        add(span, "the hypervisor's own", frames.add_hypervisor(mfns(span)));
    }
    for span in map.free.iter() {
        add(span, "free", frames.add_free(mfns(span)));
    }
    frames
}

fn add(span: Span, what: &str, result: Result<(), hypervisor::frame::FrameError>) {
    assert!(result.is_ok(), "{span} cannot be {what}: {result:?}");
}

/// All RAM, the firmware's tables, and the first MiB.
fn direct_ranges(host: &HostMap) -> Vec<Range<u64>> {
    let low_ram_end = host.of(Kind::Ram).within(Span::new(0, 1 << 32)).end();
    let wanted = |kind: Kind, span: Span| match kind {
        Kind::Ram | Kind::Acpi | Kind::Nvs => true,
        // Some firmware calls its tables reserved; they lie right behind the RAM.
        Kind::Reserved => span.start() <= low_ram_end,
        Kind::Unusable => false,
    };
    let entries = host.entries().iter().filter(|entry| wanted(entry.kind, entry.span));
    entries.map(|entry| entry.span.start()..entry.span.end()).collect()
}

/// A span's frames.
pub(crate) fn mfns(span: Span) -> Range<Mfn> {
    Mfn::new(span.start() / PAGE_SIZE as u64)..Mfn::new(span.end() / PAGE_SIZE as u64)
}

/// The bytes of a boot module, through the direct map.
pub(crate) fn bytes(span: Span) -> &'static [u8] {
    let first = core::ptr::with_exposed_provenance::<u8>(to_usize(layout::direct_mapped(Hpa::new(span.start()))));
    // SAFETY: the machine map keeps modules out of everybody's memory until they are reclaimed,
    // which is after the last domain has been built from them.
    unsafe { core::slice::from_raw_parts(first, to_usize(span.len())) }
}

/// Copies a module to its new place.
pub(crate) fn copy(from: Span, to: u64) {
    let source = core::ptr::with_exposed_provenance::<u8>(to_usize(layout::direct_mapped(Hpa::new(from.start()))));
    let target = core::ptr::with_exposed_provenance_mut::<u8>(to_usize(layout::direct_mapped(Hpa::new(to))));
    // SAFETY: the machine map has chosen free memory as the target, which no source overlaps.
    unsafe { core::ptr::copy_nonoverlapping(source, target, to_usize(from.len())) };
}
