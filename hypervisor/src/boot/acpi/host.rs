// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host's tables, walked from the root pointer.

use alloc::{vec, vec::Vec};

use guest_abi::{
    Wire,
    num::{low_u16, to_usize},
};

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
    /// Power management registers.
    pub fadt: Option<Fadt>,
    /// Memory-mapped PCI configuration space.
    pub mcfg: Vec<Ecam>,
    /// The registers of the high-precision timer.
    pub hpet: Option<u64>,
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
        Self {
            oem: *b"ABSENT",
            tables: Vec::new(),
            madt,
            fadt: None,
            mcfg: Vec::new(),
            hpet: None,
            iommus: Vec::new(),
            complaints: Vec::new(),
        }
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
    /// Where the local APICs are.
    pub local_apic: u64,
    /// APIC ids of the enabled CPUs, each once, in the table's order: the boot CPU usually is the first.
    pub apic_ids: Vec<u32>,
    /// The I/O APICs.
    pub io_apics: Vec<IoApic>,
    /// ISA interrupts that are not wired one to one.
    pub overrides: Vec<Override>,
}

/// What is used of the fixed ACPI description table (§5.2.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fadt {
    /// The interrupt (ISA number) of ACPI events.
    pub sci: u16,
    /// Port of the first PM1 control register.
    pub pm1a_control: Option<u16>,
    /// Port of the second PM1 control register.
    pub pm1b_control: Option<u16>,
    /// The PM timer: its port, and whether it counts in 32 bits rather than 24.
    pub pm_timer: Option<(u16, bool)>,
    /// How to reset the machine: the value to write to a register.
    pub reset: Option<(Register, u8)>,
    /// The differentiated definition block.
    pub dsdt: u64,
    /// The sleep types for PM1a and PM1b that switch the machine off, if the DSDT holds them as constants.
    pub s5: Option<(u8, u8)>,
    /// What the PCI interrupt links may choose, if there are any.
    pub links: Option<Links>,
}

/// A register by address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// An I/O port.
    Io(u16),
    /// Memory, host physical.
    Memory(u64),
    /// PCI configuration space of bus 0: device, function, offset.
    Pci(u8, u8, u16),
}

