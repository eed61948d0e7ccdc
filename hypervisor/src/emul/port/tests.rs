// SPDX-License-Identifier: MIT OR Apache-2.0
//! Port accesses as exits of a guest.

use super::*;
use crate::backend::{Injection, SegmentName};
use crate::exit::Exit;
use crate::testing::{Guest, HOLE, Host, arg};

const DEBUG: u16 = 0xe9;
const NOBODYS: u16 = 0x1234;
const GP: Option<Injection> = Some(Injection::Exception { vector: 13, error_code: Some(0) });
const RFLAGS_DF: u64 = 1 << 10;

fn access(port: u16, size: u8, is_in: bool) -> IoAccess {
    IoAccess { port, size, is_in, is_string: false, is_repeated: false }
}

fn string(port: u16, size: u8, is_in: bool, is_repeated: bool) -> IoAccess {
    IoAccess { is_string: true, is_repeated, ..access(port, size, is_in) }
}

/// IN DX of a size; returns RAX.
fn read(guest: &Guest, port: u16, size: u8) -> u64 {
    guest.code(&[0xed]);
    guest.set_regs(|regs| regs.rax = u64::MAX);
    assert_eq!(guest.exit(Exit::Io(access(port, size, true))), Outcome::Resume);
    assert_eq!(guest.moved(), 1);
    guest.regs().rax
}

#[test]
fn nobodys_port_reads_all_ones_of_its_size() {
    let (_, guest) = Host::with_guest();
    for size in [1, 2, 4] {
        assert_eq!(read(&guest, NOBODYS, size), if size == 4 { 0xffff_ffff } else { u64::MAX });
    }
}

#[test]
fn a_narrow_read_keeps_the_rest_of_the_register() {
    let (_, guest) = Host::with_guest();
    assert_eq!(read(&guest, 0x42, 1), u64::MAX - 0xff, "the PIT's counter is 0");
    assert_eq!(read(&guest, 0x42, 2), u64::MAX - 0xffff);
    assert_eq!(read(&guest, 0x42, 4), 0);
    assert_eq!(read(&guest, 0x3fd, 1), (u64::MAX - 0xff) | 0x60, "the transmitter is empty");
}

#[test]
fn bytes_to_the_debug_port_and_com1_are_logged() {
    let (host, guest) = Host::with_guest();
    for (port, byte) in [(DEBUG, b'a'), (0x3f8, b'b'), (NOBODYS, b'c'), (0x2f8, b'd'), (DEBUG, b'\n')] {
        guest.code(&[0xee]);
        guest.set_regs(|regs| regs.rax = 0xff00 | u64::from(byte));
        guest.exit(Exit::Io(access(port, 1, false)));
        assert_eq!(guest.moved(), 1);
    }
    guest.code(&[0xef]);
    guest.exit(Exit::Io(access(DEBUG, 4, false)));
    assert_eq!(host.console(), "(d1) ab\r\n");
}

#[test]
fn a_domain_with_devices_has_no_log_only_uart() {
    let (host, dom0) = Host::with_dom0();
    assert_eq!(read(&dom0, 0x3fd, 1), u64::MAX);
    dom0.code(&[0xee]);
    dom0.set_regs(|regs| regs.rax = u64::from(b'\n'));
    dom0.exit(Exit::Io(access(0x3f8, 1, false)));
    assert_eq!(host.console(), "");
}

#[test]
fn the_length_is_the_cpus_or_counted_with_prefixes() {
    let (_, guest) = Host::with_guest();
    guest.code(&[0x66, 0x40, 0xed]);
    guest.exit(Exit::Io(access(NOBODYS, 2, true)));
    assert_eq!(guest.moved(), 3);
    guest.code(&[0xe5, 0x42]);
    guest.exit(Exit::Io(access(0x42, 4, true)));
    assert_eq!(guest.moved(), 2);
    guest.code(&[0xcc]);
    let next = guest.cpu(0).state.rip + 9;
    guest.cpu(0).next_rip = Some(next);
    guest.exit(Exit::Io(access(NOBODYS, 1, true)));
    assert_eq!(guest.moved(), 9);
}

#[test]
fn an_instruction_that_is_not_there_any_more_faults_without_effect() {
    let (host, guest) = Host::with_guest();
    guest.code(&[0x90]);
    guest.set_regs(|regs| regs.rax = 10);
    guest.exit(Exit::Io(access(DEBUG, 1, false)));
    assert_eq!((guest.moved(), guest.take_queued()), (0, GP));
    guest.exit(Exit::Io(access(NOBODYS, 1, true)));
    assert_eq!((guest.moved(), guest.regs().rax, guest.take_queued()), (0, 10, GP));
    assert_eq!(host.console(), "");
}

