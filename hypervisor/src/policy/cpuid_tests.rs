// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tests of [`super`] against model hosts.

use super::*;

/// A host that has every bit of every leaf set, as no CPU that anybody looked at.
pub(crate) fn full_host(vendor: &'static [u8; 12]) -> impl Fn(u32, u32) -> CpuidResult {
    let word = |i: usize| u32::from_le_bytes([vendor[i], vendor[i + 1], vendor[i + 2], vendor[i + 3]]);
    move |leaf, subleaf| match (leaf, subleaf) {
        (0, _) => CpuidResult { eax: 0x20, ebx: word(0), edx: word(4), ecx: word(8) },
        (4, 0..4) => CpuidResult { eax: 0xfc00_c000 | (subleaf.max(1)) << 5 | 1, ebx: 7, ecx: 63, edx: 0 },
        (4, _) => CpuidResult::default(),
        (0xd, 2) => CpuidResult { eax: 256, ebx: 576, ecx: 0, edx: 0 },
        (0xd, 5) => CpuidResult { eax: 64, ebx: 1088, ecx: 0, edx: 0 },
        (0xd, 6) => CpuidResult { eax: 512, ebx: 1152, ecx: 2, edx: 0 },
        (0xd, 7) => CpuidResult { eax: 1024, ebx: 1664, ecx: 2, edx: 0 },
        (0x8000_0000, _) => CpuidResult { eax: 0x8000_0021, ebx: word(0), edx: word(4), ecx: word(8) },
        _ => CpuidResult { eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX },
    }
}

pub(crate) fn params() -> CpuidParams {
    CpuidParams {
        nr_vcpus: 1,
        max_apic_id: 0,
        phys_bits: 40,
        tsc: TscScale::from_khz(2_500_000).unwrap(),
        is_tsc_invariant: true,
        xcr0: u64::MAX,
        has_rdtscp: true,
        has_invpcid: true,
    }
}

const STATE: DynamicState = DynamicState { apic_id: 0, vcpu: VcpuId::new(0), domain: DomId::new(3), cr4: 0, xcr0: 1 };

pub(crate) const INTEL: &[u8; 12] = b"GenuineIntel";
pub(crate) const AMD: &[u8; 12] = b"AuthenticAMD";

fn intel() -> CpuidPolicy {
    CpuidPolicy::new(&full_host(INTEL), &params())
}

#[test]
fn what_is_not_handled_is_hidden() {
    for vendor in [INTEL, AMD] {
        let policy = CpuidPolicy::new(&full_host(vendor), &params());
        let zero = |leaf, subleaf, register, bits: &[u8]| {
            for bit in bits {
                assert!(!policy.offers(leaf, subleaf, register, *bit), "{leaf:#x} {register:?} bit {bit}");
            }
        };
        // MONITOR, VMX, SMX, EST, TM2, PDCM; MCE, MCA, ACPI, TM.
        zero(1, 0, Register::Ecx, &[3, 5, 6, 7, 8, 15]);
        zero(1, 0, Register::Edx, &[7, 14, 22, 29]);
        // SGX, HLE, RTM, PQM, MPX, PQE, PT; PKU, WAITPKG, CET_SS, LA57, ENQCMD, SGX_LC.
        zero(7, 0, Register::Ebx, &[2, 4, 11, 12, 14, 15, 25]);
        zero(7, 0, Register::Ecx, &[3, 4, 5, 7, 16, 29, 30]);
        // UINTR, PCONFIG, LBR, IBT, AMX, IBRS, STIBP, L1D_FLUSH, ARCH_CAPS, CORE_CAPS, SSBD.
        zero(7, 0, Register::Edx, &[5, 18, 19, 20, 22, 24, 25, 26, 27, 28, 29, 30, 31]);
        // APERF/MPERF and EPB; HWP and its parts.
        zero(6, 0, Register::Ecx, &[0, 3]);
        zero(6, 0, Register::Eax, &[0, 1, 3, 7, 8, 9, 10, 11]);
        // XSAVES; SVM, IBS, NODEID, TOPOEXT, MWAITX; FFXSR.
        zero(0xd, 1, Register::Eax, &[3, 4]);
        zero(0x8000_0001, 0, Register::Ecx, &[2, 10, 19, 22, 29]);
        zero(0x8000_0001, 0, Register::Edx, &[25]);
        for leaf in [3, 5, 9, 0xa, 0xc, 0xf, 0x10, 0x12, 0x14, 0x15, 0x16, 0x1f, 0x20, 0x4000_0006, 0x4000_0100] {
            assert_eq!(policy.answer(leaf, 0, &STATE), CpuidResult::default(), "{leaf:#x}");
        }
        for leaf in [0x8000_000a, 0x8000_001b, 0x8000_001d, 0x8000_001e, 0x8000_001f, 0x8000_0020, 0x8000_0022] {
            assert_eq!(policy.answer(leaf, 0, &STATE), CpuidResult::default(), "{leaf:#x}");
        }
        assert_eq!(policy.answer(0xffff_ffff, 7, &STATE), CpuidResult::default());
        assert_eq!(policy.answer(7, 2, &STATE), CpuidResult::default());
    }
}

