//! What a process writes to its standard output, taken as it comes.

use std::io::Read;
use std::process::ChildStdout;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::clock::Timed;
use crate::interrupt;

/// All that has come so far. A thread reads it, so that the writer never waits for us; it ends
/// with the process.
pub struct Output {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    taken: Mutex<Taken>,
    news: Condvar,
}

/// What has come.
#[derive(Default)]
struct Taken {
    timed: Timed,
    is_over: bool,
}

impl Output {
    /// Begins to take it.
    pub fn of(stdout: ChildStdout) -> Self {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        thread::spawn(move || theirs.fill(stdout));
        Self { shared }
    }

    /// What has come so far.
    pub fn taken(&self) -> Timed {
        self.shared.lock().timed.clone()
    }

    /// Waits until `found` says what it was looking for.
    ///
    /// # Errors
    /// After `patience`, or if the process has ended before.
    pub fn wait_for<T>(
        &self,
        what: &str,
        patience: Duration,
        found: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + patience;
        let mut taken = self.shared.lock();
        loop {
            interrupt::check()?;
            if let Some(found) = found(&taken.timed.bytes) {
                return Ok(found);
            }
            if taken.is_over {
                bail!("ended before its {what}");
            }
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                bail!("no {what} in time");
            }
            let wait = self
                .shared
                .news
                .wait_timeout(taken, rest.min(interrupt::SLICE));
            taken = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fill(&self, mut stdout: ChildStdout) {
        let mut buffer = [0; 4096];
        while let Ok(len @ 1..) = stdout.read(&mut buffer) {
            let now = Instant::now();
            self.lock().add(&buffer[..len], now);
            self.news.notify_all();
        }
        self.lock().is_over = true;
        self.news.notify_all();
    }
}

impl Taken {
    fn add(&mut self, bytes: &[u8], now: Instant) {
        self.timed.bytes.extend_from_slice(bytes);
        self.timed.pieces.push((self.timed.bytes.len(), now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn wait_for_finds_it_or_says_why_not() {
        let mut child = Command::new("sh")
            .args(["-c", "echo one; echo two"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = Output::of(child.stdout.take().unwrap());
        let patience = Duration::from_secs(20);
        let has = |wanted: &'static [u8]| {
            move |bytes: &[u8]| bytes.ends_with(wanted).then_some(bytes.len())
        };
        assert_eq!(output.wait_for("two", patience, has(b"two\n")).unwrap(), 8);
        let error = output.wait_for("three", patience, has(b"three\n"));
        assert_eq!(error.unwrap_err().to_string(), "ended before its three");
        child.wait().unwrap();
    }
}
