//! A whole machine without processors: the fixed devices and four virtio devices on their buses.

use std::sync::Arc;

use ciborium::Value;
use pindah_vmm::arch::x86_64::layout;
use pindah_vmm::bus::{Bus, BusDevice};
use pindah_vmm::devices::acpi_pm::AcpiPm;
use pindah_vmm::devices::chardev::Chardev;
use pindah_vmm::devices::diagnostic::RunnerId;
use pindah_vmm::devices::fw_cfg::{self, FwCfg, FwCfgBuilder};
use pindah_vmm::devices::i8042::{self, I8042};
use pindah_vmm::devices::pci::bus::{self as pci_bus, PciBus};
use pindah_vmm::devices::pci::piix::{ApmPorts, Bridge, PowerManagement};
use pindah_vmm::devices::reset_control::{Port0x92, Port0xCf9, ResetControl};
use pindah_vmm::devices::rtc::{self, CmosConfig, Rtc};
use pindah_vmm::devices::serial::{SERIAL_PORTS, Serial};
use pindah_vmm::devices::virtio::VirtioDevice;
use pindah_vmm::devices::virtio::balloon::Balloon;
use pindah_vmm::devices::virtio::console::Console;
use pindah_vmm::devices::virtio::rng::Rng;
use pindah_vmm::memory::GuestMemory;
use pindah_vmm::state::{Section, StateError};
use pindah_vmm_api::BalloonConfig;

use crate::machine::{self, Nothing, RAM_BYTES, Virtio, chardev};

const DISK_BYTES: usize = 16 << 10;

/// All of it.
pub struct Machine {
    pub ports: Arc<Bus>,
    pub mmio: Arc<Bus>,
    pub memory: Arc<GuestMemory>,
    pub virtio: Vec<Virtio>,
    serial: Arc<Serial>,
    serial_host: Arc<Chardev>,
    console_host: Arc<Chardev>,
    pci: Arc<PciBus>,
    bridges: [Arc<Bridge>; 2],
    power_management: Arc<PowerManagement>,
    acpi_pm: Arc<AcpiPm>,
    reset_control: Arc<ResetControl>,
    i8042: Arc<I8042>,
    rtc: Arc<Rtc>,
    fw_cfg: Arc<FwCfg>,
}

impl Machine {
    pub fn new() -> Self {
        let (ports, mmio, memory) = (Arc::<Bus>::default(), Arc::default(), machine::memory());
        let acpi_pm = Arc::new(AcpiPm::new(Arc::new(Nothing), Arc::new(Nothing)));
        let reset_control = Arc::new(ResetControl::new(Arc::new(Nothing)));
        let port_0xcf9 = Arc::new(Port0xCf9(Arc::clone(&reset_control)));
        let (serial_host, console_host) = (chardev("serial"), chardev("console"));
        let cmos = CmosConfig {
            ram_bytes: RAM_BYTES as u64,
            vcpus: 1,
        };
        let rtc = Rtc::new(&cmos, Arc::new(Nothing)).expect("a host with a timer to spare");
        let fw_cfg = FwCfgBuilder::default().file("opt/fuzz", vec![1; 5000]);
        let fw_cfg = fw_cfg.expect("a valid name").build((*memory).clone());
        let machine = Self {
            virtio: virtio(&memory, &mmio, &console_host),
            serial: Serial::new(Arc::new(Nothing), Arc::clone(&serial_host)),
            serial_host,
            console_host,
            pci: Arc::new(PciBus::new(Some(port_0xcf9))),
            bridges: [Arc::new(Bridge::host()), Arc::new(Bridge::isa())],
            power_management: Arc::new(PowerManagement::new(Arc::clone(&acpi_pm), &ports)),
            acpi_pm,
            reset_control,
            i8042: Arc::new(I8042::new(Arc::new(Nothing))),
            rtc: Arc::new(rtc),
            fw_cfg: Arc::new(fw_cfg),
            ports,
            mmio,
            memory,
        };
        machine.connect();
        machine
    }

    /// Puts everything in its place.
    fn connect(&self) {
        let insert = |slot, function, device| {
            let inserted = self.pci.insert(slot, function, device);
            inserted.expect("each slot is used once");
        };
        let [host, isa] = &self.bridges;
        insert(layout::SLOT_HOST_BRIDGE, 0, Arc::clone(host) as _);
        insert(layout::SLOT_ISA, 0, Arc::clone(isa) as _);
        insert(layout::SLOT_ISA, 3, Arc::clone(&self.power_management) as _);
        for device in &self.virtio {
            insert(device.slot, 0, Arc::clone(&device.transport) as _);
        }
        let i8042 = || Arc::clone(&self.i8042);
        let apm = ApmPorts(Arc::clone(&self.power_management));
        let fixed: [(u64, u64, Arc<dyn BusDevice>); 9] = [
            (
                layout::PORT_SERIAL,
                SERIAL_PORTS,
                Arc::clone(&self.serial) as _,
            ),
            (
                layout::PORT_PCI_CONFIG,
                pci_bus::PORTS,
                Arc::clone(&self.pci) as _,
            ),
            (layout::PORT_I8042_DATA, 1, Arc::new(i8042::Data(i8042()))),
            (
                layout::PORT_I8042_COMMAND,
                1,
                Arc::new(i8042::Command(i8042())),
            ),
            (layout::PORT_RTC, rtc::PORTS, Arc::clone(&self.rtc) as _),
            (
                layout::PORT_SYSTEM_CONTROL_A,
                1,
                Arc::new(Port0x92(Arc::clone(&self.reset_control))),
            ),
            (layout::PORT_APM, ApmPorts::PORTS, Arc::new(apm)),
            (
                layout::PORT_FW_CFG,
                fw_cfg::PORTS,
                Arc::clone(&self.fw_cfg) as _,
            ),
            (layout::PORT_RUNNER_ID, RunnerId::PORTS, Arc::new(RunnerId)),
        ];
        for (base, len, device) in fixed {
            let inserted = self.ports.insert(base, len, device);
            inserted.expect("each port is used once");
        }
    }

