//! Whose turn it is: an installer runs on each console, and one of them installs.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

/// How often a log is looked at that somebody else writes.
const PAUSE: Duration = Duration::from_millis(300);

/// The right to install, kept as long as this is.
#[derive(Debug)]
pub struct Turn {
    _lock: File,
    done: PathBuf,
}

/// What [`Turn::take`] says.
#[derive(Debug)]
pub enum Taken {
    /// It is ours.
    Ours(Turn),
    /// It is somebody else's now.
    Theirs,
    /// The machine is installed already.
    Done,
}

impl Turn {
    /// Takes it, if it is free. `log` is the log of all installers.
    ///
    /// # Errors
    /// The lock beside the log cannot be made.
    pub fn take(log: &Path) -> io::Result<Taken> {
        let mut options = OpenOptions::new();
        let lock = options.create(true).truncate(false).write(true);
        let lock = lock.open(log.with_extension("lock"))?;
        let done = log.with_extension("done");
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(Taken::Theirs);
        }
        if done.exists() {
            return Ok(Taken::Done);
        }
        Ok(Taken::Ours(Self { _lock: lock, done }))
    }

    /// Tells the other consoles that the machine is installed.
    ///
    /// # Errors
    /// The file beside the log cannot be made.
    pub fn done(self) -> io::Result<()> {
        File::create(&self.done).map(drop)
    }
}

/// Shows what is added to `log` on `console`, until it is no more somebody else's turn.
///
/// # Errors
/// Neither log nor lock can be read.
pub fn follow(log: &Path, console: &mut dyn Write) -> io::Result<Taken> {
    let mut file = File::open(log)?;
    let mut shown = 0;
    loop {
        let taken = Turn::take(log)?;
        file.seek(SeekFrom::Start(shown))?;
        let mut text = Vec::new();
        shown += file.read_to_end(&mut text)? as u64;
        let text = String::from_utf8_lossy(&text).replace('\n', "\r\n");
        console.write_all(text.as_bytes())?;
        console.flush()?;
        if !matches!(taken, Taken::Theirs) {
            return Ok(taken);
        }
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Log;

    #[test]
    fn one_console_installs_and_the_other_looks_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("install.log");
        let log = Log::open(&path).unwrap();
        let Taken::Ours(turn) = Turn::take(&path).unwrap() else {
            panic!("it is nobody's turn");
        };
        assert!(matches!(Turn::take(&path).unwrap(), Taken::Theirs));
        log.say("half");
        let other = std::thread::spawn({
            let path = path.clone();
            move || {
                let mut console = Vec::new();
                let taken = follow(&path, &mut console).unwrap();
                (
                    String::from_utf8(console).unwrap(),
                    matches!(taken, Taken::Done),
                )
            }
        });
        log.say("all");
        turn.done().unwrap();
        let (console, done) = other.join().unwrap();
        assert!(
            console.contains("] half\r\n") && console.contains("] all\r\n"),
            "{console}"
        );
        assert!(done);
    }

    #[test]
    fn turn_is_free_again_when_an_installation_fails() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("install.log");
        for _ in 0..2 {
            assert!(matches!(Turn::take(&path).unwrap(), Taken::Ours(_)));
        }
    }
}
