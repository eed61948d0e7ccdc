// SPDX-License-Identifier: MIT OR Apache-2.0
//! The last bytes of the hypervisor's log, for tools to read (sysctl readconsole).
//!
//! Written from anywhere, also from a panic, so there is no lock: a writer takes its place by adding to
//! one counter and then stores its bytes. Who reads while another CPU writes may see a byte of
//! an older lap; a log can bear that.

use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};

/// Bytes that are kept. A power of two, so that the counter may wrap.
pub const LOG_KEPT: usize = 16 << 10;
const _: () = assert!(LOG_KEPT.is_power_of_two());

/// A ring of bytes.
pub struct LogRing {
    bytes: [AtomicU8; LOG_KEPT],
    /// Bytes ever written; wraps.
    written: AtomicU32,
    /// What lies before is not shown any more: see [`LogRing::clear`].
    cleared: AtomicU32,
}

/// The one log.
pub static LOG: LogRing = LogRing::new();

impl LogRing {
    const fn new() -> Self {
        Self { bytes: [const { AtomicU8::new(0) }; LOG_KEPT], written: AtomicU32::new(0), cleared: AtomicU32::new(0) }
    }

    /// Adds bytes; of more than are kept, the last.
    pub fn push(&self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(LOG_KEPT)..];
        let len = u32::try_from(bytes.len()).unwrap_or(0);
        let start = self.written.fetch_add(len, Ordering::AcqRel);
        for (step, byte) in (0..len).zip(bytes) {
            self.slot(start.wrapping_add(step)).store(*byte, Ordering::Relaxed);
        }
    }

    /// The oldest byte that can be read.
    #[must_use]
    pub fn oldest(&self) -> u32 {
        let written = self.written.load(Ordering::Acquire);
        let shown = written.wrapping_sub(self.cleared.load(Ordering::Relaxed));
        // A ring that was never full holds what was written since the start.
        written.wrapping_sub(shown.min(u32::try_from(LOG_KEPT).unwrap_or(u32::MAX)))
    }

    /// Copies out bytes from number `from` on, or from the oldest if that is no longer there. Returns
    /// the number of the first byte copied, and how many were.
    pub fn read(&self, from: u32, out: &mut [u8]) -> (u32, usize) {
        let (oldest, written) = (self.oldest(), self.written.load(Ordering::Acquire));
        let kept = written.wrapping_sub(oldest);
        let start = if written.wrapping_sub(from) > kept { oldest } else { from };
        let len = out.len().min(written.wrapping_sub(start) as usize);
        for (step, slot) in (0_u32..).zip(&mut out[..len]) {
            *slot = self.slot(start.wrapping_add(step)).load(Ordering::Relaxed);
        }
        (start, len)
    }

    /// Hides what was written before byte number `upto`.
    pub fn clear(&self, upto: u32) {
        self.cleared.store(upto, Ordering::Relaxed);
    }

    fn slot(&self, position: u32) -> &AtomicU8 {
        &self.bytes[position as usize % LOG_KEPT]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(ring: &LogRing, from: u32) -> (u32, std::string::String) {
        let mut out = [0; LOG_KEPT];
        let (start, len) = ring.read(from, &mut out);
        (start, std::string::String::from_utf8_lossy(&out[..len]).into_owned())
    }

    #[test]
    fn a_reader_goes_on_where_it_was_and_skips_what_is_gone() {
        let ring = LogRing::new();
        ring.push(b"one two ");
        assert_eq!(text(&ring, 0), (0, "one two ".into()));
        assert_eq!(text(&ring, 4), (4, "two ".into()));
        assert_eq!(text(&ring, 8), (8, "".into()));
        assert_eq!(text(&ring, 9).0, 0, "a number that is still to come is none");
        for _ in 0..LOG_KEPT / 8 {
            ring.push(b"three   ");
        }
        let (start, all) = text(&ring, 4);
        assert_eq!((start, all.len()), (8, LOG_KEPT));
        assert!(all.starts_with("three"));
    }

    #[test]
    fn what_was_cleared_is_not_shown_again() {
        let ring = LogRing::new();
        ring.push(b"old");
        ring.clear(3);
        assert_eq!(text(&ring, 0), (3, "".into()));
        ring.push(b"new");
        assert_eq!(text(&ring, ring.oldest()), (3, "new".into()));
    }

    #[test]
    fn numbers_wrap() {
        let ring = LogRing::new();
        ring.written.store(u32::MAX - 1, Ordering::Relaxed);
        ring.cleared.store(u32::MAX - 1, Ordering::Relaxed);
        ring.push(b"abcd");
        assert_eq!(text(&ring, u32::MAX), (u32::MAX, "bcd".into()));
        assert_eq!(text(&ring, 1), (1, "d".into()));
    }

    #[test]
    fn more_than_fits_leaves_its_end() {
        let ring = LogRing::new();
        ring.push(&[b'x'; LOG_KEPT]);
        ring.push(&[[b'y'; LOG_KEPT - 1].as_slice(), b"!!"].concat());
        let (_, all) = text(&ring, 0);
        assert!(all.starts_with("yy") && all.ends_with("y!!") && all.len() == LOG_KEPT);
    }
}
