// SPDX-License-Identifier: MIT OR Apache-2.0
//! event_channel_op as guests call it. What ports do is tested beside [`crate::evtchn`].

use guest_abi::hypercall::HYPERVISOR_EVENT_CHANNEL_OP;
use guest_abi::{DomId, Wire};

use super::*;
use crate::testing::{DOM0, GUEST, Guest, HOLE, Host, arg, failed};

const SELF: u16 = DomId::SELF.raw();

fn op<T: Wire>(guest: &Guest, operation: u32, argument: T) -> (i64, T) {
    guest.call_with(HYPERVISOR_EVENT_CHANNEL_OP, operation, argument)
}

fn alloc(guest: &Guest, dom: u16, remote_dom: u16) -> (i64, u32) {
    let (result, answer) = op(guest, abi::EVTCHNOP_ALLOC_UNBOUND, abi::AllocUnbound { dom, remote_dom, port: 0 });
    (result, answer.port)
}

fn bind(guest: &Guest, remote_dom: u16, remote_port: u32) -> (i64, u32) {
    let argument = abi::BindInterdomain { remote_dom, remote_port, local_port: 0 };
    let (result, answer) = op(guest, abi::EVTCHNOP_BIND_INTERDOMAIN, argument);
    (result, answer.local_port)
}

fn status(guest: &Guest, dom: u16, port: u32) -> (i64, abi::Status) {
    op(guest, abi::EVTCHNOP_STATUS, abi::Status { dom, port, ..Default::default() })
}

/// What a port of the caller's is, as the ABI's number.
fn kind(guest: &Guest, port: u32) -> u32 {
    let (result, answer) = status(guest, SELF, port);
    assert_eq!(result, 0);
    answer.status
}

fn close(guest: &Guest, port: u32) -> i64 {
    op(guest, abi::EVTCHNOP_CLOSE, abi::Close { port }).0
}

fn send(guest: &Guest, port: u32) -> i64 {
    op(guest, abi::EVTCHNOP_SEND, abi::Send { port }).0
}

fn pair() -> (Guest, Guest) {
    let host = Host::new();
    (Guest::new(host, 1, GUEST, 2), Guest::new(host, 2, GUEST, 1))
}

#[test]
fn a_channel_is_made_used_and_closed_by_its_ends() {
    let (a, b) = pair();
    let (result, port) = alloc(&a, SELF, 2);
    assert_eq!((result, port), (0, 1));
    let (result, far) = bind(&b, 1, port);
    assert_eq!((result, far), (0, 1));
    let (result, answer) = status(&a, SELF, port);
    assert_eq!(result, 0);
    assert_eq!((answer.status, answer.first, answer.second), (abi::EVTCHNSTAT_INTERDOMAIN, 2, far));
    assert_eq!(send(&b, far), 0);
    assert!(a.domain.events.is_pending(EvtchnPort::new(port)));
    assert_eq!(close(&b, far), 0);
    assert_eq!(kind(&a, port), abi::EVTCHNSTAT_UNBOUND);
    assert_eq!(close(&b, far), failed(Errno::EINVAL));
    assert_eq!(send(&b, far), failed(Errno::EINVAL));
}

#[test]
fn a_channel_within_a_domain_works_by_either_name() {
    let (a, _) = pair();
    for me in [SELF, 1] {
        let (_, port) = alloc(&a, me, me);
        let (result, far) = bind(&a, me, port);
        assert_eq!(result, 0);
        assert_eq!(send(&a, far), 0);
        assert!(a.domain.events.is_pending(EvtchnPort::new(port)));
        assert_eq!((close(&a, far), close(&a, port)), (0, 0));
    }
}

