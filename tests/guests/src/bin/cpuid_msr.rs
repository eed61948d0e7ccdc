// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves what a guest sees of CPUID and MSRs, and that everything else is refused.
//!
//! A pass cannot tell whether the features that are shown work; it shows that none is shown that the
//! hypervisor keeps, and that no MSR outside the policy reaches the hardware.
//!
//! Checks: `arch-x86/cpuid.h` at 4.17; Intel SDM vol. 4; AMD APM vol. 2, appendix A.
//! Expects: status 0.
#![no_std]
#![no_main]

use guest_abi::cpuid as leaves;
use test_guests::{apic, check, check_eq, cpu, guest, hypercall, report, skip, traps};

guest!(main);

const EFER: u32 = 0xc000_0080;
const PAT: u32 = 0x277;

fn main() {
    hypervisor_leaves();
    hidden_features();
    refused_msrs();
    efer();
    kept_msrs();
    apic_base();
    cr4();
}

fn hypervisor_leaves() {
    let base = cpu::cpuid(leaves::FIRST_LEAF, 0);
    let signature = (leaves::SIGNATURE_EBX, leaves::SIGNATURE_ECX, leaves::SIGNATURE_EDX);
    check_eq("the signature is XenVMMXenVMM", (base.ebx, base.ecx, base.edx), signature);
    check("leaves up to base + 4 exist", base.eax >= leaves::LEAF_HVM && base.eax <= leaves::MAX_LEAF);
    check_eq("the version is 4.17", cpu::cpuid(leaves::LEAF_VERSION, 0).eax, 4 << 16 | 17);
    check("the TSC frequency is told", cpu::cpuid(leaves::LEAF_TIME, 0).ecx != 0);
    let hvm = cpu::cpuid(leaves::LEAF_HVM, 0);
    check("the vCPU number is told", hvm.eax & leaves::HVM_VCPU_ID_PRESENT != 0);
    check_eq("the vCPU number is 0", hvm.ebx, 0);
    check_eq("no upcalls through the local APIC are offered", hvm.eax & leaves::HVM_UPCALL_VECTOR, 0);
    check("the hypervisor bit is set", cpu::cpuid(1, 0).ecx >> 31 == 1);
}

fn hidden_features() {
    let one = cpu::cpuid(1, 0);
    let extended = cpu::cpuid(0x8000_0001, 0);
    check_eq("MONITOR is hidden", one.ecx >> 3 & 1, 0);
    check_eq("VMX is hidden", one.ecx >> 5 & 1, 0);
    check_eq("SVM is hidden", extended.ecx >> 2 & 1, 0);
    check_eq("x2APIC and APIC are shown", (one.ecx >> 21 & 1, one.edx >> 9 & 1), (1, 1));
    check_eq("MCE and MCA are hidden", one.edx & (1 << 7 | 1 << 14), 0);
    check_eq("memory encryption is hidden", cpu::cpuid(0x8000_001f, 0).eax, 0);
    check_eq("performance counters are hidden", cpu::cpuid(0xa, 0).eax & 0xff, 0);
    check_eq("5-level paging is hidden", cpu::cpuid(7, 0).ecx >> 16 & 1, 0);
    let topology = cpu::cpuid(0xb, 0);
    check_eq("leaf 1 and 0xB tell one APIC id", one.ebx >> 24, topology.edx & 0xff);
    check_eq("and it is the APIC's", apic::read(apic::ID), Ok(u64::from(topology.edx)));
    // SAFETY: MONITOR only arms on an address; refused here.
    let fault = traps::catch(|| unsafe { core::arch::asm!("monitor", in("rax") 0x1000, in("ecx") 0, in("edx") 0) });
    check_eq("MONITOR raises #UD", fault.map(|f| f.vector), Some(traps::UD));
    // SAFETY: both enter or leave operation that the guest does not have.
    let fault = traps::catch(|| unsafe { core::arch::asm!("vmxoff") });
    check_eq("VMXOFF raises #UD", fault.map(|f| f.vector), Some(traps::UD));
    // SAFETY: as above.
    let fault = traps::catch(|| unsafe { core::arch::asm!("vmrun", in("rax") 0x1000) });
    check_eq("VMRUN raises #UD", fault.map(|f| f.vector), Some(traps::UD));
}

fn refused_msrs() {
    // A number that no processor has; VMX and SVM controls; microcode; power; SMM; machine checks.
    let read =
        [0x1234_5678, 0x480, 0x48d, 0xc001_0114, 0xc001_0117, 0x19c, 0x1b0, 0x606, 0xc001_0111, 0x17a, 0x400, 0x186];
    all("reading MSRs outside the policy raises #GP(0)", &read, |msr| gp(cpu::rdmsr(msr)));
    let write = [0x79, 0xc001_0020, 0x1234_5678, 0xc001_0114, 0xc001_0117, 0x8c, 0x9e, 0x17b];
    // SAFETY: refused, else the machine is not the guest's to keep.
    all("writing MSRs outside the policy raises #GP(0)", &write, |msr| gp(unsafe { cpu::wrmsr(msr, 0) }));
}

