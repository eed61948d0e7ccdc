// SPDX-License-Identifier: MIT OR Apache-2.0
//! The physical local APIC and I/O APICs.
//!
//! The local APIC is used in x2APIC mode where the CPU has it, else through its page. It serves
//! as the deadline timer (TSC-deadline mode where the CPU has it, else one-shot) and takes the
//! EOIs. I/O APIC registers are reached through [`Machine`](hypervisor::backend::Machine) only.
//!
//! Source: Intel SDM vol. 3A, Advanced Programmable Interrupt Controller; 82093AA data sheet.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use hypervisor::addr::Ticks;

use super::{clock, cpu, layout, percpu};

/// The hypervisor's own vectors. Below them lie dom0's (0x20 to 0xeb).
pub(crate) mod vector {
    pub(crate) const TIMER: u8 = 0xf0;
    pub(crate) const UART: u8 = 0xf1;
    pub(crate) const KICK: u8 = 0xf2;
    pub(crate) const SPURIOUS: u8 = 0xff;
}

mod reg {
    pub(super) const ID: u32 = 0x20;
    pub(super) const TPR: u32 = 0x80;
    pub(super) const EOI: u32 = 0xb0;
    pub(super) const SVR: u32 = 0xf0;
    pub(super) const ICR: u32 = 0x300;
    pub(super) const ICR_HIGH: u32 = 0x310;
    pub(super) const LVT_TIMER: u32 = 0x320;
    pub(super) const LVT_LINT0: u32 = 0x350;
    pub(super) const LVT_LINT1: u32 = 0x360;
    pub(super) const LVT_ERROR: u32 = 0x370;
    pub(super) const TIMER_INITIAL: u32 = 0x380;
    pub(super) const TIMER_CURRENT: u32 = 0x390;
    pub(super) const TIMER_DIVIDE: u32 = 0x3e0;
}

const MSR_X2APIC: u32 = 0x800;
const MSR_TSC_DEADLINE: u32 = 0x6e0;
const LVT_MASKED: u32 = 1 << 16;
const LVT_TSC_DEADLINE: u32 = 2 << 17;
const DIVIDE_BY_1: u32 = 0b1011;
const BASE_ENABLE: u64 = 1 << 11;
const BASE_X2APIC: u64 = 1 << 10;

static X2APIC: AtomicBool = AtomicBool::new(false);
static TSC_DEADLINE: AtomicBool = AtomicBool::new(false);
/// Timer counts per 2^20 TSC ticks, in one-shot mode.
static COUNTS_PER_MEBITICK: AtomicU64 = AtomicU64::new(0);
static NR_IOAPICS: AtomicU32 = AtomicU32::new(0);

fn read(register: u32) -> u32 {
    if X2APIC.load(Ordering::Relaxed) {
        // SAFETY: x2APIC mode is on, so the register exists as an MSR.
        return guest_abi::num::low_u32(unsafe { cpu::rdmsr(MSR_X2APIC + (register >> 4)) });
    }
    // SAFETY: paging.rs mapped the APIC's page there, uncached.
    unsafe { register_pointer(register).read_volatile() }
}

fn write(register: u32, value: u32) {
    if X2APIC.load(Ordering::Relaxed) {
        // SAFETY: x2APIC mode is on; none of the registers written here affects memory.
        unsafe { cpu::wrmsr(MSR_X2APIC + (register >> 4), u64::from(value)) };
        return;
    }
    // SAFETY: paging.rs mapped the APIC's page there, uncached.
    unsafe { register_pointer(register).write_volatile(value) };
}

fn register_pointer(register: u32) -> *mut u32 {
    core::ptr::with_exposed_provenance_mut(guest_abi::num::to_usize(layout::LAPIC + u64::from(register)))
}

/// The physical address of the local APIC's page.
pub(crate) fn base() -> u64 {
    // SAFETY: every x86-64 CPU has the MSR.
    unsafe { cpu::rdmsr(cpu::msr::APIC_BASE) & 0x000f_ffff_ffff_f000 }
}

/// Enables the boot CPU's local APIC and measures its timer. The tables of `paging.rs` are in use.
pub(crate) fn init() {
    let features = cpu::cpuid(1, 0);
    X2APIC.store(features.ecx & 1 << 21 != 0, Ordering::Relaxed);
    TSC_DEADLINE.store(features.ecx & 1 << 24 != 0, Ordering::Relaxed);
    enable();
    if !TSC_DEADLINE.load(Ordering::Relaxed) {
        measure_timer();
    }
}

