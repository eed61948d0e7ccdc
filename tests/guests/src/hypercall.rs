// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypercall instruction, and the end of the guest.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use guest_abi::cpuid::{FIRST_LEAF, SIGNATURE_EBX, SIGNATURE_ECX, SIGNATURE_EDX};
use guest_abi::hypercall::HYPERVISOR_SCHED_OP;
use guest_abi::num::low_u8;
use guest_abi::sched::{SCHEDOP_SHUTDOWN, Shutdown};

use crate::cpu;

static IS_AMD: AtomicBool = AtomicBool::new(false);
static PRESENT: AtomicBool = AtomicBool::new(false);

/// Chooses the instruction by the processor's vendor, as Linux does.
pub(crate) fn init() {
    // "Auth" of AuthenticAMD, "Hygo" of HygonGenuine.
    IS_AMD.store(matches!(cpu::cpuid(0, 0).ebx, 0x6874_7541 | 0x6f67_7948), Relaxed);
    let leaf = cpu::cpuid(FIRST_LEAF, 0);
    PRESENT.store((leaf.ebx, leaf.ecx, leaf.edx) == (SIGNATURE_EBX, SIGNATURE_ECX, SIGNATURE_EDX), Relaxed);
}

/// Whether the processor says that it is AMD's.
#[must_use]
pub fn is_amd() -> bool {
    IS_AMD.load(Relaxed)
}

/// Whether there is a hypervisor with this interface: a guest may also run on a bare emulator.
#[must_use]
pub fn present() -> bool {
    PRESENT.load(Relaxed)
}

/// Makes hypercall `number` with up to five arguments; the result is RAX.
///
/// # Safety
/// What the call writes must be memory that the caller owns.
pub unsafe fn raw(number: u64, args: [u64; 5]) -> i64 {
    let [a1, a2, a3, a4, a5] = args;
    let result: u64;
    macro_rules! call {
        ($instruction:literal) => {
            asm!($instruction, inlateout("rax") number => result, inlateout("rdi") a1 => _, inlateout("rsi") a2 => _,
                inlateout("rdx") a3 => _, inlateout("r10") a4 => _, inlateout("r8") a5 => _, options(nostack))
        };
    }
    if is_amd() {
        // SAFETY: the caller's promise.
        unsafe { call!("vmmcall") }
    } else {
        // SAFETY: the caller's promise.
        unsafe { call!("vmcall") }
    }
    result.cast_signed()
}

/// A call whose second argument is a structure: most of them.
pub fn op<T: guest_abi::Wire>(number: u32, command: u32, argument: &mut T) -> i64 {
    let address = core::ptr::from_mut(argument).addr() as u64;
    // SAFETY: the structure is borrowed for the call, and the ABI says that no more is written.
    unsafe { raw(u64::from(number), [u64::from(command), address, 0, 0, 0]) }
}

/// A call with plain numbers, none of them an address to write to.
pub fn plain(number: u32, args: [u64; 5]) -> i64 {
    // SAFETY: used for calls that write nothing, or with addresses that the hypervisor has to refuse.
    unsafe { raw(u64::from(number), args) }
}

/// A call about vCPU `vcpu` whose third argument is a structure.
pub fn vcpu_op<T: guest_abi::Wire>(command: u32, vcpu: u32, argument: &mut T) -> i64 {
    let address = core::ptr::from_mut(argument).addr() as u64;
    let number = u64::from(guest_abi::hypercall::HYPERVISOR_VCPU_OP);
    // SAFETY: as in `op`.
    unsafe { raw(number, [u64::from(command), u64::from(vcpu), address, 0, 0]) }
}

/// Ends the guest with a `SHUTDOWN_*` reason.
///
/// On a bare emulator the reason goes to QEMU's isa-debug-exit at 0xf4.
pub fn shutdown(reason: u32) -> ! {
    if present() {
        op(HYPERVISOR_SCHED_OP, SCHEDOP_SHUTDOWN, &mut Shutdown { reason });
        crate::say!("FAIL guest: SCHEDOP_shutdown returned");
    }
    cpu::outb(0xf4, low_u8(u64::from(reason)));
    loop {
        cpu::halt_off();
    }
}
