// SPDX-License-Identifier: MIT OR Apache-2.0
//! The layout over maps as real firmware reports them, and over random ones.

use proptest::prelude::*;

use super::*;
use crate::boot::{dom0_map::MAX_ENTRIES, host_map::FirmwareEntry};

const LIMIT: u64 = 512 << 30;
const G: u64 = 1024 * MIB;
const RAM: u32 = 1;
const RES: u32 = 2;
const ACPI: u32 = 3;
const NVS: u32 = 4;

type Table = &'static [(u64, u64, u32)];

/// First address, address behind the last, type.
const BOCHS_512M: Table = &[
    (0, 0x9_f000, RAM),
    (0x9_f000, 0xa_0000, RES),
    (0xe_8000, 0x10_0000, RES),
    (0x10_0000, 0x1fff_0000, RAM),
    (0x1fff_0000, 0x2000_0000, ACPI),
    (0xfffc_0000, 0x1_0000_0000, RES),
];
const PC_512M: Table = &[
    (0, 0x9_fc00, RAM),
    (0x9_fc00, 0xa_0000, RES),
    (0xf_0000, 0x10_0000, RES),
    (0x10_0000, 0x1ffe_0000, RAM),
    (0x1ffe_0000, 0x2000_0000, RES),
    (0xfffc_0000, 0x1_0000_0000, RES),
    (0xfd_0000_0000, 0x100_0000_0000, RES),
];
const Q35_2G: Table = &[
    (0, 0x9_fc00, RAM),
    (0x9_fc00, 0xa_0000, RES),
    (0xf_0000, 0x10_0000, RES),
    (0x10_0000, 0x7ffd_f000, RAM),
    (0x7ffd_f000, 0x8000_0000, RES),
    (0xb000_0000, 0xc000_0000, RES),
    (0xfed1_c000, 0xfed2_0000, RES),
    (0xfeff_c000, 0xff00_0000, RES),
    (0xfffc_0000, 0x1_0000_0000, RES),
];
const Q35_6G: Table = &[
    (0, 0x9_fc00, RAM),
    (0x9_fc00, 0xa_0000, RES),
    (0xf_0000, 0x10_0000, RES),
    (0x10_0000, 0x7ffd_f000, RAM),
    (0x7ffd_f000, 0x8000_0000, RES),
    (0xb000_0000, 0xc000_0000, RES),
    (0xfed1_c000, 0xfed2_0000, RES),
    (0xfffc_0000, 0x1_0000_0000, RES),
    (0x1_0000_0000, 0x2_0000_0000, RAM),
];
const PC_6G: Table = &[
    (0, 0x9_fc00, RAM),
    (0x9_fc00, 0xa_0000, RES),
    (0xf_0000, 0x10_0000, RES),
    (0x10_0000, 0xbffe_0000, RAM),
    (0xbffe_0000, 0xc000_0000, RES),
    (0xfffc_0000, 0x1_0000_0000, RES),
    (0x1_0000_0000, 0x1_c000_0000, RAM),
];
const VMWARE_4G: Table = &[
    (0, 0x9_f800, RAM),
    (0x9_f800, 0xa_0000, RES),
    (0xdc000, 0x10_0000, RES),
    (0x10_0000, 0xbfed_0000, RAM),
    (0xbfed_0000, 0xbfef_f000, ACPI),
    (0xbfef_f000, 0xbff0_0000, NVS),
    (0xbff0_0000, 0xc000_0000, RAM),
    (0xf000_0000, 0xf800_0000, RES),
    (0xfec0_0000, 0xfec1_0000, RES),
    (0xfee0_0000, 0xfee0_1000, RES),
    (0xfffe_0000, 0x1_0000_0000, RES),
    (0x1_0000_0000, 0x1_4000_0000, RAM),
];
/// A Sandy Bridge laptop: graphics errata punch holes at 512 MiB and 1 GiB.
const LAPTOP_2011: Table = &[
    (0, 0x9_d800, RAM),
    (0x9_d800, 0xa_0000, RES),
    (0xe_0000, 0x10_0000, RES),
    (0x10_0000, 0x2000_0000, RAM),
    (0x2000_0000, 0x2020_0000, RES),
    (0x2020_0000, 0x4000_4000, RAM),
    (0x4000_4000, 0x4000_5000, RES),
    (0x4000_5000, 0xd9b9_f000, RAM),
    (0xd9b9_f000, 0xdae9_f000, RES),
    (0xdae9_f000, 0xdaf9_f000, NVS),
    (0xdaf9_f000, 0xdaff_f000, ACPI),
    (0xdaff_f000, 0xdb00_0000, RAM),
    (0xdb00_0000, 0xdfa0_0000, RES),
    (0xf800_0000, 0xfc00_0000, RES),
    (0xfec0_0000, 0xfec0_1000, RES),
    (0xfed1_0000, 0xfed1_a000, RES),
    (0xfee0_0000, 0xfee0_1000, RES),
    (0xffd2_0000, 0x1_0000_0000, RES),
    (0x1_0000_0000, 0x4_1e60_0000, RAM),
];
/// A UEFI laptop: holes in low memory, RAM between the tables.
const LAPTOP_2019: Table = &[
    (0, 0x5_8000, RAM),
    (0x5_8000, 0x5_9000, RES),
    (0x5_9000, 0x9_d000, RAM),
    (0x9_d000, 0x10_0000, RES),
    (0x10_0000, 0x3e8a_f000, RAM),
    (0x3e8a_f000, 0x3e8b_0000, NVS),
    (0x3e8b_0000, 0x3e8b_1000, RES),
    (0x3e8b_1000, 0x77c5_8000, RAM),
    (0x77c5_8000, 0x7aa2_7000, RES),
    (0x7aa2_7000, 0x7ab3_f000, ACPI),
    (0x7ab3_f000, 0x7af5_9000, NVS),
    (0x7af5_9000, 0x7bb0_e000, RES),
    (0x7bb0_e000, 0x7bb0_f000, RAM),
    (0x7bb0_f000, 0x7f80_0000, RES),
    (0xe000_0000, 0xf000_0000, RES),
    (0xfe00_0000, 0xfe01_1000, RES),
    (0xfec0_0000, 0xfec0_1000, RES),
    (0xfee0_0000, 0xfee0_1000, RES),
    (0xff00_0000, 0x1_0000_0000, RES),
    (0x1_0000_0000, 0x4_7e80_0000, RAM),
];
/// A Ryzen desktop: reserved pieces from 157 MiB on.
const DESKTOP_AMD: Table = &[
    (0, 0xa_0000, RAM),
    (0xa_0000, 0x10_0000, RES),
    (0x10_0000, 0x9d0_0000, RAM),
    (0x9d0_0000, 0xa00_0000, RES),
    (0xa00_0000, 0xa20_0000, RAM),
    (0xa20_0000, 0xa20_b000, NVS),
    (0xa20_b000, 0xb00_0000, RAM),
    (0xb00_0000, 0xb02_0000, RES),
    (0xb02_0000, 0xda8a_2000, RAM),
    (0xda8a_2000, 0xdb30_5000, RES),
    (0xdb30_5000, 0xdb40_e000, ACPI),
    (0xdb40_e000, 0xdba3_f000, NVS),
    (0xdba3_f000, 0xdca3_0000, RES),
    (0xdca3_0000, 0xde00_0000, RAM),
    (0xde00_0000, 0xe000_0000, RES),
    (0xf800_0000, 0xfc00_0000, RES),
    (0xfd00_0000, 0x1_0000_0000, RES),
    (0x1_0000_0000, 0x8_1f38_0000, RAM),
    (0x8_1f38_0000, 0x8_2000_0000, RES),
];
/// A two-socket server: large reserved areas below the PCI windows, much RAM above.
const SERVER: Table = &[
    (0, 0x9_b000, RAM),
    (0x9_b000, 0xa_0000, RES),
    (0xe_0000, 0x10_0000, RES),
    (0x10_0000, 0x5d8d_1000, RAM),
    (0x5d8d_1000, 0x6a8d_1000, RES),
    (0x6a8d_1000, 0x6c8d_1000, NVS),
    (0x6c8d_1000, 0x6d80_0000, ACPI),
    (0x6d80_0000, 0x6f80_0000, RAM),
    (0x6f80_0000, 0x9000_0000, RES),
    (0xfd00_0000, 0xfe80_0000, RES),
    (0xfed2_0000, 0xfed4_5000, RES),
    (0xff00_0000, 0x1_0000_0000, RES),
    (0x1_0000_0000, 0x20_8000_0000, RAM),
];

