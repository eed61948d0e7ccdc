// SPDX-License-Identifier: MIT OR Apache-2.0
//! Measures what single operations cost, for `cargo xtask bench`; it proves nothing.
//!
//! Each line `BENCH name ops=N ticks=T hv=H exits=E` is about N repetitions: T ticks of the TSC passed,
//! of which the hypervisor counted H from exits to entries, in E exits. The line `BENCH loop` is the
//! same loop around no operation. The hypervisor reads the TSC some instructions after an exit and
//! before an entry; how many, the null hypercall tells, whose guest side is four instructions.
//!
//! Beside it runs `event_echo` as domain 2, which answers events.
//!
//! A tick is an instruction only where the emulator makes it one (QEMU's `-icount shift=0`).
//!
//! Expects: status 0.
#![no_std]
#![no_main]

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use guest_abi::domctl::XEN_DOMCTL_DESTROYDOMAIN;
use guest_abi::grant_table as g;
use guest_abi::hypercall::{HYPERVISOR_GRANT_TABLE_OP, HYPERVISOR_XEN_VERSION};
use guest_abi::vcpu::{SetSingleshotTimer, VCPUOP_SET_SINGLESHOT_TIMER};
use guest_abi::version::{FeatureInfo, XENVER_GET_FEATURES, XENVER_VERSION};
use guest_abi::{DomId, Wire};
use test_guests::pair::{self, Pair};
use test_guests::shared::Shared;
use test_guests::{check, check_eq, control, counters, cpu, events, grants, guest, hypercall, say, time, traps};

guest!(main);

const SELF: u16 = DomId::SELF.raw();
const BATCH: usize = 32;
/// Guest physical address of a hole for mapped grants.
const HOLE: u64 = 1 << 32;
const FIRST_REF: u32 = 8;

static SOURCE: Shared<[u64; 512]> = Shared::new([0; 512]);
static TARGET: Shared<[u64; 512]> = Shared::new([0; 512]);

/// Exits so far and the ticks that the hypervisor took: for this domain's exits, or for all that the one CPU does.
fn cost(of: Cost) -> (u64, u64) {
    let own = counters::of_domain(SELF);
    if of == Cost::Own {
        return own;
    }
    let peer = counters::of_domain(pair::FOLLOWER);
    (own.0 + peer.0, own.1 + peer.1 + counters::of_pcpu(0).ticks)
}

/// Whose cost is counted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cost {
    Own,
    /// With the peer's, and the switches between the two.
    Both,
}

/// Ticks, and what was counted, over `ops` repetitions.
fn sample(of: Cost, ops: u64, operation: &mut dyn FnMut()) -> (u64, u64, u64) {
    let before = cost(of);
    let start = cpu::tsc();
    for _ in 0..ops {
        operation();
    }
    let end = cpu::tsc();
    let after = cost(of);
    (end.wrapping_sub(start), after.1 - before.1, after.0 - before.0)
}

/// Measures `operation`, after a few repetitions that are not counted, and prints the line.
fn measure(name: &str, ops: u64, operation: impl FnMut()) {
    measure_of(Cost::Own, name, ops, operation);
}

fn measure_of(of: Cost, name: &str, ops: u64, mut operation: impl FnMut()) {
    for _ in 0..8 {
        operation();
    }
    let (_, empty_hv, empty_exits) = sample(of, 0, &mut || {});
    let (ticks, hv, exits) = sample(of, ops, &mut operation);
    say!("BENCH {name} ops={ops} ticks={ticks} hv={} exits={}", hv.saturating_sub(empty_hv), exits - empty_exits);
}

fn main() {
    say!("tsc {} kHz", time::tsc_khz());
    let pair = Pair::meet();
    measure("loop", 1000, || {
        core::hint::black_box(());
    });
    exits();
    hypercalls();
    event_round_trip();
    events_between_domains(&pair);
    grants();
    domains();
}

