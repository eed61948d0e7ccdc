// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where things lie in the hypervisor's address space.
//!
//! ```text
//! 0x0000_0000_0020_0000  the image, mapped where it is linked (W^X, guard pages under stacks)
//! 0xffff_8000_0000_0000  direct map of all RAM and firmware tables, writable, no execute
//! 0xffff_c000_0000_0000  device registers, uncached: local APIC, I/O APICs, video memory
//! 0xffff_c800_0000_0000  stacks of the other CPUs, 64 KiB apart, an unmapped page below each stack
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
/// Where the screen's video memory is mapped, at the same place in a large page as in physical memory.
pub(crate) const SCREEN: u64 = LAPIC + 0x4000_0000;

/// Where the stacks of the CPUs that the boot CPU starts are mapped.
const AP_STACKS: u64 = 0xffff_c800_0000_0000;
/// Bytes of address space for the stacks of one of them.
const AP_STACKS_SPACE: u64 = 0x1_0000;

/// A stack of a CPU that the boot CPU starts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ApStack {
    /// Where it runs.
    Main,
    /// For double faults.
    Fault,
    /// For NMIs and machine checks.
    Nmi,
}

impl ApStack {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Main, Self::Fault, Self::Nmi];
    /// Bytes of memory that they take together.
    pub(crate) const SIZE: u64 = 0xc000;

    /// Bytes from the start of the CPU's stack space, and of the stack. Between two stacks lies
    /// a page that is never mapped.
    const fn place(self) -> (u64, u64) {
        match self {
            Self::Main => (0x1000, 0x8000),
            Self::Fault => (0xa000, 0x2000),
            Self::Nmi => (0xd000, 0x2000),
        }
    }
}

/// A stack of CPU `id`, which is not the boot CPU.
pub(crate) const fn ap_stack(id: u32, which: ApStack) -> core::ops::Range<u64> {
    let (offset, len) = which.place();
    let start = AP_STACKS + id as u64 * AP_STACKS_SPACE + offset;
    start..start + len
}

/// Whether an address lies on a stack of a CPU that the boot CPU started.
pub(crate) fn is_on_ap_stack(address: u64) -> bool {
    let Some(offset) = address.checked_sub(AP_STACKS) else { return false };
    let is_in = |which: ApStack| {
        let (start, len) = which.place();
        (start..start + len).contains(&(offset % AP_STACKS_SPACE))
    };
    offset < hypervisor::pcpu::MAX_PCPUS as u64 * AP_STACKS_SPACE && ApStack::ALL.into_iter().any(is_in)
}

unsafe extern "C" {
    static __image_start: u8;
    static __text_start: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __boot_stack_guard: u8;
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

/// The address at which video memory that starts at `start` is mapped.
pub(crate) fn screen_mapped(start: u64) -> u64 {
    SCREEN + start % (2 << 20)
}

/// The physical address of an object on the heap or in the image.
pub(crate) fn hpa_of<T>(object: &T) -> Hpa {
    let address = core::ptr::from_ref(object).expose_provenance() as u64;
    Hpa::new(if address >= DIRECT_MAP { address - DIRECT_MAP } else { address })
}
