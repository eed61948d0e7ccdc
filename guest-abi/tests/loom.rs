// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rings under every interleaving and every order of memory accesses that the language allows, by loom.
//!
//! Two threads are the two halves; an event channel is a flag that one waits for. A wake-up that gets lost leaves a
//! thread waiting for ever, which loom finds. Words of shared memory are loom's atomics, so a load may give any value
//! that Rust's memory model lets it give.
//!
//! The tests that must panic take one order away, and show so that it is needed and that its loss would be seen.

use std::sync::Arc;

use guest_abi::ring::{Back, ByteConsumer, ByteLayout, ByteProducer, Front, Notify, Protocol, SharedMemory};
use loom::sync::atomic::{AtomicU32, Ordering, fence};
use loom::sync::{Condvar, Mutex};
use loom::thread;

struct Words;

impl Protocol for Words {
    type Request = u32;
    type Response = u32;
}

/// Which order a memory does not keep.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Without {
    Nothing,
    Fence,
    Release,
    Acquire,
}

#[derive(Clone)]
struct Memory {
    words: Arc<Vec<AtomicU32>>,
    without: Without,
}

impl Memory {
    fn new(words: usize, without: Without) -> Self {
        Self { words: Arc::new((0..words).map(|_| AtomicU32::new(0)).collect()), without }
    }
}

impl SharedMemory for Memory {
    fn words(&self) -> usize {
        self.words.len()
    }

    fn load(&self, word: usize, order: Ordering) -> u32 {
        self.words[word].load(if self.without == Without::Acquire { Ordering::Relaxed } else { order })
    }

    fn store(&self, word: usize, value: u32, order: Ordering) {
        self.words[word].store(value, if self.without == Without::Release { Ordering::Relaxed } else { order });
    }

    fn fence(&self) {
        // A full fence does what the other two do as well.
        match self.without {
            Without::Nothing => fence(Ordering::SeqCst),
            Without::Fence | Without::Release | Without::Acquire => {}
        }
    }
}

/// An event channel: an event is there or not, and taking it waits for it.
#[derive(Default)]
struct Channel {
    is_pending: Mutex<bool>,
    came: Condvar,
}

impl Channel {
    fn send(&self) {
        *self.is_pending.lock().unwrap() = true;
        self.came.notify_one();
    }

    fn notify(&self, notify: Notify) {
        if notify.is_needed() {
            self.send();
        }
    }

    fn wait(&self) {
        let mut is_pending = self.is_pending.lock().unwrap();
        while !*is_pending {
            is_pending = self.came.wait(is_pending).unwrap();
        }
        *is_pending = false;
    }
}

/// The front makes requests one by one; the back sleeps when it has none.
fn requests_arrive(without: Without) {
    loom::model(move || {
        let memory = Memory::new(16 + 2, without);
        let mut front = Front::<Words, _>::new(memory.clone()).unwrap();
        let mut back = Back::<Words, _>::attach(memory).unwrap();
        let channel = Arc::new(Channel::default());
        let to_back = channel.clone();
        let device = thread::spawn(move || {
            let mut expected = 1;
            while expected < 3 {
                match back.pop().unwrap() {
                    Some(request) => {
                        assert_eq!(request, expected);
                        expected += 1;
                    }
                    None if back.arm().unwrap() => {}
                    None => channel.wait(),
                }
            }
        });
        for request in 1..3 {
            front.push(&request).unwrap();
            to_back.notify(front.publish());
        }
        device.join().unwrap();
    });
}

/// One slot, used twice: request, response, request.
fn a_slot_is_used_again(without: Without) {
    loom::model(move || {
        let memory = Memory::new(16 + 1, without);
        let mut front = Front::<Words, _>::new(memory.clone()).unwrap();
        let mut back = Back::<Words, _>::attach(memory).unwrap();
        let device = thread::spawn(move || {
            let mut expected = 1;
            while expected < 3 {
                match back.pop().unwrap() {
                    Some(request) => {
                        assert_eq!(request, expected);
                        back.push(&(10 * request)).unwrap();
                        let _ = back.publish();
                        expected += 1;
                    }
                    None => thread::yield_now(),
                }
            }
        });
        for request in 1..3 {
            front.push(&request).unwrap();
            let _ = front.publish();
            loop {
                match front.pop().unwrap() {
                    Some(response) => break assert_eq!(response, 10 * request),
                    None => thread::yield_now(),
                }
            }
        }
        device.join().unwrap();
    });
}

/// A stream whose producer sends an event only if the consumer seemed to have read everything before, as Linux does.
fn bytes_arrive(without: Without) {
    const LAYOUT: ByteLayout = ByteLayout::new(8, 4, 0, 4);
    loom::model(move || {
        let memory = Memory::new(3, without);
        let mut producer = ByteProducer::attach(memory.clone(), LAYOUT);
        let mut consumer = ByteConsumer::attach(memory, LAYOUT);
        let channel = Arc::new(Channel::default());
        let to_consumer = channel.clone();
        let reader = thread::spawn(move || {
            let (mut got, mut len) = ([0; 2], 0);
            while len < 2 {
                match consumer.read(&mut got[len..]).unwrap() {
                    0 => channel.wait(),
                    more => len += more,
                }
            }
            assert_eq!(got, *b"ab");
        });
        for byte in [b"a", b"b"] {
            assert_eq!(producer.write(byte), Ok(1));
            // All that was there before this byte has been read.
            if producer.space().unwrap() >= LAYOUT.size() - 1 {
                to_consumer.send();
            }
        }
        reader.join().unwrap();
    });
}

#[test]
fn no_request_and_no_wake_up_is_lost() {
    requests_arrive(Without::Nothing);
}

#[test]
#[should_panic = "deadlock"]
fn without_the_fence_a_wake_up_is_lost() {
    requests_arrive(Without::Fence);
}

#[test]
fn a_slot_holds_what_was_written_last() {
    a_slot_is_used_again(Without::Nothing);
}

#[test]
#[should_panic = "left == right"]
fn without_release_a_slot_is_read_too_early() {
    a_slot_is_used_again(Without::Release);
}

#[test]
#[should_panic = "left == right"]
fn without_acquire_a_slot_is_read_too_early() {
    a_slot_is_used_again(Without::Acquire);
}

#[test]
fn no_byte_and_no_wake_up_is_lost() {
    bytes_arrive(Without::Nothing);
}

#[test]
#[should_panic = "deadlock"]
fn without_the_fence_a_stream_stops() {
    bytes_arrive(Without::Fence);
}
