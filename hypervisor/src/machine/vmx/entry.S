// One run of a VT-x guest.
//
// needs: the vCPU's VMCS current; RDI the registers in GuestRegs order; RSI where the value of the
//        VMCS's host RSP is remembered, so that it is written only when it changes; RDX whether
//        the VMCS has been launched since it was cleared; interrupts off; HOST_RIP = vmx_exit.
// returns: RAX 0 after an exit (also one that reports a failed entry), 1 if the instruction itself
//        failed and the guest did not run.
// clobbers: the flags and every general-purpose register but RBX, RBP and RSP. This is not the C ABI;
//        the Rust side (`enter`) lists the same registers.
//
// The exit restores RSP to what it was at the entry, so both ends see one stack: [rsp] is regs,
// above it RBX and RBP.

    .section .text
    .balign 16
    .globl vmx_run
    .type vmx_run, @function
vmx_run:
    push rbp
    push rbx
    push rdi
    cmp [rsi], rsp
    je 1f
    mov eax, {host_rsp}
    vmwrite rax, rsp
    mov [rsi], rsp
1:  test rdx, rdx
    // No instruction from here to the entry changes the flags.
    mov rax, [rdi + {rax}]
    mov rbx, [rdi + {rbx}]
    mov rcx, [rdi + {rcx}]
    mov rdx, [rdi + {rdx}]
    mov rsi, [rdi + {rsi}]
    mov rbp, [rdi + {rbp}]
    mov r8, [rdi + {r8}]
    mov r9, [rdi + {r9}]
    mov r10, [rdi + {r10}]
    mov r11, [rdi + {r11}]
    mov r12, [rdi + {r12}]
    mov r13, [rdi + {r13}]
    mov r14, [rdi + {r14}]
    mov r15, [rdi + {r15}]
    mov rdi, [rdi + {rdi}]
    jz 2f
    vmresume
    jmp 3f
2:  vmlaunch
    // Only a failed instruction goes on here; the guest's registers are unchanged in memory.
3:  add rsp, 8
    mov eax, 1
    jmp 4f
    .size vmx_run, . - vmx_run

    .balign 16
    .globl vmx_exit
    .type vmx_exit, @function
vmx_exit:
    push rdi
    mov rdi, [rsp + 8]
    mov [rdi + {rax}], rax
    pop rax
    mov [rdi + {rdi}], rax
    mov [rdi + {rbx}], rbx
    mov [rdi + {rcx}], rcx
    mov [rdi + {rdx}], rdx
    mov [rdi + {rsi}], rsi
    mov [rdi + {rbp}], rbp
    mov [rdi + {r8}], r8
    mov [rdi + {r9}], r9
    mov [rdi + {r10}], r10
    mov [rdi + {r11}], r11
    mov [rdi + {r12}], r12
    mov [rdi + {r13}], r13
    mov [rdi + {r14}], r14
    mov [rdi + {r15}], r15
    add rsp, 8
    xor eax, eax
4:  pop rbx
    pop rbp
    ret
    .size vmx_exit, . - vmx_exit
