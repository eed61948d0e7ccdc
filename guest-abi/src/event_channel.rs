// SPDX-License-Identifier: MIT OR Apache-2.0
//! Event channels: operations, port states, and both ways of announcing an event.
//!
//! Every operation has one structure as argument, passed by virtual address. In the 2-level ABI pending
//! and mask bits are in the shared page ([`crate::shared_info`]); in the FIFO ABI each port has an event
//! word and each vCPU a control block with 16 queue heads. A guest chooses FIFO by `init_control` and
//! falls back to 2-level if that fails.
//!
//! Source: `xen/include/public/event_channel.h` and `xen.h` (VIRQs) at 4.17.

/// Connects a new local port with an unbound remote one: [`BindInterdomain`].
pub const EVTCHNOP_BIND_INTERDOMAIN: u32 = 0;
/// A new port for a virtual interrupt: [`BindVirq`].
pub const EVTCHNOP_BIND_VIRQ: u32 = 1;
/// A new port for a physical interrupt: [`BindPirq`].
pub const EVTCHNOP_BIND_PIRQ: u32 = 2;
/// Closes a port: [`Close`].
pub const EVTCHNOP_CLOSE: u32 = 3;
/// Signals the other end: [`Send`].
pub const EVTCHNOP_SEND: u32 = 4;
/// What a port is: [`Status`].
pub const EVTCHNOP_STATUS: u32 = 5;
/// A new port that another domain may bind: [`AllocUnbound`].
pub const EVTCHNOP_ALLOC_UNBOUND: u32 = 6;
/// A new port that its own vCPU receives: [`BindIpi`].
pub const EVTCHNOP_BIND_IPI: u32 = 7;
/// Moves delivery of a port to a vCPU: [`BindVcpu`].
pub const EVTCHNOP_BIND_VCPU: u32 = 8;
/// Clears the mask, and delivers what is pending: [`Unmask`].
pub const EVTCHNOP_UNMASK: u32 = 9;
/// Closes all ports of a domain: [`Reset`].
pub const EVTCHNOP_RESET: u32 = 10;
/// Switches a vCPU to the FIFO ABI: [`InitControl`].
pub const EVTCHNOP_INIT_CONTROL: u32 = 11;
/// Adds a page of FIFO event words: [`ExpandArray`].
pub const EVTCHNOP_EXPAND_ARRAY: u32 = 12;
/// Sets a FIFO priority: [`SetPriority`].
pub const EVTCHNOP_SET_PRIORITY: u32 = 13;

crate::wire_struct! {
    /// Argument of [`EVTCHNOP_ALLOC_UNBOUND`].
    pub struct AllocUnbound: 8 {
        /// The domain that gets the port.
        0 => pub dom: u16,
        /// The domain that may bind it.
        2 => pub remote_dom: u16,
        /// The new port; written by the hypervisor.
        4 => pub port: u32,
    }
}

crate::wire_struct! {
    /// Argument of [`EVTCHNOP_BIND_INTERDOMAIN`].
    pub struct BindInterdomain: 12 {
        /// The domain of the other end.
        0 => pub remote_dom: u16,
        /// The unbound port there.
        4 => pub remote_port: u32,
        /// The caller's new port; written by the hypervisor.
        8 => pub local_port: u32,
    }
}

crate::wire_struct! {
    /// Argument of [`EVTCHNOP_BIND_VIRQ`].
    pub struct BindVirq: 12 {
        /// `VIRQ_*`.
        0 => pub virq: u32,
        /// Receiver; 0 for a global one.
        4 => pub vcpu: u32,
        /// The caller's new port; written by the hypervisor.
        8 => pub port: u32,
    }
}

crate::wire_struct! {
    /// Argument of [`EVTCHNOP_BIND_PIRQ`].
    pub struct BindPirq: 12 {
        /// The physical interrupt.
        0 => pub pirq: u32,
        /// Bit 0: will share.
        4 => pub flags: u32,
        /// The caller's new port; written by the hypervisor.
        8 => pub port: u32,
    }
}

crate::wire_struct! {
    /// Argument of [`EVTCHNOP_BIND_IPI`].
    pub struct BindIpi: 8 {
        /// Receiver.
        0 => pub vcpu: u32,
        /// The caller's new port; written by the hypervisor.
        4 => pub port: u32,
    }
}

crate::wire_struct! {
    /// Argument of [`EVTCHNOP_CLOSE`].
    pub struct Close: 4 {
        /// The port to close.
        0 => pub port: u32,
    }
}

crate::wire_struct! {
    /// Argument of [`EVTCHNOP_SEND`].
    pub struct Send: 4 {
        /// The local end of the channel to signal.
        0 => pub port: u32,
    }
}

crate::wire_struct! {
    /// Argument of [`EVTCHNOP_STATUS`].
    pub struct Status: 24 {
        /// Whose port.
        0 => pub dom: u16,
        /// The port.
        4 => pub port: u32,
        /// `EVTCHNSTAT_*`; written by the hypervisor.
        8 => pub status: u32,
        /// The vCPU that receives it; written by the hypervisor.
        12 => pub vcpu: u32,
        /// By status: the remote domain in the low 16 bits, the PIRQ or the VIRQ.
        16 => pub first: u32,
        /// By status: the remote port.
        20 => pub second: u32,
    }
}

crate::wire_struct! {
    /// Argument of [`EVTCHNOP_BIND_VCPU`].
    pub struct BindVcpu: 8 {
        /// The port.
        0 => pub port: u32,
        /// Its new receiver.
        4 => pub vcpu: u32,
    }
}

