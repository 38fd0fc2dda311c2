//! The common configuration structure (virtio 1.2, section 4.1.4.3): what the driver reads and
//! writes before the device runs.

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};

use super::core::Core;

/// Length of the structure in bytes.
pub const COMMON_LEN: usize = 0x3c;

const DEVICE_FEATURE_SELECT: usize = 0x00;
const DEVICE_FEATURE: usize = 0x04;
const DRIVER_FEATURE_SELECT: usize = 0x08;
const DRIVER_FEATURE: usize = 0x0c;
const CONFIG_MSIX_VECTOR: usize = 0x10;
const NUM_QUEUES: usize = 0x12;
const DEVICE_STATUS: usize = 0x14;
const CONFIG_GENERATION: usize = 0x15;
const QUEUE_SELECT: usize = 0x16;
const QUEUE_SIZE: usize = 0x18;
const QUEUE_MSIX_VECTOR: usize = 0x1a;
const QUEUE_ENABLE: usize = 0x1c;
const QUEUE_NOTIFY_OFF: usize = 0x1e;
const QUEUE_DESC: usize = 0x20;
const QUEUE_DRIVER: usize = 0x28;
const QUEUE_DEVICE: usize = 0x30;

/// What the driver has said of one queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueRegisters {
    pub size: u16,
    pub enabled: bool,
    pub descriptor_table: u64,
    pub available_ring: u64,
    pub used_ring: u64,
}

/// What the driver has said; status and vectors are in [`super::signals::Signals`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    pub device_feature_select: u32,
    pub driver_feature_select: u32,
    pub driver_features: u64,
    pub queue_select: u16,
    pub queues: Vec<QueueRegisters>,
}

impl Registers {
    /// As after a reset, with queues at their largest.
    pub fn new(queue_sizes: &[u16]) -> Self {
        let queues = queue_sizes.iter().map(|&size| QueueRegisters {
            size,
            ..QueueRegisters::default()
        });
        Self {
            queues: queues.collect(),
            ..Self::default()
        }
    }
}

impl Core {
    /// Reads at `offset` of the structure; zeroes beyond its end.
    pub fn read_common(&self, offset: u64, data: &mut [u8]) {
        let image = self.common_image();
        for (byte, at) in data.iter_mut().zip(offset as usize..) {
            *byte = image.get(at).copied().unwrap_or(0);
        }
    }

    fn common_image(&self) -> [u8; COMMON_LEN] {
        let (registers, signals) = (&self.registers, &self.signals);
        let selected = registers.queue_select;
        let mut image = [0; COMMON_LEN];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(
            DEVICE_FEATURE_SELECT,
            &registers.device_feature_select.to_le_bytes(),
        );
        let offered = half(self.device.features(), registers.device_feature_select);
        put(DEVICE_FEATURE, &offered.to_le_bytes());
        put(
            DRIVER_FEATURE_SELECT,
            &registers.driver_feature_select.to_le_bytes(),
        );
        let accepted = half(registers.driver_features, registers.driver_feature_select);
        put(DRIVER_FEATURE, &accepted.to_le_bytes());
        put(CONFIG_MSIX_VECTOR, &signals.config_vector().to_le_bytes());
        put(NUM_QUEUES, &(registers.queues.len() as u16).to_le_bytes());
        put(DEVICE_STATUS, &[signals.status()]);
        put(CONFIG_GENERATION, &[signals.generation()]);
        put(QUEUE_SELECT, &selected.to_le_bytes());
        put(
            QUEUE_MSIX_VECTOR,
            &signals.queue_vector(selected).to_le_bytes(),
        );
        // A queue that does not exist has size 0.
        if let Some(queue) = registers.queues.get(usize::from(selected)) {
            put(QUEUE_SIZE, &queue.size.to_le_bytes());
            put(QUEUE_ENABLE, &u16::from(queue.enabled).to_le_bytes());
            put(QUEUE_NOTIFY_OFF, &selected.to_le_bytes());
            put(QUEUE_DESC, &queue.descriptor_table.to_le_bytes());
            put(QUEUE_DRIVER, &queue.available_ring.to_le_bytes());
            put(QUEUE_DEVICE, &queue.used_ring.to_le_bytes());
        }
        image
    }

