// SPDX-License-Identifier: MIT OR Apache-2.0
//! What each physical CPU has of its own: descriptor tables, fault stacks, and flags that its
//! interrupt handlers set.
//!
//! The GS base points to it. Every field that a handler touches is an atomic, because a handler
//! is a second thread of control on the same CPU.

use core::arch::asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use guest_abi::num::{low_u8, to_usize};
use hypervisor::addr::Ticks;
use x86_64::VirtAddr;
use x86_64::instructions::tables::{lgdt, load_tss};
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::gdt::{Descriptor, DescriptorFlags, SegmentSelector};
use x86_64::structures::tss::TaskStateSegment;

use super::cpu;
use super::layout::{self, ApStack};

pub(crate) const SELECTOR_CODE: u16 = 0x08;
pub(crate) const SELECTOR_DATA: u16 = 0x10;
pub(crate) const SELECTOR_TSS: u16 = 0x18;
/// Stack-table index of the double-fault stack.
pub(crate) const IST_FAULT: u8 = 1;
/// Stack-table index of the NMI and machine-check stack.
pub(crate) const IST_NMI: u8 = 2;

/// No interrupt has been noted.
const NONE: u32 = u32::MAX;

/// One physical CPU's area.
#[repr(C)]
pub(crate) struct PerCpu {
    /// Its own address, read through GS.
    this: u64,
    /// 0 for the boot CPU; an index, not an APIC id.
    pub(crate) id: u32,
    taken: AtomicU32,
    nmi_seen: AtomicBool,
    /// The deadline that its timer is armed for; 0 when it is not.
    armed: AtomicU64,
    gdt: [u64; 5],
    /// Only its interrupt stack table is used.
    tss: TaskStateSegment,
}

impl PerCpu {
    const fn new(id: u32) -> Self {
        Self {
            this: 0,
            id,
            taken: AtomicU32::new(NONE),
            nmi_seen: AtomicBool::new(false),
            armed: AtomicU64::new(0),
            gdt: [0; 5],
            tss: TaskStateSegment::new(),
        }
    }

    /// Fills what depends on where the area lies, for good.
    fn prepare(&mut self, fault_stack: u64, nmi_stack: u64) {
        self.this = core::ptr::from_mut(self).expose_provenance() as u64;
        self.tss.interrupt_stack_table[usize::from(IST_FAULT) - 1] = VirtAddr::new(fault_stack);
        self.tss.interrupt_stack_table[usize::from(IST_NMI) - 1] = VirtAddr::new(nmi_stack);
        // SAFETY: the descriptor lies beside the TSS and lives as long.
        let tss = unsafe { Descriptor::tss_segment_unchecked(&raw const self.tss) };
        let Descriptor::SystemSegment(low, high) = tss else { unreachable!("a TSS is a system segment") };
        self.gdt = [0, DescriptorFlags::KERNEL_CODE64.bits(), DescriptorFlags::KERNEL_DATA.bits(), low, high];
    }
}

static mut BOOT_CPU: PerCpu = PerCpu::new(0);

/// Sets up the boot CPU's area, descriptor tables and GS base.
pub(crate) fn init_boot_cpu() {
    let area = &raw mut BOOT_CPU;
    // SAFETY: only this CPU runs, and nobody has a reference to the area yet.
    let area = unsafe { &mut *area };
    area.prepare(layout::fault_stack_top(), layout::nmi_stack_top());
    // SAFETY: prepared above, static, and this CPU's alone.
    unsafe { adopt(area) };
}

/// Makes the area of a CPU that is to be started, with the stacks of `slot`, or nothing when memory
/// ran out. It is never freed.
pub(crate) fn new_area(id: u32, slot: u32) -> Option<&'static PerCpu> {
    // SAFETY: integers and atomics may be all zeroes.
    let area = alloc::boxed::Box::leak(unsafe { super::heap::new_zeroed::<PerCpu>() }?);
    *area = PerCpu::new(id);
    area.prepare(layout::ap_stack(slot, ApStack::Fault).end, layout::ap_stack(slot, ApStack::Nmi).end);
    Some(area)
}

