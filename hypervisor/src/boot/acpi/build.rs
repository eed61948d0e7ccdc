// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tables for domains.
//!
//! dom0 runs the machine's AML and drives its devices, so it gets the host's own tables, except
//! those that describe what the hypervisor keeps (IOMMUs, the timer, all CPUs and their
//! topology). A new root pointer leads to a new XSDT with the tables that stay and a new MADT: dom0's
//! vCPUs, each with the APIC id of the CPU whose interrupts it takes, and one entry for each
//! of the host's I/O APICs. Tables are kept by name from a list, so that what is not known is withheld.
//!
//! A guest has no devices to be found, so it gets the least that Linux takes: *hardware-reduced*
//! ACPI (no PM timer, no event registers, no legacy interrupt controller), an empty DSDT and a
//! MADT with its vCPUs. Without a MADT Linux would install no timer at all and hang.
//!
//! An entry's processor UID is the vCPU's id: that is how Linux finds the vCPU's number. All entries are
//! local APICs, or all are x2APICs when some id does not fit: Linux 6.12 ignores part of a mixed list.

use alloc::vec::Vec;

use guest_abi::num::{low_u8, low_u32, to_usize};

use super::{
    AcpiError, Signature,
    host::{HostAcpi, IoApic, Override, Table},
    sum,
};
use crate::boot::span::{Span, Spans};

/// A set of tables, made to be written to one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// Where the bytes go, guest physical.
    pub at: u64,
    /// The root pointer's address.
    pub rsdp: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

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
    let links = host.fadt.as_ref().and_then(|fadt| fadt.links);
    let missing = links.map_or_else(Vec::new, |links| links.missing_overrides(&host.madt.overrides));
    let overrides: Vec<Override> = host.madt.overrides.iter().copied().chain(missing).collect();
    let madt = maker.madt(apic_ids, &host.madt.io_apics, &overrides);
    let kept = host.tables.iter().filter(|table| is_kept(table)).map(|table| table.span.start());
    let list: Vec<u64> = kept.chain([madt]).collect();
    let withheld = host.tables.iter().filter(|table| !is_kept(table) && table.signature.0 != *b"APIC");
    Ok((maker.finish(room, &list)?, withheld.map(|table| table.signature).collect()))
}

/// Makes a guest's tables, at the start of `room`. `apic_ids` are those of its vCPUs, in order.
///
/// # Errors
/// [`AcpiError::NoRoom`].
pub fn for_guest(room: Span, apic_ids: &[u32]) -> Result<Tables, AcpiError> {
    let mut maker = Maker::new(room.start(), *b"ISTHMU");
    let dsdt = maker.table(b"DSDT", 2, &[]);
    let fadt = maker.fadt(dsdt);
    let madt = maker.madt(apic_ids, &[], &[]);
    maker.finish(room, &[fadt, madt])
}

/// Puts one table behind the other.
struct Maker {
    at: u64,
    oem: [u8; 6],
    bytes: Vec<u8>,
}

const HEADER: usize = super::HEADER;
/// Where CPUs see their local APIC. Linux wants an address even if it never uses it.
const LOCAL_APIC: u32 = 0xfee0_0000;

impl Maker {
    fn new(at: u64, oem: [u8; 6]) -> Self {
        Self { at, oem, bytes: Vec::new() }
    }

