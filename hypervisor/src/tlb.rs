// SPDX-License-Identifier: MIT OR Apache-2.0
//! When a pCPU must drop cached translations before it enters a vCPU.
//!
//! Two kinds of translation outlive an exit. Those that come from a p2m are tagged with its root;
//! they are stale when the p2m's generation has moved on since this pCPU last dropped them.
//! Those that come from a guest's own page tables are tagged with the domain's VPID or ASID, which its
//! vCPUs share; they belong to the vCPU that ran here last with that tag, and are stale for every
//! other vCPU, and also for that one if it has been elsewhere meanwhile.
//!
//! One [`PcpuTlb`] per pCPU remembers both in a small table indexed by the tag. Two domains that
//! fall on one slot cost each other flushes, never correctness: a slot remembers what it
//! was filled with. No two p2ms ever have the same generation ([`crate::p2m::TlbState`]), so a root
//! frame that is freed and used again is not taken for what it was.

use crate::addr::Mfn;

/// Slots of a pCPU's memory.
const SLOTS: usize = 64;

/// What must be dropped before an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flush {
    /// Everything that comes from the p2m root to be used (INVEPT).
    pub p2m: bool,
    /// Everything that carries the tag to be used (INVVPID).
    pub tag: bool,
}

/// A vCPU's name that is never used twice while the machine is up; 0 is nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuSerial(pub u64);

/// What a vCPU wants to run with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Who runs.
    pub vcpu: VcpuSerial,
    /// Its domain's tag.
    pub tag: u16,
    /// The root of its domain's p2m.
    pub root: Mfn,
    /// That p2m's generation.
    pub generation: u64,
}

#[derive(Clone, Copy)]
struct Slot {
    tag: u16,
    vcpu: VcpuSerial,
    root: Mfn,
    generation: u64,
}

/// What one pCPU remembers.
pub struct PcpuTlb {
    slots: [Slot; SLOTS],
}

impl Default for PcpuTlb {
    /// A pCPU that has entered nobody yet.
    fn default() -> Self {
        let empty = Slot { tag: 0, vcpu: VcpuSerial(0), root: Mfn::new(u64::MAX), generation: 0 };
        Self { slots: [empty; SLOTS] }
    }
}

impl PcpuTlb {
    /// The vCPU is scheduled in here. `stayed` says that this pCPU is the one it last ran on.
    #[must_use = "the caller owes the flush"]
    pub fn schedule_in(&mut self, wanted: Wanted, stayed: bool) -> Flush {
        let slot = &mut self.slots[usize::from(wanted.tag) % SLOTS];
        let same_tag = slot.tag == wanted.tag;
        let tag = !(same_tag && slot.vcpu == wanted.vcpu && stayed);
        let p2m = !same_tag || slot.root != wanted.root || slot.generation != wanted.generation;
        *slot = Slot { tag: wanted.tag, vcpu: wanted.vcpu, root: wanted.root, generation: wanted.generation };
        Flush { p2m, tag }
    }