/// Loads an area's descriptor tables and finds it through GS from here on.
///
/// # Safety
/// The area was prepared for this CPU, lives for ever, and no other CPU uses it.
pub(crate) unsafe fn adopt(area: &PerCpu) {
    let pointer = DescriptorTablePointer { limit: 5 * 8 - 1, base: VirtAddr::from_ptr(&raw const area.gdt) };
    // SAFETY: the table holds the code and data descriptors that are in use (same selectors as
    // the boot table) and lives for ever.
    unsafe { lgdt(&pointer) };
    // SAFETY: the selector names the TSS descriptor of `prepare`, not loaded anywhere else.
    unsafe { load_tss(SegmentSelector(SELECTOR_TSS)) };
    // SAFETY: every x86-64 CPU has the MSR; from here on GS finds the area.
    unsafe { cpu::wrmsr(cpu::msr::GS_BASE, area.this) };
}

/// The number of the CPU that runs this, for [`hypervisor::pcpu`].
pub(crate) fn number() -> usize {
    current().id as usize
}

/// This CPU's area.
#[inline]
pub(crate) fn current() -> &'static PerCpu {
    let address: u64;
    // SAFETY: GS base was set to the area, whose first word is its own address.
    unsafe { asm!("mov {}, gs:[0]", out(reg) address, options(nostack, preserves_flags, readonly)) };
    let area = core::ptr::with_exposed_provenance::<PerCpu>(to_usize(address));
    // SAFETY: the area lives for ever, and after `adopt` it is only shared.
    unsafe { &*area }
}

/// The deadline that this CPU's timer is armed for, in one instruction: each entry asks.
#[inline]
pub(crate) fn armed() -> Ticks {
    let ticks: u64;
    // SAFETY: GS base was set to the area, where only this CPU writes the field.
    unsafe {
        asm!(
            "mov {}, gs:[{offset}]",
            out(reg) ticks,
            offset = const offset_of!(PerCpu, armed),
            options(nostack, preserves_flags, readonly),
        );
    }
    Ticks::new(ticks)
}

/// Notes what this CPU's timer is armed for; nothing by 0.
pub(crate) fn set_armed(deadline: Ticks) {
    current().armed.store(deadline.raw(), Ordering::Relaxed);
}

/// Notes an interrupt taken by this CPU's handler.
pub(crate) fn note_interrupt(vector: u8) {
    current().taken.store(u32::from(vector), Ordering::Relaxed);
}

/// The interrupt that the last window let in, if one came.
pub(crate) fn take_interrupt() -> Option<u8> {
    match current().taken.swap(NONE, Ordering::Relaxed) {
        NONE => None,
        vector => Some(low_u8(u64::from(vector))),
    }
}

/// Notes a non-maskable interrupt that no CPU has sent.
pub(crate) fn note_nmi() {
    current().nmi_seen.store(true, Ordering::Relaxed);
}

/// Whether one came since the last call.
pub(crate) fn take_nmi() -> bool {
    current().nmi_seen.swap(false, Ordering::Relaxed)
}

/// This CPU's number, for the panic report; there is none before the boot CPU's area exists.
pub(crate) fn known_number() -> Option<u32> {
    // SAFETY: every x86-64 CPU has the MSR.
    let has_area = unsafe { cpu::rdmsr(cpu::msr::GS_BASE) } != 0;
    has_area.then(|| current().id)
}

/// The TSS and GDT addresses of this CPU, for the host state of a VMCS.
pub(crate) fn descriptor_bases() -> (u64, u64) {
    let area = current();
    ((&raw const area.gdt).addr() as u64, (&raw const area.tss).addr() as u64)
}
