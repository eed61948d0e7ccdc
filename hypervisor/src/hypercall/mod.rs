// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hypercalls: from registers to an answer.
//!
//! [`handle`] is the only door ([`refuse`] answers what does not come from a 64-bit kernel). It counts and hands a [`Call`] to one function
//! a hypercall number; each copies its argument in once ([`Call::read`]), parses it into types, checks
//! everything, and then acts. The result of the instruction is a [`Reply`].
//!
//! Arguments given by address are guest virtual addresses, walked anew in every hypercall
//! (the CPU lets a guest change its tables without telling anybody).

mod console_io;
mod domctl;
mod event_channel;
mod grant_table;
mod hvm;
mod isthmus;
mod memory;
pub mod page;
mod physdev;
mod platform;
mod rights;
mod sched;
mod sysctl;
mod vcpu;
mod version;

use guest_abi::hypercall as number;
use guest_abi::num::{low_u32, to_usize};
use guest_abi::{Errno, Gfn, Wire};

use crate::addr::Gva;
use crate::domain::Domain;
use crate::frame::FrameRef;
use crate::guest_mem::GuestSpace;
use crate::hypervisor::Hypervisor;
use crate::vcpu::exits::Outcome;
use crate::vcpu::{Vcpu, VcpuState};

pub(crate) use rights::Subject;

/// What a hypercall comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// This value in RAX.
    Value(u64),
    /// This value in RAX, and the vCPU sleeps.
    Sleep(u64),
    /// This value in RAX, and others may run first.
    Yield(u64),
    /// The same hypercall again, with its progress recorded in registers or guest memory.
    Again,
    /// The vCPU does not go on.
    Stop,
}

/// The result of one hypercall's function.
pub(crate) type HypercallResult = Result<Reply, Errno>;

/// The answer of a hypercall that has nothing to say.
pub(crate) const DONE: HypercallResult = Ok(Reply::Value(0));

/// One hypercall with its caller.
pub(crate) struct Call<'a> {
    pub(crate) hv: &'static Hypervisor,
    pub(crate) domain: &'a Domain,
    pub(crate) vcpu: &'a Vcpu,
    pub(crate) state: &'a mut VcpuState,
    /// The p2m's generation when the caller's memory was last looked at from the start.
    seen_generation: Option<u64>,
}

/// Handles a hypercall exit.
#[inline]
pub fn handle(hv: &'static Hypervisor, domain: &Domain, vcpu: &Vcpu, state: &mut VcpuState) -> Outcome {
    let number = low_u32(state.regs.rax);
    vcpu.counters.count_hypercall(number);
    let result = dispatch(&mut Call { hv, domain, vcpu, state, seen_generation: None }, number);
    let (value, outcome) = match result {
        Ok(Reply::Value(value)) => (value, Outcome::Resume),
        Err(error) => (error.to_rax(), Outcome::Resume),
        Ok(Reply::Sleep(value)) => {
            state.sleep(vcpu);
            (value, Outcome::Leave)
        }
        Ok(Reply::Yield(value)) => (value, Outcome::Yield),
        Ok(Reply::Again) => return Outcome::Resume,
        Ok(Reply::Stop) => return Outcome::Leave,
    };
    state.regs.rax = value;
    state.hw.finish_hypercall();
    outcome
}

/// Hypercalls are for kernels, and for 64-bit code: the interface for 32-bit code has its arguments in
/// other registers and its structures laid out in another way, and is not offered.
#[cold]
pub fn refuse(state: &mut VcpuState, error: Errno) {
    state.regs.rax = error.to_rax();
    state.hw.finish_hypercall();
}

