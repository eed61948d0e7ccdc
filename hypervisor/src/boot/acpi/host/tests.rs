// SPDX-License-Identifier: MIT OR Apache-2.0
//! The walker over made-up machines, and over any damage to them.

use guest_abi::num::low_u32;
use proptest::prelude::*;

use super::*;

/// Memory with something at some places.
#[derive(Clone, Default)]
pub(crate) struct FakeMemory {
    pub(crate) pieces: Vec<(u64, Vec<u8>)>,
}

impl PhysRead for FakeMemory {
    fn read(&self, at: u64, bytes: &mut [u8]) -> bool {
        let piece = self.pieces.iter().find_map(|(start, piece)| {
            piece.get(to_usize(at.checked_sub(*start)?)..).filter(|rest| rest.len() >= bytes.len())
        });
        match piece {
            Some(rest) => bytes.copy_from_slice(&rest[..bytes.len()]),
            None => return false,
        }
        true
    }
}

fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut bytes = signature.to_vec();
    bytes.extend(low_u32((36 + body.len()) as u64).to_le_bytes());
    bytes.extend([1, 0]);
    bytes.resize(36, b'x');
    bytes.extend(body);
    bytes[9] = sum(&bytes).wrapping_neg();
    bytes
}

fn madt_body() -> Vec<u8> {
    let mut body = vec![0, 0, 0xe0, 0xfe, 1, 0, 0, 0];
    body.extend([0, 8, 0, 0, 1, 0, 0, 0]);
    body.extend([0, 8, 1, 2, 1, 0, 0, 0]);
    // Not enabled, then the second CPU once more as an x2APIC, then a large one.
    body.extend([0, 8, 2, 4, 0, 0, 0, 0]);
    body.extend([9, 16, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]);
    body.extend([9, 16, 0, 0, 0x2c, 1, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0]);
    body.extend([1, 12, 8, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
    body.extend([2, 10, 0, 9, 9, 0, 0, 0, 0xd, 0]);
    body.extend([4, 6, 0xff, 0, 0, 1]);
    body
}

fn fadt_body() -> Vec<u8> {
    let mut body = vec![0; 244 - 36];
    let mut put = |at: usize, bytes: &[u8]| body[at - 36..at - 36 + bytes.len()].copy_from_slice(bytes);
    put(40, &0x5000u32.to_le_bytes());
    body
}

/// A machine like QEMU's, with a root table of the given width.
fn machine(wide: bool) -> FakeMemory {
    let mut dsdt_body = vec![0xaa; 1020 - 36];
    // Over a seam of the search's steps.
    dsdt_body.extend(b"\x08_HID\x0c\x41\xd0\x0c\x0f\x08_PRS\x11\x06\x0a\x03\x23\x20\x0c\x18\x79\0");
    let mut dmar = vec![0; 12];
    dmar.extend([0, 0, 16, 0, 1, 0, 0, 0, 0, 0, 0xd9, 0xfe, 0, 0, 0, 0]);
    dmar.extend([1, 0, 24, 0]);
    dmar.extend([0; 20]);
    let mut mcfg = vec![0; 8];
    mcfg.extend(0xb000_0000u64.to_le_bytes());
    mcfg.extend([0, 0, 0, 255, 0, 0, 0, 0]);
    let mut hpet = vec![0; 8];
    hpet.extend(0xfed0_0000u64.to_le_bytes());
    let tables = [
        (0x1000, table(b"FACP", &fadt_body())),
        (0x2000, table(b"APIC", &madt_body())),
        (0x3000, table(b"DMAR", &dmar)),
        (0x3400, table(b"MCFG", &mcfg)),
        (0x3800, table(b"HPET", &hpet)),
    ];
    let width = if wide { 8 } else { 4 };
    let list: Vec<u8> = tables.iter().flat_map(|(at, _)| u64::to_le_bytes(*at)[..width].to_vec()).collect();
    let mut rsdp = b"RSD PTR \0QEMU  \0".to_vec();
    rsdp.resize(36, 0);
    if wide {
        rsdp[15] = 2;
        rsdp[20] = 36;
        rsdp[24..32].copy_from_slice(&0x4000u64.to_le_bytes());
    } else {
        rsdp[16..20].copy_from_slice(&0x4000u32.to_le_bytes());
    }
    rsdp[8] = sum(&rsdp[..20]).wrapping_neg();
    if wide {
        rsdp[32] = sum(&rsdp).wrapping_neg();
    }
    let mut rom = vec![0; 0x2_0000];
    rom[0x5b0..0x5d4].copy_from_slice(&rsdp);
    let mut pieces = tables.to_vec();
    pieces.push((0x4000, table(if wide { b"XSDT" } else { b"RSDT" }, &list)));
    pieces.push((0x5000, table(b"DSDT", &dsdt_body)));
    pieces.push((0xe_0000, rom));
    FakeMemory { pieces }
}

fn walk(memory: &FakeMemory) -> Result<HostAcpi, AcpiError> {
    HostAcpi::walk(memory, &RootPointer::find(memory)?)
}

/// Changes a byte of the table at an address; its sum is made right again if asked.
fn damage(memory: &mut FakeMemory, at: u64, offset: usize, value: u8, resum: bool) {
    let bytes = &mut memory.pieces.iter_mut().find(|(start, _)| *start == at).unwrap().1;
    bytes[offset] = value;
    if resum {
        bytes[9] = bytes[9].wrapping_sub(sum(bytes));
    }
}

#[test]
fn both_root_tables_lead_to_the_same_facts() {
    for wide in [false, true] {
        let host = walk(&machine(wide)).unwrap();
        assert_eq!(host.complaints, []);
        assert_eq!(host.madt.apic_ids, [0, 2, 300]);
        assert_eq!(host.madt.io_apics, [IoApic { id: 8, address: 0xfec0_0000, gsi_base: 0 }]);
        assert_eq!(host.madt.overrides, [Override { irq: 9, gsi: 9, flags: 0xd }]);
        // Interrupts 5, 10 and 11, active low.
        assert_eq!(host.links, Some(Links { choices: 0xc20, is_active_low: true }));
        assert_eq!(host.iommus, [Span::sized(0xfed9_0000, 0x1000)]);
        assert_eq!(host.tables[1].span, Span::sized(0x2000, 36 + madt_body().len() as u64));
    }
}

#[test]
fn amd_units_are_listed_once() {
    let mut ivrs = vec![0; 12];
    for kind in [0x10, 0x11] {
        ivrs.extend([kind, 0, 24, 0, 2, 0, 0x40, 0, 0, 0, 0xf8, 0xfe, 0, 0, 0, 0]);
        ivrs.extend([0; 8]);
    }
    assert_eq!(amd_units(&table(b"IVRS", &ivrs)), [Span::sized(0xfef8_0000, 16 << 10)]);
}

#[test]
fn a_broken_root_or_madt_stops_and_names_the_table() {
    assert_eq!(walk(&FakeMemory::default()), Err(AcpiError::NoRootPointer));
    let mut memory = machine(true);
    damage(&mut memory, 0x4000, 40, 1, false);
    assert_eq!(walk(&memory), Err(AcpiError::BadChecksum { table: Signature(*b"XSDT"), at: 0x4000 }));
    let mut memory = machine(true);
    damage(&mut memory, 0x4000, 0, b'R', true);
    assert_eq!(walk(&memory), Err(AcpiError::NotARootTable { table: Signature(*b"RSDT"), at: 0x4000 }));
    let mut memory = machine(true);
    damage(&mut memory, 0x2000, 50, 9, false);
    assert_eq!(walk(&memory), Err(AcpiError::BadChecksum { table: Signature(*b"APIC"), at: 0x2000 }));
    // An entry of no length would be walked for ever.
    let mut memory = machine(true);
    damage(&mut memory, 0x2000, 45, 0, true);
    assert_eq!(walk(&memory), Err(AcpiError::BadEntry { table: Signature(*b"APIC"), offset: 44 }));
    // One shorter than its kind.
    let mut memory = machine(true);
    damage(&mut memory, 0x2000, 44, 9, true);
    assert_eq!(walk(&memory), Err(AcpiError::BadEntry { table: Signature(*b"APIC"), offset: 44 }));
    let mut memory = machine(true);
    damage(&mut memory, 0x2000, 0, b'X', true);
    assert_eq!(walk(&memory), Err(AcpiError::NoMadt));
    let mut memory = machine(false);
    memory.pieces.retain(|(at, _)| *at != 0x4000);
    assert_eq!(walk(&memory), Err(AcpiError::Unreadable { table: Signature(*b"????"), at: 0x4000 }));
}

#[test]
fn other_broken_tables_are_complaints() {
    let mut memory = machine(true);
    damage(&mut memory, 0x1000, 50, 1, false);
    damage(&mut memory, 0x3000, 7, 0xff, false);
    memory.pieces.retain(|(at, _)| *at != 0x3400);
    let host = walk(&memory).unwrap();
    assert_eq!((host.links, host.iommus.len()), (None, 0));
    let named = [
        AcpiError::Unreadable { table: Signature(*b"????"), at: 0x3400 },
        AcpiError::BadChecksum { table: Signature(*b"FACP"), at: 0x1000 },
        AcpiError::BadLength { table: Signature(*b"DMAR"), at: 0x3000, len: 0xff00_0058 },
    ];
    assert_eq!(host.complaints, named);
}

#[test]
fn a_root_pointer_with_a_wrong_sum_is_passed_over() {
    let mut memory = machine(true);
    let rom = &mut memory.pieces.last_mut().unwrap().1;
    rom[0x5b0 + 33] = 1;
    let copy = rom[0x5b0..0x5d4].to_vec();
    assert_eq!(RootPointer::parse(&copy), Err(AcpiError::BadRootPointer));
    assert_eq!(walk(&memory), Err(AcpiError::NoRootPointer));
}

proptest! {
    #[test]
    fn no_damage_makes_the_walk_panic_or_run_on(
        changes in proptest::collection::vec((0..7usize, 0..300usize, any::<u8>(), any::<bool>()), 1..8), wide: bool
    ) {
        let mut memory = machine(wide);
        for (piece, offset, value, resum) in changes {
            let (at, len) = { let (at, bytes) = &memory.pieces[piece]; (*at, bytes.len()) };
            damage(&mut memory, at, offset % len, value, resum);
        }
        match walk(&memory) {
            Ok(host) => prop_assert!(!host.madt.apic_ids.is_empty()),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn any_bytes_are_a_root_pointer_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        prop_assert!(RootPointer::parse(&bytes).is_err());
    }
}
