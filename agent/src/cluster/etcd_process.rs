//! The node's etcd: configured, started, adopted after our restart, and started again when it ends.
//!
//! It is the leader of a session of its own, as VMMs are: the agent's end does not reach it, so a
//! restart of the agent costs the cluster no election.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::process::Command;

use super::Ports;
use crate::files;
use crate::security::NodeCertificate;
use crate::supervisor::{Identity, find_process};

const NOTE: &str = "process.json";
const DATA: &str = "data";
const LOG: &str = "etcd.log";
const OLD_LOG: &str = "etcd.log.1";
const AUTHORITY: &str = "ca.pem";
const CERTIFICATE: &str = "cert.pem";
const KEY: &str = "key.pem";
/// Size from which the log of earlier starts is put aside, in bytes.
const LOG_MAX: u64 = 1 << 20;
/// How long we look whether it ends at once.
const START_TIME: Duration = Duration::from_millis(500);
const BACK_OFF_MIN: Duration = Duration::from_millis(500);
const BACK_OFF_MAX: Duration = Duration::from_secs(30);

/// What does not depend on the node. Heartbeat and election suit disks that take a quarter of a
/// second for a write; quota, snapshots and compaction a host with 2 GB of memory.
const ARGUMENTS: [&str; 15] = [
    "--heartbeat-interval=300",
    "--election-timeout=3000",
    "--pre-vote=true",
    "--quota-backend-bytes=268435456",
    "--snapshot-count=5000",
    "--max-snapshots=2",
    "--max-wals=2",
    "--max-request-bytes=3145728",
    "--auto-compaction-mode=periodic",
    "--auto-compaction-retention=1h",
    "--client-cert-auth=true",
    "--peer-client-cert-auth=true",
    // Our own nodes have several addresses; the authority's signature is what counts.
    "--experimental-peer-skip-client-san-verification=true",
    "--logger=zap",
    "--log-level=warn",
];
/// How Go's collector is to be thrifty.
const ENVIRONMENT: [(&str, &str); 2] = [("GOGC", "50"), ("GOMEMLIMIT", "128MiB")];

/// Why there is no etcd.
#[derive(Debug, Error)]
pub enum EtcdError {
    /// A file.
    #[error("cannot {action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The program does not start.
    #[error("cannot start etcd; is Debian's package etcd-server installed?")]
    Start(#[source] io::Error),
    /// It ended at once.
    #[error("etcd ends at once: {0}")]
    Ended(String),
    /// It has begun before, and what it knew is gone.
    #[error(
        "etcd has no data in {0} any more; take this node in again with a token of a node that has \
         (`pindah cluster join`)"
    )]
    NoData(PathBuf),
}

/// How a member begins. One that has data goes on with that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// As the only member of a new cluster.
    Alone,
    /// Among these members, itself included: `name=url,…`.
    Among(String),
    /// It has begun. Without its data it does not begin anew: it would know nothing of what it
    /// voted for, or of any record.
    Before,
}

/// What an etcd is to be.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// Where its files are.
    pub directory: PathBuf,
    /// The member's name: the node's.
    pub name: String,
    /// What tells this cluster's members from those of others.
    pub token: String,
    /// Where other members find it.
    pub address: IpAddr,
    /// Where it listens for them.
    pub listen: IpAddr,
    /// The node's ports.
    pub ports: Ports,
}

#[derive(Serialize, Deserialize)]
struct Note {
    identity: Identity,
    arguments: Vec<String>,
}

/// An etcd that is kept running while this lives.
#[derive(Debug)]
pub struct EtcdProcess {
    keeper: tokio::task::JoinHandle<()>,
}

impl Drop for EtcdProcess {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl EtcdConfig {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Where our own client finds it.
    pub fn endpoint(&self) -> String {
        format!("https://127.0.0.1:{}", self.ports.etcd)
    }

