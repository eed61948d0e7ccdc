// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine's time beside the host's: a second of dom0's takes a second here, and a dom0 with nothing to do takes
//! next to nothing.
//!
//! Other programs on the host can make a second longer and a wait busier, never the other way round, so the best of
//! several is judged. What an idle machine costs is its emulator's own CPU time, which others' work is not part of.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::scenes::{Scene, scene};
use super::this_program;
use crate::workspace;

pub(super) const ALL: &[Scene] = &[scene("run/sleep-and-idle-keep-the-hosts-pace/svm", pace)];

/// How often a second is slept, and how many spans of idling are looked at.
const TRIES: usize = 5;
/// How far a second may be off, of a second.
const TOLERANCE: f64 = 0.05;
/// The share of one host CPU that an idle machine may take.
const IDLE_SHARE: f64 = 0.05;
/// What `/proc/PID/stat` counts in, a second. Source: proc(5), USER_HZ.
const TICKS_PER_SECOND: f64 = 100.0;

fn pace(log: &Path) -> Result<()> {
    // A mark goes out before and behind each second; then the shell idles.
    let command = format!(
        "sleep 10; for i in $(seq {TRIES}); do echo begin; sleep 1; echo end; done; echo idle; sleep {}; echo over",
        2 * TRIES + 1
    );
    let mut child = Command::new(this_program())
        .args(["run", "--emulator", "qemu", "--timeout", "600", "--exec", &command])
        .current_dir(workspace::root())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::options().append(true).open(log)?)
        .spawn()
        .context("starting xtask")?;
    let measured = measure(&mut child);
    if measured.is_err() {
        let _ = child.kill();
    }
    let status = child.wait()?;
    let (seconds, shares) = measured?;
    fs::write(log, format!("{}seconds slept: {seconds:?}\nidle shares: {shares:?}\n", fs::read_to_string(log)?))?;
    ensure!(status.success(), "it ended with {status}");
    let nearest = seconds.iter().map(|second| (second - 1.0).abs()).fold(f64::INFINITY, f64::min);
    ensure!(nearest <= TOLERANCE, "`sleep 1` took {seconds:?} s, none within {TOLERANCE} of a second");
    let least = shares.iter().copied().fold(f64::INFINITY, f64::min);
    ensure!(least < IDLE_SHARE, "idling took {shares:?} of a host CPU, never less than {IDLE_SHARE}");
    Ok(())
}

/// The seconds that `sleep 1` took, and the shares of a CPU that the idle machine did.
fn measure(child: &mut Child) -> Result<(Vec<f64>, Vec<f64>)> {
    let mut lines = BufReader::new(child.stdout.take().context("its output is a pipe")?).lines();
    let mut seconds = Vec::new();
    let mut begun = Instant::now();
    loop {
        let line = lines.next().context("it ended early")??;
        match line.as_str() {
            "begin" => begun = Instant::now(),
            "end" => seconds.push(begun.elapsed().as_secs_f64()),
            _ => break,
        }
    }
    let emulator = emulator_of(child.id()).context("no emulator runs")?;
    let mut shares = Vec::new();
    for _ in 0..TRIES {
        let (before, start) = (cpu_seconds(emulator)?, Instant::now());
        std::thread::sleep(Duration::from_secs(2));
        shares.push((cpu_seconds(emulator)? - before) / start.elapsed().as_secs_f64());
    }
    lines.try_for_each(|line| line.map(drop))?;
    Ok((seconds, shares))
}

/// The fields of `/proc/PID/stat` behind the name, which may contain anything.
fn stat(pid: u32) -> Result<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = text.rsplit_once(')').context("a process has a name")?;
    Ok(fields.split_whitespace().map(str::to_owned).collect())
}

/// The emulator that a process has started.
fn emulator_of(parent: u32) -> Option<u32> {
    let pids = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.into_iter().find(|&pid: &u32| {
        let is_child = stat(pid).is_ok_and(|fields| fields.get(1) == Some(&parent.to_string()));
        is_child && fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("qemu"))
    })
}

/// The CPU time that a process has taken, in user and in kernel mode.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let fields = stat(pid)?;
    let ticks = |at: usize| -> Result<f64> { Ok(fields.get(at).context("fields are missing")?.parse()?) };
    Ok((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND)
}
