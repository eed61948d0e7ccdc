// SPDX-License-Identifier: MIT OR Apache-2.0
//! A VMCS and the instructions that reach it.
//!
//! The CPU works on one *current* VMCS. A [`Vmcs`] becomes current when its vCPU is scheduled in and
//! is cleared when it is scheduled out, so that between the two no CPU holds any of it and
//! another pCPU may take it over. Whoever looks at a vCPU that is not scheduled in goes through
//! [`Vmcs::visit`], which makes the VMCS current for the moment and puts back what was.
//!
//! An [`Active`] stands for "this VMCS is current": it is the only way to VMREAD and VMWRITE.
//! Guest-state fields may be written safely, since whatever they hold concerns the guest alone; host
//! state and controls decide over the hypervisor's memory, so writing them is unsafe.
//!
//! Source: Intel SDM vol. 3C (326019-080), chapter 24 and §30.3 VMX Instructions.

use alloc::boxed::Box;
use core::arch::asm;

use hypervisor::addr::Hpa;
use hypervisor::vmx::fields::Field;

use super::super::{heap, layout};

/// A page that the CPU reads or writes by its physical address.
#[repr(C, align(4096))]
pub(super) struct Page(pub(super) [u64; 512]);
const _: () = assert!(size_of::<Page>() == 4096);

/// A page that starts with a VMCS revision, as VMXON and VMPTRLD want it.
pub(super) fn revision_page(revision: u32) -> Option<Box<Page>> {
    // SAFETY: a page of integers may be all zeroes.
    let mut page = unsafe { heap::new_zeroed::<Page>() }?;
    page.0[0] = u64::from(revision);
    Some(page)
}

/// Runs an instruction with one 64-bit memory operand; `true` if it did not fail.
macro_rules! with_operand {
    ($instruction:literal, $value:expr) => {{
        let operand: u64 = $value;
        let failed: u8;
        asm!(
            concat!($instruction, " qword ptr [{}]"), "setna {}",
            in(reg) &raw const operand, out(reg_byte) failed, options(nostack)
        );
        failed == 0
    }};
}

/// Enters VMX root operation.
///
/// # Safety
/// CR0, CR4 and the feature-control MSR are as VT-x wants them; `region` starts with the revision and
/// is the CPU's for ever.
pub(super) unsafe fn vmxon(region: Hpa) -> bool {
    // SAFETY: the caller vouches for CPU and region.
    unsafe { with_operand!("vmxon", region.raw()) }
}

fn vmptrst() -> u64 {
    let mut current = 0_u64;
    // SAFETY: stores 8 bytes to the variable; VMX operation is on, since a `Vmcs` exists.
    unsafe { asm!("vmptrst qword ptr [{}]", in(reg) &raw mut current, options(nostack)) };
    current
}

/// VMREADs and VMWRITEs that one exit may cost.
#[cfg(debug_assertions)]
const MOST_ACCESSES: u32 = 25;

/// One vCPU's VMCS.
pub(super) struct Vmcs {
    page: Box<Page>,
    hpa: Hpa,
    is_current: bool,
    /// Launched since it was cleared.
    is_launched: bool,
    /// VMREADs and VMWRITEs since the last entry, see [`Vmcs::settle_accesses`].
    #[cfg(debug_assertions)]
    accesses: core::cell::Cell<u32>,
}

impl Vmcs {
    /// A VMCS that no CPU has seen, or `None` when memory ran out.
    pub(super) fn new(revision: u32) -> Option<Self> {
        let page = revision_page(revision)?;
        let hpa = layout::hpa_of(&*page);
        let vmcs = Self {
            page,
            hpa,
            is_current: false,
            is_launched: false,
            #[cfg(debug_assertions)]
            accesses: core::cell::Cell::new(0),
        };
        // Brings the parts that the CPU keeps elsewhere into a known state.
        vmcs.clear();
        Some(vmcs)
    }

    fn clear(&self) {
        // SAFETY: the page is a VMCS of this CPU's revision and owned by self.
        let done = unsafe { with_operand!("vmclear", self.hpa.raw()) };
        assert!(done, "VMCLEAR failed");
    }

    fn load(&self) {
        // SAFETY: as for `clear`; VMCLEAR has initialized it.
        let done = unsafe { with_operand!("vmptrld", self.hpa.raw()) };
        assert!(done, "VMPTRLD failed");
    }

    /// Makes it this CPU's current VMCS.
    pub(super) fn make_current(&mut self) {
        self.load();
        self.is_current = true;
    }

    /// Takes it out of this CPU.
    pub(super) fn put_away(&mut self) {
        self.clear();
        self.is_current = false;
        self.is_launched = false;
    }

    /// Whether it is this CPU's current VMCS.
    pub(super) const fn is_current(&self) -> bool {
        self.is_current
    }

    /// Whether VMRESUME enters it, not VMLAUNCH.
    pub(super) const fn is_launched(&self) -> bool {
        self.is_launched
    }

    /// Notes that VMLAUNCH has entered it.
    pub(super) const fn note_launch(&mut self) {
        self.is_launched = true;
    }

