// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whose code is built in, and under which terms.
//!
//! Two checks of the gate, both from what cargo knows without the net. Each package of the lock file must offer a licence from a list,
//! so that what is built can be given away under ours. And the packages that are linked into the hypervisor, where every
//! line is trusted, must be those of the table in the book: one more is a decision, not an accident.
//!
//! Advisories are looked at in the long tier, by `cargo audit` where that is installed and reaches its database, which is on
//! a server that the gate must not depend on; elsewhere that check is skipped and says so.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use isthmus_tests::verdict::Verdict;
use serde_json::Value;

use super::{Judged, Unit, log_file};
use crate::setup::BARE_METAL;
use crate::{compile, tool, workspace};

/// Terms that allow what our own allow, if notices are kept.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
    "bzip2-1.0.6",
];
/// The page with the table.
const PAGE: &str = "docs/src/reference/dependencies.md";
const BEGIN: &str = "<!-- dependencies: begin -->";
const END: &str = "<!-- dependencies: end -->";

/// One of the two.
#[derive(Clone, Copy)]
pub(super) struct Deps {
    name: &'static str,
    problems: fn() -> Result<Vec<String>>,
}

pub(super) const ALL: [Deps; 2] = [
    Deps { name: "deps/licences", problems: bad_licences },
    Deps { name: "deps/inside-the-hypervisor", problems: differences_from_the_book },
];

impl Unit for Deps {
    fn names(&self) -> Vec<String> {
        vec![self.name.to_owned()]
    }

    fn run(&self, logs: &Path) -> Result<Vec<Judged>> {
        let (start, log) = (Instant::now(), log_file(logs, self.name));
        let problems = (self.problems)()?;
        fs::write(&log, problems.join("\n")).with_context(|| format!("writing {}", log.display()))?;
        let verdict = match problems.first() {
            None => Verdict::Pass(0),
            Some(first) => Verdict::Fail(format!("{} problems, the first: {first}", problems.len())),
        };
        Ok(vec![Judged { name: self.name.to_owned(), verdict, took: start.elapsed(), log }])
    }
}

/// `cargo audit`'s status when it found something, and what it says when it could not look.
const FOUND: i32 = 1;
const NO_DATABASE: &str = "couldn't fetch advisory database";

/// Advisories about the lock file's packages.
#[derive(Clone, Copy)]
pub(super) struct Advisories;

impl Unit for Advisories {
    fn names(&self) -> Vec<String> {
        vec!["deps/advisories".to_owned()]
    }

    fn run(&self, logs: &Path) -> Result<Vec<Judged>> {
        let name = self.names().concat();
        let (start, log) = (Instant::now(), log_file(logs, &name));
        let output = compile::cargo("audit").args(["--deny", "yanked"]).output().context("running cargo")?;
        let said = [output.stdout, output.stderr].concat();
        fs::write(&log, &said).with_context(|| format!("writing {}", log.display()))?;
        let verdict = judge_audit(output.status.code(), &String::from_utf8_lossy(&said));
        Ok(vec![Judged { name, verdict, took: start.elapsed(), log }])
    }
}

fn judge_audit(status: Option<i32>, said: &str) -> Verdict {
    match status {
        Some(0) => Verdict::Pass(0),
        _ if said.contains("no such command") => {
            Verdict::Skip("cargo-audit is not installed: `cargo install cargo-audit`".to_owned())
        }
        _ if said.contains(NO_DATABASE) => Verdict::Skip("its database of advisories cannot be reached".to_owned()),
        Some(FOUND) => Verdict::Fail("there are advisories or withdrawn versions, see the log".to_owned()),
        _ => Verdict::Fail("cargo audit failed, see the log".to_owned()),
    }
}

