# Ring 0 from the first instruction to ring 3, and the few handlers that stay behind.
#
# Some hosts emulate ring 0 instruction by instruction, so there are only a few dozen of them:
# all tables that can be are baked into the image, the rest is filled from ring 3, which may
# write everywhere.

.set SERIAL, 0x3f8
.set CODE0, 0x08
.set DATA0, 0x10
.set DATA3, 0x18 | 3
.set CODE3, 0x20 | 3
.set CODE32, 0x28
.set TSS0, 0x30                 # vCPU n has the descriptor at TSS0 + 16 n
.set CPUS_MAX, 64
.set TSS_STRIDE, 128
.set TRAMPOLINE, 0x8000

.section .note.pvh,"a",@note
.balign 4
 .long 4, 8, 18                 # XEN_ELFNOTE_PHYS32_ENTRY
 .asciz "Xen"
 .quad pvh_entry

.section .boot,"awx",@progbits

# PVH: 32-bit protected mode, no paging, ebx = hvm_start_info.
.code32
.globl pvh_entry
pvh_entry:
 cli
 mov $SERIAL,%edx
 mov $'{',%al                   # the first byte of the first line says that the guest runs
 out %al,%dx
 mov %ebx,%esi
 mov $1,%edi
 mov $common,%ebp
                                # falls through

# Long mode from 32-bit protected mode, then a jump to rbp.
enter_long_mode:
 mov $0x620,%eax                # PAE | OSFXSR | OSXMMEXCPT; no SMEP, no SMAP: all pages are user's
 mov %eax,%cr4
 mov $pml4,%eax
 mov %eax,%cr3
 mov $0xc0000080,%ecx           # EFER
 rdmsr
 or $0x100,%eax                 # LME
 wrmsr
 lgdt gdtr
 mov %cr0,%eax
 and $~0x6000000c,%eax          # CD, NW, TS, EM off
 or $0x80000003,%eax            # PG | MP | PE
 mov %eax,%cr0
 ljmp $CODE0,$1f
.code64
1:
 jmp *%rbp

# 64-bit Linux boot protocol: long mode, identity map, rsi = boot_params.
.globl linux64_entry
linux64_entry:
 cli
 mov $SERIAL,%edx
 mov $'{',%al
 out %al,%dx
 mov $0x620,%eax
 mov %rax,%cr4
 mov $pml4,%eax
 mov %rax,%cr3
 mov %cr0,%rax
 and $~0xc,%eax
 or $2,%eax
 mov %rax,%cr0
 lgdt gdtr
 mov $2,%edi
                                # falls through

# First vCPU: edi = protocol, rsi = its structure.
common:
 lidt idtr
 mov $DATA0,%eax
 mov %eax,%ds
 mov %eax,%es
 mov %eax,%ss
 mov $boot_stack_top,%esp
 mov $tss,%eax                  # the descriptor's base, which no relocation can split
 mov %ax,gdt+TSS0+2
 shr $16,%eax
 mov %al,gdt+TSS0+4
 mov %ah,gdt+TSS0+7
 mov $TSS0,%eax
 ltr %ax

# CPUID as the guest is meant to see it: in ring 3 some hosts do not intercept the instruction.
 mov $cpuid_answers,%ebp
2:
 mov (%rbp),%eax
 xor %ecx,%ecx
 cpuid
 mov %eax,4(%rbp)
 mov %ebx,8(%rbp)
 mov %ecx,12(%rbp)
 mov %edx,16(%rbp)
 add $20,%ebp
 cmp $cpuid_answers_end,%ebp
 jne 2b

 pushq $DATA3
 pushq $user_stack_top
 pushq $0x3002                  # interrupts off; IOPL 3, should it survive
 pushq $CODE3
 pushq $first_ring3
 iretq

# Further vCPUs start here, copied to TRAMPOLINE, in real mode.
.code16
.globl trampoline
trampoline:
 cli
 xor %eax,%eax
 mov %ax,%ds
 lgdtl TRAMPOLINE + trampoline_gdtr - trampoline
 mov %cr0,%eax
 or $1,%eax
 mov %eax,%cr0
 ljmpl $CODE32,$further32
.balign 4
trampoline_gdtr:
 .word gdt_end - gdt - 1
 .long gdt
.globl trampoline_end
trampoline_end:

.code32
further32:
 mov $DATA0,%eax
 mov %eax,%ds
 mov %eax,%es
 mov %eax,%ss
 mov $further,%ebp
 jmp enter_long_mode

.code64
further:
 lidt idtr
 mov $1,%edi
 lock xadd %edi,further_cpus    # edi = this vCPU's number - 1
 inc %edi
 cmp further_cpus_max,%edi
 ja 3f
 mov %edi,%eax
 shl $4,%eax
 add $TSS0,%eax
 ltr %ax
 mov %edi,%ebx
 shl $9,%ebx
 lea ring0_stacks(%rbx),%esp    # the one below: 512 bytes for each vCPU
 add $512,%esp
 pushq $DATA3
 pushq further_stacks(,%rdi,8)
 pushq $0x3002
 pushq $CODE3
 pushq $further_main
 iretq
