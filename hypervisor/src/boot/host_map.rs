// SPDX-License-Identifier: MIT OR Apache-2.0
//! The firmware's memory map, made fit for use.
//!
//! What firmware and boot loaders report may be unsorted, overlap itself and begin in the middle of
//! a page. Here it becomes a sorted list of pieces, in which every piece is whole pages. Where two entries
//! disagree, the one that allows less holds: memory that is wrongly not used costs a few pages,
//! memory that is wrongly used costs a firmware that finds its data overwritten.
//!
//! Source of the type numbers: *ACPI Specification 6.5*, §15.2 INT 15H, E820H Query System Address Map.

use alloc::vec::Vec;

pub use pvh_loader::map::{Entry, Kind};

use super::span::{Span, Spans};

/// An entry of the firmware's map as the boot loader hands it over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirmwareEntry {
    /// Host physical address of the first byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// e820 type number; the numbers of multiboot2 and of PVH are the same.
    pub kind: u32,
}

/// The host's memory map: sorted, page-aligned, without overlaps, below the limit it was made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostMap {
    entries: Vec<Entry>,
    limit: u64,
}

impl HostMap {
    /// Makes sense of the firmware's map. What lies at or above `limit` (bytes, a multiple of the page
    /// size) is left out.
    #[must_use]
    pub fn new(firmware: &[FirmwareEntry], limit: u64) -> Self {
        let mut entries = Vec::new();
        let mut taken = Spans::new();
        for kind in [Kind::Unusable, Kind::Nvs, Kind::Acpi, Kind::Reserved, Kind::Ram] {
            let given = firmware.iter().filter(|entry| Kind::from_number(entry.kind) == kind);
            let given: Spans = given.map(|entry| Span::sized(entry.start, entry.len)).collect();
            let rounded: Spans = match kind {
                Kind::Ram => given.without(&taken).iter().map(Span::pages_inside).collect(),
                _ => given.iter().map(Span::pages_around).collect::<Spans>().without(&taken),
            };
            for span in rounded.iter() {
                taken.insert(span);
            }
            entries.extend(rounded.within(Span::new(0, limit)).iter().map(|span| Entry { span, kind }));
        }
        entries.sort_by_key(|entry| entry.span);
        Self { entries, limit }
    }

    /// The pieces in ascending order.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The address that everything lies below, in bytes.
    #[must_use]
    pub const fn limit(&self) -> u64 {
        self.limit
    }

    /// All memory of one kind.
    #[must_use]
    pub fn of(&self, kind: Kind) -> Spans {
        self.entries.iter().filter(|entry| entry.kind == kind).map(|entry| entry.span).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: u64 = 64 << 12;

    #[test]
    fn the_stricter_of_two_overlapping_entries_holds() {
        let map = HostMap::new(
            &[
                FirmwareEntry { start: 0x8000, len: 0x1000, kind: 2 },
                FirmwareEntry { start: 0, len: 0x10000, kind: 1 },
                FirmwareEntry { start: 0x8000, len: 0x800, kind: 4 },
                FirmwareEntry { start: 0xf800, len: 0x10, kind: 99 },
            ],
            LIMIT,
        );
        let expected = [
            (0, 0x8000, Kind::Ram),
            (0x8000, 0x9000, Kind::Nvs),
            (0x9000, 0xf000, Kind::Ram),
            (0xf000, 0x10000, Kind::Reserved),
        ];
        let expected = expected.map(|(start, end, kind)| Entry { span: Span::new(start, end), kind });
        assert_eq!(map.entries(), expected);
    }

    #[test]
    fn ram_beyond_the_limit_is_left_out() {
        let map = HostMap::new(&[FirmwareEntry { start: LIMIT - 0x1000, len: 0x3000, kind: 1 }], LIMIT);
        assert_eq!(map.of(Kind::Ram).total(), 0x1000);
    }

    proptest! {
        #[test]
        fn every_byte_gets_the_strictest_kind_named_for_its_page(
            list in proptest::collection::vec((0..LIMIT, 0..LIMIT, 0..7u32), 0..8)
        ) {
            let firmware: Vec<_> = list.iter().map(|&(start, len, kind)| FirmwareEntry { start, len, kind }).collect();
            let map = HostMap::new(&firmware, LIMIT);
            prop_assert!(map.entries.windows(2).all(|pair| pair[0].span.end() <= pair[1].span.start()));
            for page in (0..LIMIT).step_by(4096) {
                let page = Span::sized(page, 4096);
                let named = firmware.iter().filter(|entry| Span::sized(entry.start, entry.len).overlaps(page));
                let strictest = named.map(|entry| Kind::from_number(entry.kind)).max();
                let got = map.entries.iter().find(|entry| entry.span.overlaps(page)).map(|entry| entry.kind);
                // RAM entries must fill the page.
                let ram: Spans = firmware.iter().filter(|entry| entry.kind == 1).map(|entry| Span::sized(entry.start, entry.len)).collect();
                let expected = if strictest == Some(Kind::Ram) && !ram.contains(page) { None } else { strictest };
                prop_assert_eq!(got, expected);
            }
        }
    }

    #[test]
    fn an_entry_up_to_the_end_of_the_address_space_does_not_wrap() {
        let entries = [FirmwareEntry { start: u64::MAX - 100, len: u64::MAX, kind: 2 }];
        assert_eq!(HostMap::new(&entries, LIMIT).entries(), []);
    }
}
