// SPDX-License-Identifier: MIT OR Apache-2.0
//! Messages as bytes: taking them apart and putting them together.
//!
//! What arrives is untrusted. [`Message::take`] cuts one message off a byte stream, and refuses a length
//! that the protocol does not allow before anything of that size is awaited. [`Fields`] splits a payload
//! into its strings.
//!
//! Source: `docs/misc/xenstore.txt` of Xen 4.17 and `guest_abi::io::xs_wire`.

use guest_abi::Wire;
use guest_abi::io::xs_wire::{self, Head, PAYLOAD_MAX};
use guest_abi::num::{low_u32, to_usize};

/// An error as a client sees it: by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the names are the documentation: xs_wire.h")]
pub enum Code {
    #[error("EINVAL")]
    Einval,
    #[error("EACCES")]
    Eacces,
    #[error("EEXIST")]
    Eexist,
    #[error("ENOENT")]
    Enoent,
    #[error("ENOSPC")]
    Enospc,
    #[error("EIO")]
    Eio,
    #[error("ENOSYS")]
    Enosys,
    #[error("EBUSY")]
    Ebusy,
    #[error("EAGAIN")]
    Eagain,
    #[error("E2BIG")]
    E2big,
    /// One that our daemon does not give, by its place in [`xs_wire::ERRORS`].
    #[error("{}", xs_wire::ERRORS[*.0])]
    Other(usize),
}

impl Code {
    /// The error of this name; one that the protocol does not know is EINVAL.
    #[must_use]
    pub fn from_name(name: &[u8]) -> Self {
        const OURS: [Code; 10] = [
            Code::Einval,
            Code::Eacces,
            Code::Eexist,
            Code::Enoent,
            Code::Enospc,
            Code::Eio,
            Code::Enosys,
            Code::Ebusy,
            Code::Eagain,
            Code::E2big,
        ];
        let index = xs_wire::ERRORS.iter().position(|known| known.as_bytes() == name);
        let Some(index) = index else { return Self::Einval };
        OURS.into_iter().find(|code| code.to_string() == xs_wire::ERRORS[index]).unwrap_or(Self::Other(index))
    }
}

/// A message, request or answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// `XS_*`.
    pub kind: u32,
    /// The client's number for the request.
    pub req_id: u32,
    /// The transaction, or 0.
    pub tx_id: u32,
    /// What follows the head.
    pub payload: Vec<u8>,
}

/// The stream holds what cannot be a message: nothing behind it can be understood either.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a message of type {kind} announces {length} bytes, more than {PAYLOAD_MAX}")]
pub struct TooLong {
    /// The type that the head gives.
    pub kind: u32,
    /// The length that it gives.
    pub length: u32,
}

impl Message {
    /// How many bytes are missing until the first message of `stream` is whole, at least those of its head.
    ///
    /// # Errors
    /// [`TooLong`].
    pub fn missing(stream: &[u8]) -> Result<usize, TooLong> {
        if stream.len() < Head::SIZE {
            return Ok(Head::SIZE - stream.len());
        }
        let head = Head::from_bytes(stream);
        let length = to_usize(u64::from(head.len));
        if length > PAYLOAD_MAX {
            return Err(TooLong { kind: head.kind, length: head.len });
        }
        Ok((Head::SIZE + length).saturating_sub(stream.len()))
    }

    /// Cuts the first message off `stream`, if it is there as a whole.
    ///
    /// # Errors
    /// [`TooLong`].
    pub fn take(stream: &mut Vec<u8>) -> Result<Option<Self>, TooLong> {
        if Self::missing(stream)? > 0 {
            return Ok(None);
        }
        let head = Head::from_bytes(stream);
        let end = Head::SIZE + to_usize(u64::from(head.len));
        let payload = stream[Head::SIZE..end].to_vec();
        stream.drain(..end);
        Ok(Some(Self { kind: head.kind, req_id: head.req_id, tx_id: head.tx_id, payload }))
    }

    /// The message as bytes.
    ///
    /// # Panics
    /// If the payload is longer than the protocol allows: the caller's own bug.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        assert!(self.payload.len() <= PAYLOAD_MAX, "{} bytes of payload", self.payload.len());
        let len = low_u32(self.payload.len() as u64);
        let head = Head { kind: self.kind, req_id: self.req_id, tx_id: self.tx_id, len };
        let mut bytes = vec![0; Head::SIZE];
        head.to_bytes(&mut bytes);
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    /// The answer to this request.
    #[must_use]
    pub fn answer(&self, result: Result<Vec<u8>, Code>) -> Self {
        let (kind, payload) = match result {
            Ok(payload) if payload.len() <= PAYLOAD_MAX => (self.kind, payload),
            Ok(_) => (xs_wire::XS_ERROR, strings(["E2BIG"])),
            Err(code) => (xs_wire::XS_ERROR, strings([code.to_string()])),
        };
        Self { kind, req_id: self.req_id, tx_id: self.tx_id, payload }
    }

