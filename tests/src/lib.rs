// SPDX-License-Identifier: MIT OR Apache-2.0
//! The named checks that boot emulators, as data; and those that take a check out of the hypervisor ([`mutations`]).
//!
//! A check says what is booted and what must come of it; `cargo xtask test` boots it, on each CPU backend that the
//! check names, and judges the machine's log by [`verdict`]. That the list is data keeps the harness in one place and
//! lets a new check be one entry in [`boots`] or [`dom0`].
//!
//! A check shows what lies behind the machine's serial line and its exit status, nothing else. What needs neither
//! CPU nor devices is a unit test of the crate that it belongs to.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod boots;
pub mod dom0;
pub mod mutations;
pub mod verdict;

/// How often a check is run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Tier {
    /// With each change: seconds.
    Quick,
    /// With each submission: all of it within half an hour.
    Gate,
    /// When asked for: soaks, other CPU models, other kernels.
    Long,
}

/// A CPU backend of the hypervisor, shown in the one emulator that plays it without hardware support.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backend {
    /// AMD's SVM, in QEMU.
    Svm,
    /// Intel's VT-x, in Bochs.
    Vmx,
}

impl Backend {
    /// The last part of a check's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Svm => "svm",
            Self::Vmx => "vmx",
        }
    }
}

/// Both backends.
pub const BOTH: &[Backend] = &[Backend::Svm, Backend::Vmx];
/// SVM alone.
pub const SVM: &[Backend] = &[Backend::Svm];
/// VT-x alone.
pub const VMX: &[Backend] = &[Backend::Vmx];

/// One boot and what is expected of it.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// The name, without the backend's.
    pub name: &'static str,
    /// When it is run.
    pub tier: Tier,
    /// Where it is run.
    pub backends: &'static [Backend],
    /// The longest that it may take, in seconds, on a busy machine.
    pub limit_seconds: u64,
    /// The micro-guests that are started, by the names of their programs, each with words for its boot module.
    pub guests: &'static [Guest],
    /// Words for the hypervisor's command line.
    pub hv_append: &'static str,
    /// Memory of the machine.
    pub memory_mib: u32,
    /// CPUs of the machine.
    pub cpus: u32,
    /// Start by BIOS and GRUB also where an emulator has a quicker way.
    pub by_grub: bool,
    /// Start by UEFI and GRUB.
    pub by_uefi: bool,
    /// Bochs' CPU model.
    pub bochs_model: &'static str,
    /// The status with which the machine must end.
    pub status: u8,
    /// Texts that must be in the log.
    pub says: &'static [&'static str],
}

/// A micro-guest of a check.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// The program: a binary of the package `test-guests`.
    pub program: &'static str,
    /// What `xtask run --guest` takes after the colon.
    pub words: &'static str,
}

/// The machine was powered off.
pub const POWEROFF: u8 = 0;
/// A guest crashed.
pub const CRASH: u8 = 3;
/// The hypervisor could not start what it was given.
pub const BOOT_FAILED: u8 = 4;

impl Check {
    /// A check of one boot without guests, quick and on both backends; for the rest see the other methods.
    #[must_use]
    pub const fn boot(name: &'static str, status: u8, says: &'static [&'static str]) -> Self {
        Self {
            name,
            tier: Tier::Quick,
            backends: BOTH,
            limit_seconds: 60,
            guests: &[],
            hv_append: "",
            memory_mib: 256,
            cpus: 1,
            by_grub: false,
            by_uefi: false,
            bochs_model: "corei7_skylake_x",
            status,
            says,
        }
    }

    /// A check of micro-guests that judge themselves and end with a poweroff.
    #[must_use]
    pub const fn guests(name: &'static str, guests: &'static [Guest]) -> Self {
        Self { guests, ..Self::boot(name, POWEROFF, &[]) }
    }

    /// A check of micro-guests that judge themselves and end with this status.
    #[must_use]
    pub const fn end(name: &'static str, guests: &'static [Guest], status: u8) -> Self {
        Self { status, ..Self::guests(name, guests) }
    }

    /// The same check on these backends only.
    #[must_use]
    pub const fn on(self, backends: &'static [Backend]) -> Self {
        Self { backends, ..self }
    }
}

/// A micro-guest without words of its own.
#[must_use]
pub const fn guest(program: &'static str) -> Guest {
    Guest { program, words: "" }
}
