# SPDX-License-Identifier: MIT OR Apache-2.0
#
# From a start-up IPI to 64-bit Rust.
#
# entry: real mode at the start of a page below 1 MiB, to which the code was copied; no stack
# exit:  ap_boot() in 64-bit mode on a stack of 16 KiB, with the first vCPU's page tables and GDT
#
# Real mode goes to long mode in one step: CR0.PE and CR0.PG are set together, with EFER.LME set.

    .section .text.ap, "ax"
    .code16
    .global ap_trampoline
ap_trampoline:
    cli
    movw %cs, %ax
    movw %ax, %ds
    lgdtl ap_gdt_pointer - ap_trampoline
    movl $0x20, %eax
    movl %eax, %cr4
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x900, %eax
    wrmsr
    # PG, WP, NE, ET, MP, PE.
    movl $0x80010033, %eax
    movl %eax, %cr0
    ljmpl $0x08, $ap_long
ap_gdt_pointer:
    .word 7 * 8 - 1
    .long boot_gdt
    .global ap_trampoline_end
ap_trampoline_end:

    .code64
ap_long:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movl $ap_stack_top, %esp
    xorl %ebp, %ebp
    call ap_boot
    ud2

    .section .bss.ap, "aw", @nobits
    .align 4096
    .skip 16384
ap_stack_top:
