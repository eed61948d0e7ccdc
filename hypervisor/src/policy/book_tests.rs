// SPDX-License-Identifier: MIT OR Apache-2.0
//! Holds the book's page on CPUID and MSRs to the policy: a reader who finds a bit there finds it in a guest.

use core::fmt::Write;
use core::ops::RangeInclusive;

use super::cpuid::CpuidPolicy;
use super::cpuid::tests::{AMD, INTEL, full_host, params};
use super::features::{Feature, Needs, WORDS, XCR0_AVX, XCR0_AVX512};
use super::msr::{MsrPolicy, MsrRead, MsrState};

const PAGE: &str = include_str!("../../../docs/src/reference/cpuid-msr.md");
const BEGIN: &str = "<!-- features: begin -->\n";
const END: &str = "<!-- features: end -->\n";

/// Where a guest may find MSRs at all.
const NUMBERS: [RangeInclusive<u32>; 3] = [0..=0x1fff, 0x4000_0000..=0x4000_1fff, 0xc000_0000..=0xc001_1fff];

fn described(feature: &Feature) -> String {
    let condition = match feature.needs {
        Needs::Host => "",
        Needs::State(XCR0_AVX) => "^avx",
        Needs::State(XCR0_AVX512) => "^avx512",
        Needs::State(_) => "^xsave",
        Needs::Rdtscp | Needs::Invpcid => "^backend",
        Needs::Forced => "^always",
        Needs::Computed => "^computed",
    };
    format!("{} {}{condition}", feature.bit, feature.name)
}

#[test]
fn the_book_lists_the_features_that_are_offered() {
    let mut table = "\n| leaf | subleaf | register | bits |\n|---|---|---|---|\n".to_owned();
    for word in WORDS {
        let bits: Vec<_> = word.features.iter().map(described).collect();
        let register = format!("{:?}", word.register).to_uppercase();
        writeln!(table, "| `{:#x}` | {} | {register} | {} |", word.leaf, word.subleaf, bits.join(", ")).unwrap();
    }
    table += "\n";
    let listed = PAGE.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END)).map_or("", |(table, _)| table);
    assert_eq!(listed, table, "the page should hold:\n{table}");
}

/// The numbers that the page says a guest of this vendor may read.
fn listed_msrs(vendor: &str) -> Vec<RangeInclusive<u32>> {
    let section = PAGE.split_once("## MSRs").map_or("", |(_, section)| section);
    let number = |text: &str| u32::from_str_radix(text.trim().trim_matches('`').trim_start_matches("0x"), 16).ok();
    let mut listed = Vec::new();
    for line in section.lines() {
        let columns: Vec<_> = line.split('|').map(str::trim).collect();
        if let [_, numbers, _, applies, ..] = columns[..]
            && (applies == "all" || applies == vendor)
        {
            let (first, last) = numbers.split_once(" to ").unwrap_or((numbers, numbers));
            listed.extend(number(first).zip(number(last)).map(|(first, last)| first..=last));
        }
    }
    listed
}

#[test]
fn the_book_lists_the_msrs_that_do_not_fault() {
    for (vendor, name) in [(INTEL, "Intel"), (AMD, "AMD")] {
        let policy = MsrPolicy::new(&CpuidPolicy::new(&full_host(vendor), &params()));
        let listed = listed_msrs(name);
        for msr in NUMBERS.into_iter().flatten() {
            let is_listed = listed.iter().any(|range| range.contains(&msr));
            let is_readable = policy.read(msr, &MsrState::new(true)) != MsrRead::Fault;
            assert_eq!(is_listed, is_readable, "{name}: MSR {msr:#x}");
        }
    }
}
