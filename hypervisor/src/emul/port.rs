// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ports that a domain may not touch, the two that print, and the one that ends.
//!
//! A port that nobody claims reads as all ones and swallows what is written, as on a bus where
//! nothing answers. Port 0x42 reads as zero instead: kernels that calibrate against the PIT poll it
//! 100,000 times unless it gives a constant other than 0xFF. Port 0xE9 takes the kernel's earliest
//! messages. A domain without devices has a COM1, a transmitter that is always ready, and the register of its ACPI tables
//! that switches it off.

use guest_abi::console_io::DEBUG_PORT;
use guest_abi::event_channel::VIRQ_CON_RING;
use guest_abi::num::low_u8;
use guest_abi::pvh::{SLEEP_CONTROL, SLEEP_S5};

use crate::addr::Gva;
use crate::backend::Injection;
use crate::domain::{Domain, Privileges, ShutdownReason};
use crate::emul::decode::{CodeSize, Operand, Simple};
use crate::exit::IoAccess;
use crate::guest_mem::{Fault, GuestSpace};
use crate::hypervisor::Hypervisor;
use crate::vcpu::VcpuState;
use crate::vcpu::exits::{Outcome, code_size, general_protection, skip};

const PIT_COUNTER_2: u16 = 0x42;
const COM1: u16 = 0x3f8;
const COM1_LINE_STATUS: u16 = COM1 + 5;
/// Transmitter empty, holding register empty.
const LINE_STATUS_READY: u32 = 0x60;
/// Bytes of a string instruction done before other things get their turn.
const STRING_BATCH: u64 = 256;

/// Handles a port access that the permission map did not let through.
pub fn handle(hv: &Hypervisor, domain: &Domain, state: &mut VcpuState, access: IoAccess) -> Outcome {
    if access.is_string {
        string(hv, domain, state, access);
        return Outcome::Resume;
    }
    if access.is_in {
        let value = read(domain, access.port);
        if skip(domain, state, Simple::Io) {
            Operand::RAX.set(&mut state.regs, access.size, u64::from(value));
        }
    } else {
        let byte = low_u8(state.regs.rax);
        if skip(domain, state, Simple::Io) && access.size == 1 {
            write(hv, domain, access.port, byte);
        }
    }
    Outcome::Resume
}

fn read(domain: &Domain, port: u16) -> u32 {
    match port {
        PIT_COUNTER_2 => 0,
        COM1_LINE_STATUS if has_own_ports(domain) => LINE_STATUS_READY,
        _ => u32::MAX,
    }
}

fn write(hv: &Hypervisor, domain: &Domain, port: u16, byte: u8) {
    if port == DEBUG_PORT || port == COM1 && has_own_ports(domain) {
        let is_news = domain.console.lock().push(byte, domain.id);
        if is_news {
            hv.raise_in_control(VIRQ_CON_RING);
        }
    } else if port == SLEEP_CONTROL && byte == SLEEP_S5 && has_own_ports(domain) {
        domain.shut_down(ShutdownReason::Poweroff);
    }
}

/// Domains without devices have a COM1 that only logs, and can switch themselves off.
fn has_own_ports(domain: &Domain) -> bool {
    !domain.privileges.contains(Privileges::HARDWARE)
}

/// INS and OUTS, a batch at a time; the instruction runs again until its count is zero.
fn string(hv: &Hypervisor, domain: &Domain, state: &mut VcpuState, access: IoAccess) {
    // No kernel does this from 32-bit code to a port that it does not own, and guest memory is reached
    // with ring 0's rights, which a process with rights to a port does not have.
    if code_size(state) != CodeSize::Bits64 || state.hw.cpl() != 0 {
        return general_protection(state);
    }
    let size = u64::from(access.size);
    let count = if access.is_repeated { state.regs.rcx } else { 1 };
    let batch = count.min(STRING_BATCH / size);
    let is_backwards = state.hw.rflags() & 1 << 10 != 0;
    let step = if is_backwards { size.wrapping_neg() } else { size };
    state.renew_space(domain.tlb.own_generation());
    for _ in 0..batch {
        let address = if access.is_in { state.regs.rdi } else { state.regs.rsi };
        let mut bytes = [0xff; 4];
        let element = &mut bytes[..usize::from(access.size)];
        if let Err(fault) = move_bytes(state.space(), access, address, element) {
            return string_fault(state, access, address, fault);
        }
        if access.is_in {
            state.regs.rdi = address.wrapping_add(step);
        } else {
            write(hv, domain, access.port, element[0]);
            state.regs.rsi = address.wrapping_add(step);
        }
        if access.is_repeated {
            state.regs.rcx -= 1;
        }
    }
    if batch == count {
        skip(domain, state, Simple::Io);
    }
}

/// Moves one element, or some bytes of it, between memory and `bytes`. Where the p2m has no
/// memory, all ones are read and what is written vanishes.
fn move_bytes(space: &GuestSpace, access: IoAccess, address: u64, bytes: &mut [u8]) -> Result<(), Fault> {
    // OUTS takes an FS or GS override; nobody uses one, and the base is usually zero.
    let moved = if access.is_in {
        space.write_bytes(Gva::new(address), bytes)
    } else {
        space.read_bytes(Gva::new(address), bytes)
    };
    match moved {
        Err(Fault::Hole | Fault::Refused) => Ok(()),
        moved => moved,
    }
}

/// Raises what the CPU would have raised for the element at `address`.
fn string_fault(state: &mut VcpuState, access: IoAccess, address: u64, fault: Fault) {
    const PRESENT: u32 = 1;
    const WRITE: u32 = 1 << 1;
    const RESERVED: u32 = 1 << 3;
    const VECTOR_PF: u8 = 14;
    let cause = match fault {
        Fault::NotPresent => 0,
        Fault::Protection => PRESENT,
        Fault::Reserved => PRESENT | RESERVED,
        // The instruction runs again.
        Fault::Contended => return,
        Fault::NotCanonical | Fault::Mode | Fault::Hole | Fault::Refused => return general_protection(state),
    };
    // An element may lie in two pages, of which the first is there.
    let is_second = move_bytes(state.space(), access, address, &mut [0xff]).is_ok();
    let mut cpu = state.hw.state();
    cpu.cr2 = if is_second { (address | 0xfff).wrapping_add(1) } else { address };
    state.hw.set_state(&cpu);
    let error_code = Some(cause | if access.is_in { WRITE } else { 0 });
    state.hw.inject(Injection::Exception { vector: VECTOR_PF, error_code });
}

#[cfg(test)]
mod tests;
