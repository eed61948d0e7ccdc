// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest says: one line a check on port 0xE9, `DONE` at the end, and its exit status.
//!
//! `PASS name`, `FAIL name: why` and `SKIP name: why` are for the harness to read. The guest powers
//! off if nothing failed and reports a crash otherwise, so that the status alone tells as well.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use guest_abi::console_io::DEBUG_PORT;
use guest_abi::sched::{SHUTDOWN_CRASH, SHUTDOWN_POWEROFF};

use crate::{cpu, hypercall};

static PASSED: AtomicU32 = AtomicU32::new(0);
static FAILED: AtomicU32 = AtomicU32::new(0);

struct Port;

impl Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            cpu::outb(DEBUG_PORT, byte);
        }
        Ok(())
    }
}

/// Prints one line.
pub fn line(text: fmt::Arguments<'_>) {
    // The port takes every byte.
    let _ = writeln!(Port, "{text}");
}

/// Prints one formatted line.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => { $crate::report::line(format_args!($($arg)*)) };
}

/// Reports whether what `name` says holds.
pub fn check(name: &str, ok: bool) {
    if ok {
        PASSED.fetch_add(1, Relaxed);
        line(format_args!("PASS {name}"));
    } else {
        fail(name, format_args!("does not hold"));
    }
}

/// Reports whether `got` is what `name` says it is.
pub fn check_eq<T: PartialEq + fmt::Debug>(name: &str, got: T, want: T) {
    if got == want {
        check(name, true);
    } else {
        fail(name, format_args!("got {got:x?}, want {want:x?}"));
    }
}

/// Reports a failure and why.
pub fn fail(name: &str, why: fmt::Arguments<'_>) {
    FAILED.fetch_add(1, Relaxed);
    line(format_args!("FAIL {name}: {why}"));
}

/// Reports a check that cannot be made here.
pub fn skip(name: &str, why: &str) {
    line(format_args!("SKIP {name}: {why}"));
}

/// Whether any check failed.
#[must_use]
pub fn any_failed() -> bool {
    FAILED.load(Relaxed) != 0
}

/// Prints the last line.
pub fn done() {
    line(format_args!("DONE {} passed, {} failed", PASSED.load(Relaxed), FAILED.load(Relaxed)));
}

/// Prints the last line and ends the guest: powered off if nothing failed, else crashed.
pub fn finish() -> ! {
    done();
    hypercall::shutdown(if any_failed() { SHUTDOWN_CRASH } else { SHUTDOWN_POWEROFF })
}

/// Reports what makes going on senseless, and ends the guest.
pub fn fatal(why: fmt::Arguments<'_>) -> ! {
    fail("guest", why);
    finish()
}
