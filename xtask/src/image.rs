// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a machine boots from.
//!
//! A GRUB disk is an MBR disk with one FAT partition that holds the hypervisor and its modules as files. It boots by BIOS
//! and by UEFI: there are two builds of GRUB on it, which read the same configuration. It is put together without loop
//! devices and without grub-install, so it needs no rights. For BIOS, GRUB's boot sector is copied to the first sector,
//! its core image to the sectors behind (where the boot sector looks for it by default); for UEFI, GRUB is the file that
//! the firmware starts from a disk that it knows nothing about. The partition is filled by mtools. The configuration
//! has no menu, so GRUB waits for nothing and prints nothing.
//!
//! QEMU can do without GRUB: it starts the hypervisor by its PVH entry, with all modules in one bundle.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};

use crate::bundle::{self, Module};
use crate::compile::{self, Profile};
use crate::setup::{self, Purpose};
use crate::{report, tool, workspace};

const BOOT_SECTOR: &str = "/usr/lib/grub/i386-pc/boot.img";

/// One build of GRUB.
struct Grub {
    /// Which machines it is for, in grub-mkimage's words.
    format: &'static str,
    /// Where it finds its configuration. By UEFI it knows the partition that it was started from; BIOS says less.
    prefix: &'static str,
    /// What it has beside what every build needs.
    modules: &'static [&'static str],
}

const BIOS: Grub = Grub { format: "i386-pc", prefix: "(hd0,msdos1)/boot/grub", modules: &["biosdisk"] };
const UEFI: Grub = Grub { format: "x86_64-efi", prefix: "/boot/grub", modules: &["efi_gop", "video"] };
const GRUB_MODULES: [&str; 5] = ["part_msdos", "fat", "normal", "multiboot2", "test"];
/// The file that UEFI starts from a disk without being told of it, and the folders that it is in.
const UEFI_PROGRAM: &str = "EFI/BOOT/BOOTX64.EFI";
const UEFI_DIRS: [&str; 2] = ["::/EFI", "::/EFI/BOOT"];

const SECTOR_BYTES: u64 = 512;
/// The partition starts at 1 MiB; GRUB's core lies between the first sector and it.
const PARTITION_SECTOR: u32 = 2048;
const PARTITION_BYTE: u64 = PARTITION_SECTOR as u64 * SECTOR_BYTES;
/// Emulated disks are whole cylinders of this size (16 heads, 63 sectors).
const CYLINDER_BYTES: u64 = 16 * 63 * SECTOR_BYTES;
/// Room for the FAT's own structures beside a sixteenth of the files' size.
const FAT_SLACK_BYTES: u64 = 1 << 20;

#[derive(Args)]
pub(crate) struct Options {
    /// The file to write [default: isthmus.img or isthmus.cpio in the build directory]
    out: Option<PathBuf>,
    /// The kind of image
    #[arg(long, value_enum, default_value_t = Format::Grub)]
    format: Format,
    /// A boot module, FILE:ARGS; the first word of ARGS is its role: kernel, initrd, guest, guest-initrd (repeatable)
    #[arg(long = "module", value_name = "FILE:ARGS", value_parser = parse_module)]
    modules: Vec<Module>,
    /// The hypervisor's command line
    #[arg(long, value_name = "STR", default_value = "")]
    hv_append: String,
    /// Another hypervisor than the one built here
    #[arg(long, value_name = "FILE")]
    hypervisor: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// A disk that boots by BIOS and by UEFI
    Grub,
    /// What QEMU's -initrd takes with a PVH -kernel
    Bundle,
}

/// `xtask image`.
pub(crate) fn command(options: &Options) -> Result<ExitCode> {
    let modules = &options.modules;
    let default_name = match options.format {
        Format::Grub => "isthmus.img",
        Format::Bundle => "isthmus.cpio",
    };
    let out = options.out.clone().unwrap_or_else(|| workspace::target().join(default_name));
    match options.format {
        Format::Bundle => bundle::write(modules, &out)?,
        Format::Grub => {
            setup::ensure(&[Purpose::Compile, Purpose::Image])?;
            let hypervisor = match &options.hypervisor {
                Some(file) => file.clone(),
                None => compile::hypervisor(Profile::Release)?.path,
            };
            grub_disk(&hypervisor, &options.hv_append, modules, &out)?;
        }
    }
    report::step(format!("wrote {}", out.display()));
    Ok(ExitCode::SUCCESS)
}

fn parse_module(text: &str) -> Result<Module, String> {
    let (file, args) = text.split_once(':').ok_or("FILE:ARGS expected")?;
    Ok(Module { file: file.into(), args: args.into() })
}

