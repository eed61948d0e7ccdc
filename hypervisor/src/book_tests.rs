// SPDX-License-Identifier: MIT OR Apache-2.0
//! Holds the book's pages on exits and hypercalls to the code. What stands in a `match` is read from its source.

use std::collections::BTreeSet;
use std::string::{String, ToString};

const EXITS: &str = include_str!("../../docs/src/reference/exits.md");
const HYPERCALLS: &str = include_str!("../../docs/src/reference/hypercalls.md");
const EXIT_TYPE: &str = include_str!("exit.rs");
const SVM_DECODER: &str = include_str!("machine/svm/exit.rs");
const DISPATCHER: &str = include_str!("hypercall/mod.rs");
const NUMBERS: &str = include_str!("../../guest-abi/src/hypercall.rs");
const ERRORS: &str = include_str!("../../guest-abi/src/errno.rs");

/// The first cells of the table below a heading.
fn first_cells<'a>(page: &'a str, heading: &str) -> impl Iterator<Item = &'a str> {
    let section = page.split_once(heading).expect("the page has the heading").1;
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    section.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" |").map(|(cell, _)| cell)).skip(1)
}

/// The block of `source` that begins with a line of this text and ends with the next line that is a closing brace at the
/// same depth.
fn block<'a>(source: &'a str, first_line: &str) -> &'a str {
    let (before, rest) = source.split_once(first_line).expect("the source has the line");
    let indent = before.rsplit('\n').next().expect("there is a last line");
    rest.split_once(&std::format!("\n{indent}}}")).expect("the block ends").0
}

/// Names that begin a line of a type's body.
fn variants(body: &str) -> BTreeSet<String> {
    let lines = body.lines().filter_map(|line| line.strip_prefix("    "));
    let names = lines.filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()));
    names.map(|line| line.chars().take_while(char::is_ascii_alphanumeric).collect()).collect()
}

/// Hexadecimal numbers in a text, `a..=b` and `a to b` standing for all from a to b.
fn hex_numbers(text: &str) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    let (mut last, mut from) = (None, None);
    for word in text.replace("..=", " to ").split(|c: char| c.is_whitespace() || c == ',') {
        match word.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok()) {
            Some(number) => {
                found.extend(from.take().unwrap_or(number)..=number);
                last = Some(number);
            }
            None if word == "to" => from = last.take(),
            None => (last, from) = (None, None),
        }
    }
    found
}

#[test]
fn the_book_explains_every_exit_and_no_other() {
    let listed = first_cells(EXITS, "## By name").flat_map(|cell| cell.split(", ")).map(str::to_owned).collect();
    assert_eq!(variants(block(EXIT_TYPE, "pub enum Exit {")), listed);
}

#[test]
fn the_book_lists_the_exit_codes_of_svm_that_are_decoded() {
    let listed: BTreeSet<u64> = first_cells(EXITS, "## SVM, by code").flat_map(hex_numbers).collect();
    let patterns = block(SVM_DECODER, "match vmcb.exit_code {").lines().filter_map(|line| line.split_once(" => "));
    let decoded: BTreeSet<u64> = patterns.flat_map(|(pattern, _)| hex_numbers(pattern)).collect();
    assert!(decoded.len() > 20, "{decoded:x?}");
    let missing: std::vec::Vec<_> = decoded.difference(&listed).collect();
    assert!(missing.is_empty(), "not in the book: {missing:x?}");
    // Those that have names in the decoder: CR8, CR0 and CR4, exceptions, IRET, I/O, VMMCALL.
    let named = hex_numbers("0x8, 0x18, 0x10, 0x14, 0x40 to 0x5f, 0x74, 0x7b, 0x81");
    let extra: std::vec::Vec<_> = listed.difference(&decoded).filter(|code| !named.contains(code)).collect();
    assert!(extra.is_empty(), "only in the book: {extra:x?}");
}

#[test]
fn the_book_has_a_section_for_every_hypercall_that_is_offered() {
    let constant = |name: &str| {
        let line =
            NUMBERS.lines().find(|line| line.contains(&std::format!("pub const {name}: u32"))).expect("a number");
        line.split_once("= ").and_then(|(_, rest)| rest.trim_end_matches(';').parse::<u32>().ok()).expect("a number")
    };
    let arms = block(DISPATCHER, "match number {").lines();
    let names = arms.filter_map(|line| line.trim().strip_prefix("number::")?.split_once(" =>"));
    let offered: BTreeSet<u32> = names.map(|(name, _)| constant(name)).collect();
    let headings = HYPERCALLS.lines().filter(|line| line.starts_with("## "));
    let numbers = headings.flat_map(|line| line.split([' ', ','])).filter_map(|word| word.parse::<u32>().ok());
    assert_eq!(offered, numbers.collect());
}

#[test]
fn the_book_names_errors_that_exist() {
    let known = variants(block(ERRORS, "pub enum Errno {"));
    let words = HYPERCALLS.split(|c: char| !c.is_ascii_alphanumeric());
    let is_error = |word: &&str| {
        let rest = word.strip_prefix('E').unwrap_or_default();
        rest.len() > 2
            && rest.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
            && !["EAX", "EVTCHN"].contains(word)
    };
    let named: BTreeSet<String> = words.filter(is_error).map(ToString::to_string).collect();
    assert!(named.len() > 8, "{named:?}");
    let unknown: std::vec::Vec<_> = named.difference(&known).collect();
    assert!(unknown.is_empty(), "no such errors: {unknown:?}");
}
