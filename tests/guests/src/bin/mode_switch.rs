// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves that a guest can leave long mode, run 32-bit code with PAE paging, and come back, whichever
//! other bits of CR0 change with paging; and that a hypercall from 32-bit code is refused, not read as
//! if its registers were those of 64-bit code.
//!
//! Some of these writes of CR0 are the hypervisor's to complete and others are not; with PAE paging
//! the CPU also loads four entries of the top table at that moment. A pass cannot tell anything
//! about paging without PAE, nor about real mode, which the start of a second vCPU shows.
//!
//! Checks: Intel SDM vol. 3A, "Initializing IA-32e Mode" and "PAE Paging".
//! Expects: status 0.
#![no_std]
#![no_main]

use core::arch::global_asm;

use guest_abi::Errno;
use guest_abi::num::{high_u32, low_u32};
use test_guests::shared::Shared;
use test_guests::{check, check_eq, cpu, guest, hypercall};

guest!(main);

const CR0_NE: u32 = 1 << 5;
const PRESENT: u64 = 1 << 0;
const LARGE_WRITABLE: u64 = 1 << 7 | 1 << 1 | PRESENT;
const MIB_2: u64 = 2 << 20;
const MARK: u32 = 0x3235_6150;
/// Where the tables of this guest show the mark's page, and its usual tables do not.
const SHOWN_AT: u32 = 1 << 30;

#[repr(C, align(4096))]
struct Table([u64; 512]);

static TOP: Shared<Table> = Shared::new(Table([0; 512]));
static LOW: Shared<Table> = Shared::new(Table([0; 512]));
static SECOND: Shared<Table> = Shared::new(Table([0; 512]));
static MARKED: Shared<u32> = Shared::new(MARK);

// extern "sysv64" fn read_in_32_bit_mode(cr3: u32, address: u32, cr0_flip: u32, is_amd: u32) -> u64
//
// Leaves long mode, turns PAE paging on with the tables at `cr3` and the bits `cr0_flip` of CR0
// inverted, reads the word at `address`, asks for the hypervisor's version with the registers of the
// 64-bit interface, and comes back the same way: the word in the low half, the answer in the high one.
// clobbers: what a callee may, and the data segments (reloaded). Needs everything below 4 GiB.
global_asm!(
    ".section .text",
    ".globl read_in_32_bit_mode",
    "read_in_32_bit_mode:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov ebp, edx",
    "mov [rip + ms_amd], ecx",
    "mov [rip + ms_rsp], rsp",
    "sgdt [rip + ms_old_gdt]",
    "lgdt [rip + ms_new_gdt]",
    "mov rax, cr3",
    "mov [rip + ms_cr3], rax",
    "push 0x18",
    "lea rax, [rip + 1f]",
    "push rax",
    "retfq",
    ".code32",
    "1: mov eax, 0x10",
    "mov ss, eax",
    "mov ds, eax",
    "mov es, eax",
    "mov eax, cr0",
    "and eax, 0x7fffffff",
    "mov cr0, eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "and eax, 0xfffffeff",
    "wrmsr",
    "mov cr3, edi",
    "mov eax, cr0",
    "or eax, 0x80000000",
    "xor eax, ebp",
    "mov cr0, eax",
    "mov ebx, [esi]",
    "mov eax, 17",
    "xor edi, edi",
    "cmp dword ptr [ms_amd], 0",
    "jne 2f",
    "vmcall",
    "jmp 3f",
    "2: vmmcall",
    "3: mov [ms_answer], eax",
    "mov eax, cr0",
    "and eax, 0x7fffffff",
    "mov cr0, eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "or eax, 0x100",
    "wrmsr",
    "mov eax, [ms_cr3]",
    "mov cr3, eax",
    "mov eax, cr0",
    "or eax, 0x80000000",
    "xor eax, ebp",
    "mov cr0, eax",
    "lgdt [ms_old_gdt]",
    "push 0x08",
    "lea eax, [ms_back]",
    "push eax",
    "retf",
    ".code64",
    "ms_back: mov rsp, [rip + ms_rsp]",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "mov edx, [rip + ms_answer]",
    "shl rdx, 32",
    "mov eax, ebx",
    "or rax, rdx",
    "pop rbx",
    "ret",
    ".section .data",
    ".balign 8",
    "ms_rsp: .quad 0",
    "ms_cr3: .quad 0",
    "ms_answer: .long 0",
    "ms_amd: .long 0",
    "ms_old_gdt: .quad 0, 0",
    "ms_new_gdt: .word 4 * 8 - 1",
    ".quad ms_table",
    ".balign 8",
    "ms_table: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff",
    ".section .text",
);

unsafe extern "sysv64" {
    fn read_in_32_bit_mode(cr3: u32, address: u32, cr0_flip: u32, is_amd: u32) -> u64;
}

fn main() {
    build_tables();
    let marked = MARKED.address() % MIB_2;
    let address = SHOWN_AT + low_u32(marked);
    let cr3 = low_u32(TOP.address());
    let before = (cpu::cr0(), cpu::cr4(), cpu::cr3());
    let is_amd = u32::from(hypercall::is_amd());
    let refused = low_u32(Errno::ENOSYS.to_rax());
    for (name, flip) in [
        ("32-bit code reads through its own tables", 0),
        ("and with CR0.NE changed together with paging", CR0_NE),
        ("and once more without", 0),
    ] {
        // SAFETY: code, stack and data are below 1 GiB, where both sets of tables map them alike;
        // interrupts are off.
        let read = unsafe { read_in_32_bit_mode(cr3, address, flip, is_amd) };
        let (read, answer) = (low_u32(read), high_u32(read));
        check_eq(name, read, MARK);
        check_eq("back in long mode the control registers are as before", (cpu::cr0(), cpu::cr4(), cpu::cr3()), before);
        check_eq("a hypercall from 32-bit code is refused", answer, refused);
        check("exits work", cpu::cpuid(0, 0).eax != 0);
    }
}

/// The first GiB as it is, and the mark's 2 MiB at the start of the second.
fn build_tables() {
    // SAFETY: nobody else uses this table, and the CPU does not yet.
    let top = unsafe { &mut (*TOP.get()).0 };
    // SAFETY: as above.
    let low = unsafe { &mut (*LOW.get()).0 };
    // SAFETY: as above.
    let second = unsafe { &mut (*SECOND.get()).0 };
    for (entry, address) in low.iter_mut().zip((0..).step_by(2 << 20)) {
        *entry = address | LARGE_WRITABLE;
    }
    let marked = MARKED.address();
    second[0] = (marked - marked % MIB_2) | LARGE_WRITABLE;
    top[0] = LOW.address() | PRESENT;
    top[1] = SECOND.address() | PRESENT;
}
