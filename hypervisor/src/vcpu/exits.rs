// SPDX-License-Identifier: MIT OR Apache-2.0
//! What each exit means: a flat table, and the handlers that are only a few lines.
//!
//! A handler either completes the instruction (RIP moves on), or injects what the CPU would have
//! raised (RIP stays). A guest that does what no handler knows crashes itself, never the host.

use guest_abi::Errno;

use super::regs::Paging;
use super::{Vcpu, VcpuState};
use crate::backend::Injection;
use crate::domain::{CrashReason, Domain};
use crate::emul::decode::{self, Simple};
use crate::exit::{ControlRegister, Exit, Fault};
use crate::hypervisor::Hypervisor;
use crate::policy::control::ControlState;
use crate::policy::cpuid::DynamicState;
use crate::policy::msr::{MsrRead, MsrWrite};
use crate::{emul, hypercall};

/// Whether the vCPU goes on at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Enter the guest again.
    Resume,
    /// Back to the scheduler.
    Leave,
    /// The same, for the sake of others.
    Yield,
}

const VECTOR_UD: u8 = 6;
const VECTOR_GP: u8 = 13;
const VECTOR_MC: u8 = 18;

/// Handles one exit. Hypercalls are what a busy guest does most, and do not pay for the frame of the rest.
#[inline]
pub fn handle(hv: &'static Hypervisor, domain: &Domain, vcpu: &Vcpu, state: &mut VcpuState, exit: Exit) -> Outcome {
    match exit {
        Exit::Hypercall => hypercall::handle(hv, domain, vcpu, state),
        exit => handle_other(hv, domain, vcpu, state, exit),
    }
}

#[inline(never)]
fn handle_other(hv: &'static Hypervisor, domain: &Domain, vcpu: &Vcpu, state: &mut VcpuState, exit: Exit) -> Outcome {
    match exit {
        Exit::Hypercall => debug_assert!(false, "`handle` has made it"),
        Exit::NarrowHypercall => hypercall::refuse(state, Errno::ENOSYS),
        Exit::UserHypercall => hypercall::refuse(state, Errno::EPERM),
        Exit::Cpuid => cpuid(domain, vcpu, state),
        Exit::Rdmsr => rdmsr(hv, domain, vcpu, state),
        Exit::Wrmsr => return wrmsr(hv, domain, vcpu, state),
        Exit::Halt => {
            if skip(domain, state, Simple::Hlt) {
                return state.halt(domain, vcpu);
            }
        }
        Exit::Xsetbv => xsetbv(domain, state),
        Exit::Io(access) => return emul::port::handle(hv, domain, state, access),
        Exit::P2mFault(fault) => return emul::mmio::handle(hv, domain, state, fault),
        Exit::ControlWrite { register, value } => control_write(domain, vcpu, state, register, value),
        Exit::Cr8Read { into } => cr8_read(domain, state, into),
        Exit::Exception { vector: VECTOR_MC, .. } => panic!("machine check"),
        Exit::Exception { vector, error_code } => state.hw.inject(Injection::Exception { vector, error_code }),
        Exit::Forbidden(fault) => inject_fault(state, fault),
        Exit::CacheFlush => skip_cache_flush(domain, state),
        Exit::ExternalInterrupt { vector } => {
            while let Some(interrupt) = hv.machine.take_interrupt(vector) {
                hv.host_interrupt(interrupt);
                if vector.is_some() {
                    break;
                }
            }
        }
        // One that a CPU has sent has done its work: it made this one exit.
        Exit::HostNmi => {
            if hv.machine.take_stray_nmi() {
                log::warn!("an NMI arrived that no CPU has sent, and was ignored");
            }
        }
        Exit::InterruptWindow => {
            state.hw.request_window(false);
            state.window_requested = false;
            vcpu.request_attention();
        }
        Exit::Deadline => {}
        Exit::PauseLoop => return Outcome::Yield,
        Exit::TripleFault => return domain.crash(CrashReason::TripleFault, state),
        Exit::EntryFailed { raw } => return domain.crash(CrashReason::EntryFailed(raw), state),
        Exit::Unexpected { raw } => return domain.crash(CrashReason::UnexpectedExit(raw), state),
    }
    Outcome::Resume
}

/// Raises #GP(0) in the guest.
pub(crate) fn general_protection(state: &mut VcpuState) {
    state.hw.inject(Injection::Exception { vector: VECTOR_GP, error_code: Some(0) });
}

/// Raises #UD in the guest.
pub(crate) fn invalid_opcode(state: &mut VcpuState) {
    state.hw.inject(Injection::Exception { vector: VECTOR_UD, error_code: None });
}

