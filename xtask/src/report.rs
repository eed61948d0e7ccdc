// SPDX-License-Identifier: MIT OR Apache-2.0
//! What xtask says about itself: always on standard error, because standard output belongs to the command that the
//! user asked for (the output of a program in dom0, a list of paths, a log).

/// One step of the work begins.
pub(crate) fn step(text: impl AsRef<str>) {
    eprintln!("xtask: {}", text.as_ref());
}

/// The command failed: the error with its causes.
pub(crate) fn error(error: &anyhow::Error) {
    eprintln!("xtask: error: {error:#}");
}
