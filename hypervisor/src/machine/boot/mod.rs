// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the first instruction to the first domain.
//!
//! `entry.S` brings the CPU to 64-bit mode with the first 4 GiB identity-mapped; [`boot_main`]
//! makes the console, the traps and a small heap work, reads what the boot loader left, and hands
//! over to [`crate::start`], which decides.

pub(crate) mod multiboot;
pub(crate) mod power;
pub(crate) mod pvh;

use alloc::string::String;
use alloc::vec::Vec;
use core::arch::global_asm;

use hypervisor::boot::host_map::FirmwareEntry;
use hypervisor::boot::span::Span;

use super::screen::{self, Video};
use super::{clock, console, heap, percpu, traps};

global_asm!(include_str!("entry.S"));

/// What the boot loader left, whichever it was.
pub(crate) struct BootInfo {
    /// The hypervisor's command line.
    pub(crate) command_line: String,
    /// The firmware's memory map, as it came: base, length, e820 type.
    pub(crate) memory_map: Vec<FirmwareEntry>,
    /// The modules: physical start, bytes, argument string.
    pub(crate) modules: Vec<BootModule>,
    /// Where the ACPI root pointer is, if the loader says so.
    pub(crate) rsdp: Option<u64>,
    /// The screen, if the loader has set one up.
    pub(crate) video: Option<Video>,
}

/// One boot module.
pub(crate) struct BootModule {
    /// Physical address of the first byte.
    pub(crate) start: u64,
    /// Length in bytes.
    pub(crate) len: u64,
    /// Role and arguments.
    pub(crate) args: String,
}

impl BootModule {
    /// Where it lies.
    pub(crate) const fn span(&self) -> Span {
        Span::sized(self.start, self.len)
    }
}

const MULTIBOOT2_MAGIC: u32 = 0x36d7_6289;
const PVH_MAGIC: u32 = 0x336e_c578;
/// Everything that the boot page tables map.
pub(crate) const IDENTITY_END: u64 = 1 << 32;

#[unsafe(no_mangle)]
extern "C" fn boot_main(magic: u32, info: u32) -> ! {
    clock::start();
    percpu::init_boot_cpu();
    traps::init();
    heap::init_early();
    console::init();
    log::info!("Isthmus {}, a micro-hypervisor for x86-64", env!("CARGO_PKG_VERSION"));
    let info = match magic {
        MULTIBOOT2_MAGIC => multiboot::read(info),
        PVH_MAGIC => pvh::read(info),
        other => {
            Err(alloc::format!("started with magic {other:#x}: neither multiboot2 nor PVH; boot by GRUB's multiboot2"))
        }
    };
    match info {
        Ok(info) => {
            if let Some(video) = info.video {
                screen::init(video);
            }
            crate::start(&info)
        }
        Err(why) => power::fail(format_args!("{why}")),
    }
}

/// Bytes of physical memory below 4 GiB, while the boot page tables are in use.
///
/// Returns `None` where the range leaves the identity map.
pub(crate) fn identity_bytes(start: u64, len: u64) -> Option<&'static [u8]> {
    if start == 0 || start.checked_add(len)? > IDENTITY_END {
        return None;
    }
    let first = core::ptr::with_exposed_provenance::<u8>(guest_abi::num::to_usize(start));
    // SAFETY: the boot page tables map all of it, nobody else runs, and what the loader left is
    // not written while it is read: boot moves modules only after the last use of such a slice.
    Some(unsafe { core::slice::from_raw_parts(first, guest_abi::num::to_usize(len)) })
}
