// SPDX-License-Identifier: MIT OR Apache-2.0
//! `xtask test`: every check there is, by name.
//!
//! A check is a step on the host (format, lints, documentation, the unit tests of one crate) or a boot in an emulator
//! (the list is the crate `isthmus-tests`). Steps come first, one after the other, since each keeps all CPUs busy; then
//! the boots, two at a time. A failing check hides no other. Each prints a line when it ends, and its log is kept below
//! the build directory, in `test-logs`. The last line of the output counts them.

mod boots;
mod steps;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use isthmus_tests::verdict::Verdict;

use crate::setup::{self, Purpose};
use crate::{interrupt, workspace};

/// More emulators at a time than this only wait for each other on the machines that this is made for.
const BOOTS_AT_A_TIME: usize = 2;
/// How much of a failed check's log is shown.
const SHOWN_LINES: usize = 30;

#[derive(Args)]
pub(crate) struct Options {
    /// Only checks with this text in their names
    filter: Option<String>,
    /// Checks up to this tier
    #[arg(long, value_enum, default_value_t)]
    tier: Tier,
    /// Print the names of the checks and run none
    #[arg(long)]
    list: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, ValueEnum)]
enum Tier {
    /// Seconds to a few minutes: host tests and micro-guests
    Quick,
    /// What a change must pass, within half an hour
    #[default]
    Gate,
    /// Everything: soaks, other CPU models, other kernels
    Long,
}

impl From<Tier> for isthmus_tests::Tier {
    fn from(tier: Tier) -> Self {
        match tier {
            Tier::Quick => Self::Quick,
            Tier::Gate => Self::Gate,
            Tier::Long => Self::Long,
        }
    }
}

/// Something that can be run and judged.
trait Check: Sync {
    fn name(&self) -> String;
    /// Runs it with its log in the file `log`. Errors count as failures.
    fn run(&self, log: &Path) -> Result<Verdict>;
}

/// `xtask test`.
pub(crate) fn command(options: &Options) -> Result<ExitCode> {
    let is_wanted = |name: &str| options.filter.as_deref().is_none_or(|filter| name.contains(filter));
    let steps: Vec<_> = steps::all().into_iter().filter(|step| is_wanted(&step.name())).collect();
    let tier = options.tier.into();
    let boots: Vec<_> = boots::all().filter(|boot| boot.tier() <= tier && is_wanted(&boot.name())).collect();
    if steps.is_empty() && boots.is_empty() {
        bail!("no check of this tier has `{}` in its name", options.filter.as_deref().unwrap_or_default());
    }
    if options.list {
        steps.iter().map(Check::name).chain(boots.iter().map(Check::name)).for_each(|name| println!("{name}"));
        return Ok(ExitCode::SUCCESS);
    }
    interrupt::catch()?;
    let mut purposes = vec![Purpose::Checks, Purpose::Compile];
    if !boots.is_empty() {
        purposes.extend([Purpose::Image, Purpose::Qemu, Purpose::Bochs]);
    }
    setup::ensure(&purposes)?;
    let runner = Runner::new()?;
    runner.run_all(&steps, 1);
    if !boots.is_empty() && !interrupt::requested() {
        // Outside of the checks' times. If it fails, each boot says so.
        let _ = boots::built();
    }
    runner.run_all(&boots, BOOTS_AT_A_TIME);
    Ok(runner.finish())
}

/// Runs checks and counts what became of them.
struct Runner {
    logs: PathBuf,
    tally: Mutex<Tally>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Runner {
    fn new() -> Result<Self> {
        let logs = workspace::target().join("test-logs");
        fs::create_dir_all(&logs).with_context(|| format!("creating {}", logs.display()))?;
        Ok(Self { logs, tally: Mutex::default() })
    }

    fn run_all<C: Check>(&self, checks: &[C], at_a_time: usize) {
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..at_a_time.min(checks.len()) {
                scope.spawn(|| {
                    while let Some(check) = checks.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if interrupt::requested() {
                            break;
                        }
                        self.run(check);
                    }
                });
            }
        });
    }

    fn run(&self, check: &dyn Check) {
        let name = check.name();
        let log = self.logs.join(format!("{}.log", name.replace('/', ".")));
        let start = Instant::now();
        let verdict = check.run(&log).unwrap_or_else(|error| Verdict::Fail(format!("{error:#}")));
        if interrupt::requested() {
            return;
        }
        self.report(&name, &verdict, start.elapsed(), &log);
    }

    fn report(&self, name: &str, verdict: &Verdict, took: Duration, log: &Path) {
        // The lock also keeps the lines of two checks apart.
        let mut tally = self.tally.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let seconds = took.as_secs_f32();
        match verdict {
            Verdict::Pass(_) => tally.passed += 1,
            Verdict::Fail(_) => tally.failed += 1,
            Verdict::Skip(_) => tally.skipped += 1,
        }
        match verdict {
            Verdict::Pass(0) => println!("PASS {name} ({seconds:.1} s)"),
            Verdict::Pass(tries) => println!("PASS {name} ({seconds:.1} s, {tries} tries)"),
            Verdict::Skip(why) => println!("SKIP {name} ({seconds:.1} s): {why}"),
            Verdict::Fail(why) => {
                println!("FAIL {name} ({seconds:.1} s): {why}");
                for line in last_lines(log) {
                    println!("     | {line}");
                }
                println!("     whole log: {}", log.display());
            }
        }
    }

    /// Prints the last line. The status is a failure's if anything failed or not everything was run.
    fn finish(self) -> ExitCode {
        let tally = self.tally.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        println!("{} passed, {} failed, {} skipped", tally.passed, tally.failed, tally.skipped);
        if interrupt::requested() {
            return ExitCode::from(crate::run::STATUS_INTERRUPTED);
        }
        if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn last_lines(log: &Path) -> Vec<String> {
    let text = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<_> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(SHOWN_LINES)..].iter().map(|line| (*line).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(Verdict);

    impl Check for Fixed {
        fn name(&self) -> String {
            "fixed/check".to_owned()
        }

        fn run(&self, _log: &Path) -> Result<Verdict> {
            Ok(self.0.clone())
        }
    }

    #[test]
    fn a_failure_hides_no_other_check() {
        let logs = std::env::temp_dir();
        let runner = Runner { logs, tally: Mutex::default() };
        let checks = [
            Fixed(Verdict::Fail("a".into())),
            Fixed(Verdict::Pass(0)),
            Fixed(Verdict::Skip("b".into())),
            Fixed(Verdict::Pass(2)),
        ];
        runner.run_all(&checks, 2);
        assert_eq!(*runner.tally.lock().unwrap(), Tally { passed: 2, failed: 1, skipped: 1 });
    }
}
