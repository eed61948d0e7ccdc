// SPDX-License-Identifier: MIT OR Apache-2.0
//! Takes single checks out of the hypervisor, each in a copy of the sources, and expects a unit test to fail.
//!
//! The copy and its build directory stay below ours, so that each mutation costs one compilation of the hypervisor's
//! tests and not of what they depend on. That the tests pass without a mutation is another check's.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use isthmus_tests::mutations::{GRANTS, Mutation};
use isthmus_tests::verdict::Verdict;

use super::{Judged, Unit, log_file};
use crate::tool::{self, Watched};
use crate::{compile, workspace};

/// For one mutation, the first of which has everything to be compiled.
const LIMIT: Duration = Duration::from_secs(10 * 60);
/// What is not of the sources.
const NOT_COPIED: [&str; 2] = ["target", ".git"];

/// One mutation, to be tried.
#[derive(Clone, Copy)]
pub(super) struct Tried(&'static Mutation);

/// All of them.
pub(super) fn all() -> impl Iterator<Item = Tried> {
    GRANTS.iter().map(Tried)
}

impl Unit for Tried {
    fn names(&self) -> Vec<String> {
        vec![format!("mutation/grants/{}", self.0.name)]
    }

    fn run(&self, logs: &Path) -> Result<Vec<Judged>> {
        let (start, name) = (Instant::now(), self.names().remove(0));
        let log = log_file(logs, &name);
        let tree = workspace::target().join("mutations/tree");
        // This takes the last mutation back, too.
        copy(&workspace::root(), &tree)?;
        let file = tree.join(self.0.file);
        let original = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        fs::write(&file, original.replacen(self.0.from, self.0.to, 1))
            .with_context(|| format!("writing {}", file.display()))?;
        let verdict = match test(&tree, &["--no-run"], &log)? {
            Watched::Succeeded => match test(&tree, &[], &log)? {
                Watched::Failed => Verdict::Pass(0),
                Watched::Succeeded => Verdict::Fail(format!("no test fails without it, in {}", self.0.file)),
                Watched::TooLate => Verdict::Fail("the tests do not end without it".to_owned()),
                Watched::Interrupted => Verdict::Skip("interrupted".to_owned()),
            },
            Watched::Failed => Verdict::Fail("what is left does not compile".to_owned()),
            Watched::TooLate => Verdict::Fail("not compiled in time".to_owned()),
            Watched::Interrupted => Verdict::Skip("interrupted".to_owned()),
        };
        Ok(vec![Judged { name, verdict, took: start.elapsed(), log }])
    }
}

/// Makes the copy what the sources are. Files that are the same keep their times, so that cargo compiles little.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("creating {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry?;
        let (name, target) = (entry.file_name(), to.join(entry.file_name()));
        if NOT_COPIED.iter().any(|skipped| name == *skipped) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else if fs::read(&target).ok() != Some(fs::read(entry.path())?) {
            fs::copy(entry.path(), &target).with_context(|| format!("writing {}", target.display()))?;
        }
    }
    Ok(())
}

/// Runs the tests about grants.
fn test(tree: &Path, arguments: &[&str], log: &Path) -> Result<Watched> {
    let mut cargo = compile::cargo("test");
    cargo.current_dir(tree).env("CARGO_TARGET_DIR", workspace::target().join("mutations/build"));
    cargo.args(["--quiet", "--package", "hypervisor", "--lib"]).args(arguments).args(["--", "grant"]);
    tool::run_logged(&mut cargo, log, LIMIT)
}
