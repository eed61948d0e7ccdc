// SPDX-License-Identifier: MIT OR Apache-2.0
//! The screen that the boot loader has set up, as a second place for the log.
//!
//! It is the hypervisor's while it boots. When the first domain runs the screen is left alone: a driver in dom0 may put
//! the same memory to other use. `screen=keep` goes on. A panic takes it back, for then nobody else runs.
//!
//! Video memory is reached through the boot page tables first and through the device area when the final tables are
//! loaded. In between lies [`detach`], so that nothing is written through a mapping that is gone.

use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use guest_abi::num::to_usize;
use hypervisor::boot::cmdline::ScreenPolicy;
use hypervisor::screen::{Geometry, Screen, Style, Surface};
use spin::Mutex;

use super::boot::IDENTITY_END;
use super::layout;

/// Video memory as the boot loader describes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Video {
    /// Host physical address of its first byte.
    pub(crate) start: u64,
    /// What is there.
    pub(crate) geometry: Geometry,
    /// Its size in bytes.
    pub(crate) bytes: usize,
}

static SCREEN: Mutex<Screen<Mapped>> = Mutex::new(Screen::blank());
static VIDEO: spin::Once<Video> = spin::Once::new();
/// Whose the screen is, a [`Use`].
static USE: AtomicU8 = AtomicU8::new(Use::Ours as u8);
/// Whether it stays ours when domains run.
static KEEP: AtomicBool = AtomicBool::new(false);
/// More than every screen has, and no more than the tables that are reckoned with can map.
const MAX_BYTES: usize = 256 << 20;

/// Whose the screen is.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Use {
    /// The log is shown.
    Ours,
    /// It is left alone until a panic takes it.
    Released,
    /// It is never touched.
    Off,
}

/// Mapped video memory.
struct Mapped {
    first: usize,
    bytes: usize,
}

impl Surface for Mapped {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset <= self.bytes && bytes.len() <= self.bytes - offset, "outside of video memory");
        let first = core::ptr::with_exposed_provenance_mut::<u8>(self.first + offset);
        let words = if (self.first + offset).is_multiple_of(size_of::<u32>()) { bytes.len() / 4 } else { 0 };
        let (aligned, rest) = bytes.split_at(words * 4);
        for (i, word) in aligned.chunks_exact(4).enumerate() {
            let word = u32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
            let at = first.wrapping_add(i * 4).cast::<u32>();
            // SAFETY: aligned and within the video memory, asserted above; whoever made `self` vouches that it is
            // mapped, and nothing but the screen lies there.
            unsafe { at.write_volatile(word) };
        }
        for (i, byte) in rest.iter().enumerate() {
            let at = first.wrapping_add(aligned.len() + i);
            // SAFETY: as above.
            unsafe { at.write_volatile(*byte) };
        }
    }
}

/// Shows the log on `video`, if the boot page tables reach it; otherwise the lines wait for [`attach`].
pub(crate) fn init(video: Video) {
    if video.bytes > MAX_BYTES || video.start.checked_add(video.bytes as u64).is_none() {
        return;
    }
    let video = VIDEO.call_once(|| video);
    if video.start + video.bytes as u64 <= IDENTITY_END {
        // The boot page tables map it where it is.
        show(video, to_usize(video.start));
    }
}

/// What has to be mapped for [`attach`].
pub(crate) fn span() -> Option<Range<u64>> {
    VIDEO.get().map(|video| video.start..video.start + video.bytes as u64)
}

/// Forgets the boot page tables' mapping, before they go.
pub(crate) fn detach() {
    SCREEN.lock().detach();
}

/// Shows the log through the device area, which the page tables in use have.
pub(crate) fn attach() {
    if let Some(video) = VIDEO.get() {
        show(video, to_usize(layout::screen_mapped(video.start)));
    }
}

fn show(video: &Video, first: usize) {
    SCREEN.lock().attach(Mapped { first, bytes: video.bytes }, video.geometry);
}

/// Does as the command line says.
pub(crate) fn set_policy(policy: ScreenPolicy) {
    KEEP.store(policy == ScreenPolicy::Keep, Ordering::Relaxed);
    if policy == ScreenPolicy::Off {
        set_use(Use::Off);
    }
}

/// From now on domains run: the screen is left as it is, unless it is to be kept.
pub(crate) fn domains_start() {
    if USE.load(Ordering::Relaxed) == Use::Ours as u8 && !KEEP.load(Ordering::Relaxed) {
        set_use(Use::Released);
    }
}

fn set_use(whose: Use) {
    USE.store(whose as u8, Ordering::Relaxed);
}

/// Prints `bytes` on the screen while it is ours.
pub(crate) fn write(bytes: &[u8]) {
    if USE.load(Ordering::Relaxed) == Use::Ours as u8 {
        SCREEN.lock().print(bytes);
    }
}

/// Takes the screen from whoever has it, for what is printed from now on; only a panic does.
pub(crate) fn take_for_alarm() {
    if USE.load(Ordering::Relaxed) == Use::Off as u8 {
        return;
    }
    // SAFETY: the panicking CPU is the only one that still runs, so nobody else uses the screen.
    unsafe { SCREEN.force_unlock() };
    set_use(Use::Ours);
    SCREEN.lock().clear(Style::Alarm);
}