/// Executes a string instruction until it ends, and returns how many exits that took.
fn run_string(guest: &Guest, code: &[u8], access: IoAccess) -> usize {
    guest.code(code);
    (1..100)
        .find(|_| {
            assert_eq!(guest.exit(Exit::Io(access)), Outcome::Resume);
            guest.moved() != 0 || guest.cpu(0).queued.is_some()
        })
        .expect("it ends")
}

#[test]
fn a_string_is_written_with_and_without_a_count() {
    let (host, guest) = Host::with_guest();
    guest.put_bytes(arg(1), b"hello\n");
    guest.set_regs(|regs| (regs.rsi, regs.rcx) = (arg(1), 5));
    run_string(&guest, &[0xf3, 0x6e], string(DEBUG, 1, false, true));
    let regs = guest.regs();
    assert_eq!((regs.rcx, regs.rsi, guest.moved()), (0, arg(1) + 5, 2));
    run_string(&guest, &[0x6e], string(DEBUG, 1, false, false));
    let regs = guest.regs();
    assert_eq!((regs.rcx, regs.rsi, guest.moved()), (0, arg(1) + 6, 1));
    assert_eq!(host.console(), "(d1) hello\r\n");
}

#[test]
fn a_count_of_zero_moves_nothing_and_ends() {
    let (_, guest) = Host::with_guest();
    guest.set_regs(|regs| (regs.rsi, regs.rdi, regs.rcx) = (HOLE, HOLE, 0));
    for is_in in [true, false] {
        run_string(&guest, &[0xf3, 0x6c], string(NOBODYS, 4, is_in, true));
        let regs = guest.regs();
        assert_eq!((regs.rsi, regs.rdi, regs.rcx, guest.moved()), (HOLE, HOLE, 0, 2));
    }
}

#[test]
fn a_long_string_is_cut_into_batches() {
    let (_, guest) = Host::with_guest();
    for (size, exits) in [(1, 4), (2, 8), (4, 16)] {
        guest.set_regs(|regs| (regs.rdi, regs.rcx) = (0x20_000, 1000));
        assert_eq!(run_string(&guest, &[0xf3, 0x6d], string(NOBODYS, size, true, true)), exits);
        let regs = guest.regs();
        assert_eq!((regs.rdi, regs.rcx), (0x20_000 + 1000 * u64::from(size), 0));
    }
    assert_eq!(guest.get_bytes(0x20_000, 4000), [0xff; 4000]);
    assert_eq!(guest.get::<u32>(0x20_000 + 4000), 0);
}

#[test]
fn strings_go_backwards_with_the_direction_flag() {
    let (host, guest) = Host::with_guest();
    guest.put_bytes(arg(1), b"\nolleh");
    guest.cpu(0).state.rflags |= RFLAGS_DF;
    guest.set_regs(|regs| (regs.rsi, regs.rcx) = (arg(1) + 5, 6));
    run_string(&guest, &[0xf3, 0x6e], string(DEBUG, 1, false, true));
    assert_eq!((guest.regs().rsi, host.console().as_str()), (arg(1) - 1, "(d1) hello\r\n"));
    guest.set_regs(|regs| (regs.rdi, regs.rcx) = (0, 1));
    run_string(&guest, &[0xf3, 0x6d], string(NOBODYS, 4, true, true));
    assert_eq!(guest.regs().rdi, 4_u64.wrapping_neg(), "addresses wrap");
}

fn page_fault(error_code: u32) -> Option<Injection> {
    Some(Injection::Exception { vector: 14, error_code: Some(error_code) })
}

