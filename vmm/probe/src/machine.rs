//! The instructions and registers that Rust has no words for.

use core::arch::asm;

/// Cycles of this vCPU's time stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: RDTSC has no preconditions in ring 3 while CR4.TSD is clear, as the entry leaves it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Writes a byte to an I/O port.
pub fn out8(port: u16, value: u8) {
    // SAFETY: the guest owns the machine; the permission bitmap allows every port.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) }
}

/// Writes 16 bits to an I/O port.
pub fn out16(port: u16, value: u16) {
    // SAFETY: as `out8`.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nostack, preserves_flags)) }
}

/// Writes 32 bits to an I/O port.
pub fn out32(port: u16, value: u32) {
    // SAFETY: as `out8`.
    unsafe {
        asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags));
    }
}

/// Reads a byte from an I/O port.
pub fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: as `out8`.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack, preserves_flags)) }
    value
}

/// Reads 32 bits from an I/O port.
pub fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: as `out8`.
    unsafe {
        asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack, preserves_flags));
    }
    value
}

/// Raises #UD.
pub fn undefined() {
    // SAFETY: the handler never returns here.
    unsafe { asm!("ud2", options(nostack)) }
}

/// Device registers in memory.
#[derive(Clone, Copy, Debug)]
pub struct Registers {
    base: usize,
    len: usize,
}

impl Registers {
    /// Registers at `base`, `len` bytes long.
    ///
    /// # Safety
    /// The range is mapped and is a device's, not memory that Rust knows.
    pub const unsafe fn new(base: u64, len: u64) -> Self {
        Self {
            base: base as usize,
            len: len as usize,
        }
    }

    /// A part of them.
    pub fn part(&self, offset: u64, len: u64) -> Option<Self> {
        let end = offset.checked_add(len)?;
        (end <= self.len as u64).then_some(Self {
            base: self.base + offset as usize,
            len: len as usize,
        })
    }

    fn at<T>(&self, offset: usize) -> *mut T {
        assert!(offset + size_of::<T>() <= self.len, "register out of range");
        (self.base + offset) as *mut T
    }

    /// Reads 8 bits.
    pub fn read8(&self, offset: usize) -> u8 {
        // SAFETY: `new` demands the range, `at` keeps to it.
        unsafe { self.at::<u8>(offset).read_volatile() }
    }

    /// Reads 16 bits.
    pub fn read16(&self, offset: usize) -> u16 {
        // SAFETY: as `read8`.
        unsafe { self.at::<u16>(offset).read_volatile() }
    }

    /// Reads 32 bits.
    pub fn read32(&self, offset: usize) -> u32 {
        // SAFETY: as `read8`.
        unsafe { self.at::<u32>(offset).read_volatile() }
    }

    /// Writes 8 bits.
    pub fn write8(&self, offset: usize, value: u8) {
        // SAFETY: as `read8`.
        unsafe { self.at::<u8>(offset).write_volatile(value) }
    }

    /// Writes 16 bits.
    pub fn write16(&self, offset: usize, value: u16) {
        // SAFETY: as `read8`.
        unsafe { self.at::<u16>(offset).write_volatile(value) }
    }

    /// Writes 32 bits.
    pub fn write32(&self, offset: usize, value: u32) {
        // SAFETY: as `read8`.
        unsafe { self.at::<u32>(offset).write_volatile(value) }
    }
}
