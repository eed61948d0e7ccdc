// SPDX-License-Identifier: MIT OR Apache-2.0
//! Mappings beside the identity map, entry by entry, for guests that test page-table walks.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

use guest_abi::num::to_usize;

use crate::cpu;
use crate::shared::Shared;

/// The first address of the window: a top-level entry of its own, above the identity map.
pub const WINDOW: u64 = 1 << 39;
/// Entry bit: present.
pub const PRESENT: u64 = 1 << 0;
/// Entry bit: writable.
pub const WRITABLE: u64 = 1 << 1;
/// Entry bit: user.
pub const USER: u64 = 1 << 2;
/// Entry bit: accessed.
pub const ACCESSED: u64 = 1 << 5;
/// Entry bit: dirty.
pub const DIRTY: u64 = 1 << 6;
/// Entry bits of the frame address.
pub const FRAME: u64 = 0x000f_ffff_ffff_f000;

const POOL: usize = 32;
static TABLES: Shared<[[u64; 512]; POOL]> = Shared::new([[0; 512]; POOL]);
static USED: AtomicUsize = AtomicUsize::new(0);

/// A zeroed page for a table: its address.
///
/// # Panics
/// If the guest uses more tables than the pool has.
pub fn new_table() -> u64 {
    let index = USED.fetch_add(1, SeqCst);
    assert!(index < POOL, "out of page tables");
    TABLES.address() + 4096 * index as u64
}

/// Entry `index` of the table at `table`.
#[must_use]
pub fn slot(table: u64, index: u64) -> &'static AtomicU64 {
    // SAFETY: tables are pages of identity-mapped RAM; the CPU and atomics are all that touch them.
    unsafe { AtomicU64::from_ptr(((table & FRAME) + 8 * (index & 511)) as *mut u64) }
}

/// The entry for `va` at `level` (1 is the leaf), making the tables above it if they are missing.
///
/// Only for addresses in the window: the identity map has large pages.
pub fn entry(va: u64, level: u32) -> &'static AtomicU64 {
    let mut table = cpu::cr3();
    let mut at = 4;
    loop {
        let here = slot(table, va >> (12 + 9 * (at - 1)));
        if at == level {
            return here;
        }
        if here.load(SeqCst) & PRESENT == 0 {
            here.store(new_table() | PRESENT | WRITABLE | USER, SeqCst);
        }
        table = here.load(SeqCst);
        at -= 1;
    }
}

/// Maps the page at `va` to `pa` with entry bits `flags`.
pub fn map(va: u64, pa: u64, flags: u64) {
    entry(va, 1).store(pa & FRAME | flags, SeqCst);
    cpu::invlpg(va);
}

/// Copies a table: another one with the same entries.
pub fn copy_table(table: u64) -> u64 {
    let copy = new_table();
    for index in 0..512 {
        slot(copy, index).store(slot(table, index).load(SeqCst), SeqCst);
    }
    copy
}

/// The page offset of an address.
#[must_use]
pub const fn offset(va: u64) -> usize {
    to_usize(va & 0xfff)
}
