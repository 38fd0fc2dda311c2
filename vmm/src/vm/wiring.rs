//! The cables between devices, which do not know KVM, and KVM, which does not know devices.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;

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

/// Requests of devices, done later by the thread that runs the machine.
#[derive(Clone)]
pub(super) struct Requests(pub Sender<Request>);

impl Requests {
    /// Leaves a request. Nobody takes it once the machine has ended, and nobody needs to.
    pub fn send(&self, request: Request) {
        let _ = self.0.send(request);
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
