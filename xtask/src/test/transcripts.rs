// SPDX-License-Identifier: MIT OR Apache-2.0
//! The book's sessions at a terminal, typed again.
//!
//! Fenced code with lines that begin with `$ ` is a transcript: its commands are given to a shell, in a folder that looks
//! like a checkout, and what stands below each has to come out in that order, with anything between. Numbers may differ, and
//! so may what is said of KVM, which depends on the machine. Code below a line that begins with a file's name in
//! backticks is that file's text.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use isthmus_tests::Tier;

use super::scenes::{Scene, scene};
use super::this_program;
use crate::launch::RunDir;
use crate::workspace;

pub(super) const ALL: &[Scene] = &[
    long(scene("docs/commands-of-the-readme", |log| page(log, "README.md"))),
    long(scene("docs/commands-of-first-boot", |log| page(log, "docs/src/tutorial/first-boot.md"))),
    long(scene("docs/commands-of-first-micro-guest", |log| page(log, "docs/src/tutorial/first-micro-guest.md"))),
    long(scene("docs/commands-of-guests", |log| page(log, "docs/src/howto/guests.md"))),
    long(scene("docs/commands-of-own-kernel", |log| page(log, "docs/src/howto/own-kernel.md"))),
    long(scene("docs/commands-of-own-root", |log| page(log, "docs/src/howto/own-root.md"))),
];

const fn long(scene: Scene) -> Scene {
    Scene { tier: Tier::Long, ..scene }
}

/// What one transcript may take, in seconds.
const LIMIT: &str = "1800";
/// `cargo xtask` is this program; the rest of cargo is cargo.
const SHELL: &str = r#"cargo() { if [ "$1" = xtask ]; then shift; "$XTASK" "$@"; else command cargo "$@"; fi; }
"#;

/// A piece of a page that has something to do.
#[derive(Debug, PartialEq, Eq)]
enum Piece {
    /// Go to this folder, beside the checkout or the checkout itself.
    Folder(String),
    /// A file's name and text.
    File(String, String),
    /// Commands and what they print.
    Session { commands: String, output: Vec<String> },
}

fn page(log: &Path, page: &str) -> Result<()> {
    let text = fs::read_to_string(workspace::root().join(page)).with_context(|| format!("reading {page}"))?;
    // Two pages may be tried at once.
    let dir = RunDir::outside(&page.replace('/', "."))?;
    let checkout = dir.path().join("isthmus");
    fs::create_dir(&checkout)?;
    for entry in fs::read_dir(workspace::root())? {
        let entry = entry?;
        symlink(entry.path(), checkout.join(entry.file_name()))?;
    }
    let mut here = checkout;
    let mut sessions = 0;
    for piece in pieces(&text) {
        match piece {
            Piece::Folder(name) => here = dir.path().join(name),
            Piece::File(name, text) => {
                let file = here.join(name);
                fs::create_dir_all(file.parent().context("a file lies in a folder")?)?;
                fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
            }
            Piece::Session { commands, output } => {
                sessions += 1;
                session(log, &here, &commands, &output)?;
            }
        }
    }
    ensure!(sessions > 0, "{page} has no transcript");
    Ok(())
}

fn session(log: &Path, here: &Path, commands: &str, expected: &[String]) -> Result<()> {
    // One pipe for both outputs, as on a terminal.
    let script = format!("exec 2>&1\n{SHELL}{commands}");
    let mut command = Command::new("timeout");
    command.args(["--kill-after=10", LIMIT, "sh", "-c", &script]).current_dir(here).stdin(Stdio::null());
    command.env("XTASK", this_program());
    let output = command.output().context("running a shell")?;
    // A path in a checkout is the same as one in the folder that looks like it.
    let checkout = format!("{}/", workspace::root().display());
    let said = String::from_utf8_lossy(&output.stdout).replace(&checkout, "");
    fs::write(log, format!("{}$ {commands}\n{said}\n", fs::read_to_string(log)?))?;
    ensure!(output.status.success(), "`{commands}` ended with {}", output.status);
    if let Some(missing) = first_missing(expected, &said) {
        bail!("`{commands}` did not print `{missing}` where the page has it");
    }
    Ok(())
}

/// The first of the lines that does not come, in their order.
fn first_missing<'a>(expected: &'a [String], said: &str) -> Option<&'a str> {
    let mut said = said.lines().map(shape);
    let depends_on_the_machine = |line: &&String| line.to_lowercase().contains("kvm");
    let mut expected = expected.iter().filter(|line| *line != "..." && !depends_on_the_machine(line));
    expected.find(|line| !said.any(|other| other == shape(line))).map(String::as_str)
}

