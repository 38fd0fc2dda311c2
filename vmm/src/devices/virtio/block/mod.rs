//! virtio-blk (virtio 1.2, section 5.2) over raw and qcow2 images.
//!
//! ```text
//! open ──► DiskResources (descriptors) ──► Block (configuration space, state)   BlockHandle
//!                                            │ activate / deactivate              │ resize, lock,
//!                                            ▼                                    ▼ quiesce, metrics
//!                            QueueHandler, one worker thread a queue ◄────────────┘
//!                  throttle ─► chain ─► request ─► Engine ─► used ring, interrupt
//!                                                   ├ Uring     raw images
//!                                                   ├ Blocking  raw images without io_uring
//!                                                   └ Pool      qcow2 images, on threads
//! ```
//!
//! All descriptors are opened before the device is made, and all threads and rings are made with
//! it: activation costs a message a queue and needs nothing that a sandbox forbids.

mod alignment;
mod bucket;
mod cache;
mod chain;
mod config_space;
mod disk;
mod engine;
mod handle;
mod lock;
mod metrics;
mod open;
mod pool;
mod qcow2;
mod qcow2_header;
mod queue;
mod raw;
mod request;
mod shared;
mod spin;
mod state;
mod throttle;
mod uring;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use pindah_vmm_api::{DiskLimits, ErrorPolicy};
use thiserror::Error;
use virtio_bindings::virtio_blk::VIRTIO_BLK_ID_BYTES;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_queue::Queue;

use super::worker::Worker;
use super::{ActivateError, Activation, VirtioDevice};
use crate::devices::MachineControl;
use crate::sandbox::ThreadKind;
use crate::state::{Section, StateError};
use config_space::ConfigSpace;
use disk::Disk;
use lock::ImageLocks;
use queue::QueueHandler;
use request::SECTOR_SIZE;
use shared::{Driver, Shared};
use state::{BlockState, KeptRequests};
use throttle::Throttle;

pub use disk::ResizeError;
pub use handle::{BlockHandle, QuiesceError};
pub use lock::LockError;
pub use metrics::{BlockMetrics, LATENCY_BUCKETS, OperationMetrics};
pub use open::{DiskResources, Image, ImageOptions, MAX_CHAIN, OpenDiskError, open};
pub use qcow2_header::Qcow2HeaderError;

/// Most queues of one device.
pub const MAX_QUEUES: u8 = 16;
/// Largest queue.
pub const MAX_QUEUE_SIZE: u16 = 1024;

/// What the guest is given, beside the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockOptions {
    /// Number of request queues, 1 to [`MAX_QUEUES`].
    pub queues: u8,
    /// Size of each: a power of two, 2 to [`MAX_QUEUE_SIZE`].
    pub queue_size: u16,
    /// Serial number, at most 20 bytes; empty: the device's id, cut there.
    pub serial: String,
    /// What happens when the host fails a request.
    pub on_error: ErrorPolicy,
    /// How much of its storage it may take.
    pub limits: DiskLimits,
}

