// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves the FIFO event channels of one vCPU: what waited before, order, priorities, masks, the errors, and that reset
//! lets go of the pages.
//!
//! The pages are also given back to the hypervisor while they are in use. A pass cannot tell that no event is lost between
//! two CPUs.
//!
//! Checks: `event_channel.h` at 4.17.
//! Expects: status 0.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use guest_abi::DomId;
use guest_abi::event_channel::{
    EVTCHNOP_EXPAND_ARRAY, EVTCHNOP_INIT_CONTROL, EVTCHNOP_RESET, EVTCHNOP_SET_PRIORITY, ExpandArray,
    FIFO_CONTROL_HEAD, FIFO_CONTROL_READY, FIFO_LINK_BITS, FIFO_LINK_MASK, FIFO_LINKED, FIFO_MASKED, FIFO_PENDING,
    InitControl, Reset, SetPriority,
};
use guest_abi::hypercall::HYPERVISOR_MEMORY_OP;
use guest_abi::memory::{MemoryReservation, XENMEM_DECREASE_RESERVATION, XENMEM_POPULATE_PHYSMAP};
use test_guests::shared::Shared;
use test_guests::{check, check_eq, events, guest, hypercall};

guest!(main);

const EINVAL: i64 = -22;
const ENOENT: i64 = -2;
const EOPNOTSUPP: i64 = -95;
const OFFSET: u32 = 128;

static CONTROL: Shared<[u8; 4096]> = Shared::new([0; 4096]);
static WORDS: Shared<[u8; 4096]> = Shared::new([0; 4096]);

fn main() {
    events::init();
    let [a, b, c] = [0; 3].map(|vcpu| events::bind_ipi(vcpu).unwrap_or(0));
    events::send(a);
    check_eq("no words without a control block", expand(WORDS.address()), EOPNOTSUPP);
    for (offset, vcpu, error) in [(4, 0, EINVAL), (4096 - 64, 0, EINVAL), (u32::MAX, 0, EINVAL), (0, 9, ENOENT)] {
        check_eq("a control block in a bad place", init(offset, vcpu).0, error);
    }
    check_eq("a control block", init(OFFSET, 0), (0, u8::try_from(FIFO_LINK_BITS).unwrap_or(0)));
    check_eq("is given once", init(0, 0).0, EINVAL);
    check("an event waits for its word", word(a).load(SeqCst) == 0 && events::send(b) == 0);
    check_eq("words", expand(WORDS.address()), 0);
    check_eq("what waited is found", take(), [a, b, 0, 0]);
    order([a, b, c]);
    masks(a);
    given_back(a);
    let port = events::bind_ipi(0).unwrap_or(0);
    events::send(port);
    check("afterwards an event is a bit again", events::is_pending(port));
    check_eq("and a control block can be given anew", init(OFFSET, 0).0, 0);
}

fn order([a, b, c]: [u32; 3]) {
    let priority = |port, priority| events::op(EVTCHNOP_SET_PRIORITY, &mut SetPriority { port, priority });
    [a, b, c, a].into_iter().for_each(|port| _ = events::send(port));
    check("the upcall is announced", events::upcall_pending().load(SeqCst) != 0);
    check_eq("events come in their order, each once", take(), [a, b, c, 0]);
    check_eq("a priority", (priority(c, 3), priority(c, 16), priority(77, 3)), (0, EINVAL, EINVAL));
    [a, b, c].into_iter().for_each(|port| _ = events::send(port));
    check_eq("a more urgent one comes first", take(), [c, a, b, 0]);
}

fn masks(port: u32) {
    word(port).fetch_or(FIFO_MASKED, SeqCst);
    events::send(port);
    check_eq("a masked event", take(), [0; 4]);
    check_eq("waits", word(port).load(SeqCst), FIFO_MASKED | FIFO_PENDING);
    check_eq("until it is unmasked", events::unmask(port), 0);
    check_eq("and then comes", take(), [port, 0, 0, 0]);
}

/// Both pages leave the guest's memory. They are counted against what it may have until reset lets go of them, and only
/// then others fit in.
fn given_back(port: u32) {
    let both = || [&CONTROL, &WORDS].map(|page| page.address() >> 12);
    for gfn in both() {
        check_eq("a page in use is given back", reservation(XENMEM_DECREASE_RESERVATION, &gfn), 1);
    }
    check_eq("an event changes it unseen", events::send(port), 0);
    check_eq("reset", events::op(EVTCHNOP_RESET, &mut Reset { dom: DomId::SELF.raw() }), 0);
    for gfn in both() {
        check_eq("there is room for another one", reservation(XENMEM_POPULATE_PHYSMAP, &gfn), 1);
    }
}

fn reservation(command: u32, gfn: &u64) -> i64 {
    let extent_start = core::ptr::from_ref(gfn).addr() as u64;
    let mut argument =
        MemoryReservation { extent_start, nr_extents: 1, domid: DomId::SELF.raw(), ..MemoryReservation::default() };
    hypercall::op(HYPERVISOR_MEMORY_OP, command, &mut argument)
}

fn init(offset: u32, vcpu: u32) -> (i64, u8) {
    let mut argument = InitControl { control_gfn: CONTROL.address() >> 12, offset, vcpu, ..Default::default() };
    (events::op(EVTCHNOP_INIT_CONTROL, &mut argument), argument.link_bits)
}

fn expand(address: u64) -> i64 {
    events::op(EVTCHNOP_EXPAND_ARRAY, &mut ExpandArray { array_gfn: address >> 12 })
}

fn at(address: u64) -> &'static AtomicU32 {
    // SAFETY: inside one of the two pages, aligned, and accessed by atomics only.
    unsafe { AtomicU32::from_ptr(address as *mut u32) }
}

fn word(port: u32) -> &'static AtomicU32 {
    at(WORDS.address() + u64::from(port) * 4)
}

/// What a kernel does in its upcall: the ports that it finds, at most four.
fn take() -> [u32; 4] {
    events::upcall_pending().store(0, SeqCst);
    let control = CONTROL.address() + u64::from(OFFSET);
    let ready = at(control + FIFO_CONTROL_READY as u64).swap(0, SeqCst);
    let (mut found, mut count) = ([0; 4], 0);
    for queue in (0..16).filter(|queue| ready >> queue & 1 != 0) {
        let mut port = at(control + FIFO_CONTROL_HEAD as u64 + queue * 4).load(SeqCst);
        while port != 0 && count < found.len() {
            let old = word(port).fetch_and(!(FIFO_LINKED | FIFO_LINK_MASK), SeqCst);
            if old & (FIFO_PENDING | FIFO_MASKED) == FIFO_PENDING {
                word(port).fetch_and(!FIFO_PENDING, SeqCst);
                found[count] = port;
                count += 1;
            }
            port = old & FIFO_LINK_MASK;
        }
    }
    found
}
