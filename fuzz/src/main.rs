// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tries a target with inputs made by chance: `isthmus-fuzz TARGET [SECONDS [NUMBER]]`.
//!
//! An input that breaks something is written to a file before the process ends. The same number gives the same inputs again.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use isthmus_fuzz::{Mutator, TARGETS};

/// Inputs between two looks at the clock.
const BATCH: u64 = 1000;
/// What is tried now.
static CURRENT: Mutex<Vec<u8>> = Mutex::new(Vec::new());

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u64| arguments.get(at).map_or(Ok(default), |text| text.parse());
    let target = arguments.first().and_then(|name| TARGETS.iter().find(|target| target.name == name));
    let (Some(target), Ok(seconds), Ok(first)) = (target, number(1, 10), number(2, 1)) else {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("isthmus-fuzz TARGET [SECONDS [NUMBER]], with one of: {}", names.join(" "));
        return ExitCode::from(2);
    };
    let file = std::env::temp_dir().join(format!("isthmus-fuzz-{}", target.name));
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        say(info);
        let input = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        match std::fs::write(&file, &*input) {
            Ok(()) => eprintln!("the input that broke it: {}", file.display()),
            Err(error) => eprintln!("the input could not be kept in {}: {error}", file.display()),
        }
    }));
    let (mut mutator, end) = (Mutator::new(first, (target.seeds)()), Instant::now() + Duration::from_secs(seconds));
    let mut tried = 0_u64;
    while !tried.is_multiple_of(BATCH) || Instant::now() < end {
        let input = mutator.next_input();
        CURRENT.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&input);
        (target.run)(&input);
        tried += 1;
    }
    println!("{}: {tried} inputs, nothing found", target.name);
    ExitCode::SUCCESS
}
