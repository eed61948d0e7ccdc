// SPDX-License-Identifier: MIT OR Apache-2.0
//! domctl (36): making, sizing, starting, looking at and ending domains.
//!
//! The door checks the right and the version of the interface before anything else. What is not in the
//! list is ENOSYS. A call that has to wait (for vCPUs that are still running, for a long
//! destruction) runs again by itself; what it needs to know for that is in its second argument.
//!
//! Source: `xen/include/public/domctl.h` at 4.17.

mod context;
pub(super) mod info;

use alloc::string::String;
use alloc::vec::Vec;

use guest_abi::domctl as abi;
use guest_abi::{DomId, Errno, VcpuId, Wire};

use super::{Call, DONE, HypercallResult, Reply};
use crate::addr::PAGE_SHIFT;
use crate::domain::build::{BuildError, MAX_PORTS};
use crate::domain::create::{self, Blueprint};
use crate::domain::{Domain, MAX_VCPUS, Privileges, destroy};
use crate::grant;
use crate::pcpu::MAX_PCPUS;
use crate::progress::Progress;

/// Grants in a frame of [`abi::CreateDomain::max_maptrack_frames`].
const MAPPINGS_PER_FRAME: u32 = 512;

/// Errors: EPERM, EACCES, ENOSYS as the module says; those of each operation as in `guest_abi::domctl`;
/// EFAULT.
#[inline(never)]
pub(super) fn handle(call: &mut Call<'_>) -> HypercallResult {
    call.require(Privileges::CONTROL)?;
    let header: abi::DomctlHeader = call.read(call.arg0())?;
    if header.interface_version != abi::XEN_DOMCTL_INTERFACE_VERSION {
        return Err(Errno::EACCES);
    }
    let id = call.resolve(header.domain);
    match header.cmd {
        abi::XEN_DOMCTL_CREATEDOMAIN => create_domain(call, header),
        abi::XEN_DOMCTL_DESTROYDOMAIN => destroy_domain(call, id),
        abi::XEN_DOMCTL_PAUSEDOMAIN => pause(call, id),
        abi::XEN_DOMCTL_UNPAUSEDOMAIN => unpause(call, id),
        abi::XEN_DOMCTL_GETDOMAININFO => {
            let domain = call.other(id)?;
            write_argument(call, &info::of(call.hv, &domain))?;
            DONE
        }
        abi::XEN_DOMCTL_MAX_MEM => max_mem(call, id),
        abi::XEN_DOMCTL_MAX_VCPUS => max_vcpus(call, id),
        abi::XEN_DOMCTL_SETVCPUCONTEXT => context::set(call, id),
        abi::XEN_DOMCTL_GETVCPUCONTEXT => context::get(call, id),
        abi::XEN_DOMCTL_GETVCPUINFO => vcpu_info(call, id),
        abi::XEN_DOMCTL_SETVCPUAFFINITY => set_affinity(call, id),
        abi::XEN_DOMCTL_SCHEDULER_OP => scheduler_op(call, id),
        _ => Err(Errno::ENOSYS),
    }
}

/// The operation's own part.
fn argument<T: Wire>(call: &mut Call<'_>) -> Result<T, Errno> {
    call.read(call.arg0().wrapping_add(abi::DOMCTL_ARG as u64))
}

fn write_argument<T: Wire>(call: &mut Call<'_>, value: &T) -> Result<(), Errno> {
    call.write(call.arg0().wrapping_add(abi::DOMCTL_ARG as u64), value)
}

impl From<BuildError> for Errno {
    fn from(error: BuildError) -> Self {
        match error {
            BuildError::Frames(error) => error.into(),
            BuildError::P2m(error) => error.into(),
            BuildError::Events(error) => error.into(),
            BuildError::NoHeap => Self::ENOMEM,
            _ => Self::EINVAL,
        }
    }
}

