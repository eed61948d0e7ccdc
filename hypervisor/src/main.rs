// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's binary: the bare metal below the library, and the order in which they start.
#![no_std]
#![no_main]
#![deny(unsafe_code)]

extern crate alloc;

mod machine;

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64};

use guest_abi::DomId;
use guest_abi::isthmus;
use guest_abi::num::{low_u8, low_u32};
use hypervisor::addr::{Hpa, Nanos, PAGE_SHIFT, Ticks};
use hypervisor::boot::acpi::AcpiError;
use hypervisor::boot::acpi::build::for_dom0;
use hypervisor::boot::acpi::host::{HostAcpi, RootPointer};
use hypervisor::boot::cmdline::{self, Console, Options, TscPolicy};
use hypervisor::boot::host_map::{HostMap, Kind};
use hypervisor::boot::machine_map::{self, Dom0Request, Input, MachineMap};
use hypervisor::boot::module::{self, Dom0Modules, Roster};
use hypervisor::boot::span::Span;
use hypervisor::debug::DebugConsole;
use hypervisor::domain::build::{self, Images};
use hypervisor::domain::create;
use hypervisor::domain::{DomainTable, News};
use hypervisor::emul::ioapic::{IoapicInfo, Ioapics};
use hypervisor::facts::HostFacts;
use hypervisor::hypervisor::Hypervisor;
use hypervisor::input::InputRing;
use hypervisor::pcpu;
use hypervisor::sched::{SLICE_NS, Scheduler};
use hypervisor::time::{SystemClock, TscScale};
use spin::{Mutex, Once};

use machine::boot::{BootInfo, BootModule, power};
use machine::hw::{self, Hw};
use machine::{apic, clock, console, cpu, hygiene, layout, lazy, memory, panic, percpu, rtc, screen, smp};

/// Bytes of the hypervisor's heap.
const HEAP_SIZE: u64 = 3 << 19;
/// The I/O APIC pin that a PC wires COM1 to, unless the tables say otherwise.
const COM1_IRQ: u8 = 4;

/// Goes on where `boot_main` ends: the console, traps and the early heap work.
fn start(info: &BootInfo) -> ! {
    match boot(info) {
        Ok(hv) => {
            screen::domains_start();
            smp::release(hv);
            hypervisor::vcpu::run::schedule(hv)
        }
        Err(why) => power::fail(format_args!("{why}")),
    }
}

fn boot(info: &BootInfo) -> Result<&'static Hypervisor, String> {
    let options = apply_options(&info.command_line);
    let khz = clock::init(options.cpu_khz.map(u64::from))
        .and_then(|khz| u32::try_from(khz).ok())
        .ok_or("the TSC's frequency could not be measured (no PIT?); give it as cpu_khz=")?;
    let scale = TscScale::from_khz(khz).ok_or("the TSC's frequency is out of range; give it as cpu_khz=")?;
    log::info!("TSC runs at {khz} kHz");
    let strings: Vec<&str> = info.modules.iter().map(|module| module.args.as_str()).collect();
    for module in &info.modules {
        log::info!("module at {:#x}, {} KiB: {}", module.start, module.len >> 10, module.args);
    }
    let roster = module::sort(&strings).map_err(|error| error.to_string())?;

    let host = host_map(info);
    let acpi = read_acpi(info, roster.dom0.is_some())?;
    let map = plan_memory(&options, &host, &acpi, info, &roster)?;
    let memory = install_memory(&host, &acpi, &map);
    move_modules(&map);

    apic::mask_pics();
    apic::set_nr_ioapics(u32::try_from(acpi.madt.io_apics.len()).unwrap_or(0));
    apic::init();
    lazy::enable();
    let backend = hw::enable_backend()?;
    let (x2apic, deadline) = apic::modes();
    log::info!("local APIC {}, x2APIC {x2apic}, TSC deadline {deadline}", apic::id());
    hygiene::init();
    pcpu::set_current(percpu::number);
    let cpus = smp::start_all(map.trampoline, &acpi.madt.apic_ids);
    log::info!("{} of {} CPUs run, with APIC ids {cpus:?}", cpus.len(), acpi.madt.apic_ids.len());

    let hv: &'static Hypervisor = Box::leak(Box::new(Hypervisor {
        machine: &Hw,
        mem: memory.mem,
        frames: memory.frames,
        domains: DomainTable::default(),
        clock: SystemClock::new(scale, Ticks::new(clock::boot_tsc())),
        wallclock_ns: AtomicU64::new(rtc::nanos_since_1970()),
        is_tsc_stable: options.tsc == TscPolicy::Stable || cpu::has_invariant_tsc(),
        sched: Box::leak(Box::new(Scheduler::new(&Hw, cpus.len(), scale.ticks(Nanos::new(SLICE_NS))))),
        is_cleaning: AtomicBool::new(false),
        news: Box::leak(Box::new(News::default())),
        guest_io_map: Once::new(),
        making: Mutex::new(()),
        input: InputRing::default(),
        on_panic: options.panic,
        format: backend.format(),
        largest_leaf: backend.largest_leaf(),
        phys_bits: cpu::phys_bits(),
        keeps_com1: options.console == Console::Com1,
        debug: DebugConsole::new(options.debug),
        facts: facts(khz, &host, &acpi, &map, &cpus),
        apic_ids: cpus,
    }));
    build_domains(hv, &options, &acpi, &map, &roster)?;
    reclaim(hv, &map);
    Ok(hv)
}

