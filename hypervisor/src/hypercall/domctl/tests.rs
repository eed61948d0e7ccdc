// SPDX-License-Identifier: MIT OR Apache-2.0
//! Domains from birth to death, as a control domain calls it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::vec::Vec;

use guest_abi::hypercall as number;
use guest_abi::{event_channel, grant_table, memory};
use proptest::prelude::{Strategy, any, proptest};
use proptest::{collection, prop_oneof};

use super::*;
use crate::domain::ShutdownReason;
use crate::frame::FreeFrames;
use crate::testing::{DOM0, GUEST, Guest, HOLE, Host, arg, failed};
use crate::vcpu::RunState;

/// Where the management structure goes.
const OP: u64 = 60 << 12;
const SELF: u16 = DomId::SELF.raw();
/// VIRQ_DOM_EXC.
const DOM_EXC: u32 = event_channel::VIRQ_DOM_EXC;

fn wanted() -> abi::CreateDomain {
    abi::CreateDomain {
        handle: *b"sixteen bytes ok",
        flags: abi::XEN_DOMCTL_CDF_HVM | abi::XEN_DOMCTL_CDF_HAP,
        max_vcpus: 1,
        max_evtchn_port: 1023,
        max_grant_frames: -1,
        max_maptrack_frames: -1,
        grant_opts: 1,
        emulation_flags: abi::XEN_X86_EMU_LAPIC,
        ..Default::default()
    }
}

fn put<T: Wire>(guest: &Guest, cmd: u32, domain: u16, argument: &T) {
    let header = abi::DomctlHeader { cmd, interface_version: abi::XEN_DOMCTL_INTERFACE_VERSION, domain, pad: [0; 3] };
    guest.put_bytes(OP, &[0; abi::DOMCTL_SIZE]);
    guest.put(OP, &header);
    guest.put(OP + abi::DOMCTL_ARG as u64, argument);
}

fn domctl<T: Wire>(guest: &Guest, cmd: u32, domain: u16, argument: &T) -> i64 {
    put(guest, cmd, domain, argument);
    guest.call(number::HYPERVISOR_DOMCTL, [OP, 0, 0])
}

fn simple(guest: &Guest, cmd: u32, domain: u16) -> i64 {
    domctl(guest, cmd, domain, &0_u64)
}

fn answer<T: Wire>(guest: &Guest) -> T {
    guest.get(OP + abi::DOMCTL_ARG as u64)
}

fn create(guest: &Guest, domain: u16) -> Result<u16, i64> {
    match domctl(guest, abi::XEN_DOMCTL_CREATEDOMAIN, domain, &wanted()) {
        0 => Ok(guest.get::<abi::DomctlHeader>(OP).domain),
        error => Err(error),
    }
}

fn info(guest: &Guest, domain: u16) -> Result<abi::GetDomainInfo, i64> {
    match simple(guest, abi::XEN_DOMCTL_GETDOMAININFO, domain) {
        0 => Ok(answer(guest)),
        error => Err(error),
    }
}

fn destroy(guest: &Guest, domain: u16) -> i64 {
    simple(guest, abi::XEN_DOMCTL_DESTROYDOMAIN, domain)
}

fn max_mem(guest: &Guest, domain: u16, frames: u64) -> i64 {
    domctl(guest, abi::XEN_DOMCTL_MAX_MEM, domain, &abi::MaxMem { max_memkb: frames * 4 })
}

/// Single pages from guest frame 0 on; how many there are then.
fn populate(guest: &Guest, domid: u16, count: u64) -> i64 {
    for gfn in 0..count {
        guest.put((61 << 12) + gfn * 8, &gfn);
    }
    let extent_start = 61 << 12;
    let list = memory::MemoryReservation { extent_start, nr_extents: count, domid, ..Default::default() };
    guest.result(number::HYPERVISOR_MEMORY_OP, memory::XENMEM_POPULATE_PHYSMAP, list)
}

fn map_foreign(guest: &Guest, domid: u16, gfn: u64, at: u64) -> (i64, i32) {
    guest.put(arg(1), &gfn);
    guest.put(arg(2), &at);
    let argument = memory::AddToPhysmapBatch {
        domid: SELF,
        space: u16::try_from(memory::XENMAPSPACE_GMFN_FOREIGN).unwrap(),
        size: 1,
        foreign_domid: domid,
        idxs: arg(1),
        gpfns: arg(2),
        errs: arg(3),
    };
    let result = guest.result(number::HYPERVISOR_MEMORY_OP, memory::XENMEM_ADD_TO_PHYSMAP_BATCH, argument);
    (result, guest.get(arg(3)))
}

fn unmap(guest: &Guest, at: u64) -> i64 {
    let argument = memory::RemoveFromPhysmap { domid: SELF, gpfn: at };
    guest.result(number::HYPERVISOR_MEMORY_OP, memory::XENMEM_REMOVE_FROM_PHYSMAP, argument)
}

