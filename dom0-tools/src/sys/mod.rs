// SPDX-License-Identifier: MIT OR Apache-2.0
//! Linux's devices for the hypervisor's interface, and the two things that need a CPU instruction.
//!
//! This is the only place of the crate with `unsafe`. What it relies on: the kernel's ioctl
//! numbers and structures (asserted here against their sizes), that a mapping stays where it is
//! until it is unmapped (each [`Mapping`] owns its range), and that memory which another domain
//! writes is only ever read and written through volatile or atomic accesses, never by reference.
//!
//! Source: Linux `include/uapi/xen/{privcmd,evtchn,gntdev,gntalloc}.h` at 6.1.
#![expect(unsafe_code, reason = "ioctls, shared mappings, port access and the TSC live here and nowhere else")]

pub mod aio;
pub mod clock;
pub mod evtchn;
pub mod gntalloc;
pub mod gntdev;
mod ioctl;
pub mod loop_device;
mod mapping;
pub mod netdev;
pub mod privcmd;
pub mod signal;
pub mod xenbus;

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};

pub use mapping::Mapping;

/// Why a device could not be used: which one, what for, and the kernel's reason.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device could not be opened.
    #[error("opening {device}: {cause}{}", remedy(*.cause, .module))]
    Open {
        /// The device's path.
        device: &'static str,
        /// The kernel's reason.
        cause: rustix::io::Errno,
        /// The module that brings the device.
        module: &'static str,
    },
    /// The kernel or the hypervisor refused an operation.
    #[error("{device}: {operation}: {cause}")]
    Operation {
        /// The device's path.
        device: &'static str,
        /// What was asked for, with its numbers.
        operation: String,
        /// The kernel's reason, or the hypervisor's handed on.
        cause: rustix::io::Errno,
    },
    /// The hypervisor refused an element of a list of grant operations.
    #[error("{operation}: grant status {status} ({})", gntdev::status_name(*.status))]
    Grant {
        /// What was asked for.
        operation: String,
        /// `GNTST_*`.
        status: i16,
    },
    /// A length or offset that the interface cannot carry.
    #[error("{0}")]
    Range(String),
}

impl Error {
    /// The kernel's error number, if that is the reason.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Open { cause, .. } | Self::Operation { cause, .. } => Some(cause.raw_os_error()),
            Self::Grant { .. } | Self::Range(_) => None,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        match error.errno() {
            Some(number) => Self::new(Self::from_raw_os_error(number).kind(), error),
            None => Self::other(error),
        }
    }
}

fn remedy(cause: rustix::io::Errno, module: &str) -> String {
    match cause {
        rustix::io::Errno::NOENT | rustix::io::Errno::NXIO | rustix::io::Errno::NODEV => {
            format!(" (is this a domain of the hypervisor, and is module {module} loaded?)")
        }
        rustix::io::Errno::ACCESS | rustix::io::Errno::PERM => " (only root may)".to_owned(),
        _ => String::new(),
    }
}

fn open(device: &'static str, module: &'static str) -> Result<OwnedFd, Error> {
    rustix::fs::open(device, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|cause| Error::Open {
        device,
        cause,
        module,
    })
}
