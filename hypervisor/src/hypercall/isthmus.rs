// SPDX-License-Identifier: MIT OR Apache-2.0
//! Calls of Isthmus's own (55): what vCPUs have cost, what CPUs did between them, and what the machine and the hypervisor are.
//!
//! A domain may know what itself has cost; what others have cost tells of what they do, so it is for
//! those who control them. Both answers are snapshots of counters that go on counting.
//!
//! Source: `guest-abi/src/isthmus.rs`.

mod copy;

use guest_abi::isthmus as abi;
use guest_abi::num::{low_u16, low_u32, to_usize};
use guest_abi::{DomId, Errno, VcpuId, Wire};

use super::{Call, DONE, HypercallResult, Reply, Subject};
use crate::counters::{Counter, NR_HYPERCALLS, NR_REASONS, of_pcpu};
use crate::domain::Privileges;
use crate::hypervisor::Hypervisor;
use crate::p2m::Format;

/// Errors: ENOSYS for an unknown operation, EACCES for another version of the interface; ESRCH,
/// ENOENT, EPERM, EFAULT as the operations say.
#[inline(never)]
pub(super) fn handle(call: &mut Call<'_>) -> HypercallResult {
    match call.operation() {
        abi::ISTHMUS_VERSION => Ok(Reply::Value(u64::from(abi::INTERFACE_VERSION))),
        abi::ISTHMUS_VCPU_COUNTERS => vcpu_counters(call),
        abi::ISTHMUS_HOST_INFO => host_info(call),
        abi::ISTHMUS_DOMAIN_COPY => copy::domain_copy(call),
        abi::ISTHMUS_CONSOLE_READ => console_read(call),
        abi::ISTHMUS_PCPU_COUNTERS => pcpu_counters(call),
        abi::ISTHMUS_GRANT_STATS => grant_stats(call),
        _ => Err(Errno::ENOSYS),
    }
}

fn vcpu_counters(call: &mut Call<'_>) -> HypercallResult {
    let mut argument: abi::VcpuCounters = call.read(call.arg1())?;
    check_version(argument.interface_version)?;
    let wanted = DomId::new(argument.domid);
    let or_next = argument.flags & abi::COUNTERS_NEXT_DOMAIN != 0;
    let domain = subject(call, wanted, or_next)?;
    let vcpu = domain.vcpu(VcpuId::new(argument.vcpu)).ok_or(Errno::ENOENT)?;
    let counters = &vcpu.counters;
    write_counters(call, argument.exits, argument.nr_reasons, &counters.exits)?;
    write_counters(call, argument.ticks, argument.nr_reasons, &counters.ticks)?;
    write_counters(call, argument.hypercalls, argument.nr_hypercalls, &counters.hypercalls)?;
    argument.domid = domain.id.raw();
    argument.nr_vcpus = low_u16(domain.vcpus.len() as u64);
    argument.flags = (vcpu.run_state() as u32) << abi::COUNTERS_STATE_SHIFT;
    argument.nr_reasons = low_u32(NR_REASONS as u64);
    argument.nr_hypercalls = low_u32(NR_HYPERCALLS as u64);
    argument.tsc = call.hv.machine.tsc().raw();
    call.write(call.arg1(), &argument)?;
    DONE
}

fn pcpu_counters(call: &mut Call<'_>) -> HypercallResult {
    let mut argument: abi::PcpuCounters = call.read(call.arg1())?;
    check_version(argument.interface_version)?;
    call.require(Privileges::CONTROL)?;
    let pcpu = to_usize(u64::from(argument.pcpu));
    if pcpu >= call.hv.sched.nr_pcpus() {
        return Err(Errno::ENOENT);
    }
    let counters = of_pcpu(pcpu);
    argument.runs = counters.runs.get();
    argument.halts = counters.halts.get();
    argument.kicks = counters.kicks.get();
    argument.ticks = counters.ticks.get();
    argument.tsc = call.hv.machine.tsc().raw();
    call.write(call.arg1(), &argument)?;
    DONE
}

fn check_version(version: u32) -> Result<(), Errno> {
    if version == abi::INTERFACE_VERSION { Ok(()) } else { Err(Errno::EACCES) }
}