#[test]
fn every_offered_bit_is_on_the_list() {
    let policy = intel();
    for word in WORDS {
        let listed = word.features.iter().fold(0_u32, |bits, f| bits | 1 << f.bit);
        let mut answer = policy.stored(word.leaf, word.subleaf);
        assert_eq!(*register_of(&mut answer, word.register) & !listed, 0, "{:#x}", word.leaf);
    }
}

#[test]
fn a_bare_host_offers_only_what_the_hypervisor_provides() {
    let bare = |leaf: u32, _| match leaf {
        0 => CpuidResult { eax: 1, ..full_host(AMD)(0, 0) },
        _ => CpuidResult::default(),
    };
    let policy = CpuidPolicy::new(&bare, &params());
    let one = policy.answer(1, 0, &STATE);
    assert_eq!(one.ecx, 1 << 21 | 1 << 24 | 1 << 31);
    assert_eq!(one.edx, 1 << 9 | 1 << 12);
    assert_eq!(policy.answer(7, 0, &STATE).ebx, 1 << 1);
    assert_eq!(policy.answer(0, 0, &STATE).eax, 0xb);
    assert_eq!(policy.xcr0(), 0);
    assert_eq!(policy.answer(0xd, 0, &STATE), CpuidResult::default());
}

#[test]
fn linux_finds_the_hypervisor() {
    let policy = intel();
    let base = policy.answer(0x4000_0000, 0, &STATE);
    assert_eq!(base.eax, 0x4000_0005);
    let name = [base.ebx, base.ecx, base.edx].map(u32::to_le_bytes);
    assert_eq!(name.as_flattened(), b"XenVMMXenVMM");
    assert_eq!(policy.answer(0x4000_0001, 0, &STATE).eax, 0x0004_0011);
    assert_eq!(policy.answer(0x4000_0002, 9, &STATE), CpuidResult { eax: 1, ebx: 0x4000_0000, ecx: 0, edx: 0 });
    assert_eq!(policy.answer(0x4000_0003, 0, &STATE), CpuidResult { eax: 0b110, ebx: 2, ecx: 2_500_000, edx: 0 });
    assert_eq!(policy.answer(0x4000_0003, 2, &STATE).eax, 2_500_000);
    let state = DynamicState { vcpu: VcpuId::new(7), ..STATE };
    assert_eq!(policy.answer(0x4000_0004, 0, &state), CpuidResult { eax: 0b1_1000, ebx: 7, ecx: 3, edx: 0 });
    assert_eq!(policy.answer(0x4000_0004, 1, &state), CpuidResult::default());
}

#[test]
fn the_vendor_is_the_hosts() {
    for (name, vendor) in [(INTEL, Vendor::Intel), (AMD, Vendor::Amd), (b"HygonGenuine", Vendor::Amd)] {
        let policy = CpuidPolicy::new(&full_host(name), &params());
        let r = policy.answer(0, 0, &STATE);
        assert_eq!([r.ebx, r.edx, r.ecx].map(u32::to_le_bytes).as_flattened(), name);
        assert_eq!(policy.vendor(), vendor);
    }
}

