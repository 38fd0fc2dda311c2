//! Runs a bench: the subjects take turns, run by run.

use std::io::{IsTerminal, Write};
use std::sync::Arc;

use anyhow::Result;

use crate::bench::{Bench, Case, Sample, Setup, start};
use crate::guest::Guest;
use crate::interrupt;
use crate::record::Record;
use crate::statistics::Summary;
use crate::subject::Subject;

/// The benches' common part.
pub struct Runner {
    setup: Arc<Setup>,
    subjects: Vec<Box<dyn Subject>>,
    runs: Option<u32>,
    only: Vec<String>,
    failures: Vec<String>,
}

/// One subject, set up in one way, and what it has given in the case at hand.
struct Lane<'a> {
    subject: &'a dyn Subject,
    tuning: &'static str,
    runs: Vec<Vec<Sample>>,
    /// It has failed, or nothing new would come of more runs.
    is_over: bool,
}

impl Runner {
    /// `runs` in the place of each bench's own number; `only` the cases of these names, or all.
    pub fn new(
        setup: Setup,
        subjects: Vec<Box<dyn Subject>>,
        runs: Option<u32>,
        only: &[String],
    ) -> Self {
        Self {
            setup: Arc::new(setup),
            subjects,
            runs,
            only: only.to_vec(),
            failures: Vec::new(),
        }
    }

    /// What could not be measured, and why.
    pub fn failures(&self) -> &[String] {
        &self.failures
    }

    /// Starts each subject once, which also brings the programs into memory, and leaves those out
    /// that do not start.
    ///
    /// # Errors
    /// If we are interrupted.
    pub fn try_out(&mut self) -> Result<()> {
        let machine = start::smallest(&self.setup);
        for subject in std::mem::take(&mut self.subjects) {
            let artifacts = &self.setup.artifacts;
            let outcome = Guest::start(&*subject, &machine, "", artifacts)
                .and_then(|mut guest| guest.first_byte());
            interrupt::check()?;
            match outcome {
                Ok(_) => self.subjects.push(subject),
                Err(error) => self
                    .failures
                    .push(format!("{} does not start: {error:#}", subject.name())),
            }
        }
        Ok(())
    }

    /// Measures all cases of `bench`. What fails is noted, and the rest goes on.
    ///
    /// # Errors
    /// If we are interrupted.
    pub fn run(&mut self, bench: &Bench) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        let mut cases = match (bench.cases)(&self.setup) {
            Ok(cases) => cases,
            Err(error) => {
                self.failures.push(format!("{}: {error:#}", bench.name));
                return Ok(records);
            }
        };
        let usual = bench.runs(self.setup.quick);
        cases.retain(|case| self.wants(&**case));
        for case in cases {
            let runs = self.runs.unwrap_or_else(|| case.runs(usual));
            records.extend(self.measure(bench, &*case, runs)?);
        }
        Ok(records)
    }

    fn wants(&self, case: &dyn Case) -> bool {
        if self.only.is_empty() {
            return case.is_quick() || !self.setup.quick;
        }
        self.only.iter().any(|name| name == case.name())
    }

    fn measure(&mut self, bench: &Bench, case: &dyn Case, runs: u32) -> Result<Vec<Record>> {
        let mut lanes = self.lanes(bench, case);
        let bench = bench.name;
        let mut failures = Vec::new();
        for run in 1..=runs {
            for lane in lanes.iter_mut().filter(|lane| !lane.is_over) {
                interrupt::check()?;
                let name = lane.subject.name();
                progress(&format!("{bench} {} {run}/{runs} {name}", case.name()));
                match case.measure(lane.subject, lane.tuning) {
                    Ok(samples) => {
                        lane.is_over = case.is_enough(&samples);
                        lane.runs.push(samples);
                    }
                    Err(error) => {
                        interrupt::check()?;
                        lane.is_over = true;
                        lane.runs.clear();
                        let tuning = lane.tuning;
                        failures.push(format!(
                            "{bench} {} {name} {tuning}: {error:#}",
                            case.name()
                        ));
                    }
                }
            }
        }
        progress("");
        let records = best(lanes, bench, case.name());
        self.failures.extend(failures);
        Ok(records)
    }

    fn lanes(&self, bench: &Bench, case: &dyn Case) -> Vec<Lane<'_>> {
        let mut lanes = Vec::new();
        let subjects = self.subjects.iter();
        for subject in subjects.filter(|subject| subject.takes_part(bench)) {
            let mut tunings = case.tunings(&**subject);
            if self.setup.quick {
                tunings.truncate(1);
            }
            lanes.extend(tunings.into_iter().map(|tuning| Lane {
                subject: &**subject,
                tuning,
                runs: Vec::new(),
                is_over: false,
            }));
        }
        lanes
    }
}