/// What GRUB does before it loads the hypervisor: with these modules of its own, these commands.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Prelude {
    pub(crate) modules: &'static [&'static str],
    pub(crate) commands: &'static str,
}

/// Writes a disk image to `out` which boots `hypervisor` with its command line and `modules`. Working files lie beside
/// `out` for the time being. Errors: a file cannot be read, or an argument cannot be passed through GRUB.
pub(crate) fn grub_disk(hypervisor: &Path, cmdline: &str, modules: &[Module], out: &Path) -> Result<()> {
    grub_disk_after(Prelude::default(), hypervisor, cmdline, modules, out)
}

/// The same with something before the hypervisor: a machine can be made to look like another one.
pub(crate) fn grub_disk_after(
    prelude: Prelude,
    hypervisor: &Path,
    cmdline: &str,
    modules: &[Module],
    out: &Path,
) -> Result<()> {
    let work = out.with_extension("parts");
    fs::create_dir_all(&work).with_context(|| format!("creating {}", work.display()))?;
    let written = assemble(prelude, hypervisor, cmdline, modules, out, &work);
    fs::remove_dir_all(&work).context("removing working files")?;
    written.with_context(|| format!("making {}", out.display()))
}

fn assemble(
    prelude: Prelude,
    hypervisor: &Path,
    cmdline: &str,
    modules: &[Module],
    out: &Path,
    work: &Path,
) -> Result<()> {
    let config = work.join("grub.cfg");
    fs::write(&config, prelude.commands.to_owned() + &grub_config(cmdline, modules)?)?;
    let mut files = vec![
        (config, "boot/grub/grub.cfg".to_owned()),
        (grub(&UEFI, prelude, work)?, UEFI_PROGRAM.to_owned()),
        (hypervisor.to_owned(), "boot/isthmus-hypervisor".to_owned()),
    ];
    files.extend(
        modules.iter().enumerate().map(|(i, module)| (module.file.clone(), format!("boot/{}", module_name(i)))),
    );

    let mut content_bytes = 0;
    for (file, _) in &files {
        content_bytes += file.metadata().with_context(|| format!("reading {}", file.display()))?.len();
    }
    let disk_bytes = disk_bytes(content_bytes);
    let core = fs::read(grub(&BIOS, prelude, work)?)?;
    write_boot_sectors(out, disk_bytes, &core)?;
    fill_partition(out, disk_bytes, &files)
}

/// The size of a disk for files of that size: whole cylinders, and no smaller than FAT16 wants.
fn disk_bytes(content_bytes: u64) -> u64 {
    let wanted = PARTITION_BYTE + content_bytes + content_bytes / 16 + FAT_SLACK_BYTES;
    wanted.div_ceil(CYLINDER_BYTES) * CYLINDER_BYTES
}

fn module_name(index: usize) -> String {
    format!("module{index}")
}

fn grub_config(cmdline: &str, modules: &[Module]) -> Result<String> {
    let mut config = format!("multiboot2 /boot/isthmus-hypervisor{}\n", grub_words(cmdline)?);
    for (i, module) in modules.iter().enumerate() {
        config += &format!("module2 /boot/{}{}\n", module_name(i), grub_words(&module.args)?);
    }
    // The hypervisor asks for a screen with pixels, if there is one. By BIOS the text mode does as well, and an emulator
    // without graphics survives it. GRUB takes the word that was set last.
    config += "if [ $grub_platform = pc ]; then set gfxpayload=text; fi\nboot\n";
    Ok(config)
}

/// The words of `args`, each quoted for GRUB's script language. GRUB hands quotes and backslashes over with an extra
/// backslash, so an argument with one could not arrive as it is.
fn grub_words(args: &str) -> Result<String> {
    if let Some(bad) = args.chars().find(|&c| matches!(c, '\'' | '"' | '\\') || c.is_control()) {
        bail!("`{args}`: GRUB cannot pass the character {bad:?} in a command line (QEMU without GRUB can)");
    }
    Ok(args.split_whitespace().map(|word| format!(" '{word}'")).collect())
}

/// Makes a build of GRUB in the folder `work`.
fn grub(grub: &Grub, prelude: Prelude, work: &Path) -> Result<PathBuf> {
    let image = work.join(grub.format);
    let mut mkimage = Command::new(tool::find("grub-mkimage").context("grub-mkimage is not installed")?);
    mkimage.args(["-O", grub.format, "-p", grub.prefix, "-o"]).arg(&image).args(GRUB_MODULES);
    mkimage.args(grub.modules).args(prelude.modules);
    tool::run(&mut mkimage)?;
    Ok(image)
}

