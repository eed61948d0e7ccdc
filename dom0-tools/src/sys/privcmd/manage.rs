// SPDX-License-Identifier: MIT OR Apache-2.0
//! Making, loading, running and ending domains.
//!
//! Thin: each function is one call of the interface, with its numbers in the error. The order in which they
//! make a domain is the builder's ([`crate::builder`]).
//!
//! Source: `docs/src/reference/hypercalls.md`, "How a guest is made".

use guest_abi::domctl::{
    CpuUserRegs, CreateDomain, DOMCTL_ARG, DOMCTL_SIZE, DomctlHeader, GetDomainInfo, MaxMem, MaxVcpus, SchedulerOp,
    VCPU_CONTEXT_CTRLREG, VCPU_CONTEXT_FLAGS, VCPU_CONTEXT_SIZE, VCPU_CONTEXT_USER_REGS, VGCF_ONLINE, VcpuContext,
    XEN_DOMCTL_CREATEDOMAIN, XEN_DOMCTL_DESTROYDOMAIN, XEN_DOMCTL_INTERFACE_VERSION, XEN_DOMCTL_MAX_MEM,
    XEN_DOMCTL_MAX_VCPUS, XEN_DOMCTL_PAUSEDOMAIN, XEN_DOMCTL_SCHEDOP_GETINFO, XEN_DOMCTL_SCHEDOP_PUTINFO,
    XEN_DOMCTL_SCHEDULER_OP, XEN_DOMCTL_SETVCPUCONTEXT, XEN_DOMCTL_UNPAUSEDOMAIN, XEN_SCHEDULER_CREDIT,
};
use guest_abi::event_channel::{AllocUnbound, EVTCHNOP_ALLOC_UNBOUND};
use guest_abi::grant_table::{GTF_PERMIT_ACCESS, GrantEntryV1};
use guest_abi::hvm::{HVMOP_SET_PARAM, HvmParam};
use guest_abi::hypercall::{
    HYPERVISOR_DOMCTL, HYPERVISOR_EVENT_CHANNEL_OP, HYPERVISOR_HVM_OP, HYPERVISOR_ISTHMUS, HYPERVISOR_MEMORY_OP,
    HYPERVISOR_SCHED_OP, HYPERVISOR_SYSCTL,
};
use guest_abi::isthmus::{
    COPY_IN, COPY_ZERO, ConsoleRead, DomainCopy, INTERFACE_VERSION, ISTHMUS_CONSOLE_READ, ISTHMUS_DOMAIN_COPY,
};
use guest_abi::memory::{
    E820Entry, ForeignMemoryMap, MemoryMap, MemoryReservation, XENMEM_POPULATE_PHYSMAP, XENMEM_RESOURCE_GRANT_TABLE,
    XENMEM_RESOURCE_GRANT_TABLE_ID_SHARED, XENMEM_SET_MEMORY_MAP,
};
use guest_abi::num::{low_u32, to_usize};
use guest_abi::sched::{RemoteShutdown, SCHEDOP_REMOTE_SHUTDOWN};
use guest_abi::sysctl::{
    GetDomainInfoList, SYSCTL_ARG, SYSCTL_SIZE, SysctlHeader, XEN_SYSCTL_GETDOMAININFOLIST,
    XEN_SYSCTL_INTERFACE_VERSION,
};
use guest_abi::{DomId, EvtchnPort, Gfn, Gpa, GrantRef, VcpuId, Wire};
use rustix::io::Errno;

use super::super::{Error, Mapping};
use super::{Buffer, Privcmd};

/// Domains that are asked for in one call.
const LIST_CHUNK: usize = 64;
/// EFLAGS with nothing but the bit that is always set.
const RFLAGS_RESERVED: u64 = 2;
/// CR0.PE.
const CR0_PROTECTED: u64 = 1;

impl Privcmd {
    /// A domctl whose argument holds no address. Returns the domain and the argument as they are afterwards.
    fn domctl<A: Wire>(&self, command: u32, domain: DomId, argument: &A, what: &str) -> Result<(DomId, A), Error> {
        let buffer = self.buffer(DOMCTL_SIZE)?;
        self.domctl_in(&buffer, command, domain, argument, what)?;
        let header: DomctlHeader = buffer.get(0);
        Ok((DomId::new(header.domain), buffer.get(DOMCTL_ARG)))
    }

