// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a machine's log says about a check.
//!
//! A micro-guest prints a line `PASS name`, `FAIL name: why` or `SKIP name: why` for each thing that it tries and
//! `DONE` when it has tried all. The hypervisor puts `(dN) ` before each line of domain N. A run passes when every
//! guest is done, nothing failed, something passed, the machine ended with the expected status, and the log has the
//! expected texts. It is skipped when all that its guests say is that they skipped. Silence is a failure.

use std::fmt;

use crate::Check;
use crate::dom0::{Command, Output};

/// The judgement of one run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// All is as it must be; how many things the guests tried.
    Pass(usize),
    /// Something is not; what.
    Fail(String),
    /// Nothing could be tried; why.
    Skip(String),
}

/// How the machine ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// With a status of the hypervisor's.
    Status(u8),
    /// By the hypervisor's panic.
    Panic,
    /// Without a status.
    Silently,
    /// Not within the check's limit.
    TooLate,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "the machine ended with status {status}"),
            Self::Panic => f.write_str("the hypervisor panicked"),
            Self::Silently => f.write_str("the machine ended without a status"),
            Self::TooLate => f.write_str("the time limit is over"),
        }
    }
}

/// What the guests of one run said.
#[derive(Default)]
struct Said {
    passes: usize,
    failures: Vec<String>,
    skips: Vec<String>,
    done: usize,
}

/// Judges a run of `check` by the machine's log and its end.
#[must_use]
pub fn judge(check: &Check, log: &str, ended: Ended) -> Verdict {
    let said = read(log);
    if let Some(first) = said.failures.first() {
        return Verdict::Fail(format!("{} of the guests' tries failed: {first}", said.failures.len()));
    }
    if ended != Ended::Status(check.status) {
        return Verdict::Fail(format!("{ended}, status {} was expected", check.status));
    }
    if let Some(missing) = check.says.iter().find(|text| !log.contains(**text)) {
        return Verdict::Fail(format!("the log lacks `{missing}`"));
    }
    if said.done < check.guests.len() {
        return Verdict::Fail(format!("{} of {} guests are done", said.done, check.guests.len()));
    }
    match (said.passes, said.skips.first()) {
        (0, Some(why)) => Verdict::Skip(why.clone()),
        (0, None) if !check.guests.is_empty() => Verdict::Fail("the guests tried nothing".to_owned()),
        (passes, _) => Verdict::Pass(passes),
    }
}

/// What arrived at the harness' own TCP port while a command ran.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Arrived {
    /// How many bytes.
    pub bytes: usize,
    /// Their SHA-256 in hexadecimal.
    pub checksum: String,
}

/// Judges a command of dom0's shell by its status, its standard output, and what it sent.
#[must_use]
pub fn judge_command(command: &Command, status: u8, output: &[u8], arrived: Option<&Arrived>) -> Verdict {
    if status != command.status {
        return Verdict::Fail(format!("status {status}, {} was expected", command.status));
    }
    let text = String::from_utf8_lossy(output);
    match command.output {
        Output::Exactly(expected) if output != expected.as_bytes() => {
            Verdict::Fail(format!("{text:?} is not {expected:?}"))
        }
        Output::Bytes(expected) if output != expected => Verdict::Fail(format!("{output:?} is not {expected:?}")),
        Output::With(texts) => match texts.iter().find(|expected| !text.contains(**expected)) {
            Some(missing) => Verdict::Fail(format!("the output lacks {missing:?}")),
            None => Verdict::Pass(0),
        },
        Output::ChecksumOfSent(bytes) => match arrived {
            Some(arrived) if arrived.bytes == bytes && text.trim() == arrived.checksum => Verdict::Pass(0),
            Some(arrived) => Verdict::Fail(format!("of {bytes} bytes with {} arrived {arrived:?}", text.trim())),
            None => Verdict::Fail("nothing arrived".to_owned()),
        },
        Output::Exactly(_) | Output::Bytes(_) | Output::Any => Verdict::Pass(0),
    }
}

fn read(log: &str) -> Said {
    let mut said = Said::default();
    for line in log.lines().filter_map(guest_line) {
        match line.split_once(' ').unwrap_or((line, "")) {
            ("PASS", _) => said.passes += 1,
            ("FAIL", what) => said.failures.push(what.to_owned()),
            ("SKIP", what) => said.skips.push(what.to_owned()),
            ("DONE", _) => said.done += 1,
            _ => {}
        }
    }
    said
}

