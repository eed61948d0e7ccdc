// SPDX-License-Identifier: MIT OR Apache-2.0
//! QEMU's command line.
//!
//! Without KVM, QEMU interprets an AMD CPU with SVM and nested paging. Some of its features are switched off because
//! QEMU 7.2 emulates them wrongly under SVM: RDTSCP takes the wrong exit, MONITOR leads Linux to an MWAIT that faults.
//! The TSC is invariant in truth (it counts host time, or instructions) but not advertised unless forced.
//!
//! Names of files appear inside comma-separated options, where a comma is written twice.

use std::path::Path;
use std::process::Command;

use super::{Boot, Firmware, Machine, Serial};

/// The program's name.
pub(crate) const PROGRAM: &str = "qemu-system-x86_64";

/// Forced features are announced whether QEMU emulates them or not. XSAVEC it does not: Linux would save vector state
/// by an instruction that is not there.
const CPU: &str = "EPYC,-rdtscp,-monitor,-xsavec,+invtsc,x-force-features=on";
/// Repeatable runs must not draw random numbers from the host.
const CPU_COUNTING: &str = "EPYC,-rdtscp,-rdrand,-rdseed,-monitor,-xsavec,+invtsc,x-force-features=on";

/// The firmware for a machine that starts by UEFI.
const UEFI_ROM: &str = "/usr/share/ovmf/OVMF.fd";

/// QEMU's program with these arguments.
pub(super) fn command(arguments: Vec<String>) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(arguments);
    command
}

/// The arguments that play `machine` without KVM.
pub(super) fn arguments(machine: &Machine) -> Vec<String> {
    let cpu = if machine.counts_instructions { CPU_COUNTING } else { CPU };
    let mut arguments = words("-accel tcg -cpu");
    arguments.push(cpu.to_owned());
    if machine.counts_instructions {
        arguments.extend(words("-icount shift=0,sleep=off,align=off -rtc base=2020-01-01,clock=vm -seed 1"));
    }
    arguments.extend(common(machine));
    arguments
}

/// What does not depend on how the CPU is played. The user's own arguments come last and so have the last word.
pub(super) fn common(machine: &Machine) -> Vec<String> {
    let mut arguments = words("-M");
    arguments.push(if machine.has_iommu { "q35,kernel-irqchip=split" } else { "q35" }.to_owned());
    if machine.has_iommu {
        arguments.extend(words("-device intel-iommu,intremap=on"));
    }
    arguments.extend(words(&format!("-m {} -smp {}", machine.memory_mib, machine.cpus)));
    arguments.extend(words("-display none -nodefaults -no-user-config -no-reboot"));
    arguments.extend(words("-device isa-debug-exit,iobase=0xf4,iosize=4"));
    if machine.firmware == Firmware::Uefi {
        // The firmware in one file: what it stores in its variables is gone with the machine. It drives the screen itself.
        arguments.extend(words(&format!("-bios {UEFI_ROM} -device VGA,romfile=")));
    }
    arguments.extend(serial("com1", &machine.com1));
    arguments.extend(serial("com2", &machine.com2));
    let boot_disk = boot(machine, &mut arguments);
    for (i, file) in boot_disk.into_iter().chain(machine.disks.iter().map(|disk| disk.as_path())).enumerate() {
        arguments.extend(disk(i, file));
    }
    if machine.has_nic {
        arguments.extend(words("-netdev user,id=net0 -device e1000e,netdev=net0,romfile="));
    }
    arguments.extend(machine.extra.iter().cloned());
    arguments
}

/// The way to start; returns the disk when it is from one.
fn boot<'a>(machine: &'a Machine, arguments: &mut Vec<String>) -> Option<&'a Path> {
    match &machine.boot {
        Boot::Disk(disk) => Some(disk),
        Boot::Pvh { kernel, bundle, cmdline } => {
            arguments.extend(["-kernel".to_owned(), kernel.display().to_string()]);
            arguments.extend(["-append".to_owned(), cmdline.clone()]);
            if let Some(bundle) = bundle {
                arguments.extend(["-initrd".to_owned(), option_value(bundle)]);
            }
            None
        }
    }
}