    /// A domctl in a buffer, whose argument holds no address but those of that buffer.
    fn domctl_in<A: Wire>(
        &self,
        buffer: &Buffer,
        command: u32,
        domain: DomId,
        argument: &A,
        what: &str,
    ) -> Result<(), Error> {
        let header = DomctlHeader {
            cmd: command,
            interface_version: XEN_DOMCTL_INTERFACE_VERSION,
            domain: domain.raw(),
            ..DomctlHeader::default()
        };
        buffer.put(0, &header);
        buffer.put(DOMCTL_ARG, argument);
        let arguments = [buffer.address(), 0, 0, 0, 0];
        // SAFETY: the structure lies in the buffer, which is as long as every domctl's; what it points to lies
        // there too, as both callers see to.
        unsafe { self.call(HYPERVISOR_DOMCTL, arguments, || format!("{what} {domain}")) }.map(drop)
    }

    /// Makes a domain without memory, paused, under any free number.
    ///
    /// # Errors
    /// EINVAL for a field, ENOMEM, ENOSPC for too many domains, EEXIST for a number that is taken.
    pub fn create_domain(&self, wanted: &CreateDomain, number: Option<DomId>) -> Result<DomId, Error> {
        let number = number.unwrap_or(DomId::new(0));
        self.domctl(XEN_DOMCTL_CREATEDOMAIN, number, wanted, "making a domain, number").map(|(domain, _)| domain)
    }

    /// Ends a domain. What others still map of it stays until they let go.
    ///
    /// # Errors
    /// ESRCH, or EINVAL for this domain itself.
    pub fn destroy_domain(&self, domain: DomId) -> Result<(), Error> {
        self.domctl(XEN_DOMCTL_DESTROYDOMAIN, domain, &0_u8, "destroying").map(drop)
    }

    /// Stops a domain's vCPUs. Counted.
    ///
    /// # Errors
    /// ESRCH, or EINVAL for this domain itself.
    pub fn pause_domain(&self, domain: DomId) -> Result<(), Error> {
        self.domctl(XEN_DOMCTL_PAUSEDOMAIN, domain, &0_u8, "pausing").map(drop)
    }

    /// Takes a pause back.
    ///
    /// # Errors
    /// ESRCH, or EINVAL for a domain that is not paused.
    pub fn unpause_domain(&self, domain: DomId) -> Result<(), Error> {
        self.domctl(XEN_DOMCTL_UNPAUSEDOMAIN, domain, &0_u8, "unpausing").map(drop)
    }

    /// Limits a domain's RAM, in KiB.
    ///
    /// # Errors
    /// ESRCH.
    pub fn set_max_memory(&self, domain: DomId, kib: u64) -> Result<(), Error> {
        self.domctl(XEN_DOMCTL_MAX_MEM, domain, &MaxMem { max_memkb: kib }, "limiting the memory of").map(drop)
    }

    /// Confirms the number of vCPUs that a domain was made with.
    ///
    /// # Errors
    /// ESRCH, or EINVAL for another number.
    pub fn set_max_vcpus(&self, domain: DomId, count: u32) -> Result<(), Error> {
        self.domctl(XEN_DOMCTL_MAX_VCPUS, domain, &MaxVcpus { max: count }, "giving vCPUs to").map(drop)
    }

    /// A domain's share of the CPUs: weight and cap.
    ///
    /// # Errors
    /// ESRCH.
    pub fn share(&self, domain: DomId) -> Result<(u16, u16), Error> {
        self.scheduler(domain, XEN_DOMCTL_SCHEDOP_GETINFO, 0, u16::MAX)
    }

    /// Sets a domain's weight and cap where given.
    ///
    /// # Errors
    /// ESRCH.
    pub fn set_share(&self, domain: DomId, weight: Option<u16>, cap: Option<u16>) -> Result<(), Error> {
        let (weight, cap) = (weight.unwrap_or(0), cap.unwrap_or(u16::MAX));
        self.scheduler(domain, XEN_DOMCTL_SCHEDOP_PUTINFO, weight, cap).map(drop)
    }

    fn scheduler(&self, domain: DomId, cmd: u32, weight: u16, cap: u16) -> Result<(u16, u16), Error> {
        let argument = SchedulerOp { sched_id: XEN_SCHEDULER_CREDIT, cmd, weight, cap, ..SchedulerOp::default() };
        let what = "the share of the CPUs of";
        self.domctl(XEN_DOMCTL_SCHEDULER_OP, domain, &argument, what).map(|(_, answer)| (answer.weight, answer.cap))
    }

