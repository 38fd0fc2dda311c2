//! QEMU moves a guest, by QMP, over TCP.
//!
//! Its limit of bandwidth (128 MiB/s by default) is lifted; the rest of its parameters stay at
//! their defaults, among them the `downtime-limit` of 300 ms and zstd's level 1. Postcopy begins
//! at once, so that each page goes over once, and with its own channel for urgent pages.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::qmp::Qmp;
use super::{Board, Qemu, version};
use crate::migration::{Migrates, Move, Moved, Mover, Outcome};
use crate::subject::{Bench, Machine, Subject};

/// Above that of any link.
const BANDWIDTH_BYTES_PER_S: u64 = 100 << 30;

/// QEMU in one of its ways to move a guest, on the smaller of its boards.
pub struct MovingQemu(pub Mode);

/// How it moves it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Precopy, by one connection.
    Plain,
    /// Precopy, by several connections and threads.
    Multifd,
    /// The same, compressed.
    MultifdZstd,
    /// Postcopy.
    Postcopy,
}

impl Mode {
    fn capabilities(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &["events"],
            Self::Multifd | Self::MultifdZstd => &["events", "multifd"],
            Self::Postcopy => &["events", "postcopy-ram", "postcopy-preempt"],
        }
    }

    fn parameters(self) -> Value {
        let mut parameters = json!({ "max-bandwidth": BANDWIDTH_BYTES_PER_S });
        if self == Self::MultifdZstd {
            parameters["multifd-compression"] = "zstd".into();
        }
        parameters
    }

    fn set(self, qmp: &mut Qmp) -> Result<()> {
        let on = |name: &&str| json!({ "capability": name, "state": true });
        let on: Vec<Value> = self.capabilities().iter().map(on).collect();
        qmp.execute("migrate-set-capabilities", &json!({ "capabilities": on }))?;
        qmp.execute("migrate-set-parameters", &self.parameters())?;
        Ok(())
    }
}

impl Subject for MovingQemu {
    fn name(&self) -> &str {
        match self.0 {
            Mode::Plain => "qemu",
            Mode::Multifd => "qemu-multifd",
            Mode::MultifdZstd => "qemu-multifd-zstd",
            Mode::Postcopy => "qemu-postcopy",
        }
    }

    fn version(&self) -> Result<String> {
        version()
    }

    fn takes_part(&self, bench: &Bench) -> bool {
        bench.name == crate::bench::MIGRATE
    }

    fn command(&self, machine: &Machine, tuning: &str, directory: &Path) -> Result<Command> {
        Qemu(Board::Microvm).command(machine, tuning, directory)
    }

    fn migrates(&self) -> Option<&dyn Migrates> {
        Some(self)
    }
}

impl MovingQemu {
    fn with_qmp(&self, order: &Move, socket: &Path) -> Result<Command> {
        let mut command = self.command(order.machine, "", order.directory)?;
        let socket = format!("unix:{},server=on,wait=off", socket.display());
        command.args(["-qmp", &socket]);
        Ok(command)
    }
}

impl Migrates for MovingQemu {
    fn source(&self, order: &Move) -> Result<Command> {
        self.with_qmp(order, &order.source_socket())
    }

    fn destination(&self, order: &Move) -> Result<Command> {
        let mut command = self.with_qmp(order, &order.destination_socket())?;
        command.args(["-incoming", "defer"]);
        Ok(command)
    }

    fn prepare(&self, order: &Move) -> Result<Box<dyn Mover>> {
        let mut source = Qmp::connect(&order.source_socket())?;
        let mut destination = Qmp::connect(&order.destination_socket())?;
        self.0.set(&mut source)?;
        self.0.set(&mut destination)?;
        let uri = format!("tcp:{}", order.link.address());
        destination.execute("migrate-incoming", &json!({ "uri": uri }))?;
        Ok(Box::new(Ready {
            mode: self.0,
            source,
            destination,
            uri,
        }))
    }
}

/// Both processes, set up alike.
struct Ready {
    mode: Mode,
    source: Qmp,
    destination: Qmp,
    uri: String,
}

impl Mover for Ready {
    fn go(&mut self, deadline: Instant) -> Result<Outcome> {
        let start = Instant::now();
        self.source
            .execute("migrate", &json!({ "uri": self.uri }))?;
        if self.mode == Mode::Postcopy {
            if !reaches(&mut self.source, "active", deadline)? {
                return self.not_in_time();
            }
            self.source.execute("migrate-start-postcopy", &json!({}))?;
        }
        if !reaches(&mut self.source, "completed", deadline)?
            || !reaches(&mut self.destination, "completed", deadline)?
        {
            return self.not_in_time();
        }
        let total = start.elapsed();
        let report = self.source.execute("query-migrate", &json!({}))?;
        let downtime = report["downtime"].as_u64();
        let downtime = downtime.with_context(|| format!("no downtime in the report: {report}"))?;
        Ok(Outcome::Moved(Moved {
            total,
            downtime: Duration::from_millis(downtime),
            report,
        }))
    }
}

impl Ready {
    fn not_in_time(&mut self) -> Result<Outcome> {
        let status = self.source.execute("query-migrate", &json!({}))?;
        Ok(Outcome::NotInTime(status))
    }
}

/// Waits until the migration has come there; false if it is too late then.
fn reaches(side: &mut Qmp, wanted: &str, deadline: Instant) -> Result<bool> {
    while let Some(event) = side.event(deadline)? {
        if event["event"] != "MIGRATION" {
            continue;
        }
        match event["data"]["status"].as_str() {
            Some(status) if status == wanted => return Ok(true),
            Some("failed" | "cancelled") => {
                let why = side.execute("query-migrate", &json!({}))?;
                bail!("given up: {}", why["error-desc"]);
            }
            _ => {}
        }
    }
    Ok(false)
}
