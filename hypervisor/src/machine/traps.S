// Entry of exceptions and interrupts.
//
// 256 stubs of 16 bytes: stub n pushes a zero where the CPU pushes no error code, then n, and joins
// the common path, which saves the general-purpose registers and calls
//   extern "C" fn trap_entry(frame: &mut TrapFrame)
// On entry the CPU has aligned RSP and pushed SS, RSP, RFLAGS, CS, RIP (and an error code): with
// error code, vector and 15 registers that makes 22 words, so RSP is 16-byte aligned at the call.

    .section .text
    .balign 16
    .globl trap_stubs
trap_stubs:
    .set trap_vector, 0
    .rept 256
    .balign 16
    // The CPU pushes an error code for the exceptions 8, 10 to 14, 17, 21, 29 and 30.
    .if (trap_vector > 31) || (((0x60227d00 >> (trap_vector & 31)) & 1) == 0)
    push 0
    .endif
    push trap_vector
    jmp trap_common
    .set trap_vector, trap_vector + 1
    .endr

    .balign 16
trap_common:
    push r15
    push r14
    push r13
    push r12
    push r11
    push r10
    push r9
    push r8
    push rbp
    push rdi
    push rsi
    push rdx
    push rcx
    push rbx
    push rax
    cld
    mov rdi, rsp
    call trap_entry
    pop rax
    pop rbx
    pop rcx
    pop rdx
    pop rsi
    pop rdi
    pop rbp
    pop r8
    pop r9
    pop r10
    pop r11
    pop r12
    pop r13
    pop r14
    pop r15
    add rsp, 16
    iretq
