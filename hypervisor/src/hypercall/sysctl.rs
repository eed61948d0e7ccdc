// SPDX-License-Identifier: MIT OR Apache-2.0
//! sysctl (35): the machine, the list of domains, the hypervisor's log.
//!
//! Source: `xen/include/public/sysctl.h` at 4.17.

use guest_abi::domctl::{GetDomainInfo, XEN_SCHEDULER_CREDIT};
use guest_abi::num::{low_u32, to_usize};
use guest_abi::sysctl as abi;
use guest_abi::{Errno, Wire};

use super::domctl::info;
use super::{Call, DONE, HypercallResult};
use crate::domain::Privileges;
use crate::hypervisor::Hypervisor;
use crate::log_ring::{LOG, LOG_KEPT};

/// Errors: EPERM without the right to control domains, EACCES for another version of the interface,
/// ENOSYS for what is not in the list; EFAULT.
#[inline(never)]
pub(super) fn handle(call: &mut Call<'_>) -> HypercallResult {
    call.require(Privileges::CONTROL)?;
    let header: abi::SysctlHeader = call.read(call.arg0())?;
    if header.interface_version != abi::XEN_SYSCTL_INTERFACE_VERSION {
        return Err(Errno::EACCES);
    }
    match header.cmd {
        abi::XEN_SYSCTL_READCONSOLE => read_console(call),
        abi::XEN_SYSCTL_PHYSINFO => {
            let answer = phys_info(call.hv);
            write_argument(call, &answer)
        }
        abi::XEN_SYSCTL_SCHED_ID => write_argument(call, &abi::SchedId { sched_id: XEN_SCHEDULER_CREDIT }),
        abi::XEN_SYSCTL_GETDOMAININFOLIST => domain_list(call),
        _ => Err(Errno::ENOSYS),
    }
}

fn argument<T: Wire>(call: &mut Call<'_>) -> Result<T, Errno> {
    call.read(call.arg0().wrapping_add(abi::SYSCTL_ARG as u64))
}

fn write_argument<T: Wire>(call: &mut Call<'_>, value: &T) -> HypercallResult {
    call.write(call.arg0().wrapping_add(abi::SYSCTL_ARG as u64), value)?;
    DONE
}

fn read_console(call: &mut Call<'_>) -> HypercallResult {
    let mut wanted: abi::ReadConsole = argument(call)?;
    let mut position = if wanted.incremental == 0 { LOG.oldest() } else { wanted.index };
    let room = u64::from(wanted.count).min(LOG_KEPT as u64);
    let written = call.write_pieces(wanted.buffer, room, |bytes| {
        let (start, len) = LOG.read(position, bytes);
        position = start.wrapping_add(low_u32(len as u64));
        len
    })?;
    if wanted.clear != 0 {
        LOG.clear(position);
    }
    wanted.index = position;
    wanted.count = low_u32(written);
    write_argument(call, &wanted)
}

fn phys_info(hv: &Hypervisor) -> abi::PhysInfo {
    let free = hv.frames.free_frames();
    let (basic, extended, features) =
        (hv.machine.cpuid(1, 0), hv.machine.cpuid(0x8000_0001, 0), hv.machine.cpuid(7, 0));
    let nr_cpus = hv.pcpus().count_ones();
    abi::PhysInfo {
        threads_per_core: 1,
        cores_per_socket: hv.facts.nr_present_cpus,
        nr_cpus,
        max_cpu_id: nr_cpus.saturating_sub(1),
        nr_nodes: 1,
        cpu_khz: hv.facts.tsc_khz,
        capabilities: abi::XEN_SYSCTL_PHYSCAP_HVM | abi::XEN_SYSCTL_PHYSCAP_HAP | abi::XEN_SYSCTL_PHYSCAP_GNTTAB_V1,
        total_pages: hv.facts.total_frames,
        free_pages: free.total,
        scrub_pages: free.total - free.clean,
        max_mfn: hv.frames.nr_frames().saturating_sub(1),
        hw_cap: [basic.edx, extended.edx, 0, 0, basic.ecx, 0, extended.ecx, features.ebx],
        ..Default::default()
    }
}

fn domain_list(call: &mut Call<'_>) -> HypercallResult {
    let mut list: abi::GetDomainInfoList = argument(call)?;
    let first = usize::from(list.first_domain);
    let room = to_usize(u64::from(list.max_domains));
    let mut written = 0;
    for (_, domain) in call.hv.domains.iter().skip_while(|(index, _)| *index < first).take(room) {
        let at = list.buffer.wrapping_add(written * GetDomainInfo::SIZE as u64);
        call.write(at, &info::of(call.hv, &domain))?;
        written += 1;
    }
    list.num_domains = low_u32(written);
    write_argument(call, &list)
}

#[cfg(test)]
mod tests;
