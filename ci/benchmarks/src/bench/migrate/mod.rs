//! `migrate`: a guest moves from one process to another, over a link that both share with ping.
//!
//! Cases are `GUEST-MIB@LINK`. A guest that has not moved within the case's time is recorded as
//! not converged, and its subject is not measured again in that case.
//!
//! The probe sleeps between its steps for [`TICK_US`] at most, so a blackout is measured up to
//! that much too long, never too short.

mod guests;
mod pair;
mod reports;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};

use self::guests::{CASES, Guest, Plan};
use self::pair::Pair;
use self::reports::Reports;
use super::{Case, Cases, Sample, Setup};
use crate::interrupt;
use crate::migration::link::{Link, Speed};
use crate::migration::ping::{Felt, Ping};
use crate::migration::{Migrates, Move, Moved, Outcome};
use crate::record::Metric;
use crate::subject::{Machine, Subject};

/// KVM's timers do not fire more often.
const TICK_US: u32 = 200;
/// A beat takes the guest some 5 ms of serial output; two of them frame a blackout.
const BEAT_MS: u32 = 50;
/// How long the guest's own use of the processor is watched, and ping runs, before it moves.
const BEFORE: Duration = Duration::from_millis(400);

struct Migrate {
    setup: Arc<Setup>,
    name: String,
    plan: &'static Plan,
    machine: Machine,
    link: Arc<Link>,
    reports: Arc<Reports>,
}

pub(super) fn cases(setup: &Arc<Setup>) -> Result<Cases> {
    let reports = Arc::new(Reports::create(&setup.artifacts.directory)?);
    let mut links: Vec<(Speed, Arc<Link>)> = Vec::new();
    let mut cases: Cases = Vec::new();
    for plan in CASES {
        let known = links.iter().find(|(speed, _)| *speed == plan.speed);
        let link = if let Some((_, link)) = known {
            Arc::clone(link)
        } else {
            let link = Arc::new(Link::new(plan.speed)?);
            links.push((plan.speed, Arc::clone(&link)));
            link
        };
        cases.push(Box::new(Migrate {
            setup: Arc::clone(setup),
            name: plan.name(),
            plan,
            machine: machine(setup, &plan.guest, plan.memory_mib),
            link,
            reports: Arc::clone(&reports),
        }));
    }
    Ok(cases)
}

fn machine(setup: &Setup, guest: &Guest, memory_mib: u64) -> Machine {
    let orders = format!("{} tick_us={TICK_US} beat_ms={BEAT_MS}", guest.orders);
    Machine {
        memory_mib,
        ..setup.machine(&orders)
    }
}

impl Case for Migrate {
    fn name(&self) -> &str {
        &self.name
    }

    fn tunings(&self, subject: &dyn Subject) -> Vec<&'static str> {
        let wanted = subject.migrates().is_some() && self.plan.wants(subject.name());
        if wanted { vec![""] } else { Vec::new() }
    }

    fn runs(&self, usual: u32) -> u32 {
        usual.min(self.plan.runs_max)
    }

    fn is_quick(&self) -> bool {
        self.plan.is_quick
    }

    fn is_enough(&self, samples: &[Sample]) -> bool {
        let converged = |sample: &Sample| sample.metric == Metric::ConvergedPercent;
        let converged = samples.iter().find(|sample| converged(sample));
        converged.is_some_and(|sample| sample.value == Some(0.0))
    }

    fn measure(&self, subject: &dyn Subject, _tuning: &str) -> Result<Vec<Sample>> {
        let migrates = subject.migrates().context("it moves no guests")?;
        let logs = &self.setup.artifacts.directory;
        // Not in /tmp: a second signal ends us at once and leaves it.
        let directory = tempfile::Builder::new().prefix("move-").tempdir_in(logs)?;
        let order = Move {
            machine: &self.machine,
            link: &self.link,
            directory: directory.path(),
        };
        let mut pair = Pair::start(subject, migrates, &order, logs)?;
        let run = self.run(migrates, &order, &mut pair);
        run.map_err(|error| error.context(pair.messages()))
    }
}

/// What one move has cost.
struct Cost {
    moved: Moved,
    blackout_us: f64,
    bytes: u64,
    dirtied_mib_per_s: Option<f64>,
    cpu: Duration,
    felt: Option<Felt>,
}