    /// Before an entry: an exit and what is done about it cost few VMREADs and VMWRITEs, since nested
    /// each can be an exit itself. Builds with assertions count them.
    ///
    /// # Panics
    /// With debug assertions, if there were more than [`MOST_ACCESSES`].
    #[inline]
    pub(super) fn settle_accesses(&self) {
        #[cfg(debug_assertions)]
        {
            let accesses = self.accesses.take();
            assert!(accesses <= MOST_ACCESSES, "{accesses} VMREADs and VMWRITEs for one exit");
        }
    }

    /// Starts to count anew: after what is no exit's cost, such as replacing the whole state.
    #[inline]
    pub(super) fn forgive_accesses(&self) {
        #[cfg(debug_assertions)]
        self.accesses.set(0);
    }

    /// Access to the fields of a vCPU that is scheduled in.
    ///
    /// # Panics
    /// If it is not.
    #[inline]
    pub(super) fn active(&self) -> Active<'_> {
        assert!(self.is_current);
        Active(self)
    }

    /// Gives access to the fields, wherever the VMCS is. The caller has the vCPU to itself, so
    /// no other CPU has it loaded.
    #[inline]
    pub(super) fn visit<R>(&self, access: impl FnOnce(Active<'_>) -> R) -> R {
        if self.is_current {
            return access(Active(self));
        }
        self.visit_from_outside(access)
    }

    #[cold]
    fn visit_from_outside<R>(&self, access: impl FnOnce(Active<'_>) -> R) -> R {
        let previous = vmptrst();
        self.load();
        let result = access(Active(self));
        self.clear();
        if previous != u64::MAX {
            // SAFETY: it was this CPU's current VMCS, whose vCPU is scheduled in here.
            let done = unsafe { with_operand!("vmptrld", previous) };
            assert!(done, "VMPTRLD of the previous VMCS failed");
        }
        result
    }

    /// Reads one field.
    #[inline]
    pub(super) fn read(&self, field: Field) -> u64 {
        self.visit(|active| active.read(field))
    }

    /// Writes one guest-state field.
    #[inline]
    pub(super) fn write_guest(&mut self, field: Field, value: u64) {
        self.visit(|active| active.write_guest(field, value));
    }
}

impl Drop for Vmcs {
    fn drop(&mut self) {
        // The CPU must not write to the page after it is freed.
        self.clear();
        let _ = &self.page;
    }
}

/// The fields of the current VMCS.
pub(super) struct Active<'a>(
    #[cfg_attr(not(debug_assertions), expect(dead_code, reason = "borrows the VMCS while it is current"))] &'a Vmcs,
);

impl Active<'_> {
    #[cfg(debug_assertions)]
    fn count(&self) {
        self.0.accesses.set(self.0.accesses.get() + 1);
    }

    /// Executes VMREAD.
    #[inline]
    pub(super) fn read(&self, field: Field) -> u64 {
        let value: u64;
        // Nothing in the backend reads a field that the CPU lacks. Builds with assertions look at
        // the flags; the others spend no instruction on it.
        #[cfg(not(debug_assertions))]
        // SAFETY: a VMCS is current (self); VMREAD changes nothing.
        unsafe {
            asm!("vmread {}, {}", out(reg) value, in(reg) u64::from(field.raw()), options(nostack));
        }
        #[cfg(debug_assertions)]
        {
            let failed: u8;
            // SAFETY: as above.
            unsafe {
                asm!(
                    "vmread {}, {}", "setna {}",
                    out(reg) value, in(reg) u64::from(field.raw()), lateout(reg_byte) failed, options(nostack)
                );
            }
            assert!(failed == 0, "VMREAD of {field:?} failed");
            self.count();
        }
        value
    }

    /// Executes VMWRITE for a field of the guest-state area.
    ///
    /// # Panics
    /// If the field is of another area.
    #[inline]
    pub(super) fn write_guest(&self, field: Field, value: u64) {
        assert!(field.is_guest_state());
        // SAFETY: guest state takes effect only inside the guest, which the EPT confines.
        unsafe { self.write(field, value) };
    }

    /// Executes VMWRITE.
    ///
    /// # Safety
    /// With this value the next entry and exit keep what Rust relies on: host state is the
    /// hypervisor's, addresses name memory that is the vCPU's or the domain's.
    #[inline]
    pub(super) unsafe fn write(&self, field: Field, value: u64) {
        #[cfg(not(debug_assertions))]
        // SAFETY: a VMCS is current (self); the caller vouches for the value.
        unsafe {
            asm!("vmwrite {}, {}", in(reg) u64::from(field.raw()), in(reg) value, options(nostack));
        }
        #[cfg(debug_assertions)]
        {
            let failed: u8;
            // SAFETY: as above.
            unsafe {
                asm!(
                    "vmwrite {}, {}", "setna {}",
                    in(reg) u64::from(field.raw()), in(reg) value, lateout(reg_byte) failed, options(nostack)
                );
            }
            assert!(failed == 0, "VMWRITE of {value:#x} to {field:?} failed");
            self.count();
        }
    }
}
