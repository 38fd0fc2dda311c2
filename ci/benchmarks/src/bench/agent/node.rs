//! A node's agent in namespaces of its own, and what a client asks it.
//!
//! It is the first process of its process namespace: whatever it has started ends with it.

use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::artifacts::Artifacts;
use crate::guest::{PATIENCE, tail};
use crate::interrupt;
use crate::network::Network;
use crate::process::{self, BoundChild};

/// What the agent logs when it serves.
const SERVES: &str = "serves on";
/// Between two looks at a log or a process.
const POLL: Duration = Duration::from_millis(1);
const LISTEN: &str = "127.0.0.1:7480";

/// A node whose agent can be started again and again.
pub struct Node {
    network: Network,
    /// Below `/tmp`: a state directory's path must be short.
    directory: TempDir,
    agent: PathBuf,
    cli: PathBuf,
    log: PathBuf,
}

/// What a client's program did.
pub struct Called {
    /// From its start to its end.
    pub took: Duration,
    /// What it printed.
    pub said: String,
}

impl Node {
    /// A node without guests, and its network.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn new(artifacts: &Artifacts, name: &str) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("pindah-bench-").tempdir()?;
        let config = format!(
            "node = 'bench'\nlisten = '{LISTEN}'\nstate_dir = '{}'\nvmm = '{}'\n",
            directory.path().join("state").display(),
            artifacts.vmm.display(),
        );
        fs::write(directory.path().join("pindahd.toml"), config)?;
        Ok(Self {
            network: Network::new()?,
            directory,
            agent: artifacts.agent.clone(),
            cli: artifacts.cli.clone(),
            log: artifacts.directory.join(format!("agent-{name}.log")),
        })
    }

    /// Starts the agent, and waits until it serves.
    ///
    /// # Errors
    /// If it does not.
    pub fn start(&self) -> Result<Running<'_>> {
        let log = File::create(&self.log);
        let log = log.with_context(|| format!("creating {}", self.log.display()))?;
        let mut command = Command::new("unshare");
        command
            .args(["--pid", "--mount-proc", "--fork", "--kill-child"])
            .arg(&self.agent)
            .arg("--config")
            .arg(self.directory.path().join("pindahd.toml"))
            .stdin(Stdio::null())
            .stderr(log);
        let started = Instant::now();
        let mut child = BoundChild::spawn(command, Some(self.network.namespace()))?;
        while !fs::read_to_string(&self.log)?.contains(SERVES) {
            interrupt::check()?;
            let ended = child.inner().try_wait()?.is_some();
            if ended || started.elapsed() > PATIENCE {
                bail!("pindahd does not serve{}", tail(&self.log));
            }
            std::thread::sleep(POLL);
        }
        let served_after = started.elapsed();
        let family = process::family(child.id());
        let agent = family.get(1).copied();
        Ok(Running {
            node: self,
            agent: agent.context("unshare has no child")?,
            child,
            served_after,
        })
    }
}

/// A node whose agent runs; it is killed when this is dropped.
pub struct Running<'a> {
    node: &'a Node,
    child: BoundChild,
    agent: u32,
    served_after: Duration,
}

impl Running<'_> {
    /// Process id of the agent.
    pub fn agent(&self) -> u32 {
        self.agent
    }

    /// How long its start took.
    pub fn served_after(&self) -> Duration {
        self.served_after
    }

    /// Runs the command line on the node.
    ///
    /// # Errors
    /// If it refuses.
    pub fn pindah(&self, arguments: &[&str]) -> Result<Called> {
        let mut command = Command::new(&self.node.cli);
        command.args(arguments);
        command.env("PINDAH_CONTEXT", self.context());
        self.call(command)
    }

    /// How many guests are defined.
    ///
    /// # Errors
    /// If the agent does not say.
    pub fn guests(&self) -> Result<usize> {
        let said = self.pindah(&["guest", "list", "--json"])?.said;
        let list: Value = serde_json::from_str(&said)?;
        Ok(list.as_array().context("no list of guests")?.len())
    }

    /// Time from a request for all guests to the end of the answer, so many times on one
    /// connection that stands.
    ///
    /// # Errors
    /// If the agent refuses.
    pub fn list_ms(&self, requests: usize) -> Result<Vec<f64>> {
        let context: Value = serde_json::from_slice(&fs::read(self.context())?)?;
        let text = |name: &str| context[name].as_str().context("not a context");
        let authority = self.node.directory.path().join("ca.pem");
        fs::write(&authority, text("authority")?)?;
        let mut command = Command::new("curl");
        command
            .args(["--silent", "--show-error", "--fail"])
            .args(["--write-out", "%{time_total}\n"])
            .args([
                "--header",
                &format!("Authorization: Bearer {}", text("token")?),
            ])
            .arg("--cacert")
            .arg(authority);
        // The first one's time has the connection in it.
        for _ in 0..=requests {
            command.args(["--output", "/dev/null"]);
            command.arg(format!("{}/api/v1/guests", text("server")?));
        }
        let said = self.call(command)?.said;
        let times: Result<Vec<f64>, _> = said.lines().skip(1).map(str::parse).collect();
        let times = times.context("curl says no times")?;
        ensure!(times.len() == requests, "curl says {} times", times.len());
        Ok(times.into_iter().map(|seconds| seconds * 1e3).collect())
    }

    /// Has the agent end, as at a shutdown.
    ///
    /// # Errors
    /// If it does not.
    pub fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.agent.cast_signed()), Signal::SIGTERM)?;
        let asked = Instant::now();
        while self.child.inner().try_wait()?.is_none() {
            interrupt::check()?;
            ensure!(asked.elapsed() < PATIENCE, "pindahd does not end");
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    fn context(&self) -> PathBuf {
        self.node.directory.path().join("state/admin.json")
    }

    fn call(&self, mut command: Command) -> Result<Called> {
        let program = command.get_program().to_owned();
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let started = Instant::now();
        let mut child = BoundChild::spawn(command, Some(self.node.network.namespace()))?;
        let mut said = String::new();
        let output = child.inner().stdout.as_mut();
        output.expect("a pipe").read_to_string(&mut said)?;
        let status = child.inner().wait()?;
        let took = started.elapsed();
        ensure!(status.success(), "{}: {status}", program.display());
        Ok(Called { took, said })
    }
}