fn inject_fault(state: &mut VcpuState, fault: Fault) {
    match fault {
        Fault::InvalidOpcode => invalid_opcode(state),
        Fault::GeneralProtection => general_protection(state),
    }
}

/// WBINVD and INVD complete without effect: no domain can make the hypervisor lose what is cached.
fn skip_cache_flush(domain: &Domain, state: &mut VcpuState) {
    let mut bytes = [0; decode::MAX_LENGTH];
    let (bytes, size) = fetch(domain, state, &mut bytes);
    let is_invd = decode::simple_length(bytes, Simple::Invd, size).is_ok();
    skip(domain, state, if is_invd { Simple::Invd } else { Simple::Wbinvd });
}

/// Moves RIP behind an instruction of known kind. Where the CPU does not tell its length, the
/// prefixes are counted; where the bytes cannot be read any more (the guest changed its tables
/// meanwhile), #GP is raised and `false` returned.
pub(crate) fn skip(domain: &Domain, state: &mut VcpuState, kind: Simple) -> bool {
    let next = state.hw.next_rip().or_else(|| {
        let mut bytes = [0; decode::MAX_LENGTH];
        let (bytes, size) = fetch(domain, state, &mut bytes);
        let length = decode::simple_length(bytes, kind, size).ok()?;
        Some(state.hw.rip().wrapping_add(u64::from(length)))
    });
    match next {
        Some(next) => {
            state.finish_instruction(next);
            true
        }
        None => {
            general_protection(state);
            false
        }
    }
}

/// The bytes at RIP that can be read, and the width of that code.
pub(crate) fn fetch<'a>(
    domain: &Domain,
    state: &mut VcpuState,
    buffer: &'a mut [u8; decode::MAX_LENGTH],
) -> (&'a [u8], decode::CodeSize) {
    let cs = state.hw.segment(crate::backend::SegmentName::Cs);
    let base = if cs.is_long() { 0 } else { cs.base };
    let linear = crate::addr::Gva::new(base.wrapping_add(state.hw.rip()));
    let len = state.renew_space(domain.tlb.own_generation()).read_instruction(linear, buffer);
    (&buffer[..len], decode::CodeSize::of(&cs, is_long_mode(state)))
}

/// The width of the code that runs.
pub(crate) fn code_size(state: &VcpuState) -> decode::CodeSize {
    decode::CodeSize::of(&state.hw.segment(crate::backend::SegmentName::Cs), is_long_mode(state))
}

fn is_long_mode(state: &VcpuState) -> bool {
    state.hw.efer() & crate::policy::control::efer::LMA != 0
}

fn cpuid(domain: &Domain, vcpu: &Vcpu, state: &mut VcpuState) {
    let dynamic = DynamicState {
        apic_id: vcpu.apic_id,
        vcpu: vcpu.id,
        domain: domain.id,
        cr4: state.hw.paging().cr4,
        xcr0: state.hw.xcr0(),
    };
    let answer = domain.cpuid.answer(state.regs.eax(), state.regs.ecx(), &dynamic);
    if skip(domain, state, Simple::Cpuid) {
        state.regs.rax = u64::from(answer.eax);
        state.regs.rbx = u64::from(answer.ebx);
        state.regs.rcx = u64::from(answer.ecx);
        state.regs.rdx = u64::from(answer.edx);
    }
}

fn rdmsr(hv: &Hypervisor, domain: &Domain, vcpu: &Vcpu, state: &mut VcpuState) {
    let clock = hv.timer_clock(domain);
    let value = match domain.msr.read(state.regs.ecx(), &state.msrs) {
        MsrRead::Value(value) => Some(value),
        MsrRead::Hw(msr) => Some(state.hw.msr(msr)),
        MsrRead::Efer => Some(state.hw.efer()),
        MsrRead::Tsc => Some(clock.now.raw().wrapping_add(clock.tsc_offset)),
        MsrRead::Lapic(register) => state.lapic.read(register, &vcpu.lapic, &clock).ok(),
        MsrRead::TscDeadline => Some(state.lapic.tsc_deadline()),
        MsrRead::Fault => None,
    };
    match value {
        Some(value) => {
            if skip(domain, state, Simple::Rdmsr) {
                state.regs.set_edx_eax(value);
            }
        }
        None => {
            log::debug!("{} {} may not read MSR {:#x}", domain.id, vcpu.id, state.regs.ecx());
            general_protection(state);
        }
    }
}

