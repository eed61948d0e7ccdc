// SPDX-License-Identifier: MIT OR Apache-2.0
//! The architectural state of a vCPU.

use core::ops::Index;

use guest_abi::num::low_u32;

use crate::backend::SegmentName;

/// The general-purpose registers except RSP, in the order in which the entry stubs store them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[expect(missing_docs, reason = "the names are the CPU's own")]
pub struct GuestRegs {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
}

impl GuestRegs {
    /// The low half of RAX, as 32-bit results are read.
    #[must_use]
    pub const fn eax(&self) -> u32 {
        low_u32(self.rax)
    }

    /// The low half of RCX.
    #[must_use]
    pub const fn ecx(&self) -> u32 {
        low_u32(self.rcx)
    }

    /// The register with this number in an instruction's operand (0 RAX, 1 RCX, 2 RDX, 3 RBX,
    /// 5 RBP, 6 RSI, 7 RDI, 8 to 15), or `None` for RSP, which is not here, and beyond.
    pub const fn by_number(&mut self, number: u8) -> Option<&mut u64> {
        Some(match number {
            0 => &mut self.rax,
            1 => &mut self.rcx,
            2 => &mut self.rdx,
            3 => &mut self.rbx,
            5 => &mut self.rbp,
            6 => &mut self.rsi,
            7 => &mut self.rdi,
            8 => &mut self.r8,
            9 => &mut self.r9,
            10 => &mut self.r10,
            11 => &mut self.r11,
            12 => &mut self.r12,
            13 => &mut self.r13,
            14 => &mut self.r14,
            15 => &mut self.r15,
            _ => return None,
        })
    }

    /// EDX:EAX as one number.
    #[must_use]
    pub const fn edx_eax(&self) -> u64 {
        self.rdx << 32 | self.rax & 0xffff_ffff
    }

    /// Sets EDX:EAX, clearing both upper halves as RDMSR and RDTSC do.
    pub const fn set_edx_eax(&mut self, value: u64) {
        self.rax = value & 0xffff_ffff;
        self.rdx = value >> 32;
    }
}

/// What a walk of the guest's page tables depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the CPU's own")]
pub struct Paging {
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// Access rights as in bits 8-15 and 20-23 of a descriptor's upper half, packed to 12 bits
    /// plus four: type 3:0, S 4, DPL 6:5, P 7, AVL 12, L 13, D/B 14, G 15, unusable 16.
    pub attributes: u32,
    /// The limit in bytes.
    pub limit: u32,
    /// The base address.
    pub base: u64,
}

impl Segment {
    /// L: the segment holds 64-bit code.
    #[must_use]
    pub const fn is_long(&self) -> bool {
        self.attributes & 1 << 13 != 0
    }

    /// D/B: the default operand size is 32 bits.
    #[must_use]
    pub const fn is_big(&self) -> bool {
        self.attributes & 1 << 14 != 0
    }
}

/// The segment registers, each under its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segments(pub [Segment; SegmentName::ALL.len()]);

impl Segments {
    /// Gives each register what `get` says.
    #[must_use]
    pub fn new(get: impl FnMut(SegmentName) -> Segment) -> Self {
        Self(SegmentName::ALL.map(get))
    }
}

impl Index<SegmentName> for Segments {
    type Output = Segment;

    fn index(&self, which: SegmentName) -> &Segment {
        &self.0[which as usize]
    }
}

/// A descriptor-table register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableRegister {
    /// The table's linear address.
    pub base: u64,
    /// The table's limit in bytes.
    pub limit: u16,
}

/// The whole architectural state except the general-purpose registers and the FPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the CPU's own")]
pub struct CpuState {
    pub rip: u64,
    pub rsp: u64,
    pub rflags: u64,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub xcr0: u64,
    pub dr7: u64,
    pub segments: Segments,
    pub gdtr: TableRegister,
    pub idtr: TableRegister,
    pub pat: u64,
}

impl CpuState {
    /// The page-attribute table after reset: WB, WT, UC-, UC, twice.
    pub const RESET_PAT: u64 = 0x0007_0406_0007_0406;

    /// The state in which a PVH kernel is entered: 32-bit protected mode, paging off, EBX (set
    /// by the caller) holding the address of the start info.
    ///
    /// Source: `xen/docs/misc/pvh.pandoc`, x86/HVM direct boot ABI.
    #[must_use]
    pub fn pvh_entry(rip: u32) -> Self {
        let data = Segment { selector: 0, attributes: 0xc093, limit: u32::MAX, base: 0 };
        Self {
            rip: u64::from(rip),
            rflags: 1 << 1,
            cr0: 1 << 0 | 1 << 4,
            xcr0: 1,
            dr7: 0x400,
            segments: Segments::new(|which| match which {
                SegmentName::Cs => Segment { attributes: 0xc09b, ..data },
                SegmentName::Ldtr => Segment { attributes: 0x82, ..Segment::default() },
                SegmentName::Tr => Segment { attributes: 0x8b, limit: 0x67, ..Segment::default() },
                _ => data,
            }),
            pat: Self::RESET_PAT,
            ..Self::default()
        }
    }

    /// The state after INIT and a start-up IPI: real mode at `page << 12`.
    ///
    /// Source: Intel SDM vol. 3A, Processor State After Reset; MP Initialization Protocol.
    #[must_use]
    pub fn startup_ipi(page: u8) -> Self {
        let data = Segment { selector: 0, attributes: 0x93, limit: 0xffff, base: 0 };
        let page = u16::from(page);
        Self {
            rip: 0,
            rflags: 1 << 1,
            cr0: 1 << 4,
            xcr0: 1,
            dr7: 0x400,
            segments: Segments::new(|which| match which {
                SegmentName::Cs => {
                    Segment { selector: page << 8, attributes: 0x9b, base: u64::from(page) << 12, ..data }
                }
                SegmentName::Ldtr => Segment { attributes: 0x82, ..data },
                SegmentName::Tr => Segment { attributes: 0x8b, ..data },
                _ => data,
            }),
            gdtr: TableRegister { base: 0, limit: 0xffff },
            idtr: TableRegister { base: 0, limit: 0xffff },
            pat: Self::RESET_PAT,
            ..Self::default()
        }
    }
}
