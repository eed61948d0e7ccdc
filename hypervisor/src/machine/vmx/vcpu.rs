// SPDX-License-Identifier: MIT OR Apache-2.0
//! One vCPU under VT-x: how its VMCS is filled, entered and left.
//!
//! An ordinary exit and the entry after it cost the backend one VMREAD (the reason) and at most
//! one VMWRITE (the preemption timer); all else is read when it matters or the handler asks.
//! Controls, masks and shadows are ours alone, so they are remembered, not read.

use core::arch::asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_abi::num::low_u32;
use hypervisor::addr::{Mfn, Ticks};
use hypervisor::backend::{GuestMsr, HYPERCALL_LENGTH, Injection, RunTimes, SegmentName, VcpuConfig, VcpuHw};
use hypervisor::exit::{ControlRegister, Exit};
use hypervisor::policy::control::{cr0, efer_with_lma};
use hypervisor::tlb::{VcpuSerial, Wanted};
use hypervisor::vcpu::regs::{CpuState, GuestRegs, Paging, Segment};
use hypervisor::vmx::caps::{Capabilities, Proc2};
use hypervisor::vmx::control_regs::{CR0_MASK, CR4_MASK, guest_view, loads_pdptes, real_cr0, real_cr4};
use hypervisor::vmx::exit::{ExitReason, decode, instruction_error, reason};
use hypervisor::vmx::fields::Field;
use hypervisor::vmx::{entry_check, guest_state};

use super::super::lazy::LazyState;
use super::super::{apic, cpu, percpu, traps};
use super::events::{self, Events};
use super::msrs::SwitchedMsrs;
use super::vmcs::{Active, Vmcs};
use super::{SHARED, Shared, tlb};

global_asm_with_regs!("entry.S", host_rsp = Field::HOST_RSP.raw(), rax = offset_of!(GuestRegs, rax));

unsafe extern "C" {
    /// Not of the C ABI: [`enter`] calls it.
    fn vmx_run();
    static vmx_exit: u8;
}

const VECTOR_DB: u8 = 1;
/// #DB and #AC exit so that a guest whose handlers raise them again cannot keep the CPU in
/// delivery for ever; #MC is the host's.
const INTERCEPTED_EXCEPTIONS: u64 = 1 << VECTOR_DB | 1 << 17 | 1 << 18;
/// PAUSEs further apart than this, in ticks, are not one loop (PLE_GAP), and how long a loop may last.
const PLE_GAP: u64 = 128;
const PLE_WINDOW: u64 = 4096;
/// An exit reason that no exit has: the entry instruction itself failed.
const ENTRY_REFUSED: u32 = u32::MAX;

/// The next vCPU's serial number.
static NEXT_SERIAL: AtomicU64 = AtomicU64::new(1);

/// One vCPU under VT-x.
pub(crate) struct VmxVcpu {
    vmcs: Vmcs,
    shared: &'static Shared,
    serial: VcpuSerial,
    tag: u16,
    root: Mfn,
    generation: u64,
    /// Where it was last scheduled in.
    pcpu: Option<u32>,
    events: Events,
    lazy: LazyState,
    msrs: SwitchedMsrs,
    reason: ExitReason,
    cr0_shadow: u64,
    cr4_shadow: u64,
    /// The preemption timer's start value in the VMCS.
    timer: u32,
    /// Host RSP in the VMCS.
    host_rsp: u64,
}

impl VmxVcpu {
    /// A vCPU that has not run, or `None` when memory ran out.
    pub(crate) fn new(config: &VcpuConfig) -> Option<Self> {
        let shared = SHARED.get()?;
        let vcpu = Self {
            vmcs: Vmcs::new(shared.caps.revision)?,
            shared,
            serial: VcpuSerial(NEXT_SERIAL.fetch_add(1, Ordering::Relaxed)),
            tag: config.tlb_tag,
            root: config.p2m_root,
            generation: 0,
            pcpu: None,
            events: Events::new(shared.caps.controls.proc),
            lazy: LazyState::new()?,
            msrs: SwitchedMsrs::new(),
            reason: ExitReason::default(),
            cr0_shadow: 0,
            cr4_shadow: 0,
            timer: 0,
            host_rsp: 0,
        };
        vcpu.vmcs.visit(|vmcs| {
            for (field, value) in vcpu.controls(config) {
                // SAFETY: (1) the control words were negotiated; (2) the maps' addresses name the
                // domain's and the hypervisor's own pages; (3) the p2m maps only what it has checked.
                unsafe { vmcs.write(field, value) };
            }
        });
        Some(vcpu)
    }