/// Acts on the command line; what has no effect is named.
fn apply_options(line: &str) -> Options {
    let (options, complaints) = cmdline::parse(line);
    power::set_exit_device(options.exit);
    panic::set_policy(options.panic);
    console::set_level(options.loglvl);
    screen::set_policy(options.screen);
    if options.console == Console::None {
        console::disable();
    }
    log::info!("command line: {line}");
    for complaint in complaints {
        log::warn!("{complaint}");
    }
    options
}

fn host_map(info: &BootInfo) -> HostMap {
    let host = HostMap::new(&info.memory_map, 1 << cpu::phys_bits().min(46));
    for entry in host.entries() {
        log::info!("  {} {}", entry.span, entry.kind);
    }
    host
}

fn read_acpi(info: &BootInfo, has_dom0: bool) -> Result<HostAcpi, String> {
    let memory = memory::Identity;
    let root = match info.rsdp {
        Some(at) => RootPointer::at(&memory, at),
        None => RootPointer::find(&memory),
    };
    let acpi = match root.and_then(|root| HostAcpi::walk(&memory, &root)) {
        // Some firmware of emulators has none.
        Err(AcpiError::NoRootPointer) if !has_dom0 => {
            log::warn!("ACPI: {}; guests can run, on this CPU alone", AcpiError::NoRootPointer);
            HostAcpi::absent(cpu::cpuid(1, 0).ebx >> 24)
        }
        read => read.map_err(|error| error.to_string())?,
    };
    for complaint in &acpi.complaints {
        log::warn!("ACPI: {complaint}");
    }
    log::info!("{} CPUs, {} I/O APICs", acpi.madt.apic_ids.len(), acpi.madt.io_apics.len());
    if acpi.iommus.is_empty() {
        log::warn!("no IOMMU: dom0's devices can reach all memory by DMA");
    } else {
        log::warn!("the IOMMU is not driven yet: dom0's devices can reach all memory by DMA");
    }
    Ok(acpi)
}

