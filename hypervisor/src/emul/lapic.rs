// SPDX-License-Identifier: MIT OR Apache-2.0
//! The virtual local APIC, in x2APIC mode only.
//!
//! A vCPU's APIC has two halves. [`LapicShared`] is what others touch while the vCPU runs
//! elsewhere: requested interrupts, their trigger mode, and INIT, SIPI and NMI; all atomics, so an
//! interrupt is posted without a lock and without asking whether the vCPU runs. [`Lapic`] belongs
//! to the pCPU that runs the vCPU. What a register write does to *other* vCPUs is returned as an
//! [`Effect`] and carried out by the caller, who knows them.
//!
//! Order of events: a poster sets TMR, then IRR, then kicks; the owner reads IRR before each
//! entry. The event-channel callback vector does not come through here at all.
//!
//! There is no MMIO page and no way out of x2APIC mode. The LVT's thermal, performance, LINT and
//! error entries are stored and never fire, because nothing drives them. Lowest-priority delivery
//! is left to the caller, who picks any one of the destinations.
//!
//! Source: Intel SDM vol. 3A, Advanced Programmable Interrupt Controller (APIC).

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use guest_abi::num::{high_u32, low_u8, low_u32};

use super::lapic_timer::{Timer, TimerClock};
use crate::addr::Ticks;

/// Register numbers: the x2APIC MSR minus 0x800.
mod reg {
    pub(super) const ID: u8 = 0x02;
    pub(super) const VERSION: u8 = 0x03;
    pub(super) const TPR: u8 = 0x08;
    pub(super) const PPR: u8 = 0x0a;
    pub(super) const EOI: u8 = 0x0b;
    pub(super) const LDR: u8 = 0x0d;
    pub(super) const SVR: u8 = 0x0f;
    pub(super) const ISR: u8 = 0x10;
    pub(super) const TMR: u8 = 0x18;
    pub(super) const IRR: u8 = 0x20;
    pub(super) const IRR_END: u8 = 0x28;
    pub(super) const ESR: u8 = 0x28;
    pub(super) const ICR: u8 = 0x30;
    pub(super) const LVT_TIMER: u8 = 0x32;
    pub(super) const LVT_ERROR: u8 = 0x37;
    pub(super) const TIMER_INITIAL: u8 = 0x38;
    pub(super) const TIMER_CURRENT: u8 = 0x39;
    pub(super) const TIMER_DIVIDE: u8 = 0x3e;
    pub(super) const SELF_IPI: u8 = 0x3f;
}

/// Version 0x14, an integrated APIC, so that Linux sends start-up IPIs; highest LVT entry 5.
const VERSION: u64 = 0x14 | 5 << 16;
const LVT_ENTRIES: usize = 6;
const LVT_MASKED: u32 = 1 << 16;
const SVR_ENABLE: u32 = 1 << 8;
/// SVR bits that can be set: vector, enable, focus checking. EOI-broadcast suppression is absent.
const SVR_BITS: u64 = 0x3ff;
/// ESR: a vector below 16 was sent, or received.
const ESR_SEND_ILLEGAL: u32 = 1 << 5;
const ESR_RECEIVE_ILLEGAL: u32 = 1 << 6;
/// Vectors below 16 belong to exceptions.
const FIRST_VECTOR: u8 = 16;

/// How an interrupt's source signals; level means that the EOI has to reach the I/O APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Fires and forgets.
    Edge,
    /// Stays until it is served.
    Level,
}

/// 256 bits, one a vector.
#[derive(Default)]
struct Vectors([AtomicU64; 4]);

impl Vectors {
    fn place(&self, vector: u8) -> (&AtomicU64, u64) {
        (&self.0[usize::from(vector >> 6)], 1 << (vector & 63))
    }

    /// Sets a bit; `true` if it was clear.
    fn set(&self, vector: u8) -> bool {
        let (word, bit) = self.place(vector);
        // Release: who sees the bit sees the trigger mode that was stored before it.
        word.fetch_or(bit, Ordering::Release) & bit == 0
    }

    /// Clears a bit; `true` if it was set.
    fn clear(&self, vector: u8) -> bool {
        let (word, bit) = self.place(vector);
        word.fetch_and(!bit, Ordering::Acquire) & bit != 0
    }

