// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest of dom0 that does what its command line says, word by word.
//!
//! With it dom0's tools are shown each way in which a guest can end, and each in which it can misuse its console and
//! its store: counters that cannot be true, messages that are none, half ones, more than its quota, answers that are
//! not read. What has to follow is looked at from dom0: that guest's connection is dropped with a reason that can be
//! read, and everybody else is served as before. Words that are not known fail.
//!
//! A pass tells only what the guest itself can see.
//!
//! Checks: `xen/include/public/io/console.h`, `io/xs_wire.h`, `sched.h` at 4.17.
//! Expects: what its words say; status 0 after the last one.
#![no_std]
#![no_main]

use core::sync::atomic::Ordering::Relaxed;

use guest_abi::console::{CONSOLE_IN_CONS, CONSOLE_INPUT, CONSOLE_OUT_CONS, CONSOLE_OUT_PROD, CONSOLE_OUTPUT};
use guest_abi::grant_table::GRANT_RESERVED_XENSTORE;
use guest_abi::hvm::{HVM_PARAM_CONSOLE_EVTCHN, HVM_PARAM_CONSOLE_PFN, HVM_PARAM_STORE_EVTCHN, HVM_PARAM_STORE_PFN};
use guest_abi::io::xs_wire::{
    Head, REQUESTS, RING_ERROR, RING_REQ_CONS, RING_REQ_PROD, RING_RSP_CONS, RING_RSP_PROD, XS_READ,
    XS_TRANSACTION_START, XS_WATCH, XS_WRITE,
};
use guest_abi::num::{low_u8, low_u32, to_usize};
use guest_abi::pvh::{SLEEP_CONTROL, SLEEP_S5};
use guest_abi::ring::{ByteConsumer, ByteProducer, Shared, SharedMemory};
use guest_abi::{PAGE_SIZE, Wire};
use test_guests::report::fail;
use test_guests::xenstore::{Failed, Store, Value};
use test_guests::{boot, check, cpu, events, grants, guest, hypercall, sched, time, traps};

guest!(main);

/// COM1, as `earlyprintk=serial` writes it.
const COM1: u16 = 0x3f8;
/// More than any quota allows.
const MANY: u32 = 3000;
const PATIENCE_MS: u64 = 20_000;
/// How often typed bytes are looked for that nobody told of.
const LOOK_NS: u64 = 100_000_000;

fn main() {
    events::init();
    for word in boot::cmdline().to_str().unwrap_or("?").split(' ').filter(|word| !word.is_empty()) {
        act(word);
    }
}

fn act(word: &str) {
    let (verb, value) = word.split_once('=').unwrap_or((word, ""));
    match verb {
        "end" => hypercall::shutdown(value.parse().unwrap_or(0)),
        "triple-fault" => traps::triple_fault(),
        "halt" => cpu::halt_off(),
        "off" => cpu::outb(SLEEP_CONTROL, SLEEP_S5),
        "stay" => loop {
            cpu::wait();
        },
        "serial" => value.bytes().chain(*b"\r\n").for_each(|byte| cpu::outb(COM1, byte)),
        "ungrant" => {
            // dom0 maps a ring by this entry, or else by its frame's number.
            check("the grant table is placed", grants::init() == 0);
            grants::entry(GRANT_RESERVED_XENSTORE).store(0, Relaxed);
        }
        "say" => say(&[value]),
        "echo" => echo(),
        "listen" => check("the store takes what it listens to", write("control/feature-poweroff", "1").is_ok()),
        _ => match verb.split_once('-') {
            Some(("console", attack)) => console(attack),
            Some(("store", attack)) => store(attack),
            _ => fail(word, format_args!("no such word")),
        },
    }
}

/// A page that is shared with dom0, and the port that goes with it.
struct Ring {
    page: Shared<'static>,
    port: u32,
}

