// SPDX-License-Identifier: MIT OR Apache-2.0
//! INVEPT and INVVPID: dropping the translations that [`hypervisor::tlb`] says are stale.
//!
//! Source: Intel SDM vol. 3C (326019-080), §28.4.3 Invalidating Cached Translation Information.

use core::arch::asm;

use hypervisor::addr::Mfn;
use hypervisor::tlb::Flush;
use hypervisor::vmx::caps::{Capabilities, Proc2};

const SINGLE_CONTEXT: u64 = 1;
const ALL_CONTEXTS: u64 = 2;

/// Drops what `flush` asks for.
pub(super) fn drop_stale(caps: &Capabilities, flush: Flush, root: Mfn, tag: u16) {
    if flush.p2m {
        drop_p2m(caps, root);
    }
    if flush.tag && caps.controls.proc2.contains(Proc2::VPID) {
        drop_tag(caps, tag);
    }
}

/// Runs an instruction that drops translations.
macro_rules! invalidate {
    ($instruction:literal, $single:expr, $what:expr) => {
        let kind = if $single { SINGLE_CONTEXT } else { ALL_CONTEXTS };
        let descriptor: [u64; 2] = [$what, 0];
        let failed: u8;
        // SAFETY: VMX operation is on; dropping translations is always sound.
        unsafe {
            asm!(
                concat!($instruction, " {}, xmmword ptr [{}]"), "setna {}",
                in(reg) kind, in(reg) &raw const descriptor, lateout(reg_byte) failed, options(nostack)
            );
        }
        assert!(failed == 0, concat!($instruction, " failed"));
    };
}

/// Drops everything that comes from a p2m.
fn drop_p2m(caps: &Capabilities, root: Mfn) {
    invalidate!("invept", caps.ept.invept_single, Capabilities::ept_pointer(root));
}

/// Drops everything that carries a tag.
fn drop_tag(caps: &Capabilities, tag: u16) {
    invalidate!("invvpid", caps.ept.invvpid_single, u64::from(tag));
}
