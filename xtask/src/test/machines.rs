// SPDX-License-Identifier: MIT OR Apache-2.0
//! Machines on which the hypervisor cannot start, or on which it ends badly, and what it must say there.
//!
//! A machine is made to look like one that is not at hand: by another CPU model, by GRUB commands that lock VT-x or take
//! memory away before the hypervisor is loaded, by boot modules that are damaged. What counts is the line on the
//! console, because it is all that a user will see, and that the machine ends with the status that goes with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use isthmus_tests::Tier;
use isthmus_tests::verdict::Verdict;

use super::{Judged, Unit, boots, log_file};
use crate::bundle::Module;
use crate::console::{self, End, Log, Until};
use crate::emulator::{self, Boot, Emulator, Firmware, Machine, bochs};
use crate::image::{self, Prelude};
use crate::launch::RunDir;
use crate::run;

/// The hypervisor could not start what it was given.
const BOOT_FAILED: End = End::Status(4);
const LIMIT: Duration = Duration::from_secs(200);

/// A machine, what it boots, and what must come of it.
#[derive(Clone, Copy)]
pub(super) struct Odd {
    name: &'static str,
    tier: Tier,
    emulator: Emulator,
    firmware: Firmware,
    /// Another CPU, in the emulator's own words.
    cpu: &'static str,
    memory_mib: u32,
    prelude: Prelude,
    hv_append: &'static str,
    modules: &'static [File],
    end: End,
    says: &'static [&'static str],
}

/// A boot module: what is in it, and its string.
#[derive(Clone, Copy)]
struct File {
    content: Content,
    args: &'static str,
}

