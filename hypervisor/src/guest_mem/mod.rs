// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest memory as hypercalls reach it: by virtual address, and by guest physical address.
//!
//! A [`GuestSpace`] is one vCPU's view during one hypercall. Within the call each page is walked
//! once, the way a CPU's TLB would remember it. Under nested paging a guest changes its page
//! tables without an exit, so a later call ([`GuestSpace::renew`]) believes a remembered walk only
//! after it has read the same entries again and found them equal; that costs a load an entry
//! where the walk itself costs ten times as much. What the p2m said of the domain's own memory is
//! believed as long as its generation stands still; what lies in another domain's page is never remembered.
//!
//! The walk is in `walk`; rights are those of ring 0 with the guest's own CR0.WP and EFER.NXE, and
//! user pages are reachable as if EFLAGS.AC were set (the kernel names its callers' buffers in
//! hypercalls).
//!
//! Each page is also checked against the p2m: own RAM and writable mappings can be read and
//! written, read-only ones and the hypervisor's shared pages can be read, devices are refused.
//!
//! Data is always copied, never referred to: the guest's other vCPUs may write meanwhile. Whoever
//! needs a value twice reads it once and keeps it. A transfer that fails in the middle has moved
//! the pages before the fault.
//!
//! What is named by guest frame is found by [`P2mView`] alone: [`P2mView::ram`] to use it at once, [`P2mView::pin`] to keep it.

mod frames;
mod walk;

use core::cell::Cell;

use guest_abi::{Errno, Gfn, PAGE_SHIFT, PAGE_SIZE, Wire};

use crate::addr::{Gva, Mfn};
use crate::frame::{FrameError, FrameRef};
use crate::p2m::{P2mKind, P2mView};
use crate::vcpu::regs::Paging;
use frames::{Memory, check};
use walk::{Tables, Trail};

/// The longest instruction, in bytes. Source: Intel SDM vol. 2A, Instruction Format.
pub const MAX_INSTRUCTION: usize = 15;

/// The largest value that [`GuestSpace::read`] and [`GuestSpace::write`] move, in bytes; larger
/// ones go through [`GuestSpace::read_bytes`] and a buffer of the caller's.
pub const MAX_WIRE: usize = 1024;

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

/// Why guest memory could not be reached. A guest sees `EFAULT` for each.
///
/// It carries no address and is as wide as a frame number, so that results stay in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Fault {
    /// The address is not canonical.
    NotCanonical,
    /// An entry of the guest's tables is not present.
    NotPresent,
    /// An entry of the guest's tables has a reserved bit set.
    Reserved,
    /// The page is read-only, and the access is a write with CR0.WP set.
    Protection,
    /// The guest's paging mode is one that no guest is given (five levels).
    Mode,
    /// Nothing is mapped in the p2m.
    Hole,
    /// The p2m maps it for something that forbids the access.
    Refused,
    /// The guest keeps changing the entry that the walk is marking as accessed.
    Contended,
}

impl From<Fault> for Errno {
    fn from(_: Fault) -> Self {
        Self::EFAULT
    }
}

/// One vCPU's virtual address space, for the length of one hypercall.
pub struct GuestSpace {
    memory: Memory,
    paging: Paging,
    tables: Tables,
    /// Counts hypercalls; a page that says the same number has been walked or compared in this one.
    call: u64,
    generation: u64,
    pages: [Page; Self::PAGES],
    next: Cell<usize>,
}

/// A translation of one page, as a TLB would hold it, with what it was made from.
struct Page {
    /// The linear address divided by the page size; all ones for none.
    number: Cell<u64>,
    mfn: Cell<Mfn>,
    /// Writes are allowed, and the dirty bit is set.
    is_writable: Cell<bool>,
    /// The hypercall that last looked at the tables.
    call: Cell<u64>,
    trail: Trail,
}

impl Page {
    const NONE: u64 = u64::MAX;

    const fn new() -> Self {
        Self {
            number: Cell::new(Self::NONE),
            mfn: Cell::new(Mfn::new(0)),
            is_writable: Cell::new(false),
            call: Cell::new(0),
            trail: Trail::new(),
        }
    }
}

impl GuestSpace {
    /// Pages remembered: an argument, what it points to, and one more of each that cross a page.
    const PAGES: usize = 4;

