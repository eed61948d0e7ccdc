// SPDX-License-Identifier: MIT OR Apache-2.0
//! The end: what is printed when the hypervisor's own invariants break, and what follows.
//!
//! The report starts with `(isthmus) PANIC: `, gives registers where a trap caused it, and a backtrace of
//! return addresses as `  #N 0xADDRESS`, which `cargo xtask` turns into functions and lines.

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use hypervisor::boot::cmdline::OnPanic;

use super::traps::TrapFrame;
use super::{boot, console, cpu, layout, percpu, screen, smp};

static POLICY: AtomicU8 = AtomicU8::new(OnPanic::Exit as u8);
static PANICKING: AtomicBool = AtomicBool::new(false);

/// Sets what follows a panic.
pub(crate) fn set_policy(policy: OnPanic) {
    POLICY.store(policy as u8, Ordering::Relaxed);
}

#[panic_handler]
fn rust_panic(info: &PanicInfo<'_>) -> ! {
    begin();
    console::print(format_args!("(isthmus) PANIC: {info}\n"));
    finish(frame_pointer())
}

/// Stops this CPU for good if another one reports a panic; called when that one's NMI arrives.
pub(crate) fn stop_if_panicking() {
    if PANICKING.load(Ordering::SeqCst) {
        cpu::halt();
    }
}

/// A trap that the hypervisor cannot have: prints the registers and ends.
pub(crate) fn fatal_trap(frame: &TrapFrame, name: &str) -> ! {
    begin();
    console::print(format_args!(
        "(isthmus) PANIC: {name} (vector {}, error code {:#x}) at {:#x}, CR2 {:#x}\n",
        frame.vector,
        frame.error_code,
        frame.rip,
        cpu::cr2()
    ));
    console::print(format_args!("{frame}"));
    console::print(format_args!("  #0 {:#x}\n", frame.rip));
    finish(frame.rbp)
}

fn begin() {
    if PANICKING.swap(true, Ordering::SeqCst) {
        // A panic while reporting one, here or on another CPU: nothing more can be said safely.
        cpu::halt();
    }
    smp::stop_others();
    console::break_lock();
    screen::take_for_alarm();
    console::print(format_args!("\n"));
}

fn finish(frame_pointer: u64) -> ! {
    if let Some(cpu) = percpu::known_number() {
        console::print(format_args!("  on CPU {cpu}\n"));
    }
    backtrace(frame_pointer);
    let policy = POLICY.load(Ordering::Relaxed);
    if policy == OnPanic::Reboot as u8 {
        boot::power::reset()
    } else if policy == OnPanic::Halt as u8 {
        console::print(format_args!("(isthmus) halted\n"));
        cpu::halt()
    } else {
        boot::power::exit(boot::power::STATUS_PANIC)
    }
}

fn frame_pointer() -> u64 {
    let value: u64;
    // SAFETY: reads a register.
    unsafe {
        core::arch::asm!("mov {}, rbp", out(reg) value, options(nomem, nostack, preserves_flags));
    }
    value
}

/// Follows saved frame pointers as long as they stay on a stack of the hypervisor.
fn backtrace(mut frame_pointer: u64) {
    const MAX_DEPTH: usize = 32;
    for depth in 1..=MAX_DEPTH {
        if !frame_pointer.is_multiple_of(16) || !is_on_stack(frame_pointer) {
            return;
        }
        let pair = core::ptr::with_exposed_provenance::<[u64; 2]>(guest_abi::num::to_usize(frame_pointer));
        // SAFETY: the address lies on one of the stacks, and so does the word behind it.
        let [next, return_address] = unsafe { pair.read_volatile() };
        if return_address == 0 {
            return;
        }
        console::print(format_args!("  #{depth} {return_address:#x}\n"));
        if next <= frame_pointer {
            return;
        }
        frame_pointer = next;
    }
}

/// Whether 16 bytes at an aligned address lie on a stack of some CPU, outside the guard pages.
fn is_on_stack(address: u64) -> bool {
    let guards = [layout::boot_stack_guard(), layout::fault_stack_guard(), layout::nmi_stack_guard()];
    let is_in_image = (layout::boot_stack_guard()..layout::nmi_stack_top()).contains(&address);
    is_in_image && !guards.iter().any(|guard| (*guard..*guard + 0x1000).contains(&address))
        || layout::is_on_ap_stack(address)
}