    /// Starts at the next multiple of 16, and says where that is.
    fn align(&mut self) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        self.at + self.bytes.len() as u64
    }

    /// Adds a table (§5.2.6) and returns its address.
    fn table(&mut self, signature: &[u8; 4], revision: u8, body: &[u8]) -> u64 {
        let at = self.align();
        let start = self.bytes.len();
        let len = low_u32((HEADER + body.len()) as u64);
        self.bytes.extend(signature);
        self.bytes.extend(len.to_le_bytes());
        self.bytes.extend([revision, 0]);
        self.bytes.extend(self.oem);
        self.bytes.extend(b"ISTHMUS ");
        self.bytes.extend(1u32.to_le_bytes());
        self.bytes.extend(b"ISTH");
        self.bytes.extend(1u32.to_le_bytes());
        self.bytes.extend(body);
        self.bytes[start + 9] = sum(&self.bytes[start..]).wrapping_neg();
        at
    }

    /// A MADT (§5.2.12) without the flag that says there is a legacy interrupt controller.
    fn madt(&mut self, apic_ids: &[u32], io_apics: &[IoApic], overrides: &[Override]) -> u64 {
        const ENABLED: u32 = 1;
        let mut body = Vec::new();
        body.extend(LOCAL_APIC.to_le_bytes());
        body.extend(0u32.to_le_bytes());
        // UIDs are vCPU numbers, which need a wide entry as soon as ids do.
        let narrow = apic_ids.len() <= 255 && apic_ids.iter().all(|id| *id < 255);
        for (uid, id) in (0u32..).zip(apic_ids) {
            if narrow {
                body.extend([0, 8, low_u8(uid.into()), low_u8((*id).into())]);
                body.extend(ENABLED.to_le_bytes());
            } else {
                body.extend([9, 16, 0, 0]);
                [*id, ENABLED, uid].iter().for_each(|word| body.extend(word.to_le_bytes()));
            }
        }
        for io_apic in io_apics {
            body.extend([1, 12, io_apic.id, 0]);
            body.extend(io_apic.address.to_le_bytes());
            body.extend(io_apic.gsi_base.to_le_bytes());
        }
        for source in overrides {
            body.extend([2, 10, 0, source.irq]);
            body.extend(source.gsi.to_le_bytes());
            body.extend(source.flags.to_le_bytes());
        }
        self.table(b"APIC", 4, &body)
    }

    /// A hardware-reduced FADT, revision 6 (§5.2.9).
    fn fadt(&mut self, dsdt: u64) -> u64 {
        /// No VGA, no CMOS clock; bits 0 and 1 (legacy devices, keyboard controller) are clear.
        const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;
        /// WBINVD works; no fixed power and sleep buttons; hardware-reduced.
        const FLAGS: u32 = 1 | 1 << 4 | 1 << 5 | 1 << 20;
        let mut body = [0; 276 - HEADER];
        let mut put = |at: usize, value: &[u8]| body[at - HEADER..at - HEADER + value.len()].copy_from_slice(value);
        put(40, &low_u32(dsdt).to_le_bytes());
        put(109, &BOOT_ARCH.to_le_bytes());
        put(112, &FLAGS.to_le_bytes());
        put(140, &dsdt.to_le_bytes());
        put(268, b"ISTHMUS\0");
        self.table(b"FACP", 6, &body)
    }

    /// Adds the XSDT and the root pointer that leads to it.
    fn finish(mut self, room: Span, list: &[u64]) -> Result<Tables, AcpiError> {
        let list: Vec<u8> = list.iter().flat_map(|at| at.to_le_bytes()).collect();
        let xsdt = self.table(b"XSDT", 1, &list);
        let rsdp = self.align();
        let mut bytes = [0; 36];
        bytes[..8].copy_from_slice(b"RSD PTR ");
        bytes[9..15].copy_from_slice(&self.oem);
        bytes[15] = 2;
        bytes[20..24].copy_from_slice(&36u32.to_le_bytes());
        bytes[24..32].copy_from_slice(&xsdt.to_le_bytes());
        bytes[8] = sum(&bytes[..20]).wrapping_neg();
        bytes[32] = sum(&bytes).wrapping_neg();
        self.bytes.extend(bytes);
        let need = self.bytes.len() as u64;
        if need > room.len() {
            return Err(AcpiError::NoRoom { need, room: room.len() });
        }
        Ok(Tables { at: self.at, rsdp, bytes: self.bytes })
    }
}

impl Tables {
    /// The bytes of the table at an address, up to the end of the set.
    #[must_use]
    pub fn from_address(&self, at: u64) -> &[u8] {
        at.checked_sub(self.at).and_then(|offset| self.bytes.get(to_usize(offset)..)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::boot::{
        acpi::host::{Madt, RootPointer, tests::FakeMemory},
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
        let expected = Madt { local_apic: 0xfee0_0000, apic_ids: vec![0, 2, 4], ..Madt::default() };
        assert_eq!(seen.madt, expected);
        let fadt = seen.fadt.unwrap();
        assert_eq!((fadt.pm_timer, fadt.pm1a_control, fadt.reset, fadt.s5), (None, None, None, None));
        assert_eq!(&tables.from_address(fadt.dsdt)[..8], b"DSDT\x24\0\0\0");
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
                local_apic: 0xfee0_0000,
                apic_ids: vec![0, 1, 2, 3],
                io_apics: vec![
                    IoApic { id: 8, address: 0xfec0_0000, gsi_base: 0 },
                    IoApic { id: 9, address: 0xfec0_1000, gsi_base: 24 },
                ],
                overrides: vec![Override { irq: 0, gsi: 2, flags: 0 }, Override { irq: 9, gsi: 9, flags: 0xd }],
            },
            fadt: None,
            mcfg: vec![],
            hpet: None,
            iommus: vec![],
            complaints: vec![],
        };
        let others = [(maker.at, maker.bytes)];
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
        let dsdt = Table { signature: Signature(*b"DSDT"), span: Span::sized(seen.fadt.unwrap().dsdt, 36) };
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
