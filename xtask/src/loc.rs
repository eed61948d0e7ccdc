// SPDX-License-Identifier: MIT OR Apache-2.0
//! How much code one has to read: lines of the hypervisor and of what it is built from, and the share of `unsafe`.
//!
//! A line counts when it holds something other than blanks and comments. Tests do not count: they are files and folders
//! whose module is declared for tests alone, files called `…_tests.rs`, and everything from `#[cfg(test)]` with a module after
//! it to the end of a file, where this project has them. The unsafe share is that of the files which lie under the
//! hypervisor's `machine` folder, the only ones that may use it, and beside it the number of `unsafe` blocks and functions.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

use crate::workspace;

#[derive(Args)]
pub(crate) struct Options {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A sum over files.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
struct Count {
    files: usize,
    lines: usize,
    unsafe_uses: usize,
}

impl Count {
    fn add(&mut self, other: Self) {
        self.files += other.files;
        self.lines += other.lines;
        self.unsafe_uses += other.unsafe_uses;
    }
}

/// `xtask loc`.
pub(crate) fn command(options: &Options) -> Result<ExitCode> {
    let root = workspace::root();
    let hypervisor = count_tree(&root.join("hypervisor/src"))?;
    let machine = count_tree(&root.join("hypervisor/src/machine"))?;
    let abi = count_tree(&root.join("guest-abi/src"))?;
    let loader = count_tree(&root.join("pvh-loader/src"))?;
    let per_mille = (machine.lines * 1000).checked_div(hypervisor.lines).unwrap_or(0);
    if options.json {
        let json = serde_json::json!({
            "hypervisor": {"files": hypervisor.files, "lines": hypervisor.lines, "unsafe": hypervisor.unsafe_uses},
            "hypervisor_machine": {"files": machine.files, "lines": machine.lines, "unsafe": machine.unsafe_uses},
            "guest_abi": {"files": abi.files, "lines": abi.lines, "unsafe": abi.unsafe_uses},
            "pvh_loader": {"files": loader.files, "lines": loader.lines, "unsafe": loader.unsafe_uses},
        });
        println!("{json}");
        return Ok(ExitCode::SUCCESS);
    }
    println!("{:<45} {:>6} {:>6} {:>7}", "without blanks, comments and tests", "files", "lines", "unsafe");
    for (name, count) in [
        ("hypervisor", hypervisor),
        ("  of it under machine/ (may be unsafe)", machine),
        ("guest-abi (linked into it)", abi),
        ("pvh-loader (linked into it, but bzimage.rs)", loader),
    ] {
        println!("{name:<45} {:>6} {:>6} {:>7}", count.files, count.lines, count.unsafe_uses);
    }
    println!("share of the files that may be unsafe: {}.{} %", per_mille / 10, per_mille % 10);
    Ok(ExitCode::SUCCESS)
}

fn count_tree(dir: &Path) -> Result<Count> {
    let mut sources = Vec::new();
    read_tree(dir, &mut sources)?;
    let for_tests: Vec<PathBuf> = sources.iter().flat_map(|(path, text)| test_modules(path, text)).collect();
    let mut sum = Count::default();
    sources.iter().filter(|(path, _)| !is_for_tests(path, &for_tests)).for_each(|(_, text)| sum.add(count(text)));
    Ok(sum)
}

/// Whether a file is one of these modules or below one, or has a name of tests.
fn is_for_tests(path: &Path, modules: &[PathBuf]) -> bool {
    let own = path.with_extension("");
    let is_named_so = own.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.ends_with("_tests"));
    is_named_so || own.ancestors().any(|part| modules.iter().any(|module| module == part))
}

fn read_tree(dir: &Path, sources: &mut Vec<(PathBuf, String)>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            read_tree(&path, sources)?;
        } else if matches!(path.extension().and_then(|e| e.to_str()), Some("rs" | "S")) {
            let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            sources.push((path, text));
        }
    }
    Ok(())
}

/// The modules that a file declares for tests alone, as paths without an extension.
fn test_modules(path: &Path, text: &str) -> Vec<PathBuf> {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let own = path.with_extension("");
    let folder = if matches!(stem, "mod" | "lib" | "main") { path.parent().unwrap_or(&own) } else { &own };
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let declared = lines.windows(2).filter(|pair| pair[0] == "#[cfg(test)]");
    let names = declared.filter_map(|pair| pair[1].rsplit_once("mod ")?.1.strip_suffix(';'));
    names.map(|name| folder.join(name)).collect()
}

fn count(source: &str) -> Count {
    let mut count = Count { files: 1, ..Count::default() };
    let mut lines = source.lines().map(str::trim).peekable();
    while let Some(line) = lines.next() {
        if line == "#[cfg(test)]" && lines.peek().is_some_and(|next| opens_module(next)) {
            break;
        }
        if line.is_empty() || line.starts_with("//") {
            continue;
        }
        count.lines += 1;
        let code = line.split("//").next().unwrap_or_default();
        count.unsafe_uses += code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|&w| w == "unsafe").count();
    }
    count
}

/// Whether a module begins on this line, whoever may see it.
fn opens_module(line: &str) -> bool {
    line.ends_with('{')
        && line.split_once("mod ").is_some_and(|(before, _)| before.is_empty() || before.starts_with("pub"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_for_tests_are_found_beside_and_below_their_files() {
        let text = "mod a;\n#[cfg(test)]\nmod model;\n#[cfg(test)]\npub(crate) mod tests;\n#[cfg(test)]\nuse x;\n";
        let found = |path: &str| test_modules(Path::new(path), text);
        assert_eq!(found("src/grant/mod.rs"), [Path::new("src/grant/model"), Path::new("src/grant/tests")]);
        assert_eq!(found("src/domctl.rs"), [Path::new("src/domctl/model"), Path::new("src/domctl/tests")]);
    }

    #[test]
    fn comments_blanks_and_tests_do_not_count() {
        let source = "//! Doc.\n\nfn a() {\n    // SAFETY: unsafe words in comments.\n    unsafe { b() }; // unsafe\n}\n\
                      #[cfg(test)]\nmod tests {\n    unsafe { }\n}\n";
        assert_eq!(count(source), Count { files: 1, lines: 3, unsafe_uses: 1 });
        let shared = source.replace("mod tests", "pub(crate) mod tests");
        assert_eq!(count(&shared), count(source));
    }

    #[test]
    fn what_is_below_a_module_of_tests_is_for_tests() {
        let modules = [PathBuf::from("src/a/tests"), PathBuf::from("src/model")];
        for name in ["src/a/tests.rs", "src/a/tests/more.rs", "src/model/mod.rs", "src/lapic_tests.rs"] {
            assert!(is_for_tests(Path::new(name), &modules), "{name}");
        }
        for name in ["src/a.rs", "src/tests.rs", "src/a/attests.rs", "src/models.rs"] {
            assert!(!is_for_tests(Path::new(name), &modules), "{name}");
        }
    }

    #[test]
    fn a_name_with_the_word_in_it_is_not_unsafe() {
        assert_eq!(count("#![deny(unsafe_code)]\n").unsafe_uses, 0);
        assert_eq!(count("unsafe fn f();\nunsafe impl Send for X {}\n").unsafe_uses, 2);
    }
}