fn serial(id: &str, serial: &Serial) -> Vec<String> {
    match serial {
        Serial::None => words("-serial none"),
        Serial::Connect(port) => {
            words(&format!("-chardev socket,id={id},host=127.0.0.1,port={port},server=off -serial chardev:{id}"))
        }
    }
}

fn disk(index: usize, file: &Path) -> Vec<String> {
    let drive = format!("if=none,id=disk{index},format=raw,file={}", option_value(file));
    let device = format!("ide-hd,drive=disk{index},bus=ide.{index}");
    vec!["-drive".to_owned(), drive, "-device".to_owned(), device]
}

/// A file's name as the value of an option. A name with a comma in it is cut there unless the comma is doubled.
fn option_value(file: &Path) -> String {
    file.display().to_string().replace(',', ",,")
}

pub(super) fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pvh() -> Machine {
        let boot = Boot::Pvh {
            kernel: "hv.elf".into(),
            bundle: Some("a,b.cpio".into()),
            cmdline: "console=com1 exit=qemu".into(),
        };
        Machine { com1: Serial::Connect(1001), ..Machine::new(boot, 512) }
    }

    #[test]
    fn a_pvh_start_has_kernel_bundle_and_command_line() {
        let expected = "-accel tcg -cpu EPYC,-rdtscp,-monitor,-xsavec,+invtsc,x-force-features=on -M q35 -m 512 -smp 1 \
            -display none -nodefaults -no-user-config -no-reboot -device isa-debug-exit,iobase=0xf4,iosize=4 \
            -chardev socket,id=com1,host=127.0.0.1,port=1001,server=off -serial chardev:com1 -serial none \
            -kernel hv.elf -append console=com1 exit=qemu -initrd a,,b.cpio";
        let arguments = arguments(&pvh());
        assert_eq!(arguments.join(" "), expected);
        assert!(arguments.contains(&"console=com1 exit=qemu".to_owned()), "the command line is one argument");
    }

    #[test]
    fn a_disk_to_boot_from_comes_before_the_others() {
        let mut machine = Machine::new(Boot::Disk("boot.img".into()), 256);
        machine.disks = vec!["data,1.img".into()];
        let line = arguments(&machine).join(" ");
        let disks = "-drive if=none,id=disk0,format=raw,file=boot.img -device ide-hd,drive=disk0,bus=ide.0 \
            -drive if=none,id=disk1,format=raw,file=data,,1.img -device ide-hd,drive=disk1,bus=ide.1";
        assert!(line.ends_with(disks), "{line}");
        assert!(!line.contains("-kernel"));
    }

    #[test]
    fn uefi_brings_its_firmware_and_a_screen() {
        let machine = Machine { firmware: Firmware::Uefi, ..Machine::new(Boot::Disk("boot.img".into()), 256) };
        let line = arguments(&machine).join(" ");
        assert!(line.contains(" -bios /usr/share/ovmf/OVMF.fd -device VGA,romfile= -serial none "), "{line}");
    }

    #[test]
    fn counting_instructions_removes_every_source_of_chance() {
        let line = arguments(&Machine { counts_instructions: true, ..pvh() }).join(" ");
        assert!(line.contains("-cpu EPYC,-rdtscp,-rdrand,-rdseed,-monitor,-xsavec,+invtsc,x-force-features=on "));
        assert!(line.contains("-icount shift=0,sleep=off,align=off -rtc base=2020-01-01,clock=vm -seed 1 "));
    }

    #[test]
    fn devices_are_there_when_asked_for_and_the_users_arguments_last() {
        let mut machine = Machine { has_nic: true, has_iommu: true, cpus: 2, ..pvh() };
        machine.extra = words("-d int");
        let line = arguments(&machine).join(" ");
        assert!(line.contains(" -M q35,kernel-irqchip=split -device intel-iommu,intremap=on -m 512 -smp 2 "));
        assert!(line.ends_with(" -netdev user,id=net0 -device e1000e,netdev=net0,romfile= -d int"));
    }
}
