//! `agent`: what a node's agent costs while nothing happens, and how fast it shows what there is.
//!
//! The guests are defined and off: each has a record, a disk of its own and an interface on the
//! node's network. There is no peer in it; the other subjects are VMMs.

mod node;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Case, Cases, Sample, Setup};
use crate::interrupt;
use crate::migration::cpu;
use crate::record::Metric;
use crate::smaps;
use crate::statistics::Summary;
use crate::subject::Subject;
use node::Node;

/// For what the agent does once right after its start.
const SETTLE: Duration = Duration::from_secs(3);
/// Requests on one connection, after the first.
const REQUESTS: usize = 20;
/// Calls of the command line.
const CALLS: usize = 5;

struct Agent {
    setup: Arc<Setup>,
    name: &'static str,
    guests: usize,
    node: Node,
}

pub(super) fn cases(setup: &Arc<Setup>) -> Result<Cases> {
    let case = |name, guests| -> Result<Box<dyn Case>> {
        Ok(Box::new(Agent {
            setup: Arc::clone(setup),
            name,
            guests,
            node: Node::new(&setup.artifacts, name)?,
        }))
    };
    Ok(vec![case("no_guests", 0)?, case("200_guests", 200)?])
}

impl Agent {
    /// Longer than the agent's own periods of 10 s.
    fn idle(&self) -> Duration {
        Duration::from_secs(if self.setup.quick { 20 } else { 60 })
    }

    fn define_guests(&self) -> Result<()> {
        let running = self.node.start()?;
        for number in running.guests()?..self.guests {
            interrupt::check()?;
            let name = format!("guest{number}");
            running.pindah(&["guest", "create", &name, "--memory", "512M", "--disk", "8G"])?;
        }
        running.stop()
    }
}

impl Case for Agent {
    fn name(&self) -> &str {
        self.name
    }

    fn tunings(&self, _: &dyn Subject) -> Vec<&'static str> {
        vec![""]
    }

    fn measure(&self, _: &dyn Subject, _: &str) -> Result<Vec<Sample>> {
        self.define_guests()?;
        let running = self.node.start()?;
        interrupt::sleep(SETTLE)?;
        let before = cpu::used(running.agent())?;
        interrupt::sleep(self.idle())?;
        let used = cpu::used(running.agent())?.saturating_sub(before);
        let memory = smaps::whole(running.agent())?;
        let listed = running.guests()?;
        ensure!(listed == self.guests, "{listed} of {} guests", self.guests);
        let list_ms = running.list_ms(REQUESTS)?;
        let mut cli_ms = Vec::new();
        for _ in 0..CALLS {
            cli_ms.push(ms(running.pindah(&["guest", "list"])?.took));
        }
        let start_ms = ms(running.served_after());
        running.stop()?;
        let median = |values: &[f64]| Summary::of(values).map(|summary| summary.median);
        let mib = |bytes| bytes as f64 / f64::from(1 << 20);
        let sample = |metric, value| Sample { metric, value };
        Ok(vec![
            sample(Metric::ListMs, median(&list_ms)),
            sample(Metric::CliListMs, median(&cli_ms)),
            Sample::new(Metric::ServesMs, start_ms),
            Sample::new(Metric::RssMib, mib(memory.rss)),
            Sample::new(Metric::PssMib, mib(memory.pss)),
            Sample::new(
                Metric::CpuPercent,
                100.0 * used.as_secs_f64() / self.idle().as_secs_f64(),
            ),
        ])
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
