// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ctrl-C and other requests to stop.
//!
//! A signal sets a flag which everything that waits looks at, so that a stop is an ordinary error: emulators are ended
//! and the terminal is set back on the way out. A second signal does what it does by default.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

static REQUESTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Turns the signals into the flag. To be called before anything is started that must be ended.
pub(crate) fn catch() -> Result<()> {
    let requested = Arc::clone(REQUESTED.get_or_init(Arc::default));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // The order matters: the first signal finds the flag unset, and only then sets it.
        flag::register_conditional_default(signal, Arc::clone(&requested)).context("catching signals")?;
        flag::register(signal, Arc::clone(&requested)).context("catching signals")?;
    }
    Ok(())
}

/// Whether a stop was requested.
pub(crate) fn requested() -> bool {
    REQUESTED.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}
