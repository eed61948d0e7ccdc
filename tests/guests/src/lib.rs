// SPDX-License-Identifier: MIT OR Apache-2.0
//! What micro-guests share.
//!
//! A micro-guest is a PVH kernel of some 100 lines that proves one behaviour of the hypervisor and
//! says so on port 0xE9. This library brings it from the PVH entry to 64-bit Rust, with the first
//! 4 GiB identity-mapped, exceptions as values ([`traps::catch`]), hypercalls, event channels and the
//! local APIC. Virtual and guest physical addresses are the same, so a static is a page that can be
//! named to the hypervisor.
//!
//! A guest is a binary with a header that says what it proves, what a pass cannot tell, and which
//! document it checks; its body is [`guest!`]. Start reading at `bin/hello.rs`.
#![no_std]
#![deny(missing_docs)]
#![cfg(target_os = "none")]

pub mod apic;
pub mod boot;
pub mod card;
pub mod control;
pub mod counters;
pub mod cpu;
pub mod device;
pub mod disk;
pub mod events;
pub mod grants;
pub mod hypercall;
pub mod paging;
pub mod pair;
pub mod report;
pub mod sched;
pub mod shared;
pub mod smp;
pub mod time;
pub mod traps;
pub mod xenstore;

pub use report::{check, check_eq, skip};

/// Makes a function the guest: the library calls it and reports when it returns.
#[macro_export]
macro_rules! guest {
    ($main:path) => {
        #[unsafe(no_mangle)]
        fn guest_main() {
            let main: fn() = $main;
            main();
        }
    };
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    report::fatal(format_args!("{info}"))
}
