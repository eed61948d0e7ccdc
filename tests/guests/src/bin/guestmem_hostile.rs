// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves that wild values in hypercall arguments get an error, quickly, and change nothing.
//!
//! Counts of all ones, orders of 63, offsets that overflow, arrays that wrap around the address
//! space, frames far outside RAM. A pass cannot tell that every field of every call was tried.
//!
//! Not compared with Xen 4.17 in full: as a control domain behind an IOMMU it is crashed for placing
//! a page at the wildest frames, where an error is wanted here.
//!
//! Checks: `memory.h`, `grant_table.h`, `vcpu.h`, `sched.h`, `event_channel.h` at 4.17.
//! Expects: status 0.
#![no_std]
#![no_main]

use guest_abi::event_channel::{EVTCHNOP_EXPAND_ARRAY, EVTCHNOP_INIT_CONTROL, ExpandArray, InitControl};
use guest_abi::grant_table::{
    CopyPtr, GNTST_BAD_COPY_ARG, GNTTABOP_COPY, GNTTABOP_MAP_GRANT_REF, GNTTABOP_UNMAP_GRANT_REF, GrantCopy,
};
use guest_abi::hypercall as nr;
use guest_abi::memory as mem;
use guest_abi::sched::{Poll, SCHEDOP_POLL};
use guest_abi::vcpu::{RegisterVcpuInfo, VCPUOP_REGISTER_VCPU_INFO};
use guest_abi::{DomId, Wire};
use test_guests::shared::Shared;
use test_guests::{boot, check, check_eq, cpu, guest, hypercall, report, time};

static PAGE: Shared<[u64; 512]> = Shared::new([0; 512]);
const SELF: u16 = DomId::SELF.raw();
/// Frame numbers beyond any width of addresses.
const WILD: [u64; 6] = [1 << 40, (1 << 52) - 1, 1 << 52, u64::MAX >> 12, 1 << 63, u64::MAX];

guest!(main);

fn main() {
    frames();
    reservations();
    grants();
    vcpu_areas();
    others();
    let version = hypercall::plain(nr::HYPERVISOR_XEN_VERSION, [0; 5]);
    check_eq("a right call still works", version, 4 << 16 | 17);
    check("RAM is still there", cpu::read(boot::end_of_image() - 8).is_ok());
}

/// Makes the call and checks that its result is right and came within a second.
fn wants(name: &str, is_right: impl Fn(i64) -> bool, call: impl FnOnce() -> i64) {
    let start = cpu::tsc();
    let result = call();
    let ms = (cpu::tsc() - start) / time::tsc_khz();
    if !is_right(result) {
        report::fail(name, format_args!("result {result}"));
    } else if ms > 1000 {
        report::fail(name, format_args!("took {ms} ms"));
    } else {
        check(name, true);
    }
}

fn is_error(result: i64) -> bool {
    (-4095..0).contains(&result)
}

fn is_error_or_none(result: i64) -> bool {
    (-4095..=0).contains(&result)
}

fn memory_op<T: Wire>(command: u32, mut argument: T) -> i64 {
    hypercall::op(nr::HYPERVISOR_MEMORY_OP, command, &mut argument)
}

fn frames() {
    for gpfn in WILD {
        wants("add_to_physmap of shared_info at a wild frame", is_error, || {
            let place =
                mem::AddToPhysmap { domid: SELF, space: mem::XENMAPSPACE_SHARED_INFO, gpfn, ..Default::default() };
            memory_op(mem::XENMEM_ADD_TO_PHYSMAP, place)
        });
        wants("remove_from_physmap of a wild frame", is_error_or_none, || {
            memory_op(mem::XENMEM_REMOVE_FROM_PHYSMAP, mem::RemoveFromPhysmap { domid: SELF, gpfn })
        });
        wants("add_to_physmap of a wild grant frame", is_error, || {
            let gpfn = PAGE.address() >> 12;
            let space = mem::XENMAPSPACE_GRANT_TABLE;
            memory_op(
                mem::XENMEM_ADD_TO_PHYSMAP,
                mem::AddToPhysmap { domid: SELF, space, idx: gpfn | 1 << 24, gpfn, ..Default::default() },
            )
        });
    }
    wants("a batch over arrays that wrap", is_error, || {
        let batch = mem::AddToPhysmapBatch {
            domid: SELF,
            space: 0,
            size: u16::MAX,
            idxs: u64::MAX - 7,
            gpfns: u64::MAX - 7,
            errs: u64::MAX - 3,
            ..Default::default()
        };
        memory_op(mem::XENMEM_ADD_TO_PHYSMAP_BATCH, batch)
    });
    wants("a space that is not there", is_error, || {
        memory_op(mem::XENMEM_ADD_TO_PHYSMAP, mem::AddToPhysmap { domid: SELF, space: u32::MAX, ..Default::default() })
    });
}

