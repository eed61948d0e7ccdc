// SPDX-License-Identifier: MIT OR Apache-2.0
//! The SVM backend: AMD-V with nested paging.
//!
//! Required: SVM not disabled by firmware, and nested paging. Used when present: next-RIP saving,
//! flush by ASID. A control block belongs to one vCPU; FS, GS and the system-call MSRs travel in
//! it by VMLOAD and VMSAVE, FPU and debug registers lazily.
//!
//! TLB: entries are tagged with an ASID, which a domain's vCPUs share, and large domain numbers with
//! smaller ones. A pCPU flushes an ASID when a vCPU is scheduled in after another one with it or after
//! having been elsewhere, and when its p2m's generation has moved on ([`hypervisor::tlb`]).
//!
//! Source: AMD APM vol. 2 (24593, rev. 3.41), chapter 15, Secure Virtual Machine.

mod exit;
mod vmcb;

use alloc::boxed::Box;
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_abi::isthmus;
use guest_abi::num::low_u8;
use hypervisor::addr::{Hpa, Mfn, Ticks};
use hypervisor::backend::{GuestMsr, Injection, RunTimes, SegmentName, VcpuConfig, VcpuHw};
use hypervisor::exit::Exit;
use hypervisor::pcpu::MAX_PCPUS;
use hypervisor::policy::control::{efer, efer_with_lma};
use hypervisor::tlb::{Flush, PcpuTlb, VcpuSerial, Wanted};
use hypervisor::vcpu::regs::{CpuState, GuestRegs, Paging, Segment, Segments};
use spin::{Mutex, Once};

use self::vmcb::{Vmcb, intercept1, intercept2, v_intr};
use super::lazy::LazyState;
use super::{apic, cpu, heap, layout, percpu};

global_asm_with_regs!("entry.S");

unsafe extern "C" {
    /// Not of the C ABI: [`enter`] calls it.
    fn svm_run();
}

const MSR_VM_CR: u32 = 0xc001_0114;
const MSR_VM_HSAVE_PA: u32 = 0xc001_0117;
const VM_CR_SVMDIS: u64 = 1 << 4;
const EFER_SVME: u64 = 1 << 12;
const RFLAGS_IF: u64 = 1 << 9;
const EVENT_VALID: u64 = 1 << 31;
const EVENT_ERROR: u64 = 1 << 11;
const EVENT_INTERRUPT: u64 = 0;
const EVENT_NMI: u64 = 2 << 8;
const EVENT_EXCEPTION: u64 = 3 << 8;
const EVENT_TYPE: u64 = 7 << 8;
const EVENT_SOFTWARE: u64 = 4 << 8;
const FLUSH_ALL: u32 = 1;
const FLUSH_ASID: u32 = 3;
/// Reads of CR8 (low half), writes of CR4 and CR8 (high half). CR0 is the guest's own: no bit of it
/// concerns anybody else.
const INTERCEPT_CR: u32 = 1 << 8 | 1 << (16 + 4) | 1 << (16 + 8);
const VECTOR_DB: u32 = 1;
const VECTOR_AC: u32 = 17;
const VECTOR_MC: u32 = 18;

/// What this CPU's SVM can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Features {
    nr_asids: u32,
    next_rip: bool,
    flush_by_asid: bool,
}

/// Finds out whether this CPU can run guests by SVM.
///
/// # Errors
/// What is missing, and what to do about it.
pub(crate) fn probe() -> Result<Features, &'static str> {
    if cpu::cpuid(0x8000_0001, 0).ecx & 1 << 2 == 0 {
        return Err("this CPU has no SVM");
    }
    // SAFETY: CPUs with SVM have the MSR.
    if unsafe { cpu::rdmsr(MSR_VM_CR) } & VM_CR_SVMDIS != 0 {
        return Err("SVM is disabled by the firmware: enable virtualization in its setup");
    }
    let leaf = cpu::cpuid(0x8000_000a, 0);
    if leaf.edx & 1 == 0 {
        return Err("this CPU's SVM has no nested paging");
    }
    Ok(Features { nr_asids: leaf.ebx, next_rip: leaf.edx & 1 << 3 != 0, flush_by_asid: leaf.edx & 1 << 6 != 0 })
}

/// What is used of them, as bits of [`isthmus::FEATURE_NAMES`].
pub(crate) fn features() -> u64 {
    let Some(Shared { features, .. }) = SHARED.get() else { return 0 };
    let next_rip = if features.next_rip { isthmus::FEATURE_NEXT_RIP } else { 0 };
    let flush_by_asid = if features.flush_by_asid { isthmus::FEATURE_FLUSH_BY_ASID } else { 0 };
    next_rip | flush_by_asid
}

