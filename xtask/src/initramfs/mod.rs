// SPDX-License-Identifier: MIT OR Apache-2.0
//! dom0's root file system: an initramfs put together from Debian packages' files.
//!
//! Nothing is installed and no script of a package runs: files are picked, laid out and packed. The
//! root holds busybox (static), the kernel modules on a list with what they depend on, our static
//! `isthmus`, and the few scripts in `root/`. It stays in memory, so what runs in dom0 needs no disk
//! driver, and each boot starts from the same state.
//!
//! busybox's init is process 1: it runs `/etc/rc` (file systems, drivers of the devices that are
//! there, network in the background, executable files of `/etc/rc.d`), keeps the exec agent on COM2,
//! the guests' supervisor and a shell on the console, and ends the machine in order. The kernel argument
//! `isthmus.devices=off` leaves drivers and network out: a third of the boot in an emulator.
//!
//! [`Spec`] says what goes in, [`build`] makes the file.

mod archive;
pub(crate) mod guest;
mod modules;
mod packages;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use self::archive::Root;
use crate::debian::Store;

/// What dom0's root is limited to without the user's additions, packed.
pub(crate) const LIMIT_BYTES: usize = 12 << 20;

/// Kernel modules in dom0; those of devices are loaded when the device is there.
const MODULES: &[&str] = &[
    // The hypervisor's interfaces, and backends in the kernel.
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
    "xen-privcmd",
    "xenfs",
    "xen-blkback",
    "xen-netback",
    // Disks and cards of the emulators, and of many a machine.
    "ahci",
    "ata_piix",
    "ata_generic",
    "sd_mod",
    "nvme",
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "e1000",
    "e1000e",
    // File systems, with the checksum that ext4 asks for by name, and networking.
    "crc32c_generic",
    "crc32c_intel",
    "ext4",
    "loop",
    "brd",
    "9p",
    "9pnet_fd",
    "9pnet_virtio",
    "9pnet_xen",
    "bridge",
    "tun",
    "veth",
    // Address translation for guests.
    "nf_tables",
    "nft_chain_nat",
    "nft_masq",
    "nft_ct",
];

/// What dom0's root is made of.
#[derive(Clone, Debug)]
pub(crate) struct Spec<'a> {
    /// The kernel's `lib/modules/RELEASE`; without it the root has no modules.
    pub(crate) modules: Option<&'a Path>,
    /// The kernel's release.
    pub(crate) release: &'a str,
    /// The static `isthmus` program.
    pub(crate) isthmus: &'a Path,
    /// Trees to copy over the root, the later over the earlier.
    pub(crate) overlays: &'a [PathBuf],
    /// Debian packages to add, with the libraries that they depend on.
    pub(crate) packages: &'a [String],
    /// The build directory, where downloaded packages are kept.
    pub(crate) target_dir: &'a Path,
}

/// What [`build`] has made.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    /// Length of the file.
    pub(crate) bytes: usize,
    /// Modules on the list that the kernel does not have in any form.
    pub(crate) missing_modules: Vec<String>,
}

/// What an initramfs can begin with: cpio archives, or the compressions that Linux unpacks.
/// Source: Linux' `Documentation/driver-api/early-userspace/buffer-format.rst`, and each format's magic number.
const BEGINNINGS: &[&[u8]] = &[
    b"070701",
    b"070702",
    b"\x1f\x8b",
    b"BZh",
    b"\x5d\0\0",
    b"\xfd7zXZ\0",
    b"\x89LZO",
    b"\x02\x21\x4c\x18",
    b"\x28\xb5\x2f\xfd",
];

/// Refuses a file of the user's that cannot be an initramfs. That it can be unpacked to its end only Linux finds out.
pub(crate) fn check(file: &Path) -> Result<&Path> {
    let name = file.display();
    let bytes = fs::read(file).with_context(|| format!("reading the initial RAM disk {name}"))?;
    ensure!(
        BEGINNINGS.iter().any(|beginning| bytes.starts_with(beginning)),
        "{name} is no initial RAM disk: neither a cpio archive (newc) nor one that is compressed in a way that Linux knows"
    );
    Ok(file)
}

/// Makes dom0's root and writes it to `out`, compressed.
///
/// The same packages and files make the same bytes.
///
/// # Errors
/// A package cannot be downloaded, or a file of the specification cannot be read.
pub(crate) fn build(spec: &Spec<'_>, out: &Path) -> Result<Made> {
    let store = Store::new(&spec.target_dir.join("packages"))?;
    let mut root = Root::new();
    base(&mut root, &store)?;
    let program = fs::read(spec.isthmus).with_context(|| format!("reading {}", spec.isthmus.display()))?;
    root.file("usr/bin/isthmus", true, program);
    let mut missing_modules = Vec::new();
    if let Some(tree) = spec.modules {
        let selection = modules::select(tree, MODULES)?;
        for (path, bytes) in selection.files()? {
            root.file(&format!("usr/lib/modules/{}/{path}", spec.release), false, bytes);
        }
        missing_modules = selection.missing;
    }
    packages::add(&mut root, &store, spec.packages)?;
    for overlay in spec.overlays {
        root.tree(overlay, &|_| true).with_context(|| format!("overlay {}", overlay.display()))?;
    }
    let packed = archive::compress(&root.to_cpio()?)?;
    if let Some(parent) = out.parent() {
        fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    }
    fs::write(out, &packed).with_context(|| format!("writing {}", out.display()))?;
    Ok(Made { bytes: packed.len(), missing_modules })
}

/// busybox, the scripts, and the folders and files that programs expect.
fn base(root: &mut Root, store: &Store) -> Result<()> {
    busybox(root, store)?;
    for folder in ["dev", "etc/rc.d", "mnt", "proc", "root", "run", "sys", "tmp", "var/log", "var/lib"] {
        root.directory(folder);
    }
    root.symlink("var/run", "/run");
    root.character_device("dev/console", (5, 1));
    root.character_device("dev/null", (1, 3));
    root.file("etc/inittab", false, include_str!("root/inittab"));
    root.file("etc/rc", true, include_str!("root/rc"));
    root.file("etc/rc.shutdown", true, include_str!("root/rc.shutdown"));
    root.file("etc/isthmus/agent", true, include_str!("root/agent"));
    root.file("etc/isthmus/console", true, include_str!("root/console"));
    root.file("etc/isthmus/xenstored", true, include_str!("root/xenstored"));
    root.file("etc/isthmus/network", true, include_str!("root/network"));
    root.file("etc/isthmus/supervisor", true, include_str!("root/supervisor"));
    root.file("etc/isthmus/lease", true, include_str!("root/lease"));
    root.file("etc/profile", false, include_str!("root/profile"));
    root.file("etc/passwd", false, "root::0:0:root:/root:/bin/sh\n");
    root.file("etc/group", false, "root:x:0:\n");
    root.file("etc/hosts", false, "127.0.0.1 localhost dom0\n");
    Ok(())
}

/// busybox, and the links to it that are needed before it makes the others itself.
fn busybox(root: &mut Root, store: &Store) -> Result<()> {
    let busybox = store.fetch("busybox-static")?.path.join("bin/busybox");
    let busybox = fs::read(&busybox).with_context(|| format!("reading {}", busybox.display()))?;
    root.file("usr/bin/busybox", true, busybox);
    for link in ["init", "usr/bin/sh", "usr/sbin/modprobe"] {
        root.symlink(link, "/usr/bin/busybox");
    }
    // Debian's busybox lacks this one, and a serial line knows no size.
    root.file("usr/bin/resize", true, include_str!("root/resize"));
    Ok(())
}

#[cfg(test)]
mod tests;