    fn controls(&self, config: &VcpuConfig) -> impl Iterator<Item = (Field, u64)> + use<> {
        let controls = self.shared.caps.controls;
        let io_bitmap = config.io_bitmap.raw();
        let always = [
            (Field::PIN_CONTROLS, u64::from(controls.pin.bits())),
            (Field::PROC_CONTROLS, u64::from(controls.proc.bits())),
            (Field::PROC_CONTROLS2, u64::from(controls.proc2.bits())),
            (Field::EXIT_CONTROLS, u64::from(controls.exit.bits())),
            (Field::ENTRY_CONTROLS, u64::from(controls.entry.bits())),
            (Field::EXCEPTION_BITMAP, INTERCEPTED_EXCEPTIONS),
            (Field::PAGE_FAULT_ERROR_MASK, 0),
            (Field::PAGE_FAULT_ERROR_MATCH, 0),
            (Field::CR3_TARGET_COUNT, 0),
            (Field::EXIT_MSR_STORE_COUNT, 0),
            (Field::EXIT_MSR_LOAD_COUNT, 0),
            (Field::ENTRY_MSR_LOAD_COUNT, 0),
            (Field::ENTRY_INTERRUPTION_INFO, 0),
            (Field::IO_BITMAP_A, io_bitmap),
            (Field::IO_BITMAP_B, io_bitmap + 0x1000),
            (Field::MSR_BITMAP, self.shared.msr_bitmap.raw()),
            (Field::EPT_POINTER, Capabilities::ept_pointer(config.p2m_root)),
            (Field::TSC_OFFSET, 0),
            (Field::CR0_MASK, CR0_MASK),
            (Field::CR4_MASK, CR4_MASK),
            (Field::VMCS_LINK_POINTER, u64::MAX),
            (Field::GUEST_SYSENTER_CS, 0),
            (Field::GUEST_SYSENTER_ESP, 0),
            (Field::GUEST_SYSENTER_EIP, 0),
        ];
        let optional = [
            (Proc2::VPID, Field::VPID, u64::from(config.tlb_tag)),
            (Proc2::XSAVES, Field::XSS_EXIT_BITMAP, 0),
            (Proc2::PAUSE_LOOP_EXIT, Field::PLE_GAP, PLE_GAP),
            (Proc2::PAUSE_LOOP_EXIT, Field::PLE_WINDOW, PLE_WINDOW),
        ];
        let optional = optional.into_iter().filter(move |(bit, ..)| controls.proc2.contains(*bit));
        always.into_iter().chain(optional.map(|(_, field, value)| (field, value)))
    }

    /// What the CPU loads at exits, as this pCPU has it now.
    fn write_host_state(&self) {
        let (gdt, tss) = percpu::descriptor_bases();
        let data = u64::from(percpu::SELECTOR_DATA);
        // SAFETY: every CPU with VT-x has these MSRs.
        let [pat, efer, gs_base] =
            [cpu::msr::PAT, cpu::msr::EFER, cpu::msr::GS_BASE].map(|number| unsafe { cpu::rdmsr(number) });
        let fields = [
            (Field::HOST_CR0, cpu::cr0()),
            (Field::HOST_CR3, cpu::cr3()),
            (Field::HOST_CR4, cpu::cr4()),
            (Field::HOST_CS_SELECTOR, u64::from(percpu::SELECTOR_CODE)),
            (Field::HOST_SS_SELECTOR, data),
            (Field::HOST_DS_SELECTOR, data),
            (Field::HOST_ES_SELECTOR, data),
            (Field::HOST_FS_SELECTOR, 0),
            (Field::HOST_GS_SELECTOR, 0),
            (Field::HOST_TR_SELECTOR, u64::from(percpu::SELECTOR_TSS)),
            (Field::HOST_FS_BASE, 0),
            (Field::HOST_GS_BASE, gs_base),
            (Field::HOST_TR_BASE, tss),
            (Field::HOST_GDTR_BASE, gdt),
            (Field::HOST_IDTR_BASE, traps::idt_base()),
            (Field::HOST_SYSENTER_CS, 0),
            (Field::HOST_SYSENTER_ESP, 0),
            (Field::HOST_SYSENTER_EIP, 0),
            (Field::HOST_PAT, pat),
            (Field::HOST_EFER, efer),
            (Field::HOST_RIP, (&raw const vmx_exit).addr() as u64),
        ];
        self.vmcs.visit(|vmcs| {
            for (field, value) in fields {
                // SAFETY: each is what the hypervisor runs with now, and the entry stub's exit.
                unsafe { vmcs.write(field, value) };
            }
        });
    }

