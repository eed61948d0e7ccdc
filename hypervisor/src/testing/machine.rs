// SPDX-License-Identifier: MIT OR Apache-2.0
//! The fake hardware: a TSC that is a variable, a console that is a vector, CPUs that are scripts.

use core::sync::atomic::{AtomicU64, Ordering};
use std::boxed::Box;
use std::collections::{BTreeMap, VecDeque};
use std::string::String;
use std::sync::{Arc, Mutex, MutexGuard};
use std::vec::Vec;

use crate::addr::{Mfn, Ticks};
use crate::backend::{
    CpuidResult, GuestMsr, HostInterrupt, Injection, Machine, RunTimes, SegmentName, VcpuConfig, VcpuHw,
};
use crate::exit::Exit;
use crate::policy::control::efer;
use crate::vcpu::regs::{CpuState, GuestRegs, Paging, Segment};

const RFLAGS_IF: u64 = 1 << 9;

/// How the machine ended: the payload of the panic that stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// [`Machine::reset`].
    Reset,
    /// [`Machine::power_off`].
    PowerOff(u8),
    /// [`Machine::halt`].
    Halt,
}

/// Runs what ends the machine, and says how it did.
pub(crate) fn ending(act: impl FnOnce()) -> End {
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
    match caught.expect_err("the machine goes on").downcast::<End>() {
        Ok(end) => *end,
        Err(other) => std::panic::resume_unwind(other),
    }
}

/// The machine.
pub(crate) struct FakeMachine {
    tsc: Arc<AtomicU64>,
    console: Mutex<Vec<u8>>,
    input: Mutex<VecDeque<u8>>,
    interrupts: Mutex<VecDeque<HostInterrupt>>,
    /// Deadlines given to [`Machine::idle`]; the TSC moves on to each.
    pub(crate) idles: Mutex<Vec<Ticks>>,
    /// CPUs kicked, in order.
    pub(crate) kicks: Mutex<Vec<usize>>,
    /// CPUs that somebody insisted on, in order.
    pub(crate) insisted: Mutex<Vec<usize>>,
    /// Interrupts ended at the host's local APIC.
    pub(crate) ends: AtomicU64,
    cpus: Mutex<Vec<Cpu>>,
}

/// A CPU as its vCPU and the test share it.
pub(super) type Cpu = Arc<Mutex<FakeCpu>>;

impl FakeMachine {
    pub(super) fn new(tsc: u64) -> Self {
        Self {
            tsc: Arc::new(AtomicU64::new(tsc)),
            console: Mutex::default(),
            input: Mutex::default(),
            interrupts: Mutex::default(),
            idles: Mutex::default(),
            kicks: Mutex::default(),
            insisted: Mutex::default(),
            ends: AtomicU64::new(0),
            cpus: Mutex::default(),
        }
    }

    pub(crate) fn advance(&self, ticks: u64) {
        self.tsc.fetch_add(ticks, Ordering::SeqCst);
    }

    pub(crate) fn set_tsc(&self, to: Ticks) {
        self.tsc.store(to.raw(), Ordering::SeqCst);
    }

    pub(crate) fn console(&self) -> String {
        String::from_utf8_lossy(&self.console.lock().unwrap()).into_owned()
    }

    /// Lets somebody type.
    pub(crate) fn type_in(&self, bytes: &[u8]) {
        self.input.lock().unwrap().extend(bytes);
    }

    /// Makes an interrupt of the host wait.
    pub(crate) fn interrupt(&self, interrupt: HostInterrupt) {
        self.interrupts.lock().unwrap().push_back(interrupt);
    }

    pub(crate) fn take_interrupt_for_test(&self) -> Option<HostInterrupt> {
        self.take_interrupt(None)
    }

    /// The CPUs made since the last call, in order.
    pub(super) fn take_cpus(&self) -> Vec<Cpu> {
        core::mem::take(&mut *self.cpus.lock().unwrap())
    }
}

impl Machine for FakeMachine {
    fn tsc(&self) -> Ticks {
        Ticks::new(self.tsc.load(Ordering::SeqCst))
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        crate::policy::cpuid::tests::full_host(crate::policy::cpuid::tests::AMD)(leaf, subleaf)
    }

    fn supported_xcr0(&self) -> u64 {
        7
    }

    fn new_vcpu(&self, _: &VcpuConfig) -> Option<Box<dyn VcpuHw>> {
        let cpu = Cpu::default();
        self.cpus.lock().unwrap().push(cpu.clone());
        Some(Box::new(FakeVcpu { cpu, tsc: self.tsc.clone() }))
    }

    fn console_write(&self, bytes: &[u8]) {
        self.console.lock().unwrap().extend_from_slice(bytes);
    }

