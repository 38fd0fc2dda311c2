//! virtio-balloon (virtio 1.2, section 5.5): the guest gives memory back, on request or whenever
//! it has some free.
//!
//! ```text
//! BalloonHandle ── target ─► num_pages ── config change ─► driver
//!                                                            │ page numbers   free ranges
//!                                                            ▼                ▼
//!                                     inflate queue ──► release ◄── reporting queue
//! ```
//!
//! A page that was given back reads as zero, and comes back by itself when it is touched: deflating
//! needs no work here.

mod handler;
mod release;
mod stats;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use pindah_vmm_api::{BalloonConfig, BalloonMetrics, GuestMemoryStats};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::timerfd::TimerFd;

use self::handler::BalloonHandler;
use self::release::Releaser;
use super::worker::Worker;
use super::{ActivateError, Activation, Interrupt, VirtioDevice};
use crate::memory::GuestMemory;
use crate::sandbox::ThreadKind;
use crate::state::{Section, StateError};

const KIND: &str = "virtio-balloon";
const VERSION: u16 = 1;
/// Inflate, deflate, statistics, reporting. Linux reports with chains of up to 32 buffers.
const QUEUE_SIZES: [u16; 4] = [128; 4];
/// Pages of 4096 bytes, the unit of the device's registers, in a MiB.
const PAGES_PER_MIB: u64 = 256;

/// Feature bits (section 5.5.3).
mod features {
    use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
    use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

    pub const STATS_VQ: u64 = 1 << 1;
    pub const DEFLATE_ON_OOM: u64 = 1 << 2;
    pub const PAGE_POISON: u64 = 1 << 4;
    pub const REPORTING: u64 = 1 << 5;
    pub const TRANSPORT: u64 =
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
}

// Device configuration (section 5.5.4).
const NUM_PAGES: usize = 0;
const ACTUAL: usize = 4;
const POISON: usize = 12;
const CONFIG_LEN: usize = 16;

/// Why the balloon cannot have this target.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a balloon of {target_mib} MiB is more than the {most_mib} MiB that the guest can spare")]
pub struct TargetError {
    /// What was asked for.
    pub target_mib: u64,
    /// The most that is possible.
    pub most_mib: u64,
}

/// What device, thread and handles share.
struct Shared {
    most_mib: u64,
    num_pages: AtomicU32,
    actual: AtomicU32,
    poison: AtomicU32,
    reported_bytes: AtomicU64,
    guest: Mutex<Option<GuestMemoryStats>>,
    /// There while the device is active.
    interrupt: Mutex<Option<Arc<dyn Interrupt>>>,
}

impl Shared {
    fn poison(&self) -> u32 {
        self.poison.load(Ordering::Relaxed)
    }

    fn add_reported(&self, bytes: u64) {
        self.reported_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn set_guest(&self, stats: GuestMemoryStats) {
        *self.lock_guest() = Some(stats);
    }

    fn lock_guest(&self) -> MutexGuard<'_, Option<GuestMemoryStats>> {
        self.guest.lock().expect("nobody panics under it")
    }

    fn lock_interrupt(&self) -> MutexGuard<'_, Option<Arc<dyn Interrupt>>> {
        self.interrupt.lock().expect("nobody panics under it")
    }
}

/// Steers a balloon and reads its figures, from any thread; never waits for the device.
#[derive(Clone)]
pub struct BalloonHandle {
    shared: Arc<Shared>,
}

impl BalloonHandle {
    /// Asks the guest to give back this much memory in all, in MiB. It does so in its own time.
    /// A guest that is paused or without a driver learns of it later.
    ///
    /// # Errors
    /// [`TargetError`]; the target stays.
    pub fn set_target_mib(&self, target_mib: u64) -> Result<(), TargetError> {
        let most_mib = self.shared.most_mib;
        let pages = target_mib.checked_mul(PAGES_PER_MIB);
        let pages = pages.and_then(|pages| u32::try_from(pages).ok());
        let (Some(pages), true) = (pages, target_mib <= most_mib) else {
            return Err(TargetError {
                target_mib,
                most_mib,
            });
        };
        self.shared.num_pages.store(pages, Ordering::Release);
        if let Some(interrupt) = &*self.shared.lock_interrupt() {
            interrupt.signal_config();
        }
        Ok(())
    }

    /// Memory that the guest is asked to give back, in MiB.
    pub fn target_mib(&self) -> u64 {
        u64::from(self.shared.num_pages.load(Ordering::Acquire)) / PAGES_PER_MIB
    }

    /// Memory that the guest says it has given back, in MiB.
    pub fn actual_mib(&self) -> u64 {
        u64::from(self.shared.actual.load(Ordering::Relaxed)) / PAGES_PER_MIB
    }

    /// What the guest said last of its memory; `None` until it does.
    pub fn stats(&self) -> Option<GuestMemoryStats> {
        self.shared.lock_guest().clone()
    }

    /// All figures.
    pub fn metrics(&self) -> BalloonMetrics {
        BalloonMetrics {
            target_mib: self.target_mib(),
            actual_mib: self.actual_mib(),
            reported_free_bytes: self.shared.reported_bytes.load(Ordering::Relaxed),
            guest: self.stats(),
        }
    }
}

/// The balloon.
pub struct Balloon {
    id: String,
    features: u64,
    queues: usize,
    shared: Arc<Shared>,
    worker: Worker<BalloonHandler>,
}

#[derive(Serialize, Deserialize)]
struct BalloonState {
    num_pages: u32,
    #[serde(default)]
    actual: u32,
    #[serde(default)]
    poison: u32,
    #[serde(default)]
    reported_bytes: u64,
    #[serde(default)]
    guest: Option<GuestMemoryStats>,
}

