//! Device status and the device's life (virtio 1.2, sections 2.1 and 3.1).
//!
//! ```text
//!        DRIVER_OK              activate
//! Idle ───────────► Ready ───────────────► Active
//!  ▲ ▲                │ ◄──── pause ─────────┤
//!  │ └──── reset ─────┘                      │
//!  └─────────────────────────── reset ───────┘
//! ```

use std::sync::Arc;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueState, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::common::{QueueRegisters, Registers};
use super::signals::Signals;
use crate::devices::virtio::{Activation, ActiveQueue, Interrupt, VirtioDevice};
use crate::memory::GuestMemory;

/// Where the queues are.
pub enum Phase {
    /// There are none: the driver has not said DRIVER_OK, or the device could not go on.
    Idle,
    /// Here, with their positions.
    Ready(Vec<(u16, Queue)>),
    /// With the device.
    Active,
}

/// Registers, and the device behind them.
pub struct Core {
    pub device: Box<dyn VirtioDevice>,
    pub registers: Registers,
    pub signals: Arc<Signals>,
    pub memory: Arc<GuestMemory>,
    pub phase: Phase,
    pub paused: bool,
    kicks: Arc<[Arc<EventFd>]>,
}

impl Core {
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: Arc<GuestMemory>,
        kicks: Arc<[Arc<EventFd>]>,
        signals: Arc<Signals>,
    ) -> Self {
        Self {
            registers: Registers::new(device.queue_sizes()),
            device,
            signals,
            memory,
            phase: Phase::Idle,
            paused: false,
            kicks,
        }
    }

    /// Whether any of these status bits is set.
    pub fn has_status(&self, bits: u32) -> bool {
        self.signals.status() & bits as u8 != 0
    }

    /// The driver writes device status: zero resets, bits may be added, none taken away.
    pub fn write_status(&mut self, value: u8) {
        if value == 0 {
            self.reset();
            return;
        }
        let needs_reset = VIRTIO_CONFIG_S_NEEDS_RESET as u8;
        let status = self.signals.status() & !needs_reset;
        let added = value & !status & !needs_reset;
        if status & !value != 0 {
            return;
        }
        let (features_ok, driver_ok) = (
            VIRTIO_CONFIG_S_FEATURES_OK as u8,
            VIRTIO_CONFIG_S_DRIVER_OK as u8,
        );
        self.signals.add_status(added & !features_ok);
        if added & features_ok != 0 && self.accepts(self.registers.driver_features) {
            self.signals.add_status(features_ok);
        }
        if added & driver_ok != 0 {
            self.start();
        }
    }

    /// Whether a driver may run the device with these features (section 2.2).
    pub fn accepts(&self, features: u64) -> bool {
        features & !self.device.features() == 0 && features & (1 << VIRTIO_F_VERSION_1) != 0
    }

    /// DRIVER_OK.
    fn start(&mut self) {
        let queues = if self.has_status(VIRTIO_CONFIG_S_FEATURES_OK) {
            self.build_queues()
        } else {
            None
        };
        match queues {
            Some(_) if self.has_status(VIRTIO_CONFIG_S_NEEDS_RESET) => {}
            Some(queues) => {
                self.phase = Phase::Ready(queues);
                self.activate();
            }
            None => self.signals.needs_reset(),
        }
    }

    /// The enabled queues as the driver has set them up; `None` if one of them cannot be.
    fn build_queues(&self) -> Option<Vec<(u16, Queue)>> {
        let enabled = self.registers.queues.iter().enumerate();
        let enabled = enabled.filter(|(_, registers)| registers.enabled);
        enabled
            .map(|(index, registers)| {
                let queue = self.queue(index, registers, (0, 0))?;
                Some((index as u16, queue))
            })
            .collect()
    }

    /// Queue `index` at `(next_avail, next_used)`, if its rings are aligned and lie in RAM.
    pub fn queue(
        &self,
        index: usize,
        registers: &QueueRegisters,
        (next_avail, next_used): (u16, u16),
    ) -> Option<Queue> {
        let features = self.registers.driver_features;
        let state = QueueState {
            max_size: *self.device.queue_sizes().get(index)?,
            next_avail,
            next_used,
            event_idx_enabled: features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0,
            size: registers.size,
            ready: registers.enabled,
            desc_table: registers.descriptor_table,
            avail_ring: registers.available_ring,
            used_ring: registers.used_ring,
        };
        let queue = Queue::try_from(state).ok()?;
        queue.is_valid(&*self.memory).then_some(queue)
    }

    /// Hands the queues to the device, unless the machine is paused.
    fn activate(&mut self) {
        let Phase::Ready(queues) = &mut self.phase else {
            return;
        };
        if self.paused {
            return;
        }
        let queues = std::mem::take(queues).into_iter();
        let queues = queues.filter_map(|(index, queue)| {
            let kick = Arc::clone(self.kicks.get(usize::from(index))?);
            Some(ActiveQueue { index, queue, kick })
        });
        let activation = Activation {
            memory: Arc::clone(&self.memory),
            features: self.registers.driver_features,
            queues: queues.collect(),
            interrupt: Arc::clone(&self.signals) as _,
        };
        match self.device.activate(activation) {
            Ok(()) => self.phase = Phase::Active,
            Err(error) => {
                tracing::warn!(%error, "device needs a reset");
                self.device.deactivate();
                self.phase = Phase::Idle;
                self.signals.needs_reset();
            }
        }
    }

    /// Device reset (section 2.4).
    pub fn reset(&mut self) {
        if matches!(self.phase, Phase::Active) {
            self.device.deactivate();
        }
        self.phase = Phase::Idle;
        self.registers = Registers::new(self.device.queue_sizes());
        self.signals.reset();
        for kick in self.kicks.iter() {
            let _ = kick.read();
        }
    }

    /// Takes the queues back from the device.
    pub fn pause(&mut self) {
        self.paused = true;
        if matches!(self.phase, Phase::Active) {
            self.phase = Phase::Ready(self.device.deactivate());
        }
    }

    /// Gives them to it again.
    pub fn resume(&mut self) {
        self.paused = false;
        self.activate();
        if matches!(self.phase, Phase::Active) {
            for kick in self.kicks.iter() {
                let _ = kick.write(1);
            }
        }
    }
}