#[test]
fn a_buffer_that_is_not_there_is_a_page_fault_after_what_was_moved() {
    let (_, guest) = Host::with_guest();
    let end = 128 << 12;
    guest.set_regs(|regs| (regs.rdi, regs.rcx) = (end - 8, 100));
    run_string(&guest, &[0xf3, 0x6d], string(NOBODYS, 4, true, true));
    let regs = guest.regs();
    assert_eq!((regs.rdi, regs.rcx, guest.moved(), guest.take_queued()), (end, 98, 0, page_fault(2)));
    assert_eq!(guest.cpu(0).state.cr2, end);
    guest.set_regs(|regs| (regs.rsi, regs.rcx) = (HOLE, u64::MAX));
    run_string(&guest, &[0xf3, 0x6f], string(NOBODYS, 4, false, true));
    assert_eq!((guest.regs().rcx, guest.moved(), guest.take_queued()), (u64::MAX, 0, page_fault(0)));
    assert_eq!(guest.cpu(0).state.cr2, HOLE);
    guest.protect(arg(1));
    guest.set_regs(|regs| (regs.rdi, regs.rcx) = (arg(1), 1));
    run_string(&guest, &[0xf3, 0x6d], string(NOBODYS, 4, true, true));
    assert_eq!((guest.moved(), guest.take_queued()), (0, page_fault(3)), "a read-only page");
}

#[test]
fn an_element_across_two_pages_faults_at_the_one_that_is_not_there() {
    let (_, guest) = Host::with_guest();
    let end = 128 << 12;
    guest.set_regs(|regs| (regs.rdi, regs.rcx) = (end - 2, 1));
    run_string(&guest, &[0xf3, 0x6d], string(NOBODYS, 4, true, true));
    assert_eq!((guest.regs().rcx, guest.take_queued(), guest.cpu(0).state.cr2), (1, page_fault(2), end));
}

#[test]
fn a_buffer_at_no_address_is_a_general_protection_fault() {
    let (_, guest) = Host::with_guest();
    guest.set_regs(|regs| (regs.rsi, regs.rcx) = (1 << 63, 1));
    run_string(&guest, &[0xf3, 0x6e], string(DEBUG, 1, false, true));
    assert_eq!((guest.moved(), guest.take_queued()), (0, GP));
}

#[test]
fn a_buffer_where_no_memory_is_takes_anything_and_gives_all_ones() {
    let (_, guest) = Host::with_guest();
    guest.set_page(100, 0xf000_0000 | 3);
    for is_in in [true, false] {
        guest.set_regs(|regs| (regs.rsi, regs.rdi, regs.rcx) = (100 << 12, 100 << 12, 3));
        run_string(&guest, &[0xf3, 0x6e], string(DEBUG, 1, is_in, true));
        assert_eq!((guest.regs().rcx, guest.moved(), guest.take_queued()), (0, 2, None));
    }
}

#[test]
fn a_process_with_rights_to_a_port_reaches_no_memory_of_its_kernel() {
    let (host, guest) = Host::with_guest();
    guest.put_bytes(arg(1), b"secret\n");
    guest.cpu(0).cpl = 3;
    for is_in in [true, false] {
        guest.set_regs(|regs| (regs.rsi, regs.rdi, regs.rcx) = (arg(1), arg(1), 7));
        run_string(&guest, &[0xf3, 0x6e], string(DEBUG, 1, is_in, true));
        assert_eq!((guest.moved(), guest.take_queued()), (0, GP));
    }
    assert_eq!((guest.get_bytes(arg(1), 7), host.console()), (b"secret\n".to_vec(), std::string::String::new()));
}

#[test]
fn strings_outside_64_bit_code_are_refused() {
    let (_, guest) = Host::with_guest();
    guest.cpu(0).state.segments.0[SegmentName::Cs as usize].attributes = 0xc09b;
    guest.set_regs(|regs| (regs.rsi, regs.rcx) = (arg(1), 1));
    run_string(&guest, &[0xf3, 0x6e], string(DEBUG, 1, false, true));
    assert_eq!((guest.moved(), guest.take_queued()), (0, GP));
}

#[test]
fn a_guest_switches_itself_off_by_its_sleep_register_and_dom0_does_not() {
    let write = |guest: &Guest, byte: u8| {
        guest.code(&[0xee]);
        guest.set_regs(|regs| regs.rax = byte.into());
        guest.exit(Exit::Io(access(SLEEP_CONTROL, 1, false)));
    };
    let (_, dom0) = Host::with_dom0();
    write(&dom0, SLEEP_S5);
    assert_eq!(dom0.domain.shutdown_reason(), None);
    let (_, guest) = Host::with_guest();
    // Another type, and S5 without the bit that makes it so.
    for byte in [SLEEP_S5 ^ 1 << 2, SLEEP_S5 & !(1 << 5)] {
        write(&guest, byte);
        assert_eq!(guest.domain.shutdown_reason(), None);
    }
    write(&guest, SLEEP_S5);
    assert_eq!(guest.domain.shutdown_reason(), Some(ShutdownReason::Poweroff));
}
