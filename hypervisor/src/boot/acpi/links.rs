// SPDX-License-Identifier: MIT OR Apache-2.0
//! ISA interrupts that PCI devices share, where the firmware keeps quiet about it.
//!
//! On chipsets with four PCI interrupt links (PNP0C0F) the kernel routes each to an ISA interrupt
//! of its choice, level-triggered. Linux takes all 16 ISA interrupts as edge-triggered unless the MADT
//! overrides them, and corrects itself only while it sees legacy PICs, which dom0 does not have: the
//! device then gets no interrupt ("failed to register GSI"). So dom0's MADT gets an override for each
//! ISA interrupt that a link may choose and that nothing else on a PC uses.
//!
//! Source: *ACPI Specification 6.5*, §5.2.12.5 and §6.4.2.1; AML is not run, the bytes are looked for.

use alloc::vec::Vec;

use super::host::Override;

/// ISA interrupts that no standard device of a PC has, besides the ACPI event interrupt 9.
const SHAREABLE: [u8; 4] = [5, 9, 10, 11];
/// `_HID` of an interrupt link: the compressed id PNP0C0F with its prefix.
const LINK_ID: [u8; 5] = [0x0c, 0x41, 0xd0, 0x0c, 0x0f];
/// Bytes from the id in which the link's `_PRS` has to begin and end.
pub(super) const LOOK_AHEAD: usize = 96;

/// What the firmware's interrupt links may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Links {
    /// Bit n: ISA interrupt n.
    pub choices: u16,
    /// The line is active low, as PCI has it.
    pub is_active_low: bool,
}

impl Links {
    /// The overrides that the host's MADT lacks.
    #[must_use]
    pub fn missing_overrides(&self, present: &[Override]) -> Vec<Override> {
        const LEVEL: u16 = 0b11 << 2;
        let polarity = if self.is_active_low { 0b11 } else { 0b01 };
        let is_missing = |irq: &u8| {
            self.choices & 1 << irq != 0
                && !present.iter().any(|source| source.irq == *irq || source.gsi == u32::from(*irq))
        };
        let missing = SHAREABLE.into_iter().filter(is_missing);
        missing.map(|irq| Override { irq, gsi: u32::from(irq), flags: LEVEL | polarity }).collect()
    }
}

/// Finds the first link in a piece of a definition block, with its possible settings as an IRQ
/// descriptor of three bytes. The other form, a list of global interrupts, comes with a MADT that is
/// complete.
pub(super) fn find(aml: &[u8]) -> Option<Links> {
    let at = aml.windows(LINK_ID.len()).position(|bytes| bytes == LINK_ID)?;
    let body = &aml[at..aml.len().min(at + LOOK_AHEAD)];
    let settings = body.windows(4).position(|name| name == b"_PRS")?;
    // A buffer: opcode, package length, size with its prefix, then the resource.
    match body.get(settings + 4..)? {
        [0x11, _, 0x0a, _, 0x23, low, high, info, ..] if info & 1 == 0 => {
            Some(Links { choices: u16::from_le_bytes([*low, *high]), is_active_low: info & 1 << 3 != 0 })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link as Bochs' firmware has it: interrupts 3-7, 9-12, level, active low, shared.
    const LINK: &[u8] = &[
        0x08, b'_', b'H', b'I', b'D', 0x0c, 0x41, 0xd0, 0x0c, 0x0f, 0x08, b'_', b'U', b'I', b'D', 0x01, 0x08, b'_',
        b'P', b'R', b'S', 0x11, 0x09, 0x0a, 0x06, 0x23, 0xf8, 0x1e, 0x18, 0x79, 0x00,
    ];

    #[test]
    fn a_link_is_found_with_its_choices() {
        assert_eq!(find(LINK), Some(Links { choices: 0x1ef8, is_active_low: true }));
        assert_eq!(find(&LINK[..20]), None);
        assert_eq!(find(&LINK[6..]), None);
    }

    #[test]
    fn only_what_the_madt_lacks_is_added_and_no_isa_device_is_disturbed() {
        let links = Links { choices: 0x1ef8, is_active_low: true };
        let present = [Override { irq: 0, gsi: 2, flags: 0 }, Override { irq: 9, gsi: 9, flags: 0xd }];
        let missing = links.missing_overrides(&present);
        let expected = [5, 10, 11].map(|irq| Override { irq, gsi: u32::from(irq), flags: 0xf });
        assert_eq!(missing, expected);
        assert_eq!(Links { choices: 0, ..links }.missing_overrides(&[]), []);
    }
}
