//! What the migration thread does for each job.

use std::sync::Arc;

use pindah_vmm_api::{EventKind, MigrationPhase, MigrationStatus, RunState};

use super::destination::{self, Incoming, ReceiveError};
use super::priority::Priority;
use super::progress::Progress;
use super::request::Outgoing;
use super::source::{self, EncodingThread, Links, MigrationError};
use super::worker::Job;
use crate::causes::chain;
use crate::startup;
use crate::vm::machine::Machine;
use crate::vm::migratable::{MigrationDestination, MigrationSource};

/// Does one job with `machine`, and tells `progress` and who listens to the machine.
pub fn perform<M>(
    machine: &Arc<M>,
    job: Job,
    encoding: &EncodingThread,
    priority: Priority,
    progress: &Progress,
) where
    M: Machine + MigrationSource + MigrationDestination + 'static,
{
    let teller = Arc::clone(machine);
    progress.tell(move |status: &MigrationStatus| {
        let status = Box::new(status.clone());
        teller
            .events()
            .publish(EventKind::MigrationProgress { status });
    });
    match job {
        Job::Send(outgoing) => send(&**machine, *outgoing, encoding, priority, progress),
        Job::Receive(incoming) => receive(&**machine, incoming, priority, progress),
    }
}

fn send<M: Machine + MigrationSource>(
    machine: &M,
    outgoing: Outgoing,
    encoding: &EncodingThread,
    priority: Priority,
    progress: &Progress,
) {
    machine.events().publish(EventKind::MigrationStarted);
    let moved = match outgoing.identity() {
        Ok(identity) => {
            let links = Links {
                control: outgoing.control,
                data: outgoing.data,
                urgent: outgoing.urgent,
                identity,
                encoding,
            };
            source::migrate(machine, &outgoing.request, links, priority, progress)
        }
        Err(error) => {
            let reason = chain(&error);
            return fail(machine, progress, reason, MigrationPhase::Failed);
        }
    };
    match moved {
        Ok(report) => {
            let report = Box::new(report);
            machine
                .events()
                .publish(EventKind::MigrationCompleted { report });
            machine.leave();
        }
        Err(error) => {
            let phase = match error {
                MigrationError::InDoubt { .. } => MigrationPhase::InDoubt,
                MigrationError::Lost { .. } => MigrationPhase::Lost,
                _ => MigrationPhase::Failed,
            };
            fail(machine, progress, chain(&error), phase);
        }
    }
}

fn fail(machine: &dyn Machine, progress: &Progress, reason: String, phase: MigrationPhase) {
    tracing::warn!("the guest did not move: {reason}");
    progress.update(|status| {
        status.phase = phase;
        status.reason = Some(reason.clone());
    });
    machine.events().publish(EventKind::MigrationFailed {
        reason,
        in_doubt: phase == MigrationPhase::InDoubt,
        lost: phase == MigrationPhase::Lost,
    });
}

fn receive<M: Machine + MigrationDestination>(
    machine: &M,
    incoming: Incoming,
    priority: Priority,
    progress: &Progress,
) {
    let received = destination::receive(machine, incoming, priority, progress);
    match received {
        Ok(running) => {
            tracing::info!(?running, "the guest runs here");
            startup::give_back_code();
        }
        // The process stays, so that who asks hears it.
        Err(error @ ReceiveError::Lost(_)) if machine.info().state == RunState::Paused => {
            fail(machine, progress, chain(&error), MigrationPhase::Lost);
        }
        Err(error) => {
            tracing::error!("no guest came: {}", chain(&error));
            fail(machine, progress, chain(&error), MigrationPhase::Failed);
            machine.dismiss();
        }
    }
}
