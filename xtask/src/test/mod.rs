// SPDX-License-Identifier: MIT OR Apache-2.0
//! `xtask test`: every check there is, by name.
//!
//! A check is a step on the host (format, lints, documentation, the unit tests of one crate) or a boot in an emulator
//! (the list is the crate `isthmus-tests`). Steps come first, one after the other, since each keeps all CPUs busy; then
//! the boots, two at a time. A failing check hides no other. Each prints a line when it ends, and its log is kept below
//! the build directory, in `test-logs`. The last line of the output counts them.

mod boots;
mod commands;
mod deps;
mod docs;
mod figures;
mod kernels;
mod machines;
mod mutations;
mod pace;
mod panics;
mod runs;
mod scenes;
mod sessions;
mod steps;
mod transcripts;

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

/// Something that is run as one piece, and holds one check or several.
trait Unit: Sync {
    /// The names of its checks.
    fn names(&self) -> Vec<String>;
    /// Runs it; logs go into the folder `logs`. Each check must be among the results. An error fails all of them.
    fn run(&self, logs: &Path) -> Result<Vec<Judged>>;
}

fn boxed<'a>(unit: impl Unit + 'a) -> Box<dyn Unit + 'a> {
    Box::new(unit)
}

/// What became of a check.
struct Judged {
    name: String,
    verdict: Verdict,
    took: Duration,
    log: PathBuf,
}

/// This program's file, to be started again. It is found also when another one has been built in its place meanwhile.
fn this_program() -> PathBuf {
    PathBuf::from(format!("/proc/{}/exe", std::process::id()))
}

/// The file for the log of a check.
fn log_file(logs: &Path, name: &str) -> PathBuf {
    logs.join(format!("{}.log", name.replace('/', ".")))
}

/// `xtask test`.
pub(crate) fn command(options: &Options) -> Result<ExitCode> {
    let is_wanted = |name: &str| options.filter.as_deref().is_none_or(|filter| name.contains(filter));
    let tier = options.tier.into();
    let is_chosen = |unit: &dyn Unit| unit.names().iter().any(|name| is_wanted(name));
    let docs = [docs::Docs].into_iter().filter(|docs| is_chosen(docs)).map(boxed);
    let deps = deps::ALL.into_iter().filter(|deps| is_chosen(deps)).map(boxed);
    let is_long = tier >= isthmus_tests::Tier::Long;
    let advisories = [deps::Advisories].into_iter().filter(|deps| is_long && is_chosen(deps)).map(boxed);
    let mutations = mutations::all().filter(|tried| is_long && is_chosen(tried)).map(boxed);
    let steps: Vec<_> = docs
        .chain(deps)
        .chain(advisories)
        .chain(mutations)
        .chain(steps::all().into_iter().filter(|step| is_chosen(step)).map(boxed))
        .collect();
    // The long ones first: two at a time, the short ones fill the gap at the end.
    let micro = boots::all().filter(|boot| boot.tier() <= tier && is_chosen(boot)).map(boxed);
    let odd = machines::ALL.iter().copied().filter(|odd| odd.tier() <= tier && is_chosen(odd)).map(boxed);
    let scenes = scenes::all().filter(|scene| scene.tier <= tier && is_chosen(scene)).map(boxed);
    let is_gate = tier >= isthmus_tests::Tier::Gate;
    let figures = figures::ALL.iter().copied().filter(|figures| is_gate && is_chosen(figures)).map(boxed);
    let long = sessions::all(tier, &is_wanted).map(boxed).chain(figures);
    let boots: Vec<_> = long.chain(micro).chain(odd).chain(scenes).collect();
    if steps.is_empty() && boots.is_empty() {
        bail!("no check of this tier has `{}` in its name", options.filter.as_deref().unwrap_or_default());
    }
    if options.list {
        steps.iter().chain(&boots).flat_map(|unit| unit.names()).for_each(|name| println!("{name}"));
        return Ok(ExitCode::SUCCESS);
    }
    interrupt::catch()?;
    let mut purposes = vec![Purpose::Checks, Purpose::Compile];
    if !boots.is_empty() {
        purposes.extend([Purpose::Image, Purpose::Uefi, Purpose::Qemu, Purpose::Bochs, Purpose::Dom0]);
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

    fn run_all(&self, units: &[Box<dyn Unit>], at_a_time: usize) {
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..at_a_time.min(units.len()) {
                scope.spawn(|| {
                    while let Some(unit) = units.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if interrupt::requested() {
                            break;
                        }
                        self.run(unit.as_ref());
                    }
                });
            }
        });
    }

    fn run(&self, unit: &dyn Unit) {
        let start = Instant::now();
        let results = unit.run(&self.logs).unwrap_or_else(|error| {
            let failed = |name: String| Judged {
                verdict: Verdict::Fail(format!("{error:#}")),
                took: start.elapsed(),
                log: log_file(&self.logs, &name),
                name,
            };
            unit.names().into_iter().map(failed).collect()
        });
        if !interrupt::requested() {
            results.iter().for_each(|result| self.report(result));
        }
    }

    fn report(&self, Judged { name, verdict, took, log }: &Judged) {
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

    struct Fixed(Option<Verdict>);

    impl Unit for Fixed {
        fn names(&self) -> Vec<String> {
            vec!["fixed/check".to_owned()]
        }

        fn run(&self, logs: &Path) -> Result<Vec<Judged>> {
            let verdict = self.0.clone().context("an error")?;
            Ok(vec![Judged { name: self.names().remove(0), verdict, took: Duration::ZERO, log: logs.into() }])
        }
    }

    #[test]
    fn a_failure_hides_no_other_check() {
        let logs = std::env::temp_dir();
        let runner = Runner { logs, tally: Mutex::default() };
        let checks = [
            boxed(Fixed(Some(Verdict::Fail("a".into())))),
            boxed(Fixed(Some(Verdict::Pass(0)))),
            boxed(Fixed(None)),
            boxed(Fixed(Some(Verdict::Skip("b".into())))),
            boxed(Fixed(Some(Verdict::Pass(2)))),
        ];
        runner.run_all(&checks, 2);
        assert_eq!(*runner.tally.lock().unwrap(), Tally { passed: 2, failed: 2, skipped: 1 });
    }
}