fn create_domain(call: &mut Call<'_>, mut header: abi::DomctlHeader) -> HypercallResult {
    let wanted: abi::CreateDomain = argument(call)?;
    let (grants, max_ports) = check(&wanted)?;
    let hv = call.hv;
    // Another CPU makes one: after it.
    let Some(_making) = hv.making.try_lock() else { return Ok(Reply::Again) };
    let id = DomId::new(header.domain);
    let vacancy = if id == DomId::DOM0 || !id.is_domain() {
        hv.domains.claim_any().ok_or(Errno::ENOSPC)?
    } else {
        hv.domains.claim(id).ok_or(if hv.domains.has_number(id) { Errno::EEXIST } else { Errno::EINVAL })?
    };
    let plan = Blueprint {
        id: vacancy.id(),
        name: String::new(),
        handle: wanted.handle,
        privileges: Privileges::empty(),
        nr_vcpus: wanted.max_vcpus,
        max_ports,
        grants,
        max_ram_frames: 0,
        e820: Vec::new(),
        tsc_offset: hv.machine.tsc().raw().wrapping_neg(),
        echoes: false,
    };
    header.domain = plan.id.raw();
    // Before there is anything that would have to be undone.
    call.write(call.arg0(), &header)?;
    let domain = create::create(hv, plan)?;
    log::info!("{} is made, with {} vCPU", domain.id, domain.vcpus.len());
    vacancy.fill(domain);
    DONE
}

/// What is wanted, if it can be had.
fn check(wanted: &abi::CreateDomain) -> Result<(grant::Limits, u32), Errno> {
    let zero = [
        wanted.ssidref,
        wanted.iommu_opts,
        wanted.vmtrace_size,
        wanted.cpupool_id,
        wanted.misc_flags,
        wanted.flags ^ (abi::XEN_DOMCTL_CDF_HVM | abi::XEN_DOMCTL_CDF_HAP),
        wanted.emulation_flags ^ abi::XEN_X86_EMU_LAPIC,
        wanted.grant_opts ^ 1,
    ];
    if zero.iter().any(|field| *field != 0) || !(1..=MAX_VCPUS).contains(&(wanted.max_vcpus as usize)) {
        return Err(Errno::EINVAL);
    }
    let default = grant::Limits::default();
    let limited = |value: i32, most: u32| match u32::try_from(value) {
        Err(_) => Ok(most),
        Ok(value) if value <= most => Ok(value),
        Ok(_) => Err(Errno::EINVAL),
    };
    let grants = grant::Limits {
        frames: limited(wanted.max_grant_frames, default.frames)?,
        mappings: limited(wanted.max_maptrack_frames, default.mappings / MAPPINGS_PER_FRAME)? * MAPPINGS_PER_FRAME,
    };
    Ok((grants, wanted.max_evtchn_port.saturating_add(1).min(MAX_PORTS)))
}

fn destroy_domain(call: &mut Call<'_>, id: DomId) -> HypercallResult {
    let domain = call.other(id)?;
    if id == call.domain.id || domain.privileges.contains(Privileges::HARDWARE) {
        return Err(Errno::EINVAL);
    }
    if !domain.life.is_released() {
        if destroy::step(call.hv, &domain) == Progress::Again {
            return Ok(Reply::Again);
        }
        call.hv.news.spread();
    }
    drop(domain);
    // If something of it is in use, it goes when that is given back.
    destroy::finish(call.hv, id);
    DONE
}

/// Stops a domain, and waits until none of its vCPUs runs.
fn pause(call: &mut Call<'_>, id: DomId) -> HypercallResult {
    /// The second argument while waiting: the pause has been counted.
    const COUNTED: u64 = 1;
    let domain = call.other(id)?;
    if id == call.domain.id {
        return Err(Errno::EINVAL);
    }
    if call.arg1() != COUNTED {
        if !domain.life.pause() {
            return Err(Errno::EINVAL);
        }
        domain.kick_all();
    }
    if domain.is_quiet(call.hv.machine) {
        return DONE;
    }
    call.state.regs.rsi = COUNTED;
    Ok(Reply::Again)
}

fn unpause(call: &mut Call<'_>, id: DomId) -> HypercallResult {
    let domain = call.other(id)?;
    if !domain.life.unpause() {
        return Err(Errno::EINVAL);
    }
    domain.kick_all();
    DONE
}

