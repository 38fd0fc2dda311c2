//! The chipset as functions of bus 0, as far as firmware and old systems look at it: i440FX's
//! host bridge (82441FX datasheet), PIIX3's ISA bridge (82371SB) and PIIX4's power management
//! (82371AB).
//!
//! There is no SMBus: its base and enable registers cannot be written, so that no driver waits
//! for it. The memory that firmware shadows itself into (0xC0000 to 0xFFFFF) is always RAM here, so the
//! host bridge's PAM registers keep what is written and change nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};

use super::PciFunction;
use super::config::{ConfigSpace, ConfigState};
use crate::arch::x86_64::layout;
use crate::bus::{Bus, BusDevice};
use crate::devices::acpi_pm::{self, AcpiPm};
use crate::state::{Section, StateError};

const INTEL: u16 = 0x8086;
/// Subsystem by which firmware knows an emulated chipset.
const SUBSYSTEM: (u16, u16) = (0x1af4, 0x1100);
const CLASS_HOST_BRIDGE: u32 = 0x06_0000;
const CLASS_ISA_BRIDGE: u32 = 0x06_0100;
const CLASS_OTHER_BRIDGE: u32 = 0x06_8000;

/// Host bridge: PAM0 to PAM6 (section 3.2.18). They start as a PC's do, with ROM in all of the
/// area: firmware then copies itself there, and more of itself than the mirror has.
const PAM: usize = 0x59;
/// Host bridge: SMRAM control.
const SMRAM: usize = 0x72;

/// ISA bridge: PIRQ routes (section 2.2.12); the top bit disables.
const PIRQ_ROUTES: usize = 0x60;
const PIRQ_DISABLED: u8 = 0x80;

/// Power management: base of its ports (section 7.1.15), and whether they answer.
const PM_BASE: usize = 0x40;
const PM_BASE_BITS: u32 = 0xffc0;
const PM_BASE_IS_IO: u32 = 1;
const PM_MISC: usize = 0x80;
const PM_IO_ENABLE: u8 = 1 << 0;
/// Power management: firmware that finds SMIs enabled here does not set them up.
const DEVICE_ACTIVITY_B: usize = 0x58;
const APMC_SMI_ENABLE: u32 = 1 << 25;
/// Interrupt pin A, which is the SCI's, not a PCI interrupt.
const INTERRUPT_PIN_A: u8 = 1;

const VERSION: u16 = 1;

fn function(device: u16, class: u32, revision: u8) -> ConfigSpace {
    let mut config = ConfigSpace::new(INTEL, device, class, revision);
    config.set_subsystem(SUBSYSTEM.0, SUBSYSTEM.1);
    config
}

fn host_bridge() -> ConfigSpace {
    let mut config = function(0x1237, CLASS_HOST_BRIDGE, 2);
    config.allow(PAM, &[0x33; 7]);
    config.set(SMRAM, &[0x02]);
    config.allow(SMRAM, &[0x78]);
    config
}

fn isa_bridge() -> ConfigSpace {
    let mut config = function(0x7000, CLASS_ISA_BRIDGE, 0);
    config.set(PIRQ_ROUTES, &[PIRQ_DISABLED; 4]);
    config.allow(PIRQ_ROUTES, &[0x8f; 4]);
    config
}

fn power_management() -> ConfigSpace {
    let mut config = function(0x7113, CLASS_OTHER_BRIDGE, 3);
    config.set(0x3c, &[layout::IRQ_SCI as u8, INTERRUPT_PIN_A]);
    // A kernel that is loaded directly finds the ports where the FADT says.
    let base = layout::PORT_ACPI_PM as u32 | PM_BASE_IS_IO;
    config.set(PM_BASE, &base.to_le_bytes());
    config.allow(PM_BASE, &PM_BASE_BITS.to_le_bytes());
    config.set(PM_MISC, &[PM_IO_ENABLE]);
    config.allow(PM_MISC, &[PM_IO_ENABLE]);
    config.set(DEVICE_ACTIVITY_B, &APMC_SMI_ENABLE.to_le_bytes());
    config
}

/// A bridge that has registers and nothing behind them.
pub struct Bridge {
    kind: &'static str,
    new: fn() -> ConfigSpace,
    config: Mutex<ConfigSpace>,
}

impl Bridge {
    /// i440FX's host bridge, for slot [`layout::SLOT_HOST_BRIDGE`].
    pub fn host() -> Self {
        Self::new("i440fx", host_bridge)
    }

    /// PIIX3's ISA bridge, for slot [`layout::SLOT_ISA`], function 0.
    pub fn isa() -> Self {
        Self::new("piix3-isa", isa_bridge)
    }

    fn new(kind: &'static str, new: fn() -> ConfigSpace) -> Self {
        Self {
            kind,
            new,
            config: Mutex::new(new()),
        }
    }

    /// Power-on state.
    pub fn reset(&self) {
        *lock(&self.config) = (self.new)();
    }

