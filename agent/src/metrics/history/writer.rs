//! The thread that writes what is pending: it alone waits for the disk.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;

use super::file::{File, damaged_path, is_damaged};
use super::{State, lock};
use crate::causes::chain;

/// How long the agent's end waits for the disk.
const FAREWELL: Duration = Duration::from_secs(3);

/// What the thread is told.
enum Word {
    /// Something is pending.
    Look,
    /// Write it and end.
    End(oneshot::Sender<()>),
}

/// The thread, which ends with the last of these.
#[derive(Clone)]
pub(super) struct Writer {
    words: SyncSender<Word>,
    path: PathBuf,
}

impl Writer {
    pub(super) fn start(path: &Path, state: &Arc<Mutex<State>>) -> Self {
        let (words, heard) = sync_channel(4);
        let thread = Thread {
            path: path.to_owned(),
            state: Arc::clone(state),
            file: None,
            failed: false,
        };
        let spawned = std::thread::Builder::new()
            .name("history".to_owned())
            .spawn(move || thread.run(&heard));
        if let Err(error) = spawned {
            tracing::error!("no history is written: no thread: {error}");
        }
        Self {
            words,
            path: path.to_owned(),
        }
    }

    /// One that is busy looks again by itself.
    pub(super) fn wake(&self) {
        let _ = self.words.try_send(Word::Look);
    }

    pub(super) async fn end(&self) {
        let (ended, end) = oneshot::channel();
        let words = self.words.clone();
        let told = tokio::task::spawn_blocking(move || words.send(Word::End(ended)));
        // The thread may hang on its disk, and then what is pending is lost.
        let _ = tokio::time::timeout(FAREWELL, async { (told.await, end.await) }).await;
    }

    pub(super) fn has_file(&self) -> bool {
        self.path.exists()
    }
}

struct Thread {
    path: PathBuf,
    state: Arc<Mutex<State>>,
    file: Option<File>,
    /// The last try failed, and that was said.
    failed: bool,
}

impl Thread {
    fn run(mut self, heard: &Receiver<Word>) {
        while let Ok(word) = heard.recv() {
            self.write_all();
            if let Word::End(ended) = word {
                // Whoever waited may have given up.
                let _ = ended.send(());
                return;
            }
        }
    }

    fn write_all(&mut self) {
        match self.try_write_all() {
            Ok(()) => {
                if std::mem::take(&mut self.failed) {
                    tracing::info!("{} is written again", self.path.display());
                }
            }
            Err(error) => {
                let path = self.path.display();
                if is_damaged(&error) {
                    self.put_aside(&error);
                } else if !std::mem::replace(&mut self.failed, true) {
                    let error = chain(&error);
                    tracing::error!("{path} cannot be written, and is tried on: {error}");
                }
                self.file = None;
            }
        }
    }

    /// Each minute is pending until it is written.
    fn try_write_all(&mut self) -> rusqlite::Result<()> {
        loop {
            let next = lock(&self.state).pending.front().cloned();
            let Some(minute) = next else { break };
            self.file()?.write(&minute)?;
            let mut state = lock(&self.state);
            let written = state.pending.front().map(|first| first.number);
            // Beyond the most that may wait, it was let go meanwhile.
            if written == Some(minute.number) {
                state.pending.pop_front();
            }
        }
        let now_s = lock(&self.state).time_to_forget();
        match now_s {
            Some(now_s) => self.file()?.forget(now_s),
            None => Ok(()),
        }
    }

    fn file(&mut self) -> rusqlite::Result<&mut File> {
        if self.file.is_none() {
            self.file = Some(File::open(&self.path)?);
        }
        Ok(self.file.as_mut().expect("it was opened above"))
    }

    /// The next minute begins a new one.
    fn put_aside(&mut self, error: &rusqlite::Error) {
        self.file = None;
        let (path, aside) = (&self.path, damaged_path(&self.path));
        let moved = std::fs::rename(path, &aside);
        for end in ["-wal", "-shm"] {
            let mut of_file = path.clone().into_os_string();
            of_file.push(end);
            // Often there is none.
            let _ = std::fs::remove_file(of_file);
        }
        let (path, aside) = (path.display(), aside.display());
        let error = chain(error);
        match moved {
            Ok(()) => tracing::error!(
                "{path} is damaged ({error}): it is {aside} now, and history begins anew"
            ),
            Err(moved) => {
                tracing::error!("{path} is damaged ({error}) and cannot be moved away: {moved}");
            }
        }
    }
}