    /// Writes at `offset` of the structure. Only writes as wide as the field count, 64-bit fields
    /// also by halves (section 4.1.3.1); others are lost.
    pub fn write_common(&mut self, offset: u64, data: &[u8]) {
        let offset = offset as usize;
        match data.len() {
            1 if offset == DEVICE_STATUS => self.write_status(data[0]),
            2 => self.write_word(offset, u16::from_le_bytes([data[0], data[1]])),
            4 | 8 if data.len() == 4 || is_qword(offset) => {
                for (dword, at) in data.chunks_exact(4).zip((offset..).step_by(4)) {
                    let value = u32::from_le_bytes([dword[0], dword[1], dword[2], dword[3]]);
                    self.write_dword(at, value);
                }
            }
            _ => {}
        }
    }

    fn write_word(&mut self, offset: usize, value: u16) {
        let selected = self.registers.queue_select;
        match offset {
            CONFIG_MSIX_VECTOR => self.signals.set_config_vector(value),
            QUEUE_SELECT => self.registers.queue_select = value,
            QUEUE_MSIX_VECTOR => self.signals.set_queue_vector(selected, value),
            QUEUE_SIZE => {
                let largest = self
                    .device
                    .queue_sizes()
                    .get(usize::from(selected))
                    .copied();
                let fits = value.is_power_of_two() && Some(value) <= largest;
                if let (Some(queue), true) = (self.open_queue(), fits) {
                    queue.size = value;
                }
            }
            QUEUE_ENABLE => {
                // Only a reset disables.
                if let (Some(queue), 1) = (self.open_queue(), value) {
                    queue.enabled = true;
                }
            }
            _ => {}
        }
    }

    fn write_dword(&mut self, offset: usize, value: u32) {
        match offset {
            DEVICE_FEATURE_SELECT => self.registers.device_feature_select = value,
            DRIVER_FEATURE_SELECT => self.registers.driver_feature_select = value,
            DRIVER_FEATURE => self.write_driver_feature(value),
            _ => {
                if let Some(queue) = self.open_queue() {
                    match offset & !7 {
                        QUEUE_DESC => set_half(&mut queue.descriptor_table, offset, value),
                        QUEUE_DRIVER => set_half(&mut queue.available_ring, offset, value),
                        QUEUE_DEVICE => set_half(&mut queue.used_ring, offset, value),
                        _ => {}
                    }
                }
            }
        }
    }

    fn write_driver_feature(&mut self, value: u32) {
        if self.has_status(VIRTIO_CONFIG_S_FEATURES_OK) {
            return;
        }
        let features = &mut self.registers.driver_features;
        match self.registers.driver_feature_select {
            0 => *features = *features >> 32 << 32 | u64::from(value),
            1 => *features = *features & 0xffff_ffff | u64::from(value) << 32,
            _ => {}
        }
    }

    /// The selected queue, if the driver may still set it up.
    fn open_queue(&mut self) -> Option<&mut QueueRegisters> {
        if self.has_status(VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET) {
            return None;
        }
        let selected = usize::from(self.registers.queue_select);
        let queue = self.registers.queues.get_mut(selected)?;
        (!queue.enabled).then_some(queue)
    }
}

/// Whether a 64-bit field is at `offset`.
fn is_qword(offset: usize) -> bool {
    matches!(offset, QUEUE_DESC | QUEUE_DRIVER | QUEUE_DEVICE)
}

/// 32 bits of `features`: zero for a `select` beyond both halves.
fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

/// Sets the half of a 64-bit register that a dword at `offset` is. `offset` is a multiple of 4 or
/// the write is lost.
fn set_half(register: &mut u64, offset: usize, value: u32) {
    match offset % 8 {
        0 => *register = *register >> 32 << 32 | u64::from(value),
        4 => *register = *register & 0xffff_ffff | u64::from(value) << 32,
        _ => {}
    }
}
