// SPDX-License-Identifier: MIT OR Apache-2.0
//! event_channel_op (32): allocating, binding, signalling.
//!
//! Source: `xen/include/public/event_channel.h` at 4.17.

use guest_abi::event_channel as abi;
use guest_abi::num::{low_u8, to_usize};
use guest_abi::{Errno, EvtchnPort, VcpuId};

use super::{Call, DONE, HypercallResult, Reply};
use crate::domain::Privileges;
use crate::evtchn::{self, GlobalVirqs, Pinned, PortState, Progress};

/// Errors: ENOSYS for unknown operations; those of [`evtchn::Error`]; EPERM for
/// another domain's ports without the right to control it; EFAULT.
#[inline(never)]
pub(super) fn handle(call: &mut Call<'_>) -> HypercallResult {
    let (events, peers) = (&call.domain.events, &call.hv.domains);
    let argument = call.arg1();
    match call.operation() {
        abi::EVTCHNOP_SEND => {
            let send: abi::Send = call.read(argument)?;
            let port = EvtchnPort::new(send.port);
            events.send(port, call.domain, peers)?;
            if call.domain.log_ring.get().is_some_and(|ring| ring.port == port) {
                call.domain.drain_log_ring(&call.hv.mem);
            }
            DONE
        }
        abi::EVTCHNOP_UNMASK => {
            let unmask: abi::Unmask = call.read(argument)?;
            events.unmask(EvtchnPort::new(unmask.port), call.domain)?;
            DONE
        }
        abi::EVTCHNOP_ALLOC_UNBOUND => alloc_unbound(call),
        abi::EVTCHNOP_BIND_INTERDOMAIN => bind_interdomain(call),
        abi::EVTCHNOP_BIND_VIRQ => {
            let mut bind: abi::BindVirq = call.read(argument)?;
            // What happens to domains is for those who control them, all else for who has the devices.
            let right = match bind.virq {
                abi::VIRQ_DOM_EXC | abi::VIRQ_CON_RING => Privileges::CONTROL,
                _ => Privileges::HARDWARE,
            };
            let globals = match call.domain.privileges.contains(right) {
                true => GlobalVirqs::Handler,
                false => GlobalVirqs::Refused,
            };
            let port = events.bind_virq(bind.virq, VcpuId::new(bind.vcpu), globals)?;
            bind.port = port.raw();
            written_or_closed(call, &bind, port)
        }
        abi::EVTCHNOP_BIND_IPI => {
            let mut bind: abi::BindIpi = call.read(argument)?;
            let port = events.bind_ipi(VcpuId::new(bind.vcpu))?;
            bind.port = port.raw();
            written_or_closed(call, &bind, port)
        }
        abi::EVTCHNOP_BIND_VCPU => {
            let bind: abi::BindVcpu = call.read(argument)?;
            events.bind_vcpu(EvtchnPort::new(bind.port), VcpuId::new(bind.vcpu))?;
            DONE
        }
        abi::EVTCHNOP_CLOSE => {
            let close: abi::Close = call.read(argument)?;
            match events.close(EvtchnPort::new(close.port), peers) {
                // Kernels do not expect a close to fail, so it is this side that tries again.
                Err(evtchn::Error::Again) => Ok(Reply::Again),
                closed => closed.map_err(Errno::from).and(DONE),
            }
        }
        abi::EVTCHNOP_STATUS => status(call),
        abi::EVTCHNOP_RESET => {
            let reset: abi::Reset = call.read(argument)?;
            match call.subject(reset.dom)?.events.reset(peers) {
                Progress::Done => DONE,
                Progress::Again => Ok(Reply::Again),
            }
        }
        abi::EVTCHNOP_INIT_CONTROL => {
            let mut init: abi::InitControl = call.read(argument)?;
            init.link_bits = low_u8(u64::from(abi::FIFO_LINK_BITS));
            // Written first: a guest that cannot be told has not changed anything.
            call.write(argument, &init)?;
            let frame = call.pin(init.control_gfn)?;
            let offset = to_usize(u64::from(init.offset));
            events.init_control(VcpuId::new(init.vcpu), Pinned(frame.mfn(), Some(frame)), offset, call.domain)?;
            DONE
        }
        abi::EVTCHNOP_EXPAND_ARRAY => {
            let expand: abi::ExpandArray = call.read(argument)?;
            let frame = call.pin(expand.array_gfn)?;
            events.expand_array(Pinned(frame.mfn(), Some(frame)), call.domain)?;
            DONE
        }
        abi::EVTCHNOP_SET_PRIORITY => {
            let set: abi::SetPriority = call.read(argument)?;
            events.set_priority(EvtchnPort::new(set.port), set.priority)?;
            DONE
        }
        _ => Err(Errno::ENOSYS),
    }
}

/// Reports a new port, or takes it back when the guest's structure cannot be written.
fn written_or_closed<T: guest_abi::Wire>(call: &mut Call<'_>, result: &T, port: EvtchnPort) -> HypercallResult {
    if let Err(error) = call.write(call.arg1(), result) {
        let _ = call.domain.events.close(port, &call.hv.domains);
        return Err(error);
    }
    DONE
}

fn alloc_unbound(call: &mut Call<'_>) -> HypercallResult {
    let mut argument: abi::AllocUnbound = call.read(call.arg1())?;
    let remote = call.resolve(argument.remote_dom);
    let owner = call.resolve(argument.dom);
    let hv = call.hv;
    if owner == call.domain.id {
        let port = call.domain.events.alloc_unbound(remote)?;
        argument.port = port.raw();
        return written_or_closed(call, &argument, port);
    }
    let domain = call.subject(argument.dom)?;
    let port = domain.events.alloc_unbound(remote)?;
    argument.port = port.raw();
    if let Err(error) = call.write(call.arg1(), &argument) {
        let _ = domain.events.close(port, &hv.domains);
        return Err(error);
    }
    DONE
}

fn bind_interdomain(call: &mut Call<'_>) -> HypercallResult {
    let mut argument: abi::BindInterdomain = call.read(call.arg1())?;
    let remote = call.resolve(argument.remote_dom);
    let remote_port = EvtchnPort::new(argument.remote_port);
    let (domain, hv) = (call.domain, call.hv);
    let port = if remote == domain.id {
        evtchn::bind_interdomain(&domain.events, domain, &domain.events, remote_port)?
    } else {
        let peer = hv.domains.get(remote).ok_or(Errno::ESRCH)?;
        evtchn::bind_interdomain(&domain.events, domain, &peer.events, remote_port)?
    };
    argument.local_port = port.raw();
    written_or_closed(call, &argument, port)
}

fn status(call: &mut Call<'_>) -> HypercallResult {
    let mut argument: abi::Status = call.read(call.arg1())?;
    let port = call.subject(argument.dom)?.events.status(EvtchnPort::new(argument.port))?;
    argument.vcpu = port.vcpu.raw();
    (argument.status, argument.first, argument.second) = match port.state {
        PortState::Free => (abi::EVTCHNSTAT_CLOSED, 0, 0),
        PortState::Unbound { remote } => (abi::EVTCHNSTAT_UNBOUND, u32::from(remote.raw()), 0),
        PortState::Interdomain { remote, port } => (abi::EVTCHNSTAT_INTERDOMAIN, u32::from(remote.raw()), port.raw()),
        PortState::Virq { virq } => (abi::EVTCHNSTAT_VIRQ, virq, 0),
        PortState::Ipi => (abi::EVTCHNSTAT_IPI, 0, 0),
    };
    call.write(call.arg1(), &argument)?;
    DONE
}

#[cfg(test)]
mod tests;
