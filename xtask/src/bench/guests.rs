// SPDX-License-Identifier: MIT OR Apache-2.0
//! What guests cost that dom0 makes: making them, their start, their clock, dom0's look into their memory.
//!
//! One boot of dom0 with files of its own: the kernels of two series, unpacked and not, and an initial RAM disk whose
//! first process rests until it is told to measure ([`INIT`]). The same kernel and RAM disk, started by the emulator
//! without a hypervisor, say what the clock costs natively.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::figures::{Figure, number};
use super::{DOM0_LIMIT, machine};
use crate::console::{self, Log, Until};
use crate::dom0::Wanted;
use crate::emulator::{self, Boot, Emulator};
use crate::initramfs::guest;
use crate::kernel::{self, Package, Series};
use crate::launch::RunDir;
use crate::{compile, report, workspace};

/// The guest's first process.
const INIT: &str = include_str!("guests/init");
/// What dom0 runs.
const MEASURE: &str = include_str!("guests/measure");
/// Where dom0 finds the files.
const FOLDER: &str = "var/lib/isthmus/figures";
/// The series that are measured, with their names in the figures.
const SERIES: [(&str, Series); 2] = [("6.1", Series::Cloud6_1), ("6.12", Series::Cloud6_12)];
const NATIVE: &str = "console=ttyS0 rdinit=/etc/figures figures=now clocksource=tsc tsc=reliable";
const NATIVE_MEMORY_MIB: u32 = 256;

/// What dom0 and the native boots have said.
pub(crate) struct Guests {
    values: Vec<(String, Value)>,
    /// Ticks of a look at the clock without a hypervisor, by series.
    native_clock: Vec<(&'static str, f64)>,
}

/// Measures all of it.
pub(crate) fn measure() -> Result<Guests> {
    let dir = RunDir::create("bench-guests")?;
    let files = Files::make(dir.path())?;
    let mut native_clock = Vec::new();
    for (name, elf) in &files.kernels {
        report::step(format!("measuring Linux {name} without a hypervisor"));
        native_clock.push((*name, native(elf, &files.initrd, dir.path())?));
    }
    report::step("measuring guests of dom0");
    let wanted =
        Wanted { overlays: vec![files.overlay], append: Some("isthmus.devices=off".to_owned()), ..Wanted::default() };
    let (output, _) = super::ask_dom0(&wanted, MEASURE)?;
    Ok(Guests { values: pairs(&output)?, native_clock })
}

/// The files of the guests that are measured.
struct Files {
    overlay: PathBuf,
    initrd: PathBuf,
    kernels: Vec<(&'static str, PathBuf)>,
}

impl Files {
    fn make(dir: &Path) -> Result<Self> {
        let overlay = dir.join("overlay");
        let folder = overlay.join(FOLDER);
        fs::create_dir_all(&folder).context("making a folder for guests")?;
        let target = workspace::target();
        let (initrd, mut kernels) = (folder.join("initrd"), Vec::new());
        let copy = |from: &Path, name: String| {
            fs::copy(from, folder.join(name)).with_context(|| format!("copying {}", from.display()))
        };
        for (name, series) in SERIES {
            let Package { vmlinuz, release, .. } = kernel::fetch(series, &target)?;
            let elf = kernel::unpack(&vmlinuz, &target.join(format!("kernels/unpacked/guest-{release}.elf")))?.path;
            copy(&elf, format!("vmlinux-{name}"))?;
            copy(&vmlinuz, format!("vmlinuz-{name}"))?;
            kernels.push((name, elf));
        }
        let isthmus = fs::read(compile::dom0_tools()?.path).context("reading isthmus")?;
        let more = [("etc/figures", INIT.as_bytes().to_vec()), ("usr/bin/isthmus", isthmus)];
        fs::write(&initrd, guest::plain_root(&target, more, None)?).context("writing the guests' initial RAM disk")?;
        Ok(Self { overlay, initrd, kernels })
    }
}

/// Starts a kernel without a hypervisor; returns the ticks of a look at its clock.
fn native(kernel: &Path, initrd: &Path, dir: &Path) -> Result<f64> {
    let boot = Boot::Pvh { kernel: kernel.to_owned(), bundle: Some(initrd.to_owned()), cmdline: NATIVE.to_owned() };
    let log = Mutex::new(Log::default());
    let mut running = emulator::start(Emulator::Qemu, machine(Emulator::Qemu, boot, NATIVE_MEMORY_MIB), dir, false)?;
    let mut said = Vec::new();
    let until = Until { deadline: Some(Instant::now() + DOM0_LIMIT), stop: None };
    console::watch(&mut running, &log, until, |bytes| {
        said.extend_from_slice(bytes);
        Ok(())
    })?;
    let said = String::from_utf8_lossy(&said);
    let line = said.lines().find(|line| line.starts_with("{\"operation\"")).map(str::trim_end);
    let line = line.with_context(|| format!("the kernel has measured nothing:\n{said}"))?;
    number(&serde_json::from_str::<Value>(line)?["median"])
}

/// Names and values by turns.
fn pairs(output: &str) -> Result<Vec<(String, Value)>> {
    let all: Vec<Value> =
        serde_json::Deserializer::from_str(output).into_iter().collect::<Result<_, _>>().context("guests' figures")?;
    let pair = |pair: &[Value]| match pair {
        [Value::String(name), value] => Ok((name.clone(), value.clone())),
        other => bail!("dom0 gave {other:?} where a name and a value were expected"),
    };
    all.chunks(2).map(pair).collect()
}

impl Guests {
    fn value(&self, name: &str) -> Result<&Value> {
        let found = self.values.iter().find(|(own, _)| own == name);
        found.map(|(_, value)| value).with_context(|| format!("dom0 gave no {name}"))
    }

