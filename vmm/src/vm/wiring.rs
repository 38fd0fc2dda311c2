//! The cables between devices, which do not know KVM, and KVM, which does not know devices.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use pindah_vmm_api::Initiator;
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
    open: Arc<AtomicU8>,
}

/// What the guest has asked for and did not get yet; it moves with the guest. The first of both
/// that is served makes the other meaningless.
const OPEN_RESET: u8 = 1;
/// As [`OPEN_RESET`].
const OPEN_POWER_OFF: u8 = 2;

fn open_bit(request: &Request) -> u8 {
    match request {
        Request::Reset => OPEN_RESET,
        Request::PowerOff(Initiator::Guest) => OPEN_POWER_OFF,
        _ => 0,
    }
}

impl Requests {
    /// The way and its end.
    pub fn channel() -> (Self, Receiver<(u64, Request)>) {
        let (sender, receiver) = channel();
        let requests = Self {
            sender,
            power_cycle: Arc::default(),
            open: Arc::default(),
        };
        (requests, receiver)
    }

    /// Leaves a request. Nobody takes it once the machine has ended, and nobody needs to.
    pub fn send(&self, request: Request) {
        self.open.fetch_or(open_bit(&request), Ordering::AcqRel);
        let _ = self.sender.send((self.power_cycle(), request));
    }

    /// The request is being served.
    pub fn close(&self, request: &Request) {
        self.open.fetch_and(!open_bit(request), Ordering::AcqRel);
    }

    /// What the guest has asked for and did not get yet, as a saved state holds it. While it
    /// stands.
    pub fn save_open(&self) -> u8 {
        self.open.load(Ordering::Acquire)
    }

    /// Asks for what [`Self::save_open`] gave.
    pub fn restore_open(&self, open: u8) {
        if open & OPEN_RESET != 0 {
            self.send(Request::Reset);
        }
        if open & OPEN_POWER_OFF != 0 {
            self.send(Request::PowerOff(Initiator::Guest));
        }
    }

    /// Counts the resets.
    pub fn power_cycle(&self) -> u64 {
        self.power_cycle.load(Ordering::Acquire)
    }

    /// What the guest has asked for so far does not count any more. While it stands.
    pub fn begin_power_cycle(&self) {
        self.open.store(0, Ordering::Release);
        self.power_cycle.fetch_add(1, Ordering::AcqRel);
    }
}

impl MachineControl for Requests {
    fn request_reset(&self) {
        self.send(Request::Reset);
    }

    fn request_power_off(&self) {
        self.send(Request::PowerOff(Initiator::Guest));
    }

    fn request_pause(&self, device: &str, reason: &str, no_space: bool) {
        self.send(Request::Pause {
            device: device.to_owned(),
            reason: reason.to_owned(),
            no_space,
        });
    }
}
