// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest memory as hypercalls reach it: by virtual address, and by guest physical address.
//!
//! A [`GuestSpace`] is made for one hypercall and dies with it. Under nested paging a guest
//! changes its page tables without an exit, so nothing that was learnt from them may outlive the
//! call; within it each page is walked once, the way a CPU's TLB would remember it. The walk is
//! in `walk`; rights are those of ring 0 with the guest's own CR0.WP and EFER.NXE, and user pages
//! are reachable as if EFLAGS.AC were set (the kernel names its callers' buffers in hypercalls).
//!
//! Each page is also checked against the p2m: own RAM and writable mappings can be read and
//! written, read-only ones and the hypervisor's shared pages can be read, devices are refused.
//!
//! Data is always copied, never referred to: the guest's other vCPUs may write meanwhile. Whoever
//! needs a value twice reads it once and keeps it. A transfer that fails in the middle has moved
//! the pages before the fault.
//!
//! [`GuestPhys`] does the same for addresses that are physical to begin with.

mod phys;
mod walk;

use core::cell::Cell;

use guest_abi::num::to_usize;
use guest_abi::{Errno, Gfn, PAGE_SHIFT, PAGE_SIZE, Wire};

pub use phys::{GuestPhys, PinError};

use crate::addr::{Gva, Mfn};
use crate::mem::PhysMem;
use crate::p2m::{Leaf, P2mKind, P2mView};
use crate::vcpu::regs::Paging;
use walk::Tables;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The address is not canonical, or an array element lies outside the address space.
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
    Hole(Gfn),
    /// The p2m maps it for something that forbids the access.
    Refused(Gfn, P2mKind),
    /// The guest keeps changing the entry that the walk is marking as accessed.
    Contended,
}

impl From<Fault> for Errno {
    fn from(_: Fault) -> Self {
        Self::EFAULT
    }
}

/// One guest's virtual address space, for the length of one hypercall.
pub struct GuestSpace {
    memory: Memory,
    tables: Tables,
    pages: [Cell<Page>; Self::PAGES],
    next: Cell<usize>,
}

/// A translation of one page, as a TLB would hold it.
#[derive(Clone, Copy)]
struct Page {
    /// The linear address divided by the page size.
    number: u64,
    mfn: Mfn,
    /// Writes are allowed, and the dirty bit is set.
    is_writable: bool,
}

impl Page {
    const NONE: Self = Self { number: u64::MAX, mfn: Mfn::new(0), is_writable: false };
}

impl GuestSpace {
    /// Pages remembered: an argument, what it points to, and one more of each that cross a page.
    const PAGES: usize = 4;

    /// The address space of a vCPU whose paging registers are `paging`.
    #[inline]
    #[must_use]
    pub fn new(view: P2mView, paging: Paging) -> Self {
        Self {
            memory: Memory::new(view),
            tables: Tables::new(paging),
            pages: [const { Cell::new(Page::NONE) }; Self::PAGES],
            next: Cell::new(0),
        }
    }

    /// Copies `dst.len()` bytes out of the guest.
    ///
    /// # Errors
    /// [`Fault`]; the bytes of pages before the faulting one have been copied.
    #[inline]
    pub fn read_bytes(&self, gva: Gva, dst: &mut [u8]) -> Result<(), Fault> {
        let mut rest = dst;
        let mut at = gva;
        while !rest.is_empty() {
            let (part, others) = rest.split_at_mut(rest.len().min(PAGE_SIZE - at.page_offset()));
            let mfn = self.translate(at, Access::Read)?;
            copy_out(self.memory.mem, mfn, at.page_offset(), part);
            at = at.wrapping_add(part.len() as u64);
            rest = others;
        }
        Ok(())
    }

