// SPDX-License-Identifier: MIT OR Apache-2.0
//! Starting the other CPUs, and reaching them.
//!
//! One at a time: INIT, a start-up IPI, a second one if the CPU has not answered. It takes a ticket
//! in assembly (`boot/trampoline.S`) and comes to [`ap_main`], where it does for itself what the boot
//! CPU did: descriptor tables, FPU, local APIC, VT-x or SVM. Then both compare their time-stamp
//! counters. A CPU that fails in any of this is named with the reason and left out; one that did not
//! even take its ticket finds none when it comes later, and stops.
//!
//! Guests' clocks are one function of the TSC, whichever CPU they run on. So counters that
//! disagree are not tolerated: the starting CPU sets its own forward or back by what was seen, once,
//! and is left out if they still disagree.
//!
//! Source: Intel SDM vol. 3A, MP Initialization Protocol Algorithm.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use guest_abi::num::{low_u8, to_usize};
use hypervisor::addr::{Hpa, Ticks};
use hypervisor::boot::span::Span;
use hypervisor::hypervisor::Hypervisor;
use hypervisor::pcpu::MAX_PCPUS;
use spin::{Mutex, Once};

use super::apic::{self, Ipi, vector};
use super::percpu::{self, PerCpu};
use super::{clock, cpu, hw, layout, lazy, traps};

global_asm!(include_str!("boot/trampoline.S"));

unsafe extern "C" {
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
}

/// 1 while the CPU that is being started may go on; it takes the 1 away.
#[unsafe(no_mangle)]
static AP_TICKET: AtomicU32 = AtomicU32::new(0);
/// The final page tables.
#[unsafe(no_mangle)]
static AP_CR3: AtomicU64 = AtomicU64::new(0);
/// Top of the starting CPU's stack.
#[unsafe(no_mangle)]
static AP_STACK: AtomicU64 = AtomicU64::new(0);

/// The starting CPU's area.
static AREA: AtomicPtr<PerCpu> = AtomicPtr::new(core::ptr::null_mut());
/// How the starting CPU's own part of it went; `None` while it goes on.
static OUTCOME: Mutex<Option<Result<(), String>>> = Mutex::new(None);
/// APIC ids by CPU number; those of [`NR_UP`] CPUs are there.
static APIC_IDS: [AtomicU32; MAX_PCPUS] = [const { AtomicU32::new(0) }; MAX_PCPUS];
static NR_UP: AtomicUsize = AtomicUsize::new(0);
/// What the started CPUs wait for.
static HYPERVISOR: Once<&'static Hypervisor> = Once::new();

const MICROS_AFTER_INIT: u64 = 10_000;
const MICROS_AFTER_STARTUP: u64 = 200;
/// An emulator whose host is busy may take its time.
const MICROS_TO_ANSWER: u64 = 1_000_000;

/// Starts every CPU in `ids` but this one, with the trampoline in the given page. Returns the APIC
/// ids of those that run, this one first, by their numbers.
pub(crate) fn start_all(trampoline: Span, ids: &[u32]) -> Vec<u32> {
    let own = apic::id();
    let mut up = Vec::from([own]);
    APIC_IDS[0].store(own, Ordering::Relaxed);
    NR_UP.store(1, Ordering::Release);
    AP_CR3.store(cpu::cr3(), Ordering::Relaxed);
    copy_trampoline(trampoline);
    let page = low_u8(trampoline.start() >> 12);
    for (slot, id) in (1..).zip(ids.iter().copied().filter(|id| *id != own)) {
        let result = if slot as usize >= MAX_PCPUS {
            Err("more CPUs than the hypervisor drives".to_string())
        } else if id > apic::highest_id() {
            Err("its APIC id needs x2APIC mode".to_string())
        } else {
            start(up.len(), slot, id, page)
        };
        match result {
            Ok(()) => up.push(id),
            Err(why) => log::error!("the CPU with APIC id {id} is left out: {why}"),
        }
    }
    up
}

/// How many CPUs besides the boot CPU to keep stacks for.
pub(crate) fn nr_aps(ids: &[u32]) -> u64 {
    ids.len().clamp(1, MAX_PCPUS) as u64 - 1
}

fn copy_trampoline(page: Span) {
    let first = &raw const ap_trampoline;
    let len = (&raw const ap_trampoline_end).addr() - first.addr();
    let to = core::ptr::with_exposed_provenance_mut::<u8>(to_usize(layout::direct_mapped(Hpa::new(page.start()))));
    assert!(len as u64 <= page.len());
    // SAFETY: the code lies in the image; the machine map keeps the page for this and nobody else.
    unsafe { core::ptr::copy_nonoverlapping(first, to, len) };
}

