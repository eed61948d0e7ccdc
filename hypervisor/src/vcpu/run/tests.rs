// SPDX-License-Identifier: MIT OR Apache-2.0
//! The vCPU loop and the scheduler, on scripted CPUs.

use guest_abi::hypercall::HYPERVISOR_SCHED_OP;
use guest_abi::sched as sched_abi;
use guest_abi::shared_info::{VCPU_PENDING_SEL, VCPU_UPCALL_PENDING};
use guest_abi::{EvtchnPort, VcpuId};

use super::*;
use crate::addr::Nanos;
use crate::backend::HostInterrupt;
use crate::domain::ShutdownReason;
use crate::emul::lapic::Trigger;
use crate::sched::SLICE_NS;
use crate::testing::{DOM0, End, GUEST, Guest, Host, START, arg, ending};

const CALLBACK: u8 = 0xf3;

/// A guest that takes events by the callback vector, with its local APIC enabled.
fn guest() -> (Host, Guest) {
    let (host, guest) = Host::with_guest();
    guest.domain.set_callback_vector(Some(CALLBACK));
    guest.enable_apic(0);
    (host, guest)
}

fn nmi() -> Injection {
    Injection::Nmi
}

fn interrupt(vector: u8) -> Injection {
    Injection::Interrupt { vector }
}

/// What the scheduler does now on pCPU 0. Tests run vCPUs behind its back, so first each is put to sleep
/// or woken as it would be after a run.
fn next(host: Host) -> Next {
    let (hv, now) = (host.hv, host.hv.machine.tsc());
    for (_, domain) in hv.domains.iter() {
        domain.vcpus.iter().for_each(|vcpu| domain.seats.wake(vcpu.id));
    }
    let mut how = Stop::Ready;
    let mut ready = std::vec::Vec::new();
    while let Some((domain, vcpu)) = who(hv.sched.switch(0, now, Some(&|| how))) {
        let domain = hv.domains.by_index(domain).unwrap();
        how = stop(&domain, &domain.vcpus[vcpu], Outcome::Leave);
        if how == Stop::Ready || matches!(how, Stop::Asleep { until } if until <= now) {
            ready.push((domain.clone(), domain.vcpus[vcpu].id));
            how = Stop::Asleep { until: NEVER };
        }
    }
    for (domain, vcpu) in &ready {
        domain.seats.wake(*vcpu);
    }
    hv.sched.switch(0, now, None)
}

/// Domain and vCPU that run.
fn who(next: Next) -> Option<(usize, usize)> {
    match next {
        Next::Run { who, .. } => Some((who.domain, who.vcpu)),
        Next::Idle { .. } => None,
    }
}

/// Runs whoever is next for a slice, or idles once.
fn run_slice(host: Host) {
    let next = next(host);
    step(host.hv, 0, next);
}

// --- Delivery.

#[test]
fn an_event_is_announced_by_the_callback_vector() {
    let (_, guest) = guest();
    guest.raise(0);
    guest.run(0);
    assert_eq!(guest.cpu(0).delivered, [interrupt(CALLBACK)]);
    assert!(!guest.cpu(0).window);
}

#[test]
fn an_event_waits_for_interrupts_to_be_on() {
    let (_, guest) = guest();
    guest.cpu(0).set_interrupts(false);
    guest.raise(0);
    guest.run(0);
    assert!(guest.cpu(0).delivered.is_empty() && guest.cpu(0).window);
    guest.cpu(0).irets();
    guest.run(0);
    assert_eq!(guest.cpu(0).delivered, [interrupt(CALLBACK)]);
    assert!(!guest.cpu(0).window);
}

#[test]
fn an_event_waits_for_the_end_of_an_interrupt_shadow() {
    let (_, guest) = guest();
    guest.cpu(0).shadow = true;
    guest.raise(0);
    guest.cpu(0).then(|cpu, _| {
        assert!(cpu.window && cpu.delivered.is_empty());
        cpu.shadow = false;
        None
    });
    guest.run(0);
    assert_eq!(guest.cpu(0).vectors(), [CALLBACK]);
}

#[test]
fn one_upcall_announces_many_events_and_none_is_lost() {
    let (_, guest) = guest();
    let ports = [guest.raise(0), guest.raise(0), guest.raise(0)];
    guest.run(0);
    assert_eq!(guest.cpu(0).vectors(), [CALLBACK]);
    assert!(ports.iter().all(|port| guest.domain.events.is_pending(*port)));
}

/// The kernel looks at its events by itself: it clears the upcall and the selector.
fn take_announcement(guest: &Guest) {
    let place = guest.domain.events.vcpu_info(VcpuId::new(0)).unwrap();
    guest.host.hv.mem.write(place.mfn(), place.page_offset() + VCPU_UPCALL_PENDING, &[0]);
    guest.host.hv.mem.write(place.mfn(), place.page_offset() + VCPU_PENDING_SEL, &[0; 8]);
}