/// The figures of each subject's best tuning, by the case's first metric.
fn best(lanes: Vec<Lane>, bench: &str, case: &str) -> Vec<Record> {
    let mut best: Vec<Vec<Record>> = Vec::new();
    for lane in lanes {
        let records = summarize(&lane, bench, case);
        let Some(first) = records.first() else {
            continue;
        };
        let rival = best
            .iter_mut()
            .find(|rival| rival[0].subject == first.subject);
        match rival {
            None => best.push(records),
            Some(rival) => {
                if first.metric.advantage(first.median, rival[0].median) > 1.0 {
                    *rival = records;
                }
            }
        }
    }
    best.into_iter().flatten().collect()
}

/// Each run has the same metrics in the same order.
fn summarize(lane: &Lane, bench: &str, case: &str) -> Vec<Record> {
    let metrics = lane.runs.first().map_or(0, Vec::len);
    let record = |index: usize| {
        let values = lane.runs.iter().filter_map(|run| run[index].value);
        let values: Vec<f64> = values.collect();
        let metric = lane.runs.first()?[index].metric;
        let summary = Summary::of(&values)?;
        Some(Record {
            bench: bench.to_owned(),
            case: case.to_owned(),
            subject: lane.subject.name().to_owned(),
            metric,
            unit: metric.unit(),
            median: summary.median,
            min: summary.min,
            max: summary.max,
            runs: summary.runs,
            tuning: lane.tuning,
        })
    };
    (0..metrics).filter_map(record).collect()
}

/// Shows a person what is going on.
fn progress(text: &str) {
    let mut stderr = std::io::stderr();
    if stderr.is_terminal() {
        let _ = write!(stderr, "\r\x1b[K{text}");
        let _ = stderr.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::process::Command;

    use crate::record::Metric;
    use crate::subject::Machine;

    struct Named(&'static str);

    impl Subject for Named {
        fn name(&self) -> &str {
            self.0
        }

        fn version(&self) -> Result<String> {
            Ok("1".to_owned())
        }

        fn takes_part(&self, _: &Bench) -> bool {
            true
        }

        fn command(&self, _: &Machine, _: &str, _: &Path) -> Result<Command> {
            Ok(Command::new("true"))
        }
    }

    fn lane<'a>(
        subject: &'a Named,
        tuning: &'static str,
        metric: Metric,
        values: &[f64],
    ) -> Lane<'a> {
        let run = |value: &f64| vec![Sample::new(metric, *value)];
        Lane {
            subject,
            tuning,
            runs: values.iter().map(run).collect(),
            is_over: false,
        }
    }

    #[test]
    fn best_of_two_tunings_is_the_one_with_the_better_median() {
        let (a, b) = (Named("a"), Named("b"));
        for (metric, expected) in [(Metric::Iops, "y"), (Metric::LatencyP99Us, "x")] {
            let lanes = vec![
                lane(&a, "x", metric, &[1.0, 2.0, 90.0]),
                lane(&a, "y", metric, &[3.0, 3.0, 3.0]),
                lane(&b, "", metric, &[7.0]),
            ];
            let records = best(lanes, "block", "case");
            assert_eq!(records.len(), 2);
            assert_eq!((records[0].tuning, records[0].runs), (expected, 3));
            assert_eq!(records[1].subject, "b");
        }
    }

    #[test]
    fn best_of_lane_without_runs_is_left_out() {
        let a = Named("a");
        assert!(best(vec![lane(&a, "", Metric::Iops, &[])], "block", "case").is_empty());
    }
}
