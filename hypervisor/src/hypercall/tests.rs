// SPDX-License-Identifier: MIT OR Apache-2.0
//! The door, and the hypercalls that are answered in a few lines.

use std::vec::Vec;

use guest_abi::hypercall as number;
use guest_abi::num::low_u8;
use guest_abi::{DomId, Errno, Wire, vcpu as vcpu_abi};
use guest_abi::{console_io, hvm, isthmus, physdev, platform, sched, shared_info, version};
use proptest::prelude::{BoxedStrategy, Just, Strategy, any, prop_oneof, proptest};

use core::sync::atomic::Ordering;

use super::*;
use crate::addr::{Nanos, Ticks};
use crate::backend::Injection;
use crate::exit::{ControlRegister, Exit, Fault, IoAccess, P2mFault};
use crate::testing::{DOM0, GUEST, Guest, HOLE, Host, START, arg, failed};
use crate::vcpu::{NEVER, RunState};

const SELF: u16 = DomId::SELF.raw();
/// The numbers that are answered.
const KNOWN: [u32; 15] = [
    number::HYPERVISOR_PLATFORM_OP,
    number::HYPERVISOR_MEMORY_OP,
    number::HYPERVISOR_SET_TIMER_OP,
    number::HYPERVISOR_XEN_VERSION,
    number::HYPERVISOR_CONSOLE_IO,
    number::HYPERVISOR_GRANT_TABLE_OP,
    number::HYPERVISOR_VM_ASSIST,
    number::HYPERVISOR_VCPU_OP,
    number::HYPERVISOR_SCHED_OP,
    number::HYPERVISOR_EVENT_CHANNEL_OP,
    number::HYPERVISOR_PHYSDEV_OP,
    number::HYPERVISOR_HVM_OP,
    number::HYPERVISOR_ISTHMUS,
    number::HYPERVISOR_DOMCTL,
    number::HYPERVISOR_SYSCTL,
];

// --- The door.

#[test]
fn numbers_that_are_not_offered_are_enosys() {
    for (_, guest) in [Host::with_guest(), Host::with_dom0()] {
        for number in (0..256).chain([u32::MAX, 1 << 31]).filter(|n| !KNOWN.contains(n)) {
            assert_eq!(guest.call(number, [0, 0, 0]), failed(Errno::ENOSYS), "{number}");
        }
    }
}

#[test]
fn only_the_low_half_of_rax_is_the_number() {
    let (_, guest) = Host::with_guest();
    guest.load_call(number::HYPERVISOR_XEN_VERSION, [u64::from(version::XENVER_PAGESIZE), 0, 0]);
    guest.set_regs(|regs| regs.rax |= 0xabcd << 32);
    assert_eq!(guest.hypercall_once(), Some(4096));
}

#[test]
fn user_mode_is_refused_and_nothing_is_looked_at() {
    let (host, guest) = Host::with_dom0();
    for cpl in 1..=3 {
        guest.cpu(0).cpl = cpl;
        for number in KNOWN.into_iter().chain([0, 999]) {
            assert_eq!(guest.call(number, [0, arg(0), 0]), failed(Errno::EPERM));
        }
        guest.put(arg(0), &sched::Shutdown { reason: 0 });
        let shutdown = [u64::from(sched::SCHEDOP_SHUTDOWN), arg(0), 0];
        assert_eq!(guest.call(number::HYPERVISOR_SCHED_OP, shutdown), failed(Errno::EPERM));
    }
    assert!(guest.domain.is_running() && host.console().is_empty());
}

#[test]
fn nothing_but_rax_changes_and_the_shadow_ends() {
    let (_, guest) = Host::with_guest();
    guest.load_call(number::HYPERVISOR_XEN_VERSION, [0, 0, 0]);
    let mut expected = guest.regs();
    guest.cpu(0).shadow = true;
    assert_eq!(guest.hypercall_once(), Some(4 << 16 | 17));
    expected.rax = 4 << 16 | 17;
    assert_eq!(guest.regs(), expected);
    assert!(!guest.cpu(0).shadow);
}

#[test]
fn calls_are_counted_by_number_and_the_rest_together() {
    let (_, guest) = Host::with_guest();
    for number in [17, 17, 62, 63, 64, u32::MAX] {
        guest.call(number, [0, 0, 0]);
    }
    let counts = &guest.vcpu(0).counters.hypercalls;
    assert_eq!((counts[17].get(), counts[62].get(), counts[63].get()), (2, 1, 3));
}

// --- xen_version.

fn version(guest: &Guest, operation: u32, address: u64) -> i64 {
    guest.call(number::HYPERVISOR_XEN_VERSION, [u64::from(operation), address, 0])
}

