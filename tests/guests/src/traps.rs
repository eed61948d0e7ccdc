// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exceptions and interrupts: [`catch`] turns a fault into a value, [`on`] counts interrupts.
//!
//! All gates are interrupt gates on the current stack, except double fault and NMI, which have
//! their own. An exception outside [`catch`] is reported and ends the guest: nothing hangs.

use core::arch::{asm, global_asm};
use core::ffi::c_void;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::cpu;
use crate::report;
use crate::shared::Shared;

global_asm!(include_str!("traps.S"), options(att_syntax));

/// Vector of the divide error.
pub const DE: u64 = 0;
/// Vector of the non-maskable interrupt.
pub const NMI: u64 = 2;
/// Vector of INT3.
pub const BP: u64 = 3;
/// Vector of an invalid opcode.
pub const UD: u64 = 6;
/// Vector of a double fault.
pub const DF: u64 = 8;
/// Vector of a stack fault.
pub const SS: u64 = 12;
/// Vector of a general protection fault.
pub const GP: u64 = 13;
/// Vector of a page fault.
pub const PF: u64 = 14;

/// The stack as the stubs in `traps.S` leave it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Frame {
    r15_to_rcx: [u64; 14],
    rax: u64,
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}
const _: () = assert!(size_of::<Frame>() == 22 * 8);

/// What runs when an interrupt arrives.
pub type Handler = fn();

/// A fault that [`catch`] caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its vector.
    pub vector: u64,
    /// Its error code; 0 where the vector has none.
    pub error: u64,
    /// Where.
    pub rip: u64,
    /// CR2 at the time.
    pub cr2: u64,
    /// RAX at the time.
    pub rax: u64,
    /// CS at the time.
    pub cs: u64,
}

unsafe extern "C" {
    static trap_stubs: u8;
    static catch_resume: u8;
    static boot_gdt: [AtomicU64; 7];
    fn catch_call(f: extern "C" fn(*mut c_void), arg: *mut c_void, rsp: *mut u64);
}

static RECOVER_RSP: AtomicU64 = AtomicU64::new(0);
static LAST: Shared<Option<Fault>> = Shared::new(None);
static COUNTS: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];
static HANDLERS: Shared<[Option<Handler>; 256]> = Shared::new([None; 256]);
static IDT: Shared<[[u64; 2]; 256]> = Shared::new([[0; 2]; 256]);
static TSS: Shared<[u32; 26]> = Shared::new([0; 26]);
static IST: Shared<[[u128; 512]; 2]> = Shared::new([[0; 512]; 2]);
static RSP0: Shared<[u128; 1024]> = Shared::new([0; 1024]);

fn address_of<T>(item: *const T) -> u64 {
    item.addr() as u64
}

/// Loads GDT entries, TSS and IDT. Called once by the entry.
pub(crate) fn init() {
    let tss = TSS.get();
    let base = address_of(tss);
    let stacks =
        [(1, address_of(RSP0.get()) + 16384), (9, address_of(IST.get()) + 8192), (11, address_of(IST.get()) + 16384)];
    for (word, top) in stacks {
        // SAFETY: the TSS is ours alone until it is loaded below; the words are inside its 26.
        unsafe { (*tss)[word] = guest_abi::num::low_u32(top) };
    }
    let low = 0x67 | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
    // SAFETY: the GDT of boot.S has seven entries of eight bytes, in writable memory.
    let gdt = unsafe { &boot_gdt };
    gdt[5].store(low, Relaxed);
    gdt[6].store(base >> 32, Relaxed);
    for vector in 0..256 {
        let stub = address_of(&raw const trap_stubs) + 16 * vector as u64;
        let ist = match vector {
            8 => 1,
            2 => 2,
            _ => 0,
        };
        let attributes = if vector == 3 { 0xee } else { 0x8e };
        let entry =
            [stub & 0xffff | 0x08 << 16 | ist << 32 | attributes << 40 | (stub >> 16 & 0xffff) << 48, stub >> 32];
        // SAFETY: the IDT is ours alone until it is loaded below.
        unsafe { (*IDT.get())[vector] = entry };
    }
    allow_user_io(false);
    // SAFETY: selector 0x28 was just written and is static.
    unsafe { asm!("ltr {tss:x}", tss = in(reg) 0x28, options(nostack)) };
    load_idt();
}

/// Makes this vCPU take its exceptions and interrupts by the table that [`init`] filled.
pub(crate) fn load_idt() {
    let idt = address_of(IDT.get());
    let pointer = [0x0fff_u16, guest_abi::num::low_u16(idt), guest_abi::num::low_u16(idt >> 16), 0, 0];
    // SAFETY: the table is static and filled.
    unsafe { asm!("lidt [{idt}]", idt = in(reg) pointer.as_ptr(), options(nostack)) };
}