const MAPS: &[(&str, Table)] = &[
    ("Bochs 512M", BOCHS_512M),
    ("QEMU pc 512M", PC_512M),
    ("QEMU q35 2G", Q35_2G),
    ("QEMU q35 6G", Q35_6G),
    ("QEMU pc 6G", PC_6G),
    ("VMware 4G", VMWARE_4G),
    ("laptop 2011", LAPTOP_2011),
    ("laptop 2019", LAPTOP_2019),
    ("AMD desktop", DESKTOP_AMD),
    ("server", SERVER),
];

fn host(table: &[(u64, u64, u32)]) -> HostMap {
    let entry = |&(start, end, kind): &(u64, u64, u32)| FirmwareEntry { start, len: end - start, kind };
    HostMap::new(&table.iter().map(entry).collect::<Vec<_>>(), LIMIT)
}

const HYPERVISOR: Span = Span::new(MIB, 3 * MIB);
const IO_APIC: Span = Span::sized(0xfec0_0000, 0x1000);

fn input<'a>(host: &'a HostMap, modules: &'a [Span], dom0: Option<Dom0Request>) -> Input<'a> {
    Input { host, hypervisor: HYPERVISOR, modules, boot_fixed: 6 * MIB, boot_per_frame: 16, dom0, withheld: &[IO_APIC] }
}

