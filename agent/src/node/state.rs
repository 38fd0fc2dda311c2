//! The state directory's parts, and who may look into them.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::StartError;

/// How long an agent that was killed may still have the lock: by a child that it was just starting.
const PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);

/// The state directory.
pub(super) struct State {
    root: PathBuf,
}

impl State {
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The root is open for dnsmasq, which reads its own part without being root.
    pub(super) fn open(root: &Path) -> Result<(Self, fs::File), StartError> {
        make_directory(root, 0o755)?;
        let state = Self {
            root: root.to_owned(),
        };
        for name in ["private", "guests", "tasks"] {
            make_directory(&state.path(name), 0o700)?;
        }
        let lock = state.lock()?;
        Ok((state, lock))
    }

    fn lock(&self) -> Result<fs::File, StartError> {
        let path = self.path("lock");
        let mut options = fs::OpenOptions::new();
        let opened = options.write(true).create(true).truncate(false).mode(0o600);
        let lock = opened.open(&path).map_err(file_error("open", &path))?;
        let end = Instant::now() + PATIENCE;
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(lock),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < end => {
                    std::thread::sleep(POLL);
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(StartError::InUse(self.root.clone()));
                }
                Err(error) => return Err(file_error("lock", &path)(error.into())),
            }
        }
    }

    /// Whether the host has started since an agent last ran here.
    pub(super) fn host_restarted(&self) -> Result<bool, StartError> {
        let source = Path::new("/proc/sys/kernel/random/boot_id");
        let now = fs::read_to_string(source).map_err(file_error("read", source))?;
        let path = self.path("boot_id");
        let before = fs::read_to_string(&path).unwrap_or_default();
        fs::write(&path, &now).map_err(file_error("write", &path))?;
        Ok(before != now)
    }
}

fn make_directory(path: &Path, mode: u32) -> Result<(), StartError> {
    let mut builder = fs::DirBuilder::new();
    let created = builder.recursive(true).mode(mode).create(path);
    created.map_err(file_error("create", path))
}

pub(super) fn file_error(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(std::io::Error) -> StartError + use<> {
    let path = path.to_owned();
    move |source| StartError::File {
        action,
        path,
        source,
    }
}
