// SPDX-License-Identifier: MIT OR Apache-2.0
//! The way in: the PVH entry, what it found, and what the loader left in memory.

use core::arch::global_asm;
use core::ffi::{CStr, c_char};

use guest_abi::pvh::{MEMMAP_RAM, MemmapEntry, StartInfo};

use crate::{hypercall, report, traps};

global_asm!(include_str!("boot.S"), options(att_syntax));

/// Registers as they were at the entry, before anything changed them.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct EntryState {
    /// Address of the start info.
    pub ebx: u32,
    /// CR0.
    pub cr0: u32,
    /// CR4.
    pub cr4: u32,
    /// EFLAGS.
    pub eflags: u32,
    /// CS.
    pub cs: u16,
    /// DS.
    pub ds: u16,
    /// ES.
    pub es: u16,
    /// SS.
    pub ss: u16,
    /// The task register.
    pub tr: u16,
    pad: u16,
    /// The low half of EFER.
    pub efer: u32,
}

unsafe extern "C" {
    static entry_state: EntryState;
    static image_end: u8;
}

unsafe extern "Rust" {
    /// The guest itself: made by [`crate::guest!`].
    fn guest_main();
}

#[unsafe(no_mangle)]
extern "C" fn guest_boot() -> ! {
    traps::init();
    hypercall::init();
    // SAFETY: `guest!` defines it with this signature; a guest without one does not link.
    unsafe { guest_main() };
    report::finish()
}

/// Registers at the entry.
#[must_use]
pub fn entry() -> EntryState {
    // SAFETY: boot.S wrote it before any Rust ran, nobody writes it afterwards.
    unsafe { entry_state }
}

/// The start info, copied.
#[must_use]
pub fn start_info() -> StartInfo {
    // SAFETY: EBX at the entry, identity-mapped; the loader wrote a structure there.
    unsafe { (u64::from(entry().ebx) as *const StartInfo).read_unaligned() }
}

/// Entry `index` of the memory map, if there is one.
#[must_use]
pub fn memmap(index: u32) -> Option<MemmapEntry> {
    let info = start_info();
    if info.version == 0 || index >= info.memmap_entries {
        return None;
    }
    let address = info.memmap_paddr + 24 * u64::from(index);
    // SAFETY: the loader says that an entry is there; addresses below 4 GiB are identity-mapped.
    Some(unsafe { (address as *const MemmapEntry).read_unaligned() })
}

/// Whether the memory map says that `address` is RAM.
#[must_use]
pub fn is_ram(address: u64) -> bool {
    (0..).map_while(memmap).any(|e| e.kind == MEMMAP_RAM && address >= e.addr && address - e.addr < e.size)
}

/// One past the highest RAM address below 4 GiB.
#[must_use]
pub fn ram_end() -> u64 {
    (0..)
        .map_while(memmap)
        .filter(|e| e.kind == MEMMAP_RAM && e.addr < 1 << 32)
        .map(|e| e.addr + e.size)
        .max()
        .unwrap_or(0)
}

/// The first address behind this image, its BSS and its stack.
#[must_use]
pub fn end_of_image() -> u64 {
    (&raw const image_end).addr() as u64
}

/// Runs `f` on the address of each free page of RAM below 4 GiB and counts those for which it holds.
pub fn for_free_pages(mut f: impl FnMut(u64) -> bool) -> u32 {
    let info = start_info();
    let kept = [u64::from(entry().ebx), info.memmap_paddr, info.modlist_paddr, info.cmdline_paddr, info.rsdp_paddr];
    let mut count = 0;
    for entry in (0..).map_while(memmap).filter(|e| e.kind == MEMMAP_RAM) {
        let first = entry.addr.max(end_of_image()).next_multiple_of(4096);
        let end = (entry.addr + entry.size).min(1 << 32);
        let mut page = first;
        while page + 4096 <= end {
            // Pages that the loader used, or next to them, are left alone.
            if kept.iter().all(|k| page.abs_diff(*k) > 8192) {
                count += u32::from(f(page));
            }
            page += 4096;
        }
    }
    count
}

/// The command line; empty if there is none.
#[must_use]
pub fn cmdline() -> &'static CStr {
    let address = start_info().cmdline_paddr;
    if address == 0 {
        return c"";
    }
    // SAFETY: the loader put a terminated string there, and no guest writes it.
    unsafe { CStr::from_ptr(address as *const c_char) }
}