#[test]
fn a_port_whose_number_cannot_be_told_is_not_allocated() {
    let (a, b) = pair();
    let (_, waiting) = alloc(&b, SELF, 1);
    a.put(arg(0), &abi::AllocUnbound { dom: SELF, remote_dom: 2, port: 0 });
    a.put(arg(1), &abi::BindInterdomain { remote_dom: 2, remote_port: waiting, local_port: 0 });
    a.put(arg(2), &abi::BindVirq { virq: 0, vcpu: 0, port: 0 });
    a.put(arg(3), &abi::BindIpi { vcpu: 1, port: 0 });
    a.protect(arg(0));
    let operations =
        [abi::EVTCHNOP_ALLOC_UNBOUND, abi::EVTCHNOP_BIND_INTERDOMAIN, abi::EVTCHNOP_BIND_VIRQ, abi::EVTCHNOP_BIND_IPI];
    for (n, operation) in (0..).zip(operations) {
        let result = a.call(HYPERVISOR_EVENT_CHANNEL_OP, [u64::from(operation), arg(n), 0]);
        assert_eq!(result, failed(Errno::EFAULT), "operation {operation}");
        assert_eq!(a.domain.events.status(EvtchnPort::new(1)).unwrap().state, PortState::Free);
    }
    assert_eq!(kind(&b, waiting), abi::EVTCHNSTAT_UNBOUND, "it waits for its peer again");
    // The VIRQ is free again too.
    a.set_page(arg(0) >> 12, arg(0) & !0xfff | 3);
    assert_eq!(op(&a, abi::EVTCHNOP_BIND_VIRQ, abi::BindVirq { virq: 0, vcpu: 0, port: 0 }).0, 0);
}

#[test]
fn virqs_and_ipis_are_bound_once_where_they_may_be() {
    let (a, _) = pair();
    let virq = |virq, vcpu| op(&a, abi::EVTCHNOP_BIND_VIRQ, abi::BindVirq { virq, vcpu, port: 0 }).0;
    assert_eq!((virq(0, 0), virq(0, 1)), (0, 0));
    assert_eq!(virq(0, 1), failed(Errno::EEXIST));
    assert_eq!(virq(0, 2), failed(Errno::ENOENT));
    assert_eq!(virq(abi::VIRQ_CONSOLE, 0), failed(Errno::EBUSY), "the control domain's");
    assert_eq!(virq(abi::VIRQ_CONSOLE, 1), failed(Errno::EINVAL));
    assert_eq!(virq(abi::NR_VIRQS, 0), failed(Errno::EINVAL));
    assert_eq!(virq(u32::MAX, u32::MAX), failed(Errno::EINVAL));
    let ipi = |vcpu| op(&a, abi::EVTCHNOP_BIND_IPI, abi::BindIpi { vcpu, port: 0 }).0;
    assert_eq!(ipi(1), 0);
    assert_eq!(ipi(2), failed(Errno::ENOENT));
    assert_eq!(ipi(u32::MAX), failed(Errno::ENOENT));
}

#[test]
fn another_domains_ports_are_for_who_controls_it() {
    let host = Host::new();
    let (dom0, a, b) = (Guest::new(host, 0, DOM0, 1), Guest::new(host, 1, GUEST, 1), Guest::new(host, 2, GUEST, 1));
    let (_, port) = alloc(&a, SELF, 0);
    assert_eq!(alloc(&b, 1, 2).0, failed(Errno::EPERM));
    assert_eq!(status(&b, 1, port).0, failed(Errno::EPERM));
    assert_eq!(op(&b, abi::EVTCHNOP_RESET, abi::Reset { dom: 1 }).0, failed(Errno::EPERM));
    assert_eq!(bind(&b, 1, port).0, failed(Errno::EINVAL), "it waits for dom0");
    assert_eq!(status(&dom0, 1, port).1.status, abi::EVTCHNSTAT_UNBOUND);
    let (result, for_b) = alloc(&dom0, 1, 2);
    assert_eq!((result, for_b), (0, 2));
    assert_eq!(bind(&b, 1, for_b).0, 0);
    for nobody in [3, 64, 5000, DomId::IO.raw(), u16::MAX] {
        assert_eq!(alloc(&dom0, nobody, 0).0, failed(Errno::ESRCH));
        assert_eq!(status(&dom0, nobody, 1).0, failed(Errno::ESRCH));
        assert_eq!(op(&dom0, abi::EVTCHNOP_RESET, abi::Reset { dom: nobody }).0, failed(Errno::ESRCH));
        assert_eq!(bind(&dom0, nobody, 1).0, failed(Errno::ESRCH));
    }
    assert_eq!(op(&dom0, abi::EVTCHNOP_RESET, abi::Reset { dom: 1 }).0, 0);
    assert_eq!(kind(&a, port), abi::EVTCHNSTAT_CLOSED);
}

