// SPDX-License-Identifier: MIT OR Apache-2.0
//! The control domain's I/O APICs: the real ones, behind a shadow.
//!
//! The control domain's interrupts keep their vectors, and its vCPU n has the APIC id of pCPU n
//! (`docs/`, interrupts). So a redirection entry is written to the hardware nearly as the guest
//! wrote it; what is checked is that it can only raise a vector that belongs to the guest, by fixed
//! delivery, on a pCPU that carries one of its vCPUs. An entry that asks for anything else is kept
//! and reads back, but stays masked in the hardware. Pins that the hypervisor uses itself cannot
//! be reached: they read as masked.
//!
//! *Level lines* stay asserted until the guest's driver has served the device, long after the
//! hypervisor has ended the interrupt on the physical local APIC. So the pin is masked when the
//! interrupt arrives ([`Ioapics::arrived`]) and unmasked when the guest ends it
//! ([`Ioapics::end_of_interrupt`]); between the two the guest sees the remote IRR bit. A vector is
//! a pin's only together with the pCPU, because Linux gives the same vector to other devices on
//! other CPUs. Whether a vector can be a level pin's is one atomic load, so message-signalled
//! interrupts take no lock.
//!
//! The hardware is written only if its entry changes, at most four writes per guest access.
//! Masking by the guest while a line is in service does not end the service: the EOI does, or
//! switching the pin to edge, as on a real I/O APIC.
//!
//! Source: Intel 82093AA I/O APIC data sheet; Intel ICH10 data sheet, APIC registers (EOI register).

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_abi::num::{high_u32, low_u8, low_u32};
use guest_abi::{DomId, Gpa};

use super::lapic::Trigger;
use crate::backend::Machine;
use crate::lock::{Lock, Rank};

/// Vectors that may belong to the control domain; above are the hypervisor's own.
pub const GUEST_VECTORS: core::ops::RangeInclusive<u8> = 0x20..=0xeb;
/// Bytes of one I/O APIC's register window.
pub const WINDOW_BYTES: u64 = 0x1000;
/// The most pins whose entries an 8-bit register number can reach.
const MAX_PINS: u8 = 120;

/// The registers of the physical I/O APICs.
pub trait IoapicHw {
    /// Writes a register.
    fn write(&self, ioapic: usize, register: u8, value: u32);
}

impl<M: Machine + ?Sized> IoapicHw for M {
    fn write(&self, ioapic: usize, register: u8, value: u32) {
        self.ioapic_write(ioapic, register, value);
    }
}

const REG_ID: u8 = 0;
const REG_VERSION: u8 = 1;
const REG_ARBITRATION: u8 = 2;
const REG_FIRST_PIN: u8 = 0x10;
/// Version 0x20 has the EOI register.
const VERSION: u32 = 0x20;

const WINDOW_INDEX: u64 = 0;
const WINDOW_DATA: u64 = 0x10;
const WINDOW_EOI: u64 = 0x40;

/// Fields of a redirection entry.
mod rte {
    pub(super) const DELIVERY_MODE: u64 = 7 << 8;
    pub(super) const LOGICAL: u64 = 1 << 11;
    pub(super) const LOW_POLARITY: u64 = 1 << 13;
    pub(super) const REMOTE_IRR: u64 = 1 << 14;
    pub(super) const LEVEL: u64 = 1 << 15;
    pub(super) const MASKED: u64 = 1 << 16;
    pub(super) const DESTINATION_SHIFT: u32 = 56;
    /// What the guest can write; delivery status and remote IRR are the hardware's.
    pub(super) const WRITABLE: u64 = 0xff << DESTINATION_SHIFT | 0x1_afff;
    /// A pin that nobody uses.
    pub(super) const UNUSED: u64 = MASKED;
}

/// One pin of an I/O APIC.
#[derive(Clone, Copy)]
struct Pin {
    /// The entry as the guest wrote it.
    shadow: u64,
    /// The entry as the hardware has it.
    hardware: u64,
    /// What a level line raised and the guest has not ended.
    in_service: Option<Raised>,
    /// The hypervisor uses this pin; its fields stay as they are.
    is_kept: bool,
}

/// A vector on a pCPU.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Raised {
    vector: u8,
    apic_id: u8,
}

