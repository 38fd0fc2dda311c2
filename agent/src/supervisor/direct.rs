//! Start and adoption: the agent starts the VMM itself, and finds it again after a restart.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use pindah_vmm_api::{EventKind, Initiator, User, VmConfig};
use thiserror::Error;
use tokio::process::{Child, Command};

use super::{Identity, find_process};
use crate::files;

/// Written by us, in the guest's directory.
const CONFIG: &str = "vm.json";
const IDENTITY: &str = "process.json";
const API_SOCKET: &str = "api";
/// Written by the VMM when the machine has been switched off.
const END: &str = "end.json";
/// What the VMM says on its standard output.
const SAID: &str = "said";
const LOG: &str = "vmm.log";
/// Put before a log that has grown beyond [`LOG_MAX`].
const OLD_LOG: &str = "vmm.log.1";
/// Size from which the log of earlier starts is put aside, in bytes.
const LOG_MAX: u64 = 1 << 20;
/// How much of the log an error repeats, in bytes.
const LOG_TAIL: usize = 600;

/// What a VMM is started for.
#[derive(Clone, Debug)]
pub enum Purpose {
    /// To run a guest from its disks.
    Run,
    /// To wait for a guest from another node.
    Receive {
        /// Where.
        address: IpAddr,
        /// One of these is taken.
        ports: RangeInclusive<u16>,
        /// A directory with `ca.pem`, `cert.pem` and `key.pem`.
        keys: PathBuf,
        /// It ends if no guest has begun to come by then.
        patience: Duration,
    },
}

impl Purpose {
    fn arguments(&self) -> Vec<OsString> {
        match self {
            Self::Run => vec!["run".into()],
            Self::Receive {
                address,
                ports,
                keys,
                patience,
            } => vec![
                "receive".into(),
                "--listen".into(),
                format!(
                    "{}-{}",
                    SocketAddr::new(*address, *ports.start()),
                    ports.end()
                )
                .into(),
                "--tls".into(),
                keys.into(),
                "--timeout-s".into(),
                patience.as_secs().to_string().into(),
            ],
        }
    }
}

/// Starts and adopts VMMs.
#[derive(Clone, Debug)]
pub struct Direct {
    /// The VMM's program.
    vmm: PathBuf,
    /// Whom it becomes.
    user: Option<User>,
}

/// Why there is no process.
#[derive(Debug, Error)]
pub enum SpawnError {
    /// A file in the guest's directory.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The program does not start.
    #[error("cannot start {program}")]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A VMM that runs, or ran when we last looked.
#[derive(Debug)]
pub struct GuestProcess {
    identity: Identity,
    /// Present if it is our child: then we reap it.
    child: Option<Child>,
}

impl Direct {
    /// Starts guests by this program.
    pub fn new(vmm: PathBuf) -> Self {
        Self { vmm, user: None }
    }

    /// Has them run as this user, when they have opened what they need.
    #[must_use]
    pub fn as_user(self, user: Option<User>) -> Self {
        Self { user, ..self }
    }

    /// The API socket of the VMM in `directory`.
    pub fn api_socket(directory: &Path) -> PathBuf {
        directory.join(API_SOCKET)
    }

    /// Starts a guest whose files lie in `directory`. It may have ended again when this returns.
    ///
    /// # Errors
    /// [`SpawnError`].
    pub fn spawn(
        &self,
        directory: &Path,
        config: &VmConfig,
        purpose: &Purpose,
    ) -> Result<GuestProcess, SpawnError> {
        let config_path = directory.join(CONFIG);
        write_json(&config_path, config)?;
        let log = open_log(directory)?;
        let said_path = directory.join(SAID);
        let said = fs::File::create(&said_path).map_err(|source| SpawnError::Write {
            path: said_path,
            source,
        })?;
        // A session of its own; setsid(1) becomes the program, so that its number stays.
        let mut command = Command::new("setsid");
        command
            .arg(&self.vmm)
            .args(["--log-level", "info"])
            .args(purpose.arguments())
            .arg("--config")
            .arg(&config_path)
            .arg("--api")
            .arg(Self::api_socket(directory))
            .arg("--end-file")
            .arg(directory.join(END))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(said)
            .stderr(log);
        if let Some(user) = self.user {
            command.args(["--user", &user.to_string()]);
        }
        let started = |source| SpawnError::Start {
            program: self.vmm.clone(),
            source,
        };
        let child = command.spawn().map_err(started)?;
        let pid = child.id().unwrap_or_default();
        be_expendable(pid);
        // Not reaped yet, so the number is its own even if it has ended.
        let identity = Identity::of(pid).unwrap_or(Identity {
            pid,
            start_ticks: 0,
            boot_id: String::new(),
        });
        write_json(&directory.join(IDENTITY), &identity)?;
        Ok(GuestProcess {
            identity,
            child: Some(child),
        })
    }