/// What all vCPUs share.
struct Shared {
    features: Features,
    msr_map: Hpa,
    pcpus: [Once<Box<Pcpu>>; MAX_PCPUS],
}

/// What all vCPUs on one pCPU share; only that pCPU looks.
struct Pcpu {
    /// Where VMSAVE has put what VMLOAD brings back after each exit.
    host_vmcb: Hpa,
    tlb: Mutex<PcpuTlb>,
}

/// The next vCPU's serial number.
static NEXT_SERIAL: AtomicU64 = AtomicU64::new(1);
static SHARED: Once<Shared> = Once::new();

#[repr(C, align(4096))]
struct Page([u8; 4096]);

#[repr(C, align(4096))]
struct MsrMap([u8; 8192]);

/// Turns SVM on for this CPU. The features of the first one are everybody's.
///
/// # Errors
/// When memory ran out, or the CPU is unlike the first one.
pub(crate) fn enable(features: Features) -> Result<(), &'static str> {
    const NO_MEMORY: &str = "no memory for SVM's own pages";
    // SAFETY: long mode is on, so the MSR exists.
    let efer = unsafe { cpu::rdmsr(cpu::msr::EFER) };
    // SAFETY: SVM was probed; the bit changes nothing until VMRUN.
    unsafe { cpu::wrmsr(cpu::msr::EFER, efer | EFER_SVME) };
    // SAFETY: a page of bytes may be all zeroes.
    let save_area = unsafe { heap::new_zeroed::<Page>() }.ok_or(NO_MEMORY)?;
    let save_area = layout::hpa_of(Box::leak(save_area));
    // SAFETY: the page is leaked, so it is the CPU's for ever.
    unsafe { cpu::wrmsr(MSR_VM_HSAVE_PA, save_area.raw()) };
    // SAFETY: a control block holds integers only, so it may be all zeroes.
    let host_vmcb = unsafe { heap::new_zeroed::<Vmcb>() }.ok_or(NO_MEMORY)?;
    let host_vmcb = layout::hpa_of(Box::leak(host_vmcb));
    // VMSAVE stores what VMLOAD after each exit brings back: GS base, TR and the rest.
    // SAFETY: the block is leaked and 4 KiB aligned; VMSAVE writes nothing else.
    unsafe { core::arch::asm!("vmsave rax", in("rax") host_vmcb.raw(), options(nostack, preserves_flags)) };
    let shared = SHARED.try_call_once(|| {
        // SAFETY: a permission map is bytes.
        let mut msr_map = unsafe { heap::new_zeroed::<MsrMap>() }.ok_or(NO_MEMORY)?;
        fill_msr_map(&mut msr_map);
        let msr_map = layout::hpa_of(Box::leak(msr_map));
        Ok(Shared { features, msr_map, pcpus: [const { Once::new() }; MAX_PCPUS] })
    })?;
    if shared.features != features {
        return Err("its SVM is not the same as the boot CPU's");
    }
    shared.pcpus[percpu::number()].call_once(|| Box::new(Pcpu { host_vmcb, tlb: Mutex::new(PcpuTlb::default()) }));
    Ok(())
}

/// The MSR permission map: everything exits but what the control block itself holds.
fn fill_msr_map(map: &mut MsrMap) {
    map.0.fill(0xff);
    // What a kernel writes at every context switch. The others are written once a boot, and
    // checked by the policy, since not every implementation checks addresses itself.
    for number in [cpu::msr::FS_BASE, cpu::msr::GS_BASE, cpu::msr::KERNEL_GS_BASE] {
        allow(map, number, 0b11);
    }
    // The TSC is read with the offset applied; writing it exits.
    allow(map, cpu::msr::TSC, 0b01);
}

/// Clears the permission bits `which` (1 read, 2 write) of an MSR.
fn allow(map: &mut MsrMap, number: u32, which: u8) {
    let (base, first) = if number < 0x2000 { (0, 0) } else { (0x800, 0xc000_0000) };
    let bit = (number - first) as usize * 2;
    map.0[base + bit / 8] &= !(which << (bit % 8));
}

