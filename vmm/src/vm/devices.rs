//! The virtio devices of a machine: which slot each has, and what the rest holds of it.
//!
//! A slot follows from a device's kind and its place in the configuration, so that adding a disk
//! renames no network card in the guest, and source and destination of a migration agree.

use std::sync::Arc;

use pindah_vmm_api::{DiskConfig, VmConfig};

use super::builder::{BuildError, failed};
use super::platform::{Platform, PlatformError};
use super::wiring::{IoEvents, Requests};
use crate::arch::x86_64::layout;
use crate::bus::Bus;
use crate::devices::chardev::Chardev;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::balloon::{Balloon, BalloonHandle};
use crate::devices::virtio::block::{Block, BlockHandle, BlockOptions, DiskResources};
use crate::devices::virtio::console::Console;
use crate::devices::virtio::net::{Net, NetHandle, NetResources};
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::transport::{Transport, vectors};
use crate::kvm::KvmVm;
use crate::kvm::irq::IrqRouter;
use crate::memory::GuestMemory;

/// Handles to the devices that the API reaches.
#[derive(Default)]
pub(super) struct Handles {
    /// virtio-blk, in the configuration's order.
    pub disks: Vec<BlockHandle>,
    /// virtio-net, in the configuration's order, and whether vhost-net moves its packets.
    pub nets: Vec<(NetHandle, bool)>,
    /// virtio-balloon.
    pub balloon: Option<BalloonHandle>,
    /// virtio-console's host side.
    pub console: Option<Arc<Chardev>>,
}

/// What stands behind virtio-console.
pub(super) struct ConsoleSide {
    /// The host's side.
    pub chardev: Arc<Chardev>,
    /// Columns and rows of the terminal behind it, if there is one.
    pub size: Option<(u16, u16)>,
}

/// The host's side of the devices, in the configuration's order.
pub(super) struct HostSides {
    /// Images.
    pub disks: Vec<DiskResources>,
    /// Taps.
    pub nets: Vec<NetResources>,
    /// virtio-console's.
    pub console: Option<ConsoleSide>,
}

/// Devices on the bus, and their handles.
pub(super) struct Devices {
    /// In slot order within their kinds.
    pub transports: Vec<Arc<Transport>>,
    /// For the API.
    pub handles: Handles,
}

/// Puts virtio devices into slots.
pub(super) struct Slots<'a> {
    /// Where PCI functions go.
    pub platform: &'a Platform,
    /// Guest RAM.
    pub memory: &'a Arc<GuestMemory>,
    /// Where BARs go.
    pub mmio: &'a Arc<Bus>,
    /// Where requests of devices go.
    pub control: &'a Requests,
    router: Arc<IrqRouter>,
    notifier: Arc<IoEvents>,
    gsi_next: u32,
    devices: Devices,
}

impl<'a> Slots<'a> {
    /// Empty slots.
    pub fn new(
        kvm: &KvmVm,
        platform: &'a Platform,
        memory: &'a Arc<GuestMemory>,
        mmio: &'a Arc<Bus>,
        control: &'a Requests,
    ) -> Result<Self, BuildError> {
        let router = IrqRouter::new(Arc::clone(&kvm.vm)).map_err(failed("interrupt routing"))?;
        Ok(Self {
            platform,
            memory,
            mmio,
            control,
            router: Arc::new(router),
            notifier: Arc::new(IoEvents(Arc::clone(&kvm.vm))),
            gsi_next: layout::GSI_MSI_FIRST,
            devices: Devices {
                transports: Vec::new(),
                handles: Handles::default(),
            },
        })
    }

    /// Makes all devices of `config`.
    pub fn fill(mut self, config: &VmConfig, host: HostSides) -> Result<Devices, BuildError> {
        let HostSides {
            disks,
            nets,
            console,
        } = host;
        if config.rng {
            let rng = Rng::new("rng").map_err(failed("virtio-rng"))?;
            self.insert(layout::SLOT_RNG, Box::new(rng))?;
        }
        if let Some(balloon) = &config.balloon {
            let most_mib = config.memory.size_mib;
            let balloon = Balloon::new("balloon", balloon, self.memory, most_mib)
                .map_err(failed("virtio-balloon"))?;
            self.devices.handles.balloon = Some(balloon.handle());
            self.insert(layout::SLOT_BALLOON, Box::new(balloon))?;
        }
        if let Some(ConsoleSide { chardev, size }) = console {
            let (console, _) = Console::new("console", Arc::clone(&chardev), size)
                .map_err(failed("virtio-console"))?;
            self.devices.handles.console = Some(chardev);
            self.insert(layout::SLOT_CONSOLE, Box::new(console))?;
        }
        for ((slot, config), resources) in (layout::SLOT_NET_FIRST..).zip(&config.nets).zip(nets) {
            let id = config.id.as_deref().unwrap_or_default();
            let vhost = !resources.vhosts.is_empty();
            let (net, handle) = Net::new(id, resources).map_err(failed("virtio-net"))?;
            self.devices.handles.nets.push((handle, vhost));
            self.insert(slot, Box::new(net))?;
        }
        for ((slot, config), resources) in (layout::SLOT_DISK_FIRST..).zip(&config.disks).zip(disks)
        {
            self.insert_disk(slot, config, resources)?;
        }
        Ok(self.devices)
    }

    fn insert_disk(
        &mut self,
        slot: u8,
        config: &DiskConfig,
        resources: DiskResources,
    ) -> Result<(), BuildError> {
        let options = BlockOptions {
            queues: config.queues,
            queue_size: config.queue_size,
            serial: config.serial.clone().unwrap_or_default(),
            on_error: config.on_error,
            limits: config.limits,
        };
        let id = config.id.as_deref().unwrap_or_default();
        let control = Arc::new(self.control.clone());
        let (disk, handle) = Block::new(id, &options, resources, control)?;
        self.devices.handles.disks.push(handle);
        self.insert(slot, Box::new(disk))
    }

    fn insert(&mut self, slot: u8, device: Box<dyn VirtioDevice>) -> Result<(), BuildError> {
        let gsis = vectors(device.queue_sizes().len());
        let transport = Transport::new(
            slot,
            device,
            Arc::clone(self.memory),
            Arc::clone(self.mmio),
            self.gsi_next,
            Arc::clone(&self.router) as _,
            Arc::clone(&self.notifier) as _,
        )?;
        self.gsi_next += gsis;
        self.platform
            .pci
            .insert(slot, 0, Arc::clone(&transport) as _)
            .map_err(PlatformError::from)?;
        self.devices.transports.push(transport);
        Ok(())
    }
}
