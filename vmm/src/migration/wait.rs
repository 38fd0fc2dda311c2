//! Waiting for sockets: until a deadline, or until somebody cancels.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

/// Ends every wait of one migration, at once and for good. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Cancel {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    set: AtomicBool,
    /// Readable for ever once it is set.
    wake: OwnedFd,
}

impl Cancel {
    /// One that is not set.
    ///
    /// # Errors
    /// The host has no eventfd left.
    pub fn new() -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let set = AtomicBool::new(false);
        Ok(Self {
            inner: Arc::new(Inner { set, wake }),
        })
    }

    /// Ends the waits that are and those that come.
    pub fn set(&self) {
        self.inner.set.store(true, Ordering::Release);
        // A counter that is full is readable.
        let _ = rustix::io::write(&self.inner.wake, &1_u64.to_ne_bytes());
    }

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.inner.set.load(Ordering::Acquire)
    }
}

impl AsFd for Cancel {
    /// Readable once it is set.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.wake.as_fd()
    }
}

/// Why a wait ended with nothing ready.
#[derive(Debug)]
pub(super) enum Ended {
    /// The deadline has passed.
    Late,
    /// Somebody cancelled.
    Cancelled,
    /// The host fails.
    Host(io::Error),
}

/// Waits until one of `descriptors` is ready for what it is asked for, or broken. Bit n of the
/// answer stands for the nth; there are at most 32.
pub(super) fn wait(
    descriptors: &[(BorrowedFd<'_>, PollFlags)],
    deadline: Instant,
    cancel: Option<&Cancel>,
) -> Result<u32, Ended> {
    assert!(descriptors.len() <= 32, "one bit each");
    let mut polled: Vec<PollFd<'_>> = descriptors
        .iter()
        .map(|(descriptor, wanted)| PollFd::from_borrowed_fd(*descriptor, *wanted))
        .collect();
    if let Some(cancel) = cancel {
        polled.push(PollFd::new(cancel, PollFlags::IN));
    }
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut polled, Some(&timeout)) {
            Ok(_) if cancel.is_some_and(Cancel::is_set) => return Err(Ended::Cancelled),
            Ok(0) => return Err(Ended::Late),
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(Ended::Host(error.into())),
        }
    }
    let ready = (0..)
        .zip(&polled[..descriptors.len()])
        .filter(|(_, polled)| !polled.revents().is_empty())
        .fold(0, |bits, (index, _)| bits | 1 << index);
    Ok(ready)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    #[test]
    fn wait_says_which_are_ready() {
        let pairs: Vec<_> = (0..3).map(|_| UnixStream::pair().unwrap()).collect();
        for index in [0, 2] {
            (&pairs[index].1).write_all(b"x").unwrap();
        }
        let asked: Vec<_> = pairs
            .iter()
            .map(|(stream, _)| (stream.as_fd(), PollFlags::IN))
            .collect();
        let deadline = Instant::now() + Duration::from_secs(10);
        assert_eq!(wait(&asked, deadline, None).unwrap(), 0b101);
    }

    #[test]
    fn wait_ends_when_late_and_when_cancelled_from_another_thread() {
        let (stream, _other) = UnixStream::pair().unwrap();
        let asked = [(stream.as_fd(), PollFlags::IN)];
        let cancel = Cancel::new().unwrap();
        let soon = Instant::now() + Duration::from_millis(5);
        let late = wait(&asked, soon, Some(&cancel));
        assert!(matches!(late, Err(Ended::Late)));
        let remote = cancel.clone();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(5));
            remote.set();
        });
        let start = Instant::now();
        let cancelled = wait(&asked, start + Duration::from_secs(60), Some(&cancel));
        assert!(matches!(cancelled, Err(Ended::Cancelled)));
        assert!(start.elapsed() < Duration::from_secs(10));
        assert!(cancel.is_set());
        thread.join().unwrap();
    }
}
