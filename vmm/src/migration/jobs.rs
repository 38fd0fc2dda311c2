//! What the migration thread does for each job.

use pindah_vmm_api::{EventKind, MigrationPhase};

use super::worker::{Job, Progress};
use crate::vm::machine::Machine;

/// Does one job with `machine`, and tells `progress`.
pub fn perform(machine: &dyn Machine, job: Job, progress: &Progress) {
    let reason = match job {
        Job::Send(_outgoing) => "sending is not there yet",
        Job::Receive(_incoming) => "receiving is not there yet",
    };
    progress.update(|status| {
        status.phase = MigrationPhase::Failed;
        status.reason = Some(reason.to_owned());
    });
    machine.events().publish(EventKind::MigrationFailed {
        reason: reason.to_owned(),
        in_doubt: false,
    });
}
