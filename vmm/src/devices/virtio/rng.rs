//! virtio-rng (virtio 1.2, section 5.4): fills the driver's buffers from the host's
//! `getrandom(2)`.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::Queue;

use super::serve::{Chain, Malformed, serve};
use super::worker::{Handler, Worker};
use super::{ActivateError, Activation, ActiveQueue, Interrupt, VirtioDevice};
use crate::memory::GuestMemory;
use crate::sandbox::ThreadKind;
use crate::state::{Section, StateError};

const KIND: &str = "virtio-rng";
const VERSION: u16 = 1;
const QUEUE_SIZES: [u16; 1] = [64];
/// The most that one chain gets. The driver asks again for more.
const CHAIN_BYTES: usize = 64 << 10;
/// Up to here `getrandom` neither blocks nor returns less (getrandom(2), NOTES).
const PIECE_BYTES: usize = 256;

/// The entropy device.
pub struct Rng {
    id: String,
    worker: Worker<RngHandler>,
}

/// The device has no state beside its queue.
#[derive(Serialize, Deserialize)]
struct RngState {}

impl Rng {
    /// Starts its thread, parked.
    ///
    /// # Errors
    /// Whatever the host refuses.
    pub fn new(id: &str) -> io::Result<Self> {
        Ok(Self {
            id: id.to_owned(),
            worker: Worker::spawn(id, ThreadKind::Device, RngHandler::default())?,
        })
    }
}

impl VirtioDevice for Rng {
    fn id(&self) -> &str {
        &self.id
    }

    fn device_type(&self) -> u16 {
        VIRTIO_ID_RNG as u16
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn read_config(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&mut self, _: u64, _: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.worker.activate(activation)
    }

    fn deactivate(&mut self) -> Vec<(u16, Queue)> {
        self.worker.deactivate()
    }

    fn save(&self) -> Result<Section, StateError> {
        Section::new(KIND, &self.id, VERSION, &RngState {})
    }

    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        section.parse::<RngState>(VERSION).map(|_| ())
    }
}

#[derive(Default)]
struct RngHandler {
    active: Option<Active>,
}

struct Active {
    memory: Arc<GuestMemory>,
    interrupt: Arc<dyn Interrupt>,
    queues: Vec<ActiveQueue>,
    /// A queue's rings are broken; nothing is looked at until the reset.
    broken: bool,
}

impl Active {
    fn serve(&mut self) {
        for active in &mut self.queues {
            if self.broken {
                return;
            }
            let memory = &self.memory;
            let served = serve(active, memory, &*self.interrupt, |chain| {
                fill(chain, memory).map(Some)
            });
            if let Err(error) = served {
                tracing::warn!(%error, "virtio-rng needs a reset");
                self.broken = true;
                self.interrupt.needs_reset();
            }
        }
    }
}

impl Handler for RngHandler {
    fn activate(&mut self, activation: Activation) -> Result<Vec<(RawFd, u32)>, ActivateError> {
        let queues = activation.queues;
        let kicks = queues.iter().map(|queue| (queue.kick.as_raw_fd(), 0));
        let kicks = kicks.collect();
        let active = self.active.insert(Active {
            memory: activation.memory,
            interrupt: activation.interrupt,
            queues,
            broken: false,
        });
        active.serve();
        Ok(kicks)
    }

    fn event(&mut self, _: u32) {
        if let Some(active) = &mut self.active {
            for queue in &active.queues {
                let _ = queue.kick.read();
            }
            active.serve();
        }
    }

    fn deactivate(&mut self) -> Vec<(u16, Queue)> {
        let queues = self
            .active
            .take()
            .map_or(Vec::new(), |active| active.queues);
        let queues = queues.into_iter().map(|queue| (queue.index, queue.queue));
        queues.collect()
    }
}

/// Fills what the driver may want of a chain; returns how many bytes that was.
fn fill(chain: Chain, memory: &GuestMemory) -> Result<u32, Malformed> {
    let mut writer = chain.writer(memory).map_err(|_| Malformed)?;
    let wanted = writer.available_bytes().min(CHAIN_BYTES);
    let mut piece = [0; PIECE_BYTES];
    let mut written = 0;
    while written < wanted {
        let piece = &mut piece[..PIECE_BYTES.min(wanted - written)];
        if random(piece).is_err() || writer.write_all(piece).is_err() {
            break;
        }
        written += piece.len();
    }
    Ok(written as u32)
}