    fn has(&self, vector: u8) -> bool {
        let (word, bit) = self.place(vector);
        word.load(Ordering::Acquire) & bit != 0
    }

    fn snapshot(&self) -> [u64; 4] {
        [0, 1, 2, 3].map(|i: usize| self.0[i].load(Ordering::Acquire))
    }

    fn reset(&self) {
        for word in &self.0 {
            word.store(0, Ordering::Release);
        }
    }
}

/// The highest vector whose bit is set.
fn highest(words: &[u64; 4]) -> Option<u8> {
    let index = words.iter().rposition(|word| *word != 0)?;
    Some(low_u8(index as u64 * 64 + u64::from(words[index].ilog2())))
}

/// 32 of 256 bits, as the register window shows them.
fn window(words: &[u64; 4], register: u8) -> u64 {
    let word = words[usize::from(register >> 1 & 3)];
    if register & 1 == 0 { word & 0xffff_ffff } else { word >> 32 }
}

/// The half of a vCPU's APIC that any pCPU may use.
#[derive(Default)]
pub struct LapicShared {
    irr: Vectors,
    tmr: Vectors,
    is_enabled: AtomicBool,
    signals: AtomicU32,
}

const SIGNAL_NMI: u32 = 1 << 8;
const SIGNAL_INIT: u32 = 1 << 9;
const SIGNAL_SIPI: u32 = 1 << 10;

/// What reached a vCPU besides interrupts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    /// An NMI.
    pub nmi: bool,
    /// INIT: reset and wait for a start-up IPI. Comes before `sipi`.
    pub init: bool,
    /// A start-up IPI with the page to start at. Ignored unless the vCPU waits for one.
    pub sipi: Option<u8>,
}

impl LapicShared {
    /// Requests an interrupt. Returns `true` if the vCPU has something new to look at, so that
    /// the caller kicks it; `false` if it was requested already or the APIC refuses it because
    /// software has disabled it or the vector belongs to exceptions.
    pub fn post(&self, vector: u8, trigger: Trigger) -> bool {
        if vector < FIRST_VECTOR || !self.is_enabled.load(Ordering::Acquire) {
            return false;
        }
        match trigger {
            Trigger::Edge => self.tmr.clear(vector),
            Trigger::Level => self.tmr.set(vector),
        };
        self.irr.set(vector)
    }

    /// Posts an NMI; the caller kicks the vCPU.
    pub fn post_nmi(&self) {
        self.signals.fetch_or(SIGNAL_NMI, Ordering::Release);
    }

    /// Posts INIT; the caller kicks the vCPU. A start-up IPI that is still pending is lost, as
    /// INIT comes after it.
    pub fn post_init(&self) {
        let _ = self.signals.fetch_update(Ordering::Release, Ordering::Relaxed, |s| {
            Some(s & !(SIGNAL_SIPI | SIGNAL_NMI | 0xff) | SIGNAL_INIT)
        });
    }

    /// Posts a start-up IPI; the caller kicks the vCPU.
    pub fn post_sipi(&self, page: u8) {
        let _ = self
            .signals
            .fetch_update(Ordering::Release, Ordering::Relaxed, |s| Some(s & !0xff | SIGNAL_SIPI | u32::from(page)));
    }

    /// Takes what has reached the vCPU besides interrupts.
    pub fn take_signals(&self) -> Signals {
        // The plain load keeps the usual case, nothing there, free of a locked operation.
        if self.signals.load(Ordering::Relaxed) == 0 {
            return Signals::default();
        }
        let s = self.signals.swap(0, Ordering::Acquire);
        Signals {
            nmi: s & SIGNAL_NMI != 0,
            init: s & SIGNAL_INIT != 0,
            sipi: (s & SIGNAL_SIPI != 0).then_some(s.to_le_bytes()[0]),
        }
    }

    /// Whether a signal waits to be taken.
    #[must_use]
    pub fn has_signals(&self) -> bool {
        self.signals.load(Ordering::Acquire) != 0
    }
}

/// Whom an interprocessor interrupt is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The vCPU with this APIC id.
    Physical(u32),
    /// vCPUs whose x2APIC logical id has this cluster and one of these bits.
    Logical {
        /// The cluster: APIC id / 16.
        cluster: u16,
        /// Bit n is the vCPU with APIC id % 16 = n.
        members: u16,
    },
    /// All vCPUs of the domain.
    All,
    /// All vCPUs of the domain except the sender.
    Others,
}