fn set_context(guest: &Guest, domain: u16, rip: u64, change: impl FnOnce(&mut abi::CpuUserRegs, &mut [u64; 8])) -> i64 {
    let ctxt: u64 = 50 << 12;
    let mut regs = abi::CpuUserRegs { rip, rbx: 0x1234, rflags: 2, ..Default::default() };
    let mut control = [1, 0, 0, 0, 0, 0, 0, 0];
    change(&mut regs, &mut control);
    guest.put(ctxt + abi::VCPU_CONTEXT_FLAGS as u64, &abi::VGCF_ONLINE);
    guest.put(ctxt + abi::VCPU_CONTEXT_USER_REGS as u64, &regs);
    guest.put(ctxt + abi::VCPU_CONTEXT_CTRLREG as u64, &control);
    domctl(guest, abi::XEN_DOMCTL_SETVCPUCONTEXT, domain, &abi::VcpuContext { vcpu: 0, ctxt })
}

fn find(host: Host, domain: u16) -> Option<Arc<Domain>> {
    host.hv.domains.get(DomId::new(domain))
}

/// All that a destroyed domain must leave as it was.
fn resources(host: Host) -> (FreeFrames, usize, Vec<u16>) {
    let FreeFrames { total, .. } = host.hv.frames.free_frames();
    let domains = host.hv.domains.iter().map(|(_, domain)| domain.id.raw()).collect();
    let ports = host.hv.domains.get(DomId::DOM0).map_or(0, |dom0| {
        let free = |raw: &u32| {
            dom0.events.status(guest_abi::EvtchnPort::new(*raw)).unwrap().state == crate::evtchn::PortState::Free
        };
        (1..4096).filter(|raw| !free(raw)).count()
    });
    (FreeFrames { total, clean: 0 }, ports, domains)
}

// --- The door.

#[test]
fn the_door_asks_for_the_right_then_the_version_then_the_operation() {
    let host = Host::new();
    let (dom0, guest) = (Guest::new(host, 0, DOM0, 1), Guest::new(host, 1, GUEST, 1));
    for number in [number::HYPERVISOR_DOMCTL, number::HYPERVISOR_SYSCTL] {
        for cmd in 0..100_u32 {
            guest.put(OP, &(u64::from(cmd) | 0x15 << 32));
            assert_eq!(guest.call(number, [OP, 0, 0]), failed(Errno::EPERM));
            for version in [0x14, 0x16, 0, u32::MAX] {
                dom0.put(OP, &(u64::from(cmd) | u64::from(version) << 32));
                assert_eq!(dom0.call(number, [OP, 0, 0]), failed(Errno::EACCES));
            }
        }
        assert_eq!(guest.call(number, [HOLE, 0, 0]), failed(Errno::EPERM));
        assert_eq!(dom0.call(number, [HOLE, 0, 0]), failed(Errno::EFAULT));
    }
    let known = [1, 2, 3, 4, 5, 9, 11, 12, 13, 14, 15, 16];
    for cmd in (0..1010).filter(|cmd| !known.contains(cmd)) {
        assert_eq!(simple(&dom0, cmd, 1), failed(Errno::ENOSYS), "{cmd}");
    }
    for cmd in known.into_iter().filter(|cmd| *cmd != 1) {
        for domain in [9, 63, 64, 0x7ff1, u16::MAX] {
            assert_eq!(simple(&dom0, cmd, domain), failed(Errno::ESRCH), "{cmd} of {domain}");
        }
    }
    assert!(guest.domain.is_running() && dom0.domain.is_running());
    host.check_books();
}

// --- Making.

#[test]
fn a_domain_is_made_filled_started_stopped_and_ended() {
    let (host, dom0) = Host::with_dom0();
    create::prepare(host.hv).unwrap();
    let before = resources(host);
    let id = create(&dom0, 0).unwrap();
    let domain = find(host, id).unwrap();
    let made = info(&dom0, id).unwrap();
    assert_eq!(made.flags & 0xffff, abi::XEN_DOMINF_PAUSED | abi::XEN_DOMINF_HVM_GUEST | abi::XEN_DOMINF_HAP);
    assert_eq!((made.handle, made.tot_pages, made.max_pages), (wanted().handle, 0, 0));
    assert_eq!(domctl(&dom0, abi::XEN_DOMCTL_MAX_VCPUS, id, &abi::MaxVcpus { max: 1 }), 0);
    assert_eq!(domctl(&dom0, abi::XEN_DOMCTL_MAX_VCPUS, id, &abi::MaxVcpus { max: 2 }), failed(Errno::EINVAL));
    assert_eq!(populate(&dom0, id, 1), 0, "it may hold nothing yet");
    assert_eq!(max_mem(&dom0, id, 20), 0);
    assert_eq!(populate(&dom0, id, 24), 20, "as much as it may hold");
    assert_eq!(info(&dom0, id).unwrap().tot_pages, 20);
    assert_eq!(set_context(&dom0, id, 0x10_0000, |_, _| ()), 0);
    assert_eq!(domain.vcpus[0].run_state(), RunState::Runnable);
    assert_eq!(domain.vcpus[0].try_state().unwrap().regs.rbx, 0x1234);
    assert!(!domain.is_running());
    assert_eq!(simple(&dom0, abi::XEN_DOMCTL_UNPAUSEDOMAIN, id), 0);
    assert!(domain.is_running());
    assert_eq!(simple(&dom0, abi::XEN_DOMCTL_PAUSEDOMAIN, id), 0);
    assert!(domain.life.is_paused() && !domain.life.is_dying());
    drop(domain);
    assert_eq!(destroy(&dom0, id), 0);
    assert_eq!(resources(host), before);
    assert_eq!(info(&dom0, id), Err(failed(Errno::ESRCH)));
    host.check_books();
}

