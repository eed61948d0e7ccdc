// SPDX-License-Identifier: MIT OR Apache-2.0
//! The checks on the host: calls of cargo, each with a name.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use isthmus_tests::verdict::Verdict;

use super::{Judged, Unit, log_file};
use crate::compile;
use crate::setup::BARE_METAL;
use crate::tool::{self, Watched};
use crate::toolchain::{self, Toolchain};

/// Long enough for everything to be compiled anew on a slow machine.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// A call of cargo that must succeed.
pub(super) struct Step {
    name: &'static str,
    subcommand: &'static str,
    arguments: &'static [&'static str],
    is_bare_metal: bool,
}

const fn step(name: &'static str, subcommand: &'static str, arguments: &'static [&'static str]) -> Step {
    Step { name, subcommand, arguments, is_bare_metal: false }
}

/// A call for code that only exists on the bare machine, which calls for the host leave out.
const fn bare_metal(name: &'static str, subcommand: &'static str, arguments: &'static [&'static str]) -> Step {
    Step { is_bare_metal: true, ..step(name, subcommand, arguments) }
}

/// All steps, the quickest first.
pub(super) fn all() -> Vec<Step> {
    vec![
        step("fmt", "fmt", &["--all", "--check"]),
        step("clippy/host", "clippy", &["--workspace", "--all-targets"]),
        bare_metal("clippy/hypervisor", "clippy", &["--package", "hypervisor"]),
        bare_metal("clippy/guests", "clippy", &["--package", "test-guests"]),
        step("doc/host", "doc", &["--workspace", "--exclude", "test-guests", "--no-deps", "--document-private-items"]),
        bare_metal("doc/hypervisor", "doc", &["--package", "hypervisor", "--no-deps", "--document-private-items"]),
        bare_metal("doc/guests", "doc", &["--package", "test-guests", "--no-deps", "--document-private-items"]),
        step("unit/guest-abi", "test", &["--package", "guest-abi"]),
        step("unit/pvh-loader", "test", &["--package", "pvh-loader", "--features", "bzimage"]),
        step("unit/hypervisor", "test", &["--package", "hypervisor"]),
        step("unit/dom0-tools", "test", &["--package", "dom0-tools"]),
        step("unit/tests", "test", &["--package", "isthmus-tests"]),
        step("unit/fuzz", "test", &["--package", "isthmus-fuzz"]),
        step("unit/xtask", "test", &["--package", "xtask"]),
    ]
}

impl Step {
    fn command(&self) -> Command {
        let mut cargo = compile::cargo(self.subcommand);
        if self.subcommand != "fmt" {
            cargo.arg("--quiet");
        }
        cargo.args(self.arguments);
        if self.is_bare_metal {
            cargo.args(["--features", "bare-metal", "--target", BARE_METAL]);
        }
        if self.subcommand == "clippy" {
            cargo.args(["--", "-D", "warnings"]);
        }
        // Private items are documented too, for those who work here, so links to them are fine.
        cargo.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links").env("CARGO_TERM_COLOR", "never");
        cargo
    }
}

impl Unit for Step {
    fn names(&self) -> Vec<String> {
        vec![self.name.to_owned()]
    }

    fn run(&self, logs: &Path) -> Result<Vec<Judged>> {
        let log = log_file(logs, self.name);
        let start = Instant::now();
        if self.is_bare_metal && toolchain::current()? == Toolchain::Debian {
            let verdict = Verdict::Skip("Debian's compiler has no clippy and no library for this target".to_owned());
            return Ok(vec![Judged { name: self.name.to_owned(), verdict, took: start.elapsed(), log }]);
        }
        let verdict = match tool::run_logged(&mut self.command(), &log, LIMIT)? {
            Watched::Succeeded => Verdict::Pass(0),
            Watched::Failed => Verdict::Fail(format!("cargo {} failed", self.subcommand)),
            Watched::TooLate => Verdict::Fail(format!("not done in {} s", LIMIT.as_secs())),
            Watched::Interrupted => Verdict::Skip("interrupted".to_owned()),
        };
        Ok(vec![Judged { name: self.name.to_owned(), verdict, took: start.elapsed(), log }])
    }
}
