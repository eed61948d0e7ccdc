// SPDX-License-Identifier: MIT OR Apache-2.0
//! A domain whose kernel is the test.
//!
//! Its linear addresses below 2 MiB are its physical ones, page by page, so that a test can take a
//! page away or make it read-only in the guest's own tables ([`Guest::set_page`]).

use std::string::ToString;
use std::sync::{Arc, MutexGuard};
use std::vec::Vec;

use guest_abi::{DomId, Errno, Gfn, PAGE_SIZE, VcpuId, Wire};

use super::Host;
use super::machine::{Cpu, FakeCpu};
use crate::addr::{Gva, Mfn, Order};
use crate::backend::{Injection, SegmentName};
use crate::boot::host_map::{Entry, Kind};
use crate::boot::span::Span;
use crate::domain::build;
use crate::domain::create::{Blueprint, create};
use crate::domain::{Domain, Privileges};
use crate::exit::Exit;
use crate::frame::Fill;
use crate::guest_mem::GuestSpace;
use crate::p2m::{Backing, Leaf, P2mKind};
use crate::policy::control::{cr0, cr4, efer};
use crate::vcpu::exits::{self, Outcome};
use crate::vcpu::regs::{CpuState, GuestRegs, Paging, Segment, Segments};
use crate::vcpu::run::run_vcpu;
use crate::vcpu::{NEVER, RunState, Vcpu, VcpuState};

/// Pages of RAM from address 0.
const RAM: u64 = 128;
/// Guest frames of the page tables, from the root down.
const TABLES: u64 = 1;
/// Where code begins.
const CODE: u64 = 0x8000;
/// Where arguments go.
const ARG: u64 = 0xa000;
/// An address where the guest has nothing.
pub(crate) const HOLE: u64 = 0x4000_0000;
/// dom0's first frame of RAM with no other use, in machine frames as in guest frames.
const PRESENT_WRITABLE: u64 = 0b11;

/// A domain and its CPUs.
pub(crate) struct Guest {
    pub(crate) host: Host,
    pub(crate) domain: Arc<Domain>,
    cpus: Vec<Cpu>,
}

/// An error as a hypercall returns it.
pub(crate) fn failed(error: Errno) -> i64 {
    error.to_rax().cast_signed()
}

/// An address for the `n`th argument of a test.
pub(crate) fn arg(n: u64) -> u64 {
    ARG + n * 256
}

impl Guest {
    /// Makes a domain with [`RAM`] pages and as much again allowed, whose vCPU 0 is in 64-bit mode with
    /// interrupts on. A domain with the right to hardware gets its RAM identity-mapped.
    pub(crate) fn new(host: Host, id: u16, privileges: Privileges, nr_vcpus: u32) -> Self {
        let blueprint = Blueprint {
            id: DomId::new(id),
            name: "test".to_string(),
            handle: [0; 16],
            privileges,
            nr_vcpus,
            max_ports: build::MAX_PORTS,
            grants: crate::grant::Limits::default(),
            max_ram_frames: 2 * RAM,
            e820: [Entry { span: Span::new(0, RAM * PAGE_SIZE as u64), kind: Kind::Ram }].to_vec(),
            tsc_offset: 0,
            echoes: true,
        };
        let domain = create(host.hv, blueprint).unwrap();
        build::start(host.hv, domain.clone());
        let guest = Self::of(host, domain);
        guest.add_ram();
        guest.enter_long_mode();
        guest.vcpu(0).set_run_state(RunState::Runnable);
        // What starting the domain has asked for.
        guest.domain.vcpus.iter().for_each(|vcpu| _ = vcpu.take_attention());
        guest
    }

    /// Takes over a domain that was just made some other way.
    pub(crate) fn of(host: Host, domain: Arc<Domain>) -> Self {
        Self { host, domain, cpus: host.machine.take_cpus() }
    }

    /// Makes page tables and puts vCPU 0 into 64-bit mode.
    pub(crate) fn enter_long_mode(&self) {
        self.make_tables();
        self.state(0).hw.set_state(&long_mode());
    }

    fn add_ram(&self) {
        let mut p2m = self.domain.p2m.lock();
        if self.domain.is_identity() {
            let range = Mfn::new(0)..Mfn::new(RAM);
            self.host.hv.frames.reserve_for_dom0(range.clone(), self.domain.id).unwrap();
            return p2m.map_range_identity(range, P2mKind::Ram).unwrap();
        }
        for gfn in 0..RAM {
            p2m.populate(Gfn::new(gfn), Order::PAGE, Backing::Free(Fill::Zeroed)).unwrap();
        }
    }