fn all(name: &str, msrs: &[u32], is_right: impl Fn(u32) -> bool) {
    match msrs.iter().find(|msr| !is_right(**msr)) {
        Some(msr) => report::fail(name, format_args!("not {msr:#x}")),
        None => check(name, true),
    }
}

fn gp<T>(result: Result<T, traps::Fault>) -> bool {
    result.is_err_and(|f| f.vector == traps::GP && f.error == 0)
}

/// Whether writing `value` is refused; what is there comes back if it was not.
fn refuses(msr: u32, value: u64) -> bool {
    let Ok(before) = cpu::rdmsr(msr) else { return false };
    // SAFETY: values are chosen so that the guest goes on if one is accepted.
    let refused = gp(unsafe { cpu::wrmsr(msr, value) });
    // SAFETY: what was there.
    refused || unsafe { cpu::wrmsr(msr, before) }.is_err()
}

fn efer() {
    let value = cpu::rdmsr(EFER).unwrap_or(0);
    check_eq("EFER reads LME, LMA, NXE and nothing else", value, 1 << 8 | 1 << 10 | 1 << 11);
    check("EFER refuses SVME", refuses(EFER, value | 1 << 12));
    check("EFER refuses a reserved bit", refuses(EFER, value | 1 << 16) && refuses(EFER, value | 1 << 1));
    check("EFER refuses to leave long mode while paging", refuses(EFER, value & !(1 << 8)));
    // SAFETY: SYSCALL is not used.
    check("EFER accepts SCE", unsafe { cpu::wrmsr(EFER, value | 1) }.is_ok());
    check_eq("and keeps it", cpu::rdmsr(EFER), Ok(value | 1));
}

fn kept_msrs() {
    check_eq("PAT has its reset value", cpu::rdmsr(PAT), Ok(0x0007_0406_0007_0406));
    // SAFETY: the entries in use, 0, stays write-back.
    check("PAT accepts legal types", unsafe { cpu::wrmsr(PAT, 0x0007_0106_0007_0106) }.is_ok());
    check_eq("and keeps them", cpu::rdmsr(PAT), Ok(0x0007_0106_0007_0106));
    check("PAT refuses types 2, 3 and 8", [2, 3, 8].iter().all(|t| refuses(PAT, t << 8 | 6)));
    check("LSTAR refuses a non-canonical address", refuses(0xc000_0082, 1 << 47));
    if hypercall::is_amd() {
        skip("GS_BASE refuses a non-canonical address", "the CPU checks it, and not every emulator does");
    } else {
        check("GS_BASE refuses a non-canonical address", refuses(0xc000_0101, 1 << 63));
    }
    check("MTRRcap and MTRRdefType are readable", cpu::rdmsr(0xfe).is_ok() && cpu::rdmsr(0x2ff).is_ok());
    if hypercall::is_amd() {
        skip("MISC_ENABLE is readable with execute-disable on", "Intel only");
    } else {
        let misc = cpu::rdmsr(0x1a0).map(|v| v >> 34 & 1);
        check_eq("MISC_ENABLE is readable with execute-disable on", misc, Ok(0));
    }
}

fn apic_base() {
    let value = cpu::rdmsr(apic::APIC_BASE).unwrap_or(0);
    check_eq("APIC_BASE is on, in x2APIC mode, on the boot CPU", value, 0xfee0_0000 | 1 << 11 | 1 << 10 | 1 << 8);
    check("APIC_BASE refuses a reserved bit", refuses(apic::APIC_BASE, value | 1));
    check("APIC_BASE refuses x2APIC while off", refuses(apic::APIC_BASE, value & !(1 << 11)));
    // SAFETY: what is there already.
    check("APIC_BASE accepts its own value", unsafe { cpu::wrmsr(apic::APIC_BASE, value) }.is_ok());
}

fn cr4() {
    let value = cpu::cr4();
    for (name, bit) in [("CR4.VMXE is refused", 13), ("CR4.LA57 is refused", 12), ("a reserved CR4 bit is refused", 63)]
    {
        // SAFETY: refused, or without effect on what the guest does.
        check(name, gp(unsafe { cpu::set_cr4(value | 1 << bit) }));
    }
    // SAFETY: refused: long mode needs PAE.
    check("CR4.PAE stays in long mode", gp(unsafe { cpu::set_cr4(value & !(1 << 5)) }));
    check_eq("CR4 reads as it was", cpu::cr4(), value);
}
