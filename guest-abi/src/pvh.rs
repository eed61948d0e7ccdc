// SPDX-License-Identifier: MIT OR Apache-2.0
//! The PVH boot protocol: how a kernel is found, loaded and entered.
//!
//! A kernel that has the ELF note [`ELFNOTE_PHYS32_ENTRY`] is loaded by the physical addresses of its
//! segments and entered there in 32-bit protected mode with paging off, flat segments, interrupts
//! disabled, and EBX holding the physical address of a [`StartInfo`]. CR0 has PE set and nothing else
//! writable; CR4 and EFER are zero. There is no IDT, so any fault before the kernel's own is a triple
//! fault.
//!
//! Linux reads module list and memory map through its first mapping, which covers 1 GiB, and stores
//! command line and initrd in 32-bit fields. Linux 6.12 also writes to the first word of `StartInfo`,
//! which therefore has to be writable RAM.
//!
//! Source: `xen/include/public/arch-x86/hvm/start_info.h`, `elfnote.h` and `xen.h` at 4.17.

/// First word of [`StartInfo`] (`XEN_HVM_START_MAGIC_VALUE`).
pub const START_MAGIC: u32 = 0x336e_c578;
/// The version of [`StartInfo`] that has a memory map.
pub const START_VERSION: u32 = 1;

crate::wire_struct! {
    /// What the loader leaves at the address in EBX (`struct hvm_start_info`). All addresses are guest physical.
    pub struct StartInfo: 56 {
        /// [`START_MAGIC`].
        0 => pub magic: u32,
        /// [`START_VERSION`]; 0 has no memory map.
        4 => pub version: u32,
        /// `SIF_*`.
        8 => pub flags: u32,
        /// Entries at `modlist_paddr`; Linux takes the first as its initrd.
        12 => pub nr_modules: u32,
        /// Array of [`ModlistEntry`]; Linux needs it below 1 GiB.
        16 => pub modlist_paddr: u64,
        /// NUL-terminated command line, below 4 GiB; 0 for none.
        24 => pub cmdline_paddr: u64,
        /// The ACPI root pointer; 0 for none.
        32 => pub rsdp_paddr: u64,
        /// Array of [`MemmapEntry`]; Linux needs it below 1 GiB.
        40 => pub memmap_paddr: u64,
        /// Entries at `memmap_paddr`; Linux takes at most 127.
        48 => pub memmap_entries: u32,
        /// Zero.
        52 => pub reserved: u32,
    }
}

crate::wire_struct! {
    /// A boot module (`struct hvm_modlist_entry`).
    pub struct ModlistEntry: 32 {
        /// Guest physical address of its first byte.
        0 => pub paddr: u64,
        /// Its length in bytes.
        8 => pub size: u64,
        /// NUL-terminated argument string; 0 for none.
        16 => pub cmdline_paddr: u64,
        /// Zero.
        24 => pub reserved: u64,
    }
}

crate::wire_struct! {
    /// A range of the guest physical address space (`struct hvm_memmap_table_entry`).
    pub struct MemmapEntry: 24 {
        /// Guest physical address of its first byte.
        0 => pub addr: u64,
        /// Its length in bytes.
        8 => pub size: u64,
        /// `MEMMAP_*`; the field is `type` in the header.
        16 => pub kind: u32,
        /// Zero.
        20 => pub reserved: u32,
    }
}

/// Plain RAM. The numbers are the ones of e820.
pub const MEMMAP_RAM: u32 = 1;
/// Not for the guest to use.
pub const MEMMAP_RESERVED: u32 = 2;
/// ACPI tables, RAM after they are read.
pub const MEMMAP_ACPI: u32 = 3;
/// ACPI non-volatile storage.
pub const MEMMAP_NVS: u32 = 4;
/// Memory with errors; Linux 6.12 places foreign mappings there.
pub const MEMMAP_UNUSABLE: u32 = 5;
/// Memory that is not enabled.
pub const MEMMAP_DISABLED: u32 = 6;
/// Persistent memory.
pub const MEMMAP_PMEM: u32 = 7;

/// The domain may control the machine.
pub const SIF_PRIVILEGED: u32 = 1 << 0;
/// The domain is the control domain: what Linux tests.
pub const SIF_INITDOMAIN: u32 = 1 << 1;
/// PV only.
pub const SIF_MULTIBOOT_MOD: u32 = 1 << 2;
/// PV only.
pub const SIF_MOD_START_PFN: u32 = 1 << 3;
/// PV only.
pub const SIF_VIRT_P2M_4TOOLS: u32 = 1 << 4;
/// Power-management bits for the control domain.
pub const SIF_PM_MASK: u32 = 0xff << 8;

/// Owner name of the ELF notes, with its terminator.
pub const ELFNOTE_OWNER: &[u8; 4] = b"Xen\0";
/// Free text.
pub const ELFNOTE_INFO: u32 = 0;
/// PV entry point.
pub const ELFNOTE_ENTRY: u32 = 1;
/// Address of a page for hypercall stubs; absent in current kernels.
pub const ELFNOTE_HYPERCALL_PAGE: u32 = 2;
/// PV only.
pub const ELFNOTE_VIRT_BASE: u32 = 3;
/// PV only.
pub const ELFNOTE_PADDR_OFFSET: u32 = 4;
/// Interface name, `xen-3.0`.
pub const ELFNOTE_XEN_VERSION: u32 = 5;
/// Name of the guest.
pub const ELFNOTE_GUEST_OS: u32 = 6;
/// Version of the guest.
pub const ELFNOTE_GUEST_VERSION: u32 = 7;
/// Loader name, `generic`.
pub const ELFNOTE_LOADER: u32 = 8;
/// PV only.
pub const ELFNOTE_PAE_MODE: u32 = 9;
/// Features as a string; PV only.
pub const ELFNOTE_FEATURES: u32 = 10;
/// Whether a symbol table follows.
pub const ELFNOTE_BSD_SYMTAB: u32 = 11;
/// PV only.
pub const ELFNOTE_HV_START_LOW: u32 = 12;
/// PV only.
pub const ELFNOTE_L1_MFN_VALID: u32 = 13;
/// Whether a cancelled suspend is understood.
pub const ELFNOTE_SUSPEND_CANCEL: u32 = 14;
/// PV only.
pub const ELFNOTE_INIT_P2M: u32 = 15;
/// PV only.
pub const ELFNOTE_MOD_START_PFN: u32 = 16;
/// Bitmap of `XENFEAT_*` that the kernel can use.
pub const ELFNOTE_SUPPORTED_FEATURES: u32 = 17;
/// The 32-bit physical entry point, 4 or 8 bytes wide. A kernel that has it is PVH capable.
pub const ELFNOTE_PHYS32_ENTRY: u32 = 18;
/// Three `u32`: alignment, lowest and highest address the image may be moved to. Newer than the 4.17 headers.
pub const ELFNOTE_PHYS32_RELOC: u32 = 19;

/// The port by which a domain without devices switches itself off: the sleep control register that its ACPI tables name
/// (ACPI 6.5, §4.8.3.7), a byte wide. Ours: Xen's PVH guests have none.
pub const SLEEP_CONTROL: u16 = 0xb100;
/// The sleep status register, which ACPI wants beside it; nothing is there.
pub const SLEEP_STATUS: u16 = 0xb101;
/// What is written to [`SLEEP_CONTROL`] for S5: type 5, and the bit that makes it so.
pub const SLEEP_S5: u8 = 5 << 2 | 1 << 5;