impl Ring {
    fn find(frame: u32, port: u32) -> Self {
        let param = |index| events::get_param(index).unwrap_or(0);
        // SAFETY: the page is the ring's for as long as this domain lives, identity-mapped, and touched by atomics of
        // this size only.
        let page = unsafe { Shared::from_raw(to_usize(param(frame) << 12) as *mut u8, PAGE_SIZE) };
        Self { page, port: low_u32(param(port)) }
    }

    fn console() -> Self {
        Self::find(HVM_PARAM_CONSOLE_PFN, HVM_PARAM_CONSOLE_EVTCHN)
    }

    fn store() -> Self {
        Self::find(HVM_PARAM_STORE_PFN, HVM_PARAM_STORE_EVTCHN)
    }

    fn get(&self, offset: usize) -> u32 {
        self.page.load(offset / 4, Relaxed)
    }

    /// Adds to a counter and tells the other end.
    fn move_by(&self, offset: usize, by: u32) {
        self.page.store(offset / 4, self.get(offset).wrapping_add(by), Relaxed);
        events::send(self.port);
    }

    /// Writes over the whole page, several times, and tells the other end each time.
    fn fill(&self) {
        let mut noise = 0x2545_f491_u32;
        for _ in 0..64 {
            for word in 0..PAGE_SIZE / 4 {
                noise ^= noise << 13;
                noise ^= noise >> 17;
                noise ^= noise << 5;
                self.page.store(word, noise, Relaxed);
            }
            events::send(self.port);
            sched::yield_cpu();
        }
    }
}

/// Writes a line of these parts to the console.
fn say(parts: &[&str]) {
    let ring = Ring::console();
    let mut producer = ByteProducer::attach(ring.page, CONSOLE_OUTPUT);
    for part in parts.iter().chain(&["\r\n"]) {
        if producer.write(part.as_bytes()) != Ok(part.len()) {
            fail("console", format_args!("it has no room for a line"));
        }
    }
    events::send(ring.port);
}

/// Says each line back that is typed, as long as the store answers, too.
fn echo() -> ! {
    let ring = Ring::console();
    let mut typed = ByteConsumer::attach(ring.page, CONSOLE_INPUT);
    let (mut line, mut len) = ([0; 64], 0);
    loop {
        let mut byte = [0];
        if typed.read(&mut byte) != Ok(1) {
            events::clear_pending(ring.port);
            sched::poll(&[ring.port], time::now(events::shared_info()) + LOOK_NS);
            continue;
        }
        events::send(ring.port);
        if byte[0] != b'\n' {
            line[len % line.len()] = byte[0];
            len += 1;
            continue;
        }
        let text = core::str::from_utf8(&line[..len.min(line.len())]).unwrap_or("?");
        let answers = Store::open().and_then(|mut store| store.read("name")).is_ok_and(|name| name.is_some());
        say(&[if answers { "heard-" } else { "the store is silent after " }, text.trim_end()]);
        len = 0;
    }
}

fn console(attack: &str) {
    let ring = Ring::console();
    match attack {
        // More output than the ring holds; less than there was; input taken that was never given.
        "claim" => ring.move_by(CONSOLE_OUT_PROD, 3000),
        "back" => ring.move_by(CONSOLE_OUT_PROD, 1_u32.wrapping_neg()),
        "input" => ring.move_by(CONSOLE_IN_CONS, 5),
        // The other end's own counter: that one has to go by what it knows itself.
        "owned" => ring.move_by(CONSOLE_OUT_CONS, 700),
        "fill" => ring.fill(),
        "flood" => loop {
            // As if the ring was always full of new bytes.
            ring.page.store(CONSOLE_OUT_PROD / 4, ring.get(CONSOLE_OUT_CONS).wrapping_add(2048), Relaxed);
            events::send(ring.port);
        },
        _ => fail(attack, format_args!("no such attack on a console")),
    }
}

fn write(path: &str, value: &str) -> Result<(), Failed> {
    Store::open()?.write(path, value)
}

