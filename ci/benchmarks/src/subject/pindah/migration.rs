//! `pindah-vmm` moves a guest: `receive` on one side, `POST /api/v1/migrate` on the other, as the
//! agent does it.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{Pindah, Way, write_configuration};
use crate::migration::link::Connector;
use crate::migration::socket::ControlSocket;
use crate::migration::{Migrates, Move, Moved, Mover, Outcome};

/// Control, and one for memory: the default. In hybrid mode there is one more.
const CONNECTIONS: usize = 2;
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

impl Migrates for Pindah {
    fn source(&self, order: &Move) -> Result<Command> {
        let path = order.directory.join("source.json");
        write_configuration(order.machine, &path)?;
        let mut command = Command::new(&self.program);
        command.args(["run", "--config"]).arg(path);
        command.arg("--api").arg(order.source_socket());
        Ok(command)
    }

    fn destination(&self, order: &Move) -> Result<Command> {
        let path = order.directory.join("destination.json");
        write_configuration(order.machine, &path)?;
        let mut command = Command::new(&self.program);
        command.args(["receive", "--config"]).arg(path);
        command.args(["--listen", &order.link.address().to_string()]);
        match self.way {
            Way::Plaintext => {
                command.arg("--plaintext");
            }
            Way::Default | Way::Hybrid => {
                let keys = self.make_keys(order)?;
                command.arg("--tls").arg(keys);
            }
        }
        Ok(command)
    }

    fn greeting(&self) -> Option<&'static [u8]> {
        Some(b"listening on ")
    }

    fn prepare(&self, order: &Move) -> Result<Box<dyn Mover>> {
        let mut events = ControlSocket::connect(&order.source_socket())?;
        let request = "GET /api/v1/events HTTP/1.1\r\nHost: vmm\r\n\r\n";
        events.send(request.as_bytes(), &[])?;
        await_ok(&mut events)?;
        let keys = match self.way {
            Way::Plaintext => Vec::new(),
            Way::Default | Way::Hybrid => open_keys(&keys(order))?,
        };
        Ok(Box::new(Ready {
            api: ControlSocket::connect(&order.source_socket())?,
            socket: order.source_socket(),
            events,
            body: self.body(order).to_string(),
            keys,
            connections: CONNECTIONS + usize::from(self.way == Way::Hybrid),
            connector: order.link.connector(),
        }))
    }
}

impl Pindah {
    fn make_keys(&self, order: &Move) -> Result<PathBuf> {
        let directory = keys(order);
        let made = Command::new(&self.program)
            .arg("keys")
            .arg(&directory)
            .arg(order.link.address().ip().to_string())
            .output()
            .context("making keys")?;
        if !made.status.success() {
            bail!("no keys: {}", String::from_utf8_lossy(&made.stderr).trim());
        }
        Ok(directory)
    }

    /// Nothing but the defaults and what the way is about.
    fn body(&self, order: &Move) -> Value {
        let server_name = order.link.address().ip().to_string();
        match self.way {
            Way::Plaintext => json!({ "encryption": "plaintext" }),
            Way::Default => json!({ "server_name": server_name }),
            Way::Hybrid => json!({ "server_name": server_name, "mode": "hybrid" }),
        }
    }
}

fn keys(order: &Move) -> PathBuf {
    order.directory.join("keys")
}

fn open_keys(directory: &Path) -> Result<Vec<File>> {
    let open = |name| {
        let path = directory.join(name);
        File::open(&path).with_context(|| format!("opening {}", path.display()))
    };
    ["ca.pem", "cert.pem", "key.pem"]
        .map(open)
        .into_iter()
        .collect()
}

/// Source and destination, and what the request carries.
struct Ready {
    api: ControlSocket,
    socket: PathBuf,
    events: ControlSocket,
    body: String,
    keys: Vec<File>,
    connections: usize,
    connector: Connector,
}

impl Mover for Ready {
    fn go(&mut self, deadline: Instant) -> Result<Outcome> {
        let start = Instant::now();
        let sockets = self.connector.connect(self.connections)?;
        let sockets = sockets.iter().map(AsRawFd::as_raw_fd);
        let keys = self.keys.iter().map(AsRawFd::as_raw_fd);
        let descriptors: Vec<RawFd> = sockets.chain(keys).collect();
        let request = format!(
            "POST /api/v1/migrate HTTP/1.1\r\nHost: vmm\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{}",
            self.body.len(),
            self.body
        );
        self.api.send(request.as_bytes(), &descriptors)?;
        await_ok(&mut self.api)?;
        while let Some(event) = self.events.object(deadline)? {
            match event["type"].as_str() {
                Some("migration_completed") => return completed(start, &event["report"]),
                Some("migration_failed") => bail!("given up: {}", event["reason"]),
                Some("lagged") => bail!("events were lost"),
                _ => {}
            }
        }
        let mut api = ControlSocket::connect(&self.socket)?;
        let request = "GET /api/v1/migrate HTTP/1.1\r\nHost: vmm\r\nConnection: close\r\n\r\n";
        api.send(request.as_bytes(), &[])?;
        let status = api.object(Instant::now() + ANSWERS_WITHIN)?;
        Ok(Outcome::NotInTime(status.unwrap_or_default()))
    }
}

fn completed(start: Instant, report: &Value) -> Result<Outcome> {
    let total = start.elapsed();
    let downtime = report["downtime_us"].as_u64();
    let downtime = downtime.with_context(|| format!("no downtime in the report: {report}"))?;
    Ok(Outcome::Moved(Moved {
        total,
        downtime: Duration::from_micros(downtime),
        report: report.clone(),
    }))
}

/// Reads the first line of an answer.
fn await_ok(socket: &mut ControlSocket) -> Result<()> {
    let deadline = Instant::now() + ANSWERS_WITHIN;
    let line = socket.line(deadline)?.context("no answer in time")?;
    if line.starts_with(b"HTTP/1.1 2") {
        return Ok(());
    }
    match socket.object(deadline)? {
        Some(error) => bail!("refused: {error}"),
        None => bail!("refused: {}", String::from_utf8_lossy(&line)),
    }
}
