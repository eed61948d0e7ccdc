// SPDX-License-Identifier: MIT OR Apache-2.0
//! The shared page: event bits, wall clock, and what each vCPU shares.
//!
//! Everything in the shared page is written by both sides at any time, so it is described by offsets for
//! atomic access, never as a structure to hold a reference to. What is copied as a whole
//! ([`VcpuTimeInfo`], [`RunstateInfo`]) is a structure.
//!
//! A guest places the page with `XENMEM_add_to_physmap`. The `vcpu_info` of a vCPU is in the page until
//! the guest registers another place for it, and is live from the start: Linux reads its TSC
//! frequency from `vcpu_info[0].time` right after placing the page.
//!
//! Source: `xen/include/public/xen.h`, `arch-x86/xen.h` and `vcpu.h` at 4.17.

/// Size of `struct shared_info`, which starts at a page of its own.
pub const SHARED_INFO_SIZE: usize = 3136;
/// vCPUs that have a `vcpu_info` in the shared page; the others register one (`XEN_LEGACY_MAX_VCPUS`).
pub const LEGACY_MAX_VCPUS: usize = 32;
/// Offset of `vcpu_info[0]`; each is [`VCPU_INFO_SIZE`] bytes.
pub const SHARED_VCPU_INFO: usize = 0;
/// Offset of the pending bits, 64 words of 64 ports.
pub const SHARED_EVTCHN_PENDING: usize = 2048;
/// Offset of the mask bits, 64 words of 64 ports.
pub const SHARED_EVTCHN_MASK: usize = 2560;
/// Offset of `wc_version`: odd while the wall clock is being written.
pub const SHARED_WC_VERSION: usize = 3072;
/// Offset of `wc_sec`: UTC seconds, low half, at system time 0.
pub const SHARED_WC_SEC: usize = 3076;
/// Offset of `wc_nsec`: nanoseconds at system time 0.
pub const SHARED_WC_NSEC: usize = 3080;
/// Offset of `wc_sec_hi`: UTC seconds, high half.
pub const SHARED_WC_SEC_HI: usize = 3084;
/// Offset of the architecture part, 48 bytes that are zero for PVH.
pub const SHARED_ARCH: usize = 3088;

/// Size of `struct vcpu_info`.
pub const VCPU_INFO_SIZE: usize = 64;
/// Offset of `evtchn_upcall_pending`, one byte: the vCPU has an event.
pub const VCPU_UPCALL_PENDING: usize = 0;
/// Offset of `evtchn_upcall_mask`, one byte; PVH kernels never use it.
pub const VCPU_UPCALL_MASK: usize = 1;
/// Offset of `evtchn_pending_sel`: bit n says that word n of the pending bits may have events.
pub const VCPU_PENDING_SEL: usize = 8;
/// Offset of the architecture part, 16 bytes that are zero for PVH.
pub const VCPU_ARCH: usize = 16;
/// Offset of `time`, a [`VcpuTimeInfo`].
pub const VCPU_TIME: usize = 32;

crate::wire_struct! {
    /// The relation of guest TSC and system time (`struct vcpu_time_info`).
    ///
    /// ns = system_time + (((tsc - tsc_timestamp) shifted left by tsc_shift) * tsc_to_system_mul) >> 32.
    pub struct VcpuTimeInfo: 32 {
        /// Odd while the other fields are being written; a reader retries.
        0 => pub version: u32,
        /// Zero.
        4 => pub pad0: u32,
        /// Guest TSC, in ticks, at which `system_time` holds.
        8 => pub tsc_timestamp: u64,
        /// Nanoseconds since the domain began.
        16 => pub system_time: u64,
        /// Nanoseconds a (shifted) tick, as a 32-bit binary fraction.
        24 => pub tsc_to_system_mul: u32,
        /// Left shift of the tick count; negative shifts right.
        28 => pub tsc_shift: i8,
        /// `PVCLOCK_*`.
        29 => pub flags: u8,
        /// Zero.
        30 => pub pad1: [u8; 2],
    }
}

/// All vCPUs have one relation and synchronous TSCs, so that readers need no lock.
pub const PVCLOCK_TSC_STABLE: u8 = 1 << 0;
/// The domain was paused; the guest clears it.
pub const PVCLOCK_GUEST_STOPPED: u8 = 1 << 1;

crate::wire_struct! {
    /// Where a vCPU spent its time (`struct vcpu_runstate_info`). All times are nanoseconds of system time.
    pub struct RunstateInfo: 48 {
        /// `RUNSTATE_*`, since `state_entry_time`.
        0 => pub state: i32,
        /// When the state was entered; [`RUNSTATE_UPDATE`] while being written.
        8 => pub state_entry_time: u64,
        /// Nanoseconds spent in each state, by `RUNSTATE_*`.
        16 => pub time: [u64; 4],
    }
}

/// The structure is being written, for guests that enabled `VMASST_TYPE_RUNSTATE_UPDATE_FLAG`.
pub const RUNSTATE_UPDATE: u64 = 1 << 63;
/// Runs on a CPU.
pub const RUNSTATE_RUNNING: i32 = 0;
/// Could run, no CPU free.
pub const RUNSTATE_RUNNABLE: i32 = 1;
/// Waits for an event.
pub const RUNSTATE_BLOCKED: i32 = 2;
/// Neither; paused or not brought up.
pub const RUNSTATE_OFFLINE: i32 = 3;
