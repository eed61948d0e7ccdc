// SPDX-License-Identifier: MIT OR Apache-2.0
//! CPUID as a domain sees it.
//!
//! The answers are computed once, when the domain is made, from the host's own and the list in
//! [`super::features`]; an exit is then a table look-up and at most a few bits of the vCPU's state.
//! A leaf that is not in the table reads as zero.
//!
//! Topology is flat: one package, one thread a core, one core a vCPU. Leaves 1, 4, 0xB and
//! 0x80000008 say so with the same numbers; 0x1F, 0x8000001E and everything else that could
//! contradict them is absent.
//!
//! The vendor is the host's, because Linux takes from it whether a hypercall is VMCALL or VMMCALL.
//! The hypervisor leaves follow `xen/include/public/arch-x86/cpuid.h` at 4.17. Bit 6 of leaf base+4
//! (upcall vector) is not offered, so that Linux takes its events through the callback vector,
//! which needs no end-of-interrupt write.

use guest_abi::cpuid as leaves;
use guest_abi::num::{high_u32, low_u8, low_u32};
use guest_abi::{DomId, VcpuId};

use super::control::cr4;
use super::features::{Feature, Needs, Register, WORDS, XCR0_AVX, XCR0_AVX512};
use crate::backend::CpuidResult;
use crate::time::TscScale;

/// The interface version that is implemented.
const VERSION: u32 = MAJOR << 16 | MINOR;
const MAJOR: u32 = 4;
const MINOR: u32 = 17;

/// The highest basic leaf that has an answer: XSAVE's. 0x15 and 0x16 stay out, because their clock
/// would contradict the PV clock's.
const MAX_BASIC: u32 = 0xd;
/// The topology leaf, which goes with x2APIC and is answered on every host.
const TOPOLOGY: u32 = 0xb;
/// The highest extended leaf that has an answer.
const MAX_EXTENDED: u32 = 0x8000_0021;
const EXTENDED: u32 = 0x8000_0000;

/// Legacy area and header: what XSAVE writes whatever is enabled.
const XSAVE_MIN_BYTES: u32 = 512 + 64;
/// XCR0 components 2 to 7 have their own subleaf.
const COMPONENTS: core::ops::Range<u32> = 2..8;

/// What a domain's answers depend on besides the host.
#[derive(Clone, Copy, Debug)]
pub struct CpuidParams {
    /// vCPUs of the domain, at least 1.
    pub nr_vcpus: u32,
    /// The highest APIC id among them.
    pub max_apic_id: u32,
    /// The width of a guest physical address in bits.
    pub phys_bits: u8,
    /// The scale of the time-stamp counter.
    pub tsc: TscScale,
    /// The counter runs at one rate always and in step on all CPUs.
    pub is_tsc_invariant: bool,
    /// Bits of XCR0 whose state the backend switches.
    pub xcr0: u64,
    /// The backend lets RDTSCP and RDPID run and switches TSC_AUX.
    pub has_rdtscp: bool,
    /// The backend lets INVPCID run.
    pub has_invpcid: bool,
}

/// What an answer depends on that changes while a vCPU runs, or differs between vCPUs.
#[derive(Clone, Copy, Debug)]
pub struct DynamicState {
    /// The vCPU's APIC id.
    pub apic_id: u32,
    /// The vCPU.
    pub vcpu: VcpuId,
    /// Its domain.
    pub domain: DomId,
    /// CR4 as the guest sees it.
    pub cr4: u64,
    /// XCR0 as the guest sees it.
    pub xcr0: u64,
}

/// Who made the host's CPU, as far as the policy cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// AMD or Hygon.
    Amd,
    /// Intel and those who follow it.
    Intel,
}

/// Where the answers of one leaf lie.
#[derive(Clone, Copy, Default)]
struct Slot {
    first: u8,
    count: u8,
}