    /// Copies `src` into the guest.
    ///
    /// # Errors
    /// [`Fault`]; the bytes of pages before the faulting one have been copied.
    #[inline]
    pub fn write_bytes(&self, gva: Gva, src: &[u8]) -> Result<(), Fault> {
        let mut rest = src;
        let mut at = gva;
        while !rest.is_empty() {
            let (part, others) = rest.split_at(rest.len().min(PAGE_SIZE - at.page_offset()));
            let mfn = self.translate(at, Access::Write)?;
            self.memory.mem.write(mfn, at.page_offset(), part);
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

    /// Reads element `index` of an array of values.
    ///
    /// # Errors
    /// [`Fault`]; [`Fault::NotCanonical`] if the element's address does not exist.
    #[inline]
    pub fn read_element<T: Wire>(&self, array: Gva, index: u64) -> Result<T, Fault> {
        self.read(element::<T>(array, index)?)
    }

    /// Writes element `index` of an array of values.
    ///
    /// # Errors
    /// As [`GuestSpace::read_element`].
    #[inline]
    pub fn write_element<T: Wire>(&self, array: Gva, index: u64, value: &T) -> Result<(), Fault> {
        self.write(element::<T>(array, index)?, value)
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

    #[inline]
    fn translate(&self, gva: Gva, access: Access) -> Result<Mfn, Fault> {
        let number = gva.raw() >> PAGE_SHIFT;
        for page in &self.pages {
            let page = page.get();
            if page.number == number && (access == Access::Read || page.is_writable) {
                return Ok(page.mfn);
            }
        }
        self.walk(gva, access)
    }

    fn walk(&self, gva: Gva, access: Access) -> Result<Mfn, Fault> {
        let found = self.tables.walk(&self.memory, gva, access)?;
        let leaf = self.memory.frame(found.gfn)?;
        check(found.gfn, leaf.kind, access)?;
        let is_writable = found.is_writable && leaf.kind.is_writable_buffer();
        let page = Page { number: gva.raw() >> PAGE_SHIFT, mfn: leaf.mfn, is_writable };
        let next = self.next.get();
        self.pages[next].set(page);
        self.next.set((next + 1) % Self::PAGES);
        Ok(leaf.mfn)
    }
}

/// The guest's physical memory, with the last p2m entries at hand.
struct Memory {
    view: P2mView,
    mem: PhysMem,
    blocks: [Cell<Block>; 2],
    victim: Cell<bool>,
}

/// A p2m leaf as a range of guest frames.
#[derive(Clone, Copy)]
struct Block {
    first: u64,
    frames: u64,
    leaf: Leaf,
}

impl Memory {
    #[inline]
    fn new(view: P2mView) -> Self {
        let leaf = Leaf { mfn: Mfn::new(0), kind: P2mKind::Mmio, order: crate::addr::Order::PAGE };
        let none = Block { first: 0, frames: 0, leaf };
        let blocks = [Cell::new(none), Cell::new(none)];
        Self { view, mem: view.frames().mem(), blocks, victim: Cell::new(false) }
    }

    #[inline]
    fn frame(&self, gfn: Gfn) -> Result<Leaf, Fault> {
        for block in &self.blocks {
            let block = block.get();
            let step = gfn.raw().wrapping_sub(block.first);
            if step < block.frames {
                return Ok(Leaf { mfn: block.leaf.mfn.offset(step), ..block.leaf });
            }
        }
        self.look_up(gfn)
    }

    fn look_up(&self, gfn: Gfn) -> Result<Leaf, Fault> {
        let leaf = self.view.lookup(gfn).ok_or(Fault::Hole(gfn))?;
        let frames = leaf.order.frames();
        let start = Leaf { mfn: Mfn::new(leaf.mfn.raw() & !(frames - 1)), ..leaf };
        let victim = self.victim.get();
        self.blocks[usize::from(victim)].set(Block { first: gfn.raw() & !(frames - 1), frames, leaf: start });
        self.victim.set(!victim);
        Ok(leaf)
    }
}

#[inline]
fn check(gfn: Gfn, kind: P2mKind, access: Access) -> Result<(), Fault> {
    let is_allowed = match access {
        Access::Read => kind.is_readable_buffer(),
        Access::Write => kind.is_writable_buffer(),
    };
    if is_allowed { Ok(()) } else { Err(Fault::Refused(gfn, kind)) }
}

fn element<T: Wire>(array: Gva, index: u64) -> Result<Gva, Fault> {
    let bytes = index.checked_mul(T::SIZE as u64).ok_or(Fault::NotCanonical)?;
    array.raw().checked_add(bytes).map(Gva::new).ok_or(Fault::NotCanonical)
}

/// Copies out of a frame: small aligned pieces word by word, which is what most arguments are,
/// others with the machine's bulk copy.
#[inline]
fn copy_out(mem: PhysMem, mfn: Mfn, offset: usize, dst: &mut [u8]) {
    const SMALL: usize = 64;
    if dst.len() > SMALL || !offset.is_multiple_of(8) || !dst.len().is_multiple_of(8) {
        return mem.read(mfn, offset, dst);
    }
    for (step, bytes) in dst.chunks_exact_mut(8).enumerate() {
        let word = mem.word(mfn, offset / 8 + step).load(core::sync::atomic::Ordering::Acquire);
        bytes.copy_from_slice(&word.to_le_bytes());
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

/// The word of a frame that holds the byte at `offset`, and the bit at which it starts.
#[inline]
const fn word_place(offset: usize) -> (usize, u32) {
    (offset / 8, if offset % 8 < 4 { 0 } else { 32 })
}

#[inline]
const fn page_offset(address: u64) -> usize {
    to_usize(address) % PAGE_SIZE
}

#[cfg(test)]
mod tests;