    fn idle(&self, until: Ticks) {
        self.idles.lock().unwrap().push(until);
        if until.raw() != u64::MAX {
            self.tsc.fetch_max(until.raw(), Ordering::SeqCst);
        }
    }

    fn take_interrupt(&self, acknowledged: Option<u8>) -> Option<HostInterrupt> {
        match acknowledged {
            Some(vector) => Some(HostInterrupt::Device { vector }),
            None => self.interrupts.lock().unwrap().pop_front(),
        }
    }

    fn end_of_interrupt(&self) {
        self.ends.fetch_add(1, Ordering::SeqCst);
    }

    fn console_read(&self, buffer: &mut [u8]) -> usize {
        let mut input = self.input.lock().unwrap();
        let len = buffer.len().min(input.len());
        buffer.iter_mut().zip(input.drain(..len)).for_each(|(slot, byte)| *slot = byte);
        len
    }

    fn kick(&self, pcpu: usize) {
        self.kicks.lock().unwrap().push(pcpu);
    }

    fn insist(&self, pcpu: usize, since: &mut Ticks) {
        *since = self.tsc();
        self.insisted.lock().unwrap().push(pcpu);
    }

    fn take_stray_nmi(&self) -> bool {
        false
    }

    fn ioapic_write(&self, _: usize, _: u8, _: u32) {}

    fn reset(&self) -> ! {
        std::panic::panic_any(End::Reset)
    }

    fn power_off(&self, status: u8) -> ! {
        std::panic::panic_any(End::PowerOff(status))
    }

    fn halt(&self) -> ! {
        std::panic::panic_any(End::Halt)
    }
}

/// What a CPU does in the guest: changes its state, and exits or goes on.
pub(crate) type Step = Box<dyn FnOnce(&mut FakeCpu, &mut GuestRegs) -> Option<Exit> + Send>;

/// One CPU's state, and what happened to it.
#[derive(Default)]
pub(crate) struct FakeCpu {
    pub(crate) state: CpuState,
    pub(crate) cpl: u8,
    /// The interrupt shadow of STI and MOV SS.
    pub(crate) shadow: bool,
    /// Where the CPU says that the next instruction is.
    pub(crate) next_rip: Option<u64>,
    /// What the next entry will deliver.
    pub(crate) queued: Option<Injection>,
    /// What has been delivered, in order.
    pub(crate) delivered: Vec<Injection>,
    pub(crate) window: bool,
    pub(crate) is_loaded: bool,
    pub(crate) entries: usize,
    /// The deadline of the last entry.
    pub(crate) deadline: Ticks,
    /// Roots and generations that it was told.
    pub(crate) p2m: Vec<(Mfn, u64)>,
    pub(crate) tsc_offset: u64,
    pub(crate) msrs: BTreeMap<u32, u64>,
    script: VecDeque<Step>,
}

impl FakeCpu {
    /// Adds a step to the script.
    pub(crate) fn then(&mut self, step: impl FnOnce(&mut Self, &mut GuestRegs) -> Option<Exit> + Send + 'static) {
        self.script.push_back(Box::new(step));
    }

    /// Adds an exit to the script.
    pub(crate) fn exits(&mut self, exit: Exit) {
        self.then(move |_, _| Some(exit));
    }

    /// Adds the end of an interrupt's handler: interrupts are on again.
    pub(crate) fn irets(&mut self) {
        self.then(|cpu, _| {
            cpu.state.rflags |= RFLAGS_IF;
            None
        });
    }

    pub(crate) fn set_interrupts(&mut self, on: bool) {
        self.state.rflags = self.state.rflags & !RFLAGS_IF | if on { RFLAGS_IF } else { 0 };
    }

    /// Whether the whole script has run.
    pub(crate) fn is_done(&self) -> bool {
        self.script.is_empty()
    }

    /// The vectors of the interrupts delivered so far.
    pub(crate) fn vectors(&self) -> Vec<u8> {
        let vector = |event: &Injection| match event {
            Injection::Interrupt { vector } => Some(*vector),
            _ => None,
        };
        self.delivered.iter().filter_map(vector).collect()
    }

    fn takes_interrupts(&self) -> bool {
        self.state.rflags & RFLAGS_IF != 0 && !self.shadow
    }

    /// Through an interrupt gate, which clears IF.
    fn deliver(&mut self, event: Injection) {
        if let Injection::Interrupt { .. } = event {
            assert!(self.takes_interrupts(), "the entry would fail: {event:?} with interrupts off");
        }
        self.set_interrupts(false);
        self.shadow = false;
        self.delivered.push(event);
    }