const BASIC_SLOTS: usize = 16;
const HYPERVISOR_SLOTS: usize = 8;
const EXTENDED_SLOTS: usize = 40;
const SLOTS: usize = BASIC_SLOTS + HYPERVISOR_SLOTS + EXTENDED_SLOTS;
/// Host-dependent leaves have at most 8 (cache) and 8 (XSAVE) subleaves; the rest is fixed.
const ANSWERS: usize = 56;
const CACHE_SUBLEAVES: u32 = 8;

/// One XCR0 component above SSE, as CPUID describes it.
#[derive(Clone, Copy, Default)]
struct Component {
    size: u32,
    offset: u32,
    is_aligned: bool,
}

/// The CPUID answers of one domain.
pub struct CpuidPolicy {
    slots: [Slot; SLOTS],
    answers: [CpuidResult; ANSWERS],
    used: u8,
    xcr0: u64,
    components: [Component; 8],
    vendor: Vendor,
}

/// The host's CPUID, or that of a model CPU in a test.
pub type HostCpuid<'a> = &'a dyn Fn(u32, u32) -> CpuidResult;

impl CpuidPolicy {
    /// Computes the answers for one domain.
    #[must_use]
    pub fn new(host: HostCpuid<'_>, params: &CpuidParams) -> Self {
        let mut policy = Self {
            slots: [Slot::default(); SLOTS],
            answers: [CpuidResult::default(); ANSWERS],
            used: 0,
            xcr0: offered_xcr0(host, params.xcr0),
            components: [Component::default(); 8],
            vendor: vendor(&host(0, 0)),
        };
        policy.add_basic(host, params);
        policy.add_xsave(host, params);
        policy.add_hypervisor(host, params);
        policy.add_extended(host, params);
        policy
    }

    /// The answer for one vCPU.
    #[must_use]
    pub fn answer(&self, leaf: u32, subleaf: u32, state: &DynamicState) -> CpuidResult {
        let mut r = self.stored(leaf, subleaf);
        match leaf {
            1 => {
                r.ebx |= (state.apic_id & 0xff) << 24;
                if state.cr4 & cr4::OSXSAVE != 0 {
                    r.ecx |= 1 << 27;
                }
            }
            TOPOLOGY => {
                r.ecx |= subleaf & 0xff;
                r.edx = state.apic_id;
            }
            0xd if self.xcr0 != 0 => match subleaf {
                0 => r.ebx = self.xsave_bytes(state.xcr0),
                1 if r.eax & 1 << 1 != 0 => r.ebx = self.xsavec_bytes(state.xcr0),
                _ => {}
            },
            leaves::LEAF_HVM if subleaf == 0 => {
                r.ebx = state.vcpu.raw();
                r.ecx = u32::from(state.domain.raw());
            }
            _ => {}
        }
        r
    }

    /// Whether a feature bit is offered. Computed bits count as not offered.
    #[must_use]
    pub fn offers(&self, leaf: u32, subleaf: u32, register: Register, bit: u8) -> bool {
        register_of(&mut self.stored(leaf, subleaf), register).wrapping_shr(u32::from(bit)) & 1 != 0
    }

    /// The bits that the guest may set in XCR0; 0 where XSAVE is not offered.
    #[must_use]
    pub const fn xcr0(&self) -> u64 {
        self.xcr0
    }

    /// Who made the CPU.
    #[must_use]
    pub const fn vendor(&self) -> Vendor {
        self.vendor
    }

    fn stored(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        let Some(slot) = slot_of(leaf).and_then(|i| self.slots.get(i)) else { return CpuidResult::default() };
        let subleaf = if has_subleaves(leaf) { subleaf } else { 0 };
        if subleaf >= u32::from(slot.count) {
            return CpuidResult::default();
        }
        self.answers.get(usize::from(slot.first) + subleaf as usize).copied().unwrap_or_default()
    }

    /// Adds the next subleaf of a leaf. All subleaves of one leaf are added in a row.
    fn add(&mut self, leaf: u32, answer: CpuidResult) {
        let slot = slot_of(leaf).and_then(|i| self.slots.get_mut(i)).expect("a leaf that has a slot");
        if slot.count == 0 {
            slot.first = self.used;
        }
        assert_eq!(slot.first + slot.count, self.used, "subleaves are added in a row");
        slot.count += 1;
        self.answers[usize::from(self.used)] = answer;
        self.used += 1;
    }

