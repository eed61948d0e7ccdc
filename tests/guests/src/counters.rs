// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's counters, for guests that measure.

use guest_abi::Wire;
use guest_abi::hypercall::HYPERVISOR_ISTHMUS;
use guest_abi::isthmus::{
    INTERFACE_VERSION, ISTHMUS_PCPU_COUNTERS, ISTHMUS_VCPU_COUNTERS, PcpuCounters, REASON_NAMES, VcpuCounters,
};
use guest_abi::num::low_u32;

use crate::{check_eq, hypercall};

const REASONS: usize = REASON_NAMES.len();

/// Exits of a domain's first vCPU so far, and the ticks that the hypervisor took for them.
#[must_use]
pub fn of_domain(domid: u16) -> (u64, u64) {
    let (mut exits, mut ticks) = ([0_u64; REASONS], [0_u64; REASONS]);
    let mut argument = VcpuCounters {
        interface_version: INTERFACE_VERSION,
        domid,
        nr_reasons: low_u32(REASONS as u64),
        exits: exits.as_mut_ptr().addr() as u64,
        ticks: ticks.as_mut_ptr().addr() as u64,
        hypercalls: 8,
        ..Default::default()
    };
    read(ISTHMUS_VCPU_COUNTERS, &mut argument);
    core::hint::black_box((&mut exits, &mut ticks));
    (exits.iter().sum(), ticks.iter().sum())
}

/// What a CPU of the machine has done between runs of vCPUs. For a domain with control of others.
#[must_use]
pub fn of_pcpu(pcpu: u32) -> PcpuCounters {
    let mut argument = PcpuCounters { interface_version: INTERFACE_VERSION, pcpu, ..Default::default() };
    read(ISTHMUS_PCPU_COUNTERS, &mut argument);
    argument
}

/// Says nothing if it goes well, so that what is measured has no output in it.
fn read<T: Wire>(command: u32, argument: &mut T) {
    let result = hypercall::op(HYPERVISOR_ISTHMUS, command, argument);
    if result != 0 {
        check_eq("counters can be read", result, 0);
    }
}
