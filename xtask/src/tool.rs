// SPDX-License-Identifier: MIT OR Apache-2.0
//! Running one external program to its end.
//!
//! A program that fails becomes an error that names it, its status and what it printed; what a successful one printed
//! is returned. Programs that are to be watched while they run (emulators) are not started here.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::interrupt;

const POLL: Duration = Duration::from_millis(20);

/// Runs `command` without input and returns its standard output. Errors: it cannot be started, or ends unsuccessfully.
pub(crate) fn run(command: &mut Command) -> Result<Vec<u8>> {
    let name = name(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {name}"))?;
    if !output.status.success() {
        let printed = [output.stderr, output.stdout].concat();
        bail!("{name} failed ({}): {}", output.status, String::from_utf8_lossy(&printed).trim());
    }
    Ok(output.stdout)
}

/// Runs `command` with its output on this process' standard error. Errors: as for [`run`].
pub(crate) fn run_shown(command: &mut Command) -> Result<()> {
    let name = name(command);
    let status =
        command.stdin(Stdio::null()).stdout(std::io::stderr()).status().with_context(|| format!("starting {name}"))?;
    if !status.success() {
        bail!("{name} failed ({status})");
    }
    Ok(())
}

/// The full path of program `name` in the search path, if it is there.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // Debian's users do not have the administrator's directories in their path.
    let extra = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(extra).map(|dir| dir.join(name)).find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

/// How a watched program ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Watched {
    /// Successfully.
    Succeeded,
    /// With a failure of its own.
    Failed,
    /// Not within its time.
    TooLate,
    /// The user stopped it.
    Interrupted,
}

/// Runs `command` with its output in the file `log`, for at most `limit`. It and its children are killed after that.
pub(crate) fn run_logged(command: &mut Command, log: &Path, limit: Duration) -> Result<Watched> {
    let name = name(command);
    let file = File::create(log).with_context(|| format!("creating {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
    let mut child = command.spawn().with_context(|| format!("starting {name}"))?;
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().with_context(|| format!("waiting for {name}"))? {
            return Ok(if status.success() { Watched::Succeeded } else { Watched::Failed });
        }
        let stopped = match (interrupt::requested(), Instant::now() > deadline) {
            (true, _) => Watched::Interrupted,
            (false, true) => Watched::TooLate,
            (false, false) => {
                sleep(POLL);
                continue;
            }
        };
        // Its group is named after it, and it has not been waited for.
        kill_process_group(Pid::from_child(&child), Signal::KILL).with_context(|| format!("ending {name}"))?;
        child.wait().with_context(|| format!("waiting for {name}"))?;
        return Ok(stopped);
    }
}
