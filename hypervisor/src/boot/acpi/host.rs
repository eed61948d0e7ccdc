// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host's tables, walked from the root pointer.

use alloc::{vec, vec::Vec};

use guest_abi::{Wire, num::to_usize};

pub use pvh_loader::acpi::{IoApic, Override};

use super::links::{self, Links};
use super::{AcpiError, HEADER, Header, PhysRead, Signature, sum};
use crate::{addr::PAGE_SIZE, boot::span::Span};

/// What the hypervisor takes from the host's tables. Addresses are host physical.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostAcpi {
    /// The vendor's name, from the root pointer.
    pub oem: [u8; 6],
    /// Every table that the root table names, in its order.
    pub tables: Vec<Table>,
    /// CPUs and interrupt controllers.
    pub madt: Madt,
    /// What the PCI interrupt links may choose, if there are any.
    pub links: Option<Links>,
    /// The registers of each IOMMU (DMAR or IVRS), to be withheld from dom0.
    pub iommus: Vec<Span>,
    /// Tables that are broken and were treated as absent.
    pub complaints: Vec<AcpiError>,
}

impl HostAcpi {
    /// A machine whose firmware has no tables: nothing is known of it but the CPU that runs. Guests need no more.
    #[must_use]
    pub fn absent(boot_apic_id: u32) -> Self {
        let madt = Madt { apic_ids: vec![boot_apic_id], ..Madt::default() };
        let (tables, iommus, complaints) = (Vec::new(), Vec::new(), Vec::new());
        Self { oem: *b"ABSENT", tables, madt, links: None, iommus, complaints }
    }
}

/// A table of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its name.
    pub signature: Signature,
    /// Where it is.
    pub span: Span,
}

/// The multiple APIC description table (§5.2.12).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Madt {
    /// APIC ids of the enabled CPUs, each once, in the table's order: the boot CPU usually is the first.
    pub apic_ids: Vec<u32>,
    /// The I/O APICs.
    pub io_apics: Vec<IoApic>,
    /// ISA interrupts that are not wired one to one.
    pub overrides: Vec<Override>,
}

/// The root pointer's contents (§5.2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootPointer {
    oem: [u8; 6],
    table: u64,
    wide: bool,
}

const MAX_TABLES: usize = 256;
const MAX_CPUS: usize = 4096;
const MAX_IO_APICS: usize = 64;
const MAX_ENTRIES: usize = 4096;

/// A field of a table; zero where the table ends before it, as older revisions do.
fn field<T: Wire + Default>(bytes: &[u8], at: usize) -> T {
    bytes.get(at..).filter(|rest| rest.len() >= T::SIZE).map(T::from_bytes).unwrap_or_default()
}

impl RootPointer {
    /// Reads a root pointer, such as the copy that multiboot2 makes of it.
    ///
    /// # Errors
    /// [`AcpiError::BadRootPointer`] if it is none or its sum is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, AcpiError> {
        let old = bytes.get(..20).ok_or(AcpiError::BadRootPointer)?;
        if !old.starts_with(b"RSD PTR ") || sum(old) != 0 {
            return Err(AcpiError::BadRootPointer);
        }
        let oem = field(old, 9);
        let rsdt = u64::from(field::<u32>(old, 16));
        let xsdt = if old[15] >= 2 { Self::extended(bytes)? } else { 0 };
        let (table, wide) = if xsdt != 0 { (xsdt, true) } else { (rsdt, false) };
        Ok(Self { oem, table, wide })
    }

    fn extended(bytes: &[u8]) -> Result<u64, AcpiError> {
        let len = to_usize(u64::from(field::<u32>(bytes, 20)));
        let all = bytes.get(..len).filter(|all| all.len() >= 36 && sum(all) == 0);
        all.map(|all| field(all, 24)).ok_or(AcpiError::BadRootPointer)
    }

    /// Reads the root pointer at an address.
    ///
    /// # Errors
    /// As [`RootPointer::parse`]; [`AcpiError::NoRootPointer`] if nothing is there.
    pub fn at(memory: &impl PhysRead, at: u64) -> Result<Self, AcpiError> {
        let mut bytes = [0; 36];
        if memory.read(at, &mut bytes) || memory.read(at, &mut bytes[..20]) {
            Self::parse(&bytes)
        } else {
            Err(AcpiError::NoRootPointer)
        }
    }

    /// Searches where a BIOS puts it (§5.2.5.1): the first KiB of the extended BIOS data area, then the ROM area.
    ///
    /// # Errors
    /// [`AcpiError::NoRootPointer`] if no valid one is there.
    pub fn find(memory: &impl PhysRead) -> Result<Self, AcpiError> {
        let mut segment = [0; 2];
        let ebda = if memory.read(0x40e, &mut segment) { u64::from(u16::from_le_bytes(segment)) << 4 } else { 0 };
        let areas = [(ebda, ebda + 1024), (0xe_0000, 0x10_0000)];
        let places = areas.into_iter().flat_map(|(start, end)| (start..end).step_by(16));
        places.filter_map(|at| Self::at(memory, at).ok()).next().ok_or(AcpiError::NoRootPointer)
    }
}

impl HostAcpi {
    /// Walks the tables.
    ///
    /// # Errors
    /// What is wrong with the root table or the MADT. Other broken tables are complaints.
    pub fn walk(memory: &impl PhysRead, root: &RootPointer) -> Result<Self, AcpiError> {
        let mut complaints = Vec::new();
        let tables = root_table(memory, root, &mut complaints)?;
        let find = |signature: &[u8; 4]| tables.iter().find(|table| table.signature.0 == *signature);
        let madt = find(b"APIC").ok_or(AcpiError::NoMadt)?;
        let madt = Madt::parse(&madt.read(memory)?)?;
        let mut optional = |signature: &[u8; 4]| {
            let bytes = find(signature)?.read(memory);
            bytes.map_err(|error| complaints.push(error)).ok()
        };
        let links = optional(b"FACP").and_then(|bytes| find_links(memory, dsdt(&bytes)));
        let mut iommus = optional(b"DMAR").map(|bytes| vtd_units(&bytes)).unwrap_or_default();
        iommus.extend(optional(b"IVRS").map(|bytes| amd_units(&bytes)).unwrap_or_default());
        Ok(Self { oem: root.oem, madt, links, iommus, complaints, tables })
    }
}

impl Table {
    fn read(&self, memory: &impl PhysRead) -> Result<Vec<u8>, AcpiError> {
        let at = self.span.start();
        Header::read(memory, at)?.whole(memory, at)
    }
}

fn root_table(
    memory: &impl PhysRead,
    root: &RootPointer,
    complaints: &mut Vec<AcpiError>,
) -> Result<Vec<Table>, AcpiError> {
    let at = root.table;
    let header = Header::read(memory, at)?;
    let name = if root.wide { b"XSDT" } else { b"RSDT" };
    if header.signature.0 != *name {
        return Err(AcpiError::NotARootTable { table: header.signature, at });
    }
    let bytes = header.whole(memory, at)?;
    let pointers: Vec<u64> = if root.wide {
        bytes[HEADER..].chunks_exact(8).map(u64::from_bytes).collect()
    } else {
        bytes[HEADER..].chunks_exact(4).map(|bytes| u64::from(u32::from_bytes(bytes))).collect()
    };
    if pointers.len() > MAX_TABLES {
        return Err(AcpiError::TooMany { table: header.signature });
    }
    let mut tables = Vec::new();
    for at in pointers.into_iter().filter(|at| *at != 0) {
        match Header::read(memory, at) {
            Ok(header) => tables.push(Table { signature: header.signature, span: Span::sized(at, header.len.into()) }),
            Err(error) => complaints.push(error),
        }
    }
    Ok(tables)
}

/// A structure inside a table: its type number, where it is, and its bytes.
struct Structure<'a> {
    kind: u16,
    offset: usize,
    bytes: &'a [u8],
}

/// Cuts the rest of a table from `start` into structures; `head` reads type and length of each.
/// A structure of no length, or longer than the table, ends the walk with an error.
fn structures(
    table: &[u8],
    start: usize,
    head: fn(&[u8]) -> (u16, u16),
) -> impl Iterator<Item = Result<Structure<'_>, AcpiError>> {
    let mut offset = start;
    let mut done = false;
    core::iter::from_fn(move || {
        let rest = table.get(offset..).filter(|rest| !rest.is_empty() && !done)?;
        let (kind, len) = head(rest);
        match rest.get(..usize::from(len)).filter(|bytes| bytes.len() >= 2) {
            Some(bytes) => {
                let structure = Structure { kind, offset, bytes };
                offset += bytes.len();
                Some(Ok(structure))
            }
            None => {
                done = true;
                Some(Err(AcpiError::BadEntry { table: Signature(field(table, 0)), offset }))
            }
        }
    })
    .take(MAX_ENTRIES)
}

impl Madt {
    fn parse(table: &[u8]) -> Result<Self, AcpiError> {
        let signature = Signature(field(table, 0));
        let mut madt = Self::default();
        for structure in structures(table, 44, |rest| (field::<u8>(rest, 0).into(), field::<u8>(rest, 1).into())) {
            let Structure { kind, offset, bytes } = structure?;
            let least = match kind {
                0 => 8,
                1 => 12,
                2 => 10,
                9 => 16,
                _ => continue,
            };
            if bytes.len() < least {
                return Err(AcpiError::BadEntry { table: signature, offset });
            }
            match kind {
                0 => madt.add_cpu(u32::from(bytes[3]), field(bytes, 4)),
                1 => madt.io_apics.push(IoApic { id: bytes[2], address: field(bytes, 4), gsi_base: field(bytes, 8) }),
                2 => madt.overrides.push(Override { irq: bytes[3], gsi: field(bytes, 4), flags: field(bytes, 8) }),
                _ => madt.add_cpu(field(bytes, 4), field(bytes, 8)),
            }
            if madt.apic_ids.len() > MAX_CPUS || madt.io_apics.len() > MAX_IO_APICS {
                return Err(AcpiError::TooMany { table: signature });
            }
        }
        if madt.apic_ids.is_empty() { Err(AcpiError::NoCpu) } else { Ok(madt) }
    }

    /// Some firmware lists a CPU as local APIC and as local x2APIC.
    fn add_cpu(&mut self, apic_id: u32, flags: u32) {
        if flags & 1 != 0 && !self.apic_ids.contains(&apic_id) {
            self.apic_ids.push(apic_id);
        }
    }
}

/// Where a fixed ACPI description table (§5.2.9) has the differentiated definition block. The wide field holds if it is
/// set, the narrow one is what old revisions have.
fn dsdt(fadt: &[u8]) -> u64 {
    let wide: u64 = field(fadt, 140);
    if wide != 0 { wide } else { field::<u32>(fadt, 40).into() }
}

/// Looks for interrupt links in a definition block piece by piece; one lies in one of them whole.
fn find_links(memory: &impl PhysRead, dsdt: u64) -> Option<Links> {
    const STEP: usize = 1024;
    const LOOK_AHEAD: usize = links::LOOK_AHEAD;
    let header = Header::read(memory, dsdt).ok().filter(|header| header.signature.0 == *b"DSDT")?;
    let end = dsdt.checked_add(header.len.min(super::MAX_LEN).into())?;
    let mut window = [0; STEP + LOOK_AHEAD];
    let mut at = dsdt;
    while at < end {
        let len = to_usize((end - at).min((STEP + LOOK_AHEAD) as u64));
        let bytes = &mut window[..len];
        if !memory.read(at, bytes) {
            return None;
        }
        let found = links::find(bytes);
        if found.is_some() {
            return found;
        }
        at += STEP as u64;
    }
    None
}

/// The remapping units of a DMAR table (*Intel VT-d 4.1*, §8.3).
fn vtd_units(table: &[u8]) -> Vec<Span> {
    let units = structures(table, 48, |rest| (field(rest, 0), field(rest, 2)));
    let units = units.map_while(Result::ok).filter(|unit| unit.kind == 0);
    units.map(|unit| Span::sized(field(unit.bytes, 8), PAGE_SIZE as u64)).collect()
}

/// The units of an IVRS table (*AMD I/O Virtualization Technology 3.08*, §5.2.2). Each may be described
/// several times.
fn amd_units(table: &[u8]) -> Vec<Span> {
    let mut units = Vec::new();
    let blocks = structures(table, 48, |rest| (field::<u8>(rest, 0).into(), field(rest, 2)));
    for block in blocks.map_while(Result::ok).filter(|block| matches!(block.kind, 0x10 | 0x11 | 0x40)) {
        let unit = Span::sized(field(block.bytes, 8), 16 << 10);
        if !units.contains(&unit) {
            units.push(unit);
        }
    }
    units
}

#[cfg(test)]
pub(crate) mod tests;
