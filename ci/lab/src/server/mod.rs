//! A server: an emulated machine with Debian and an agent in it.
//!
//! It has one CPU, and what needs more than one core starts more servers. In
//! QEMU (10.0) each `fxrstor` on any CPU clears a bit of the first CPU's
//! `hflags2` without a lock (`cpu_clear_ignne`). If that CPU enters or leaves a
//! guest at this moment, on another thread, it goes on with the flags of
//! before: nested paging is on in the server's kernel, which leaves the guest a
//! second time and saves its own registers as the guest's, or off in the guest.
//! Guests triple-fault and servers panic or reset themselves, every few
//! minutes. With one CPU there is no other thread. Guests may have several
//! vCPUs: these share it.

mod builder;
pub(crate) mod host;
mod qemu;

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

pub use builder::{ServerBuilder, start_all};

use crate::channel::{Channel, Process};
use crate::guest::{Guest, GuestBuilder};
use crate::network::Port;
use crate::output::{Output, tail};
use crate::process::BoundChild;

/// A command that is given no limit has this long.
const COMMAND_LIMIT: Duration = Duration::from_secs(120);

/// A running server; gone when dropped.
pub struct Server {
    name: String,
    machine: Mutex<BoundChild>,
    channel: Arc<Channel>,
    port: Port,
    log: PathBuf,
    places: Places,
}

/// Where a server sees what the host gives it.
struct Places {
    /// The cache of artifacts on the host.
    cache: PathBuf,
    /// The same in the server.
    artifacts: PathBuf,
    /// Our programs in the server.
    programs: PathBuf,
}

impl Server {
    /// Runs a shell command to its end.
    ///
    /// The command has ended when its output is closed: what it leaves running
    /// must have its output redirected.
    ///
    /// # Errors
    /// If it takes longer than two minutes, or the server is gone. A command
    /// that fails is not an error: see [`Output::ok`].
    pub fn run(&self, command: &str) -> Result<Output> {
        self.run_within(COMMAND_LIMIT, command)
    }

    /// The same with another limit.
    ///
    /// # Errors
    /// As [`Server::run`].
    pub fn run_within(&self, limit: Duration, command: &str) -> Result<Output> {
        let process = self.spawn(&["sh", "-c", command])?;
        process.close_stdin().map_err(|error| self.explain(error))?;
        process.wait(limit).map_err(|error| self.explain(error))
    }

    /// Runs a shell command that must succeed, and returns what it printed.
    ///
    /// # Errors
    /// If it fails, and as [`Server::run`].
    pub fn check(&self, command: &str) -> Result<String> {
        let output = self
            .run(command)?
            .ok()
            .map_err(|error| self.explain(error))?;
        Ok(output.text().into_owned())
    }

    /// Starts a program.
    ///
    /// # Errors
    /// If the server is gone.
    pub fn spawn(&self, argv: &[&str]) -> Result<Process> {
        self.channel
            .start(argv)
            .map_err(|error| self.explain(error))
    }

    /// Writes a file, whole or not at all.
    ///
    /// # Errors
    /// If the server cannot write there.
    pub fn put(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let script = r#"cat > "$0.part" && mv "$0.part" "$0""#;
        let process = self.spawn(&["sh", "-c", script, path])?;
        process.write(bytes)?;
        process.close_stdin()?;
        process
            .wait(COMMAND_LIMIT)?
            .ok()
            .map_err(|error| self.explain(error))?;
        Ok(())
    }

    /// Reads a file.
    ///
    /// # Errors
    /// If the server cannot read it.
    pub fn get(&self, path: &str) -> Result<Vec<u8>> {
        let process = self.spawn(&["cat", path])?;
        let output = process
            .wait(COMMAND_LIMIT)?
            .ok()
            .map_err(|error| self.explain(error))?;
        Ok(output.stdout)
    }

    /// Waits until a shell command succeeds; asks every 200 ms.
    ///
    /// # Errors
    /// If it does not within `limit`; the message carries its last output.
    pub fn wait_until(&self, what: &str, limit: Duration, command: &str) -> Result<Output> {
        let deadline = Instant::now() + limit;
        loop {
            let output = self.run(command)?;
            if output.status == 0 {
                return Ok(output);
            }
            if Instant::now() > deadline {
                let context = format!("{what}: not within {limit:?}");
                return Err(self.explain(output.ok().unwrap_err().context(context)));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// The name it was started with, its host name too.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its IPv4 address on the switch.
    pub fn address(&self) -> &str {
        &self.port.address
    }

    /// Its place on the switch.
    pub fn port(&self) -> &Port {
        &self.port
    }

    /// Name of the switch's tap that it hangs on: `ip link set dev … down` on
    /// [`crate::Network::run`] pulls its cable.
    pub fn tap(&self) -> &str {
        &self.port.tap
    }

    /// Where a cached artifact of the host is seen in the server.
    ///
    /// # Panics
    /// If the path is not in the lab's cache.
    pub fn artifact(&self, path: &Path) -> PathBuf {
        let relative = path
            .strip_prefix(&self.places.cache)
            .expect("an artifact lies in the cache");
        self.places.artifacts.join(relative)
    }

    /// Where one of our programs is seen in the server.
    pub fn program(&self, name: &str) -> String {
        self.places
            .programs
            .join(name)
            .to_string_lossy()
            .into_owned()
    }

    /// A guest in it, to be configured and started.
    pub fn guest(&self, name: &str) -> GuestBuilder<'_> {
        GuestBuilder::new(self, name)
    }

    /// A guest that goes on from its snapshot in `directory`; it listens on its
    /// console if it did then.
    ///
    /// # Errors
    /// If the server is gone.
    pub fn restore(&self, name: &str, directory: &str) -> Result<Guest<'_>> {
        Guest::spawn(self, name, &["restore", directory])
    }

    /// What its serial console has said.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Pulls its plug.
    pub fn kill(&self) {
        self.machine().kill();
    }

    /// Waits until it has switched itself off.
    ///
    /// # Errors
    /// If it does not within `limit`.
    pub fn wait_off(&self, limit: Duration) -> Result<()> {
        let ended = self.machine().wait_until(Instant::now() + limit)?;
        match ended {
            Some(_) => Ok(()),
            None => Err(self.explain(format!("is not off after {limit:?}"))),
        }
    }

    /// Process id of the machine on the host, to stop and continue it.
    pub fn machine_id(&self) -> u32 {
        self.machine().id()
    }

    fn machine(&self) -> std::sync::MutexGuard<'_, BoundChild> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to an error what the server's console said last.
    fn explain(&self, error: impl Display) -> anyhow::Error {
        explain(&self.name, &self.log, error)
    }
}

fn explain(name: &str, log: &Path, error: impl Display) -> anyhow::Error {
    let said = std::fs::read(log).unwrap_or_default();
    anyhow!(
        "server {name}: {error:#}\n--- its console ({})\n{}",
        log.display(),
        tail(&said)
    )
}

/// Waits for the agent's first word.
fn wait_for_agent(
    machine: &mut BoundChild,
    hello: &std::sync::mpsc::Receiver<crate::wire::Frame>,
    limit: Duration,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        if hello.recv_timeout(Duration::from_millis(100)).is_ok() {
            return Ok(());
        }
        if let Some(status) = machine.try_wait().context("asking for QEMU's end")? {
            return Err(anyhow!("QEMU ended: {status}"));
        }
        if Instant::now() > deadline {
            return Err(anyhow!("the agent is not up within {limit:?}"));
        }
    }
}