#[test]
fn events_that_the_kernel_took_with_interrupts_off_are_not_announced() {
    let (_, guest) = guest();
    guest.cpu(0).set_interrupts(false);
    guest.raise(0);
    guest.run(0);
    take_announcement(&guest);
    guest.cpu(0).irets();
    guest.run(0);
    assert!(guest.cpu(0).delivered.is_empty() && !guest.cpu(0).window);
    guest.raise(0);
    guest.run(0);
    assert_eq!(guest.cpu(0).vectors(), [CALLBACK], "the next one is");
}

#[test]
fn hlt_sleeps_over_events_that_the_kernel_took() {
    let (host, guest) = guest();
    guest.raise(0);
    take_announcement(&guest);
    guest.vcpu(0).take_attention();
    guest.code(&[0xf4]);
    guest.exit(Exit::Halt);
    assert_eq!(next(host), Next::Idle { until: NEVER });
}

#[test]
fn without_a_callback_vector_an_event_waits_until_there_is_one() {
    let (_, guest) = Host::with_guest();
    guest.raise(0);
    guest.run(0);
    assert!(guest.cpu(0).delivered.is_empty() && !guest.cpu(0).window);
    guest.domain.set_callback_vector(Some(CALLBACK));
    guest.run(0);
    assert_eq!(guest.cpu(0).vectors(), [CALLBACK]);
}

#[test]
fn all_that_is_pending_is_delivered_one_by_one() {
    let (_, guest) = guest();
    guest.raise(0);
    for vector in [0x40, 0x90, 0x60] {
        guest.vcpu(0).lapic.post(vector, Trigger::Edge);
    }
    guest.vcpu(0).lapic.post_nmi();
    // Each handler ends at once; nothing but windows makes the guest exit. The APIC's interrupts are
    // not ended, so the lower ones stay behind the highest.
    (0..4).for_each(|_| guest.cpu(0).irets());
    guest.run(0);
    assert_eq!(guest.cpu(0).delivered, [nmi(), interrupt(CALLBACK), interrupt(0x90)]);
    assert!(guest.cpu(0).is_done() && !guest.cpu(0).window);
    for vector in [0x60, 0x40] {
        assert!(guest.wrmsr(0x80b, 0));
        guest.cpu(0).set_interrupts(true);
        guest.run(0);
        assert_eq!(guest.cpu(0).vectors().last(), Some(&vector));
    }
}

#[test]
fn an_event_that_arrives_with_the_window_is_delivered_in_its_place() {
    let (_, guest) = guest();
    guest.cpu(0).set_interrupts(false);
    guest.vcpu(0).lapic.post(0x40, Trigger::Edge);
    guest.run(0);
    guest.raise(0);
    guest.cpu(0).irets();
    guest.cpu(0).irets();
    guest.run(0);
    assert_eq!(guest.cpu(0).vectors(), [CALLBACK, 0x40]);
}

#[test]
fn a_raised_task_priority_holds_back_interrupts_and_not_events() {
    let (_, guest) = guest();
    guest.state(0).lapic.set_cr8(0xf).unwrap();
    guest.vcpu(0).lapic.post(0x90, Trigger::Edge);
    guest.raise(0);
    guest.cpu(0).irets();
    guest.run(0);
    assert_eq!(guest.cpu(0).vectors(), [CALLBACK]);
    let cr8 = Exit::ControlWrite { register: crate::exit::ControlRegister::Cr8, value: Some(0) };
    guest.cpu(0).next_rip = Some(0x8003);
    guest.cpu(0).exits(cr8);
    guest.run(0);
    assert_eq!(guest.cpu(0).vectors(), [CALLBACK, 0x90]);
}

#[test]
fn an_exception_comes_before_an_interrupt_that_became_pending_meanwhile() {
    let (host, guest) = guest();
    let (domain, port) = (guest.domain.clone(), guest.domain.events.bind_ipi(VcpuId::new(0)).unwrap());
    guest.cpu(0).then(move |_, regs| {
        regs.rcx = 0xdead;
        domain.events.send(port, &*domain, &host.hv.domains).unwrap();
        Some(Exit::Rdmsr)
    });
    guest.cpu(0).irets();
    guest.run(0);
    let fault = Injection::Exception { vector: 13, error_code: Some(0) };
    assert_eq!(guest.cpu(0).delivered, [fault, interrupt(CALLBACK)]);
}

#[test]
fn a_window_that_nobody_needs_any_more_is_closed() {
    let (_, guest) = guest();
    guest.cpu(0).set_interrupts(false);
    guest.vcpu(0).lapic.post(0x40, Trigger::Edge);
    guest.run(0);
    assert!(guest.cpu(0).window);
    guest.state(0).lapic.set_cr8(0xf).unwrap();
    guest.run(0);
    assert!(!guest.cpu(0).window);
}

// --- Sleeping and waking.