impl Migrate {
    fn run(&self, migrates: &dyn Migrates, order: &Move, pair: &mut Pair) -> Result<Vec<Sample>> {
        pair.wait_until_ready()?;
        let mut ready = migrates.prepare(order)?;
        let ping = self.start_ping(order)?;
        let idle = pair.cpu()?;
        let idle_start = Instant::now();
        interrupt::sleep(BEFORE)?;
        let bytes = self.link.bytes()?;
        let cpu = pair.cpu()?;
        let share = cpu.saturating_sub(idle).as_secs_f64() / idle_start.elapsed().as_secs_f64();

        let mark = pair.mark();

        let (start, start_unix) = (Instant::now(), SystemTime::now());
        let outcome = ready.go(start + self.plan.limit)?;
        let (elapsed, end_unix) = (start.elapsed(), SystemTime::now());

        let moved = match outcome {
            Outcome::Moved(moved) => moved,
            Outcome::NotInTime(status) => {
                self.reports
                    .add(&self.name, pair.subject_name(), None, &status)?;
                return Ok(samples(None, self.link.is_shared()));
            }
        };
        let used = pair.cpu()?.saturating_sub(cpu);
        let bytes = self.link.bytes()? - bytes;
        let story = pair.story(mark)?;
        if let Some(line) = story.lines.complaint() {
            bail!("the probe says: {line}");
        }
        let blackout_us = story.blackout_us().context("no heartbeats")?;
        self.reports
            .add(&self.name, pair.subject_name(), Some(&story), &moved.report)?;
        let felt = ping
            .map(|ping| ping.end(start_unix, end_unix))
            .transpose()?;
        let cost = Cost {
            moved,
            blackout_us,
            bytes: bytes.saturating_sub(felt.as_ref().map_or(0, Felt::bytes)),
            dirtied_mib_per_s: story.lines.dirtied_mib_per_s(mark),
            cpu: used.saturating_sub(elapsed.mul_f64(share)),
            felt,
        };
        Ok(samples(Some(&cost), self.link.is_shared()))
    }

    fn start_ping(&self, order: &Move) -> Result<Option<Ping>> {
        if !self.link.is_shared() {
            return Ok(None);
        }
        let log = order.directory.join("ping");
        let address = self.link.address().ip();
        Ping::start(address, self.link.source(), log).map(Some)
    }
}

/// Without a cost the guest has not moved in time.
fn samples(cost: Option<&Cost>, is_shared: bool) -> Vec<Sample> {
    let sample = |metric, value: Option<f64>| match value {
        Some(value) => Sample::new(metric, value),
        None => Sample::missing(metric),
    };
    let of = |figure: fn(&Cost) -> f64| cost.map(figure);
    let converged = if cost.is_some() { 100.0 } else { 0.0 };
    let mut samples = vec![
        sample(Metric::TotalMs, of(|cost| ms(cost.moved.total))),
        sample(Metric::DowntimeMs, of(|cost| ms(cost.moved.downtime))),
        sample(Metric::BlackoutMs, of(|cost| cost.blackout_us / 1e3)),
        sample(Metric::SentBytes, of(|cost| cost.bytes as f64)),
        sample(
            Metric::DirtiedMibPerS,
            cost.and_then(|cost| cost.dirtied_mib_per_s),
        ),
        sample(Metric::CpuS, of(|cost| cost.cpu.as_secs_f64())),
    ];
    if is_shared {
        let felt = cost.and_then(|cost| cost.felt.as_ref());
        let quantile = |share| felt.and_then(|felt| felt.quantile_ms(share));
        samples.extend([
            sample(Metric::PingP50Ms, quantile(0.5)),
            sample(Metric::PingP99Ms, quantile(0.99)),
            sample(Metric::PingLostPercent, felt.map(Felt::lost_percent)),
        ]);
    }
    samples.push(Sample::new(Metric::ConvergedPercent, converged));
    samples
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_alike_whether_the_guest_moved_or_not() {
        let cost = Cost {
            moved: Moved {
                total: Duration::from_millis(60),
                downtime: Duration::from_millis(1),
                report: serde_json::Value::Null,
            },
            blackout_us: 1500.0,
            bytes: 7,
            dirtied_mib_per_s: Some(48.0),
            cpu: Duration::from_millis(20),
            felt: None,
        };
        for is_shared in [false, true] {
            let moved = samples(Some(&cost), is_shared);
            let not = samples(None, is_shared);
            let metrics = |samples: &[Sample]| -> Vec<Metric> {
                samples.iter().map(|sample| sample.metric).collect()
            };
            assert_eq!(metrics(&moved), metrics(&not));
            assert_eq!(moved[2].value, Some(1.5));
            assert_eq!(not[2].value, None);
        }
    }
}