/// Packages whose terms are not allowed.
fn bad_licences() -> Result<Vec<String>> {
    let printed = tool::run(compile::cargo("metadata").args(["--format-version", "1", "--locked"]))?;
    let metadata: Value = serde_json::from_slice(&printed).context("reading cargo's metadata")?;
    let packages = metadata["packages"].as_array().context("cargo's metadata has no packages")?;
    let problem = |package: &Value| {
        let (name, terms) = (package["name"].as_str().unwrap_or("?"), package["license"].as_str().unwrap_or_default());
        (!is_allowed(terms)).then(|| format!("{name}: `{terms}` is on no list of allowed licences"))
    };
    Ok(packages.iter().filter_map(problem).collect())
}

/// Whether an SPDX expression can be satisfied by what is allowed. A slash is an old way to write OR. Parentheses enclose
/// alternatives only, as everywhere in the lock file; what is more complicated is refused and looked at by somebody.
fn is_allowed(terms: &str) -> bool {
    let any = |terms: &str| {
        let terms = terms.trim().trim_start_matches('(').trim_end_matches(')').replace('/', " OR ");
        terms.split(" OR ").any(|one| ALLOWED.contains(&one.trim()))
    };
    !terms.is_empty() && terms.split(" AND ").all(any)
}

/// What is linked into the hypervisor and not in the book's table, and the other way round.
fn differences_from_the_book() -> Result<Vec<String>> {
    let page = fs::read_to_string(workspace::root().join(PAGE)).with_context(|| format!("reading {PAGE}"))?;
    let table = page.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END)).context("the page has no table")?.0;
    let (book, linked) = (names_in_table(table), linked()?);
    let missing = linked.difference(&book).map(|name| format!("{name} is linked in and not in {PAGE}"));
    let extra = book.difference(&linked).map(|name| format!("{name} is in {PAGE} and not linked in"));
    Ok(missing.chain(extra).collect())
}

fn names_in_table(table: &str) -> BTreeSet<String> {
    let first_cell = |line: &str| line.strip_prefix("| `")?.split_once('`').map(|(name, _)| name.to_owned());
    table.lines().filter_map(first_cell).collect()
}

/// The names of the packages that are linked into the hypervisor, without its own.
fn linked() -> Result<BTreeSet<String>> {
    let mut cargo = compile::cargo("tree");
    cargo.args(["--package", "hypervisor", "--features", "bare-metal", "--target", BARE_METAL]);
    cargo.args(["--edges", "normal,no-proc-macro", "--prefix", "none", "--locked", "--format", "{p}"]);
    let printed = String::from_utf8(tool::run(&mut cargo)?)?;
    let names = printed.lines().filter_map(|line| line.split(' ').next());
    Ok(names.filter(|name| !name.is_empty() && *name != "hypervisor").map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_allowed_alternative_is_enough_and_every_part_needs_one() {
        for terms in ["MIT", "MIT/Apache-2.0", "GPL-3.0 OR MIT", "(MIT OR Apache-2.0) AND Unicode-3.0"] {
            assert!(is_allowed(terms), "{terms}");
        }
        for terms in ["", "GPL-2.0-only", "MIT AND GPL-2.0-only", "(GPL-2.0-only OR MPL-2.0) AND MIT", "proprietary"] {
            assert!(!is_allowed(terms), "{terms}");
        }
    }

    #[test]
    fn what_could_not_be_looked_at_is_skipped_and_what_was_found_fails() {
        let skipped = |status, said| matches!(judge_audit(Some(status), said), Verdict::Skip(_));
        assert!(
            skipped(101, "error: no such command: `audit`") && skipped(1, "error: couldn't fetch advisory database: x")
        );
        assert!(matches!(judge_audit(Some(0), ""), Verdict::Pass(0)));
        assert!(
            matches!(judge_audit(Some(1), "Crate: a"), Verdict::Fail(_))
                && matches!(judge_audit(None, ""), Verdict::Fail(_))
        );
    }

    #[test]
    fn a_table_names_its_packages_in_the_first_cell() {
        let table = "| package | why |\n|---|---|\n| `log` | the `log` macros |\n| `spin` | locks |\n";
        assert_eq!(names_in_table(table), BTreeSet::from(["log".to_owned(), "spin".to_owned()]));
    }
}
