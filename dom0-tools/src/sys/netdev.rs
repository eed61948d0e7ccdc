// SPDX-License-Identifier: MIT OR Apache-2.0
//! Network interfaces and bridges, by the calls that sockets have for them.
//!
//! Source: Linux `include/uapi/linux/sockios.h` and `if.h` at 6.1.

use std::ffi::CString;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::ioctl::{Opcode, opcode};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::{Error, ioctl};

const GET_FLAGS: Opcode = opcode::none(0x89, 0x13);
const SET_FLAGS: Opcode = opcode::none(0x89, 0x14);
const SET_ADDRESS: Opcode = opcode::none(0x89, 0x16);
const SET_NETMASK: Opcode = opcode::none(0x89, 0x1c);
const SET_MTU: Opcode = opcode::none(0x89, 0x22);
const GET_INDEX: Opcode = opcode::none(0x89, 0x33);
const ADD_BRIDGE: Opcode = opcode::none(0x89, 0xa0);
const ADD_TO_BRIDGE: Opcode = opcode::none(0x89, 0xa2);
const UP: u16 = 1;
const INET: u16 = 2;
/// The longest name, with its NUL.
const NAME: usize = 16;

/// `struct ifreq`.
#[repr(C)]
struct Request {
    name: [u8; NAME],
    value: [u8; 24],
}
const _: () = assert!(size_of::<Request>() == 40);

/// The kernel's network interfaces.
#[derive(Debug)]
pub struct Netdev {
    socket: OwnedFd,
}

impl Netdev {
    /// Opens them.
    ///
    /// # Errors
    /// The kernel has no IPv4.
    pub fn open() -> Result<Self, Error> {
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
        let socket = socket.map_err(|cause| failed("a socket", cause))?;
        Ok(Self { socket })
    }

    fn call(&self, opcode: Opcode, name: &str, value: &[u8], what: &str) -> Result<Request, Error> {
        let mut request = Request { name: [0; NAME], value: [0; 24] };
        if name.len() >= NAME {
            return Err(Error::Range(format!("{name} is no network interface: a name has at most 15 bytes")));
        }
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        request.value[..value.len()].copy_from_slice(value);
        // SAFETY: the argument of each of these calls is a struct ifreq, which holds no addresses as used here.
        let result = unsafe { ioctl::one(&self.socket, opcode, &mut request) };
        result.map_err(|cause| failed(&format!("{what} {name}"), cause))?;
        Ok(request)
    }

    /// Makes a bridge.
    ///
    /// # Errors
    /// It exists, or there is no bridge driver.
    pub fn add_bridge(&self, name: &str) -> Result<(), Error> {
        let mut words = [0_u64; 2];
        let text = CString::new(name).map_err(|_| Error::Range(format!("{name:?} is no name")))?;
        if text.as_bytes().len() >= NAME {
            return Err(Error::Range(format!("{name} is no network interface: a name has at most 15 bytes")));
        }
        for (at, byte) in text.as_bytes().iter().enumerate() {
            words[at / 8] |= u64::from(*byte) << (8 * (at % 8));
        }
        // SAFETY: the call reads a name of at most 16 bytes.
        let result = unsafe { ioctl::words(&self.socket, ADD_BRIDGE, &mut words) };
        result.map(drop).map_err(|cause| failed(&format!("making bridge {name}"), cause))
    }

    /// Puts an interface into a bridge.
    ///
    /// # Errors
    /// There is no such bridge or interface, or it is in a bridge.
    pub fn add_to_bridge(&self, bridge: &str, interface: &str) -> Result<(), Error> {
        let index = self.call(GET_INDEX, interface, &[], "finding")?;
        self.call(ADD_TO_BRIDGE, bridge, &index.value[..4], &format!("adding {interface} to bridge")).map(drop)
    }

    /// Switches an interface on.
    ///
    /// # Errors
    /// There is none.
    pub fn up(&self, interface: &str) -> Result<(), Error> {
        let flags = self.call(GET_FLAGS, interface, &[], "looking at")?;
        let flags = u16::from_le_bytes([flags.value[0], flags.value[1]]) | UP;
        self.call(SET_FLAGS, interface, &flags.to_le_bytes(), "switching on").map(drop)
    }

    /// Sets the largest packet.
    ///
    /// # Errors
    /// There is no such interface, or it cannot.
    pub fn set_mtu(&self, interface: &str, mtu: u32) -> Result<(), Error> {
        self.call(SET_MTU, interface, &mtu.to_le_bytes(), "setting the MTU of").map(drop)
    }

    /// Gives an interface its address.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn set_address(&self, interface: &str, address: Ipv4Addr, mask: Ipv4Addr) -> Result<(), Error> {
        for (opcode, address) in [(SET_ADDRESS, address), (SET_NETMASK, mask)] {
            let mut value = [0; 16];
            value[..2].copy_from_slice(&INET.to_le_bytes());
            value[4..8].copy_from_slice(&address.octets());
            self.call(opcode, interface, &value, "setting the address of")?;
        }
        Ok(())
    }
}

fn failed(operation: &str, cause: rustix::io::Errno) -> Error {
    Error::Operation { device: "network", operation: operation.to_owned(), cause }
}