    /// The VMM in `directory` that an agent before us started, if it runs.
    pub fn adopt(&self, directory: &Path) -> Option<GuestProcess> {
        let written = fs::read(directory.join(IDENTITY)).ok();
        let identity = written
            .and_then(|bytes| serde_json::from_slice::<Identity>(&bytes).ok())
            .filter(Identity::is_alive)
            .or_else(|| find_process("--api", &Self::api_socket(directory)))?;
        Some(GuestProcess {
            identity,
            child: None,
        })
    }

    /// Who switched off the machine whose process in `directory` has ended, if somebody did, and if
    /// it was not [forgotten](Self::forget) since.
    pub fn switched_off_by(directory: &Path) -> Option<Initiator> {
        let written = fs::read(directory.join(END)).ok()?;
        match serde_json::from_slice(&written) {
            Ok(EventKind::ShutDown { by }) => Some(by),
            _ => None,
        }
    }

    /// The port on which the VMM in `directory` waits for its guest, when it does.
    pub fn listens_on(directory: &Path) -> Option<u16> {
        let said = fs::read_to_string(directory.join(SAID)).ok()?;
        let (line, _) = said.split_once('\n')?;
        let address = line.strip_prefix("listening on ")?;
        address
            .parse::<SocketAddr>()
            .ok()
            .map(|address| address.port())
    }

    /// Removes what only a running process needs, and how it ended.
    pub fn forget(directory: &Path) {
        for name in [IDENTITY, API_SOCKET, END, SAID] {
            let path = directory.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!("cannot remove {}: {error}", path.display());
                }
                _ => {}
            }
        }
    }

    /// The last that the VMM in `directory` said, in one line.
    pub fn last_words(directory: &Path) -> String {
        let log = fs::read(directory.join(LOG)).unwrap_or_default();
        let tail = &log[log.len().saturating_sub(LOG_TAIL)..];
        let tail = String::from_utf8_lossy(tail);
        let lines = tail.lines().rev().find(|line| !line.trim().is_empty());
        let line = lines.unwrap_or("it said nothing").trim();
        line.strip_prefix("pindah-vmm: ").unwrap_or(line).to_owned()
    }
}

/// When memory runs out a guest goes before the agent that brings it back: what the agent's own unit
/// says of it (`OOMScoreAdjust`) is not its guests' (proc(5), `/proc/pid/oom_score_adj`).
fn be_expendable(pid: u32) {
    if let Err(error) = fs::write(format!("/proc/{pid}/oom_score_adj"), "0") {
        tracing::debug!("the OOM score of process {pid}: {error}");
    }
}

fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), SpawnError> {
    files::replace_by_json(path, value).map_err(|source| SpawnError::Write {
        path: path.to_owned(),
        source,
    })
}

fn open_log(directory: &Path) -> Result<fs::File, SpawnError> {
    let path = directory.join(LOG);
    let failed = |source| SpawnError::Write {
        path: path.clone(),
        source,
    };
    if fs::metadata(&path).is_ok_and(|metadata| metadata.len() > LOG_MAX) {
        fs::rename(&path, directory.join(OLD_LOG)).map_err(failed)?;
    }
    let mut options = fs::OpenOptions::new();
    options.append(true).create(true).mode(0o600);
    options.open(&path).map_err(failed)
}

impl GuestProcess {
    /// Which process it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Waits until it has ended. The exit code is known only of our own child, and only if no
    /// signal ended it.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub async fn ended(&mut self) -> io::Result<Option<i32>> {
        match &mut self.child {
            Some(child) => Ok(child.wait().await?.code()),
            None => self.identity.ended().await.map(|()| None),
        }
    }
}
