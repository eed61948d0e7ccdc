// SPDX-License-Identifier: MIT OR Apache-2.0
//! The figures that the hypervisor is held to, measured as `xtask bench` does: in instructions, so that they are the
//! same on each machine and whatever else it does. The release build is measured, not the one of the other checks.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use isthmus_tests::verdict::Verdict;

use super::{Judged, Unit, log_file};
use crate::bench;
use crate::emulator::Emulator;

/// What a null hypercall may cost on VT-x, in Bochs.
const NULL_ON_VMX: f64 = 260.0;
/// What it may cost on SVM.
const NULL_ON_SVM: f64 = 200.0;

/// One measurement.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Figures {
    /// A hypercall that only answers, on SVM.
    NullOnSvm,
    /// The same on VT-x.
    NullOnVmx,
    /// dom0's start, and a hypercall from its user space, on SVM.
    Dom0,
}

/// All of them, the longest first.
pub(super) const ALL: [Figures; 3] = [Figures::Dom0, Figures::NullOnVmx, Figures::NullOnSvm];

impl Figures {
    fn name(self) -> &'static str {
        match self {
            Self::NullOnSvm => "figures/null-hypercall/svm",
            Self::NullOnVmx => "figures/null-hypercall/vmx",
            Self::Dom0 => "figures/dom0/svm",
        }
    }

    /// Measures; returns what is worse than its goal, and all figures for the log.
    fn measure(self) -> Result<(Vec<String>, String)> {
        let mut report = bench::micro_guest(if self == Self::NullOnVmx { Emulator::Bochs } else { Emulator::Qemu })?;
        let mut missed = Vec::new();
        match self {
            Self::NullOnSvm => missed.extend(above(&report, "null_hypercall", NULL_ON_SVM)?),
            Self::NullOnVmx => missed.extend(above(&report, "null_hypercall", NULL_ON_VMX)?),
            Self::Dom0 => {
                report.dom0 = Some(bench::in_dom0()?);
                missed.extend(above(&report, "dom0_null_hypercall", NULL_ON_SVM)?);
                for name in ["dom0_boot", "entry_to_dom0_built"] {
                    missed.extend(report.missed(name)?);
                }
            }
        }
        Ok((missed, report.to_text()))
    }
}

/// Says it in words if an operation costs more than `most`.
fn above(report: &bench::Report, name: &str, most: f64) -> Result<Option<String>> {
    let cost = report.cost(name)?;
    Ok((cost > most).then(|| format!("{name}: {cost:.0} instructions, at most {most:.0} are allowed")))
}

impl Unit for Figures {
    fn names(&self) -> Vec<String> {
        vec![self.name().to_owned()]
    }

    fn run(&self, logs: &Path) -> Result<Vec<Judged>> {
        let (start, log) = (Instant::now(), log_file(logs, self.name()));
        let (missed, mut text) = self.measure()?;
        // Writing to a string does not fail.
        let _ = missed.iter().try_for_each(|line| writeln!(text, "{line}"));
        fs::write(&log, text)?;
        let verdict = if missed.is_empty() { Verdict::Pass(0) } else { Verdict::Fail(missed.join("; ")) };
        Ok(vec![Judged { name: self.name().to_owned(), verdict, took: start.elapsed(), log }])
    }
}