/// Where Linux 6.1 puts its scratch: the lowest aligned block that it sees nothing in.
fn linux_scratch(dom0: &Dom0Map) -> u64 {
    let seen = |block: Span| dom0.e820.iter().any(|entry| entry.kind != Kind::Reserved && entry.span.overlaps(block));
    let blocks = (0u64..).map(|i| Span::sized(i * SCRATCH_BLOCK, SCRATCH_BLOCK));
    blocks.into_iter().find(|block| !seen(*block)).unwrap().start()
}

/// What holds for every layout.
fn check(input: &Input<'_>, map: &MachineMap) {
    let ram = input.host.of(Kind::Ram);
    let hypervisor = Spans::from_iter([input.hypervisor]).iter().collect::<Spans>();

    // The hypervisor's area is as asked for and free of everything that is still read.
    assert!(
        ram.contains(map.boot_area)
            && map.boot_area.end() <= FOUR_GIB
            && map.boot_area.start().is_multiple_of(BOOT_ALIGN)
    );
    assert!(map.boot_area.len() >= input.boot_fixed + input.boot_per_frame * map.nr_frames);
    assert_eq!(map.nr_frames * PAGE, ram.end());
    for span in input.modules.iter().chain([&input.hypervisor]) {
        assert!(!map.boot_area.overlaps(*span) && !map.trampoline.overlaps(*span));
    }
    assert!(ram.contains(map.trampoline) && map.trampoline.end() <= TRAMPOLINE_END && map.trampoline.start() != 0);

    // Every page of RAM above 1 MiB has exactly one owner.
    let mut owners = vec![map.free.clone(), map.reclaim.clone(), Spans::from_iter([map.boot_area]), hypervisor];
    if let Some(dom0) = &map.dom0 {
        owners.push(dom0.ram.clone());
        owners.push(Spans::from_iter([dom0.tables]));
    }
    let high = Span::new(MIB, u64::MAX);
    let sum: u64 = owners.iter().map(|owner| owner.within(high).total()).sum();
    let all: Spans = owners.iter().flat_map(Spans::iter).collect();
    assert_eq!(all.within(high), ram.within(high));
    assert_eq!(sum, ram.within(high).total(), "an overlap between owners");
    assert!(map.free.within(Span::new(0, MIB)).is_empty() && map.reclaim.within(Span::new(0, MIB)).is_empty());

    // Modules end up outside everything that is written before they are read.
    for (i, module) in map.modules.iter().enumerate() {
        assert_eq!(module.len(), input.modules[i].len());
        assert!(!map.boot_area.overlaps(*module) && !input.hypervisor.overlaps(*module));
        assert!(!map.free.overlaps(*module));
        if let Some(dom0) = &map.dom0 {
            assert!(!dom0.ram.overlaps(*module) && !dom0.tables.overlaps(*module));
        }
        assert!(map.modules[..i].iter().all(|other| !other.overlaps(*module)));
    }
    for step in &map.moves {
        let to = Span::sized(step.to, step.from.len());
        assert_eq!((step.from, to), (input.modules[step.module], map.modules[step.module]));
        assert!(ram.contains(to) && step.to.is_multiple_of(PAGE));
        assert!(input.modules.iter().all(|source| !source.overlaps(to)));
    }
    if let Some(dom0) = &map.dom0 {
        check_dom0(input, map, dom0);
    }
}

