//! What the API may ask of a running machine, and how a machine ends.
//!
//! How the binary starts one (`cli/run.rs`):
//!
//! ```text
//! config::load(path) -> Config            validated once
//! Resources::open(&config) -> Resources   every file, tap and socket, by path, before the sandbox
//! sandbox::restrict(mode, …)              no paths, no capabilities, its own user from here on
//! Vm::build(&config, resources) -> Arc<Vm>
//! Migrator::spawn(…)                      the thread that may move it
//! Server::spawn(listener, vm.clone(), …)  the API, with its threads
//! sandbox::enter(ThreadKind::Control)     this thread's own filter, after all others have theirs
//! vm.run() -> ExitReason                  blocks
//! server.stop()                           the last events reach who listens
//! ```

use std::os::unix::net::UnixStream;

use pindah_vmm_api::{DiskLimits, Initiator, Metrics, RunState, VmInfo};
use thiserror::Error;

use super::events::Events;
use super::migratable::Migratable;
use super::ownership::OwnershipError;

/// A running machine as the API sees it. The VM's handle is one, and so is the fake that tests
/// the API.
///
/// [`Self::info`], [`Self::metrics`], [`Self::config`], [`Self::events`] and
/// [`Self::attach_console`] are called on the thread that serves all connections: they must not
/// wait for a device, a disk or a vCPU. All else is called on a second thread, one call at a
/// time, and may take as long as it needs. Commands that ask for what is already so are no error.
pub trait Machine: Send + Sync {
    /// What it is and how it is doing.
    fn info(&self) -> VmInfo;

    /// What it was built from, ids and addresses filled in, and its disks' limits as they are now.
    fn config(&self) -> pindah_vmm_api::VmConfig;

    /// Its counters.
    fn metrics(&self) -> Metrics;

    /// What happens to it. The machine publishes every event of [`pindah_vmm_api::EventKind`] but
    /// `SnapshotTaken`, which the snapshot does.
    fn events(&self) -> &Events;

    /// Stops vCPUs and parks devices.
    ///
    /// # Errors
    /// [`MachineError::State`] when it is off, [`MachineError::Host`] when it does not stop.
    fn pause(&self) -> Result<(), MachineError>;

    /// Goes on. A guest that may run elsewhere, after a migration that ended in doubt, goes on
    /// only if the locks on its disks tell that it does not, or by `force`: if it does run
    /// elsewhere, both write the same disks then. One that stands because a disk failed does so
    /// only with its locks, as [`Self::relock`] takes them.
    ///
    /// # Errors
    /// [`MachineError::State`] when it is off, [`MachineError::Moving`] while a migration switches
    /// over, [`MachineError::InDoubt`], [`MachineError::Lost`], [`MachineError::Locks`].
    fn resume(&self, force: bool) -> Result<(), MachineError>;

    /// Takes the locks of the disks' images anew where a disk has failed, and lets the guest stand:
    /// for who keeps a record of who may run the guest, and looks at it between this and
    /// [`Self::resume`]. Does nothing if no disk has failed since the locks were taken.
    ///
    /// # Errors
    /// [`MachineError::State`] unless it stands, [`MachineError::Moving`] while a migration switches
    /// over, [`MachineError::Locks`].
    fn relock(&self) -> Result<(), MachineError>;

    /// Presses the ACPI power button: the guest is asked to shut down, and may not listen.
    ///
    /// # Errors
    /// [`MachineError::State`] unless it runs.
    fn press_power_button(&self) -> Result<(), MachineError>;

    /// Takes the power away: [`ExitReason::ShutDown`] soon after.
    ///
    /// # Errors
    /// [`MachineError::State`] when it is off already.
    fn power_off(&self) -> Result<(), MachineError>;

    /// Resets the machine, whatever `on_reset` says of resets that the guest asks for.
    ///
    /// # Errors
    /// [`MachineError::State`] when it is off, [`MachineError::Host`] when it cannot start anew.
    fn reset(&self) -> Result<(), MachineError>;

