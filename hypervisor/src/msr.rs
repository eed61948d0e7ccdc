// SPDX-License-Identifier: MIT OR Apache-2.0
//! The numbers of the MSRs that more than one part of the hypervisor names.
//!
//! Source: Intel SDM vol. 4, Model-Specific Registers; AMD APM vol. 2, appendix A.
#![expect(missing_docs, reason = "the names are the manuals'")]

pub const TSC: u32 = 0x10;
pub const APIC_BASE: u32 = 0x1b;
pub const FEATURE_CONTROL: u32 = 0x3a;
pub const PAT: u32 = 0x277;
pub const EFER: u32 = 0xc000_0080;
pub const STAR: u32 = 0xc000_0081;
pub const LSTAR: u32 = 0xc000_0082;
pub const CSTAR: u32 = 0xc000_0083;
pub const SFMASK: u32 = 0xc000_0084;
pub const FS_BASE: u32 = 0xc000_0100;
pub const GS_BASE: u32 = 0xc000_0101;
pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
pub const TSC_AUX: u32 = 0xc000_0103;