#[test]
fn numbers_are_as_asked_or_any() {
    let (host, dom0) = Host::with_dom0();
    assert_eq!(create(&dom0, 7), Ok(7));
    assert_eq!(create(&dom0, 7), Err(failed(Errno::EEXIST)));
    assert_eq!(create(&dom0, 0), Ok(1));
    assert_eq!(create(&dom0, u16::MAX), Ok(2));
    for id in [64, 65, 0x7fef] {
        assert_eq!(create(&dom0, id), Err(failed(Errno::EINVAL)));
    }
    for id in [7, 1, 2] {
        assert_eq!(destroy(&dom0, id), 0);
    }
    assert_eq!(create(&dom0, 0), Ok(3), "not one that was just used");
    host.check_books();
}

#[test]
fn a_domain_that_cannot_be_is_refused_and_nothing_is_left() {
    let (host, dom0) = Host::with_dom0();
    let before = resources(host);
    let bad: [fn(&mut abi::CreateDomain); 16] = [
        |w| w.ssidref = 1,
        |w| w.flags = 0,
        |w| w.flags |= 1 << 5,
        |w| w.flags = abi::XEN_DOMCTL_CDF_HVM,
        |w| w.iommu_opts = 1,
        |w| w.max_vcpus = 0,
        |w| w.max_vcpus = 33,
        |w| w.max_vcpus = u32::MAX,
        |w| w.max_grant_frames = 65,
        |w| w.max_maptrack_frames = 33,
        |w| w.grant_opts = 0,
        |w| w.grant_opts = 2,
        |w| w.vmtrace_size = 1,
        |w| w.cpupool_id = 1,
        |w| w.emulation_flags = 0x7ff,
        |w| w.misc_flags = 1,
    ];
    for (i, change) in bad.iter().enumerate() {
        let mut wanted = wanted();
        change(&mut wanted);
        assert_eq!(domctl(&dom0, abi::XEN_DOMCTL_CREATEDOMAIN, 0, &wanted), failed(Errno::EINVAL), "case {i}");
    }
    // The number cannot be written back.
    put(&dom0, abi::XEN_DOMCTL_CREATEDOMAIN, 0, &wanted());
    dom0.protect(OP);
    assert_eq!(dom0.call(number::HYPERVISOR_DOMCTL, [OP, 0, 0]), failed(Errno::EFAULT));
    assert_eq!(resources(host), before);
    host.check_books();
}

#[test]
fn each_allocation_of_a_new_domain_may_fail_and_nothing_is_left() {
    let (host, dom0) = Host::with_dom0();
    create::prepare(host.hv).unwrap();
    let before = resources(host);
    let mut failures = 0;
    loop {
        let (made, was_refused) = crate::testing::refusing(failures, || create(&dom0, 0));
        if !was_refused {
            assert_eq!(destroy(&dom0, made.unwrap()), 0);
            break;
        }
        assert_eq!(made, Err(failed(Errno::ENOMEM)), "allocation {failures}");
        assert_eq!(resources(host), before, "allocation {failures}");
        host.check_books();
        failures += 1;
    }
    assert_eq!(failures, 4, "heap, p2m, shared page, console");
    assert_eq!(resources(host), before);
}

#[test]
fn each_allocation_of_a_guest_being_built_may_fail_and_nothing_is_left() {
    let (host, dom0) = Host::with_dom0();
    let build = |id: u16| -> Result<(), i64> {
        let ok = |result: i64| if result == 0 { Ok(()) } else { Err(result) };
        ok(max_mem(&dom0, id, 40))?;
        if populate(&dom0, id, 30) != 30 {
            return Err(failed(Errno::ENOMEM));
        }
        let alloc = event_channel::AllocUnbound { dom: id, remote_dom: 0, port: 0 };
        ok(dom0.result(number::HYPERVISOR_EVENT_CHANNEL_OP, event_channel::EVTCHNOP_ALLOC_UNBOUND, alloc))?;
        dom0.put(arg(4), &0x2000_u64);
        let table = memory::AcquireResource {
            domid: id,
            kind: memory::XENMEM_RESOURCE_GRANT_TABLE,
            nr_frames: 1,
            frame_list: arg(4),
            ..Default::default()
        };
        ok(dom0.result(number::HYPERVISOR_MEMORY_OP, memory::XENMEM_ACQUIRE_RESOURCE, table))?;
        let (result, error) = map_foreign(&dom0, id, 3, 0x2001);
        ok(result)?;
        ok(i64::from(error))
    };
    let clean = |id: u16| {
        unmap(&dom0, 0x2000);
        unmap(&dom0, 0x2001);
        assert_eq!(destroy(&dom0, id), 0);
    };
    // dom0's own tables for the scratch frames stay.
    let id = create(&dom0, 0).unwrap();
    assert_eq!(build(id), Ok(()));
    clean(id);
    let before = resources(host);
    for skip in 0.. {
        let id = create(&dom0, 0).unwrap();
        let (result, was_refused) = crate::testing::refusing(skip, || build(id));
        clean(id);
        assert_eq!(resources(host), before, "allocation {skip}");
        host.check_books();
        if !was_refused {
            assert_eq!(result, Ok(()));
            assert!(skip > 30);
            break;
        }
        assert!(result.is_err(), "allocation {skip}");
    }
}