    /// Adds a leaf that holds feature bits in some registers and `rest` in the others.
    fn add_features(
        &mut self,
        host: HostCpuid<'_>,
        params: &CpuidParams,
        (leaf, subleaf): (u32, u32),
        rest: CpuidResult,
    ) {
        let mut from_host = host(leaf, subleaf);
        let mut answer = rest;
        for word in WORDS.iter().filter(|w| w.leaf == leaf && w.subleaf == subleaf) {
            let host_bits = *register_of(&mut from_host, word.register);
            let offered = word.features.iter().filter(|f| self.is_offered(f, host_bits, params));
            *register_of(&mut answer, word.register) = offered.fold(0, |bits, f| bits | 1 << f.bit);
        }
        self.add(leaf, answer);
    }

    fn is_offered(&self, feature: &Feature, host_bits: u32, params: &CpuidParams) -> bool {
        let in_host = host_bits & 1 << feature.bit != 0;
        match feature.needs {
            Needs::Host => in_host,
            Needs::State(bits) => in_host && self.xcr0 & bits == bits,
            Needs::Rdtscp => in_host && params.has_rdtscp,
            Needs::Invpcid => in_host && params.has_invpcid,
            Needs::Forced => true,
            Needs::Computed => match feature.name {
                "HTT" => params.nr_vcpus > 1,
                "CMP_LEGACY" => params.nr_vcpus > 1 && self.vendor == Vendor::Amd,
                "INVARIANT_TSC" => params.is_tsc_invariant,
                _ => false,
            },
        }
    }

    fn add_basic(&mut self, host: HostCpuid<'_>, params: &CpuidParams) {
        let host_0 = host(0, 0);
        let has_xsave = self.xcr0 != 0;
        let max = if has_xsave { MAX_BASIC } else { TOPOLOGY };
        self.add(0, CpuidResult { eax: max, ..host_0 });

        let host_1 = host(1, 0);
        let logical = if params.nr_vcpus > 1 { (1 << apic_id_shift(params).min(7)).min(0xff) } else { 1 };
        let rest = CpuidResult { eax: host_1.eax, ebx: host_1.ebx & 0xffff | logical << 16, ecx: 0, edx: 0 };
        self.add_features(host, params, (1, 0), rest);

        if self.vendor == Vendor::Intel && host_0.eax >= 2 {
            self.add(2, host(2, 0));
        }
        if self.vendor == Vendor::Intel && host_0.eax >= 4 {
            self.add_caches(host, params);
        }
        self.add_features(host, params, (6, 0), CpuidResult::default());
        if host_0.eax >= 7 {
            let max_subleaf = host(7, 0).eax.min(1);
            self.add_features(host, params, (7, 0), CpuidResult { eax: max_subleaf, ..CpuidResult::default() });
            if max_subleaf == 1 {
                self.add_features(host, params, (7, 1), CpuidResult::default());
            }
        } else {
            let none = |_, _| CpuidResult::default();
            self.add_features(&none, params, (7, 0), CpuidResult::default());
        }
        // Levels: 1 = thread, 2 = core. ECX's low byte and EDX are the caller's.
        self.add(TOPOLOGY, CpuidResult { eax: 0, ebx: 1, ecx: 1 << 8, edx: 0 });
        let shift = apic_id_shift(params);
        self.add(TOPOLOGY, CpuidResult { eax: shift, ebx: params.nr_vcpus, ecx: 2 << 8, edx: 0 });
    }

    /// Leaf 4: the host's caches. The first two levels belong to one vCPU, the others to all.
    fn add_caches(&mut self, host: HostCpuid<'_>, params: &CpuidParams) {
        let ids = (1_u32 << apic_id_shift(params).min(11)) - 1;
        for subleaf in 0..CACHE_SUBLEAVES {
            let mut cache = host(4, subleaf);
            if cache.eax & 0x1f == 0 {
                break;
            }
            let sharing = if cache.eax >> 5 & 7 <= 2 { 0 } else { ids };
            cache.eax = cache.eax & 0x3fff | sharing << 14 | ids.min(0x3f) << 26;
            self.add(4, cache);
        }
    }

