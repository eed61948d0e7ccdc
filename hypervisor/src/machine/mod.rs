// SPDX-License-Identifier: MIT OR Apache-2.0
//! The bare metal: everything that needs `unsafe`, and nothing that decides.
//!
//! Each module owns one piece of hardware. What they rely on is written in the design chapter on
//! soundness; each block says who made it true. Policy lives in the library, which reaches this
//! code through [`hypervisor::backend`].
#![expect(unsafe_code, reason = "this is the part of the hypervisor that touches hardware")]

/// Assembles a file that finds the general-purpose registers in [`hypervisor::vcpu::regs::GuestRegs`] by their names.
macro_rules! global_asm_with_regs {
    ($file:literal $(, $name:ident = $value:expr)*) => {
        global_asm_with_regs!(
            @ $file, [rbx rcx rdx rsi rdi rbp r8 r9 r10 r11 r12 r13 r14 r15] $(, $name = $value)*
        );
    };
    (@ $file:literal, [$($reg:ident)*] $(, $name:ident = $value:expr)*) => {
        core::arch::global_asm!(
            include_str!($file),
            $($reg = const core::mem::offset_of!(hypervisor::vcpu::regs::GuestRegs, $reg),)*
            $($name = const $value,)*
        );
    };
}

pub(crate) mod apic;
pub(crate) mod boot;
pub(crate) mod bulk;
pub(crate) mod clock;
pub(crate) mod console;
pub(crate) mod cpu;
pub(crate) mod heap;
pub(crate) mod hw;
pub(crate) mod hygiene;
pub(crate) mod layout;
pub(crate) mod lazy;
pub(crate) mod memory;
pub(crate) mod paging;
pub(crate) mod panic;
pub(crate) mod percpu;
pub(crate) mod rtc;
pub(crate) mod screen;
pub(crate) mod smp;
pub(crate) mod svm;
pub(crate) mod traps;
pub(crate) mod vmx;
