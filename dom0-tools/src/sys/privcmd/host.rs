// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the hypervisor says of itself, of the machine, and of what its vCPUs have cost.

use guest_abi::hypercall::{HYPERVISOR_ISTHMUS, HYPERVISOR_XEN_VERSION};
use guest_abi::isthmus::{
    COUNTERS_NEXT_DOMAIN, COUNTERS_STATE_MASK, COUNTERS_STATE_SHIFT, GrantStats, HostInfo, INTERFACE_VERSION,
    ISTHMUS_GRANT_STATS, ISTHMUS_HOST_INFO, ISTHMUS_PCPU_COUNTERS, ISTHMUS_VCPU_COUNTERS, PcpuCounters, REASON_NAMES,
    VcpuCounters,
};
use guest_abi::num::{low_u16, low_u32, to_usize};
use guest_abi::version::{
    CAPABILITIES_INFO_LEN, CHANGESET_INFO_LEN, EXTRAVERSION_LEN, XENVER_CAPABILITIES, XENVER_CHANGESET,
    XENVER_EXTRAVERSION, XENVER_VERSION,
};
use guest_abi::{DomId, VcpuId, Wire};

use super::{Error, Privcmd};

/// What one vCPU has cost since its domain was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The domain.
    pub domain: DomId,
    /// The vCPU.
    pub vcpu: VcpuId,
    /// How many vCPUs the domain has.
    pub nr_vcpus: u16,
    /// 0 down, 1 blocked, 2 runnable.
    pub state: u32,
    /// Exits by reason, see [`REASON_NAMES`].
    pub exits: Vec<u64>,
    /// Ticks in the hypervisor, by reason.
    pub ticks: Vec<u64>,
    /// Hypercalls by number; the last takes the rest.
    pub hypercalls: Vec<u64>,
    /// The host's time-stamp counter.
    pub tsc: u64,
}

impl Privcmd {
    /// The hypervisor's version of the interface, major and minor. The cheapest hypercall there is.
    ///
    /// # Errors
    /// There is no hypervisor that answers.
    pub fn version(&self) -> Result<(u16, u16), Error> {
        // SAFETY: this call takes no address.
        let raw = unsafe { self.hypercall(HYPERVISOR_XEN_VERSION, [u64::from(XENVER_VERSION), 0, 0, 0, 0]) }?;
        Ok((low_u16(u64::from(raw >> 16)), low_u16(u64::from(raw))))
    }

    fn version_text(&self, command: u32, length: usize) -> Result<String, Error> {
        let buffer = self.buffer(length)?;
        // SAFETY: the call writes `length` bytes at the buffer, which is as long.
        unsafe { self.hypercall(HYPERVISOR_XEN_VERSION, [u64::from(command), buffer.address(), 0, 0, 0]) }?;
        Ok(buffer.text(length))
    }

    /// What follows major and minor in the version.
    ///
    /// # Errors
    /// As for [`Privcmd::version`].
    pub fn extra_version(&self) -> Result<String, Error> {
        self.version_text(XENVER_EXTRAVERSION, EXTRAVERSION_LEN)
    }

    /// The kinds of guests that the hypervisor runs, separated by spaces.
    ///
    /// # Errors
    /// As for [`Privcmd::version`].
    pub fn capabilities(&self) -> Result<String, Error> {
        self.version_text(XENVER_CAPABILITIES, CAPABILITIES_INFO_LEN)
    }

    /// The hypervisor's own name for the sources it was built from.
    ///
    /// # Errors
    /// As for [`Privcmd::version`].
    pub fn changeset(&self) -> Result<String, Error> {
        self.version_text(XENVER_CHANGESET, CHANGESET_INFO_LEN)
    }

    /// The machine, and what the hypervisor takes of it.
    ///
    /// # Errors
    /// ENOSYS: another hypervisor than Isthmus; EACCES: another version of its interface; EPERM:
    /// this domain does not control others.
    pub fn host_info(&self) -> Result<HostInfo, Error> {
        let buffer = self.buffer(HostInfo::SIZE)?;
        buffer.put(0, &HostInfo { interface_version: INTERFACE_VERSION, ..HostInfo::default() });
        // SAFETY: the structure lies in the buffer, which is long enough, and holds no address.
        unsafe { self.hypercall(HYPERVISOR_ISTHMUS, [u64::from(ISTHMUS_HOST_INFO), buffer.address(), 0, 0, 0]) }?;
        Ok(buffer.get(0))
    }