/// Where an I/O APIC is and what it has.
#[derive(Clone, Copy, Debug)]
pub struct IoapicInfo {
    /// Its index below [`IoapicHw`].
    pub index: usize,
    /// Where the guest finds its registers, as in the MADT.
    pub base: Gpa,
    /// The global system interrupt of its first pin.
    pub gsi_base: u32,
    /// Pins; those above 120 cannot be reached.
    pub nr_pins: u8,
    /// The id in the MADT.
    pub id: u8,
}

/// One I/O APIC.
struct Ioapic {
    info: IoapicInfo,
    select: u8,
    id: u8,
    pins: Vec<Pin>,
}

/// All I/O APICs, as the control domain sees them.
pub struct Ioapics {
    /// Vectors of the level pins, masked ones included.
    level: [AtomicU64; 4],
    /// Bit n: the guest has a vCPU on the pCPU with APIC id n.
    destinations: [u64; 4],
    units: Lock<Vec<Ioapic>>,
}

impl Ioapics {
    /// Takes over the I/O APICs and masks every pin that the hypervisor does not keep.
    ///
    /// `kept` are the global system interrupts of the hypervisor's own devices; `apic_ids` those of
    /// the pCPUs that carry the control domain's vCPUs (ids above 254 cannot be addressed).
    #[must_use]
    pub fn new(hw: &(impl IoapicHw + ?Sized), units: &[IoapicInfo], kept: &[u32], apic_ids: &[u32]) -> Self {
        let mut destinations = [0; 4];
        for id in apic_ids.iter().filter(|id| **id < 0xff) {
            destinations[(id >> 6) as usize] |= 1_u64 << (id & 63);
        }
        let unit = |info: &IoapicInfo| {
            let info = IoapicInfo { nr_pins: info.nr_pins.min(MAX_PINS), ..*info };
            let pin = |pin: u8| {
                let is_kept = kept.contains(&info.gsi_base.saturating_add(u32::from(pin)));
                if !is_kept {
                    write_entry(hw, info.index, pin, rte::UNUSED);
                }
                Pin { shadow: rte::UNUSED, hardware: rte::UNUSED, in_service: None, is_kept }
            };
            Ioapic { info, select: 0, id: info.id & 0xf, pins: (0..info.nr_pins).map(pin).collect() }
        };
        Self {
            level: [const { AtomicU64::new(0) }; 4],
            destinations,
            units: Lock::for_domain(Rank::Devices, DomId::DOM0, units.iter().map(unit).collect()),
        }
    }

    /// Whether an address lies in the window of an I/O APIC.
    #[must_use]
    pub fn contains(&self, gpa: Gpa) -> bool {
        self.units.lock().iter().any(|unit| unit.window_offset(gpa).is_some())
    }

    /// Reads 32 bits from a window; all ones where there is nothing.
    #[must_use]
    pub fn mmio_read(&self, gpa: Gpa) -> u32 {
        let units = self.units.lock();
        for unit in units.iter() {
            match unit.window_offset(gpa) {
                Some(WINDOW_INDEX) => return u32::from(unit.select),
                Some(WINDOW_DATA) => return unit.read(unit.select),
                Some(_) => return u32::MAX,
                None => {}
            }
        }
        u32::MAX
    }

    /// Writes 32 bits to a window; no effect where there is nothing.
    pub fn mmio_write(&self, hw: &(impl IoapicHw + ?Sized), gpa: Gpa, value: u32) {
        let mut units = self.units.lock();
        let found = units.iter_mut().find_map(|unit| unit.window_offset(gpa).map(|offset| (unit, offset)));
        let Some((unit, offset)) = found else { return };
        match offset {
            WINDOW_INDEX => unit.select = low_u8(u64::from(value)),
            WINDOW_DATA => {
                unit.write(hw, unit.select, value, &self.destinations);
                self.note_level_vectors(&units);
            }
            WINDOW_EOI => {
                let vector = low_u8(u64::from(value));
                unit.end(hw, &self.destinations, |raised| raised.vector == vector);
            }
            _ => {}
        }
    }