#[test]
fn a_hundred_domains_one_after_another_leave_everything_as_it_was() {
    let (host, dom0) = Host::with_dom0();
    let mut before = None;
    for round in 0..101 {
        let id = create(&dom0, 0).unwrap();
        assert_eq!((max_mem(&dom0, id, 64), populate(&dom0, id, 33)), (0, 33));
        assert_eq!(map_foreign(&dom0, id, 5, 0x1000), (0, 0));
        let domain = find(host, id).unwrap();
        let port = domain.events.alloc_unbound(DomId::DOM0).unwrap();
        let bind = event_channel::BindInterdomain { remote_dom: id, remote_port: port.raw(), local_port: 0 };
        let (result, bound) =
            dom0.call_with(number::HYPERVISOR_EVENT_CHANNEL_OP, event_channel::EVTCHNOP_BIND_INTERDOMAIN, bind);
        assert_eq!(result, 0);
        drop(domain);
        assert_eq!(unmap(&dom0, 0x1000), 0);
        assert_eq!(destroy(&dom0, id), 0);
        let close = event_channel::Close { port: bound.local_port };
        assert_eq!(dom0.result(number::HYPERVISOR_EVENT_CHANNEL_OP, event_channel::EVTCHNOP_CLOSE, close), 0);
        // The first round makes dom0's tables for the scratch frame.
        assert_eq!(*before.get_or_insert_with(|| resources(host)), resources(host), "round {round}");
    }
    host.check_books();
}

// --- Stopping and ending.

#[test]
fn a_domain_whose_frames_are_mapped_stays_as_dying_until_the_last_is_gone() {
    let (host, dom0) = Host::with_dom0();
    let id = create(&dom0, 0).unwrap();
    assert_eq!((max_mem(&dom0, id, 8), populate(&dom0, id, 8)), (0, 8));
    assert_eq!(map_foreign(&dom0, id, 2, 0x1000), (0, 0));
    assert_eq!(map_foreign(&dom0, id, 3, 0x1001), (0, 0));
    dom0.put(0x1000 << 12, &0xabcd_u64);
    let before = host.hv.frames.free_frames().total;
    assert_eq!(destroy(&dom0, id), 0);
    assert_eq!(destroy(&dom0, id), 0, "it has been");
    let dying = info(&dom0, id).unwrap();
    assert_eq!((dying.flags & 0xf, dying.tot_pages), (abi::XEN_DOMINF_DYING | abi::XEN_DOMINF_HVM_GUEST | 8, 2));
    assert_eq!(dom0.get::<u64>(0x1000 << 12), 0xabcd);
    assert!(host.hv.frames.free_frames().total > before + 6);
    // It takes part in nothing.
    assert_eq!(map_foreign(&dom0, id, 2, 0x1002).0, failed(Errno::ESRCH));
    assert_eq!(populate(&dom0, id, 1), failed(Errno::ESRCH));
    assert_eq!(create(&dom0, id), Err(failed(Errno::EEXIST)));
    let alloc = event_channel::AllocUnbound { dom: id, remote_dom: 0, port: 0 };
    let refused = dom0.result(number::HYPERVISOR_EVENT_CHANNEL_OP, event_channel::EVTCHNOP_ALLOC_UNBOUND, alloc);
    assert_eq!(refused, failed(Errno::ESRCH));
    let grants = memory::AcquireResource {
        domid: id,
        kind: memory::XENMEM_RESOURCE_GRANT_TABLE,
        nr_frames: 1,
        frame_list: arg(1),
        ..Default::default()
    };
    assert!(dom0.result(number::HYPERVISOR_MEMORY_OP, memory::XENMEM_ACQUIRE_RESOURCE, grants) < 0);
    assert_eq!(unmap(&dom0, 0x1000), 0);
    host.hv.after_slice();
    assert_eq!(info(&dom0, id).unwrap().tot_pages, 1);
    assert_eq!(unmap(&dom0, 0x1001), 0);
    host.hv.after_slice();
    assert_eq!(info(&dom0, id), Err(failed(Errno::ESRCH)));
    assert_eq!(create(&dom0, id), Ok(id));
    host.check_books();
}

#[test]
fn a_domain_that_somebody_looks_at_goes_when_he_is_done() {
    let (host, dom0) = Host::with_dom0();
    let id = create(&dom0, 0).unwrap();
    let looking = find(host, id).unwrap();
    assert_eq!(destroy(&dom0, id), 0);
    host.hv.after_slice();
    host.hv.after_slice();
    assert!(info(&dom0, id).unwrap().flags & abi::XEN_DOMINF_DYING != 0);
    drop(looking);
    host.hv.after_slice();
    assert_eq!(info(&dom0, id), Err(failed(Errno::ESRCH)));
    host.check_books();
}

