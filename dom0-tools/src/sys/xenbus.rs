// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's end of xenstore: `/dev/xen/xenbus_backend`.
//!
//! The kernel of a domain that runs the store keeps a ring page and a port for it and waits. Who maps the
//! page, binds to the port and signals it once is the store.
//!
//! Source: Linux `drivers/xen/xenbus/xenbus_dev_backend.c` (the interface) and `include/xen/xenbus_dev.h` at 6.1.

use std::os::fd::OwnedFd;

use guest_abi::{EvtchnPort, PAGE_SIZE};
use rustix::ioctl::Opcode;

use super::{Error, Mapping, ioctl, open};

const DEVICE: &str = "/dev/xen/xenbus_backend";

const EVTCHN: Opcode = ioctl::number(b'B', 0, 0);

/// The open device.
#[derive(Debug)]
pub struct XenbusBackend {
    device: OwnedFd,
}

impl XenbusBackend {
    /// Opens the device.
    ///
    /// # Errors
    /// This is no domain, its store is elsewhere, or this is not root.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { device: open(DEVICE, "xenbus (built in)")? })
    }

    /// The port that the kernel has made for the store, in this domain.
    ///
    /// # Errors
    /// The kernel has none: its store is elsewhere.
    pub fn port(&self) -> Result<EvtchnPort, Error> {
        let mut nothing = 0_u64;
        // SAFETY: this call takes no argument; the kernel does not look at the word.
        let port = unsafe { ioctl::one(&self.device, EVTCHN, &mut nothing) };
        let failed = |cause| Error::Operation { device: DEVICE, operation: "asking for the port".to_owned(), cause };
        port.map(|port| EvtchnPort::new(port.cast_unsigned())).map_err(failed)
    }

    /// The ring's page.
    ///
    /// # Errors
    /// The kernel has none.
    pub fn ring(&self) -> Result<Mapping, Error> {
        let failed = |cause| Error::Operation { device: DEVICE, operation: "mapping the ring".to_owned(), cause };
        Mapping::new(&self.device, 0, PAGE_SIZE, true).map_err(failed)
    }
}
