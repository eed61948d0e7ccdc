// SPDX-License-Identifier: MIT OR Apache-2.0
//! The time of day at boot, from the CMOS clock.
//!
//! Read once; afterwards the clock is dom0's.

use super::{clock, cpu};

const INDEX: u16 = 0x70;
const DATA: u16 = 0x71;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const UPDATING: u8 = 0x80;
const BINARY: u8 = 1 << 2;
const HOURS_24: u8 = 1 << 1;
/// Reads until two agree; a clock that never settles is taken as it is.
const ATTEMPTS: u32 = 16;

fn read(register: u8) -> u8 {
    // SAFETY: the CMOS clock starts no DMA, and no guest runs yet.
    unsafe { cpu::outb(INDEX, register) };
    // SAFETY: as above.
    unsafe { cpu::inb(DATA) }
}

fn snapshot() -> [u8; 6] {
    for _ in 0..100_000 {
        if read(STATUS_A) & UPDATING == 0 {
            break;
        }
    }
    [0, 2, 4, 7, 8, 9].map(read)
}

/// Nanoseconds since 1970 at the hypervisor's system time 0.
pub(crate) fn nanos_since_1970() -> u64 {
    let mut now = snapshot();
    for _ in 0..ATTEMPTS {
        let again = snapshot();
        if again == now {
            break;
        }
        now = again;
    }
    let status = read(STATUS_B);
    let decode = |value: u8| match status & BINARY {
        0 => u64::from(value >> 4) * 10 + u64::from(value & 0xf),
        _ => u64::from(value),
    };
    let [second, minute, raw_hour, day, month, year] = now;
    let is_pm = status & HOURS_24 == 0 && raw_hour & 0x80 != 0;
    let hour = decode(raw_hour & 0x7f) % if status & HOURS_24 == 0 { 12 } else { 24 } + if is_pm { 12 } else { 0 };
    let days = days_since_1970(2000 + decode(year), decode(month).clamp(1, 12), decode(day).max(1));
    let seconds = ((days * 24 + hour) * 60 + decode(minute)) * 60 + decode(second);
    (seconds * 1_000_000_000).saturating_sub(clock::uptime_micros() * 1000)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    // March is the first month, so that the leap day is the last of the year.
    let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let leap_days = year / 4 - year / 100 + year / 400;
    year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1 - 719_468
}
