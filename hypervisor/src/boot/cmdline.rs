// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's command line.
//!
//! Words are `name=value`, separated by blanks. A word that is not understood does not stop the
//! boot, because a machine that comes up with a default can be looked at and one that does not
//! cannot; but each is returned with its text and the reason, and the caller names it on the
//! console. When a word is given twice the last one holds, so that a user can append to a
//! boot loader's line.

use alloc::vec::Vec;
use core::fmt;

use log::LevelFilter;

/// Bytes in a mebibyte.
pub const MIB: u64 = 1 << 20;

/// Where the hypervisor writes its log and dom0's console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console {
    /// The first serial port, 0x3f8.
    Com1,
    /// Nowhere.
    None,
}

/// Whose the screen is that the boot loader has set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScreenPolicy {
    /// The hypervisor's until the first domain runs, and again for the report of a panic.
    Boot,
    /// The hypervisor's for good: the log and dom0's console are shown as on COM1.
    Keep,
    /// Nobody's; not even a panic is shown.
    Off,
}

/// What ends the machine after a panic of the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnPanic {
    /// Reset the machine.
    Reboot,
    /// Stop all CPUs; the message stays on the screen.
    Halt,
    /// End the emulator with status 5, see [`ExitDevice`].
    Exit,
}

/// Whether the time-stamp counter is taken as a clock that all CPUs share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TscPolicy {
    /// Only when CPUID says invariant and the CPUs were seen to agree.
    Auto,
    /// The user vouches for it.
    Stable,
}

/// How the hypervisor ends the machine when it decides so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitDevice {
    /// QEMU's isa-debug-exit at port 0xf4.
    Qemu,
    /// Bochs' port 0x8900.
    Bochs,
    /// The ACPI S5 state: real machines.
    Acpi,
}

/// What the command line says, with the defaults where it is silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// `dom0_mem=`: dom0's RAM from 16 MiB up, in bytes.
    pub dom0_mem: Option<u64>,
    /// `dom0_vcpus=`: at least 1; all CPUs when absent.
    pub dom0_vcpus: Option<u32>,
    /// `dom0_scratch=`: the hole in dom0's address space for foreign pages, in bytes.
    pub dom0_scratch: u64,
    /// `console=`.
    pub console: Console,
    /// `screen=`.
    pub screen: ScreenPolicy,
    /// `loglvl=`.
    pub loglvl: LevelFilter,
    /// `panic=`.
    pub panic: OnPanic,
    /// `tsc=`.
    pub tsc: TscPolicy,
    /// `exit=`.
    pub exit: ExitDevice,
    /// `debug=on`: the debug key that panics does so.
    pub debug: bool,
    /// `cpu_khz=`: the TSC's frequency, measured at boot when absent.
    pub cpu_khz: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            dom0_mem: None,
            dom0_vcpus: None,
            dom0_scratch: 1024 * MIB,
            console: Console::Com1,
            screen: ScreenPolicy::Boot,
            loglvl: LevelFilter::Info,
            panic: OnPanic::Reboot,
            tsc: TscPolicy::Auto,
            exit: ExitDevice::Acpi,
            debug: false,
            cpu_khz: None,
        }
    }
}

/// A word of the command line that has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Complaint<'a> {
    /// The word as it stands there.
    pub word: &'a str,
    /// What is wrong with it.
    pub fault: Fault,
}

/// Why a word has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No option has this name.
    Unknown,
    /// The option's value is not one of those listed.
    NotOneOf(&'static str),
    /// The option's value is not a number of MiB, or one with M or G behind it.
    NotASize,
    /// The option's value is not a number within these bounds.
    NotInRange(u32, u32),
}

impl fmt::Display for Complaint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = self.word;
        match self.fault {
            Fault::Unknown => write!(f, "command line: '{word}' is not a known option and is ignored"),
            Fault::NotOneOf(list) => write!(f, "command line: '{word}' is ignored: the value must be one of {list}"),
            Fault::NotASize => {
                write!(f, "command line: '{word}' is ignored: the value must be a number of MiB, or end in M or G")
            }
            Fault::NotInRange(low, high) => {
                write!(f, "command line: '{word}' is ignored: the value must be a number from {low} to {high}")
            }
        }
    }
}

/// The most vCPUs that dom0 can be given.
pub const MAX_DOM0_VCPUS: u32 = 128;

/// Reads the command line. What it does not understand is in the second part, in order.
#[must_use]
pub fn parse(line: &str) -> (Options, Vec<Complaint<'_>>) {
    let mut options = Options::default();
    let mut complaints = Vec::new();
    for word in line.split_ascii_whitespace() {
        if let Err(fault) = options.apply(word) {
            complaints.push(Complaint { word, fault });
        }
    }
    (options, complaints)
}