/// Why a block device cannot be made.
#[derive(Debug, Error)]
pub enum BlockError {
    /// The options are out of range.
    #[error("disk {id}: {what} is {value}; it must be {allowed}")]
    Option {
        /// The device.
        id: String,
        /// Which option.
        what: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// The host refused something.
    #[error("disk {id}: {action}")]
    Host {
        /// The device.
        id: String,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

type Workers = Arc<[Worker<QueueHandler>]>;

/// A virtio-blk device.
pub struct Block {
    shared: Arc<Shared>,
    disk: Disk,
    /// Whether the image's file held all that was written to the disk when the driver's queues were
    /// last taken from it.
    is_settled: bool,
    workers: Workers,
    queue_sizes: Vec<u16>,
}

impl Block {
    /// Makes the device and its handle: one thread a queue, parked until the driver is ready.
    ///
    /// # Errors
    /// [`BlockError`]; nothing is left behind.
    pub fn new(
        id: &str,
        options: &BlockOptions,
        resources: DiskResources,
        control: Arc<dyn MachineControl>,
    ) -> Result<(Self, BlockHandle), BlockError> {
        Self::build(id, options, resources, control, true)
    }

    /// [`Self::new`], and a way for tests to do without io_uring.
    fn build(
        id: &str,
        options: &BlockOptions,
        resources: DiskResources,
        control: Arc<dyn MachineControl>,
        ring: bool,
    ) -> Result<(Self, BlockHandle), BlockError> {
        check(id, options)?;
        let host = |action| {
            move |source| BlockError::Host {
                id: id.to_owned(),
                action,
                source,
            }
        };
        let queues = options.queues;
        let shared = Arc::new(Shared {
            id: id.to_owned(),
            read_only: resources.read_only,
            on_error: options.on_error,
            serial: serial(if options.serial.is_empty() {
                id
            } else {
                &options.serial
            }),
            capacity_sectors: AtomicU64::new(resources.size / SECTOR_SIZE),
            writeback: AtomicBool::new(true),
            pause_requested: AtomicBool::new(false),
            throttle: Throttle::new(options.limits, Instant::now()),
            metrics: (0..queues)
                .map(|_| metrics::QueueMetrics::default())
                .collect(),
            control,
            driver: Mutex::new(Driver::default()),
        });
        let locks = ImageLocks::new(&resources).map_err(host("duplicate a descriptor"))?;
        let disk = Disk::new(resources).map_err(host("look into the image"))?;
        let slots = options.queue_size;
        let engines = disk.engines(id, queues, slots, ring);
        let mut workers = Vec::new();
        for (index, engine) in (0..).zip(engines.map_err(host("start an engine"))?) {
            let handler = QueueHandler::new(Arc::clone(&shared), index, engine, slots)
                .map_err(host("make a timer"))?;
            let name = format!("blk-{id}-{index}");
            let worker = Worker::spawn(&name, ThreadKind::Block, handler);
            workers.push(worker.map_err(host("start a thread"))?);
        }
        let workers: Workers = workers.into();
        let handle = BlockHandle::new(
            Arc::clone(&shared),
            Arc::clone(&workers),
            disk.clone(),
            locks,
        );
        let block = Self {
            shared,
            disk,
            is_settled: true,
            workers,
            queue_sizes: vec![options.queue_size; usize::from(queues)],
        };
        Ok((block, handle))
    }

    fn queues(&self) -> u16 {
        self.queue_sizes.len() as u16
    }

    fn on_worker<R: Send + 'static>(&self, call: impl FnOnce(&Disk) -> R + Send + 'static) -> R {
        on_worker(&self.workers, &self.disk, call)
    }
}

/// Runs `call` on the first worker's thread: a device is activated by a vCPU and resized by the
/// API, whose threads may not touch files.
fn on_worker<R: Send + 'static>(
    workers: &Workers,
    disk: &Disk,
    call: impl FnOnce(&Disk) -> R + Send + 'static,
) -> R {
    let disk = disk.clone();
    workers[0].call(move |_| call(&disk))
}

fn check(id: &str, options: &BlockOptions) -> Result<(), BlockError> {
    let fault = |what, value: String, allowed| BlockError::Option {
        id: id.to_owned(),
        what,
        value,
        allowed,
    };
    if !(1..=MAX_QUEUES).contains(&options.queues) {
        return Err(fault("queues", options.queues.to_string(), "1 to 16"));
    }
    let size = options.queue_size;
    if !size.is_power_of_two() || !(2..=MAX_QUEUE_SIZE).contains(&size) {
        let allowed = "a power of two from 2 to 1024";
        return Err(fault("queue_size", size.to_string(), allowed));
    }
    if options.serial.len() > VIRTIO_BLK_ID_BYTES as usize {
        let serial = format!("{:?}", options.serial);
        return Err(fault("serial", serial, "at most 20 bytes long"));
    }
    Ok(())
}

fn serial(text: &str) -> [u8; VIRTIO_BLK_ID_BYTES as usize] {
    let mut serial = [0; VIRTIO_BLK_ID_BYTES as usize];
    let len = text.len().min(serial.len());
    serial[..len].copy_from_slice(&text.as_bytes()[..len]);
    serial
}

impl VirtioDevice for Block {
    fn id(&self) -> &str {
        &self.shared.id
    }