    /// The address space of a vCPU whose paging registers are `paging`, for one hypercall.
    #[must_use]
    pub fn new(view: P2mView, paging: Paging) -> Self {
        Self {
            memory: Memory::new(view),
            paging,
            tables: Tables::new(paging),
            call: 0,
            generation: 0,
            pages: [const { Page::new() }; Self::PAGES],
            next: Cell::new(0),
        }
    }

    /// Begins another hypercall of the same vCPU. `generation` is [`crate::p2m::TlbState::own_generation`]; removals
    /// from the p2m since the last call are seen by it.
    #[inline]
    pub fn renew(&mut self, paging: Paging, generation: u64) {
        self.call += 1;
        if self.paging == paging && self.generation == generation {
            return;
        }
        self.forget();
        self.paging = paging;
        self.tables = Tables::new(paging);
        if self.generation != generation {
            self.memory.forget();
            self.generation = generation;
        }
    }

    #[inline]
    fn forget(&mut self) {
        self.pages.iter().for_each(|page| page.number.set(Page::NONE));
    }

    /// Copies `dst.len()` bytes out of the guest.
    ///
    /// # Errors
    /// [`Fault`]; the bytes of pages before the faulting one have been copied.
    #[inline(always)]
    pub fn read_bytes(&self, gva: Gva, dst: &mut [u8]) -> Result<(), Fault> {
        if dst.len() > PAGE_SIZE - gva.page_offset() {
            return self.read_across(gva, dst);
        }
        let mfn = match self.translate(gva, Access::Read) {
            // No bytes can be had anywhere.
            Err(_) if dst.is_empty() => return Ok(()),
            found => found?,
        };
        self.memory.copy_out(mfn, gva.page_offset(), dst);
        Ok(())
    }

    /// Copies `src` into the guest.
    ///
    /// # Errors
    /// [`Fault`]; the bytes of pages before the faulting one have been copied.
    #[inline(always)]
    pub fn write_bytes(&self, gva: Gva, src: &[u8]) -> Result<(), Fault> {
        if src.len() > PAGE_SIZE - gva.page_offset() {
            return self.write_across(gva, src);
        }
        let mfn = match self.translate(gva, Access::Write) {
            Err(_) if src.is_empty() => return Ok(()),
            found => found?,
        };
        self.memory.copy_in(mfn, gva.page_offset(), src);
        Ok(())
    }

