// SPDX-License-Identifier: MIT OR Apache-2.0
//! The local APIC in x2APIC mode: register numbers as MSRs.
//!
//! Source: Intel SDM vol. 3A, "Extended xAPIC (x2APIC)", table of register addresses.

use crate::cpu;
use crate::traps::Fault;

/// MSR of the base address: bit 8 BSP, bit 10 x2APIC, bit 11 enabled.
pub const APIC_BASE: u32 = 0x1b;
/// Register: APIC id.
pub const ID: u32 = 0x802;
/// Register: version.
pub const VERSION: u32 = 0x803;
/// Register: task priority.
pub const TPR: u32 = 0x808;
/// Register: processor priority.
pub const PPR: u32 = 0x80a;
/// Register: end of interrupt.
pub const EOI: u32 = 0x80b;
/// Register: logical destination.
pub const LDR: u32 = 0x80d;
/// Register: spurious vector; bit 8 enables.
pub const SVR: u32 = 0x80f;
/// First of eight registers: in service.
pub const ISR: u32 = 0x810;
/// First of eight registers: requested.
pub const IRR: u32 = 0x820;
/// Register: error status.
pub const ESR: u32 = 0x828;
/// Register: interrupt command.
pub const ICR: u32 = 0x830;
/// Register: timer entry of the local vector table.
pub const LVT_TIMER: u32 = 0x832;
/// Register: timer initial count.
pub const TIMER_INITIAL: u32 = 0x838;
/// Register: timer current count.
pub const TIMER_CURRENT: u32 = 0x839;
/// Register: timer divider.
pub const TIMER_DIVIDE: u32 = 0x83e;
/// Register: self IPI.
pub const SELF_IPI: u32 = 0x83f;

/// Reads a register.
pub fn read(register: u32) -> Result<u64, Fault> {
    cpu::rdmsr(register)
}

/// Writes a register.
pub fn write(register: u32, value: u64) -> Result<(), Fault> {
    // SAFETY: the APIC can only interrupt, and every vector has a gate.
    unsafe { cpu::wrmsr(register, value) }
}

/// Whether `vector` is set in the eight registers from `first` on.
pub fn is_set(first: u32, vector: u8) -> bool {
    read(first + u32::from(vector) / 32).is_ok_and(|word| word >> (vector % 32) & 1 != 0)
}

/// Enters x2APIC mode where the guest does not start in it.
pub fn enter_x2apic() -> Result<(), Fault> {
    let base = cpu::rdmsr(APIC_BASE)?;
    if base & 1 << 10 != 0 {
        return Ok(());
    }
    // SAFETY: the APIC stays on; only the way to reach its registers changes.
    unsafe { cpu::wrmsr(APIC_BASE, base | 1 << 10) }
}

/// Enables the APIC with spurious vector 0xff.
pub fn enable() -> Result<(), Fault> {
    write(SVR, 0x1ff)
}
