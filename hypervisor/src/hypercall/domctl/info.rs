// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can be said about a domain and its vCPUs.

use guest_abi::domctl as abi;
use guest_abi::num::low_u32;

use crate::domain::Domain;
use crate::frame::{Limits, Usage};
use crate::hypervisor::Hypervisor;
use crate::vcpu::{RunState, Vcpu};

/// A domain, as getdomaininfo answers.
pub(in super::super) fn of(hv: &Hypervisor, domain: &Domain) -> abi::GetDomainInfo {
    let nothing = (Usage::default(), Limits { ram: 0, overhead: 0 });
    let (usage, limits) = hv.frames.account(domain.id).unwrap_or(nothing);
    abi::GetDomainInfo {
        domain: domain.id.raw(),
        flags: flags(domain),
        tot_pages: usage.ram,
        max_pages: limits.ram,
        shared_info_frame: u64::MAX,
        cpu_time: domain.vcpus.iter().map(|vcpu| cpu_time(hv, vcpu)).sum(),
        nr_online_vcpus: low_u32(domain.vcpus.iter().filter(|vcpu| is_online(vcpu)).count() as u64),
        max_vcpu_id: low_u32(domain.vcpus.len() as u64) - 1,
        handle: domain.handle,
        gpaddr_bits: hv.phys_bits,
        emulation_flags: abi::XEN_X86_EMU_LAPIC,
        ..Default::default()
    }
}

fn flags(domain: &Domain) -> u32 {
    let reason = domain.life.shutdown_reason();
    let sleeps = domain.vcpus.iter().all(|vcpu| vcpu.run_state() != RunState::Runnable);
    let reason_bits = reason.map_or(abi::XEN_DOMINF_SHUTDOWNMASK, |reason| reason as u32);
    let set = [
        (domain.life.is_dying(), abi::XEN_DOMINF_DYING),
        (true, abi::XEN_DOMINF_HVM_GUEST | abi::XEN_DOMINF_HAP),
        (reason.is_some(), abi::XEN_DOMINF_SHUTDOWN),
        (domain.life.is_paused(), abi::XEN_DOMINF_PAUSED),
        (domain.is_running() && sleeps, abi::XEN_DOMINF_BLOCKED),
        (domain.is_running() && domain.vcpus.iter().any(is_running), abi::XEN_DOMINF_RUNNING),
    ];
    let flags = set.iter().filter(|(is_set, _)| *is_set).fold(0, |flags, (_, flag)| flags | flag);
    flags | reason_bits << abi::XEN_DOMINF_SHUTDOWNSHIFT
}

/// Fills in what a vCPU does.
pub(super) fn fill_vcpu(hv: &Hypervisor, domain: &Domain, vcpu: &Vcpu, answer: &mut abi::GetVcpuInfo) {
    answer.online = u8::from(is_online(vcpu));
    answer.blocked = u8::from(vcpu.run_state() == RunState::Blocked);
    answer.running = u8::from(is_running(vcpu));
    answer.cpu_time = cpu_time(hv, vcpu);
    answer.cpu = domain.seats.affinity(vcpu.id).map_or(0, |(_, pcpu)| low_u32(pcpu as u64));
}

fn is_online(vcpu: &Vcpu) -> bool {
    vcpu.run_state() != RunState::Down
}

/// A vCPU's private half is locked while a CPU runs it.
fn is_running(vcpu: &Vcpu) -> bool {
    vcpu.try_state().is_none()
}

/// Nanoseconds in the guest and, on its behalf, in the hypervisor.
fn cpu_time(hv: &Hypervisor, vcpu: &Vcpu) -> u64 {
    hv.clock.scale().nanos(vcpu.counters.ran(hv.machine.tsc())).raw()
}
