// SPDX-License-Identifier: MIT OR Apache-2.0
//! The vCPU state that entries and exits leave in the CPU: FPU and debug registers.
//!
//! The hypervisor is soft-float and uses no breakpoints, so a guest's values stay in the registers
//! from exit to entry and are moved only when another vCPU takes the CPU. Everything is moved then,
//! so that no domain finds what another left.

use alloc::alloc::{Layout, alloc_zeroed, dealloc};
use core::arch::asm;
use core::ptr::NonNull;

use hypervisor::policy::control::cr4;
use x86_64::registers::xcontrol::XCr0;

use super::cpu;

const LEGACY_AREA: usize = 512;
const HEADER_AREA: usize = 64;

/// Turns on what saving the FPU needs. Called once on each CPU.
pub(crate) fn enable() {
    let mut cr4 = cpu::cr4() | cr4::OSFXSR | cr4::OSXMMEXCPT;
    if has_xsave() {
        cr4 |= cr4::OSXSAVE;
    }
    // SAFETY: every x86-64 CPU has FXSR and SSE; XSAVE was looked up.
    unsafe { cpu::set_cr4(cr4) };
    // CR0: MP set; EM and TS clear, so that the save instructions do not fault.
    let cr0 = (cpu::cr0() | 1 << 1) & !(1 << 2 | 1 << 3);
    // SAFETY: paging bits stay as they are.
    unsafe { cpu::set_cr0(cr0) };
}

fn has_xsave() -> bool {
    cpu::cpuid(1, 0).ecx & 1 << 26 != 0
}

/// All state components that this CPU can save with XSAVE; 0 without XSAVE.
pub(crate) fn supported_xcr0() -> u64 {
    if !has_xsave() {
        return 0;
    }
    let leaf = cpu::cpuid(0xd, 0);
    u64::from(leaf.edx) << 32 | u64::from(leaf.eax)
}

/// One vCPU's lazily switched registers.
pub(crate) struct LazyState {
    area: NonNull<u8>,
    layout: Layout,
    /// What the CPU supports; 0 stands for FXSAVE.
    supported: u64,
    /// The guest's XCR0 while it is not in the CPU.
    xcr0: u64,
    debug: [u64; 4],
    loaded: bool,
}

// SAFETY: the area is owned by the value alone and is plain memory.
unsafe impl Send for LazyState {}

impl LazyState {
    /// The state after reset, or `None` when memory ran out.
    pub(crate) fn new() -> Option<Self> {
        let supported = supported_xcr0();
        let size = if supported == 0 {
            LEGACY_AREA
        } else {
            let size = usize::try_from(cpu::cpuid(0xd, 0).ecx).ok()?;
            size.max(LEGACY_AREA + HEADER_AREA)
        };
        let layout = Layout::from_size_align(size, 64).ok()?;
        // SAFETY: the layout has a size above zero.
        let area = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let mut state = Self { area, layout, supported, xcr0: 1, debug: [0; 4], loaded: false };
        state.set_legacy(0, &0x037f_u16.to_le_bytes());
        state.set_legacy(24, &0x1f80_u32.to_le_bytes());
        Some(state)
    }

    /// Writes a field of the legacy area: FCW at 0, MXCSR at 24.
    fn set_legacy(&mut self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= LEGACY_AREA);
        for (i, byte) in bytes.iter().enumerate() {
            let field = self.area.as_ptr().wrapping_add(at + i);
            // SAFETY: inside the area, which is at least LEGACY_AREA bytes long.
            unsafe { field.write(*byte) };
        }
    }

    /// The guest's XCR0. The CPU is asked while it has it: QEMU 7.2 without KVM does not intercept
    /// XSETBV under SVM. All that the CPU supports is switched, so such a write harms nobody else.
    pub(crate) fn xcr0(&self) -> u64 {
        if self.loaded && self.supported != 0 { XCr0::read_raw() } else { self.xcr0 }
    }

    /// Sets the guest's XCR0, which the policy has checked against what the CPU supports.
    pub(crate) fn set_xcr0(&mut self, value: u64) {
        self.xcr0 = value;
        if self.loaded && self.supported != 0 {
            // SAFETY: CR4.OSXSAVE was set by `enable`; the policy has checked the value.
            unsafe { XCr0::write_raw(value) };
        }
    }

    /// Moves the state into the CPU.
    pub(crate) fn load(&mut self) {
        let area = self.area.as_ptr();
        if self.supported == 0 {
            // SAFETY: the area is 512 bytes, 64-byte aligned, and holds a valid image.
            unsafe { asm!("fxrstor64 [{}]", in(reg) area, options(nostack)) };
        } else {
            // SAFETY: as in `set_xcr0`; all that the CPU supports.
            unsafe { XCr0::write_raw(self.supported) };
            // SAFETY: the area has the size that CPUID asks for and holds what XSAVE wrote, or
            // zeroes with a legacy image, which loads as the reset state of the rest.
            unsafe {
                asm!("xrstor64 [{}]", in(reg) area, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack));
            }
            // SAFETY: as in `set_xcr0`.
            unsafe { XCr0::write_raw(self.xcr0) };
        }
        let [dr0, dr1, dr2, dr3] = self.debug;
        // SAFETY: DR7 of the hypervisor is the reset value, so addresses in DR0-3 match nothing.
        unsafe {
            asm!(
                "mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}",
                in(reg) dr0, in(reg) dr1, in(reg) dr2, in(reg) dr3,
                options(nomem, nostack, preserves_flags)
            );
        }
        self.loaded = true;
    }

    /// Takes the state out of the CPU.
    pub(crate) fn save(&mut self) {
        self.xcr0 = self.xcr0();
        let area = self.area.as_ptr();
        if self.supported == 0 {
            // SAFETY: the area is 512 bytes and 64-byte aligned.
            unsafe { asm!("fxsave64 [{}]", in(reg) area, options(nostack)) };
        } else {
            // SAFETY: as in `load`.
            unsafe { XCr0::write_raw(self.supported) };
            // SAFETY: the area has the size that CPUID asks for, 64-byte aligned.
            unsafe {
                asm!("xsave64 [{}]", in(reg) area, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack));
            }
        }
        let (dr0, dr1, dr2, dr3): (u64, u64, u64, u64);
        // SAFETY: reading debug registers has no side effect; DR7.GD is clear in the hypervisor.
        unsafe {
            asm!(
                "mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3",
                out(reg) dr0, out(reg) dr1, out(reg) dr2, out(reg) dr3,
                options(nomem, nostack, preserves_flags)
            );
        }
        self.debug = [dr0, dr1, dr2, dr3];
        self.loaded = false;
    }
}

impl Drop for LazyState {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.area.as_ptr(), self.layout) };
    }
}