    fn add_xsave(&mut self, host: HostCpuid<'_>, params: &CpuidParams) {
        if self.xcr0 == 0 {
            return;
        }
        for i in COMPONENTS.filter(|i| self.xcr0 & 1 << i != 0) {
            let r = host(0xd, i);
            self.components[i as usize] = Component { size: r.eax, offset: r.ebx, is_aligned: r.ecx & 1 << 1 != 0 };
        }
        let max_bytes = self.xsave_bytes(self.xcr0);
        self.add(0xd, CpuidResult { eax: low_u32(self.xcr0), ebx: 0, ecx: max_bytes, edx: high_u32(self.xcr0) });
        self.add_features(host, params, (0xd, 1), CpuidResult::default());
        for i in COMPONENTS {
            let c = self.components[i as usize];
            self.add(0xd, CpuidResult { eax: c.size, ebx: c.offset, ecx: u32::from(c.is_aligned) << 1, edx: 0 });
        }
    }

    fn add_hypervisor(&mut self, host: HostCpuid<'_>, params: &CpuidParams) {
        let (ebx, ecx, edx) = (leaves::SIGNATURE_EBX, leaves::SIGNATURE_ECX, leaves::SIGNATURE_EDX);
        self.add(leaves::FIRST_LEAF, CpuidResult { eax: leaves::MAX_LEAF, ebx, ecx, edx });
        self.add(leaves::LEAF_VERSION, CpuidResult { eax: VERSION, ..CpuidResult::default() });
        self.add(leaves::LEAF_HYPERCALL_PAGE, CpuidResult { eax: 1, ebx: leaves::HYPERCALL_MSR, ecx: 0, edx: 0 });

        let khz = params.tsc.khz();
        let mut eax = 0;
        if params.is_tsc_invariant {
            eax |= leaves::TIME_HOST_RELIABLE;
        }
        if params.has_rdtscp && host(EXTENDED, 0).eax > EXTENDED && host(EXTENDED + 1, 0).edx & 1 << 27 != 0 {
            eax |= leaves::TIME_RDTSCP;
        }
        self.add(leaves::LEAF_TIME, CpuidResult { eax, ebx: leaves::TSC_MODE_NEVER_EMULATE, ecx: khz, edx: 0 });
        let shift = i32::from(params.tsc.shift()).cast_unsigned();
        self.add(leaves::LEAF_TIME, CpuidResult { eax: 0, ebx: 0, ecx: params.tsc.mul(), edx: shift });
        self.add(leaves::LEAF_TIME, CpuidResult { eax: khz, ..CpuidResult::default() });

        let present = leaves::HVM_VCPU_ID_PRESENT | leaves::HVM_DOMID_PRESENT;
        self.add(leaves::LEAF_HVM, CpuidResult { eax: present, ..CpuidResult::default() });
        self.add(leaves::LEAF_WIDTH, CpuidResult::default());
    }

    fn add_extended(&mut self, host: HostCpuid<'_>, params: &CpuidParams) {
        let host_80 = host(EXTENDED, 0);
        let max = host_80.eax.clamp(EXTENDED, MAX_EXTENDED);
        self.add(EXTENDED, CpuidResult { eax: max.max(EXTENDED + 8), ..host_80 });
        let host = &|leaf, subleaf| if leaf <= max { host(leaf, subleaf) } else { CpuidResult::default() };
        let signature = host(EXTENDED + 1, 0).eax;
        self.add_features(host, params, (EXTENDED + 1, 0), CpuidResult { eax: signature, ..CpuidResult::default() });
        // Brand string, caches and TLBs; on AMD also 1 GiB TLBs and performance hints.
        for leaf in [2, 3, 4, 5, 6, 0x19, 0x1a] {
            self.add(EXTENDED + leaf, host(EXTENDED + leaf, 0));
        }
        self.add_features(host, params, (EXTENDED + 7, 0), CpuidResult::default());
        let linear_bits = 48;
        let topology = match self.vendor {
            Vendor::Amd => params.nr_vcpus.saturating_sub(1).min(0xff) | apic_id_shift(params).min(0xf) << 12,
            Vendor::Intel => 0,
        };
        let rest = CpuidResult { eax: u32::from(params.phys_bits) | linear_bits << 8, ebx: 0, ecx: topology, edx: 0 };
        self.add_features(host, params, (EXTENDED + 8, 0), rest);
        self.add_features(host, params, (MAX_EXTENDED, 0), CpuidResult::default());
    }

