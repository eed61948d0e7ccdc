// SPDX-License-Identifier: MIT OR Apache-2.0
//! The virtual machine control block.
//!
//! Source: AMD APM vol. 2 (24593, rev. 3.41), appendix B, Layout of VMCB.

use hypervisor::backend::{GuestMsr, SegmentName};
use hypervisor::vcpu::regs::{Segment, TableRegister};

/// A segment register in the save area. Attributes are packed to 12 bits.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct VmcbSegment {
    selector: u16,
    attributes: u16,
    limit: u32,
    pub(super) base: u64,
}

impl VmcbSegment {
    pub(super) fn set(&mut self, segment: &Segment) {
        let low = segment.attributes & 0xff;
        let high = segment.attributes >> 4 & 0xf00;
        self.selector = segment.selector;
        self.attributes = guest_abi::num::low_u16(u64::from(low | high));
        self.limit = segment.limit;
        self.base = segment.base;
    }

    pub(super) fn get(&self) -> Segment {
        let attributes = u32::from(self.attributes);
        Segment {
            selector: self.selector,
            attributes: attributes & 0xff | (attributes & 0xf00) << 4,
            limit: self.limit,
            base: self.base,
        }
    }

    /// L: the segment holds 64-bit code.
    pub(super) const fn is_long(&self) -> bool {
        self.attributes & 1 << 9 != 0
    }

    fn set_table(&mut self, table: TableRegister) {
        self.limit = u32::from(table.limit);
        self.base = table.base;
    }

    fn table(&self) -> TableRegister {
        TableRegister { base: self.base, limit: guest_abi::num::low_u16(u64::from(self.limit)) }
    }
}

/// The block: control area, then save area.
#[repr(C, align(4096))]
pub(super) struct Vmcb {
    pub(super) intercept_cr: u32,
    pub(super) intercept_dr: u32,
    pub(super) intercept_exceptions: u32,
    pub(super) intercept_1: u32,
    pub(super) intercept_2: u32,
    pub(super) intercept_3: u32,
    reserved_018: [u8; 0x40 - 0x18],
    pub(super) iopm_base: u64,
    pub(super) msrpm_base: u64,
    pub(super) tsc_offset: u64,
    pub(super) asid: u32,
    pub(super) tlb_control: u32,
    pub(super) v_intr: u64,
    pub(super) interrupt_shadow: u64,
    pub(super) exit_code: u64,
    pub(super) exit_info_1: u64,
    pub(super) exit_info_2: u64,
    pub(super) exit_int_info: u64,
    pub(super) np_control: u64,
    reserved_098: [u8; 0xa8 - 0x98],
    pub(super) event_inj: u64,
    pub(super) n_cr3: u64,
    pub(super) lbr_control: u64,
    pub(super) clean: u64,
    pub(super) next_rip: u64,
    reserved_0d0: [u8; 0x400 - 0xd0],
    /// As [`slot`] numbers them, with [`GDTR`] and [`IDTR`] between.
    segments: [VmcbSegment; 10],
    reserved_4a0: [u8; 0x4cb - 0x4a0],
    pub(super) cpl: u8,
    reserved_4cc: [u8; 4],
    pub(super) efer: u64,
    reserved_4d8: [u8; 0x548 - 0x4d8],
    pub(super) cr4: u64,
    pub(super) cr3: u64,
    pub(super) cr0: u64,
    pub(super) dr7: u64,
    pub(super) dr6: u64,
    pub(super) rflags: u64,
    pub(super) rip: u64,
    reserved_580: [u8; 0x5d8 - 0x580],
    pub(super) rsp: u64,
    reserved_5e0: [u8; 0x5f8 - 0x5e0],
    pub(super) rax: u64,
    /// STAR and those up to SYSENTER_EIP, in the order of [`GuestMsr`].
    pub(super) msrs: [u64; NR_MSRS],
    pub(super) cr2: u64,
    reserved_648: [u8; 0x668 - 0x648],
    pub(super) g_pat: u64,
    pub(super) debug_control: u64,
    reserved_678: [u8; 0x1000 - 0x678],
}

