// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's binary: the bare metal below the library, and the order in which they start.
#![no_std]
#![no_main]
#![deny(unsafe_code)]

extern crate alloc;

mod machine;

use machine::boot::{BootInfo, power};

/// Goes on where `boot_main` ends: the console, traps and the early heap work.
fn start(info: &BootInfo) -> ! {
    log::info!("command line: {}", info.command_line);
    for module in &info.modules {
        log::info!("module at {:#x}, {} KiB: {}", module.start, module.len >> 10, module.args);
    }
    power::fail(format_args!("nothing to start"))
}