fn plan_memory(
    options: &Options,
    host: &HostMap,
    acpi: &HostAcpi,
    info: &BootInfo,
    roster: &Roster<'_>,
) -> Result<MachineMap, String> {
    let modules: Vec<Span> = info.modules.iter().map(BootModule::span).collect();
    let withheld: Vec<Span> = acpi
        .madt
        .io_apics
        .iter()
        .map(|ioapic| Span::sized(u64::from(ioapic.address), 0x1000).pages_around())
        .chain(acpi.iommus.iter().copied())
        .collect();
    let top = host.of(Kind::Ram).end();
    let input = Input {
        host,
        hypervisor: Span::new(layout::image_start(), layout::image_end()),
        modules: &modules,
        boot_fixed: memory::boot_fixed(top, HEAP_SIZE, smp::nr_aps(&acpi.madt.apic_ids)),
        boot_per_frame: memory::RECORD_SIZE,
        dom0: roster.dom0.as_ref().map(|_| Dom0Request { mem: options.dom0_mem, scratch: options.dom0_scratch }),
        withheld: &withheld,
    };
    machine_map::plan(&input).map_err(|error| error.to_string())
}

/// Loads the final page tables, gives the heap its main area, and makes the frame table.
///
/// Never inlined: the frame table takes 20 KiB of stack on its way to the heap, which the making of domains needs, too.
#[inline(never)]
fn install_memory(host: &HostMap, acpi: &HostAcpi, map: &MachineMap) -> memory::Memory {
    let ioapics: Vec<Hpa> = acpi.madt.io_apics.iter().map(|ioapic| Hpa::new(u64::from(ioapic.address))).collect();
    let memory = memory::install(host, map, HEAP_SIZE, smp::nr_aps(&acpi.madt.apic_ids), &ioapics);
    log::info!(
        "{} MiB free; {} KiB for the hypervisor: image {} KiB, boot area {}",
        memory.frames.free_frames().total >> 8,
        (layout::image_end() - layout::image_start() + map.boot_area.len()) >> 10,
        (layout::image_end() - layout::image_start()) >> 10,
        map.boot_area
    );
    memory
}

fn move_modules(map: &MachineMap) {
    for step in &map.moves {
        log::info!("moving module {} to {:#x}", step.module, step.to);
        memory::copy(step.from, step.to);
    }
}

fn build_domains(
    hv: &'static Hypervisor,
    options: &Options,
    acpi: &HostAcpi,
    map: &MachineMap,
    roster: &Roster<'_>,
) -> Result<(), String> {
    let bytes = |module: usize| memory::bytes(map.modules[module]);
    let ioapics = take_over_ioapics(hv, acpi, dom0_apic_ids(hv, options));
    create::prepare(hv).map_err(|error| error.to_string())?;
    if let Some(dom0) = &roster.dom0 {
        build_dom0(hv, options, acpi, map, dom0, &bytes, ioapics).map_err(|why| alloc::format!("dom0: {why}"))?;
    }
    for (i, guest) in (1_u16..).zip(&roster.guests) {
        let images =
            Images { kernel: bytes(guest.image), initrd: guest.initrd.map(bytes), cmdline: guest.spec.cmdline };
        let domain = build::guest(hv, DomId::new(i), &guest.spec, images)
            .map_err(|error| alloc::format!("guest {}: {error}", guest.spec.name))?;
        build::start(hv, domain);
    }
    Ok(())
}

fn build_dom0(
    hv: &'static Hypervisor,
    options: &Options,
    acpi: &HostAcpi,
    map: &MachineMap,
    modules: &Dom0Modules<'_>,
    bytes: &dyn Fn(usize) -> &'static [u8],
    ioapics: Ioapics,
) -> Result<(), String> {
    let layout = map.dom0.as_ref().ok_or("no memory was laid out for it")?;
    let apic_ids = dom0_apic_ids(hv, options);
    let (tables, withheld) =
        for_dom0(acpi, layout.tables, apic_ids, &layout.identity).map_err(|error| error.to_string())?;
    let names: Vec<String> = withheld.iter().map(ToString::to_string).collect();
    log::info!("ACPI tables withheld from dom0: {}", names.join(" "));
    let cmdline = dom0_cmdline(modules.cmdline);
    log::info!("dom0's command line: {cmdline}");
    let images = Images { kernel: bytes(modules.kernel), initrd: modules.initrd.map(bytes), cmdline: &cmdline };
    let domain =
        build::dom0(hv, layout, low_u32(apic_ids.len() as u64), &tables, images).map_err(|error| error.to_string())?;
    domain.ioapics.call_once(|| ioapics);
    log::debug!("dom0's ACPI root pointer is at {:#x}", tables.rsdp);
    build::start(hv, domain);
    Ok(())
}