    /// Bytes of the standard XSAVE area for these components.
    fn xsave_bytes(&self, xcr0: u64) -> u32 {
        let enabled = COMPONENTS.filter(|i| xcr0 & 1 << i != 0).map(|i| self.components[i as usize]);
        enabled.map(|c| c.offset.saturating_add(c.size)).fold(XSAVE_MIN_BYTES, u32::max)
    }

    /// Bytes of the compacted area for these components.
    fn xsavec_bytes(&self, xcr0: u64) -> u32 {
        let enabled = COMPONENTS.filter(|i| xcr0 & 1 << i != 0).map(|i| self.components[i as usize]);
        enabled.fold(XSAVE_MIN_BYTES, |end, c| {
            let start = if c.is_aligned { end.saturating_add(63) & !63 } else { end };
            start.saturating_add(c.size)
        })
    }
}

/// Who made the CPU that answers leaf 0 like this.
fn vendor(leaf_0: &CpuidResult) -> Vendor {
    let name = [leaf_0.ebx, leaf_0.edx, leaf_0.ecx].map(u32::to_le_bytes);
    match name.as_flattened() {
        b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
        _ => Vendor::Intel,
    }
}

/// The XCR0 bits that are offered: what host and backend have, in legal groups.
fn offered_xcr0(host: HostCpuid<'_>, backend: u64) -> u64 {
    let has_xsave = host(0, 0).eax >= 0xd && host(1, 0).ecx & 1 << 26 != 0;
    if !has_xsave {
        return 0;
    }
    let r = host(0xd, 0);
    let both = (u64::from(r.edx) << 32 | u64::from(r.eax)) & backend;
    let groups = [XCR0_AVX512, XCR0_AVX, 0b11, 0b1];
    groups.into_iter().find(|group| both & group == *group).unwrap_or(0)
}

/// Bits of an APIC id below the package number: all that any vCPU uses.
fn apic_id_shift(params: &CpuidParams) -> u32 {
    u32::BITS - params.max_apic_id.leading_zeros()
}

const fn register_of(answer: &mut CpuidResult, register: Register) -> &mut u32 {
    match register {
        Register::Eax => &mut answer.eax,
        Register::Ebx => &mut answer.ebx,
        Register::Ecx => &mut answer.ecx,
        Register::Edx => &mut answer.edx,
    }
}

/// Leaves whose answer depends on ECX; the others ignore it.
const fn has_subleaves(leaf: u32) -> bool {
    matches!(leaf, 4 | 7 | TOPOLOGY | 0xd | leaves::LEAF_TIME | leaves::LEAF_HVM)
}

fn slot_of(leaf: u32) -> Option<usize> {
    let (base, first, count) = match leaf >> 28 {
        0 => (0, 0, BASIC_SLOTS),
        4 => (leaves::FIRST_LEAF, BASIC_SLOTS, HYPERVISOR_SLOTS),
        8 => (EXTENDED, BASIC_SLOTS + HYPERVISOR_SLOTS, EXTENDED_SLOTS),
        _ => return None,
    };
    let offset = (leaf - base) as usize;
    (offset < count).then_some(first + offset)
}

const _: () = assert!(ANSWERS <= u8::MAX as usize && low_u8(SLOTS as u64) as usize == SLOTS);

#[cfg(test)]
#[path = "cpuid_tests.rs"]
pub(crate) mod tests;
