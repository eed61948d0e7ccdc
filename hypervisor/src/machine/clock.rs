// SPDX-License-Identifier: MIT OR Apache-2.0
//! How fast the time-stamp counter runs, and the hypervisor's uptime.
//!
//! The frequency is measured once against the PIT's channel 2: CPUID leaf 15h is not believed,
//! because emulators report a frequency there that is not theirs. `cpu_khz=` overrides it.

use core::sync::atomic::{AtomicU64, Ordering};

use super::cpu;

static KHZ: AtomicU64 = AtomicU64::new(0);
static BOOT_TSC: AtomicU64 = AtomicU64::new(0);

const PIT_HZ: u64 = 1_193_182;
const PIT_COUNTER_2: u16 = 0x42;
const PIT_COMMAND: u16 = 0x43;
const GATE: u16 = 0x61;
/// 10 ms: long enough for 0.1 %, short enough for every boot.
const MEASURE_COUNTS: u16 = 11_932;

/// Notes when the hypervisor started.
pub(crate) fn start() {
    BOOT_TSC.store(cpu::rdtsc().raw(), Ordering::Relaxed);
}

/// Takes the given frequency, or measures it, in kHz. `None` if the timer never ends.
pub(crate) fn init(given_khz: Option<u64>) -> Option<u64> {
    let khz = match given_khz {
        Some(khz) => khz,
        None => measure()?,
    };
    KHZ.store(khz, Ordering::Relaxed);
    Some(khz)
}

/// Microseconds since [`start`]; 0 until the frequency is known.
pub(crate) fn uptime_micros() -> u64 {
    let khz = KHZ.load(Ordering::Relaxed);
    let ticks = cpu::rdtsc().raw().wrapping_sub(BOOT_TSC.load(Ordering::Relaxed));
    // 2^64 / 1000 ticks are 50 days at 4 GHz; after that the log's clock starts again.
    ticks.wrapping_mul(1000).checked_div(khz).unwrap_or(0)
}

/// The time-stamp counter at [`start`].
pub(crate) fn boot_tsc() -> u64 {
    BOOT_TSC.load(Ordering::Relaxed)
}

fn measure() -> Option<u64> {
    let [low, high] = MEASURE_COUNTS.to_le_bytes();
    // SAFETY: for all port accesses of this function: the PIT and the speaker gate start no DMA and
    // no guest runs yet that could use them.
    let gate = unsafe { cpu::inb(GATE) };
    // Gate on, speaker off; channel 2, both bytes, mode 0: the output rises when the count ends.
    let setup = [(GATE, gate & !0x02 | 0x01), (PIT_COMMAND, 0xb0), (PIT_COUNTER_2, low), (PIT_COUNTER_2, high)];
    for (port, value) in setup {
        // SAFETY: as above.
        unsafe { cpu::outb(port, value) };
    }
    let begin = cpu::rdtsc().raw();
    // A machine without a PIT reads all ones at once or never; both are refused.
    for round in 0_u64..50_000_000 {
        // SAFETY: as above.
        if unsafe { cpu::inb(GATE) } & 0x20 != 0 {
            if round < 2 {
                return None;
            }
            let ticks = cpu::rdtsc().raw().wrapping_sub(begin);
            return Some(ticks * PIT_HZ / u64::from(MEASURE_COUNTS) / 1000);
        }
    }
    None
}
