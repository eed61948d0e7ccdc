// SPDX-License-Identifier: MIT OR Apache-2.0
//! ioctls whose argument is a structure in our memory and whose result is a number.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::os::fd::AsFd;

use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};

/// The number of a call with a structure of `size` bytes. These devices give no direction.
pub(super) const fn number(group: u8, number: u8, size: u32) -> Opcode {
    opcode::none(group, number) | size << 16
}

/// A call with the address of `T`s that the kernel reads and writes.
struct Call<'a, T> {
    opcode: Opcode,
    argument: *mut c_void,
    memory: PhantomData<&'a mut [T]>,
}

// SAFETY: `as_ptr` gives the memory that the constructor borrowed for as long as the call lives;
// `output_from_ptr` reads nothing through it. That the memory is what the opcode expects is what
// the two callers below demand of theirs.
unsafe impl<T> Ioctl for Call<'_, T> {
    type Output = i32;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.argument
    }

    unsafe fn output_from_ptr(result: IoctlOutput, _: *mut c_void) -> rustix::io::Result<i32> {
        Ok(result)
    }
}

/// Makes the call with one structure. Returns the result if it is not negative.
///
/// # Safety
/// `T` is the structure of `opcode`, and if it holds addresses, the kernel and the hypervisor may
/// use the memory there as the call is documented to.
pub(super) unsafe fn one<T>(device: impl AsFd, opcode: Opcode, argument: &mut T) -> rustix::io::Result<i32> {
    let call = Call { opcode, argument: std::ptr::from_mut(argument).cast(), memory: PhantomData::<&mut [T]> };
    // SAFETY: the caller's promise about `T` and `opcode`; the memory is borrowed above.
    unsafe { rustix::ioctl::ioctl(device, call) }
}

/// Makes the call with a structure that ends in an array, given as its words.
///
/// # Safety
/// As for [`one`], and the slice is as long as the lengths in it say.
pub(super) unsafe fn words(device: impl AsFd, opcode: Opcode, argument: &mut [u64]) -> rustix::io::Result<i32> {
    let call = Call { opcode, argument: argument.as_mut_ptr().cast(), memory: PhantomData::<&mut [u64]> };
    // SAFETY: the caller's promise about the slice and `opcode`; the memory is borrowed above.
    unsafe { rustix::ioctl::ioctl(device, call) }
}

/// Two 32-bit fields that lie next to each other, as the word that holds them.
pub(super) fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}
