// SPDX-License-Identifier: MIT OR Apache-2.0
//! What one vCPU, one device or one key does to others.

use super::*;
use crate::backend::Injection;
use crate::exit::Exit;
use crate::testing::{DOM0, End, GUEST, Guest, Host, ending};
use crate::vcpu::RunState;

/// A guest with four vCPUs that run, with their local APICs enabled.
fn guest() -> (Host, Guest) {
    let host = Host::new();
    let guest = Guest::new(host, 1, GUEST, 4);
    for index in 0..4 {
        guest.enable_apic(index);
        guest.vcpu(index).set_run_state(RunState::Runnable);
        guest.cpu(index).set_interrupts(true);
    }
    (host, guest)
}

/// Sends by vCPU 0's interrupt command register, and returns who is delivered what.
fn send(icr: u64) -> [std::vec::Vec<Injection>; 4] {
    let (_, guest) = guest();
    assert!(guest.wrmsr(0x830, icr), "{icr:#x}");
    [0, 1, 2, 3].map(|index| {
        guest.run(index);
        guest.cpu(index).delivered.clone()
    })
}

const FIXED: u64 = 0x41;
const LOWEST: u64 = 1 << 8 | 0x41;
const NMI: u64 = 4 << 8;
const LOGICAL: u64 = 1 << 11;
const SELF: u64 = 1 << 18;
const ALL: u64 = 2 << 18;
const OTHERS: u64 = 3 << 18;

#[test]
fn an_interrupt_reaches_whom_it_names() {
    let it = || std::vec![Injection::Interrupt { vector: 0x41 }];
    let none = std::vec::Vec::new;
    assert_eq!(send(FIXED | 2 << 32), [none(), none(), it(), none()]);
    assert_eq!(send(FIXED | 9 << 32), [none(), none(), none(), none()], "nobody");
    assert_eq!(send(FIXED | SELF), [it(), none(), none(), none()]);
    assert_eq!(send(FIXED | ALL), [it(), it(), it(), it()]);
    assert_eq!(send(FIXED | OTHERS), [none(), it(), it(), it()]);
    assert_eq!(send(FIXED | 0xffff_ffff << 32), [it(), it(), it(), it()]);
    assert_eq!(send(FIXED | LOGICAL | 0b1010 << 32), [none(), it(), none(), it()]);
    assert_eq!(send(FIXED | LOGICAL | 0x1_000f << 32), [none(), none(), none(), none()], "another cluster");
}

#[test]
fn a_lowest_priority_interrupt_reaches_one_of_those_named() {
    let got = send(LOWEST | LOGICAL | 0b1100 << 32);
    assert_eq!(got.iter().map(std::vec::Vec::len).sum::<usize>(), 1);
    assert!(got[0].is_empty() && got[1].is_empty());
}

#[test]
fn an_nmi_needs_no_interrupts() {
    let (_, guest) = guest();
    guest.cpu(1).set_interrupts(false);
    assert!(guest.wrmsr(0x830, NMI | 1 << 32));
    guest.run(1);
    assert_eq!(guest.cpu(1).delivered, [Injection::Nmi]);
}

#[test]
fn an_interrupt_wakes_a_sleeper_and_asks_for_the_scheduler() {
    let (host, guest) = guest();
    guest.cpu(1).next_rip = Some(1);
    guest.cpu(1).exits(Exit::Halt);
    guest.run(1);
    assert_eq!(guest.vcpu(1).run_state(), RunState::Blocked);
    host.let_pcpu_0_idle();
    assert!(guest.wrmsr(0x830, FIXED | 1 << 32));
    assert!(host.hv.sched.request_of(0).is_set());
    guest.run(1);
    assert_eq!(guest.cpu(1).vectors(), [0x41]);
}

#[test]
fn another_domain_is_out_of_reach() {
    let host = Host::new();
    let (guest, other) = (Guest::new(host, 1, GUEST, 1), Guest::new(host, 2, GUEST, 1));
    guest.enable_apic(0);
    other.enable_apic(0);
    assert!(guest.wrmsr(0x830, FIXED | ALL) && guest.wrmsr(0x830, 5 << 8 | ALL));
    other.run(0);
    assert!(other.cpu(0).delivered.is_empty());
    assert_eq!(other.vcpu(0).run_state(), RunState::Runnable);
}

#[test]
fn the_self_ipi_register_works() {
    let (_, guest) = guest();
    assert!(guest.wrmsr(0x83f, 0x52));
    guest.run(0);
    assert_eq!(guest.cpu(0).vectors(), [0x52]);
}

#[test]
fn the_apic_timer_wakes_at_its_deadline_and_once() {
    let (host, guest) = guest();
    // One shot at vector 0x60; 100 counts of 10 ns by 2.
    assert!(guest.wrmsr(0x832, 0x60) && guest.wrmsr(0x838, 100));
    guest.code(&[0xf4]);
    guest.cpu(0).exits(Exit::Halt);
    guest.run(0);
    assert_eq!(guest.vcpu(0).sleep_deadline().raw(), host.hv.machine.tsc().raw() + 2000);
    host.advance(2000);
    guest.run(0);
    assert_eq!(guest.cpu(0).vectors(), [0x60]);
    host.advance(1_000_000);
    guest.run(0);
    assert_eq!(guest.cpu(0).vectors(), [0x60]);
}

#[test]
fn a_device_that_interrupts_without_dom0_is_ended_and_forgotten() {
    let (host, guest) = guest();
    host.hv.device_interrupt(0x55);
    assert_eq!(host.machine.ends.load(Ordering::SeqCst), 1);
    guest.run(0);
    assert!(guest.cpu(0).delivered.is_empty());
}

#[test]
fn a_crash_of_dom0_is_what_the_command_line_says() {
    let ends = [(OnPanic::Exit, End::PowerOff(3)), (OnPanic::Reboot, End::Reset), (OnPanic::Halt, End::Halt)];
    for (policy, end) in ends {
        let (host, dom0) = Host::with_dom0_and(policy);
        dom0.domain.shut_down(ShutdownReason::Crash);
        assert_eq!(ending(|| host.hv.after_slice()), end, "{policy:?}");
    }
}

#[test]
fn domains_are_found_by_number_and_only_those_that_exist() {
    let host = Host::new();
    let (_, _) = (Guest::new(host, 0, DOM0, 1), Guest::new(host, 5, GUEST, 1));
    let found: std::vec::Vec<usize> = host.hv.domains.iter().map(|(index, _)| index).collect();
    assert_eq!(found, [0, 5]);
    for raw in [1, 4, 6, 63, 64, 0x7ff0, u16::MAX] {
        assert!(host.hv.domains.get(DomId::new(raw)).is_none());
    }
}