    fn wanted(&self) -> Wanted {
        Wanted { vcpu: self.serial, tag: self.tag, root: self.root, generation: self.generation }
    }

    /// The exits that are not [`ExitReason::plain`]. `None` if there is nothing to report. Kept out of
    /// [`Self::run_to_exit`], which would otherwise prepare on every entry for what is seldom needed.
    #[inline(never)]
    fn decode(&mut self, regs: &GuestRegs) -> Option<Exit> {
        if self.reason.is_entry_failure() {
            self.explain_failure();
        } else {
            self.vmcs.note_launch();
            self.events.collect(&self.vmcs.active());
        }
        let vmcs = self.vmcs.active();
        decode(self.reason, regs, |field| vmcs.read(field)).and_then(|exit| self.finish(exit))
    }

    /// What only this backend can do about an exit, before it is reported.
    fn finish(&mut self, exit: Exit) -> Option<Exit> {
        match exit {
            Exit::InterruptWindow if self.events.keeps_window() => return None,
            Exit::HostNmi => take_nmi(),
            Exit::Exception { vector, .. } => self.finish_exception(vector),
            Exit::P2mFault(_) => self.vmcs.visit(|vmcs| {
                const UNBLOCKED: u32 = 1 << 12;
                if low_u32(vmcs.read(Field::EXIT_QUALIFICATION)) & UNBLOCKED != 0 {
                    self.events.reblock_nmis(&vmcs, 1 << 31 | UNBLOCKED);
                }
            }),
            Exit::ControlWrite { register: ControlRegister::Cr0, value: Some(value) } if self.repeats_write(value) => {
                return None;
            }
            _ => {}
        }
        Some(exit)
    }

    #[cold]
    fn finish_exception(&mut self, vector: u8) {
        if vector == VECTOR_DB {
            const DR7_GD: u64 = 1 << 13;
            const ACCESS_DETECTED: u64 = 1 << 13;
            let found = self.vmcs.read(Field::EXIT_QUALIFICATION);
            self.msrs.note_debug_exception(found);
            if found & ACCESS_DETECTED != 0 {
                let dr7 = self.vmcs.read(Field::GUEST_DR7);
                self.vmcs.write_guest(Field::GUEST_DR7, dr7 & !DR7_GD);
            }
        }
        self.vmcs.visit(|vmcs| self.events.reblock_nmis(&vmcs, low_u32(vmcs.read(Field::EXIT_INTERRUPTION_INFO))));
    }

    /// A write of CR0 that turns PAE paging on must be the guest's own, since only the CPU can load
    /// the page-directory pointers. With the masked bits already as written, it does not exit
    /// again and the CPU checks the rest.
    #[cold]
    fn repeats_write(&mut self, value: u64) -> bool {
        let now = self.paging();
        if !loads_pdptes(now.cr0, value, now.cr4, now.efer) || value & cr0::NW != 0 && value & cr0::CD == 0 {
            return false;
        }
        self.set_cr0_shadow(guest_view(now.cr0, value, CR0_MASK));
        true
    }

    fn set_cr0_shadow(&mut self, value: u64) {
        self.cr0_shadow = value;
        // SAFETY: the shadow is what the guest reads, nothing else.
        self.vmcs.visit(|vmcs| unsafe { vmcs.write(Field::CR0_SHADOW, value) });
    }

    #[cold]
    fn entry_refused(&mut self) -> Exit {
        let number = low_u32(self.vmcs.read(Field::INSTRUCTION_ERROR));
        log::error!("VT-x: entry refused: {} ({number})", instruction_error(number));
        self.reason = ExitReason(ENTRY_REFUSED);
        Exit::EntryFailed { raw: 1 << 32 | u64::from(number) }
    }

