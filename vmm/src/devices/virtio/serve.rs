//! One turn at a queue, the same for every device that answers each chain at once.

use thiserror::Error;
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};

use super::{ActiveQueue, Interrupt};
use crate::memory::GuestMemory;

/// A chain as [`serve`] hands it out.
pub type Chain<'a> = DescriptorChain<&'a GuestMemory>;

/// Why a queue cannot be served any more: the driver broke its rings (virtio 1.2, section 2.7).
#[derive(Debug, Error)]
pub enum ServeError {
    /// The rings lie outside RAM, or their indices cannot be.
    #[error("queue {queue} is broken")]
    Ring {
        /// The queue's index.
        queue: u16,
        /// What was found.
        #[source]
        source: virtio_queue::Error,
    },
    /// The driver says there is a chain, but it cannot be read.
    #[error("queue {queue} has a chain that cannot be read")]
    Unreadable {
        /// The queue's index.
        queue: u16,
    },
    /// The device cannot make sense of a chain.
    #[error("queue {queue} has a chain that breaks the device's rules")]
    Malformed {
        /// The queue's index.
        queue: u16,
    },
}

/// A chain that the device cannot make sense of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Hands every chain that waits to `request`, which says how many bytes it has written, puts the
/// chain on the used ring and interrupts the driver if it wants that. With `None` from `request`
/// the chain stays with the device.
///
/// A turn takes no more chains than the queue holds; then the queue is kicked for the next turn,
/// so that a driver that never stops cannot keep a thread from its other work.
///
/// # Errors
/// [`ServeError`]; the device should ask for a reset and look at this queue no more.
pub fn serve(
    active: &mut ActiveQueue,
    memory: &GuestMemory,
    interrupt: &dyn Interrupt,
    mut request: impl FnMut(Chain) -> Result<Option<u32>, Malformed>,
) -> Result<(), ServeError> {
    let queue = active.index;
    let ring = |source| ServeError::Ring { queue, source };
    let mut left = active.queue.size();
    let mut used = false;
    let mut expected = false;
    loop {
        active.queue.disable_notification(memory).map_err(ring)?;
        let before = left;
        while left > 0 {
            let chain = active.queue.iter(memory).map_err(ring)?.next();
            let Some(chain) = chain else { break };
            left -= 1;
            let head = chain.head_index();
            let answer = request(chain).map_err(|Malformed| ServeError::Malformed { queue })?;
            if let Some(len) = answer {
                active.queue.add_used(memory, head, len).map_err(ring)?;
                used = true;
            }
        }
        if expected && left == before {
            return Err(ServeError::Unreadable { queue });
        }
        expected = active.queue.enable_notification(memory).map_err(ring)?;
        if !expected {
            break;
        }
        if left == 0 {
            // Fails only when the counter is full: the kick is pending anyway.
            let _ = active.kick.write(1);
            break;
        }
    }
    if used && active.queue.needs_notification(memory).map_err(ring)? {
        interrupt.signal_queue(queue);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use virtio_queue::QueueT;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::devices::virtio::testing::{DriverQueue, FakeInterrupt, memory, readable};

    fn active(driver: &DriverQueue) -> ActiveQueue {
        ActiveQueue {
            index: 0,
            queue: driver.queue(),
            kick: Arc::clone(&driver.kick),
        }
    }

    #[test]
    fn turn_takes_all_chains_and_interrupts_once() {
        let memory = memory(1);
        let mut driver = DriverQueue::new(&memory, 0x1000, 8);
        let heads = [(); 5].map(|()| driver.push(&[readable(0x8000, 4)]));
        let (mut active, interrupt) = (active(&driver), FakeInterrupt::new(1));
        serve(&mut active, &memory, &*interrupt, |_| Ok(Some(7))).unwrap();
        for head in heads {
            assert_eq!(driver.pop_used(), Some((head, 7)));
        }
        assert_eq!(driver.pop_used(), None);
        assert_eq!(interrupt.signalled().queues, [1]);
        serve(&mut active, &memory, &*interrupt, |_| Ok(Some(7))).unwrap();
        assert_eq!(interrupt.signalled().queues, [1]);
    }

    #[test]
    fn chain_that_the_device_keeps_is_not_used() {
        let memory = memory(1);
        let mut driver = DriverQueue::new(&memory, 0x1000, 8);
        driver.push(&[readable(0x8000, 4)]);
        let (mut active, interrupt) = (active(&driver), FakeInterrupt::new(1));
        serve(&mut active, &memory, &*interrupt, |_| Ok(None)).unwrap();
        assert_eq!(driver.pop_used(), None);
        assert_eq!(interrupt.signalled().queues, [0]);
    }

    #[test]
    fn driver_that_never_stops_gets_one_turn() {
        let memory = memory(1);
        let mut driver = DriverQueue::new(&memory, 0x1000, 4);
        let (mut active, interrupt) = (active(&driver), FakeInterrupt::new(1));
        driver.push(&[readable(0x8000, 4)]);
        let mut served = 0;
        serve(&mut active, &memory, &*interrupt, |_| {
            served += 1;
            driver.push(&[readable(0x8000, 4)]);
            Ok(Some(0))
        })
        .unwrap();
        assert_eq!(served, 4);
        assert_eq!(driver.kick.read().unwrap(), 1, "the next turn is asked for");
    }

    #[test]
    fn available_index_that_runs_away_is_an_error() {
        let memory = memory(1);
        let driver = DriverQueue::new(&memory, 0x1000, 4);
        let (mut active, interrupt) = (active(&driver), FakeInterrupt::new(1));
        let index = GuestAddress(driver.available_ring() + 2);
        memory.write_obj(100_u16, index).unwrap();
        let broken = serve(&mut active, &memory, &*interrupt, |_| Ok(Some(0)));
        assert!(matches!(broken, Err(ServeError::Ring { .. })));
    }

    #[test]
    fn head_beyond_the_queue_is_an_error() {
        let memory = memory(1);
        let mut driver = DriverQueue::new(&memory, 0x1000, 4);
        driver.publish(4);
        let (mut active, interrupt) = (active(&driver), FakeInterrupt::new(1));
        let broken = serve(&mut active, &memory, &*interrupt, |chain| {
            assert_eq!(chain.count(), 0);
            Ok(Some(0))
        });
        assert!(matches!(broken, Err(ServeError::Ring { .. })));
    }

    #[test]
    fn rings_outside_ram_are_an_error() {
        let memory = memory(1);
        let driver = DriverQueue::new(&memory, 0x1000, 4);
        let (mut active, interrupt) = (active(&driver), FakeInterrupt::new(1));
        active.queue.set_avail_ring_address(Some(0x20_0000), None);
        let broken = serve(&mut active, &memory, &*interrupt, |_| Ok(Some(0)));
        assert!(matches!(broken, Err(ServeError::Ring { .. })));
    }
}