fn console_read(call: &mut Call<'_>) -> HypercallResult {
    let mut argument: abi::ConsoleRead = call.read(call.arg1())?;
    check_version(argument.interface_version)?;
    let domain = call.other(call.resolve(argument.domid))?;
    let mut position = argument.position;
    argument.len = call.write_pieces(argument.buffer, argument.len.min(abi::CONSOLE_KEPT as u64), |bytes| {
        let (start, len) = domain.console.lock().kept.read(position, bytes);
        position = start + len as u64;
        len
    })?;
    argument.position = position;
    call.write(call.arg1(), &argument)?;
    DONE
}

fn grant_stats(call: &mut Call<'_>) -> HypercallResult {
    let argument: abi::GrantStats = call.read(call.arg1())?;
    check_version(argument.interface_version)?;
    let domain = call.subject(argument.domid)?;
    let stats = abi::GrantStats { interface_version: abi::INTERFACE_VERSION, ..domain.grants.stats(argument.at) };
    call.write(call.arg1(), &stats)?;
    DONE
}

/// The domain that the caller asks about, if it may.
fn subject<'a>(call: &Call<'a>, wanted: DomId, or_next: bool) -> Result<Subject<'a>, Errno> {
    if !or_next {
        return call.subject(wanted.raw());
    }
    call.require(Privileges::CONTROL)?;
    let next = call.hv.domains.iter().map(|(_, domain)| domain).find(|domain| domain.id >= wanted);
    next.map(Subject::Other).ok_or(Errno::ESRCH)
}

/// Writes as many counters as the caller has room for.
fn write_counters(call: &mut Call<'_>, address: u64, room: u32, counters: &[Counter]) -> Result<(), Errno> {
    let mut bytes = [0; NR_HYPERCALLS * u64::SIZE];
    let mut len = 0;
    for (counter, slot) in counters.iter().zip(bytes.chunks_exact_mut(u64::SIZE)).take(room as usize) {
        counter.get().to_bytes(slot);
        len += u64::SIZE;
    }
    call.write_bytes(address, &bytes[..len])
}

fn host_info(call: &mut Call<'_>) -> HypercallResult {
    check_version(call.read(call.arg1())?)?;
    call.require(Privileges::CONTROL)?;
    let info = describe(call.hv);
    call.write(call.arg1(), &info)?;
    DONE
}

/// The machine as it is now.
fn describe(hv: &Hypervisor) -> abi::HostInfo {
    let (facts, free, heap) = (&hv.facts, hv.frames.free_frames(), hv.machine.heap_usage());
    let accounts = hv.domains.iter().filter_map(|(_, domain)| hv.frames.account(domain.id));
    let mut version = [0; abi::VERSION_LEN];
    let text = env!("CARGO_PKG_VERSION").as_bytes();
    let len = text.len().min(abi::VERSION_LEN);
    version[..len].copy_from_slice(&text[..len]);
    abi::HostInfo {
        interface_version: abi::INTERFACE_VERSION,
        backend: if matches!(hv.format, Format::Ept) { abi::BACKEND_VMX } else { abi::BACKEND_SVM },
        features: facts.features | if hv.is_tsc_stable { abi::FEATURE_TSC_STABLE } else { 0 },
        tsc_khz: u64::from(facts.tsc_khz),
        uptime_ns: hv.clock.at(hv.machine.tsc()).raw(),
        total_frames: facts.total_frames,
        free_frames: free.total,
        clean_frames: free.clean,
        hypervisor_frames: facts.hypervisor_frames,
        image_bytes: facts.image_bytes,
        heap_used: heap.used,
        heap_size: heap.size,
        nr_pcpus: facts.nr_pcpus,
        nr_present_cpus: facts.nr_present_cpus,
        iommu: facts.iommu,
        nr_domains: low_u32(hv.domains.iter().count() as u64),
        phys_bits: u32::from(hv.phys_bits),
        largest_page_shift: crate::addr::PAGE_SHIFT + u32::from(hv.largest_leaf.raw()),
        overhead_frames: accounts.map(|(usage, _)| usage.overhead).sum(),
        version,
    }
}
