// From a start-up IPI to 64-bit code, on each CPU but the boot CPU.
//
// `ap_trampoline` to `ap_trampoline_end` is copied to a page below 512 KiB, whose number the IPI
// carries: the CPU starts there in real mode, CS the page's segment, IP 0, interrupts off. Those
// bytes know their own place by CS alone. The rest runs where it is linked.
//
// The CPU takes a ticket first. Without one (it answers long after the boot CPU gave it up) it
// stops. The boot page tables lead to long mode, the final ones are loaded there; both map the
// image where it is linked. EFER.NXE is on before the final tables, which use it.
//
// Words that the boot CPU fills (smp.rs): AP_TICKET, AP_CR3, AP_STACK.
//   extern "C" fn ap_main() -> !

    .section .rodata.boot, "a"
    .balign 16
    .code16
    .globl ap_trampoline
ap_trampoline:
    cli
    cld
    mov ax, cs
    mov ds, ax
    .byte 0x66, 0x0f, 0x01, 0x16            // LGDT with a 32-bit base, 16-bit address
    .short ap_gdt_pointer - ap_trampoline
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xea                        // far jump, 32-bit offset
    .long ap_protected
    .short 24
ap_gdt_pointer:
    .short 31
    .long boot_gdt
    .globl ap_trampoline_end
ap_trampoline_end:

    .section .boot.text, "ax"
    .code32
ap_protected:
    mov eax, 16
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    xchg [AP_TICKET], eax
    test eax, eax
    jz 9f
    mov eax, cr0
    and eax, 0x9fffffff                     // CD and NW, set by INIT
    mov cr0, eax
    mov eax, offset __boot_tables
    mov cr3, eax
    mov eax, cr4
    or eax, 0xa0                            // PGE, PAE
    mov cr4, eax
    mov ecx, 0xc0000080                     // EFER: LME, NXE
    rdmsr
    or eax, 0x900
    wrmsr
    mov eax, cr0
    or eax, 0x80010001                      // PG, WP, PE
    mov cr0, eax
    .byte 0xea
    .long ap_long
    .short 8
9:  cli
    hlt
    jmp 9b

    .code64
ap_long:
    mov eax, 16
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov rax, [AP_CR3]
    mov cr3, rax
    mov rsp, [AP_STACK]
    xor ebp, ebp
    call ap_main
    ud2
