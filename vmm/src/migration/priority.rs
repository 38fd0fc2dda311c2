//! Processor priority: precopy leaves the processor to guests. A switchover does not, since one of
//! them waits for it, nor does precopy once a guest would have to be held for it.

use rustix::process::{Resource, Rlimit, getrlimit, setpriority_process, setrlimit};

/// A quarter of a processor for which one vCPU competes (sched(7): the nice value).
const LOW: i32 = 5;
const NORMAL: i32 = 0;
/// `RLIMIT_NICE` whose ceiling is [`NORMAL`] (getrlimit(2): 20 less the nice value).
const RETURN_TO_NORMAL: u64 = 20;

/// What the host lets the thread that migrates do with its priority.
#[derive(Clone, Copy, Debug, Default)]
pub struct Priority {
    may_return: bool,
}

impl Priority {
    /// Asks the host for the right to return to normal priority. Call while the process still has
    /// its own rights; without that one, priority is never lowered.
    pub fn of_host() -> Self {
        let limit = getrlimit(Resource::Nice);
        let suffices = |limit: Option<u64>| limit.is_none_or(|limit| limit >= RETURN_TO_NORMAL);
        if suffices(limit.current) {
            return Self { may_return: true };
        }
        let raised = Rlimit {
            current: Some(RETURN_TO_NORMAL),
            maximum: limit.maximum.map(|most| most.max(RETURN_TO_NORMAL)),
        };
        let outcome = setrlimit(Resource::Nice, raised);
        if let Err(error) = outcome {
            tracing::debug!("RLIMIT_NICE: {error}; migrations keep their normal priority");
        }
        Self {
            may_return: outcome.is_ok(),
        }
    }

    /// The calling thread leaves the processor to others.
    pub fn lower(self) {
        self.set(LOW);
    }

    /// The calling thread is as it was.
    pub fn restore(self) {
        self.set(NORMAL);
    }

    fn set(self, nice: i32) {
        if self.may_return
            && let Err(error) = setpriority_process(None, nice)
        {
            tracing::warn!(nice, %error, "setpriority");
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::getpriority_process;

    use super::*;

    #[test]
    fn lowered_priority_returns_or_is_not_lowered() {
        let before = getpriority_process(None).unwrap();
        let priority = Priority::of_host();
        priority.lower();
        let lowered = getpriority_process(None).unwrap();
        assert_eq!(lowered > before, priority.may_return && before < LOW);
        priority.restore();
        assert!(getpriority_process(None).unwrap() <= before);
    }
}