/// Memory-mapped PCI configuration space of some buses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ecam {
    /// Where bus 0 of the segment would be.
    pub base: u64,
    /// The PCI segment.
    pub segment: u16,
    /// The first bus.
    pub first_bus: u8,
    /// The last bus.
    pub last_bus: u8,
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
        let fadt = optional(b"FACP").map(|bytes| Fadt::parse(&bytes, memory));
        let mcfg = optional(b"MCFG").map(|bytes| ecams(&bytes)).unwrap_or_default();
        let hpet = optional(b"HPET").map(|bytes| field(&bytes, 44)).filter(|base| *base != 0);
        let mut iommus = optional(b"DMAR").map(|bytes| vtd_units(&bytes)).unwrap_or_default();
        iommus.extend(optional(b"IVRS").map(|bytes| amd_units(&bytes)).unwrap_or_default());
        Ok(Self { oem: root.oem, madt, fadt, mcfg, hpet, iommus, complaints, tables })
    }

    /// Whether the host has a table of this name.
    #[must_use]
    pub fn has(&self, signature: &[u8; 4]) -> bool {
        self.tables.iter().any(|table| table.signature.0 == *signature)
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
        let mut madt = Self { local_apic: u64::from(field::<u32>(table, 36)), ..Self::default() };
        for structure in structures(table, 44, |rest| (field::<u8>(rest, 0).into(), field::<u8>(rest, 1).into())) {
            let Structure { kind, offset, bytes } = structure?;
            let least = match kind {
                0 => 8,
                1 | 5 => 12,
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
                5 => madt.local_apic = field(bytes, 4),
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

/// Field offsets of the FADT, table 5.9.
mod fadt {
    pub(super) const DSDT: usize = 40;
    pub(super) const SCI_INT: usize = 46;
    pub(super) const PM1A_CNT: usize = 64;
    pub(super) const PM1B_CNT: usize = 68;
    pub(super) const PM_TMR: usize = 76;
    pub(super) const FLAGS: usize = 112;
    pub(super) const RESET_REG: usize = 116;
    pub(super) const RESET_VALUE: usize = 128;
    pub(super) const X_DSDT: usize = 140;
    pub(super) const X_PM1A_CNT: usize = 172;
    pub(super) const X_PM1B_CNT: usize = 184;
    pub(super) const X_PM_TMR: usize = 208;
    /// The PM timer counts in 32 bits.
    pub(super) const TMR_VAL_EXT: u32 = 1 << 8;
    /// The reset register is there.
    pub(super) const RESET_REG_SUP: u32 = 1 << 10;
}

impl Fadt {
    fn parse(table: &[u8], memory: &impl PhysRead) -> Self {
        let flags: u32 = field(table, fadt::FLAGS);
        // The wide field holds if it is set, the narrow one is what old revisions have.
        let port = |narrow: usize, wide: usize| match generic_address(table, wide) {
            Some(Register::Io(port)) => Some(port),
            Some(_) => None,
            None => u16::try_from(field::<u32>(table, narrow)).ok().filter(|port| *port != 0),
        };
        let wide: u64 = field(table, fadt::X_DSDT);
        let dsdt = if wide != 0 { wide } else { u64::from(field::<u32>(table, fadt::DSDT)) };
        let reset = generic_address(table, fadt::RESET_REG).filter(|_| flags & fadt::RESET_REG_SUP != 0);
        Self {
            sci: field(table, fadt::SCI_INT),
            pm1a_control: port(fadt::PM1A_CNT, fadt::X_PM1A_CNT),
            pm1b_control: port(fadt::PM1B_CNT, fadt::X_PM1B_CNT),
            pm_timer: port(fadt::PM_TMR, fadt::X_PM_TMR).map(|port| (port, flags & fadt::TMR_VAL_EXT != 0)),
            reset: reset.map(|register| (register, field(table, fadt::RESET_VALUE))),
            dsdt,
            s5: search(memory, dsdt, soft_off),
            links: search(memory, dsdt, links::find),
        }
    }
}

/// A generic address structure (§5.2.3.2), if it names something.
fn generic_address(table: &[u8], at: usize) -> Option<Register> {
    let address: u64 = field(table, at + 4);
    match field::<u8>(table, at) {
        _ if address == 0 => None,
        0 => Some(Register::Memory(address)),
        1 => u16::try_from(address).ok().map(Register::Io),
        2 => {
            let [.., device, _] = (address >> 24).to_be_bytes();
            let [.., function, _] = (address >> 8).to_be_bytes();
            Some(Register::Pci(device, function, low_u16(address)))
        }
        _ => None,
    }
}

/// The sleep types of the package `\_S5_` in a definition block.
///
/// Running AML is dom0's business; but every firmware has this package as constants, so its bytes can
/// be found: the name, a package of at most 63 bytes, its count, its first two numbers (§20.2.5).
fn soft_off(aml: &[u8]) -> Option<(u8, u8)> {
    aml.windows(4).position(|name| name == b"_S5_").and_then(|name| package(&aml[name + 4..]))
}

/// Looks through a definition block piece by piece; what is looked for lies in one of them whole.
fn search<T>(memory: &impl PhysRead, dsdt: u64, find: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
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
        let found = find(bytes);
        if found.is_some() {
            return found;
        }
        at += STEP as u64;
    }
    None
}

/// The first two numbers of a package.
fn package(aml: &[u8]) -> Option<(u8, u8)> {
    let [0x12, len, count, rest @ ..] = aml else { return None };
    if *len >= 0x40 || *count < 2 {
        return None;
    }
    let (first, rest) = byte_constant(rest)?;
    let (second, _) = byte_constant(rest)?;
    Some((first, second))
}

/// Zero, One, or a byte with its prefix.
fn byte_constant(aml: &[u8]) -> Option<(u8, &[u8])> {
    match aml {
        [value @ (0 | 1), rest @ ..] | [0x0a, value, rest @ ..] => Some((*value, rest)),
        _ => None,
    }
}

/// The MCFG's allocation structures (*PCI Firmware Specification 3.3*, §4.1.2).
fn ecams(table: &[u8]) -> Vec<Ecam> {
    let ecam = |bytes: &[u8]| Ecam {
        base: field(bytes, 0),
        segment: field(bytes, 8),
        first_bus: field(bytes, 10),
        last_bus: field(bytes, 11),
    };
    table.get(44..).unwrap_or_default().chunks_exact(16).take(MAX_ENTRIES).map(ecam).collect()
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