fn check_dom0(input: &Input<'_>, map: &MachineMap, dom0: &Dom0Map) {
    let host = input.host;
    let ram = host.of(Kind::Ram);
    let request = input.dom0.unwrap();
    if let Some(mem) = request.mem {
        assert_eq!(dom0.ram.within(Span::new(DOM0_START, u64::MAX)).total(), mem);
    }
    assert!(dom0.ram.within(Span::new(LOW_END, DOM0_START)).is_empty());
    assert!(!dom0.ram.overlaps(map.trampoline) && !dom0.ram.overlaps(map.boot_area));

    // The memory map.
    assert!(dom0.e820.len() <= MAX_ENTRIES);
    assert!(dom0.e820.windows(2).all(|pair| pair[0].span.end() <= pair[1].span.start()));
    let of = |kind| dom0.e820.iter().filter(|entry| entry.kind == kind).map(|entry| entry.span).collect::<Spans>();
    assert_eq!(of(Kind::Ram), dom0.ram);
    assert_eq!(of(Kind::Nvs), host.of(Kind::Nvs));
    assert_eq!(of(Kind::Acpi).without(&host.of(Kind::Acpi)), Spans::from_iter([dom0.tables]));
    let mut told: Spans = dom0.e820.iter().map(|entry| entry.span).collect();
    assert!(!told.overlaps(dom0.scratch));
    told.insert(dom0.scratch);
    assert_eq!(told, host.entries().iter().map(|entry| entry.span).collect());

    // The scratch hole is where Linux looks first, over RAM (so in no PCI window).
    assert_eq!(linux_scratch(dom0), dom0.scratch.start());
    assert!(ram.contains(dom0.scratch) && !dom0.ram.overlaps(dom0.scratch));
    assert!(dom0.scratch.len() >= SCRATCH_BLOCK && dom0.scratch.len().is_multiple_of(SCRATCH_BLOCK));
    assert!(dom0.scratch.len() <= request.scratch.max(1).next_multiple_of(SCRATCH_BLOCK));

    // Devices are what is neither RAM nor withheld.
    let devices = dom0.identity.clone();
    let apic = Span::sized(0xfee0_0000, MIB);
    let mut rest = Spans::from_iter([Span::new(0, LIMIT)]).without(&devices).without(&ram);
    rest = rest.without(&host.of(Kind::Unusable)).without_span(apic).without_span(IO_APIC);
    assert_eq!(rest, Spans::new());
    assert!(!devices.overlaps(apic) && !devices.overlaps(IO_APIC));
    assert!(ram.iter().all(|span| !devices.overlaps(span)));
    assert!(devices.contains(Span::new(0xa_0000, 0xc_0000)));
    let tables =
        [host.of(Kind::Acpi), host.of(Kind::Nvs)].map(|tables| tables.without_span(apic).without_span(IO_APIC));
    assert!(tables.iter().flat_map(Spans::iter).all(|table| devices.contains(table)));
}

