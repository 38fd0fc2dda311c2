//! The devices that every PC has: what firmware and old systems look for.

use std::sync::Arc;

use kvm_ioctls::VmFd;
use thiserror::Error;

use super::state::VmState;
use super::wiring::KvmIrqLine;
use crate::arch::x86_64::layout;
use crate::boot::BootResources;
use crate::bus::{Bus, BusError};
use crate::devices::chardev::Chardev;
use crate::devices::pci::bus::{PciBus, PciBusError};
use crate::devices::serial::Serial;
use crate::memory::GuestMemory;
use crate::state::{Section, StateError};

/// Why the fixed devices cannot be set up.
#[derive(Debug, Error)]
pub enum PlatformError {
    /// Two devices claim the same address.
    #[error("the machine's fixed devices overlap")]
    Bus(#[from] BusError),
    /// Two functions claim the same PCI slot.
    #[error("two PCI functions claim the same slot")]
    Pci(#[from] PciBusError),
}

/// The machine's fixed devices.
pub(super) struct Platform {
    /// The first serial port.
    serial: Arc<Serial>,
    /// What stands behind it on the host.
    pub serial_host: Arc<Chardev>,
    /// Where PCI functions are inserted.
    pub pci: Arc<PciBus>,
}

impl Platform {
    /// Puts the fixed devices on the buses.
    pub fn new(
        vm: &Arc<VmFd>,
        ports: &Bus,
        serial_host: Arc<Chardev>,
    ) -> Result<Self, PlatformError> {
        let irq = KvmIrqLine::new(vm, layout::IRQ_SERIAL);
        let serial = Serial::new(irq, Arc::clone(&serial_host));
        ports.insert(layout::PORT_SERIAL, 8, Arc::clone(&serial) as _)?;
        let pci = Arc::new(PciBus::new(None));
        ports.insert(layout::PORT_PCI_CONFIG, 8, Arc::clone(&pci) as _)?;
        Ok(Self {
            serial,
            serial_host,
            pci,
        })
    }

    /// Writes the ACPI tables for direct boot; where their root pointer is.
    pub fn write_tables(&self, _memory: &GuestMemory, _boot: &BootResources) -> Option<u64> {
        None
    }

    /// Presses the ACPI power button.
    pub fn press_power_button(&self) {}

    /// All devices as after power-on.
    pub fn reset(&self) {
        self.serial.reset();
        self.pci.reset();
    }

    /// State of all of them.
    pub fn save(&self) -> Result<Vec<Section>, StateError> {
        Ok(vec![
            self.serial.save()?,
            self.serial_host.save("serial")?,
            self.pci.save()?,
        ])
    }

    /// Takes what [`Self::save`] gave.
    pub fn restore(&self, state: &VmState) -> Result<(), StateError> {
        self.serial.restore(state.section("serial", "")?)?;
        self.serial_host
            .restore(state.section("chardev", "serial")?)?;
        self.pci.restore(state.section("pci-bus", "")?)
    }
}
