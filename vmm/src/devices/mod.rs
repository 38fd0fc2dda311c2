//! The devices of the machine, and what they may ask of it.
//!
//! A device knows guest memory, its interrupt and its host file descriptors; it does not know
//! KVM, the VM that holds it or the configuration that it came from.

pub mod acpi_pm;
pub mod chardev;
pub mod diagnostic;
#[cfg(test)]
pub(crate) mod fake;
pub mod fw_cfg;
pub mod i8042;
pub mod pci;
pub mod reset_control;
pub mod rtc;
pub mod serial;
pub mod virtio;

/// What a device may ask of the machine that it is part of. Callable from any thread; the
/// machine acts later, on its own thread.
pub trait MachineControl: Send + Sync {
    /// The guest asked for a reset.
    fn request_reset(&self);
    /// The guest switched itself off (ACPI S5).
    fn request_power_off(&self);
    /// The guest cannot go on until somebody has looked: `device` could not do a request, for
    /// `reason`; `no_space` if only for want of space. The machine pauses.
    fn request_pause(&self, device: &str, reason: &str, no_space: bool);
}

/// An interrupt line into the interrupt controller (a GSI below 24).
pub trait IrqLine: Send + Sync {
    /// Sets the level of the line.
    fn set(&self, asserted: bool);
    /// One edge.
    fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}
