//! A few threads for a disk whose operations block: as many of them run at a time.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::chain::Segment;
use super::engine::{Completion, Engine};
use super::qcow2::Qcow2Image;
use super::raw::GuestData;
use super::request::Operation;
use crate::memory::GuestMemory;
use crate::sandbox::{self, ThreadKind};

/// Threads a disk.
const THREADS: usize = 4;

/// The threads of one disk. They end when the last engine is gone.
pub(super) struct Pool {
    jobs: Sender<Job>,
    threads: Arc<Threads>,
}

struct Threads(Vec<JoinHandle<()>>);

struct Job {
    slot: u16,
    operation: Operation,
    data: Vec<Segment>,
    memory: Arc<GuestMemory>,
    outbox: Arc<Outbox>,
}

/// Where one queue's operations come back.
struct Outbox {
    done: Mutex<VecDeque<Completion>>,
    /// Length of `done`, to look at without the lock.
    count: AtomicUsize,
    armed: AtomicBool,
    event: EventFd,
}

impl Pool {
    /// Starts the threads for `image`.
    ///
    /// # Errors
    /// The host refuses a thread.
    pub fn new(id: &str, image: &Arc<Qcow2Image>) -> io::Result<Self> {
        let (jobs, receiver) = channel();
        let receiver = Arc::new(Mutex::new(receiver));
        let mut threads = Vec::new();
        for index in 0..THREADS {
            let receiver = Arc::clone(&receiver);
            let image = Arc::clone(image);
            let name = format!("qcow2-{id}-{index}");
            threads.push(sandbox::spawn(&name, ThreadKind::Block, move || {
                work(&receiver, &image);
            })?);
        }
        Ok(Self {
            jobs,
            threads: Arc::new(Threads(threads)),
        })
    }

    /// An engine for one queue.
    ///
    /// # Errors
    /// The host refuses an eventfd.
    pub fn engine(&self) -> io::Result<PoolEngine> {
        let outbox = Outbox {
            done: Mutex::new(VecDeque::new()),
            count: AtomicUsize::new(0),
            armed: AtomicBool::new(false),
            event: EventFd::new(EFD_NONBLOCK)?,
        };
        Ok(PoolEngine {
            jobs: self.jobs.clone(),
            _threads: Arc::clone(&self.threads),
            outbox: Arc::new(outbox),
            taken: VecDeque::new(),
        })
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        for thread in self.0.drain(..) {
            let _ = thread.join();
        }
    }
}

fn work(jobs: &Mutex<Receiver<Job>>, image: &Qcow2Image) {
    loop {
        let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else { return };
        let data = GuestData {
            memory: &job.memory,
            segments: &job.data,
        };
        let result = image.execute(&job.operation, data);
        job.outbox.push(Completion {
            slot: job.slot,
            data: job.data,
            result,
        });
    }
}

impl Outbox {
    fn push(&self, completion: Completion) {
        self.done
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(completion);
        // Sequentially consistent with the worker, which arms first and looks then.
        self.count.fetch_add(1, Ordering::SeqCst);
        if self.armed.swap(false, Ordering::SeqCst) {
            let _ = self.event.write(1);
        }
    }
}

/// Engine of one queue, in front of a [`Pool`].
pub(super) struct PoolEngine {
    /// Before the threads, which end when no sender is left.
    jobs: Sender<Job>,
    _threads: Arc<Threads>,
    outbox: Arc<Outbox>,
    taken: VecDeque<Completion>,
}

impl Engine for PoolEngine {
    fn submit(
        &mut self,
        slot: u16,
        operation: Operation,
        data: Vec<Segment>,
        memory: &Arc<GuestMemory>,
    ) {
        let job = Job {
            slot,
            operation,
            data,
            memory: Arc::clone(memory),
            outbox: Arc::clone(&self.outbox),
        };
        self.jobs
            .send(job)
            .expect("the threads live as long as this");
    }

    fn kick(&mut self) {}

    fn complete(&mut self, _memory: &GuestMemory) -> Option<Completion> {
        if self.taken.is_empty() && self.outbox.count.load(Ordering::SeqCst) > 0 {
            let mut done = self
                .outbox
                .done
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            std::mem::swap(&mut *done, &mut self.taken);
            self.outbox
                .count
                .fetch_sub(self.taken.len(), Ordering::SeqCst);
        }
        self.taken.pop_front()
    }

    fn is_ready(&mut self) -> bool {
        !self.taken.is_empty() || self.outbox.count.load(Ordering::SeqCst) > 0
    }

    fn event(&self) -> RawFd {
        self.outbox.event.as_raw_fd()
    }

    fn arm(&mut self) {
        self.outbox.armed.store(true, Ordering::SeqCst);
    }

    fn disarm(&mut self) {
        self.outbox.armed.store(false, Ordering::SeqCst);
    }

    fn drain(&mut self) {
        let _ = self.outbox.event.read();
    }
}