fn write_boot_sectors(out: &Path, disk_bytes: u64, core: &[u8]) -> Result<()> {
    let boot = fs::read(BOOT_SECTOR).context("reading GRUB's boot sector")?;
    ensure!(core.len() as u64 <= PARTITION_BYTE - SECTOR_BYTES, "GRUB's core does not fit before the partition");
    let mut sector = [0; 512];
    // The boot sector's code ends where the disk's signature and the partition table begin.
    sector[..440].copy_from_slice(boot.get(..440).context("GRUB's boot sector is too short")?);
    sector[446..462].copy_from_slice(&partition_entry(disk_bytes)?);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let mut disk = File::create(out)?;
    disk.set_len(disk_bytes)?;
    disk.write_all(&sector)?;
    disk.seek(SeekFrom::Start(SECTOR_BYTES))?;
    disk.write_all(core)?;
    Ok(())
}

/// An active FAT16 partition from [`PARTITION_SECTOR`] to the end, addressed by sector numbers only.
fn partition_entry(disk_bytes: u64) -> Result<[u8; 16]> {
    const ACTIVE: u8 = 0x80;
    const FAT16_LBA: u8 = 0x0e;
    const NO_CHS: [u8; 3] = [0xfe, 0xff, 0xff];
    let sectors = u32::try_from((disk_bytes - PARTITION_BYTE) / SECTOR_BYTES).context("image too large")?;
    let mut entry = [0; 16];
    entry[0] = ACTIVE;
    entry[1..4].copy_from_slice(&NO_CHS);
    entry[4] = FAT16_LBA;
    entry[5..8].copy_from_slice(&NO_CHS);
    entry[8..12].copy_from_slice(&PARTITION_SECTOR.to_le_bytes());
    entry[12..].copy_from_slice(&sectors.to_le_bytes());
    Ok(entry)
}

fn fill_partition(out: &Path, disk_bytes: u64, files: &[(PathBuf, String)]) -> Result<()> {
    let sectors = ((disk_bytes - PARTITION_BYTE) / SECTOR_BYTES).to_string();
    mtools("mformat", out, &["-T", &sectors, "-h", "16", "-s", "63", "::"])?;
    mtools("mmd", out, &[&["::/boot", "::/boot/grub"], UEFI_DIRS.as_slice()].concat())?;
    for (file, name) in files {
        let file = file.to_str().with_context(|| format!("{}: not a file name in UTF-8", file.display()))?;
        mtools("mcopy", out, &[file, &format!("::/{name}")])?;
    }
    Ok(())
}

fn mtools(name: &str, image: &Path, arguments: &[&str]) -> Result<()> {
    let program = tool::find(name).with_context(|| format!("{name} is not installed"))?;
    let mut command = Command::new(program);
    command.arg("-i").arg(format!("{}@@{PARTITION_BYTE}", image.display())).args(arguments);
    // Emulated disks have odd geometries, and the user's own mtools configuration is none of ours.
    command.env("MTOOLS_SKIP_CHECK", "1").env("MTOOLSRC", "/dev/null");
    tool::run(&mut command).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(args: &str) -> Module {
        Module { file: "x".into(), args: args.into() }
    }

    #[test]
    fn the_configuration_names_each_module_with_its_words_quoted() {
        let modules = [module("kernel console=hvc0 a=$b"), module("initrd")];
        let config = grub_config("loglvl=debug console=com1", &modules).unwrap();
        let expected = "multiboot2 /boot/isthmus-hypervisor 'loglvl=debug' 'console=com1'\n\
                        module2 /boot/module0 'kernel' 'console=hvc0' 'a=$b'\nmodule2 /boot/module1 'initrd'\n\
                        if [ $grub_platform = pc ]; then set gfxpayload=text; fi\nboot\n";
        assert_eq!(config, expected);
    }

    #[test]
    fn what_grub_would_change_is_refused() {
        for bad in ["a'b", "dyndbg=\"+p\"", "a\\b", "a\nboot"] {
            assert!(grub_config(bad, &[]).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_disk_is_whole_cylinders_and_holds_its_files() {
        for content in [0, 1, 300_000, 60 << 20] {
            let size = disk_bytes(content);
            assert_eq!(size % CYLINDER_BYTES, 0);
            assert!(size >= content + PARTITION_BYTE + FAT_SLACK_BYTES);
        }
    }

    #[test]
    fn the_partition_reaches_to_the_end_of_the_disk() {
        let entry = partition_entry(4 << 20).unwrap();
        assert_eq!(entry[8..12], 2048u32.to_le_bytes());
        assert_eq!(entry[12..], (3 * 2048u32).to_le_bytes());
    }
}