    /// The event of a watch.
    #[must_use]
    pub fn event(path: &str, token: &[u8]) -> Self {
        let mut payload = strings([path]);
        payload.extend_from_slice(token);
        payload.push(0);
        Self { kind: xs_wire::XS_WATCH_EVENT, req_id: 0, tx_id: 0, payload }
    }
}

/// Strings as a payload holds them, each with a NUL behind it.
pub fn strings<S: AsRef<[u8]>>(strings: impl IntoIterator<Item = S>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for string in strings {
        bytes.extend_from_slice(string.as_ref());
        bytes.push(0);
    }
    bytes
}

/// A payload, read string by string.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Begins at the first string.
    #[must_use]
    pub fn new(payload: &'a [u8]) -> Self {
        Self { rest: payload }
    }

    /// The next string, which a NUL must end.
    ///
    /// # Errors
    /// EINVAL: there is none.
    pub fn string(&mut self) -> Result<&'a [u8], Code> {
        let end = self.rest.iter().position(|byte| *byte == 0).ok_or(Code::Einval)?;
        let (string, rest) = self.rest.split_at(end);
        self.rest = &rest[1..];
        Ok(string)
    }

    /// The next string as text.
    ///
    /// # Errors
    /// EINVAL: there is none, or it is no UTF-8.
    pub fn text(&mut self) -> Result<&'a str, Code> {
        std::str::from_utf8(self.string()?).map_err(|_| Code::Einval)
    }

    /// The next string as a decimal number.
    ///
    /// # Errors
    /// EINVAL: there is none, or it is no such number.
    pub fn number<T: std::str::FromStr>(&mut self) -> Result<T, Code> {
        let text = self.text()?;
        // `parse` takes a sign too.
        let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|_| is_plain).ok_or(Code::Einval)
    }

    /// What follows, uninterpreted.
    #[must_use]
    pub fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// Whether nothing follows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Demands that nothing follows.
    ///
    /// # Errors
    /// EINVAL: something does.
    pub fn end(self) -> Result<(), Code> {
        if self.is_empty() { Ok(()) } else { Err(Code::Einval) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: usize) -> Message {
        Message { kind: 2, req_id: 7, tx_id: 9, payload: vec![b'x'; length] }
    }

    #[test]
    fn a_message_survives_any_split() {
        let bytes = [message(0).to_bytes(), message(4096).to_bytes(), message(1).to_bytes()].concat();
        for piece in [1, 2, 15, 16, 17, 1000, 9000] {
            let (mut stream, mut seen) = (Vec::new(), Vec::new());
            for part in bytes.chunks(piece) {
                stream.extend_from_slice(part);
                while let Some(whole) = Message::take(&mut stream).unwrap() {
                    seen.push(whole);
                }
            }
            assert_eq!(seen, [message(0), message(4096), message(1)], "pieces of {piece}");
            assert!(stream.is_empty());
        }
    }

    #[test]
    fn a_length_beyond_the_protocols_is_refused_before_the_payload_is_there() {
        let mut bytes = message(0).to_bytes();
        bytes[12..16].copy_from_slice(&4097_u32.to_le_bytes());
        assert_eq!(Message::take(&mut bytes), Err(TooLong { kind: 2, length: 4097 }));
    }

    #[test]
    fn every_error_has_its_name_back() {
        for name in xs_wire::ERRORS {
            assert_eq!(Code::from_name(name.as_bytes()).to_string(), name);
        }
        assert_eq!(Code::from_name(b"EWHAT"), Code::Einval);
    }

    #[test]
    fn a_payload_too_long_to_send_is_an_error() {
        let answer = message(0).answer(Ok(vec![0; 4097]));
        assert_eq!((answer.kind, answer.payload), (xs_wire::XS_ERROR, b"E2BIG\0".to_vec()));
    }

    #[test]
    fn numbers_are_plain_decimals() {
        let number = |text: &[u8]| Fields::new(text).number::<u16>();
        assert_eq!(number(b"65535\0"), Ok(65535));
        for wrong in [&b"65536\0"[..], b"-1\0", b"+1\0", b"\0", b"0x1\0", b"1", b" 1\0"] {
            assert_eq!(number(wrong), Err(Code::Einval), "{wrong:?}");
        }
    }
}
