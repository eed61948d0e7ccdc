// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the repository and its build directory are.
//!
//! Cargo tells a program that it runs where its package lies; the workspace is the folder above. All that xtask makes
//! lies below the build directory, so that `cargo clean` removes it.

use std::path::PathBuf;

/// The workspace's root folder.
pub(crate) fn root() -> PathBuf {
    let package =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.parent().map_or_else(|| package.clone(), PathBuf::from)
}

/// Cargo's build directory.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}
