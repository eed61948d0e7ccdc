// SPDX-License-Identifier: MIT OR Apache-2.0
//! A reliable connection over frames: what each end must remember.
//!
//! The host says hello until the agent is ready; then both number their messages from 0. A receiver
//! takes a message only if it is the next one and acknowledges by naming the number that it expects.
//! A sender keeps up to [`WINDOW`] messages unacknowledged; told twice of the same expected number,
//! or after [`RESEND_MS`] without progress, it goes back to the first unacknowledged one. The window
//! is also the flow control: who cannot write its output away stops acknowledging.
//!
//! Time is passed in as milliseconds of any clock that only goes forward, so an emulator's slow
//! guest and a test need nothing special.

use std::collections::VecDeque;

use super::Message;
use super::frame::{Decoder, Frame, Kind, MAX_PAYLOAD};

/// Messages that may be under way without acknowledgement: 1.5 s of a 115,200-baud line.
pub const WINDOW: usize = 16;
/// Without progress for so long the sender starts again at the first unacknowledged message.
pub const RESEND_MS: u64 = 2_000;
/// A receiver's complaints count again this long after going back: until then they may be about
/// what was under way before.
const COMPLAINT_MS: u64 = 500;
/// The host repeats its hello this often.
pub const HELLO_MS: u64 = 250;
/// Messages that may wait for being sent; see [`Link::has_room`].
const QUEUE: usize = 2 * WINDOW;

/// What a [`Link`] tells the program that drives it.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The other end is there. For the agent: a new session; whatever ran for another one is over.
    Connected,
    /// The next message, in order and exactly once.
    Message(Message),
}

#[derive(Debug, PartialEq, Eq)]
enum Role {
    Host { hello_at: u64 },
    Agent { announce: bool },
}

/// One end of the connection.
#[derive(Debug)]
pub struct Link {
    role: Role,
    session: u32,
    connected: bool,
    decoder: Decoder,
    events: VecDeque<Event>,
    /// Sequence number of the next message to arrive.
    expected: u32,
    ack_due: bool,
    /// Hello was heard and is to be answered.
    ready_due: bool,
    /// Messages not yet acknowledged; the first has number `base`.
    unacknowledged: VecDeque<(Kind, Vec<u8>)>,
    base: u32,
    /// How many of `unacknowledged` have been sent since the last going back.
    sent: usize,
    /// When a complaint about a gap last made this end go back.
    went_back_at: Option<u64>,
    progress_at: u64,
}

impl Link {
    /// The host's end of session `session`, a number (not 0) unlike that of recent connections.
    #[must_use]
    pub fn host(session: u32) -> Self {
        Self::new(Role::Host { hello_at: 0 }, session)
    }

    /// The agent's end. Its first output is an announcement, for a host that waits already.
    #[must_use]
    pub fn agent() -> Self {
        Self::new(Role::Agent { announce: true }, 0)
    }

    fn new(role: Role, session: u32) -> Self {
        Self {
            role,
            session,
            connected: false,
            decoder: Decoder::default(),
            events: VecDeque::new(),
            expected: 0,
            ack_due: false,
            ready_due: false,
            unacknowledged: VecDeque::new(),
            base: 0,
            sent: 0,
            went_back_at: None,
            progress_at: 0,
        }
    }