/// What a boot module is made of.
#[derive(Clone, Copy)]
enum Content {
    /// A micro-guest.
    Guest(&'static str),
    /// So many of its first bytes.
    Start(&'static str, usize),
    /// A micro-guest with one place overwritten: all its occurrences of a text by another one of the same length.
    Replaced(&'static str, &'static [u8], &'static [u8]),
    /// A kernel that lies at 16 MiB, as Linux does, with this code.
    Kernel(&'static [u8]),
    /// The same, with a note that says that it cannot be dom0.
    KernelForGuests(&'static [u8]),
    /// These bytes.
    Bytes(&'static [u8]),
}

const fn file(content: Content, args: &'static str) -> File {
    File { content, args }
}

const HELLO: &[File] = &[file(Content::Guest("hello"), "guest name=hello mem=16")];
/// An instruction that no CPU has. Without a table of handlers it ends in a triple fault.
pub(super) const UNDEFINED: &[u8] = &[0x0f, 0x0b];
/// A dom0 that ends at once by a triple fault.
const CRASHES: &[File] = &[file(Content::Kernel(UNDEFINED), "kernel")];
/// A Xen note's name and the type and size of PHYS32_ENTRY as they stand in a file, and the same with another type.
const PVH_NOTE: &[u8] = b"\x12\0\0\0Xen\0";
const OTHER_NOTE: &[u8] = b"\x7f\0\0\0Xen\0";

/// Types of notes. Source: `xen/include/public/elfnote.h` at 4.17.
const PHYS32_ENTRY: u32 = 18;
const SUPPORTED_FEATURES: u32 = 17;
/// What Debian's cloud kernels say: XENFEAT_writable_page_tables and XENFEAT_linux_rsdp_unrestricted, not XENFEAT_dom0.
const FEATURES_OF_A_GUEST: u32 = 0x8001;

const fn odd(name: &'static str, modules: &'static [File], says: &'static [&'static str]) -> Odd {
    Odd {
        name,
        tier: Tier::Gate,
        emulator: Emulator::Qemu,
        firmware: Firmware::Bios,
        cpu: "",
        memory_mib: 512,
        prelude: Prelude { modules: &[], commands: "" },
        hv_append: "",
        modules,
        end: BOOT_FAILED,
        says,
    }
}

/// All of them.
pub(super) const ALL: &[Odd] = &[
    Odd {
        cpu: "EPYC,-rdtscp,-svm",
        ..odd("failure/no-virtualization", HELLO, &["does not report VT-x", "this CPU has no SVM"])
    },
    Odd { cpu: "EPYC,-rdtscp,-npt", ..odd("failure/no-nested-paging", HELLO, &["nested paging"]) },
    Odd {
        emulator: Emulator::Bochs,
        cpu: "core2_penryn_t9600",
        ..odd("failure/no-ept", HELLO, &["this CPU's VT-x has no"])
    },
    Odd {
        emulator: Emulator::Bochs,
        cpu: "corei5_lynnfield_750",
        ..odd("failure/no-unrestricted-guest", HELLO, &["this CPU's VT-x has no unrestricted guest"])
    },
    Odd {
        emulator: Emulator::Bochs,
        firmware: Firmware::Uefi,
        tier: Tier::Long,
        prelude: Prelude { modules: &["wrmsr"], commands: "wrmsr 0x3a 1\n" },
        ..odd("failure/vt-x-locked-off", HELLO, &["the firmware has locked VT-x off; enable virtualization"])
    },
    odd("failure/no-modules", &[], &["boot modules: none of them is a kernel"]),
    odd("failure/unknown-role", &[file(Content::Guest("hello"), "geust")], &["boot module 0", "'geust'", "is no role"]),
    odd(
        "failure/truncated-guest",
        &[file(Content::Start("hello", 5000), "guest name=cut")],
        &["guest cut: ", "it was cut, copy it again"],
    ),
    odd(
        "failure/guest-that-is-no-program",
        &[file(Content::Bytes(b"#!/bin/sh\n"), "guest name=script")],
        &["guest script: this is not an ELF file"],
    ),
    odd(
        "failure/guest-without-pvh-note",
        &[file(Content::Replaced("hello", PVH_NOTE, OTHER_NOTE), "guest name=plain")],
        &["guest plain: the kernel has no PVH entry"],
    ),
    odd(
        "failure/truncated-dom0-kernel",
        &[file(Content::Start("hello", 5000), "kernel")],
        &["dom0: ", "it was cut, copy it again"],
    ),
    odd(
        "failure/dom0-kernel-for-guests-only",
        &[file(Content::KernelForGuests(UNDEFINED), "kernel")],
        &["dom0: the kernel was built without CONFIG_XEN_DOM0", "take another one"],
    ),
    odd("failure/dom0-kernel-is-empty", &[file(Content::Bytes(b""), "kernel")], &["dom0: this is not an ELF file"]),
    odd(
        "failure/initrd-without-kernel",
        &[file(Content::Bytes(b"07070"), "initrd")],
        &["boot module 0: 'initrd' without a 'kernel' module"],
    ),
    Odd { memory_mib: 36, ..odd("failure/ram-too-small-for-a-guest", BIG, &["not enough free memory"]) },
    Odd { memory_mib: 100, ..odd("failure/ram-too-small-for-dom0", CRASHES, &["give the machine 512 MiB or more"]) },
    Odd {
        hv_append: "dom0_mem=4096",
        ..odd("failure/dom0-wants-too-much", CRASHES, &["dom0_mem=4096 is more than there is"])
    },
    Odd {
        prelude: Prelude { modules: &["mmap"], commands: "cutmem 16M 32M\n" },
        ..odd("failure/no-ram-where-dom0s-kernel-must-be", CRASHES, &["dom0: the kernel must lie at 0x0001000000"])
    },
    Odd {
        // GRUB puts the module there all the same.
        prelude: Prelude { modules: &["mmap"], commands: "cutmem 1M 2M\n" },
        ..odd("failure/module-outside-ram", CRASHES, &["boot module 0 lies at", "not all RAM in the firmware's map"])
    },
    Odd { end: End::Status(3), ..odd("failure/dom0-triple-fault", CRASHES, &["d0 (dom0) has shut down: Crash"]) },
    Odd {
        hv_append: "panic=reboot",
        end: End::Silent,
        ..odd("failure/dom0-crash-reboots", CRASHES, &["resetting the machine"])
    },
];
const BIG: &[File] = &[file(Content::Guest("hello"), "guest name=big mem=256")];

impl Odd {
    pub(super) fn tier(&self) -> Tier {
        self.tier
    }

    fn modules(&self, dir: &Path) -> Result<Vec<Module>> {
        let built = boots::built()?;
        let mut modules = Vec::new();
        for (i, file) in self.modules.iter().enumerate() {
            let bytes = match file.content {
                Content::Bytes(bytes) => bytes.to_vec(),
                Content::Kernel(code) => kernel(code, &[]),
                Content::KernelForGuests(code) => kernel(code, &[note(SUPPORTED_FEATURES, FEATURES_OF_A_GUEST)]),
                Content::Guest(name) => fs::read(built.guest(name)?)?,
                Content::Start(name, len) => fs::read(built.guest(name)?)?[..len].to_vec(),
                Content::Replaced(name, from, to) => replaced(&fs::read(built.guest(name)?)?, from, to)?,
            };
            let path = dir.join(format!("file{i}"));
            fs::write(&path, bytes)?;
            modules.push(Module { file: path, args: file.args.to_owned() });
        }
        Ok(modules)
    }

    fn machine(&self, disk: PathBuf) -> Machine {
        let mut machine = Machine {
            firmware: self.firmware,
            bochs_cpu: bochs::Cpu::quick(if self.cpu.is_empty() { "corei7_skylake_x" } else { self.cpu }),
            ..Machine::new(Boot::Disk(disk), self.memory_mib)
        };
        if self.emulator == Emulator::Qemu && !self.cpu.is_empty() {
            machine.extra = vec!["-cpu".to_owned(), self.cpu.to_owned()];
        }
        machine
    }

    fn boot(&self, log_file: &Path) -> Result<End> {
        let dir = RunDir::create(&self.name.replace('/', "."))?;
        let disk = dir.path().join("boot.img");
        let cmdline = run::hypervisor_cmdline(self.emulator, Some(self.hv_append));
        let modules = self.modules(dir.path())?;
        image::grub_disk_after(self.prelude, &boots::built()?.hypervisor, &cmdline, &modules, &disk)?;
        let log = Mutex::new(Log::to_file(log_file)?);
        let until = Until { deadline: Some(Instant::now() + LIMIT), stop: None };
        let mut running = emulator::start(self.emulator, self.machine(disk), dir.path(), false)?;
        let end = console::watch(&mut running, &log, until, |_| Ok(()))?;
        boots::explain(end, &console::lock(&log), &running, &boots::built()?.hypervisor, log_file)?;
        Ok(end)
    }
}

/// A Xen note of four bytes, as it stands in a file.
fn note(kind: u32, value: u32) -> Vec<u8> {
    let head = [4_u32, 4, kind].map(u32::to_le_bytes).concat();
    [head.as_slice(), b"Xen\0", &value.to_le_bytes()].concat()
}

/// An ELF file with a PVH note, more notes, and one segment at its entry that begins with `code`.
pub(super) fn kernel(code: &[u8], notes: &[Vec<u8>]) -> Vec<u8> {
    const START: u64 = 16 << 20;
    const HEADERS: u64 = 64 + 2 * 56;
    let notes = [note(PHYS32_ENTRY, 16 << 20), notes.concat()].concat();
    // 64 bits, little-endian; an executable for x86-64; one ELF header, two program headers behind it.
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2_u16, 62].iter().flat_map(|half| half.to_le_bytes()));
    file.extend(1_u32.to_le_bytes());
    file.extend([START, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
    file.extend(0_u32.to_le_bytes());
    file.extend([64_u16, 56, 2, 64, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    let (code_len, notes_len) = (code.len() as u64, notes.len() as u64);
    for (kind, offset, address, len) in [(1_u32, HEADERS, START, code_len), (4, HEADERS + code_len, 0, notes_len)] {
        file.extend([kind, 5].iter().flat_map(|word| word.to_le_bytes()));
        file.extend([offset, address, address, len, len, 4].iter().flat_map(|word| word.to_le_bytes()));
    }
    [file.as_slice(), code, &notes].concat()
}

/// `bytes` with every `from` replaced by `to`. Errors: there is none.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = bytes.to_vec();
    let places: Vec<usize> = memchr::memmem::find_iter(&bytes, from).collect();
    places.first().context("the text to be replaced is not in the file")?;
    for place in places {
        bytes[place..place + to.len()].copy_from_slice(to);
    }
    Ok(bytes)
}

impl Unit for Odd {
    fn names(&self) -> Vec<String> {
        vec![self.name.to_owned()]
    }

    fn run(&self, logs: &Path) -> Result<Vec<Judged>> {
        let (name, log) = (self.name.to_owned(), log_file(logs, self.name));
        let start = Instant::now();
        let end = self.boot(&log)?;
        let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        let verdict = match self.says.iter().find(|said| !text.contains(**said)) {
            _ if end != self.end => Verdict::Fail(format!("the machine's end was {end:?}, not {:?}", self.end)),
            Some(missing) => Verdict::Fail(format!("the log lacks `{missing}`")),
            None => Verdict::Pass(0),
        };
        Ok(vec![Judged { name, verdict, took: start.elapsed(), log }])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_one_has_a_name_of_its_own_and_says_something() {
        for (i, odd) in ALL.iter().enumerate() {
            assert!(ALL[..i].iter().all(|other| other.name != odd.name), "{} twice", odd.name);
            assert!(!odd.says.is_empty(), "{} expects nothing", odd.name);
        }
    }

    #[test]
    fn a_text_that_is_not_there_cannot_be_replaced() {
        assert_eq!(replaced(b"abcab", b"ab", b"xy").unwrap(), b"xycxy");
        assert!(replaced(b"abc", b"x", b"y").is_err());
    }
}
