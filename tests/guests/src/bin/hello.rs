// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves that a PVH guest starts in the state that the boot protocol defines, can speak, and ends.
//!
//! A pass cannot tell segment bases and limits (no GDT is defined at the entry; that code and data
//! were reached shows that they are flat as far as they were used).
//!
//! Checks: PVH boot ABI (`docs/misc/pvh.pandoc`, `arch-x86/hvm/start_info.h` at 4.17).
//! Expects: status 0.
#![no_std]
#![no_main]

use guest_abi::pvh::{MEMMAP_RAM, START_MAGIC};
use test_guests::{boot, check, check_eq, guest, hypercall, say};

guest!(main);

fn main() {
    say!("hello");
    entry_state();
    start_info();
    check("the hypervisor's signature is in CPUID", hypercall::present());
}

fn entry_state() {
    let entry = boot::entry();
    // ET reads 1 on every processor since the 486; NE may be forced by VT-x.
    check_eq("CR0 has PE and nothing writable", entry.cr0 & !(1 << 4 | 1 << 5), 1);
    check_eq("CR4 is 0", entry.cr4, 0);
    check_eq("EFER is 0", entry.efer, 0);
    check_eq("EFLAGS has VM, IF and TF clear", entry.eflags & (1 << 17 | 1 << 9 | 1 << 8), 0);
}

fn start_info() {
    let info = boot::start_info();
    check_eq("start_info has its magic", info.magic, START_MAGIC);
    check_eq("start_info is version 1", info.version, 1);
    check("start_info is writable", {
        let first = u64::from(boot::entry().ebx) as *mut u32;
        // SAFETY: the start info's first word, which nobody else uses; it is written back.
        unsafe { first.write_volatile(0x1234_5678) };
        // SAFETY: as above.
        let read_back = unsafe { first.read_volatile() };
        // SAFETY: as above.
        unsafe { first.write_volatile(START_MAGIC) };
        read_back == 0x1234_5678
    });
    check_eq("the reserved word is 0", info.reserved, 0);
    check("there are 1 to 127 memory map entries", (1..=127).contains(&info.memmap_entries));
    check("memory map and modules are below 1 GiB", info.memmap_paddr < 1 << 30 && info.modlist_paddr < 1 << 30);
    check("the command line is below 4 GiB", info.cmdline_paddr < 1 << 32);
    if let Ok(text) = boot::cmdline().to_str() {
        say!("command line: {text}");
    }
    let mut previous_end = 0;
    let mut in_order = true;
    for entry in (0..).map_while(boot::memmap) {
        say!("memory {:#x} + {:#x} type {}", entry.addr, entry.size, entry.kind);
        in_order &= entry.addr >= previous_end && entry.addr.checked_add(entry.size).is_some();
        previous_end = entry.addr.wrapping_add(entry.size);
    }
    check("memory map entries are in order and do not overlap", in_order);
    check("page 0 is RAM, for the warm-reset vector", boot::is_ram(0x467));
    check("the image is in RAM", boot::is_ram(0x10_0000) && boot::is_ram(boot::end_of_image() - 1));
    check("some RAM is left", (0..).map_while(boot::memmap).any(|e| e.kind == MEMMAP_RAM && e.size >= 1 << 20));
}
