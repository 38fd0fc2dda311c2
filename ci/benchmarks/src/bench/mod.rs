//! What is measured. A further bench is a file here and a line in [`BENCHES`].

mod agent;
mod block;
mod exits;
mod memory;
mod migrate;
mod net;
pub mod start;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::artifacts::Artifacts;
use crate::guest::Guest;
use crate::record::Metric;
use crate::subject::{Machine, Subject};

/// All benches, in the order in which they run.
pub const BENCHES: &[Bench] = &[
    Bench {
        name: "start",
        cases: start::cases,
        thorough_runs: 15,
        quick_runs: 9,
    },
    Bench {
        name: "memory",
        cases: memory::cases,
        thorough_runs: 5,
        quick_runs: 3,
    },
    Bench {
        name: "exits",
        cases: exits::cases,
        thorough_runs: 5,
        quick_runs: 3,
    },
    Bench {
        name: "block",
        cases: block::cases,
        thorough_runs: 5,
        quick_runs: 3,
    },
    Bench {
        name: "net",
        cases: net::cases,
        thorough_runs: 5,
        quick_runs: 3,
    },
    Bench {
        name: MIGRATE,
        cases: migrate::cases,
        thorough_runs: 5,
        quick_runs: 3,
    },
    Bench {
        name: AGENT,
        cases: agent::cases,
        thorough_runs: 3,
        quick_runs: 2,
    },
];

/// The bench that has subjects of its own.
pub const MIGRATE: &str = "migrate";
/// The bench of the agent, which has no peer here.
pub const AGENT: &str = "agent";

/// In the order in which they are measured.
pub type Cases = Vec<Box<dyn Case>>;

/// A list of cases under one name.
pub struct Bench {
    /// Its name.
    pub name: &'static str,
    /// Makes its cases, and what they share.
    pub cases: fn(&Arc<Setup>) -> Result<Cases>,
    thorough_runs: u32,
    quick_runs: u32,
}

impl Bench {
    /// How many times each case is run.
    pub fn runs(&self, quick: bool) -> u32 {
        if quick {
            self.quick_runs
        } else {
            self.thorough_runs
        }
    }
}

/// What all benches get.
pub struct Setup {
    /// Two minutes a bench, no more.
    pub quick: bool,
    /// Programs and directories.
    pub artifacts: Artifacts,
}

/// Nothing that the probe does by itself: its lines cost thousands of exits.
const QUIET: &str = "ws_mib=1 beat_ms=3600000 gap_us=3600000000";

impl Setup {
    /// How long each run measures.
    pub fn seconds(&self) -> u64 {
        if self.quick { 1 } else { 3 }
    }

    /// A machine without devices, whose probe is quiet but for `orders`.
    pub fn machine(&self, orders: &str) -> Machine {
        Machine {
            memory_mib: 512,
            cpus: 1,
            kernel: self.artifacts.probe.clone(),
            command_line: format!("{QUIET} {orders}").trim_end().to_owned(),
            disk: None,
            network: None,
        }
    }

    /// Starts a machine.
    fn start<'a>(
        &self,
        subject: &'a dyn Subject,
        machine: &Machine,
        tuning: &str,
    ) -> Result<Guest<'a>> {
        Guest::start(subject, machine, tuning, &self.artifacts)
    }
}

/// One thing to measure of each subject.
pub trait Case {
    /// Its name in the figures.
    fn name(&self) -> &str;

    /// The subject's tunings that are of interest, see [`Subject::tunings`].
    fn tunings(&self, subject: &dyn Subject) -> Vec<&'static str>;

    /// Measures once. Always the same metrics in the same order; by the first of them a
    /// subject's best tuning is chosen.
    ///
    /// # Errors
    /// If the subject cannot do it.
    fn measure(&self, subject: &dyn Subject, tuning: &str) -> Result<Vec<Sample>>;

    /// How often to run it, where others are run `usual` times.
    fn runs(&self, usual: u32) -> u32 {
        usual
    }

    /// Whether a quick run has it.
    fn is_quick(&self) -> bool {
        true
    }

    /// Whether these samples of a subject say it all: more runs would cost minutes and say the
    /// same.
    fn is_enough(&self, samples: &[Sample]) -> bool {
        let _ = samples;
        false
    }
}

/// One figure of one run.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// What it is.
    pub metric: Metric,
    /// In the metric's unit; `None` if this run came to none.
    pub value: Option<f64>,
}

impl Sample {
    /// A figure.
    pub fn new(metric: Metric, value: f64) -> Self {
        let value = Some(value);
        Self { metric, value }
    }

    /// No figure.
    pub fn missing(metric: Metric) -> Self {
        let value = None;
        Self { metric, value }
    }

    /// A figure from the probe's line.
    fn from_line(metric: Metric, line: &Value, field: &str) -> Result<Self> {
        let value = line[field].as_f64();
        let value = value.with_context(|| format!("the probe's line has no {field}: {line}"))?;
        Ok(Self::new(metric, value))
    }
}

/// Longest wait for the end of an exercise of so many seconds.
fn patience(seconds: u64) -> Duration {
    crate::guest::PATIENCE + 2 * Duration::from_secs(seconds)
}
