// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a frame can be, and how an operation on frames can fail.

use guest_abi::{DomId, Errno};

use crate::addr::Mfn;

/// What a frame is used for. The number is what the frame record holds; zero is what a record
/// in cleared memory says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameType {
    /// Not memory that the hypervisor manages: devices, firmware, holes.
    NotRam = 0,
    /// In the allocator.
    Free = 1,
    /// The hypervisor's own: image, frame records, heap.
    Hypervisor = 2,
    /// A page of a p2m.
    Table = 3,
    /// Memory of a domain.
    Ram = 4,
    /// A page that the hypervisor shares with a domain, such as its `shared_info`.
    Shared = 5,
    /// A page of a domain's grant table.
    GrantFrame = 6,
    /// Given back by the domain whose identity map it belongs to, and kept for that domain.
    Reserved = 7,
}

impl FrameType {
    pub(super) const fn from_raw(raw: u64) -> Self {
        match raw & 7 {
            1 => Self::Free,
            2 => Self::Hypervisor,
            3 => Self::Table,
            4 => Self::Ram,
            5 => Self::Shared,
            6 => Self::GrantFrame,
            7 => Self::Reserved,
            _ => Self::NotRam,
        }
    }

    /// Whether a domain's memory limit counts the frame, or its limit of overhead.
    pub(super) const fn is_ram(self) -> bool {
        matches!(self, Self::Ram)
    }
}

/// What an allocation must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Zeroes.
    Zeroed,
    /// Anything: the caller overwrites the whole of it before anybody else can read it.
    Overwritten,
}

/// How much a domain may hold, in frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Frames of type [`FrameType::Ram`].
    pub ram: u64,
    /// Frames of the other types: p2m tables, grant frames, shared pages.
    pub overhead: u64,
}

impl Limits {
    /// No limit but the machine's memory.
    pub const NONE: Self = Self { ram: u64::MAX, overhead: u64::MAX };
}

/// How much a domain holds, in frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Frames of type [`FrameType::Ram`], including those which the domain gave up but others
    /// still use.
    pub ram: u64,
    /// Frames of the other types.
    pub overhead: u64,
}

/// One frame's record at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameInfo {
    /// The domain that is charged for the frame; meaningless for free frames and for
    /// [`FrameType::NotRam`].
    pub owner: DomId,
    /// What it is used for.
    pub kind: FrameType,
    /// Counted references: mappings by others, pins.
    pub count: u32,
    /// Whether the owner has not given it up.
    pub is_owned: bool,
}

/// The frames in the allocator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FreeFrames {
    /// All of them.
    pub total: u64,
    /// Those known to be zero.
    pub clean: u64,
}

/// Why an operation on frames failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// The frame is not RAM, or lies beyond the end of RAM.
    NoSuchFrame(Mfn),
    /// The frame does not belong to this domain, or the domain has given it up.
    NotOwner(Mfn),
    /// The frame is used for something that forbids the operation.
    WrongType(Mfn, FrameType),
    /// The frame has as many references as can be counted.
    TooManyReferences(Mfn),
    /// No free block is large enough.
    NoMemory,
    /// The domain would exceed its limit.
    OverLimit(DomId),
    /// The domain has no account, or there is no room for another one.
    NoAccount(DomId),
    /// The domain is still charged for frames.
    AccountInUse(DomId, Usage),
}

impl From<FrameError> for Errno {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::NoSuchFrame(_) | FrameError::WrongType(..) => Self::EINVAL,
            FrameError::NotOwner(_) => Self::EPERM,
            FrameError::TooManyReferences(_) | FrameError::AccountInUse(..) => Self::EBUSY,
            FrameError::NoMemory | FrameError::OverLimit(_) => Self::ENOMEM,
            FrameError::NoAccount(_) => Self::ESRCH,
        }
    }
}
