// SPDX-License-Identifier: MIT OR Apache-2.0
//! A xenstore client of the smallest kind: one request at a time, over the guest's ring.

use guest_abi::hvm::{HVM_PARAM_STORE_EVTCHN, HVM_PARAM_STORE_PFN};
use guest_abi::io::xs_wire::{Head, REQUESTS, RESPONSES, XS_ERROR, XS_READ, XS_WATCH_EVENT, XS_WRITE};
use guest_abi::num::{low_u32, to_usize};
use guest_abi::ring::{ByteConsumer, ByteProducer, Lie, Shared};
use guest_abi::{PAGE_SIZE, Wire};

use crate::{events, sched};

/// How long the store's answer and a node's change are waited for.
const PATIENCE_MS: u64 = 20_000;
/// The longest message here, with its head.
const LONGEST: usize = 256;

/// Why the store did not do it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failed {
    /// There is no ring.
    NoRing,
    /// It said so.
    Refused,
    /// It did not answer.
    Silent,
    /// Its indices lie.
    Lied,
    /// A message that does not fit here.
    TooLong,
}

impl From<Lie> for Failed {
    fn from(_: Lie) -> Self {
        Self::Lied
    }
}

/// The connection to the store.
pub struct Store {
    requests: ByteProducer<Shared<'static>>,
    answers: ByteConsumer<Shared<'static>>,
    port: u32,
    next: u32,
}

/// A node's value.
#[derive(Clone, Copy)]
pub struct Value {
    bytes: [u8; LONGEST],
    len: usize,
}

impl Value {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Its number, if it is one.
    pub fn number(&self) -> Option<u64> {
        core::str::from_utf8(self.bytes()).ok()?.parse().ok()
    }
}

impl Store {
    /// Finds the ring. [`events::init`] was called before.
    pub fn open() -> Result<Self, Failed> {
        let param = |index| events::get_param(index).ok().filter(|value| *value != 0).ok_or(Failed::NoRing);
        let (frame, port) = (param(HVM_PARAM_STORE_PFN)?, param(HVM_PARAM_STORE_EVTCHN)?);
        let page = to_usize(frame << 12) as *mut u8;
        // SAFETY: the page is the store's ring for as long as this domain lives; it is identity-mapped and nothing
        // here touches it in any other way.
        let page = unsafe { Shared::from_raw(page, PAGE_SIZE) };
        let (requests, answers) = (ByteProducer::attach(page, REQUESTS), ByteConsumer::attach(page, RESPONSES));
        Ok(Self { requests, answers, port: low_u32(port), next: 1 })
    }

    /// A node's value; `None` if there is no such node.
    pub fn read(&mut self, path: &str) -> Result<Option<Value>, Failed> {
        match self.request(XS_READ, &[path.as_bytes(), &[0]]) {
            Ok(value) => Ok(Some(value)),
            Err(Failed::Refused) => Ok(None),
            Err(failed) => Err(failed),
        }
    }

    /// Sets a node's value.
    pub fn write(&mut self, path: &str, value: &str) -> Result<(), Failed> {
        self.request(XS_WRITE, &[path.as_bytes(), &[0], value.as_bytes()]).map(|_| ())
    }

    /// Waits until a node has one of these values, which are single characters.
    pub fn wait_for(&mut self, path: &str, values: &[u8]) -> Result<u8, Failed> {
        let mut last = Err(Failed::Silent);
        sched::wait_until(PATIENCE_MS, || match self.read(path) {
            Ok(Some(value)) if value.len == 1 && values.contains(&value.bytes[0]) => {
                last = Ok(value.bytes[0]);
                true
            }
            Ok(_) => false,
            Err(failed) => {
                last = Err(failed);
                true
            }
        });
        last
    }

    /// Makes a request outside of transactions.
    pub fn request(&mut self, kind: u32, parts: &[&[u8]]) -> Result<Value, Failed> {
        self.request_in(0, kind, parts)
    }

    /// Makes a request in a transaction. Events that come before the answer are dropped.
    pub fn request_in(&mut self, transaction: u32, kind: u32, parts: &[&[u8]]) -> Result<Value, Failed> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let id = self.next;
        self.next += 1;
        let mut head = [0; Head::SIZE];
        Head { kind, req_id: id, tx_id: transaction, len: low_u32(len as u64) }.to_bytes(&mut head);
        self.send(&head)?;
        parts.iter().try_for_each(|part| self.send(part))?;
        let (answer, value) = loop {
            self.receive(&mut head)?;
            let answer = Head::from_bytes(&head);
            let mut value = Value { bytes: [0; LONGEST], len: to_usize(answer.len.into()) };
            let bytes = value.bytes.get_mut(..value.len).ok_or(Failed::TooLong)?;
            self.receive(bytes)?;
            if answer.kind != XS_WATCH_EVENT {
                break (answer, value);
            }
        };
        if answer.req_id != id || answer.kind == XS_ERROR {
            return Err(Failed::Refused);
        }
        Ok(value)
    }

    /// Puts bytes into the ring, whatever they are.
    pub fn send(&mut self, mut bytes: &[u8]) -> Result<(), Failed> {
        let mut result = Ok(());
        let done = sched::wait_until(PATIENCE_MS, || match self.requests.write(bytes) {
            Ok(written) => {
                bytes = &bytes[written..];
                events::send(self.port);
                bytes.is_empty()
            }
            Err(lie) => {
                result = Err(lie.into());
                true
            }
        });
        if done { result } else { Err(Failed::Silent) }
    }

    fn receive(&mut self, bytes: &mut [u8]) -> Result<(), Failed> {
        let (mut len, mut result) = (0, Ok(()));
        let done = sched::wait_until(PATIENCE_MS, || match self.answers.read(&mut bytes[len..]) {
            Ok(read) => {
                len += read;
                if read != 0 {
                    events::send(self.port);
                }
                len == bytes.len()
            }
            Err(lie) => {
                result = Err(lie.into());
                true
            }
        });
        if done { result } else { Err(Failed::Silent) }
    }
}