    /// The vCPU that is scheduled in is about to be entered.
    #[inline]
    #[must_use = "the caller owes the flush"]
    pub fn enter(&mut self, wanted: Wanted) -> Flush {
        let slot = &mut self.slots[usize::from(wanted.tag) % SLOTS];
        if slot.generation == wanted.generation && slot.root == wanted.root {
            return Flush::default();
        }
        slot.generation = wanted.generation;
        slot.root = wanted.root;
        Flush { p2m: true, tag: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn wanted(vcpu: u64, tag: u16, generation: u64) -> Wanted {
        Wanted { vcpu: VcpuSerial(vcpu), tag, root: Mfn::new(u64::from(tag) + 100), generation }
    }

    #[test]
    fn the_same_vcpu_again_drops_nothing() {
        let mut tlb = PcpuTlb::default();
        assert_eq!(tlb.schedule_in(wanted(1, 1, 5), false), Flush { p2m: true, tag: true });
        assert_eq!(tlb.schedule_in(wanted(1, 1, 5), true), Flush::default());
        assert_eq!(tlb.enter(wanted(1, 1, 5)), Flush::default());
    }

    #[test]
    fn a_sibling_drops_the_tag_but_not_the_p2m() {
        let mut tlb = PcpuTlb::default();
        let _ = tlb.schedule_in(wanted(1, 1, 5), false);
        assert_eq!(tlb.schedule_in(wanted(2, 1, 5), true), Flush { p2m: false, tag: true });
        assert_eq!(tlb.schedule_in(wanted(1, 1, 5), true), Flush { p2m: false, tag: true });
    }

    #[test]
    fn a_new_generation_drops_the_p2m_once() {
        let mut tlb = PcpuTlb::default();
        let _ = tlb.schedule_in(wanted(1, 1, 5), false);
        assert_eq!(tlb.enter(wanted(1, 1, 6)), Flush { p2m: true, tag: false });
        assert_eq!(tlb.enter(wanted(1, 1, 6)), Flush::default());
    }

    #[test]
    fn the_first_vcpu_of_a_reused_root_drops_what_the_old_one_left() {
        let mut tlb = PcpuTlb::default();
        let _ = tlb.schedule_in(wanted(1, 1, 5), false);
        assert!(tlb.schedule_in(wanted(9, 1, 1 << 40), false).p2m);
    }

    /// The hardware at its worst: nothing is dropped unless asked for.
    #[derive(Default)]
    struct Hardware {
        /// (root, generation) pairs that may still be cached.
        p2m: HashSet<(u64, u64)>,
        /// (tag, vCPU, how often that vCPU had changed its page tables) that may be cached.
        linear: HashSet<(u16, u64, u64)>,
    }

    proptest! {
        #[test]
        fn no_stale_translation_is_ever_used(steps in prop::collection::vec((0..2usize, 0..4u64, 0..3u8), 1..200)) {
            // Four vCPUs, two a domain; the two domains' tags share a slot. Two pCPUs.
            let tags = [1, 1, 65, 65];
            let mut generations = [1u64, 1 << 40];
            let mut epoch = [0u64; 4];
            let mut last: [Option<usize>; 4] = [None; 4];
            let mut tlbs = [PcpuTlb::default(), PcpuTlb::default()];
            let mut hardware = [Hardware::default(), Hardware::default()];
            for (pcpu, vcpu, action) in steps {
                let v = usize::try_from(vcpu).unwrap();
                let domain = v / 2;
                if action == 0 {
                    generations[domain] += 1;
                }
                let want = wanted(vcpu + 1, tags[v], generations[domain]);
                let mut flush = tlbs[pcpu].schedule_in(want, last[v] == Some(pcpu));
                let more = tlbs[pcpu].enter(want);
                flush.p2m |= more.p2m;
                let hw = &mut hardware[pcpu];
                let root = want.root.raw();
                if flush.p2m {
                    hw.p2m.retain(|(r, _)| *r != root);
                    hw.linear.retain(|(t, ..)| *t != want.tag);
                }
                if flush.tag {
                    hw.linear.retain(|(t, ..)| *t != want.tag);
                }
                prop_assert!(hw.p2m.iter().all(|(r, g)| *r != root || *g == want.generation));
                prop_assert!(hw.linear.iter().all(|(t, who, when)| *t != want.tag || (*who, *when) == (vcpu, epoch[v])));
                hw.p2m.insert((root, want.generation));
                if action == 2 {
                    // The guest changes its tables and flushes by itself, on this pCPU only.
                    epoch[v] += 1;
                    hw.linear.retain(|(t, ..)| *t != want.tag);
                }
                hw.linear.insert((want.tag, vcpu, epoch[v]));
                last[v] = Some(pcpu);
            }
        }
    }
}