#[test]
fn a_halted_vcpu_sleeps_until_an_event() {
    let (host, guest) = guest();
    guest.code(&[0xf4]);
    guest.cpu(0).exits(Exit::Halt);
    guest.run(0);
    assert_eq!(guest.vcpu(0).run_state(), RunState::Blocked);
    assert_eq!(guest.moved(), 1);
    assert_eq!(next(host), Next::Idle { until: NEVER });
    guest.raise(0);
    assert_eq!(who(next(host)), Some((1, 0)));
    guest.run(0);
    assert_eq!(guest.cpu(0).vectors(), [CALLBACK]);
    assert_eq!(guest.vcpu(0).run_state(), RunState::Runnable);
}

#[test]
fn an_event_just_before_hlt_is_not_slept_over() {
    let (_, guest) = guest();
    guest.code(&[0xf4]);
    // STI; HLT: the event comes in the shadow.
    guest.cpu(0).shadow = true;
    guest.raise(0);
    guest.cpu(0).exits(Exit::Halt);
    guest.run(0);
    assert_eq!(guest.cpu(0).vectors(), [CALLBACK]);
    assert_eq!(guest.moved(), 1);
}

#[test]
fn an_interrupt_that_is_still_queued_is_not_slept_over() {
    let (_, guest) = guest();
    guest.code(&[0xf4]);
    // Injected, and not taken before the exit.
    guest.cpu(0).queued = Some(Injection::Interrupt { vector: CALLBACK });
    guest.vcpu(0).take_attention();
    assert_eq!(guest.exit(Exit::Halt), Outcome::Resume);
    assert_eq!(guest.vcpu(0).run_state(), RunState::Runnable);
}

#[test]
fn an_event_between_the_check_and_the_sleep_wakes() {
    let (host, guest) = guest();
    // What another CPU does at the moment at which this one has decided to sleep.
    guest.state(0).sleep(guest.vcpu(0));
    guest.vcpu(0).set_run_state(RunState::Runnable);
    guest.raise(0);
    guest.vcpu(0).set_run_state(RunState::Blocked);
    assert!(matches!(next(host), Next::Run { .. }));
}

#[test]
fn a_timer_in_the_past_wakes_at_once() {
    let (host, guest) = guest();
    guest.domain.events.bind_virq(0, VcpuId::new(0), crate::evtchn::GlobalVirqs::Refused).unwrap();
    assert_eq!(guest.call(guest_abi::hypercall::HYPERVISOR_SET_TIMER_OP, [1, 0, 0]), 0);
    host.advance(10);
    guest.run(0);
    assert_eq!(guest.cpu(0).vectors(), [CALLBACK]);
    assert_eq!(guest.state(0).timer, NEVER, "it fires once");
    guest.cpu(0).set_interrupts(true);
    // Time passes between the entry and HLT.
    assert_eq!(guest.call(guest_abi::hypercall::HYPERVISOR_SET_TIMER_OP, [50, 0, 0]), 0);
    guest.code(&[0xf4]);
    guest.cpu(0).then(move |_, _| {
        host.advance(50);
        Some(Exit::Halt)
    });
    guest.run(0);
    assert_eq!(guest.vcpu(0).run_state(), RunState::Blocked);
    assert!(matches!(next(host), Next::Run { .. }));
}

#[test]
fn an_idle_machine_sleeps_until_the_nearest_timer() {
    let (host, guest) = guest();
    let other = Guest::new(host, 2, GUEST, 1);
    for (guest, nanos) in [(&guest, 700), (&other, 500)] {
        guest.state(0).timer = host.hv.clock.when(Nanos::new(nanos));
        guest.code(&[0xf4]);
        guest.cpu(0).exits(Exit::Halt);
        guest.run(0);
    }
    run_slice(host);
    assert_eq!(*host.machine.idles.lock().unwrap(), [Ticks::new(START + 500)]);
    run_slice(host);
    assert_eq!((other.cpu(0).entries, guest.cpu(0).entries), (2, 1));
}

#[test]
fn the_entry_deadline_is_the_earliest_of_timers_and_slice() {
    let (host, guest) = guest();
    let at = |nanos| host.hv.clock.when(Nanos::new(nanos));
    guest.run_until(0, at(900));
    assert_eq!(guest.cpu(0).deadline, at(900));
    guest.state(0).timer = at(800);
    guest.run_until(0, at(900));
    assert_eq!(guest.cpu(0).deadline, at(800));
}

#[test]
fn a_slice_ends_in_its_time_also_if_the_timers_interrupt_is_lost() {
    let (host, guest) = guest();
    let (machine, end) = (host.machine, host.hv.clock.when(Nanos::new(900)));
    guest.cpu(0).next_rip = Some(0x8002);
    guest.cpu(0).then(move |_, _| {
        machine.set_tsc(end);
        Some(Exit::Cpuid)
    });
    guest.cpu(0).exits(Exit::Cpuid);
    guest.run_until(0, end);
    assert_eq!(guest.cpu(0).entries, 1);
}

