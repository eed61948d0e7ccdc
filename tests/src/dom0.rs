// SPDX-License-Identifier: MIT OR Apache-2.0
//! The list of checks in dom0: sessions of one boot each, with commands for its shell.
//!
//! A command is a check of its own, so that one that fails hides none of the others; those that would disturb each
//! other belong in different sessions. A command passes with the expected status and the expected output.

use crate::{Backend, SVM, Tier};

/// One boot of dom0.
#[derive(Clone, Copy, Debug)]
pub struct Session {
    /// The first part of its checks' names.
    pub name: &'static str,
    /// When it is run.
    pub tier: Tier,
    /// Where it is run.
    pub backends: &'static [Backend],
    /// The longest that it may take until the shell answers, in seconds, on a busy machine.
    pub boot_limit_seconds: u64,
    /// A series of Debian's kernels; the default when empty.
    pub kernel: &'static str,
    /// Debian packages in dom0's root.
    pub packages: &'static [&'static str],
    /// More arguments for dom0's kernel.
    pub append: &'static str,
    /// Words for the hypervisor's command line.
    pub hv_append: &'static str,
    /// Memory of the machine.
    pub memory_mib: u32,
    /// CPUs of the machine.
    pub cpus: u32,
    /// The size of an empty disk that the machine has; none when 0.
    pub disk_mib: u32,
    /// Start by BIOS and GRUB also where an emulator has a quicker way.
    pub by_grub: bool,
    /// Whether the machine has an IOMMU.
    pub has_iommu: bool,
    /// What is run in it.
    pub commands: &'static [Command],
}

/// One command for dom0's shell.
#[derive(Clone, Copy, Debug)]
pub struct Command {
    /// The last part of its check's name but for the backend's.
    pub name: &'static str,
    /// What the shell is given.
    pub text: &'static str,
    /// The longest that it may take, in seconds, on a busy machine.
    pub limit_seconds: u64,
    /// The status that it must end with.
    pub status: u8,
    /// What it must print.
    pub output: Output,
}

/// What a command must print on standard output.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Output {
    /// Anything.
    Any,
    /// These bytes and no other.
    Exactly(&'static str),
    /// All of these texts, somewhere.
    With(&'static [&'static str]),
}

impl Session {
    /// A plain session, run with each submission.
    #[must_use]
    pub const fn new(name: &'static str, backends: &'static [Backend], commands: &'static [Command]) -> Self {
        Self {
            name,
            tier: Tier::Gate,
            backends,
            boot_limit_seconds: 240,
            kernel: "",
            packages: &[],
            append: "",
            hv_append: "",
            memory_mib: 2048,
            cpus: 1,
            disk_mib: 0,
            by_grub: false,
            has_iommu: false,
            commands,
        }
    }
}

/// A command that must succeed with this output.
#[must_use]
pub const fn prints(name: &'static str, text: &'static str, output: Output) -> Command {
    Command { name, text, limit_seconds: 60, status: 0, output }
}

/// A command that must end with this status, whatever it prints.
#[must_use]
pub const fn ends(name: &'static str, text: &'static str, status: u8) -> Command {
    Command { name, text, limit_seconds: 60, status, output: Output::Any }
}

/// All sessions.
pub const SESSIONS: &[Session] = &[Session::new("dom0", SVM, BASICS)];

/// That dom0 is one, that its kernel is Debian's own, and that a command's output and status arrive as they are.
const BASICS: &[Command] = &[
    prints("kernel", "uname -r", Output::With(&["6.1.0-", "-amd64\n"])),
    prints("is-a-xen-domain", "cat /sys/hypervisor/type", Output::Exactly("xen\n")),
    prints("is-the-control-domain", "cat /proc/xen/capabilities", Output::Exactly("control_d\n")),
    prints("kernel-arguments", "cat /proc/cmdline", Output::With(&["console=hvc0"])),
    prints("output-is-exact", r"printf 'a\0b\r\n\377' | od -An -tx1", Output::Exactly(" 61 00 62 0d 0a ff\n")),
    ends("status-is-the-commands", "exit 7", 7),
    ends("status-of-a-signal", "kill -9 $$", 137),
    prints(
        "timer-events-count",
        "a=$(grep -c . /proc/interrupts); sleep 1; test \"$a\" -gt 3 && echo ok",
        Output::Exactly("ok\n"),
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_checks_are_unique() {
        let names: Vec<_> =
            SESSIONS.iter().flat_map(|s| s.commands.iter().map(move |command| (s.name, command.name))).collect();
        for (i, name) in names.iter().enumerate() {
            assert!(!names[..i].contains(name), "{name:?} twice");
        }
    }

    #[test]
    fn every_session_runs_somewhere_and_has_commands() {
        for session in SESSIONS {
            assert!(!session.backends.is_empty() && !session.commands.is_empty(), "{}", session.name);
            assert_ne!(session.tier, Tier::Quick, "{}: a boot of Linux is not quick", session.name);
        }
    }
}