/// Starts one CPU. `slot` is the number of its stacks, used once whatever comes of it.
fn start(number: usize, slot: u32, apic_id: u32, page: u8) -> Result<(), String> {
    let id = u32::try_from(number).map_err(|error| error.to_string())?;
    let area = percpu::new_area(id, slot).ok_or("no memory for its area")?;
    AREA.store(core::ptr::from_ref(area).cast_mut(), Ordering::Relaxed);
    AP_STACK.store(layout::ap_stack(slot, layout::ApStack::Main).end, Ordering::Relaxed);
    *OUTCOME.lock() = None;
    clock::begin_to_agree();
    AP_TICKET.store(1, Ordering::SeqCst);
    apic::send(apic_id, Ipi::Init);
    clock::delay_micros(MICROS_AFTER_INIT);
    for _ in 0..2 {
        apic::send(apic_id, Ipi::Startup(page));
        if wait(MICROS_AFTER_STARTUP, || AP_TICKET.load(Ordering::SeqCst) == 0) {
            break;
        }
    }
    if !wait(MICROS_TO_ANSWER, || AP_TICKET.load(Ordering::SeqCst) == 0) && AP_TICKET.swap(0, Ordering::SeqCst) == 1 {
        return Err("it does not answer to start-up IPIs".to_string());
    }
    if !wait(MICROS_TO_ANSWER, || OUTCOME.lock().is_some()) {
        return Err("it started and then went silent".to_string());
    }
    OUTCOME.lock().take().unwrap_or(Ok(()))?;
    clock::agree(clock::Side::Boot)?;
    APIC_IDS[number].store(apic_id, Ordering::Relaxed);
    NR_UP.store(number + 1, Ordering::Release);
    Ok(())
}

fn wait(micros: u64, mut is_done: impl FnMut() -> bool) -> bool {
    clock::poll_micros(micros, &mut is_done)
}

/// Where a CPU that was started comes to, on its own stack, interrupts off.
#[unsafe(no_mangle)]
extern "C" fn ap_main() -> ! {
    // SAFETY: `start` has leaked the area, and shares it only with this CPU.
    let area = unsafe { &*AREA.load(Ordering::Relaxed) };
    // SAFETY: made for this CPU, which alone took the ticket.
    unsafe { percpu::adopt(area) };
    traps::load();
    lazy::enable();
    apic::enable();
    let result = hw::enable_this_cpu();
    let is_enabled = result.is_ok();
    *OUTCOME.lock() = Some(result);
    if !is_enabled || clock::agree(clock::Side::Started).is_err() {
        cpu::halt();
    }
    loop {
        if let Some(hv) = HYPERVISOR.get() {
            hypervisor::vcpu::run::schedule(hv);
        }
        cpu::wait_for_interrupt();
        if percpu::take_interrupt().is_some() {
            apic::eoi();
        }
    }
}

/// Lets the started CPUs run vCPUs.
pub(crate) fn release(hv: &'static Hypervisor) {
    HYPERVISOR.call_once(|| hv);
    for number in 1..NR_UP.load(Ordering::Acquire) {
        kick(number);
    }
}

/// Makes another CPU exit from its guest, or wakes it: it takes an interrupt that means nothing else.
pub(crate) fn kick(number: usize) {
    if let Some(id) = APIC_IDS.get(number) {
        apic::send(id.load(Ordering::Relaxed), Ipi::Fixed(vector::KICK));
    }
}

/// CPUs that are being sent an NMI, until they have taken it.
static INSISTED: [AtomicBool; MAX_PCPUS] = [const { AtomicBool::new(false) }; MAX_PCPUS];

/// Makes a CPU exit that [`kick`] did not make exit since `since`, by an NMI. Not every implementation lets an
/// interrupt end a guest's run whatever the guest has masked; Bochs 2.7 does not if the run began with
/// interrupts off. An NMI that arrives outside a guest has no effect, so who waits insists again.
pub(crate) fn insist(number: usize, since: &mut Ticks) {
    let now = cpu::rdtsc();
    let Some(id) = APIC_IDS.get(number) else { return };
    if now.raw().wrapping_sub(since.raw()) >= clock::ticks_per_ms() && !INSISTED[number].swap(true, Ordering::SeqCst) {
        *since = now;
        apic::send(id.load(Ordering::Relaxed), Ipi::Nmi);
    }
}

/// Whether the NMI that this CPU has taken was another one's insisting.
pub(crate) fn was_insisted() -> bool {
    INSISTED[percpu::number()].swap(false, Ordering::SeqCst)
}

/// Stops every other CPU, for a panic: each halts in its NMI handler.
pub(crate) fn stop_others() {
    const MICROS_TO_STOP: u64 = 10_000;
    let nr_up = NR_UP.load(Ordering::Acquire);
    if nr_up <= 1 {
        return;
    }
    let own = percpu::number();
    for (number, id) in APIC_IDS[..nr_up].iter().enumerate() {
        if number != own {
            apic::send(id.load(Ordering::Relaxed), Ipi::Nmi);
        }
    }
    clock::delay_micros(MICROS_TO_STOP);
}