/// A line with each number, also a hexadecimal one or one with points, as `#`, and without blanks at both ends or more
/// than one in a row.
fn shape(line: &str) -> String {
    let is_number = |c: char| c.is_ascii_hexdigit() || matches!(c, 'x' | '.' | '-');
    let mut shaped = String::new();
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        let end = rest.find(|c| !is_number(c)).unwrap_or(rest.len()).max(first.len_utf8());
        let (run, behind) = rest.split_at(end);
        let begins_a_word = !shaped.ends_with(|c: char| c.is_ascii_alphanumeric());
        let is_one = begins_a_word && run.contains(|c: char| c.is_ascii_digit());
        shaped.push_str(if is_one { "#" } else { run });
        rest = behind;
    }
    shaped.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn pieces(page: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut named = None;
    for (i, part) in page.split("```").enumerate() {
        if i % 2 == 0 {
            named = None;
            for line in part.lines() {
                named = line.strip_prefix('`').and_then(file_name).or(named);
                // `src/main.rs` may be named in the middle of a paragraph's last line.
                named = line.rsplit_once(". `").and_then(|(_, rest)| file_name(rest)).or(named);
                let folder = line.to_lowercase().ends_with("`:").then(|| line.split('`').nth(1)).flatten();
                if line.contains("n `")
                    && let Some(folder) = folder
                {
                    pieces.push(Piece::Folder(folder.to_owned()));
                }
                if let Some((_, rest)) = line.split_once("Make a folder `") {
                    pieces.extend(rest.split_once('`').map(|(name, _)| Piece::Folder(name.to_owned())));
                }
            }
            continue;
        }
        let text = part.split_once('\n').map_or("", |(_, text)| text);
        if let Some(name) = named.take() {
            pieces.push(Piece::File(name, text.to_owned()));
        } else if text.lines().any(|line| line.starts_with("$ ")) {
            pieces.extend(transcript(text));
        }
    }
    pieces
}

/// `name` of ``name`:`` or ``name`.``
fn file_name(rest: &str) -> Option<String> {
    let (name, behind) = rest.split_once('`')?;
    let is_file = Path::new(name).extension().is_some() && behind.starts_with([':', '.']);
    is_file.then(|| name.to_owned())
}

/// The commands of fenced code, each with the lines that belong to it, unless one is for a person at a terminal.
fn transcript(text: &str) -> Option<Piece> {
    let (mut commands, mut output) = (Vec::<String>::new(), Vec::new());
    let mut goes_on = false;
    for line in text.lines() {
        match (line.strip_prefix("$ "), commands.last_mut()) {
            (_, Some(command)) if goes_on => *command += &format!("\n{line}"),
            (Some(first), _) => commands.push(first.to_owned()),
            (None, _) => output.push(line.to_owned()),
        }
        goes_on = commands.last().is_some_and(|all| all.ends_with('\\') || all.matches('\'').count() % 2 == 1);
    }
    let is_for_a_person = commands.iter().any(|command| command == "cargo xtask run");
    (!is_for_a_person).then(|| Piece::Session { commands: commands.join("\n"), output })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transcript_has_commands_and_their_output() {
        let text = "$ a 'b\n  c' \\\n  d\nout\n$ e\n...\nmore\n";
        let Some(Piece::Session { commands, output }) = transcript(text) else { panic!("nothing to do") };
        assert_eq!(commands, "a 'b\n  c' \\\n  d\ne");
        assert_eq!(output, ["out", "...", "more"]);
        assert_eq!(transcript("$ cargo xtask run\n"), None);
    }

    #[test]
    fn files_and_folders_are_found() {
        let page = "Make a folder `x` beside.\n\n`a/b.ld`. Text:\n\n```text\nT\n```\n\nThen in `y`:\n\n```text\n$ c\n```\n\
                    Words. `src/boot.S`:\n```text\nS\n```\n";
        let expected = [
            Piece::Folder("x".into()),
            Piece::File("a/b.ld".into(), "T\n".into()),
            Piece::Folder("y".into()),
            Piece::Session { commands: "c".into(), output: vec![] },
            Piece::File("src/boot.S".into(), "S\n".into()),
        ];
        assert_eq!(pieces(page), expected);
    }

    #[test]
    fn numbers_may_differ_and_words_may_not() {
        assert_eq!(shape("[    0.693032] d1 at  0x336ec578,  6.1.0-56-amd64"), "[ #] # at #, #md64");
        let said = "xtask: x\n6.1.0-60-amd64\nxen\n";
        let lines = |text: &[&str]| text.iter().map(|&line| line.to_owned()).collect::<Vec<_>>();
        assert_eq!(first_missing(&lines(&["6.1.0-56-amd64", "...", "/dev/kvm is there", "xen"]), said), None);
        assert_eq!(first_missing(&lines(&["xen", "6.1.0-56-amd64"]), said), Some("6.1.0-56-amd64"));
    }
}