#[test]
fn resetting_closes_any_number_of_ports_in_batches() {
    let (a, b) = pair();
    for _ in 0..300 {
        assert_eq!(alloc(&a, SELF, 2).0, 0);
    }
    assert_eq!(bind(&b, 1, 300).0, 0);
    a.put(arg(0), &abi::Reset { dom: SELF });
    a.load_call(HYPERVISOR_EVENT_CHANNEL_OP, [u64::from(abi::EVTCHNOP_RESET), arg(0), 0]);
    let batches = (1..100).find(|_| a.hypercall_once().is_some());
    assert_eq!(batches, Some(5));
    assert_eq!(a.regs().rax, 0);
    assert!((1..=300).all(|port| kind(&a, port) == abi::EVTCHNSTAT_CLOSED));
    assert_eq!(kind(&b, 1), abi::EVTCHNSTAT_UNBOUND);
}

#[test]
fn ports_run_out_with_an_error() {
    let (a, _) = pair();
    let first = (1..5000).find(|_| alloc(&a, SELF, 2).0 != 0);
    assert_eq!(first, Some(abi::TWO_LEVEL_PORTS), "port 0 is nobody's");
    assert_eq!(alloc(&a, SELF, 2).0, failed(Errno::ENOSPC));
    assert_eq!(close(&a, 77), 0);
    assert_eq!(alloc(&a, SELF, 2), (0, 77));
}

#[test]
fn impossible_ports_are_refused_everywhere() {
    let (a, _) = pair();
    for port in [0, 1, 4095, 4096, 1 << 17, u32::MAX] {
        assert_eq!(send(&a, port), failed(Errno::EINVAL));
        assert_eq!(close(&a, port), failed(Errno::EINVAL));
        assert_eq!(op(&a, abi::EVTCHNOP_UNMASK, abi::Unmask { port }).0, failed(Errno::EINVAL));
        assert_eq!(op(&a, abi::EVTCHNOP_BIND_VCPU, abi::BindVcpu { port, vcpu: 0 }).0, failed(Errno::EINVAL));
        assert_eq!(bind(&a, 2, port).0, failed(Errno::EINVAL));
        let expected = if port < 4096 { 0 } else { failed(Errno::EINVAL) };
        assert_eq!(status(&a, SELF, port).0, expected);
    }
    let (_, port) = alloc(&a, SELF, 2);
    assert_eq!(op(&a, abi::EVTCHNOP_BIND_VCPU, abi::BindVcpu { port, vcpu: 1 }).0, 0);
    assert_eq!(status(&a, SELF, port).1.vcpu, 1);
    assert_eq!(op(&a, abi::EVTCHNOP_BIND_VCPU, abi::BindVcpu { port, vcpu: 2 }).0, failed(Errno::ENOENT));
}

#[test]
fn unknown_operations_are_not_offered() {
    let (a, _) = pair();
    let offered = 0..=abi::EVTCHNOP_SET_PRIORITY;
    for operation in (0..32).chain([1 << 6, u32::MAX]) {
        let is_offered = offered.contains(&operation) && operation != abi::EVTCHNOP_BIND_PIRQ;
        let expected = if is_offered { Errno::EFAULT } else { Errno::ENOSYS };
        let result = a.call(HYPERVISOR_EVENT_CHANNEL_OP, [u64::from(operation), HOLE, 0]);
        assert_eq!(result, failed(expected), "operation {operation}");
    }
}