    #[cold]
    fn explain_failure(&self) {
        let failure = self.vmcs.visit(|vmcs| {
            if self.reason.basic() == reason::INVALID_GUEST_STATE {
                entry_check::first_failure(&|field| vmcs.read(field), &self.shared.caps)
            } else {
                None
            }
        });
        let why = self.reason.entry_failure();
        match failure {
            Some(failure) => log::error!("VT-x: entry failure: {why}: {failure}"),
            None => log::error!("VT-x: entry failure: {why}: no known check fails"),
        }
    }

    /// Writes EFER with LMA as paging makes it, and the entry control that goes with it.
    fn write_efer(&mut self, efer: u64, cr0: u64) {
        let efer = efer_with_lma(efer, cr0);
        let entry = guest_state::entry_controls(&self.shared.caps, efer);
        self.vmcs.visit(|vmcs| {
            vmcs.write_guest(Field::GUEST_EFER, efer);
            // SAFETY: the negotiated word with the guest's mode.
            unsafe { vmcs.write(Field::ENTRY_CONTROLS, entry) };
        });
    }
}

/// One entry, until the exit. `false` if the instruction itself failed.
///
/// The stub keeps nothing but RBX and RBP: the compiler saves what it holds in the others, which
/// is less than a C function has to.
///
/// # Safety
/// `host_rsp` is what the current VMCS holds, whose host state is this pCPU's and whose EPT maps
/// only what the p2m has checked.
#[inline]
unsafe fn enter(_: &Active<'_>, regs: &mut GuestRegs, host_rsp: &mut u64, is_launched: bool) -> bool {
    let failed: u64;
    // SAFETY: (1) a VMCS is current, and the caller vouches for it; (2) both references are
    // exclusive, and the registers in the order that the stub knows; (3) the stub's contract is the
    // list of operands below.
    unsafe {
        asm!(
            "call {run}",
            run = sym vmx_run,
            inout("rdi") core::ptr::from_mut(regs) => _,
            inout("rsi") core::ptr::from_mut(host_rsp) => _,
            inout("rdx") u64::from(is_launched) => _,
            out("rax") failed, out("rcx") _, out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
    }
    failed == 0
}

/// The NMI that ended the run was taken by the exit and blocks others until an IRET: the host's
/// handler notes it and returns.
#[cold]
fn take_nmi() {
    // SAFETY: the gate leads to the NMI handler, which runs on its own stack and changes nothing
    // that Rust relies on.
    unsafe { core::arch::asm!("int 2") }
}

const fn msr_field(msr: GuestMsr) -> Option<Field> {
    match msr {
        GuestMsr::FsBase => Some(Field::GUEST_FS_BASE),
        GuestMsr::GsBase => Some(Field::GUEST_GS_BASE),
        GuestMsr::SysenterCs => Some(Field::GUEST_SYSENTER_CS),
        GuestMsr::SysenterEsp => Some(Field::GUEST_SYSENTER_ESP),
        GuestMsr::SysenterEip => Some(Field::GUEST_SYSENTER_EIP),
        GuestMsr::Pat => Some(Field::GUEST_PAT),
        _ => None,
    }
}

/// Whose hypercall it is.
#[inline]
fn hypercall_of(vmcs: &Active<'_>) -> Exit {
    // DPL of SS is the privilege level.
    if vmcs.read(Field::GUEST_SS_RIGHTS) >> 5 & 3 != 0 {
        Exit::UserHypercall
    } else if !has_long_cs(vmcs) {
        Exit::NarrowHypercall
    } else {
        Exit::Hypercall
    }
}

#[inline]
fn has_long_cs(vmcs: &Active<'_>) -> bool {
    const LONG: u64 = 1 << 13;
    vmcs.read(Field::GUEST_CS_RIGHTS) & LONG != 0
}

#[inline]
fn finish_instruction(vmcs: &Active<'_>, next_rip: u64) {
    const RFLAGS_TF: u64 = 1 << 8;
    const PENDING_STEP: u64 = 1 << 14;
    vmcs.write_guest(Field::GUEST_RIP, next_rip);
    events::clear_shadow(vmcs);
    if vmcs.read(Field::GUEST_RFLAGS) & RFLAGS_TF != 0 {
        // The trap that the CPU would have raised behind the instruction.
        let pending = vmcs.read(Field::GUEST_PENDING_DEBUG);
        vmcs.write_guest(Field::GUEST_PENDING_DEBUG, pending | PENDING_STEP);
    }
}

impl VmxVcpu {
    /// Runs the guest until an exit that is not the backend's own.
    #[inline]
    fn run_to_exit(&mut self, regs: &mut GuestRegs, deadline: Ticks, mut now: Ticks) -> Exit {
        loop {
            let vmcs = self.vmcs.active();
            match self.shared.caps.timer_value(now.raw(), deadline.raw()) {
                Some(value) if value == self.timer => {}
                Some(value) => {
                    self.timer = value;
                    vmcs.write_guest(Field::PREEMPTION_TIMER, u64::from(value));
                }
                None => apic::set_deadline(deadline),
            }
            self.events.deliver(&vmcs);
            self.vmcs.settle_accesses();
            // SAFETY: (1) `load` has written the host state on this pCPU; (2) nobody else writes host
            // RSP; (3) the EPT pointer is the p2m's root.
            if !unsafe { enter(&vmcs, regs, &mut self.host_rsp, self.vmcs.is_launched()) } {
                return self.entry_refused();
            }
            self.reason = ExitReason(low_u32(vmcs.read(Field::EXIT_REASON)));
            if let Some(exit) = self.reason.plain() {
                self.vmcs.note_launch();
                return exit;
            }
            if let Some(exit) = self.decode(regs) {
                return exit;
            }
            now = cpu::rdtsc();
        }
    }
}

impl VcpuHw for VmxVcpu {
    fn run(&mut self, regs: &mut GuestRegs, deadline: Ticks, times: &mut RunTimes) -> Exit {
        times.entered = cpu::rdtsc();
        let exit = self.run_to_exit(regs, deadline, times.entered);
        times.exited = cpu::rdtsc();
        match exit {
            Exit::Hypercall => self.vmcs.visit(|vmcs| hypercall_of(&vmcs)),
            exit => exit,
        }
    }

    fn load(&mut self) {
        self.vmcs.make_current();
        let here = percpu::current().id;
        let stayed = self.pcpu == Some(here);
        if !stayed {
            self.write_host_state();
            self.pcpu = Some(here);
        }
        self.vmcs.forgive_accesses();
        if let Some(memory) = self.shared.tlb(here as usize) {
            let flush = memory.lock().schedule_in(self.wanted(), stayed);
            tlb::drop_stale(&self.shared.caps, flush, self.root, self.tag);
        }
        self.lazy.load();
        self.msrs.load();
    }

    fn save(&mut self) {
        self.msrs.save();
        self.lazy.save();
        self.vmcs.put_away();
    }

    fn rip(&self) -> u64 {
        self.vmcs.read(Field::GUEST_RIP)
    }

    fn set_rip(&mut self, rip: u64) {
        self.vmcs.write_guest(Field::GUEST_RIP, rip);
    }

    fn next_rip(&self) -> Option<u64> {
        if !self.reason.has_instruction_length() {
            return None;
        }
        let length = self.vmcs.read(Field::EXIT_INSTRUCTION_LENGTH);
        Some(self.rip().wrapping_add(length))
    }

    fn clear_interrupt_shadow(&mut self) {
        self.vmcs.visit(|vmcs| events::clear_shadow(&vmcs));
    }

    fn finish_instruction(&mut self, next_rip: u64) {
        self.vmcs.visit(|vmcs| finish_instruction(&vmcs, next_rip));
    }

    fn finish_hypercall(&mut self) {
        self.vmcs.visit(|vmcs| {
            let next_rip = vmcs.read(Field::GUEST_RIP).wrapping_add(HYPERCALL_LENGTH);
            finish_instruction(&vmcs, next_rip);
        });
    }

    fn rflags(&self) -> u64 {
        self.vmcs.read(Field::GUEST_RFLAGS)
    }

    fn cpl(&self) -> u8 {
        guest_abi::num::low_u8(self.vmcs.read(Field::GUEST_SS_RIGHTS) >> 5 & 3)
    }

    fn segment(&self, which: SegmentName) -> Segment {
        self.vmcs.visit(|vmcs| guest_state::fetch_segment(which, |field| vmcs.read(field)))
    }

    fn has_long_cs(&self) -> bool {
        self.vmcs.visit(|vmcs| has_long_cs(&vmcs))
    }

    fn paging(&self) -> Paging {
        self.vmcs.visit(|vmcs| Paging {
            cr0: guest_view(vmcs.read(Field::GUEST_CR0), self.cr0_shadow, CR0_MASK),
            cr3: vmcs.read(Field::GUEST_CR3),
            cr4: guest_view(vmcs.read(Field::GUEST_CR4), self.cr4_shadow, CR4_MASK),
            efer: vmcs.read(Field::GUEST_EFER),
        })
    }

    fn set_state(&mut self, state: &CpuState) {
        self.vmcs.visit(|vmcs| {
            // SAFETY: guest state and its shadows concern the guest alone; the entry controls
            // among them are the negotiated word with the guest's mode.
            guest_state::store(state, &self.shared.caps, |field, value| unsafe { vmcs.write(field, value) });
        });
        self.vmcs.forgive_accesses();
        (self.cr0_shadow, self.cr4_shadow) = (state.cr0, state.cr4);
        self.events.reset();
        self.msrs.set_cr2(state.cr2);
        self.lazy.set_xcr0(state.xcr0);
    }

    fn state(&self) -> CpuState {
        let state = self.vmcs.visit(|vmcs| guest_state::fetch(|field| vmcs.read(field)));
        self.vmcs.forgive_accesses();
        CpuState { cr2: self.msrs.cr2(), xcr0: self.lazy.xcr0(), ..state }
    }

    fn set_cr0(&mut self, value: u64) {
        let efer = self.efer();
        self.vmcs.write_guest(Field::GUEST_CR0, real_cr0(value, self.shared.caps.cr0));
        self.set_cr0_shadow(value);
        if efer_with_lma(efer, value) != efer {
            self.write_efer(efer, value);
        }
    }

    fn set_cr4(&mut self, value: u64) {
        self.cr4_shadow = value;
        self.vmcs.visit(|vmcs: Active<'_>| {
            vmcs.write_guest(Field::GUEST_CR4, real_cr4(value, self.shared.caps.cr4));
            // SAFETY: the shadow is what the guest reads, nothing else.
            unsafe { vmcs.write(Field::CR4_SHADOW, value) };
        });
    }

    fn set_efer(&mut self, value: u64) {
        let cr0 = self.vmcs.read(Field::GUEST_CR0);
        self.write_efer(value, cr0);
    }

    fn efer(&self) -> u64 {
        self.vmcs.read(Field::GUEST_EFER)
    }

    fn set_msr(&mut self, msr: GuestMsr, value: u64) {
        match msr_field(msr) {
            Some(field) => self.vmcs.write_guest(field, value),
            None => {
                let is_kept = self.msrs.set(msr, value);
                debug_assert!(is_kept, "{msr:?} is kept nowhere");
            }
        }
    }

    fn msr(&self, msr: GuestMsr) -> u64 {
        match msr_field(msr) {
            Some(field) => self.vmcs.read(field),
            None => self.msrs.get(msr).unwrap_or(0),
        }
    }

    fn set_xcr0(&mut self, value: u64) {
        self.lazy.set_xcr0(value);
    }

    fn xcr0(&self) -> u64 {
        self.lazy.xcr0()
    }

    fn can_inject_interrupt(&self) -> bool {
        self.events.is_empty() && self.vmcs.visit(|vmcs| events::can_take_interrupt(&vmcs))
    }

    fn has_queued_event(&self) -> bool {
        !self.events.is_empty()
    }

    fn inject(&mut self, event: Injection) {
        self.events.inject(&self.vmcs, event);
    }

    fn request_window(&mut self, wanted: bool) {
        self.events.request_window(wanted);
    }

    fn set_p2m(&mut self, root: Mfn, generation: u64) {
        if root != self.root {
            self.root = root;
            // SAFETY: the p2m maps only what it has checked.
            self.vmcs.visit(|vmcs| unsafe { vmcs.write(Field::EPT_POINTER, Capabilities::ept_pointer(root)) });
        }
        self.generation = generation;
        if self.vmcs.is_current()
            && let Some(memory) = self.pcpu.and_then(|here| self.shared.tlb(here as usize))
        {
            let flush = memory.lock().enter(self.wanted());
            tlb::drop_stale(&self.shared.caps, flush, self.root, self.tag);
        }
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        // SAFETY: the offset is added to what the guest reads, nothing else.
        self.vmcs.visit(|vmcs| unsafe { vmcs.write(Field::TSC_OFFSET, offset) });
    }

    fn raw_reason(&self) -> u64 {
        u64::from(self.reason.0)
    }
}
