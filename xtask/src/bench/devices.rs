// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest's disk and network card cost: Linux' frontends in the guest, Linux' backends in dom0.
//!
//! One boot of dom0 with one guest. The disk is memory of dom0's, so that nothing but the way to it is measured; both
//! domains' programs are `isthmus bench`.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::figures::{Figure, number};
use crate::dom0::Wanted;
use crate::initramfs::guest;
use crate::kernel::{self, Series};
use crate::launch::RunDir;
use crate::{compile, report, workspace};

/// The guest's first process.
const INIT: &str = include_str!("devices/init");
/// What dom0 runs.
const MEASURE: &str = include_str!("devices/measure");
/// Where dom0 finds the files.
const FOLDER: &str = "var/lib/isthmus/figures";
const MODULES: &[&str] = &["xen-blkfront", "xen-netfront"];
/// Halts of the CPU in one operation, from which on the ticks that passed are not only instructions.
const MAX_HALTS: f64 = 0.05;

/// What dom0 has measured.
pub(crate) struct Devices {
    costs: Vec<Value>,
}

/// Measures all of it.
pub(crate) fn measure() -> Result<Devices> {
    let dir = RunDir::create("bench-devices")?;
    let overlay = dir.path().join("overlay");
    let folder = overlay.join(FOLDER);
    fs::create_dir_all(&folder).context("making a folder for a guest")?;
    let target = workspace::target();
    let package = kernel::fetch(Series::Cloud6_1, &target)?;
    let unpacked = target.join(format!("kernels/unpacked/guest-{}.elf", package.release));
    let elf = kernel::unpack(&package.vmlinuz, &unpacked)?.path;
    fs::copy(&elf, folder.join("vmlinux")).with_context(|| format!("copying {}", elf.display()))?;
    let isthmus = fs::read(compile::dom0_tools()?.path).context("reading isthmus")?;
    let programs = [("etc/devices", INIT.as_bytes().to_vec()), ("usr/bin/isthmus", isthmus)];
    let root = guest::plain_root(&target, programs, Some((&package, MODULES)))?;
    fs::write(folder.join("initrd"), root).context("writing the guest's initial RAM disk")?;
    report::step("measuring a guest's disk and network card");
    let wanted =
        Wanted { overlays: vec![overlay], append: Some("isthmus.devices=off".to_owned()), ..Wanted::default() };
    let (output, _) = super::ask_dom0(&wanted, MEASURE)?;
    let costs = serde_json::Deserializer::from_str(&output).into_iter().collect::<Result<_, _>>();
    Ok(Devices { costs: costs.context("the devices' figures")? })
}

impl Devices {
    /// All figures; `stub` is what the counters miss of each exit.
    pub(super) fn figures(&self, stub: f64) -> Result<Vec<Figure>> {
        let figure = |cost: &Value| {
            let name = cost["operation"].as_str().context("a cost of nothing")?;
            let each = |what: &str| anyhow::Ok(number(&cost[what])? / number(&cost["repetitions"])?);
            let halts = each("halts")?;
            ensure!(halts <= MAX_HALTS, "{name}: the machine halted {halts} times, so ticks are not instructions");
            let exits = each("exits")?;
            let hypervisor = Some(each("ticks")? + exits * stub);
            Ok(Figure { hypervisor, exits, ..Figure::whole(name, each("passed")?) })
        };
        self.costs.iter().map(figure).collect()
    }

    /// How often each domain exited for each reason and made each hypercall in one operation, in words.
    pub(super) fn reasons(&self) -> Vec<String> {
        let of = |cost: &Value| {
            let repetitions = cost["repetitions"].as_f64().unwrap_or(1.0);
            let list = |what: &str| {
                let words = cost[what].as_array().into_iter().flatten().map(|counted| {
                    let each = counted[2].as_f64().unwrap_or_default() / repetitions;
                    format!("d{} {} {each:.2}", counted[0], counted[1].as_str().unwrap_or("?"))
                });
                words.collect::<Vec<_>>().join(", ")
            };
            let name = cost["operation"].as_str().unwrap_or("?");
            let [exits, ticks, calls, grants] = ["reasons", "ticks_of", "calls", "grants"].map(list);
            format!("{name}: exits: {exits}; ticks: {ticks}; hypercalls: {calls}; grants: {grants}")
        };
        self.costs.iter().map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_machine_that_halted_is_no_measure() {
        let cost = |halts: u32| {
            let reasons = json!([[0, "hlt", 20], [1, "hypercall", 10]]);
            json!({ "operation": "x", "repetitions": 10, "exits": 30, "ticks": 1000, "passed": 5000, "halts": halts,
                    "reasons": reasons, "calls": [[1, "sched_op", 10]] })
        };
        let devices = Devices { costs: vec![cost(0)] };
        let figure = Figure { hypervisor: Some(100.0 + 3.0 * 90.0), exits: 3.0, ..Figure::whole("x", 500.0) };
        assert_eq!(devices.figures(90.0).unwrap(), [figure]);
        assert_eq!(
            devices.reasons(),
            ["x: exits: d0 hlt 2.00, d1 hypercall 1.00; ticks: ; hypercalls: d1 sched_op 1.00; grants: "]
        );
        assert!(Devices { costs: vec![cost(1)] }.figures(90.0).is_err());
    }
}
