//! What the balloon's thread does with its queues.

use std::io::Read;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vmm_sys_util::timerfd::TimerFd;

use super::release::Releaser;
use super::{Shared, features, stats};
use crate::devices::virtio::serve::{Chain, Malformed, ServeError, serve};
use crate::devices::virtio::worker::Handler;
use crate::devices::virtio::{ActivateError, Activation, ActiveQueue, Interrupt};
use crate::memory::GuestMemory;

/// The most page numbers that one chain's are looked at; Linux sends 256.
const CHAIN_PAGES: usize = 64 << 10;
/// The most entries of statistics.
const STATS_ENTRIES: usize = 64;

/// The kick of any queue.
const KICK: u32 = 0;
/// Time to ask for statistics.
const TIMER: u32 = 1;

/// What a queue is for. Queues of features that were not negotiated are not numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Inflate,
    Deflate,
    Statistics,
    Reporting,
}

/// The handler of the balloon's [`crate::devices::virtio::worker::Worker`].
pub struct BalloonHandler {
    pub id: String,
    pub shared: Arc<Shared>,
    pub releaser: Releaser,
    pub timer: TimerFd,
    pub interval: Duration,
    pub active: Option<Active>,
}

/// What is there between activation and deactivation.
pub struct Active {
    memory: Arc<GuestMemory>,
    interrupt: Arc<dyn Interrupt>,
    queues: Vec<(Option<Role>, ActiveQueue)>,
    /// Reported pages must keep what they hold.
    is_poisoned: bool,
    /// Head of the statistics buffer, which stays with the device until it asks for new ones.
    held: Option<u16>,
    /// A queue's rings are broken; nothing is looked at until the reset.
    broken: bool,
}

impl Handler for BalloonHandler {
    fn activate(&mut self, activation: Activation) -> Result<Vec<(RawFd, u32)>, ActivateError> {
        let roles = roles(activation.features);
        let role = |queue: &ActiveQueue| roles.get(usize::from(queue.index)).copied();
        let queues = activation.queues.into_iter();
        let queues: Vec<_> = queues.map(|queue| (role(&queue), queue)).collect();
        let kicks = queues
            .iter()
            .map(|(_, queue)| (queue.kick.as_raw_fd(), KICK));
        let mut watched: Vec<_> = kicks.collect();
        if roles.contains(&Role::Statistics) {
            let armed = self.timer.reset(self.interval, Some(self.interval));
            armed.map_err(|error| ActivateError::Backend {
                id: self.id.clone(),
                action: "cannot set its timer",
                source: error.into(),
            })?;
            watched.push((self.timer.as_raw_fd(), TIMER));
        }
        let has_poison = activation.features & features::PAGE_POISON != 0;
        self.active = Some(Active {
            memory: activation.memory,
            interrupt: activation.interrupt,
            queues,
            is_poisoned: has_poison && self.shared.poison() != 0,
            held: None,
            broken: false,
        });
        self.serve();
        Ok(watched)
    }

    fn event(&mut self, token: u32) {
        if token == TIMER {
            // It is readable, and set anew only between events: this does not block.
            let _ = self.timer.wait();
            self.ask_for_statistics();
            return;
        }
        if let Some(active) = &self.active {
            for (_, queue) in &active.queues {
                let _ = queue.kick.read();
            }
        }
        self.serve();
    }

    fn deactivate(&mut self) -> Vec<(u16, Queue)> {
        let Some(active) = self.active.take() else {
            return Vec::new();
        };
        // Fails only for a timer that is not one.
        let _ = self.timer.clear();
        let queues = active.queues.into_iter().map(|(role, mut queue)| {
            if role == Some(Role::Statistics) && active.held.is_some() {
                // What was taken last is given back as if it had not been.
                let position = queue.queue.next_avail().wrapping_sub(1);
                queue.queue.set_next_avail(position);
            }
            (queue.index, queue.queue)
        });
        queues.collect()
    }
}

impl BalloonHandler {
    fn serve(&mut self) {
        let Some(active) = &mut self.active else {
            return;
        };
        if active.broken {
            return;
        }
        let served = active.serve(&self.releaser, &self.shared);
        active.check(served);
    }

    fn ask_for_statistics(&mut self) {
        let Some(active) = &mut self.active else {
            return;
        };
        if active.broken {
            return;
        }
        let asked = active.ask_for_statistics(&self.shared);
        active.check(asked);
    }
}