    fn device_type(&self) -> u16 {
        VIRTIO_ID_BLOCK as u16
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        config_space::features(self.shared.read_only, self.queues())
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = ConfigSpace {
            capacity_sectors: self.shared.capacity_sectors.load(Ordering::Acquire),
            queues: self.queues(),
            queue_size: self.queue_sizes[0],
            writeback: self.shared.writeback.load(Ordering::Acquire),
        };
        space.read(offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let Some(position) = config_space::WRITEBACK.checked_sub(offset) else {
            return;
        };
        let byte = usize::try_from(position).ok().and_then(|at| data.get(at));
        if let Some(byte) = byte {
            self.shared.writeback.store(*byte != 0, Ordering::Release);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.shared.pause_requested.store(false, Ordering::Release);
        self.disk.open().map_err(|source| ActivateError::Backend {
            id: self.shared.id.clone(),
            action: "open the image",
            source,
        })?;
        for queue in activation.queues {
            let index = queue.index;
            let Some(worker) = self.workers.get(usize::from(index)) else {
                self.deactivate();
                return Err(ActivateError::Queues {
                    id: self.shared.id.clone(),
                    reason: format!("there is no queue {index}"),
                });
            };
            let started = worker.activate(Activation {
                memory: Arc::clone(&activation.memory),
                features: activation.features,
                queues: vec![queue],
                interrupt: Arc::clone(&activation.interrupt),
            });
            if let Err(error) = started {
                self.deactivate();
                return Err(error);
            }
        }
        let mut driver = self
            .shared
            .driver
            .lock()
            .expect("no thread panics under it");
        if std::mem::take(&mut driver.config_changed) {
            activation.interrupt.signal_config();
        }
        driver.interrupt = Some(activation.interrupt);
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<(u16, Queue)> {
        self.shared
            .driver
            .lock()
            .expect("no thread panics under it")
            .interrupt = None;
        let queues = self.workers.iter().map(Worker::deactivate);
        let queues = queues.flatten().collect();
        let settled = self.on_worker(Disk::settle);
        if let Err(error) = &settled {
            tracing::error!(device = self.shared.id, "write the image's tables: {error}");
        }
        self.is_settled = settled.is_ok();
        queues
    }

    fn save(&self) -> Result<Section, StateError> {
        let mut kept = Vec::new();
        for (queue, worker) in (0..).zip(self.workers.iter()) {
            let heads = worker.call(|handler| handler.kept().to_vec());
            if !heads.is_empty() {
                kept.push(KeptRequests { queue, heads });
            }
        }
        let state = BlockState {
            capacity_sectors: self.shared.capacity_sectors.load(Ordering::Acquire),
            writeback: self.shared.writeback.load(Ordering::Acquire),
            kept,
        };
        let section = Section::new(state::KIND, &self.shared.id, state::VERSION, &state)?;
        // The storage may have come back since the guest stands.
        if self.is_settled {
            return Ok(section);
        }
        match self.on_worker(Disk::settle) {
            Ok(()) => Ok(section),
            Err(error) => {
                let reason = format!("the image's tables could not be written: {error}");
                Err(section.invalid(reason))
            }
        }
    }

    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        let state: BlockState = section.parse(state::VERSION)?;
        let capacity = self.shared.capacity_sectors.load(Ordering::Acquire);
        if let Some(fault) = state.fault(capacity, self.queues(), self.queue_sizes[0]) {
            return Err(section.invalid(fault));
        }
        self.shared
            .writeback
            .store(state.writeback, Ordering::Release);
        for (queue, worker) in (0..).zip(self.workers.iter()) {
            let kept = state.kept.iter().find(|kept| kept.queue == queue);
            let heads = kept.map_or_else(Vec::new, |kept| kept.heads.clone());
            worker.call(move |handler| handler.keep(heads));
        }
        Ok(())
    }
}