/// Polls `ports` with a time-out in system time, in the loop.
fn poll(guest: &Guest, ports: &[EvtchnPort], timeout: u64) {
    for (n, port) in (0..).zip(ports) {
        guest.put(arg(1) + n * 4, &port.raw());
    }
    let nr_ports = u32::try_from(ports.len()).unwrap();
    guest.put(arg(0), &sched_abi::Poll { ports: arg(1), nr_ports, timeout });
    guest.load_call(HYPERVISOR_SCHED_OP, [u64::from(sched_abi::SCHEDOP_POLL), arg(0), 0]);
    guest.cpu(0).exits(Exit::Hypercall);
    guest.run(0);
    assert_eq!((guest.regs().rax, guest.moved()), (0, 3));
}

#[test]
fn a_poll_ends_by_an_event_on_a_masked_port() {
    let (host, guest) = guest();
    let port = guest.domain.events.bind_ipi(VcpuId::new(0)).unwrap();
    let mask = crate::addr::Hpa::new(guest.domain.shared_info.base().raw() + 2560);
    host.hv.mem.word(mask.mfn(), 2560 / 8).store(u64::MAX, Ordering::SeqCst);
    poll(&guest, &[port], 0);
    assert_eq!(next(host), Next::Idle { until: NEVER });
    guest.domain.events.send(port, &*guest.domain, &host.hv.domains).unwrap();
    assert!(matches!(next(host), Next::Run { .. }));
    guest.run(0);
    assert!(guest.cpu(0).delivered.is_empty(), "a masked port interrupts nobody");
}

#[test]
fn a_poll_of_a_pending_port_does_not_sleep() {
    let (host, guest) = guest();
    guest.domain.set_callback_vector(None);
    let port = guest.raise(0);
    guest.run(0);
    poll(&guest, &[port], 0);
    assert_eq!(guest.vcpu(0).run_state(), RunState::Runnable);
    assert!(matches!(next(host), Next::Run { .. }));
}

#[test]
fn a_poll_times_out_once() {
    let (host, guest) = guest();
    let port = guest.domain.events.bind_ipi(VcpuId::new(0)).unwrap();
    poll(&guest, &[port], 500);
    assert_eq!(next(host), Next::Idle { until: Ticks::new(START + 500) });
    host.advance(500);
    assert!(matches!(next(host), Next::Run { .. }));
    guest.run(0);
    let state = guest.state(0);
    assert_eq!((state.is_polling, state.poll_timeout), (false, NEVER));
    drop(state);
    // Nobody polls any more: a masked event is no news.
    host.hv.mem.word(guest.domain.shared_info, 2560 / 8).store(u64::MAX, Ordering::SeqCst);
    guest.domain.events.send(port, &*guest.domain, &host.hv.domains).unwrap();
    assert!(!guest.vcpu(0).has_attention());
}

#[test]
fn a_poll_with_interrupts_off_sleeps_although_an_upcall_waits() {
    let (host, guest) = guest();
    guest.cpu(0).set_interrupts(false);
    guest.raise(0);
    guest.run(0);
    let port = guest.domain.events.bind_ipi(VcpuId::new(0)).unwrap();
    poll(&guest, &[port], 0);
    assert_eq!(next(host), Next::Idle { until: NEVER });
    guest.domain.events.send(port, &*guest.domain, &host.hv.domains).unwrap();
    assert!(matches!(next(host), Next::Run { .. }));
}

#[test]
fn block_returns_at_once_when_an_event_waits() {
    let (_, guest) = guest();
    guest.raise(0);
    assert_eq!(guest.call(HYPERVISOR_SCHED_OP, [u64::from(sched_abi::SCHEDOP_BLOCK), 0, 0]), 0);
    assert_eq!(guest.vcpu(0).run_state(), RunState::Runnable);
    guest.run(0);
    assert_eq!(guest.call(HYPERVISOR_SCHED_OP, [u64::from(sched_abi::SCHEDOP_BLOCK), 0, 0]), 0);
    assert_eq!(guest.vcpu(0).run_state(), RunState::Blocked);
}

#[test]
fn yielding_lets_the_other_run_first() {
    let (host, guest) = guest();
    let other = Guest::new(host, 2, GUEST, 1);
    guest.load_call(HYPERVISOR_SCHED_OP, [u64::from(sched_abi::SCHEDOP_YIELD), 0, 0]);
    guest.cpu(0).exits(Exit::Hypercall);
    let next = step(host.hv, 0, next(host));
    assert_eq!((guest.moved(), guest.regs().rax), (3, 0));
    assert_eq!(who(next), Some((2, 0)), "although it has run no longer");
    step(host.hv, 0, next);
    assert_eq!((guest.cpu(0).entries, other.cpu(0).entries), (1, 1));
}

// --- Sharing the CPU.

/// How long one runs for whom nobody waits.
const ALONE: u64 = 10 * SLICE_NS;

#[test]
fn a_slice_ends_only_if_somebody_waits() {
    let (host, guest) = guest();
    run_slice(host);
    assert_eq!(guest.cpu(0).deadline, Ticks::new(START + ALONE));
    let _other = Guest::new(host, 2, GUEST, 1);
    step(host.hv, 0, step(host.hv, 0, next(host)));
    assert_eq!(guest.cpu(0).deadline, Ticks::new(START + SLICE_NS));
}

