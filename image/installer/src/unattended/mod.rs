//! An installation by an answer file: all lines go to the console and to the log.

mod find;

use std::io::Write;

use anyhow::{Context as _, bail};

pub use find::Source;

use crate::answers::{self, Answers, ZONES};
use crate::hardware::Level;
use crate::install::{Observer, Plan, Step};
use crate::log::Log;
use crate::machine::Machine;

/// How often progress is told, in per cent.
const STRIDE: u64 = 10;

/// Says everything twice.
pub struct Speaker<'a> {
    console: &'a mut dyn Write,
    log: &'a Log,
    told: u64,
}

impl<'a> Speaker<'a> {
    /// To `console` and to `log`.
    pub fn new(console: &'a mut dyn Write, log: &'a Log) -> Self {
        let told = 0;
        Self { console, log, told }
    }

    /// Says `text`.
    pub fn say(&mut self, text: &str) {
        self.log.say(text);
        for line in text.lines() {
            // A console that is gone is no reason to stop.
            let _ = write!(self.console, "{line}\r\n");
        }
        let _ = self.console.flush();
    }
}

impl Observer for Speaker<'_> {
    fn step(&mut self, step: Step) {
        self.say(step.text());
    }

    fn bytes(&mut self, done: u64, total: u64) {
        let percent = done * 100 / total.max(1);
        if percent >= self.told + STRIDE {
            self.told = percent / STRIDE * STRIDE;
            self.say(&format!("  {} %", self.told));
        }
    }
}

/// Reads the answers in `text`, which is from `source`.
///
/// # Errors
/// All mistakes, one a line.
pub fn parse(source: &Source, text: &str) -> anyhow::Result<Answers> {
    Answers::parse(text, ZONES.as_ref()).map_err(|mistakes| {
        anyhow::anyhow!(
            "{source} cannot be used:\n{}",
            answers::list(source, &mistakes)
        )
    })
}

/// Installs what `answers` say on `machine`, and says where the node is then.
///
/// # Errors
/// Nothing was written, or the disk boots nothing.
pub fn install(
    machine: &Machine,
    answers: Answers,
    console: &mut dyn Write,
    log: &Log,
) -> anyhow::Result<Plan> {
    let mut speaker = Speaker::new(console, log);
    speaker.say(&machine.hardware.machine);
    for finding in &machine.hardware.findings {
        speaker.say(&finding.to_string());
    }
    let findings = machine.hardware.findings.iter();
    let bad: Vec<&str> = findings
        .filter(|finding| finding.level == Level::Bad)
        .map(|finding| &*finding.text)
        .collect();
    if !bad.is_empty() {
        bail!(
            "this machine cannot be installed like this: {}",
            bad.join("; ")
        );
    }
    let plan = machine.plan(answers)?;
    for line in plan.summary().iter().chain(&plan.warnings()) {
        speaker.say(line);
    }
    plan.run(&mut speaker, &|| log.text())
        .context("the installation has failed, and the disk boots nothing")?;
    speaker.say(&plan.farewell());
    Ok(plan)
}