    fn pause(&self) {
        for device in &self.virtio {
            device.transport.pause();
        }
    }

    pub fn resume(&self) {
        for device in &self.virtio {
            device.transport.resume();
        }
    }

    /// What a reset of the machine does.
    pub fn reset(&self) {
        self.pause();
        self.serial.reset();
        self.pci.reset();
        for bridge in &self.bridges {
            bridge.reset();
        }
        self.power_management.reset();
        self.acpi_pm.reset();
        self.reset_control.reset();
        self.i8042.reset();
        self.rtc.reset();
        self.fw_cfg.reset();
        for device in &self.virtio {
            device.transport.reset();
        }
        self.resume();
    }

    /// Pauses it; the state of all but what time changes by itself.
    pub fn save(&self) -> Vec<Section> {
        self.pause();
        let saved = self.try_save();
        saved.expect("a paused machine can be saved")
    }

    fn try_save(&self) -> Result<Vec<Section>, StateError> {
        let [host, isa] = &self.bridges;
        let mut sections = vec![
            self.serial.save()?,
            self.serial_host.save("serial")?,
            self.pci.save()?,
            host.save()?,
            isa.save()?,
            self.power_management.save()?,
            self.reset_control.save()?,
            self.i8042.save()?,
            self.fw_cfg.save()?,
        ];
        for device in &self.virtio {
            sections.extend(device.transport.save()?);
        }
        Ok(sections)
    }

    /// The state of what goes on while the machine is paused: clock and ACPI timer.
    pub fn save_clocks(&self) -> [Section; 2] {
        [self.rtc.save(), self.acpi_pm.save()].map(|saved| saved.expect("a clock can be saved"))
    }

    /// Takes what [`Self::save_clocks`] gave.
    pub fn restore_clocks(&self, [rtc, acpi_pm]: &[Section; 2]) -> Result<(), StateError> {
        self.rtc.restore(rtc)?;
        self.acpi_pm.restore(acpi_pm)
    }

    /// Takes what [`Self::save`] gave; the machine is then paused.
    pub fn restore(&self, sections: &[Section]) -> Result<(), StateError> {
        let find = |kind: &str, id: &str| {
            let found = sections
                .iter()
                .find(|section| section.kind == kind && section.id == id);
            found.ok_or_else(|| StateError::Missing {
                kind: kind.to_owned(),
                id: id.to_owned(),
            })
        };
        let [host, isa] = &self.bridges;
        self.pause();
        // A fresh machine has no input yet.
        for host in [&self.serial_host, &self.console_host] {
            while host.read_input(&mut [0; 64]) > 0 {}
        }
        self.serial.restore(find("serial", "")?)?;
        self.serial_host.restore(find("chardev", "serial")?)?;
        self.pci.restore(find("pci-bus", "")?)?;
        host.restore(find("i440fx", "")?)?;
        isa.restore(find("piix3-isa", "")?)?;
        self.power_management.restore(find("piix4-pm", "")?)?;
        self.reset_control.restore(find("reset-control", "")?)?;
        self.i8042.restore(find("i8042", "")?)?;
        self.fw_cfg.restore(find("fw_cfg", "")?)?;
        for device in &self.virtio {
            device.transport.restore(sections)?;
        }
        Ok(())
    }
}

/// One of each, but the network.
fn virtio(memory: &Arc<GuestMemory>, mmio: &Arc<Bus>, host: &Arc<Chardev>) -> Vec<Virtio> {
    let thread = "a host with a thread to spare";
    let rng = Rng::new("rng").expect(thread);
    let balloon = Balloon::new("balloon", &BalloonConfig::default(), memory, 1).expect(thread);
    let (console, _) = Console::new("console", Arc::clone(host), None).expect(thread);
    let (block, _) = machine::block(&machine::memfd(&[0; DISK_BYTES]));
    let devices: [(u8, Box<dyn VirtioDevice>); 4] = [
        (layout::SLOT_RNG, Box::new(rng)),
        (layout::SLOT_BALLOON, Box::new(balloon)),
        (layout::SLOT_CONSOLE, Box::new(console)),
        (layout::SLOT_DISK_FIRST, Box::new(block)),
    ];
    let devices = devices.into_iter();
    let devices = devices.map(|(slot, device)| Virtio::on(slot, device, memory, mmio));
    devices.collect()
}

/// Fails with the fields in which two states of a machine differ.
pub fn assert_same(now: &[Section], before: &[Section]) {
    assert_eq!(now.len(), before.len());
    for (now, before) in now.iter().zip(before) {
        let differ = |at: usize, field: &(Value, Value)| {
            let fields = before.body.as_map().and_then(|fields| fields.get(at));
            fields != Some(field)
        };
        let fields = now.body.as_map().into_iter().flatten().enumerate();
        let different: Vec<_> = fields
            .filter(|(at, field)| differ(*at, field))
            .map(|(at, (name, value))| (name, value, before.body.as_map().map(|all| &all[at].1)))
            .collect();
        assert!(
            different.is_empty(),
            "{} {}: {different:?}",
            now.kind,
            now.id
        );
    }
}
