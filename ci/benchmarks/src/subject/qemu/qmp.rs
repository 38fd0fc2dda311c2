//! QEMU's control protocol (QEMU documentation, "QEMU Machine Protocol Specification"): a JSON
//! object a line.

use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::migration::socket::ControlSocket;

const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// One connection, past its handshake.
pub struct Qmp {
    socket: ControlSocket,
    /// Came while something else was awaited.
    events: VecDeque<Value>,
}

impl Qmp {
    /// Connects and shakes hands.
    ///
    /// # Errors
    /// If QEMU does not listen there.
    pub fn connect(path: &Path) -> Result<Self> {
        let mut qmp = Self {
            socket: ControlSocket::connect(path)?,
            events: VecDeque::new(),
        };
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Has a command done, and takes its answer.
    ///
    /// # Errors
    /// If QEMU refuses.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.socket.send(format!("{request}\n").as_bytes(), &[])?;
        let deadline = Instant::now() + ANSWERS_WITHIN;
        loop {
            let line = self.socket.object(deadline)?;
            let mut line = line.with_context(|| format!("no answer to {command}"))?;
            if line.get("event").is_some() {
                self.events.push_back(line);
            } else if let Some(error) = line.get("error") {
                bail!("{command}: {}", error["desc"]);
            } else if line.get("return").is_some() {
                return Ok(line["return"].take());
            }
        }
    }

    /// The next event; `None` after `deadline`.
    ///
    /// # Errors
    /// If QEMU is gone.
    pub fn event(&mut self, deadline: Instant) -> Result<Option<Value>> {
        if let Some(event) = self.events.pop_front() {
            return Ok(Some(event));
        }
        while let Some(line) = self.socket.object(deadline)? {
            if line.get("event").is_some() {
                return Ok(Some(line));
            }
        }
        Ok(None)
    }
}