/// As GRUB leaves them, low; as QEMU leaves a bundle, at the end of low RAM, to the byte.
fn placements(host: &HostMap) -> [Vec<Span>; 2] {
    let low = host.of(Kind::Ram).within(Span::new(0, FOUR_GIB));
    let top = low.last_fit(75 * MIB, PAGE).unwrap();
    [
        vec![Span::sized(4 * MIB, 60 * MIB + 5), Span::sized(65 * MIB, 12 * MIB + 1)],
        vec![Span::sized(top.start() + 0x88, 60 * MIB), Span::sized(top.start() + 60 * MIB + 0x188, 12 * MIB)],
    ]
}

#[test]
fn real_machines_are_laid_out_for_every_size_of_dom0() {
    for (name, table) in MAPS {
        let host = host(table);
        for modules in placements(&host) {
            for mem in [None, Some(96 * MIB), Some(240 * MIB), Some(256 * MIB), Some(G), Some(3 * G), Some(6 * G)] {
                for scratch in [0, G] {
                    let input = input(&host, &modules, Some(Dom0Request { mem, scratch }));
                    match plan(&input) {
                        Ok(map) => check(&input, &map),
                        Err(MapError::Dom0TooLarge { wanted, fits }) if mem == Some(wanted) => {
                            assert!(wanted > fits && wanted > host.of(Kind::Ram).total() / 3, "{name}: {fits:#x}");
                            let request = Dom0Request { mem: Some(fits & !(MIB - 1)), scratch };
                            let smaller = Input { dom0: Some(request), ..input };
                            check(&smaller, &plan(&smaller).unwrap());
                        }
                        Err(error) => panic!("{name}, {mem:?}: {error}"),
                    }
                }
            }
            let input = input(&host, &modules, None);
            let map = plan(&input).unwrap();
            check(&input, &map);
            assert_eq!(map.moves, []);
        }
    }
}

#[test]
fn the_usual_machine_has_dom0_then_scratch_then_the_rest() {
    let host = host(Q35_2G);
    let modules = [Span::sized(16 * MIB, 60 * MIB)];
    let map = plan(&input(&host, &modules, Some(Dom0Request { mem: Some(G), scratch: G }))).unwrap();
    let dom0 = map.dom0.unwrap();
    let own = [Span::new(0, 0x7_f000), Span::new(0x8_0000, 0x9_f000), Span::new(16 * MIB, 16 * MIB + G)];
    assert_eq!(dom0.ram.as_slice(), own);
    // Shortened to what lies over whole blocks of RAM.
    assert_eq!(dom0.scratch, Span::new(0x4800_0000, 0x7800_0000));
    assert_eq!(dom0.tables, Span::new(DOM0_START - DOM0_TABLES, DOM0_START));
    let moved = Move { module: 0, from: modules[0], to: map.boot_area.start() - 60 * MIB };
    assert_eq!(map.moves, [moved]);
}

#[test]
fn a_dom0_that_takes_the_top_gets_its_scratch_hole_in_between() {
    let host = host(BOCHS_512M);
    let map = plan(&input(&host, &[], Some(Dom0Request { mem: Some(256 * MIB), scratch: G }))).unwrap();
    let dom0 = map.dom0.unwrap();
    assert_eq!(dom0.scratch, Span::new(256 * MIB, 384 * MIB));
    assert_eq!(dom0.ram.as_slice()[2..], [Span::new(16 * MIB, 256 * MIB), Span::new(384 * MIB, 400 * MIB)]);
}

#[test]
fn a_dom0_beyond_4_gib_keeps_its_scratch_below_the_pci_windows() {
    let host = host(SERVER);
    let map = plan(&input(&host, &[], Some(Dom0Request { mem: Some(16 * G), scratch: G }))).unwrap();
    let dom0 = map.dom0.unwrap();
    assert!(dom0.scratch.end() <= 0x5d8d_1000 && dom0.scratch.len() == G);
    assert!(dom0.ram.end() > FOUR_GIB);
}