fn exits() {
    measure("cpuid", 1000, || {
        let _ = cpu::cpuid(0, 0);
    });
    measure("unclaimed_port_read", 1000, || {
        let _ = cpu::inb(0x42);
    });
    const TSC_DEADLINE: u32 = 0x6e0;
    measure("tsc_deadline_write", 1000, || {
        // SAFETY: the timer is far away, and its vector masked.
        unsafe { asm!("wrmsr", in("ecx") TSC_DEADLINE, in("eax") 0, in("edx") 0, options(nostack, nomem)) };
    });
}

fn hypercalls() {
    // Four instructions (XENVER_VERSION is 0), which `xtask bench` takes off: the rest is the hypervisor's.
    const _: () = assert!(XENVER_VERSION == 0);
    macro_rules! null {
        ($instruction:literal) => {
            measure("null_hypercall", 1000, || {
                // SAFETY: the call writes nothing but RAX.
                unsafe {
                    asm!("mov eax, {number}", "xor edi, edi", "xor esi, esi", $instruction,
                        number = const HYPERVISOR_XEN_VERSION, out("rax") _, out("rdi") _, out("rsi") _,
                        options(nostack, nomem));
                }
            })
        };
    }
    if hypercall::is_amd() {
        null!("vmmcall");
    } else {
        null!("vmcall");
    }
    let mut info = FeatureInfo::default();
    measure("hypercall_with_a_structure", 1000, || {
        hypercall::op(HYPERVISOR_XEN_VERSION, XENVER_GET_FEATURES, &mut info);
    });
    let mut timer = SetSingleshotTimer { timeout_abs_ns: 1 << 50, flags: 0 };
    measure("timer_set", 1000, || {
        hypercall::vcpu_op(VCPUOP_SET_SINGLESHOT_TIMER, 0, &mut timer);
    });
}

/// What a control domain does to others. Each frame is mapped by a call of its own, as Linux does it.
fn domains() {
    const FRAMES: u64 = 256;
    let Ok(domain) = control::create(FRAMES) else { return test_guests::skip("domains", "no right to control others") };
    let filled: i64 = (0..FRAMES / 64).map(|part| control::populate(domain, part * 64, 64, 0)).sum();
    check_eq("a domain is filled", filled, 256);
    measure("foreign_map_unmap_256", 4, || {
        for gfn in 0..FRAMES {
            control::map(domain, gfn, (HOLE >> 12) + gfn);
        }
        for gfn in 0..FRAMES {
            control::unmap((HOLE >> 12) + gfn);
        }
    });
    // SAFETY: the page is ours and nothing writes it.
    let page = unsafe { core::slice::from_raw_parts(SOURCE.get().cast::<u8>(), 4096) };
    measure("domain_copy_4096", 200, || {
        control::copy(domain, 0, page);
    });
    check_eq("it is destroyed", control::simple(XEN_DOMCTL_DESTROYDOMAIN, domain), 0);
    measure("domain_create_destroy", 16, || {
        if let Ok(domain) = control::create(FRAMES) {
            control::simple(XEN_DOMCTL_DESTROYDOMAIN, domain);
        }
    });
}

/// Two ports of one domain: an event there, its upcall, an event back, its upcall.
fn event_round_trip() {
    let (Ok(there), Ok(own)) = (events::alloc_unbound(SELF, grants::own_id()), Ok::<u16, i64>(grants::own_id())) else {
        return check("a port is allocated", false);
    };
    let Ok(back) = events::bind_interdomain(own, there) else { return check("a channel is bound", false) };
    events::clear_all();
    for port in [there, back] {
        events::set_masked(port, false);
    }
    traps::on(events::CALLBACK_VECTOR, events::take_all);
    cpu::enable_interrupts();
    measure("event_round_trip", 1000, || {
        events::send(there);
        events::send(back);
    });
    cpu::disable_interrupts();
    let taken = traps::count(events::CALLBACK_VECTOR);
    check("each event had its upcall", taken >= 2016);
}

