// SPDX-License-Identifier: MIT OR Apache-2.0
//! A static that the guest's one vCPU, its interrupt handlers and the hypervisor write.

use core::cell::UnsafeCell;

/// Memory behind a raw pointer; who dereferences it says why nobody else does.
#[repr(C, align(4096))]
pub struct Shared<T>(UnsafeCell<T>);

// SAFETY: it hands out raw pointers only, and a micro-guest has one vCPU unless it says otherwise.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Wraps a value.
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Where it is. Virtual and guest physical address are the same, and page-aligned.
    pub const fn get(&self) -> *mut T {
        self.0.get()
    }

    /// The address as a number.
    pub fn address(&self) -> u64 {
        self.get().addr() as u64
    }
}

impl<const N: usize> Shared<[u8; N]> {
    /// The byte at `at`.
    ///
    /// # Panics
    /// If `at` is outside.
    pub fn byte(&self, at: usize) -> u8 {
        assert!(at < N);
        let place = self.get().cast::<u8>().wrapping_add(at);
        // SAFETY: inside the array; volatile, since others may write it.
        unsafe { place.read_volatile() }
    }

    /// Stores a byte at `at`.
    ///
    /// # Panics
    /// If `at` is outside.
    pub fn put(&self, at: usize, byte: u8) {
        assert!(at < N);
        let place = self.get().cast::<u8>().wrapping_add(at);
        // SAFETY: as in `byte`; nobody holds a reference into it.
        unsafe { place.write_volatile(byte) };
    }
}
