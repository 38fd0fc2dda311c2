//! Processor priority: precopy leaves the processor to guests, on both sides. A switchover does
//! not, since one of them waits for it, nor does precopy once a guest would have to be held for it,
//! or where guests leave so little that it would take many times as long.

use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

/// A quarter of a processor for which one vCPU competes (sched(7): the nice value).
const LOW: i32 = 5;
const NORMAL: i32 = 0;
/// For how long a thread of low priority may keep the processor from a vCPU that wakes, where the
/// kernel lets threads choose (since Linux 6.12; others ignore it). The usual 3 ms would be many
/// small blackouts.
const LOW_SLICE: Duration = Duration::from_micros(100);
/// `RLIMIT_NICE` whose ceiling is [`NORMAL`] (getrlimit(2): 20 less the nice value).
const RETURN_TO_NORMAL: u64 = 20;

/// What the thread gets of a processor is looked at over this time.
const LOOK: Duration = Duration::from_millis(500);

/// What the host lets the thread that migrates do with its priority.
#[derive(Clone, Copy, Debug, Default)]
pub struct Priority {
    may_return: bool,
}

impl Priority {
    /// Asks the host for the right to return to normal priority. Call while the process still has
    /// its own rights; without that one, priority is never lowered.
    pub fn of_host() -> Self {
        // Asking for the time for the first time takes a call that the sandbox forbids later.
        used();
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
        self.set(LOW, LOW_SLICE);
    }

    /// The calling thread is as it was.
    pub fn restore(self) {
        self.set(NORMAL, Duration::ZERO);
    }

    fn set(self, nice: i32, slice: Duration) {
        if !self.may_return {
            return;
        }
        let attributes = Attributes {
            size: size_of::<Attributes>() as u32,
            nice,
            slice_ns: slice.as_nanos() as u64,
            ..Attributes::default()
        };
        // SAFETY: it reads the attributes, which live until it returns and are as long as they
        // say, and touches no memory else.
        let done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
        if done != 0 {
            let error = std::io::Error::last_os_error();
            tracing::warn!(nice, %error, "sched_setattr");
        }
    }
}

/// `struct sched_attr` in its first version (sched_setattr(2)), for the policy `SCHED_OTHER`.
#[derive(Default)]
#[repr(C)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    /// The slice; 0: the kernel's own.
    slice_ns: u64,
    deadline_ns: u64,
    period_ns: u64,
}

/// The calling thread leaves the processor to others, as long as they leave it enough.
#[derive(Debug)]
pub struct LowPriority {
    priority: Priority,
    /// What it gets; `None` once it is as any other.
    share: Option<Share>,
}

impl LowPriority {
    /// Begins.
    pub fn begin(priority: Priority) -> Self {
        priority.lower();
        Self {
            priority,
            share: Some(Share::from_now()),
        }
    }

    /// Whether it still does.
    pub fn is_on(&self) -> bool {
        self.share.is_some()
    }

    /// Ends it if it gets too little. `waited` is how long it has waited for anything but a
    /// processor so far, `elsewhere` what another thread has used while this one waited for it.
    pub fn mind(&mut self, waited: Duration, elsewhere: Duration) {
        if let Some(share) = &mut self.share
            && share.is_short(waited, elsewhere)
        {
            tracing::info!("the host is busy: the migration goes on at normal priority");
            self.end();
        }
    }

    /// Ends it.
    pub fn end(&mut self) {
        if self.share.take().is_some() {
            self.priority.restore();
        }
    }
}

/// What the calling thread gets of a processor.
#[derive(Debug)]
struct Share {
    since: Instant,
    /// What it had waited and used by then.
    waited: Duration,
    used: Duration,
}

impl Share {
    /// Nothing so far.
    fn from_now() -> Self {
        Self {
            since: Instant::now(),
            waited: Duration::ZERO,
            used: used(),
        }
    }

    /// Whether others left it less than half of what it had use for, over the last [`LOOK`].
    /// See [`LowPriority::mind`].
    fn is_short(&mut self, waited: Duration, elsewhere: Duration) -> bool {
        let passed = self.since.elapsed();
        if passed < LOOK {
            return false;
        }
        let before = std::mem::replace(
            self,
            Self {
                since: Instant::now(),
                waited,
                used: used() + elsewhere,
            },
        );
        let needed = passed.saturating_sub(waited.saturating_sub(before.waited));
        let got = self.used.saturating_sub(before.used);
        needed > passed / 2 && got < needed / 2
    }
}

/// Processor time of the calling thread.
pub fn used() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime)
        .try_into()
        .unwrap_or_default()
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

    #[test]
    fn share_is_short_only_for_who_wants_it() {
        let mut share = Share::from_now();
        assert!(
            !share.is_short(Duration::ZERO, Duration::ZERO),
            "too early to tell"
        );
        std::thread::sleep(LOOK);
        // That it slept was all its own choice, or somebody kept it from running.
        let mut other = Share { ..share };
        assert!(!share.is_short(other.since.elapsed(), Duration::ZERO));
        assert!(!Share { ..other }.is_short(Duration::ZERO, other.since.elapsed()));
        assert!(other.is_short(Duration::ZERO, Duration::ZERO));
    }
}