/// A line of a guest, without its domain's prefix.
fn guest_line(line: &str) -> Option<&str> {
    let (domain, text) = line.trim_end().strip_prefix("(d")?.split_once(") ")?;
    domain.parse::<u16>().is_ok().then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dom0::{ends, prints};
    use crate::{BOOT_FAILED, CRASH, Guest, POWEROFF, guest};

    const ONE: &[Guest] = &[guest("a")];
    const TWO: &[Guest] = &[guest("a"), guest("b")];

    fn judged(log: &str, ended: Ended) -> Verdict {
        judge(&Check::guests("x/y", ONE), log, ended)
    }

    fn fails(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Fail(_))
    }

    #[test]
    fn a_guest_that_tried_passed_and_was_done_passes() {
        let log = "(isthmus) up\r\n(d1) PASS one\r\n(d1) SKIP two: no such CPU\r\n(d1) PASS three\r\n(d1) DONE\r\n";
        assert_eq!(judged(log, Ended::Status(POWEROFF)), Verdict::Pass(2));
    }

    #[test]
    fn each_missing_condition_fails() {
        let good = "(d1) PASS one\n(d1) DONE\n";
        assert_eq!(judged(good, Ended::Status(POWEROFF)), Verdict::Pass(1));
        assert!(fails(&judged("(d1) PASS one\n", Ended::Status(POWEROFF))), "not done");
        assert!(fails(&judged("(d1) DONE\n", Ended::Status(POWEROFF))), "nothing tried");
        assert!(fails(&judged("", Ended::Status(POWEROFF))), "silence");
        assert!(fails(&judged("(d1) PASS a\n(d1) FAIL b: c\n(d1) DONE\n", Ended::Status(POWEROFF))));
        for ended in [Ended::Status(CRASH), Ended::Panic, Ended::Silently, Ended::TooLate] {
            assert!(fails(&judged(good, ended)), "{ended}");
        }
    }

    #[test]
    fn every_guest_must_be_done() {
        let check = Check::guests("x/y", TWO);
        let log = "(d1) PASS a\n(d1) DONE\n(d2) PASS b\n";
        assert!(fails(&judge(&check, log, Ended::Status(POWEROFF))));
        assert_eq!(judge(&check, &format!("{log}(d2) DONE\n"), Ended::Status(POWEROFF)), Verdict::Pass(2));
    }

    #[test]
    fn only_skips_are_a_skip() {
        let verdict = judged("(d1) SKIP x2apic: not there\n(d1) DONE\n", Ended::Status(POWEROFF));
        assert_eq!(verdict, Verdict::Skip("x2apic: not there".to_owned()));
    }

    #[test]
    fn a_command_is_judged_by_status_and_output() {
        let exact = prints("x", "echo", Output::Exactly("\n"));
        assert_eq!(judge_command(&exact, 0, b"\n", None), Verdict::Pass(0));
        assert!(fails(&judge_command(&exact, 0, b"\n\n", None)));
        assert!(fails(&judge_command(&exact, 1, b"\n", None)));
        let bytes = prints("x", "printf", Output::Bytes(b"\xff\0"));
        assert_eq!(judge_command(&bytes, 0, b"\xff\0", None), Verdict::Pass(0));
        assert!(fails(&judge_command(&bytes, 0, b"\xff", None)));
        let with = prints("x", "dmesg", Output::With(&["a", "c"]));
        assert_eq!(judge_command(&with, 0, b"abc", None), Verdict::Pass(0));
        assert!(fails(&judge_command(&with, 0, b"ab", None)));
        let sent = prints("x", "nc", Output::ChecksumOfSent(3));
        let arrived = |bytes| Arrived { bytes, checksum: "00ff".to_owned() };
        assert_eq!(judge_command(&sent, 0, b"00ff\n", Some(&arrived(3))), Verdict::Pass(0));
        assert!(fails(&judge_command(&sent, 0, b"00ff\n", Some(&arrived(2)))));
        assert!(fails(&judge_command(&sent, 0, b"00fe\n", Some(&arrived(3)))));
        assert!(fails(&judge_command(&sent, 0, b"00ff\n", None)));
        assert_eq!(judge_command(&ends("x", "exit 7", 7), 7, b"?", None), Verdict::Pass(0));
    }

    #[test]
    fn the_hypervisors_own_lines_are_no_verdicts() {
        assert!(fails(&judged("PASS one\nDONE\n(dx) PASS\n", Ended::Status(POWEROFF))));
    }

    #[test]
    fn a_boot_without_guests_is_judged_by_status_and_texts() {
        let check = Check::boot("x/y", BOOT_FAILED, &["nothing to start"]);
        assert_eq!(judge(&check, "ERROR nothing to start\n", Ended::Status(BOOT_FAILED)), Verdict::Pass(0));
        assert!(fails(&judge(&check, "ERROR\n", Ended::Status(BOOT_FAILED))));
        assert!(fails(&judge(&check, "nothing to start", Ended::Status(POWEROFF))));
    }
}