    /// Lets a vCPU begin at a PVH entry: 32-bit protected mode without paging, EBX holding `start_info`.
    ///
    /// # Errors
    /// ESRCH, ENOENT for a vCPU, EBUSY for a domain that is not paused.
    pub fn set_pvh_entry(&self, domain: DomId, vcpu: VcpuId, entry: u32, start_info: u32) -> Result<(), Error> {
        const CONTEXT: usize = DOMCTL_SIZE.next_multiple_of(16);
        let buffer = self.buffer(CONTEXT + VCPU_CONTEXT_SIZE)?;
        let registers = CpuUserRegs {
            rip: u64::from(entry),
            rbx: u64::from(start_info),
            rflags: RFLAGS_RESERVED,
            ..CpuUserRegs::default()
        };
        buffer.put(CONTEXT + VCPU_CONTEXT_FLAGS, &VGCF_ONLINE);
        buffer.put(CONTEXT + VCPU_CONTEXT_USER_REGS, &registers);
        buffer.put(CONTEXT + VCPU_CONTEXT_CTRLREG, &CR0_PROTECTED);
        let argument = VcpuContext { vcpu: vcpu.raw(), ctxt: buffer.address() + CONTEXT as u64 };
        self.domctl_in(&buffer, XEN_DOMCTL_SETVCPUCONTEXT, domain, &argument, "setting the entry of")
    }

    /// All domains by rising number, this one among them.
    ///
    /// # Errors
    /// EPERM for a domain that does not control others.
    pub fn domains(&self) -> Result<Vec<GetDomainInfo>, Error> {
        let mut all: Vec<GetDomainInfo> = Vec::new();
        loop {
            let first = all.last().map_or(0, |last| last.domain + 1);
            let some = self.domains_from(first)?;
            let is_last = some.len() < LIST_CHUNK;
            all.extend(some);
            if is_last {
                return Ok(all);
            }
        }
    }

    /// A domain, if it exists.
    ///
    /// # Errors
    /// As [`Privcmd::domains`].
    pub fn domain(&self, domain: DomId) -> Result<Option<GetDomainInfo>, Error> {
        let found = self.domains_from(domain.raw())?.into_iter().next();
        Ok(found.filter(|info| info.domain == domain.raw()))
    }

    fn domains_from(&self, first: u16) -> Result<Vec<GetDomainInfo>, Error> {
        const LIST: usize = SYSCTL_SIZE.next_multiple_of(16);
        let buffer = self.buffer(LIST + LIST_CHUNK * GetDomainInfo::SIZE)?;
        let interface_version = XEN_SYSCTL_INTERFACE_VERSION;
        buffer.put(0, &SysctlHeader { cmd: XEN_SYSCTL_GETDOMAININFOLIST, interface_version });
        let argument = GetDomainInfoList {
            first_domain: first,
            max_domains: low_u32(LIST_CHUNK as u64),
            buffer: buffer.address() + LIST as u64,
            num_domains: 0,
        };
        buffer.put(SYSCTL_ARG, &argument);
        let arguments = [buffer.address(), 0, 0, 0, 0];
        // SAFETY: the structure and the array behind it, with room for what it states, lie in the buffer.
        unsafe { self.call(HYPERVISOR_SYSCTL, arguments, || "listing domains".to_owned()) }?;
        let answer: GetDomainInfoList = buffer.get(SYSCTL_ARG);
        let count = to_usize(answer.num_domains.into()).min(LIST_CHUNK);
        Ok((0..count).map(|i| buffer.get(LIST + i * GetDomainInfo::SIZE)).collect())
    }

    /// Tells a domain its memory map.
    ///
    /// # Errors
    /// ESRCH, or E2BIG for too many entries.
    pub fn set_memory_map(&self, domain: DomId, map: &[E820Entry]) -> Result<(), Error> {
        const ENTRIES: usize = ForeignMemoryMap::SIZE.next_multiple_of(16);
        let buffer = self.buffer(ENTRIES + size_of_val(map))?;
        for (i, entry) in map.iter().enumerate() {
            buffer.put(ENTRIES + i * E820Entry::SIZE, entry);
        }
        let entries = MemoryMap { nr_entries: low_u32(map.len() as u64), buffer: buffer.address() + ENTRIES as u64 };
        buffer.put(0, &ForeignMemoryMap { domid: domain.raw(), map: entries });
        let arguments = [u64::from(XENMEM_SET_MEMORY_MAP), buffer.address(), 0, 0, 0];
        // SAFETY: the structure and the array that it names lie in the buffer.
        unsafe { self.call(HYPERVISOR_MEMORY_OP, arguments, || format!("the memory map of {domain}")) }.map(drop)
    }