#[unsafe(no_mangle)]
extern "C" fn trap_dispatch(frame: &mut Frame) {
    let index = guest_abi::num::to_usize(frame.vector & 0xff);
    COUNTS[index].fetch_add(1, Relaxed);
    if frame.vector >= 32 || frame.vector == NMI {
        // SAFETY: handlers are set with interrupts in a known state, on one vCPU.
        if let Some(handler) = unsafe { (*HANDLERS.get())[index] } {
            handler();
        }
        return;
    }
    let fault = Fault {
        vector: frame.vector,
        error: frame.error,
        rip: frame.rip,
        cr2: cpu::cr2(),
        rax: frame.rax,
        cs: frame.cs,
    };
    let rsp = RECOVER_RSP.swap(0, Relaxed);
    if rsp == 0 {
        report::fatal(format_args!("unexpected exception: {fault:x?}"));
    }
    // SAFETY: read back only by `catch`, which the change of RIP below resumes.
    unsafe { *LAST.get() = Some(fault) };
    frame.rip = address_of(&raw const catch_resume);
    frame.rsp = rsp;
    frame.cs = 0x08;
    frame.ss = 0x10;
    // Neither single steps nor alignment checks survive the fault.
    frame.rflags &= !(1 << 8 | 1 << 18);
}

/// Runs `f` and returns the fault that ended it, or `None` if it came to its end.
///
/// `f` is abandoned where it faults: it must own nothing that needs dropping.
pub fn catch<F: FnMut()>(mut f: F) -> Option<Fault> {
    extern "C" fn call<F: FnMut()>(f: *mut c_void) {
        // SAFETY: the pointer is to the closure in `catch`'s frame, which waits for this call.
        unsafe { (*f.cast::<F>())() };
    }
    // SAFETY: one vCPU, and exceptions write it only while `RECOVER_RSP` is set.
    unsafe { *LAST.get() = None };
    let outer = RECOVER_RSP.load(Relaxed);
    // SAFETY: `call` has the type that the assembly calls, its argument outlives the call.
    unsafe { catch_call(call::<F>, (&raw mut f).cast(), RECOVER_RSP.as_ptr()) };
    RECOVER_RSP.store(outer, Relaxed);
    // SAFETY: as above.
    unsafe { *LAST.get() }
}

/// Lets user code reach the first ports, 0x80 among them, or none: where the TSS says its port map is.
pub fn allow_user_io(allowed: bool) {
    // At 0 the map is the TSS itself, of which most is zero; at 104 there is none.
    let base = if allowed { 0 } else { 104 };
    // SAFETY: inside the TSS; the CPU reads it only when user code uses a port.
    unsafe { (*TSS.get())[25] = base << 16 };
}

/// Runs user code at `entry` in ring 3, interrupts off, with RAX set, until it faults.
///
/// The code has no stack: it must fault before it needs one.
pub fn run_user(entry: u64, rax: u64) -> Option<Fault> {
    catch(|| {
        // SAFETY: the frame names user segments of the GDT; the fault that follows abandons the closure.
        unsafe {
            asm!(
                "push 0x1b", "push 0", "push 2", "push 0x23", "push {entry}", "iretq",
                entry = in(reg) entry, in("rax") rax, in("rdi") 0, in("rsi") 0, in("rdx") 0,
            );
        };
    })
}

/// Makes a vector's gate present or not: delivery through one that is not raises #NP.
pub fn set_gate_present(vector: u64, present: bool) {
    let index = guest_abi::num::to_usize(vector & 0xff);
    // SAFETY: the IDT is static; the CPU reads it only on the next delivery.
    let entry = unsafe { &mut (*IDT.get())[index] };
    entry[0] = entry[0] & !(1 << 47) | u64::from(present) << 47;
}

/// How often `vector` arrived.
pub fn count(vector: u8) -> u32 {
    COUNTS[usize::from(vector)].load(Relaxed)
}

/// Runs `handler`, interrupts off, each time `vector` (32 or above, or the NMI) arrives.
pub fn on(vector: u8, handler: Handler) {
    // SAFETY: one vCPU; a vector is given its handler before it can arrive.
    unsafe { (*HANDLERS.get())[usize::from(vector)] = Some(handler) };
}

/// Ends the guest by a triple fault: an exception without an IDT.
pub fn triple_fault() -> ! {
    let empty = [0u16; 5];
    // SAFETY: nothing runs after it, which is the purpose.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) empty.as_ptr(), options(noreturn)) }
}
