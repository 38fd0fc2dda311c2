//! virtio over PCI (virtio 1.2, section 4.1): one function with one BAR.
//!
//! ```text
//! config space ──┐ moves                          guest writes
//!  command, BAR  ▼                                     │
//!            mapping: MMIO range, ioeventfds ──► kick eventfds ──► device's worker
//!                │ slow path                                           │
//!                ▼                                                     ▼
//!            core: common registers, status, device          signals: status, ISR, vectors
//!                                                                      ▼
//!                                                            MSI-X eventfds ──► irqfds
//! ```
//!
//! Locks, in the order in which they may be taken: `function` (configuration space and mapping),
//! `core` (registers and device), MSI-X's own. A device's worker takes none of them: it only
//! reaches [`signals`], which is atomic, so a vCPU may wait for a worker under `core`.

mod capabilities;
mod common;
mod core;
mod mapping;
mod signals;
mod state;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use thiserror::Error;
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::capabilities::{Function, MAX_QUEUES, Region, initial_address};
use self::core::Core;
use self::mapping::Mapping;
pub use self::mapping::Notifier;
use self::signals::Signals;
use super::VirtioDevice;
use crate::bus::{Bus, BusDevice, BusError};
use crate::devices::pci::PciFunction;
use crate::devices::pci::msix::{MsiRouter, Msix};
use crate::memory::GuestMemory;
use crate::state::{Section, StateError};

/// Why a device cannot be put behind a transport.
#[derive(Debug, Error)]
pub enum TransportError {
    /// The device has no queues, too many, or one whose size is not a power of two.
    #[error("device {id} has queues that a PCI transport cannot hold")]
    Queues {
        /// The device.
        id: String,
    },
    /// The host gives no more eventfds.
    #[error("device {id}: cannot create its eventfds")]
    Events {
        /// The device.
        id: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The BAR's initial place is taken.
    #[error("device {id}: cannot map its registers")]
    Map {
        /// The device.
        id: String,
        /// Why.
        #[source]
        source: BusError,
    },
}

/// One virtio device as a PCI function.
pub struct Transport {
    id: String,
    function: Mutex<Function>,
    core: Mutex<Core>,
    msix: Arc<Msix>,
    signals: Arc<Signals>,
    kicks: Arc<[Arc<EventFd>]>,
}

/// What stands on the bus for the BAR. It does not keep the transport alive, which itself holds
/// the bus.
struct Bar(Weak<Transport>);

/// GSIs that a device with so many queues uses: a vector for each, and one for its configuration.
pub fn vectors(queues: usize) -> u32 {
    queues as u32 + 1
}

impl Transport {
    /// Puts `device` behind a PCI function for `slot`, whose registers are mapped at once on
    /// `bus` (MMIO) at an address that follows from the slot. It uses the [`vectors`] GSIs from
    /// `gsi_first` on. The caller still inserts the function into the PCI bus.
    ///
    /// # Errors
    /// [`TransportError`].
    pub fn new(
        slot: u8,
        device: Box<dyn VirtioDevice>,
        memory: Arc<GuestMemory>,
        bus: Arc<Bus>,
        gsi_first: u32,
        msi: Arc<dyn MsiRouter>,
        notifier: Arc<dyn Notifier>,
    ) -> Result<Arc<Self>, TransportError> {
        let id = device.id().to_owned();
        let sizes = device.queue_sizes();
        let fits = (1..=MAX_QUEUES).contains(&sizes.len())
            && sizes.iter().all(|size| size.is_power_of_two());
        if !fits {
            return Err(TransportError::Queues { id });
        }
        let queues = sizes.len();
        let events = |source| TransportError::Events {
            id: id.clone(),
            source,
        };
        let msix = Msix::new(vectors(queues) as u16, gsi_first, msi).map_err(events)?;
        let msix = Arc::new(msix);
        let kicks = (0..queues).map(|_| Ok(Arc::new(EventFd::new(EFD_NONBLOCK)?)));
        let kicks: Arc<[_]> = kicks.collect::<io::Result<_>>().map_err(events)?;
        let signals = Signals::new(queues, Arc::clone(&msix)).map_err(events)?;
        let signals = Arc::new(signals);
        let mapping = Mapping::new(bus, notifier, Arc::clone(&kicks));
        let function = Function::new(device.device_type(), initial_address(slot), &msix, mapping);
        let core = Core::new(device, memory, Arc::clone(&kicks), Arc::clone(&signals));
        let transport = Arc::new_cyclic(|weak| Self {
            id: id.clone(),
            function: Mutex::new(function.with_bar(Arc::new(Bar(weak.clone())))),
            core: Mutex::new(core),
            msix,
            signals,
            kicks,
        });
        let mapped = transport.lock_function().map();
        match mapped {
            Ok(()) => Ok(transport),
            Err(source) => Err(TransportError::Map { id, source }),
        }
    }

    /// The device's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Stops the device with nothing in flight; its queues are kept. Call when the vCPUs stand.
    pub fn pause(&self) {
        self.lock_core().pause();
    }