impl Destination {
    const fn from_icr(value: u64, own_id: u32) -> Self {
        let to = high_u32(value);
        match value >> 18 & 3 {
            1 => Self::Physical(own_id),
            2 => Self::All,
            3 => Self::Others,
            _ if to == u32::MAX => Self::All,
            _ if value & 1 << 11 != 0 => {
                let [low, high, cluster_low, cluster_high] = to.to_le_bytes();
                Self::Logical {
                    cluster: u16::from_le_bytes([cluster_low, cluster_high]),
                    members: u16::from_le_bytes([low, high]),
                }
            }
            _ => Self::Physical(to),
        }
    }

    /// Whether a vCPU with APIC id `target` is meant when one with `sender` sends.
    #[must_use]
    pub const fn includes(&self, target: u32, sender: u32) -> bool {
        match *self {
            Self::Physical(id) => target == id,
            Self::Logical { cluster, members } => {
                target >> 4 == cluster as u32 && members as u32 & 1 << (target & 0xf) != 0
            }
            Self::All => true,
            Self::Others => target != sender,
        }
    }
}

/// What an interprocessor interrupt does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpiKind {
    /// Posts a vector on every destination.
    Fixed(u8),
    /// Posts a vector on any one destination.
    LowestPriority(u8),
    /// Posts an NMI.
    Nmi,
    /// Resets the vCPU; it then waits for a start-up IPI.
    Init,
    /// Starts a vCPU that waits, at `page << 12` in real mode.
    Startup(u8),
}

/// An interprocessor interrupt for the caller to deliver, possibly to the sender too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipi {
    /// Whom it is for.
    pub destination: Destination,
    /// What it does there.
    pub kind: IpiKind,
}

/// What a register write asks of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// Nothing.
    None,
    /// Deliver this.
    Ipi(Ipi),
    /// A level-triggered interrupt with this vector was ended: tell the I/O APIC.
    LevelEoi(u8),
}

/// A register access that raises #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessFault;

/// The half of a vCPU's APIC that belongs to the pCPU running it.
pub struct Lapic {
    id: u32,
    tpr: u8,
    svr: u32,
    isr: [u64; 4],
    lvt: [u32; LVT_ENTRIES],
    icr: u64,
    esr: u32,
    errors: u32,
    timer: Timer,
}

impl Lapic {
    /// The state after power-up for this APIC id.
    #[must_use]
    pub const fn new(id: u32) -> Self {
        Self {
            id,
            tpr: 0,
            svr: 0xff,
            isr: [0; 4],
            lvt: [LVT_MASKED; LVT_ENTRIES],
            icr: 0,
            esr: 0,
            errors: 0,
            timer: Timer::new(),
        }
    }

    /// Does what INIT does: everything but the id goes back to its power-up state. Signals that
    /// arrived later stay.
    pub fn reset(&mut self, shared: &LapicShared) {
        *self = Self::new(self.id);
        shared.is_enabled.store(false, Ordering::Release);
        shared.irr.reset();
        shared.tmr.reset();
    }

    /// Whether software has enabled the APIC.
    #[must_use]
    pub const fn is_enabled(&self) -> bool {
        self.svr & SVR_ENABLE != 0
    }

    /// The task priority, as CR8 shows it: the upper half of TPR.
    #[must_use]
    pub const fn cr8(&self) -> u64 {
        (self.tpr >> 4) as u64
    }

    /// Sets the task priority through CR8.
    ///
    /// # Errors
    /// [`AccessFault`] if a bit above 3 is set.
    pub fn set_cr8(&mut self, value: u64) -> Result<(), AccessFault> {
        if value > 0xf {
            return Err(AccessFault);
        }
        self.tpr = low_u8(value) << 4;
        Ok(())
    }

    /// The vector to deliver next, or `None` while nothing is requested above the current
    /// priority. A vector stays the answer until [`Lapic::accept`].
    #[inline]
    #[must_use]
    pub fn highest_deliverable(&self, shared: &LapicShared) -> Option<u8> {
        if !self.is_enabled() {
            return None;
        }
        let vector = highest(&shared.irr.snapshot())?;
        (vector >> 4 > self.ppr() >> 4).then_some(vector)
    }

