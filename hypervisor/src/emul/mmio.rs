// SPDX-License-Identifier: MIT OR Apache-2.0
//! Accesses that the p2m refused.
//!
//! dom0's I/O APICs are emulated here. Where nothing is mapped, reads give all ones and writes
//! vanish, as on a bus where nothing answers; a fetch from there is an invalid opcode. What cannot
//! be decoded raises #GP. A guest whose page tables lie outside its memory has no way to be
//! told, and crashes; so does one whose descriptor tables or handlers' stacks do, since the instruction
//! at RIP is not what made the access, and the event cannot be delivered.

use guest_abi::Gpa;
use guest_abi::num::low_u32;

use crate::domain::{CrashReason, Domain};
use crate::emul::decode::{MAX_LENGTH, MmioOp};
use crate::exit::P2mFault;
use crate::hypervisor::Hypervisor;
use crate::vcpu::VcpuState;
use crate::vcpu::exits::{Outcome, fetch, general_protection, invalid_opcode};

/// Handles an access to guest-physical memory that is not there, or not writable.
pub fn handle(hv: &Hypervisor, domain: &Domain, state: &mut VcpuState, fault: P2mFault) -> Outcome {
    if fault.is_walk {
        return domain.crash(CrashReason::PageTablesOutsideRam(fault.gpa.raw()), state);
    }
    if fault.is_delivery {
        return domain.crash(CrashReason::EventDeliveryOutsideRam(fault.gpa.raw()), state);
    }
    if fault.is_fetch {
        invalid_opcode(state);
        return Outcome::Resume;
    }
    let mut bytes = [0; MAX_LENGTH];
    let (bytes, size) = fetch(domain, state, &mut bytes);
    let Ok(op) = MmioOp::decode(bytes, size) else {
        log::debug!("{}: cannot decode the access to {:?}", domain.id, fault.gpa);
        general_protection(state);
        return Outcome::Resume;
    };
    match op.stored(&state.regs) {
        Some(value) => write(hv, domain, fault.gpa, value),
        None => op.complete_load(&mut state.regs, read(domain, fault.gpa)),
    }
    let next = state.hw.rip().wrapping_add(u64::from(op.length));
    state.finish_instruction(next);
    Outcome::Resume
}

fn read(domain: &Domain, gpa: Gpa) -> u64 {
    match domain.ioapics.get() {
        Some(ioapics) if ioapics.contains(gpa) => u64::from(ioapics.mmio_read(gpa)),
        _ => u64::MAX,
    }
}

fn write(hv: &Hypervisor, domain: &Domain, gpa: Gpa, value: u64) {
    if let Some(ioapics) = domain.ioapics.get()
        && ioapics.contains(gpa)
    {
        ioapics.mmio_write(hv.machine, gpa, low_u32(value));
    }
}

#[cfg(test)]
mod tests;
