// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves the 2-level event channels of one domain: loopback, masks, IPIs, and the errors.
//!
//! A pass cannot tell anything about two domains or two vCPUs: both ends are the same vCPU here.
//!
//! Checks: `event_channel.h` at 4.17; the 2-level rules of the interface document.
//! Expects: status 0.
#![no_std]
#![no_main]

use guest_abi::event_channel::{
    BindVcpu, EVTCHNOP_BIND_VCPU, EVTCHNOP_SEND, EVTCHNSTAT_CLOSED, EVTCHNSTAT_INTERDOMAIN, EVTCHNSTAT_IPI,
    EVTCHNSTAT_UNBOUND, EVTCHNSTAT_VIRQ, Send, VIRQ_DEBUG, VIRQ_TIMER,
};
use guest_abi::{DomId, Errno};
use test_guests::{check, check_eq, cpu, events, guest};

guest!(main);

const SELF: u16 = DomId::SELF.raw();
const NOBODY: u16 = 0x7000;

fn error(errno: Errno) -> i64 {
    errno.to_rax().cast_signed()
}

fn main() {
    events::init();
    let ports = loopback();
    masks(ports);
    upcalls(ports);
    ipi_and_virq();
    errors();
    closing(ports);
}

/// Two ports of this domain, bound to each other.
fn loopback() -> (u32, u32) {
    let a = events::alloc_unbound(SELF, SELF).unwrap_or(0);
    check("alloc_unbound gives a port that is not 0", a != 0);
    check_eq("it is unbound", events::status(a).map(|s| s.status), Ok(EVTCHNSTAT_UNBOUND));
    check_eq("sending on an unbound port is quiet", events::send(a), 0);
    let b = events::bind_interdomain(SELF, a).unwrap_or(0);
    check("bind_interdomain gives another port", b != 0 && b != a);
    let status = events::status(b);
    check_eq("the new port is interdomain", status.map(|s| s.status), Ok(EVTCHNSTAT_INTERDOMAIN));
    check_eq("and names its peer", status.map(|s| s.second), Ok(a));
    check_eq("the old port is interdomain too", events::status(a).map(|s| s.second), Ok(b));
    check("binding makes the new port pending at once", events::is_pending(b));
    check("and not the old one", !events::is_pending(a));
    events::clear_all();
    check_eq("send", events::send(b), 0);
    check("makes the peer pending", events::is_pending(a) && !events::is_pending(b));
    events::clear_all();
    (a, b)
}

fn masks((a, b): (u32, u32)) {
    let word = 1 << (a / 64);
    events::set_masked(a, false);
    events::send(b);
    let announced = (events::pending_sel().load(core::sync::atomic::Ordering::SeqCst) & word, upcall());
    check_eq("an unmasked event sets its selector bit and the upcall", announced, (word, 1));
    events::clear_all();

    events::set_masked(a, true);
    events::send(b);
    let announced = events::pending_sel().load(core::sync::atomic::Ordering::SeqCst) & word;
    check_eq("a masked event is not announced", (events::is_pending(a), announced, upcall()), (true, 0, 0));
    check_eq("unmask", events::unmask(a), 0);
    check("clears the mask", !events::is_masked(a));
    let announced = (events::pending_sel().load(core::sync::atomic::Ordering::SeqCst) & word, upcall());
    check_eq("and announces what is pending", announced, (word, 1));
    events::clear_all();

    events::set_masked(a, true);
    check_eq("unmask with nothing pending", events::unmask(a), 0);
    check_eq("announces nothing", (events::is_masked(a), upcall()), (false, 0));
}

fn upcall() -> u8 {
    events::upcall_pending().load(core::sync::atomic::Ordering::SeqCst)
}