    /// Moves a vector from requested to in service: it is being delivered to the guest.
    pub fn accept(&mut self, vector: u8, shared: &LapicShared) {
        if shared.irr.clear(vector) {
            self.isr[usize::from(vector >> 6)] |= 1 << (vector & 63);
        }
    }

    /// Reads a register by its x2APIC number (MSR - 0x800).
    ///
    /// # Errors
    /// [`AccessFault`] for a register that does not exist or cannot be read.
    pub fn read(&self, register: u8, shared: &LapicShared, clock: &TimerClock) -> Result<u64, AccessFault> {
        Ok(match register {
            reg::ID => u64::from(self.id),
            reg::VERSION => VERSION,
            reg::TPR => u64::from(self.tpr),
            reg::PPR => u64::from(self.ppr()),
            reg::LDR => u64::from((self.id >> 4) << 16 | 1 << (self.id & 0xf)),
            reg::SVR => u64::from(self.svr),
            reg::ISR..reg::TMR => window(&self.isr, register),
            reg::TMR..reg::IRR => window(&shared.tmr.snapshot(), register),
            reg::IRR..reg::IRR_END => window(&shared.irr.snapshot(), register),
            reg::ESR => u64::from(self.esr),
            reg::ICR => self.icr,
            reg::LVT_TIMER..=reg::LVT_ERROR => u64::from(self.lvt[usize::from(register - reg::LVT_TIMER)]),
            reg::TIMER_INITIAL => u64::from(self.timer.initial()),
            reg::TIMER_CURRENT => u64::from(self.timer.current(clock)),
            reg::TIMER_DIVIDE => u64::from(self.timer.divide()),
            _ => return Err(AccessFault),
        })
    }

    /// Writes a register by its x2APIC number (MSR - 0x800).
    ///
    /// # Errors
    /// [`AccessFault`] for a register that does not exist or cannot be written, and for reserved
    /// bits.
    pub fn write(
        &mut self,
        register: u8,
        value: u64,
        shared: &LapicShared,
        clock: &TimerClock,
    ) -> Result<Effect, AccessFault> {
        // Only the ICR has 64 bits.
        if register != reg::ICR && value >> 32 != 0 {
            return Err(AccessFault);
        }
        match register {
            reg::EOI if value == 0 => return Ok(self.end_of_interrupt(shared)),
            reg::ICR => return self.write_icr(value, shared),
            reg::SELF_IPI if value <= 0xff => self.send_to_self(low_u8(value), shared),
            reg::TPR if value <= 0xff => self.tpr = low_u8(value),
            reg::SVR if value & !SVR_BITS == 0 => self.write_svr(low_u32(value), shared),
            reg::ESR if value == 0 => self.esr = core::mem::take(&mut self.errors),
            reg::LVT_TIMER..=reg::LVT_ERROR => self.write_lvt(register, low_u32(value))?,
            reg::TIMER_INITIAL => self.timer.set_initial(low_u32(value), clock),
            reg::TIMER_DIVIDE if value & !0b1011 == 0 => self.timer.set_divide(low_u32(value), clock),
            _ => return Err(AccessFault),
        }
        Ok(Effect::None)
    }

    /// IA32_TSC_DEADLINE: guest ticks, 0 while no deadline is set.
    #[must_use]
    pub const fn tsc_deadline(&self) -> u64 {
        self.timer.tsc_deadline()
    }

    /// Writes IA32_TSC_DEADLINE, in guest ticks; 0 disarms. Ignored in the other timer modes.
    pub fn set_tsc_deadline(&mut self, guest_tsc: u64, clock: &TimerClock) {
        self.timer.set_tsc_deadline(guest_tsc, clock);
    }

    /// When the timer fires next, in host ticks; [`crate::vcpu::NEVER`] if it is not running.
    #[inline]
    #[must_use]
    pub const fn next_deadline(&self) -> Ticks {
        self.timer.deadline()
    }

    /// Fires the timer if its deadline has passed. Returns `true` if an interrupt was requested.
    pub fn expire(&mut self, shared: &LapicShared, now: Ticks) -> bool {
        if !self.timer.expire(now) {
            return false;
        }
        let lvt = self.lvt[0];
        if lvt & LVT_MASKED != 0 {
            return false;
        }
        self.receive(lvt.to_le_bytes()[0], shared)
    }