    /// Whether the other end is there.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// Whether another message should be queued now. More can always be queued; a program that
    /// reads from a pipe stops reading instead.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.unacknowledged.len() < QUEUE
    }

    /// Whether everything that was queued has arrived.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.unacknowledged.is_empty()
    }

    /// Whether an acknowledgement or an answer waits to be put on the line by [`Link::transmit`].
    #[must_use]
    pub fn owes_answer(&self) -> bool {
        self.ack_due || self.ready_due
    }

    /// Queues a message. Pieces of output or of a command may be of any length: they are cut.
    pub fn send(&mut self, message: &Message) {
        let (kind, payload) = message.encode();
        if payload.len() <= MAX_PAYLOAD {
            self.unacknowledged.push_back((kind, payload));
            return;
        }
        for piece in payload.chunks(MAX_PAYLOAD) {
            self.unacknowledged.push_back((kind, piece.to_vec()));
        }
    }

    /// Takes bytes from the line.
    pub fn receive(&mut self, bytes: &[u8], now_ms: u64) {
        self.decoder.push(bytes);
        while let Some(frame) = self.decoder.next_frame() {
            self.take(frame, now_ms);
        }
    }

    /// The next thing that happened.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn take(&mut self, frame: Frame, now_ms: u64) {
        match (&mut self.role, frame.kind) {
            (Role::Agent { announce }, Kind::Hello) => {
                *announce = false;
                if frame.session != self.session || !self.connected {
                    let decoder = std::mem::take(&mut self.decoder);
                    *self =
                        Self { decoder, connected: true, ..Self::new(Role::Agent { announce: false }, frame.session) };
                    self.events.push_back(Event::Connected);
                }
                self.ready_due = true;
            }
            // An announcement: the agent starts only now, so earlier hellos were lost.
            (Role::Host { hello_at }, Kind::Ready) if frame.session == 0 => *hello_at = now_ms,
            (Role::Host { .. }, Kind::Ready) if frame.session == self.session && !self.connected => {
                self.connected = true;
                self.progress_at = now_ms;
                self.events.push_back(Event::Connected);
            }
            (_, Kind::Hello | Kind::Ready) => {}
            _ if frame.session != self.session || !self.connected => {}
            (_, Kind::Ack) => self.acknowledged(frame.sequence, now_ms),
            (_, kind) => {
                self.ack_due = true;
                if frame.sequence == self.expected
                    && let Some(message) = Message::decode(kind, frame.payload)
                {
                    self.expected = self.expected.wrapping_add(1);
                    self.events.push_back(Event::Message(message));
                }
            }
        }
    }

    fn acknowledged(&mut self, expected: u32, now_ms: u64) {
        let arrived = usize::try_from(expected.wrapping_sub(self.base)).expect("usize has 64 bits");
        if arrived > self.unacknowledged.len() {
            return;
        }
        if arrived == 0 {
            // The receiver got something after a gap. Going back once per gap is enough: what was
            // under way behind the lost frame repeats the complaint.
            let heard = self.went_back_at.is_some_and(|at| now_ms.saturating_sub(at) < COMPLAINT_MS);
            if self.sent > 0 && !heard {
                self.went_back_at = Some(now_ms);
                self.sent = 0;
            }
            return;
        }
        self.unacknowledged.drain(..arrived);
        self.base = expected;
        self.sent = self.sent.saturating_sub(arrived);
        self.went_back_at = None;
        self.progress_at = now_ms;
    }

    /// Appends to `out` what is to go on the line now. Call it again after [`Link::receive`],
    /// [`Link::send`], and after at most [`HELLO_MS`].
    pub fn transmit(&mut self, now_ms: u64, out: &mut Vec<u8>) {
        let bare = |kind, session, sequence| Frame { kind, session, sequence, payload: Vec::new() };
        match &mut self.role {
            Role::Host { hello_at } if !self.connected => {
                if now_ms >= *hello_at {
                    *hello_at = now_ms + HELLO_MS;
                    bare(Kind::Hello, self.session, 0).encode(out);
                }
                return;
            }
            Role::Agent { announce } if *announce => {
                *announce = false;
                bare(Kind::Ready, 0, 0).encode(out);
            }
            _ => {}
        }
        if std::mem::take(&mut self.ready_due) {
            bare(Kind::Ready, self.session, 0).encode(out);
        }
        if std::mem::take(&mut self.ack_due) {
            bare(Kind::Ack, self.session, self.expected).encode(out);
        }
        if !self.connected {
            return;
        }
        if self.sent == 0 {
            self.progress_at = now_ms;
        } else if now_ms.saturating_sub(self.progress_at) >= RESEND_MS {
            self.sent = 0;
            self.progress_at = now_ms;
        }
        while self.sent < WINDOW
            && let Some((kind, payload)) = self.unacknowledged.get(self.sent)
        {
            let ahead = u32::try_from(self.sent).expect("the window is small");
            let sequence = self.base.wrapping_add(ahead);
            Frame { kind: *kind, session: self.session, sequence, payload: payload.clone() }.encode(out);
            self.sent += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Event, Link, Message};

    /// A line that drops and invents bytes, the same ones each time.
    struct Line {
        seed: u64,
        one_in: u64,
    }

    impl Line {
        fn random(&mut self) -> u64 {
            self.seed ^= self.seed << 13;
            self.seed ^= self.seed >> 7;
            self.seed ^= self.seed << 17;
            self.seed
        }

        fn carry(&mut self, bytes: &[u8]) -> Vec<u8> {
            let mut arrived = Vec::new();
            for byte in bytes {
                match self.random() % self.one_in {
                    0 => {}
                    1 => arrived.extend_from_slice(&[*byte, 0xf5, 0x49]),
                    2 => arrived.push(byte ^ 0x40),
                    _ => arrived.push(*byte),
                }
            }
            arrived
        }
    }

    /// Carries bytes both ways until nothing is left to say; gives what each end was told.
    fn converse(host: &mut Link, agent: &mut Link, line: &mut Line) -> (Vec<Event>, Vec<Event>) {
        let (mut at_host, mut at_agent) = (Vec::new(), Vec::new());
        for now in (1_000..).step_by(100) {
            let mut wire = Vec::new();
            host.transmit(now, &mut wire);
            agent.receive(&line.carry(&wire), now);
            at_agent.extend(std::iter::from_fn(|| agent.next_event()));
            wire.clear();
            agent.transmit(now, &mut wire);
            host.receive(&line.carry(&wire), now);
            at_host.extend(std::iter::from_fn(|| host.next_event()));
            if host.is_connected() && host.is_drained() && agent.is_drained() && agent.is_connected() {
                return (at_host, at_agent);
            }
            assert!(now < 3_600_000, "no progress within an hour of the line's time");
        }
        unreachable!("the range has no end")
    }

    fn pieces(count: u8) -> Vec<Message> {
        (0..count).map(|i| Message::Stdout(vec![i; usize::from(i) * 7])).chain([Message::Exit(3)]).collect()
    }

    #[test]
    fn a_lossy_line_delivers_each_message_once_and_in_order() {
        for seed in 1..40 {
            let mut line = Line { seed, one_in: 2_500 };
            let (mut host, mut agent) = (Link::host(77), Link::agent());
            host.send(&Message::Command(b"echo".to_vec()));
            host.send(&Message::Run);
            pieces(100).iter().for_each(|piece| agent.send(piece));
            // Connecting resets the agent's end: what it had queued for nobody is not for this host.
            let (_, at_agent) = converse(&mut host, &mut agent, &mut line);
            let expected = [Message::Command(b"echo".to_vec()), Message::Run].map(Event::Message);
            assert_eq!(at_agent[0], Event::Connected);
            assert_eq!(at_agent[1..], expected);
            pieces(100).iter().for_each(|piece| agent.send(piece));
            let (at_host, _) = converse(&mut host, &mut agent, &mut line);
            assert_eq!(at_host, pieces(100).into_iter().map(Event::Message).collect::<Vec<_>>(), "seed {seed}");
        }
    }

    #[test]
    fn another_session_never_sees_messages_of_the_one_before() {
        let mut line = Line { seed: 9, one_in: u64::MAX };
        let (mut first, mut agent) = (Link::host(1), Link::agent());
        converse(&mut first, &mut agent, &mut line);
        agent.send(&Message::Stdout(b"for the first".to_vec()));
        let mut left_on_the_line = Vec::new();
        agent.transmit(5_000, &mut left_on_the_line);

        let mut second = Link::host(2);
        second.receive(&left_on_the_line, 5_000);
        let (at_second, at_agent) = converse(&mut second, &mut agent, &mut line);
        assert_eq!(at_second, [Event::Connected]);
        assert_eq!(at_agent, [Event::Connected]);
    }

    #[test]
    fn long_payloads_are_cut_and_the_window_bounds_what_is_under_way() {
        let mut line = Line { seed: 9, one_in: u64::MAX };
        let (mut host, mut agent) = (Link::host(1), Link::agent());
        converse(&mut host, &mut agent, &mut line);
        agent.send(&Message::Stdout(vec![5; 100_000]));
        assert!(!agent.has_room());
        let mut wire = Vec::new();
        agent.transmit(5_000, &mut wire);
        assert!(wire.len() < 20_000);
        agent.transmit(5_001, &mut wire);
        assert!(wire.len() < 20_000, "nothing more before an acknowledgement");
        let (at_host, _) = converse(&mut host, &mut agent, &mut line);
        let bytes: usize = at_host
            .iter()
            .map(|event| if let Event::Message(Message::Stdout(piece)) = event { piece.len() } else { 0 })
            .sum();
        assert_eq!(bytes, 100_000);
    }
}
