// SPDX-License-Identifier: MIT OR Apache-2.0
//! `isthmus xenstored`: the store's daemon, or its supervisor.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

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
    /// The process to end with
    #[arg(long, hide = true)]
    supervisor: Option<u32>,
}

/// Serves the store.
///
/// # Errors
/// It cannot be served.
pub fn run(options: &Options) -> Result<()> {
    if let Some(supervisor) = options.supervisor {
        supervise::die_with(supervisor)?;
        return supervise::serve(&options.folder);
    }
    let messages = options.messages.as_deref().map(Messages::open).transpose()?;
    if options.once {
        supervise::serve(&options.folder)
    } else {
        supervise::supervise(&options.folder, messages.as_ref())
    }
}