#[test]
fn machines_that_are_too_small_are_told_what_is_missing() {
    let tiny = [(0, 0x9_f000, RAM), (MIB, 20 * MIB, RAM)];
    let tiny = host(&tiny);
    assert!(matches!(plan(&input(&tiny, &[], None)), Err(MapError::TooSmall { .. })));
    let small = host(&[(0, 0x9_f000, RAM), (MIB, 255 * MIB, RAM)]);
    let request = Some(Dom0Request { mem: Some(64 * MIB), scratch: G });
    assert_eq!(plan(&input(&small, &[], request)), Err(MapError::NoScratch { have: 0x9_f000 + 254 * MIB }));
    assert!(plan(&input(&small, &[], None)).is_ok());
    let no_low = host(&[(0, 0x1000, RAM), (MIB, G, RAM)]);
    assert_eq!(plan(&input(&no_low, &[], None)), Err(MapError::NoLowPage));
    let bochs = host(BOCHS_512M);
    let request = Some(Dom0Request { mem: Some(G), scratch: G });
    let error = plan(&input(&bochs, &[], request)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "machine map: dom0_mem=1024 is more than there is; at most dom0_mem=359 fits in this machine"
    );
    let outside = [Span::sized(MIB, 4096), Span::sized(0x9f000 - 100, 200)];
    let error = MapError::ModuleOutsideRam { module: 1, at: outside[1] };
    assert_eq!(plan(&input(&bochs, &outside, None)), Err(error), "half of it is the firmware's");
    let big = [Span::sized(16 * MIB, 180 * MIB)];
    let request = Some(Dom0Request { mem: Some(350 * MIB), scratch: G });
    let stuck = MapError::NoRoomForModule { module: 0, len: 180 * MIB };
    assert_eq!(plan(&input(&bochs, &big, request)), Err(stuck));
}

#[test]
fn a_map_too_fragmented_for_linux_is_refused() {
    let mut table = vec![(0, 0x9_f000, RAM), (MIB, G, RAM)];
    table.extend((0..130).map(|i| (4 * G + i * 2 * MIB, 4 * G + i * 2 * MIB + MIB, RES)));
    let host = host(&table);
    let request = Some(Dom0Request { mem: Some(128 * MIB), scratch: G });
    assert!(matches!(plan(&input(&host, &[], request)), Err(MapError::TooManyEntries { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn random_machines_are_laid_out_or_refused(
        entries in proptest::collection::vec((0..6 * G, 1..2 * G, prop_oneof![4 => Just(RAM), 1 => 2..6u32]), 0..8),
        holes in proptest::collection::vec((0..6 * G, 1..0x20_0000u64, 2..6u32), 0..12),
        at in 0..G, len in 1..200 * MIB, more in 1..100 * MIB, mem in proptest::option::of(1..4 * G), scratch in 0..3 * G,
        with_dom0: bool
    ) {
        let usual = [(0, 0x9_fc00, RAM), (3 * MIB, 400 * MIB, RAM)];
        let random = entries.into_iter().chain(holes).map(|(start, len, kind)| (start.max(0xa_0000), start.max(0xa_0000) + len, kind));
        let table: Vec<_> = usual.into_iter().chain(random).chain([(0xa_0000, MIB, RES), (0xfec0_0000, FOUR_GIB, RES)]).collect();
        let mut host = host(&table);
        // The hypervisor was loaded, so its image lies in RAM.
        if !host.of(Kind::Ram).contains(HYPERVISOR) {
            let mut table = table.clone();
            table.retain(|(start, end, kind)| *kind == RAM || !Span::new(*start, *end).overlaps(HYPERVISOR));
            table.push((MIB, 3 * MIB, RAM));
            host = self::host(&table);
        }
        let at = at + 3 * MIB;
        let modules = [Span::sized(at, len), Span::sized(at + len, more)];
        // Modules were loaded into RAM, too.
        prop_assume!(modules.iter().all(|module| host.of(Kind::Ram).contains(module.pages_around())));
        let mem = mem.map(|mem| mem & !(PAGE - 1));
        let input = input(&host, &modules, with_dom0.then_some(Dom0Request { mem, scratch }));
        match plan(&input) {
            Ok(map) => check(&input, &map),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}
