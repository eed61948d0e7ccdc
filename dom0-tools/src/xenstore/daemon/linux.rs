// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine by way of this domain's kernel.
//!
//! A guest's ring is the page that it has granted by reference 1, its builder's doing; where that is not
//! granted it is mapped by its frame number. The kernel's own is in `/dev/xen/xenbus_backend`. When this
//! process dies the kernel unmaps the pages and closes its ends of the ports, and the guests' ends wait to
//! be bound to again; so a successor attaches in the same way.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use guest_abi::domctl::{XEN_DOMINF_DYING, XEN_DOMINF_SHUTDOWN};
use guest_abi::event_channel::VIRQ_DOM_EXC;
use guest_abi::grant_table::GRANT_RESERVED_XENSTORE;
use guest_abi::{DomId, EvtchnPort, Gfn, GrantRef};

use super::{Event, Host, Point};
use crate::sys::evtchn::Evtchn;
use crate::sys::gntdev::{Gntdev, Mapped};
use crate::sys::privcmd::Privcmd;
use crate::sys::xenbus::XenbusBackend;
use crate::sys::{Error, Mapping};
use crate::xenstore::ring::Ring;
use crate::xenstore::store::{Life, Machine};
use crate::xenstore::wire::Code;

/// Where the page of a ring comes from.
#[derive(Debug)]
enum Page {
    Own(Mapping),
    Granted(Mapped<'static>),
}

#[derive(Debug)]
struct Attached {
    page: Page,
    /// Our end of the channel.
    port: EvtchnPort,
}

impl Attached {
    fn mapping(&self) -> &Mapping {
        match &self.page {
            Page::Own(mapping) => mapping,
            Page::Granted(mapped) => mapped.memory(),
        }
    }
}

/// When to die, for tests of what follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DieAt {
    /// At which point.
    pub point: Point,
    /// The how many-th time that it is reached.
    pub time: u32,
}

impl std::str::FromStr for DieAt {
    type Err = String;

    /// Parses `POINT` or `POINT:TIME`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, time) = text.split_once(':').unwrap_or((text, "1"));
        let names = || Point::ALL.map(Point::name).join(", ");
        let point = Point::ALL.into_iter().find(|point| point.name() == name);
        let point = point.ok_or_else(|| format!("{name} is no point: give one of {}", names()))?;
        Ok(Self { point, time: time.parse().map_err(|error| format!("{time}: {error}"))? })
    }
}

impl DieAt {
    /// Kills this process if it is time.
    pub fn reached(&mut self, point: Point) {
        if point != self.point {
            return;
        }
        self.time = self.time.saturating_sub(1);
        if self.time == 0 {
            let own = rustix::process::getpid();
            // It fails for no process's own id.
            let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
        }
    }
}

/// This domain's devices.
#[derive(Debug)]
pub struct LinuxHost {
    evtchn: Evtchn,
    gntdev: &'static Gntdev,
    privcmd: Privcmd,
    own: Option<XenbusBackend>,
    attached: BTreeMap<DomId, Attached>,
    domains_port: Option<EvtchnPort>,
    die_at: Option<DieAt>,
}

impl LinuxHost {
    /// Opens the devices.
    ///
    /// # Errors
    /// This is no domain, or not root.
    pub fn open() -> Result<Self, Error> {
        let evtchn = Evtchn::open()?;
        // A domain that is not told of others' ends serves those that say so by a request.
        let domains_port = evtchn.bind_virq(VIRQ_DOM_EXC).ok();
        Ok(Self {
            evtchn,
            // As long as the process: a mapped page refers to it.
            gntdev: Box::leak(Box::new(Gntdev::open()?)),
            privcmd: Privcmd::open()?,
            own: XenbusBackend::open().ok(),
            attached: BTreeMap::new(),
            domains_port,
            die_at: None,
        })
    }

    fn map(&self, domain: DomId, gfn: u64) -> Result<Page, Error> {
        if domain == DomId::DOM0 {
            let own = self.own.as_ref().ok_or_else(|| Error::Range("this kernel has no ring".to_owned()))?;
            return own.ring().map(Page::Own);
        }
        let reference = GrantRef::new(GRANT_RESERVED_XENSTORE);
        match self.gntdev.map(domain, &[reference], true) {
            Ok(mapped) => Ok(Page::Granted(mapped)),
            Err(_) => self.privcmd.map_foreign(domain, &[Gfn::new(gfn)], true).map(Page::Own),
        }
    }

    fn try_attach(&mut self, domain: DomId, gfn: u64, port: EvtchnPort) -> Result<(u32, u32), Error> {
        self.detach(domain);
        let page = self.map(domain, gfn)?;
        let port = self.evtchn.bind_interdomain(domain, port)?;
        let attached = Attached { page, port };
        let counters = Ring(attached.mapping()).counters();
        self.attached.insert(domain, attached);
        Ok(counters)
    }
}

impl Machine for LinuxHost {
    fn attach(&mut self, domain: DomId, gfn: u64, port: EvtchnPort) -> Result<(u32, u32), Code> {
        self.try_attach(domain, gfn, port).map_err(|error| {
            eprintln!("xenstored: {domain}: cannot be introduced: {error}");
            Code::Einval
        })
    }

    fn life(&mut self, domain: DomId) -> Life {
        match self.privcmd.domain(domain) {
            Ok(None) => Life::Gone,
            // It is not gone before we let go of its ring.
            Ok(Some(info)) if info.flags & XEN_DOMINF_DYING != 0 => Life::Gone,
            Ok(Some(info)) if info.flags & XEN_DOMINF_SHUTDOWN != 0 => Life::ShutDown,
            // A hypervisor that does not answer is no reason to forget a domain.
            Ok(Some(_)) | Err(_) => Life::Alive,
        }
    }

    fn die_at(&mut self, point: &str) -> Result<(), Code> {
        self.die_at = Some(point.parse().map_err(|_| Code::Einval)?);
        Ok(())
    }
}

impl Host for LinuxHost {
    fn own_port(&self) -> Option<EvtchnPort> {
        self.own.as_ref().and_then(|own| own.port().ok())
    }

    fn page(&self, domain: DomId) -> Option<&Mapping> {
        self.attached.get(&domain).map(Attached::mapping)
    }

    fn signal(&self, domain: DomId) {
        if let Some(attached) = self.attached.get(&domain) {
            // A peer that has closed its end is about to end.
            let _ = self.evtchn.notify(attached.port);
        }
    }

    fn detach(&mut self, domain: DomId) {
        if let Some(attached) = self.attached.remove(&domain) {
            // The port is ours until this call.
            let _ = self.evtchn.unbind(attached.port);
        }
    }

    fn events_fd(&self) -> BorrowedFd<'_> {
        self.evtchn.as_fd()
    }

    fn events(&mut self) -> Result<Vec<Event>, Error> {
        let mut events = Vec::new();
        while let Some(port) = self.evtchn.wait(Duration::ZERO)? {
            // Before anything is looked at: what comes later raises it again.
            self.evtchn.unmask(port)?;
            let ring = self.attached.iter().find(|(_, attached)| attached.port == port);
            if Some(port) == self.domains_port {
                events.push(Event::Domains);
            } else if let Some((domain, _)) = ring {
                events.push(Event::Ring(*domain));
            }
            // A guest that signals without end must not keep us here.
            if events.len() > self.attached.len() {
                break;
            }
        }
        Ok(events)
    }

    fn reached(&mut self, point: Point) {
        if let Some(die_at) = &mut self.die_at {
            die_at.reached(point);
        }
    }
}
