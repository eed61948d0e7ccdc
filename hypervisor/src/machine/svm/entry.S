// One run of an SVM guest.
//
// needs: RAX, RDX physical addresses of control blocks, guest and host; RSI the registers in
//        GuestRegs order (RAX travels in the control block), interrupts off, GIF set.
// returns: RSI as it was.
// clobbers: the flags and every other general-purpose register but RBX, RBP and RSP. This is not the C ABI;
//        the Rust side (`enter`) lists the same registers.
//
// GIF is clear from before the guest's state is loaded until the host's is back; RFLAGS.IF is
// set meanwhile, because with virtual interrupt masking the host's IF decides whether a
// physical interrupt ends the run. FS, GS, TR, LDTR and the system-call MSRs are swapped by
// VMLOAD and VMSAVE. Stack: [rsp] regs, [rsp+8] host_vmcb.

    .section .text
    .balign 16
    .globl svm_run
    .type svm_run, @function
svm_run:
    push rbp
    push rbx
    push rdx
    push rsi
    clgi
    sti
    vmload rax
    mov rbx, [rsi + {rbx}]
    mov rcx, [rsi + {rcx}]
    mov rdx, [rsi + {rdx}]
    mov rdi, [rsi + {rdi}]
    mov rbp, [rsi + {rbp}]
    mov r8, [rsi + {r8}]
    mov r9, [rsi + {r9}]
    mov r10, [rsi + {r10}]
    mov r11, [rsi + {r11}]
    mov r12, [rsi + {r12}]
    mov r13, [rsi + {r13}]
    mov r14, [rsi + {r14}]
    mov r15, [rsi + {r15}]
    mov rsi, [rsi + {rsi}]
    vmrun rax
    vmsave rax
    pop rax
    mov [rax + {rbx}], rbx
    mov [rax + {rcx}], rcx
    mov [rax + {rdx}], rdx
    mov [rax + {rsi}], rsi
    mov [rax + {rdi}], rdi
    mov [rax + {rbp}], rbp
    mov [rax + {r8}], r8
    mov [rax + {r9}], r9
    mov [rax + {r10}], r10
    mov [rax + {r11}], r11
    mov [rax + {r12}], r12
    mov [rax + {r13}], r13
    mov [rax + {r14}], r14
    mov [rax + {r15}], r15
    mov rsi, rax
    pop rax
    vmload rax
    cli
    stgi
    pop rbx
    pop rbp
    ret
    .size svm_run, . - svm_run