#[test]
fn the_end_of_a_domain_is_told_to_who_controls_it_and_does_not_end_the_machine() {
    let (host, dom0) = Host::with_dom0();
    let bind = event_channel::BindVirq { virq: DOM_EXC, vcpu: 0, port: 0 };
    let (result, bound) = dom0.call_with(number::HYPERVISOR_EVENT_CHANNEL_OP, event_channel::EVTCHNOP_BIND_VIRQ, bind);
    assert_eq!(result, 0);
    let port = guest_abi::EvtchnPort::new(bound.port);
    let take = || {
        let was_pending = dom0.domain.events.is_pending(port);
        let word = dom0.domain.shared_info;
        let at = guest_abi::shared_info::SHARED_EVTCHN_PENDING / 8;
        host.hv.mem.word(word, at).fetch_and(!(1 << port.raw()), core::sync::atomic::Ordering::SeqCst);
        was_pending
    };
    let id = create(&dom0, 0).unwrap();
    let domain = find(host, id).unwrap();
    assert_eq!(simple(&dom0, abi::XEN_DOMCTL_UNPAUSEDOMAIN, id), 0);
    host.hv.after_slice();
    assert!(!take());
    domain.shut_down(ShutdownReason::Crash);
    host.hv.after_slice();
    assert!(take());
    let flags = info(&dom0, id).unwrap().flags;
    assert_eq!((flags & abi::XEN_DOMINF_SHUTDOWN != 0, flags >> 16 & 0xff), (true, 3));
    drop(domain);
    host.hv.after_slice();
    assert!(!take(), "once");
    let held = find(host, id).unwrap();
    assert_eq!(destroy(&dom0, id), 0);
    host.hv.after_slice();
    assert!(take());
    for _ in 0..3 {
        host.hv.after_slice();
        assert!(!take(), "told once while somebody looks at it");
    }
    drop(held);
    // Any pCPU ends it; the one that does the rest may be halted.
    crate::testing::pretend(1);
    host.hv.after_slice();
    crate::testing::pretend(0);
    assert!(take() && find(host, id).is_none(), "told that it is gone");
}

#[test]
fn nobody_ends_or_stops_itself_or_the_domain_of_the_devices() {
    let host = Host::new();
    let dom0 = Guest::new(host, 0, DOM0, 1);
    let control = Guest::new(host, 1, Privileges::CONTROL, 1);
    assert_eq!(destroy(&dom0, 0), failed(Errno::EINVAL));
    assert_eq!(destroy(&control, SELF), failed(Errno::EINVAL));
    assert_eq!(destroy(&control, 0), failed(Errno::EINVAL));
    assert_eq!(simple(&control, abi::XEN_DOMCTL_PAUSEDOMAIN, 1), failed(Errno::EINVAL));
    assert_eq!(simple(&control, abi::XEN_DOMCTL_UNPAUSEDOMAIN, 1), failed(Errno::EINVAL));
    assert!(dom0.domain.is_running() && control.domain.is_running());
}

#[test]
fn pauses_are_counted_and_each_waits_for_the_vcpus() {
    let (host, dom0) = Host::with_dom0();
    let guest = Guest::new(host, 1, GUEST, 2);
    let running = guest.state(1);
    put(&dom0, abi::XEN_DOMCTL_PAUSEDOMAIN, 1, &0_u64);
    dom0.load_call(number::HYPERVISOR_DOMCTL, [OP, 0, 0]);
    guest.vcpu(1).set_on(Some(3));
    assert_eq!(dom0.hypercall_once(), None, "a CPU still runs it");
    assert_eq!(dom0.hypercall_once(), None);
    assert_eq!(**host.machine.insisted.lock().unwrap(), [3, 3]);
    assert!(!guest.domain.is_running() && guest.vcpu(1).has_attention());
    drop(running);
    assert_eq!(dom0.hypercall_once(), Some(0));
    assert_eq!(simple(&dom0, abi::XEN_DOMCTL_PAUSEDOMAIN, 1), 0);
    assert_eq!(simple(&dom0, abi::XEN_DOMCTL_UNPAUSEDOMAIN, 1), 0);
    assert!(!guest.domain.is_running());
    assert_eq!(simple(&dom0, abi::XEN_DOMCTL_UNPAUSEDOMAIN, 1), 0);
    assert!(guest.domain.is_running());
    assert_eq!(simple(&dom0, abi::XEN_DOMCTL_UNPAUSEDOMAIN, 1), failed(Errno::EINVAL));
}

#[test]
fn time_goes_on_while_a_domain_is_paused() {
    let (host, dom0) = Host::with_dom0();
    let guest = Guest::new(host, 1, GUEST, 1);
    let port = guest.domain.events.bind_virq(0, VcpuId::new(0), crate::evtchn::GlobalVirqs::Refused).unwrap();
    guest.state(0).timer = crate::addr::Ticks::new(host.hv.machine.tsc().raw() + 1000);
    assert_eq!(simple(&dom0, abi::XEN_DOMCTL_PAUSEDOMAIN, 1), 0);
    host.advance(1_000_000);
    assert!(!guest.domain.is_running());
    let before = guest.domain.guest_clock(host.hv).time_info(2).tsc_timestamp;
    assert_eq!(simple(&dom0, abi::XEN_DOMCTL_UNPAUSEDOMAIN, 1), 0);
    guest.run(0);
    assert!(guest.domain.events.is_pending(port), "what fell due meanwhile is due");
    assert_eq!(guest.domain.guest_clock(host.hv).time_info(2).tsc_timestamp, before);
}

