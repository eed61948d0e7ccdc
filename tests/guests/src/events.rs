// SPDX-License-Identifier: MIT OR Apache-2.0
//! Event channels in the 2-level ABI: the shared page, the upcall, and the operations by name.
//!
//! The upcall handler only takes the announcement back and counts it; pending bits are the guest's.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering::SeqCst};

use guest_abi::DomId;
use guest_abi::event_channel::{
    AllocUnbound, BindInterdomain, BindIpi, BindVirq, Close, EVTCHNOP_ALLOC_UNBOUND, EVTCHNOP_BIND_INTERDOMAIN,
    EVTCHNOP_BIND_IPI, EVTCHNOP_BIND_VIRQ, EVTCHNOP_CLOSE, EVTCHNOP_SEND, EVTCHNOP_STATUS, EVTCHNOP_UNMASK, Send,
    Status, Unmask,
};
use guest_abi::hvm::{
    HVM_PARAM_CALLBACK_IRQ, HVM_PARAM_CALLBACK_TYPE_VECTOR, HVMOP_GET_PARAM, HVMOP_SET_PARAM, HvmParam,
};
use guest_abi::hypercall::{HYPERVISOR_EVENT_CHANNEL_OP, HYPERVISOR_HVM_OP, HYPERVISOR_MEMORY_OP};
use guest_abi::memory::{AddToPhysmap, XENMAPSPACE_SHARED_INFO, XENMEM_ADD_TO_PHYSMAP};
use guest_abi::shared_info::{SHARED_EVTCHN_MASK, SHARED_EVTCHN_PENDING, VCPU_PENDING_SEL, VCPU_UPCALL_PENDING};

use crate::shared::Shared;
use crate::{hypercall, report, traps};

/// The vector that Linux takes its upcalls at.
pub const CALLBACK_VECTOR: u8 = 0xf3;

static PAGE: Shared<[u8; 4096]> = Shared::new([0; 4096]);

/// Address of the shared page, after [`init`].
#[must_use]
pub fn shared_info() -> u64 {
    PAGE.address()
}

/// Places the shared page and takes upcalls at [`CALLBACK_VECTOR`]; interrupts stay as they are.
pub fn init() {
    let mut place = AddToPhysmap {
        domid: DomId::SELF.raw(),
        space: XENMAPSPACE_SHARED_INFO,
        gpfn: PAGE.address() >> 12,
        ..Default::default()
    };
    report::check_eq(
        "shared_info is placed",
        hypercall::op(HYPERVISOR_MEMORY_OP, XENMEM_ADD_TO_PHYSMAP, &mut place),
        0,
    );
    traps::on(CALLBACK_VECTOR, || upcall_pending().store(0, SeqCst));
    let callback = HVM_PARAM_CALLBACK_TYPE_VECTOR << 56 | u64::from(CALLBACK_VECTOR);
    report::check_eq("the callback vector is accepted", set_param(HVM_PARAM_CALLBACK_IRQ, callback), 0);
}

/// Lets pending interrupts in, for two instructions.
pub fn open() {
    // SAFETY: every vector has a gate.
    unsafe { core::arch::asm!("sti", "nop", "nop", "cli", options(nostack)) };
}

/// Sleeps, with interrupts on meanwhile and afterwards, until an upcall has made `condition` hold.
pub fn sleep_until(condition: impl Fn() -> bool) {
    crate::cpu::disable_interrupts();
    while !condition() {
        // SAFETY: every vector has a gate; STI lets nothing in before HLT waits.
        unsafe { core::arch::asm!("sti", "hlt", "cli", options(nostack)) };
    }
    crate::cpu::enable_interrupts();
}

/// What a kernel does in its upcall, for the first word of ports.
pub fn take_all() {
    upcall_pending().store(0, SeqCst);
    pending_sel().swap(0, SeqCst);
    let ready = word(SHARED_EVTCHN_PENDING).load(SeqCst) & !word(SHARED_EVTCHN_MASK).load(SeqCst);
    word(SHARED_EVTCHN_PENDING).fetch_and(!ready, SeqCst);
}

/// Upcalls taken so far.
#[must_use]
pub fn upcalls() -> u32 {
    traps::count(CALLBACK_VECTOR)
}

/// `HVMOP_set_param` on the own domain.
pub fn set_param(index: u32, value: u64) -> i64 {
    let mut param = HvmParam { domid: DomId::SELF.raw(), index, value, ..Default::default() };
    hypercall::op(HYPERVISOR_HVM_OP, HVMOP_SET_PARAM, &mut param)
}

/// `HVMOP_get_param` on the own domain.
pub fn get_param(index: u32) -> Result<u64, i64> {
    let mut param = HvmParam { domid: DomId::SELF.raw(), index, ..Default::default() };
    match hypercall::op(HYPERVISOR_HVM_OP, HVMOP_GET_PARAM, &mut param) {
        0 => Ok(param.value),
        error => Err(error),
    }
}

