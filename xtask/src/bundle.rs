// SPDX-License-Identifier: MIT OR Apache-2.0
//! The bundle: all boot modules in the one file that QEMU's `-initrd` takes with a PVH `-kernel`.
//!
//! It is an uncompressed cpio archive of the "newc" kind (kernel documentation, driver-api/early-userspace/buffer-format):
//! for module i the member `i.args` holds its argument string and `i.data`, directly after it, its bytes.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A boot module: a file, and the argument string whose first word is its role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Module {
    pub(crate) file: PathBuf,
    pub(crate) args: String,
}

/// Writes the bundle of `modules` to `out`.
pub(crate) fn write(modules: &[Module], out: &Path) -> Result<()> {
    let mut archive = BufWriter::new(File::create(out).with_context(|| format!("creating {}", out.display()))?);
    for (i, module) in modules.iter().enumerate() {
        let data = std::fs::read(&module.file).with_context(|| format!("reading {}", module.file.display()))?;
        member(&mut archive, &format!("{i}.args"), module.args.as_bytes())?;
        member(&mut archive, &format!("{i}.data"), &data)?;
    }
    member(&mut archive, "TRAILER!!!", &[])?;
    archive.flush().with_context(|| format!("writing {}", out.display()))
}

/// Appends one file member. Names and contents are padded to four bytes, counted from the archive's start, which the
/// lengths before it keep at a multiple of four.
fn member(archive: &mut impl Write, name: &str, data: &[u8]) -> io::Result<()> {
    const HEADER_BYTES: usize = 110;
    const REGULAR_FILE: usize = 0o100_644;
    let too_large = |_| io::Error::new(io::ErrorKind::FileTooLarge, format!("{name}: too large for a bundle"));
    let size = u32::try_from(data.len()).map_err(too_large)?;
    write!(archive, "070701{:08x}{REGULAR_FILE:08x}", 0)?;
    // uid, gid, nlink, mtime, size, the two devices' numbers, length of the name with its NUL, checksum.
    for field in [0, 0, 1, 0, size, 0, 0, 0, 0] {
        write!(archive, "{field:08x}")?;
    }
    write!(archive, "{:08x}{:08x}", name.len() + 1, 0)?;
    archive.write_all(name.as_bytes())?;
    archive.write_all(&[0])?;
    pad(archive, HEADER_BYTES + name.len() + 1)?;
    archive.write_all(data)?;
    pad(archive, data.len())
}

fn pad(archive: &mut impl Write, written: usize) -> io::Result<()> {
    archive.write_all(&[0; 3][..written.wrapping_neg() % 4])
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_member_has_the_header_that_the_format_describes() {
        let mut archive = Vec::new();
        member(&mut archive, "0.args", b"kernel").unwrap();
        assert_eq!(&archive[..6], b"070701");
        assert_eq!(&archive[54..62], b"00000006", "size");
        assert_eq!(&archive[94..102], b"00000007", "length of the name");
        assert_eq!(&archive[110..117], b"0.args\0");
        assert_eq!(&archive[120..126], b"kernel");
        assert_eq!(archive.len(), 128);
    }

    #[test]
    fn cpio_unpacks_what_was_bundled() {
        let Some(cpio) = crate::tool::find("cpio") else { return };
        let dir = std::env::temp_dir().join(format!("isthmus-bundle-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("in"), b"12345").unwrap();
        let module = Module { file: dir.join("in"), args: "initrd".into() };
        write(&[module.clone(), module], &dir.join("bundle")).unwrap();
        let input = Stdio::from(File::open(dir.join("bundle")).unwrap());
        let unpacked = Command::new(cpio).args(["-i", "--quiet"]).current_dir(&dir).stdin(input).status().unwrap();
        assert!(unpacked.success());
        assert_eq!(std::fs::read(dir.join("1.args")).unwrap(), b"initrd");
        assert_eq!(std::fs::read(dir.join("1.data")).unwrap(), b"12345");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
