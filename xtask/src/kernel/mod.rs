// SPDX-License-Identifier: MIT OR Apache-2.0
//! Linux kernels for dom0 and for guests: getting Debian's, and making them quick to load.
//!
//! Debian ships a bzImage: a decompressor with a compressed ELF inside. GRUB and an emulated BIOS
//! would read it quickly and then spend minutes of emulated time in the decompressor (112 s for
//! xz in Bochs), and a hypervisor that starts PVH kernels wants the ELF anyway. So the payload is
//! unpacked here, on the host, once ([`pvh_loader::bzimage`]), and written without the zeroes at the end of its
//! segments ([`vmlinux`]), which saves a third of what the emulated disk must deliver.
//!
//! The same step reads what the kernel says of itself: its release (which modules fit), whether it
//! can be started by PVH at all, and whether it can be dom0. Debian's cloud flavour cannot, and
//! would only show it as a silent hang.

mod vmlinux;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use pvh_loader::bzimage::{self, Image};
use sha2::{Digest, Sha256};

use crate::debian::{self, Store};

/// One of Debian 12's two kernel series, in one of two flavours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Series {
    /// 6.1, the release's own.
    #[default]
    V6_1,
    /// 6.12, from the same archive.
    V6_12,
    /// 6.1 for guests: smaller, and not able to be dom0.
    Cloud6_1,
    /// 6.12 for guests.
    Cloud6_12,
}

impl Series {
    /// The package that always depends on the newest kernel of the series.
    fn metapackage(self) -> &'static str {
        match self {
            Self::V6_1 => "linux-image-amd64",
            Self::V6_12 => "linux-image-6.12-amd64",
            Self::Cloud6_1 => "linux-image-cloud-amd64",
            Self::Cloud6_12 => "linux-image-6.12-cloud-amd64",
        }
    }
}

impl std::str::FromStr for Series {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Self> {
        match word {
            "6.1" => Ok(Self::V6_1),
            "6.12" => Ok(Self::V6_12),
            "6.1-cloud" => Ok(Self::Cloud6_1),
            "6.12-cloud" => Ok(Self::Cloud6_12),
            _ => bail!("kernel series {word:?} is not one of 6.1, 6.12, 6.1-cloud, 6.12-cloud"),
        }
    }
}

/// A kernel as Debian packs it, unpacked below `target/`.
#[derive(Clone, Debug)]
pub(crate) struct Package {
    /// The versioned package, such as `linux-image-6.1.0-56-amd64`.
    pub(crate) name: String,
    /// What `uname -r` will say, such as `6.1.0-56-amd64`.
    pub(crate) release: String,
    /// The bzImage.
    pub(crate) vmlinuz: PathBuf,
    /// `lib/modules/RELEASE` of the package; without `modules.dep`, which Debian makes on installation.
    pub(crate) modules: PathBuf,
}

/// A kernel as an ELF that a PVH loader takes.
#[derive(Clone, Debug)]
pub(crate) struct Unpacked {
    /// The ELF file, trimmed.
    pub(crate) path: PathBuf,
    /// What `uname -r` will say; empty when the image does not tell.
    pub(crate) release: String,
    /// Physical address of the PVH entry, when the kernel has one.
    pub(crate) pvh_entry: Option<u64>,
    /// Whether the kernel was built to be a control domain.
    pub(crate) dom0_capable: bool,
    /// The SHA-256 of the file that it was unpacked from.
    pub(crate) digest: String,
}

/// Gets the newest kernel of `series` from Debian's archive, or from `target_dir` if it is there.
///
/// The bzImage's SHA-256 is recorded when the package is unpacked and compared on each later call.
///
/// # Errors
/// apt cannot get the package, or the bzImage below `target_dir` is not the one that was unpacked.
pub(crate) fn fetch(series: Series, target_dir: &Path) -> Result<Package> {
    let meta = series.metapackage();
    let name = debian::depends(meta)?
        .into_iter()
        .find(|name| name.starts_with("linux-image-"))
        .with_context(|| format!("package {meta} depends on no kernel: run `apt-get update` as root"))?;
    let tree = Store::new(&target_dir.join("kernels"))?.fetch(&name)?;
    let release = name.trim_start_matches("linux-image-").to_owned();
    let vmlinuz = tree.path.join("boot").join(format!("vmlinuz-{release}"));
    let modules = tree.path.join("lib/modules").join(&release);
    ensure!(modules.is_dir(), "package {name} has no {}", modules.display());
    check_recorded(&vmlinuz)?;
    Ok(Package { name, release, vmlinuz, modules })
}

/// Compares a file with its recorded digest, or records it the first time.
fn check_recorded(file: &Path) -> Result<()> {
    let digest = sha256(&read(file)?);
    let record = PathBuf::from(format!("{}.sha256", file.display()));
    match fs::read_to_string(&record) {
        Ok(recorded) => ensure!(
            recorded.trim() == digest,
            "{} has changed since it was unpacked: remove its folder and start again",
            file.display()
        ),
        Err(_) => fs::write(&record, &digest).with_context(|| format!("writing {}", record.display()))?,
    }
    Ok(())
}

/// Makes `out`, the ELF inside `vmlinuz` with trimmed segments, unless it is there already.
///
/// `vmlinuz` is a bzImage or already an ELF.
///
/// # Errors
/// The file is neither, its compression is not supported, or its payload is damaged.
pub(crate) fn unpack(vmlinuz: &Path, out: &Path) -> Result<Unpacked> {
    let image = read(vmlinuz)?;
    let digest = sha256(&image);
    let stamp = PathBuf::from(format!("{}.from", out.display()));
    let cached = out.exists() && fs::read_to_string(&stamp).is_ok_and(|from| from.trim() == digest);
    if !cached {
        let context = || format!("kernel {}", vmlinuz.display());
        let elf = match bzimage::find(&image).with_context(context)? {
            Image::Elf => image,
            Image::BzImage(payload) => payload.unpack().with_context(context)?,
        };
        let trimmed = vmlinux::trim(&elf).with_context(context)?;
        if let Some(parent) = out.parent() {
            fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        }
        fs::write(out, &trimmed).with_context(|| format!("writing {}", out.display()))?;
        fs::write(&stamp, &digest).with_context(|| format!("writing {}", stamp.display()))?;
    }
    let facts = vmlinux::inspect(&read(out)?).with_context(|| format!("kernel {}", out.display()))?;
    Ok(Unpacked {
        path: out.to_owned(),
        release: facts.release,
        pvh_entry: facts.pvh_entry,
        dom0_capable: facts.dom0_capable,
        digest,
    })
}

impl Unpacked {
    /// Refuses a kernel that cannot be started as a guest.
    ///
    /// # Errors
    /// The kernel has no PVH entry.
    pub(crate) fn require_pvh(&self) -> Result<()> {
        ensure!(
            self.pvh_entry.is_some(),
            "kernel {} ({}) has no PVH entry (ELF note PHYS32_ENTRY): it was built without CONFIG_PVH; \
             use Debian's linux-image-amd64",
            self.path.display(),
            self.release
        );
        Ok(())
    }

    /// Refuses a kernel that cannot be the control domain.
    ///
    /// # Errors
    /// The kernel has no PVH entry, or was built without support for being dom0.
    pub(crate) fn require_dom0(&self) -> Result<()> {
        self.require_pvh()?;
        ensure!(
            self.dom0_capable,
            "kernel {} ({}) cannot be dom0: it was built without CONFIG_XEN_DOM0, as Debian's cloud flavour is; \
             use linux-image-amd64 or linux-image-6.12-amd64",
            self.path.display(),
            self.release
        );
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// A SHA-256 in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
