// SPDX-License-Identifier: MIT OR Apache-2.0
//! Two clocks below the kernel's: the TSC, and the ACPI power-management timer.
//!
//! The timer is a counter in an I/O port at 3.579545 MHz that no software sets, so it is what the
//! kernel's clock is checked against. It must be read by one 32-bit access: emulators refuse others,
//! and bytes read one by one do not belong together.
//!
//! Source: ACPI specification 6.4, section 4.8.3.3 "Power Management Timer" and table 5.9 "FADT Format".

use std::arch::asm;

use rustix::io::Errno;

use super::Error;

/// The timer's rate.
pub const PM_TIMER_HZ: u64 = 3_579_545;
const FADT: &str = "/sys/firmware/acpi/tables/FACP";
const FADT_PM_TIMER_PORT: usize = 76;
const FADT_FLAGS: usize = 112;
const FLAG_TIMER_IS_32_BITS: u32 = 1 << 8;

/// The CPU's time-stamp counter, after all that stands before in the program.
#[must_use]
pub fn tsc() -> u64 {
    // SAFETY: LFENCE changes no memory and exists on every 64-bit CPU.
    unsafe { std::arch::x86_64::_mm_lfence() };
    // SAFETY: RDTSC changes no memory; Linux lets user programs execute it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// The power-management timer, with the right to read its port.
#[derive(Debug)]
pub struct PmTimer {
    port: u16,
    mask: u32,
}

impl PmTimer {
    /// Finds the timer in the firmware's tables and gets access to its port for this thread.
    ///
    /// # Errors
    /// The machine has no such timer, or this is not root.
    pub fn open() -> Result<Self, Error> {
        let failed = |operation: &str, cause| Error::Operation { device: FADT, operation: operation.to_owned(), cause };
        let table = std::fs::read(FADT)
            .map_err(|error| failed("reading (only root may)", Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        let word =
            |at: usize| table.get(at..).and_then(|rest| rest.first_chunk()).map(|bytes| u32::from_le_bytes(*bytes));
        let port = word(FADT_PM_TIMER_PORT).and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
        let port = port.ok_or_else(|| failed("finding the power-management timer", Errno::NODEV))?;
        let wide = word(FADT_FLAGS).is_some_and(|flags| flags & FLAG_TIMER_IS_32_BITS != 0);
        // SAFETY: the call gives this thread access to four ports and changes nothing else.
        let result = unsafe { libc::ioperm(port.into(), 4, 1) };
        if result != 0 {
            let cause = Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO);
            return Err(failed("access to the timer's port (only root may)", cause));
        }
        Ok(Self { port, mask: if wide { u32::MAX } else { (1 << 24) - 1 } })
    }

    /// The counter.
    #[must_use]
    pub fn read(&self) -> u32 {
        let value: u32;
        // SAFETY: (1) `open` got access to the port for this thread, and `PmTimer` is not `Send` in
        // effect: a thread without access gets SIGSEGV, not undefined behaviour; (2) reading this
        // timer has no effect on memory or device.
        unsafe {
            asm!("in eax, dx", in("dx") self.port, out("eax") value, options(nomem, nostack, preserves_flags));
        }
        value & self.mask
    }

    /// Ticks from one reading to a later one, less than a wrap (4.7 s for a 24-bit timer) apart.
    #[must_use]
    pub fn ticks(&self, from: u32, to: u32) -> u32 {
        to.wrapping_sub(from) & self.mask
    }
}
