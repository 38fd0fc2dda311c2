//! What the compiler expects of a C library, and what it calls when the guest is at its end.

use core::arch::asm;
use core::panic::PanicInfo;

use crate::end;
use crate::serial::Direct;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    end::fail(&mut Direct, info.message())
}

/// Ring 3 continues here after an exception.
#[unsafe(no_mangle)]
extern "C" fn exception_main(vector: u64, code: u64, rip: u64, cr2: u64) -> ! {
    end::fail(
        &mut Direct,
        format_args!("exception {vector} code {code:#x} rip {rip:#x} cr2 {cr2:#x}"),
    )
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller gives two ranges of `len` bytes that do not overlap.
    unsafe {
        asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= len {
        // SAFETY: going up, no byte is overwritten before it is read.
        return unsafe { memcpy(to, from, len) };
    }
    // SAFETY: `to` lies above `from` inside its range: going down is safe. DF is restored.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") len => _,
            inout("rdi") to.wrapping_add(len).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(len).wrapping_sub(1) => _, options(nostack));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller gives a range of `len` bytes.
    unsafe {
        asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") value as u8,
            options(nostack, preserves_flags));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, len: usize) -> i32 {
    for offset in 0..len {
        // SAFETY: the caller gives two ranges of `len` bytes.
        let left = unsafe { left.wrapping_add(offset).read_volatile() };
        // SAFETY: as above.
        let right = unsafe { right.wrapping_add(offset).read_volatile() };
        if left != right {
            return i32::from(left) - i32::from(right);
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, len: usize) -> i32 {
    // SAFETY: the caller promises what `memcmp` wants.
    unsafe { memcmp(left, right, len) }
}
