// SPDX-License-Identifier: MIT OR Apache-2.0
//! Machines, and the emulators that play them.
//!
//! A [`Machine`] says what a machine has, in no emulator's language. Each emulator's module renders it to a command
//! line or a configuration file; that is pure and tested, because some of it (KVM) can be run by few. [`start`] then
//! runs the emulator. Both serial ports are connections to sockets that xtask listens on at the loopback address: the
//! one way that works the same with each emulator, in both directions, without losing the first bytes.
//!
//! A running emulator is a [`Running`]; dropping it ends the process, so that neither an error nor Ctrl-C leaves one
//! behind. It is put into a process group of its own: the terminal's Ctrl-C reaches xtask only, which then ends it.

pub(crate) mod bochs;
pub(crate) mod kvm;
mod process;
pub(crate) mod qemu;
mod version;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::ValueEnum;

pub(crate) use process::{Running, start};

use crate::setup::{self, Purpose};

/// What a machine runs before its boot loader.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Firmware {
    /// BIOS
    Bios,
    /// UEFI; the machine has a screen, too
    Uefi,
}

/// A program that plays a machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Emulator {
    /// QEMU with KVM and nested VT-x or SVM.
    Kvm,
    /// QEMU's interpreter, which emulates SVM.
    Qemu,
    /// Bochs, which emulates VT-x.
    Bochs,
}

impl Emulator {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Qemu => "qemu",
            Self::Bochs => "bochs",
        }
    }

    /// What must be installed for it.
    pub(crate) fn purposes(self) -> &'static [Purpose] {
        match self {
            Self::Kvm | Self::Qemu => &[Purpose::Qemu],
            Self::Bochs => &[Purpose::Bochs, Purpose::Image],
        }
    }

    /// The words by which the hypervisor learns how to end this machine.
    pub(crate) fn exit_option(self) -> &'static str {
        match self {
            Self::Kvm | Self::Qemu => "exit=qemu",
            Self::Bochs => "exit=bochs",
        }
    }
}

/// The user's choice of emulator.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Choice {
    /// KVM if it offers nested VT-x or SVM, else QEMU, else Bochs
    #[default]
    Auto,
    /// QEMU with KVM
    Kvm,
    /// QEMU without KVM: the hypervisor uses SVM
    Qemu,
    /// Bochs: the hypervisor uses VT-x
    Bochs,
}

/// An emulator, and why it was taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) emulator: Emulator,
    pub(crate) reason: String,
}

/// Decides for an emulator. Errors: KVM was asked for and cannot run a hypervisor here.
pub(crate) fn decide(choice: Choice) -> Result<Decision> {
    let bochs_only = !is_installed(Emulator::Qemu) && is_installed(Emulator::Bochs);
    decide_from(choice, kvm::Offer::of_this_machine(), bochs_only)
}

fn decide_from(choice: Choice, kvm: kvm::Offer, bochs_only: bool) -> Result<Decision> {
    let (emulator, reason) = match choice {
        Choice::Qemu => (Emulator::Qemu, "as asked".to_owned()),
        Choice::Bochs => (Emulator::Bochs, "as asked".to_owned()),
        Choice::Kvm => match kvm {
            kvm::Offer::Nested(what) => (Emulator::Kvm, format!("as asked; KVM offers nested {what}")),
            kvm::Offer::Unusable(why) => bail!("--emulator kvm: {why}; use --emulator qemu or bochs"),
        },
        Choice::Auto => match kvm {
            kvm::Offer::Nested(what) => (Emulator::Kvm, format!("KVM offers nested {what}")),
            kvm::Offer::Unusable(why) if bochs_only => (Emulator::Bochs, format!("{why}, and there is no QEMU")),
            kvm::Offer::Unusable(why) => (Emulator::Qemu, format!("{why}; QEMU itself emulates SVM")),
        },
    };
    Ok(Decision { emulator, reason })
}

/// Whether nothing is missing for `emulator`.
pub(crate) fn is_installed(emulator: Emulator) -> bool {
    setup::missing(emulator.purposes()).is_ok_and(|missing| missing.is_empty())
}

/// Refuses an emulator that cannot be started or is too old.
pub(crate) fn check_version(emulator: Emulator) -> Result<()> {
    version::check(emulator)
}

/// What a machine has.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) boot: Boot,
    pub(crate) firmware: Firmware,
    pub(crate) memory_mib: u32,
    pub(crate) cpus: u32,
    /// Raw disk images besides the one to boot from.
    pub(crate) disks: Vec<PathBuf>,
    /// A network card, connected to the emulator's own address-translating network.
    pub(crate) has_nic: bool,
    pub(crate) com1: Serial,
    pub(crate) com2: Serial,
    /// One virtual nanosecond an instruction (QEMU only).
    pub(crate) counts_instructions: bool,
    /// A DMA and interrupt remapping unit (QEMU only).
    pub(crate) has_iommu: bool,
    /// Bochs' CPU and its speed.
    pub(crate) bochs_cpu: bochs::Cpu,
    /// Arguments for the emulator, as they are.
    pub(crate) extra: Vec<String>,
}