    /// Asks the guest to give back this much memory, in MiB, in all.
    ///
    /// # Errors
    /// [`MachineError::NoDevice`] without a balloon, [`MachineError::Value`] when it is more than
    /// the guest has.
    fn set_balloon_target(&self, target_mib: u64) -> Result<(), MachineError>;

    /// Gives a disk another size, in bytes, and tells the guest.
    ///
    /// # Errors
    /// [`MachineError::NoDevice`], [`MachineError::Value`] for a size that the image or virtio
    /// cannot have, [`MachineError::Host`] when the image does not follow.
    fn resize_disk(&self, id: &str, size_bytes: u64) -> Result<(), MachineError>;

    /// Gives a disk other limits, all of them, from now on.
    ///
    /// # Errors
    /// [`MachineError::NoDevice`], [`MachineError::Value`] for a limit that is too low or too
    /// high, [`MachineError::State`] when it is off.
    fn limit_disk(&self, id: &str, limits: DiskLimits) -> Result<(), MachineError>;

    /// Makes `stream` a reader and writer of the console `id` (`serial` or `console`). On success
    /// `greeting` is the first that is written to it, then what was kept, then what comes. On
    /// failure nothing is written. The stream is non-blocking.
    ///
    /// # Errors
    /// [`MachineError::NoDevice`], or [`MachineError::Host`] when there are too many readers.
    fn attach_console(
        &self,
        id: &str,
        stream: UnixStream,
        greeting: &[u8],
    ) -> Result<(), MachineError>;

    /// The door for snapshot and migration.
    fn migratable(&self) -> &dyn Migratable;
}

/// Why a machine refuses.
#[derive(Debug, Error)]
pub enum MachineError {
    /// The guest has no such device (404).
    #[error("there is no {kind} {id}")]
    NoDevice {
        /// `disk`, `console`, `balloon`.
        kind: &'static str,
        /// The id asked for; empty where there can be only one.
        id: String,
    },
    /// The guest's state forbids it (409).
    #[error("{action} is not possible while the guest is {state}")]
    State {
        /// What was asked: `power button`, `resume`.
        action: &'static str,
        /// What the guest is.
        state: RunState,
    },
    /// A migration is just switching over, or ended in doubt (409).
    #[error("{action} is not possible while the guest moves to another machine or may run there")]
    Moving {
        /// What was asked.
        action: &'static str,
    },
    /// A part of the guest's memory is lost (409).
    #[error(
        "the guest is lost: not all of its memory came with its last migration; start it anew \
         from its disks"
    )]
    Lost,
    /// The guest may run elsewhere (409).
    #[error(
        "the guest may run elsewhere: {0}; look there first, and resume it here by force \
         (`ctl resume --force`) only if it does not run there"
    )]
    InDoubt(#[source] OwnershipError),
    /// The locks of its disks cannot be had (409).
    #[error("the guest stays paused, as a disk failed and its locks may be lost")]
    Locks(#[source] OwnershipError),
    /// A value that cannot be (422).
    #[error("{field} = {value}: {allowed}")]
    Value {
        /// Which one.
        field: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        allowed: String,
    },
    /// The host failed (500).
    #[error("{action}")]
    Host {
        /// What was tried, on what: `resize disk0`.
        action: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// How a machine ended, and with it the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// The machine was switched off, by this one.
    ShutDown(Initiator),
    /// The guest asked for a reset and `on_reset` is `exit`.
    ResetRequested,
    /// The guest cannot go on: triple fault, KVM error, unknown exit. Registers are in the log
    /// and in the event.
    GuestCrashed,
    /// The host took away what the guest needs, or the guest that was to come did not.
    HostError,
    /// The guest has moved to another machine and runs there.
    Migrated,
}

impl ExitReason {
    /// The process's exit code. 2 is the configuration's and the command line's.
    pub fn code(&self) -> u8 {
        match self {
            Self::ShutDown(_) => 0,
            Self::HostError => 1,
            Self::ResetRequested => 3,
            Self::GuestCrashed => 4,
            Self::Migrated => 5,
        }
    }
}