/// The APIC ids of dom0's vCPUs: those of the first CPUs, all unless `dom0_vcpus=` says how many.
fn dom0_apic_ids<'a>(hv: &'a Hypervisor, options: &Options) -> &'a [u32] {
    let present = hv.apic_ids.len().min(hypervisor::domain::MAX_VCPUS);
    let wanted = options.dom0_vcpus.map_or(present, |count| count as usize);
    if wanted > present {
        log::warn!("dom0_vcpus={wanted}: dom0 gets {present} vCPUs, one for each CPU that runs");
    }
    &hv.apic_ids[..wanted.min(present)]
}

/// Without an IOMMU every page that a device may be given must be dom0's own, so all its DMA goes
/// through its bounce buffer.
fn dom0_cmdline(given: &str) -> String {
    if given.split_ascii_whitespace().any(|word| word.starts_with("swiotlb=")) {
        return given.to_string();
    }
    alloc::format!("{given} swiotlb=force").trim_start().to_string()
}

/// Masks every pin but the console's, which is routed to the hypervisor's own vector.
fn take_over_ioapics(hv: &Hypervisor, acpi: &HostAcpi, apic_ids: &[u32]) -> Ioapics {
    let com1 = acpi.madt.overrides.iter().find(|o| o.irq == COM1_IRQ).map_or(u32::from(COM1_IRQ), |o| o.gsi);
    let kept = [com1];
    let kept: &[u32] = if hv.keeps_com1 { &kept } else { &[] };
    let units: Vec<IoapicInfo> = acpi
        .madt
        .io_apics
        .iter()
        .enumerate()
        .map(|(index, ioapic)| IoapicInfo {
            index,
            base: guest_abi::Gpa::new(u64::from(ioapic.address)),
            gsi_base: ioapic.gsi_base,
            nr_pins: low_u8(u64::from(apic::ioapic_read(index, 1)) >> 16) + 1,
            id: ioapic.id,
        })
        .collect();
    let ioapics = Ioapics::new(hv.machine, &units, kept, apic_ids);
    if let Some(unit) =
        units.iter().find(|unit| (unit.gsi_base..unit.gsi_base + u32::from(unit.nr_pins)).contains(&com1))
        && hv.keeps_com1
    {
        apic::route_console(unit.index, low_u8(u64::from(com1 - unit.gsi_base)));
        console::enable_receive_interrupt();
    }
    ioapics
}

/// What was found, for reports.
fn facts(tsc_khz: u32, host: &HostMap, acpi: &HostAcpi, map: &MachineMap, cpus: &[u32]) -> HostFacts {
    let image_bytes = layout::image_end() - layout::image_start();
    HostFacts {
        features: hw::features(),
        tsc_khz,
        total_frames: host.of(Kind::Ram).total() >> PAGE_SHIFT,
        hypervisor_frames: (image_bytes + map.boot_area.len()) >> PAGE_SHIFT,
        image_bytes,
        nr_pcpus: low_u32(cpus.len() as u64),
        nr_present_cpus: u32::try_from(acpi.madt.apic_ids.len()).unwrap_or(u32::MAX),
        iommu: if acpi.iommus.is_empty() { isthmus::IOMMU_NONE } else { isthmus::IOMMU_UNUSED },
    }
}

/// Gives back what only the boot needed.
fn reclaim(hv: &Hypervisor, map: &MachineMap) {
    for span in map.reclaim.iter() {
        if let Err(error) = hv.frames.add_free(memory::mfns(span)) {
            log::warn!("cannot reclaim {span}: {error:?}");
        }
    }
}