impl Active {
    fn check(&mut self, served: Result<(), ServeError>) {
        if let Err(error) = served {
            tracing::warn!(%error, "virtio-balloon needs a reset");
            self.broken = true;
            self.interrupt.needs_reset();
        }
    }

    fn serve(&mut self, releaser: &Releaser, shared: &Shared) -> Result<(), ServeError> {
        let (memory, interrupt) = (&self.memory, &*self.interrupt);
        for (role, queue) in &mut self.queues {
            match role {
                Some(Role::Inflate) => serve(queue, memory, interrupt, |chain| {
                    let mut pages = read_pages(chain, memory)?;
                    releaser.release_pages(&mut pages);
                    Ok(Some(0))
                })?,
                // Pages come back by themselves when they are touched.
                Some(Role::Deflate) => serve(queue, memory, interrupt, |_| Ok(Some(0)))?,
                Some(Role::Reporting) => {
                    let keep = self.is_poisoned;
                    serve(queue, memory, interrupt, |chain| {
                        if !keep {
                            shared.add_reported(release_buffers(chain, releaser));
                        }
                        Ok(Some(0))
                    })?;
                }
                Some(Role::Statistics) => {
                    take_statistics(queue, memory, &mut self.held, shared)?;
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Gives the statistics buffer back, upon which the driver fills it anew.
    fn ask_for_statistics(&mut self, shared: &Shared) -> Result<(), ServeError> {
        let Some(head) = self.held.take() else {
            return Ok(());
        };
        let mut queues = self.queues.iter_mut();
        let Some((_, active)) = queues.find(|(role, _)| *role == Some(Role::Statistics)) else {
            return Ok(());
        };
        let (queue, memory) = (active.index, &*self.memory);
        let ring = |source| ServeError::Ring { queue, source };
        active.queue.add_used(memory, head, 0).map_err(ring)?;
        if active.queue.needs_notification(memory).map_err(ring)? {
            self.interrupt.signal_queue(queue);
        }
        take_statistics(active, memory, &mut self.held, shared)
    }
}

fn roles(features: u64) -> Vec<Role> {
    let mut roles = vec![Role::Inflate, Role::Deflate];
    if features & features::STATS_VQ != 0 {
        roles.push(Role::Statistics);
    }
    if features & features::REPORTING != 0 {
        roles.push(Role::Reporting);
    }
    roles
}

/// Takes one buffer of statistics, if none is held. A driver has only one; should it have more,
/// they wait in the ring.
fn take_statistics(
    active: &mut ActiveQueue,
    memory: &GuestMemory,
    held: &mut Option<u16>,
    shared: &Shared,
) -> Result<(), ServeError> {
    let queue = active.index;
    let ring = |source| ServeError::Ring { queue, source };
    let mut expected = false;
    while held.is_none() {
        let chain = active.queue.iter(memory).map_err(ring)?.next();
        if let Some(chain) = chain {
            *held = Some(chain.head_index());
            let entries = read(chain, memory, STATS_ENTRIES * stats::ENTRY_BYTES)
                .map_err(|Malformed| ServeError::Malformed { queue })?;
            shared.set_guest(stats::parse(&entries, now_unix_ms()));
        } else if expected {
            return Err(ServeError::Unreadable { queue });
        } else {
            expected = active.queue.enable_notification(memory).map_err(ring)?;
            if !expected {
                break;
            }
        }
    }
    Ok(())
}

fn read_pages(chain: Chain, memory: &GuestMemory) -> Result<Vec<u32>, Malformed> {
    let bytes = read(chain, memory, CHAIN_PAGES * size_of::<u32>())?;
    let pages = bytes.chunks_exact(size_of::<u32>());
    let pages = pages.map(|page| u32::from_le_bytes([page[0], page[1], page[2], page[3]]));
    Ok(pages.collect())
}

/// The first `limit` bytes that the driver has put into a chain, or all if there are fewer.
fn read(chain: Chain, memory: &GuestMemory, limit: usize) -> Result<Vec<u8>, Malformed> {
    let mut reader = chain.reader(memory).map_err(|_| Malformed)?;
    let mut bytes = vec![0; reader.available_bytes().min(limit)];
    reader.read_exact(&mut bytes).map_err(|_| Malformed)?;
    Ok(bytes)
}

/// Gives back what the buffers of a chain cover; what is not RAM is passed over.
fn release_buffers(chain: Chain, releaser: &Releaser) -> u64 {
    let buffers = chain.writable();
    buffers
        .map(|buffer| releaser.release(buffer.addr().0, buffer.len().into()))
        .sum()
}

fn now_unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_millis() as u64)
}