fn upcalls((a, b): (u32, u32)) {
    let before = events::upcalls();
    events::set_masked(a, false);
    events::send(b);
    check_eq("no upcall comes while interrupts are off", events::upcalls(), before);
    events::open();
    check_eq("one comes when they are on", events::upcalls(), before + 1);
    events::open();
    check_eq("and only one", events::upcalls(), before + 1);
    events::clear_all();
    events::send(b);
    events::clear_all();
    events::open();
    check_eq("none comes for an event that was taken with interrupts off", events::upcalls(), before + 1);
    cpu::enable_interrupts();
    events::send(b);
    events::clear_all();
    events::send(b);
    cpu::disable_interrupts();
    check_eq("each event brings an upcall before send returns", events::upcalls(), before + 3);
    events::clear_all();
    events::send(b);
    cpu::wait();
    check_eq("HLT with an upcall pending does not sleep", events::upcalls(), before + 4);
    events::clear_all();
}

fn ipi_and_virq() {
    let ipi = events::bind_ipi(0).unwrap_or(0);
    check_eq("bind_ipi", events::status(ipi).map(|s| (s.status, s.vcpu)), Ok((EVTCHNSTAT_IPI, 0)));
    check_eq("send on it", events::send(ipi), 0);
    check("makes itself pending", events::is_pending(ipi));
    let virq = events::bind_virq(VIRQ_DEBUG, 0).unwrap_or(0);
    let status = events::status(virq).map(|s| (s.status, s.first));
    check_eq("bind_virq", status, Ok((EVTCHNSTAT_VIRQ, VIRQ_DEBUG)));
    check_eq("a VIRQ is bound once", events::bind_virq(VIRQ_DEBUG, 0), Err(error(Errno::EEXIST)));
    check_eq("send on a VIRQ's port", events::send(virq), error(Errno::EINVAL));
    let mut moved = BindVcpu { port: ipi, vcpu: 0 };
    check_eq("an IPI stays on its vCPU", events::op(EVTCHNOP_BIND_VCPU, &mut moved), error(Errno::EINVAL));
    check_eq("close of both", (events::close(ipi), events::close(virq)), (0, 0));
    check_eq("a closed VIRQ can be bound again", events::bind_virq(VIRQ_DEBUG, 0).map(events::close), Ok(0));
    events::clear_all();
}

fn errors() {
    let (inval, noent, srch) = (error(Errno::EINVAL), error(Errno::ENOENT), error(Errno::ESRCH));
    for port in [0, 4095, 4096, 1 << 17, u32::MAX] {
        check_eq("send on a port that is not in use", events::send(port), inval);
        check_eq("close of a port that is not in use", events::close(port), inval);
    }
    check_eq("status of a port out of range", events::status(u32::MAX).map(|s| s.status), Err(inval));
    check_eq("bind_ipi to a vCPU that is not there", events::bind_ipi(77), Err(noent));
    check_eq("bind_virq to a vCPU that is not there", events::bind_virq(VIRQ_TIMER, 77), Err(noent));
    check_eq("bind_virq of a VIRQ that is not there", events::bind_virq(24, 0), Err(inval));
    check_eq("bind_interdomain with a domain that is not there", events::bind_interdomain(NOBODY, 1), Err(srch));
    check_eq("bind_interdomain with port 0", events::bind_interdomain(SELF, 0), Err(inval));
    check_eq("bind_interdomain with a wild port", events::bind_interdomain(SELF, u32::MAX), Err(inval));
    let foreign = events::alloc_unbound(NOBODY, SELF);
    let refused = foreign == Err(srch) || foreign == Err(error(Errno::EPERM));
    check("alloc_unbound for a domain that is not there", refused);
    check_eq("an operation that is not there", events::op(99, &mut Send::default()), error(Errno::ENOSYS));
    check_eq("send is operation 4", EVTCHNOP_SEND, 4);
}

fn closing((a, b): (u32, u32)) {
    check_eq("bound ends cannot be bound again", events::bind_interdomain(SELF, a), Err(error(Errno::EINVAL)));
    check_eq("close one end", events::close(b), 0);
    check_eq("the other is unbound again", events::status(a).map(|s| s.status), Ok(EVTCHNSTAT_UNBOUND));
    let again = events::bind_interdomain(SELF, a);
    check("and can be bound again", again.is_ok());
    check_eq("close both", (again.map(events::close), events::close(a)), (Ok(0), 0));
    check_eq("a closed port", events::status(a).map(|s| s.status), Ok(EVTCHNSTAT_CLOSED));
}
