// SPDX-License-Identifier: MIT OR Apache-2.0
//! A disk `xvda` that Linux' backend in dom0 serves, by one ring of one page.

use guest_abi::GrantRef;
use guest_abi::io::blkif::{Blkif, RawSlot};
use guest_abi::ring::{Front, Shared};

use crate::device::{Device, Page, page};
use crate::xenstore::Failed;
use crate::{check, check_eq, sched};

/// Its number, which stands for `xvda`.
pub const DISK: u16 = 51712;
const RING: GrantRef = GrantRef::new(8);
const PATIENCE_MS: u64 = 20_000;

/// The ring's page, for those who lie.
pub static RING_PAGE: Page = page();

/// The connected disk.
pub struct Disk {
    front: Front<Blkif, Shared<'static>>,
    /// The device behind it.
    pub device: Device,
    next: u64,
}

impl Disk {
    /// Connects it. Events and the grant table are there already; reference 8 is the ring's.
    ///
    /// # Errors
    /// Why not.
    pub fn connect() -> Result<Self, Failed> {
        let mut device = Device::find("vbd", DISK)?;
        let front = device.ring("ring-ref", RING, &RING_PAGE)?;
        device.put("protocol", format_args!("x86_64-abi"))?;
        device.put("state", format_args!("3"))?;
        device.wait_for_back(b"4")?;
        let sectors = device.get("sectors")?.and_then(|value| value.number());
        check("the backend tells the disk's size", sectors.is_some_and(|size| size >= 64));
        device.put("state", format_args!("4"))?;
        Ok(Self { front, device, next: 1 })
    }

    /// Makes a request and waits for its status.
    pub fn run(&mut self, request: impl FnOnce(u64) -> RawSlot) -> Option<i16> {
        self.run_within(PATIENCE_MS, request, || ())
    }

    /// As [`Disk::run`], for so long at most; `meanwhile` is called once the back knows of the request.
    pub fn run_within(
        &mut self,
        ms: u64,
        request: impl FnOnce(u64) -> RawSlot,
        meanwhile: impl FnOnce(),
    ) -> Option<i16> {
        let id = self.next;
        self.next += 1;
        self.front.push(&request(id)).ok()?;
        if self.front.publish().is_needed() {
            self.device.kick();
        }
        meanwhile();
        let mut status = None;
        sched::wait_until(ms, || match self.front.pop() {
            Ok(Some(response)) => {
                if response.id != id {
                    check_eq("a response is to the request", response.id, id);
                }
                status = Some(response.status);
                true
            }
            Ok(None) => false,
            Err(_) => true,
        });
        status
    }
}
