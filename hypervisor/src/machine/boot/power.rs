// SPDX-License-Identifier: MIT OR Apache-2.0
//! How the machine ends when the hypervisor decides it.

use core::fmt;
use core::sync::atomic::{AtomicU8, Ordering};

use hypervisor::boot::cmdline::ExitDevice;

use super::super::{console, cpu};

/// The hypervisor could not start what it was given.
pub(crate) const STATUS_BOOT_FAILED: u8 = 4;
/// The hypervisor's own invariants broke.
pub(crate) const STATUS_PANIC: u8 = 5;

static EXIT_DEVICE: AtomicU8 = AtomicU8::new(ExitDevice::Acpi as u8);

/// Chooses how [`exit`] ends the machine; it halts unless this is an emulator's device.
pub(crate) fn set_exit_device(device: ExitDevice) {
    EXIT_DEVICE.store(device as u8, Ordering::Relaxed);
}

/// Says why the hypervisor cannot go on, and ends.
pub(crate) fn fail(why: fmt::Arguments<'_>) -> ! {
    log::error!("cannot start: {why}");
    exit(STATUS_BOOT_FAILED)
}

/// Ends the machine with a status for the emulator.
pub(crate) fn exit(status: u8) -> ! {
    log::info!("machine exit status={status}");
    console::drain();
    let device = EXIT_DEVICE.load(Ordering::Relaxed);
    if device == ExitDevice::Qemu as u8 {
        // SAFETY: without the device the port is unclaimed; with it the machine ends.
        unsafe { cpu::outb(0xf4, status) };
    } else if device == ExitDevice::Bochs as u8 {
        for byte in b"Shutdown" {
            // SAFETY: as above.
            unsafe { cpu::outb(0x8900, *byte) };
        }
    }
    cpu::halt()
}

/// Resets the machine: chipset register, keyboard controller, then a triple fault.
pub(crate) fn reset() -> ! {
    log::info!("resetting the machine");
    console::drain();
    // SAFETY: the reset is what is wanted.
    unsafe { cpu::outb(0xcf9, 0x02) };
    // SAFETY: as above.
    unsafe { cpu::outb(0xcf9, 0x06) };
    for _ in 0..1_000_000 {
        core::hint::spin_loop();
    }
    // SAFETY: as above.
    unsafe { cpu::outb(0x64, 0xfe) };
    for _ in 0..1_000_000 {
        core::hint::spin_loop();
    }
    super::super::traps::triple_fault()
}