#[test]
fn a_vcpu_whose_slice_is_over_leaves_at_the_deadline() {
    let (host, guest) = guest();
    let slice_end = Ticks::new(START + 100);
    for _ in 0..2 {
        guest.cpu(0).exits(Exit::Deadline);
    }
    host.machine.set_tsc(slice_end);
    guest.run_until(0, slice_end);
    assert_eq!(guest.cpu(0).entries, 1);
}

#[test]
fn waking_somebody_makes_the_waker_leave_at_its_exit() {
    let (host, guest) = guest();
    let other = Guest::new(host, 2, GUEST, 1);
    other.code(&[0xf4]);
    other.cpu(0).exits(Exit::Halt);
    other.run(0);
    guest.cpu(0).next_rip = Some(0x8002);
    let (machine, domain) = (host.machine, other.domain.clone());
    guest.cpu(0).then(move |_, _| {
        machine.advance(SLICE_NS / 2);
        domain.kick(&domain.vcpus[0]);
        Some(Exit::CacheFlush)
    });
    guest.cpu(0).exits(Exit::CacheFlush);
    let next = next(host);
    assert_eq!(who(next), Some((1, 0)));
    let next = step(host.hv, 0, next);
    assert_eq!((guest.cpu(0).entries, who(next)), (1, Some((2, 0))));
}

#[test]
fn a_vcpu_that_always_wakes_at_once_starves_nobody() {
    let (host, guest) = guest();
    let other = Guest::new(host, 2, GUEST, 1);
    let port = guest.domain.events.bind_ipi(VcpuId::new(0)).unwrap();
    guest.put(arg(1), &port.raw());
    // It polls with a time-out that has passed, for ever.
    guest.put(arg(0), &sched_abi::Poll { ports: arg(1), nr_ports: 1, timeout: 1 });
    host.advance(10);
    for _ in 0..100 {
        guest.load_call(HYPERVISOR_SCHED_OP, [u64::from(sched_abi::SCHEDOP_POLL), arg(0), 0]);
        let machine = host.machine;
        guest.cpu(0).then(move |_, _| {
            machine.advance(SLICE_NS / 20);
            Some(Exit::Hypercall)
        });
        run_slice(host);
    }
    assert!(other.cpu(0).entries >= 4, "{} of 100 slices", other.cpu(0).entries);
}

#[test]
fn the_timer_of_a_domain_that_has_ended_ends_no_slice() {
    let (host, guest) = guest();
    let other = Guest::new(host, 2, GUEST, 1);
    other.state(0).timer = host.hv.clock.when(Nanos::new(500));
    other.code(&[0xf4]);
    other.cpu(0).exits(Exit::Halt);
    other.run(0);
    run_slice(host);
    assert_eq!(guest.cpu(0).deadline, Ticks::new(START + 500));
    other.domain.shut_down(ShutdownReason::Crash);
    run_slice(host);
    assert_eq!(guest.cpu(0).deadline, Ticks::new(START + ALONE));
}

// --- The host's interrupts.

#[test]
fn a_device_interrupt_reaches_dom0_under_its_own_vector_whoever_runs() {
    let host = Host::new();
    let dom0 = Guest::new(host, 0, DOM0, 1);
    let guest = Guest::new(host, 1, GUEST, 1);
    dom0.enable_apic(0);
    dom0.code(&[0xf4]);
    dom0.cpu(0).exits(Exit::Halt);
    dom0.run(0);
    let machine = host.machine;
    guest.cpu(0).then(move |_, _| {
        machine.advance(SLICE_NS / 2);
        Some(Exit::ExternalInterrupt { vector: Some(0x55) })
    });
    guest.cpu(0).exits(Exit::Deadline);
    let next = step(host.hv, 0, next(host));
    assert_eq!((guest.cpu(0).entries, who(next)), (1, Some((0, 0))), "dom0 runs first");
    assert_eq!(host.machine.ends.load(Ordering::SeqCst), 1);
    dom0.run(0);
    assert_eq!(dom0.cpu(0).vectors(), [0x55]);
}

#[test]
fn all_interrupts_that_wait_are_taken_while_idle() {
    let host = Host::new();
    let dom0 = Guest::new(host, 0, DOM0, 1);
    dom0.enable_apic(0);
    dom0.vcpu(0).set_run_state(RunState::Blocked);
    for interrupt in [HostInterrupt::Spurious, HostInterrupt::Device { vector: 0x31 }, HostInterrupt::Timer] {
        host.machine.interrupt(interrupt);
    }
    run_slice(host);
    assert!(host.machine.take_interrupt_for_test().is_none());
    run_slice(host);
    assert_eq!(dom0.cpu(0).vectors(), [0x31]);
}

#[test]
fn console_input_is_kept_for_dom0_and_announced() {
    let (host, dom0) = Host::with_dom0();
    let globals = crate::evtchn::GlobalVirqs::Handler;
    let port = dom0.domain.events.bind_virq(2, VcpuId::new(0), globals).unwrap();
    host.machine.type_in(&[b'x'; 100]);
    host.hv.host_interrupt(HostInterrupt::Console);
    assert!(dom0.domain.events.is_pending(port));
    let mut buffer = [0; 200];
    assert_eq!(host.hv.input.take(&mut buffer), 100);
}