/// Enables this CPU's local APIC in the mode that [`init`] has chosen, with nothing but the timer let in.
pub(crate) fn enable() {
    // SAFETY: every x86-64 CPU has the MSR.
    let base = unsafe { cpu::rdmsr(cpu::msr::APIC_BASE) };
    let x2apic = if X2APIC.load(Ordering::Relaxed) { BASE_X2APIC } else { 0 };
    let wanted = base | BASE_ENABLE | x2apic;
    if wanted != base {
        // SAFETY: turns the APIC on; x2APIC mode was looked up, and keeps the APIC's state.
        unsafe { cpu::wrmsr(cpu::msr::APIC_BASE, wanted) };
    }
    write(reg::LVT_TIMER, LVT_MASKED);
    write(reg::LVT_LINT0, LVT_MASKED);
    write(reg::LVT_LINT1, 0x400);
    write(reg::LVT_ERROR, LVT_MASKED);
    write(reg::TPR, 0);
    write(reg::SVR, 1 << 8 | u32::from(vector::SPURIOUS));
    let mode = if TSC_DEADLINE.load(Ordering::Relaxed) {
        LVT_TSC_DEADLINE
    } else {
        write(reg::TIMER_DIVIDE, DIVIDE_BY_1);
        0
    };
    write(reg::LVT_TIMER, mode | u32::from(vector::TIMER));
}

/// An interprocessor interrupt, by what it does to a CPU.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ipi {
    /// Makes it take an interrupt with this vector.
    Fixed(u8),
    /// Makes it take an NMI.
    Nmi,
    /// Resets it; it then waits for a start-up.
    Init,
    /// Starts it in real mode at the page.
    Startup(u8),
}

impl Ipi {
    const fn command(self) -> u32 {
        match self {
            Self::Fixed(vector) => 1 << 14 | vector as u32,
            Self::Nmi => 1 << 14 | 4 << 8,
            Self::Init => 1 << 14 | 5 << 8,
            Self::Startup(page) => 1 << 14 | 6 << 8 | page as u32,
        }
    }
}

/// The highest APIC id that an interprocessor interrupt reaches.
pub(crate) fn highest_id() -> u32 {
    if X2APIC.load(Ordering::Relaxed) { u32::MAX - 1 } else { 254 }
}

/// Sends an interprocessor interrupt to the CPU with an APIC id.
pub(crate) fn send(to: u32, ipi: Ipi) {
    if X2APIC.load(Ordering::Relaxed) {
        let command = u64::from(to) << 32 | u64::from(ipi.command());
        // In x2APIC mode the write may overtake earlier stores, which are what the receiver is to
        // look at. Source: Intel SDM vol. 3A, MSR Access in x2APIC Mode.
        core::sync::atomic::fence(Ordering::SeqCst);
        // SAFETY: x2APIC mode is on. What the receiver runs is the hypervisor's own: the vectors
        // lead to its IDT, a start-up to its trampoline.
        unsafe { cpu::wrmsr(MSR_X2APIC + (reg::ICR >> 4), command) };
        return;
    }
    const SENDING: u32 = 1 << 12;
    while read(reg::ICR) & SENDING != 0 {
        core::hint::spin_loop();
    }
    write(reg::ICR_HIGH, to << 24);
    write(reg::ICR, ipi.command());
}

/// Counts the timer against the TSC for at least 2^20 ticks. Its interrupt is far away.
fn measure_timer() {
    write(reg::TIMER_INITIAL, u32::MAX);
    let (begin, first) = clock::sample(|| read(reg::TIMER_CURRENT));
    while cpu::rdtsc().raw().wrapping_sub(begin) < 1 << 20 {}
    let (end, last) = clock::sample(|| read(reg::TIMER_CURRENT));
    let counts = u64::from(first.wrapping_sub(last));
    let rate = (counts << 20) / end.wrapping_sub(begin);
    COUNTS_PER_MEBITICK.store(rate.max(1), Ordering::Relaxed);
    write(reg::TIMER_INITIAL, 0);
}

/// This CPU's APIC id.
pub(crate) fn id() -> u32 {
    if X2APIC.load(Ordering::Relaxed) { read(reg::ID) } else { read(reg::ID) >> 24 }
}

/// Whether x2APIC mode is in use, and whether the timer takes TSC deadlines, for the log.
pub(crate) fn modes() -> (bool, bool) {
    (X2APIC.load(Ordering::Relaxed), TSC_DEADLINE.load(Ordering::Relaxed))
}