/// One vCPU under SVM.
pub(crate) struct SvmVcpu {
    vmcb: Box<Vmcb>,
    vmcb_hpa: Hpa,
    shared: &'static Shared,
    /// Where it was last scheduled in.
    pcpu: Option<&'static Pcpu>,
    /// [`Pcpu::host_vmcb`], at hand.
    host_vmcb: Hpa,
    serial: VcpuSerial,
    lazy: LazyState,
    tsc_aux: u64,
    root: Mfn,
    generation: u64,
    /// An interrupt that had to make place for a window, to be injected when that opens.
    deferred: Option<u8>,
    /// A window is wanted, and asked for as soon as the virtual interrupt has been taken.
    owes_window: bool,
    is_loaded: bool,
}

impl SvmVcpu {
    /// A vCPU that has not run, or `None` when memory ran out.
    pub(crate) fn new(config: &VcpuConfig) -> Option<Self> {
        let shared = SHARED.get()?;
        // SAFETY: a control block holds integers only, so it may be all zeroes.
        let mut vmcb = unsafe { heap::new_zeroed::<Vmcb>() }?;
        let vmcb_hpa = layout::hpa_of(&*vmcb);
        vmcb.intercept_cr = INTERCEPT_CR;
        vmcb.intercept_exceptions = 1 << VECTOR_DB | 1 << VECTOR_AC | 1 << VECTOR_MC;
        vmcb.intercept_1 = intercept1::ALWAYS;
        vmcb.intercept_2 = intercept2::ALWAYS;
        vmcb.iopm_base = config.io_bitmap.raw();
        vmcb.msrpm_base = shared.msr_map.raw();
        vmcb.asid = 1 + u32::from(config.tlb_tag) % (shared.features.nr_asids - 1);
        vmcb.v_intr = v_intr::MASKING;
        vmcb.np_control = 1;
        vmcb.n_cr3 = config.p2m_root.base().raw();
        vmcb.g_pat = CpuState::RESET_PAT;
        vmcb.dr6 = 0xffff_0ff0;
        Some(Self {
            vmcb,
            vmcb_hpa,
            shared,
            pcpu: None,
            host_vmcb: Hpa::new(0),
            serial: VcpuSerial(NEXT_SERIAL.fetch_add(1, Ordering::Relaxed)),
            lazy: LazyState::new()?,
            tsc_aux: 0,
            root: config.p2m_root,
            generation: 0,
            deferred: None,
            owes_window: false,
            is_loaded: false,
        })
    }

    fn wanted(&self) -> Wanted {
        let tag = guest_abi::num::low_u16(u64::from(self.vmcb.asid));
        Wanted { vcpu: self.serial, tag, root: self.root, generation: self.generation }
    }

    /// Asks for a flush at the next entry. There is one for all that an ASID tags.
    fn flush_if(&mut self, flush: Flush) {
        if flush.p2m || flush.tag {
            self.vmcb.tlb_control = if self.shared.features.flush_by_asid { FLUSH_ASID } else { FLUSH_ALL };
        }
    }

    /// What was being delivered when the guest exited is delivered again. Software interrupts and
    /// INT3/INTO are not: RIP still points at the instruction, which runs again.
    fn requeue_interrupted_event(&mut self) {
        let info = self.vmcb.exit_int_info;
        self.vmcb.event_inj = 0;
        if info & EVENT_VALID == 0 || info & EVENT_TYPE == EVENT_SOFTWARE {
            return;
        }
        // The virtual interrupt itself, which the CPU has not taken off the queue.
        if info & EVENT_TYPE == EVENT_INTERRUPT && self.has_virtual_interrupt() {
            return;
        }
        let is_breakpoint = info & EVENT_TYPE == EVENT_EXCEPTION && matches!(info & 0xff, 3 | 4);
        if !is_breakpoint {
            self.vmcb.event_inj = info;
        }
    }
}

impl SvmVcpu {
    /// A virtual interrupt is queued that was injected, not one that asks for a window.
    const fn has_virtual_interrupt(&self) -> bool {
        self.vmcb.v_intr & v_intr::IRQ != 0 && self.vmcb.intercept_1 & intercept1::VINTR == 0
    }

    /// What an exit is that is no hypercall. It is a chance to ask for a window that is owed.
    #[inline(never)]
    fn other_exit(&mut self) -> Exit {
        if self.owes_window && !self.has_virtual_interrupt() {
            self.open_window();
        }
        let exit = exit::decode(&self.vmcb);
        if exit == Exit::InterruptWindow
            && let Some(vector) = self.deferred.take()
        {
            self.vmcb.event_inj = EVENT_VALID | u64::from(vector);
        }
        exit
    }

