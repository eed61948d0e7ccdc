// SPDX-License-Identifier: MIT OR Apache-2.0
//! What stands behind a device on the host: block devices and loop devices, bridges and interfaces, kernel modules.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::sys::loop_device::LoopDevice;
use crate::sys::netdev::Netdev;

/// The bridge that is made when it is needed, and has no address.
pub const OWN_BRIDGE: &str = "isthmus0";
const INTERFACES: &str = "/sys/class/net";

/// What a disk's data is on.
#[derive(Debug)]
pub enum Source {
    /// A block device, open.
    Block(File),
    /// A file, by a loop device that lasts until this is dropped and the backend has closed it.
    File {
        /// The block device.
        device: LoopDevice,
        /// What is the same file under whatever name: its file system and its number there.
        file: (u64, u64),
    },
}

impl Source {
    /// Opens a file or a block device.
    ///
    /// # Errors
    /// It is neither, or cannot be opened.
    pub fn open(path: &Path, read_only: bool) -> Result<Self> {
        // A folder cannot even be opened to write.
        ensure!(!path.is_dir(), "its source is a folder, neither a file nor a block device");
        let file = OpenOptions::new().read(true).write(!read_only).open(path).context("opening its source")?;
        let metadata = file.metadata()?;
        if metadata.file_type().is_block_device() {
            return Ok(Self::Block(file));
        }
        ensure!(metadata.is_file(), "its source is neither a file nor a block device");
        ensure!(metadata.len() >= 512, "its source has no whole sector: truncate -s makes a file larger");
        load("loop")?;
        Ok(Self::File { device: LoopDevice::new(&file, read_only)?, file: (metadata.dev(), metadata.ino()) })
    }

    /// Major and minor number of the block device.
    #[must_use]
    pub fn number(&self) -> (u32, u32) {
        let (Self::Block(file) | Self::File { device: LoopDevice { device: file, .. }, .. }) = self;
        let number = file.metadata().map(|metadata| metadata.rdev()).unwrap_or_default();
        (rustix::fs::major(number), rustix::fs::minor(number))
    }

    /// What tells it from every other source in dom0.
    #[must_use]
    pub fn identity(&self) -> String {
        match self {
            Self::Block(_) => format!("block {:?}", self.number()),
            Self::File { file, .. } => format!("file {file:?}"),
        }
    }
}

/// Loads a kernel module, unless it is there or built in.
///
/// # Errors
/// There is none.
pub fn load(module: &str) -> Result<()> {
    if Path::new("/sys/module").join(module.replace('-', "_")).exists() {
        return Ok(());
    }
    let output = Command::new("modprobe").arg(module).output().context("starting modprobe")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("loading the kernel module {module}: {} (does this kernel have it?)", said.trim());
    }
    Ok(())
}

/// Makes sure that a bridge is there and on.
///
/// # Errors
/// It is not, and is not the one that is made here.
pub fn prepare_bridge(bridge: &str) -> Result<()> {
    let path = Path::new(INTERFACES).join(bridge);
    if path.exists() {
        ensure!(path.join("bridge").exists(), "{bridge} is an interface and no bridge");
        return Ok(());
    }
    ensure!(
        [OWN_BRIDGE, super::nat::BRIDGE].contains(&bridge),
        "there is no bridge {bridge}: make it with `brctl addbr {bridge}` or `ip link add {bridge} type bridge`"
    );
    load("bridge")?;
    let netdev = Netdev::open()?;
    netdev.add_bridge(bridge)?;
    netdev.up(bridge)?;
    Ok(())
}

/// Whether an interface is there.
#[must_use]
pub fn has_interface(interface: &str) -> bool {
    Path::new(INTERFACES).join(interface).exists()
}

/// Puts a backend's interface into its bridge and switches it on.
///
/// # Errors
/// The kernel refuses.
pub fn connect_interface(bridge: &str, interface: &str, mtu: Option<u16>) -> Result<()> {
    let netdev = Netdev::open()?;
    if let Some(mtu) = mtu {
        netdev.set_mtu(interface, mtu.into())?;
    }
    netdev.add_to_bridge(bridge, interface)?;
    Ok(netdev.up(interface)?)
}
