// SPDX-License-Identifier: MIT OR Apache-2.0
//! dom0's kernel and root as the user's own files.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::runs::{ends, text, xtask};
use super::scenes::{Scene, scene};
use crate::debian::Store;
use crate::dom0::{self, Wanted};
use crate::kernel::{self, Series};
use crate::launch::RunDir;
use crate::workspace;

pub(super) const ALL: &[Scene] = &[
    scene("run/kernel-file-with-its-modules", kernel_file),
    scene("run/kernel-is-debians-to-the-byte", to_the_byte),
    scene("run/root-of-ones-own", own_root),
];

/// A stock `vmlinuz` and its modules in folders of their own, whose paths have blanks in them.
fn kernel_file(log: &Path) -> Result<()> {
    let dir = RunDir::create("own kernel")?;
    let package = kernel::fetch(Series::V6_12, &workspace::target())?;
    let (file, modules) = (dir.path().join("my vmlinuz"), dir.path().join("my modules"));
    fs::copy(&package.vmlinuz, &file)?;
    std::os::unix::fs::symlink(&package.modules, &modules)?;
    let command = "uname -r; cat /sys/hypervisor/type; lsmod | grep -o '^e1000e' || exit 3; exit 7";
    let output = xtask(
        log,
        &["run", "--emulator", "qemu", "--kernel", text(&file)?, "--modules", text(&modules)?, "--exec", command],
    )?;
    ends(&output, 7)?;
    let (found, expected) = (String::from_utf8_lossy(&output.stdout), format!("{}\nxen\ne1000e\n", package.release));
    ensure!(found == expected, "it printed {found:?}, not {expected:?}");
    let digest = format!("sha256 {}", kernel::sha256(&fs::read(&file)?));
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(said.contains(&digest), "it does not say that the kernel has {digest}");
    Ok(())
}

/// The kernel that `run` has used before is that of Debian's archive, downloaded once more.
fn to_the_byte(_: &Path) -> Result<()> {
    let dir = RunDir::create("fresh-kernel")?;
    let package = kernel::fetch(Series::default(), &workspace::target())?;
    let fresh = Store::new(dir.path())?.fetch(&package.name)?.path;
    let name = package.vmlinuz.file_name().context("a kernel is a file")?;
    let differs = fs::read(fresh.join("boot").join(name))? != fs::read(&package.vmlinuz)?;
    ensure!(!differs, "{} is not what Debian's archive has", package.vmlinuz.display());
    Ok(())
}

/// A root that was made elsewhere is taken as it is.
fn own_root(log: &Path) -> Result<()> {
    let dir = RunDir::create("own-root")?;
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("etc"))?;
    fs::write(tree.join("etc/whose"), "my own\n")?;
    let modules = dom0::modules(&Wanted { overlays: vec![tree], ..Wanted::default() }, dir.path())?;
    let root = &modules.iter().find(|module| module.args == "initrd").context("dom0 has a root")?.file;
    let output = xtask(log, &["run", "--emulator", "qemu", "--initrd", text(root)?, "--exec", "cat /etc/whose"])?;
    ends(&output, 0)?;
    ensure!(output.stdout == b"my own\n", "it printed {:?}", output.stdout.escape_ascii().to_string());
    Ok(())
}
