// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bytes moved with string instructions, and the direct map as [`PhysMem`].

use core::arch::asm;
use core::sync::atomic::AtomicU64;

use hypervisor::addr::PAGE_SIZE;
use hypervisor::mem::{Bulk, FrameWords, PhysMem};

use super::layout;

/// [`Bulk`] by REP MOVS and REP STOS. Racing writers can only make it read or leave torn bytes:
/// no Rust reference to the memory is involved, and the compiler assumes nothing of assembly.
pub(crate) struct StringOps;

/// All RAM up to `end` bytes, through the direct map.
///
/// # Safety
/// The direct map covers every frame below `end` that the frame table or a p2m will ever name.
pub(crate) unsafe fn phys_mem(end: u64) -> PhysMem {
    let first = core::ptr::with_exposed_provenance::<AtomicU64>(guest_abi::num::to_usize(layout::DIRECT_MAP));
    // SAFETY: (1) the caller has mapped what will be touched; holes are never touched, because no
    // Mfn names them. (2) AtomicU64 tolerates writes by others. (3) frames that Rust objects of
    // the hypervisor live in are never named by an Mfn that reaches PhysMem.
    let words = unsafe { core::slice::from_raw_parts(first, guest_abi::num::to_usize(end / 8)) };
    PhysMem::new(words, &StringOps)
}

/// Copies `len` bytes forward.
///
/// # Safety
/// Both ranges are mapped, `dst` is writable memory that no Rust reference covers (or covers only
/// as atomics), and the ranges do not overlap with `dst` above `src`.
unsafe fn copy_forward(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: the caller vouches for the ranges; the direction flag is clear, as the ABI demands.
    unsafe {
        asm!(
            "mov {tail}, rcx",
            "shr rcx, 3",
            "rep movsq",
            "mov rcx, {tail}",
            "and ecx, 7",
            "rep movsb",
            tail = out(reg) _,
            inout("rcx") len => _,
            inout("rdi") dst => _,
            inout("rsi") src => _,
            options(nostack)
        );
    }
}

fn at(frame: &FrameWords, offset: usize) -> *mut u8 {
    debug_assert!(offset <= PAGE_SIZE);
    frame.as_ptr().cast::<u8>().cast_mut().wrapping_add(offset)
}

impl Bulk for StringOps {
    #[inline]
    fn read(&self, src: &FrameWords, offset: usize, dst: &mut [u8]) {
        // SAFETY: PhysMem has checked that offset + len stays in the frame; dst is our own.
        unsafe { copy_forward(dst.as_mut_ptr(), at(src, offset), dst.len()) }
    }

    #[inline]
    fn write(&self, dst: &FrameWords, offset: usize, src: &[u8]) {
        // SAFETY: as for `read`; the frame is atomics, so writing it is allowed.
        unsafe { copy_forward(at(dst, offset), src.as_ptr(), src.len()) }
    }

    fn copy(&self, dst: &FrameWords, dst_offset: usize, src: &FrameWords, src_offset: usize, len: usize) {
        let (to, from) = (at(dst, dst_offset), at(src, src_offset));
        if to.addr() <= from.addr() || to.addr() >= from.addr() + len {
            // SAFETY: PhysMem has checked both ranges; they do not overlap the wrong way round.
            unsafe { copy_forward(to, from, len) }
        } else {
            // Overlapping with the target above the source: byte by byte from the end.
            for i in (0..len).rev() {
                // SAFETY: inside the checked range.
                let byte = unsafe { from.wrapping_add(i).read_volatile() };
                // SAFETY: inside the checked range, memory that is only ever seen as atomics.
                unsafe { to.wrapping_add(i).write_volatile(byte) };
            }
        }
    }

    fn zero(&self, dst: &FrameWords) {
        // SAFETY: a FrameWords is exactly one page of memory that is only ever seen as atomics.
        unsafe {
            asm!(
                "rep stosq",
                inout("rcx") PAGE_SIZE / 8 => _,
                inout("rdi") at(dst, 0) => _,
                in("rax") 0_u64,
                options(nostack)
            );
        }
    }
}
