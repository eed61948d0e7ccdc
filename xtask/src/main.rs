// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask`: everything one does with this repository, as one program.
//!
//! This file is the list of commands and their help; each command is a module. Results go to standard output,
//! progress and xtask's own words to standard error.
#![forbid(unsafe_code)]

mod bench;
mod bundle;
mod compile;
mod console;
mod debian;
mod disk;
mod doctor;
mod dom0;
mod emulator;
mod exec;
mod image;
mod initramfs;
mod interrupt;
mod kernel;
mod launch;
mod loc;
mod report;
mod run;
mod setup;
mod shell;
mod symbolize;
mod test;
mod tool;
mod toolchain;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Sets up, builds, images, runs and tests Isthmus.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 110, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what is missing on this machine: Debian packages, the bare-metal target, rustfmt and clippy
    Setup(setup::Options),
    /// Compile the hypervisor, the test guests and dom0's `isthmus` program; print their paths
    Build(compile::Options),
    /// Make what a machine boots from: a disk image for BIOS and UEFI, or the bundle for QEMU's `-kernel`
    Image(image::Options),
    /// Boot the hypervisor in an emulator
    Run(Box<run::Options>),
    /// Run the checks: format, lints, documentation, unit tests, and boots in emulators
    Test(test::Options),
    /// Count what operations cost, in instructions, on QEMU without KVM
    Bench(bench::Options),
    /// Say what this machine has and lacks, and which emulator would be used and why
    Doctor,
    /// Count the hypervisor's lines of code and its unsafe share
    Loc(loc::Options),
    /// Turn the backtraces in a log of the hypervisor into functions and lines
    Symbolize(symbolize::Options),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Setup(options) => setup::command(&options),
        Command::Build(options) => compile::command(&options),
        Command::Image(options) => image::command(&options),
        Command::Run(options) => run::command(&options),
        Command::Test(options) => test::command(&options),
        Command::Bench(options) => bench::command(&options),
        Command::Doctor => doctor::command(),
        Command::Loc(options) => loc::command(&options),
        Command::Symbolize(options) => symbolize::command(&options),
    };
    outcome.unwrap_or_else(|error| {
        report::error(&error);
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The words of a shell's command, up to where another one begins. Quotes of both kinds, a comment, a backslash at a
    /// line's end (which the caller has joined).
    fn words(line: &str) -> Vec<String> {
        let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
        for c in line.chars().chain([' ']) {
            match (quote, c) {
                (Some(open), c) if c == open => quote = None,
                (None, '\'' | '"') => {
                    quote = Some(c);
                    word.get_or_insert_default();
                }
                (None, '#' | '|' | '&' | ';' | '>') if word.is_none() => return words,
                (None, ' ') => words.extend(word.take()),
                (_, c) => word.get_or_insert_default().push(c),
            }
        }
        words
    }

    /// The calls of xtask in the fenced code of a page.
    fn calls(page: &str) -> Vec<String> {
        let code = page.split("```").skip(1).step_by(2).collect::<Vec<_>>().join("\n").replace("\\\n", " ");
        let mut calls: Vec<String> = Vec::new();
        for line in code.lines().map(|line| line.trim().trim_start_matches("$ ")) {
            match calls.last_mut() {
                // Quoted text goes on until its quote.
                Some(call) if call.matches('\'').count() % 2 == 1 => *call += &format!(" {line}"),
                _ if line.starts_with("cargo xtask ") => calls.push(line.to_owned()),
                _ => {}
            }
        }
        calls
    }

    fn pages(dir: &Path, found: &mut Vec<std::path::PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pages(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }

    #[test]
    fn every_command_in_the_book_is_one_that_there_is() {
        let root = workspace::root();
        let mut found = vec![root.join("README.md"), root.join("CONTRIBUTING.md")];
        pages(&root.join("docs/src"), &mut found);
        let mut tried = 0;
        for page in found {
            for call in calls(&std::fs::read_to_string(&page).unwrap()) {
                // `cargo xtask` is the name of one program.
                let words = words(&call).into_iter().skip(1);
                if let Err(error) = Cli::try_parse_from(words) {
                    panic!("{}: `{call}`: {error}", page.display());
                }
                tried += 1;
            }
        }
        assert!(tried > 20, "{tried} commands found");
    }

    #[test]
    fn a_shells_words_are_told_apart() {
        let line = "cargo xtask run --exec 'a \"b\"; c' --guest x:mem=1   # comment";
        assert_eq!(words(line), ["cargo", "xtask", "run", "--exec", "a \"b\"; c", "--guest", "x:mem=1"]);
        assert_eq!(words("cargo xtask build | grep hello"), ["cargo", "xtask", "build"]);
    }
}