    /// Gives a domain RAM: an extent of 2^`order` frames at each of `first`. Returns how many extents it got.
    ///
    /// # Errors
    /// ESRCH, or EPERM for a domain that does not control others.
    pub fn populate(&self, domain: DomId, first: &[Gfn], order: u32) -> Result<usize, Error> {
        const EXTENTS: usize = MemoryReservation::SIZE;
        let buffer = self.buffer(EXTENTS + size_of_val(first))?;
        for (i, frame) in first.iter().enumerate() {
            buffer.put(EXTENTS + i * 8, &frame.raw());
        }
        let argument = MemoryReservation {
            extent_start: buffer.address() + EXTENTS as u64,
            nr_extents: first.len() as u64,
            extent_order: order,
            mem_flags: 0,
            domid: domain.raw(),
        };
        buffer.put(0, &argument);
        let arguments = [u64::from(XENMEM_POPULATE_PHYSMAP), buffer.address(), 0, 0, 0];
        // SAFETY: the structure and the array that it names lie in the buffer.
        let done = unsafe { self.call(HYPERVISOR_MEMORY_OP, arguments, || format!("giving memory to {domain}")) }?;
        Ok(to_usize(done.into()))
    }

    /// Copies bytes into a domain's RAM.
    ///
    /// # Errors
    /// ESRCH, ENOENT where the domain has no memory, EPERM where it is not its RAM.
    pub fn copy_in(&self, domain: DomId, to: Gpa, bytes: &[u8]) -> Result<(), Error> {
        let touch = |done: usize| {
            std::hint::black_box(bytes.get(done).copied());
        };
        self.domain_copy(domain, COPY_IN, to, bytes.as_ptr().expose_provenance() as u64, bytes.len(), touch)
    }

    /// Copies `length` bytes of a mapping, from `offset` on, into a domain's RAM.
    ///
    /// # Errors
    /// As [`Privcmd::copy_in`].
    ///
    /// # Panics
    /// If they are not inside the mapping.
    pub fn copy_mapped(
        &self,
        domain: DomId,
        to: Gpa,
        from: &Mapping,
        offset: usize,
        length: usize,
    ) -> Result<(), Error> {
        assert!(offset.checked_add(length).is_some_and(|end| end <= from.len()), "{offset}+{length} in {from:?}");
        let touch = |done: usize| from.read(offset + done, &mut [0]);
        self.domain_copy(domain, COPY_IN, to, from.address() + offset as u64, length, touch)
    }

    /// Zeroes a range of a domain's RAM.
    ///
    /// # Errors
    /// As [`Privcmd::copy_in`].
    pub fn zero(&self, domain: DomId, at: Gpa, length: usize) -> Result<(), Error> {
        self.domain_copy(domain, COPY_ZERO, at, 0, length, |_| ())
    }

    /// Copies, and where the source was not resident has it touched and goes on.
    fn domain_copy(
        &self,
        domain: DomId,
        kind: u16,
        to: Gpa,
        from: u64,
        length: usize,
        touch: impl Fn(usize),
    ) -> Result<(), Error> {
        let buffer = self.buffer(DomainCopy::SIZE)?;
        let argument = DomainCopy {
            interface_version: INTERFACE_VERSION,
            domid: domain.raw(),
            kind,
            gpa: to.raw(),
            len: length as u64,
            buffer: from,
            done: 0,
        };
        buffer.put(0, &argument);
        let arguments = [u64::from(ISTHMUS_DOMAIN_COPY), buffer.address(), 0, 0, 0];
        let mut touched = None;
        loop {
            let operation = || format!("writing {length} bytes at {to:?} of {domain}");
            // SAFETY: the structure lies in the buffer; the hypervisor only reads at `from`, where the callers
            // have `length` bytes borrowed.
            let result = unsafe { self.call(HYPERVISOR_ISTHMUS, arguments, operation) };
            match result {
                Err(Error::Operation { cause: Errno::FAULT, .. }) => {
                    let done = to_usize(buffer.get::<DomainCopy>(0).done);
                    // A page that is not there although it has just been touched will not come.
                    if touched == Some(done) || done >= length {
                        return result.map(drop);
                    }
                    touch(done);
                    touched = Some(done);
                }
                other => return other.map(drop),
            }
        }
    }