fn max_mem(call: &mut Call<'_>, id: DomId) -> HypercallResult {
    let wanted: abi::MaxMem = argument(call)?;
    let domain = call.other(id)?;
    let frames = wanted.max_memkb >> (PAGE_SHIFT - 10);
    call.hv.frames.open_account(domain.id, create::limits(frames, domain.privileges))?;
    DONE
}

fn max_vcpus(call: &mut Call<'_>, id: DomId) -> HypercallResult {
    let wanted: abi::MaxVcpus = argument(call)?;
    let domain = call.other(id)?;
    if wanted.max as usize == domain.vcpus.len() { DONE } else { Err(Errno::EINVAL) }
}

fn vcpu_info(call: &mut Call<'_>, id: DomId) -> HypercallResult {
    let mut answer: abi::GetVcpuInfo = argument(call)?;
    let domain = call.other(id)?;
    let vcpu = domain.vcpu(VcpuId::new(answer.vcpu)).ok_or(Errno::ENOENT)?;
    info::fill_vcpu(call.hv, &domain, vcpu, &mut answer);
    write_argument(call, &answer)?;
    DONE
}

fn set_affinity(call: &mut Call<'_>, id: DomId) -> HypercallResult {
    let wanted: abi::VcpuAffinity = argument(call)?;
    let domain = call.other(id)?;
    let vcpu = VcpuId::new(wanted.vcpu);
    domain.vcpu(vcpu).ok_or(Errno::ENOENT)?;
    let known = abi::XEN_VCPUAFFINITY_HARD | abi::XEN_VCPUAFFINITY_SOFT;
    if wanted.flags == 0 || wanted.flags & !known != 0 {
        return Err(Errno::EINVAL);
    }
    if wanted.flags & abi::XEN_VCPUAFFINITY_HARD != 0 {
        let mask = read_mask(call, &wanted.cpumap_hard)?;
        if mask & call.hv.pcpus() == 0 {
            return Err(Errno::EINVAL);
        }
        domain.sched.set_affinity(vcpu, mask);
        domain.seats.set_affinity(vcpu, mask);
    }
    let in_force = domain.sched.affinity(vcpu) & call.hv.pcpus();
    for (flag, map) in
        [(abi::XEN_VCPUAFFINITY_HARD, &wanted.cpumap_hard), (abi::XEN_VCPUAFFINITY_SOFT, &wanted.cpumap_soft)]
    {
        if wanted.flags & flag != 0 {
            let len = mask_bytes(map);
            call.write_bytes(map.bitmap, &in_force.to_le_bytes()[..len])?;
        }
    }
    DONE
}

/// Bytes of a bitmap that are looked at.
fn mask_bytes(map: &abi::CpuBitmap) -> usize {
    (map.nr_bits.div_ceil(8) as usize).min(MAX_PCPUS / 8)
}

fn read_mask(call: &mut Call<'_>, map: &abi::CpuBitmap) -> Result<u64, Errno> {
    let mut bytes = [0; MAX_PCPUS / 8];
    call.read_bytes(map.bitmap, &mut bytes[..mask_bytes(map)])?;
    let valid = if map.nr_bits >= u64::BITS { u64::MAX } else { (1 << map.nr_bits) - 1 };
    Ok(u64::from_le_bytes(bytes) & valid)
}

fn scheduler_op(call: &mut Call<'_>, id: DomId) -> HypercallResult {
    let mut params: abi::SchedulerOp = argument(call)?;
    let domain: &Domain = &*call.other(id)?;
    if params.sched_id != abi::XEN_SCHEDULER_CREDIT {
        return Err(Errno::EINVAL);
    }
    match params.cmd {
        abi::XEN_DOMCTL_SCHEDOP_PUTINFO => {
            let weight = (params.weight != 0).then_some(params.weight);
            let cap = (params.cap != u16::MAX).then_some(params.cap);
            domain.sched.set(weight, cap);
            domain.seats.set_share(u32::from(domain.sched.weight()), u32::from(domain.sched.cap()));
            DONE
        }
        abi::XEN_DOMCTL_SCHEDOP_GETINFO => {
            (params.weight, params.cap) = (domain.sched.weight(), domain.sched.cap());
            write_argument(call, &params)?;
            DONE
        }
        _ => Err(Errno::EOPNOTSUPP),
    }
}

#[cfg(test)]
mod tests;