    /// All registers.
    ///
    /// # Errors
    /// [`StateError::Body`] if they cannot be encoded.
    pub fn save(&self) -> Result<Section, StateError> {
        Section::new(self.kind, "", VERSION, &lock(&self.config).save())
    }

    /// Takes what [`Self::save`] gave.
    ///
    /// # Errors
    /// [`StateError`] if the section is not one of ours.
    pub fn restore(&self, section: &Section) -> Result<(), StateError> {
        if section.kind != self.kind {
            return Err(section.invalid(format!("not the {}'s", self.kind)));
        }
        let state: ConfigState = section.parse(VERSION)?;
        lock(&self.config).restore(&state);
        Ok(())
    }
}

impl PciFunction for Bridge {
    fn config_read(&self, offset: u8, data: &mut [u8]) {
        lock(&self.config).read(offset, data);
    }

    fn config_write(&self, offset: u8, data: &[u8]) {
        lock(&self.config).write(offset, data);
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct PowerManagementState {
    config: ConfigState,
    apm: [u8; 2],
}

struct Inner {
    config: ConfigSpace,
    /// Where the block's ports are now.
    mapped: Option<u64>,
    /// APM control and status: memory, as there is no system management mode to call.
    apm: [u8; 2],
}

/// PIIX4's power management, for slot [`layout::SLOT_ISA`], function 3. It puts the ACPI block
/// on the port bus, where the guest says.
pub struct PowerManagement {
    inner: Mutex<Inner>,
    block: Arc<AcpiPm>,
    /// Not owned: the bus owns the PCI bus and so this.
    ports: Weak<Bus>,
}

impl PowerManagement {
    const KIND: &str = "piix4-pm";

    /// Puts `block` on `ports` at its first place, [`layout::PORT_ACPI_PM`].
    pub fn new(block: Arc<AcpiPm>, ports: &Arc<Bus>) -> Self {
        let inner = Inner {
            config: power_management(),
            mapped: None,
            apm: [0; 2],
        };
        let device = Self {
            inner: Mutex::new(inner),
            block,
            ports: Arc::downgrade(ports),
        };
        device.map(&mut lock(&device.inner));
        device
    }

    /// Power-on state: the block is back at its first place. The block's own registers are
    /// reset by who owns it.
    pub fn reset(&self) {
        let mut inner = lock(&self.inner);
        inner.config = power_management();
        inner.apm = [0; 2];
        self.map(&mut inner);
    }

    /// All registers.
    ///
    /// # Errors
    /// [`StateError::Body`] if they cannot be encoded.
    pub fn save(&self) -> Result<Section, StateError> {
        let inner = lock(&self.inner);
        let state = PowerManagementState {
            config: inner.config.save(),
            apm: inner.apm,
        };
        Section::new(Self::KIND, "", VERSION, &state)
    }

    /// Takes what [`Self::save`] gave, and moves the block to where it was.
    ///
    /// # Errors
    /// [`StateError`] if the section is not one of ours.
    pub fn restore(&self, section: &Section) -> Result<(), StateError> {
        if section.kind != Self::KIND {
            return Err(section.invalid("not the power management's"));
        }
        let state: PowerManagementState = section.parse(VERSION)?;
        let mut inner = lock(&self.inner);
        inner.config.restore(&state.config);
        inner.apm = state.apm;
        self.map(&mut inner);
        Ok(())
    }

    /// Moves the block to where the registers say. Where another device answers already, the
    /// block does not: a guest that does this has lost it until it chooses another place.
    fn map(&self, inner: &mut Inner) {
        let base = u64::from(inner.config.dword(PM_BASE) & PM_BASE_BITS);
        let enabled = inner.config.dword(PM_MISC) & u32::from(PM_IO_ENABLE) != 0;
        let wanted = enabled.then_some(base);
        let Some(ports) = self.ports.upgrade().filter(|_| wanted != inner.mapped) else {
            return;
        };
        if let Some(old) = inner.mapped.take() {
            ports.remove(old);
        }
        let Some(base) = wanted else {
            return;
        };
        let block: Arc<dyn BusDevice> = self.block.clone();
        match ports.insert(base, acpi_pm::PORTS, block) {
            Ok(()) => inner.mapped = Some(base),
            Err(error) => tracing::warn!(%error, "the guest moved the ACPI ports onto others"),
        }
    }
}

impl PciFunction for PowerManagement {
    fn config_read(&self, offset: u8, data: &mut [u8]) {
        lock(&self.inner).config.read(offset, data);
    }

    fn config_write(&self, offset: u8, data: &[u8]) {
        let mut inner = lock(&self.inner);
        inner.config.write(offset, data);
        self.map(&mut inner);
    }
}

/// APM control and status, ports [`layout::PORT_APM`] and the next.
pub struct ApmPorts(pub Arc<PowerManagement>);

impl ApmPorts {
    /// Ports that the device takes.
    pub const PORTS: u64 = 2;
}

impl BusDevice for ApmPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let apm = lock(&self.0.inner).apm;
        for (byte, &value) in data.iter_mut().zip(apm.iter().skip(offset as usize)) {
            *byte = value;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let apm = &mut lock(&self.0.inner).apm;
        for (register, &byte) in apm.iter_mut().skip(offset as usize).zip(data) {
            *register = byte;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::devices::fake::{FakeControl, FakeLine};

    fn fixture() -> (Arc<Bus>, PowerManagement) {
        let ports = Arc::new(Bus::default());
        let block = Arc::new(AcpiPm::new(
            Arc::new(FakeLine::default()),
            Arc::new(FakeControl::default()),
        ));
        let device = PowerManagement::new(block, &ports);
        (ports, device)
    }

    fn dword(function: &dyn PciFunction, offset: u8) -> u32 {
        let mut data = [0; 4];
        function.config_read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn answers(ports: &Bus, port: u64) -> bool {
        ports.read(port, &mut [0; 2])
    }

    #[test]
    fn chipset_is_what_firmware_looks_for() {
        assert_eq!(dword(&Bridge::host(), 0), 0x1237_8086);
        assert_eq!(dword(&Bridge::host(), 0x2c), 0x1100_1af4);
        assert_eq!(dword(&Bridge::isa(), 0), 0x7000_8086);
        let (_, power_management) = fixture();
        assert_eq!(dword(&power_management, 0), 0x7113_8086);
        assert_ne!(dword(&power_management, 0x58) & APMC_SMI_ENABLE, 0);
    }

    #[test]
    fn pam_registers_keep_what_firmware_writes() {
        let bridge = Bridge::host();
        assert_eq!(dword(&bridge, 0x58), 0);
        bridge.config_write(0x58, &[0, 0x10, 0x11, 0x31]);
        assert_eq!(dword(&bridge, 0x58), 0x3111_1000);
        bridge.reset();
        assert_eq!(dword(&bridge, 0x58), 0);
    }

    #[test]
    fn block_follows_its_base_register() {
        let (ports, device) = fixture();
        assert!(answers(&ports, layout::PORT_ACPI_PM));
        device.config_write(0x40, &0xb001_u32.to_le_bytes());
        assert!(answers(&ports, 0xb000));
        assert!(!answers(&ports, layout::PORT_ACPI_PM));
        assert_eq!(dword(&device, 0x40), 0xb001);
        device.config_write(0x80, &[0]);
        assert!(!answers(&ports, 0xb000));
        device.reset();
        assert!(answers(&ports, layout::PORT_ACPI_PM));
    }

    #[test]
    fn block_moved_onto_another_device_leaves_that_alone() {
        let (ports, device) = fixture();
        let device = Arc::new(device);
        let apm = Arc::new(ApmPorts(Arc::clone(&device)));
        ports
            .insert(layout::PORT_APM, ApmPorts::PORTS, apm)
            .unwrap();
        device.config_write(0x40, &0x81_u32.to_le_bytes());
        ports.write(layout::PORT_APM, &[0x12, 0x34]);
        let mut data = [0; 2];
        ports.read(layout::PORT_APM, &mut data);
        assert_eq!(data, [0x12, 0x34]);
        assert!(!answers(&ports, 0x80));
        device.config_write(0x40, &0x601_u32.to_le_bytes());
        assert!(answers(&ports, 0x600));
    }

    #[test]
    fn function_without_its_bus_does_nothing() {
        let (ports, device) = fixture();
        drop(ports);
        device.config_write(0x40, &0xb001_u32.to_le_bytes());
        assert_eq!(dword(&device, 0x40), 0xb001);
    }

    proptest! {
        #[test]
        fn random_writes_survive_save_and_restore(
            writes in prop::collection::vec((any::<u8>(), any::<u32>(), 0_usize..3), 0..40),
        ) {
            let (_ports, device) = fixture();
            let (host, isa) = (Bridge::host(), Bridge::isa());
            for (offset, value, width) in writes {
                let len = 1 << width;
                let offset = offset & !(len as u8 - 1);
                for function in [&device as &dyn PciFunction, &host, &isa] {
                    function.config_write(offset, &value.to_le_bytes()[..len]);
                }
            }
            let (ports, restored) = fixture();
            restored.restore(&device.save().unwrap()).unwrap();
            prop_assert_eq!(restored.save().unwrap(), device.save().unwrap());
            let mapped = lock(&restored.inner).mapped;
            prop_assert_eq!(mapped, lock(&device.inner).mapped);
            if let Some(base) = mapped {
                prop_assert!(answers(&ports, base));
            }
            for (before, after) in [(host, Bridge::host()), (isa, Bridge::isa())] {
                after.restore(&before.save().unwrap()).unwrap();
                prop_assert_eq!(after.save().unwrap(), before.save().unwrap());
            }
        }
    }
}