#[test]
fn a_domain_dies_with_its_ports_and_the_grants_it_mapped() {
    let (host, dom0) = Host::with_dom0();
    let guest = Guest::new(host, 1, GUEST, 1);
    // dom0 grants a page, and the guest maps it.
    let mfn = dom0.domain.grant_frame(0).unwrap();
    let entry = u64::from(grant_table::GTF_PERMIT_ACCESS) | 1 << 16 | 100 << 32;
    host.hv.mem.word(mfn, 9).store(entry, core::sync::atomic::Ordering::SeqCst);
    guest.put(
        arg(0),
        &grant_table::MapGrantRef {
            host_addr: 0x80_0000,
            flags: grant_table::GNTMAP_HOST_MAP,
            reference: 9,
            dom: 0,
            ..Default::default()
        },
    );
    let map = [u64::from(grant_table::GNTTABOP_MAP_GRANT_REF), arg(0), 1];
    assert_eq!(guest.call(number::HYPERVISOR_GRANT_TABLE_OP, map), 0);
    assert_eq!(guest.get::<grant_table::MapGrantRef>(arg(0)).status, 0);
    let in_use = |mfn| host.hv.mem.word(mfn, 9).load(core::sync::atomic::Ordering::SeqCst) & 0x18 != 0;
    assert!(in_use(mfn));
    let theirs = guest.domain.events.alloc_unbound(DomId::DOM0).unwrap();
    let mine = crate::evtchn::bind_interdomain(&dom0.domain.events, &*dom0.domain, &guest.domain.events, theirs);
    drop(guest);
    assert_eq!(destroy(&dom0, 1), 0);
    assert!(!in_use(mfn), "the granter sees that nobody uses its page");
    let state = dom0.domain.events.status(mine.unwrap()).unwrap().state;
    assert_eq!(state, crate::evtchn::PortState::Unbound { remote: DomId::new(1) });
    assert!(find(host, 1).is_none());
    host.check_books();
}

#[test]
fn registered_pages_come_back_too() {
    let (host, dom0) = Host::with_dom0();
    create::prepare(host.hv).unwrap();
    let before = host.hv.frames.free_frames().total;
    let guest = Guest::new(host, 1, GUEST, 1);
    let place = guest_abi::vcpu::RegisterVcpuInfo { mfn: 50, ..Default::default() };
    guest.put(arg(0), &place);
    let register = [u64::from(guest_abi::vcpu::VCPUOP_REGISTER_VCPU_INFO), 0, arg(0)];
    assert_eq!(guest.call(number::HYPERVISOR_VCPU_OP, register), 0);
    // Run states, in an area across two pages.
    guest.put(arg(0), &guest_abi::vcpu::RegisterArea { addr: 0x3_0ff8 });
    let register = [u64::from(guest_abi::vcpu::VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA), 0, arg(0)];
    assert_eq!(guest.call(number::HYPERVISOR_VCPU_OP, register), 0);
    drop(guest);
    assert_eq!(destroy(&dom0, 1), 0);
    assert_eq!(host.hv.frames.free_frames().total, before);
    host.check_books();
}

// --- Registers.

#[test]
fn a_vcpu_starts_in_the_pvh_state_and_in_no_other() {
    let (host, dom0) = Host::with_dom0();
    let id = create(&dom0, 0).unwrap();
    let domain = find(host, id).unwrap();
    assert_eq!(set_context(&dom0, id, 0x100_0000, |regs, _| regs.rsp = 0x8000), 0);
    let cpu = domain.vcpus[0].try_state().unwrap().hw.state();
    let mut expected = crate::vcpu::regs::CpuState::pvh_entry(0x100_0000);
    expected.rsp = 0x8000;
    assert_eq!(cpu, expected);
    let refused: [fn(&mut abi::CpuUserRegs, &mut [u64; 8]); 8] = [
        |regs, _| regs.rip = 1 << 32,
        |regs, _| regs.rsp = 1 << 32,
        |regs, _| regs.rflags = 0x202,
        |regs, _| regs.rflags = 1 << 17,
        |_, control| control[0] = 0x8000_0001,
        |_, control| control[3] = 0x1000,
        |_, control| control[4] = 0x20,
        |_, control| control[7] = 1,
    ];
    for (i, change) in refused.into_iter().enumerate() {
        assert_eq!(set_context(&dom0, id, 5, change), failed(Errno::EINVAL), "case {i}");
    }
    assert_eq!(domain.vcpus[0].try_state().unwrap().hw.state(), expected);
    let place = |vcpu, ctxt| abi::VcpuContext { vcpu, ctxt };
    for cmd in [abi::XEN_DOMCTL_SETVCPUCONTEXT, abi::XEN_DOMCTL_GETVCPUCONTEXT] {
        assert_eq!(domctl(&dom0, cmd, id, &place(1, 50 << 12)), failed(Errno::ENOENT));
        assert_eq!(domctl(&dom0, cmd, id, &place(0, HOLE)), failed(Errno::EFAULT));
        assert_eq!(domctl(&dom0, cmd, 0, &place(0, 50 << 12)), failed(Errno::EBUSY), "it runs");
    }
    dom0.put_bytes(52 << 12, &[0xee; 2 * 4096]);
    assert_eq!(domctl(&dom0, abi::XEN_DOMCTL_GETVCPUCONTEXT, id, &place(0, 52 << 12)), 0);
    let regs: abi::CpuUserRegs = dom0.get((52 << 12) + abi::VCPU_CONTEXT_USER_REGS as u64);
    assert_eq!((regs.rip, regs.rsp, regs.rbx, regs.rflags), (0x100_0000, 0x8000, 0x1234, 2));
    assert_eq!(dom0.get::<u64>((52 << 12) + abi::VCPU_CONTEXT_CTRLREG as u64), 0x11);
    assert_eq!(dom0.get::<u64>((52 << 12) + abi::VCPU_CONTEXT_FLAGS as u64), abi::VGCF_ONLINE);
    assert_eq!(dom0.get::<u8>((52 << 12) + abi::VCPU_CONTEXT_SIZE as u64), 0xee, "not a byte too many");
    assert_eq!(dom0.get::<u64>((52 << 12) + 1000), 0, "nothing of the hypervisor's");
}

