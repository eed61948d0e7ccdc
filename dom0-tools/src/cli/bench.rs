// SPDX-License-Identifier: MIT OR Apache-2.0
//! `isthmus bench`: what single operations cost, in ticks of the TSC.

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::sys::clock::tsc;
use crate::sys::privcmd::Privcmd;

/// Ticks of one operation over many repetitions.
#[derive(Debug, Serialize)]
struct Ticks {
    operation: &'static str,
    repetitions: usize,
    minimum: u64,
    median: u64,
    mean: u64,
}

impl Ticks {
    fn of(operation: &'static str, mut samples: Vec<u64>) -> Self {
        samples.sort_unstable();
        let repetitions = samples.len();
        let count = u64::try_from(repetitions).unwrap_or(u64::MAX);
        let mean = samples.iter().sum::<u64>() / count.max(1);
        let at = |index: usize| samples.get(index).copied().unwrap_or(0);
        Self { operation, repetitions, minimum: at(0), median: at(repetitions / 2), mean }
    }
}

/// Measures a hypercall that does nothing but answer, made through privcmd: the system call is in it.
///
/// # Errors
/// This is no domain.
pub fn null_hypercall(repetitions: usize, json: bool) -> Result<()> {
    ensure!(repetitions > 0, "0 repetitions measure nothing");
    let privcmd = Privcmd::open()?;
    let mut samples = Vec::with_capacity(repetitions);
    for _ in 0..repetitions {
        let start = tsc();
        privcmd.version()?;
        samples.push(tsc() - start);
    }
    let ticks = Ticks::of("null-hypercall", samples);
    if json {
        println!("{}", serde_json::to_string(&ticks)?);
    } else {
        println!(
            "{}: {} ticks per call (minimum {}, mean {}, {} calls)",
            ticks.operation, ticks.median, ticks.minimum, ticks.mean, ticks.repetitions
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Ticks;

    #[test]
    fn one_slow_call_does_not_move_the_median() {
        let ticks = Ticks::of("x", vec![10, 1_000, 12, 11, 9]);
        assert_eq!((ticks.minimum, ticks.median, ticks.mean), (9, 11, 208));
    }
}
