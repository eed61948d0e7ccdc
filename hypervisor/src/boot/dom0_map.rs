// SPDX-License-Identifier: MIT OR Apache-2.0
//! dom0's view of the machine's memory.
//!
//! dom0 is told of every piece of host memory, so that Linux places nothing where something is:
//! what belongs to others is *unusable* (above 16 MiB) or *reserved* (below). The one exception is
//! the scratch hole, of which it is told nothing. Device memory is whatever is not RAM: all of it up to the
//! limit is mapped one to one before dom0 starts, so that no fault has to be served when a driver
//! maps a register. Firmware tables are among it.
//!
//! Withheld are the local APIC's window (dom0 has a virtual one), the I/O APICs (emulated) and what
//! the caller names; memory that the firmware calls broken is in nobody's map.

use alloc::vec::Vec;

pub use pvh_loader::map::MAX_ENTRIES;

use super::{
    cmdline::MIB,
    host_map::{Entry, HostMap, Kind},
    machine_map::{DOM0_START, MapError, Share},
    span::{Span, Spans},
};

/// Where CPUs see their own local APIC and devices send interrupt messages to.
const LOCAL_APIC_WINDOW: Span = Span::sized(0xfee0_0000, MIB);

/// dom0's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dom0Map {
    /// Its RAM, each page at its own address.
    pub ram: Spans,
    /// RAM for the tables that replace the host's, owned by dom0 and mapped at its own address;
    /// ACPI data in its memory map.
    pub tables: Span,
    /// The hole for foreign pages: in no entry of its memory map, and nothing mapped at first. The host
    /// frames with these numbers are not dom0's.
    pub scratch: Span,
    /// Its memory map, sorted; at most [`MAX_ENTRIES`].
    pub e820: Vec<Entry>,
    /// What is not RAM and dom0 reaches at the same address: device memory, firmware tables.
    pub identity: Spans,
}

impl Dom0Map {
    pub(super) fn new(host: &HostMap, share: Share, withheld: &[Span]) -> Result<Self, MapError> {
        let e820 = e820(host, &share);
        if e820.len() > MAX_ENTRIES {
            return Err(MapError::TooManyEntries { entries: e820.len() });
        }
        let identity = identity(host, withheld);
        let Share { ram, tables, scratch } = share;
        Ok(Self { ram, tables, scratch, e820, identity })
    }
}

fn e820(host: &HostMap, share: &Share) -> Vec<Entry> {
    let others = host.of(Kind::Ram).without(&share.ram).without_span(share.tables).without_span(share.scratch);
    let low = others.within(Span::new(0, DOM0_START));
    let high = others.within(Span::new(DOM0_START, u64::MAX));
    let mut reserved = host.of(Kind::Reserved);
    low.iter().for_each(|span| reserved.insert(span));
    let mut unusable = host.of(Kind::Unusable);
    high.iter().for_each(|span| unusable.insert(span));
    let mut acpi = host.of(Kind::Acpi);
    acpi.insert(share.tables);

    let sets = [
        (Kind::Ram, share.ram.clone()),
        (Kind::Reserved, reserved),
        (Kind::Acpi, acpi),
        (Kind::Nvs, host.of(Kind::Nvs)),
        (Kind::Unusable, unusable),
    ];
    let mut entries: Vec<Entry> = Vec::new();
    for (kind, spans) in sets {
        entries.extend(spans.iter().map(|span| Entry { span, kind }));
    }
    entries.sort_by_key(|entry| entry.span);
    entries
}

fn identity(host: &HostMap, withheld: &[Span]) -> Spans {
    let mut devices = Spans::from_iter([Span::new(0, host.limit())])
        .without(&host.of(Kind::Ram))
        .without(&host.of(Kind::Unusable))
        .without_span(LOCAL_APIC_WINDOW);
    for span in withheld {
        devices.remove(span.pages_around());
    }
    devices
}
