// SPDX-License-Identifier: MIT OR Apache-2.0
//! What QEMU's `-kernel` leaves: the PVH start info, with one module at most.
//!
//! The module is a bundle (an uncompressed newc archive) that `cargo xtask` makes; it is taken
//! apart here, so that the rest of the boot sees modules as GRUB would have loaded them.
//! Source: `xen/include/public/arch-x86/hvm/start_info.h`.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use guest_abi::Wire;
use guest_abi::pvh::{MemmapEntry, ModlistEntry, StartInfo};
use hypervisor::boot::host_map::FirmwareEntry;
use hypervisor::boot::module;

use super::{BootInfo, BootModule, identity_bytes};

/// Reads the start info at physical address `info`.
pub(crate) fn read(info: u32) -> Result<BootInfo, String> {
    let start: StartInfo = table(info.into(), 1, "start")?[0];
    if start.version == 0 {
        return Err("the start info has no memory map (version 0)".to_string());
    }
    let map: Vec<MemmapEntry> = table(start.memmap_paddr, start.memmap_entries, "memory map")?;
    let memory_map = map.iter().map(|entry| FirmwareEntry { start: entry.addr, len: entry.size, kind: entry.kind });
    let mut modules = Vec::new();
    for module in table::<ModlistEntry>(start.modlist_paddr, start.nr_modules, "module list")? {
        let bytes = identity_bytes(module.paddr, module.size).ok_or("a module lies above 4 GiB")?;
        add_modules(module.paddr, bytes, &mut modules)?;
    }
    Ok(BootInfo {
        command_line: string_at(start.cmdline_paddr)?,
        memory_map: memory_map.collect(),
        modules,
        rsdp: (start.rsdp_paddr != 0).then_some(start.rsdp_paddr),
        video: None,
    })
}

/// Reads structures that lie one behind the other.
fn table<T: Wire>(at: u64, count: u32, what: &str) -> Result<Vec<T>, String> {
    let bytes = match count {
        0 => Some(&[][..]),
        _ => identity_bytes(at, u64::from(count) * T::SIZE as u64),
    };
    let bytes = bytes.ok_or_else(|| format!("the start info's {what} lies above 4 GiB"))?;
    Ok(bytes.chunks_exact(T::SIZE).map(T::from_bytes).collect())
}

fn add_modules(start: u64, bytes: &[u8], modules: &mut Vec<BootModule>) -> Result<(), String> {
    for member in module::split(bytes).map_err(|error| error.to_string())? {
        let (start, len) = (start + member.data.start as u64, member.data.len() as u64);
        modules.push(BootModule { start, len, args: member.args.to_string() });
    }
    Ok(())
}

fn string_at(start: u64) -> Result<String, String> {
    const MAX_LEN: u64 = 4096;
    if start == 0 {
        return Ok(String::new());
    }
    let bytes = identity_bytes(start, MAX_LEN).ok_or("the command line lies above 4 GiB")?;
    let len = bytes.iter().position(|byte| *byte == 0).ok_or("the command line has no end")?;
    core::str::from_utf8(&bytes[..len]).map(str::to_string).map_err(|_| "the command line is not text".to_string())
}
