//! The cables between devices, which do not know KVM, and KVM, which does not know devices.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::lifecycle::Request;
use crate::devices::pci::msix::MsiRouter;
use crate::devices::virtio::transport::Notifier;
use crate::devices::{IrqLine, MachineControl};
use crate::kvm::irq::IrqRouter;

impl MsiRouter for IrqRouter {
    fn connect(&self, gsi: u32, event: &EventFd, address: u64, data: u32) -> io::Result<()> {
        self.connect_message(gsi, event, address, data)
    }

    fn disconnect(&self, gsi: u32, event: &EventFd) -> io::Result<()> {
        self.disconnect_message(gsi, event)
    }
}

/// Driver notifications by `KVM_IOEVENTFD`.
pub(super) struct IoEvents(pub Arc<VmFd>);

impl Notifier for IoEvents {
    fn register(&self, address: u64, event: &EventFd) -> io::Result<()> {
        let address = IoEventAddress::Mmio(address);
        Ok(self.0.register_ioevent(event, &address, NoDatamatch)?)
    }

    fn unregister(&self, address: u64, event: &EventFd) -> io::Result<()> {
        let address = IoEventAddress::Mmio(address);
        Ok(self.0.unregister_ioevent(event, &address, NoDatamatch)?)
    }
}

/// A line into the in-kernel interrupt controllers by `KVM_IRQ_LINE`.
pub(super) struct KvmIrqLine {
    vm: Arc<VmFd>,
    gsi: u32,
}

impl KvmIrqLine {
    /// The line of `gsi`, which is below 24.
    pub fn new(vm: &Arc<VmFd>, gsi: u32) -> Arc<Self> {
        let vm = Arc::clone(vm);
        Arc::new(Self { vm, gsi })
    }
}

impl IrqLine for KvmIrqLine {
    fn set(&self, asserted: bool) {
        if let Err(error) = self.vm.set_irq_line(self.gsi, asserted) {
            tracing::error!(gsi = self.gsi, %error, "KVM_IRQ_LINE failed");
        }
    }
}

/// The way to the thread that runs the machine, for devices, vCPUs and signals.
///
/// Every request carries the power cycle in which it was made. A guest that asks for a reset goes
/// on for a moment, and may ask for more or crash: after the reset all that is another machine's.
#[derive(Clone)]
pub(super) struct Requests {
    sender: Sender<(u64, Request)>,
    power_cycle: Arc<AtomicU64>,
}

impl Requests {
    /// The way and its end.
    pub fn channel() -> (Self, Receiver<(u64, Request)>) {
        let (sender, receiver) = channel();
        let requests = Self {
            sender,
            power_cycle: Arc::default(),
        };
        (requests, receiver)
    }

    /// Leaves a request. Nobody takes it once the machine has ended, and nobody needs to.
    pub fn send(&self, request: Request) {
        let _ = self.sender.send((self.power_cycle(), request));
    }

    /// Counts the resets.
    pub fn power_cycle(&self) -> u64 {
        self.power_cycle.load(Ordering::Acquire)
    }

    /// What the guest has asked for so far does not count any more. While it stands.
    pub fn begin_power_cycle(&self) {
        self.power_cycle.fetch_add(1, Ordering::AcqRel);
    }
}

impl MachineControl for Requests {
    fn request_reset(&self) {
        self.send(Request::Reset);
    }

    fn request_power_off(&self) {
        self.send(Request::PowerOff(pindah_vmm_api::Initiator::Guest));
    }

    fn request_pause(&self, device: &str, reason: &str) {
        self.send(Request::Pause {
            device: device.to_owned(),
            reason: reason.to_owned(),
        });
    }
}
