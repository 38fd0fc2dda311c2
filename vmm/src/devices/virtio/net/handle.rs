//! What the machine may ask of a network device, whatever its driver does.

use std::io;
use std::sync::Arc;

use pindah_vmm_api::NetMetrics;

use super::mac::MacAddress;
use super::pair::QueuePair;
use super::shared::Shared;
use crate::devices::virtio::worker::Worker;
use crate::memory::GuestMemory;

/// A way to a network device. Callable from any thread but the device's own.
#[derive(Clone)]
pub struct NetHandle {
    shared: Arc<Shared>,
    workers: Arc<[Worker<QueuePair>]>,
}

impl NetHandle {
    pub(super) fn new(shared: Arc<Shared>, workers: Arc<[Worker<QueuePair>]>) -> Self {
        Self { shared, workers }
    }

    /// The device's id.
    pub fn id(&self) -> &str {
        &self.shared.id
    }

    /// The address that the guest uses now.
    pub fn mac(&self) -> MacAddress {
        self.shared.commands().mac
    }

    /// Asks the driver to tell the network where it is (virtio 1.2, 5.1.6.5.4): after a
    /// migration. Returns whether the driver understands that.
    pub fn announce(&self) -> bool {
        self.shared.announce()
    }

    /// Holds all packets back in both directions, or lets them pass: a destination is silent
    /// until it runs. Done when this returns.
    ///
    /// # Errors
    /// vhost-net cannot be switched; the direction of the other queue pairs is not changed.
    pub fn set_silent(&self, silent: bool) -> io::Result<()> {
        self.each(move |pair| pair.set_silent(silent))
    }

    /// Plugs the cable in, or out. The driver is told, and packets are dropped while it is out.
    ///
    /// # Errors
    /// vhost-net cannot be switched.
    pub fn set_link(&self, up: bool) -> io::Result<()> {
        self.shared.set_link(up);
        self.each(QueuePair::link_changed)
    }

    /// Sends one Ethernet frame to the network behind the tap, as if the guest had: RARP or a
    /// gratuitous ARP after a migration.
    ///
    /// # Errors
    /// The tap does not take it.
    pub fn send_frame(&self, frame: &[u8]) -> io::Result<()> {
        self.shared.send_frame(frame)
    }

    /// What has passed. With vhost-net only the kernel knows, and all is zero.
    pub fn metrics(&self) -> NetMetrics {
        self.shared.counters.read(&self.shared.id)
    }

    /// Starts to log the pages that vhost-net writes; nothing happens without vhost-net, where
    /// `memory`'s own bitmap has them all. To be called while `memory` is the guest's RAM.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn start_log(&self, memory: &Arc<GuestMemory>) -> io::Result<()> {
        let memory = Arc::clone(memory);
        self.each(move |pair| pair.start_log(&memory))
    }

    /// Moves what vhost-net has logged since the last call into the dirty bitmap of the memory
    /// that [`Self::start_log`] was given: to be called just before that one is read.
    ///
    /// # Errors
    /// None without vhost-net.
    pub fn take_log(&self) -> io::Result<()> {
        self.each(|pair| {
            pair.take_log();
            Ok(())
        })
    }

    /// Ends logging.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn stop_log(&self) -> io::Result<()> {
        self.each(QueuePair::stop_log)
    }

    fn each<F>(&self, call: F) -> io::Result<()>
    where
        F: Fn(&mut QueuePair) -> io::Result<()> + Clone + Send + 'static,
    {
        for worker in self.workers.iter() {
            let call = call.clone();
            worker.call(move |pair| call(pair))?;
        }
        Ok(())
    }
}