fn word(offset: usize) -> &'static AtomicU64 {
    // SAFETY: inside the page, aligned as the ABI says, and only accessed by atomics.
    unsafe { AtomicU64::from_ptr((shared_info() + offset as u64) as *mut u64) }
}

/// `evtchn_upcall_pending` of vCPU 0.
#[must_use]
pub fn upcall_pending() -> &'static AtomicU8 {
    // SAFETY: as in `word`.
    unsafe { AtomicU8::from_ptr((shared_info() + VCPU_UPCALL_PENDING as u64) as *mut u8) }
}

/// `evtchn_pending_sel` of vCPU 0.
#[must_use]
pub fn pending_sel() -> &'static AtomicU64 {
    word(VCPU_PENDING_SEL)
}

/// Whether `port` is pending.
#[must_use]
pub fn is_pending(port: u32) -> bool {
    word(SHARED_EVTCHN_PENDING + (port / 64 * 8) as usize).load(SeqCst) >> (port % 64) & 1 != 0
}

/// Takes `port`'s pending bit back.
pub fn clear_pending(port: u32) {
    word(SHARED_EVTCHN_PENDING + (port / 64 * 8) as usize).fetch_and(!(1 << (port % 64)), SeqCst);
}

/// Takes all announcements back: pending bits, selector, upcall.
pub fn clear_all() {
    for index in 0..64 {
        word(SHARED_EVTCHN_PENDING + index * 8).store(0, SeqCst);
    }
    pending_sel().store(0, SeqCst);
    upcall_pending().store(0, SeqCst);
}

/// Sets or clears `port`'s mask bit.
pub fn set_masked(port: u32, masked: bool) {
    let mask = word(SHARED_EVTCHN_MASK + (port / 64 * 8) as usize);
    if masked {
        mask.fetch_or(1 << (port % 64), SeqCst);
    } else {
        mask.fetch_and(!(1 << (port % 64)), SeqCst);
    }
}

/// Whether `port` is masked.
#[must_use]
pub fn is_masked(port: u32) -> bool {
    word(SHARED_EVTCHN_MASK + (port / 64 * 8) as usize).load(SeqCst) >> (port % 64) & 1 != 0
}

/// An event-channel operation.
pub fn op<T: guest_abi::Wire>(command: u32, argument: &mut T) -> i64 {
    hypercall::op(HYPERVISOR_EVENT_CHANNEL_OP, command, argument)
}

fn port_or(error: i64, port: u32) -> Result<u32, i64> {
    if error == 0 { Ok(port) } else { Err(error) }
}

/// `EVTCHNOP_alloc_unbound`.
pub fn alloc_unbound(dom: u16, remote_dom: u16) -> Result<u32, i64> {
    let mut arg = AllocUnbound { dom, remote_dom, port: 0 };
    let error = op(EVTCHNOP_ALLOC_UNBOUND, &mut arg);
    port_or(error, arg.port)
}

/// `EVTCHNOP_bind_interdomain`.
pub fn bind_interdomain(remote_dom: u16, remote_port: u32) -> Result<u32, i64> {
    let mut arg = BindInterdomain { remote_dom, remote_port, local_port: 0 };
    let error = op(EVTCHNOP_BIND_INTERDOMAIN, &mut arg);
    port_or(error, arg.local_port)
}

/// `EVTCHNOP_bind_virq`.
pub fn bind_virq(virq: u32, vcpu: u32) -> Result<u32, i64> {
    let mut arg = BindVirq { virq, vcpu, port: 0 };
    let error = op(EVTCHNOP_BIND_VIRQ, &mut arg);
    port_or(error, arg.port)
}

/// `EVTCHNOP_bind_ipi`.
pub fn bind_ipi(vcpu: u32) -> Result<u32, i64> {
    let mut arg = BindIpi { vcpu, port: 0 };
    let error = op(EVTCHNOP_BIND_IPI, &mut arg);
    port_or(error, arg.port)
}

/// `EVTCHNOP_send`.
pub fn send(port: u32) -> i64 {
    op(EVTCHNOP_SEND, &mut Send { port })
}

/// `EVTCHNOP_close`.
pub fn close(port: u32) -> i64 {
    op(EVTCHNOP_CLOSE, &mut Close { port })
}

/// `EVTCHNOP_unmask`.
pub fn unmask(port: u32) -> i64 {
    op(EVTCHNOP_UNMASK, &mut Unmask { port })
}

/// `EVTCHNOP_status` of an own port.
pub fn status(port: u32) -> Result<Status, i64> {
    let mut arg = Status { dom: DomId::SELF.raw(), port, ..Default::default() };
    match op(EVTCHNOP_STATUS, &mut arg) {
        0 => Ok(arg),
        error => Err(error),
    }
}