    /// Goes on after [`Self::pause`] or [`Self::restore`]. A device that cannot is left with
    /// DEVICE_NEEDS_RESET.
    pub fn resume(&self) {
        let mut function = self.lock_function();
        if let Err(error) = function.map() {
            tracing::warn!(device = self.id, %error, "registers are not mapped");
        }
        self.lock_core().resume();
    }

    /// Whether DEVICE_NEEDS_RESET is set: the driver broke its rings, or the host's side of the
    /// device refused at activation or [`Self::resume`].
    pub fn needs_reset(&self) -> bool {
        self.lock_core().has_status(VIRTIO_CONFIG_S_NEEDS_RESET)
    }

    /// Power-on state of function and device. What [`Self::pause`] did stays done.
    ///
    /// Where guests have moved BARs, another function may still be in this one's initial place;
    /// [`Self::resume`] maps what [`Self::reset`] and [`Self::restore`] had to leave unmapped, so
    /// pause all devices, reset all, resume all.
    pub fn reset(&self) {
        let mut function = self.lock_function();
        self.lock_core().reset();
        self.msix.reset();
        function.reset();
        if let Err(error) = function.map() {
            tracing::debug!(device = self.id, %error, "registers are not mapped after reset");
        }
    }

    /// The transport's section and the device's. Call between [`Self::pause`] and
    /// [`Self::resume`].
    ///
    /// # Errors
    /// [`StateError`] if the device runs or its state cannot be encoded.
    pub fn save(&self) -> Result<Vec<Section>, StateError> {
        let function = self.lock_function();
        let core = self.lock_core();
        state::save(&self.id, &function, &core, &self.signals, &self.msix)
    }

    /// Takes what [`Self::save`] gave, found among `sections` by kind and id; the device is then
    /// paused. The sections are hostile: everything in them is checked.
    ///
    /// # Errors
    /// [`StateError`]; the machine cannot run then, but may be reset.
    pub fn restore(&self, sections: &[Section]) -> Result<(), StateError> {
        let mut function = self.lock_function();
        let mut core = self.lock_core();
        state::restore(
            &self.id,
            sections,
            &mut function,
            &mut core,
            &self.signals,
            &self.msix,
        )
    }

    fn lock_function(&self) -> MutexGuard<'_, Function> {
        self.function.lock().expect("nobody panics under it")
    }

    fn lock_core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().expect("nobody panics under it")
    }
}

impl PciFunction for Transport {
    fn config_read(&self, offset: u8, data: &mut [u8]) {
        let function = self.lock_function();
        let access = function.window_access(offset, data.len());
        if let Some((address, len)) = access {
            drop(function);
            let mut register = [0; 4];
            self.read(address, &mut register[..len]);
            self.lock_function().set_window_data(register);
            self.lock_function().space.read(offset, data);
        } else {
            function.space.read(offset, data);
        }
    }

    fn config_write(&self, offset: u8, data: &[u8]) {
        let mut function = self.lock_function();
        function.space.write(offset, data);
        if Function::touches_mapping(offset, data.len())
            && let Err(error) = function.map()
        {
            // The guest put two functions at one address; it is tried again when this one is
            // written next.
            tracing::debug!(device = self.id, %error, "registers are not mapped");
        }
        if function.touches_msix(offset, data.len()) {
            self.msix.set_control(function.msix_control());
        }
        if let Some((address, len)) = function.window_access(offset, data.len()) {
            let register = function.window_data();
            drop(function);
            self.write(address, &register[..len]);
        }
    }
}

/// The BAR's content.
impl BusDevice for Transport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match Region::find(offset) {
            Some((Region::Common, at)) => self.lock_core().read_common(at, data),
            Some((Region::Isr, at)) => {
                data.fill(0);
                if let (0, Some(byte)) = (at, data.first_mut()) {
                    *byte = self.signals.take_isr();
                }
            }
            Some((Region::Device, at)) => self.lock_core().device.read_config(at, data),
            Some((Region::Notify, _)) => data.fill(0),
            Some((Region::MsixTable, at)) => self.msix.read_table(at, data),
            Some((Region::MsixPending, at)) => self.msix.read_pba(at, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match Region::find(offset) {
            Some((Region::Common, at)) => self.lock_core().write_common(at, data),
            Some((Region::Device, at)) => self.lock_core().device.write_config(at, data),
            Some((Region::Notify, at)) => {
                if let Some(kick) = self.kicks.get(mapping::notified_queue(at)) {
                    // Fails only when the counter is full: the kick is pending anyway.
                    let _ = kick.write(1);
                }
            }
            Some((Region::MsixTable, at)) => self.msix.write_table(at, data),
            Some((Region::Isr | Region::MsixPending, _)) | None => {}
        }
    }
}

impl BusDevice for Bar {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.0.upgrade() {
            Some(transport) => transport.read(offset, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(transport) = self.0.upgrade() {
            transport.write(offset, data);
        }
    }
}