/// How a machine starts.
#[derive(Clone, Debug)]
pub(crate) enum Boot {
    /// The firmware boots a disk.
    Disk(PathBuf),
    /// QEMU enters an ELF file by its PVH note.
    Pvh { kernel: PathBuf, bundle: Option<PathBuf>, cmdline: String },
}

/// What a serial port is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Serial {
    /// Nothing.
    None,
    /// Somebody who listens on this loopback port when the emulator starts.
    Connect(u16),
}

impl Machine {
    /// A machine with what every run needs and no devices; the rest is for the caller to fill in.
    pub(crate) fn new(boot: Boot, memory_mib: u32) -> Self {
        Self {
            boot,
            firmware: Firmware::Bios,
            memory_mib,
            cpus: 1,
            disks: Vec::new(),
            has_nic: false,
            com1: Serial::None,
            com2: Serial::None,
            counts_instructions: false,
            has_iommu: false,
            bochs_cpu: bochs::Cpu::default(),
            extra: Vec::new(),
        }
    }

    /// Refuses what `emulator` does not have.
    pub(crate) fn check(&self, emulator: Emulator) -> Result<()> {
        let name = emulator.name();
        if self.counts_instructions && emulator != Emulator::Qemu {
            bail!("--icount: only QEMU without KVM counts instructions, not {name}");
        }
        if self.counts_instructions && self.cpus > 1 {
            bail!("--icount: QEMU runs one CPU at a time then and Linux does not come up on several; use --smp 1");
        }
        if self.has_iommu && emulator == Emulator::Bochs {
            bail!("--iommu on: Bochs has no IOMMU");
        }
        if self.disks.len() > max_disks(emulator) {
            bail!("{name}: at most {} disks", max_disks(emulator));
        }
        Ok(())
    }
}

/// How many disks fit besides the one that Bochs boots from: it has two IDE channels with two disks each, the chipset that QEMU plays six ports.
fn max_disks(emulator: Emulator) -> usize {
    match emulator {
        Emulator::Bochs => 3,
        Emulator::Kvm | Emulator::Qemu => 5,
    }
}

/// The program and the arguments that play `machine`. Bochs' configuration is written into `dir`.
fn command(emulator: Emulator, machine: &Machine, dir: &Path) -> Result<std::process::Command> {
    machine.check(emulator)?;
    match emulator {
        Emulator::Kvm => Ok(qemu::command(kvm::arguments(machine))),
        Emulator::Qemu => Ok(qemu::command(qemu::arguments(machine))),
        Emulator::Bochs => bochs::command(machine, dir),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine::new(Boot::Disk("boot.img".into()), 512)
    }

    fn unusable() -> kvm::Offer {
        kvm::Offer::Unusable("no /dev/kvm".into())
    }

    #[test]
    fn auto_takes_kvm_only_where_it_is_nested() {
        let emulator = |offer, bochs_only| decide_from(Choice::Auto, offer, bochs_only).unwrap().emulator;
        assert_eq!(emulator(kvm::Offer::Nested("SVM"), false), Emulator::Kvm);
        assert_eq!(emulator(unusable(), false), Emulator::Qemu);
        assert_eq!(emulator(unusable(), true), Emulator::Bochs);
    }

    #[test]
    fn asking_for_kvm_where_it_is_not_usable_is_an_error_with_the_cause() {
        let error = decide_from(Choice::Kvm, unusable(), false).unwrap_err();
        assert!(error.to_string().contains("no /dev/kvm"), "{error}");
    }

    #[test]
    fn a_machine_that_an_emulator_cannot_play_is_refused() {
        let refused = |change: fn(&mut Machine), emulator| {
            let mut machine = machine();
            change(&mut machine);
            machine.check(emulator).is_err()
        };
        assert!(refused(|m| m.counts_instructions = true, Emulator::Bochs));
        assert!(refused(|m| m.counts_instructions = true, Emulator::Kvm));
        assert!(!refused(|m| m.counts_instructions = true, Emulator::Qemu));
        assert!(refused(|m| (m.counts_instructions, m.cpus) = (true, 2), Emulator::Qemu));
        assert!(refused(|m| m.has_iommu = true, Emulator::Bochs));
        assert!(refused(|m| m.disks = vec!["d".into(); 4], Emulator::Bochs));
        assert!(!refused(|m| m.disks = vec!["d".into(); 4], Emulator::Qemu));
    }
}
