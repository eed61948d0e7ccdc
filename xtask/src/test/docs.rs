// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether the book holds together: every relative link leads somewhere, every page is in the summary, and the page on
//! soundness has every module that is unsafe.
//!
//! This reads the Markdown itself, so mdBook need not be installed. What stands in code (fenced or in backticks) is not
//! a link. Addresses on the net are not looked at, since a test that needs the net fails for reasons that are not ours.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use isthmus_tests::verdict::Verdict;

use super::{Judged, Unit, log_file};
use crate::workspace;

/// The pages outside of the book.
const LOOSE_PAGES: [&str; 4] = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"];
/// The book's pages.
const BOOK: &str = "docs/src";
const SUMMARY: &str = "SUMMARY.md";
/// The page that says what each unsafe module relies on, and where there are such modules.
const SOUNDNESS: &str = "docs/src/design/soundness.md";
const UNSAFE_PLACES: [&str; 3] = ["hypervisor/src/machine", "guest-abi/src", "dom0-tools/src/sys"];
/// The one check.
const NAME: &str = "docs/links";

/// The check of the documents.
pub(super) struct Docs;

impl Unit for Docs {
    fn names(&self) -> Vec<String> {
        vec![NAME.to_owned()]
    }

    fn run(&self, logs: &Path) -> Result<Vec<Judged>> {
        let (start, log) = (Instant::now(), log_file(logs, NAME));
        let root = workspace::root();
        let problems = [problems(&root)?, unexplained(&root)?].concat();
        fs::write(&log, problems.join("\n")).with_context(|| format!("writing {}", log.display()))?;
        let verdict = match problems.len() {
            0 => Verdict::Pass(0),
            number => Verdict::Fail(format!("{number} bad links, pages or modules")),
        };
        Ok(vec![Judged { name: NAME.to_owned(), verdict, took: start.elapsed(), log }])
    }
}

/// What is wrong with the documents below `root`, one line each.
fn problems(root: &Path) -> Result<Vec<String>> {
    let book = root.join(BOOK);
    let mut pages: Vec<PathBuf> = LOOSE_PAGES.iter().map(|page| root.join(page)).collect();
    add_files(&book, &["md"], &mut pages)?;
    let mut problems = Vec::new();
    let mut listed = BTreeSet::new();
    for page in &pages {
        let text = fs::read_to_string(page).with_context(|| format!("reading {}", page.display()))?;
        let shown = page.strip_prefix(root).unwrap_or(page).display();
        for target in links(&text) {
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() { page.clone() } else { resolve(page, file) };
            if !file.exists() {
                problems.push(format!("{shown}: {target}: no such file"));
            } else if !anchor.is_empty() && !headings(&fs::read_to_string(&file)?).contains(anchor) {
                problems.push(format!("{shown}: {target}: no such heading"));
            }
            if page.ends_with(SUMMARY) {
                listed.insert(file);
            }
        }
    }
    let unlisted = pages.iter().filter(|page| page.starts_with(&book) && !page.ends_with(SUMMARY));
    for page in unlisted.filter(|page| !listed.contains(*page)) {
        problems.push(format!("{}: not in {SUMMARY}", page.strip_prefix(root).unwrap_or(page).display()));
    }
    Ok(problems)
}

/// The files that need a reason to be sound and are not on the page of reasons, one line each.
fn unexplained(root: &Path) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    let soundness = root.join(SOUNDNESS);
    let soundness = fs::read_to_string(&soundness).with_context(|| format!("reading {}", soundness.display()))?;
    for place in UNSAFE_PLACES {
        let mut files = Vec::new();
        add_files(&root.join(place), &["rs", "S"], &mut files)?;
        for file in files {
            let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
            let name = file.strip_prefix(root.join(place))?;
            if needs_a_reason(name, &text) && !is_named(name, &soundness) {
                problems.push(format!("{}: unsafe, and not in {SOUNDNESS}", file.display()));
            }
        }
    }
    Ok(problems)
}

/// Whether a file has something that the compiler cannot vouch for.
fn needs_a_reason(file: &Path, text: &str) -> bool {
    let is_assembly = file.extension().is_some_and(|extension| extension == "S");
    is_assembly || ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"].iter().any(|word| text.contains(word))
}

