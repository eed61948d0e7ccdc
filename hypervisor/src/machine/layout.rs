// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where things lie in the hypervisor's address space.
//!
//! ```text
//! 0x0000_0000_0020_0000  the image, mapped where it is linked (W^X, guard pages under stacks)
//! 0xffff_8000_0000_0000  direct map of all RAM and firmware tables, writable, no execute
//! 0xffff_c000_0000_0000  device registers, uncached: local APIC, I/O APICs
//! ```

use hypervisor::addr::Hpa;

/// Start of the direct map: physical address 0.
pub(crate) const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;
/// Bytes that the direct map can cover: 64 TiB.
pub(crate) const DIRECT_MAP_SIZE: u64 = 1 << 46;
/// Where the local APIC's page is mapped.
pub(crate) const LAPIC: u64 = 0xffff_c000_0000_0000;
/// Where the first I/O APIC's page is mapped; the others follow, a page each.
pub(crate) const IOAPIC: u64 = LAPIC + 0x1000;

unsafe extern "C" {
    static __image_start: u8;
    static __text_start: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __boot_stack_guard: u8;
    static __boot_stack_top: u8;
    static __fault_stack_guard: u8;
    static __fault_stack_top: u8;
    static __nmi_stack_guard: u8;
    static __nmi_stack_top: u8;
    static __image_end: u8;
}

macro_rules! symbols {
    ($($(#[$doc:meta])* $name:ident = $symbol:ident;)*) => {$(
        $(#[$doc])*
        pub(crate) fn $name() -> u64 {
            (&raw const $symbol).addr() as u64
        }
    )*};
}
symbols! {
    /// First byte of the image.
    image_start = __image_start;
    /// First byte of code.
    text_start = __text_start;
    /// End of code, on a page boundary.
    text_end = __text_end;
    /// End of read-only data, on a page boundary.
    rodata_end = __rodata_end;
    /// The unmapped page below the boot stack.
    boot_stack_guard = __boot_stack_guard;
    /// Top of the boot CPU's stack.
    boot_stack_top = __boot_stack_top;
    /// The unmapped page below the double-fault stack.
    fault_stack_guard = __fault_stack_guard;
    /// Top of the double-fault stack.
    fault_stack_top = __fault_stack_top;
    /// The unmapped page below the NMI stack.
    nmi_stack_guard = __nmi_stack_guard;
    /// Top of the NMI stack.
    nmi_stack_top = __nmi_stack_top;
    /// End of the image, on a page boundary.
    image_end = __image_end;
}

/// The address at which the direct map shows a physical address.
pub(crate) fn direct_mapped(hpa: Hpa) -> u64 {
    debug_assert!(hpa.raw() < DIRECT_MAP_SIZE);
    DIRECT_MAP + hpa.raw()
}

/// The physical address of an object on the heap or in the image.
pub(crate) fn hpa_of<T>(object: &T) -> Hpa {
    let address = core::ptr::from_ref(object).expose_provenance() as u64;
    Hpa::new(if address >= DIRECT_MAP { address - DIRECT_MAP } else { address })
}
