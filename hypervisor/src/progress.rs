// SPDX-License-Identifier: MIT OR Apache-2.0
//! How far a long operation got.
//!
//! Nothing that a guest asks for may hold a CPU: what can be long is done in batches, and a batch
//! says whether there is more. The caller lets interrupts and other vCPUs in between and calls
//! again; the progress is in the objects themselves or in the guest's arguments.

/// What one batch of a long operation left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// It is complete.
    Done,
    /// There is more: call it again.
    Again,
}