    /// Whether neither IF nor a shadow holds interrupts off.
    fn takes_interrupts(&self) -> bool {
        self.vmcb.rflags & RFLAGS_IF != 0 && self.vmcb.interrupt_shadow & 1 == 0
    }

    /// Has the guest exit where it could take an interrupt, by a virtual one of the highest priority, which exits just
    /// before it is taken.
    fn open_window(&mut self) {
        self.owes_window = false;
        self.vmcb.v_intr = v_intr::QUEUED;
        self.vmcb.intercept_1 = self.vmcb.intercept_1 & !intercept1::IRET | intercept1::VINTR;
    }

    /// Makes the virtual interrupt free to serve as a window: one that was injected becomes an
    /// event, now or, where another event is queued or the guest takes none, when the window opens.
    fn free_virtual_interrupt(&mut self) {
        if self.has_virtual_interrupt() {
            let vector = low_u8(self.vmcb.v_intr >> v_intr::VECTOR_SHIFT);
            if self.vmcb.event_inj & EVENT_VALID == 0 && self.takes_interrupts() {
                self.vmcb.event_inj = EVENT_VALID | u64::from(vector);
            } else {
                self.deferred = Some(vector);
            }
        }
    }
}

/// One run, until the exit. Gives `regs` back, which so needs no place on the stack meanwhile.
///
/// The stub keeps nothing but RBX and RBP: the compiler saves what it holds in the others, which
/// is less than a C function has to.
///
/// # Safety
/// Both addresses are those of control blocks that are set up; the guest's nested tables map only
/// what the p2m has checked, and the host's block holds this pCPU's state.
#[inline]
unsafe fn enter(guest_vmcb: Hpa, regs: &mut GuestRegs, host_vmcb: Hpa) -> &mut GuestRegs {
    let same_regs: *mut GuestRegs;
    // SAFETY: (1) the caller vouches for the control blocks; (2) `regs` is exclusively borrowed and
    // in the order that the stub knows; (3) the stub's contract is the list of operands below.
    unsafe {
        asm!(
            "call {run}",
            run = sym svm_run,
            inout("rax") guest_vmcb.raw() => _,
            inout("rsi") core::ptr::from_mut(regs) => same_regs,
            inout("rdx") host_vmcb.raw() => _,
            out("rcx") _, out("rdi") _, out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
    }
    // SAFETY: the stub returns the pointer that it was given, to what is borrowed.
    unsafe { &mut *same_regs }
}

impl VcpuHw for SvmVcpu {
    fn run(&mut self, regs: &mut GuestRegs, deadline: Ticks, times: &mut RunTimes) -> Exit {
        debug_assert!(self.is_loaded);
        apic::set_deadline(deadline);
        self.vmcb.rax = regs.rax;
        times.entered = cpu::rdtsc();
        // SAFETY: (1) both control blocks are 4 KiB aligned, set up by `new` and `enable`, and
        // alive; (2) the nested tables map only what the p2m has checked; (3) the host state that
        // VMLOAD brings back was saved by `enable` on this CPU, which `load` has looked up.
        let regs = unsafe { enter(self.vmcb_hpa, regs, self.host_vmcb) };
        times.exited = cpu::rdtsc();
        regs.rax = self.vmcb.rax;
        self.vmcb.tlb_control = 0;
        self.requeue_interrupted_event();
        // What a busy guest does most comes first.
        if self.vmcb.exit_code == exit::VMMCALL {
            return exit::hypercall_of(&self.vmcb);
        }
        self.other_exit()
    }

    fn load(&mut self) {
        self.lazy.load();
        if has_rdtscp() {
            // SAFETY: the CPU has the MSR; the hypervisor does not use it.
            unsafe { cpu::wrmsr(cpu::msr::TSC_AUX, self.tsc_aux) };
        }
        let Some(here) = self.shared.pcpus[percpu::number()].get().map(|pcpu| &**pcpu) else { return };
        let stayed = self.pcpu.is_some_and(|last| core::ptr::eq(last, here));
        let flush = here.tlb.lock().schedule_in(self.wanted(), stayed);
        self.pcpu = Some(here);
        self.host_vmcb = here.host_vmcb;
        self.is_loaded = true;
        self.flush_if(flush);
    }

    fn save(&mut self) {
        self.lazy.save();
        self.is_loaded = false;
    }

    fn rip(&self) -> u64 {
        self.vmcb.rip
    }

    fn set_rip(&mut self, rip: u64) {
        self.vmcb.rip = rip;
    }

    fn next_rip(&self) -> Option<u64> {
        match self.vmcb.exit_code {
            exit::IO => Some(self.vmcb.exit_info_2),
            _ if self.shared.features.next_rip && self.vmcb.next_rip != 0 => Some(self.vmcb.next_rip),
            _ => None,
        }
    }

    fn clear_interrupt_shadow(&mut self) {
        self.vmcb.interrupt_shadow = 0;
    }

    fn finish_instruction(&mut self, next_rip: u64) {
        const RFLAGS_TF: u64 = 1 << 8;
        const DR6_BS: u64 = 1 << 14;
        self.set_rip(next_rip);
        self.clear_interrupt_shadow();
        if self.vmcb.rflags & RFLAGS_TF != 0 && self.can_inject() {
            // The trap that the CPU would have raised behind the instruction.
            self.vmcb.dr6 |= DR6_BS;
            self.inject(Injection::Exception { vector: 1, error_code: None });
        }
    }

    fn rflags(&self) -> u64 {
        self.vmcb.rflags
    }

    fn cpl(&self) -> u8 {
        self.vmcb.cpl
    }

    fn segment(&self, which: SegmentName) -> Segment {
        self.vmcb.segment(which).get()
    }

    fn paging(&self) -> Paging {
        let vmcb = &self.vmcb;
        Paging { cr0: vmcb.cr0, cr3: vmcb.cr3, cr4: vmcb.cr4, efer: vmcb.efer & !EFER_SVME }
    }

    fn set_state(&mut self, state: &CpuState) {
        let vmcb = &mut self.vmcb;
        for which in SegmentName::ALL {
            vmcb.segment_mut(which).set(&state.segments[which]);
        }
        vmcb.set_tables(state.gdtr, state.idtr);
        vmcb.cpl = low_u8(u64::from(state.segments[SegmentName::Ss].attributes >> 5 & 3));
        vmcb.rip = state.rip;
        vmcb.rsp = state.rsp;
        vmcb.rflags = state.rflags;
        vmcb.cr0 = state.cr0;
        vmcb.cr2 = state.cr2;
        vmcb.cr3 = state.cr3;
        vmcb.cr4 = state.cr4;
        vmcb.efer = state.efer | EFER_SVME;
        vmcb.dr7 = state.dr7;
        vmcb.g_pat = state.pat;
        (self.deferred, self.owes_window) = (None, false);
        vmcb.event_inj = 0;
        vmcb.v_intr = v_intr::MASKING;
        vmcb.intercept_1 &= !(intercept1::VINTR | intercept1::IRET);
        vmcb.interrupt_shadow = 0;
        self.lazy.set_xcr0(state.xcr0);
    }

    fn state(&self) -> CpuState {
        let vmcb = &self.vmcb;
        let [gdtr, idtr] = vmcb.tables();
        CpuState {
            rip: vmcb.rip,
            rsp: vmcb.rsp,
            rflags: vmcb.rflags,
            cr0: vmcb.cr0,
            cr2: vmcb.cr2,
            cr3: vmcb.cr3,
            cr4: vmcb.cr4,
            efer: self.efer(),
            xcr0: self.lazy.xcr0(),
            dr7: vmcb.dr7,
            segments: Segments::new(|which| vmcb.segment(which).get()),
            gdtr,
            idtr,
            pat: vmcb.g_pat,
        }
    }

    fn set_cr0(&mut self, value: u64) {
        self.vmcb.cr0 = value;
        self.vmcb.efer = efer_with_lma(self.vmcb.efer, value);
    }

    fn set_cr4(&mut self, value: u64) {
        self.vmcb.cr4 = value;
    }

    fn set_efer(&mut self, value: u64) {
        let lma = self.vmcb.efer & efer::LMA;
        self.vmcb.efer = value & !efer::LMA | lma | EFER_SVME;
    }

    fn efer(&self) -> u64 {
        self.vmcb.efer & !EFER_SVME
    }

    fn set_msr(&mut self, msr: GuestMsr, value: u64) {
        if msr == GuestMsr::TscAux {
            self.tsc_aux = value;
            if self.is_loaded && has_rdtscp() {
                // SAFETY: the CPU has the MSR; the hypervisor does not use it.
                unsafe { cpu::wrmsr(cpu::msr::TSC_AUX, value) };
            }
            return;
        }
        *self.msr_field(msr) = value;
    }

    fn msr(&self, msr: GuestMsr) -> u64 {
        let vmcb = &self.vmcb;
        match msr {
            GuestMsr::FsBase => vmcb.segment(SegmentName::Fs).base,
            GuestMsr::GsBase => vmcb.segment(SegmentName::Gs).base,
            GuestMsr::Pat => vmcb.g_pat,
            GuestMsr::TscAux => self.tsc_aux,
            other => vmcb.msrs[other as usize],
        }
    }

    fn set_xcr0(&mut self, value: u64) {
        self.lazy.set_xcr0(value);
    }

    fn xcr0(&self) -> u64 {
        self.lazy.xcr0()
    }

    fn can_inject_interrupt(&self) -> bool {
        self.takes_interrupts() && !self.has_queued_event()
    }

    fn can_queue_interrupt(&self) -> bool {
        // As a virtual interrupt; one that serves as a window ends with the next exit for it.
        !self.has_queued_event() && self.vmcb.intercept_1 & intercept1::VINTR == 0
    }

    fn can_inject(&self) -> bool {
        self.vmcb.event_inj & EVENT_VALID == 0
    }

    fn has_queued_event(&self) -> bool {
        self.vmcb.event_inj & EVENT_VALID != 0 || self.deferred.is_some() || self.has_virtual_interrupt()
    }

    fn inject(&mut self, event: Injection) {
        self.vmcb.event_inj = match event {
            // As a virtual interrupt where none serves as a window: QEMU without KVM delivers an
            // injected event of type interrupt a second time, whatever IF says, if its CPU loop is
            // left before the next exception.
            Injection::Interrupt { vector } if self.vmcb.intercept_1 & intercept1::VINTR == 0 => {
                self.vmcb.v_intr = v_intr::QUEUED | u64::from(vector) << v_intr::VECTOR_SHIFT;
                return;
            }
            Injection::Interrupt { vector } => EVENT_VALID | u64::from(vector),
            Injection::Nmi => EVENT_VALID | EVENT_NMI | 2,
            Injection::Exception { vector, error_code: None } => EVENT_VALID | EVENT_EXCEPTION | u64::from(vector),
            Injection::Exception { vector, error_code: Some(code) } => {
                EVENT_VALID | EVENT_EXCEPTION | EVENT_ERROR | u64::from(vector) | u64::from(code) << 32
            }
        };
    }

    fn request_window(&mut self, wanted: bool) {
        self.owes_window = false;
        self.vmcb.intercept_1 &= !intercept1::IRET;
        // QEMU, which cannot flush one ASID, may deliver twice what is made an event to make place for a window, see
        // `inject`. There the virtual interrupt is waited for, and to see early that it was taken, the return from its
        // handler exits; but a return that has exited before it was taken has to be let go.
        if wanted && !self.shared.features.flush_by_asid && self.has_virtual_interrupt() {
            self.owes_window = true;
            if self.vmcb.exit_code != exit::IRET {
                self.vmcb.intercept_1 |= intercept1::IRET;
            }
        } else if wanted {
            self.free_virtual_interrupt();
            self.open_window();
        } else if self.vmcb.intercept_1 & intercept1::VINTR != 0 && self.deferred.is_none() {
            self.vmcb.v_intr = v_intr::MASKING;
            self.vmcb.intercept_1 &= !intercept1::VINTR;
        }
    }

    fn set_p2m(&mut self, root: Mfn, generation: u64) {
        self.root = root;
        self.generation = generation;
        self.vmcb.n_cr3 = root.base().raw();
        if let (Some(pcpu), true) = (self.pcpu, self.is_loaded) {
            let flush = pcpu.tlb.lock().enter(self.wanted());
            self.flush_if(flush);
        }
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.vmcb.tsc_offset = offset;
    }

    fn raw_reason(&self) -> u64 {
        self.vmcb.exit_code
    }
}

impl SvmVcpu {
    fn msr_field(&mut self, msr: GuestMsr) -> &mut u64 {
        let vmcb = &mut self.vmcb;
        match msr {
            GuestMsr::FsBase => &mut vmcb.segment_mut(SegmentName::Fs).base,
            GuestMsr::GsBase => &mut vmcb.segment_mut(SegmentName::Gs).base,
            GuestMsr::Pat => &mut vmcb.g_pat,
            GuestMsr::TscAux => &mut self.tsc_aux,
            other => &mut vmcb.msrs[other as usize],
        }
    }
}

fn has_rdtscp() -> bool {
    cpu::cpuid(0x8000_0001, 0).edx & 1 << 27 != 0
}
