// SPDX-License-Identifier: MIT OR Apache-2.0
//! dom0's boot modules: its kernel and its root file system.
//!
//! The kernel is the user's or Debian's, unpacked here so that no emulator spends its time on that. The root is made
//! anew for each run, since overlays and our own program may have changed; what it is made of is kept.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use clap::Args;

use crate::bundle::Module;
use crate::kernel::{self, Series};
use crate::{compile, initramfs, report, workspace};

/// What dom0's kernel is always told; the user's arguments follow.
///
/// The kernel's tests of its own ciphers are 0.7 G instructions, half of a boot in an emulator.
const KERNEL_ARGUMENTS: &str = "console=hvc0 cryptomgr.notests=1";

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// What is asked for; the default is all Debian's.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Wanted {
    /// Copy this folder's tree over dom0's root file system (repeatable)
    #[arg(long = "overlay", value_name = "DIR", conflicts_with_all = ["guests", "initrd"])]
    pub(crate) overlays: Vec<PathBuf>,
    /// Add these Debian packages, with the libraries they need, to dom0's root file system
    #[arg(long, value_name = "A,B", value_delimiter = ',', conflicts_with_all = ["guests", "initrd"])]
    pub(crate) packages: Vec<String>,
    /// dom0's kernel: a bzImage or ELF file, or 6.1 or 6.12 for Debian's [default: 6.1]
    #[arg(long, value_name = "FILE", conflicts_with = "guests")]
    pub(crate) kernel: Option<PathBuf>,
    /// The folder with the modules of --kernel [default: the host's /lib/modules/RELEASE]
    #[arg(long, value_name = "DIR", conflicts_with_all = ["guests", "initrd"])]
    pub(crate) modules: Option<PathBuf>,
    /// Another root file system for dom0, as an initramfs
    #[arg(long, value_name = "FILE", conflicts_with = "guests")]
    pub(crate) initrd: Option<PathBuf>,
    /// More arguments for dom0's kernel
    #[arg(long, value_name = "STR", allow_hyphen_values = true, conflicts_with = "guests")]
    pub(crate) append: Option<String>,
    /// The kernel of the demo guest, whose files dom0 has below /var/lib/isthmus/demo.
    #[arg(skip)]
    pub(crate) demo: Option<Series>,
}

/// dom0's boot modules, from what the user asked for or else from Debian's packages.
pub(crate) fn modules(wanted: &Wanted, dir: &Path) -> Result<Vec<Module>> {
    // What the user gave is looked at before anything is downloaded.
    let given = wanted.initrd.as_deref().map(initramfs::check).transpose()?;
    // Packages are downloaded and unpacked in one place, for all runs of this process.
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let kernel = Kernel::get(wanted)?;
    let initrd = match given {
        Some(file) => file.to_owned(),
        None => {
            let root = root(wanted, &kernel, dir)?;
            if let Some(series) = wanted.demo {
                add_demo(&root, series)?;
            }
            root
        }
    };
    let arguments = match &wanted.append {
        Some(more) => format!("{KERNEL_ARGUMENTS} {more}"),
        None => KERNEL_ARGUMENTS.to_owned(),
    };
    report::step(format!("dom0: Linux {} with arguments: {arguments}", kernel.release));
    let kernel = Module { file: kernel.elf, args: format!("kernel {arguments}") };
    Ok(vec![kernel, Module { file: initrd, args: "initrd".to_owned() }])
}

/// A kernel that can be dom0.
struct Kernel {
    elf: PathBuf,
    release: String,
    /// Its `lib/modules/RELEASE`, if there is one.
    modules: Option<PathBuf>,
}

impl Kernel {
    /// The user's file, or Debian's kernel of the series that the user names, or Debian's default.
    fn get(wanted: &Wanted) -> Result<Self> {
        let target = workspace::target();
        let (vmlinuz, packaged_modules) = match &wanted.kernel {
            Some(file) if file.exists() => (file.clone(), None),
            name => {
                let package = kernel::fetch(name.as_deref().map_or_else(|| Ok(Series::default()), series)?, &target)?;
                report::step(format!("kernel package: {} ({})", package.name, package.release));
                (package.vmlinuz, Some(package.modules))
            }
        };
        let name = vmlinuz.file_name().unwrap_or_default().to_string_lossy();
        let unpacked = kernel::unpack(&vmlinuz, &target.join("kernels/unpacked").join(format!("{name}.elf")))?;
        report::step(format!("kernel: {} (sha256 {})", vmlinuz.display(), unpacked.digest));
        unpacked.require_dom0()?;
        let installed = Path::new("/lib/modules").join(&unpacked.release);
        let installed = (!unpacked.release.is_empty() && installed.is_dir()).then_some(installed);
        let modules = wanted.modules.clone().or(packaged_modules).or(installed);
        Ok(Self { elf: unpacked.path, release: unpacked.release, modules })
    }
}

/// Makes dom0's root file system in `dir`.
fn root(wanted: &Wanted, kernel: &Kernel, dir: &Path) -> Result<PathBuf> {
    let isthmus = compile::dom0_tools()?.path;
    report::step("making dom0's root file system");
    if kernel.modules.is_none() {
        report::step(format!("no modules for Linux {}: dom0 has what is built into it; see --modules", kernel.release));
    }
    let spec = initramfs::Spec {
        modules: kernel.modules.as_deref(),
        release: &kernel.release,
        isthmus: &isthmus,
        overlays: &wanted.overlays,
        packages: &wanted.packages,
        target_dir: &workspace::target(),
    };
    let file = dir.join("root.cpio.lz4");
    let made = initramfs::build(&spec, &file)?;
    let is_plain = wanted.overlays.is_empty() && wanted.packages.is_empty();
    if is_plain && made.bytes > initramfs::LIMIT_BYTES {
        report::step(format!("dom0's root has {} bytes, more than the {} it may", made.bytes, initramfs::LIMIT_BYTES));
    }
    if !made.missing_modules.is_empty() {
        report::step(format!("the kernel has no module {}", made.missing_modules.join(", ")));
    }
    Ok(file)
}

/// Puts the demo guest's archive behind that of dom0's root. Both are legacy lz4, whose streams the kernel's decoder reads
/// as one when nothing is between them.
fn add_demo(root: &Path, series: Series) -> Result<()> {
    let package = kernel::fetch(series, &workspace::target())?;
    report::step(format!("demo guest: Linux {}", package.release));
    let archive = initramfs::guest::archive(&package, &workspace::target())?;
    let append = || File::options().append(true).open(root)?.write_all(&archive);
    append().with_context(|| format!("writing {}", root.display()))
}

fn series(name: &Path) -> Result<Series> {
    name.to_string_lossy().parse().with_context(|| format!("{}: no such file", name.display()))
}
