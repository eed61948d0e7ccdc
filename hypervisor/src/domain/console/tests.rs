// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lines of guests.

use super::*;
use crate::testing::Host;
use crate::testing::test_memory;

const D: DomId = DomId::new(3);

fn printed(bytes: &[u8]) -> std::string::String {
    let host = Host::new();
    let mut line = LineBuffer::new(host.hv.machine, true);
    bytes.iter().for_each(|byte| line.push(*byte, D));
    line.flush(D);
    line.flush(D);
    host.console()
}

#[test]
fn each_line_has_its_domain_in_front() {
    assert_eq!(printed(b"one\r\n\ntwo"), "(d3) one\r\n(d3) \r\n(d3) two\r\n");
    assert_eq!(printed(b""), "");
}

#[test]
fn a_line_that_is_too_long_is_broken_and_nothing_is_lost() {
    let text = printed(&[b'x'; 2 * LINE + 1]);
    assert_eq!(text.lines().map(|line| line.len() - 5).collect::<std::vec::Vec<_>>(), [LINE, LINE, 1]);
}

#[test]
fn what_a_terminal_would_act_on_is_shown_and_text_is_left_alone() {
    assert_eq!(printed(b"a\x1b[2J\x07\x7f\tb\x9b"), "(d3) a\\x1b[2J\\x07\\x7f\tb\\x9b\r\n");
    assert_eq!(printed("d\u{e9}j\u{e0}: \u{2713}".as_bytes()), "(d3) d\u{e9}j\u{e0}: \u{2713}\r\n");
    // CSI as the one character that it is in UTF-8, and a sequence that is cut off.
    assert_eq!(printed(b"\xc2\x9b1m\xe2\x9c"), "(d3) \\xc2\\x9b1m\\xe2\\x9c\r\n");
    assert_eq!(printed(b"a\x1bc\rb\0"), "(d3) a\\x1bcb\r\n");
}

#[test]
fn a_line_of_control_characters_has_room() {
    let text = printed(&[0x1b; LINE]);
    assert_eq!(text.len(), "(d3) \r\n".len() + LINE * SHOWN);
}

fn ring(mem: &PhysMem, host: Host, consumed: u32, produced: u32) -> std::string::String {
    let ring = LogRing { mfn: Mfn::new(1), port: EvtchnPort::new(1) };
    mem.store_u32(ring.mfn, abi::CONSOLE_OUT_CONS, consumed);
    mem.store_u32(ring.mfn, abi::CONSOLE_OUT_PROD, produced);
    let mut console = Console::new(host.hv.machine, Kept::new(test_memory(2), Mfn::new(0)), true);
    let before = host.console().len();
    ring.drain(mem, &mut console, D);
    console.flush(D);
    assert_eq!(mem.load_u32(ring.mfn, abi::CONSOLE_OUT_CONS), produced);
    host.console()[before..].replace("\r\n", "").replace("(d3) ", "")
}

#[test]
fn a_ring_is_drained_across_its_end_and_across_the_counters_end() {
    let (mem, host) = (test_memory(2), Host::new());
    for at in 0..abi::CONSOLE_OUT_SIZE {
        mem.write(Mfn::new(1), abi::CONSOLE_OUT + at, &[b'a' + low_u8(at as u64 % 26)]);
    }
    assert_eq!(ring(&mem, host, 2, 5), "cde");
    // 2046 % 26 is 18: s, t, then the start.
    assert_eq!(ring(&mem, host, 2046, 2050), "stab");
    assert_eq!(ring(&mem, host, u32::MAX - 1, 2), "stab");
    assert_eq!(ring(&mem, host, 7, 7), "");
    assert_eq!(ring(&mem, host, 0, 2048).len(), 2048);
}

#[test]
fn counters_that_lie_lose_the_guests_output_and_nothing_else() {
    let (mem, host) = (test_memory(2), Host::new());
    mem.write(Mfn::new(1), abi::CONSOLE_OUT, &[b'x'; abi::CONSOLE_OUT_SIZE]);
    assert_eq!(ring(&mem, host, 5, 4), "");
    assert_eq!(ring(&mem, host, 0, 2049), "");
    assert_eq!(ring(&mem, host, 1, 0x8000_0000), "");
}

#[test]
fn a_reader_of_what_is_kept_goes_on_where_it_was_and_learns_what_it_missed() {
    let mut kept = Kept::new(test_memory(2), Mfn::new(0));
    let mut out = [0; 8];
    assert!(kept.push(b'a'), "the first byte is news");
    assert!(!kept.push(b'b'));
    assert_eq!(kept.read(0, &mut out[..1]), (0, 1));
    assert!(!kept.push(b'c'), "not all had been read");
    assert_eq!((kept.read(1, &mut out), &out[..2]), ((1, 2), b"bc".as_slice()));
    assert!(kept.push(b'd'));
    assert_eq!(kept.read(77, &mut out), (4, 0), "a number that is still to come");
    for _ in 0..CONSOLE_KEPT {
        kept.push(b'x');
    }
    assert_eq!((kept.read(3, &mut out), &out), ((4, 8), b"xxxxxxxx"));
    let mut all = std::vec![0; 2 * CONSOLE_KEPT];
    assert_eq!(kept.read(0, &mut all), (4, CONSOLE_KEPT));
}

#[test]
fn a_domain_that_does_not_echo_is_heard_in_the_log_alone() {
    let host = Host::new();
    let mut console = Console::new(host.hv.machine, Kept::new(test_memory(2), Mfn::new(0)), false);
    let from = LOG.oldest();
    b"quite-quiet\n".iter().for_each(|byte| _ = console.push(*byte, D));
    assert_eq!(host.console(), "");
    let mut out = std::vec![0; crate::log_ring::LOG_KEPT];
    let (_, len) = LOG.read(from, &mut out);
    assert!(std::string::String::from_utf8_lossy(&out[..len]).contains("(d3) quite-quiet"));
}
