// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lines of guests.

use super::*;
use crate::mem::test_memory;
use crate::testing::Host;

const D: DomId = DomId::new(3);

fn printed(bytes: &[u8]) -> std::string::String {
    let host = Host::new();
    let mut line = LineBuffer::new(host.hv.machine);
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

fn ring(mem: &PhysMem, host: Host, consumed: u32, produced: u32) -> std::string::String {
    let ring = LogRing { mfn: Mfn::new(1), port: EvtchnPort::new(1) };
    mem.store_u32(ring.mfn, abi::CONSOLE_OUT_CONS, consumed);
    mem.store_u32(ring.mfn, abi::CONSOLE_OUT_PROD, produced);
    let mut line = LineBuffer::new(host.hv.machine);
    let before = host.console().len();
    ring.drain(mem, &mut line, D);
    line.flush(D);
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
