//! What happens to a guest, as it happens.

use serde::{Deserialize, Serialize};

use crate::{DiskLimits, MigrationReport, MigrationStatus};

/// One event: one line of the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Event {
    /// Counts from 1 without gaps in the life of one VMM process.
    pub sequence: u64,
    /// When, in milliseconds since the Unix epoch.
    pub time_unix_ms: u64,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventKind {
    /// The guest runs for the first time in this process: it was booted or restored.
    Started,
    /// The guest stands still.
    Paused {
        /// Why.
        reason: PauseReason,
    },
    /// The guest goes on.
    Resumed,
    /// The machine was reset.
    Reset {
        /// Who wanted it.
        by: Initiator,
    },
    /// The power button was pressed.
    PowerButton,
    /// The machine is off; the process ends.
    ShutDown {
        /// Who wanted it.
        by: Initiator,
    },
    /// The guest cannot go on; the process ends.
    Crashed {
        /// What the processor or KVM reported.
        reason: String,
        /// The vCPU that it happened on.
        vcpu: u8,
        /// The registers of that vCPU, where KVM still gave them.
        registers: Option<Box<Registers>>,
    },
    /// A snapshot is complete and on disk.
    SnapshotTaken {
        /// RAM that was written, in bytes; zero pages are not.
        memory_bytes: u64,
    },
    /// A disk has another size, and the guest was told.
    DiskResized {
        /// The disk.
        id: String,
        /// Its new size in bytes.
        size_bytes: u64,
    },
    /// A disk has other limits.
    DiskLimited {
        /// The disk.
        id: String,
        /// Its limits.
        limits: DiskLimits,
    },
    /// The host failed a disk request.
    DiskError {
        /// The disk.
        id: String,
        /// What failed and why.
        message: String,
    },
    /// The balloon has another target.
    BalloonTarget {
        /// Memory that the guest is asked to give back, in MiB.
        target_mib: u64,
    },
    /// The guest is on its way to another machine.
    MigrationStarted,
    /// How that is going, once a second.
    MigrationProgress {
        /// As `GET /api/v1/migrate` tells it.
        status: Box<MigrationStatus>,
    },
    /// The guest runs at the destination; this process ends.
    MigrationCompleted {
        /// What it took.
        report: Box<MigrationReport>,
    },
    /// The migration was given up and the guest goes on here, or it stands still because it may
    /// run at the destination, or it is lost.
    MigrationFailed {
        /// Why.
        reason: String,
        /// Whether the guest may run at the destination.
        in_doubt: bool,
        /// Whether the guest ran at the destination already, and cannot go on there for want of
        /// the pages that it had left behind. Both sides say so.
        #[serde(default)]
        lost: bool,
    },
    /// This reader was too slow and has missed what followed; the stream ends.
    Lagged,
}

/// Why a guest stands still.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "cause", rename_all = "snake_case")]
#[non_exhaustive]
pub enum PauseReason {
    /// Somebody asked for it.
    Requested,
    /// A snapshot is being taken.
    Snapshot,
    /// A migration switches over.
    Migration,
    /// A migration ended without the destination's answer: the guest may run there. `resume`
    /// takes it back only if its disks' locks tell that it does not.
    InDoubt,
    /// The guest ran at its migration's destination while some of its pages were still at its
    /// source, and these cannot be fetched any more. It never goes on, neither here nor there.
    PostcopyLost,
    /// A device could not do a request (`on_error = "pause"`).
    Device {
        /// The device.
        id: String,
        /// What failed and why.
        message: String,
        /// Nothing failed but that its storage is full. Otherwise the locks of the disks' images
        /// may be lost, as a NAS forgets those of a client that it has not heard of for longer
        /// than its lease; `relock` and `resume` take them anew.
        #[serde(default)]
        no_space: bool,
    },
}

/// Who wanted something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Initiator {
    /// The guest itself.
    Guest,
    /// A client of the API, or a signal.
    Host,
}

/// General registers and what decides how the processor reads them (Intel SDM, volume 1, 3.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[allow(missing_docs)]
pub struct Registers {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub cs: u16,
    pub ss: u16,
}
