//! The thread for operations that may take long. One at a time: lifecycle calls cannot cross.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use pindah_vmm_api::{
    AfterSnapshot, BalloonTarget, DiskLimits, DiskResize, ErrorCode, ErrorInfo, ResumeRequest,
};
use vmm_sys_util::eventfd::EventFd;

use super::refuse;
use super::response::Response;
use crate::causes::chain;
use crate::sandbox::{self, ThreadKind};
use crate::snapshot::{self, SnapshotError};
use crate::vm::machine::{Machine, MachineError};

/// One operation.
pub(super) enum Job {
    Pause,
    Resume(ResumeRequest),
    Relock,
    PressPowerButton,
    PowerOff,
    Reset,
    SetBalloon(BalloonTarget),
    ResizeDisk(String, DiskResize),
    LimitDisk(String, DiskLimits),
    TakeSnapshot {
        then: AfterSnapshot,
        state: File,
        memory: File,
    },
}

impl Job {
    /// Whether it would change the machine, or what is known of its memory.
    pub(super) fn disturbs_migration(&self) -> bool {
        !matches!(
            self,
            Self::PressPowerButton | Self::PowerOff | Self::LimitDisk(..)
        )
    }
}

/// A job that is done.
pub(super) struct Done {
    /// The connection that asked.
    pub(super) connection: u64,
    pub(super) response: Response,
}

/// The handle to the thread, which ends when this is dropped.
pub(super) struct Worker {
    jobs: Option<Sender<(u64, Job)>>,
    done: Receiver<Done>,
    cancelled: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread. `wake` is written whenever a job is done.
    pub(super) fn spawn(machine: Arc<dyn Machine>, wake: EventFd) -> io::Result<Self> {
        let (jobs, todo) = channel::<(u64, Job)>();
        let (reply, done) = channel();
        let cancelled = Arc::new(AtomicBool::new(false));
        let cancel = Arc::clone(&cancelled);
        let thread = sandbox::spawn("api-worker", ThreadKind::Operation, move || {
            for (connection, job) in todo {
                let response = run(&*machine, job, &cancel).unwrap_or_else(Response::error);
                let sent = reply.send(Done {
                    connection,
                    response,
                });
                // A counter that is full is readable; a server that has gone needs no answer.
                let _ = wake.write(1);
                if sent.is_err() {
                    return;
                }
            }
        })?;
        Ok(Self {
            jobs: Some(jobs),
            done,
            cancelled,
            thread: Some(thread),
        })
    }

    /// Queues a job. Returns whether the thread is there to do it.
    pub(super) fn submit(&self, connection: u64, job: Job) -> bool {
        if matches!(job, Job::TakeSnapshot { .. }) {
            self.cancelled.store(false, Ordering::Relaxed);
        }
        let jobs = self.jobs.as_ref().expect("only drop takes it");
        jobs.send((connection, job)).is_ok()
    }

    /// Makes a snapshot that is being taken fail soon.
    pub(super) fn cancel_snapshot(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// The next job that is done, if there is one.
    pub(super) fn next_done(&self) -> Option<Done> {
        self.done.try_recv().ok()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.cancel_snapshot();
        drop(self.jobs.take());
        // A job that a stalled disk holds up must not hold up the end of the process.
        if let Some(thread) = self.thread.take_if(|thread| thread.is_finished()) {
            let _ = thread.join();
        }
    }
}

fn run(machine: &dyn Machine, job: Job, cancelled: &AtomicBool) -> Result<Response, ErrorInfo> {
    let outcome = match job {
        Job::Pause => machine.pause(),
        Job::Resume(request) => machine.resume(request.force),
        Job::Relock => machine.relock(),
        Job::PressPowerButton => machine.press_power_button(),
        Job::PowerOff => machine.power_off(),
        Job::Reset => machine.reset(),
        Job::SetBalloon(target) => machine.set_balloon_target(target.target_mib),
        Job::ResizeDisk(id, resize) => machine.resize_disk(&id, resize.size_bytes),
        Job::LimitDisk(id, limits) => machine.limit_disk(&id, limits),
        Job::TakeSnapshot {
            then,
            state,
            memory,
        } => return take_snapshot(machine, then, &state, &memory, cancelled),
    };
    outcome.map_err(|error| machine_error(&error))?;
    Ok(Response::done())
}

fn take_snapshot(
    machine: &dyn Machine,
    then: AfterSnapshot,
    state: &File,
    memory: &File,
    cancelled: &AtomicBool,
) -> Result<Response, ErrorInfo> {
    let report = snapshot::take(machine.migratable(), state, memory, then, cancelled)
        .map_err(|error| snapshot_error(&error))?;
    machine
        .events()
        .publish(pindah_vmm_api::EventKind::SnapshotTaken {
            memory_bytes: report.written_bytes,
        });
    if then == AfterSnapshot::Exit {
        machine.power_off().map_err(|error| machine_error(&error))?;
    }
    Ok(Response::json(&report))
}

pub(super) fn machine_error(error: &MachineError) -> ErrorInfo {
    let code = match error {
        MachineError::NoDevice { .. } => ErrorCode::NotFound,
        MachineError::State { .. }
        | MachineError::Moving { .. }
        | MachineError::InDoubt(_)
        | MachineError::Locks(_)
        | MachineError::Lost => ErrorCode::Conflict,
        MachineError::Value { .. } => ErrorCode::InvalidValue,
        MachineError::Host { .. } => ErrorCode::HostError,
    };
    refuse(code, chain(error))
}

fn snapshot_error(error: &SnapshotError) -> ErrorInfo {
    let code = match error {
        SnapshotError::Cancelled | SnapshotError::Gone { .. } => ErrorCode::Conflict,
        SnapshotError::File { .. } => ErrorCode::InvalidValue,
        _ => ErrorCode::HostError,
    };
    refuse(code, chain(error))
}
