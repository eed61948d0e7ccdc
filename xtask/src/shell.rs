// SPDX-License-Identifier: MIT OR Apache-2.0
//! A session with dom0's shell, from the machine's start to its end.
//!
//! Commands run over COM2, which dom0 owns, so that kernel lines cannot get into their output. COM1 is followed at the
//! same time by a thread: when the machine ends or the hypervisor panics, that thread closes COM2, and so whoever waits
//! for an answer there learns of it.

use std::net::{Shutdown, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::console::{self, End, Log, Until};
use crate::emulator::Running;
use crate::exec::{Channel, Failure};

/// How long a dom0 that is told to power off may take.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(30);
/// How long the machine's log may still come when its second serial line has ended.
const LAST_WORDS: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// The machine's end, and what came of the talk: nothing if the shell did not answer.
pub(crate) type Session<T> = (End, Result<T, Failure>);

/// Waits for dom0's shell until `deadline`, has `talk` use it, then powers the machine off. Errors: the machine cannot
/// be followed.
pub(crate) fn attend<T>(
    running: &mut Running,
    log: &Mutex<Log>,
    deadline: Instant,
    talk: impl FnOnce(&mut Channel<TcpStream>) -> T,
) -> Result<Session<T>> {
    let com2 = running.com2.take().context("the machine was started without COM2")?;
    let closer = com2.try_clone()?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let end = console::watch(running, log, Until { deadline: None, stop: Some(&stop) }, |_| Ok(()));
            // The other end may be gone already.
            let _ = closer.shutdown(Shutdown::Both);
            end
        });
        let (talked, patience) = match Channel::connect(com2, deadline) {
            Ok(mut channel) => {
                let talked = talk(&mut channel);
                // A dom0 that does not hear this is ended with its emulator.
                let _ = channel.power_off(Instant::now() + POWER_OFF_LIMIT);
                (Ok(talked), POWER_OFF_LIMIT)
            }
            Err(failure) => {
                let patience = if matches!(failure, Failure::Ended) { LAST_WORDS } else { Duration::ZERO };
                (Err(failure), patience)
            }
        };
        let limit = Instant::now() + patience;
        while !watcher.is_finished() && Instant::now() < limit {
            sleep(POLL);
        }
        stop.store(true, Ordering::Relaxed);
        let end = watcher.join().unwrap_or_else(|_| Err(anyhow!("following the machine's log failed")))?;
        Ok((end, talked))
    })
}
