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
use hypervisor::boot::module;

use super::{BootInfo, BootModule, identity_bytes};

/// Reads the start info at physical address `info`.
pub(crate) fn read(info: u32) -> Result<BootInfo, String> {
    let word = |at: u64, what: &str| -> Result<u64, String> {
        let bytes = identity_bytes(at, 8).ok_or_else(|| format!("the start info's {what} lies above 4 GiB"))?;
        Ok(u64::from_bytes(bytes))
    };
    let base = u64::from(info);
    let version = guest_abi::num::high_u32(word(base, "version")?);
    let nr_modules = guest_abi::num::high_u32(word(base + 8, "module count")?);
    let module_list = word(base + 16, "module list")?;
    let command_line = word(base + 24, "command line")?;
    let rsdp = word(base + 32, "RSDP")?;
    if version == 0 {
        return Err("the start info has no memory map (version 0)".to_string());
    }
    let map = word(base + 40, "memory map")?;
    let map_entries = guest_abi::num::low_u32(word(base + 48, "memory map")?);

    let mut memory_map = Vec::new();
    for i in 0..u64::from(map_entries) {
        let entry = map + i * 24;
        let kind = guest_abi::num::low_u32(word(entry + 16, "memory map")?);
        memory_map.push((word(entry, "memory map")?, word(entry + 8, "memory map")?, kind));
    }
    let mut modules = Vec::new();
    for i in 0..u64::from(nr_modules) {
        let entry = module_list + i * 32;
        let (start, len) = (word(entry, "module list")?, word(entry + 8, "module list")?);
        let bytes = identity_bytes(start, len).ok_or("a module lies above 4 GiB")?;
        add_modules(start, bytes, &mut modules)?;
    }
    Ok(BootInfo {
        command_line: string_at(command_line)?,
        memory_map,
        modules,
        rsdp: (rsdp != 0).then_some(rsdp),
        video: None,
    })
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