3:
 cli
 hlt
 jmp 3b

# The handlers. An error code is on the stack of #GP.
.globl vector_general_protection
vector_general_protection:
 cmpq $sleep_hlt,8(%rsp)
 jne 4f
 add $8,%rsp
 incq (%rsp)                    # past the hlt
 sti
 hlt
 cli
 iretq
4:
 pushq $13
 jmp fatal

# Out of the hlt above and straight back to ring 3, which acknowledges the interrupt.
.globl vector_timer
vector_timer:
 mov 24(%rsp),%rsp
 iretq

.globl vector_other
vector_other:
 iretq

# Exceptions 0 to 31, 16 bytes each: vector and error code go to ring 3 for the report.
.balign 16
.globl vector_exceptions
vector_exceptions:
.set N, 0
.rept 32
 .balign 16
 .if (N == 8) || (N >= 10 && N <= 14) || (N == 17) || (N == 21)
 .else
 pushq $0
 .endif
 pushq $N
 jmp fatal
 .set N, N + 1
.endr
.balign 16
fatal:
 pop %rdi
 pop %rsi
 mov (%rsp),%rdx
 mov %cr2,%rcx
 movq $exception_main,(%rsp)
 movq $CODE3,8(%rsp)
 movq $exception_stack_top - 8,24(%rsp)
 movq $DATA3,32(%rsp)
 iretq

# Ring 3 begins: a machine that was reset has its old RAM still.
.section .text.first,"ax",@progbits
first_ring3:
 mov %edi,%r8d
 mov $__bss_start,%edi
 mov $__bss_end,%ecx
 sub %edi,%ecx
 xor %eax,%eax
 rep stosb
 mov %r8d,%edi
 jmp first_main

# Ring 3: the only hlt, on purpose; #GP sleeps in its place until the next interrupt.
.section .text.sleep,"ax",@progbits
.globl sleep_until_interrupt
sleep_until_interrupt:
sleep_hlt:
 hlt
 ret

.section .data.boot,"aw",@progbits
.balign 16
.globl gdt
gdt:
 .quad 0
 .quad 0x00af9b000000ffff       # CODE0
 .quad 0x00cf93000000ffff       # DATA0
 .quad 0x00cff3000000ffff       # DATA3
 .quad 0x00affb000000ffff       # CODE3
 .quad 0x00cf9b000000ffff       # CODE32
 .quad 0x0000890000000000 | (((TSS_STRIDE * CPUS_MAX + 8192) >> 16) << 48) | ((TSS_STRIDE * CPUS_MAX + 8192) & 0xffff)
 .quad 0
 .skip 16 * (CPUS_MAX - 1)
gdt_end:
gdtr:
 .word gdt_end - gdt - 1
 .quad gdt
idtr:
 .word 256 * 16 - 1
 .quad idt

.balign 8
.globl cpuid_answers
cpuid_answers:                  # leaf, then eax, ebx, ecx, edx
 .long 0x00000000, 0, 0, 0, 0
 .long 0x00000015, 0, 0, 0, 0
 .long 0x00000016, 0, 0, 0, 0
 .long 0x40000000, 0, 0, 0, 0
 .long 0x40000010, 0, 0, 0, 0
cpuid_answers_end:

.globl further_cpus, further_cpus_max
further_cpus: .long 0
further_cpus_max: .long 0

# The first 4 GiB, identity, 2 MiB pages, all with the user bit; nothing to do at run time.
.section .tables,"aw",@progbits
.globl pml4, pdpt
pml4:
 .quad pdpt + 7
 .skip 4096 - 8
pdpt:
 .quad pd + 0x0007
 .quad pd + 0x1007
 .quad pd + 0x2007
 .quad pd + 0x3007
 .skip 4096 - 32
pd:
.set N, 0
.rept 2048
 .quad N * 0x200000 + 0x87      # present | write | user | page size
 .set N, N + 1
.endr

# One TSS of 128 bytes for each vCPU, then the I/O permission bitmap that they share, all zero.
.globl tss
tss:
.set N, 0
.rept CPUS_MAX
 .long 0
 .quad ring0_stacks + (N + 1) * 512
 .skip 102 - 12
 .word TSS_STRIDE * (CPUS_MAX - N)
 .skip TSS_STRIDE - 104
 .set N, N + 1
.endr
 .skip 8192
 .byte 0xff

# Not cleared: written before it is read.
.section .noinit,"aw",@nobits
.balign 4096
.globl idt
idt: .skip 4096
.globl further_stacks
further_stacks: .skip 8 * CPUS_MAX
.balign 16
ring0_stacks: .skip 512 * CPUS_MAX
boot_stack: .skip 512
boot_stack_top:
.skip 16384
exception_stack_top:
.skip 131072
user_stack_top_aligned:
.set user_stack_top, user_stack_top_aligned - 8
