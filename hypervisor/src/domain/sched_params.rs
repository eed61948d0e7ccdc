// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the control domain says about a domain's share of the CPUs, for the scheduler to read.

use core::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use guest_abi::VcpuId;

use super::MAX_VCPUS;

/// The weight of a domain about which nothing was said.
const DEFAULT_WEIGHT: u16 = 256;

/// Weight, cap and affinity. Each is read and written by itself.
pub struct SchedParams {
    weight: AtomicU16,
    cap: AtomicU16,
    affinity: [AtomicU64; MAX_VCPUS],
}

impl Default for SchedParams {
    /// An ordinary share, no cap, any CPU.
    fn default() -> Self {
        Self {
            weight: AtomicU16::new(DEFAULT_WEIGHT),
            cap: AtomicU16::new(0),
            affinity: [const { AtomicU64::new(u64::MAX) }; MAX_VCPUS],
        }
    }
}

impl SchedParams {
    /// The domain's share of the CPUs, against that of others; never 0.
    #[must_use]
    pub fn weight(&self) -> u16 {
        self.weight.load(Ordering::Relaxed)
    }

    /// Hundredths of one CPU that the domain may use at most; 0 for no limit.
    #[must_use]
    pub fn cap(&self) -> u16 {
        self.cap.load(Ordering::Relaxed)
    }

    /// The pCPUs on which a vCPU may run: a bit for each. None for a vCPU that cannot exist.
    #[must_use]
    pub fn affinity(&self, vcpu: VcpuId) -> u64 {
        self.affinity.get(vcpu.index()).map_or(0, |mask| mask.load(Ordering::Relaxed))
    }

    /// Changes weight and cap where given; a weight of 0 is refused.
    pub(crate) fn set(&self, weight: Option<u16>, cap: Option<u16>) -> bool {
        if weight == Some(0) {
            return false;
        }
        if let Some(weight) = weight {
            self.weight.store(weight, Ordering::Relaxed);
        }
        if let Some(cap) = cap {
            self.cap.store(cap, Ordering::Relaxed);
        }
        true
    }

    /// Changes where a vCPU may run.
    pub(crate) fn set_affinity(&self, vcpu: VcpuId, mask: u64) {
        if let Some(slot) = self.affinity.get(vcpu.index()) {
            slot.store(mask, Ordering::Relaxed);
        }
    }
}
