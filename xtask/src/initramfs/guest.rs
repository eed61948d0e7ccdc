// SPDX-License-Identifier: MIT OR Apache-2.0
//! The demo guest, and the files by which dom0 makes it.
//!
//! The guest's kernel is Debian's cloud kernel to the byte; its initial RAM disk is busybox with a root shell on the
//! console and the frontends' drivers. Both lie in dom0 below `/var/lib/isthmus/demo`, brought by a second archive
//! behind that of dom0's root: the kernel unpacks one after the other, and the root itself stays as small as it is.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::archive::{self, Root};
use super::modules;
use crate::debian::Store;
use crate::kernel::Package;

/// Where dom0 finds the demo guest.
pub(crate) const FOLDER: &str = "var/lib/isthmus/demo";
/// Drivers of the devices that a domain can have, and those by which it serves others as a driver domain. What a kernel
/// does not have is left out.
const MODULES: &[&str] = &[
    "xen-blkfront",
    "xen-netfront",
    "9p",
    "9pnet_xen",
    "ext4",
    "crc32c_generic",
    "xen-blkback",
    "xen-netback",
    "loop",
    "bridge",
];

/// Makes the archive that brings the demo guest to dom0.
///
/// The same packages make the same bytes.
///
/// # Errors
/// A package cannot be downloaded, or a file cannot be read.
pub(crate) fn archive(kernel: &Package, target_dir: &Path) -> Result<Vec<u8>> {
    let store = Store::new(&target_dir.join("packages"))?;
    let vmlinuz = fs::read(&kernel.vmlinuz).with_context(|| format!("reading {}", kernel.vmlinuz.display()))?;
    let mut root = Root::new();
    root.file(&format!("{FOLDER}/vmlinuz"), false, vmlinuz);
    root.file(&format!("{FOLDER}/initrd"), false, initrd(kernel, &store)?);
    root.file(&format!("{FOLDER}/demo.toml"), false, include_str!("guest/demo.toml"));
    root.file("etc/rc.d/50-demo", true, include_str!("guest/start"));
    archive::compress(&root.to_cpio()?)
}

/// A guest's root with busybox, these programs, modules of a kernel if there are any, and nothing else.
///
/// # Errors
/// As for [`archive()`].
pub(crate) fn plain_root(
    target_dir: &Path,
    programs: [(&str, Vec<u8>); 2],
    modules: Option<(&Package, &[&str])>,
) -> Result<Vec<u8>> {
    let mut root = skeleton(&Store::new(&target_dir.join("packages"))?)?;
    if let Some((kernel, list)) = modules {
        add_modules(&mut root, kernel, list)?;
    }
    for (path, bytes) in programs {
        root.file(path, true, bytes);
    }
    archive::compress(&root.to_cpio()?)
}

/// busybox and the folders that everybody expects.
fn skeleton(store: &Store) -> Result<Root> {
    let mut root = Root::new();
    super::busybox(&mut root, store)?;
    for folder in ["dev", "etc/rc.d", "mnt", "proc", "root", "run", "sys", "tmp", "var/log"] {
        root.directory(folder);
    }
    root.character_device("dev/console", (5, 1));
    root.character_device("dev/null", (1, 3));
    Ok(root)
}

/// The guest's own root.
fn initrd(kernel: &Package, store: &Store) -> Result<Vec<u8>> {
    let mut root = skeleton(store)?;
    root.file("etc/inittab", false, include_str!("guest/inittab"));
    root.file("etc/rc", true, include_str!("guest/rc"));
    root.file("etc/console", true, include_str!("guest/console"));
    root.file("etc/lease", true, include_str!("root/lease"));
    root.file("etc/passwd", false, "root::0:0:root:/root:/bin/sh\n");
    root.file("etc/group", false, "root:x:0:\n");
    root.file("etc/hosts", false, "127.0.0.1 localhost demo\n");
    add_modules(&mut root, kernel, MODULES)?;
    archive::compress(&root.to_cpio()?)
}

fn add_modules(root: &mut Root, kernel: &Package, list: &[&str]) -> Result<()> {
    for (path, bytes) in modules::select(&kernel.modules, list)?.files()? {
        root.file(&format!("usr/lib/modules/{}/{path}", kernel.release), false, bytes);
    }
    Ok(())
}