/// MSRs that the block holds one behind the other.
pub(super) const NR_MSRS: usize = GuestMsr::SysenterEip as usize + 1;
const GDTR: usize = 6;
const IDTR: usize = 8;

/// Where a segment register stands among the others.
const fn slot(which: SegmentName) -> usize {
    match which {
        SegmentName::Ldtr => 7,
        SegmentName::Tr => 9,
        other => other as usize,
    }
}

impl Vmcb {
    /// A segment register.
    pub(super) const fn segment(&self, which: SegmentName) -> &VmcbSegment {
        &self.segments[slot(which)]
    }

    /// A segment register, to be written.
    pub(super) const fn segment_mut(&mut self, which: SegmentName) -> &mut VmcbSegment {
        &mut self.segments[slot(which)]
    }

    /// GDTR and IDTR.
    pub(super) fn tables(&self) -> [TableRegister; 2] {
        [GDTR, IDTR].map(|table| self.segments[table].table())
    }

    /// Sets GDTR and IDTR.
    pub(super) fn set_tables(&mut self, gdtr: TableRegister, idtr: TableRegister) {
        self.segments[GDTR].set_table(gdtr);
        self.segments[IDTR].set_table(idtr);
    }
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<Vmcb>() == 0x1000);
    assert!(size_of::<VmcbSegment>() == 16);
    assert!(offset_of!(Vmcb, iopm_base) == 0x40);
    assert!(offset_of!(Vmcb, asid) == 0x58);
    assert!(offset_of!(Vmcb, v_intr) == 0x60);
    assert!(offset_of!(Vmcb, exit_code) == 0x70);
    assert!(offset_of!(Vmcb, np_control) == 0x90);
    assert!(offset_of!(Vmcb, event_inj) == 0xa8);
    assert!(offset_of!(Vmcb, next_rip) == 0xc8);
    assert!(offset_of!(Vmcb, segments) == 0x400);
    assert!(slot(SegmentName::Ldtr) * 16 == 0x70 && slot(SegmentName::Tr) * 16 == 0x90);
    assert!(offset_of!(Vmcb, cpl) == 0x4cb);
    assert!(offset_of!(Vmcb, efer) == 0x4d0);
    assert!(offset_of!(Vmcb, cr4) == 0x548);
    assert!(offset_of!(Vmcb, rip) == 0x578);
    assert!(offset_of!(Vmcb, rsp) == 0x5d8);
    assert!(offset_of!(Vmcb, rax) == 0x5f8);
    assert!(offset_of!(Vmcb, msrs) + 8 * GuestMsr::KernelGsBase as usize == 0x620);
    assert!(offset_of!(Vmcb, cr2) == 0x640);
    assert!(offset_of!(Vmcb, g_pat) == 0x668);
};

/// The first intercept word (offset 0x0c).
pub(super) mod intercept1 {
    pub(in super::super) const VINTR: u32 = 1 << 4;
    pub(in super::super) const IRET: u32 = 1 << 20;
    /// INTR, NMI, SMI, INIT; RDPMC, CPUID, RSM, INVD, HLT, INVLPGA, I/O, MSRs, task switches,
    /// FERR freeze and shutdown.
    pub(in super::super) const ALWAYS: u32 = 0xf | 1 << 15 | 3 << 18 | 1 << 22 | 1 << 24 | 0x3f << 26;
}

/// The second intercept word (offset 0x10).
pub(super) mod intercept2 {
    /// VMRUN, VMMCALL, VMLOAD, VMSAVE, STGI, CLGI, SKINIT; WBINVD, MONITOR, MWAIT, XSETBV, RDPRU.
    pub(in super::super) const ALWAYS: u32 = 0x7f | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 13 | 1 << 14;
}

/// Fields of the virtual-interrupt word (offset 0x60).
pub(super) mod v_intr {
    pub(in super::super) const IRQ: u64 = 1 << 8;
    pub(in super::super) const MASKING: u64 = 1 << 24;
    /// Where the vector of the virtual interrupt is.
    pub(in super::super) const VECTOR_SHIFT: u32 = 32;
    /// A virtual interrupt of the highest priority that the virtual TPR does not hold back.
    pub(in super::super) const QUEUED: u64 = MASKING | IRQ | 0xf << 16 | 1 << 20;
}
