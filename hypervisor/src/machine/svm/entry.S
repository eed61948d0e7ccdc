// One run of an SVM guest.
//   unsafe extern "C" fn svm_run(guest_vmcb: u64, regs: *mut GuestRegs, host_vmcb: u64)
//
// needs: RDI, RDX physical addresses of control blocks, RSI the registers in GuestRegs order
//        (RAX travels in the control block), interrupts off, GIF set.
// clobbers: everything the System V ABI lets a callee clobber.
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
    push r12
    push r13
    push r14
    push r15
    push rdx
    push rsi
    mov rax, rdi
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
    pop rax
    vmload rax
    cli
    stgi
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    ret
    .size svm_run, . - svm_run
