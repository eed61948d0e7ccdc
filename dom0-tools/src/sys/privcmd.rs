// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hypercalls and other domains' memory: `/dev/xen/privcmd` and `/dev/xen/hypercall`.
//!
//! The hypervisor reads a hypercall's structures at our virtual addresses, so they must be resident
//! and stay where they are. [`Buffer`] is memory of the kernel that is: pages of
//! `/dev/xen/hypercall`. Arguments are copied there and back; the safe calls below do so with the
//! structures of `guest-abi`.

use std::os::fd::OwnedFd;

use guest_abi::hypercall::{HYPERVISOR_ISTHMUS, HYPERVISOR_XEN_VERSION};
use guest_abi::isthmus::{
    COUNTERS_NEXT_DOMAIN, COUNTERS_STATE_MASK, COUNTERS_STATE_SHIFT, HostInfo, INTERFACE_VERSION, ISTHMUS_HOST_INFO,
    ISTHMUS_VCPU_COUNTERS, REASON_NAMES, VcpuCounters,
};
use guest_abi::num::{low_u16, low_u32, to_usize};
use guest_abi::version::{
    CAPABILITIES_INFO_LEN, CHANGESET_INFO_LEN, EXTRAVERSION_LEN, XENVER_CAPABILITIES, XENVER_CHANGESET,
    XENVER_EXTRAVERSION, XENVER_VERSION,
};
use guest_abi::{DomId, Gfn, PAGE_SIZE, VcpuId, Wire};
use rustix::ioctl::Opcode;

use super::{Error, Mapping, ioctl, open};

const DEVICE: &str = "/dev/xen/privcmd";
const BUFFER_DEVICE: &str = "/dev/xen/hypercall";

const HYPERCALL: Opcode = ioctl::number(b'P', 0, 48);
const MMAPBATCH_V2: Opcode = ioctl::number(b'P', 4, 32);
const MMAP_RESOURCE: Opcode = ioctl::number(b'P', 7, 32);
const _: () = assert!(HYPERCALL == 0x30_5000 && MMAP_RESOURCE == 0x20_5007, "uapi/xen/privcmd.h");

/// `struct privcmd_hypercall`.
#[repr(C)]
struct Hypercall {
    number: u64,
    arguments: [u64; 5],
}
const _: () = assert!(size_of::<Hypercall>() == 48);

/// `struct privcmd_mmapbatch_v2`.
#[repr(C)]
struct MapBatch {
    count: u32,
    domain: u16,
    address: u64,
    frames: u64,
    errors: u64,
}
const _: () = assert!(size_of::<MapBatch>() == 32);

/// `struct privcmd_mmap_resource`.
#[repr(C)]
struct MapResource {
    domain: u16,
    kind: u32,
    id: u32,
    first: u32,
    count: u64,
    address: u64,
}
const _: () = assert!(size_of::<MapResource>() == 32);

/// The open devices.
#[derive(Debug)]
pub struct Privcmd {
    device: OwnedFd,
    buffers: OwnedFd,
}

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

/// Memory for a hypercall's structures: whole zeroed pages.
#[derive(Debug)]
pub struct Buffer(Mapping);

impl Buffer {
    /// The address to put into an argument or a structure.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.0.address()
    }

    /// Puts a structure at `offset`.
    ///
    /// # Panics
    /// If it does not fit.
    pub fn put<T: Wire>(&self, offset: usize, value: &T) {
        let mut bytes = vec![0; T::SIZE];
        value.to_bytes(&mut bytes);
        self.0.write(offset, &bytes);
    }

    /// Takes the structure at `offset`.
    ///
    /// # Panics
    /// If it would not fit.
    #[must_use]
    pub fn get<T: Wire>(&self, offset: usize) -> T {
        let mut bytes = vec![0; T::SIZE];
        self.0.read(offset, &mut bytes);
        T::from_bytes(&bytes)
    }

    /// The bytes up to the first zero, as text.
    fn text(&self, length: usize) -> String {
        let mut bytes = vec![0; length];
        self.0.read(0, &mut bytes);
        bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(length));
        String::from_utf8_lossy(&bytes).trim_end().to_owned()
    }
}

impl Privcmd {
    /// Opens the devices.
    ///
    /// # Errors
    /// This is no domain, or not root.
    pub fn open() -> Result<Self, Error> {
        let device = open(DEVICE, "xen-privcmd")?;
        Ok(Self { device, buffers: open(BUFFER_DEVICE, "xen-privcmd")? })
    }