#[test]
fn the_version_is_told_in_fields_of_the_abis_size() {
    let (_, guest) = Host::with_guest();
    let fields = [
        (version::XENVER_EXTRAVERSION, version::EXTRAVERSION_LEN),
        (version::XENVER_COMPILE_INFO, version::COMPILE_INFO_LEN),
        (version::XENVER_CAPABILITIES, version::CAPABILITIES_INFO_LEN),
        (version::XENVER_CHANGESET, version::CHANGESET_INFO_LEN),
        (version::XENVER_PLATFORM_PARAMETERS, 8),
        (version::XENVER_GUEST_HANDLE, version::DOMAIN_HANDLE_LEN),
    ];
    for (operation, len) in fields {
        guest.put_bytes(0x2_0000, &[0xee; 2048]);
        assert_eq!(version(&guest, operation, 0x2_0000), 0);
        let bytes = guest.get_bytes(0x2_0000, 2048);
        assert!(bytes[len..].iter().all(|byte| *byte == 0xee), "{operation}");
        assert!(operation == version::XENVER_GUEST_HANDLE || bytes[len - 1] == 0);
        assert_eq!(version(&guest, operation, HOLE), failed(Errno::EFAULT));
    }
    assert_eq!(version(&guest, version::XENVER_PAGESIZE, HOLE), 4096);
    for unknown in [version::XENVER_COMMANDLINE, version::XENVER_BUILD_ID, 11, u32::MAX] {
        assert_eq!(version(&guest, unknown, 0x2_0000), failed(Errno::ENOSYS));
    }
}

#[test]
fn features_say_who_is_dom0() {
    let features = |guest: &Guest, submap_idx| {
        let argument = version::FeatureInfo { submap_idx, submap: 0 };
        guest.call_with(number::HYPERVISOR_XEN_VERSION, version::XENVER_GET_FEATURES, argument)
    };
    let is_dom0 = |submap: u32| submap & 1 << version::XENFEAT_DOM0 != 0;
    let (_, guest) = Host::with_guest();
    let (result, info) = features(&guest, 0);
    assert_eq!((result, is_dom0(info.submap)), (0, false));
    assert_ne!(info.submap & 1 << version::XENFEAT_HVM_CALLBACK_VECTOR, 0);
    assert_eq!(features(&guest, 1).0, failed(Errno::EINVAL));
    let (_, dom0) = Host::with_dom0();
    assert!(is_dom0(features(&dom0, 0).1.submap));
}

// --- sched_op. What sleeping means is tested beside the vCPU loop.

#[test]
fn sched_op_refuses_what_it_does_not_know() {
    let (_, guest) = Host::with_guest();
    let call = |operation: u32| guest.call(number::HYPERVISOR_SCHED_OP, [u64::from(operation), HOLE, 0]);
    for operation in [4, 5, 6, 7, 8, u32::MAX] {
        assert_eq!(call(operation), failed(Errno::ENOSYS));
    }
    assert_eq!(call(sched::SCHEDOP_SHUTDOWN), failed(Errno::EFAULT));
    assert_eq!(call(sched::SCHEDOP_POLL), failed(Errno::EFAULT));
    for reason in [6, u32::MAX] {
        let argument = sched::Shutdown { reason };
        assert_eq!(guest.result(number::HYPERVISOR_SCHED_OP, sched::SCHEDOP_SHUTDOWN, argument), failed(Errno::EINVAL));
    }
    assert!(guest.domain.is_running());
}

#[test]
fn a_poll_that_cannot_be_does_not_sleep() {
    let (_, guest) = Host::with_guest();
    let poll = |ports, nr_ports| {
        let argument = sched::Poll { ports, nr_ports, timeout: 0 };
        guest.result(number::HYPERVISOR_SCHED_OP, sched::SCHEDOP_POLL, argument)
    };
    guest.put(arg(1), &[1_u32, 4096]);
    assert_eq!(poll(arg(1), 2), failed(Errno::EINVAL), "there is no port 4096");
    assert_eq!(poll(arg(1), 129), failed(Errno::EINVAL));
    assert_eq!(poll(arg(1), u32::MAX), failed(Errno::EINVAL));
    assert_eq!(poll(HOLE, 1), failed(Errno::EFAULT));
    assert_eq!(poll(u64::MAX, 1), failed(Errno::EFAULT));
    let state = guest.state(0);
    assert_eq!((state.is_polling, state.poll_timeout), (false, NEVER));
    assert_eq!(guest.vcpu(0).run_state(), RunState::Runnable);
}

// --- vcpu_op, vm_assist, set_timer_op.

fn vcpu_op<T: Wire>(guest: &Guest, operation: u32, vcpu: u32, argument: T) -> i64 {
    guest.put(arg(0), &argument);
    guest.call(number::HYPERVISOR_VCPU_OP, [u64::from(operation), u64::from(vcpu), arg(0)])
}

fn two_vcpus() -> (Host, Guest) {
    let host = Host::new();
    (host, Guest::new(host, 1, GUEST, 2))
}

#[test]
fn vcpus_that_are_not_there_are_enoent_and_operations_enosys() {
    let (_, guest) = two_vcpus();
    for operation in 0..14 {
        assert_eq!(vcpu_op(&guest, operation, 2, 0_u64), failed(Errno::ENOENT));
        assert_eq!(vcpu_op(&guest, operation, u32::MAX, 0_u64), failed(Errno::ENOENT));
    }
    for operation in [0, 1, 2, 6, 11, 12, 14, u32::MAX] {
        assert_eq!(vcpu_op(&guest, operation, 0, 0_u64), failed(Errno::ENOSYS), "{operation}");
    }
    assert_eq!(vcpu_op(&guest, vcpu_abi::VCPUOP_IS_UP, 0, 0_u64), 1);
    assert_eq!(vcpu_op(&guest, vcpu_abi::VCPUOP_IS_UP, 1, 0_u64), 0);
    for operation in [
        vcpu_abi::VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA,
        vcpu_abi::VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA,
        vcpu_abi::VCPUOP_SET_SINGLESHOT_TIMER,
        vcpu_abi::VCPUOP_STOP_SINGLESHOT_TIMER,
    ] {
        assert_eq!(vcpu_op(&guest, operation, 1, [0_u64; 2]), failed(Errno::EINVAL), "another's");
    }
}

