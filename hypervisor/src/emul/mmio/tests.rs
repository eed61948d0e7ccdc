// SPDX-License-Identifier: MIT OR Apache-2.0
//! Accesses to what is not memory.

use super::*;
use crate::backend::Injection;
use crate::domain::ShutdownReason;
use crate::exit::Exit;
use crate::testing::{Guest, Host};

const NOWHERE: Gpa = Gpa::new(0xd000_0000);

fn fault() -> P2mFault {
    P2mFault { gpa: NOWHERE, is_fetch: false, is_walk: false, is_delivery: false }
}

fn access(guest: &Guest, code: &[u8], fault: P2mFault) -> Option<Injection> {
    guest.code(code);
    assert_eq!(guest.exit(Exit::P2mFault(fault)), Outcome::Resume);
    guest.take_queued()
}

#[test]
fn a_hole_reads_all_ones_of_the_operands_size() {
    let (_, guest) = Host::with_guest();
    // MOV AL, [RDI]; MOV AX, [RDI]; MOV EAX, [RDI]; MOV RAX, [RDI]; MOVZX EAX, BYTE [RDI].
    let cases: [(&[u8], u64); 5] = [
        (&[0x8a, 0x07], 0xff),
        (&[0x66, 0x8b, 0x07], 0xffff),
        (&[0x8b, 0x07], 0xffff_ffff),
        (&[0x48, 0x8b, 0x07], u64::MAX),
        (&[0x0f, 0xb6, 0x07], 0xff),
    ];
    for (code, expected) in cases {
        guest.set_regs(|regs| regs.rax = 0);
        assert_eq!(access(&guest, code, fault()), None);
        assert_eq!((guest.regs().rax, guest.moved()), (expected, code.len() as u64));
    }
}

#[test]
fn what_is_written_to_a_hole_vanishes() {
    let (host, guest) = Host::with_guest();
    let before = (guest.regs(), host.account(guest.id()));
    // MOV [RDI], EAX; MOV BYTE [RDI], 1.
    for code in [&[0x89, 0x07][..], &[0xc6, 0x07, 0x01]] {
        assert_eq!(access(&guest, code, fault()), None);
        assert_eq!(guest.moved(), code.len() as u64);
    }
    assert_eq!((guest.regs(), host.account(guest.id())), before);
}

#[test]
fn an_access_ends_the_interrupt_shadow() {
    let (_, guest) = Host::with_guest();
    guest.cpu(0).shadow = true;
    assert_eq!(access(&guest, &[0x8b, 0x07], fault()), None);
    assert!(!guest.cpu(0).shadow);
}

#[test]
fn what_cannot_be_decoded_faults_and_rip_stays() {
    let (_, guest) = Host::with_guest();
    let gp = Some(Injection::Exception { vector: 13, error_code: Some(0) });
    // LOCK XADD [RDI], EAX; MOVSB; PUSH [RDI].
    for code in [&[0xf0, 0x0f, 0xc1, 0x07][..], &[0xa4], &[0xff, 0x37]] {
        assert_eq!(access(&guest, code, fault()), gp);
        assert_eq!(guest.moved(), 0);
    }
    guest.cpu(0).state.rip = 0xffff_ffff_ffff_fff0;
    assert_eq!(guest.exit(Exit::P2mFault(fault())), Outcome::Resume);
    assert_eq!(guest.take_queued(), gp, "code that cannot be read");
}

#[test]
fn code_in_a_hole_is_an_invalid_opcode() {
    let (_, guest) = Host::with_guest();
    let fetch = P2mFault { is_fetch: true, ..fault() };
    assert_eq!(access(&guest, &[0x90], fetch), Some(Injection::Exception { vector: 6, error_code: None }));
    assert_eq!(guest.moved(), 0);
}

#[test]
fn a_stack_in_a_hole_ends_the_domain_and_nothing_at_rip_is_carried_out() {
    let (_, guest) = Host::with_guest();
    guest.set_regs(|regs| regs.rax = 7);
    // MOV EAX, [RDI], which would be completed if it were what the access came from.
    guest.code(&[0x8b, 0x07]);
    let delivery = P2mFault { is_delivery: true, ..fault() };
    assert_eq!(guest.exit(Exit::P2mFault(delivery)), Outcome::Leave);
    assert_eq!(guest.domain.shutdown_reason(), Some(ShutdownReason::Crash));
    assert_eq!((guest.moved(), guest.regs().rax), (0, 7));
}

#[test]
fn page_tables_in_a_hole_end_the_domain() {
    let (_, guest) = Host::with_guest();
    let walk = P2mFault { is_walk: true, ..fault() };
    assert_eq!(guest.exit(Exit::P2mFault(walk)), Outcome::Leave);
    assert_eq!(guest.domain.shutdown_reason(), Some(ShutdownReason::Crash));
}
