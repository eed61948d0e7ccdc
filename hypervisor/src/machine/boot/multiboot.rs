// SPDX-License-Identifier: MIT OR Apache-2.0
//! What GRUB leaves: the multiboot2 information structure.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use guest_abi::num::to_usize;
use hypervisor::boot::host_map::FirmwareEntry;
use hypervisor::screen::{Cell, Field, Geometry};
use multiboot2::{
    BootInformation, BootInformationHeader, EFIMemoryDesc, FramebufferField, FramebufferType, MemoryArea,
};

use super::super::screen::Video;
use super::{BootInfo, BootModule};

/// Reads the structure at physical address `info`.
pub(crate) fn read(info: u32) -> Result<BootInfo, String> {
    let pointer = core::ptr::with_exposed_provenance::<BootInformationHeader>(info as usize);
    // SAFETY: the loader passed this address with the multiboot2 magic; the first 4 GiB are mapped.
    let boot = unsafe { BootInformation::load(pointer) }
        .map_err(|error| format!("the multiboot2 information is malformed: {error:?}"))?;
    let memory_map = memory_map(&boot).ok_or("the boot loader gave no memory map")?;
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
    Ok(BootInfo { command_line, memory_map, modules, rsdp, video: video(&boot) })
}

/// The memory map in e820's terms. GRUB makes one of UEFI's, too; a loader that does not gives UEFI's own.
fn memory_map(boot: &BootInformation<'_>) -> Option<Vec<FirmwareEntry>> {
    if let Some(map) = boot.memory_map_tag() {
        let areas = map.memory_areas().iter();
        let entry = |area: &MemoryArea| FirmwareEntry {
            start: area.start_address(),
            len: area.size(),
            kind: area.typ().into(),
        };
        return Some(areas.map(entry).collect());
    }
    let areas = boot.efi_memory_map_tag()?.memory_areas();
    let entry = |area: &EFIMemoryDesc| FirmwareEntry {
        start: area.phys_start,
        len: area.page_count * 4096,
        kind: efi_kind(area.ty.0),
    };
    Some(areas.map(entry).collect())
}

/// What an e820 map calls a piece of memory of this UEFI type once boot services have ended.
/// Source: *UEFI Specification 2.10*, §7.2.3 EFI_BOOT_SERVICES.GetMemoryMap(), and *ACPI Specification 6.5*, table 15.6.
fn efi_kind(ty: u32) -> u32 {
    match ty {
        // loader code and data, boot services code and data, conventional
        1..=4 | 7 => 1,
        9 => 3,
        10 => 4,
        8 => 5,
        _ => 2,
    }
}

/// The screen that the loader has set up.
fn video(boot: &BootInformation<'_>) -> Option<Video> {
    let tag = boot.framebuffer_tag()?.ok()?;
    let field = |field: FramebufferField| Field { position: field.position, size: field.size };
    let cell = match tag.buffer_type().ok()? {
        FramebufferType::RGB { red, green, blue } => Cell::Pixel {
            bytes: usize::from(tag.bpp()).div_ceil(8),
            red: field(red),
            green: field(green),
            blue: field(blue),
        },
        FramebufferType::Text => Cell::Text,
        FramebufferType::Indexed { .. } => return None,
    };
    let size = |value: u32| to_usize(u64::from(value));
    let geometry = Geometry { pitch: size(tag.pitch()), width: size(tag.width()), height: size(tag.height()), cell };
    Some(Video { start: tag.address(), geometry, bytes: geometry.size_bytes()? })
}