    fn make_tables(&self) {
        for level in 0..3 {
            self.put((TABLES + level) << 12, &((TABLES + level + 1) << 12 | PRESENT_WRITABLE));
        }
        for gfn in 0..RAM {
            self.set_page(gfn, gfn << 12 | PRESENT_WRITABLE);
        }
    }

    /// Sets the guest's own page-table entry for a page below 2 MiB.
    pub(crate) fn set_page(&self, page: u64, entry: u64) {
        self.put(((TABLES + 3) << 12) + page * 8, &entry);
    }

    /// Makes a page read-only in the guest's own tables.
    pub(crate) fn protect(&self, address: u64) {
        let page = address >> 12;
        self.set_page(page, page << 12 | 1);
    }

    pub(crate) fn id(&self) -> DomId {
        self.domain.id
    }

    pub(crate) fn vcpu(&self, index: usize) -> &Vcpu {
        &self.domain.vcpus[index]
    }

    pub(crate) fn state(&self, index: usize) -> spin::MutexGuard<'_, VcpuState> {
        self.domain.vcpus[index].try_state().expect("the vCPU does not run")
    }

    /// A vCPU's CPU, to script or to look at.
    pub(crate) fn cpu(&self, index: usize) -> MutexGuard<'_, FakeCpu> {
        // Not `lock`: asking twice in one expression is a test that fails, not one that hangs.
        self.cpus[index].try_lock().expect("nobody else looks at the CPU")
    }

    // --- Memory.

    /// Guest-physical memory below 4 GiB: what a CPU sees without paging.
    pub(crate) fn memory(&self) -> GuestSpace {
        GuestSpace::new(self.domain.p2m_view, Paging { cr0: 0, cr3: 0, cr4: 0, efer: 0 })
    }

    /// Writes guest-physical memory.
    pub(crate) fn put<T: Wire>(&self, gpa: u64, value: &T) {
        self.memory().write(Gva::new(gpa), value).unwrap();
    }

    /// Reads guest-physical memory.
    pub(crate) fn get<T: Wire>(&self, gpa: u64) -> T {
        self.memory().read(Gva::new(gpa)).unwrap()
    }

    pub(crate) fn put_bytes(&self, gpa: u64, bytes: &[u8]) {
        self.memory().write_bytes(Gva::new(gpa), bytes).unwrap();
    }

    pub(crate) fn get_bytes(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = std::vec![0; len];
        self.memory().read_bytes(Gva::new(gpa), &mut bytes).unwrap();
        bytes
    }

    /// What is mapped at a guest frame.
    pub(crate) fn leaf(&self, gfn: u64) -> Option<Leaf> {
        self.domain.p2m_view.lookup(Gfn::new(gfn))
    }

    /// Writes an MSR of vCPU 0 as the instruction does; `false` if that raises an exception.
    pub(crate) fn wrmsr(&self, msr: u32, value: u64) -> bool {
        self.code(&[0x0f, 0x30]);
        self.set_regs(|regs| {
            regs.rcx = u64::from(msr);
            regs.set_edx_eax(value);
        });
        assert_eq!(self.exit(Exit::Wrmsr), Outcome::Resume);
        self.moved() == 2
    }

    /// Enables a vCPU's local APIC.
    pub(crate) fn enable_apic(&self, index: usize) {
        let clock = self.host.hv.timer_clock(&self.domain);
        let effect = self.state(index).lapic.write(0x0f, 0x1ff, &self.vcpu(index).lapic, &clock);
        assert_eq!(effect, Ok(crate::emul::lapic::Effect::None));
    }

    // --- Running.

    /// Puts an instruction at RIP of vCPU 0.
    pub(crate) fn code(&self, bytes: &[u8]) {
        self.put_bytes(CODE, bytes);
        self.cpu(0).state.rip = CODE;
    }

    /// How far RIP of vCPU 0 is behind [`Guest::code`].
    pub(crate) fn moved(&self) -> u64 {
        self.cpu(0).state.rip - CODE
    }

    /// Handles one exit of vCPU 0, outside the loop.
    pub(crate) fn exit(&self, exit: Exit) -> Outcome {
        exits::handle(self.host.hv, &self.domain, self.vcpu(0), &mut self.state(0), exit)
    }

    /// The registers of vCPU 0.
    pub(crate) fn regs(&self) -> GuestRegs {
        self.state(0).regs
    }

    /// Changes the registers of vCPU 0.
    pub(crate) fn set_regs(&self, change: impl FnOnce(&mut GuestRegs)) {
        change(&mut self.state(0).regs);
    }

    /// Executes one hypercall instruction on vCPU 0: `None` if it is to be executed again.
    pub(crate) fn hypercall_once(&self) -> Option<i64> {
        let before = self.cpu(0).state.rip;
        let is_kernel = self.cpu(0).cpl == 0;
        let outcome = self.exit(if is_kernel { Exit::Hypercall } else { Exit::UserHypercall });
        if self.cpu(0).state.rip == before {
            assert!(outcome == Outcome::Resume || !self.domain.is_running(), "it neither ends nor continues");
            return None;
        }
        assert_eq!(self.cpu(0).state.rip, before + 3);
        Some(self.regs().rax.cast_signed())
    }

    /// Loads a hypercall and its arguments into the registers of vCPU 0.
    pub(crate) fn load_call(&self, number: u32, args: [u64; 3]) {
        self.cpu(0).state.rip = CODE;
        self.set_regs(|regs| {
            regs.rax = u64::from(number);
            [regs.rdi, regs.rsi, regs.rdx] = args;
        });
    }

    /// Makes a hypercall on vCPU 0, to its end.
    pub(crate) fn call(&self, number: u32, args: [u64; 3]) -> i64 {
        self.load_call(number, args);
        (0..10_000).find_map(|_| self.hypercall_once()).expect("the hypercall ends")
    }

    /// Makes a hypercall whose second argument is the address of a structure, and returns the
    /// structure as it is afterwards.
    pub(crate) fn call_with<T: Wire>(&self, number: u32, operation: u32, argument: T) -> (i64, T) {
        self.put(arg(0), &argument);
        let result = self.call(number, [u64::from(operation), arg(0), 0]);
        (result, self.get(arg(0)))
    }

    /// As [`Guest::call_with`], where only the result matters.
    pub(crate) fn result<T: Wire>(&self, number: u32, operation: u32, argument: T) -> i64 {
        self.call_with(number, operation, argument).0
    }

    /// Runs a vCPU in the vCPU loop until its script ends, or it sleeps or stops.
    pub(crate) fn run(&self, index: usize) {
        self.run_until(index, NEVER);
    }

    /// As [`Guest::run`], with the end of its slice.
    pub(crate) fn run_until(&self, index: usize, slice_end: crate::addr::Ticks) {
        run_vcpu(self.host.hv, &self.domain, self.vcpu(index), slice_end, self.host.hv.machine.tsc());
        assert!(!self.cpu(index).is_loaded, "the state was not saved");
    }

    /// What the next entry of vCPU 0 delivers, taken.
    pub(crate) fn take_queued(&self) -> Option<Injection> {
        self.cpu(0).queued.take()
    }

    /// Raises an event for a vCPU on a fresh port of its own; returns the port.
    pub(crate) fn raise(&self, vcpu: u32) -> guest_abi::EvtchnPort {
        let port = self.domain.events.bind_ipi(VcpuId::new(vcpu)).unwrap();
        self.domain.events.send(port, &*self.domain, &self.host.hv.domains).unwrap();
        port
    }
}

/// 64-bit mode with the tables of [`Guest`], ring 0, interrupts on.
fn long_mode() -> CpuState {
    let data = Segment { selector: 16, attributes: 0xc093, limit: u32::MAX, base: 0 };
    let entry = CpuState::pvh_entry(0);
    CpuState {
        rip: CODE,
        rflags: 1 << 9 | 1 << 1,
        cr0: cr0::PE | cr0::PG | cr0::WP | cr0::ET | cr0::NE,
        cr3: TABLES << 12,
        cr4: cr4::PAE,
        efer: efer::LME | efer::LMA | efer::NXE,
        segments: Segments::new(|which| match which {
            SegmentName::Cs => Segment { selector: 8, attributes: 0xa09b, ..data },
            SegmentName::Ds | SegmentName::Es | SegmentName::Ss => data,
            other => entry.segments[other],
        }),
        ..entry
    }
}