    /// A physical interrupt with this vector has arrived on the pCPU with this APIC id. Masks the
    /// level pins that raise it, and says how to post it. The caller then ends it on the physical
    /// local APIC.
    #[must_use]
    pub fn arrived(&self, hw: &(impl IoapicHw + ?Sized), vector: u8, apic_id: u32) -> Trigger {
        let (word, bit) = (usize::from(vector >> 6), 1 << (vector & 63));
        if self.level[word].load(Ordering::Acquire) & bit == 0 {
            return Trigger::Edge;
        }
        let Ok(apic_id) = u8::try_from(apic_id) else { return Trigger::Edge };
        let raised = Raised { vector, apic_id };
        let mut units = self.units.lock();
        let mut trigger = Trigger::Edge;
        for unit in units.iter_mut() {
            for number in 0..unit.info.nr_pins {
                if unit.serve(hw, number, raised) {
                    trigger = Trigger::Level;
                }
            }
        }
        trigger
    }

    /// The vCPU with this APIC id has ended a level-triggered interrupt: its lines can fire again.
    pub fn end_of_interrupt(&self, hw: &(impl IoapicHw + ?Sized), vector: u8, apic_id: u32) {
        let mut units = self.units.lock();
        for unit in units.iter_mut() {
            unit.end(hw, &self.destinations, |r| r.vector == vector && u32::from(r.apic_id) == apic_id);
        }
    }

    /// Recomputes which vectors [`Ioapics::arrived`] has to look for.
    fn note_level_vectors(&self, units: &[Ioapic]) {
        let mut level = [0_u64; 4];
        for pin in units.iter().flat_map(|unit| &unit.pins).filter(|pin| pin.hardware & rte::LEVEL != 0) {
            let vector = low_u8(pin.hardware);
            level[usize::from(vector >> 6)] |= 1 << (vector & 63);
        }
        for (word, bits) in self.level.iter().zip(level) {
            // Release: who sees the bit takes the lock and finds the pin.
            word.store(bits, Ordering::Release);
        }
    }
}

impl Pin {
    /// Whether this is a level pin that raises this. It may be masked: then the interrupt was on
    /// its way already.
    fn raises(&self, raised: Raised) -> bool {
        let target = low_u8(self.hardware >> rte::DESTINATION_SHIFT);
        self.hardware & rte::LEVEL != 0 && low_u8(self.hardware) == raised.vector && target == raised.apic_id
    }

    /// What the hardware's entry has to be.
    fn wanted(&self, destinations: &[u64; 4]) -> u64 {
        let vector = low_u8(self.shadow);
        // Fixed or lowest priority; the latter has one destination here, which makes it fixed.
        let is_interrupt = self.shadow & rte::DELIVERY_MODE & !(1 << 8) == 0;
        match self.target(destinations) {
            Some(id) if is_interrupt && GUEST_VECTORS.contains(&vector) => {
                let mask = if self.in_service.is_some() { rte::MASKED } else { self.shadow & rte::MASKED };
                let polarity_and_trigger = self.shadow & (rte::LOW_POLARITY | rte::LEVEL);
                u64::from(id) << rte::DESTINATION_SHIFT | mask | polarity_and_trigger | u64::from(vector)
            }
            _ => rte::UNUSED,
        }
    }

    /// The APIC id that the entry is sent to, if the guest has a vCPU there. An 8-bit logical
    /// destination in x2APIC mode names members of cluster 0; the first of them gets the interrupt.
    fn target(&self, destinations: &[u64; 4]) -> Option<u8> {
        let field = self.shadow >> rte::DESTINATION_SHIFT;
        if self.shadow & rte::LOGICAL != 0 {
            let members = field & destinations[0];
            return (members != 0).then(|| low_u8(u64::from(members.trailing_zeros())));
        }
        let id = low_u8(field);
        (destinations[usize::from(id >> 6)] & 1 << (id & 63) != 0).then_some(id)
    }
}

impl Ioapic {
    fn window_offset(&self, gpa: Gpa) -> Option<u64> {
        let offset = gpa.raw().checked_sub(self.info.base.raw())?;
        (offset < WINDOW_BYTES).then_some(offset)
    }

    fn pin(&self, pin: u8) -> Option<&Pin> {
        self.pins.get(usize::from(pin))
    }