    fn arguments(&self) -> Vec<String> {
        let path = |name: &str| self.path(name).display().to_string();
        let mut arguments = vec!["--data-dir".to_owned(), path(DATA)];
        arguments.extend(ARGUMENTS.iter().map(|&argument| argument.to_owned()));
        let listen = self.ports.etcd_peer_url(self.listen);
        for (option, value) in [
            ("name", self.name.clone()),
            ("listen-client-urls", self.endpoint()),
            ("advertise-client-urls", self.endpoint()),
            ("listen-peer-urls", listen),
            (
                "initial-advertise-peer-urls",
                self.ports.etcd_peer_url(self.address),
            ),
            ("trusted-ca-file", path(AUTHORITY)),
            ("cert-file", path(CERTIFICATE)),
            ("key-file", path(KEY)),
            ("peer-trusted-ca-file", path(AUTHORITY)),
            ("peer-cert-file", path(CERTIFICATE)),
            ("peer-key-file", path(KEY)),
        ] {
            arguments.push(format!("--{option}={value}"));
        }
        arguments
    }

    /// Only a member without data looks at these.
    fn beginning(&self, beginning: &Beginning) -> [String; 3] {
        let (members, state) = match beginning {
            Beginning::Among(members) => (members.clone(), "existing"),
            Beginning::Alone | Beginning::Before => {
                let url = self.ports.etcd_peer_url(self.address);
                (format!("{}={url}", self.name), "new")
            }
        };
        [
            format!("--initial-cluster={members}"),
            format!("--initial-cluster-state={state}"),
            format!("--initial-cluster-token={}", self.token),
        ]
    }

    /// Whether the member has begun: what it has voted for is on its disk.
    pub fn has_data(&self) -> bool {
        self.path(DATA).join("member/wal").exists()
    }

    /// Fails if there is no etcd on this host.
    ///
    /// # Errors
    /// [`EtcdError::Start`].
    pub async fn require_program() -> Result<(), EtcdError> {
        let mut version = Command::new("etcd");
        version.arg("--version").stdin(Stdio::null());
        version.output().await.map_err(EtcdError::Start)?;
        Ok(())
    }

    /// Writes the certificates; a running etcd reads them anew for each connection.
    ///
    /// # Errors
    /// [`EtcdError::File`].
    pub fn write_certificate(&self, certificate: &NodeCertificate) -> Result<(), EtcdError> {
        let mut builder = fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(&self.directory);
        made.map_err(file("create", &self.directory))?;
        for (name, text) in [
            (KEY, &certificate.key),
            (CERTIFICATE, &certificate.chain_pem()),
            (AUTHORITY, &certificate.authority),
        ] {
            let path = self.path(name);
            files::replace(&path, text.as_bytes()).map_err(file("write", &path))?;
        }
        Ok(())
    }

    fn running(&self) -> Option<Note> {
        let note = fs::read(self.path(NOTE)).ok();
        let note = note.and_then(|bytes| serde_json::from_slice::<Note>(&bytes).ok());
        note.filter(|note| note.identity.is_alive()).or_else(|| {
            let identity = find_process("--data-dir", &self.path(DATA))?;
            let arguments = Vec::new();
            Some(Note {
                identity,
                arguments,
            })
        })
    }

    /// Ends the etcd that runs in the directory, if one does, and waits for that.
    pub async fn stop(&self) {
        while let Some(Note { identity, .. }) = self.running() {
            if let Err(error) = identity.kill() {
                tracing::error!("cannot end etcd: {error}");
                return;
            }
            let _ = tokio::time::timeout(Duration::from_secs(5), identity.ended()).await;
        }
    }

