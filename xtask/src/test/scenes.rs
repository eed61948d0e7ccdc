// SPDX-License-Identifier: MIT OR Apache-2.0
//! Checks that are told step by step, because what they show is no single boot's log.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use isthmus_tests::Tier;
use isthmus_tests::verdict::Verdict;

use super::{Judged, Unit, commands, kernels, log_file, pace, panics, runs, transcripts};

/// One check.
#[derive(Clone, Copy)]
pub(super) struct Scene {
    pub(super) name: &'static str,
    pub(super) tier: Tier,
    /// What is done; what went wrong is the error. The log goes into the file.
    pub(super) act: fn(&Path) -> Result<()>,
}

/// A check of the gate.
pub(super) const fn scene(name: &'static str, act: fn(&Path) -> Result<()>) -> Scene {
    Scene { name, tier: Tier::Gate, act }
}

/// All of them.
pub(super) fn all() -> impl Iterator<Item = Scene> {
    let all = runs::ALL.iter().chain(kernels::ALL).chain(pace::ALL);
    all.chain(panics::ALL).chain(commands::ALL).chain(transcripts::ALL).copied()
}

impl Unit for Scene {
    fn names(&self) -> Vec<String> {
        vec![self.name.to_owned()]
    }

    fn run(&self, logs: &Path) -> Result<Vec<Judged>> {
        let (name, log): (_, PathBuf) = (self.name.to_owned(), log_file(logs, self.name));
        // What an earlier run said must not be taken for this one's.
        fs::write(&log, "").with_context(|| format!("creating {}", log.display()))?;
        let start = Instant::now();
        let verdict = match (self.act)(&log) {
            Ok(()) => Verdict::Pass(0),
            Err(why) => Verdict::Fail(format!("{why:#}")),
        };
        Ok(vec![Judged { name, verdict, took: start.elapsed(), log }])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = all().map(|scene| scene.name).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
    }
}