fn wrmsr(hv: &'static Hypervisor, domain: &Domain, vcpu: &Vcpu, state: &mut VcpuState) -> Outcome {
    let (msr, value) = (state.regs.ecx(), state.regs.edx_eax());
    let is_allowed = match domain.msr.write(msr, value, &mut state.msrs) {
        MsrWrite::Done => true,
        MsrWrite::Hw(msr, value) => {
            state.hw.set_msr(msr, value);
            true
        }
        MsrWrite::Efer(value) => match domain.control.check_efer(value, &control_state(state)) {
            Ok(value) => {
                state.hw.set_efer(value);
                true
            }
            Err(_) => false,
        },
        MsrWrite::Lapic(register, value) => {
            let clock = hv.timer_clock(domain);
            match state.lapic.write(register, value, &vcpu.lapic, &clock) {
                Ok(effect) => {
                    hv.lapic_effect(domain, vcpu, effect);
                    vcpu.request_attention();
                    true
                }
                Err(_) => false,
            }
        }
        MsrWrite::TscDeadline(value) => {
            let clock = hv.timer_clock(domain);
            state.lapic.set_tsc_deadline(value, &clock);
            true
        }
        MsrWrite::HypercallPage(gpa) => hypercall::page::fill(domain, gpa).is_ok(),
        MsrWrite::Fault => false,
    };
    if is_allowed {
        skip(domain, state, Simple::Wrmsr);
    } else {
        log::debug!("{} {} may not write {value:#x} to MSR {msr:#x}", domain.id, vcpu.id);
        general_protection(state);
    }
    Outcome::Resume
}

fn control_state(state: &VcpuState) -> ControlState {
    let Paging { cr0, cr3, cr4, efer } = state.hw.paging();
    ControlState { cr0, cr3, cr4, efer, is_long_code: state.hw.has_long_cs() }
}

fn xsetbv(domain: &Domain, state: &mut VcpuState) {
    let checked = domain.control.check_xcr0(state.regs.ecx(), state.regs.edx_eax());
    match checked {
        Ok(value) if state.hw.cpl() == 0 => {
            if skip(domain, state, Simple::Xsetbv) {
                state.hw.set_xcr0(value);
            }
        }
        _ => general_protection(state),
    }
}

fn control_write(domain: &Domain, vcpu: &Vcpu, state: &mut VcpuState, register: ControlRegister, value: Option<u64>) {
    let Some((value, next)) = control_operand(domain, state, value) else { return general_protection(state) };
    let now = control_state(state);
    let is_done = match register {
        ControlRegister::Cr0 => domain.control.check_cr0(value, &now).map(|value| state.hw.set_cr0(value)).is_ok(),
        ControlRegister::Cr4 => domain.control.check_cr4(value, &now).map(|value| state.hw.set_cr4(value)).is_ok(),
        ControlRegister::Cr8 => {
            vcpu.request_attention();
            state.lapic.set_cr8(value).is_ok()
        }
    };
    if is_done { state.finish_instruction(next) } else { general_protection(state) }
}

fn cr8_read(domain: &Domain, state: &mut VcpuState, into: Option<u8>) {
    let decoded = match (into, state.hw.next_rip()) {
        (Some(into), Some(next)) => Some((into, next)),
        _ => decode_control_move(domain, state).map(|(op, next)| (op.register, next)),
    };
    let value = state.lapic.cr8();
    match decoded.and_then(|(into, next)| Some((state.regs.by_number(into)?, next))) {
        Some((register, next)) => {
            *register = value;
            state.finish_instruction(next);
        }
        None => general_protection(state),
    }
}

/// The value of a write to a control register, and where the next instruction is.
fn control_operand(domain: &Domain, state: &mut VcpuState, value: Option<u64>) -> Option<(u64, u64)> {
    if let (Some(value), Some(next)) = (value, state.hw.next_rip()) {
        return Some((value, next));
    }
    let (op, next) = decode_control_move(domain, state)?;
    const RSP: u8 = 4;
    let value = match op.register {
        RSP => state.hw.state().rsp,
        register => *state.regs.by_number(register)?,
    };
    // Outside 64-bit mode the operand has 32 bits.
    let is_wide = code_size(state) == decode::CodeSize::Bits64;
    Some((if is_wide { value } else { value & 0xffff_ffff }, next))
}

fn decode_control_move(domain: &Domain, state: &mut VcpuState) -> Option<(decode::ControlMove, u64)> {
    let mut bytes = [0; decode::MAX_LENGTH];
    let (bytes, size) = fetch(domain, state, &mut bytes);
    let op = decode::ControlMove::decode(bytes, size).ok()?;
    Some((op, state.hw.rip().wrapping_add(u64::from(op.length))))
}

#[cfg(test)]
mod tests;
