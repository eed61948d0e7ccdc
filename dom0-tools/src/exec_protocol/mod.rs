// SPDX-License-Identifier: MIT OR Apache-2.0
//! How the host runs commands in dom0 over a serial line.
//!
//! `cargo xtask run --exec CMD` promises CMD's output byte for byte and its exit status. The only
//! wire that every emulator and every hypervisor state has is COM2, a UART: it may carry a line of
//! somebody else's, it loses bytes when its 16-byte FIFO overruns, and either end may start first.
//! So the line is treated as a lossy medium: [`frame`] finds checksummed frames in whatever bytes
//! arrive, [`link`] makes a connection of them by sequence numbers, acknowledgements and going back
//! to the first frame that is missing. A session number, chosen by the host for each connection,
//! keeps what an earlier connection left on the line out of this one.
//!
//! Both parts do no input or output of their own: the agent in dom0, the host's `xtask` and the
//! tests drive the same code, the tests with a line that loses and invents bytes.
//!
//! Above the link there are the [`Message`]s: the host sends a command in pieces and then `Run`,
//! the agent answers with output in pieces and at the end `Exit`. One command runs at a time.

pub mod frame;
pub mod link;

pub use link::{Event, Link};

/// What the two ends say to each other over a connected [`Link`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Host: the next piece of the command.
    Command(Vec<u8>),
    /// Host: the command is complete, run it by `/bin/sh -c`.
    Run,
    /// Host: power the machine off.
    PowerOff,
    /// Agent: the next piece of the command's standard output.
    Stdout(Vec<u8>),
    /// Agent: the next piece of the command's standard error.
    Stderr(Vec<u8>),
    /// Agent: the command has ended, with its exit status or 128 + its signal.
    Exit(u8),
}

impl Message {
    fn encode(&self) -> (frame::Kind, Vec<u8>) {
        match self {
            Self::Command(bytes) => (frame::Kind::Command, bytes.clone()),
            Self::Run => (frame::Kind::Run, Vec::new()),
            Self::PowerOff => (frame::Kind::PowerOff, Vec::new()),
            Self::Stdout(bytes) => (frame::Kind::Stdout, bytes.clone()),
            Self::Stderr(bytes) => (frame::Kind::Stderr, bytes.clone()),
            Self::Exit(status) => (frame::Kind::Exit, vec![*status]),
        }
    }

    fn decode(kind: frame::Kind, payload: Vec<u8>) -> Option<Self> {
        Some(match kind {
            frame::Kind::Command => Self::Command(payload),
            frame::Kind::Run => Self::Run,
            frame::Kind::PowerOff => Self::PowerOff,
            frame::Kind::Stdout => Self::Stdout(payload),
            frame::Kind::Stderr => Self::Stderr(payload),
            frame::Kind::Exit => Self::Exit(*payload.first()?),
            frame::Kind::Hello | frame::Kind::Ready | frame::Kind::Ack => return None,
        })
    }
}
