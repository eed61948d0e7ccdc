// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tests of [`super`] against a model of the physical I/O APICs and local APICs.

use std::cell::{Cell, RefCell};

use proptest::prelude::*;

use super::*;

const BASE: u64 = 0xfec0_0000;
const PINS: u8 = 24;
const COM1_PIN: u8 = 4;

/// One physical I/O APIC with its lines. Interrupts it sends are collected.
struct Hardware {
    entries: RefCell<[u64; PINS as usize]>,
    lines: RefCell<[bool; PINS as usize]>,
    sent: RefCell<Vec<(u8, u8)>>,
    writes: Cell<usize>,
}

impl Hardware {
    fn new() -> Self {
        let mut entries = [rte::MASKED; PINS as usize];
        // As firmware left it: pin 3 armed, pin 4 used by the hypervisor.
        entries[3] = 0x33;
        entries[usize::from(COM1_PIN)] = 0xf1;
        Self {
            entries: RefCell::new(entries),
            lines: RefCell::new([false; PINS as usize]),
            sent: RefCell::new(Vec::new()),
            writes: Cell::new(0),
        }
    }

    /// Sends what a level line can send: asserted, not masked, the last one ended.
    fn settle(&self) {
        let mut entries = self.entries.borrow_mut();
        for (entry, line) in entries.iter_mut().zip(self.lines.borrow().iter()) {
            let fires = *entry & (rte::LEVEL | rte::MASKED | rte::REMOTE_IRR) == rte::LEVEL;
            if fires && *line {
                *entry |= rte::REMOTE_IRR;
                self.send(*entry);
            }
        }
    }

    fn send(&self, entry: u64) {
        self.sent.borrow_mut().push((low_u8(entry), low_u8(entry >> 56)));
    }

    fn set_line(&self, pin: u8, level: bool) {
        let was = std::mem::replace(&mut self.lines.borrow_mut()[usize::from(pin)], level);
        let entry = self.entries.borrow()[usize::from(pin)];
        if level && !was && entry & (rte::LEVEL | rte::MASKED) == 0 {
            self.send(entry);
        }
        self.settle();
    }

    /// The physical local APIC ends a vector: the broadcast reaches the I/O APIC.
    fn lapic_eoi(&self, vector: u8) {
        for entry in self.entries.borrow_mut().iter_mut().filter(|e| low_u8(**e) == vector) {
            *entry &= !rte::REMOTE_IRR;
        }
        self.settle();
    }

    fn entry(&self, pin: u8) -> u64 {
        self.entries.borrow()[usize::from(pin)]
    }
}

impl IoapicHw for Hardware {
    fn write(&self, ioapic: usize, register: u8, value: u32) {
        assert_eq!(ioapic, 0);
        self.writes.set(self.writes.get() + 1);
        let (pin, is_high) = pin_register(register).expect("a pin's register");
        assert_ne!(pin, COM1_PIN, "the hypervisor's pin was touched");
        {
            let entry = &mut self.entries.borrow_mut()[usize::from(pin)];
            let value = u64::from(value);
            *entry = if is_high {
                *entry & 0xffff_ffff | value << 32
            } else {
                let kept = if value & rte::LEVEL != 0 { *entry & rte::REMOTE_IRR } else { 0 };
                *entry >> 32 << 32 | value & !rte::REMOTE_IRR | kept
            };
        }
        self.settle();
    }
}

fn machine() -> (Hardware, Ioapics) {
    let hw = Hardware::new();
    let info = IoapicInfo { index: 0, base: Gpa::new(BASE), gsi_base: 0, nr_pins: PINS, id: 2 };
    let ioapics = Ioapics::new(&hw, &[info], &[u32::from(COM1_PIN)], &[0, 1]);
    (hw, ioapics)
}

fn set(ioapics: &Ioapics, hw: &Hardware, register: u8, value: u32) {
    ioapics.mmio_write(hw, Gpa::new(BASE), u32::from(register));
    ioapics.mmio_write(hw, Gpa::new(BASE + 0x10), value);
}

fn get(ioapics: &Ioapics, hw: &Hardware, register: u8) -> u32 {
    ioapics.mmio_write(hw, Gpa::new(BASE), u32::from(register));
    ioapics.mmio_read(Gpa::new(BASE + 0x10))
}

fn program(ioapics: &Ioapics, hw: &Hardware, pin: u8, entry: u64) {
    set(ioapics, hw, entry_register(pin) + 1, high_u32(entry));
    set(ioapics, hw, entry_register(pin), low_u32(entry));
}

const LEVEL_LOW: u64 = rte::LEVEL | rte::LOW_POLARITY;

