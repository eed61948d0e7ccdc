// SPDX-License-Identifier: MIT OR Apache-2.0
//! The figures that the hypervisor is held to, measured as `xtask bench` does: in instructions, so that they are the
//! same on each machine and whatever else it does. The release build is measured, not the one of the other checks.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use isthmus_tests::verdict::Verdict;

use super::{Judged, Unit, log_file};
use crate::bench;
use crate::emulator::Emulator;
use crate::workspace;

/// What a null hypercall may cost on VT-x, in Bochs.
const NULL_ON_VMX: f64 = 260.0;

/// What 32 requests at a time are short of; the reason is in the book.
const SHORT_DEPTH_32: Held = Held::ButExits("disk_random_read_4k_depth_32", 1.2);

/// One measurement.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Figures {
    /// Single operations of micro-guests, on SVM.
    OnSvm,
    /// The same on VT-x.
    OnVmx,
    /// dom0's start, and what its user space does, on SVM.
    Dom0,
    /// Guests that dom0 makes, on SVM.
    Guests,
    /// A guest's disk and network card, on SVM.
    Devices,
}

/// What a figure is held against.
#[derive(Clone, Copy)]
enum Held {
    /// Its goal in `xtask bench`.
    Goal(&'static str),
    /// Its goal but for the exits, which are out of reach and held at so many. The book says why.
    ButExits(&'static str, f64),
    /// So many instructions.
    AtMost(&'static str, f64),
    /// All of them what the book says.
    Book,
}

/// All of them, the longest first.
pub(super) const ALL: [Figures; 5] = [Figures::Guests, Figures::Devices, Figures::Dom0, Figures::OnVmx, Figures::OnSvm];

impl Figures {
    /// The named checks that the measurement is for, with the figures that each holds.
    fn checks(self) -> &'static [(&'static str, &'static [Held])] {
        match self {
            Self::OnSvm => &[
                ("figures/null-hypercall/svm", &[Held::Goal("null_hypercall")]),
                ("figures/event-round-trip/svm", &[Held::Goal("event_round_trip")]),
                ("figures/event-round-trip-between-domains/svm", &[Held::Goal("event_round_trip_domains")]),
                ("figures/grant-copy/svm", &[Held::Goal("grant_copy_1x4096"), Held::Goal("grant_copy_32x64")]),
                ("figures/grant-map/svm", &[Held::Goal("grant_map_unmap_1"), Held::Goal("grant_map_unmap_32")]),
            ],
            Self::OnVmx => &[("figures/null-hypercall/vmx", &[Held::AtMost("null_hypercall", NULL_ON_VMX)])],
            Self::Dom0 => &[
                (
                    "figures/dom0/svm",
                    &[Held::Goal("dom0_null_hypercall"), Held::Goal("dom0_boot"), Held::Goal("entry_to_dom0_built")],
                ),
                ("figures/nanosleep/svm", &[Held::Goal("nanosleep_1ms")]),
                ("figures/book/svm", &[Held::Book]),
            ],
            Self::Guests => &[
                ("figures/guests-create/svm", &[Held::Goal("create_256"), Held::Goal("create_256_dirty")]),
                ("figures/guests-boot/svm", &[Held::Goal("guest_boot_6.1"), Held::Goal("guest_boot_6.12")]),
                ("figures/guests-clock/svm", &[Held::Goal("guest_clock_6.1"), Held::Goal("guest_clock_6.12")]),
                ("figures/guests-foreign-map/svm", &[Held::Goal("dom0_foreign_map_256")]),
                ("figures/guests-memory/svm", &[Held::Goal("guest_overhead_bytes")]),
                ("figures/guests-book/svm", &[Held::Book]),
            ],
            Self::Devices => &[
                ("figures/devices-disk-depth-1/svm", &[Held::Goal("disk_random_read_4k_depth_1")]),
                ("figures/devices-disk-depth-32/svm", &[SHORT_DEPTH_32]),
                ("figures/devices-disk-in-order/svm", &[Held::Goal("disk_read_mib"), Held::Goal("disk_write_mib")]),
                ("figures/devices-tcp-from-guest/svm", &[Held::Goal("tcp_from_guest_mib")]),
                ("figures/devices-tcp-to-guest/svm", &[Held::Goal("tcp_to_guest_mib")]),
                ("figures/devices-tcp-round-trip/svm", &[Held::Goal("tcp_round_trip")]),
                ("figures/devices-book/svm", &[Held::Book]),
            ],
        }
    }

    fn measure(self) -> Result<bench::Report> {
        let mut report = bench::micro_guest(if self == Self::OnVmx { Emulator::Bochs } else { Emulator::Qemu })?;
        if self == Self::Dom0 {
            report.dom0 = Some(bench::in_dom0()?);
        }
        if self == Self::Guests {
            report.add_guests(&bench::of_guests()?)?;
        }
        if self == Self::Devices {
            report.add_devices(&bench::of_devices()?)?;
        }
        Ok(report)
    }
}

impl Held {
    /// In words, if it is worse.
    fn missed(self, report: &bench::Report) -> Result<Option<String>> {
        match self {
            Self::Goal(name) => report.missed(name),
            Self::ButExits(name, exits) => report.missed_but_exits(name, exits),
            Self::AtMost(name, most) => above(report, name, most),
            Self::Book => {
                let page = fs::read_to_string(workspace::root().join(bench::BOOK))?;
                let found = report.differences_from(&page);
                Ok((!found.is_empty()).then(|| format!("{}; `cargo xtask bench --book` writes them", found.join("; "))))
            }
        }
    }
}

/// Says it in words if an operation costs more than `most`.
fn above(report: &bench::Report, name: &str, most: f64) -> Result<Option<String>> {
    let cost = report.cost(name)?;
    Ok((cost > most).then(|| format!("{name}: {cost:.0} instructions, at most {most:.0} are allowed")))
}

impl Unit for Figures {
    fn names(&self) -> Vec<String> {
        self.checks().iter().map(|(name, _)| (*name).to_owned()).collect()
    }

    fn run(&self, logs: &Path) -> Result<Vec<Judged>> {
        let start = Instant::now();
        let report = self.measure()?;
        let judge = |(name, held): &(&str, &[Held])| {
            let log = log_file(logs, name);
            let missed = held.iter().filter_map(|held| held.missed(&report).transpose()).collect::<Result<Vec<_>>>()?;
            fs::write(&log, format!("{}{}\n", report.to_text(), missed.join("\n")))?;
            let verdict = if missed.is_empty() { Verdict::Pass(0) } else { Verdict::Fail(missed.join("; ")) };
            Ok(Judged { name: (*name).to_owned(), verdict, took: start.elapsed(), log })
        };
        self.checks().iter().map(judge).collect()
    }
}