#[test]
fn shares_and_places_are_kept_and_checked() {
    let (host, dom0) = Host::with_dom0();
    let id = create(&dom0, 0).unwrap();
    let domain = find(host, id).unwrap();
    let op = |sched_id, cmd, weight, cap| {
        let result = domctl(
            &dom0,
            abi::XEN_DOMCTL_SCHEDULER_OP,
            id,
            &abi::SchedulerOp { sched_id, cmd, weight, cap, unused: [0; 3] },
        );
        (result, answer::<abi::SchedulerOp>(&dom0))
    };
    let credit = abi::XEN_SCHEDULER_CREDIT;
    assert_eq!(op(credit, 1, 0, 0).1.weight, 256);
    assert_eq!(op(credit, 0, 512, 50).0, 0);
    assert_eq!(op(credit, 0, 0, u16::MAX).0, 0);
    let (result, now) = op(credit, 1, 0, 0);
    assert_eq!((result, now.weight, now.cap), (0, 512, 50));
    assert_eq!((domain.sched.weight(), domain.sched.cap()), (512, 50));
    assert_eq!(op(6, 1, 0, 0).0, failed(Errno::EINVAL));
    assert_eq!(op(credit, 2, 0, 0).0, failed(Errno::EOPNOTSUPP));
    let affinity = |vcpu, flags, mask: u64, nr_bits| {
        dom0.put(arg(5), &mask);
        let map = abi::CpuBitmap { bitmap: arg(5), nr_bits };
        let wanted = abi::VcpuAffinity { vcpu, flags, cpumap_hard: map, cpumap_soft: map };
        domctl(&dom0, abi::XEN_DOMCTL_SETVCPUAFFINITY, id, &wanted)
    };
    assert_eq!(affinity(0, 1, 0xff, 64), 0);
    assert_eq!((domain.sched.affinity(VcpuId::new(0)), dom0.get::<u64>(arg(5))), (0xff, 1));
    assert_eq!(affinity(0, 1, 0xff, 3), 0);
    assert_eq!(domain.sched.affinity(VcpuId::new(0)), 7);
    assert_eq!(affinity(0, 1, 0xff, u32::MAX), 0);
    assert_eq!(affinity(0, 1, 0b10, 64), failed(Errno::EINVAL), "no such CPU");
    assert_eq!(affinity(0, 1, 0xff, 0), failed(Errno::EINVAL));
    assert_eq!(affinity(0, 4, 1, 64), failed(Errno::EINVAL));
    assert_eq!(affinity(0, 0, 1, 64), failed(Errno::EINVAL));
    assert_eq!(affinity(1, 1, 1, 64), failed(Errno::ENOENT));
    let mut vcpu = abi::GetVcpuInfo { vcpu: 0, ..Default::default() };
    assert_eq!(domctl(&dom0, abi::XEN_DOMCTL_GETVCPUINFO, id, &vcpu), 0);
    assert_eq!(answer::<abi::GetVcpuInfo>(&dom0).online, 0);
    vcpu.vcpu = 1;
    assert_eq!(domctl(&dom0, abi::XEN_DOMCTL_GETVCPUINFO, id, &vcpu), failed(Errno::ENOENT));
}

// --- Against a model.

/// What the control domain does.
#[derive(Clone, Debug)]
enum Act {
    Create(u16),
    Populate(u16, u64),
    GiveBack(u16, u64),
    Map(u16, u64, u64),
    Unmap(u64),
    Destroy(u16),
    Slice,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let domain = 1..5_u16;
    let act = prop_oneof![
        3 => domain.clone().prop_map(Act::Create),
        4 => (domain.clone(), 1..20_u64).prop_map(|(d, n)| Act::Populate(d, n)),
        2 => (domain.clone(), 0..20_u64).prop_map(|(d, g)| Act::GiveBack(d, g)),
        6 => (domain.clone(), 0..20_u64, 0..6_u64).prop_map(|(d, g, at)| Act::Map(d, g, at)),
        3 => (0..6_u64).prop_map(Act::Unmap),
        3 => domain.prop_map(Act::Destroy),
        2 => any::<()>().prop_map(|()| Act::Slice),
    ];
    collection::vec(act, 1..60)
}

