// SPDX-License-Identifier: MIT OR Apache-2.0
//! What GRUB leaves: the multiboot2 information structure.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use multiboot2::{BootInformation, BootInformationHeader};

use super::{BootInfo, BootModule};

/// Reads the structure at physical address `info`.
pub(crate) fn read(info: u32) -> Result<BootInfo, String> {
    let pointer = core::ptr::with_exposed_provenance::<BootInformationHeader>(info as usize);
    // SAFETY: the loader passed this address with the multiboot2 magic; the first 4 GiB are mapped.
    let boot = unsafe { BootInformation::load(pointer) }
        .map_err(|error| format!("the multiboot2 information is malformed: {error:?}"))?;
    let map = boot.memory_map_tag().ok_or("the boot loader gave no memory map")?;
    let memory_map =
        map.memory_areas().iter().map(|area| (area.start_address(), area.size(), u32::from(area.typ()))).collect();
    let mut modules = Vec::new();
    for module in boot.module_tags() {
        let args = module.cmdline().map_err(|_| "a module's arguments are not a string")?;
        let (start, end) = (u64::from(module.start_address()), u64::from(module.end_address()));
        modules.push(BootModule { start, len: end.saturating_sub(start), args: args.to_string() });
    }
    let command_line = match boot.command_line_tag() {
        Some(tag) => tag.cmdline().map_err(|_| "the command line is not a string")?.to_string(),
        None => String::new(),
    };
    // GRUB copies the RSDP into the tag, so the tag's own bytes are the table.
    let rsdp = boot
        .rsdp_v2_tag()
        .map(|tag| core::ptr::from_ref(tag).addr() as u64 + 8)
        .or_else(|| boot.rsdp_v1_tag().map(|tag| core::ptr::from_ref(tag).addr() as u64 + 8));
    Ok(BootInfo { command_line, memory_map, modules, rsdp })
}
