// SPDX-License-Identifier: MIT OR Apache-2.0
//! Debian packages as trees of files.
//!
//! Kernels and dom0's programs are the distribution's own, unmodified. `apt-get download` gets a
//! package and checks it against the signed package lists, `dpkg-deb -x` lays its files out below
//! `target/`: nothing is installed, no script of a package runs, and none of it needs root. A tree
//! is complete once its stamp file exists, so an interrupted unpacking is done again and a finished
//! one needs no network.

use std::fs;
use std::io::{IsTerminal, stderr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::setup;

/// The folder below which packages are kept, unpacked.
pub(crate) struct Store {
    root: PathBuf,
}

/// One unpacked package.
pub(crate) struct Tree {
    /// Where its files lie, as if this were `/`.
    pub(crate) path: PathBuf,
}

impl Store {
    /// Uses (and creates when needed) `root`.
    pub(crate) fn new(root: &Path) -> Result<Self> {
        fs::create_dir_all(root).with_context(|| format!("creating {}", root.display()))?;
        Ok(Self { root: root.canonicalize()? })
    }

    /// The package's tree, downloaded first unless it is there.
    ///
    /// # Errors
    /// The package is not in the package lists, cannot be downloaded or fails apt's verification.
    pub(crate) fn fetch(&self, package: &str) -> Result<Tree> {
        again_with(setup::renew_lists, || self.fetch_by_lists(package))
    }

    fn fetch_by_lists(&self, package: &str) -> Result<Tree> {
        let candidate = Candidate::of(package)?;
        let path = self.root.join(candidate.file.trim_end_matches(".deb").replace("%3a", "_"));
        let stamp = PathBuf::from(format!("{}.complete", path.display()));
        let tree = Tree { path };
        if stamp.exists() {
            return Ok(tree);
        }
        let mib = candidate.bytes.div_ceil(1 << 20);
        eprintln!("xtask: downloading {package} ({mib} MiB) from the Debian archive");
        self.download(package)?;
        let archive = self.root.join(&candidate.file);
        if tree.path.exists() {
            fs::remove_dir_all(&tree.path).with_context(|| format!("removing {}", tree.path.display()))?;
        }
        fs::create_dir_all(&tree.path)?;
        run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&tree.path))?;
        fs::remove_file(&archive).with_context(|| format!("removing {}", archive.display()))?;
        fs::write(&stamp, &candidate.file).with_context(|| format!("writing {}", stamp.display()))?;
        Ok(tree)
    }

    /// Runs apt with its progress on our standard error.
    fn download(&self, package: &str) -> Result<()> {
        let mut apt = Command::new("apt-get");
        apt.current_dir(&self.root).stdout(stderr());
        // Root's apt would drop to a user that cannot write below a private target folder.
        apt.args(["-o", "APT::Sandbox::User=root"]);
        if !stderr().is_terminal() {
            apt.arg("-qq");
        }
        let status = apt.args(["download", package]).status().context("running apt-get")?;
        ensure!(
            status.success(),
            "apt-get could not download {package}: if it says 404 or unauthenticated, the package lists are old; \
             run `apt-get update` as root"
        );
        Ok(())
    }
}

/// The version of a package that apt would install.
struct Candidate {
    file: String,
    bytes: u64,
}

impl Candidate {
    fn of(package: &str) -> Result<Self> {
        let text = output(Command::new("apt-get").args(["download", "--print-uris", package])).with_context(|| {
            format!("package {package} is not in apt's lists: run `apt-get update` as root (bookworm is expected)")
        })?;
        // 'URI' FILE BYTES HASH
        let mut words = text.lines().find(|line| line.starts_with('\'')).unwrap_or("").split(' ').skip(1);
        match (words.next(), words.next().and_then(|word| word.parse().ok())) {
            (Some(file), Some(bytes)) if file.ends_with(".deb") => Ok(Self { file: file.to_owned(), bytes }),
            _ => bail!("apt-get download --print-uris {package} answered {text:?}, not a package"),
        }
    }
}

/// The packages that `package` depends on (`Depends` and `Pre-Depends`; of alternatives the first).
pub(crate) fn depends(package: &str) -> Result<Vec<String>> {
    again_with(setup::renew_lists, || depends_by_lists(package))
}

fn depends_by_lists(package: &str) -> Result<Vec<String>> {
    let text = output(Command::new("apt-cache").args([
        "depends",
        "--no-recommends",
        "--no-suggests",
        "--no-conflicts",
        "--no-breaks",
        "--no-replaces",
        "--no-enhances",
        package,
    ]))
    .with_context(|| format!("package {package} is not in apt's lists: run `apt-get update` as root"))?;
    let mut found = Vec::new();
    let mut alternative = false;
    for line in text.lines().skip(1) {
        let is_alternative = line.trim_start().starts_with('|');
        if let Some((_, name)) = line.split_once("epends: ")
            && !alternative
        {
            found.push(name.trim().to_owned());
        }
        if line.contains("epends: ") {
            alternative = is_alternative;
        }
    }
    Ok(found)
}

/// The section of the archive that `package` belongs to, such as `libs`; empty for a name that is no package.
pub(crate) fn section(package: &str) -> String {
    // A virtual package has no record, which apt-cache treats as an error.
    let text = output(Command::new("apt-cache").args(["show", "--no-all-versions", package])).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("Section: ")).unwrap_or_default().to_owned()
}

/// Does `work`, and once more when it fails and `renew` brings newer package lists: old ones lack new packages, and name
/// files that the archive has no longer.
fn again_with<T>(renew: impl FnOnce() -> bool, work: impl Fn() -> Result<T>) -> Result<T> {
    work().or_else(|error| if renew() { work() } else { Err(error) })
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("running {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let done = command.stdin(Stdio::null()).output().with_context(|| format!("running {command:?}"))?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{command:?} ended with {}: {}", done.status, said.trim());
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Fails until there are newer lists.
    fn look_up(is_new: &Cell<bool>) -> Result<u32> {
        if is_new.get() { Ok(1) } else { bail!("not in the lists") }
    }

    #[test]
    fn what_old_lists_lack_is_found_in_newer_ones() {
        let is_new = Cell::new(false);
        let renew = || {
            is_new.set(true);
            true
        };
        assert_eq!(again_with(renew, || look_up(&is_new)).unwrap(), 1);
    }

    #[test]
    fn the_first_error_is_told_where_lists_cannot_be_renewed() {
        let error = again_with(|| false, || look_up(&Cell::new(false))).unwrap_err();
        assert_eq!(error.to_string(), "not in the lists");
    }
}