// --- Starting and ending.

#[test]
fn init_and_a_startup_ipi_start_a_second_vcpu() {
    let host = Host::new();
    let guest = Guest::new(host, 1, GUEST, 2);
    guest.enable_apic(0);
    assert_eq!(who(next(host)), Some((1, 0)));
    // A start-up IPI, INIT, a start-up IPI, as another CPU's kernel sends them.
    guest.state(1).regs.rbx = 7;
    assert!(guest.wrmsr(0x830, 1 << 32 | 0x4500));
    run_slice(host);
    run_slice(host);
    assert_eq!((guest.vcpu(1).has_attention(), guest.vcpu(1).run_state()), (false, RunState::Down));
    assert!(guest.wrmsr(0x830, 1 << 32 | 0x4609));
    step(host.hv, 0, step(host.hv, 0, next(host)));
    assert_eq!((guest.vcpu(1).run_state(), guest.cpu(1).entries), (RunState::Runnable, 1));
    assert_eq!(guest.cpu(1).state, CpuState::startup_ipi(9));
    assert_eq!(guest.state(1).regs.rbx, 0);
    // It runs: another start-up IPI means nothing.
    assert!(guest.wrmsr(0x830, 1 << 32 | 0x4611));
    guest.run(1);
    assert_eq!(guest.cpu(1).state, CpuState::startup_ipi(9));
}

#[test]
fn init_stops_a_running_vcpu_which_then_starts_again() {
    let host = Host::new();
    let guest = Guest::new(host, 1, GUEST, 2);
    guest.vcpu(1).set_run_state(RunState::Runnable);
    guest.vcpu(1).lapic.post_init();
    guest.domain.kick(guest.vcpu(1));
    guest.run(1);
    assert_eq!((guest.vcpu(1).run_state(), guest.cpu(1).entries), (RunState::Down, 0));
    guest.vcpu(1).lapic.post_sipi(1);
    guest.domain.kick(guest.vcpu(1));
    guest.run(1);
    assert_eq!((guest.vcpu(1).run_state(), guest.cpu(1).entries), (RunState::Runnable, 1));
    // Both at once.
    guest.vcpu(1).lapic.post_init();
    guest.vcpu(1).lapic.post_sipi(2);
    guest.domain.kick(guest.vcpu(1));
    guest.run(1);
    assert_eq!(guest.vcpu(1).run_state(), RunState::Down);
    guest.run(1);
    assert_eq!(guest.cpu(1).state, CpuState::startup_ipi(2));
}

#[test]
fn init_of_the_last_vcpu_powers_the_domain_off() {
    let (host, guest) = guest();
    guest.vcpu(0).lapic.post_init();
    guest.domain.kick(guest.vcpu(0));
    guest.run(0);
    assert_eq!(guest.domain.shutdown_reason(), Some(ShutdownReason::Poweroff));
    assert_eq!(ending(|| host.hv.after_slice()), End::PowerOff(0));
}

#[test]
fn attention_wakes_no_vcpu_that_is_down_and_is_not_asked_for_again() {
    let host = Host::new();
    let guest = Guest::new(host, 1, GUEST, 2);
    guest.domain.set_callback_vector(Some(CALLBACK));
    guest.vcpu(0).set_run_state(RunState::Blocked);
    guest.raise(1);
    run_slice(host);
    assert_eq!((guest.cpu(1).entries, guest.vcpu(1).run_state()), (0, RunState::Down));
    assert_eq!(next(host), Next::Idle { until: NEVER });
}

#[test]
fn halting_with_interrupts_off_takes_a_vcpu_down_and_with_the_last_the_domain() {
    let host = Host::new();
    let guest = Guest::new(host, 1, GUEST, 2);
    guest.vcpu(1).set_run_state(RunState::Runnable);
    guest.code(&[0xf4]);
    guest.cpu(0).set_interrupts(false);
    guest.cpu(0).exits(Exit::Halt);
    guest.run(0);
    assert!(guest.domain.is_running());
    guest.cpu(1).set_interrupts(false);
    guest.cpu(1).next_rip = Some(1);
    guest.cpu(1).exits(Exit::Halt);
    guest.run(1);
    assert_eq!(guest.domain.shutdown_reason(), Some(ShutdownReason::Poweroff));
    assert_eq!(next(host), Next::Idle { until: NEVER });
}

