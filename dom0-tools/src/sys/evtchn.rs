// SPDX-License-Identifier: MIT OR Apache-2.0
//! Event channels in user space: `/dev/xen/evtchn`.
//!
//! An open file holds ports; reading gives those that were signalled. A port that was read stays
//! masked until it is written back by [`Evtchn::unmask`]: events in between are not lost, they show
//! after it. Dropping the file closes its ports.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use guest_abi::{DomId, EvtchnPort};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::ioctl::Opcode;

use super::{Error, ioctl, open};

const DEVICE: &str = "/dev/xen/evtchn";

const BIND_VIRQ: Opcode = ioctl::number(b'E', 0, 4);
const BIND_INTERDOMAIN: Opcode = ioctl::number(b'E', 1, 8);
const BIND_UNBOUND_PORT: Opcode = ioctl::number(b'E', 2, 4);
const UNBIND: Opcode = ioctl::number(b'E', 3, 4);
const NOTIFY: Opcode = ioctl::number(b'E', 4, 4);
const _: () = assert!(BIND_INTERDOMAIN == 0x84501 && NOTIFY == 0x44504, "uapi/xen/evtchn.h");

#[repr(C)]
struct BindInterdomain {
    remote_domain: u32,
    remote_port: u32,
}

/// An open file of the device with its ports.
#[derive(Debug)]
pub struct Evtchn {
    device: OwnedFd,
}

impl Evtchn {
    /// Opens the device.
    ///
    /// # Errors
    /// This is no domain, or not root.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { device: open(DEVICE, "xen-evtchn")? })
    }

    fn call<T>(&self, opcode: Opcode, mut argument: T, operation: impl FnOnce() -> String) -> Result<u32, Error> {
        // SAFETY: the four callers below pass the structure of their opcode, which holds no address.
        let result = unsafe { ioctl::one(&self.device, opcode, &mut argument) };
        let result = result.map_err(|cause| Error::Operation { device: DEVICE, operation: operation(), cause })?;
        Ok(result.cast_unsigned())
    }

    /// Makes a port that `remote` may bind to.
    ///
    /// # Errors
    /// No port is free, or the domain does not exist.
    pub fn bind_unbound(&self, remote: DomId) -> Result<EvtchnPort, Error> {
        self.call(BIND_UNBOUND_PORT, u32::from(remote.raw()), || format!("making a port for {remote}"))
            .map(EvtchnPort::new)
    }

    /// Binds to a port that `remote` made for this domain. The new port is signalled at once.
    ///
    /// # Errors
    /// The remote port is not one that waits for this domain.
    pub fn bind_interdomain(&self, remote: DomId, port: EvtchnPort) -> Result<EvtchnPort, Error> {
        let argument = BindInterdomain { remote_domain: u32::from(remote.raw()), remote_port: port.raw() };
        self.call(BIND_INTERDOMAIN, argument, || format!("binding to {port} of {remote}")).map(EvtchnPort::new)
    }

    /// Binds a virtual interrupt, on vCPU 0.
    ///
    /// # Errors
    /// It is bound already, or this domain may not have it.
    pub fn bind_virq(&self, virq: u32) -> Result<EvtchnPort, Error> {
        self.call(BIND_VIRQ, virq, || format!("binding virtual interrupt {virq}")).map(EvtchnPort::new)
    }

    /// Closes a port.
    ///
    /// # Errors
    /// It is not one of this file's.
    pub fn unbind(&self, port: EvtchnPort) -> Result<(), Error> {
        self.call(UNBIND, port.raw(), || format!("closing {port}")).map(drop)
    }

    /// Signals the other end of a port.
    ///
    /// # Errors
    /// It is not one of this file's.
    pub fn notify(&self, port: EvtchnPort) -> Result<(), Error> {
        self.call(NOTIFY, port.raw(), || format!("notifying {port}")).map(drop)
    }

    /// Waits for a signalled port; `None` if there is none within `timeout`.
    ///
    /// # Errors
    /// The device cannot be read: more ports were signalled than its ring holds.
    pub fn wait(&self, timeout: Duration) -> Result<Option<EvtchnPort>, Error> {
        let failed = |cause| Error::Operation { device: DEVICE, operation: "waiting".to_owned(), cause };
        let timeout = Timespec::try_from(timeout).map_err(|_| Error::Range(format!("a wait of {timeout:?}")))?;
        let mut fds = [PollFd::new(&self.device, PollFlags::IN)];
        if poll(&mut fds, Some(&timeout)).map_err(failed)? == 0 {
            return Ok(None);
        }
        let mut port = [0; 4];
        rustix::io::read(&self.device, &mut port).map_err(failed)?;
        Ok(Some(EvtchnPort::new(u32::from_ne_bytes(port))))
    }

    /// Lets a port that was read be signalled again.
    ///
    /// # Errors
    /// The device cannot be written.
    pub fn unmask(&self, port: EvtchnPort) -> Result<(), Error> {
        let written = rustix::io::write(&self.device, &port.raw().to_ne_bytes());
        let failed = |cause| Error::Operation { device: DEVICE, operation: format!("unmasking {port}"), cause };
        written.map(drop).map_err(failed)
    }
}

impl AsFd for Evtchn {
    /// To poll together with others: readable when a port was signalled.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}