    /// The frame behind an address that is only read, for whoever copies out of it at once, and where in it
    /// the address is.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn source(&self, gva: Gva) -> Result<(Mfn, usize), Fault> {
        Ok((self.translate(gva, Access::Read)?, gva.page_offset()))
    }

    /// The frame of the domain's own RAM at a guest frame, for whoever is done with it before the hypercall is over.
    #[inline]
    pub fn own_ram(&self, gfn: Gfn) -> Option<Mfn> {
        let (mfn, kind) = self.memory.frame(gfn).ok()?;
        (kind == P2mKind::Ram).then_some(mfn)
    }

    #[inline(never)]
    fn read_across(&self, gva: Gva, dst: &mut [u8]) -> Result<(), Fault> {
        let mut rest = dst;
        let mut at = gva;
        while !rest.is_empty() {
            let (part, others) = rest.split_at_mut(rest.len().min(PAGE_SIZE - at.page_offset()));
            self.read_bytes(at, part)?;
            at = at.wrapping_add(part.len() as u64);
            rest = others;
        }
        Ok(())
    }

    #[inline(never)]
    fn write_across(&self, gva: Gva, src: &[u8]) -> Result<(), Fault> {
        let mut rest = src;
        let mut at = gva;
        while !rest.is_empty() {
            let (part, others) = rest.split_at(rest.len().min(PAGE_SIZE - at.page_offset()));
            self.write_bytes(at, part)?;
            at = at.wrapping_add(part.len() as u64);
            rest = others;
        }
        Ok(())
    }

    /// Reads a value.
    ///
    /// # Errors
    /// [`Fault`].
    #[inline]
    pub fn read<T: Wire>(&self, gva: Gva) -> Result<T, Fault> {
        read_wire(|bytes| self.read_bytes(gva, bytes))
    }

    /// Writes a value.
    ///
    /// # Errors
    /// [`Fault`].
    #[inline]
    pub fn write<T: Wire>(&self, gva: Gva, value: &T) -> Result<(), Fault> {
        write_wire(value, |bytes| self.write_bytes(gva, bytes))
    }

    /// Reads the instruction at a linear address, as many bytes as can be had. The CPU has fetched
    /// it before, so no rights are checked. Returns the number of bytes read.
    pub fn read_instruction(&self, linear: Gva, bytes: &mut [u8; MAX_INSTRUCTION]) -> usize {
        let first = MAX_INSTRUCTION.min(PAGE_SIZE - linear.page_offset());
        let (head, tail) = bytes.split_at_mut(first);
        if self.read_bytes(linear, head).is_err() {
            return 0;
        }
        match self.read_bytes(linear.wrapping_add(first as u64), tail) {
            Ok(()) => MAX_INSTRUCTION,
            Err(_) => first,
        }
    }

    /// Takes a counted reference to the domain's own RAM behind a page that it may write: for what it
    /// registers once by virtual address.
    ///
    /// # Errors
    /// [`Fault`], and those of [`crate::frame::FrameTable::get`].
    pub fn pin(&self, gva: Gva) -> Result<Result<FrameRef, FrameError>, Fault> {
        let mfn = self.translate(gva, Access::Write)?;
        Ok(self.memory.view.frames().get(mfn, self.memory.view.owner()))
    }

    /// Not inlined, so that copies whose length is known become single moves where they are asked for.
    #[inline(never)]
    fn translate(&self, gva: Gva, access: Access) -> Result<Mfn, Fault> {
        let number = gva.raw() >> PAGE_SHIFT;
        for page in &self.pages {
            if page.number.get() == number {
                if (access == Access::Write && !page.is_writable.get())
                    || (page.call.get() != self.call && !page.trail.is_unchanged(&self.memory))
                {
                    return self.walk(gva, access, page);
                }
                page.call.set(self.call);
                return Ok(page.mfn.get());
            }
        }
        let next = self.next.get();
        self.next.set((next + 1) % Self::PAGES);
        self.walk(gva, access, &self.pages[next % Self::PAGES])
    }

    #[inline(never)]
    fn walk(&self, gva: Gva, access: Access, page: &Page) -> Result<Mfn, Fault> {
        page.number.set(Page::NONE);
        self.memory.begin_walk();
        let found = self.tables.walk(&self.memory, gva, access, &page.trail)?;
        let (mfn, kind) = self.memory.frame(found.gfn)?;
        check(kind, access)?;
        if self.memory.is_own() {
            page.number.set(gva.raw() >> PAGE_SHIFT);
        }
        page.mfn.set(mfn);
        page.is_writable.set(found.is_writable && kind.is_writable_buffer());
        page.call.set(self.call);
        Ok(mfn)
    }
}

/// Reads a value through a buffer no larger than it needs.
#[inline]
fn read_wire<T: Wire>(read: impl FnOnce(&mut [u8]) -> Result<(), Fault>) -> Result<T, Fault> {
    const { assert!(T::SIZE <= MAX_WIRE) };
    #[inline]
    fn through<T: Wire, const N: usize>(read: impl FnOnce(&mut [u8]) -> Result<(), Fault>) -> Result<T, Fault> {
        let mut buffer = [0; N];
        read(&mut buffer[..T::SIZE])?;
        Ok(T::from_bytes(&buffer[..T::SIZE]))
    }
    match T::SIZE {
        0..=16 => through::<T, 16>(read),
        17..=64 => through::<T, 64>(read),
        65..=256 => through::<T, 256>(read),
        _ => through::<T, MAX_WIRE>(read),
    }
}

/// Writes a value through a buffer no larger than it needs.
#[inline]
fn write_wire<T: Wire>(value: &T, write: impl FnOnce(&[u8]) -> Result<(), Fault>) -> Result<(), Fault> {
    const { assert!(T::SIZE <= MAX_WIRE) };
    #[inline]
    fn through<T: Wire, const N: usize>(
        value: &T,
        write: impl FnOnce(&[u8]) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let mut buffer = [0; N];
        value.to_bytes(&mut buffer[..T::SIZE]);
        write(&buffer[..T::SIZE])
    }
    match T::SIZE {
        0..=16 => through::<T, 16>(value, write),
        17..=64 => through::<T, 64>(value, write),
        65..=256 => through::<T, 256>(value, write),
        _ => through::<T, MAX_WIRE>(value, write),
    }
}

#[cfg(test)]
mod tests;