#[test]
fn vcpu_info_is_registered_once_and_its_page_is_kept() {
    let (host, guest) = two_vcpus();
    let register = |vcpu, mfn, offset| {
        vcpu_op(&guest, vcpu_abi::VCPUOP_REGISTER_VCPU_INFO, vcpu, vcpu_abi::RegisterVcpuInfo { mfn, offset, rsvd: 0 })
    };
    let frame = guest.leaf(50).unwrap().mfn;
    let count = || host.hv.frames.info(frame).count;
    for offset in [1, 4, 4096 - 56, 4096, u32::MAX, !7] {
        assert_eq!(register(0, 50, offset), failed(Errno::EINVAL), "offset {offset:#x}");
    }
    for gfn in [200, 1 << 36, 1 << 52, u64::MAX] {
        assert_eq!(register(0, gfn, 0), failed(Errno::EINVAL), "frame {gfn:#x}");
    }
    assert_eq!(count(), 0, "what failed refers to nothing");
    assert_eq!(register(0, 50, 4096 - 64), 0);
    assert_eq!(count(), 1);
    assert_eq!(register(0, 50, 0), failed(Errno::EINVAL), "once");
    assert_eq!(register(0, 51, 0), failed(Errno::EINVAL));
    assert_eq!(count(), 1);
    assert_eq!(register(1, 50, 64), 0, "for another vCPU, before it runs");
    assert_eq!(count(), 2);
    let time: shared_info::VcpuTimeInfo = guest.get((50 << 12) + 4096 - 32);
    assert_eq!((time.version & 1, time.tsc_timestamp), (0, START));
    assert_eq!(guest.get::<u8>((50 << 12) + 4096 - 64), 1, "it is to look at everything");
    host.check_books();
}

#[test]
fn areas_are_written_where_they_can_be() {
    let (_, guest) = two_vcpus();
    let runstate = |addr| {
        let argument = vcpu_abi::RegisterArea { addr };
        vcpu_op(&guest, vcpu_abi::VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, 0, argument)
    };
    let time = |addr| {
        let argument = vcpu_abi::RegisterArea { addr };
        vcpu_op(&guest, vcpu_abi::VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA, 0, argument)
    };
    for addr in [HOLE, u64::MAX, (128 << 12) - 8] {
        assert_eq!((runstate(addr), time(addr)), (failed(Errno::EFAULT), failed(Errno::EFAULT)));
    }
    assert!(guest.state(0).runstate_area.is_none());
    // Across two pages.
    assert_eq!((runstate(0x3_0ff8), time(0x4_0ff0)), (0, 0));
    assert!(guest.state(0).runstate_area.is_some());
    let info: shared_info::VcpuTimeInfo = guest.get(0x4_0ff0);
    assert_eq!((info.version, info.tsc_to_system_mul, info.flags), (2, 1 << 31, shared_info::PVCLOCK_TSC_STABLE));
    assert_eq!(time(0), 0, "ends it");
    assert_eq!(vcpu_op(&guest, vcpu_abi::VCPUOP_GET_RUNSTATE_INFO, 0, [0_u64; 6]), 0);
    assert_eq!(guest.call(number::HYPERVISOR_VCPU_OP, [4, 0, HOLE]), failed(Errno::EFAULT));
}

#[test]
fn timers_are_set_in_system_time_and_stopped() {
    let (host, guest) = two_vcpus();
    let timer = || guest.state(0).timer;
    let singleshot = |timeout_abs_ns, flags| {
        let argument = vcpu_abi::SetSingleshotTimer { timeout_abs_ns, flags };
        vcpu_op(&guest, vcpu_abi::VCPUOP_SET_SINGLESHOT_TIMER, 0, argument)
    };
    host.advance(1000);
    assert_eq!(singleshot(5000, 0), 0);
    assert_eq!(timer(), Ticks::new(START + 5000));
    assert_eq!(singleshot(1, 0), 0, "in the past: fires at once");
    assert!(timer() <= host.hv.machine.tsc());
    assert_eq!(singleshot(1, vcpu_abi::VCPU_SSHOTTMR_FUTURE), failed(Errno::ETIME));
    assert_eq!(timer(), NEVER);
    assert_eq!(singleshot(u64::MAX, 0), 0);
    assert_eq!(singleshot(5000, vcpu_abi::VCPU_SSHOTTMR_FUTURE), 0);
    assert_eq!(vcpu_op(&guest, vcpu_abi::VCPUOP_STOP_SINGLESHOT_TIMER, 0, 0_u64), 0);
    assert_eq!(timer(), NEVER);
    assert_eq!(vcpu_op(&guest, vcpu_abi::VCPUOP_STOP_PERIODIC_TIMER, 1, 0_u64), 0);
    assert_eq!(guest.call(number::HYPERVISOR_SET_TIMER_OP, [7000, 0, 0]), 0);
    assert_eq!(timer(), host.hv.clock.when(Nanos::new(7000)));
    assert_eq!(guest.call(number::HYPERVISOR_SET_TIMER_OP, [0, 0, 0]), 0);
    assert_eq!(timer(), NEVER);
    guest.put(arg(0), &0_u64);
    assert_eq!(guest.call(number::HYPERVISOR_VCPU_OP, [8, 0, HOLE]), failed(Errno::EFAULT));
}

