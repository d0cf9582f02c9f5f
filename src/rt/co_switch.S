/* SPDX-License-Identifier: MIT
 *
 * co_switch.S: the context switch.
 *
 *     void rt_co_switch(void **save_sp, void *to_sp)    saves the callee-saved registers on the current stack, stores
 *                                                       the stack pointer in *save_sp, goes on at to_sp
 *     rt_co_entry                                       first code of a new stack (see co.c, prepare_stack)
 *
 * The floating point control words are not switched: nothing here changes them. This file carries no
 * shadow-stack note, so a program that contains it runs without shadow stacks.
 */
#if defined(__x86_64__)

    .text
    .globl rt_co_switch
    .hidden rt_co_switch
    .type rt_co_switch, @function
    .p2align 4
rt_co_switch:
    .cfi_startproc
    popq %rdx                   /* return address: jumped to, so that the predictor of indirect jumps learns it */
    .cfi_adjust_cfa_offset -8
    .cfi_register %rip, %rdx
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    pushq %rdx
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %rdx
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    jmp *%rdx
    .cfi_endproc
    .size rt_co_switch, . - rt_co_switch

    .globl rt_co_entry
    .hidden rt_co_entry
    .type rt_co_entry, @function
    .p2align 4
rt_co_entry:
    .cfi_startproc
    .cfi_undefined %rip         /* outermost frame */
    movq %r12, %rdi
    callq *%rbx
    ud2
    .cfi_endproc
    .size rt_co_entry, . - rt_co_entry

#elif defined(__aarch64__)

    .text
    .globl rt_co_switch
    .hidden rt_co_switch
    .type rt_co_switch, %function
    .p2align 4
rt_co_switch:
    .cfi_startproc
    sub sp, sp, #160
    .cfi_adjust_cfa_offset 160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    .cfi_adjust_cfa_offset -160
    ret
    .cfi_endproc
    .size rt_co_switch, . - rt_co_switch

    .globl rt_co_entry
    .hidden rt_co_entry
    .type rt_co_entry, %function
    .p2align 4
rt_co_entry:
    .cfi_startproc
    .cfi_undefined x30          /* outermost frame */
    mov x0, x19
    blr x20
    brk #1
    .cfi_endproc
    .size rt_co_entry, . - rt_co_entry

#endif
    .section .note.GNU-stack, "", %progbits