/// Ends the interrupt in service.
#[inline]
pub(crate) fn eoi() {
    write(reg::EOI, 0);
}

/// Arms the timer for `deadline`; [`Ticks`] of all ones disarm it. Costs nothing when the
/// deadline is the one already set.
#[inline]
pub(crate) fn set_deadline(deadline: Ticks) {
    if percpu::armed() != deadline {
        percpu::set_armed(deadline);
        arm(deadline);
    }
}

/// Notes that the timer has fired, so that the next deadline is armed whatever it is.
pub(crate) fn timer_fired() {
    percpu::set_armed(Ticks::new(0));
}

#[cold]
fn arm(deadline: Ticks) {
    let disarm = deadline.raw() == u64::MAX;
    if TSC_DEADLINE.load(Ordering::Relaxed) {
        let value = if disarm { 0 } else { deadline.raw().max(1) };
        // SAFETY: the CPU has the deadline timer; its vector is the hypervisor's own.
        unsafe { cpu::wrmsr(MSR_TSC_DEADLINE, value) };
        return;
    }
    if disarm {
        write(reg::TIMER_INITIAL, 0);
        return;
    }
    let ticks = deadline.raw().saturating_sub(cpu::rdtsc().raw());
    let rate = COUNTS_PER_MEBITICK.load(Ordering::Relaxed);
    // Rounded up, so that the timer does not fire just before the deadline; a distance beyond
    // the counter fires early and is armed again.
    let counts = ((u128::from(ticks) * u128::from(rate)) >> 20) + 1;
    write(reg::TIMER_INITIAL, u32::try_from(counts).unwrap_or(u32::MAX));
}

/// Notes how many I/O APICs `paging.rs` has mapped.
pub(crate) fn set_nr_ioapics(count: u32) {
    NR_IOAPICS.store(count, Ordering::Relaxed);
}

fn ioapic_page(ioapic: usize) -> u64 {
    assert!((ioapic as u64) < u64::from(NR_IOAPICS.load(Ordering::Relaxed)), "no such I/O APIC");
    layout::IOAPIC + ioapic as u64 * 0x1000
}

fn ioapic_pointer(ioapic: usize, offset: u64) -> *mut u32 {
    core::ptr::with_exposed_provenance_mut(guest_abi::num::to_usize(ioapic_page(ioapic) + offset))
}

/// Reads an I/O APIC register through its index window.
pub(crate) fn ioapic_read(ioapic: usize, register: u8) -> u32 {
    // SAFETY: the page is mapped uncached; the window belongs to the hypervisor alone.
    unsafe { ioapic_pointer(ioapic, 0).write_volatile(u32::from(register)) };
    // SAFETY: as above.
    unsafe { ioapic_pointer(ioapic, 0x10).read_volatile() }
}

/// Writes an I/O APIC register through its index window.
pub(crate) fn ioapic_write(ioapic: usize, register: u8, value: u32) {
    // SAFETY: the page is mapped uncached; the window belongs to the hypervisor alone.
    unsafe { ioapic_pointer(ioapic, 0).write_volatile(u32::from(register)) };
    // SAFETY: as above; the emulated I/O APIC has checked what a guest may route where.
    unsafe { ioapic_pointer(ioapic, 0x10).write_volatile(value) };
}

/// Masks both legacy PICs for good: every interrupt comes through an I/O APIC or as a message.
pub(crate) fn mask_pics() {
    // Moved to vectors 0xe0-0xef first, so that a spurious one is not taken for an exception.
    let steps = [
        (0x20, 0x11),
        (0xa0, 0x11),
        (0x21, 0xe0),
        (0xa1, 0xe8),
        (0x21, 4),
        (0xa1, 2),
        (0x21, 1),
        (0xa1, 1),
        (0x21, 0xff),
        (0xa1, 0xff),
    ];
    for (port, value) in steps {
        // SAFETY: the PICs belong to the hypervisor, and interrupts are off.
        unsafe { cpu::outb(port, value) };
    }
}

/// Routes the console's pin (edge, active high, as ISA lines are) to this CPU's console vector.
pub(crate) fn route_console(ioapic: usize, pin: u8) {
    let entry = 0x10 + 2 * pin;
    ioapic_write(ioapic, entry + 1, id() << 24);
    ioapic_write(ioapic, entry, u32::from(vector::UART));
}