fn reservations() {
    let commands = [mem::XENMEM_DECREASE_RESERVATION, mem::XENMEM_POPULATE_PHYSMAP, mem::XENMEM_INCREASE_RESERVATION];
    for command in commands {
        for (nr_extents, extent_order) in
            [(u64::MAX, 0), (1 << 60, 0), (1, 63), (1, u32::MAX), (u64::MAX, 63), (1 << 32, 9)]
        {
            for extent_start in [PAGE.address(), u64::MAX - 7, 1 << 47] {
                // The page is all wild frames, so that nothing can be done.
                // SAFETY: the page is ours, the hypervisor reads it only inside the call.
                unsafe { PAGE.get().write_volatile([u64::MAX >> 12; 512]) };
                wants("a reservation of a wild size", is_error_or_none, || {
                    let arg =
                        mem::MemoryReservation { extent_start, nr_extents, extent_order, mem_flags: 0, domid: SELF };
                    memory_op(command, arg)
                });
            }
        }
    }
}

fn grants() {
    let array = |command: u32, address: u64, count: u64| {
        hypercall::plain(nr::HYPERVISOR_GRANT_TABLE_OP, [u64::from(command), address, count, 0, 0])
    };
    for command in [GNTTABOP_MAP_GRANT_REF, GNTTABOP_UNMAP_GRANT_REF, GNTTABOP_COPY] {
        for address in [u64::MAX - 3, 1 << 47, 0xffff_7fff_ffff_fff0] {
            for count in [1, u64::from(u32::MAX)] {
                wants("a grant array that leads nowhere", is_error, || array(command, address, count));
            }
        }
    }
    for (offset, len) in [(4095, 2), (u16::MAX, 1), (0, u16::MAX), (u16::MAX, u16::MAX), (0, 4097)] {
        let side = CopyPtr { frame: PAGE.address() >> 12, domid: SELF, offset };
        let copy = GrantCopy { source: side, dest: side, len, ..Default::default() };
        check_eq("a copy that leaves its frame", test_guests::grants::copy(copy), Ok(GNTST_BAD_COPY_ARG));
    }
}

fn vcpu_areas() {
    for mfn in WILD {
        wants("a vcpu_info in a wild frame", is_error, || {
            hypercall::vcpu_op(VCPUOP_REGISTER_VCPU_INFO, 0, &mut RegisterVcpuInfo { mfn, offset: 0, rsvd: 0 })
        });
    }
    for offset in [4095, 4096 - 63, 4096, u32::MAX, u32::MAX - 63] {
        wants("a vcpu_info that leaves its frame", is_error, || {
            let mfn = PAGE.address() >> 12;
            hypercall::vcpu_op(VCPUOP_REGISTER_VCPU_INFO, 0, &mut RegisterVcpuInfo { mfn, offset, rsvd: 0 })
        });
    }
    for vcpu in [1, 32, 0x7fff_ffff, u32::MAX] {
        let mfn = PAGE.address() >> 12;
        wants("a vcpu_info for a vCPU that is not there", is_error, || {
            hypercall::vcpu_op(VCPUOP_REGISTER_VCPU_INFO, vcpu, &mut RegisterVcpuInfo { mfn, offset: 0, rsvd: 0 })
        });
    }
}

fn others() {
    for nr_ports in [129, 1 << 20, u32::MAX] {
        wants("a poll of too many ports", is_error, || {
            let mut poll = Poll { ports: PAGE.address(), nr_ports, timeout: 1 };
            hypercall::op(nr::HYPERVISOR_SCHED_OP, SCHEDOP_POLL, &mut poll)
        });
    }
    for control_gfn in WILD {
        for offset in [0, 4096 - 71, 3, u32::MAX] {
            wants("a FIFO control block in a wild place", is_error, || {
                test_guests::events::op(
                    EVTCHNOP_INIT_CONTROL,
                    &mut InitControl { control_gfn, offset, ..Default::default() },
                )
            });
        }
        wants("a FIFO array in a wild frame", is_error, || {
            test_guests::events::op(EVTCHNOP_EXPAND_ARRAY, &mut ExpandArray { array_gfn: control_gfn })
        });
    }
    for count in [u64::MAX, 1 << 32, 1 << 20] {
        wants("console output from nowhere", is_error_or_none, || {
            hypercall::plain(nr::HYPERVISOR_CONSOLE_IO, [0, count, 1 << 47, 0, 0])
        });
        wants("a multicall of wild length", is_error_or_none, || {
            hypercall::plain(nr::HYPERVISOR_MULTICALL, [u64::MAX - 63, count, 0, 0, 0])
        });
    }
}