impl Options {
    fn apply(&mut self, word: &str) -> Result<(), Fault> {
        let (name, value) = word.split_once('=').ok_or(Fault::Unknown)?;
        match name {
            "dom0_mem" => self.dom0_mem = Some(size(value)?),
            "dom0_scratch" => self.dom0_scratch = size(value)?,
            "dom0_vcpus" => self.dom0_vcpus = Some(number(value, 1, MAX_DOM0_VCPUS)?),
            "cpu_khz" => self.cpu_khz = Some(number(value, 1_000, 20_000_000)?),
            "console" => self.console = one_of(value, "com1, none", &[Console::Com1, Console::None])?,
            "screen" => {
                let policies = [ScreenPolicy::Boot, ScreenPolicy::Keep, ScreenPolicy::Off];
                self.screen = one_of(value, "boot, keep, off", &policies)?;
            }
            "loglvl" => {
                let levels =
                    [LevelFilter::Error, LevelFilter::Warn, LevelFilter::Info, LevelFilter::Debug, LevelFilter::Trace];
                self.loglvl = one_of(value, "error, warn, info, debug, trace", &levels)?;
            }
            "panic" => {
                self.panic = one_of(value, "reboot, halt, exit", &[OnPanic::Reboot, OnPanic::Halt, OnPanic::Exit])?;
            }
            "tsc" => self.tsc = one_of(value, "stable, auto", &[TscPolicy::Stable, TscPolicy::Auto])?,
            "exit" => {
                let devices = [ExitDevice::Qemu, ExitDevice::Bochs, ExitDevice::Acpi];
                self.exit = one_of(value, "qemu, bochs, acpi", &devices)?;
            }
            "debug" => self.debug = one_of(value, "on, off", &[true, false])?,
            _ => return Err(Fault::Unknown),
        }
        Ok(())
    }
}

/// A number of MiB, or of what the suffix says; in bytes. Zero is not a size.
pub(crate) fn size(text: &str) -> Result<u64, Fault> {
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'M' | b'm') => (&text[..text.len() - 1], MIB),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 1024 * MIB),
        _ => (text, MIB),
    };
    let count = decimal(digits).filter(|count| *count != 0).ok_or(Fault::NotASize)?;
    count.checked_mul(unit).ok_or(Fault::NotASize)
}

/// A decimal number within bounds, both included.
pub(crate) fn number(text: &str, low: u32, high: u32) -> Result<u32, Fault> {
    let value = decimal(text).and_then(|value| u32::try_from(value).ok());
    value.filter(|value| (low..=high).contains(value)).ok_or(Fault::NotInRange(low, high))
}

/// Digits only: `parse` alone would take a sign.
fn decimal(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// The choice whose place in `names` (a list as it is shown to the user) `value` has.
fn one_of<T: Copy>(value: &str, names: &'static str, choices: &[T]) -> Result<T, Fault> {
    let place = names.split(", ").position(|name| name == value);
    place.and_then(|place| choices.get(place).copied()).ok_or(Fault::NotOneOf(names))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_empty_line_gives_the_defaults() {
        assert_eq!(parse("  \t "), (Options::default(), vec![]));
    }

    #[test]
    fn every_documented_word_takes_effect() {
        let line = "dom0_mem=768 dom0_vcpus=2 dom0_scratch=1G console=none screen=keep loglvl=trace panic=exit tsc=stable \
                    exit=bochs debug=on cpu_khz=1000000";
        let (options, complaints) = parse(line);
        assert_eq!(complaints, vec![]);
        let expected = Options {
            dom0_mem: Some(768 * MIB),
            dom0_vcpus: Some(2),
            dom0_scratch: 1024 * MIB,
            console: Console::None,
            screen: ScreenPolicy::Keep,
            loglvl: LevelFilter::Trace,
            panic: OnPanic::Exit,
            tsc: TscPolicy::Stable,
            exit: ExitDevice::Bochs,
            debug: true,
            cpu_khz: Some(1_000_000),
        };
        assert_eq!(options, expected);
    }

    #[test]
    fn sizes_are_mebibytes_unless_a_suffix_says_otherwise() {
        for (text, bytes) in [("512", 512 * MIB), ("512M", 512 * MIB), ("2G", 2048 * MIB), ("2g", 2048 * MIB)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "0", "0G", "-1", "+1", "1K", "1.5G", "99999999999999999999", "20000000000000G"] {
            assert_eq!(size(text), Err(Fault::NotASize), "{text}");
        }
    }

    #[test]
    fn a_bad_word_is_named_and_leaves_the_rest_alone() {
        let (options, complaints) = parse("dom0_men=1 quiet loglvl=loud dom0_vcpus=0 dom0_mem=64");
        assert_eq!(options, Options { dom0_mem: Some(64 * MIB), ..Options::default() });
        let words: Vec<_> = complaints.iter().map(|complaint| complaint.word).collect();
        assert_eq!(words, ["dom0_men=1", "quiet", "loglvl=loud", "dom0_vcpus=0"]);
        assert_eq!(
            complaints[2].to_string(),
            "command line: 'loglvl=loud' is ignored: the value must be one of error, warn, info, debug, trace"
        );
    }

    #[test]
    fn the_last_of_two_equal_words_holds() {
        assert_eq!(parse("dom0_mem=1G dom0_mem=2G").0.dom0_mem, Some(2048 * MIB));
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_complained_about(line in "\\PC*") {
            let (_, complaints) = parse(&line);
            for complaint in complaints {
                prop_assert!(line.contains(complaint.word));
            }
        }
    }
}
