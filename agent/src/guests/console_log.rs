//! What a guest wrote on its serial port, kept within bounds.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use uuid::Uuid;

use super::{GuestError, Guests};

/// Size from which the log is put aside, in bytes.
const MAX: u64 = 4 << 20;
/// How often it is looked at.
const PERIOD: Duration = Duration::from_secs(60);

impl Guests {
    pub(super) fn console_log(&self, uuid: Uuid) -> PathBuf {
        super::vm_config::console_log(&self.directory(uuid))
    }

    /// The last `bytes` that the guest wrote on its serial port.
    ///
    /// # Errors
    /// [`GuestError::Io`].
    pub fn read_console_log(&self, uuid: Uuid, bytes: u64) -> Result<Vec<u8>, GuestError> {
        let path = self.console_log(uuid);
        match tail(&path, bytes) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            read => read.map_err(|source| GuestError::Io { path, source }),
        }
    }

    /// The log begins with this, as what the guest wrote elsewhere.
    pub(super) fn begin_console_log(&self, uuid: Uuid, bytes: &[u8]) -> io::Result<()> {
        let path = self.console_log(uuid);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(path, bytes)
    }

    /// Keeps the logs of all guests within bounds, for ever.
    pub async fn keep_console_logs_short(self) {
        let mut tick = tokio::time::interval(PERIOD);
        loop {
            tick.tick().await;
            let guests: Vec<Uuid> = self.machines().keys().copied().collect();
            for uuid in guests {
                let path = self.console_log(uuid);
                if let Err(error) = shorten(&path) {
                    tracing::warn!("cannot shorten {}: {error}", path.display());
                }
            }
        }
    }
}

fn tail(path: &Path, bytes: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
    let mut tail = Vec::new();
    file.take(bytes).read_to_end(&mut tail)?;
    Ok(tail)
}

/// The VMM appends, so what comes after goes to the start of the file. What it writes between copy
/// and cut is lost.
fn shorten(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX => {
            fs::copy(path, path.with_extension("log.1"))?;
            File::options().write(true).open(path)?.set_len(0)
        }
        _ => Ok(()),
    }
}
