// SPDX-License-Identifier: MIT OR Apache-2.0
//! Debug keys: one letter on the hypervisor's console, and it tells what it knows.
//!
//! The console's input belongs to dom0. Three times Ctrl-A in a row give it to the hypervisor, three
//! more give it back; fewer reach dom0 as soon as another byte follows. Without a dom0 every byte is
//! a key. A key is not served where it arrives, which may be in the middle of somebody's exit, but
//! between two slices: then no vCPU of this pCPU runs, and the state of each can be looked at.
//!
//! What is printed goes to the console whatever the log level is. Nothing here changes anything, but
//! for `R`, which resets the machine, and `P`, which panics to show what a panic looks like, if the
//! command line says `debug=on`.

use core::fmt::{self, Write};

use arrayvec::ArrayVec;
use guest_abi::{EvtchnPort, VcpuId};
use spin::Mutex;

use crate::backend::{Machine, SegmentName};
use crate::counters::REASON_NAMES;
use crate::domain::Domain;
use crate::evtchn::PortState;
use crate::hypervisor::Hypervisor;
use crate::sched::Scheduler;
use crate::vcpu::{Vcpu, VcpuState};

const CTRL_A: u8 = 1;
/// Times that Ctrl-A has to come in a row.
const SWITCH: u8 = 3;
/// Keys that wait to be served.
const QUEUE: usize = 16;
/// First x2APIC register of the in-service and of the requested vectors.
const LAPIC_ISR: u8 = 0x10;
const LAPIC_IRR: u8 = 0x20;

const HELP: &str = "\
keys: h  this list
      c  what each vCPU has cost
      d  the state of each vCPU
      e  event channels in use
      m  memory: free frames, accounts, heap
      P  panic (with debug=on)
      R  reset the machine
three times Ctrl-A switch the input between dom0 and the hypervisor";

/// The keys' side of the console.
pub struct DebugConsole {
    state: Mutex<State>,
    may_panic: bool,
}

struct State {
    switch: Switch,
    keys: ArrayVec<u8, QUEUE>,
}

/// Who gets what is typed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Switch {
    is_ours: bool,
    presses: u8,
}

/// What becomes of one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fed {
    /// Nothing yet: it may be part of the sequence that switches.
    Held,
    /// The input changes hands.
    Switched,
    /// So many Ctrl-A that were held back come first, then the byte.
    Passed { held: u8 },
}

impl Switch {
    fn feed(&mut self, byte: u8) -> Fed {
        if byte != CTRL_A {
            return Fed::Passed { held: core::mem::take(&mut self.presses) };
        }
        self.presses += 1;
        if self.presses < SWITCH {
            return Fed::Held;
        }
        *self = Self { is_ours: !self.is_ours, presses: 0 };
        Fed::Switched
    }
}

impl DebugConsole {
    /// Input goes to dom0.
    #[must_use]
    pub const fn new(may_panic: bool) -> Self {
        let switch = Switch { is_ours: false, presses: 0 };
        Self { state: Mutex::new(State { switch, keys: ArrayVec::new_const() }), may_panic }
    }

    /// Takes a byte that was typed and hands to `to_dom0` what is dom0's.
    pub(crate) fn feed(&self, byte: u8, has_dom0: bool, machine: &dyn Machine, mut to_dom0: impl FnMut(u8)) {
        let mut state = self.state.lock();
        if !has_dom0 {
            // A key that finds no room is typed again.
            let _ = state.keys.try_push(byte);
            return;
        }
        match state.switch.feed(byte) {
            Fed::Held => {}
            Fed::Switched => announce(machine, state.switch.is_ours),
            Fed::Passed { held } if !state.switch.is_ours => {
                (0..held).for_each(|_| to_dom0(CTRL_A));
                to_dom0(byte);
            }
            Fed::Passed { .. } => {
                let _ = state.keys.try_push(byte);
            }
        }
    }

    /// Sees to it that keys are served soon, if there are any.
    pub(crate) fn request(&self, sched: &Scheduler) {
        if !self.state.lock().keys.is_empty() {
            sched.request(0);
        }
    }

    /// Serves the keys that wait. No vCPU runs on this pCPU.
    ///
    /// # Panics
    /// By the key for it, where it is allowed.
    pub(crate) fn serve(&self, hv: &Hypervisor) {
        if self.state.lock().keys.is_empty() {
            return;
        }
        let keys = core::mem::take(&mut self.state.lock().keys);
        for key in keys {
            let mut lines = Lines::new(hv.machine);
            match key {
                b'P' if self.may_panic => panic!("the debug key for it was pressed"),
                b'R' => hv.machine.reset(),
                key => {
                    // The console takes everything.
                    let _ = answer(hv, key, &mut lines);
                }
            }
        }
    }
}

fn announce(machine: &dyn Machine, is_ours: bool) {
    let to = if is_ours { "the hypervisor; h lists its keys" } else { "dom0" };
    let _ = writeln!(Lines::new(machine), "input goes to {to}");
}