    /// Processor priority: that of the task or of what is in service, whichever is higher.
    fn ppr(&self) -> u8 {
        let in_service = highest(&self.isr).unwrap_or(0) & 0xf0;
        if self.tpr >> 4 >= in_service >> 4 { self.tpr } else { in_service }
    }

    fn end_of_interrupt(&mut self, shared: &LapicShared) -> Effect {
        let Some(vector) = highest(&self.isr) else { return Effect::None };
        self.isr[usize::from(vector >> 6)] &= !(1 << (vector & 63));
        if shared.tmr.has(vector) { Effect::LevelEoi(vector) } else { Effect::None }
    }

    fn write_svr(&mut self, value: u32, shared: &LapicShared) {
        self.svr = value;
        if !self.is_enabled() {
            for entry in &mut self.lvt {
                *entry |= LVT_MASKED;
            }
        }
        shared.is_enabled.store(self.is_enabled(), Ordering::Release);
    }

    fn write_lvt(&mut self, register: u8, value: u32) -> Result<(), AccessFault> {
        const DELIVERY_MODE: u32 = 0x700;
        // Vector and mask; the timer's mode; delivery mode; polarity and trigger of the LINT pins.
        // Delivery status and remote IRR are read-only and may be written back.
        let bits = match register - reg::LVT_TIMER {
            0 => 0x7_00ff,
            3 | 4 => 0x1_a0ff | DELIVERY_MODE,
            5 => 0x1_00ff,
            _ => 0x1_00ff | DELIVERY_MODE,
        };
        const READ_ONLY: u32 = 1 << 12 | 1 << 14;
        if value & !(bits | READ_ONLY) != 0 {
            return Err(AccessFault);
        }
        let mut entry = value & bits;
        if !self.is_enabled() {
            entry |= LVT_MASKED;
        }
        if register == reg::LVT_TIMER {
            self.timer.set_mode(entry >> 17 & 3)?;
        }
        self.lvt[usize::from(register - reg::LVT_TIMER)] = entry;
        Ok(())
    }

    fn write_icr(&mut self, value: u64, shared: &LapicShared) -> Result<Effect, AccessFault> {
        // Vector, delivery and destination mode, level, trigger, shorthand, destination. Bit 12,
        // delivery status, does not exist in x2APIC mode.
        const ICR_BITS: u64 = 0xffff_ffff_000c_cfff;
        if value & !ICR_BITS != 0 {
            return Err(AccessFault);
        }
        self.icr = value;
        let vector = low_u8(value);
        let (is_level, is_assert) = (value & 1 << 15 != 0, value & 1 << 14 != 0);
        let is_self = value >> 18 & 3 == 1;
        let kind = match value >> 8 & 7 {
            0 | 1 if vector < FIRST_VECTOR => {
                self.errors |= ESR_SEND_ILLEGAL;
                return Ok(Effect::None);
            }
            0 | 1 if is_self => {
                self.send_to_self(vector, shared);
                return Ok(Effect::None);
            }
            // Only fixed interrupts can be sent with the self shorthand.
            _ if is_self => return Ok(Effect::None),
            0 => IpiKind::Fixed(vector),
            1 => IpiKind::LowestPriority(vector),
            4 => IpiKind::Nmi,
            // The level de-assert is a relic of the bus between old APICs.
            5 if is_level && !is_assert => return Ok(Effect::None),
            5 => IpiKind::Init,
            6 => IpiKind::Startup(vector),
            // SMI and the reserved modes go nowhere.
            _ => return Ok(Effect::None),
        };
        Ok(Effect::Ipi(Ipi { destination: Destination::from_icr(value, self.id), kind }))
    }

    fn send_to_self(&mut self, vector: u8, shared: &LapicShared) {
        if vector < FIRST_VECTOR {
            self.errors |= ESR_SEND_ILLEGAL;
        } else {
            shared.post(vector, Trigger::Edge);
        }
    }

    /// Takes an interrupt from the LVT.
    fn receive(&mut self, vector: u8, shared: &LapicShared) -> bool {
        if vector < FIRST_VECTOR {
            self.errors |= ESR_RECEIVE_ILLEGAL;
            return false;
        }
        shared.post(vector, Trigger::Edge)
    }
}

#[cfg(test)]
#[path = "lapic_tests.rs"]
mod tests;
