// SPDX-License-Identifier: MIT OR Apache-2.0
//! The seam between the logic and the CPU: what VT-x and SVM have in common.
//!
//! One [`VcpuHw`] is one vCPU's VMCS or VMCB. Everything above it is written once. The trait is
//! used through `dyn`, because an indirect call costs two instructions and buys one copy of the
//! vCPU loop. [`Machine`] is the rest of the hardware.

use crate::addr::{Hpa, Mfn, Ticks};
use crate::exit::Exit;
use crate::facts::HeapUsage;
use crate::vcpu::regs::{CpuState, GuestRegs, Paging, Segment};

/// The length of VMCALL and of VMMCALL. The ABI is the bare instruction: a guest that puts prefixes in
/// front of it returns into its middle, which harms that guest alone.
pub const HYPERCALL_LENGTH: u64 = 3;

/// One vCPU's hardware state.
///
/// The registers in [`GuestRegs`] are the caller's; RIP, RSP, RFLAGS, segments and control
/// registers live in the VMCS or VMCB and are read and written one at a time, since each read can
/// cost a VMREAD.
pub trait VcpuHw: Send {
    /// Enters the guest until something needs a decision.
    ///
    /// An event that the CPU was delivering when it exited is kept and delivered again at the
    /// next entry. Returns [`Exit::Deadline`] once the host's TSC passes `deadline`, sooner or
    /// with another exit at any time.
    fn run(&mut self, regs: &mut GuestRegs, deadline: Ticks, times: &mut RunTimes) -> Exit;

    /// Loads this vCPU's state that entries and exits do not switch (FPU, debug registers, MSRs
    /// without a field) into the CPU. Called when the vCPU is scheduled in.
    fn load(&mut self);
    /// Saves what [`VcpuHw::load`] loaded. Called when the vCPU is scheduled out.
    fn save(&mut self);

    /// The instruction pointer.
    fn rip(&self) -> u64;
    /// Sets the instruction pointer.
    fn set_rip(&mut self, rip: u64);
    /// The address behind the instruction that exited, where the CPU tells it.
    fn next_rip(&self) -> Option<u64>;
    /// Ends the one-instruction interrupt shadow of STI and MOV SS; goes with moving RIP.
    fn clear_interrupt_shadow(&mut self);
    /// Moves RIP behind an instruction that the hypervisor has carried out, which also ends the
    /// interrupt shadow.
    fn finish_instruction(&mut self, next_rip: u64) {
        self.set_rip(next_rip);
        self.clear_interrupt_shadow();
    }
    /// The same behind VMCALL or VMMCALL.
    fn finish_hypercall(&mut self) {
        self.finish_instruction(self.rip().wrapping_add(HYPERCALL_LENGTH));
    }
    /// RFLAGS.
    fn rflags(&self) -> u64;
    /// The current privilege level, 0 to 3.
    fn cpl(&self) -> u8;
    /// A segment register; CS tells the width of code.
    fn segment(&self, which: SegmentName) -> Segment;
    /// Whether CS says 64-bit code, as far as long mode is on.
    fn has_long_cs(&self) -> bool {
        self.segment(SegmentName::Cs).is_long()
    }
    /// What a walk of the guest's page tables depends on.
    fn paging(&self) -> Paging;

    /// Replaces the whole architectural state except GPRs: PVH entry, INIT, SIPI.
    fn set_state(&mut self, state: &CpuState);
    /// The whole architectural state except GPRs, for dumps and `getvcpucontext`.
    fn state(&self) -> CpuState;
    /// Sets CR0 to a value that has been checked. The guest reads back exactly this value.
    fn set_cr0(&mut self, value: u64);
    /// Sets CR4 to a value that has been checked. The guest reads back exactly this value.
    fn set_cr4(&mut self, value: u64);
    /// Sets EFER to a value that has been checked (LMA follows CR0.PG by itself).
    fn set_efer(&mut self, value: u64);
    /// EFER as the guest sees it.
    fn efer(&self) -> u64;
    /// Writes an MSR that has its own field or is switched lazily; the policy has checked number
    /// and value. See [`GuestMsr`].
    fn set_msr(&mut self, msr: GuestMsr, value: u64);
    /// Reads such an MSR.
    fn msr(&self, msr: GuestMsr) -> u64;
    /// Sets XCR0 to a value that has been checked.
    fn set_xcr0(&mut self, value: u64);
    /// XCR0 as the guest sees it.
    fn xcr0(&self) -> u64;

    /// Whether an external interrupt could be delivered at the next entry: RFLAGS.IF is set, no
    /// shadow, nothing else queued.
    fn can_inject_interrupt(&self) -> bool;
    /// Whether an interrupt can be queued now that the CPU delivers as soon as the guest takes interrupts, without an
    /// exit for that.
    fn can_queue_interrupt(&self) -> bool {
        self.can_inject_interrupt()
    }
    /// Whether an NMI or an exception can be injected: nothing else is delivered first at the next entry.
    fn can_inject(&self) -> bool {
        !self.has_queued_event()
    }
    /// Whether an event is queued for the next entry, by [`VcpuHw::inject`] or because the CPU
    /// was delivering it when it exited.
    fn has_queued_event(&self) -> bool;
    /// Queues an event for the next entry. At most one is queued; exceptions win over what
    /// is still to be re-delivered.
    fn inject(&mut self, event: Injection);
    /// Asks for [`Exit::InterruptWindow`] as soon as an interrupt could be delivered.
    fn request_window(&mut self, wanted: bool);

