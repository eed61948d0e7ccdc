// SPDX-License-Identifier: MIT OR Apache-2.0
//! How fast the time-stamp counter runs, whether it agrees between CPUs, and the hypervisor's uptime.
//!
//! The frequency is measured once against the PIT's channel 2: CPUID leaf 15h is not believed,
//! because emulators report a frequency there that is not theirs. `cpu_khz=` overrides it.

use alloc::string::String;
use core::sync::atomic::{AtomicU64, Ordering};

use spin::Mutex;

use super::cpu;

static KHZ: AtomicU64 = AtomicU64::new(0);
static BOOT_TSC: AtomicU64 = AtomicU64::new(0);

const PIT_HZ: u64 = 1_193_182;
const PIT_COUNTER_2: u16 = 0x42;
const PIT_COMMAND: u16 = 0x43;
const GATE: u16 = 0x61;
/// Bit of [`GATE`]: channel 2 has counted to its end.
const PIT_OUTPUT: u8 = 0x20;
/// 10 ms: long enough for 0.1 %, short enough for every boot.
const MEASURE_COUNTS: u32 = 11_932;
/// Readings until a PIT that does not count is given up.
const MEASURE_ROUNDS: u32 = 2_000_000;
const MEASURE_ATTEMPTS: u32 = 10;
const SAMPLE_READINGS: u32 = 8;

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

/// Polls `is_done` for up to `micros`; `false` if it never was.
pub(crate) fn poll_micros(micros: u64, is_done: &mut dyn FnMut() -> bool) -> bool {
    let end = cpu::rdtsc().raw() + micros * KHZ.load(Ordering::Relaxed) / 1000;
    loop {
        if is_done() {
            return true;
        }
        if cpu::rdtsc().raw() >= end {
            return false;
        }
        core::hint::spin_loop();
    }
}

/// Waits.
pub(crate) fn delay_micros(micros: u64) {
    poll_micros(micros, &mut || false);
}

/// Ticks of the TSC in a millisecond.
pub(crate) fn ticks_per_ms() -> u64 {
    KHZ.load(Ordering::Relaxed)
}

/// Which of two CPUs that compare their counters.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The one whose counter is the clock.
    Boot = 0,
    /// The one that is being started.
    Started = 1,
}

/// The last reading of either counter.
static LAST: Mutex<u64> = Mutex::new(0);
/// How far each side has seen its own counter behind the other's.
static BEHIND: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
/// How often either side has come to a meeting point.
static MEETINGS: AtomicU64 = AtomicU64::new(0);

/// Prepares for [`agree`], while no other CPU is in it.
pub(crate) fn begin_to_agree() {
    MEETINGS.store(0, Ordering::SeqCst);
    *LAST.lock() = 0;
}

/// Sees to it that the time-stamp counters of two CPUs agree: neither ever reads less than the other
/// has read before. Both call it at the same time, and get the same answer.
///
/// # Errors
/// By how much they disagree, for a message.
pub(crate) fn agree(side: Side) -> Result<(), String> {
    const ATTEMPTS: u32 = 2;
    let own = &BEHIND[side as usize];
    let mut seen = (0, 0);
    for attempt in 0..ATTEMPTS {
        own.store(0, Ordering::SeqCst);
        meet()?;
        own.store(race(), Ordering::SeqCst);
        meet()?;
        seen =
            (BEHIND[Side::Boot as usize].load(Ordering::SeqCst), BEHIND[Side::Started as usize].load(Ordering::SeqCst));
        if seen == (0, 0) {
            return Ok(());
        }
        if side == Side::Started && attempt == 0 {
            let corrected = cpu::rdtsc().raw().wrapping_add(seen.1).wrapping_sub(seen.0);
            // SAFETY: every x86-64 CPU has the MSR; nothing on this CPU has used its counter yet.
            unsafe { cpu::wrmsr(cpu::msr::TSC, corrected) };
        }
        *LAST.lock() = 0;
        meet()?;
    }
    Err(alloc::format!("its time-stamp counter disagrees with the boot CPU's by {} ticks", seen.0.max(seen.1)))
}

/// Reads the counter many times in turn with the other side; how far it was behind at worst.
fn race() -> u64 {
    const ROUNDS: u32 = 5_000;
    (0..ROUNDS).fold(0, |worst, _| {
        let mut last = LAST.lock();
        let now = cpu::rdtsc_ordered().raw();
        let behind = last.saturating_sub(now);
        *last = now;
        worst.max(behind)
    })
}

/// Waits until the other side has come here too.
fn meet() -> Result<(), String> {
    const MICROS: u64 = 2_000_000;
    let wanted = MEETINGS.fetch_add(1, Ordering::SeqCst) / 2 * 2 + 2;
    if poll_micros(MICROS, &mut || MEETINGS.load(Ordering::SeqCst) >= wanted) {
        Ok(())
    } else {
        Err("it went silent while the time-stamp counters were compared".into())
    }
}

/// Ticks against counts of the PIT's channel 2. A measurement that was held up for longer than the
/// counter runs (an emulator that got no CPU) is made again.
fn measure() -> Option<u64> {
    // SAFETY: for all port accesses below: the PIT and the speaker gate start no DMA and no guest
    // runs yet that could use them.
    let gate = unsafe { cpu::inb(GATE) };
    for _ in 0..MEASURE_ATTEMPTS {
        // Gate on, speaker off; channel 2, both bytes, mode 0: it counts down from the top once.
        let setup = [(GATE, gate & !0x02 | 0x01), (PIT_COMMAND, 0xb0), (PIT_COUNTER_2, 0xff), (PIT_COUNTER_2, 0xff)];
        for (port, value) in setup {
            // SAFETY: as above.
            unsafe { cpu::outb(port, value) };
        }
        let (begin, first) = sample(pit_count);
        // A machine without a PIT reads all ones for ever.
        (0..MEASURE_ROUNDS).find(|_| first.wrapping_sub(pit_count()) & 0xffff >= MEASURE_COUNTS)?;
        let (end, last) = sample(pit_count);
        // SAFETY: as above.
        let has_ended = unsafe { cpu::inb(GATE) } & PIT_OUTPUT != 0;
        let counts = u64::from(first.wrapping_sub(last) & 0xffff);
        if !has_ended && counts != 0 {
            return Some(end.wrapping_sub(begin) * PIT_HZ / counts / 1000);
        }
    }
    None
}

/// The latched count of channel 2.
fn pit_count() -> u32 {
    // SAFETY: for all three: as in `measure`, the only caller.
    unsafe { cpu::outb(PIT_COMMAND, 0x80) };
    // SAFETY: as above.
    let low = unsafe { cpu::inb(PIT_COUNTER_2) };
    // SAFETY: as above.
    let high = unsafe { cpu::inb(PIT_COUNTER_2) };
    u32::from(u16::from_le_bytes([low, high]))
}

/// Reads a counter and the TSC as nearly at one moment as can be: of a few readings the one that
/// took the least time, so that being held up between the two (by SMM, or by an emulator's host)
/// does not count.
pub(crate) fn sample(mut read: impl FnMut() -> u32) -> (u64, u32) {
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..SAMPLE_READINGS {
        let before = cpu::rdtsc().raw();
        let value = read();
        let took = cpu::rdtsc().raw().wrapping_sub(before);
        if took < best.0 {
            best = (took, before.wrapping_add(took / 2), value);
        }
    }
    (best.1, best.2)
}