#[test]
fn vm_assist_knows_the_runstate_flag() {
    let (_, guest) = Host::with_guest();
    let assist =
        |command: u32, kind: u32| guest.call(number::HYPERVISOR_VM_ASSIST, [u64::from(command), u64::from(kind), 0]);
    assert_eq!((assist(0, 5), assist(1, 5)), (0, 0));
    assert_eq!((assist(0, 4), assist(1, 0)), (failed(Errno::EINVAL), failed(Errno::EINVAL)));
    assert_eq!((assist(2, 5), assist(u32::MAX, 5)), (failed(Errno::ENOSYS), failed(Errno::ENOSYS)));
}

// --- hvm_op.

fn param(guest: &Guest, operation: u32, domid: u16, index: u32, value: u64) -> (i64, u64) {
    let argument = hvm::HvmParam { domid, pad: 0, index, value };
    let (result, answer) = guest.call_with(number::HYPERVISOR_HVM_OP, operation, argument);
    (result, answer.value)
}

fn set(guest: &Guest, index: u32, value: u64) -> i64 {
    param(guest, hvm::HVMOP_SET_PARAM, SELF, index, value).0
}

#[test]
fn parameters_are_read_and_mostly_not_set() {
    let (_, guest) = Host::with_guest();
    guest.domain.set_param(hvm::HVM_PARAM_STORE_PFN, 77);
    for index in 0..hvm::HVM_NR_PARAMS {
        let expected = if index == hvm::HVM_PARAM_STORE_PFN { 77 } else { 0 };
        assert_eq!(param(&guest, hvm::HVMOP_GET_PARAM, SELF, index, 5), (0, expected));
        if index != hvm::HVM_PARAM_CALLBACK_IRQ {
            assert_eq!(set(&guest, index, 5), failed(Errno::EPERM), "{index}");
        }
    }
    for index in [hvm::HVM_NR_PARAMS, hvm::HVM_NR_PARAMS + 1, u32::MAX] {
        assert_eq!(param(&guest, hvm::HVMOP_GET_PARAM, SELF, index, 5).0, failed(Errno::EINVAL), "{index}");
        assert_eq!(set(&guest, index, 5), failed(Errno::EINVAL));
    }
    let (_, dom0) = Host::with_dom0();
    assert_eq!(set(&dom0, hvm::HVM_PARAM_STORE_PFN, 9), 0);
    assert_eq!(param(&dom0, hvm::HVMOP_GET_PARAM, 0, hvm::HVM_PARAM_STORE_PFN, 0), (0, 9));
}

#[test]
fn parameters_of_another_domain_are_for_who_controls_it() {
    let host = Host::new();
    let (dom0, guest) = (Guest::new(host, 0, DOM0, 1), Guest::new(host, 1, GUEST, 1));
    for operation in [hvm::HVMOP_SET_PARAM, hvm::HVMOP_GET_PARAM] {
        assert_eq!(param(&guest, operation, 0, 0, 0).0, failed(Errno::EPERM));
        assert_eq!(param(&guest, operation, 9, 0, 0).0, failed(Errno::EPERM));
        assert_eq!(param(&dom0, operation, 9, 0, 0).0, failed(Errno::ESRCH));
        assert_eq!(guest.call(number::HYPERVISOR_HVM_OP, [u64::from(operation), HOLE, 0]), failed(Errno::EFAULT));
    }
    assert_eq!(param(&dom0, hvm::HVMOP_SET_PARAM, 1, hvm::HVM_PARAM_STORE_PFN, 77).0, 0);
    assert_eq!(param(&dom0, hvm::HVMOP_GET_PARAM, 1, hvm::HVM_PARAM_STORE_PFN, 0), (0, 77));
    assert_eq!(param(&guest, hvm::HVMOP_GET_PARAM, SELF, hvm::HVM_PARAM_STORE_PFN, 0), (0, 77));
    let how = param(&dom0, hvm::HVMOP_SET_PARAM, 1, hvm::HVM_PARAM_CALLBACK_IRQ, 2 << 56 | 0xf3).0;
    assert_eq!((how, guest.domain.callback_vector()), (failed(Errno::EPERM), None));
    for operation in [2, 5, 9, 10, 15, hvm::HVMOP_SET_EVTCHN_UPCALL_VECTOR, 25, u32::MAX] {
        assert_eq!(guest.call(number::HYPERVISOR_HVM_OP, [u64::from(operation), arg(0), 0]), failed(Errno::ENOSYS));
    }
}