    /// Ends it, and removes all that it knows.
    ///
    /// # Errors
    /// [`EtcdError::File`].
    pub async fn wipe(&self) -> Result<(), EtcdError> {
        self.stop().await;
        match fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(file("remove", &self.directory)(error))
            }
            _ => Ok(()),
        }
    }

    /// The one that runs; one that runs with other arguments is started anew.
    async fn adopt_or_launch(&self, beginning: &Beginning) -> Result<Identity, EtcdError> {
        match self.running() {
            Some(note) if note.arguments == self.arguments() => {
                tracing::info!("etcd runs as process {}", note.identity.pid);
                Ok(note.identity)
            }
            _ => {
                self.stop().await;
                self.launch(beginning).await
            }
        }
    }

    async fn launch(&self, beginning: &Beginning) -> Result<Identity, EtcdError> {
        if *beginning == Beginning::Before && !self.has_data() {
            return Err(EtcdError::NoData(self.path(DATA)));
        }
        let log = self.open_log()?;
        let arguments = self.arguments();
        let mut child = Command::new("setsid")
            .arg("etcd")
            .args(&arguments)
            .args(self.beginning(beginning))
            .envs(ENVIRONMENT)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(EtcdError::Start)?;
        let pid = child.id().unwrap_or_default();
        if let Ok(identity) = Identity::of(pid) {
            self.note(&identity, arguments)?;
        }
        if let Ok(status) = tokio::time::timeout(START_TIME, child.wait()).await {
            let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
            return Err(EtcdError::Ended(format!("{status}: {}", self.last_words())));
        }
        // Dropped, the child is reaped by tokio when it ends.
        Identity::of(pid).map_err(|_| EtcdError::Ended(self.last_words()))
    }

    fn note(&self, identity: &Identity, arguments: Vec<String>) -> Result<(), EtcdError> {
        let path = self.path(NOTE);
        let note = Note {
            identity: identity.clone(),
            arguments,
        };
        files::replace_by_json(&path, &note).map_err(file("write", &path))
    }

    fn open_log(&self) -> Result<fs::File, EtcdError> {
        let path = self.path(LOG);
        if fs::metadata(&path).is_ok_and(|metadata| metadata.len() > LOG_MAX) {
            fs::rename(&path, self.path(OLD_LOG)).map_err(file("rename", &path))?;
        }
        let mut options = fs::OpenOptions::new();
        let options = options.append(true).create(true).mode(0o600);
        options.open(&path).map_err(file("open", &path))
    }

    /// The last that it said of why it ended.
    fn last_words(&self) -> String {
        let log = fs::read(self.path(LOG)).unwrap_or_default();
        let tail = String::from_utf8_lossy(&log[log.len().saturating_sub(4096)..]).into_owned();
        let line = tail.lines().rev().find(|line| !line.trim().is_empty());
        line.unwrap_or("it said nothing").trim().to_owned()
    }
}

impl EtcdProcess {
    /// Starts the etcd, or adopts the one that runs, and keeps it running.
    ///
    /// # Errors
    /// [`EtcdError`].
    pub async fn start(config: EtcdConfig, beginning: Beginning) -> Result<Self, EtcdError> {
        let identity = config.adopt_or_launch(&beginning).await?;
        Ok(Self {
            keeper: tokio::spawn(keep(config, identity, beginning)),
        })
    }

    /// The same for an etcd that has begun before: if it does not start now it is tried again, as
    /// when it ends later. Guests are not to wait for it.
    pub async fn resume(config: EtcdConfig) -> Self {
        let beginning = Beginning::Before;
        let first = config.adopt_or_launch(&beginning).await;
        let keeper = tokio::spawn(async move {
            let identity = match first {
                Ok(identity) => identity,
                Err(error) => {
                    tracing::error!("{}", crate::causes::chain(&error));
                    let mut back_off = BACK_OFF_MIN;
                    launch_until_it_runs(&config, &beginning, &mut back_off).await
                }
            };
            keep(config, identity, beginning).await;
        });
        Self { keeper }
    }
}

async fn launch_until_it_runs(
    config: &EtcdConfig,
    beginning: &Beginning,
    back_off: &mut Duration,
) -> Identity {
    loop {
        tokio::time::sleep(*back_off).await;
        *back_off = (*back_off * 2).min(BACK_OFF_MAX);
        match config.launch(beginning).await {
            Ok(started) => return started,
            Err(error) => tracing::error!("{}", crate::causes::chain(&error)),
        }
    }
}

/// Starts it again whenever it ends.
async fn keep(config: EtcdConfig, mut identity: Identity, beginning: Beginning) {
    let mut back_off = BACK_OFF_MIN;
    loop {
        let started = tokio::time::Instant::now();
        if let Err(error) = identity.ended().await {
            tracing::warn!("etcd cannot be watched: {error}");
            tokio::time::sleep(BACK_OFF_MAX).await;
            continue;
        }
        if started.elapsed() > BACK_OFF_MAX {
            back_off = BACK_OFF_MIN;
        }
        tracing::warn!("etcd has ended; it starts again: {}", config.last_words());
        identity = launch_until_it_runs(&config, &beginning, &mut back_off).await;
    }
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EtcdError + use<> {
    let path = path.to_owned();
    move |source| EtcdError::File {
        action,
        path,
        source,
    }
}