/// What a key prints.
fn answer(hv: &Hypervisor, key: u8, out: &mut dyn Write) -> fmt::Result {
    match key {
        b'h' | b'?' => writeln!(out, "{HELP}"),
        b'c' => each_domain(hv, out, counters),
        b'd' => each_domain(hv, out, |domain, out| vcpus(hv, domain, out)),
        b'e' => each_domain(hv, out, event_channels),
        b'm' => memory(hv, out),
        b'P' => writeln!(out, "a panic needs debug=on on the command line"),
        b'\r' | b'\n' | CTRL_A => Ok(()),
        key => writeln!(out, "no such key: {:?}; h lists them", char::from(key)),
    }
}

type Part<'a> = &'a mut dyn Write;

fn each_domain(hv: &Hypervisor, out: Part<'_>, part: impl Fn(&Domain, Part<'_>) -> fmt::Result) -> fmt::Result {
    for (_, domain) in hv.domains.iter() {
        write!(out, "{}", domain.label())?;
        match domain.shutdown_reason() {
            Some(reason) => writeln!(out, ", shut down: {reason:?}")?,
            None => writeln!(out)?,
        }
        part(&domain, out)?;
    }
    Ok(())
}

/// Prints what a domain has cost.
pub(crate) fn print_counters(machine: &dyn Machine, domain: &Domain) {
    // The console takes everything.
    let _ = counters(domain, &mut Lines::new(machine));
}

/// What each vCPU has cost: a table of the reasons that occurred, and hypercalls by number.
fn counters(domain: &Domain, out: Part<'_>) -> fmt::Result {
    for vcpu in &domain.vcpus {
        let (exits, ticks) = vcpu.counters.totals();
        writeln!(out, "{} {}: {exits} exits, {ticks} ticks in the hypervisor", domain.id, vcpu.id)?;
        for (name, (exits, ticks)) in REASON_NAMES.iter().zip(vcpu.counters.exits.iter().zip(&vcpu.counters.ticks)) {
            let (exits, ticks) = (exits.get(), ticks.get());
            if let Some(each) = ticks.checked_div(exits) {
                writeln!(out, "  {name:<14} {exits:>9} exits {ticks:>12} ticks {each:>8} each")?;
            }
        }
        for (number, counter) in vcpu.counters.hypercalls.iter().enumerate() {
            if counter.get() != 0 {
                writeln!(out, "  hypercall {number:<4} {:>9}", counter.get())?;
            }
        }
    }
    Ok(())
}

fn vcpus(hv: &Hypervisor, domain: &Domain, out: Part<'_>) -> fmt::Result {
    for vcpu in &domain.vcpus {
        writeln!(
            out,
            "{} {}: {:?}, upcall pending {}, due {}",
            domain.id,
            vcpu.id,
            vcpu.run_state(),
            domain.events.upcall_pending(vcpu.id),
            vcpu.upcall_due.load(core::sync::atomic::Ordering::Relaxed),
        )?;
        match vcpu.try_state() {
            Some(state) => {
                registers(&state, out)?;
                lapic(hv, domain, vcpu, &state, out)?;
            }
            None => writeln!(out, "  it runs on another CPU")?,
        }
    }
    Ok(())
}

fn registers(state: &VcpuState, out: Part<'_>) -> fmt::Result {
    let (cpu, r) = (state.hw.state(), &state.regs);
    writeln!(out, "  rip {:016x} rsp {:016x} rflags {:08x} cpl {}", cpu.rip, cpu.rsp, cpu.rflags, state.hw.cpl())?;
    writeln!(out, "  rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}", r.rax, r.rbx, r.rcx, r.rdx)?;
    writeln!(out, "  rsi {:016x} rdi {:016x} rbp {:016x} r8  {:016x}", r.rsi, r.rdi, r.rbp, r.r8)?;
    writeln!(out, "  r9  {:016x} r10 {:016x} r11 {:016x} r12 {:016x}", r.r9, r.r10, r.r11, r.r12)?;
    writeln!(out, "  r13 {:016x} r14 {:016x} r15 {:016x} cr2 {:016x}", r.r13, r.r14, r.r15, cpu.cr2)?;
    writeln!(
        out,
        "  cr0 {:08x} cr3 {:012x} cr4 {:08x} efer {:04x} xcr0 {:x}",
        cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer, cpu.xcr0
    )?;
    writeln!(
        out,
        "  cs {:04x} ss {:04x} fs {:016x} gs {:016x} exit reason {:#x}",
        cpu.segments[SegmentName::Cs].selector,
        cpu.segments[SegmentName::Ss].selector,
        cpu.segments[SegmentName::Fs].base,
        cpu.segments[SegmentName::Gs].base,
        state.hw.raw_reason()
    )
}

