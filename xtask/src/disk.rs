// SPDX-License-Identifier: MIT OR Apache-2.0
//! The user's disk images: that they are there, and that no other machine has them.
//!
//! Two machines that write to one image destroy what is on it. QEMU refuses that by a lock of its own, Bochs leaves a file
//! behind that outlives it and so is told not to look. So xtask holds a lock on each image while the machine runs, the
//! same for every emulator; the kernel drops it with xtask.

use std::fs::{File, OpenOptions};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// The images of one machine, ours until this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    _files: Vec<File>,
}

/// Takes `disks` for one machine. Errors: one is not there, cannot be written, or belongs to a machine that runs.
pub(crate) fn hold(disks: &[PathBuf]) -> Result<Held> {
    let mut files = Vec::new();
    for disk in disks {
        let name = disk.display();
        let open = OpenOptions::new().read(true).write(true).open(disk);
        let file = open.with_context(|| format!("disk {name}: a file that can be read and written is needed"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => files.push(file),
            Err(Errno::WOULDBLOCK) => {
                bail!("disk {name} is in use by another machine: end that one first, or give this one a copy")
            }
            Err(error) => return Err(error).with_context(|| format!("locking disk {name}")),
        }
    }
    Ok(Held { _files: files })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_belongs_to_one_machine_at_a_time() {
        let disk = std::env::temp_dir().join(format!("isthmus-disk-{}", std::process::id()));
        std::fs::write(&disk, "x").unwrap();
        let held = hold(std::slice::from_ref(&disk)).unwrap();
        let refusal = hold(std::slice::from_ref(&disk)).unwrap_err().to_string();
        assert!(refusal.contains("is in use by another machine"), "{refusal}");
        drop(held);
        hold(std::slice::from_ref(&disk)).unwrap();
        std::fs::remove_file(&disk).unwrap();
        assert!(hold(&[disk]).unwrap_err().to_string().contains("is needed"));
    }
}
