// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether an emulator is one that the machines here run on.
//!
//! Older ones fail later and in the dark: QEMU before 7.2 does not start this multi-module PVH image or emulates SVM
//! differently, Bochs before 2.7 has not all of VT-x. So the version is asked for before anything is compiled.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::Emulator;

/// A version's first two numbers.
type Version = (u32, u32);

const OLDEST_QEMU: Version = (7, 2);
const OLDEST_BOCHS: Version = (2, 7);

/// Refuses an emulator that cannot be started or is too old.
pub(super) fn check(emulator: Emulator) -> Result<()> {
    let (program, oldest) = match emulator {
        Emulator::Kvm | Emulator::Qemu => (super::qemu::PROGRAM, OLDEST_QEMU),
        Emulator::Bochs => (super::bochs::PROGRAM, OLDEST_BOCHS),
    };
    let mut command = Command::new(program);
    match emulator {
        Emulator::Kvm | Emulator::Qemu => command.arg("--version"),
        // It tells its version in a banner; help about nothing else costs no start.
        Emulator::Bochs => command.args(["-help", "cpu"]),
    };
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {program}"))?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    judge(program, &text, oldest)
}

fn judge(program: &str, text: &str, oldest: Version) -> Result<()> {
    match version(text) {
        Some(found) if found < oldest => bail!(
            "{program} is version {}.{} and {}.{} is the oldest that works here: install Debian 12's or a newer one",
            found.0,
            found.1,
            oldest.0,
            oldest.1
        ),
        Some(_) => Ok(()),
        None => {
            let first = text.lines().next().unwrap_or_default();
            bail!("{program} does not tell its version but `{first}`: is it the program that is meant?")
        }
    }
}

/// The version in a line such as `QEMU emulator version 7.2.22` or `Bochs x86 Emulator 2.7`.
fn version(text: &str) -> Option<Version> {
    let line = text.lines().find(|line| line.contains(" emulator ") || line.contains(" Emulator "))?;
    let word = line.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let mut numbers = word.split('.').map(|part| part.parse().ok());
    Some((numbers.next()??, numbers.next().flatten().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_emulators_tell_their_version() {
        assert_eq!(version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright"), Some((7, 2)));
        assert_eq!(version("====\n      Bochs x86 Emulator 2.7\n   Built from"), Some((2, 7)));
        assert_eq!(version("QEMU emulator version 10.0.2"), Some((10, 0)));
    }

    #[test]
    fn old_and_odd_ones_are_refused_with_both_numbers() {
        assert!(judge("q", "QEMU emulator version 7.2.0", OLDEST_QEMU).is_ok());
        let old = judge("q", "QEMU emulator version 5.2.0", OLDEST_QEMU).unwrap_err().to_string();
        assert!(old.contains("5.2") && old.contains("7.2"), "{old}");
        assert!(judge("q", "hello", OLDEST_QEMU).unwrap_err().to_string().contains("hello"));
    }
}