fn lapic(hv: &Hypervisor, domain: &Domain, vcpu: &Vcpu, state: &VcpuState, out: Part<'_>) -> fmt::Result {
    let clock = hv.timer_clock(domain);
    for (name, first) in [("IRR", LAPIC_IRR), ("ISR", LAPIC_ISR)] {
        write!(out, "  {name}")?;
        for (register, base) in (first..).zip((0_u16..256).step_by(32)) {
            let word = state.lapic.read(register, &vcpu.lapic, &clock).unwrap_or(0);
            for bit in (0..32).filter(|bit| word >> bit & 1 != 0) {
                write!(out, " {:02x}", base + bit)?;
            }
        }
    }
    let due = state.due();
    if due == crate::vcpu::NEVER {
        return writeln!(out, "  no timer");
    }
    let ahead = hv.clock.scale().nanos(crate::addr::Ticks::new(due.raw().saturating_sub(hv.machine.tsc().raw())));
    writeln!(out, "  next timer in {} us", ahead.raw() / 1000)
}

fn event_channels(domain: &Domain, out: Part<'_>) -> fmt::Result {
    let events = &domain.events;
    let ports = (1..).map(EvtchnPort::new).map_while(|port| Some((port, events.status(port).ok()?)));
    for (port, bound) in ports.filter(|(_, bound)| bound.state != PortState::Free) {
        write!(out, "  {:>4} -> {} ", port.raw(), bound.vcpu)?;
        match bound.state {
            PortState::Free => {}
            PortState::Unbound { remote } => write!(out, "waits for {remote}")?,
            PortState::Interdomain { remote, port } => write!(out, "{remote} port {}", port.raw())?,
            PortState::Virq { virq } => write!(out, "VIRQ {virq}")?,
            PortState::Ipi => write!(out, "IPI")?,
        }
        let pending = if events.is_pending(port) { ", pending" } else { "" };
        let masked = if events.is_masked(port) { ", masked" } else { "" };
        writeln!(out, "{pending}{masked}")?;
    }
    for vcpu in (0..).map(VcpuId::new).take(domain.vcpus.len()) {
        match events.vcpu_info(vcpu) {
            Some(place) => writeln!(out, "  {vcpu} has its vcpu_info at {place:?}")?,
            None => writeln!(out, "  {vcpu} has no vcpu_info")?,
        }
    }
    Ok(())
}

fn memory(hv: &Hypervisor, out: Part<'_>) -> fmt::Result {
    let (free, heap) = (hv.frames.free_frames(), hv.machine.heap_usage());
    writeln!(out, "frames: {} of RAM, {} the hypervisor's", hv.facts.total_frames, hv.facts.hypervisor_frames)?;
    writeln!(out, "        {} free, {} of them clean", free.total, free.clean)?;
    writeln!(out, "heap:   {} of {} KiB in use", heap.used >> 10, heap.size >> 10)?;
    for (_, domain) in hv.domains.iter() {
        match hv.frames.account(domain.id) {
            Some((usage, limits)) => writeln!(
                out,
                "{}: {} frames of RAM of at most {}, {} of overhead of at most {}",
                domain.label(),
                usage.ram,
                limits.ram,
                usage.overhead,
                limits.overhead
            )?,
            None => writeln!(out, "{}: no account", domain.label())?,
        }
    }
    Ok(())
}

/// Text for the console, a line at a time with the hypervisor's name in front.
struct Lines<'a> {
    machine: &'a dyn Machine,
    line: ArrayVec<u8, 200>,
}

impl<'a> Lines<'a> {
    const fn new(machine: &'a dyn Machine) -> Self {
        Self { machine, line: ArrayVec::new_const() }
    }
}

impl Write for Lines<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.machine.console_write(b"(isthmus) ");
                self.machine.console_write(&self.line);
                self.machine.console_write(b"\r\n");
                self.line.clear();
            } else {
                // A line that is too long loses its end.
                let _ = self.line.try_push(byte);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What dom0 gets of `typed`, and whether the keys are the hypervisor's afterwards.
    fn pass(typed: &[u8]) -> (std::vec::Vec<u8>, bool) {
        let mut switch = Switch::default();
        let mut dom0 = std::vec::Vec::new();
        for byte in typed {
            if let Fed::Passed { held } = switch.feed(*byte)
                && !switch.is_ours
            {
                dom0.extend(core::iter::repeat_n(CTRL_A, usize::from(held)));
                dom0.push(*byte);
            }
        }
        (dom0, switch.is_ours)
    }

    #[test]
    fn three_in_a_row_switch_and_switch_back() {
        assert_eq!(pass(b"ab\x01\x01\x01cd"), (b"ab".to_vec(), true));
        assert_eq!(pass(b"ab\x01\x01\x01cd\x01\x01\x01ef"), (b"abef".to_vec(), false));
        assert_eq!(pass(&[CTRL_A; 6]), (std::vec![], false));
    }

    #[test]
    fn fewer_reach_dom0_with_the_next_byte() {
        assert_eq!(pass(b"\x01a\x01\x01b"), (b"\x01a\x01\x01b".to_vec(), false));
        assert_eq!(pass(b"\x01\x01"), (std::vec![], false));
        assert_eq!(pass(b"\x01\x01a\x01"), (b"\x01\x01a".to_vec(), false));
    }
}
