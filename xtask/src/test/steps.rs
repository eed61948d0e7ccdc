// SPDX-License-Identifier: MIT OR Apache-2.0
//! The checks on the host: calls of cargo, each with a name.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use isthmus_tests::verdict::Verdict;

use super::Check;
use crate::compile;
use crate::setup::BARE_METAL;
use crate::tool::{self, Watched};

/// Long enough for everything to be compiled anew on a slow machine.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// A call of cargo that must succeed.
pub(super) struct Step {
    name: &'static str,
    subcommand: &'static str,
    arguments: &'static [&'static str],
}

const fn step(name: &'static str, subcommand: &'static str, arguments: &'static [&'static str]) -> Step {
    Step { name, subcommand, arguments }
}

/// All steps, the quickest first.
pub(super) fn all() -> Vec<Step> {
    const BARE: [&str; 4] = ["--features", "bare-metal", "--target", BARE_METAL];
    const DENY: [&str; 3] = ["--", "-D", "warnings"];
    vec![
        step("fmt", "fmt", &["--all", "--check"]),
        step("clippy/host", "clippy", &["--workspace", "--all-targets", "--", "-D", "warnings"]),
        step(
            "clippy/hypervisor",
            "clippy",
            &["-p", "hypervisor", BARE[0], BARE[1], BARE[2], BARE[3], DENY[0], DENY[1], DENY[2]],
        ),
        step(
            "clippy/guests",
            "clippy",
            &["-p", "test-guests", BARE[0], BARE[1], BARE[2], BARE[3], DENY[0], DENY[1], DENY[2]],
        ),
        step("doc", "doc", &["--workspace", "--no-deps", "--document-private-items"]),
        step("unit/guest-abi", "test", &["-p", "guest-abi"]),
        step("unit/hypervisor", "test", &["-p", "hypervisor"]),
        step("unit/dom0-tools", "test", &["-p", "dom0-tools"]),
        step("unit/tests", "test", &["-p", "isthmus-tests"]),
        step("unit/xtask", "test", &["-p", "xtask"]),
    ]
}

impl Step {
    fn command(&self) -> Command {
        let mut cargo = compile::cargo(self.subcommand);
        if self.subcommand != "fmt" {
            cargo.arg("--quiet");
        }
        // Private items are documented too, for those who work here, so links to them are fine.
        cargo
            .args(self.arguments)
            .env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links")
            .env("CARGO_TERM_COLOR", "never");
        cargo
    }
}

impl Check for Step {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn run(&self, log: &Path) -> Result<Verdict> {
        Ok(match tool::run_logged(&mut self.command(), log, LIMIT)? {
            Watched::Succeeded => Verdict::Pass(0),
            Watched::Failed => Verdict::Fail(format!("cargo {} failed", self.subcommand)),
            Watched::TooLate => Verdict::Fail(format!("not done in {} s", LIMIT.as_secs())),
            Watched::Interrupted => Verdict::Skip("interrupted".to_owned()),
        })
    }
}
