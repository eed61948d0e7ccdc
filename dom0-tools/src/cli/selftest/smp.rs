// SPDX-License-Identifier: MIT OR Apache-2.0
//! What only several CPUs show: a clock that all of them read, and a guest that is stopped while it runs elsewhere.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::sys::clock::tsc;
use crate::toolstack::Toolstack;

/// Reads the kernel's clock from a thread for each CPU: none may read less than any has read before. Runs in any
/// domain.
///
/// # Errors
/// The clock went back.
pub fn steps(seconds: u32) -> Result<()> {
    let length = Duration::from_secs(seconds.max(1).into());
    let threads = std::thread::available_parallelism()?.get();
    let (start, latest) = (Instant::now(), AtomicU64::new(0));
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let watch = || {
        let (mut readings, mut steps, mut worst) = (0_u64, 0_u64, 0);
        loop {
            let before = latest.load(Ordering::SeqCst);
            let now = start.elapsed();
            if nanos(now) < before {
                steps += 1;
                worst = worst.max(before - nanos(now));
            }
            latest.fetch_max(nanos(now), Ordering::SeqCst);
            readings += 1;
            if now >= length {
                return (readings, steps, worst);
            }
        }
    };
    let seen: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(watch)).collect();
        running.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let steps: u64 = seen.iter().map(|thread| thread.1).sum();
    let worst = seen.iter().map(|thread| thread.2).max().unwrap_or(0);
    ensure!(seen.len() == threads && steps == 0, "the clock went back {steps} times, by {worst} ns at most");
    println!("{} readings by {threads} threads, no step back", seen.iter().map(|thread| thread.0).sum::<u64>());
    Ok(())
}

/// Pauses a running guest `count` times, each time after another while.
///
/// # Errors
/// There is no such guest, or a call fails.
pub fn pauses(name: &str, count: u32) -> Result<()> {
    let tools = Toolstack::open()?;
    let guest = tools.find(name)?.id;
    let start = Instant::now();
    for round in 0..count {
        tools.privcmd.pause_domain(guest)?;
        tools.privcmd.unpause_domain(guest)?;
        let until = tsc() + u64::from(round % 64) * 2000;
        while tsc() < until {
            std::hint::spin_loop();
        }
    }
    println!("paused {count} times in {} ms", start.elapsed().as_millis());
    Ok(())
}
