// SPDX-License-Identifier: MIT OR Apache-2.0
//! `run` with dom0: its console on this terminal, or one command.

use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result};

use super::{ShowTail, terminal};
use crate::console::{self, End, Log, Until};
use crate::emulator::Running;
use crate::exec::Failure;
use crate::{report, shell};

/// What became of a command.
enum Outcome {
    /// It ended with this status.
    Status(u8),
    /// It has none.
    None { failure: Failure, shell_was_reached: bool },
}

/// Runs `command` in dom0 and powers the machine off. Returns the exit status of `xtask run`.
pub(super) fn exec(
    running: &mut Running,
    command: &str,
    log: Log,
    deadline: Option<Instant>,
    hypervisor: &Path,
) -> Result<u8> {
    let deadline = deadline.context("a command needs a time limit")?;
    let log = Mutex::new(log);
    let (end, talk) = shell::attend(running, &log, deadline, |channel| {
        report::step("dom0 is up");
        channel.run(command, &mut std::io::stdout().lock(), &mut std::io::stderr(), deadline)
    })?;
    let outcome = match talk {
        Ok(Ok(status)) => Outcome::Status(status),
        Ok(Err(failure)) => Outcome::None { failure, shell_was_reached: true },
        Err(failure) => Outcome::None { failure, shell_was_reached: false },
    };
    if end == End::Panicked || matches!(outcome, Outcome::None { .. }) {
        super::explain(end, &console::lock(&log), running, hypervisor, ShowTail::Yes);
    }
    if let Outcome::None { failure, .. } = &outcome {
        report::step(failure.to_string());
    }
    Ok(exit_code(end, &outcome))
}

/// The contract of `--exec`: the command's own status, or why there is none. A machine that ended with a status before
/// the shell answered has said what keeps dom0 from its shell; one that ended without has not.
fn exit_code(end: End, outcome: &Outcome) -> u8 {
    match (end, outcome) {
        (End::Panicked, _) => super::STATUS_NO_VERDICT,
        (End::Interrupted, _) => super::STATUS_INTERRUPTED,
        (_, Outcome::Status(status)) => *status,
        (_, Outcome::None { failure: Failure::TimedOut, .. }) => super::STATUS_TIMEOUT,
        (_, Outcome::None { failure: Failure::NotReached, .. })
        | (End::Status(_), Outcome::None { shell_was_reached: false, .. }) => super::STATUS_NO_SHELL,
        (_, Outcome::None { .. }) => super::STATUS_NO_VERDICT,
    }
}

/// Connects this terminal with dom0's console until the machine ends. Returns the exit status of `xtask run`.
pub(super) fn interact(running: &mut Running, log: Log, deadline: Option<Instant>, hypervisor: &Path) -> Result<u8> {
    let raw = terminal::Raw::enter()?;
    if raw.is_terminal() {
        report::step("this terminal is dom0's console; Ctrl-] twice in a row ends the machine");
    }
    let stop = terminal::forward(running.com1.try_clone()?);
    let log = Mutex::new(log);
    let mut stdout = std::io::stdout().lock();
    let end = console::watch(running, &log, Until { deadline, stop: Some(&stop) }, |bytes| {
        stdout.write_all(bytes).and_then(|()| stdout.flush()).context("writing to standard output")
    })?;
    drop(raw);
    let end = if end == End::Silent && running.was_powered_off() { End::Status(0) } else { end };
    super::explain(end, &console::lock(&log), running, hypervisor, ShowTail::No);
    Ok(match end {
        End::Stopped => 0,
        other => super::guests::exit_code(other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_status_is_ours_unless_the_hypervisor_panicked() {
        assert_eq!(exit_code(End::Silent, &Outcome::Status(7)), 7);
        assert_eq!(exit_code(End::Status(0), &Outcome::Status(0)), 0);
        assert_eq!(exit_code(End::Stopped, &Outcome::Status(143)), 143, "dom0 did not power off in time");
        assert_eq!(exit_code(End::Panicked, &Outcome::Status(0)), 125);
    }

    #[test]
    fn a_command_without_status_is_told_apart_by_the_reason() {
        let code = |end, failure, reached| exit_code(end, &Outcome::None { failure, shell_was_reached: reached });
        assert_eq!(code(End::Stopped, Failure::TimedOut, true), 124);
        assert_eq!(code(End::Stopped, Failure::NotReached, false), 126);
        assert_eq!(code(End::Status(4), Failure::Ended, false), 126);
        assert_eq!(code(End::Status(3), Failure::Ended, true), 125);
        assert_eq!(code(End::Silent, Failure::Ended, true), 125);
        assert_eq!(code(End::Panicked, Failure::Ended, false), 125);
        assert_eq!(code(End::Interrupted, Failure::Ended, true), 130);
    }
}