fn store(attack: &str) {
    let ring = Ring::store();
    let Ok(mut store) = Store::open() else { return fail(attack, format_args!("there is no store")) };
    let head = |kind, len| {
        let mut bytes = [0; Head::SIZE];
        Head { kind, req_id: 77, tx_id: 0, len }.to_bytes(&mut bytes);
        bytes
    };
    let mut send = |bytes: &[u8]| check("the ring takes bytes", store.send(bytes).is_ok());
    match attack {
        "claim" => ring.move_by(RING_REQ_PROD, 5000),
        "back" => ring.move_by(RING_REQ_PROD, 16_u32.wrapping_neg()),
        "answers" => ring.move_by(RING_RSP_CONS, 9000),
        "owned" => {
            ring.move_by(RING_REQ_CONS, 4711);
            ring.move_by(RING_RSP_PROD, 4711);
        }
        "fill" => ring.fill(),
        "long" => send(&head(XS_READ, 0xffff_ff00)),
        "cut" => {
            send(&head(XS_WRITE, 100));
            send(b"data/half\0va");
        }
        "unknown" => check("an unknown type is refused", store.request(999, &[b"x\0"]).err() == Some(Failed::Refused)),
        "quota" => quota(&mut store),
        "deaf" => deaf(&ring, &head(XS_READ, 5)),
        "transaction" => transaction(&mut store),
        "alive" => check("the store answers", store.read("name").is_ok_and(|name| name.is_some())),
        "dropped" => {
            let is_told = sched::wait_until(PATIENCE_MS, || ring.get(RING_ERROR) != 0);
            check("the store says that it serves this ring no more", is_told);
        }
        _ => fail(attack, format_args!("no such attack on the store")),
    }
}

/// A path of its own for each number.
fn path(mut number: u32) -> [u8; 10] {
    let mut path = *b"data/0000\0";
    for digit in path[5..9].iter_mut().rev() {
        *digit = b'0' + low_u8(u64::from(number % 10));
        number /= 10;
    }
    path
}

/// As many nodes, watches and transactions as it is given; then there is an error for each, and everything goes on.
fn quota(store: &mut Store) {
    let mut limited = |name, limits: core::ops::Range<u32>, more: &dyn Fn(&mut Store, u32) -> Result<Value, Failed>| {
        let granted = (0..MANY).find(|number| more(store, *number).is_err());
        check(name, granted.is_some_and(|granted| limits.contains(&granted)));
    };
    limited("nodes are limited", 500..1100, &|store, number| store.request(XS_WRITE, &[&path(number), b"x"]));
    limited("watches are limited", 64..200, &|store, number| store.request(XS_WATCH, &[&path(number), b"token\0"]));
    limited("transactions are limited", 2..40, &|store, _| store.request(XS_TRANSACTION_START, &[b"\0"]));
    check("the store answers behind its limits", store.read("name").is_ok_and(|name| name.is_some()));
}

/// Asks without end and reads no answer, until the ring is full of requests that nobody takes.
fn deaf(ring: &Ring, head: &[u8]) {
    let mut producer = ByteProducer::attach(ring.page, REQUESTS);
    let mut put = |mut left: &[u8]| {
        sched::wait_until(1000, || {
            left = &left[producer.write(left).unwrap_or(0)..];
            events::send(ring.port);
            left.is_empty()
        })
    };
    let is_full = (0..MANY).any(|_| !(put(head) && put(b"name\0")));
    check("who reads no answers is not asked on", is_full);
}

/// Begins a transaction, changes something in it, and does not end it.
fn transaction(store: &mut Store) {
    let begun = store.request(XS_TRANSACTION_START, &[b"\0"]).ok();
    let id = begun.and_then(|id| core::str::from_utf8(id.bytes()).ok()?.trim_end_matches('\0').parse().ok());
    let Some(id) = id else { return fail("transaction", format_args!("the store begins none")) };
    let written = store.request_in(id, XS_WRITE, &[b"data/begun\0", b"never"]);
    check("something is written in a transaction", written.is_ok());
}
