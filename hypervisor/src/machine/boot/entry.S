// From the boot loader to 64-bit code.
//
// Two doors: `multiboot_entry` (GRUB, multiboot2: EAX magic, EBX information) and `pvh_entry`
// (QEMU -kernel: EBX start info). Both are entered in 32-bit protected mode with paging off and
// flat segments; interrupts are off, nothing else is known. GRUB in some emulators hands over
// with CR0.CD and CR0.NW set, so both are cleared.
//
// Leaves: long mode, NX on, first 4 GiB identity-mapped writable with 2 MiB pages (replaced by
// paging.rs), .bss zeroed, RSP at the top of the boot stack.
//   extern "C" fn boot_main(magic: u32, info: u32) -> !

    .section .multiboot2, "a"
    .balign 8
header:
    .long 0xe85250d6, 0, header_end - header, -(0xe85250d6 + header_end - header)
    // wanted: command line, modules, memory map; optional: ACPI RSDP old and new
    .balign 8
    .short 1, 0
    .long 20, 1, 3, 6
    .balign 8
    .short 1, 1
    .long 16, 14, 15
    // a screen of 1024x768 pixels, if there is one
    .balign 8
    .short 5, 1
    .long 20, 1024, 768, 32
    // modules on page boundaries
    .balign 8
    .short 6, 0
    .long 8
    .balign 8
    .short 0, 0
    .long 8
header_end:

    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18
    .asciz "Xen"
    .quad pvh_entry

    .section .boot.text, "ax"
    .code32
    .globl multiboot_entry
multiboot_entry:
    mov edi, eax
    mov esi, ebx
    jmp 1f
    .globl pvh_entry
pvh_entry:
    mov edi, 0x336ec578
    mov esi, ebx
1:
    cli
    cld
    mov eax, cr0
    and eax, 0x9fffffff
    mov cr0, eax
    mov esp, offset __boot_stack_top

    // .bss, keeping EDI
    mov ebp, edi
    mov edi, offset __bss_start
    mov ecx, offset __bss_end
    sub ecx, edi
    shr ecx, 2
    xor eax, eax
    rep stosd
    mov edi, ebp

    // long mode and NX are there?
    mov eax, 0x80000000
    cpuid
    cmp eax, 0x80000001
    jb 9f
    mov eax, 0x80000001
    cpuid
    and edx, 0x20100000
    cmp edx, 0x20100000
    jne 9f

    // __boot_tables: PML4, PDPT, four page directories
    mov eax, offset __boot_tables
    lea ebx, [eax + 0x1003]
    mov [eax], ebx
    lea ebx, [eax + 0x2003]
    lea edx, [eax + 0x1000]
    mov ecx, 4
2:  mov [edx], ebx
    add ebx, 0x1000
    add edx, 8
    dec ecx
    jnz 2b
    lea edx, [eax + 0x2000]
    mov ebx, 0x83
    mov ecx, 2048
3:  mov [edx], ebx
    add ebx, 0x200000
    add edx, 8
    dec ecx
    jnz 3b

    mov cr3, eax
    mov eax, cr4
    or eax, 0x20            // PAE
    mov cr4, eax
    mov ecx, 0xc0000080     // EFER: LME, NXE
    rdmsr
    or eax, 0x900
    wrmsr
    mov eax, cr0
    or eax, 0x80010001      // PG, WP, PE
    mov cr0, eax
    mov eax, offset boot_gdt_pointer
    lgdt [eax]
    push 8
    mov eax, offset long_entry
    push eax
    retf

    // No long mode: say so on COM1 and stop.
9:  mov esi, offset no_long_mode
8:  lodsb
    test al, al
    jz 7f
    mov ah, al
    mov dx, 0x3fd
6:  in al, dx
    test al, 0x20
    jz 6b
    mov al, ah
    mov dx, 0x3f8
    out dx, al
    jmp 8b
7:  hlt
    jmp 7b

    .code64
long_entry:
    mov eax, 16
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov fs, eax
    mov gs, eax
    mov rsp, offset __boot_stack_top
    mov edi, edi
    mov esi, esi
    xor ebp, ebp
    call boot_main
    ud2

    .section .rodata.boot, "a"
no_long_mode:
    .asciz "isthmus: this CPU has no 64-bit mode with NX; nothing to do\r\n"
    .balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    // 32-bit code, for the other CPUs' way to long mode.
    .quad 0x00cf9b000000ffff
boot_gdt_pointer:
    .short 31
    .long boot_gdt
