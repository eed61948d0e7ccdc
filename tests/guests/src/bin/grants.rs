// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves grants within one domain: the table, copies, mappings, access bits, and the errors.
//!
//! The domain grants pages to itself. A pass cannot tell anything about two domains: that the
//! other's pages are out of reach without a grant, or what happens when one of them dies.
//!
//! Xen 4.17 moves a page that its own domain maps a second time; here it stays where it was too.
//!
//! Checks: `grant_table.h` at 4.17.
//! Expects: status 0.
#![no_std]
#![no_main]

use guest_abi::DomId;
use guest_abi::grant_table as g;
use test_guests::grants::{access_bits, copy, grant, init, map, op, own_id, unmap};
use test_guests::paging::{self, PRESENT, WINDOW, WRITABLE};
use test_guests::shared::Shared;
use test_guests::{check, check_eq, cpu, guest};

static A: Shared<[u64; 512]> = Shared::new([0; 512]);
static B: Shared<[u64; 512]> = Shared::new([0; 512]);
/// Guest physical address of a hole, and where the guest maps it.
const HOLE: u64 = 1 << 32;
const VA: u64 = WINDOW + 0x100_0000;
const REF: u32 = 8;
const SELF: u16 = DomId::SELF.raw();
const RW: u32 = g::GNTMAP_HOST_MAP;

guest!(main);

fn main() {
    table();
    copies();
    mapping();
    read_only();
    errors();
}

fn frame(page: &Shared<[u64; 512]>) -> u64 {
    page.address() >> 12
}

fn table() {
    let mut size = g::QuerySize { dom: SELF, ..Default::default() };
    check_eq("query_size", (op(g::GNTTABOP_QUERY_SIZE, &mut size), size.status), (0, g::GNTST_OKAY));
    check("the table may grow to a frame or more", size.max_nr_frames >= 1);
    let mut version = g::SetVersion { version: 1 };
    check_eq("set_version 1", (op(g::GNTTABOP_SET_VERSION, &mut version), version.version), (0, 1));
    check_eq("the table is placed", init(), 0);
}

fn fill(page: &Shared<[u64; 512]>, value: u64) {
    // SAFETY: the page is ours; the hypervisor touches it only inside a call.
    unsafe { page.get().write_volatile([value; 512]) };
}

fn word(page: &Shared<[u64; 512]>, index: u64) -> u64 {
    cpu::read(page.address() + 8 * index).unwrap_or(0)
}

/// Copies `len` bytes from grant `reference` at `offset` to page B at 8.
fn copy_in(domain: u16, reference: u32, offset: u16, len: u16) -> Result<i16, i64> {
    let source = g::CopyPtr { frame: u64::from(reference), domid: domain, offset };
    let dest = g::CopyPtr { frame: frame(&B), domid: SELF, offset: 8 };
    copy(g::GrantCopy { source, dest, len, flags: g::GNTCOPY_SOURCE_GREF, status: 0 })
}

fn copy_out() -> Result<i16, i64> {
    let source = g::CopyPtr { frame: frame(&B), domid: SELF, offset: 0 };
    let dest = g::CopyPtr { frame: u64::from(REF), domid: own_id(), offset: 0 };
    copy(g::GrantCopy { source, dest, len: 8, flags: g::GNTCOPY_DEST_GREF, status: 0 })
}

fn is_refused(status: Result<i16, i64>) -> bool {
    status.is_ok_and(|status| status < 0)
}

fn copies() {
    let me = own_id();
    fill(&A, 0xaaaa);
    fill(&B, 0xbbbb);
    grant(REF, me, frame(&A), g::GTF_PERMIT_ACCESS | g::GTF_READONLY);
    check_eq("a copy from a grant", copy_in(me, REF, 16, 8), Ok(g::GNTST_OKAY));
    check_eq("copies its bytes and no more", (word(&B, 0), word(&B, 1), word(&B, 2)), (0xbbbb, 0xaaaa, 0xbbbb));
    check_eq("and leaves no access bits", access_bits(REF), 0);
    check_eq("a copy over the end of a frame", copy_in(me, REF, 4095, 2), Ok(g::GNTST_BAD_COPY_ARG));
    check("a copy to a read-only grant is refused", is_refused(copy_out()) && word(&A, 0) == 0xaaaa);
    grant(REF, me, frame(&A), g::GTF_PERMIT_ACCESS);
    check_eq("a copy to a writable one", (copy_out(), word(&A, 0)), (Ok(g::GNTST_OKAY), 0xbbbb));
}

fn mapping() {
    fill(&A, 0x1111);
    grant(REF, own_id(), frame(&A), g::GTF_PERMIT_ACCESS);
    let (status, first) = map(own_id(), REF, RW, HOLE).unwrap_or_default();
    check_eq("a grant is mapped", (status, access_bits(REF)), (g::GNTST_OKAY, g::GTF_READING | g::GTF_WRITING));
    paging::map(VA, HOLE, PRESENT | WRITABLE);
    check_eq("and read", cpu::read(VA), Ok(0x1111));
    // SAFETY: the mapping is of page A.
    check("and written", unsafe { cpu::write(VA, 0x2222) }.is_ok() && word(&A, 0) == 0x2222);
    let (status, second) = map(own_id(), REF, RW, HOLE + 4096).unwrap_or_default();
    check("it is mapped a second time", status == g::GNTST_OKAY && second != first);
    check_eq("unmapping one", unmap(first, HOLE), Ok(g::GNTST_OKAY));
    check("leaves a hole", cpu::read(VA).map_or(true, |value| value == u64::MAX));
    check("and the access bits, for the other", access_bits(REF) != 0);
    check_eq("unmapping the other", (unmap(second, HOLE + 4096), access_bits(REF)), (Ok(g::GNTST_OKAY), 0));
    check_eq("unmapping twice", unmap(first, HOLE), Ok(g::GNTST_BAD_HANDLE));
    check_eq("a wild handle", unmap(u32::MAX, HOLE), Ok(g::GNTST_BAD_HANDLE));
}

fn read_only() {
    grant(REF, own_id(), frame(&A), g::GTF_PERMIT_ACCESS | g::GTF_READONLY);
    let status = map(own_id(), REF, RW, HOLE).map(|(status, _)| status);
    check("a read-only grant is not mapped writable", is_refused(status) && access_bits(REF) == 0);
    let (status, handle) = map(own_id(), REF, RW | g::GNTMAP_READONLY, HOLE).unwrap_or_default();
    check_eq("but read-only", (status, access_bits(REF)), (g::GNTST_OKAY, g::GTF_READING));
    let before = word(&A, 0);
    // SAFETY: the mapping is read-only: the store faults or goes nowhere.
    let _ = unsafe { cpu::write(VA, !before) };
    check_eq("and a store does not reach the page", (word(&A, 0), cpu::read(VA)), (before, Ok(before)));
    check_eq("unmapping it", (unmap(handle, HOLE), access_bits(REF)), (Ok(g::GNTST_OKAY), 0));
}

fn errors() {
    let status = |domain, reference| map(domain, reference, RW, HOLE).map(|(status, _)| status);
    check_eq("a domain that is not there", status(0x7000, REF), Ok(g::GNTST_BAD_DOMAIN));
    check_eq("a reference beyond the table", status(own_id(), 1 << 30), Ok(g::GNTST_BAD_GNTREF));
    check("an entry that grants nothing", is_refused(status(own_id(), REF + 1)));
    grant(REF, own_id() ^ 0x55, frame(&A), g::GTF_PERMIT_ACCESS);
    check("an entry for another domain", is_refused(status(own_id(), REF)));
    check("and its copy", is_refused(copy_in(own_id(), REF, 0, 8)));
    grant(REF, own_id(), u64::MAX, g::GTF_PERMIT_ACCESS);
    check("an entry for a frame that is not there", is_refused(status(own_id(), REF)));
    check("and its copy", is_refused(copy_in(own_id(), REF, 0, 8)));
    check_eq("no access bits are left", access_bits(REF), 0);
}
