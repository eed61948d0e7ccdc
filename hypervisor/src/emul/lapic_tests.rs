// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tests of [`super`], with a naive model of priorities.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::time::TscScale;
use crate::vcpu::NEVER;

const CLOCK: TimerClock = clock(1_000_000);

/// One tick is one nanosecond.
const fn clock(now: u64) -> TimerClock {
    let Some(scale) = TscScale::from_khz(1_000_000) else { unreachable!() };
    TimerClock { now: Ticks::new(now), tsc_offset: 5_000, scale }
}

fn enabled(id: u32) -> (Lapic, LapicShared) {
    let (mut lapic, shared) = (Lapic::new(id), LapicShared::default());
    assert_eq!(lapic.write(reg::SVR, 0x1ff, &shared, &CLOCK), Ok(Effect::None));
    (lapic, shared)
}

fn ipi(lapic: &mut Lapic, shared: &LapicShared, icr: u64) -> Option<Ipi> {
    match lapic.write(reg::ICR, icr, shared, &CLOCK) {
        Ok(Effect::Ipi(ipi)) => Some(ipi),
        Ok(_) => None,
        Err(AccessFault) => panic!("{icr:#x} faults"),
    }
}

#[test]
fn registers_show_what_linux_expects_at_boot() {
    let (lapic, shared) = (Lapic::new(0x23), LapicShared::default());
    let read = |register| lapic.read(register, &shared, &CLOCK);
    assert_eq!(read(reg::ID), Ok(0x23));
    assert_eq!(read(reg::VERSION), Ok(0x5_0014));
    assert_eq!(read(reg::LDR), Ok(0x2_0008));
    assert_eq!(read(reg::SVR), Ok(0xff));
    for register in reg::ISR..reg::IRR_END {
        assert_eq!(read(register), Ok(0));
    }
    for register in reg::LVT_TIMER..=reg::LVT_ERROR {
        assert_eq!(read(register), Ok(0x1_0000));
    }
    for register in [0, 1, 0xb, 0xe, 0x29, 0x2f, 0x31, 0x3a, 0x3f, 0x40, 0xff] {
        assert_eq!(read(register), Err(AccessFault), "{register:#x}");
    }
}

#[test]
fn reserved_bits_and_read_only_registers_fault() {
    let (mut lapic, shared) = enabled(0);
    let bad = [
        (reg::ID, 1),
        (reg::VERSION, 0),
        (reg::PPR, 0),
        (reg::LDR, 0),
        (reg::EOI, 1),
        (reg::TPR, 0x100),
        (reg::SVR, 0x1000),
        (reg::ESR, 1),
        (reg::ISR, 0),
        (reg::IRR, 0),
        (reg::ICR, 1 << 12),
        (reg::ICR, 1 << 20),
        (reg::LVT_TIMER, 3 << 17),
        (reg::LVT_TIMER, 1 << 19),
        (reg::LVT_ERROR, 1 << 17),
        (reg::TIMER_CURRENT, 0),
        (reg::TIMER_DIVIDE, 4),
        (reg::SELF_IPI, 0x100),
        (reg::TPR, 1 << 32),
        (0x2f, 0),
    ];
    for (register, value) in bad {
        assert_eq!(lapic.write(register, value, &shared, &CLOCK), Err(AccessFault), "{register:#x} = {value:#x}");
    }
}

#[test]
fn a_disabled_apic_takes_no_interrupts_but_signals() {
    let (mut lapic, shared) = (Lapic::new(0), LapicShared::default());
    assert!(!shared.post(0x40, Trigger::Edge));
    let _ = lapic.write(reg::SVR, 0x1ff, &shared, &CLOCK);
    assert_eq!(lapic.highest_deliverable(&shared), None);
    assert!(shared.post(0x40, Trigger::Edge));
    let _ = lapic.write(reg::LVT_ERROR, 0xfe, &shared, &CLOCK);
    let _ = lapic.write(reg::SVR, 0xff, &shared, &CLOCK);
    assert_eq!(lapic.highest_deliverable(&shared), None);
    assert_eq!(lapic.read(reg::LVT_ERROR, &shared, &CLOCK), Ok(0x1_00fe));
    shared.post_nmi();
    assert_eq!(shared.take_signals(), Signals { nmi: true, ..Signals::default() });
}

#[test]
fn signals_are_taken_once_and_init_discards_an_older_sipi() {
    let shared = LapicShared::default();
    shared.post_sipi(0x12);
    shared.post_init();
    assert!(shared.has_signals());
    assert_eq!(shared.take_signals(), Signals { init: true, ..Signals::default() });
    shared.post_init();
    shared.post_sipi(0x99);
    shared.post_sipi(0x08);
    assert_eq!(shared.take_signals(), Signals { nmi: false, init: true, sipi: Some(8) });
    assert_eq!(shared.take_signals(), Signals::default());
    assert!(!shared.has_signals());
}