/// A domain as the model has it: its frames by guest frame, each a number of its own.
#[derive(Default)]
struct Model {
    domains: BTreeMap<u16, Living>,
    /// What dom0 has mapped: domain and frame.
    mapped: BTreeMap<u64, (u16, u64)>,
    next: u64,
}

#[derive(Default)]
struct Living {
    frames: BTreeMap<u64, u64>,
    is_dying: bool,
}

impl Model {
    /// Frames that count as the domain's: what it has, and what dom0 still maps of the rest.
    fn charged(&self, domain: u16) -> u64 {
        let own = &self.domains[&domain].frames;
        let mut lost: Vec<u64> = self.mapped.values().filter(|(d, _)| *d == domain).map(|(_, f)| *f).collect();
        lost.sort_unstable();
        lost.dedup();
        lost.retain(|frame| !own.values().any(|mine| mine == frame));
        (own.len() + lost.len()) as u64
    }

    fn reap(&mut self) {
        let gone = |model: &Self, d: u16| model.domains[&d].is_dying && model.charged(d) == 0;
        let dead: Vec<u16> = self.domains.keys().copied().filter(|d| gone(self, *d)).collect();
        dead.iter().for_each(|d| _ = self.domains.remove(d));
    }
}

fn play(acts: &[Act]) {
    const SCRATCH: u64 = 0x1000;
    let (host, dom0) = Host::with_dom0();
    let mut model = Model::default();
    for act in acts {
        match *act {
            Act::Create(d) => {
                let made = create(&dom0, d);
                assert_eq!(made.is_ok(), !model.domains.contains_key(&d));
                if made.is_ok() {
                    assert_eq!(max_mem(&dom0, d, 64), 0);
                    model.domains.insert(d, Living::default());
                }
            }
            Act::Populate(d, count) => {
                let result = populate(&dom0, d, count);
                match model.domains.get_mut(&d) {
                    Some(living) if !living.is_dying => {
                        // The list ends at the first frame that is there.
                        let room = (0..count).take_while(|gfn| !living.frames.contains_key(gfn)).count() as u64;
                        let result = u64::try_from(result).unwrap();
                        assert!(result <= room);
                        for gfn in 0..result {
                            living.frames.insert(gfn, model.next);
                            model.next += 1;
                        }
                    }
                    _ => assert_eq!(result, failed(Errno::ESRCH)),
                }
            }
            Act::GiveBack(d, gfn) => {
                dom0.put(arg(1), &gfn);
                let list =
                    memory::MemoryReservation { extent_start: arg(1), nr_extents: 1, domid: d, ..Default::default() };
                let result = dom0.result(number::HYPERVISOR_MEMORY_OP, memory::XENMEM_DECREASE_RESERVATION, list);
                match model.domains.get_mut(&d) {
                    Some(living) if !living.is_dying => {
                        assert_eq!(result, i64::from(living.frames.remove(&gfn).is_some()));
                    }
                    _ => assert_eq!(result, failed(Errno::ESRCH)),
                }
            }
            Act::Map(d, gfn, at) => {
                let (result, error) = map_foreign(&dom0, d, gfn, SCRATCH + at);
                match model.domains.get(&d) {
                    Some(living) if !living.is_dying => {
                        let frame = living.frames.get(&gfn).copied();
                        assert_eq!((result, error == 0), (0, frame.is_some()));
                        if let Some(frame) = frame {
                            model.mapped.insert(at, (d, frame));
                        }
                    }
                    _ => assert_eq!(result, failed(Errno::ESRCH)),
                }
            }
            Act::Unmap(at) => {
                assert_eq!(unmap(&dom0, SCRATCH + at) == 0, model.mapped.remove(&at).is_some());
            }
            Act::Destroy(d) => {
                let result = destroy(&dom0, d);
                match model.domains.get_mut(&d) {
                    Some(living) => {
                        assert_eq!(result, 0);
                        living.is_dying = true;
                        living.frames.clear();
                        if model.charged(d) == 0 {
                            model.domains.remove(&d);
                        }
                    }
                    None => assert_eq!(result, failed(Errno::ESRCH)),
                }
            }
            Act::Slice => {
                host.hv.after_slice();
                model.reap();
            }
        }
        for d in model.domains.keys().filter(|d| !model.domains[d].is_dying || model.charged(**d) != 0) {
            assert_eq!(info(&dom0, *d).unwrap().tot_pages, model.charged(*d), "d{d} after {act:?}");
        }
        host.check_books();
    }
    for at in model.mapped.keys() {
        assert_eq!(unmap(&dom0, SCRATCH + at), 0);
    }
    for d in 1..5 {
        destroy(&dom0, d);
    }
    host.hv.after_slice();
    let left: Vec<usize> = host.hv.domains.iter().map(|(index, _)| index).collect();
    assert_eq!(left, [0]);
    host.check_books();
}

proptest! {
    #[test]
    fn creating_mapping_and_destroying_at_random_agrees_with_the_model(acts in acts()) {
        play(&acts);
    }
}