#[test]
fn the_callback_is_a_vector_of_an_interrupt_or_none() {
    let (_, guest) = Host::with_guest();
    let set = |value| set(&guest, hvm::HVM_PARAM_CALLBACK_IRQ, value);
    const VECTOR: u64 = hvm::HVM_PARAM_CALLBACK_TYPE_VECTOR << 56;
    guest.raise(0);
    guest.vcpu(0).take_attention();
    assert_eq!(set(VECTOR | 0xf3), 0);
    assert_eq!(guest.domain.callback_vector(), Some(0xf3));
    assert!(guest.vcpu(0).has_attention(), "what waited is delivered");
    for value in [VECTOR, VECTOR | 0xf] {
        assert_eq!(set(value), failed(Errno::EINVAL));
    }
    for value in [2, 1 << 56, 3 << 56 | 0xf3, u64::MAX] {
        assert_eq!(set(value), failed(Errno::ENOSYS));
    }
    assert_eq!(guest.domain.callback_vector(), Some(0xf3), "what failed changed nothing");
    assert_eq!(param(&guest, hvm::HVMOP_GET_PARAM, SELF, 0, 0).1, VECTOR | 0xf3);
    assert_eq!(set(1), 0);
    assert_eq!(guest.domain.callback_vector(), None);
}

// --- console_io.

fn console(guest: &Guest, operation: u32, count: u64, address: u64) -> i64 {
    guest.call(number::HYPERVISOR_CONSOLE_IO, [u64::from(operation), count, address])
}

#[test]
fn dom0_writes_to_the_console_in_chunks() {
    let (host, dom0) = Host::with_dom0();
    let text: std::vec::Vec<u8> = (0..1000).map(|i| b'a' + low_u8(i % 26)).collect();
    dom0.put_bytes(0x2_0f00, &text);
    dom0.load_call(number::HYPERVISOR_CONSOLE_IO, [0, 1000, 0x2_0f00]);
    for left in [744, 488, 232] {
        assert_eq!(dom0.hypercall_once(), None);
        assert_eq!((dom0.regs().rsi, dom0.regs().rdx), (left, 0x2_0f00 + 1000 - left));
    }
    assert_eq!(dom0.hypercall_once(), Some(0));
    assert_eq!(host.console().as_bytes(), text);
    assert_eq!(console(&dom0, console_io::CONSOLEIO_WRITE, 0, HOLE), 0);
}

#[test]
fn a_buffer_that_ends_early_or_a_count_that_is_huge_ends_in_a_fault() {
    let (host, dom0) = Host::with_dom0();
    let end = 128 << 12;
    for count in [513, 1 << 31, u64::from(u32::MAX)] {
        let before = host.console().len();
        assert_eq!(console(&dom0, console_io::CONSOLEIO_WRITE, count, end - 512), failed(Errno::EFAULT));
        assert_eq!(host.console().len() - before, 512);
    }
    assert_eq!(console(&dom0, console_io::CONSOLEIO_WRITE, 1 << 32, HOLE), 0, "the count has 32 bits");
    assert_eq!(console(&dom0, console_io::CONSOLEIO_WRITE, 2, u64::MAX), failed(Errno::EFAULT));
}

#[test]
fn dom0_reads_what_was_typed() {
    let (host, dom0) = Host::with_dom0();
    assert_eq!(console(&dom0, console_io::CONSOLEIO_READ, 100, arg(0)), 0);
    host.machine.type_in(&[b'x'; 300]);
    host.hv.host_interrupt(crate::backend::HostInterrupt::Console);
    assert_eq!(console(&dom0, console_io::CONSOLEIO_READ, 10, arg(0)), 10);
    assert_eq!(dom0.get_bytes(arg(0), 11), b"xxxxxxxxxx\0");
    assert_eq!(console(&dom0, console_io::CONSOLEIO_READ, 10, HOLE), failed(Errno::EFAULT));
    assert_eq!(console(&dom0, console_io::CONSOLEIO_READ, u64::MAX, arg(0)), 256);
    assert_eq!(console(&dom0, console_io::CONSOLEIO_READ, 100, arg(0)), 34, "a failed read takes nothing");
    assert_eq!(console(&dom0, 2, 1, arg(0)), failed(Errno::ENOSYS));
}

#[test]
fn the_console_is_not_for_guests() {
    let (host, guest) = Host::with_guest();
    for operation in 0..3 {
        assert_eq!(console(&guest, operation, 4, arg(0)), failed(Errno::ENOSYS));
    }
    assert_eq!(host.console(), "");
}

// --- physdev_op and platform_op.

#[test]
fn device_announcements_are_for_dom0_and_change_nothing() {
    let (host, dom0) = Host::with_dom0();
    let before = host.account(dom0.id());
    let known = [
        physdev::PHYSDEVOP_PCI_DEVICE_ADD,
        physdev::PHYSDEVOP_PCI_DEVICE_REMOVE,
        physdev::PHYSDEVOP_PCI_MMCFG_RESERVED,
    ];
    for operation in 0..40 {
        let call = |address| dom0.call(number::HYPERVISOR_PHYSDEV_OP, [u64::from(operation), address, 0]);
        if known.contains(&operation) {
            assert_eq!((call(arg(0)), call(HOLE)), (0, failed(Errno::EFAULT)));
        } else {
            assert_eq!(call(arg(0)), failed(Errno::ENOSYS), "{operation}");
        }
    }
    assert_eq!(host.account(dom0.id()), before);
    let (_, guest) = Host::with_guest();
    for operation in 0..40 {
        assert_eq!(guest.call(number::HYPERVISOR_PHYSDEV_OP, [operation, arg(0), 0]), failed(Errno::ENOSYS));
    }
}