#[test]
fn a_vcpu_that_went_down_starts_by_init_and_not_by_a_startup_ipi_alone() {
    let host = Host::new();
    let guest = Guest::new(host, 1, GUEST, 2);
    guest.vcpu(1).lapic.post_init();
    guest.vcpu(1).lapic.post_sipi(3);
    guest.domain.kick(guest.vcpu(1));
    guest.cpu(1).exits(Exit::Halt);
    guest.cpu(1).next_rip = Some(1);
    guest.run(1);
    assert_eq!((guest.vcpu(1).run_state(), guest.cpu(1).entries), (RunState::Down, 1));
    guest.vcpu(1).lapic.post_sipi(4);
    guest.domain.kick(guest.vcpu(1));
    guest.run(1);
    assert_eq!((guest.vcpu(1).run_state(), guest.cpu(1).entries), (RunState::Down, 1));
    guest.vcpu(1).lapic.post_init();
    guest.vcpu(1).lapic.post_sipi(5);
    guest.domain.kick(guest.vcpu(1));
    guest.run(1);
    assert_eq!(guest.cpu(1).state.segments[crate::backend::SegmentName::Cs].base, 0x5000);
}

#[test]
fn an_nmi_keeps_a_vcpu_with_interrupts_off_from_going_down() {
    let (_, guest) = guest();
    guest.code(&[0xf4]);
    guest.cpu(0).set_interrupts(false);
    let domain = guest.domain.clone();
    guest.cpu(0).then(move |_, _| {
        domain.vcpus[0].lapic.post_nmi();
        domain.kick(&domain.vcpus[0]);
        Some(Exit::Halt)
    });
    guest.run(0);
    assert_eq!(guest.cpu(0).delivered, [nmi()]);
    assert!(guest.domain.is_running());
}

#[test]
fn each_shutdown_reason_ends_the_machine_with_its_status() {
    let cases = [
        (sched_abi::SHUTDOWN_POWEROFF, End::PowerOff(0)),
        (sched_abi::SHUTDOWN_REBOOT, End::PowerOff(1)),
        (sched_abi::SHUTDOWN_SUSPEND, End::PowerOff(2)),
        (sched_abi::SHUTDOWN_CRASH, End::PowerOff(3)),
        (sched_abi::SHUTDOWN_WATCHDOG, End::PowerOff(3)),
        (sched_abi::SHUTDOWN_SOFT_RESET, End::PowerOff(3)),
    ];
    for (reason, end) in cases {
        let (host, guest) = guest();
        guest.put(arg(0), &sched_abi::Shutdown { reason });
        guest.load_call(HYPERVISOR_SCHED_OP, [u64::from(sched_abi::SCHEDOP_SHUTDOWN), arg(0), 0]);
        guest.cpu(0).exits(Exit::Hypercall);
        guest.cpu(0).exits(Exit::Deadline);
        guest.run(0);
        assert_eq!(guest.cpu(0).entries, 1, "a domain that has ended does not run");
        assert_eq!(ending(|| host.hv.after_slice()), end, "reason {reason}");
    }
}

#[test]
fn dom0s_reboot_resets_the_machine() {
    let (host, dom0) = Host::with_dom0();
    dom0.domain.shut_down(ShutdownReason::Reboot);
    assert_eq!(ending(|| host.hv.after_slice()), End::Reset);
}

#[test]
fn a_domain_that_another_cpu_ends_is_left_at_the_next_exit() {
    let (host, guest) = guest();
    let domain = guest.domain.clone();
    guest.cpu(0).then(move |_, _| {
        domain.shut_down(ShutdownReason::Crash);
        assert!(host.hv.sched.request_of(0).is_set(), "the scheduler is asked for, on one CPU or the other");
        Some(Exit::Deadline)
    });
    guest.cpu(0).exits(Exit::Deadline);
    guest.run(0);
    assert_eq!(guest.cpu(0).entries, 1);
}

#[test]
fn a_triple_fault_is_a_crash() {
    let (host, guest) = guest();
    guest.cpu(0).exits(Exit::TripleFault);
    guest.run(0);
    assert_eq!(guest.domain.shutdown_reason(), Some(ShutdownReason::Crash));
    assert_eq!(ending(|| host.hv.after_slice()), End::PowerOff(3));
}

#[test]
fn the_machine_goes_on_while_its_first_domain_does() {
    let (host, _guest) = guest();
    let other = Guest::new(host, 2, GUEST, 1);
    other.domain.shut_down(ShutdownReason::Crash);
    host.hv.after_slice();
    assert_eq!(who(next(host)), Some((1, 0)));
}

#[test]
fn the_first_reason_counts() {
    let (_, guest) = guest();
    guest.domain.shut_down(ShutdownReason::Reboot);
    guest.domain.shut_down(ShutdownReason::Crash);
    assert_eq!(guest.domain.shutdown_reason(), Some(ShutdownReason::Reboot));
}

/// Runs a vCPU that wakes another domain's at an exit of this kind, with two more exits behind, the last at the end of
/// the grace. Returns how often it was entered.
fn entries_when_it_wakes_another(exit: Exit) -> usize {
    let (host, guest) = guest();
    let other = Guest::new(host, 2, GUEST, 1);
    let (hv, now) = (host.hv, host.hv.machine.tsc());
    while who(hv.sched.switch(0, now, Some(&|| Stop::Asleep { until: NEVER }))).is_some() {}
    guest.domain.seats.wake(VcpuId::new(0));
    assert_eq!(who(hv.sched.switch(0, now, None)), Some((1, 0)));
    let domain = other.domain.clone();
    guest.load_call(guest_abi::hypercall::HYPERVISOR_XEN_VERSION, [0; 3]);
    guest.cpu(0).next_rip = Some(0x8002);
    guest.cpu(0).then(move |_, _| {
        domain.seats.wake(VcpuId::new(0));
        Some(exit)
    });
    guest.cpu(0).exits(Exit::Cpuid);
    let machine = host.machine;
    guest.cpu(0).then(move |_, _| {
        machine.advance(SLICE_NS / crate::sched::GRACE);
        Some(Exit::Deadline)
    });
    guest.cpu(0).exits(Exit::Deadline);
    guest.run(0);
    guest.cpu(0).entries
}