#[test]
fn init_clears_everything_but_the_id() {
    let (mut lapic, shared) = enabled(7);
    shared.post(0x40, Trigger::Level);
    lapic.accept(0x40, &shared);
    shared.post(0x50, Trigger::Edge);
    lapic.set_cr8(3).unwrap();
    lapic.reset(&shared);
    assert_eq!(lapic.id, 7);
    assert!(!lapic.is_enabled());
    assert_eq!(lapic.cr8(), 0);
    assert!(!shared.post(0x60, Trigger::Edge));
    let _ = lapic.write(reg::SVR, 0x1ff, &shared, &CLOCK);
    assert_eq!(lapic.highest_deliverable(&shared), None);
    assert_eq!(lapic.write(reg::EOI, 0, &shared, &CLOCK), Ok(Effect::None));
}

#[test]
fn only_level_interrupts_report_their_eoi() {
    let (mut lapic, shared) = enabled(0);
    shared.post(0x40, Trigger::Level);
    shared.post(0x50, Trigger::Edge);
    lapic.accept(0x50, &shared);
    assert_eq!(lapic.write(reg::EOI, 0, &shared, &CLOCK), Ok(Effect::None));
    lapic.accept(0x40, &shared);
    assert_eq!(lapic.read(reg::TMR + 2, &shared, &CLOCK), Ok(1));
    assert_eq!(lapic.write(reg::EOI, 0, &shared, &CLOCK), Ok(Effect::LevelEoi(0x40)));
    shared.post(0x40, Trigger::Edge);
    lapic.accept(0x40, &shared);
    assert_eq!(lapic.write(reg::EOI, 0, &shared, &CLOCK), Ok(Effect::None));
}

#[test]
fn what_linux_writes_to_the_icr_becomes_these_ipis() {
    let (mut lapic, shared) = enabled(2);
    let to = |destination, kind| Some(Ipi { destination, kind });
    use Destination::{All, Logical, Others, Physical};
    let cases = [
        (1 << 32 | 0xc500, to(Physical(1), IpiKind::Init)),
        (1 << 32 | 0x8500, None),
        (1 << 32 | 0x0699, to(Physical(1), IpiKind::Startup(0x99))),
        (3 << 32 | 0x00f6, to(Physical(3), IpiKind::Fixed(0xf6))),
        (3 << 32 | 0x0400, to(Physical(3), IpiKind::Nmi)),
        (0xc_00f8, to(Others, IpiKind::Fixed(0xf8))),
        (0x8_0400, to(All, IpiKind::Nmi)),
        (0xffff_ffff << 32 | 0x40, to(All, IpiKind::Fixed(0x40))),
        (0x0001_0006 << 32 | 0x0840, to(Logical { cluster: 1, members: 6 }, IpiKind::Fixed(0x40))),
        (4 << 32 | 0x0140, to(Physical(4), IpiKind::LowestPriority(0x40))),
        (1 << 32 | 0x0200, None),
        (1 << 32 | 0x0700, None),
        (0x4_0400, None),
    ];
    for (icr, expected) in cases {
        assert_eq!(ipi(&mut lapic, &shared, icr), expected, "{icr:#x}");
        assert_eq!(lapic.read(reg::ICR, &shared, &CLOCK), Ok(icr));
    }
    assert_eq!(lapic.highest_deliverable(&shared), None);
    assert_eq!(ipi(&mut lapic, &shared, 0x4_0044), None);
    assert_eq!(lapic.highest_deliverable(&shared), Some(0x44));
    let _ = lapic.write(reg::SELF_IPI, 0xf6, &shared, &CLOCK);
    assert_eq!(lapic.highest_deliverable(&shared), Some(0xf6));
}

#[test]
fn destinations_match_by_id_cluster_and_shorthand() {
    use Destination::{All, Logical, Others, Physical};
    assert!(Physical(5).includes(5, 0) && !Physical(5).includes(4, 0));
    let logical = Logical { cluster: 2, members: 0b1001 };
    assert!(logical.includes(0x20, 0) && logical.includes(0x23, 0x23));
    assert!(!logical.includes(0x21, 0) && !logical.includes(0x10, 0) && !logical.includes(0x3, 0));
    assert!(All.includes(1, 1) && Others.includes(1, 2) && !Others.includes(1, 1));
}