    /// Makes a port of `domain` to which `remote` may bind.
    ///
    /// # Errors
    /// ESRCH, or ENOSPC for no free port.
    pub fn alloc_unbound(&self, domain: DomId, remote: DomId) -> Result<EvtchnPort, Error> {
        let buffer = self.buffer(AllocUnbound::SIZE)?;
        buffer.put(0, &AllocUnbound { dom: domain.raw(), remote_dom: remote.raw(), port: 0 });
        let arguments = [u64::from(EVTCHNOP_ALLOC_UNBOUND), buffer.address(), 0, 0, 0];
        let operation = || format!("making a port of {domain} for {remote}");
        // SAFETY: the structure lies in the buffer and holds no address.
        unsafe { self.call(HYPERVISOR_EVENT_CHANNEL_OP, arguments, operation) }?;
        Ok(EvtchnPort::new(buffer.get::<AllocUnbound>(0).port))
    }

    /// Sets a parameter (`HVM_PARAM_*`) of a domain.
    ///
    /// # Errors
    /// ESRCH, or EINVAL for a parameter or value.
    pub fn set_param(&self, domain: DomId, index: u32, value: u64) -> Result<(), Error> {
        let buffer = self.buffer(HvmParam::SIZE)?;
        buffer.put(0, &HvmParam { domid: domain.raw(), pad: 0, index, value });
        let arguments = [u64::from(HVMOP_SET_PARAM), buffer.address(), 0, 0, 0];
        let operation = || format!("setting parameter {index} of {domain}");
        // SAFETY: the structure lies in the buffer and holds no address.
        unsafe { self.call(HYPERVISOR_HVM_OP, arguments, operation) }.map(drop)
    }

    /// Fills a new domain's first grant entries: each lets `to` map a frame.
    ///
    /// # Errors
    /// The table cannot be mapped.
    pub fn seed_grants(&self, domain: DomId, to: DomId, frames: &[(GrantRef, Gfn)]) -> Result<(), Error> {
        let id = XENMEM_RESOURCE_GRANT_TABLE_ID_SHARED;
        let table = self.map_resource(domain, XENMEM_RESOURCE_GRANT_TABLE, id, 0, 1)?;
        for (reference, frame) in frames {
            let frame = u32::try_from(frame.raw()).map_err(|_| Error::Range(format!("{frame:?} in a grant entry")))?;
            let mut bytes = [0; GrantEntryV1::SIZE];
            GrantEntryV1 { flags: GTF_PERMIT_ACCESS, domid: to.raw(), frame }.to_bytes(&mut bytes);
            table.write(reference.index() * GrantEntryV1::SIZE, &bytes);
        }
        Ok(())
    }

    /// Ends a domain's run for a reason (`SHUTDOWN_*`), as if it had done so itself.
    ///
    /// # Errors
    /// ESRCH, or EPERM.
    pub fn shut_down(&self, domain: DomId, reason: u32) -> Result<(), Error> {
        let buffer = self.buffer(RemoteShutdown::SIZE)?;
        buffer.put(0, &RemoteShutdown { domain_id: domain.raw(), reason });
        let arguments = [u64::from(SCHEDOP_REMOTE_SHUTDOWN), buffer.address(), 0, 0, 0];
        // SAFETY: the structure lies in the buffer and holds no address.
        unsafe { self.call(HYPERVISOR_SCHED_OP, arguments, || format!("ending the run of {domain}")) }.map(drop)
    }

    /// What a domain has written to its log-only console from byte `position` on, and where to go on.
    ///
    /// # Errors
    /// ESRCH.
    pub fn read_log_console(&self, domain: DomId, position: u64, room: usize) -> Result<(Vec<u8>, u64), Error> {
        const BYTES: usize = ConsoleRead::SIZE;
        let buffer = self.buffer(BYTES + room)?;
        let argument = ConsoleRead {
            interface_version: INTERFACE_VERSION,
            domid: domain.raw(),
            position,
            buffer: buffer.address() + BYTES as u64,
            len: room as u64,
            ..ConsoleRead::default()
        };
        buffer.put(0, &argument);
        let arguments = [u64::from(ISTHMUS_CONSOLE_READ), buffer.address(), 0, 0, 0];
        let operation = || format!("reading the log of {domain}");
        // SAFETY: the structure and the room behind it that it states lie in the buffer.
        unsafe { self.call(HYPERVISOR_ISTHMUS, arguments, operation) }?;
        let answer: ConsoleRead = buffer.get(0);
        Ok((buffer.bytes(BYTES, to_usize(answer.len).min(room)), answer.position))
    }
}
