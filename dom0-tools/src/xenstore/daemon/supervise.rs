// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who starts the daemon again.
//!
//! The supervisor is the process that init starts. It starts the daemon as a child, starts it again when it
//! ends, and asks it something now and then: a daemon that does not answer is killed, which it survives as
//! it survives everything. When the supervisor dies the kernel kills the daemon with it, and init starts
//! both again.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use guest_abi::DomId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::Daemon;
use super::linux::LinuxHost;
use crate::xenstore::client::Client;

/// How often the daemon is asked something.
const QUESTION_EVERY: Duration = Duration::from_secs(5);
/// How long it may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// A life shorter than this makes the next start wait.
const SHORT_LIFE: Duration = Duration::from_secs(2);
/// The longest such wait.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// How long the file of messages may be.
const MESSAGES_BYTES: u64 = 1 << 20;
/// The status of a daemon that another start will not help.
const STATUS_HOPELESS: i32 = 3;

/// Serves in this process.
///
/// # Errors
/// The daemon cannot go on.
pub fn serve(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let lock = lock(folder)?;
    let host = LinuxHost::open()?;
    let mut daemon = Daemon::start(folder, host)?;
    eprintln!("xenstored: serving, {} domains known", daemon.store().domains().len());
    let Err(error) = daemon.run();
    drop(lock);
    Err(error.into())
}

/// Makes this process the only daemon that works in a folder, and leaves its number there.
fn lock(folder: &Path) -> Result<File> {
    let path = folder.join("pid");
    let mut options = File::options();
    let opened = options.read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = opened.with_context(|| format!("opening {}", path.display()))?;
    file.set_permissions(Permissions::from_mode(0o644)).with_context(|| format!("restricting {}", path.display()))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::AGAIN) => {
            let number = std::fs::read_to_string(&path).unwrap_or_default();
            eprintln!(
                "isthmus: {}: another daemon (process {}) works here: end that first",
                folder.display(),
                number.trim()
            );
            std::process::exit(STATUS_HOPELESS);
        }
        Err(error) => return Err(error).with_context(|| format!("locking {}", path.display())),
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).context("writing the process's number")?;
    Ok(file)
}

/// Ends this process when its supervisor does.
///
/// # Errors
/// The kernel refuses.
pub fn die_with(supervisor: u32) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).context("tying it to its supervisor")?;
    // It may have died before that.
    let parent = rustix::process::getppid().map(|parent| parent.as_raw_nonzero().get().unsigned_abs());
    if parent != Some(supervisor) {
        bail!("its supervisor, process {supervisor}, has ended");
    }
    Ok(())
}

/// The file that the messages of supervisor and daemon go to.
#[derive(Debug)]
pub struct Messages {
    path: PathBuf,
    file: File,
}

impl Messages {
    /// Makes a file this process's standard error, which its children inherit.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn open(path: &Path) -> Result<Self> {
        let opened = File::options().append(true).create(true).open(path);
        let file = opened.with_context(|| format!("opening {}", path.display()))?;
        rustix::stdio::dup2_stderr(&file).with_context(|| format!("writing to {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Begins anew, with what there is kept aside, when there is much. Who has it open appends at its end.
    fn turn_over(&self) -> io::Result<()> {
        if self.file.metadata()?.len() < MESSAGES_BYTES {
            return Ok(());
        }
        let mut old = self.path.clone().into_os_string();
        old.push(".old");
        std::fs::copy(&self.path, old)?;
        self.file.set_len(0)
    }
}

/// Keeps a daemon running.
///
/// # Errors
/// No daemon can be started.
pub fn supervise(folder: &Path, messages: Option<&Messages>) -> Result<()> {
    let mut short_lives = 0_u32;
    loop {
        let start = Instant::now();
        let mut child = start_child(folder).context("starting the daemon")?;
        let status = attend(&mut child, folder, messages).context("waiting for the daemon")?;
        if status.code() == Some(STATUS_HOPELESS) {
            bail!("the daemon could not start (its reason is above)");
        }
        eprintln!("xenstored: ended ({status}) after {:?}; starting it again", start.elapsed());
        short_lives = if start.elapsed() < SHORT_LIFE { short_lives.saturating_add(1) } else { 0 };
        // The first starts follow at once: guests wait.
        let wait = Duration::from_millis(10) * 2_u32.saturating_pow(short_lives);
        if short_lives > 2 {
            std::thread::sleep(wait.min(LONGEST_WAIT));
        }
    }
}

fn start_child(folder: &Path) -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("isthmus")
        .arg("xenstored")
        .arg("--folder")
        .arg(folder)
        .arg("--supervisor")
        .arg(std::process::id().to_string());
    command.spawn()
}

/// Waits until the daemon ends, or kills it when it does not answer.
fn attend(child: &mut Child, folder: &Path, messages: Option<&Messages>) -> io::Result<ExitStatus> {
    let its_end = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let mut answered = Instant::now();
    loop {
        if ends_within(&its_end, QUESTION_EVERY)? {
            return child.wait();
        }
        if let Some(messages) = messages {
            messages.turn_over()?;
        }
        if ask(folder) {
            answered = Instant::now();
        } else if answered.elapsed() > ANSWER_WITHIN {
            eprintln!("xenstored: no answer for {:?}: killing it", answered.elapsed());
            child.kill()?;
        }
    }
}

/// Waits for the end of a process, but not longer than `limit`. A signal ends the wait early.
fn ends_within(process: &OwnedFd, limit: Duration) -> io::Result<bool> {
    let limit = Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: limit.subsec_nanos().into() };
    match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&limit)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether the daemon answers.
fn ask(folder: &Path) -> bool {
    let path = folder.join("socket");
    let Ok(mut client) = Client::by_socket(&path.to_string_lossy()) else { return false };
    client.set_limit(QUESTION_EVERY);
    client.is_introduced(DomId::DOM0).is_ok()
}