    /// Exits and ticks of a domain's first vCPU.
    fn counters(&self, name: &str) -> Result<(f64, f64)> {
        let vcpu = &self.value(name)?[0];
        Ok((number(&vcpu["exits"])?, number(&vcpu["ticks"])?))
    }

    /// All figures; `stub` is what the counters miss of each exit.
    pub(super) fn figures(&self, stub: f64) -> Result<Vec<Figure>> {
        let mut figures = Vec::new();
        for name in ["create_256", "create_256_dirty", "create_256_packed", "destroy_256"] {
            figures.push(Figure::whole(name, number(&self.value(name)?["median"])?));
        }
        let maps = self.value("foreign_map")?;
        let repetitions = number(&maps["repetitions"])?;
        let (before, after) = (self.counters("before_map")?, self.counters("after_map")?);
        let (exits, ticks) = ((after.0 - before.0) / repetitions, (after.1 - before.1) / repetitions);
        let mapped = Figure::whole("dom0_foreign_map_256", number(&maps["median"])?);
        figures.push(Figure { hypervisor: Some(ticks + exits * stub), exits, ..mapped });
        for (series, native) in &self.native_clock {
            let (exits, ticks) = self.counters(&format!("boot_{series}"))?;
            let name = format!("guest_boot_{series}");
            figures.push(Figure { name, hypervisor: Some(ticks + exits * stub), exits, ..Figure::default() });
            let clock = self.value(&format!("clock_{series}"))?;
            let after = self.counters(&format!("after_clock_{series}"))?.0;
            let calls = number(&clock["repetitions"])? * 100.0;
            ensure!(calls > 0.0, "the clock was not looked at");
            figures.push(Figure {
                exits: (after - exits) / calls,
                native: Some(*native),
                ..Figure::whole(&format!("guest_clock_{series}"), number(&clock["median"])?)
            });
        }
        figures.push(Figure::whole("guest_overhead_bytes", number(self.value("guest_overhead_bytes")?)?));
        Ok(figures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_come_by_turns() {
        let pairs = pairs("\"a\"\n{\"median\": 3}\n\"b\"\n17\n").unwrap();
        assert_eq!((pairs[0].0.as_str(), &pairs[0].1["median"], &pairs[1].1), ("a", &3.into(), &17.into()));
        assert!(super::pairs("1 2").is_err() && super::pairs("\"a\" {").is_err());
    }
}
