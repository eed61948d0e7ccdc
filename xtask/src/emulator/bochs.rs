// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bochs' configuration file.
//!
//! Bochs interprets an Intel CPU with VT-x, EPT and unrestricted guests. One tick of its clock is one instruction:
//! `ips` is how many make a second for the machine. Small values make firmware and serial lines cheap, so micro-guests
//! use few; Linux wants its timer interrupts to be far enough apart and uses more. Models newer than Broadwell report
//! a fixed TSC frequency in CPUID, which is not that of `ips`: Linux' clock is wrong on them.
//!
//! The terminal display needs no window and no port, but a known terminal type; its output is thrown away.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Boot, Firmware, Machine, Serial};

/// The program's name.
pub(crate) const PROGRAM: &str = "bochs";

/// The file in the run's folder that Bochs writes its messages to.
pub(crate) const LOG: &str = "bochs.log";

/// What it says there when the machine is powered off by ACPI.
pub(crate) const POWERED_OFF: &str = "ACPI control: soft power off";

/// The firmware for a machine that starts by UEFI. It gets no ACPI tables in Bochs, and leaves VT-x off and unlocked.
pub(crate) const UEFI_ROM: &str = "/usr/share/OVMF/OVMF_CODE.fd";
const BIOS_ROM: &str = "/usr/share/bochs/BIOS-bochs-latest";

/// Disks are whole cylinders of this size.
pub(crate) const CYLINDER_BYTES: u64 = 16 * 63 * 512;
/// Ports, ports of the control block, and interrupt of the two IDE channels.
const CHANNELS: [(&str, &str, u8); 2] = [("0x1f0", "0x3f0", 14), ("0x170", "0x370", 15)];

/// A model of CPU and its speed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cpu {
    pub(crate) model: String,
    pub(crate) instructions_per_second: u32,
}

impl Default for Cpu {
    /// What Linux runs well on.
    fn default() -> Self {
        Self { model: "broadwell_ult".to_owned(), instructions_per_second: 20_000_000 }
    }
}

impl Cpu {
    /// The speed at which micro-guests are through soonest.
    pub(crate) fn quick(model: &str) -> Self {
        Self { model: model.to_owned(), instructions_per_second: 4_000_000 }
    }
}

/// Writes the configuration into `dir` and returns the command that runs it there.
pub(super) fn command(machine: &Machine, dir: &Path) -> Result<Command> {
    let config = configuration(machine, &disk_size)?;
    fs::write(dir.join("bochsrc"), config).context("writing bochsrc")?;
    // Bochs starts in its debugger; this tells it to go on.
    fs::write(dir.join("bochs.commands"), "c\n").context("writing Bochs' commands")?;
    let mut command = Command::new(PROGRAM);
    command.args(["-q", "-unlock", "-f", "bochsrc", "-rc", "bochs.commands"]).current_dir(dir);
    command.env("TERM", "vt100").env_remove("BXSHARE");
    Ok(command)
}

fn disk_size(file: &Path) -> Result<u64> {
    Ok(file.metadata().with_context(|| format!("reading {}", file.display()))?.len())
}

/// The text of `bochsrc`. Errors: the machine does not boot from a disk, or a disk has a size that Bochs cannot show.
fn configuration(machine: &Machine, size: &dyn Fn(&Path) -> Result<u64>) -> Result<String> {
    let Boot::Disk(boot_disk) = &machine.boot else { bail!("Bochs boots from disks only") };
    let rom = match machine.firmware {
        Firmware::Bios => BIOS_ROM,
        Firmware::Uefi => UEFI_ROM,
    };
    let nic_plugin = u8::from(machine.has_nic);
    let Machine { memory_mib, cpus, bochs_cpu: Cpu { model, instructions_per_second }, .. } = machine;
    let mut config = format!(
        "plugin_ctrl: unmapped=1, biosdev=1, speaker=0, extfpuirq=0, parallel=0, serial=1, iodebug=1, \
         e1000={nic_plugin}\n\
         config_interface: textconfig\n\
         display_library: term\n\
         memory: host={memory_mib}, guest={memory_mib}\n\
         romimage: file={rom}\n\
         vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest\n\
         cpu: model={model}, count={cpus}, ips={instructions_per_second}, reset_on_triple_fault=0\n\
         clock: sync=none, time0=1\n"
    );
    for (i, file) in std::iter::once(boot_disk).chain(&machine.disks).enumerate() {
        config += &disk(i, file, size(file)?)?;
    }
    config += "boot: disk\n";
    config += &serial("com1", &machine.com1);
    config += &serial("com2", &machine.com2);
    config += &format!("log: {LOG}\npanic: action=fatal\nerror: action=report\ninfo: action=report\n");
    config += "debug: action=ignore\n";
    if machine.has_nic {
        config += "pci: enabled=1, chipset=i440fx, slot1=e1000\n";
        config += "e1000: enabled=1, mac=52:54:00:12:34:56, ethmod=slirp\n";
    } else {
        config += "pci: enabled=1, chipset=i440fx\n";
    }
    for line in &machine.extra {
        config += line;
        config += "\n";
    }
    Ok(config)
}

