// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the supervisor is asked over its socket: one line of JSON, answered by one line. After an answer to
//! [`Request::Attach`] the connection carries the console's bytes, both ways, as they are.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The longest request.
pub const MAX_REQUEST: usize = 4096;

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// To look at domains and records again, because something has changed.
    Refresh,
    /// A guest's console.
    Attach {
        /// The guest.
        name: String,
        /// How many bytes of its log come first.
        history: u32,
        /// Whether what the client sends goes to the guest.
        input: bool,
    },
}

/// What it gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is done.
    Done,
    /// It is not, for this reason.
    Error(String),
}

/// The supervisor's socket.
#[must_use]
pub fn socket() -> PathBuf {
    crate::registry::run_folder().join("supervisor.sock")
}

/// Sends a request and waits for its answer.
///
/// # Errors
/// The supervisor does not run, or does not answer in time.
pub fn ask(request: &Request, patience: Duration) -> io::Result<(UnixStream, Answer)> {
    let mut stream = UnixStream::connect(socket())?;
    stream.set_read_timeout(Some(patience))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    // Nothing behind the line may be read here: it is the console's.
    let mut answer = Vec::new();
    BufReader::with_capacity(1, &stream).read_until(b'\n', &mut answer)?;
    stream.set_read_timeout(None)?;
    Ok((stream, serde_json::from_slice(&answer)?))
}