#[test]
fn who_sends_another_domain_an_event_goes_on_for_a_moment() {
    assert_eq!(entries_when_it_wakes_another(Exit::Hypercall), 3);
}

#[test]
fn an_interrupt_for_another_domain_is_not_kept_waiting() {
    assert_eq!(entries_when_it_wakes_another(Exit::ExternalInterrupt { vector: Some(0xf0) }), 1);
}

/// Runs the first vCPU of a domain, which wakes the other domain's with a hypercall, takes `busy_ns` for what comes
/// then, and sleeps by HLT or by SCHEDOP_block. Returns how often it was entered. Everybody sleeps before and afterwards.
fn entries_of_a_turn(host: Host, guest: &Guest, other: &Guest, busy_ns: u64, sleep: Exit) -> usize {
    let (hv, machine) = (host.hv, host.machine);
    while who(hv.sched.switch(0, hv.machine.tsc(), Some(&|| Stop::Asleep { until: NEVER }))).is_some() {}
    guest.domain.seats.wake(VcpuId::new(0));
    assert_eq!(who(hv.sched.switch(0, hv.machine.tsc(), None)), Some((1, 0)));
    guest.load_call(guest_abi::hypercall::HYPERVISOR_XEN_VERSION, [0; 3]);
    guest.cpu(0).next_rip = Some(0x8002);
    guest.cpu(0).state.rflags |= RFLAGS_IF;
    let domain = other.domain.clone();
    guest.cpu(0).then(move |_, _| {
        domain.seats.wake(VcpuId::new(0));
        Some(Exit::Hypercall)
    });
    guest.cpu(0).then(move |_, regs| {
        machine.advance(busy_ns);
        (regs.rax, regs.rdi) = (u64::from(HYPERVISOR_SCHED_OP), u64::from(sched_abi::SCHEDOP_BLOCK));
        Some(sleep)
    });
    let before = guest.cpu(0).entries;
    guest.run(0);
    let entries = guest.cpu(0).entries - before;
    if entries == 1 {
        guest.run(0);
    }
    entries
}

#[test]
fn who_sleeps_at_once_after_events_leaves_with_the_next_ones() {
    let (host, guest) = guest();
    let other = Guest::new(host, 2, GUEST, 1);
    for sleep in [Exit::Halt, Exit::Hypercall] {
        let turns: Vec<_> = (0..6).map(|_| entries_of_a_turn(host, &guest, &other, 1000, sleep)).collect();
        assert_eq!(turns, [2, 2, 2, 2, 1, 2], "the sixth comes after a return to nothing");
        assert_eq!(entries_of_a_turn(host, &guest, &other, 8000, sleep), 2);
    }
}

#[test]
fn who_has_more_to_do_after_an_event_stays() {
    let (host, guest) = guest();
    let other = Guest::new(host, 2, GUEST, 1);
    let turns: Vec<_> = (0..8).map(|_| entries_of_a_turn(host, &guest, &other, 8000, Exit::Halt)).collect();
    assert_eq!(turns, [2; 8]);
}

// --- The p2m, and what it costs.

#[test]
fn a_vcpu_learns_of_each_change_of_its_p2m_once() {
    let (host, guest) = guest();
    guest.run(0);
    guest.run(0);
    let root = guest.domain.tlb.root();
    let first = guest.domain.tlb.generation();
    assert_eq!(guest.cpu(0).p2m, [(root, first)]);
    let token = guest.domain.p2m.lock().depopulate(guest_abi::Gfn::new(100), crate::addr::Order::PAGE).unwrap();
    token.release(&guest.domain.tlb.flush(host.hv.machine, crate::p2m::FlushSite::Balloon));
    guest.run(0);
    assert_eq!(guest.cpu(0).p2m, [(root, first), (root, first + 1)]);
}

#[test]
fn exits_and_ticks_are_counted_by_reason() {
    let (host, guest) = guest();
    guest.cpu(0).next_rip = Some(0x8002);
    for _ in 0..3 {
        let machine = host.machine;
        guest.cpu(0).then(move |_, _| {
            machine.advance(1000);
            Some(Exit::Cpuid)
        });
    }
    guest.run(0);
    let counters = &guest.vcpu(0).counters;
    assert_eq!(counters.exits[counters::reason(&Exit::Cpuid)].get(), 3);
    assert_eq!(counters.totals(), (4, 0), "time in the guest is not the hypervisor's");
}
