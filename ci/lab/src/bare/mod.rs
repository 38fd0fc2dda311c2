//! A bare server: an emulated machine with firmware and disks and nothing of ours in it, of which
//! one sees what its owner would: the serial console, the screen, and what it serves on the switch.

mod builder;
mod monitor;

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

pub use builder::{BareServerBuilder, Bus, Firmware, Medium};
use monitor::Monitor;

use crate::network::Port;
use crate::output::tail;
use crate::process::BoundChild;

/// A running bare server; gone when dropped.
pub struct BareServer {
    name: String,
    machine: BoundChild,
    console: UnixStream,
    monitor: Monitor,
    port: Port,
    log: PathBuf,
    /// How much of the console's output has been dealt with.
    seen: usize,
}

impl BareServer {
    /// Waits until its console has shown `text` since the last thing waited for.
    ///
    /// # Errors
    /// If it does not within `limit`, or the machine ends.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let shown = fs::read(&self.log).unwrap_or_default();
            let rest = &shown[self.seen.min(shown.len())..];
            if let Some(at) = find(rest, text.as_bytes()) {
                self.seen += at + text.len();
                return Ok(());
            }
            if let Some(status) = self.machine.try_wait()? {
                return Err(self.explain(&format!("ended ({status}) before it said “{text}”")));
            }
            if Instant::now() > deadline {
                return Err(self.explain(&format!("did not say “{text}” within {limit:?}")));
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until it has switched itself off.
    ///
    /// # Errors
    /// If it does not within `limit`.
    pub fn wait_until_off(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while self.machine.try_wait()?.is_none() {
            if Instant::now() > deadline {
                return Err(self.explain(&format!("was not off within {limit:?}")));
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Types on its console; a line needs its `\r`.
    ///
    /// # Errors
    /// If the machine has ended.
    pub fn type_text(&mut self, text: &str) -> Result<()> {
        let typed = self.console.write_all(text.as_bytes());
        typed.map_err(|error| self.explain(&format!("takes no input: {error}")))
    }

    /// Presses these keys of its keyboard, by QEMU's names (`ret`, `down`, `a`).
    ///
    /// # Errors
    /// If there is no such key, or the machine has ended.
    pub fn press(&mut self, keys: &[&str]) -> Result<()> {
        for key in keys {
            let pressed = self.monitor.press(key);
            pressed.map_err(|error| self.explain(&format!("has no key {key}: {error:#}")))?;
        }
        Ok(())
    }

    /// Writes what its screen shows to `path`, as PNG.
    ///
    /// # Errors
    /// If the file cannot be written, or the machine has ended.
    pub fn take_picture(&mut self, path: &Path) -> Result<()> {
        let taken = self.monitor.take_picture(path);
        taken.map_err(|error| self.explain(&format!("shows nothing: {error:#}")))
    }

    /// Pulls its plug.
    pub fn kill(mut self) {
        self.machine.kill();
    }

    /// Runs a shell command where somebody has logged in, and returns what it printed.
    ///
    /// # Errors
    /// If it fails or does not end within two minutes.
    pub fn run(&mut self, command: &str) -> Result<String> {
        // In two parts, so that what the terminal echoes is not taken for the answer.
        self.type_text(&format!("echo @be''gin; {command}; echo @en''d $?@\r"))?;
        let limit = Duration::from_secs(120);
        self.wait_for("@begin", limit)?;
        let start = self.seen;
        self.wait_for("@end ", limit)?;
        let end = self.seen - "@end ".len();
        self.wait_for("@", limit)?;
        let shown = fs::read(&self.log)?;
        let printed = String::from_utf8_lossy(&shown[start..end]).replace('\r', "");
        let status = String::from_utf8_lossy(&shown[end + 5..self.seen - 1]).into_owned();
        if status != "0" {
            bail!(
                "`{command}` on {} ended with {status}:\n{printed}",
                self.name
            );
        }
        Ok(printed.trim().to_string())
    }

    /// Its place on the switch.
    pub fn port(&self) -> &Port {
        &self.port
    }

    /// What its console has shown.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    fn explain(&self, what: &str) -> anyhow::Error {
        let shown = fs::read(&self.log).unwrap_or_default();
        let errors = fs::read_to_string(self.log.with_extension("qemu")).unwrap_or_default();
        anyhow!(
            "server {} {what}\n{errors}--- its console ({})\n{}",
            self.name,
            self.log.display(),
            tail(&shown)
        )
    }
}

impl Drop for BareServer {
    fn drop(&mut self) {
        // Ends the thread that drains it.
        let _ = self.console.shutdown(Shutdown::Both);
    }
}

/// Reads the console away, as QEMU writes it to its log too.
fn drain(mut console: UnixStream) {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while matches!(console.read(&mut buffer), Ok(length) if length > 0) {}
    });
}

fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text)
}
