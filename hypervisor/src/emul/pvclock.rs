// SPDX-License-Identifier: MIT OR Apache-2.0
//! The PV clock: system time, wall clock and run states in pages that guests read.
//!
//! The relation of TSC and system time never changes while a domain lives, so a time area is
//! written when it is registered and then never again, and a guest's clock costs no exit. All
//! vCPUs of a domain have the same relation and one TSC offset; where the host's TSC runs in step
//! on all CPUs, the areas say so (TSC_STABLE) and Linux reads its clock in user space.
//!
//! Readers retry while the version is odd. The order of the stores is what makes that work; the
//! fences are written out although x86 stores are ordered, because the compiler's are not.
//!
//! Source: `xen/include/public/xen.h` (`vcpu_time_info`, `shared_info`) and `vcpu.h` at 4.17.

use core::sync::atomic::{Ordering, fence};

use guest_abi::num::low_u32;
use guest_abi::shared_info::{
    PVCLOCK_TSC_STABLE, RUNSTATE_BLOCKED, RUNSTATE_OFFLINE, RUNSTATE_RUNNABLE, RUNSTATE_RUNNING, RUNSTATE_UPDATE,
    RunstateInfo, SHARED_WC_NSEC, SHARED_WC_SEC, SHARED_WC_SEC_HI, SHARED_WC_VERSION, VcpuTimeInfo,
};
use guest_abi::{PAGE_SIZE, Wire};

use crate::addr::{Mfn, Nanos};
use crate::frame::FrameRef;
use crate::mem::PhysMem;
use crate::time::SystemClock;

/// A place for a structure in guest memory: 8-byte aligned, in one frame or two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    first: Mfn,
    offset: usize,
    second: Option<Mfn>,
}

impl Area {
    /// A place of `len` bytes at byte `offset` of `first`, going on at the start of `second` if it
    /// does not fit. `None` if it is not aligned to 8 bytes or does not fit either way.
    #[must_use]
    pub fn new(first: Mfn, offset: usize, len: usize, second: Option<Mfn>) -> Option<Self> {
        let is_whole = offset < PAGE_SIZE && len <= PAGE_SIZE && offset.is_multiple_of(8);
        let fits = offset.checked_add(len)? <= PAGE_SIZE;
        (is_whole && (fits || second.is_some())).then_some(Self { first, offset, second: second.filter(|_| !fits) })
    }

    fn first_word(&self, mem: &PhysMem) -> u32 {
        // Offsets are multiples of eight below a page, so the first word is in the first frame.
        low_u32(mem.word(self.first, self.offset / 8).load(Ordering::Relaxed))
    }

    fn store(&self, mem: &PhysMem, word: usize, value: u64, ordering: Ordering) {
        let at = self.offset + word * 8;
        let (mfn, at) = match self.second {
            Some(second) if at >= PAGE_SIZE => (second, at - PAGE_SIZE),
            _ => (self.first, at),
        };
        mem.word(mfn, at / 8).store(value, ordering);
    }
}

/// The clock of one domain.
#[derive(Clone, Copy, Debug)]
pub struct GuestClock {
    /// System time, which is the host's.
    pub system: SystemClock,
    /// What the guest's TSC is ahead of the host's, wrapping.
    pub tsc_offset: u64,
    /// The TSC runs at one rate and in step on all CPUs.
    pub is_tsc_stable: bool,
}

impl GuestClock {
    /// What a guest computes its time from. Counts from the clock's start, so that every vCPU has
    /// the same numbers, whenever it asks.
    #[must_use]
    pub fn time_info(&self, version: u32) -> VcpuTimeInfo {
        let scale = self.system.scale();
        VcpuTimeInfo {
            version,
            tsc_timestamp: self.system.start().raw().wrapping_add(self.tsc_offset),
            system_time: 0,
            tsc_to_system_mul: scale.mul(),
            tsc_shift: scale.shift(),
            flags: if self.is_tsc_stable { PVCLOCK_TSC_STABLE } else { 0 },
            ..VcpuTimeInfo::default()
        }
    }

    /// Writes a time area, whose version then is the next even one: never 0, which some readers
    /// take for an area that nobody has filled.
    pub fn write_time(&self, mem: &PhysMem, area: &Area) {
        let version = next_version(area.first_word(mem));
        let mut bytes = [0; VcpuTimeInfo::SIZE];
        self.time_info(version).to_bytes(&mut bytes);
        area.store(mem, 0, u64::from(version | 1), Ordering::Relaxed);
        // Release: the odd version is seen before any of the fields.
        fence(Ordering::Release);
        for word in 1..VcpuTimeInfo::SIZE / 8 {
            area.store(mem, word, u64::from_bytes(&bytes[word * 8..]), Ordering::Relaxed);
        }
        // Release: the fields are seen before the even version.
        area.store(mem, 0, u64::from(version), Ordering::Release);
    }
}

