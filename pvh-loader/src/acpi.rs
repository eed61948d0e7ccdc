// SPDX-License-Identifier: MIT OR Apache-2.0
//! ACPI tables for domains.
//!
//! A guest has no devices to be found, so it gets the least that Linux takes: *hardware-reduced*
//! ACPI (no PM timer, no event registers, no legacy interrupt controller), a DSDT with nothing but the sleep state S5, and a
//! MADT with its vCPUs. Without a MADT Linux would install no timer at all and hang. Without S5 it has no way to switch
//! the machine off: a kernel that is asked to before it has a root file system says that it does, and goes on for ever.
//!
//! An entry's processor UID is the vCPU's id: that is how Linux finds the vCPU's number. All entries are
//! local APICs, or all are x2APICs when some id does not fit: Linux 6.12 ignores part of a mixed list.
//!
//! The four tables are a hundred lines; the hypervisor needs them at boot for guests that are boot modules and for
//! dom0's own MADT, so a table crate that is linked into it would be more to read than they are.
//!
//! Source: *ACPI Specification 6.5*, §5.2 ACPI System Description Tables.

use alloc::vec::Vec;
use core::fmt;

use guest_abi::num::{low_u8, low_u32, to_usize};
use guest_abi::pvh::{SLEEP_CONTROL, SLEEP_S5, SLEEP_STATUS};

use crate::span::Span;

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

/// An I/O APIC. How many pins it has is in its own register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    /// Its id.
    pub id: u8,
    /// Its registers.
    pub address: u32,
    /// The global interrupt number of its first pin.
    pub gsi_base: u32,
}

/// An interrupt source override.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Override {
    /// The ISA interrupt.
    pub irq: u8,
    /// The global interrupt that it arrives as.
    pub gsi: u32,
    /// Polarity in bits 1:0, trigger mode in bits 3:2 (table 5.26).
    pub flags: u16,
}

/// Tables that were made do not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom {
    /// Bytes that they have.
    pub need: u64,
    /// Bytes that are there.
    pub room: u64,
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { need, room } = self;
        write!(f, "a domain's ACPI tables need {need} bytes and {room} are set aside; give it fewer vCPUs")
    }
}

/// Makes a guest's tables, at the start of `room`. `apic_ids` are those of its vCPUs, in order.
///
/// # Errors
/// [`NoRoom`].
pub fn for_guest(room: Span, apic_ids: &[u32]) -> Result<Tables, NoRoom> {
    let mut maker = Maker::new(room.start(), *b"ISTHMU");
    let dsdt = maker.table(b"DSDT", 2, &S5);
    let fadt = maker.fadt(dsdt);
    let madt = maker.madt(apic_ids, &[], &[]);
    maker.finish(room, &[fadt, madt])
}

/// Puts one table behind the other.
#[derive(Clone, Debug)]
pub struct Maker {
    at: u64,
    oem: [u8; 6],
    bytes: Vec<u8>,
}

/// The type that [`SLEEP_S5`] has in bits 4:2.
const S5_TYPE: u8 = SLEEP_S5 >> 2 & 7;
/// `Name (\_S5, Package () { 5, 0 })`.
const S5: [u8; 13] = [8, b'\\', b'_', b'S', b'5', b'_', 0x12, 6, 2, 0x0a, S5_TYPE, 0x0a, 0];

/// Bytes in a table's header.
const HEADER: usize = 36;
/// Where CPUs see their local APIC. Linux wants an address even if it never uses it.
const LOCAL_APIC: u32 = 0xfee0_0000;

impl Maker {
    /// Starts a set at the address `at`, with the vendor's name that all its tables bear.
    #[must_use]
    pub fn new(at: u64, oem: [u8; 6]) -> Self {
        Self { at, oem, bytes: Vec::new() }
    }

    /// Starts at the next multiple of 16, and says where that is.
    fn align(&mut self) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        self.at + self.bytes.len() as u64
    }

    /// Adds a table (§5.2.6) and returns its address.
    pub fn table(&mut self, signature: &[u8; 4], revision: u8, body: &[u8]) -> u64 {
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

    /// Adds a MADT (§5.2.12) without the flag that says there is a legacy interrupt controller.
    pub fn madt(&mut self, apic_ids: &[u32], io_apics: &[IoApic], overrides: &[Override]) -> u64 {
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

    /// Adds a hardware-reduced FADT, revision 6 (§5.2.9).
    pub fn fadt(&mut self, dsdt: u64) -> u64 {
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
        for (at, port) in [(244, SLEEP_CONTROL), (256, SLEEP_STATUS)] {
            // A generic address (§5.2.3.2): I/O space, 8 bits from bit 0 on, read and written as a byte.
            put(at, &[1, 8, 0, 1]);
            put(at + 4, &u64::from(port).to_le_bytes());
        }
        put(268, b"ISTHMUS\0");
        self.table(b"FACP", 6, &body)
    }

    /// Adds the XSDT, which lists the tables at the addresses in `list`, and the root pointer that leads to it.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub fn finish(mut self, room: Span, list: &[u64]) -> Result<Tables, NoRoom> {
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
            return Err(NoRoom { need, room: room.len() });
        }
        Ok(Tables { at: self.at, rsdp, bytes: self.bytes })
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

impl Tables {
    /// The bytes of the table at an address, up to the end of the set.
    #[must_use]
    pub fn from_address(&self, at: u64) -> &[u8] {
        at.checked_sub(self.at).and_then(|offset| self.bytes.get(to_usize(offset)..)).unwrap_or_default()
    }
}
