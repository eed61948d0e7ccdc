// Entry of exceptions and interrupts.
//
// 256 stubs of 16 bytes: stub n pushes a zero where the CPU pushes no error code, then n, and joins
// the common path, which saves the general-purpose registers and calls
//   extern "C" fn trap_entry(frame: &mut TrapFrame)
// On entry the CPU has aligned RSP and pushed SS, RSP, RFLAGS, CS, RIP (and an error code): with
// error code, vector and 15 registers that makes 22 words, so RSP is 16-byte aligned at the call.

    .macro stub_plain vector
    .balign 16
    push 0
    push \vector
    jmp trap_common
    .endm

    .macro stub_error vector
    .balign 16
    push \vector
    jmp trap_common
    .endm

    .section .text
    .balign 16
    .globl trap_stubs
trap_stubs:
    .irp v, 0, 1, 2, 3, 4, 5, 6, 7
    stub_plain \v
    .endr
    stub_error 8
    stub_plain 9
    .irp v, 10, 11, 12, 13, 14
    stub_error \v
    .endr
    .irp v, 15, 16
    stub_plain \v
    .endr
    stub_error 17
    .irp v, 18, 19, 20
    stub_plain \v
    .endr
    stub_error 21
    .irp v, 22, 23, 24, 25, 26, 27, 28
    stub_plain \v
    .endr
    .irp v, 29, 30
    stub_error \v
    .endr
    .irp v, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46
    stub_plain \v
    .endr
    .irp v, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62
    stub_plain \v
    .endr
    .irp v, 63, 64, 65, 66, 67, 68, 69, 70, 71, 72, 73, 74, 75, 76, 77, 78
    stub_plain \v
    .endr
    .irp v, 79, 80, 81, 82, 83, 84, 85, 86, 87, 88, 89, 90, 91, 92, 93, 94
    stub_plain \v
    .endr
    .irp v, 95, 96, 97, 98, 99, 100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 110
    stub_plain \v
    .endr
    .irp v, 111, 112, 113, 114, 115, 116, 117, 118, 119, 120, 121, 122, 123, 124, 125, 126
    stub_plain \v
    .endr
    .irp v, 127, 128, 129, 130, 131, 132, 133, 134, 135, 136, 137, 138, 139, 140, 141, 142
    stub_plain \v
    .endr
    .irp v, 143, 144, 145, 146, 147, 148, 149, 150, 151, 152, 153, 154, 155, 156, 157, 158
    stub_plain \v
    .endr
    .irp v, 159, 160, 161, 162, 163, 164, 165, 166, 167, 168, 169, 170, 171, 172, 173, 174
    stub_plain \v
    .endr
    .irp v, 175, 176, 177, 178, 179, 180, 181, 182, 183, 184, 185, 186, 187, 188, 189, 190
    stub_plain \v
    .endr
    .irp v, 191, 192, 193, 194, 195, 196, 197, 198, 199, 200, 201, 202, 203, 204, 205, 206
    stub_plain \v
    .endr
    .irp v, 207, 208, 209, 210, 211, 212, 213, 214, 215, 216, 217, 218, 219, 220, 221, 222
    stub_plain \v
    .endr
    .irp v, 223, 224, 225, 226, 227, 228, 229, 230, 231, 232, 233, 234, 235, 236, 237, 238
    stub_plain \v
    .endr
    .irp v, 239, 240, 241, 242, 243, 244, 245, 246, 247, 248, 249, 250, 251, 252, 253, 254
    stub_plain \v
    .endr
    stub_plain 255

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