/// The even version after what is there. A guest can have written anything: only its own clock
/// suffers.
const fn next_version(before: u32) -> u32 {
    match (before & !1).wrapping_add(2) {
        0 => 2,
        version => version,
    }
}

/// Writes the wall clock to a shared page: UTC at system time 0. The version is as for a time area.
pub fn write_wallclock(mem: &PhysMem, shared_info: Mfn, seconds: u64, nanoseconds: u32) {
    let version = next_version(mem.load_u32(shared_info, SHARED_WC_VERSION));
    let [low, high] = [low_u32(seconds), guest_abi::num::high_u32(seconds)];
    mem.store_u32(shared_info, SHARED_WC_VERSION, version | 1);
    fence(Ordering::Release);
    mem.store_u32(shared_info, SHARED_WC_SEC, low);
    mem.store_u32(shared_info, SHARED_WC_NSEC, nanoseconds);
    mem.store_u32(shared_info, SHARED_WC_SEC_HI, high);
    mem.store_u32(shared_info, SHARED_WC_VERSION, version);
}

/// What a vCPU does, for accounting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Runstate {
    /// Runs on a pCPU.
    Running = RUNSTATE_RUNNING,
    /// Could run, no pCPU free.
    Runnable = RUNSTATE_RUNNABLE,
    /// Waits for an event.
    Blocked = RUNSTATE_BLOCKED,
    /// Paused, or not brought up.
    Offline = RUNSTATE_OFFLINE,
}

/// Where one vCPU spent its time.
#[derive(Clone, Copy, Debug)]
pub struct RunstateClock {
    state: Runstate,
    since: Nanos,
    spent: [u64; 4],
}

impl RunstateClock {
    /// Starts offline.
    #[must_use]
    pub const fn new(now: Nanos) -> Self {
        Self { state: Runstate::Offline, since: now, spent: [0; 4] }
    }

    /// Enters another state. `now` is system time.
    pub fn enter(&mut self, state: Runstate, now: Nanos) {
        self.spent = self.at(now).time;
        self.since = now;
        self.state = state;
    }

    /// The account as it stands, with the time since the last change added.
    #[must_use]
    pub fn at(&self, now: Nanos) -> RunstateInfo {
        let mut time = self.spent;
        let slot = &mut time[self.state as usize];
        *slot = slot.saturating_add(now.raw().saturating_sub(self.since.raw()));
        RunstateInfo { state: self.state as i32, state_entry_time: self.since.raw(), time }
    }

    /// Writes the account to the guest's area as it was when the state was entered, which is what
    /// a guest adds the time since then to. `marks_updates` is what the guest asked for with
    /// `VMASST_TYPE_RUNSTATE_UPDATE_FLAG`.
    pub fn write(&self, mem: &PhysMem, area: &Area, marks_updates: bool) {
        const ENTRY_TIME: usize = 1;
        let since = self.since.raw();
        if marks_updates {
            area.store(mem, ENTRY_TIME, since | RUNSTATE_UPDATE, Ordering::Relaxed);
            fence(Ordering::Release);
        }
        area.store(mem, 0, (self.state as i32).unsigned_abs().into(), Ordering::Relaxed);
        for (word, time) in (ENTRY_TIME + 1..).zip(self.spent) {
            area.store(mem, word, time, Ordering::Relaxed);
        }
        area.store(mem, ENTRY_TIME, since, Ordering::Release);
    }
}

/// Where a guest wants a vCPU's account written: in its own memory, which stays where it is for that.
pub struct RunstateArea {
    area: Area,
    _frames: [Option<FrameRef>; 2],
}

impl RunstateArea {
    /// A place of [`RunstateInfo`] at byte `offset` of the first frame, going on in the second. `None` if
    /// it is not aligned, or does not fit.
    #[must_use]
    pub fn new(offset: usize, first: FrameRef, second: Option<FrameRef>) -> Option<Self> {
        let area = Area::new(first.mfn(), offset, RunstateInfo::SIZE, second.as_ref().map(FrameRef::mfn))?;
        Some(Self { area, _frames: [Some(first), second] })
    }

    /// Writes the account; see [`RunstateClock::write`].
    pub fn write(&self, mem: &PhysMem, clock: &RunstateClock, marks_updates: bool) {
        clock.write(mem, &self.area, marks_updates);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::addr::Ticks;
    use crate::testing::test_memory;
    use crate::time::TscScale;

    fn clock(khz: u32, start: u64, tsc_offset: u64) -> GuestClock {
        let system = SystemClock::new(TscScale::from_khz(khz).unwrap(), Ticks::new(start));
        GuestClock { system, tsc_offset, is_tsc_stable: true }
    }

    fn read<T: Wire>(mem: &PhysMem, mfn: Mfn, offset: usize) -> T {
        let mut bytes = [0; 64];
        mem.read(mfn, offset, &mut bytes[..T::SIZE]);
        T::from_bytes(&bytes)
    }

    /// What Linux computes in `pvclock_clocksource_read`.
    fn guest_reads(info: &VcpuTimeInfo, guest_tsc: u64) -> u64 {
        let delta = guest_tsc.wrapping_sub(info.tsc_timestamp);
        let shifted = if info.tsc_shift < 0 { delta >> -info.tsc_shift } else { delta << info.tsc_shift };
        let ns = (u128::from(shifted) * u128::from(info.tsc_to_system_mul)) >> 32;
        info.system_time + u64::try_from(ns).unwrap()
    }

    proptest! {
        #[test]
        fn guest_and_hypervisor_read_the_same_time(
            khz in 1000_u32..6_000_000, start in 0_u64..1 << 50, run in 0_u64..1 << 50, offset: u64
        ) {
            let clock = clock(khz, start, offset);
            let now = start + run;
            let seen = guest_reads(&clock.time_info(2), now.wrapping_add(offset));
            prop_assert_eq!(seen, clock.system.at(Ticks::new(now)).raw());
        }
    }

    #[test]
    fn a_time_area_has_the_layout_and_the_next_even_version() {
        let mem = test_memory(2);
        let mut clock = clock(2_000_000, 100, 50);
        let area = Area::new(Mfn::new(1), 32, VcpuTimeInfo::SIZE, None).unwrap();
        clock.write_time(&mem, &area);
        let info: VcpuTimeInfo = read(&mem, Mfn::new(1), 32);
        assert_eq!((info.version, info.tsc_timestamp, info.system_time, info.flags), (2, 150, 0, 1));
        assert_eq!((info.tsc_to_system_mul, info.tsc_shift), (1 << 31, 0));
        clock.is_tsc_stable = false;
        clock.write_time(&mem, &area);
        let info: VcpuTimeInfo = read(&mem, Mfn::new(1), 32);
        assert_eq!((info.version, info.flags), (4, 0));
        assert_eq!(mem.load_u32(Mfn::new(1), 28), 0);
        assert_eq!(mem.load_u32(Mfn::new(1), 64), 0);
    }

    #[test]
    fn areas_are_aligned_and_inside_their_frames() {
        let (a, b) = (Mfn::new(0), Some(Mfn::new(1)));
        assert!(Area::new(a, 4064, 32, None).is_some());
        assert_eq!(Area::new(a, 4064, 32, None), Area::new(a, 4064, 32, b));
        assert_eq!(Area::new(a, 4072, 32, None), None);
        assert!(Area::new(a, 4072, 32, b).is_some());
        assert_eq!(Area::new(a, 4, 32, b), None);
        assert_eq!(Area::new(a, 4096, 32, b), None);
        assert_eq!(Area::new(a, usize::MAX & !7, 32, b), None);
        assert_eq!(Area::new(a, 0, 4097, b), None);
    }

    #[test]
    fn an_area_may_straddle_two_frames() {
        let mem = test_memory(4);
        let area = Area::new(Mfn::new(3), 4080, RunstateInfo::SIZE, Some(Mfn::new(1))).unwrap();
        let mut account = RunstateClock::new(Nanos::new(5));
        account.enter(Runstate::Running, Nanos::new(7));
        account.write(&mem, &area, true);
        assert_eq!(mem.load_u32(Mfn::new(3), 4080), 0);
        assert_eq!(mem.load_u32(Mfn::new(3), 4088), 7);
        assert_eq!(read::<[u64; 4]>(&mem, Mfn::new(1), 0), [0, 0, 0, 2]);
    }

    #[test]
    fn the_wall_clock_has_an_even_version() {
        let mem = test_memory(1);
        write_wallclock(&mem, Mfn::new(0), 0x1_2345_6789, 999);
        let words: [u32; 4] = read(&mem, Mfn::new(0), 3072);
        assert_eq!(words, [2, 0x2345_6789, 999, 1]);
    }

    #[test]
    fn each_write_of_a_clock_has_another_even_version_and_none_is_0() {
        let mem = test_memory(1);
        for (before, after) in [(2, 4), (5, 6), (u32::MAX, 2), (u32::MAX - 1, 2)] {
            mem.store_u32(Mfn::new(0), SHARED_WC_VERSION, before);
            write_wallclock(&mem, Mfn::new(0), 1, 2);
            assert_eq!(mem.load_u32(Mfn::new(0), SHARED_WC_VERSION), after, "after {before:#x}");
        }
    }

    #[test]
    fn run_states_add_up_to_the_time_that_passed() {
        let ns = Nanos::new;
        let mut account = RunstateClock::new(ns(100));
        account.enter(Runstate::Runnable, ns(110));
        account.enter(Runstate::Running, ns(130));
        account.enter(Runstate::Blocked, ns(160));
        let info = account.at(ns(200));
        assert_eq!(info, RunstateInfo { state: 2, state_entry_time: 160, time: [30, 20, 40, 10] });
        account.enter(Runstate::Running, ns(150));
        assert_eq!(account.at(ns(150)).time.iter().sum::<u64>(), 60, "a clock that went back adds nothing");
    }
}
