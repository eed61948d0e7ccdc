// SPDX-License-Identifier: MIT OR Apache-2.0
//! What becomes of a program that writes to a pipe which nobody reads.

/// Lets such a write end the program without a word, as with any other command in a pipeline. Rust's own start-up
/// code has the signal ignored, so that each print would have to expect the error. Not for programs with something to
/// undo, nor for those that write to sockets of others.
pub fn end_with_the_reader() {
    // SAFETY: the default action is no handler, so nothing of ours runs in a signal's context.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}