fn serial(name: &str, serial: &Serial) -> String {
    match serial {
        Serial::None => format!("{name}: enabled=1, mode=null\n"),
        Serial::Connect(port) => format!("{name}: enabled=1, mode=socket-client, dev=localhost:{port}\n"),
    }
}

fn disk(index: usize, file: &Path, size: u64) -> Result<String> {
    let name = file.display().to_string();
    if name.contains(['"', ',', '\n']) {
        bail!("{name}: Bochs cannot read a file with such a name");
    }
    if size == 0 || !size.is_multiple_of(CYLINDER_BYTES) {
        bail!("{name}: Bochs wants a disk of whole cylinders, a multiple of {CYLINDER_BYTES} bytes (use `truncate`)");
    }
    let (channel, position) = (index / 2, ["master", "slave"][index % 2]);
    let (ports, control, irq) = CHANNELS.get(channel).context("Bochs has four disks at most")?;
    let mut config = String::new();
    if index.is_multiple_of(2) {
        config += &format!("ata{channel}: enabled=1, ioaddr1={ports}, ioaddr2={control}, irq={irq}\n");
    }
    let cylinders = size / CYLINDER_BYTES;
    config += &format!(
        "ata{channel}-{position}: type=disk, path=\"{name}\", mode=flat, cylinders={cylinders}, heads=16, spt=63, \
         translation=auto\n"
    );
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine { com1: Serial::Connect(1001), ..Machine::new(Boot::Disk("/r/boot.img".into()), 512) }
    }

    fn render(machine: &Machine) -> Result<String> {
        configuration(machine, &|_| Ok(32 * CYLINDER_BYTES))
    }

    #[test]
    fn a_plain_machine_is_the_tested_configuration() {
        let expected = "\
plugin_ctrl: unmapped=1, biosdev=1, speaker=0, extfpuirq=0, parallel=0, serial=1, iodebug=1, e1000=0
config_interface: textconfig
display_library: term
memory: host=512, guest=512
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
cpu: model=broadwell_ult, count=1, ips=20000000, reset_on_triple_fault=0
clock: sync=none, time0=1
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=disk, path=\"/r/boot.img\", mode=flat, cylinders=32, heads=16, spt=63, translation=auto
boot: disk
com1: enabled=1, mode=socket-client, dev=localhost:1001
com2: enabled=1, mode=null
log: bochs.log
panic: action=fatal
error: action=report
info: action=report
debug: action=ignore
pci: enabled=1, chipset=i440fx
";
        assert_eq!(render(&machine()).unwrap(), expected);
    }

    #[test]
    fn uefi_is_another_rom() {
        let config = render(&Machine { firmware: Firmware::Uefi, ..machine() }).unwrap();
        assert!(config.contains("\nromimage: file=/usr/share/OVMF/OVMF_CODE.fd\n"), "{config}");
    }

    #[test]
    fn a_nic_needs_its_plugin_its_slot_and_its_network() {
        let config = render(&Machine { has_nic: true, ..machine() }).unwrap();
        for line in ["e1000=1\n", "chipset=i440fx, slot1=e1000\n", "ethmod=slirp\n"] {
            assert!(config.contains(line), "{config}");
        }
    }

    #[test]
    fn disks_take_the_places_of_two_channels() {
        let mut machine = machine();
        machine.disks = vec!["a".into(), "b".into()];
        let config = render(&machine).unwrap();
        assert!(config.contains("ata0-slave: type=disk, path=\"a\""));
        assert!(config.contains("ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15\nata1-master: type=disk"));
    }

    #[test]
    fn what_bochs_cannot_show_is_refused() {
        assert!(disk(0, Path::new("odd.img"), CYLINDER_BYTES + 512).is_err());
        assert!(disk(0, Path::new("a,b.img"), CYLINDER_BYTES).is_err());
        let pvh = Boot::Pvh { kernel: "hv".into(), bundle: None, cmdline: String::new() };
        assert!(render(&Machine::new(pvh, 64)).is_err());
    }

    #[test]
    fn micro_guests_choose_model_and_speed_and_users_add_lines() {
        let mut machine = Machine { bochs_cpu: Cpu::quick("corei7_haswell_4770"), cpus: 2, ..machine() };
        machine.extra = vec!["port_e9_hack: enabled=1".into()];
        let config = render(&machine).unwrap();
        assert!(config.contains("cpu: model=corei7_haswell_4770, count=2, ips=4000000,"));
        assert!(config.ends_with("port_e9_hack: enabled=1\n"));
    }
}
