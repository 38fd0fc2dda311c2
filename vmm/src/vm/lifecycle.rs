//! A machine's life: who may change it, and how it ends.
//!
//! ```text
//! Created ── run ──► Running ◄── resume ── Paused
//!                      │  └──── pause ────────▲
//!                      ├─ power off ─► Stopped
//!                      └─ crash ─────► Crashed
//! ```
//! Transitions come one at a time: they hold `Life::transition`. The state that others read is
//! under `Life::now`, which is never held for long. Lock order: `transition`, then `now`.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pindah_vmm_api::{Initiator, PauseReason, RunState};

use crate::vcpu::Crash;

/// What devices, vCPUs and signals ask of the thread that runs the machine.
#[derive(Debug)]
pub(super) enum Request {
    /// The guest wants a reset.
    Reset,
    /// The power goes off.
    PowerOff(Initiator),
    /// A device cannot go on until somebody has looked.
    Pause {
        /// Its id.
        device: String,
        /// What failed and why.
        reason: String,
        /// Nothing failed but that its storage is full.
        no_space: bool,
    },
    /// The guest runs elsewhere.
    Leave,
    /// The guest that was to come does not.
    Dismiss,
    /// A vCPU cannot go on.
    Crash(Crash),
}

impl Request {
    /// Whether it is the guest's own, and means nothing after a reset.
    pub fn is_of_guest(&self) -> bool {
        !matches!(
            self,
            Self::PowerOff(Initiator::Host) | Self::Leave | Self::Dismiss
        )
    }
}

/// State, and since when.
#[derive(Debug)]
pub(super) struct Now {
    /// What the machine does.
    pub state: RunState,
    /// Why it stands, if it does.
    pub pause_reason: Option<PauseReason>,
    /// The right to run the guest was given up: it may run elsewhere.
    pub given_up: bool,
    /// A disk failed, and the locks of the disks' images may be lost with it.
    pub locks_in_doubt: bool,
    /// What the guest asked for just before it stood still to move: it is another machine's, unless
    /// the guest goes on here.
    pub deferred: Vec<Request>,
    /// When the machine first ran.
    pub started: Option<Instant>,
    paused_at: Option<Instant>,
    paused_before: Duration,
}

/// The machine's state and the right to change it.
#[derive(Debug)]
pub(super) struct Life {
    transition: Mutex<()>,
    now: Mutex<Now>,
}

impl Default for Life {
    fn default() -> Self {
        Self {
            transition: Mutex::default(),
            now: Mutex::new(Now {
                state: RunState::Created,
                pause_reason: None,
                given_up: false,
                locks_in_doubt: false,
                deferred: Vec::new(),
                started: None,
                paused_at: None,
                paused_before: Duration::ZERO,
            }),
        }
    }
}

impl Life {
    /// Waits for the right to change the state.
    pub fn begin(&self) -> MutexGuard<'_, ()> {
        self.transition
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The state as it is.
    pub fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Now {
    /// The guest runs from now on. Returns whether it does so for the first time.
    pub fn set_running(&mut self) -> bool {
        if let Some(since) = self.paused_at.take() {
            self.paused_before += since.elapsed();
        }
        self.state = RunState::Running;
        self.pause_reason = None;
        let first = self.started.is_none();
        self.started.get_or_insert_with(Instant::now);
        first
    }

    /// The guest stands from now on.
    pub fn set_paused(&mut self, reason: PauseReason) {
        self.state = RunState::Paused;
        self.pause_reason = Some(reason);
        self.paused_at = Some(Instant::now());
    }

    /// The right to run the guest was taken just now.
    pub fn set_taken(&mut self) {
        self.given_up = false;
        self.locks_in_doubt = false;
    }

    /// The guest never runs again.
    pub fn set_ended(&mut self, state: RunState) {
        self.state = state;
        self.pause_reason = None;
    }

    /// Whether the guest is on its way to another machine, may be there, or was lost on its way.
    pub fn is_moving(&self) -> bool {
        let moving = Some(PauseReason::Migration);
        self.pause_reason == moving || self.given_up || self.is_lost()
    }

    /// Whether a part of the guest's memory is lost: nobody may touch it, and it never goes on.
    pub fn is_lost(&self) -> bool {
        self.pause_reason == Some(PauseReason::PostcopyLost)
    }

    /// How long the guest stood still since it first ran.
    pub fn paused_for(&self) -> Duration {
        let current = self.paused_at.map_or(Duration::ZERO, |at| at.elapsed());
        self.paused_before + current
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_run_is_told_from_a_resume() {
        let life = Life::default();
        assert!(life.now().set_running());
        life.now().set_paused(PauseReason::Requested);
        assert_eq!(life.now().state, RunState::Paused);
        assert!(!life.now().set_running());
        assert!(life.now().pause_reason.is_none());
    }

    #[test]
    fn paused_time_counts_only_pauses() {
        let life = Life::default();
        life.now().set_running();
        assert_eq!(life.now().paused_for(), Duration::ZERO);
        life.now().set_paused(PauseReason::Requested);
        std::thread::sleep(Duration::from_millis(2));
        life.now().set_running();
        let paused = life.now().paused_for();
        assert!(paused >= Duration::from_millis(2));
        assert_eq!(life.now().paused_for(), paused);
    }
}
