// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves that the hypervisor walks a guest's page tables as they are at each hypercall.
//!
//! A guest changes its tables without an exit, so that a walk remembered from an earlier call must
//! not be used. Between two calls the guest changes one entry at each level in turn, by a plain
//! store, and the second call has to reach the new page. The guest touches the address itself only
//! through another mapping, so that it owes no INVLPG. A pass cannot tell about a change while a
//! call is running, on another vCPU.
//!
//! Checks: Intel SDM vol. 3A, "4-Level Paging"; the rule on guest addresses in the design page.
//! Expects: status 0.
#![no_std]
#![no_main]

use core::sync::atomic::Ordering::SeqCst;

use guest_abi::Errno;
use guest_abi::hypercall::HYPERVISOR_XEN_VERSION;
use guest_abi::version::XENVER_GET_FEATURES;
use test_guests::paging::{self, ACCESSED, DIRTY, FRAME, PRESENT, WINDOW, WRITABLE};
use test_guests::shared::Shared;
use test_guests::{check, check_eq, cpu, guest, hypercall};

static A: Shared<[u32; 1024]> = Shared::new([0; 1024]);
static B: Shared<[u32; 1024]> = Shared::new([0; 1024]);
const VA: u64 = WINDOW + 0x40_0000_0000 + 0x8000_0000 + 0x123_4000;
const MARK: u32 = 0xdead_beef;

guest!(main);

fn call() -> i64 {
    hypercall::plain(HYPERVISOR_XEN_VERSION, [u64::from(XENVER_GET_FEATURES), VA, 0, 0, 0])
}

fn reset() {
    for page in [&A, &B] {
        // SAFETY: the pages are ours; the hypervisor writes them only inside a call.
        unsafe { page.get().cast::<[u32; 2]>().write_volatile([0, MARK]) };
    }
}

/// Which of the two pages the last call wrote its result to.
fn written() -> (bool, bool) {
    // SAFETY: as in `reset`.
    let of = |page: &Shared<[u32; 1024]>| unsafe { page.get().cast::<[u32; 2]>().read_volatile() }[1] != MARK;
    (of(&A), of(&B))
}

/// Calls with page A mapped, lets `change` map page B, and calls again.
fn reaches_b(name: &str, change: impl FnOnce()) {
    paging::map(VA, A.address(), PRESENT | WRITABLE);
    reset();
    check_eq("the first call", (call(), written()), (0, (true, false)));
    change();
    reset();
    check_eq(name, (call(), written()), (0, (false, true)));
}

fn main() {
    leaf();
    for level in [2, 3, 4] {
        upper(level);
    }
    root();
    rights();
    accessed_and_dirty();
}

fn leaf() {
    reaches_b("a changed leaf entry is seen", || {
        paging::entry(VA, 1).store(B.address() | PRESENT | WRITABLE, SeqCst);
    });
    reaches_b("a 4 KiB page changed to a 2 MiB page is seen", || {
        let base = B.address() & !0x1f_ffff;
        let offset = B.address() - base;
        // The 2 MiB page maps B at another offset: it is put where VA is by mapping B's own.
        if offset == VA & 0x1f_f000 {
            paging::entry(VA, 2).store(base | PRESENT | WRITABLE | 1 << 7, SeqCst);
        } else {
            paging::entry(VA, 1).store(B.address() | PRESENT | WRITABLE, SeqCst);
        }
    });
}

/// Replaces the table below the entry at `level` by a copy whose walk ends at page B.
fn upper(level: u32) {
    let name = match level {
        2 => "a replaced page table is seen",
        3 => "a replaced page directory is seen",
        _ => "a replaced page directory pointer table is seen",
    };
    reaches_b(name, || {
        let entry = paging::entry(VA, level);
        let old = entry.load(SeqCst);
        let mut table = paging::copy_table(old);
        let first = table;
        let mut at = level - 1;
        while at > 1 {
            let slot = paging::slot(table, VA >> (12 + 9 * (at - 1)));
            let next = paging::copy_table(slot.load(SeqCst));
            slot.store(next | PRESENT | WRITABLE, SeqCst);
            table = next;
            at -= 1;
        }
        paging::slot(table, VA >> 12).store(B.address() | PRESENT | WRITABLE, SeqCst);
        entry.store(first | PRESENT | WRITABLE, SeqCst);
    });
}

fn root() {
    reaches_b("a changed CR3 is seen", || {
        let other = paging::copy_table(cpu::cr3());
        // SAFETY: a copy of the tables in use.
        unsafe { cpu::set_cr3(other) };
        let top = paging::slot(other, VA >> 39);
        top.store(0, SeqCst);
        paging::map(VA, B.address(), PRESENT | WRITABLE);
    });
}

fn rights() {
    let efault = Errno::EFAULT.to_rax().cast_signed();
    paging::map(VA, A.address(), PRESENT | WRITABLE);
    reset();
    check_eq("a writable page", call(), 0);
    let entry = paging::entry(VA, 1);
    entry.store(A.address() | PRESENT, SeqCst);
    reset();
    check_eq("made read-only", (call(), written()), (efault, (false, false)));
    entry.store(A.address(), SeqCst);
    check_eq("made not present", call(), efault);
    entry.store(A.address() | PRESENT | WRITABLE, SeqCst);
    check_eq("made writable again", call(), 0);
    entry.store(0x000f_ff00_0000_0000 & FRAME | PRESENT | WRITABLE, SeqCst);
    check_eq("made to point outside RAM", call(), efault);
    let upper = paging::entry(VA, 3);
    let value = upper.load(SeqCst);
    entry.store(A.address() | PRESENT | WRITABLE, SeqCst);
    upper.store(value & !WRITABLE, SeqCst);
    check_eq("read-only by an upper entry", call(), efault);
    upper.store(value, SeqCst);
    check_eq("and writable again", call(), 0);
}

fn accessed_and_dirty() {
    let entry = paging::entry(VA, 1);
    entry.store(A.address() | PRESENT | WRITABLE, SeqCst);
    check_eq("a call", call(), 0);
    let flags = entry.load(SeqCst) & (ACCESSED | DIRTY);
    check("sets the accessed bit as the CPU does", flags & ACCESSED != 0);
    check("and the dirty bit when it writes", flags & DIRTY != 0);
}