    fn read(&self, register: u8) -> u32 {
        match register {
            REG_ID | REG_ARBITRATION => u32::from(self.id) << 24,
            REG_VERSION => VERSION | u32::from(self.info.nr_pins.saturating_sub(1)) << 16,
            _ => {
                let Some((pin, is_high)) = pin_register(register) else { return u32::MAX };
                let Some(pin) = self.pin(pin) else { return u32::MAX };
                let remote_irr = if pin.in_service.is_some() { rte::REMOTE_IRR } else { 0 };
                let value = pin.shadow | remote_irr;
                if is_high { high_u32(value) } else { low_u32(value) }
            }
        }
    }

    fn write(&mut self, hw: &(impl IoapicHw + ?Sized), register: u8, value: u32, destinations: &[u64; 4]) {
        if register == REG_ID {
            self.id = low_u8(u64::from(value >> 24)) & 0xf;
            return;
        }
        let Some((number, is_high)) = pin_register(register) else { return };
        let Some(pin) = self.pins.get_mut(usize::from(number)).filter(|p| !p.is_kept) else { return };
        let value = u64::from(value);
        let shadow = if is_high { pin.shadow & 0xffff_ffff | value << 32 } else { pin.shadow >> 32 << 32 | value };
        pin.shadow = shadow & rte::WRITABLE;
        if pin.shadow & rte::LEVEL == 0 {
            pin.in_service = None;
        }
        self.program(hw, number, destinations);
    }

    /// Brings the hardware's entry up to date.
    fn program(&mut self, hw: &(impl IoapicHw + ?Sized), number: u8, destinations: &[u64; 4]) {
        let index = self.info.index;
        let Some(pin) = self.pins.get_mut(usize::from(number)) else { return };
        let wanted = pin.wanted(destinations);
        if wanted == pin.hardware {
            return;
        }
        if (wanted ^ pin.hardware) & !rte::MASKED == 0 {
            hw.write(index, entry_register(number), low_u32(wanted));
        } else {
            if pin.hardware & rte::LEVEL != 0 {
                // A pin that waits for the EOI of a vector which it no longer has would wait for
                // ever. Going through edge mode ends the wait.
                hw.write(index, entry_register(number), low_u32(pin.hardware & !rte::LEVEL | rte::MASKED));
            }
            write_entry(hw, index, number, wanted);
        }
        pin.hardware = wanted;
    }

    /// Masks a level pin if it raises this; `true` if it does.
    fn serve(&mut self, hw: &(impl IoapicHw + ?Sized), number: u8, raised: Raised) -> bool {
        let index = self.info.index;
        let Some(pin) = self.pins.get_mut(usize::from(number)).filter(|pin| pin.raises(raised)) else { return false };
        pin.in_service = Some(raised);
        if pin.hardware & rte::MASKED == 0 {
            pin.hardware |= rte::MASKED;
            hw.write(index, entry_register(number), low_u32(pin.hardware));
        }
        true
    }

    /// Ends the service of every pin for which `is_ended` holds.
    fn end(&mut self, hw: &(impl IoapicHw + ?Sized), destinations: &[u64; 4], is_ended: impl Fn(Raised) -> bool) {
        for number in 0..self.info.nr_pins {
            let Some(pin) = self.pins.get_mut(usize::from(number)) else { return };
            if pin.in_service.is_some_and(&is_ended) {
                pin.in_service = None;
                self.program(hw, number, destinations);
            }
        }
    }
}

/// The register of the low half of a pin's entry.
fn entry_register(pin: u8) -> u8 {
    REG_FIRST_PIN.wrapping_add(pin.wrapping_mul(2))
}

/// The pin that a register belongs to, and whether it is the high half.
fn pin_register(register: u8) -> Option<(u8, bool)> {
    let offset = register.checked_sub(REG_FIRST_PIN)?;
    Some((offset / 2, offset % 2 == 1))
}

/// Writes a whole entry so that no mixture of old and new can fire.
fn write_entry(hw: &(impl IoapicHw + ?Sized), index: usize, pin: u8, entry: u64) {
    let register = entry_register(pin);
    hw.write(index, register, low_u32(entry | rte::MASKED));
    hw.write(index, register.wrapping_add(1), high_u32(entry));
    if entry & rte::MASKED == 0 {
        hw.write(index, register, low_u32(entry));
    }
}

#[cfg(test)]
#[path = "ioapic_tests.rs"]
mod tests;
