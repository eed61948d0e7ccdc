// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why a guest stopped running, in words that belong to no vendor.
//!
//! A backend decodes its raw exit reason once into an [`Exit`]; what handles it never asks which
//! CPU it runs on. The raw reason is kept by the backend for the log and the counters.

use guest_abi::Gpa;

/// The result of one run of a vCPU.
// A number of its own tells the arms apart without arithmetic on the words inside them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// VMCALL or VMMCALL in 64-bit code at privilege level 0. Number and arguments are in the registers.
    Hypercall,
    /// The same at privilege level 0 in code that is not 64-bit, whose registers mean something else.
    NarrowHypercall,
    /// The same at another privilege level.
    UserHypercall,
    /// CPUID.
    Cpuid,
    /// RDMSR; the number is in ECX.
    Rdmsr,
    /// WRMSR; the number is in ECX.
    Wrmsr,
    /// HLT.
    Halt,
    /// XSETBV; the register is in ECX.
    Xsetbv,
    /// Port I/O that the permission map does not let through.
    Io(IoAccess),
    /// The p2m did not let an access through.
    P2mFault(P2mFault),
    /// A write to a control register that needs a decision.
    ControlWrite {
        /// Which register.
        register: ControlRegister,
        /// The value that the guest tried to write, whole (CLTS and LMSW already applied), or
        /// `None` where only decoding the instruction tells it.
        value: Option<u64>,
    },
    /// MOV from CR8, the task priority.
    Cr8Read {
        /// The number of the register that takes it, or `None` where only decoding tells it.
        into: Option<u8>,
    },
    /// An exception that is intercepted; the guest's own handler has not seen it.
    Exception {
        /// The vector.
        vector: u8,
        /// The error code, where the vector has one.
        error_code: Option<u32>,
    },
    /// An instruction that no domain may use, such as VMXON, VMRUN, MONITOR or RSM.
    Forbidden(Fault),
    /// WBINVD or INVD: completed by the backend's caller as a no-operation.
    CacheFlush,
    /// An interrupt of the host arrived. `vector` is what the CPU acknowledged, or `None` where
    /// it was taken through the host's own IDT before the exit was reported.
    ExternalInterrupt {
        /// The acknowledged vector.
        vector: Option<u8>,
    },
    /// A non-maskable interrupt of the host arrived.
    HostNmi,
    /// The guest can take the interrupt that [`crate::backend::VcpuHw::request_window`] waits for.
    InterruptWindow,
    /// The deadline given to [`crate::backend::VcpuHw::run`] has passed.
    Deadline,
    /// Spinning was noticed (PAUSE-loop exiting); the vCPU may yield.
    PauseLoop,
    /// The guest's CPU shut down.
    TripleFault,
    /// The CPU refused to enter the guest; the backend has logged which check failed.
    EntryFailed {
        /// The vendor's own code.
        raw: u64,
    },
    /// A reason that no control set by us can cause.
    Unexpected {
        /// The vendor's own code.
        raw: u64,
    },
}

/// One intercepted port access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoAccess {
    /// The first port.
    pub port: u16,
    /// Bytes per element: 1, 2 or 4.
    pub size: u8,
    /// `true` for IN and INS.
    pub is_in: bool,
    /// `true` for INS and OUTS.
    pub is_string: bool,
    /// `true` with a REP prefix.
    pub is_repeated: bool,
}

/// An access that the p2m refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct P2mFault {
    /// The guest physical address.
    pub gpa: Gpa,
    /// The access was an instruction fetch.
    pub is_fetch: bool,
    /// The access came from the CPU's walk of the guest's own page tables.
    pub is_walk: bool,
    /// The access came from the CPU's delivery of an event (descriptor tables, the handler's stack), so
    /// the instruction at RIP has nothing to do with it.
    pub is_delivery: bool,
}

/// A control register whose writes can exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlRegister {
    /// CR0.
    Cr0,
    /// CR4.
    Cr4,
    /// CR8, the task priority of the local APIC.
    Cr8,
}

/// What an instruction that is refused raises in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// #UD, vector 6.
    InvalidOpcode,
    /// #GP(0), vector 13.
    GeneralProtection,
}
