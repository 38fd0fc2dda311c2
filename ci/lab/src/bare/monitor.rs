//! A bare server's screen and keyboard, by QEMU's machine protocol (QMP: a line of JSON each way).

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// How long QEMU may take for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to QEMU's monitor.
pub(super) struct Monitor {
    stream: UnixStream,
    answers: BufReader<UnixStream>,
    /// Whether it has been told that we are ready.
    open: bool,
}

impl Monitor {
    pub(super) fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let answers = BufReader::new(stream.try_clone()?);
        let open = false;
        Ok(Self {
            stream,
            answers,
            open,
        })
    }

    /// Writes what the screen shows to `path`, as PNG.
    pub(super) fn take_picture(&mut self, path: &Path) -> Result<()> {
        let _ = fs::remove_file(path);
        self.run("screendump", &json!({ "filename": path, "format": "png" }))
    }

    /// Presses and releases a key, by QEMU's name for it (`QKeyCode`).
    pub(super) fn press(&mut self, key: &str) -> Result<()> {
        let keys = json!([{ "type": "qcode", "data": key }]);
        self.run("send-key", &json!({ "keys": keys }))
    }

    fn run(&mut self, command: &str, arguments: &Value) -> Result<()> {
        if !self.open {
            self.ask("qmp_capabilities", &json!({}))?;
            self.open = true;
        }
        self.ask(command, arguments)
    }

    fn ask(&mut self, command: &str, arguments: &Value) -> Result<()> {
        let asked = json!({ "execute": command, "arguments": arguments });
        writeln!(self.stream, "{asked}").context("QEMU's monitor")?;
        loop {
            let mut line = String::new();
            let length = self.answers.read_line(&mut line);
            if length.context("QEMU's monitor")? == 0 {
                bail!("QEMU has ended");
            }
            let said: Value = serde_json::from_str(&line).context("QEMU's monitor")?;
            if let Some(error) = said.get("error") {
                bail!("QEMU refuses `{command}`: {error}");
            }
            // All else is its greeting, and events.
            if said.get("return").is_some() {
                return Ok(());
            }
        }
    }
}
