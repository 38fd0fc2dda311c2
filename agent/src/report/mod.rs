//! What guests and nodes took over days, as tables: for people, for spreadsheets, for paper.

mod csv;
mod html;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::domain::{Advice, Figures};
use crate::metrics::history::Tallies;

pub use self::csv::csv;
pub use self::html::html;

/// What guests and nodes took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Report {
    /// Of which time.
    pub period: Period,
    /// The time that it is compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compared: Option<Period>,
    /// The nodes, in order of their names.
    pub nodes: Vec<ReportRow>,
    /// The guests, in order of their names.
    pub guests: Vec<ReportRow>,
    /// What follows; for who may see all guests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<Advice>,
    /// Nodes that have not told what they know in time: what was measured there is missing.
    pub missing_nodes: Vec<String>,
}

/// A stretch of time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Period {
    /// Begin, in RFC 3339.
    pub since: String,
    /// End.
    pub until: String,
}

/// A guest or node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReportRow {
    /// Its name.
    pub name: String,
    /// The guest, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// What it took.
    pub usage: UsageFigures,
    /// What it took in the time that it is compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<UsageFigures>,
}

/// What a guest or node took. Null is what nobody measured. The mean of each minute counts for
/// average and 95th percentile (after 15 days: of each hour), each 10 seconds for the maximum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UsageFigures {
    /// How long it was measured, in seconds.
    pub measured_s: u64,
    /// CPU time: 100 is all virtual CPUs of a guest, all processors of a node.
    pub cpu_percent: Option<Figures>,
    /// Memory in use: 100 is all of it.
    pub memory_percent: Option<Figures>,
    /// Received and sent together, in kbit/s.
    pub network_kbit_s: Option<Figures>,
    /// Read and written together, in KiB/s.
    pub disk_kib_s: Option<Figures>,
}

impl UsageFigures {
    /// Of something with so many CPUs of which each is 100 % in the tallies.
    pub fn new(tallies: &Tallies, cpus: u8) -> Self {
        Self {
            measured_s: tallies.measured_s,
            cpu_percent: tallies.cpu_percent.figures(f64::from(cpus.max(1))),
            memory_percent: tallies.memory_percent.figures(1.0),
            network_kbit_s: tallies.network_kbit_s.figures(1.0),
            disk_kib_s: tallies.disk_kib_s.figures(1.0),
        }
    }

    /// The columns of a table, in order.
    pub fn columns(&self) -> [Option<Figures>; 4] {
        [
            self.cpu_percent,
            self.memory_percent,
            self.network_kbit_s,
            self.disk_kib_s,
        ]
    }
}

#[cfg(test)]
pub(crate) fn example() -> Report {
    let figures = |average| {
        Some(Figures {
            average,
            p95: average * 2.0,
            maximum: average * 3.0,
        })
    };
    let usage = |cpu| UsageFigures {
        measured_s: 1_296_000,
        cpu_percent: figures(cpu),
        memory_percent: figures(32.0),
        network_kbit_s: figures(518.0),
        disk_kib_s: None,
    };
    let row = |name: &str, uuid, before| ReportRow {
        name: name.to_owned(),
        uuid,
        usage: usage(1.0),
        before,
    };
    let period = |since: &str, until: &str| Period {
        since: since.to_owned(),
        until: until.to_owned(),
    };
    Report {
        period: period("2026-11-01T00:00:00Z", "2026-11-16T00:00:00Z"),
        compared: Some(period("2026-10-01T00:00:00Z", "2026-10-16T00:00:00Z")),
        nodes: vec![row("node1", None, None)],
        guests: vec![row("web", Some(Uuid::nil()), Some(usage(4.0)))],
        advice: Some(Advice {
            measured_too_short: vec!["<script>alert(1)</script>".to_owned()],
            ..Advice::default()
        }),
        missing_nodes: vec!["node2".to_owned()],
    }
}