#[test]
fn illegal_vectors_are_reported_in_the_esr() {
    let (mut lapic, shared) = enabled(0);
    let _ = lapic.write(reg::ICR, 3 << 32 | 5, &shared, &CLOCK);
    let _ = lapic.write(reg::SELF_IPI, 15, &shared, &CLOCK);
    assert_eq!(lapic.read(reg::ESR, &shared, &CLOCK), Ok(0));
    let _ = lapic.write(reg::ESR, 0, &shared, &CLOCK);
    assert_eq!(lapic.read(reg::ESR, &shared, &CLOCK), Ok(1 << 5));
    let _ = lapic.write(reg::ESR, 0, &shared, &CLOCK);
    assert_eq!(lapic.read(reg::ESR, &shared, &CLOCK), Ok(0));
    assert!(!shared.post(15, Trigger::Edge));
}

#[test]
fn the_one_shot_timer_fires_once() {
    let (mut lapic, shared) = enabled(0);
    let _ = lapic.write(reg::LVT_TIMER, 0xec, &shared, &clock(1000));
    let _ = lapic.write(reg::TIMER_DIVIDE, 0b1011, &shared, &clock(1000));
    let _ = lapic.write(reg::TIMER_INITIAL, 100, &shared, &clock(1000));
    assert_eq!(lapic.next_deadline(), Ticks::new(2000));
    assert_eq!(lapic.read(reg::TIMER_CURRENT, &shared, &clock(1250)), Ok(75));
    assert!(!lapic.expire(&shared, Ticks::new(1999)));
    assert!(lapic.expire(&shared, Ticks::new(2000)));
    assert_eq!(lapic.highest_deliverable(&shared), Some(0xec));
    assert_eq!(lapic.next_deadline(), NEVER);
    assert_eq!(lapic.read(reg::TIMER_CURRENT, &shared, &clock(2500)), Ok(0));
    let _ = lapic.write(reg::TIMER_INITIAL, 100, &shared, &clock(3000));
    let _ = lapic.write(reg::TIMER_INITIAL, 0, &shared, &clock(3000));
    assert_eq!(lapic.next_deadline(), NEVER);
}

#[test]
fn dividers_are_powers_of_two() {
    for (code, divider) in [(0b1011, 1), (0, 2), (1, 4), (2, 8), (3, 16), (0b1000, 32), (0b1001, 64), (0b1010, 128)] {
        let (mut lapic, shared) = enabled(0);
        let _ = lapic.write(reg::TIMER_DIVIDE, code, &shared, &clock(0));
        let _ = lapic.write(reg::TIMER_INITIAL, 1000, &shared, &clock(0));
        assert_eq!(lapic.next_deadline(), Ticks::new(1000 * BUS_NS * divider));
    }
}

use super::super::lapic_timer::{BUS_NS, MIN_PERIOD_NS};

#[test]
fn the_periodic_timer_keeps_its_beat_and_merges_what_was_missed() {
    let (mut lapic, shared) = enabled(0);
    let _ = lapic.write(reg::LVT_TIMER, 1 << 17 | 0x40, &shared, &clock(0));
    let _ = lapic.write(reg::TIMER_DIVIDE, 0b1011, &shared, &clock(0));
    let _ = lapic.write(reg::TIMER_INITIAL, 10_000, &shared, &clock(0));
    assert!(lapic.expire(&shared, Ticks::new(100_007)));
    assert_eq!(lapic.next_deadline(), Ticks::new(200_000));
    assert!(!lapic.expire(&shared, Ticks::new(100_008)));
    lapic.accept(0x40, &shared);
    assert!(lapic.expire(&shared, Ticks::new(750_000)));
    assert_eq!(lapic.next_deadline(), Ticks::new(800_000));
}

#[test]
fn a_period_has_a_lower_bound() {
    let (mut lapic, shared) = enabled(0);
    let _ = lapic.write(reg::LVT_TIMER, 1 << 17 | 0x40, &shared, &clock(0));
    let _ = lapic.write(reg::TIMER_INITIAL, 1, &shared, &clock(0));
    assert_eq!(lapic.next_deadline(), Ticks::new(MIN_PERIOD_NS));
    assert!(lapic.expire(&shared, Ticks::new(MIN_PERIOD_NS)));
    assert_eq!(lapic.next_deadline(), Ticks::new(2 * MIN_PERIOD_NS));
    let _ = lapic.write(reg::TIMER_DIVIDE, 1, &shared, &clock(MIN_PERIOD_NS + 10));
    assert!(lapic.next_deadline() >= Ticks::new(2 * MIN_PERIOD_NS));
}

#[test]
fn a_masked_timer_runs_silently() {
    let (mut lapic, shared) = enabled(0);
    let _ = lapic.write(reg::TIMER_INITIAL, 1, &shared, &clock(0));
    assert!(!lapic.expire(&shared, Ticks::new(1_000_000)));
    assert_eq!(lapic.highest_deliverable(&shared), None);
    assert_eq!(lapic.next_deadline(), NEVER);
}

