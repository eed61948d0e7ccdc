// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tables for domains.
//!
//! dom0 runs the machine's AML and drives its devices, so it gets the host's own tables, except
//! those that describe what the hypervisor keeps (IOMMUs, the timer, all CPUs and their
//! topology). A new root pointer leads to a new XSDT with the tables that stay and a new MADT: dom0's
//! vCPUs, each with the APIC id of the CPU whose interrupts it takes, and one entry for each
//! of the host's I/O APICs. Tables are kept by name from a list, so that what is not known is withheld.
//!
//! A guest's tables are made by [`pvh_loader::acpi`], as is what is new in dom0's.

use alloc::vec::Vec;

pub use pvh_loader::acpi::{Maker, Tables, for_guest};

use super::{
    AcpiError, Signature,
    host::{HostAcpi, Override, Table},
};
use crate::boot::span::{Span, Spans};

/// Names of host tables that dom0 sees. The FADT leads to the DSDT and the FACS.
const KEPT: [&[u8; 4]; 13] = [
    b"FACP", b"SSDT", b"PSDT", b"SBST", b"MCFG", b"SLIC", b"MSDM", b"WDAT", b"FPDT", b"S3PT", b"TCPA", b"TPM2", b"VFCT",
];

/// Makes dom0's tables, at the start of `room`.
///
/// `apic_ids` are those of dom0's vCPUs, in order. `visible` is the memory besides its RAM that dom0 reaches
/// at the host's addresses. The second part of the result lists what is withheld: tables not on the
/// list, and tables that lie where dom0 cannot read them.
///
/// # Errors
/// [`AcpiError::NoRoom`].
pub fn for_dom0(
    host: &HostAcpi,
    room: Span,
    apic_ids: &[u32],
    visible: &Spans,
) -> Result<(Tables, Vec<Signature>), AcpiError> {
    let is_kept = |table: &Table| {
        let name = &table.signature.0;
        (KEPT.contains(&name) || name.starts_with(b"OEM")) && visible.contains(table.span)
    };
    let mut maker = Maker::new(room.start(), host.oem);
    let missing = host.links.map_or_else(Vec::new, |links| links.missing_overrides(&host.madt.overrides));
    let overrides: Vec<Override> = host.madt.overrides.iter().copied().chain(missing).collect();
    let madt = maker.madt(apic_ids, &host.madt.io_apics, &overrides);
    let kept = host.tables.iter().filter(|table| is_kept(table)).map(|table| table.span.start());
    let list: Vec<u64> = kept.chain([madt]).collect();
    let withheld = host.tables.iter().filter(|table| !is_kept(table) && table.signature.0 != *b"APIC");
    Ok((maker.finish(room, &list)?, withheld.map(|table| table.signature).collect()))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use guest_abi::{Wire, num::to_usize};

    use super::*;
    use crate::boot::{
        acpi::host::{IoApic, Madt, RootPointer, tests::FakeMemory},
        pvh::GUEST_TABLES,
    };

    fn read_back(tables: &Tables, others: &[(u64, Vec<u8>)]) -> HostAcpi {
        let mut memory = FakeMemory::default();
        memory.pieces.push((tables.at, tables.bytes.clone()));
        memory.pieces.extend(others.iter().cloned());
        let root = RootPointer::at(&memory, tables.rsdp).unwrap();
        HostAcpi::walk(&memory, &root).unwrap()
    }

    #[test]
    fn a_guest_sees_its_vcpus_and_nothing_else() {
        let tables = for_guest(GUEST_TABLES, &[0, 2, 4]).unwrap();
        let seen = read_back(&tables, &[]);
        assert_eq!(seen.complaints, []);
        assert_eq!(seen.tables.iter().map(|table| table.signature.0).collect::<Vec<_>>(), [*b"FACP", *b"APIC"]);
        assert_eq!(seen.madt, Madt { apic_ids: vec![0, 2, 4], ..Madt::default() });
        // Only what it needs to switch itself off: no PM1a control, no PM timer, no reset register.
        let fadt = tables.from_address(seen.tables[0].span.start());
        assert_eq!((&fadt[64..68], &fadt[76..80], fadt[113] & 1 << 2), (&[0; 4][..], &[0; 4][..], 0));
        let definitions = definitions(&tables, &seen);
        assert_eq!(&definitions[..4], b"DSDT");
        assert_eq!(&definitions[36..49], b"\x08\\_S5_\x12\x06\x02\x0a\x05\x0a\0");
    }

    #[test]
    fn the_uid_is_the_vcpu_and_one_kind_of_entry_is_used() {
        let narrow = for_guest(GUEST_TABLES, &[7, 254]).unwrap();
        let madt = madt_body(&narrow);
        assert_eq!(madt, [0, 8, 0, 7, 1, 0, 0, 0, 0, 8, 1, 254, 1, 0, 0, 0]);
        let wide = for_guest(GUEST_TABLES, &[7, 255]).unwrap();
        let madt = madt_body(&wide);
        assert_eq!(madt[..16], [9, 16, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(madt[16..], [9, 16, 0, 0, 255, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(read_back(&wide, &[]).madt.apic_ids, [7, 255]);
    }

    /// The differentiated definition block and what follows it.
    fn definitions<'a>(tables: &'a Tables, seen: &HostAcpi) -> &'a [u8] {
        let fadt = tables.from_address(seen.tables[0].span.start());
        tables.from_address(u64::from_bytes(&fadt[140..148]))
    }

    fn madt_body(tables: &Tables) -> Vec<u8> {
        let seen = read_back(tables, &[]);
        let madt = seen.tables.iter().find(|table| table.signature.0 == *b"APIC").unwrap().span;
        tables.from_address(madt.start())[44..to_usize(madt.len())].to_vec()
    }

    #[test]
    fn dom0_keeps_the_listed_tables_and_gets_its_own_cpus() {
        let names: [&[u8; 4]; 9] = [b"FACP", b"APIC", b"HPET", b"DMAR", b"SSDT", b"OEM1", b"SRAT", b"MCFG", b"ZZZZ"];
        let mut maker = Maker::new(0x7fe_0000, *b"VENDOR");
        let pointers: Vec<_> = names.iter().map(|name| maker.table(name, 1, &[0; 16])).collect();
        let table = |(name, at): (&&[u8; 4], &u64)| Table { signature: Signature(**name), span: Span::sized(*at, 52) };
        let host = HostAcpi {
            oem: *b"VENDOR",
            tables: names.iter().zip(&pointers).map(table).collect(),
            madt: Madt {
                apic_ids: vec![0, 1, 2, 3],
                io_apics: vec![
                    IoApic { id: 8, address: 0xfec0_0000, gsi_base: 0 },
                    IoApic { id: 9, address: 0xfec0_1000, gsi_base: 24 },
                ],
                overrides: vec![Override { irq: 0, gsi: 2, flags: 0 }, Override { irq: 9, gsi: 9, flags: 0xd }],
            },
            links: None,
            iommus: vec![],
            complaints: vec![],
        };
        let made = maker.finish(Span::sized(0x7fe_0000, 64 << 10), &[]).unwrap();
        let others = [(made.at, made.bytes)];
        let room = Span::sized(0xff_0000, 64 << 10);
        let visible: Spans = [Span::new(0x7fe_0000, pointers[7])].into_iter().collect();
        let (tables, withheld) = for_dom0(&host, room, &[0, 1], &visible).unwrap();
        let seen = read_back(&tables, &others);
        let kept: Vec<_> = seen.tables.iter().map(|table| table.signature.0).collect();
        assert_eq!(kept, [*b"FACP", *b"SSDT", *b"OEM1", *b"APIC"]);
        // MCFG is on the list, but dom0 could not read it where it lies.
        assert_eq!(
            withheld.iter().map(|name| name.0).collect::<Vec<_>>(),
            [*b"HPET", *b"DMAR", *b"SRAT", *b"MCFG", *b"ZZZZ"]
        );
        assert_eq!(seen.madt, Madt { apic_ids: vec![0, 1], ..host.madt.clone() });
        assert_eq!(seen.oem, *b"VENDOR");
    }

    #[test]
    fn tables_larger_than_their_place_are_refused() {
        let room = Span::sized(0xfc00_0000, 0x180);
        assert!(for_guest(room, &[0]).is_err());
        let ids: Vec<u32> = (0..128).map(|i| i * 4).collect();
        assert!(for_guest(GUEST_TABLES, &ids).is_ok());
    }

    /// A second opinion, where Intel's compiler is installed: it takes every table apart without a complaint.
    #[test]
    fn iasl_accepts_the_tables() {
        if Command::new("iasl").arg("-v").output().is_err() {
            eprintln!("skipped: iasl (acpica-tools) is not installed");
            return;
        }
        let ids: Vec<u32> = vec![0, 1, 300];
        let tables = for_guest(GUEST_TABLES, &ids).unwrap();
        let seen = read_back(&tables, &[]);
        let dir = std::env::temp_dir().join(format!("isthmus-iasl-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let dsdt = tables.at + (tables.bytes.len() - definitions(&tables, &seen).len()) as u64;
        let dsdt = Table { signature: Signature(*b"DSDT"), span: Span::sized(dsdt, 36) };
        for table in seen.tables.iter().chain([&dsdt]) {
            let file = dir.join(format!("{}.dat", table.signature));
            let bytes = &tables.from_address(table.span.start())[..to_usize(table.span.len())];
            std::fs::write(&file, bytes).unwrap();
            let output = Command::new("iasl").arg("-d").arg(&file).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}: {text}", table.signature);
            for bad in ["Error", "Warning", "Invalid", "incorrect", "Incorrect"] {
                assert!(!text.contains(bad), "{}: {text}", table.signature);
            }
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
