// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the figures are held against: the project's goals, and what Xen spends.

use super::figures::grouped;

/// What an operation is held against.
#[derive(Clone, Copy)]
pub(super) struct Goal {
    pub(super) name: &'static str,
    /// At most so many instructions of the hypervisor.
    pub(super) goal: Option<f64>,
    /// At most so many exits.
    pub(super) exits: Option<f64>,
    /// At most so many instructions of the whole machine, or bytes.
    pub(super) whole: Option<f64>,
    /// At most so many times what it costs without a hypervisor.
    pub(super) native: Option<f64>,
    /// What Xen 4.17 spends under the same emulator, measured with Linux as the guest: in the hypervisor, or where our goal is
    /// for the whole machine, there.
    pub(super) xen: Option<f64>,
}

const NONE: Goal = Goal { name: "", goal: None, exits: None, whole: None, native: None, xen: None };

const fn goal(name: &'static str, goal: f64, xen: f64) -> Goal {
    Goal { name, goal: Some(goal), xen: Some(xen), ..NONE }
}

const fn whole(name: &'static str, whole: f64, xen: f64) -> Goal {
    Goal { name, whole: Some(whole), xen: Some(xen), ..NONE }
}

/// A look at the clock must not need the hypervisor.
const fn clock(name: &'static str) -> Goal {
    Goal { name, exits: Some(0.001), native: Some(1.5), ..NONE }
}

const GOALS: &[Goal] = &[
    goal("null_hypercall", 200.0, 770.0),
    goal("event_round_trip", 3000.0, 15_971.0),
    Goal { exits: Some(4.2), ..goal("event_round_trip_domains", 10_000.0, 76_925.0) },
    goal("grant_map_unmap_1", 3000.0, 25_584.0),
    goal("grant_map_unmap_32", 40_000.0, 738_658.0),
    goal("grant_copy_1x4096", 1500.0, 11_616.0),
    goal("grant_copy_32x64", 16_000.0, 331_237.0),
    goal("foreign_map_unmap_256", 600_000.0, 8_200_000.0),
    goal("dom0_null_hypercall", 200.0, 770.0),
    Goal { exits: Some(4.0), ..goal("nanosleep_1ms", 8000.0, 56_831.0) },
    Goal { exits: Some(30_000.0), ..goal("dom0_boot", 25e6, 171e6) },
    // Xen's without its unpacking of the kernel.
    goal("entry_to_dom0_built", 60e6, 1050e6),
    // Xen's without its decoder of instructions, which ran for most of these.
    whole("create_256", 90e6, 797e6),
    whole("create_256_dirty", 120e6, 797e6),
    goal("dom0_foreign_map_256", 600_000.0, 8_200_000.0),
    Goal { exits: Some(6000.0), ..goal("guest_boot_6.1", 15e6, 147e6) },
    Goal { exits: Some(6000.0), ..goal("guest_boot_6.12", 15e6, 147e6) },
    clock("guest_clock_6.1"),
    clock("guest_clock_6.12"),
    // With Linux' drivers on both sides. Xen's for the hypervisor.
    Goal { whole: Some(48_000.0), exits: Some(5.2), ..goal("disk_random_read_4k_depth_1", 8000.0, 77_797.0) },
    Goal { whole: Some(14_800.0), exits: Some(1.0), ..goal("disk_random_read_4k_depth_32", 1500.0, 3310.0) },
    Goal { whole: Some(850_000.0), exits: Some(15.0), ..goal("disk_read_mib", 40_000.0, 87_428.0) },
    Goal { whole: Some(1_150_000.0), exits: Some(15.0), ..goal("disk_write_mib", 40_000.0, 141_311.0) },
    Goal { whole: Some(2_100_000.0), exits: Some(30.0), ..goal("tcp_to_guest_mib", 400_000.0, 6_133_695.0) },
    Goal { whole: Some(2_100_000.0), exits: Some(30.0), ..goal("tcp_from_guest_mib", 400_000.0, 7_751_994.0) },
    Goal { whole: Some(80_000.0), exits: Some(7.0), ..goal("tcp_round_trip", 20_000.0, 129_641.0) },
    // With the page tables and the first grant frames.
    whole("guest_overhead_bytes", 64.0 * 1024.0, 2048.0 * 1024.0),
];

impl Goal {
    /// That of an operation, if it has one.
    pub(super) fn of(name: &str) -> Option<Self> {
        GOALS.iter().find(|goal| goal.name == name).copied()
    }

    /// In words: for the hypervisor, or the whole where only that is known; all three where there are three.
    pub(super) fn in_words(&self) -> String {
        match (self.whole, self.goal, self.exits) {
            (Some(whole), Some(goal), Some(exits)) => format!("{} / {} / {exits}", grouped(whole), grouped(goal)),
            (whole, goal, _) => goal.or(whole).map_or_else(String::new, grouped),
        }
    }
}
