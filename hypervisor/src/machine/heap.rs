// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's heap: fixed in size at boot, for boot-time and per-domain objects.
//!
//! Two areas: a small one in the image, there from the first instruction so that the memory map
//! can be worked out, and the main one, whose place that map decides. Nothing on the path from
//! an exit to an entry allocates.

use alloc::boxed::Box;
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;

use linked_list_allocator::Heap;
use spin::Mutex;

const EARLY_SIZE: usize = 128 * 1024;

#[repr(align(4096))]
struct EarlyArea(#[expect(dead_code, reason = "the allocator has it by address")] [u8; EARLY_SIZE]);

static mut EARLY_AREA: EarlyArea = EarlyArea([0; EARLY_SIZE]);

struct Heaps {
    early: Heap,
    main: Heap,
}

struct LockedHeaps(Mutex<Heaps>);

#[global_allocator]
static HEAP: LockedHeaps = LockedHeaps(Mutex::new(Heaps { early: Heap::empty(), main: Heap::empty() }));

/// Makes the area in the image usable. Called once, first.
pub(crate) fn init_early() {
    let area = (&raw mut EARLY_AREA).cast::<u8>();
    // SAFETY: the area is part of the image, named nowhere else, and this runs once.
    unsafe { HEAP.0.lock().early.init(area, EARLY_SIZE) };
}

/// Gives the heap its main area.
///
/// # Safety
/// `[start, start + size)` is mapped, writable and used by nothing else, for ever; called once.
pub(crate) unsafe fn init_main(start: *mut u8, size: usize) {
    // SAFETY: passed on from the caller.
    unsafe { HEAP.0.lock().main.init(start, size) };
}

/// A zeroed object on the heap, or `None` when memory ran out.
///
/// # Safety
/// All zeroes is a valid `T`.
pub(crate) unsafe fn new_zeroed<T>() -> Option<Box<T>> {
    let layout = Layout::new::<T>();
    assert!(layout.size() != 0);
    // SAFETY: the size is above zero.
    let block = NonNull::new(unsafe { alloc::alloc::alloc_zeroed(layout) })?;
    // SAFETY: allocated by the global allocator with T's layout; valid by the caller's word.
    Some(unsafe { Box::from_raw(block.as_ptr().cast::<T>()) })
}

/// Bytes used and bytes free.
pub(crate) fn usage() -> (usize, usize) {
    let heaps = HEAP.0.lock();
    (heaps.early.used() + heaps.main.used(), heaps.early.free() + heaps.main.free())
}

// SAFETY: each heap hands out disjoint blocks of the memory that it was given, under one lock,
// and a block goes back to the heap whose area it lies in.
unsafe impl GlobalAlloc for LockedHeaps {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut heaps = self.0.lock();
        let block = heaps.main.allocate_first_fit(layout).or_else(|()| heaps.early.allocate_first_fit(layout));
        block.map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some(block) = NonNull::new(block) else { return };
        let mut heaps = self.0.lock();
        let early = (&raw const EARLY_AREA).addr();
        let heap = if (early..early + EARLY_SIZE).contains(&block.as_ptr().addr()) {
            &mut heaps.early
        } else {
            &mut heaps.main
        };
        // SAFETY: the caller passes what `alloc` returned for this layout, and the block came
        // from this heap by its address.
        unsafe { heap.deallocate(block, layout) };
    }
}