#[test]
fn registers_identify_the_unit() {
    let (hw, ioapics) = machine();
    assert_eq!(get(&ioapics, &hw, 0), 2 << 24);
    assert_eq!(get(&ioapics, &hw, 1), 0x17_0020);
    assert_eq!(get(&ioapics, &hw, 2), 2 << 24);
    assert_eq!(ioapics.mmio_read(Gpa::new(BASE)), 2);
    assert_eq!(get(&ioapics, &hw, 3), u32::MAX);
    assert_eq!(get(&ioapics, &hw, 0x10 + 2 * PINS), u32::MAX);
    set(&ioapics, &hw, 0, 5 << 24);
    assert_eq!(get(&ioapics, &hw, 0), 5 << 24);
    assert!(ioapics.contains(Gpa::new(BASE + 0xfff)) && !ioapics.contains(Gpa::new(BASE + 0x1000)));
    assert!(!ioapics.contains(Gpa::new(BASE - 1)));
    assert_eq!(ioapics.mmio_read(Gpa::new(0)), u32::MAX);
}

#[test]
fn pins_that_firmware_left_armed_are_masked_at_the_start() {
    let (hw, ioapics) = machine();
    assert_eq!(hw.entry(3), rte::MASKED);
    assert_eq!(get(&ioapics, &hw, 0x16), 0x1_0000);
}

#[test]
fn an_edge_pin_reaches_the_hardware_as_written() {
    let (hw, ioapics) = machine();
    program(&ioapics, &hw, 1, 1 << 56 | 0x31);
    assert_eq!(hw.entry(1), 1 << 56 | 0x31);
    hw.set_line(1, true);
    assert_eq!(hw.sent.take(), [(0x31, 1)]);
    assert_eq!(ioapics.arrived(&hw, 0x31, 1), Trigger::Edge);
    assert_eq!(hw.entry(1) & rte::MASKED, 0);
    program(&ioapics, &hw, 2, rte::LOW_POLARITY | 0x32);
    assert_eq!(hw.entry(2), rte::LOW_POLARITY | 0x32);
}

#[test]
fn a_level_line_fires_once_until_the_guest_ends_it() {
    let (hw, ioapics) = machine();
    program(&ioapics, &hw, 9, LEVEL_LOW | 0x40);
    assert_eq!(hw.entry(9), LEVEL_LOW | 0x40);
    hw.set_line(9, true);
    assert_eq!(hw.sent.take(), [(0x40, 0)]);
    assert_eq!(ioapics.arrived(&hw, 0x40, 0), Trigger::Level);
    hw.lapic_eoi(0x40);
    assert_eq!(hw.sent.take(), [], "the line is still asserted");
    assert_eq!(get(&ioapics, &hw, entry_register(9)), low_u32(LEVEL_LOW | rte::REMOTE_IRR | 0x40));

    ioapics.end_of_interrupt(&hw, 0x40, 0);
    assert_eq!(hw.sent.take(), [(0x40, 0)], "nobody served the device");
    assert_eq!(ioapics.arrived(&hw, 0x40, 0), Trigger::Level);
    hw.lapic_eoi(0x40);
    hw.set_line(9, false);
    ioapics.end_of_interrupt(&hw, 0x40, 0);
    assert_eq!(hw.sent.take(), []);
    assert_eq!(get(&ioapics, &hw, entry_register(9)), low_u32(LEVEL_LOW | 0x40));
}

#[test]
fn the_same_vector_on_another_cpu_is_another_interrupt() {
    let (hw, ioapics) = machine();
    program(&ioapics, &hw, 9, LEVEL_LOW | 0x40);
    program(&ioapics, &hw, 10, 1 << 56 | LEVEL_LOW | 0x40);
    assert_eq!(ioapics.arrived(&hw, 0x40, 2), Trigger::Edge);
    assert_eq!(ioapics.arrived(&hw, 0x40, 0x100), Trigger::Edge);
    hw.set_line(9, true);
    hw.set_line(10, true);
    assert_eq!(ioapics.arrived(&hw, 0x40, 0), Trigger::Level);
    assert_eq!(hw.entry(10) & rte::MASKED, 0);
    assert_eq!(ioapics.arrived(&hw, 0x40, 1), Trigger::Level);
    hw.set_line(9, false);
    hw.set_line(10, false);
    ioapics.end_of_interrupt(&hw, 0x40, 1);
    assert_ne!(hw.entry(9) & rte::MASKED, 0);
    assert_eq!(hw.entry(10) & rte::MASKED, 0);
}