fn random(buffer: &mut [u8]) -> io::Result<()> {
    // SAFETY: `buffer` is writable for its whole length during the call.
    let got = unsafe { libc::getrandom(buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    if usize::try_from(got) == Ok(buffer.len()) {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use virtio_queue::QueueT;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::devices::virtio::testing::{DriverQueue, activation, memory, readable, writable};

    const BUFFER: u64 = 0x8_0000;

    fn bytes(memory: &GuestMemory, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        memory.read_slice(&mut bytes, GuestAddress(BUFFER)).unwrap();
        bytes
    }

    #[test]
    fn request_before_and_after_activation_is_filled() {
        let memory = memory(1);
        let mut driver = DriverQueue::new(&memory, 0, 64);
        let mut rng = Rng::new("rng").unwrap();
        let first = driver.push(&[writable(BUFFER, 64)]);
        let (activation, interrupt) = activation(&memory, rng.features(), &[(0, &driver)]);
        rng.activate(activation).unwrap();
        assert_eq!(driver.wait_used(), (first, 64));
        let before = bytes(&memory, 64);
        assert_ne!(before, [0; 64]);
        let second = driver.push(&[writable(BUFFER, 32), writable(BUFFER + 32, 32)]);
        driver.kick();
        assert_eq!(driver.wait_used(), (second, 64));
        assert_ne!(bytes(&memory, 64), before);
        interrupt.wait(|signalled| signalled.queues == [2]);
    }

    #[test]
    fn request_that_is_huge_gets_the_bound() {
        let memory = memory(1);
        let mut driver = DriverQueue::new(&memory, 0, 64);
        let mut rng = Rng::new("rng").unwrap();
        let head = driver.push(&[writable(BUFFER, 0x4_0000)]);
        let (activation, _interrupt) = activation(&memory, rng.features(), &[(0, &driver)]);
        rng.activate(activation).unwrap();
        assert_eq!(driver.wait_used(), (head, CHAIN_BYTES as u32));
        let last: u64 = memory.read_obj(GuestAddress(BUFFER + 0x1_0000)).unwrap();
        assert_eq!(last, 0);
    }

    #[test]
    fn chain_without_room_is_given_back_empty() {
        let memory = memory(1);
        let mut driver = DriverQueue::new(&memory, 0, 64);
        let mut rng = Rng::new("rng").unwrap();
        let head = driver.push(&[readable(BUFFER, 64)]);
        let (activation, interrupt) = activation(&memory, rng.features(), &[(0, &driver)]);
        rng.activate(activation).unwrap();
        assert_eq!(driver.wait_used(), (head, 0));
        assert_eq!(bytes(&memory, 64), [0; 64]);
        assert!(!interrupt.signalled().needs_reset);
    }

    #[test]
    fn buffer_outside_ram_needs_reset_and_a_reset_helps() {
        let memory = memory(1);
        let mut driver = DriverQueue::new(&memory, 0, 64);
        let mut rng = Rng::new("rng").unwrap();
        driver.push(&[writable(0x10_0000 - 8, 64)]);
        let (broken, interrupt) = activation(&memory, rng.features(), &[(0, &driver)]);
        rng.activate(broken).unwrap();
        interrupt.wait(|signalled| signalled.needs_reset);
        driver.push(&[writable(BUFFER, 64)]);
        driver.kick();
        rng.deactivate();
        assert_eq!(driver.pop_used(), None, "nothing is looked at any more");

        let mut driver = DriverQueue::new(&memory, 0x4000, 64);
        let head = driver.push(&[writable(BUFFER, 64)]);
        let (whole, _interrupt) = activation(&memory, rng.features(), &[(0, &driver)]);
        rng.activate(whole).unwrap();
        assert_eq!(driver.wait_used(), (head, 64));
    }

    #[test]
    fn deactivate_gives_the_queue_back_at_its_position() {
        let memory = memory(1);
        let mut driver = DriverQueue::new(&memory, 0, 64);
        let mut rng = Rng::new("rng").unwrap();
        driver.push(&[writable(BUFFER, 64)]);
        let (activation, _interrupt) = activation(&memory, rng.features(), &[(0, &driver)]);
        rng.activate(activation).unwrap();
        let queues = rng.deactivate();
        assert_eq!(queues.len(), 1);
        assert_eq!((queues[0].1.next_avail(), queues[0].1.next_used()), (1, 1));
        assert!(rng.deactivate().is_empty());
    }

    #[test]
    fn save_restore_save_gives_the_same() {
        let rng = Rng::new("rng").unwrap();
        let saved = rng.save().unwrap();
        let mut other = Rng::new("rng").unwrap();
        other.restore(&saved).unwrap();
        assert_eq!(other.save().unwrap(), saved);
    }
}
