// SPDX-License-Identifier: MIT OR Apache-2.0
//! `isthmus xenstored`: the store's daemon, or its supervisor.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use clap::Args;

use crate::xenstore::daemon::linux::DieAt;
use crate::xenstore::daemon::supervise::{self, Messages};

/// How the daemon is started.
#[derive(Debug, Args)]
pub struct Options {
    /// Where its log and its socket are: a file system in memory
    #[arg(long, value_name = "DIR", default_value = "/run/xenstored")]
    folder: PathBuf,
    /// Serve in this process, and end when it must, instead of starting the daemon again and again
    #[arg(long)]
    once: bool,
    /// Write messages to this file instead of standard error; when it has a mebibyte it becomes FILE.old
    #[arg(long, value_name = "FILE")]
    messages: Option<PathBuf>,
    /// For tests: kill the (first) daemon at a point of a message's way [possible: copied, decided, logged, taken, put,
    /// said, signalled; with :N the Nth time]
    #[arg(long, value_name = "POINT")]
    die_at: Option<String>,
    /// For the supervisor
    #[arg(long, hide = true)]
    supervisor: Option<u32>,
}

/// Serves the store.
///
/// # Errors
/// It cannot be served.
pub fn run(options: &Options) -> Result<()> {
    let die_at = options.die_at.as_deref();
    let parsed = die_at.map(str::parse::<DieAt>).transpose().map_err(|error| anyhow!("--die-at: {error}"))?;
    if let Some(supervisor) = options.supervisor {
        supervise::die_with(supervisor)?;
        return supervise::serve(&options.folder, parsed);
    }
    let messages = options.messages.as_deref().map(Messages::open).transpose()?;
    if options.once {
        return supervise::serve(&options.folder, parsed);
    }
    supervise::supervise(&options.folder, die_at, messages.as_ref())
}