#[test]
fn dom0_sets_the_wall_clock_of_all() {
    let host = Host::new();
    let (dom0, guest) = (Guest::new(host, 0, DOM0, 1), Guest::new(host, 1, GUEST, 1));
    let set = |caller: &Guest, head: platform::PlatformOp, time: platform::Settime64| {
        caller.put(arg(0), &head);
        caller.put(arg(0) + 8, &time);
        caller.call(number::HYPERVISOR_PLATFORM_OP, [arg(0), 0, 0])
    };
    let head = |cmd| platform::PlatformOp { cmd, interface_version: platform::XENPF_INTERFACE_VERSION };
    let good = platform::Settime64 { secs: 1_700_000_000, nsecs: 5, mbz: 0, system_time: 1_000_000_005 };
    assert_eq!(set(&guest, head(platform::XENPF_SETTIME64), good), failed(Errno::EPERM));
    assert_eq!(set(&dom0, head(platform::XENPF_SETTIME64), good), 0);
    let shared = guest.domain.shared_info;
    let read = |offset| host.hv.mem.load_u32(shared, offset);
    assert_eq!((read(shared_info::SHARED_WC_SEC), read(shared_info::SHARED_WC_NSEC)), (1_699_999_999, 0));
    let bad = platform::Settime64 { mbz: 1, ..good };
    assert_eq!(set(&dom0, head(platform::XENPF_SETTIME64), bad), failed(Errno::EINVAL));
    let other_version = platform::PlatformOp { interface_version: 1, ..head(platform::XENPF_SETTIME64) };
    assert_eq!(set(&dom0, other_version, good), failed(Errno::EACCES));
    assert_eq!(set(&dom0, head(platform::XENPF_FIRMWARE_INFO), good), failed(Errno::ENOSYS));
    assert_eq!(dom0.call(number::HYPERVISOR_PLATFORM_OP, [HOLE, 0, 0]), failed(Errno::EFAULT));
    let extreme = platform::Settime64 { secs: u64::MAX, nsecs: u32::MAX, mbz: 0, system_time: 0 };
    assert_eq!(set(&dom0, head(platform::XENPF_SETTIME64), extreme), 0);
    let before_zero = platform::Settime64 { secs: 0, nsecs: 0, mbz: 0, system_time: u64::MAX };
    assert_eq!(set(&dom0, head(platform::XENPF_SETTIME64), before_zero), 0);
    assert_eq!(host.hv.wallclock(), (0, 0));
}

// --- Isthmus's own.

#[test]
fn counters_of_others_are_for_who_controls_them() {
    let host = Host::new();
    let (dom0, guest) = (Guest::new(host, 0, DOM0, 1), Guest::new(host, 1, GUEST, 2));
    let ask = |caller: &Guest, change: &dyn Fn(&mut isthmus::VcpuCounters)| {
        let mut argument = isthmus::VcpuCounters {
            interface_version: isthmus::INTERFACE_VERSION,
            domid: SELF,
            nr_reasons: u32::MAX,
            nr_hypercalls: 2,
            exits: 0x2_0000,
            ticks: 0x2_1000,
            hypercalls: 0x2_2000,
            ..Default::default()
        };
        change(&mut argument);
        caller.call_with(number::HYPERVISOR_ISTHMUS, isthmus::ISTHMUS_VCPU_COUNTERS, argument)
    };
    let (result, answer) = ask(&guest, &|argument| argument.vcpu = 1);
    assert_eq!((result, answer.domid, answer.nr_vcpus), (0, 1, 2));
    assert_eq!(ask(&guest, &|argument| argument.domid = 0).0, failed(Errno::EPERM));
    assert_eq!(ask(&guest, &|argument| argument.flags = isthmus::COUNTERS_NEXT_DOMAIN).0, failed(Errno::EPERM));
    assert_eq!(ask(&guest, &|argument| argument.vcpu = 2).0, failed(Errno::ENOENT));
    assert_eq!(ask(&guest, &|argument| argument.interface_version = 0).0, failed(Errno::EACCES));
    assert_eq!(ask(&guest, &|argument| argument.ticks = HOLE).0, failed(Errno::EFAULT));
    assert_eq!(ask(&dom0, &|argument| argument.domid = 1).1.nr_vcpus, 2);
    assert_eq!(ask(&dom0, &|argument| argument.domid = 2).0, failed(Errno::ESRCH));
    let next = ask(&dom0, &|argument| (argument.domid, argument.flags) = (1, isthmus::COUNTERS_NEXT_DOMAIN));
    assert_eq!((next.0, next.1.domid), (0, 1));
    let grants = |caller: &Guest, domid| {
        let argument =
            isthmus::GrantStats { interface_version: isthmus::INTERFACE_VERSION, domid, ..Default::default() };
        let (result, answer) = caller.call_with(number::HYPERVISOR_ISTHMUS, isthmus::ISTHMUS_GRANT_STATS, argument);
        (result, answer.domid)
    };
    assert_eq!((grants(&guest, SELF), grants(&dom0, 1)), ((0, 1), (0, 1)));
    assert_eq!((grants(&guest, 0).0, grants(&dom0, 2).0), (failed(Errno::EPERM), failed(Errno::ESRCH)));
    let host_info = |caller: &Guest| {
        caller.put(arg(0), &isthmus::INTERFACE_VERSION);
        caller.call(number::HYPERVISOR_ISTHMUS, [u64::from(isthmus::ISTHMUS_HOST_INFO), arg(0), 0])
    };
    assert_eq!((host_info(&dom0), host_info(&guest)), (0, failed(Errno::EPERM)));
    let cpu = |caller: &Guest, pcpu| {
        let argument =
            isthmus::PcpuCounters { interface_version: isthmus::INTERFACE_VERSION, pcpu, ..Default::default() };
        caller.call_with(number::HYPERVISOR_ISTHMUS, isthmus::ISTHMUS_PCPU_COUNTERS, argument)
    };
    let (result, counters) = cpu(&dom0, 0);
    assert_eq!((result, counters.tsc), (0, host.hv.machine.tsc().raw()));
    assert_eq!((cpu(&dom0, 64).0, cpu(&guest, 0).0), (failed(Errno::ENOENT), failed(Errno::EPERM)));
    assert_eq!(guest.call(number::HYPERVISOR_ISTHMUS, [0, HOLE, 0]), i64::from(isthmus::INTERFACE_VERSION));
    assert_eq!(guest.call(number::HYPERVISOR_ISTHMUS, [99, arg(0), 0]), failed(Errno::ENOSYS));
}