/// An event to the other domain, whose upcall sends one back: both sleep in between.
fn events_between_domains(pair: &Pair) {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    traps::on(events::CALLBACK_VECTOR, || {
        events::take_all();
        TAKEN.fetch_add(1, SeqCst);
    });
    events::set_masked(pair.port(), false);
    cpu::enable_interrupts();
    let mut sent = TAKEN.load(SeqCst);
    measure_of(Cost::Both, "event_round_trip_domains", 500, || {
        sent += 1;
        events::send(pair.port());
        events::sleep_until(|| TAKEN.load(SeqCst) >= sent);
    });
    cpu::disable_interrupts();
    check_eq("each event came back", TAKEN.load(SeqCst), sent);
}

/// A grant operation on a list.
fn list<T: Wire>(command: u32, elements: &mut [T]) -> i64 {
    let (address, count) = (elements.as_mut_ptr().addr() as u64, elements.len() as u64);
    // SAFETY: the list is borrowed for the call.
    let result =
        unsafe { hypercall::raw(u64::from(HYPERVISOR_GRANT_TABLE_OP), [u64::from(command), address, count, 0, 0]) };
    core::hint::black_box(elements);
    result
}

fn grants() {
    if grants::init() != 0 {
        return test_guests::skip("grants", "the table cannot be placed");
    }
    let me = grants::own_id();
    for reference in (FIRST_REF..).take(BATCH) {
        grants::grant(reference, me, SOURCE.address() >> 12, g::GTF_PERMIT_ACCESS);
    }
    copies(me);
    map("grant_map_unmap_1", me, 1, 500);
    map("grant_map_unmap_32", me, BATCH, 50);
}

fn copies(me: u16) {
    let element = |len| g::GrantCopy {
        source: g::CopyPtr { frame: u64::from(FIRST_REF), domid: me, offset: 0 },
        dest: g::CopyPtr { frame: TARGET.address() >> 12, domid: SELF, offset: 0 },
        len,
        flags: g::GNTCOPY_SOURCE_GREF,
        status: 1,
    };
    let mut whole = [element(4096)];
    measure("grant_copy_1x4096", 500, || {
        list(g::GNTTABOP_COPY, &mut whole);
    });
    check_eq("a page is copied", whole[0].status, g::GNTST_OKAY);
    let mut small = [element(64); BATCH];
    measure("grant_copy_32x64", 100, || {
        list(g::GNTTABOP_COPY, &mut small);
    });
    check("pieces are copied", small.iter().all(|copy| copy.status == g::GNTST_OKAY));
}

fn map(name: &str, me: u16, count: usize, ops: u64) {
    let mut mapped = true;
    measure(name, ops, || {
        let mut maps = [g::MapGrantRef::default(); BATCH];
        let mut unmaps = [g::UnmapGrantRef::default(); BATCH];
        for ((map, reference), page) in maps.iter_mut().zip(FIRST_REF..).zip(0_u64..) {
            let host_addr = HOLE + (page << 12);
            *map = g::MapGrantRef {
                host_addr,
                flags: g::GNTMAP_HOST_MAP,
                reference,
                dom: me,
                status: 1,
                handle: 0,
                dev_bus_addr: 0,
            };
        }
        list(g::GNTTABOP_MAP_GRANT_REF, &mut maps[..count]);
        for (unmap, map) in unmaps.iter_mut().zip(&maps) {
            *unmap = g::UnmapGrantRef { host_addr: map.host_addr, handle: map.handle, status: 1, ..Default::default() };
        }
        list(g::GNTTABOP_UNMAP_GRANT_REF, &mut unmaps[..count]);
        mapped &= maps[..count].iter().all(|map| map.status == g::GNTST_OKAY)
            && unmaps[..count].iter().all(|unmap| unmap.status == g::GNTST_OKAY);
    });
    check("grants are mapped and unmapped", mapped);
}
