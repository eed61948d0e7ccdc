# SPDX-License-Identifier: MIT OR Apache-2.0
#
# From the PVH entry to 64-bit Rust.
#
# entry: 32-bit protected mode, paging off, flat segments, EBX = address of hvm_start_info, no stack
# exit:  guest_boot() in 64-bit mode: the first 4 GiB identity-mapped by 2 MiB pages, WP and NXE on,
#        interrupts off, a stack of 64 KiB
#
# The state at entry is recorded before anything changes it (struct EntryState in boot.rs).

    .section .note.Xen, "a", @note
    .align 4
    .long 4, 8, 18
    .asciz "Xen"
    .quad pvh_start

    .section .text.boot, "ax"
    .code32
    .global pvh_start
pvh_start:
    movl %ebx, entry_state
    movl %cr0, %eax
    movl %eax, entry_state + 4
    movl %cr4, %eax
    movl %eax, entry_state + 8
    movl $boot_stack_top, %esp
    pushfl
    popl entry_state + 12
    movw %cs, entry_state + 16
    movw %ds, entry_state + 18
    movw %es, entry_state + 20
    movw %ss, entry_state + 22
    strw entry_state + 24
    movl $0xc0000080, %ecx
    rdmsr
    movl %eax, entry_state + 28

    cld
    xorl %eax, %eax
    movl $bss_start, %edi
    movl $bss_end, %ecx
    subl %edi, %ecx
    shrl $2, %ecx
    rep stosl

    # Present, writable, 2 MiB: the whole of 4 GiB in four directories.
    movl $boot_pd, %edi
    movl $0x83, %eax
1:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    cmpl $boot_pd + 4 * 4096, %edi
    jb 1b
    movl $boot_pd + 3, boot_pdpt
    movl $boot_pd + 4096 + 3, boot_pdpt + 8
    movl $boot_pd + 8192 + 3, boot_pdpt + 16
    movl $boot_pd + 12288 + 3, boot_pdpt + 24
    movl $boot_pdpt + 3, boot_pml4

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
    lgdt boot_gdt_pointer
    pushl $0x08
    pushl $boot_long
    lretl

    .code64
boot_long:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movl $boot_stack_top, %esp
    xorl %ebp, %ebp
    call guest_boot
    ud2

    .section .data, "aw"
    .align 16
    .global entry_state
entry_state:
    .fill 32, 1, 0xff
    # 0x08 code, 0x10 data, 0x1b user data, 0x23 user code, 0x28 TSS (filled in by traps.rs).
    .global boot_gdt
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00cff3000000ffff
    .quad 0x00affb000000ffff
    .quad 0, 0
    .global boot_gdt_pointer
boot_gdt_pointer:
    .word boot_gdt_pointer - boot_gdt - 1
    .quad boot_gdt

    .section .bss, "aw", @nobits
    .align 4096
    .global boot_pml4
boot_pml4:
    .skip 4096
boot_pdpt:
    .skip 4096
boot_pd:
    .skip 4 * 4096
    .skip 65536
boot_stack_top:
