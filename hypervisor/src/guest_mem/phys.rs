// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest memory by guest physical address: what a guest registers once by frame number.
//!
//! The boot information block, `vcpu_info` areas and event-channel FIFO pages are named by guest
//! frame. What is used only now is copied ([`GuestPhys::read`], [`GuestPhys::write`]); what stays
//! in use is pinned ([`GuestPhys::pin`]), so that the frame outlives whatever the guest does with
//! its own mapping.

use guest_abi::{Errno, Gfn, Gpa, PAGE_SIZE, Wire};

use super::frames::{Memory, check};
use super::{Access, Fault, read_wire, write_wire};
use crate::addr::Mfn;
use crate::frame::{FrameError, FrameRef};
use crate::p2m::{P2mKind, P2mView};

/// A guest's physical memory, for the length of one hypercall.
pub struct GuestPhys {
    memory: Memory,
}

/// Why a guest frame could not be pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinError {
    /// It is not the domain's own RAM.
    Memory(Fault),
    /// Its frame is being given up, or has too many references.
    Frame(FrameError),
}

impl From<PinError> for Errno {
    fn from(error: PinError) -> Self {
        match error {
            PinError::Memory(_) => Self::EINVAL,
            PinError::Frame(error) => error.into(),
        }
    }
}

impl GuestPhys {
    /// The memory that this p2m maps.
    #[must_use]
    pub fn new(view: P2mView) -> Self {
        Self { memory: Memory::new(view) }
    }

    /// Copies `dst.len()` bytes out of the guest.
    ///
    /// # Errors
    /// [`Fault`]; the bytes of pages before the faulting one have been copied.
    pub fn read_bytes(&self, gpa: Gpa, dst: &mut [u8]) -> Result<(), Fault> {
        let mut rest = dst;
        let mut at = gpa;
        while !rest.is_empty() {
            let (part, others) = rest.split_at_mut(rest.len().min(PAGE_SIZE - at.page_offset()));
            self.memory.copy_out(self.frame(at.gfn(), Access::Read)?, at.page_offset(), part);
            at = at.checked_add(part.len() as u64).ok_or(Fault::NotCanonical)?;
            rest = others;
        }
        Ok(())
    }

    /// Copies `src` into the guest.
    ///
    /// # Errors
    /// [`Fault`]; the bytes of pages before the faulting one have been copied.
    pub fn write_bytes(&self, gpa: Gpa, src: &[u8]) -> Result<(), Fault> {
        let mut rest = src;
        let mut at = gpa;
        while !rest.is_empty() {
            let (part, others) = rest.split_at(rest.len().min(PAGE_SIZE - at.page_offset()));
            self.memory.copy_in(self.frame(at.gfn(), Access::Write)?, at.page_offset(), part);
            at = at.checked_add(part.len() as u64).ok_or(Fault::NotCanonical)?;
            rest = others;
        }
        Ok(())
    }

    /// Reads a value.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn read<T: Wire>(&self, gpa: Gpa) -> Result<T, Fault> {
        read_wire(|bytes| self.read_bytes(gpa, bytes))
    }

    /// Writes a value.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn write<T: Wire>(&self, gpa: Gpa, value: &T) -> Result<(), Fault> {
        write_wire(value, |bytes| self.write_bytes(gpa, bytes))
    }

    /// Takes a counted reference to the domain's own RAM behind a guest frame.
    ///
    /// # Errors
    /// [`PinError::Memory`] for a hole or another kind of mapping, [`PinError::Frame`].
    pub fn pin(&self, gfn: Gfn) -> Result<(Mfn, FrameRef), PinError> {
        let (mfn, kind) = self.memory.frame(gfn).map_err(PinError::Memory)?;
        if kind != P2mKind::Ram {
            return Err(PinError::Memory(Fault::Refused));
        }
        let view = self.memory.view;
        let reference = view.frames().get(mfn, view.owner()).map_err(PinError::Frame)?;
        Ok((mfn, reference))
    }

    fn frame(&self, gfn: Gfn, access: Access) -> Result<Mfn, Fault> {
        let (mfn, kind) = self.memory.frame(gfn)?;
        check(kind, access)?;
        Ok(mfn)
    }
}
