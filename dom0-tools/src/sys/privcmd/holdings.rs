// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a domain holds of what there is only so much of.

use guest_abi::event_channel::{EVTCHNOP_STATUS, EVTCHNSTAT_CLOSED, Status};
use guest_abi::grant_table::{GNTTABOP_QUERY_SIZE, QuerySize};
use guest_abi::hypercall::{HYPERVISOR_EVENT_CHANNEL_OP, HYPERVISOR_GRANT_TABLE_OP};
use guest_abi::{DomId, Wire};
use rustix::io::Errno;

use super::{Error, Privcmd};

/// Ports that a domain can have at most.
const MAX_PORTS: u32 = 1 << 17;
/// Ports are given out from the lowest free one on: behind a gap like this there are none.
const GAP: u32 = 512;

impl Privcmd {
    /// Event-channel ports that a domain has in use.
    ///
    /// # Errors
    /// ESRCH, or EPERM for another domain's.
    pub fn ports_in_use(&self, domain: DomId) -> Result<u32, Error> {
        let buffer = self.buffer(Status::SIZE)?;
        let arguments = [u64::from(EVTCHNOP_STATUS), buffer.address(), 0, 0, 0];
        let (mut count, mut last) = (0, 0);
        for port in 1..MAX_PORTS {
            if port - last > GAP {
                break;
            }
            buffer.put(0, &Status { dom: domain.raw(), port, ..Status::default() });
            let operation = || format!("asking for port {port} of {domain}");
            // SAFETY: the structure lies in the buffer and holds no address.
            match unsafe { self.call(HYPERVISOR_EVENT_CHANNEL_OP, arguments, operation) } {
                // Beyond the last one.
                Err(Error::Operation { cause: Errno::INVAL, .. }) => break,
                other => drop(other?),
            }
            if buffer.get::<Status>(0).status != EVTCHNSTAT_CLOSED {
                (count, last) = (count + 1, port);
            }
        }
        Ok(count)
    }

    /// Frames of a domain's grant table.
    ///
    /// # Errors
    /// ESRCH, or EPERM for another domain's.
    pub fn grant_frames(&self, domain: DomId) -> Result<u32, Error> {
        let buffer = self.buffer(QuerySize::SIZE)?;
        buffer.put(0, &QuerySize { dom: domain.raw(), ..QuerySize::default() });
        let arguments = [u64::from(GNTTABOP_QUERY_SIZE), buffer.address(), 1, 0, 0];
        // SAFETY: the one structure lies in the buffer and holds no address.
        unsafe { self.call(HYPERVISOR_GRANT_TABLE_OP, arguments, || format!("the grant table of {domain}")) }?;
        Ok(buffer.get::<QuerySize>(0).nr_frames)
    }
}