    /// Makes a buffer of at least `bytes` bytes.
    ///
    /// # Errors
    /// No memory.
    pub fn buffer(&self, bytes: usize) -> Result<Buffer, Error> {
        let length = bytes.max(1).next_multiple_of(PAGE_SIZE);
        let failed =
            |cause| Error::Operation { device: BUFFER_DEVICE, operation: format!("mapping {length} bytes"), cause };
        Mapping::new(&self.buffers, 0, length, true).map(Buffer).map_err(failed)
    }

    /// Makes a hypercall. Returns its result if it is not negative.
    ///
    /// # Safety
    /// What the arguments, and the structures that they point to, name by address is memory that
    /// the hypervisor may read and write as the call is documented to: a [`Buffer`] long enough.
    ///
    /// # Errors
    /// The hypervisor's error number, or the kernel's.
    pub unsafe fn hypercall(&self, number: u32, arguments: [u64; 5]) -> Result<u32, Error> {
        let mut call = Hypercall { number: u64::from(number), arguments };
        // SAFETY: the structure is the opcode's; the addresses in it are the caller's promise.
        let result = unsafe { ioctl::one(&self.device, HYPERCALL, &mut call) };
        let failed = |cause| Error::Operation {
            device: DEVICE,
            operation: format!("hypercall {number} with {:#x}", arguments[0]),
            cause,
        };
        result.map(i32::cast_unsigned).map_err(failed)
    }

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

    /// Maps frames of another domain, one after the other.
    ///
    /// # Errors
    /// The domain does not exist, may not be mapped by this one, or a frame is not RAM; the first
    /// such frame is named.
    pub fn map_foreign(&self, domain: DomId, frames: &[Gfn], writable: bool) -> Result<Mapping, Error> {
        let failed = |cause, frame: Option<Gfn>| Error::Operation {
            device: DEVICE,
            operation: match frame {
                Some(frame) => format!("mapping {frame:?} of {domain}"),
                None => format!("mapping {} frames of {domain}", frames.len()),
            },
            cause,
        };
        let count = u32::try_from(frames.len()).map_err(|_| Error::Range("too many frames".to_owned()))?;
        let mapping = Mapping::new(&self.device, 0, frames.len() * PAGE_SIZE, writable);
        let mapping = mapping.map_err(|cause| failed(cause, None))?;
        let raw: Vec<u64> = frames.iter().map(|frame| frame.raw()).collect();
        let mut errors = vec![0_i32; frames.len()];
        let mut call = MapBatch {
            count,
            domain: domain.raw(),
            address: mapping.address(),
            frames: raw.as_ptr().addr() as u64,
            errors: errors.as_mut_ptr().expose_provenance() as u64,
        };
        // SAFETY: the structure is the opcode's; the mapping is of this device and `count` pages long,
        // and both arrays have `count` elements and outlive the call.
        unsafe { ioctl::one(&self.device, MMAPBATCH_V2, &mut call) }.map_err(|cause| failed(cause, None))?;
        let refused = errors.iter().zip(frames).find(|(error, _)| **error != 0);
        match refused {
            // A page without a frame behind it faults when touched, so none is handed out.
            Some((error, frame)) => Err(failed(rustix::io::Errno::from_raw_os_error(-error), Some(*frame))),
            None => Ok(mapping),
        }
    }

    /// Maps `count` pages of a resource of another domain: its grant table, say.
    ///
    /// # Errors
    /// The domain or the resource does not exist or may not be mapped by this domain.
    pub fn map_resource(&self, domain: DomId, kind: u16, id: u32, first: u32, count: u32) -> Result<Mapping, Error> {
        let operation = || format!("mapping resource {kind} of {domain}");
        let failed = |cause| Error::Operation { device: DEVICE, operation: operation(), cause };
        let length = to_usize(u64::from(count)) * PAGE_SIZE;
        let mapping = Mapping::new(&self.device, 0, length, true).map_err(failed)?;
        let mut call = MapResource {
            domain: domain.raw(),
            kind: u32::from(kind),
            id,
            first,
            count: u64::from(count),
            address: mapping.address(),
        };
        // SAFETY: the structure is the opcode's; the mapping is of this device and `count` pages long.
        unsafe { ioctl::one(&self.device, MMAP_RESOURCE, &mut call) }.map_err(failed)?;
        Ok(mapping)
    }
}
