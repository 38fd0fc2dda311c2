//! What a vCPU leaves KVM for, as we care about it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use pindah_vmm_api::ExitCounts;

/// Returns from `KVM_RUN` by reason. Exits that KVM handles itself do not show here.
#[derive(Debug, Default)]
pub struct ExitCounters {
    /// Port reads.
    pub io_in: AtomicU64,
    /// Port writes.
    pub io_out: AtomicU64,
    /// MMIO reads.
    pub mmio_read: AtomicU64,
    /// MMIO writes.
    pub mmio_write: AtomicU64,
    /// `hlt` that reached user space.
    pub halt: AtomicU64,
    /// Kicks and signals.
    pub interrupted: AtomicU64,
    /// Everything else.
    pub other: AtomicU64,
}

impl ExitCounters {
    /// One more. Each counter has one writer, so no read-modify-write is needed.
    pub(super) fn count(counter: &AtomicU64) {
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// The counters as the API shows them.
    pub fn counts(&self) -> ExitCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ExitCounts {
            io_in: read(&self.io_in),
            io_out: read(&self.io_out),
            mmio_read: read(&self.mmio_read),
            mmio_write: read(&self.mmio_write),
            halt: read(&self.halt),
            interrupted: read(&self.interrupted),
            other: read(&self.other),
        }
    }
}

/// Why a vCPU cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CrashReason {
    /// A fault within a double fault (`KVM_EXIT_SHUTDOWN`).
    TripleFault,
    /// The processor refused the guest's state (`KVM_EXIT_FAIL_ENTRY`).
    FailEntry {
        /// The processor's reason code.
        hardware_reason: u64,
    },
    /// KVM cannot emulate what the guest does (`KVM_EXIT_INTERNAL_ERROR`).
    InternalError {
        /// `KVM_INTERNAL_ERROR_*`.
        suberror: u32,
    },
    /// `KVM_RUN` itself failed.
    Run {
        /// The error number.
        errno: i32,
    },
    /// An exit that this machine never asked for.
    Unexpected {
        /// KVM's name or number of it.
        exit: String,
    },
}

impl fmt::Display for CrashReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TripleFault => write!(f, "triple fault"),
            Self::FailEntry { hardware_reason } => {
                write!(
                    f,
                    "the processor refused the guest's state (reason {hardware_reason:#x})"
                )
            }
            Self::InternalError { suberror } => {
                write!(f, "KVM internal error, suberror {suberror}")
            }
            Self::Run { errno } => {
                let error = std::io::Error::from_raw_os_error(*errno);
                write!(f, "KVM_RUN failed: {error}")
            }
            Self::Unexpected { exit } => write!(f, "unexpected exit {exit}"),
        }
    }
}
