//! Saved state of a transport.

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK};
use virtio_queue::QueueT;

use super::capabilities::Function;
use super::common::{QueueRegisters, Registers};
use super::core::{Core, Phase};
use super::signals::{NO_VECTOR, Signals};
use crate::devices::pci::config::ConfigState;
use crate::devices::pci::msix::{Msix, MsixState};
use crate::state::{Section, StateError};

const KIND: &str = "virtio-pci";
const VERSION: u16 = 1;

#[derive(Serialize, Deserialize)]
struct TransportState {
    config: ConfigState,
    msix: MsixState,
    status: u8,
    #[serde(default)]
    isr: u8,
    #[serde(default)]
    config_generation: u8,
    #[serde(default = "no_vector")]
    config_vector: u16,
    #[serde(default)]
    device_feature_select: u32,
    #[serde(default)]
    driver_feature_select: u32,
    #[serde(default)]
    driver_features: u64,
    #[serde(default)]
    queue_select: u16,
    /// Whether the device had its queues: DRIVER_OK, and it could.
    running: bool,
    queues: Vec<QueueState>,
}

/// One queue, registers and positions.
#[derive(Serialize, Deserialize)]
struct QueueState {
    size: u16,
    enabled: bool,
    descriptor_table: u64,
    available_ring: u64,
    used_ring: u64,
    #[serde(default = "no_vector")]
    vector: u16,
    #[serde(default)]
    next_avail: u16,
    #[serde(default)]
    next_used: u16,
}

fn no_vector() -> u16 {
    NO_VECTOR
}

impl QueueState {
    fn registers(&self) -> QueueRegisters {
        QueueRegisters {
            size: self.size,
            enabled: self.enabled,
            descriptor_table: self.descriptor_table,
            available_ring: self.available_ring,
            used_ring: self.used_ring,
        }
    }
}

pub fn save(
    id: &str,
    function: &Function,
    core: &Core,
    signals: &Signals,
    msix: &Msix,
) -> Result<Vec<Section>, StateError> {
    let positions = match &core.phase {
        Phase::Idle => None,
        Phase::Ready(queues) => Some(queues),
        Phase::Active => {
            return Err(StateError::Invalid {
                kind: KIND.to_owned(),
                id: id.to_owned(),
                reason: "the device runs".to_owned(),
            });
        }
    };
    let registers = &core.registers;
    let queues = registers.queues.iter().zip(0..).map(|(queue, index)| {
        let mut kept = positions.into_iter().flatten();
        let kept = kept.find(|(number, _)| *number == index);
        QueueState {
            size: queue.size,
            enabled: queue.enabled,
            descriptor_table: queue.descriptor_table,
            available_ring: queue.available_ring,
            used_ring: queue.used_ring,
            vector: signals.queue_vector(index),
            next_avail: kept.map_or(0, |(_, queue)| queue.next_avail()),
            next_used: kept.map_or(0, |(_, queue)| queue.next_used()),
        }
    });
    let state = TransportState {
        config: function.space.save(),
        msix: msix.save(),
        status: signals.status(),
        isr: signals.isr(),
        config_generation: signals.generation(),
        config_vector: signals.config_vector(),
        device_feature_select: registers.device_feature_select,
        driver_feature_select: registers.driver_feature_select,
        driver_features: registers.driver_features,
        queue_select: registers.queue_select,
        running: positions.is_some(),
        queues: queues.collect(),
    };
    let section = Section::new(KIND, id, VERSION, &state)?;
    Ok(vec![section, core.device.save()?])
}

pub fn restore(
    id: &str,
    sections: &[Section],
    function: &mut Function,
    core: &mut Core,
    signals: &Signals,
    msix: &Msix,
) -> Result<(), StateError> {
    core.reset();
    core.paused = true;
    let section = find(sections, KIND, id)?;
    let state: TransportState = section.parse(VERSION)?;
    let device_kind = core.device.save()?.kind;
    let device_section = find(sections, &device_kind, id)?;

    check(&state, core).map_err(|reason| section.invalid(reason))?;
    core.registers = Registers {
        device_feature_select: state.device_feature_select,
        driver_feature_select: state.driver_feature_select,
        driver_features: state.driver_features,
        queue_select: state.queue_select,
        queues: state.queues.iter().map(QueueState::registers).collect(),
    };
    let queues = restore_queues(&state, core).map_err(|reason| section.invalid(reason))?;
    core.device.restore(device_section)?;
    core.phase = queues;
    signals.restore(state.status, state.isr, state.config_generation);
    signals.set_config_vector(state.config_vector);
    for (queue, index) in state.queues.iter().zip(0..) {
        signals.set_queue_vector(index, queue.vector);
    }
    function.restore(&state.config);
    msix.restore(&state.msix, function.msix_control());
    Ok(())
}

fn find<'a>(sections: &'a [Section], kind: &str, id: &str) -> Result<&'a Section, StateError> {
    let mut sections = sections.iter();
    let found = sections.find(|section| section.kind == kind && section.id == id);
    found.ok_or_else(|| StateError::Missing {
        kind: kind.to_owned(),
        id: id.to_owned(),
    })
}

/// What [`Registers`] must obey whoever wrote them.
fn check(state: &TransportState, core: &Core) -> Result<(), String> {
    let sizes = core.device.queue_sizes();
    if state.queues.len() != sizes.len() {
        return Err(format!(
            "{} queues where the device has {}",
            state.queues.len(),
            sizes.len()
        ));
    }
    for (queue, &largest) in state.queues.iter().zip(sizes) {
        if !queue.size.is_power_of_two() || queue.size > largest {
            return Err(format!("queue size {} of at most {largest}", queue.size));
        }
    }
    let features_ok = state.status & VIRTIO_CONFIG_S_FEATURES_OK as u8 != 0;
    if (features_ok || state.running) && !core.accepts(state.driver_features) {
        let missing = state.driver_features & !core.device.features();
        return Err(format!("features {missing:#x} are not offered here"));
    }
    let driver_ok = state.status & VIRTIO_CONFIG_S_DRIVER_OK as u8 != 0;
    if state.running && !driver_ok {
        return Err("the device runs without a driver".to_owned());
    }
    Ok(())
}

fn restore_queues(state: &TransportState, core: &Core) -> Result<Phase, String> {
    if !state.running {
        return Ok(Phase::Idle);
    }
    let mut queues = Vec::new();
    for (index, saved) in state.queues.iter().enumerate() {
        if saved.enabled {
            let positions = (saved.next_avail, saved.next_used);
            let queue = core.queue(index, &saved.registers(), positions);
            let queue = queue.ok_or_else(|| format!("rings of queue {index} are not in RAM"))?;
            queues.push((index as u16, queue));
        }
    }
    Ok(Phase::Ready(queues))
}
