// SPDX-License-Identifier: MIT OR Apache-2.0
//! The interrupt descriptor table and what arrives through it.
//!
//! The hypervisor runs with interrupts off. It opens a window only while idle and, on SVM, after
//! an exit that says an interrupt is waiting. An interrupt handler does nothing but note its
//! vector and return with interrupts still off, so at most one is taken per window; what it means
//! is decided by the code that opened the window. The local APIC's EOI is sent there too, after a
//! level-triggered line has been masked.

use core::arch::global_asm;
use core::fmt;

use x86_64::VirtAddr;
use x86_64::instructions::tables::lidt;
use x86_64::structures::DescriptorTablePointer;

use super::{panic, percpu, smp};

global_asm!(include_str!("traps.S"));

unsafe extern "C" {
    static trap_stubs: u8;
}

const STUB_SIZE: u64 = 16;
const VECTOR_NMI: u64 = 2;
const VECTOR_DOUBLE_FAULT: u64 = 8;
const VECTOR_MACHINE_CHECK: u64 = 18;
const RFLAGS_IF: u64 = 1 << 9;

/// The registers that the stubs save, in stack order.
#[repr(C)]
pub(crate) struct TrapFrame {
    rax: u64,
    rbx: u64,
    rcx: u64,
    rdx: u64,
    rsi: u64,
    rdi: u64,
    pub(crate) rbp: u64,
    r8: u64,
    r9: u64,
    r10: u64,
    r11: u64,
    r12: u64,
    r13: u64,
    r14: u64,
    r15: u64,
    pub(crate) vector: u64,
    pub(crate) error_code: u64,
    pub(crate) rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}
const _: () = assert!(size_of::<TrapFrame>() == 22 * 8);

impl fmt::Display for TrapFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}", self.rax, self.rbx, self.rcx, self.rdx)?;
        writeln!(f, "  rsi {:016x} rdi {:016x} rbp {:016x} rsp {:016x}", self.rsi, self.rdi, self.rbp, self.rsp)?;
        writeln!(f, "  r8  {:016x} r9  {:016x} r10 {:016x} r11 {:016x}", self.r8, self.r9, self.r10, self.r11)?;
        writeln!(f, "  r12 {:016x} r13 {:016x} r14 {:016x} r15 {:016x}", self.r12, self.r13, self.r14, self.r15)?;
        writeln!(f, "  rip {:016x} cs {:x} ss {:x} rflags {:x}", self.rip, self.cs, self.ss, self.rflags)
    }
}

/// The table: 256 gates of two words. Written once, before it is loaded.
#[repr(C, align(16))]
struct Idt([[u64; 2]; 256]);

static mut IDT: Idt = Idt([[0; 2]; 256]);

/// Fills the table and loads it. The per-CPU area with its TSS must be in place.
pub(crate) fn init() {
    let stubs = (&raw const trap_stubs).addr() as u64;
    for vector in 0..256_u64 {
        let handler = stubs + vector * STUB_SIZE;
        let stack = match vector {
            VECTOR_DOUBLE_FAULT => percpu::IST_FAULT,
            VECTOR_NMI | VECTOR_MACHINE_CHECK => percpu::IST_NMI,
            _ => 0,
        };
        // Present, ring 0, 64-bit interrupt gate. Source: Intel SDM vol. 3A, 64-Bit IDT Gate Descriptors.
        let low = handler & 0xffff
            | u64::from(percpu::SELECTOR_CODE) << 16
            | u64::from(stack) << 32
            | 0x8e << 40
            | (handler >> 16 & 0xffff) << 48;
        let entry = (&raw mut IDT).cast::<[u64; 2]>().wrapping_add(guest_abi::num::to_usize(vector));
        // SAFETY: inside the array; the table is not loaded yet and only this CPU runs.
        unsafe { entry.write([low, handler >> 32]) };
    }
    load();
}

/// Loads the table on this CPU.
pub(crate) fn load() {
    let limit = 256 * 16 - 1;
    let pointer = DescriptorTablePointer { limit, base: VirtAddr::from_ptr(&raw const IDT) };
    // SAFETY: the table lives for ever and every gate leads to a stub.
    unsafe { lidt(&pointer) };
}

/// The table's address, for the host state of a VMCS.
pub(crate) fn idt_base() -> u64 {
    (&raw const IDT).addr() as u64
}

#[unsafe(no_mangle)]
extern "C" fn trap_entry(frame: &mut TrapFrame) {
    match frame.vector {
        VECTOR_NMI => {
            panic::stop_if_panicking();
            if !smp::was_insisted() {
                percpu::note_nmi();
            }
        }
        vector @ 0..32 => panic::fatal_trap(frame, exception_name(vector)),
        vector => {
            percpu::note_interrupt(guest_abi::num::low_u8(vector));
            frame.rflags &= !RFLAGS_IF;
        }
    }
}

fn exception_name(vector: u64) -> &'static str {
    match vector {
        0 => "divide error",
        1 => "debug exception",
        3 => "breakpoint",
        4 => "overflow",
        5 => "bound range exceeded",
        6 => "invalid opcode",
        7 => "device not available (the hypervisor used the FPU)",
        8 => "double fault (stack overflow?)",
        10 => "invalid TSS",
        11 => "segment not present",
        12 => "stack fault",
        13 => "general protection",
        14 => "page fault",
        16 => "x87 error",
        17 => "alignment check",
        18 => "machine check",
        19 => "SIMD exception",
        21 => "control protection",
        _ => "reserved exception",
    }
}

/// Shuts the CPU down by a fault that no handler can take; the chipset resets the machine.
pub(crate) fn triple_fault() -> ! {
    let pointer = DescriptorTablePointer { limit: 0, base: VirtAddr::zero() };
    // SAFETY: the fault that follows ends the machine, which is what is wanted.
    unsafe { lidt(&pointer) };
    x86_64::instructions::interrupts::int3();
    super::cpu::halt()
}
