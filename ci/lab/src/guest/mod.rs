//! Guests that `pindah-vmm` runs in a server.
//!
//! The VMM's standard input and output are the guest's serial port, so its
//! output is the guest's, its standard error the VMM's log, and its exit status
//! says how the guest ended.

mod builder;
mod console;

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

pub use builder::GuestBuilder;
pub use console::Console;

use crate::channel::Process;
use crate::output::Output;
use crate::server::Server;

/// A guest boots in 5 to 40 s; a loaded host may need much longer.
pub const BOOT_LIMIT: Duration = Duration::from_secs(600);
/// What a guest does in moments on an idle host.
pub const ACTION_LIMIT: Duration = Duration::from_secs(240);

/// A guest and the VMM that runs it; both are gone when dropped.
pub struct Guest<'a> {
    server: &'a Server,
    name: String,
    console: Console,
    socket: String,
}

impl<'a> Guest<'a> {
    /// Starts the VMM with these arguments and an API socket.
    pub(crate) fn spawn(server: &'a Server, name: &str, arguments: &[&str]) -> Result<Self> {
        let socket = format!("/run/{name}.sock");
        let vmm = server.program("pindah-vmm");
        let argv = [&[vmm.as_str()], arguments, &["--api", &socket]].concat();
        Ok(Self {
            console: Console::new(server.spawn(&argv)?),
            server,
            name: name.to_string(),
            socket,
        })
    }

    /// Runs a shell command in the guest that must succeed; what it printed.
    ///
    /// # Errors
    /// If it fails or lasts longer than [`ACTION_LIMIT`], or the guest ends.
    pub fn check(&mut self, command: &str) -> Result<String> {
        let output = self.run(command)?.ok().with_context(|| self.name.clone())?;
        Ok(output.text().trim_end().to_string())
    }

    /// Runs a shell command in the guest.
    ///
    /// # Errors
    /// If it lasts longer than [`ACTION_LIMIT`], or the guest ends.
    pub fn run(&mut self, command: &str) -> Result<Output> {
        self.console
            .run(command, ACTION_LIMIT)
            .with_context(|| self.name.clone())
    }

    /// Its serial console.
    pub fn console(&mut self) -> &mut Console {
        &mut self.console
    }

    /// Waits until it listens on its console; again after each reset.
    ///
    /// # Errors
    /// If it does not within [`BOOT_LIMIT`], or ends.
    pub fn wait_ready(&mut self) -> Result<()> {
        self.console
            .wait_ready(BOOT_LIMIT)
            .with_context(|| self.name.clone())
    }

    /// One call of the VMM's API (`pindah_vmm_api`); `path` is what follows `/api/v1`.
    ///
    /// # Errors
    /// If it is refused; the message carries the VMM's.
    pub fn api(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let url = format!("http://vmm/api/v1{path}");
        let mut argv = vec!["curl", "-sS", "--fail-with-body", "--max-time", "200"];
        argv.extend(["--unix-socket", &self.socket, "-X", method, &url]);
        let body = body.map(Value::to_string);
        if let Some(body) = &body {
            argv.extend(["-H", "Content-Type: application/json", "-d", body]);
        }
        let output = self.server.spawn(&argv)?.wait(ACTION_LIMIT)?.ok()?;
        if output.stdout.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{method} {path} answered: {}", output.text()))
    }

    /// Path of the API's socket in the server.
    pub fn socket(&self) -> &str {
        &self.socket
    }

    /// Waits until `GET /api/v1/vm` says what is wanted; the VMM may not listen yet.
    ///
    /// # Errors
    /// If it does not within [`ACTION_LIMIT`]; the message carries the last answer.
    pub fn wait_info(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Result<()> {
        let deadline = Instant::now() + ACTION_LIMIT;
        loop {
            let info = self.api("GET", "/vm", None);
            if info.as_ref().is_ok_and(&holds) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{}: no {what} within {ACTION_LIMIT:?}: {info:?}", self.name);
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Waits until the guest is in the state `state`.
    ///
    /// # Errors
    /// If it is not within [`ACTION_LIMIT`].
    pub fn wait_state(&self, state: &str) -> Result<()> {
        self.wait_info(state, |info| info["state"] == state)
    }

    /// Begins to move it to a VMM that waits at `destination` (`HOST:PORT`). What the client
    /// prints tells how it goes; it succeeds if the guest has moved, and this guest's VMM ends with
    /// 5 then.
    ///
    /// # Errors
    /// If the server is gone.
    pub fn send(&self, destination: &str, keys: &str) -> Result<Process> {
        let vmm = self.server.program("pindah-vmm");
        let argv = ["send", "--api", &self.socket, "--tls", keys, destination];
        self.server.spawn(&[&[vmm.as_str()], &argv[..]].concat())
    }

    /// Waits for the end of the VMM.
    ///
    /// # Errors
    /// If it does not end within [`ACTION_LIMIT`].
    pub fn wait_end(self) -> Result<Output> {
        self.console
            .into_process()
            .wait(ACTION_LIMIT)
            .with_context(|| self.name.clone())
    }

    /// Switches it off from inside and waits for the VMM's end, which must be a clean one.
    ///
    /// # Errors
    /// If the VMM does not end, or not with 0.
    pub fn power_off(mut self) -> Result<Output> {
        self.console.send("poweroff -f")?;
        self.wait_end()?.ok()
    }
}
