// SPDX-License-Identifier: MIT OR Apache-2.0
//! From a hypervisor and its modules to something that an emulator boots.
//!
//! A run has a folder of its own below the build directory, so that several can go on at once; it is removed when the
//! run is over. Boot media are made there anew each time: they are put together in a fraction of a second.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::bundle::{self, Module};
use crate::emulator::{Boot, Emulator};
use crate::{image, workspace};

/// What is booted.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) hypervisor: PathBuf,
    /// The hypervisor's command line.
    pub(crate) cmdline: String,
    pub(crate) modules: Vec<Module>,
}

/// How the hypervisor is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    /// In the way that is quickest for the emulator.
    Quickest,
    /// By firmware and GRUB, as on a bare machine.
    Grub,
}

impl Launch {
    /// Makes the boot media in `dir`.
    pub(crate) fn prepare(&self, emulator: Emulator, via: Via, dir: &Path) -> Result<Boot> {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        if emulator == Emulator::Bochs || via == Via::Grub {
            let disk = dir.join("boot.img");
            image::grub_disk(&self.hypervisor, &self.cmdline, &self.modules, &disk)?;
            return Ok(Boot::Disk(disk));
        }
        let bundle = dir.join("bundle.cpio");
        bundle::write(&self.modules, &bundle)?;
        Ok(Boot::Pvh { kernel: self.hypervisor.clone(), bundle: Some(bundle), cmdline: self.cmdline.clone() })
    }
}

/// A folder for the files of one run; dropping it removes it with its contents.
#[derive(Debug)]
pub(crate) struct RunDir(PathBuf);

impl RunDir {
    /// Makes a folder that nobody else has; `name` says what for.
    pub(crate) fn create(name: &str) -> Result<Self> {
        let all = workspace::target().join("run");
        fs::create_dir_all(&all).with_context(|| format!("creating {}", all.display()))?;
        let mut dir = all.join(format!("{}-{name}", std::process::id()));
        for number in 2.. {
            match fs::create_dir(&dir) {
                // The same may be done twice at the same time.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    dir = all.join(format!("{}-{name}-{number}", std::process::id()));
                }
                made => {
                    made.with_context(|| format!("creating {}", dir.display()))?;
                    break;
                }
            }
        }
        Ok(Self(dir))
    }

    /// The same outside of the checkout, for what must not be taken for a part of it.
    pub(crate) fn outside(name: &str) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("isthmus-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(Self(dir))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        // What cannot be removed is found there later; there is nobody to tell.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_runs_of_one_name_have_folders_of_their_own() {
        let (one, two) = (RunDir::create("of-one-name").unwrap(), RunDir::create("of-one-name").unwrap());
        assert_ne!(one.path(), two.path());
        let left = one.path().to_owned();
        drop(one);
        assert!(!left.exists() && two.path().exists());
    }
}