/// Whether a page names a file in backticks, or a folder that it is in.
fn is_named(file: &Path, page: &str) -> bool {
    let is_folder = |folder: &&Path| !folder.as_os_str().is_empty();
    let mut folders = file.ancestors().skip(1).filter(is_folder).map(|folder| format!("`{}/`", folder.display()));
    page.contains(&format!("`{}`", file.display())) || folders.any(|name| page.contains(&name))
}

/// Adds the files below a folder whose names end in one of these.
fn add_files(dir: &Path, extensions: &[&str], files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            add_files(&path, extensions, files)?;
        } else if path.extension().is_some_and(|found| extensions.iter().any(|extension| found == *extension)) {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

/// The file that a link on `page` names, without `..` in it.
fn resolve(page: &Path, link: &str) -> PathBuf {
    let mut path = page.parent().unwrap_or(Path::new("")).to_owned();
    for part in Path::new(link).components() {
        match part {
            Component::ParentDir => {
                path.pop();
            }
            Component::CurDir => {}
            other => path.push(other),
        }
    }
    path
}

/// Lines outside of fenced code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

/// The targets of relative links: `[text](target)`.
fn links(text: &str) -> Vec<&str> {
    let mut links = Vec::new();
    for line in prose(text) {
        // Every second piece is code.
        for piece in line.split('`').step_by(2) {
            let targets = piece.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
            links.extend(targets.map(|(target, _)| target).filter(|target| !target.contains(':')));
        }
    }
    links
}

/// The anchors of a page's headings, as mdBook makes them.
fn headings(text: &str) -> BTreeSet<String> {
    let titles = prose(text).filter_map(|line| line.strip_prefix('#'));
    titles.map(|title| anchor(title.trim_start_matches('#').trim())).collect()
}

fn anchor(title: &str) -> String {
    let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_books_links_lead_somewhere() {
        assert_eq!(problems(&workspace::root()).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn every_unsafe_module_is_on_the_page_on_soundness() {
        assert_eq!(unexplained(&workspace::root()).unwrap(), Vec::<String>::new());
        assert!(is_named(Path::new("svm/vmcb.rs"), "in `svm/`") && is_named(Path::new("a.rs"), "`b.rs`, `a.rs`"));
        assert!(!is_named(Path::new("svm/vmcb.rs"), "`vmcb.rs`, `vmx/`") && !is_named(Path::new("a.rs"), "`aa.rs`"));
        assert!(needs_a_reason(Path::new("entry.S"), "") && !needs_a_reason(Path::new("x.rs"), "// no unsafe here"));
    }

    #[test]
    fn links_in_code_and_to_the_net_are_not_looked_at() {
        let text = "see [a](a.md) and [b](../b.md#c), `[d](d.md)`\n```\n[e](e.md)\n```\n[f](https://f.org) [`g`](g.md)";
        assert_eq!(links(text), ["a.md", "../b.md#c", "g.md"]);
    }

    #[test]
    fn an_anchor_is_its_heading_in_small_letters() {
        let found = headings("# The p2m: one table\n```\n# not one\n```\n## `INVEPT`, and INVVPID");
        assert_eq!(found, BTreeSet::from(["the-p2m-one-table".to_owned(), "invept-and-invvpid".to_owned()]));
    }

    #[test]
    fn missing_files_headings_and_unlisted_pages_are_named() {
        let root = std::env::temp_dir().join(format!("isthmus-docs-{}", std::process::id()));
        fs::create_dir_all(root.join(BOOK)).unwrap();
        for page in LOOSE_PAGES {
            fs::write(root.join(page), "# Title\n").unwrap();
        }
        fs::write(root.join(BOOK).join(SUMMARY), "[a](a.md)").unwrap();
        fs::write(root.join(BOOK).join("a.md"), "[x](x.md) [b](b.md#nothing) [r](../../README.md#title)").unwrap();
        fs::write(root.join(BOOK).join("b.md"), "# B").unwrap();
        let found = problems(&root).unwrap();
        fs::remove_dir_all(&root).unwrap();
        let wanted = [
            "docs/src/a.md: x.md: no such file",
            "docs/src/a.md: b.md#nothing: no such heading",
            "docs/src/b.md: not in SUMMARY.md",
        ];
        assert_eq!(found, wanted);
    }
}
