// SPDX-License-Identifier: MIT OR Apache-2.0
//! The connection of the tools to xenstore.

use anyhow::{Result, bail};

use crate::nodes::Tree;

/// Connects to the server.
///
/// # Errors
/// It does not run.
pub fn connect() -> Result<Box<dyn Tree>> {
    bail!("xenstored is not running: give `xenstore = false` for a guest that can do without")
}