#[test]
fn tsc_deadlines_are_guest_ticks() {
    let (mut lapic, shared) = enabled(0);
    lapic.set_tsc_deadline(9_000, &clock(1000));
    assert_eq!(lapic.next_deadline(), NEVER, "not in deadline mode");
    let _ = lapic.write(reg::LVT_TIMER, 2 << 17 | 0xec, &shared, &clock(1000));
    let _ = lapic.write(reg::TIMER_INITIAL, 100, &shared, &clock(1000));
    assert_eq!(lapic.next_deadline(), NEVER, "the count does nothing in deadline mode");
    // The guest is 5000 ticks ahead.
    lapic.set_tsc_deadline(9_000, &clock(1000));
    assert_eq!(lapic.tsc_deadline(), 9_000);
    assert_eq!(lapic.next_deadline(), Ticks::new(4000));
    lapic.set_tsc_deadline(5_500, &clock(1000));
    assert_eq!(lapic.next_deadline(), Ticks::new(1000), "a past deadline is due at once");
    assert!(lapic.expire(&shared, Ticks::new(1000)));
    assert_eq!(lapic.tsc_deadline(), 0);
    lapic.set_tsc_deadline(u64::MAX, &clock(1000));
    lapic.set_tsc_deadline(0, &clock(1000));
    assert_eq!(lapic.next_deadline(), NEVER);
}

/// The same rules on ordered sets.
#[derive(Default)]
struct Model {
    irr: BTreeSet<u8>,
    isr: BTreeSet<u8>,
    level: BTreeSet<u8>,
    tpr: u8,
}

impl Model {
    fn deliverable(&self) -> Option<u8> {
        let busy = self.isr.last().copied().unwrap_or(0).max(self.tpr) >> 4;
        self.irr.last().copied().filter(|v| v >> 4 > busy)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Post(u8, bool),
    Deliver,
    Eoi,
    Tpr(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (any::<u8>(), any::<bool>()).prop_map(|(v, level)| Step::Post(v, level)),
        Just(Step::Deliver),
        Just(Step::Eoi),
        any::<u8>().prop_map(Step::Tpr),
    ]
}

proptest! {
    #[test]
    fn priorities_follow_the_model(steps in prop::collection::vec(step(), 1..200)) {
        let (mut lapic, shared) = enabled(0);
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Post(v, level) => {
                    let fresh = v >= 16 && model.irr.insert(v);
                    if v >= 16 {
                        if level { model.level.insert(v); } else { model.level.remove(&v); }
                    }
                    let trigger = if level { Trigger::Level } else { Trigger::Edge };
                    prop_assert_eq!(shared.post(v, trigger), fresh);
                }
                Step::Deliver => {
                    let vector = model.deliverable();
                    prop_assert_eq!(lapic.highest_deliverable(&shared), vector);
                    if let Some(v) = vector {
                        lapic.accept(v, &shared);
                        model.irr.remove(&v);
                        model.isr.insert(v);
                    }
                }
                Step::Eoi => {
                    let ended = model.isr.pop_last().filter(|v| model.level.contains(v));
                    let expected = ended.map_or(Effect::None, Effect::LevelEoi);
                    prop_assert_eq!(lapic.write(reg::EOI, 0, &shared, &CLOCK), Ok(expected));
                }
                Step::Tpr(tpr) => {
                    model.tpr = tpr;
                    let _ = lapic.write(reg::TPR, u64::from(tpr), &shared, &CLOCK);
                }
            }
            for i in 0..8_u8 {
                let bits = |set: &BTreeSet<u8>| {
                    set.iter().filter(|v| *v / 32 == i).fold(0_u64, |bits, v| bits | 1 << (v % 32))
                };
                prop_assert_eq!(lapic.read(reg::IRR + i, &shared, &CLOCK), Ok(bits(&model.irr)));
                prop_assert_eq!(lapic.read(reg::ISR + i, &shared, &CLOCK), Ok(bits(&model.isr)));
                prop_assert_eq!(lapic.read(reg::TMR + i, &shared, &CLOCK), Ok(bits(&model.level)));
            }
        }
    }

    #[test]
    fn no_register_access_panics(ops in prop::collection::vec((any::<u8>(), any::<u64>(), any::<u64>()), 1..100)) {
        let (mut lapic, shared) = enabled(3);
        for (register, value, now) in ops {
            for value in [value, value & 0xff, value & 0x7_00ff] {
                let _ = lapic.write(register, value, &shared, &clock(now)).map(|_| ());
                let _ = lapic.write(0x20 | register & 0x1f, value, &shared, &clock(now)).map(|_| ());
            }
            lapic.set_tsc_deadline(value, &clock(now));
            lapic.expire(&shared, Ticks::new(now));
            let _ = lapic.read(register, &shared, &clock(now));
        }
    }
}
