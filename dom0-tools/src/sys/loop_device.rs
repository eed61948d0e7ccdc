// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files as block devices, by Linux' loop driver.
//!
//! Source: Linux `include/uapi/linux/loop.h` at 6.1, `struct loop_config` and `struct loop_info64`.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use rustix::ioctl::{Opcode, opcode};

use super::{Error, ioctl};

const CONTROL: &str = "/dev/loop-control";
const DEVICE: &str = "/dev/loop";
const CONFIGURE: Opcode = opcode::none(0x4c, 0x0a);
const GET_FREE: Opcode = opcode::none(0x4c, 0x82);
const READ_ONLY: u64 = 1;
/// The device lets go of the file when it is closed for the last time.
const AUTO_CLEAR: u64 = 4;
/// Words of `struct loop_config`.
const CONFIG_WORDS: usize = 38;
/// How often another program may snatch the free device away.
const TRIES: usize = 16;

/// A file that is a block device as long as anybody has it open.
#[derive(Debug)]
pub struct LoopDevice {
    /// The device's name in the file system.
    pub path: PathBuf,
    /// The device, open.
    pub device: File,
}

impl LoopDevice {
    /// Makes a block device of a file. It ends when this is dropped and nobody else has the device open.
    ///
    /// # Errors
    /// There is no loop driver, or it refuses.
    pub fn new(file: &File, read_only: bool) -> Result<Self, Error> {
        let control = super::open(CONTROL, "loop")?;
        let failed = |operation: &str| {
            let operation = operation.to_owned();
            move |cause| Error::Operation { device: CONTROL, operation, cause }
        };
        for _ in 0..TRIES {
            let mut nothing = 0_u64;
            // SAFETY: the call reads and writes no memory.
            let number = unsafe { ioctl::one(&control, GET_FREE, &mut nothing) };
            let number = number.map_err(failed("looking for a free device"))?;
            let path = PathBuf::from(format!("{DEVICE}{number}"));
            let device = OpenOptions::new().read(true).write(!read_only).open(&path).map_err(|error| {
                let cause = rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO);
                Error::Operation { device: DEVICE, operation: format!("opening {}", path.display()), cause }
            })?;
            let mut config = [0; CONFIG_WORDS];
            config[0] = u64::try_from(file.as_raw_fd()).unwrap_or_default();
            config[7] = (AUTO_CLEAR | if read_only { READ_ONLY } else { 0 }) << 32;
            // SAFETY: the words are a struct loop_config, all of it; it holds no addresses.
            match unsafe { ioctl::words(&device, CONFIGURE, &mut config) } {
                Ok(_) => return Ok(Self { path, device }),
                Err(rustix::io::Errno::BUSY) => {}
                Err(cause) => return Err(failed("making a block device of a file")(cause)),
            }
        }
        Err(failed("all free devices were taken by others")(rustix::io::Errno::BUSY))
    }
}