#[test]
fn masking_while_in_service_holds_after_the_eoi() {
    let (hw, ioapics) = machine();
    program(&ioapics, &hw, 9, LEVEL_LOW | 0x40);
    hw.set_line(9, true);
    assert_eq!(ioapics.arrived(&hw, 0x40, 0), Trigger::Level);
    hw.lapic_eoi(0x40);
    set(&ioapics, &hw, entry_register(9), low_u32(LEVEL_LOW | rte::MASKED | 0x40));
    ioapics.end_of_interrupt(&hw, 0x40, 0);
    assert_ne!(hw.entry(9) & rte::MASKED, 0);
    hw.sent.take();
    set(&ioapics, &hw, entry_register(9), low_u32(LEVEL_LOW | 0x40));
    assert_eq!(hw.sent.take(), [(0x40, 0)]);
}

#[test]
fn unmasking_while_in_service_waits_for_the_eoi() {
    let (hw, ioapics) = machine();
    program(&ioapics, &hw, 9, LEVEL_LOW | 0x40);
    hw.set_line(9, true);
    assert_eq!(ioapics.arrived(&hw, 0x40, 0), Trigger::Level);
    hw.lapic_eoi(0x40);
    hw.sent.take();
    // Moved to another CPU and vector while the handler runs: the EOI is still that of the old one.
    program(&ioapics, &hw, 9, 1 << 56 | LEVEL_LOW | 0x41);
    assert_eq!(hw.sent.take(), []);
    ioapics.end_of_interrupt(&hw, 0x40, 0);
    assert_eq!(hw.sent.take(), [(0x41, 1)]);
}

#[test]
fn an_interrupt_on_its_way_while_the_guest_masks_is_still_level() {
    let (hw, ioapics) = machine();
    program(&ioapics, &hw, 9, LEVEL_LOW | 0x40);
    hw.set_line(9, true);
    set(&ioapics, &hw, entry_register(9), low_u32(LEVEL_LOW | rte::MASKED | 0x40));
    assert_eq!(ioapics.arrived(&hw, 0x40, 0), Trigger::Level);
}

#[test]
fn a_pin_whose_vector_changed_before_the_eoi_does_not_hang() {
    let (hw, ioapics) = machine();
    program(&ioapics, &hw, 9, LEVEL_LOW | 0x40);
    hw.set_line(9, true);
    // The interrupt has not been taken by the hypervisor; its EOI will be for vector 0x40.
    program(&ioapics, &hw, 9, LEVEL_LOW | 0x50);
    assert_eq!(ioapics.arrived(&hw, 0x40, 0), Trigger::Edge);
    hw.lapic_eoi(0x40);
    assert_eq!(hw.sent.borrow().last(), Some(&(0x50, 0)));
}

#[test]
fn the_eoi_register_and_a_switch_to_edge_end_the_service() {
    let (hw, ioapics) = machine();
    program(&ioapics, &hw, 9, LEVEL_LOW | 0x40);
    hw.set_line(9, true);
    assert_eq!(ioapics.arrived(&hw, 0x40, 0), Trigger::Level);
    hw.lapic_eoi(0x40);
    hw.set_line(9, false);
    ioapics.mmio_write(&hw, Gpa::new(BASE + 0x40), 0x41);
    assert_ne!(hw.entry(9) & rte::MASKED, 0);
    ioapics.mmio_write(&hw, Gpa::new(BASE + 0x40), 0x40);
    assert_eq!(hw.entry(9) & rte::MASKED, 0);

    hw.set_line(9, true);
    assert_eq!(ioapics.arrived(&hw, 0x40, 0), Trigger::Level);
    hw.lapic_eoi(0x40);
    set(&ioapics, &hw, entry_register(9), 0x40);
    assert_eq!(get(&ioapics, &hw, entry_register(9)), 0x40);
    assert_eq!(hw.entry(9), 0x40);
}

#[test]
fn entries_that_could_harm_the_hypervisor_stay_masked() {
    let (hw, ioapics) = machine();
    let refused = [
        0x1f,
        0xec,
        0xf0,
        0xff,
        0x200 | 0x40,
        0x400 | 0x40,
        0x500 | 0x40,
        0x700 | 0x40,
        2 << 56 | 0x40,
        0xff << 56 | 0x40,
        4 << 56 | rte::LOGICAL | 0x40,
        rte::LOGICAL | 0x40,
    ];
    for entry in refused {
        program(&ioapics, &hw, 7, 0x50);
        program(&ioapics, &hw, 7, entry);
        assert_eq!(hw.entry(7), rte::MASKED, "{entry:#x}");
        assert_eq!(get(&ioapics, &hw, entry_register(7)), low_u32(entry));
        assert_eq!(get(&ioapics, &hw, entry_register(7) + 1), high_u32(entry));
    }
    for entry in [0x20, 0xeb, 0x100 | 0x40, 6 << 56 | rte::LOGICAL | 0x40] {
        program(&ioapics, &hw, 7, entry);
        assert_eq!(hw.entry(7) & (rte::MASKED | rte::LOGICAL | rte::DELIVERY_MODE), 0, "{entry:#x}");
    }
    assert_eq!(hw.entry(7) >> 56, 1, "the first member that the guest has");
}