impl Balloon {
    /// Starts its thread, parked. `memory` is the guest's RAM, of which the balloon may hold up
    /// to `most_mib` MiB; a higher target in `config` is lowered to that.
    ///
    /// # Errors
    /// Whatever the host refuses: timer, thread, a look at what stands behind RAM.
    pub fn new(
        id: &str,
        config: &BalloonConfig,
        memory: &Arc<GuestMemory>,
        most_mib: u64,
    ) -> io::Result<Self> {
        let most_mib = most_mib.min(u64::from(u32::MAX) / PAGES_PER_MIB);
        let target_mib = config.target_mib.min(most_mib);
        let shared = Arc::new(Shared {
            most_mib,
            num_pages: AtomicU32::new((target_mib * PAGES_PER_MIB) as u32),
            actual: AtomicU32::new(0),
            poison: AtomicU32::new(0),
            reported_bytes: AtomicU64::new(0),
            guest: Mutex::default(),
            interrupt: Mutex::default(),
        });
        let handler = BalloonHandler {
            id: id.to_owned(),
            shared: Arc::clone(&shared),
            releaser: Releaser::new(Arc::clone(memory))?,
            timer: TimerFd::new()?,
            interval: Duration::from_secs(config.stats_interval_s.into()),
            active: None,
        };
        let features = offered(config);
        let optional = [features::STATS_VQ, features::REPORTING];
        let queues = 2 + optional.iter().filter(|bit| features & **bit != 0).count();
        Ok(Self {
            id: id.to_owned(),
            features,
            queues,
            shared,
            worker: Worker::spawn(id, ThreadKind::Device, handler)?,
        })
    }

    /// A handle that stays valid as long as anyone holds it.
    pub fn handle(&self) -> BalloonHandle {
        BalloonHandle {
            shared: Arc::clone(&self.shared),
        }
    }

    fn config_image(&self) -> [u8; CONFIG_LEN] {
        let shared = &self.shared;
        let registers = [
            (NUM_PAGES, shared.num_pages.load(Ordering::Acquire)),
            (ACTUAL, shared.actual.load(Ordering::Relaxed)),
            (POISON, shared.poison()),
        ];
        let mut image = [0; CONFIG_LEN];
        for (at, value) in registers {
            image[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        image
    }
}

/// PAGE_POISON comes with reporting: without it, Linux guests that fill freed pages do not
/// report (section 5.5.6.7).
fn offered(config: &BalloonConfig) -> u64 {
    let mut bits = features::TRANSPORT;
    if config.stats_interval_s > 0 {
        bits |= features::STATS_VQ;
    }
    if config.deflate_on_oom {
        bits |= features::DEFLATE_ON_OOM;
    }
    if config.free_page_reporting {
        bits |= features::REPORTING | features::PAGE_POISON;
    }
    bits
}

impl VirtioDevice for Balloon {
    fn id(&self) -> &str {
        &self.id
    }

    fn device_type(&self) -> u16 {
        VIRTIO_ID_BALLOON as u16
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES[..self.queues]
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let image = self.config_image();
        let start = usize::try_from(offset)
            .unwrap_or(CONFIG_LEN)
            .min(CONFIG_LEN);
        data.fill(0);
        for (byte, value) in data.iter_mut().zip(&image[start..]) {
            *byte = *value;
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let mut image = self.config_image();
        let start = usize::try_from(offset)
            .unwrap_or(CONFIG_LEN)
            .min(CONFIG_LEN);
        for (register, byte) in image[start..].iter_mut().zip(data) {
            *register = *byte;
        }
        let dword = |at: usize| {
            u32::from_le_bytes([image[at], image[at + 1], image[at + 2], image[at + 3]])
        };
        // The rest is read-only for the driver.
        self.shared.actual.store(dword(ACTUAL), Ordering::Relaxed);
        self.shared.poison.store(dword(POISON), Ordering::Relaxed);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut queues = activation.queues.iter();
        if queues.all(|active| active.queue.next_avail() == 0) {
            // A driver that has just started holds nothing, whatever the last one said.
            self.shared.actual.store(0, Ordering::Relaxed);
        }
        let interrupt = Arc::clone(&activation.interrupt);
        self.worker.activate(activation)?;
        // The target may have changed while nobody could be told. The signal comes second: a
        // target that is set in between is then seen with it.
        *self.shared.lock_interrupt() = Some(Arc::clone(&interrupt));
        interrupt.signal_config();
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<(u16, Queue)> {
        *self.shared.lock_interrupt() = None;
        self.worker.deactivate()
    }

    fn save(&self) -> Result<Section, StateError> {
        let shared = &self.shared;
        let state = BalloonState {
            num_pages: shared.num_pages.load(Ordering::Acquire),
            actual: shared.actual.load(Ordering::Relaxed),
            poison: shared.poison(),
            reported_bytes: shared.reported_bytes.load(Ordering::Relaxed),
            guest: shared.lock_guest().clone(),
        };
        Section::new(KIND, &self.id, VERSION, &state)
    }

    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        let state: BalloonState = section.parse(VERSION)?;
        let shared = &self.shared;
        let most = shared.most_mib * PAGES_PER_MIB;
        if u64::from(state.num_pages) > most {
            return Err(section.invalid(format!("target of {} pages of {most}", state.num_pages)));
        }
        shared.num_pages.store(state.num_pages, Ordering::Release);
        shared.actual.store(state.actual, Ordering::Relaxed);
        shared.poison.store(state.poison, Ordering::Relaxed);
        shared
            .reported_bytes
            .store(state.reported_bytes, Ordering::Relaxed);
        *shared.lock_guest() = state.guest;
        Ok(())
    }
}
