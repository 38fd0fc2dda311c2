//! The machine around a device: RAM, buses, and stand-ins for what KVM does.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use pindah_vmm::arch::x86_64::layout;
use pindah_vmm::bus::Bus;
use pindah_vmm::devices::chardev::{Chardev, ChardevResources};
use pindah_vmm::devices::pci::msix::MsiRouter;
use pindah_vmm::devices::virtio::VirtioDevice;
use pindah_vmm::devices::virtio::block::{Block, BlockHandle, BlockOptions, ImageOptions, open};
use pindah_vmm::devices::virtio::transport::{Notifier, Transport, vectors};
use pindah_vmm::devices::{IrqLine, MachineControl};
use pindah_vmm::memory::GuestMemory;
use pindah_vmm_api::{DiskCache, DiskFormat, DiskLimits, ErrorPolicy};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::input::Input;

/// Size of guest RAM, which starts at 0.
pub const RAM_BYTES: usize = 0x4_0000;
/// Size of a virtio device's BAR.
pub const BAR_BYTES: u64 = 0x8000;
/// Largest queue that the devices have here.
pub const QUEUE_SIZE: u16 = 64;

/// RAM.
pub fn memory() -> Arc<GuestMemory> {
    let ranges = [(GuestAddress(0), RAM_BYTES)];
    Arc::new(GuestMemory::from_ranges(&ranges).expect("a host that maps 256 KiB"))
}

/// Makes all of RAM `byte`.
pub fn fill(memory: &GuestMemory, byte: u8) {
    let page = [byte; 0x1000];
    for address in (0..RAM_BYTES).step_by(page.len()) {
        let filled = memory.write_slice(&page, GuestAddress(address as u64));
        filled.expect("all of it is RAM");
    }
}

/// What devices ask of the machine is lost.
pub struct Nothing;

impl MachineControl for Nothing {
    fn request_reset(&self) {}
    fn request_power_off(&self) {}
    fn request_pause(&self, _: &str, _: &str, _: bool) {}
}

impl IrqLine for Nothing {
    fn set(&self, _: bool) {}
}

impl MsiRouter for Nothing {
    fn connect(&self, _: u32, _: &EventFd, _: u64, _: u32) -> io::Result<()> {
        Ok(())
    }

    fn disconnect(&self, _: u32, _: &EventFd) -> io::Result<()> {
        Ok(())
    }
}

/// KVM's ioeventfds.
#[derive(Default)]
pub struct Ioeventfds(Mutex<BTreeMap<u64, EventFd>>);

impl Ioeventfds {
    /// The guest writes to `address`. Returns whether an eventfd took it.
    pub fn write(&self, address: u64) -> bool {
        let events = self.0.lock().expect("no holder panics");
        events.get(&address).is_some_and(|event| {
            // Fails only when the counter is full: the kick is pending anyway.
            let _ = event.write(1);
            true
        })
    }
}

impl Notifier for Ioeventfds {
    fn register(&self, address: u64, event: &EventFd) -> io::Result<()> {
        let event = event.try_clone()?;
        let mut events = self.0.lock().expect("no holder panics");
        assert!(events.insert(address, event).is_none(), "registered twice");
        Ok(())
    }

    fn unregister(&self, address: u64, _: &EventFd) -> io::Result<()> {
        let mut events = self.0.lock().expect("no holder panics");
        assert!(events.remove(&address).is_some(), "was not registered");
        Ok(())
    }
}

/// A virtio device behind its transport, with buses that it may share.
pub struct Virtio {
    pub slot: u8,
    pub mmio: Arc<Bus>,
    pub ioeventfds: Arc<Ioeventfds>,
    pub memory: Arc<GuestMemory>,
    pub transport: Arc<Transport>,
    pub queues: u16,
}

impl Virtio {
    /// Alone in its machine.
    pub fn new(device: Box<dyn VirtioDevice>, memory: &Arc<GuestMemory>) -> Self {
        Self::on(layout::SLOT_RNG, device, memory, &Arc::default())
    }

    /// On a bus that others use.
    pub fn on(
        slot: u8,
        device: Box<dyn VirtioDevice>,
        memory: &Arc<GuestMemory>,
        mmio: &Arc<Bus>,
    ) -> Self {
        let queues = device.queue_sizes().len();
        let ioeventfds = Arc::<Ioeventfds>::default();
        let transport = Transport::new(
            slot,
            device,
            Arc::clone(memory),
            Arc::clone(mmio),
            layout::GSI_MSI_FIRST + u32::from(slot) * vectors(queues),
            Arc::new(Nothing),
            Arc::clone(&ioeventfds) as _,
        );
        Self {
            slot,
            mmio: Arc::clone(mmio),
            ioeventfds,
            memory: Arc::clone(memory),
            transport: transport.expect("a valid device and a free slot"),
            queues: queues as u16,
        }
    }

    /// Where the BAR is at power-on.
    pub fn base(&self) -> u64 {
        layout::PCI_MMIO32.start + u64::from(self.slot) * BAR_BYTES
    }

    /// The guest writes `data` at `offset` of the BAR's first place.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let address = self.base() + offset;
        if !self.ioeventfds.write(address) {
            self.mmio.write(address, data);
        }
    }

    /// The guest reads there.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        self.mmio.read(self.base() + offset, data);
    }
}

/// A character device that leads nowhere.
pub fn chardev(name: &str) -> Arc<Chardev> {
    let chardev = Chardev::start(name, ChardevResources::Off, || ());
    Arc::new(chardev.expect("a host with a thread to spare"))
}

/// An anonymous file with this content.
pub fn memfd(content: &[u8]) -> File {
    // SAFETY: the name is a C string and memfd_create touches no other memory.
    let fd = unsafe { libc::memfd_create(c"fuzz".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: the descriptor is new and nobody else's.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(content).expect("memory for a small file");
    file
}

/// A name under which `file` can be opened.
pub fn path(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// A disk over the raw image in `file`.
pub fn block(file: &File) -> (Block, BlockHandle) {
    let image = ImageOptions {
        path: path(file),
        format: DiskFormat::Raw,
        read_only: false,
        cache: DiskCache::Buffered,
    };
    let options = BlockOptions {
        queues: 2,
        queue_size: QUEUE_SIZE,
        serial: "serial".to_owned(),
        on_error: ErrorPolicy::Report,
        limits: DiskLimits::default(),
    };
    let resources = open(&image).expect("a valid image");
    let made = Block::new("disk0", &options, resources, Arc::new(Nothing));
    made.expect("a host with a thread to spare")
}

/// A width that a guest can access memory with, in bytes.
pub fn width(input: &mut Input) -> usize {
    input.pick(&[4, 1, 2, 8])
}