    fn run(&mut self, regs: &mut GuestRegs, deadline: Ticks, is_over: bool) -> Exit {
        assert!(self.is_loaded, "entered without its state");
        self.entries += 1;
        self.deadline = deadline;
        if let Some(event) = self.queued.take() {
            self.deliver(event);
        }
        if is_over {
            return Exit::Deadline;
        }
        loop {
            if self.window && self.takes_interrupts() {
                return Exit::InterruptWindow;
            }
            match self.script.pop_front() {
                None => return Exit::PauseLoop,
                Some(step) => {
                    if let Some(exit) = step(self, regs) {
                        return exit;
                    }
                }
            }
        }
    }
}

struct FakeVcpu {
    cpu: Cpu,
    tsc: Arc<AtomicU64>,
}

impl FakeVcpu {
    fn cpu(&self) -> MutexGuard<'_, FakeCpu> {
        // A test that has failed in a script may still want to look at the state.
        self.cpu.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl VcpuHw for FakeVcpu {
    fn run(&mut self, regs: &mut GuestRegs, deadline: Ticks, times: &mut RunTimes) -> Exit {
        let now = || Ticks::new(self.tsc.load(Ordering::SeqCst));
        times.entered = now();
        let exit = self.cpu().run(regs, deadline, times.entered >= deadline);
        times.exited = now();
        exit
    }

    fn load(&mut self) {
        self.cpu().is_loaded = true;
    }

    fn save(&mut self) {
        self.cpu().is_loaded = false;
    }

    fn rip(&self) -> u64 {
        self.cpu().state.rip
    }

    fn set_rip(&mut self, rip: u64) {
        self.cpu().state.rip = rip;
    }

    fn next_rip(&self) -> Option<u64> {
        self.cpu().next_rip
    }

    fn clear_interrupt_shadow(&mut self) {
        self.cpu().shadow = false;
    }

    fn rflags(&self) -> u64 {
        self.cpu().state.rflags
    }

    fn cpl(&self) -> u8 {
        self.cpu().cpl
    }

    fn segment(&self, which: SegmentName) -> Segment {
        self.cpu().state.segments[which]
    }

    fn paging(&self) -> Paging {
        let CpuState { cr0, cr3, cr4, efer, .. } = self.cpu().state;
        Paging { cr0, cr3, cr4, efer }
    }

    fn set_state(&mut self, state: &CpuState) {
        let mut cpu = self.cpu();
        cpu.state = *state;
        cpu.queued = None;
        cpu.shadow = false;
        cpu.cpl = 0;
    }

    fn state(&self) -> CpuState {
        self.cpu().state
    }

    fn set_cr0(&mut self, value: u64) {
        let state = &mut self.cpu().state;
        state.cr0 = value;
        let is_long = value >> 31 & 1 != 0 && state.efer & efer::LME != 0;
        state.efer = state.efer & !efer::LMA | if is_long { efer::LMA } else { 0 };
    }

    fn set_cr4(&mut self, value: u64) {
        self.cpu().state.cr4 = value;
    }

    fn set_efer(&mut self, value: u64) {
        let state = &mut self.cpu().state;
        state.efer = value & !efer::LMA | state.efer & efer::LMA;
    }

    fn efer(&self) -> u64 {
        self.cpu().state.efer
    }

    fn set_msr(&mut self, msr: GuestMsr, value: u64) {
        self.cpu().msrs.insert(msr as u32, value);
    }

    fn msr(&self, msr: GuestMsr) -> u64 {
        self.cpu().msrs.get(&(msr as u32)).copied().unwrap_or(0)
    }

    fn set_xcr0(&mut self, value: u64) {
        self.cpu().state.xcr0 = value;
    }

    fn xcr0(&self) -> u64 {
        self.cpu().state.xcr0
    }

    fn can_inject_interrupt(&self) -> bool {
        let cpu = self.cpu();
        cpu.takes_interrupts() && cpu.queued.is_none()
    }

    fn has_queued_event(&self) -> bool {
        self.cpu().queued.is_some()
    }

    fn inject(&mut self, event: Injection) {
        let mut cpu = self.cpu();
        if let Some(Injection::Interrupt { vector }) = cpu.queued {
            assert!(matches!(event, Injection::Exception { .. }), "interrupt {vector:#x} is lost to {event:?}");
        }
        cpu.queued = Some(event);
    }

    fn request_window(&mut self, wanted: bool) {
        self.cpu().window = wanted;
    }

    fn set_p2m(&mut self, root: Mfn, generation: u64) {
        self.cpu().p2m.push((root, generation));
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.cpu().tsc_offset = offset;
    }

    fn raw_reason(&self) -> u64 {
        0
    }
}
