//! The devices that every PC has: what firmware and old systems look for.

use std::io;
use std::sync::Arc;

use kvm_ioctls::VmFd;
use pindah_vmm_api::VmConfig;
use thiserror::Error;
use vm_memory::GuestMemoryError;

use super::rtc_timer::RtcTimer;
use super::state::VmState;
use super::wiring::{KvmIrqLine, Requests};
use crate::arch::x86_64::acpi::{AcpiConfig, AcpiTables};
use crate::arch::x86_64::layout;
use crate::arch::x86_64::smbios::Smbios;
use crate::arch::x86_64::topology::Topology;
use crate::boot::{FirmwareInfo, fw_cfg_items};
use crate::bus::{Bus, BusDevice, BusError};
use crate::devices::acpi_pm::AcpiPm;
use crate::devices::chardev::Chardev;
use crate::devices::diagnostic::{DebugConsole, RunnerId};
use crate::devices::fw_cfg::{self, FwCfg, FwCfgError};
use crate::devices::i8042::{self, I8042};
use crate::devices::pci::bus::{self as pci_bus, PciBus, PciBusError};
use crate::devices::pci::piix::{ApmPorts, Bridge, PowerManagement};
use crate::devices::reset_control::{Port0x92, Port0xCf9, ResetControl};
use crate::devices::rtc::{self, CmosConfig, Rtc};
use crate::devices::serial::{SERIAL_PORTS, Serial};
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
    /// What firmware reads cannot be offered.
    #[error("cannot offer firmware what it reads")]
    FwCfg(#[from] FwCfgError),
    /// The host refuses a timer or its thread.
    #[error("cannot start the real-time clock")]
    Rtc(#[source] io::Error),
}

/// The machine's fixed devices.
pub(super) struct Platform {
    serial: Arc<Serial>,
    /// What stands behind the serial port on the host.
    pub serial_host: Arc<Chardev>,
    /// Where PCI functions are inserted.
    pub pci: Arc<PciBus>,
    host_bridge: Arc<Bridge>,
    isa_bridge: Arc<Bridge>,
    power_management: Arc<PowerManagement>,
    acpi_pm: Arc<AcpiPm>,
    reset_control: Arc<ResetControl>,
    i8042: Arc<I8042>,
    rtc: Arc<Rtc>,
    fw_cfg: Arc<FwCfg>,
    tables: AcpiTables,
    smbios: Smbios,
    _rtc_timer: RtcTimer,
}

impl Platform {
    /// Puts the fixed devices on the buses.
    pub fn new(
        config: &VmConfig,
        vm: &Arc<VmFd>,
        memory: &GuestMemory,
        ports: &Arc<Bus>,
        serial_host: Arc<Chardev>,
        control: &Requests,
    ) -> Result<Self, PlatformError> {
        let control = || Arc::new(control.clone());
        let topology = Topology::new(&config.cpus);
        let apic_ids: Vec<u32> = (0..topology.vcpus)
            .map(|index| topology.apic_id(index))
            .collect();
        let ram_bytes = config.memory.size_mib << 20;
        let uuid = uuid(&config.name);
        let tables = AcpiTables::new(&AcpiConfig {
            apic_ids: apic_ids.clone(),
            pci_mmio64: None,
        });
        let smbios = Smbios::new(&config.name, &uuid);
        let boots_firmware = config.boot.kernel.is_none();
        let info = FirmwareInfo {
            ram_bytes,
            apic_ids: &apic_ids,
            uuid: &uuid,
            boot_slot: (!config.disks.is_empty()).then_some(layout::SLOT_DISK_FIRST),
            serial_console: true,
            acpi: &tables,
            smbios: &smbios,
        };
        let fw_cfg = Arc::new(fw_cfg_items(&info)?.build(memory.clone()));

        let serial = Serial::new(
            KvmIrqLine::new(vm, layout::IRQ_SERIAL),
            Arc::clone(&serial_host),
        );
        let reset_control = Arc::new(ResetControl::new(control()));
        let i8042 = Arc::new(I8042::new(control()));
        let acpi_pm = Arc::new(AcpiPm::new(KvmIrqLine::new(vm, layout::IRQ_SCI), control()));
        let power_management = Arc::new(PowerManagement::new(Arc::clone(&acpi_pm), ports));
        let cmos = CmosConfig {
            ram_bytes,
            vcpus: config.cpus.count,
        };
        let rtc_line = KvmIrqLine::new(vm, layout::IRQ_RTC);
        let rtc = Arc::new(Rtc::new(&cmos, rtc_line).map_err(PlatformError::Rtc)?);
        let rtc_timer = RtcTimer::start(Arc::clone(&rtc)).map_err(PlatformError::Rtc)?;

        let pci = Arc::new(PciBus::new(Some(Arc::new(Port0xCf9(Arc::clone(
            &reset_control,
        ))))));
        let host_bridge = Arc::new(Bridge::host());
        let isa_bridge = Arc::new(Bridge::isa());
        pci.insert(layout::SLOT_HOST_BRIDGE, 0, Arc::clone(&host_bridge) as _)?;
        pci.insert(layout::SLOT_ISA, 0, Arc::clone(&isa_bridge) as _)?;
        pci.insert(layout::SLOT_ISA, 3, Arc::clone(&power_management) as _)?;

        let mut fixed: Vec<(u64, u64, Arc<dyn BusDevice>)> = vec![
            (layout::PORT_SERIAL, SERIAL_PORTS, Arc::clone(&serial) as _),
            (
                layout::PORT_PCI_CONFIG,
                pci_bus::PORTS,
                Arc::clone(&pci) as _,
            ),
            (
                layout::PORT_I8042_DATA,
                1,
                Arc::new(i8042::Data(Arc::clone(&i8042))),
            ),
            (
                layout::PORT_I8042_COMMAND,
                1,
                Arc::new(i8042::Command(Arc::clone(&i8042))),
            ),
            (layout::PORT_RTC, rtc::PORTS, Arc::clone(&rtc) as _),
            (
                layout::PORT_SYSTEM_CONTROL_A,
                1,
                Arc::new(Port0x92(Arc::clone(&reset_control))),
            ),
            (
                layout::PORT_APM,
                ApmPorts::PORTS,
                Arc::new(ApmPorts(Arc::clone(&power_management))),
            ),
            (layout::PORT_FW_CFG, fw_cfg::PORTS, Arc::clone(&fw_cfg) as _),
            (layout::PORT_RUNNER_ID, RunnerId::PORTS, Arc::new(RunnerId)),
        ];
        if boots_firmware && tracing::enabled!(tracing::Level::DEBUG) {
            let console = Arc::new(DebugConsole::default());
            fixed.push((layout::PORT_DEBUG_CONSOLE, 1, console));
        }
        for (base, len, device) in fixed {
            ports.insert(base, len, device)?;
        }
        Ok(Self {
            serial,
            serial_host,
            pci,
            host_bridge,
            isa_bridge,
            power_management,
            acpi_pm,
            reset_control,
            i8042,
            rtc,
            fw_cfg,
            tables,
            smbios,
            _rtc_timer: rtc_timer,
        })
    }

    /// Writes the tables for direct boot; where ACPI's root pointer is.
    pub fn install_tables(&self, memory: &GuestMemory) -> Result<u64, GuestMemoryError> {
        self.smbios.install(memory)?;
        self.tables.install(memory)
    }

    /// Presses the ACPI power button. Returns whether the guest listens.
    pub fn press_power_button(&self) -> bool {
        self.acpi_pm.press_power_button()
    }

    /// All devices as after power-on.
    pub fn reset(&self) {
        self.serial.reset();
        self.pci.reset();
        self.host_bridge.reset();
        self.isa_bridge.reset();
        self.power_management.reset();
        self.acpi_pm.reset();
        self.reset_control.reset();
        self.i8042.reset();
        self.rtc.reset();
        self.fw_cfg.reset();
    }

    /// State of all of them.
    pub fn save(&self) -> Result<Vec<Section>, StateError> {
        Ok(vec![
            self.serial.save()?,
            self.serial_host.save("serial")?,
            self.pci.save()?,
            self.host_bridge.save()?,
            self.isa_bridge.save()?,
            self.power_management.save()?,
            self.acpi_pm.save()?,
            self.reset_control.save()?,
            self.i8042.save()?,
            self.rtc.save()?,
            self.fw_cfg.save()?,
        ])
    }

    /// Takes what [`Self::save`] gave.
    pub fn restore(&self, state: &VmState) -> Result<(), StateError> {
        self.serial.restore(state.section("serial", "")?)?;
        self.serial_host
            .restore(state.section("chardev", "serial")?)?;
        self.pci.restore(state.section("pci-bus", "")?)?;
        self.host_bridge.restore(state.section("i440fx", "")?)?;
        self.isa_bridge.restore(state.section("piix3-isa", "")?)?;
        self.power_management
            .restore(state.section("piix4-pm", "")?)?;
        self.acpi_pm.restore(state.section("acpi-pm", "")?)?;
        self.reset_control
            .restore(state.section("reset-control", "")?)?;
        self.i8042.restore(state.section("i8042", "")?)?;
        self.rtc.restore(state.section("rtc", "")?)?;
        self.fw_cfg.restore(state.section("fw_cfg", "")?)
    }
}

/// The machine's UUID (RFC 9562, version 8): it follows from the guest's name, so that the guest
/// is the same machine wherever and whenever it runs. FNV-1a, 128 bits.
fn uuid(name: &str) -> [u8; 16] {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let hash = name.bytes().fold(OFFSET, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(PRIME)
    });
    let mut uuid = hash.to_be_bytes();
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuid_is_stable_and_differs_by_name() {
        assert_eq!(uuid("web"), uuid("web"));
        assert_ne!(uuid("web"), uuid("database"));
        assert_eq!((uuid("web")[6] >> 4, uuid("web")[8] >> 6), (8, 2));
    }
}