    /// Uses the p2m with this root; `generation` is compared with what this pCPU last flushed.
    fn set_p2m(&mut self, root: Mfn, generation: u64);
    /// Sets what the guest's TSC is ahead of the host's, in ticks, wrapping.
    fn set_tsc_offset(&mut self, offset: u64);
    /// The raw exit reason of the last run, for counters and dumps.
    fn raw_reason(&self) -> u64;
}

/// When a guest ran. Read by the backend, where it costs no call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunTimes {
    /// The host's TSC just before the entry.
    pub entered: Ticks,
    /// The host's TSC just after the exit.
    pub exited: Ticks,
}

/// An event to deliver to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injection {
    /// A maskable interrupt. The caller has checked [`VcpuHw::can_inject_interrupt`] or
    /// [`VcpuHw::can_queue_interrupt`].
    Interrupt {
        /// The vector.
        vector: u8,
    },
    /// A non-maskable interrupt.
    Nmi,
    /// A hardware exception.
    Exception {
        /// The vector.
        vector: u8,
        /// The error code, where the vector has one.
        error_code: Option<u32>,
    },
}

/// A segment register's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the CPU's own")]
pub enum SegmentName {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
    Ldtr,
    Tr,
}

impl SegmentName {
    /// All of them.
    pub const ALL: [Self; 8] = [Self::Es, Self::Cs, Self::Ss, Self::Ds, Self::Fs, Self::Gs, Self::Ldtr, Self::Tr];
}

/// An MSR that a backend keeps for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the CPU's own")]
pub enum GuestMsr {
    Star,
    Lstar,
    Cstar,
    Sfmask,
    KernelGsBase,
    SysenterCs,
    SysenterEsp,
    SysenterEip,
    FsBase,
    GsBase,
    Pat,
    TscAux,
}

/// What makes a vCPU: its first hardware state.
pub struct VcpuConfig {
    /// The root of its domain's p2m.
    pub p2m_root: Mfn,
    /// Port-permission map: bit set = exit. 65536 bits, 8 KiB, owned by the domain.
    pub io_bitmap: Hpa,
    /// The domain's address-space tag for the CPU's TLB; never 0.
    pub tlb_tag: u16,
}

/// The hardware below the vCPUs.
pub trait Machine: Sync {
    /// The host's time-stamp counter.
    fn tsc(&self) -> Ticks;
    /// The host's answer to CPUID.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult;
    /// The XCR0 bits whose state is switched between vCPUs; 0 without XSAVE.
    fn supported_xcr0(&self) -> u64;
    /// Makes a vCPU's hardware state, or says that memory ran out.
    fn new_vcpu(&self, config: &VcpuConfig) -> Option<alloc::boxed::Box<dyn VcpuHw>>;
    /// Writes bytes to the console as they are.
    fn console_write(&self, bytes: &[u8]);
    /// Stops this pCPU until an interrupt arrives or the host's TSC passes `until`.
    fn idle(&self, until: Ticks);
    /// The next interrupt of the host that waits, ended at the local APIC unless it is a
    /// device's. `acknowledged` is the vector that an exit reported, if it did.
    fn take_interrupt(&self, acknowledged: Option<u8>) -> Option<HostInterrupt>;
    /// Ends a device's interrupt at the local APIC, after a level-triggered line was masked.
    fn end_of_interrupt(&self);
    /// Reads what has arrived at the console; returns the number of bytes.
    fn console_read(&self, buffer: &mut [u8]) -> usize;
    /// How full the heap is; nothing where the hypervisor has none of its own.
    fn heap_usage(&self) -> HeapUsage {
        HeapUsage::default()
    }
    /// Makes this pCPU forget what it remembers of the domain that it ran, before it runs another.
    fn forget_domain(&self) {}
    /// Wakes another pCPU that is idle, or makes it exit from its guest, so that it looks at its flags
    /// and comes to its next entry.
    fn kick(&self, pcpu: usize);
    /// Called again and again by who has kicked a pCPU and waits for it since `since`: where a kick does not
    /// help within a millisecond, makes it exit by what no state of a guest holds off, and sets `since` to now.
    fn insist(&self, pcpu: usize, since: &mut Ticks);
    /// Whether this pCPU took a non-maskable interrupt that no pCPU has sent; forgets it.
    fn take_stray_nmi(&self) -> bool;
    /// Writes a physical I/O APIC register.
    fn ioapic_write(&self, ioapic: usize, register: u8, value: u32);
    /// Resets the machine; does not return.
    fn reset(&self) -> !;
    /// Powers the machine off as far as it can, else halts; `status` reaches the emulator.
    fn power_off(&self, status: u8) -> !;
    /// Stops this CPU for good, with interrupts off; the machine stays on.
    fn halt(&self) -> !;
}

/// An interrupt of the host, by what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostInterrupt {
    /// The deadline timer.
    Timer,
    /// The console has input.
    Console,
    /// Another pCPU wants attention.
    Kick,
    /// Nothing.
    Spurious,
    /// A device of dom0, which chose the vector (0x20 to 0xeb).
    Device {
        /// The vector.
        vector: u8,
    },
}

/// The four registers that CPUID returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the CPU's own")]
pub struct CpuidResult {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}