crate::wire_struct! {
    /// Argument of [`EVTCHNOP_UNMASK`].
    pub struct Unmask: 4 {
        /// The port.
        0 => pub port: u32,
    }
}

crate::wire_struct! {
    /// Argument of [`EVTCHNOP_RESET`].
    pub struct Reset: 2 {
        /// Whose ports.
        0 => pub dom: u16,
    }
}

crate::wire_struct! {
    /// Argument of [`EVTCHNOP_INIT_CONTROL`].
    pub struct InitControl: 24 {
        /// Guest frame of the control block.
        0 => pub control_gfn: u64,
        /// Its offset in the frame, in bytes.
        8 => pub offset: u32,
        /// Whose control block it is.
        12 => pub vcpu: u32,
        /// [`FIFO_LINK_BITS`]; written by the hypervisor.
        16 => pub link_bits: u8,
        /// Zero.
        17 => pub pad: [u8; 7],
    }
}

crate::wire_struct! {
    /// Argument of [`EVTCHNOP_EXPAND_ARRAY`].
    pub struct ExpandArray: 8 {
        /// Guest frame of the next page of event words.
        0 => pub array_gfn: u64,
    }
}

crate::wire_struct! {
    /// Argument of [`EVTCHNOP_SET_PRIORITY`].
    pub struct SetPriority: 8 {
        /// The port.
        0 => pub port: u32,
        /// [`FIFO_PRIORITY_MAX`] to [`FIFO_PRIORITY_MIN`].
        4 => pub priority: u32,
    }
}

/// Not in use.
pub const EVTCHNSTAT_CLOSED: u32 = 0;
/// Waits for a peer.
pub const EVTCHNSTAT_UNBOUND: u32 = 1;
/// Connected with another port.
pub const EVTCHNSTAT_INTERDOMAIN: u32 = 2;
/// A physical interrupt.
pub const EVTCHNSTAT_PIRQ: u32 = 3;
/// A virtual interrupt.
pub const EVTCHNSTAT_VIRQ: u32 = 4;
/// For the domain itself.
pub const EVTCHNSTAT_IPI: u32 = 5;

/// Ports of the 2-level ABI (`EVTCHN_2L_NR_CHANNELS`).
pub const TWO_LEVEL_PORTS: u32 = 4096;
/// Ports of the FIFO ABI (`EVTCHN_FIFO_NR_CHANNELS`).
pub const FIFO_PORTS: u32 = 1 << FIFO_LINK_BITS;
/// Bits of a link in an event word.
pub const FIFO_LINK_BITS: u32 = 17;
/// The link in an event word.
pub const FIFO_LINK_MASK: u32 = (1 << FIFO_LINK_BITS) - 1;
/// Event word: signalled. The header gives bit numbers, these are masks.
pub const FIFO_PENDING: u32 = 1 << 31;
/// Event word: not to be delivered.
pub const FIFO_MASKED: u32 = 1 << 30;
/// Event word: in a queue.
pub const FIFO_LINKED: u32 = 1 << 29;
/// Event word: the link is being changed.
pub const FIFO_BUSY: u32 = 1 << 28;
/// The most urgent queue.
pub const FIFO_PRIORITY_MAX: u32 = 0;
/// The queue of a new port.
pub const FIFO_PRIORITY_DEFAULT: u32 = 7;
/// The least urgent queue.
pub const FIFO_PRIORITY_MIN: u32 = 15;
/// Queues of a vCPU (`EVTCHN_FIFO_MAX_QUEUES`).
pub const FIFO_QUEUES: usize = 16;
/// Event words in a page of the array.
pub const FIFO_WORDS_PER_PAGE: u32 = 1024;
/// Control block: offset of the ready bits, one a queue.
pub const FIFO_CONTROL_READY: usize = 0;
/// Control block: offset of the queue heads, a `u32` each.
pub const FIFO_CONTROL_HEAD: usize = 8;
/// Size of a control block (`struct evtchn_fifo_control_block`).
pub const FIFO_CONTROL_SIZE: usize = 72;

/// The one-shot and periodic timer; per vCPU.
pub const VIRQ_TIMER: u32 = 0;
/// Debug request; per vCPU.
pub const VIRQ_DEBUG: u32 = 1;
/// Input for the control domain from the console; global.
pub const VIRQ_CONSOLE: u32 = 2;
/// A domain ended or changed state; global.
pub const VIRQ_DOM_EXC: u32 = 3;
/// Trace buffer; global.
pub const VIRQ_TBUF: u32 = 4;
/// A domain stopped for debugging; global.
pub const VIRQ_DEBUGGER: u32 = 6;
/// Profiling; per vCPU.
pub const VIRQ_XENOPROF: u32 = 7;
/// Bytes in the hypervisor's log; global.
pub const VIRQ_CON_RING: u32 = 8;
/// A physical CPU changed state; global.
pub const VIRQ_PCPU_STATE: u32 = 9;
/// Memory event; global.
pub const VIRQ_MEM_EVENT: u32 = 10;
/// Argo; global.
pub const VIRQ_ARGO: u32 = 11;
/// Low on memory; global.
pub const VIRQ_ENOMEM: u32 = 12;
/// Performance counters; per vCPU.
pub const VIRQ_XENPMU: u32 = 13;
/// Machine check; global.
pub const VIRQ_ARCH_0: u32 = 16;
/// Numbers below this are VIRQs.
pub const NR_VIRQS: u32 = 24;
