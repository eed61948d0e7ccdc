// SPDX-License-Identifier: MIT OR Apache-2.0
//! A vCPU's registers, in and out.
//!
//! The structure is one for PV domains, of 5 KiB. What is used of it moves piece by piece. In, only the
//! state is accepted in which PVH kernels are entered, so nothing that a toolstack sends can make
//! an entry to the guest fail.

use guest_abi::domctl::{self as abi, CpuUserRegs, VcpuContext};
use guest_abi::num::low_u32;
use guest_abi::{DomId, Errno, VcpuId};

use super::super::{Call, DONE, HypercallResult};
use super::argument;
use crate::backend::{GuestMsr, SegmentName};
use crate::domain::Domain;
use crate::policy::control::cr0;
use crate::vcpu::regs::{CpuState, GuestRegs};
use crate::vcpu::{RunState, Vcpu};

/// Always 1.
const RFLAGS_1: u64 = 1 << 1;
/// Carry, parity, adjust, zero, sign, direction, overflow: all that may be set at the entry.
const RFLAGS_STATUS: u64 = 0xcd5;
const NR_CTRLREGS: usize = 8;

/// The vCPU meant, of a domain that cannot run.
fn stopped(domain: &Domain, vcpu: u32) -> Result<&Vcpu, Errno> {
    let vcpu = domain.vcpu(VcpuId::new(vcpu)).ok_or(Errno::ENOENT)?;
    if domain.life.is_paused() && !domain.life.is_dying() { Ok(vcpu) } else { Err(Errno::EBUSY) }
}

pub(super) fn set(call: &mut Call<'_>, id: DomId) -> HypercallResult {
    let place: VcpuContext = argument(call)?;
    let domain = call.other(id)?;
    let vcpu = stopped(&domain, place.vcpu)?;
    let at = |offset: usize| place.ctxt.wrapping_add(offset as u64);
    let flags: u64 = call.read(at(abi::VCPU_CONTEXT_FLAGS))?;
    let regs: CpuUserRegs = call.read(at(abi::VCPU_CONTEXT_USER_REGS))?;
    let control: [u64; NR_CTRLREGS] = call.read(at(abi::VCPU_CONTEXT_CTRLREG))?;
    let entry = u32::try_from(regs.rip).map_err(|_| Errno::EINVAL)?;
    let stack = u32::try_from(regs.rsp).map_err(|_| Errno::EINVAL)?;
    // ET is always 1, whether a toolstack says so or not.
    if control[0] & !(cr0::PE | cr0::ET) != 0
        || control[1..].iter().any(|value| *value != 0)
        || regs.rflags & !(RFLAGS_1 | RFLAGS_STATUS) != 0
    {
        return Err(Errno::EINVAL);
    }
    let mut cpu = CpuState::pvh_entry(entry);
    cpu.rsp = u64::from(stack);
    cpu.rflags = regs.rflags | RFLAGS_1;
    {
        // Its CPU may just be about to leave it.
        let mut state = vcpu.try_state().ok_or(Errno::EBUSY)?;
        state.hw.set_state(&cpu);
        state.regs = general(&regs);
        state.awaits_sipi = flags & abi::VGCF_ONLINE == 0;
    }
    vcpu.set_run_state(if flags & abi::VGCF_ONLINE == 0 { RunState::Down } else { RunState::Runnable });
    DONE
}

pub(super) fn get(call: &mut Call<'_>, id: DomId) -> HypercallResult {
    let place: VcpuContext = argument(call)?;
    let domain = call.other(id)?;
    let vcpu = stopped(&domain, place.vcpu)?;
    let (cpu, general, bases) = {
        let state = vcpu.try_state().ok_or(Errno::EBUSY)?;
        let bases = [GuestMsr::FsBase, GuestMsr::KernelGsBase, GuestMsr::GsBase].map(|msr| state.hw.msr(msr));
        (state.hw.state(), state.regs, bases)
    };
    let zeroes = [0; 1024];
    let at = |offset: usize| place.ctxt.wrapping_add(offset as u64);
    for offset in (0..abi::VCPU_CONTEXT_SIZE).step_by(zeroes.len()) {
        let len = (abi::VCPU_CONTEXT_SIZE - offset).min(zeroes.len());
        call.write_bytes(at(offset), &zeroes[..len])?;
    }
    let online = if vcpu.run_state() == RunState::Down { 0 } else { abi::VGCF_ONLINE };
    call.write(at(abi::VCPU_CONTEXT_FLAGS), &online)?;
    call.write(at(abi::VCPU_CONTEXT_USER_REGS), &user_regs(&cpu, &general))?;
    let control: [u64; NR_CTRLREGS] = [cpu.cr0, 0, cpu.cr2, cpu.cr3, cpu.cr4, 0, 0, 0];
    call.write(at(abi::VCPU_CONTEXT_CTRLREG), &control)?;
    call.write(at(abi::VCPU_CONTEXT_FS_BASE), &bases)?;
    DONE
}

/// A vCPU that starts in 32-bit mode has the low halves only.
fn general(regs: &CpuUserRegs) -> GuestRegs {
    let low = |value: u64| u64::from(low_u32(value));
    GuestRegs {
        rax: low(regs.rax),
        rbx: low(regs.rbx),
        rcx: low(regs.rcx),
        rdx: low(regs.rdx),
        rsi: low(regs.rsi),
        rdi: low(regs.rdi),
        rbp: low(regs.rbp),
        ..GuestRegs::default()
    }
}

fn user_regs(cpu: &CpuState, regs: &GuestRegs) -> CpuUserRegs {
    CpuUserRegs {
        r15: regs.r15,
        r14: regs.r14,
        r13: regs.r13,
        r12: regs.r12,
        rbp: regs.rbp,
        rbx: regs.rbx,
        r11: regs.r11,
        r10: regs.r10,
        r9: regs.r9,
        r8: regs.r8,
        rax: regs.rax,
        rcx: regs.rcx,
        rdx: regs.rdx,
        rsi: regs.rsi,
        rdi: regs.rdi,
        rip: cpu.rip,
        cs: cpu.segments[SegmentName::Cs].selector,
        rflags: cpu.rflags,
        rsp: cpu.rsp,
        ss: cpu.segments[SegmentName::Ss].selector,
        es: cpu.segments[SegmentName::Es].selector,
        ds: cpu.segments[SegmentName::Ds].selector,
        fs: cpu.segments[SegmentName::Fs].selector,
        gs: cpu.segments[SegmentName::Gs].selector,
        ..CpuUserRegs::default()
    }
}