// --- Anything at all.

/// What a guest may put where a number is expected.
fn word() -> BoxedStrategy<u64> {
    prop_oneof![
        6 => 0_u64..16,
        3 => 30_u64..130,
        2 => (0_u64..8).prop_map(arg),
        1 => (0_u64..128).prop_map(|page| (page << 12) + 4080),
        1 => prop_oneof![Just(u64::from(SELF)), Just(HOLE), Just(u64::MAX), Just(1_u64 << 31), Just(1_u64 << 36)],
        1 => any::<u64>(),
        2 => (0_u64..200).prop_map(|page| page << 12),
        3 => (0_u64..8, 0_u64..8).prop_map(|(low, high)| high << 32 | low),
        1 => (any::<u32>(), 0_u64..200).prop_map(|(high, low)| u64::from(high) << 32 | low),
    ]
    .boxed()
}

/// A hypercall with what lies where its arguments point.
#[derive(Clone, Debug)]
struct Random {
    number: u32,
    args: [u64; 3],
    memory: [u64; 8],
    list: Vec<u64>,
}

/// A guest frame that a domain may well have something at.
fn gfn() -> BoxedStrategy<u64> {
    prop_oneof![8 => 20_u64..70, 1 => 100_u64..160, 1 => word()].boxed()
}

/// Anything for any call.
fn any_call() -> impl Strategy<Value = (u32, [u64; 3], [u64; 8])> {
    let number = prop_oneof![20 => proptest::sample::select(&KNOWN[..]), 1 => any::<u32>()];
    let operation = prop_oneof![8 => 0_u64..33, 1 => any::<u64>(), 1 => (0_u64..1024).prop_map(|n| n << 6 | 1)];
    let pointer = prop_oneof![6 => Just(arg(0)), 1 => word()];
    (number, operation, pointer, word(), proptest::array::uniform8(word()))
        .prop_map(|(number, first, second, third, memory)| (number, [first, second, third], memory))
}

/// Calls about memory that make sense more often than not.
fn memory_call() -> impl Strategy<Value = (u32, [u64; 3], [u64; 8])> {
    const GRANTS: u32 = number::HYPERVISOR_GRANT_TABLE_OP;
    let me = u64::from(SELF);
    let memory = |operation: u64, argument| (number::HYPERVISOR_MEMORY_OP, [operation, arg(0), 0], argument);
    let order = prop_oneof![9 => Just(0_u64), 1 => Just(9_u64)];
    let reservation = (prop_oneof![Just(1_u64), Just(6_u64)], 0_u64..33, order)
        .prop_map(move |(operation, count, order)| memory(operation, [arg(1), count, order, me, 0, 0, 0, 0]));
    let place = (0_u64..2, 0_u64..3, gfn())
        .prop_map(move |(space, index, gfn)| memory(7, [me | space << 32, index, gfn, 0, 0, 0, 0, 0]));
    let remove = gfn().prop_map(move |gfn| memory(15, [me, gfn, 0, 0, 0, 0, 0, 0]));
    let map = (gfn(), 0_u64..9, 0_u64..4, 0_u64..4).prop_map(|(gfn, reference, domain, read_only)| {
        let flags = 2 | (read_only & 1) << 2;
        (GRANTS, [0, arg(0), 1], [gfn << 12, flags | reference << 32, domain, 0, 0, 0, 0, 0])
    });
    let unmap =
        (gfn(), 0_u64..12).prop_map(|(gfn, handle)| (GRANTS, [1, arg(0), 1], [gfn << 12, 0, handle, 0, 0, 0, 0, 0]));
    let info = (0_u64..3, gfn(), 0_u64..70).prop_map(|(vcpu, gfn, offset)| {
        (number::HYPERVISOR_VCPU_OP, [10, vcpu, arg(0)], [gfn, offset * 64, 0, 0, 0, 0, 0, 0])
    });
    prop_oneof![5 => reservation, 2 => place, 1 => remove, 3 => map, 2 => unmap, 1 => info]
}

