// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames on a noisy line.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | synchronisation: f5 49 58 fa |
//! | 4 | 1 | kind |
//! | 5 | 1 | protocol version |
//! | 6 | 2 | payload length, at most [`MAX_PAYLOAD`] |
//! | 8 | 4 | session |
//! | 12 | 4 | sequence number |
//! | 16 | 4 | CRC-32 of bytes 4..16 |
//! | 20 | n | payload, and its CRC-32 when n > 0 |
//!
//! Numbers are little-endian. The header has a checksum of its own so that a false start in noise
//! never makes the receiver wait for a payload that nobody sends. After any mismatch the search
//! goes on at the byte after the false start: a true frame inside is still found.

/// The longest payload of a frame, in bytes.
pub const MAX_PAYLOAD: usize = 1024;
/// The version of this format and of the messages in it.
pub const VERSION: u8 = 1;

const SYNC: [u8; 4] = [0xf5, 0x49, 0x58, 0xfa];
const HEADER: usize = 20;
const CHECKSUM: usize = 4;

/// What a frame is for. The first three belong to the link, the others carry messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Host: is there an agent? Starts the session that it carries.
    Hello = 1,
    /// Agent: yes. Session 0 when the agent has just started and was not asked yet.
    Ready = 2,
    /// Either: every frame before this sequence number has arrived.
    Ack = 3,
    /// [`super::Message::Command`].
    Command = 16,
    /// [`super::Message::Run`].
    Run = 17,
    /// [`super::Message::PowerOff`].
    PowerOff = 18,
    /// [`super::Message::Stdout`].
    Stdout = 32,
    /// [`super::Message::Stderr`].
    Stderr = 33,
    /// [`super::Message::Exit`].
    Exit = 34,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        const ALL: [Kind; 9] = [
            Kind::Hello,
            Kind::Ready,
            Kind::Ack,
            Kind::Command,
            Kind::Run,
            Kind::PowerOff,
            Kind::Stdout,
            Kind::Stderr,
            Kind::Exit,
        ];
        ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is for.
    pub kind: Kind,
    /// The connection it belongs to.
    pub session: u32,
    /// Its place in the sender's sequence; of an [`Kind::Ack`], the number that is expected next.
    pub sequence: u32,
    /// At most [`MAX_PAYLOAD`] bytes.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Appends the frame's bytes to `out`.
    ///
    /// # Panics
    /// If the payload is longer than [`MAX_PAYLOAD`]: the caller cuts it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        assert!(self.payload.len() <= MAX_PAYLOAD, "the sender cuts its payloads");
        let length = u16::try_from(self.payload.len()).expect("MAX_PAYLOAD fits 16 bits");
        let start = out.len();
        out.extend_from_slice(&SYNC);
        out.extend_from_slice(&[self.kind as u8, VERSION]);
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&self.session.to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        let check = crc32fast::hash(&out[start + SYNC.len()..]);
        out.extend_from_slice(&check.to_le_bytes());
        if !self.payload.is_empty() {
            out.extend_from_slice(&self.payload);
            out.extend_from_slice(&crc32fast::hash(&self.payload).to_le_bytes());
        }
    }
}

/// Finds frames in received bytes.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
}

/// What stands at the start of the received bytes.
enum Start {
    Frame(Frame, usize),
    Incomplete,
    Noise,
}

impl Decoder {
    /// Takes what the line delivered.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame; bytes that belong to none are dropped on the way.
    pub fn next_frame(&mut self) -> Option<Frame> {
        let mut at = 0;
        let found = loop {
            at += self.bytes[at..].iter().position(|byte| *byte == SYNC[0]).unwrap_or(self.bytes.len() - at);
            match parse(&self.bytes[at..]) {
                Start::Frame(frame, length) => {
                    at += length;
                    break Some(frame);
                }
                Start::Incomplete => break None,
                Start::Noise => at += 1,
            }
        };
        self.bytes.drain(..at);
        found
    }
}

fn parse(bytes: &[u8]) -> Start {
    let seen = bytes.len().min(SYNC.len());
    if bytes[..seen] != SYNC[..seen] {
        return Start::Noise;
    }
    let Some(header) = bytes.first_chunk::<HEADER>() else { return Start::Incomplete };
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let length = usize::from(u16::from_le_bytes([header[6], header[7]]));
    let sound = word(16) == crc32fast::hash(&header[SYNC.len()..16]) && header[5] == VERSION && length <= MAX_PAYLOAD;
    let Some(kind) = Kind::from_byte(header[4]).filter(|_| sound) else { return Start::Noise };
    let mut frame = Frame { kind, session: word(8), sequence: word(12), payload: Vec::new() };
    if length == 0 {
        return Start::Frame(frame, HEADER);
    }
    let Some(payload) = bytes.get(HEADER..HEADER + length) else { return Start::Incomplete };
    let Some(check) = bytes[HEADER + length..].first_chunk::<CHECKSUM>() else { return Start::Incomplete };
    if u32::from_le_bytes(*check) != crc32fast::hash(payload) {
        return Start::Noise;
    }
    frame.payload = payload.to_vec();
    Start::Frame(frame, HEADER + length + CHECKSUM)
}

#[cfg(test)]
mod tests {
    use super::{Decoder, Frame, Kind, MAX_PAYLOAD};

    fn frame(sequence: u32, payload: Vec<u8>) -> Frame {
        Frame { kind: Kind::Stdout, session: 7, sequence, payload }
    }

    fn encoded(frame: &Frame) -> Vec<u8> {
        let mut out = Vec::new();
        frame.encode(&mut out);
        out
    }

    #[test]
    fn frames_survive_arriving_byte_by_byte() {
        let sent = [frame(1, vec![0xf5; 300]), frame(2, vec![]), frame(3, vec![1; MAX_PAYLOAD])];
        let mut decoder = Decoder::default();
        let mut received = Vec::new();
        for byte in sent.iter().flat_map(encoded) {
            decoder.push(&[byte]);
            received.extend(decoder.next_frame());
        }
        assert_eq!(received, sent);
        assert!(decoder.bytes.is_empty());
    }

    #[test]
    fn a_frame_is_found_after_noise_and_after_the_torso_of_another() {
        let whole = frame(2, b"payload".to_vec());
        let torso = &encoded(&frame(1, vec![9; 100]))[..60];
        let mut decoder = Decoder::default();
        decoder.push(b"[    1.0] kernel line \xf5\xf5I\xf5IX\r\n");
        decoder.push(torso);
        decoder.push(&encoded(&whole));
        // The torso's own length reaches beyond what was sent; more bytes decide.
        decoder.push(&[0; 100]);
        assert_eq!(decoder.next_frame(), Some(whole));
        assert_eq!(decoder.next_frame(), None);
    }

    #[test]
    fn no_single_damaged_byte_goes_unnoticed() {
        let good = encoded(&frame(5, b"exact".to_vec()));
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            let mut decoder = Decoder::default();
            decoder.push(&bad);
            decoder.push(&[0; MAX_PAYLOAD + 64]);
            assert_eq!(decoder.next_frame(), None, "byte {at}");
        }
    }
}