    /// What the machine's CPUs have done between runs of vCPUs, by their numbers.
    ///
    /// # Errors
    /// As for [`Privcmd::host_info`].
    pub fn cpus(&self) -> Result<Vec<PcpuCounters>, Error> {
        let buffer = self.buffer(PcpuCounters::SIZE)?;
        let read = |pcpu| {
            buffer.put(0, &PcpuCounters { interface_version: INTERFACE_VERSION, pcpu, ..PcpuCounters::default() });
            // SAFETY: the structure lies in the buffer, which is long enough, and holds no address.
            unsafe {
                self.hypercall(HYPERVISOR_ISTHMUS, [u64::from(ISTHMUS_PCPU_COUNTERS), buffer.address(), 0, 0, 0])
            }?;
            Ok(buffer.get(0))
        };
        (0..self.host_info()?.nr_pcpus).map(read).collect()
    }

    /// What each of those that used a domain's grants did with them; at least one, which may be nobody.
    ///
    /// # Errors
    /// As for [`Privcmd::host_info`], and ESRCH for a domain that does not exist.
    pub fn grant_stats(&self, domain: DomId) -> Result<Vec<GrantStats>, Error> {
        let buffer = self.buffer(GrantStats::SIZE)?;
        let domid = domain.raw();
        let read = |at| {
            buffer.put(0, &GrantStats { interface_version: INTERFACE_VERSION, domid, at, ..GrantStats::default() });
            // SAFETY: the structure lies in the buffer, which is long enough, and holds no address.
            unsafe { self.hypercall(HYPERVISOR_ISTHMUS, [u64::from(ISTHMUS_GRANT_STATS), buffer.address(), 0, 0, 0]) }?;
            Ok(buffer.get(0))
        };
        let first: GrantStats = read(0)?;
        let rest = (1..first.nr_users).map(read);
        std::iter::once(Ok(first)).chain(rest).collect()
    }

    /// What a vCPU has cost.
    ///
    /// # Errors
    /// As for [`Privcmd::host_info`], and ESRCH for a domain, ENOENT for a vCPU that does not exist.
    pub fn counters(&self, domain: DomId, vcpu: VcpuId) -> Result<Snapshot, Error> {
        self.read_counters(domain, vcpu, 0)
    }

    /// What the first vCPU has cost of the first domain from a number on, if there is one.
    ///
    /// # Errors
    /// As for [`Privcmd::host_info`].
    pub fn counters_from(&self, domain: DomId) -> Result<Option<Snapshot>, Error> {
        match self.read_counters(domain, VcpuId::new(0), COUNTERS_NEXT_DOMAIN) {
            Ok(snapshot) => Ok(Some(snapshot)),
            Err(Error::Operation { cause: rustix::io::Errno::SRCH, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read_counters(&self, domain: DomId, vcpu: VcpuId, flags: u32) -> Result<Snapshot, Error> {
        /// Numbers of hypercalls that there is room for.
        const NR_HYPERCALLS: usize = 64;
        const EXITS: usize = VcpuCounters::SIZE.next_multiple_of(8);
        const TICKS: usize = EXITS + REASON_NAMES.len() * 8;
        const HYPERCALLS: usize = TICKS + REASON_NAMES.len() * 8;
        let buffer = self.buffer(HYPERCALLS + NR_HYPERCALLS * 8)?;
        let at = |offset: usize| buffer.address() + offset as u64;
        let argument = VcpuCounters {
            interface_version: INTERFACE_VERSION,
            domid: domain.raw(),
            vcpu: vcpu.raw(),
            flags,
            nr_reasons: low_u32(REASON_NAMES.len() as u64),
            nr_hypercalls: low_u32(NR_HYPERCALLS as u64),
            exits: at(EXITS),
            ticks: at(TICKS),
            hypercalls: at(HYPERCALLS),
            ..VcpuCounters::default()
        };
        buffer.put(0, &argument);
        // SAFETY: the structure and the three arrays lie in the buffer, one behind the other, with the
        // room that the structure states.
        unsafe { self.hypercall(HYPERVISOR_ISTHMUS, [u64::from(ISTHMUS_VCPU_COUNTERS), buffer.address(), 0, 0, 0]) }?;
        let answer: VcpuCounters = buffer.get(0);
        let list = |offset: usize, room: usize, count: u32| -> Vec<u64> {
            let count = to_usize(u64::from(count)).min(room);
            (0..count).map(|i| buffer.get(offset + i * 8)).collect()
        };
        Ok(Snapshot {
            domain: DomId::new(answer.domid),
            vcpu,
            nr_vcpus: answer.nr_vcpus,
            state: answer.flags >> COUNTERS_STATE_SHIFT & COUNTERS_STATE_MASK,
            exits: list(EXITS, REASON_NAMES.len(), answer.nr_reasons),
            ticks: list(TICKS, REASON_NAMES.len(), answer.nr_reasons),
            hypercalls: list(HYPERCALLS, NR_HYPERCALLS, answer.nr_hypercalls),
            tsc: answer.tsc,
        })
    }
}