#[test]
fn topology_is_flat_and_all_leaves_agree() {
    for (nr_vcpus, max_apic_id, shift) in [(1, 0, 0), (1, 3, 2), (2, 1, 1), (4, 3, 2), (6, 5, 3), (128, 254, 8)] {
        for vendor in [INTEL, AMD] {
            let params = CpuidParams { nr_vcpus, max_apic_id, ..params() };
            let policy = CpuidPolicy::new(&full_host(vendor), &params);
            let state = DynamicState { apic_id: max_apic_id, ..STATE };
            let one = policy.answer(1, 0, &state);
            assert_eq!(one.ebx >> 24, max_apic_id);
            assert_eq!(one.edx & 1 << 28 != 0, nr_vcpus > 1);
            if nr_vcpus > 1 && shift < 8 {
                assert_eq!(one.ebx >> 16 & 0xff, 1 << shift);
            }
            let threads = policy.answer(0xb, 0, &state);
            assert_eq!(threads, CpuidResult { eax: 0, ebx: 1, ecx: 0x100, edx: max_apic_id });
            let cores = policy.answer(0xb, 1, &state);
            assert_eq!(cores, CpuidResult { eax: shift, ebx: nr_vcpus, ecx: 0x201, edx: max_apic_id });
            assert_eq!(policy.answer(0xb, 2, &state), CpuidResult { eax: 0, ebx: 0, ecx: 2, edx: max_apic_id });
            let sizes = policy.answer(0x8000_0008, 0, &state);
            assert_eq!(sizes.eax, 40 | 48 << 8);
            if vendor == AMD {
                assert_eq!(sizes.ecx, (nr_vcpus - 1) | (shift << 12));
                assert_eq!(policy.answer(4, 0, &state), CpuidResult::default());
            } else {
                assert_eq!(sizes.ecx, 0);
                let (l1, l3) = (policy.answer(4, 0, &state).eax, policy.answer(4, 3, &state).eax);
                assert_eq!(l1 >> 14 & 0xfff, 0);
                assert_eq!(l3 >> 14 & 0xfff, (1 << shift) - 1);
                assert_eq!(l1 >> 26, ((1 << shift) - 1).min(0x3f));
            }
        }
    }
}

#[test]
fn osxsave_follows_cr4() {
    let policy = intel();
    assert_eq!(policy.answer(1, 0, &STATE).ecx & 1 << 27, 0);
    let state = DynamicState { cr4: 1 << 18, ..STATE };
    assert_ne!(policy.answer(1, 0, &state).ecx & 1 << 27, 0);
}

#[test]
fn xsave_sizes_follow_what_is_enabled() {
    let policy = intel();
    let at = |subleaf, xcr0| policy.answer(0xd, subleaf, &DynamicState { xcr0, ..STATE });
    assert_eq!(at(0, 1), CpuidResult { eax: 0xe7, ebx: 576, ecx: 2688, edx: 0 });
    assert_eq!(at(0, 7).ebx, 832);
    assert_eq!(at(0, 0xe7).ebx, 2688);
    assert_eq!(at(1, 7).ebx, 832);
    assert_eq!(at(1, 0xe7).ebx, 832 + 64 + 512 + 1024);
    assert_eq!(at(3, 7), CpuidResult::default());
    assert_eq!(at(6, 7), CpuidResult { eax: 512, ebx: 1152, ecx: 2, edx: 0 });
    assert_eq!(at(9, 7), CpuidResult::default());
    assert_eq!(at(63, u64::MAX), CpuidResult::default());
}

#[test]
fn vectors_are_offered_only_with_their_state() {
    let sse_only = CpuidPolicy::new(&full_host(INTEL), &CpuidParams { xcr0: 0b11, ..params() });
    assert_eq!(sse_only.xcr0(), 0b11);
    assert!(sse_only.offers(1, 0, Register::Ecx, 26) && !sse_only.offers(1, 0, Register::Ecx, 28));
    let avx = CpuidPolicy::new(&full_host(INTEL), &CpuidParams { xcr0: 0b0110_0111, ..params() });
    assert_eq!(avx.xcr0(), 0b111);
    assert!(avx.offers(7, 0, Register::Ebx, 5) && !avx.offers(7, 0, Register::Ebx, 16));
    assert!(intel().offers(7, 0, Register::Ebx, 16));
    let none = CpuidPolicy::new(&full_host(INTEL), &CpuidParams { xcr0: 0, ..params() });
    assert!(!none.offers(1, 0, Register::Ecx, 26) && !none.offers(0xd, 1, Register::Eax, 0));
}

#[test]
fn what_the_backend_lacks_is_hidden() {
    let limited = CpuidParams { has_rdtscp: false, has_invpcid: false, is_tsc_invariant: false, ..params() };
    let policy = CpuidPolicy::new(&full_host(INTEL), &limited);
    assert!(!policy.offers(0x8000_0001, 0, Register::Edx, 27) && intel().offers(0x8000_0001, 0, Register::Edx, 27));
    assert!(!policy.offers(7, 0, Register::Ecx, 22) && intel().offers(7, 0, Register::Ecx, 22));
    assert!(!policy.offers(7, 0, Register::Ebx, 10) && intel().offers(7, 0, Register::Ebx, 10));
    assert!(!policy.offers(0x8000_0007, 0, Register::Edx, 8) && intel().offers(0x8000_0007, 0, Register::Edx, 8));
    assert_eq!(policy.answer(0x4000_0003, 0, &STATE).eax, 0);
}