#[test]
fn the_hypervisors_pin_reads_as_masked_and_cannot_be_written() {
    let (hw, ioapics) = machine();
    program(&ioapics, &hw, COM1_PIN, 0x40);
    assert_eq!(hw.entry(COM1_PIN), 0xf1);
    assert_eq!(get(&ioapics, &hw, entry_register(COM1_PIN)), 0x1_0000);
    assert_eq!(ioapics.arrived(&hw, 0xf1, 0), Trigger::Edge);
}

#[test]
fn a_storm_of_masking_costs_one_hardware_write_each_and_none_without_change() {
    let (hw, ioapics) = machine();
    program(&ioapics, &hw, 9, LEVEL_LOW | 0x40);
    let before = hw.writes.get();
    for _ in 0..100 {
        set(&ioapics, &hw, entry_register(9), low_u32(LEVEL_LOW | rte::MASKED | 0x40));
        set(&ioapics, &hw, entry_register(9), low_u32(LEVEL_LOW | 0x40));
        set(&ioapics, &hw, entry_register(9), low_u32(LEVEL_LOW | 0x40));
    }
    assert_eq!(hw.writes.get() - before, 200);
}

#[derive(Clone, Debug)]
enum Step {
    Write(u8, u32),
    Line(u8, bool),
    Take,
    Eoi(u8, u8),
}

fn step() -> impl Strategy<Value = Step> {
    let entry = prop_oneof![
        any::<u32>(),
        (0x20_u32..0x24, any::<bool>(), any::<bool>())
            .prop_map(|(v, level, masked)| v | u32::from(level) << 15 | u32::from(masked) << 16)
    ];
    let high = prop_oneof![Just(0_u32), Just(1 << 24), any::<u32>()];
    prop_oneof![
        (8_u8..11, entry).prop_map(|(pin, v)| Step::Write(0x10 + 2 * pin, v)),
        (8_u8..11, high).prop_map(|(pin, v)| Step::Write(0x11 + 2 * pin, v)),
        (any::<u8>(), any::<u32>()).prop_map(|(r, v)| Step::Write(r, v)),
        (8_u8..11, any::<bool>()).prop_map(|(pin, level)| Step::Line(pin, level)),
        Just(Step::Take),
        (0x20_u8..0x24, 0_u8..2).prop_map(|(v, cpu)| Step::Eoi(v, cpu)),
    ]
}

proptest! {
    /// Whatever the guest writes, only its own vectors reach only its own pCPUs, each level
    /// interrupt is masked until its EOI, and no line is lost.
    #[test]
    fn the_hardware_is_safe_and_nothing_hangs(steps in prop::collection::vec(step(), 1..120)) {
        let (hw, ioapics) = machine();
        let take = || {
            for (vector, cpu) in hw.sent.take() {
                assert!(GUEST_VECTORS.contains(&vector) && cpu < 2, "{vector:#x} to {cpu}");
                let trigger = ioapics.arrived(&hw, vector, u32::from(cpu));
                let sent_before = hw.sent.borrow().len();
                hw.lapic_eoi(vector);
                if trigger == Trigger::Level {
                    let again = hw.sent.borrow()[sent_before..].contains(&(vector, cpu));
                    assert!(!again, "fired again before the EOI");
                }
            }
        };
        for step in steps {
            let before = hw.writes.get();
            match step {
                Step::Write(register, value) => set(&ioapics, &hw, register, value),
                Step::Line(pin, level) => hw.set_line(pin, level),
                Step::Take => take(),
                Step::Eoi(vector, cpu) => ioapics.end_of_interrupt(&hw, vector, u32::from(cpu)),
            }
            prop_assert!(hw.writes.get() - before <= 12);
        }
        // Serve what is left; then a legal level entry must work on every pin.
        for pin in 8..11 {
            hw.set_line(pin, false);
        }
        take();
        for vector in GUEST_VECTORS {
            for cpu in 0..2 {
                ioapics.end_of_interrupt(&hw, vector, cpu);
            }
        }
        hw.sent.take();
        for pin in 8..11 {
            program(&ioapics, &hw, pin, LEVEL_LOW | (0x60 + u64::from(pin)));
            hw.set_line(pin, true);
            prop_assert_eq!(hw.sent.take(), [(0x60 + pin, 0)]);
            hw.set_line(pin, false);
        }
    }
}