fn random() -> impl Strategy<Value = Random> {
    let call = prop_oneof![1 => any_call().boxed(), 2 => memory_call().boxed()];
    (call, proptest::collection::vec(gfn(), 32)).prop_map(|((number, args, memory), list)| Random {
        number,
        args,
        memory,
        list,
    })
}

/// Makes random hypercalls from each domain in turn; the books are right after each.
fn storm(calls: &[Random]) {
    let host = Host::new();
    let guests = [Guest::new(host, 0, DOM0, 1), Guest::new(host, 1, GUEST, 2), Guest::new(host, 2, GUEST, 1)];
    for (guest, peer) in guests.iter().zip([1, 2, 1]) {
        // What each grants: some of its pages, one by two references, one of them read-only.
        let table = guest.domain.grant_frame(0).unwrap();
        for (reference, gfn) in [30, 31, 32, 33, 33, 34, 200, 10].into_iter().enumerate() {
            let flags = if reference == 3 { 1 | 1 << 2 } else { 1 };
            host.hv.mem.word(table, reference).store(gfn << 32 | peer << 16 | flags, Ordering::SeqCst);
        }
    }
    for (call, guest) in calls.iter().zip(guests.iter().cycle()) {
        // The argument's page may be gone, or be something else by now.
        let space = guest.memory();
        let _ = space.write(Gva::new(arg(0)), &call.memory);
        for (n, gfn) in (0..).zip(&call.list) {
            let _ = space.write(Gva::new(arg(1) + n * 8), gfn);
        }
        guest.load_call(call.number, call.args);
        // Long ones are left in the middle.
        for _ in 0..8 {
            let before = guest.regs();
            if guest.hypercall_once().is_some() || guest.regs() == before {
                break;
            }
        }
        guest.vcpu(0).set_run_state(RunState::Runnable);
        assert!(crate::lock::holds_none());
    }
    host.check_books();
}

/// An exit that a guest can cause.
fn random_exit() -> impl Strategy<Value = Exit> {
    let register = prop_oneof![Just(ControlRegister::Cr0), Just(ControlRegister::Cr4), Just(ControlRegister::Cr8)];
    let io =
        (any::<u16>(), 0_usize..3, any::<[bool; 3]>()).prop_map(|(port, size, [is_in, is_string, is_repeated])| {
            Exit::Io(IoAccess { port, size: [1, 2, 4][size], is_in, is_string, is_repeated })
        });
    let fault = any::<(u64, bool)>().prop_map(|(gpa, is_fetch)| {
        Exit::P2mFault(P2mFault { gpa: guest_abi::Gpa::new(gpa), is_fetch, is_walk: false, is_delivery: false })
    });
    prop_oneof![
        Just(Exit::Cpuid),
        Just(Exit::Rdmsr),
        Just(Exit::Wrmsr),
        Just(Exit::Halt),
        Just(Exit::Xsetbv),
        Just(Exit::CacheFlush),
        Just(Exit::InterruptWindow),
        Just(Exit::PauseLoop),
        Just(Exit::Forbidden(Fault::InvalidOpcode)),
        io,
        fault,
        (register, proptest::option::of(any::<u64>()))
            .prop_map(|(register, value)| Exit::ControlWrite { register, value }),
        proptest::option::of(0_u8..20).prop_map(|into| Exit::Cr8Read { into }),
    ]
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(16))]

    #[test]
    fn no_hypercall_breaks_the_books(calls in proptest::collection::vec(random(), 1..250)) {
        storm(&calls);
    }

    #[test]
    fn every_exit_ends_in_a_step_or_an_exception(
        exits in proptest::collection::vec((random_exit(), any::<[u8; 16]>(), proptest::array::uniform4(word())), 1..100)
    ) {
        let (host, guest) = Host::with_guest();
        for (exit, code, [rax, rcx, rdx, rsi]) in exits {
            guest.code(&code);
            guest.set_regs(|regs| {
                [regs.rax, regs.rcx, regs.rdx, regs.rsi, regs.rdi] = [rax, rcx & 0xc000_ffff, rdx, rsi, rsi];
            });
            let outcome = guest.exit(exit);
            let moved = guest.moved();
            let raised = guest.take_queued();
            assert!(moved <= 15, "{exit:?} moved RIP by {moved}");
            if let Some(event) = raised {
                assert!(moved == 0 && matches!(event, Injection::Exception { .. }), "{exit:?}: {event:?}");
            }
            assert!(outcome == Outcome::Resume || matches!(exit, Exit::Halt | Exit::PauseLoop));
            guest.enter_long_mode();
            guest.vcpu(0).set_run_state(RunState::Runnable);
        }
        host.check_books();
    }
}
