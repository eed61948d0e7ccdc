// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the boot found out about the machine and nobody needs to decide anything, for reports.

/// Facts that do not change while the machine runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Features of the CPU in use: bits of [`guest_abi::isthmus::FEATURE_NAMES`].
    pub features: u64,
    /// The TSC's frequency in kHz.
    pub tsc_khz: u32,
    /// RAM that the firmware reports, in frames.
    pub total_frames: u64,
    /// Frames that the hypervisor keeps: its image and what it allocated at boot.
    pub hypervisor_frames: u64,
    /// Bytes of the image with its data, stacks and early tables.
    pub image_bytes: u64,
    /// CPUs that run.
    pub nr_pcpus: u32,
    /// CPUs that the firmware names.
    pub nr_present_cpus: u32,
    /// [`guest_abi::isthmus::IOMMU_NONE`] and its likes.
    pub iommu: u32,
}

/// How full the hypervisor's heap is, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeapUsage {
    /// Allocated.
    pub used: u64,
    /// Allocated and free together.
    pub size: u64,
}