// Each function keeps its frame to itself (none is inlined here), so that a short one does not pay
// for another one's buffers.
fn dispatch(call: &mut Call<'_>, number: u32) -> HypercallResult {
    match number {
        number::HYPERVISOR_XEN_VERSION => version::handle(call),
        number::HYPERVISOR_EVENT_CHANNEL_OP => event_channel::handle(call),
        number::HYPERVISOR_GRANT_TABLE_OP => grant_table::handle(call),
        number::HYPERVISOR_SCHED_OP => sched::handle(call),
        number::HYPERVISOR_VCPU_OP => vcpu::handle(call),
        number::HYPERVISOR_MEMORY_OP => memory::handle(call),
        number::HYPERVISOR_HVM_OP => hvm::handle(call),
        number::HYPERVISOR_CONSOLE_IO => console_io::handle(call),
        number::HYPERVISOR_VM_ASSIST => vcpu::vm_assist(call),
        number::HYPERVISOR_SET_TIMER_OP => vcpu::set_timer(call),
        number::HYPERVISOR_PHYSDEV_OP => physdev::handle(call),
        number::HYPERVISOR_PLATFORM_OP => platform::handle(call),
        number::HYPERVISOR_ISTHMUS => isthmus::handle(call),
        number::HYPERVISOR_DOMCTL => domctl::handle(call),
        number::HYPERVISOR_SYSCTL => sysctl::handle(call),
        _ => Err(Errno::ENOSYS),
    }
}

impl Call<'_> {
    /// The first argument.
    pub(crate) fn arg0(&self) -> u64 {
        self.state.regs.rdi
    }

    /// The second argument.
    pub(crate) fn arg1(&self) -> u64 {
        self.state.regs.rsi
    }

    /// The third argument.
    pub(crate) fn arg2(&self) -> u64 {
        self.state.regs.rdx
    }

    /// The sub-operation: the low half of the first argument, which C passes as an `int`.
    pub(crate) fn operation(&self) -> u32 {
        low_u32(self.arg0())
    }

    /// The caller's memory, by virtual address. What was walked is remembered for the length of this
    /// hypercall, but not over a removal of own memory from the p2m: the hypercall may have removed the very page
    /// that it has to write to, and after the flush its frame may be somebody else's. Of pages that are another
    /// domain's nothing is remembered at all.
    pub(crate) fn space(&mut self) -> &GuestSpace {
        let generation = Some(self.domain.tlb.own_generation());
        if self.seen_generation == generation {
            return self.state.space();
        }
        self.seen_generation = generation;
        self.state.renew_space(self.domain.tlb.own_generation())
    }

    /// Takes a reference to the caller's own RAM at a guest frame, which stays in use.
    pub(crate) fn pin(&self, gfn: u64) -> Result<FrameRef, Errno> {
        Ok(self.domain.p2m_view.pin(Gfn::new(gfn)).ok_or(Errno::EINVAL)??)
    }

    /// Copies a structure in.
    pub(crate) fn read<T: Wire>(&mut self, address: u64) -> Result<T, Errno> {
        Ok(self.space().read(Gva::new(address))?)
    }

    /// Copies a structure out.
    pub(crate) fn write<T: Wire>(&mut self, address: u64, value: &T) -> Result<(), Errno> {
        Ok(self.space().write(Gva::new(address), value)?)
    }

    /// Copies bytes in.
    #[inline(always)]
    pub(crate) fn read_bytes(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        Ok(self.space().read_bytes(Gva::new(address), bytes)?)
    }

    /// Copies bytes out.
    #[inline(always)]
    pub(crate) fn write_bytes(&mut self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        Ok(self.space().write_bytes(Gva::new(address), bytes)?)
    }

    /// Fills the caller's buffer of `room` bytes piece by piece with what `next` gives, until that gives less than fits.
    /// Returns how many bytes that were.
    pub(crate) fn write_pieces(
        &mut self,
        buffer: u64,
        room: u64,
        mut next: impl FnMut(&mut [u8]) -> usize,
    ) -> Result<u64, Errno> {
        let mut bytes = [0; 512];
        let mut written = 0;
        while written < room {
            let piece = to_usize((room - written).min(bytes.len() as u64));
            let len = next(&mut bytes[..piece]);
            self.write_bytes(buffer.wrapping_add(written), &bytes[..len])?;
            written += len as u64;
            if len < piece {
                break;
            }
        }
        Ok(written)
    }
}

#[cfg(test)]
mod tests;
